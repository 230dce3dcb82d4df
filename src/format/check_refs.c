/* SPDX-License-Identifier: MIT */
/*
 * format/check_refs.c - counting references to host clusters, in bounded memory
 *
 * Owns:    the counters and the set of L2 tables.
 * Assumes: the caller has compared cluster numbers with the file's length.
 * Never:   knows where a reference came from.
 */
#include "format/check_refs.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BUCKETS_MIN 1024
#define PAGES_MIN 16 /* a window never gets shorter than what these cover */

static uint64_t hash(uint64_t x)
{
	x *= 0x9e3779b97f4a7c15ull;
	return x ^ x >> 32;
}

/* ---- references ---- */

int refs_init(struct refs *r, size_t max_pages)
{
	memset(r, 0, sizeof(*r));
	r->max_pages = MAX(max_pages, PAGES_MIN);
	r->nr_buckets = BUCKETS_MIN;
	r->buckets = calloc(r->nr_buckets, sizeof(*r->buckets));
	return r->buckets ? 0 : -ENOMEM;
}

/* Frees the pages from cluster `from` on. */
static void drop_pages(struct refs *r, uint64_t from)
{
	for (size_t i = 0; i < r->nr_buckets; i++) {
		struct ref_page **pos = &r->buckets[i];

		while (*pos) {
			struct ref_page *p = *pos;

			if (p->first < from) {
				pos = &p->next;
				continue;
			}
			*pos = p->next;
			free(p);
			r->nr_pages--;
		}
	}
	r->last = NULL;
}

void refs_free(struct refs *r)
{
	if (r->buckets)
		drop_pages(r, 0);
	free(r->buckets);
	r->buckets = NULL;
}

void refs_window(struct refs *r, uint64_t from, uint64_t to)
{
	drop_pages(r, 0);
	r->from = from;
	r->to = to;
}

static struct ref_page **page_bucket(const struct refs *r, uint64_t first)
{
	return &r->buckets[hash(first / REF_PAGE) & (r->nr_buckets - 1)];
}

static struct ref_page *page_find(struct refs *r, uint64_t cluster)
{
	uint64_t first = align_down(cluster, REF_PAGE);
	struct ref_page *p = r->last;

	if (p && p->first == first)
		return p;
	for (p = *page_bucket(r, first); p && p->first != first; p = p->next)
		;
	if (p)
		r->last = p;
	return p;
}

/* Failing to grow is no error: chains get longer. */
static void grow_buckets(struct refs *r)
{
	struct ref_page **old = r->buckets, **bigger = calloc(r->nr_buckets * 2, sizeof(*bigger));
	size_t nr_old = r->nr_buckets;

	if (!bigger)
		return;
	r->buckets = bigger;
	r->nr_buckets *= 2;
	for (size_t i = 0; i < nr_old; i++) {
		struct ref_page *p, *next;

		for (p = old[i]; p; p = next) {
			struct ref_page **b = page_bucket(r, p->first);

			next = p->next;
			p->next = *b;
			*b = p;
		}
	}
	free(old);
}

/*
 * Half of the memory must become free: halve the window until what lies in it fits. A window of PAGES_MIN
 * pages is kept whole, so every window makes progress.
 */
static void shrink_window(struct refs *r)
{
	size_t keep = MAX(r->nr_pages / 2, PAGES_MIN / 2);

	while (r->nr_pages > keep) {
		uint64_t len = align_down((r->to - r->from) / 2, REF_PAGE);

		if (len < (PAGES_MIN / 2) * REF_PAGE)
			return;
		r->to = r->from + len;
		drop_pages(r, r->to);
	}
}

static struct ref_page *page_new(struct refs *r, uint64_t cluster)
{
	struct ref_page *p = NULL, **b;

	if (r->nr_pages < r->max_pages)
		p = calloc(1, sizeof(*p));
	if (!p)
		return NULL;
	if (r->nr_pages >= r->nr_buckets)
		grow_buckets(r);
	p->first = align_down(cluster, REF_PAGE);
	b = page_bucket(r, p->first);
	p->next = *b;
	*b = p;
	r->nr_pages++;
	r->last = p;
	return p;
}

static void count(uint32_t *counter, uint64_t weight, uint32_t flags)
{
	uint32_t before = *counter & REF_COUNT_MAX, old_flags = *counter & ~REF_COUNT_MAX;
	uint64_t sum;

	if (u64_add(before, weight, &sum) || sum > REF_COUNT_MAX)
		sum = REF_COUNT_MAX;
	if (before && ((old_flags | flags) & REF_METADATA))
		flags |= REF_OVERLAP;
	*counter = (uint32_t)sum | old_flags | flags;
}

int refs_add(struct refs *r, uint64_t cluster, uint64_t weight, uint32_t flags)
{
	struct ref_page *p;

	if (cluster < r->from || cluster >= r->to)
		return 0;
	p = page_find(r, cluster);
	if (!p)
		p = page_new(r, cluster);
	if (!p) {
		shrink_window(r);
		if (cluster >= r->to)
			return 0;
		p = page_new(r, cluster);
		if (!p)
			return -ENOMEM;
	}
	count(&p->counters[cluster % REF_PAGE], weight, flags);
	return 0;
}

uint32_t refs_get(struct refs *r, uint64_t cluster)
{
	struct ref_page *p = page_find(r, cluster);

	return p ? p->counters[cluster % REF_PAGE] : 0;
}

void refs_mark(struct refs *r, uint64_t cluster, uint32_t flags)
{
	struct ref_page *p = page_find(r, cluster);

	if (p)
		p->counters[cluster % REF_PAGE] |= flags;
}

static int by_place(const void *a, const void *b)
{
	const struct ref_page *const *pa = a, *const *pb = b;

	return (*pa)->first < (*pb)->first ? -1 : (*pa)->first > (*pb)->first;
}

struct ref_page **refs_sorted(const struct refs *r, size_t *ret_nr)
{
	struct ref_page **all = malloc((r->nr_pages + 1) * sizeof(*all));
	size_t nr = 0;

	if (!all)
		return NULL;
	for (size_t i = 0; i < r->nr_buckets; i++) {
		for (struct ref_page *p = r->buckets[i]; p; p = p->next)
			all[nr++] = p;
	}
	qsort(all, nr, sizeof(*all), by_place);
	*ret_nr = nr;
	return all;
}

/* ---- L2 tables ---- */

int l2_set_init(struct l2_set *s, size_t max)
{
	s->nr = 0;
	s->max = max;
	s->nr_slots = BUCKETS_MIN;
	s->slots = calloc(s->nr_slots, sizeof(*s->slots));
	return s->slots ? 0 : -ENOMEM;
}

void l2_set_free(struct l2_set *s)
{
	free(s->slots);
	s->slots = NULL;
}

/* The slot of the cluster, or the free one where it belongs. There is always a free one. */
static struct l2_slot *slot_of(const struct l2_set *s, uint64_t cluster)
{
	size_t i = hash(cluster) & (s->nr_slots - 1);

	while (s->slots[i].cluster && s->slots[i].cluster != cluster)
		i = (i + 1) & (s->nr_slots - 1);
	return &s->slots[i];
}

static int grow_slots(struct l2_set *s)
{
	struct l2_set bigger = { .nr_slots = s->nr_slots * 2 };

	bigger.slots = calloc(bigger.nr_slots, sizeof(*bigger.slots));
	if (!bigger.slots)
		return -ENOMEM;
	for (size_t i = 0; i < s->nr_slots; i++) {
		if (s->slots[i].cluster)
			*slot_of(&bigger, s->slots[i].cluster) = s->slots[i];
	}
	free(s->slots);
	s->slots = bigger.slots;
	s->nr_slots = bigger.nr_slots;
	return 0;
}

int l2_set_add(struct l2_set *s, uint64_t cluster, uint32_t weight)
{
	struct l2_slot *slot = slot_of(s, cluster);

	if (!slot->cluster) {
		int err;

		if (s->nr >= s->max)
			return -EFBIG;
		if (s->nr + 1 > s->nr_slots / 4 * 3) {
			err = grow_slots(s);
			if (err < 0)
				return err;
			slot = slot_of(s, cluster);
		}
		slot->cluster = cluster;
		s->nr++;
	}
	if (__builtin_add_overflow(slot->weight, weight, &slot->weight))
		slot->weight = UINT32_MAX;
	return 0;
}

struct l2_slot *l2_set_find(const struct l2_set *s, uint64_t cluster)
{
	struct l2_slot *slot = slot_of(s, cluster);

	return slot->cluster ? slot : NULL;
}
