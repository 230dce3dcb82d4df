/* SPDX-License-Identifier: MIT */
/*
 * order/sector.c - the queued bytes: 512-byte sectors, each belonging to one section
 *
 * Owns:    the hash table and the sectors in it.
 * Assumes: at most one sector for each place and section; one thread.
 * Never:   waits, does I/O, or knows why bytes are queued.
 */
#include "order/sector.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BUCKETS_MIN 256

static struct sector **bucket_of(const struct sector_table *t, uint64_t nr)
{
	/*
	 * Multiplication by an odd constant near 2^64 / golden ratio spreads neighbours; the top bits are
	 * the best.
	 */
	uint64_t h = nr * 0x9e3779b97f4a7c15ull;

	return &t->buckets[(h >> 32) & (t->nr_buckets - 1)];
}

int sector_table_init(struct sector_table *t)
{
	t->nr = 0;
	t->nr_buckets = BUCKETS_MIN;
	t->buckets = calloc(t->nr_buckets, sizeof(*t->buckets));
	return t->buckets ? 0 : -ENOMEM;
}

void sector_table_free(struct sector_table *t)
{
	for (size_t i = 0; t->buckets && i < t->nr_buckets; i++) {
		struct sector *s, *next;

		for (s = t->buckets[i]; s; s = next) {
			next = s->hash_next;
			free(s);
		}
	}
	free(t->buckets);
	t->buckets = NULL;
}

/* Newest first, but only among those of the same place: they keep their order when the table grows. */
static void bucket_insert(struct sector **pos, struct sector *s)
{
	while (*pos && !((*pos)->nr == s->nr && (*pos)->section < s->section))
		pos = &(*pos)->hash_next;
	s->hash_next = *pos;
	*pos = s;
}

static void table_grow(struct sector_table *t)
{
	struct sector_table bigger = { .nr_buckets = t->nr_buckets * 2 };

	bigger.buckets = calloc(bigger.nr_buckets, sizeof(*bigger.buckets));
	if (!bigger.buckets)
		return;
	for (size_t i = 0; i < t->nr_buckets; i++) {
		struct sector *s, *next;

		for (s = t->buckets[i]; s; s = next) {
			next = s->hash_next;
			bucket_insert(bucket_of(&bigger, s->nr), s);
		}
	}
	free(t->buckets);
	t->buckets = bigger.buckets;
	t->nr_buckets = bigger.nr_buckets;
}

static struct sector *skip_others(struct sector *s, uint64_t nr)
{
	while (s && s->nr != nr)
		s = s->hash_next;
	return s;
}

struct sector *sector_newest(const struct sector_table *t, uint64_t nr)
{
	return skip_others(*bucket_of(t, nr), nr);
}

struct sector *sector_older(const struct sector *s)
{
	return skip_others(s->hash_next, s->nr);
}

struct sector *sector_find(const struct sector_table *t, uint64_t nr, uint64_t section)
{
	struct sector *s = sector_newest(t, nr);

	while (s && s->section > section)
		s = sector_older(s);
	return s && s->section == section ? s : NULL;
}

void sector_insert(struct sector_table *t, struct sector *s)
{
	if (t->nr >= t->nr_buckets)
		table_grow(t);
	bucket_insert(bucket_of(t, s->nr), s);
	t->nr++;
}

void sector_remove(struct sector_table *t, struct sector *s)
{
	struct sector **pos = bucket_of(t, s->nr);

	while (*pos != s)
		pos = &(*pos)->hash_next;
	*pos = s->hash_next;
	t->nr--;
}

static bool byte_valid(const struct sector *s, unsigned i)
{
	return s->valid[i / 64] >> (i % 64) & 1;
}

bool sector_has(const struct sector *s, unsigned from, unsigned len)
{
	unsigned run = from, run_len;

	return sector_run(s, &run, &run_len) && run < from + len;
}

/* The bits from .. from + len - 1 that fall into word w of a bitmap of bytes. */
static uint64_t word_mask(unsigned w, unsigned from, unsigned len)
{
	unsigned start = MAX(from, w * 64), end = MIN(from + len, (w + 1) * 64);

	if (start >= end)
		return 0;
	return (end - start == 64 ? ~0ull : (1ull << (end - start)) - 1) << (start % 64);
}

void sector_fill(struct sector *s, unsigned from, const uint8_t *bytes, unsigned len)
{
	memcpy(s->bytes + from, bytes, len);
	for (unsigned w = 0; w < ARRAY_LEN(s->valid); w++)
		s->valid[w] |= word_mask(w, from, len);
}

void sector_overlay(const struct sector *newest, unsigned from, uint8_t *buf, unsigned len)
{
	for (unsigned w = from / 64; w < ARRAY_LEN(newest->valid); w++) {
		uint64_t wanted = word_mask(w, from, len);

		for (const struct sector *s = newest; s && wanted; s = sector_older(s)) {
			uint64_t take = s->valid[w] & wanted;

			wanted &= ~take;
			if (take == ~0ull) {
				memcpy(buf + w * 64 - from, s->bytes + w * 64, 64);
				take = 0;
			}
			while (take) {
				unsigned i = w * 64 + (unsigned)__builtin_ctzll(take);

				buf[i - from] = s->bytes[i];
				take &= take - 1;
			}
		}
	}
}

bool sector_run(const struct sector *s, unsigned *from, unsigned *ret_len)
{
	unsigned start = *from, end;

	while (start < SECTOR_LEN && !byte_valid(s, start))
		start += s->valid[start / 64] >> (start % 64) ? 1 : 64 - start % 64;
	if (start >= SECTOR_LEN)
		return false;
	for (end = start; end < SECTOR_LEN && byte_valid(s, end);)
		end += end % 64 == 0 && s->valid[end / 64] == ~0ull ? 64 : 1;
	*from = start;
	*ret_len = end - start;
	return true;
}

static struct sector *merge(struct sector *a, struct sector *b)
{
	struct sector *head = NULL, **tail = &head;

	while (a && b) {
		struct sector **smaller = a->nr < b->nr ? &a : &b;

		*tail = *smaller;
		tail = &(*smaller)->next;
		*smaller = *tail;
	}
	*tail = a ? a : b;
	return head;
}

struct sector *sector_sort(struct sector *list)
{
	struct sector *runs[64] = { NULL }; /* runs[i]: sorted, 2^i elements, or empty */
	struct sector *sorted = NULL;
	unsigned i;

	while (list) {
		struct sector *run = list;

		list = run->next;
		run->next = NULL;
		for (i = 0; runs[i]; i++) {
			run = merge(runs[i], run);
			runs[i] = NULL;
		}
		runs[i] = run;
	}
	for (i = 0; i < ARRAY_LEN(runs); i++)
		sorted = merge(runs[i], sorted);
	return sorted;
}
