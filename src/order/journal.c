/* SPDX-License-Identifier: MIT */
/*
 * order/journal.c - puts are copied into shared memory, and read back
 *
 * Owns:    the layout of the memory, and which of its segments are in use.
 * Assumes: one writer, the home queue; a reader only when the writer is dead (journal_file.c holds the lock).
 * Never:   waits, or makes a system call but for memory that is used for the first time (journal_segment_memory()).
 */
#include "order/journal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "order/sector.h"

#define RECORD_LEN sizeof(struct journal_record)
#define KEEP_RESERVED 16 /* segments whose memory is kept when they are not in use */
#define SEGMENT_TAG (0x5e67ull << 48) /* in the first number of a segment in use: no damage turns it into 0 */

/*
 * A part of a put that is not its last ends at a sector: on disk sectors do not tear, so entries of tables never do. The
 * least that is worth beginning in the rest of a segment.
 */
#define PART_MIN (RECORD_LEN + SECTOR_LEN)

static_assert(sizeof(struct journal_header) <= KiB(4), "the table follows");
static_assert(KiB(4) + JOURNAL_SEGMENTS * sizeof(struct journal_segment) <= JOURNAL_FIRST, "segments follow");

static bool bit_test(const uint64_t *map, unsigned i)
{
	return map[i / 64] >> (i % 64) & 1;
}

static void bit_set(uint64_t *map, unsigned i)
{
	map[i / 64] |= 1ull << (i % 64);
}

static void bit_clear(uint64_t *map, unsigned i)
{
	map[i / 64] &= ~(1ull << (i % 64));
}

/* Not against an enemy, who could write the whole file as he likes: against damage and against old bytes. */
static uint64_t sum_bytes(uint64_t sum, const void *bytes, size_t len)
{
	const uint8_t *p = bytes;
	uint64_t word;

	for (; len >= sizeof(word); p += sizeof(word), len -= sizeof(word)) {
		memcpy(&word, p, sizeof(word));
		sum = (sum ^ word) * 0x9e3779b97f4a7c15ull;
		sum ^= sum >> 29;
	}
	word = len; /* so that zeroes at the end count */
	memcpy((uint8_t *)&word + 1, p, len);
	sum = (sum ^ word) * 0x9e3779b97f4a7c15ull;
	return sum ^ sum >> 32;
}

static uint64_t record_sum(uint64_t key, uint64_t seq, const struct journal_record *r)
{
	uint64_t head[] = { seq, r->section, r->off, r->len };

	return sum_bytes(sum_bytes(key, head, sizeof(head)), r->bytes, r->len);
}

static uint64_t header_sum(const struct journal_header *h)
{
	return sum_bytes(1, h, offsetof(struct journal_header, header_sum));
}

static uint8_t *segment_at(const void *map, unsigned i)
{
	return (uint8_t *)map + JOURNAL_FIRST + i * JOURNAL_SEGMENT_LEN;
}

static struct journal_segment *table_of(const void *map)
{
	return (struct journal_segment *)((uint8_t *)map + KiB(4));
}

void journal_format(struct journal *j, void *map, uint64_t key, const struct journal_owner *owner)
{
	struct journal_header *h = map;

	memset(j, 0, sizeof(*j));
	j->h = h;
	j->segments = table_of(map);
	j->fd = -1;
	j->current = JOURNAL_SEGMENTS;
	j->next_seq = 1;
	memcpy(h->magic, "VARVEJNL", sizeof(h->magic));
	h->version = JOURNAL_VERSION;
	h->header_len = sizeof(*h);
	h->key = key;
	h->owner = *owner;
	atomic_init(&h->next_seq, j->next_seq);
	h->header_sum = header_sum(h);
}

/* ---- writing ---- */

/* The first that has memory and is not used. */
static unsigned find_reserved(const struct journal *j)
{
	for (unsigned w = 0; w < ARRAY_LEN(j->used); w++) {
		uint64_t map = j->reserved[w] & ~j->used[w];

		if (map)
			return w * 64 + (unsigned)__builtin_ctzll(map);
	}
	return JOURNAL_SEGMENTS;
}

static size_t room_here(const struct journal *j)
{
	return j->current == JOURNAL_SEGMENTS ? 0 : JOURNAL_SEGMENT_LEN - j->pos;
}

int journal_reserve(struct journal *j, size_t len)
{
	/* Of every segment, the last bytes may be too few for a part, or not end at a sector. */
	size_t of_each = JOURNAL_SEGMENT_LEN - RECORD_LEN - PART_MIN - SECTOR_LEN, room = room_here(j);
	unsigned needed;

	if (len + RECORD_LEN + 8 <= room)
		return 0;
	needed = (unsigned)MIN(len / of_each + 1, (size_t)JOURNAL_SEGMENTS);
	for (unsigned i = 0; j->nr_reserved - j->nr_used < needed; i++) {
		if (i == JOURNAL_SEGMENTS)
			return -ENOSPC;
		if (bit_test(j->reserved, i))
			continue;
		if (journal_segment_memory(j, i, false) < 0)
			return -ENOSPC;
		bit_set(j->reserved, i);
		j->nr_reserved++;
	}
	return 0;
}

/* What an older use left where the next record will be may be any number: also the next one. */
static void end_here(struct journal *j, size_t pos)
{
	struct journal_record *r = (void *)(segment_at(j->h, j->current) + pos);

	if (pos + RECORD_LEN <= JOURNAL_SEGMENT_LEN)
		atomic_store_explicit(&r->seq, 0, memory_order_relaxed);
}

static void segment_begin(struct journal *j)
{
	unsigned i = find_reserved(j); /* journal_reserve() has seen to it that there is one */

	if (j->current != JOURNAL_SEGMENTS)
		atomic_store_explicit(&j->segments[j->current].end, j->next_seq, memory_order_release);
	assert(i < JOURNAL_SEGMENTS);
	bit_set(j->used, i);
	j->nr_used++;
	j->last_section[i] = 0;
	j->current = i;
	j->pos = 0;
	end_here(j, 0);
	atomic_store_explicit(&j->segments[i].end, 0, memory_order_relaxed);
	atomic_store_explicit(&j->segments[i].first, j->next_seq | SEGMENT_TAG, memory_order_release);
}

static void record_write(struct journal *j, uint64_t section, uint64_t off, const void *bytes, size_t len)
{
	struct journal_record *r = (void *)(segment_at(j->h, j->current) + j->pos);

	end_here(j, j->pos + RECORD_LEN + align_up(len, 8));
	r->section = section;
	r->off = off;
	r->len = len;
	memcpy(r->bytes, bytes, len);
	r->sum = record_sum(j->h->key, j->next_seq, r);
	/*
	 * Killed before this store: no record. Killed after it: the record, all of it, because the stores before were
	 * made before, and what a dead thread has stored is in the memory.
	 */
	atomic_store_explicit(&r->seq, j->next_seq, memory_order_release);
	j->next_seq++;
	atomic_store_explicit(&j->h->next_seq, j->next_seq, memory_order_release);
	j->pos += RECORD_LEN + align_up(len, 8);
	j->last_section[j->current] = MAX(j->last_section[j->current], section);
}

void journal_put(struct journal *j, uint64_t section, uint64_t off, const void *bytes, size_t len)
{
	const uint8_t *p = bytes;

	while (len) {
		size_t part = len;

		if (room_here(j) < MIN(align_up(len, 8) + RECORD_LEN, PART_MIN + SECTOR_LEN))
			segment_begin(j);
		if (align_up(len, 8) + RECORD_LEN > room_here(j))
			part = (size_t)(align_down(off + room_here(j) - RECORD_LEN, SECTOR_LEN) - off);
		record_write(j, section, off, p, part);
		off += part;
		p += part;
		len -= part;
	}
}

static void segment_free(struct journal *j, unsigned i)
{
	atomic_store_explicit(&j->segments[i].first, 0, memory_order_release);
	bit_clear(j->used, i);
	j->nr_used--;
	if (j->current == i)
		j->current = JOURNAL_SEGMENTS;
	/* After a burst. That it fails costs memory only. */
	if (j->nr_reserved > KEEP_RESERVED && i >= KEEP_RESERVED && journal_segment_memory(j, i, true) == 0) {
		bit_clear(j->reserved, i);
		j->nr_reserved--;
	}
}

void journal_retire(struct journal *j, uint64_t durable)
{
	/*
	 * First of all this: a record of a durable section that is still there is not written again. The place may
	 * be freed now, and hold a guest's data soon.
	 */
	atomic_store_explicit(&j->h->durable, durable, memory_order_release);
	for (unsigned w = 0; j->nr_used && w < ARRAY_LEN(j->used); w++) {
		for (uint64_t left = j->used[w]; left; left &= left - 1) {
			unsigned i = w * 64 + (unsigned)__builtin_ctzll(left);

			if (j->last_section[i] <= durable)
				segment_free(j, i);
		}
	}
}

bool journal_settle(void *map)
{
	struct journal_header *h = map;

	/* Not to be taken over twice: they may be given away by the time somebody else looks. */
	for (unsigned i = 0; i < ORDER_NOTES; i++)
		atomic_store_explicit(&h->notes[i], 0, memory_order_release);
	atomic_store_explicit(&h->nr_todo, 0, memory_order_release);
	atomic_store_explicit(&h->durable, UINT64_MAX, memory_order_release);
	return atomic_load_explicit(&h->error, memory_order_acquire) ||
	       atomic_load_explicit(&h->data_error, memory_order_acquire);
}

/* ---- reading ---- */

const char *journal_header_fault(const void *map, size_t len)
{
	const struct journal_header *h = map;

	if (len != JOURNAL_LEN)
		return "its length is not that of a state file";
	if (memcmp(h->magic, "VARVEJNL", sizeof(h->magic)) != 0)
		return "it does not begin as a state file does";
	if (h->version != JOURNAL_VERSION || h->header_len != sizeof(*h))
		return "it is of another version of varve";
	if (h->header_sum != header_sum(h))
		return "the checksum of its header is wrong";
	return NULL;
}

bool journal_segment_used(const void *map, unsigned i)
{
	return atomic_load_explicit(&table_of(map)[i].first, memory_order_acquire) != 0;
}

struct replay {
	const void *map;
	const struct journal_header *h;
	uint64_t durable;
	journal_fn fn;
	void *arg;
	const char *fault;
};

static int damaged(struct replay *p, const char *fault)
{
	p->fault = fault;
	return -EUCLEAN;
}

/* Every length is checked before it is used: the file may be damaged. *ret_end: behind the last number found. */
static int replay_segment(struct replay *p, unsigned i, uint64_t first, uint64_t *ret_end)
{
	const uint8_t *segment = segment_at(p->map, i);
	uint64_t seq = first;

	for (size_t pos = 0; pos + RECORD_LEN <= JOURNAL_SEGMENT_LEN; seq++) {
		const struct journal_record *r = (const void *)(segment + pos);
		int ret = 0;

		if (atomic_load_explicit(&r->seq, memory_order_acquire) != seq)
			break;
		if (r->len == 0 || r->len > JOURNAL_SEGMENT_LEN - RECORD_LEN - pos || r->off > VARVE_LEN_MAX - r->len)
			return damaged(p, "a record has an impossible length or place");
		if (r->sum != record_sum(p->h->key, seq, r))
			return damaged(p, "the checksum of a record is wrong");
		if (r->section > p->durable)
			ret = p->fn(p->arg, r->section, r->off, r->bytes, r->len);
		if (ret < 0)
			return ret;
		pos += RECORD_LEN + align_up(r->len, 8);
	}
	*ret_end = seq;
	return 0;
}

/* The segment in use with the smallest first number that is not below `from`; JOURNAL_SEGMENTS: none, -1: damaged. */
static int next_segment(const struct journal_segment *table, uint64_t from, uint64_t *ret_first)
{
	int found = JOURNAL_SEGMENTS;

	for (unsigned i = 0; i < JOURNAL_SEGMENTS; i++) {
		uint64_t first = atomic_load_explicit(&table[i].first, memory_order_acquire);

		if (!first)
			continue;
		if (first >> 48 != SEGMENT_TAG >> 48)
			return -1;
		first &= ~SEGMENT_TAG;
		if (first >= from && (found == JOURNAL_SEGMENTS || first < *ret_first)) {
			found = (int)i;
			*ret_first = first;
		}
	}
	return found;
}

int journal_replay(const void *map, journal_fn fn, void *arg, const char **ret_fault)
{
	struct replay p = { .map = map, .h = map, .fn = fn, .arg = arg };
	const struct journal_segment *table = table_of(map);
	uint64_t from = 1, first = 0, end = 0, next = atomic_load_explicit(&p.h->next_seq, memory_order_acquire);
	int i, ret;

	p.durable = atomic_load_explicit(&p.h->durable, memory_order_acquire);
	while ((i = next_segment(table, from, &first)) < JOURNAL_SEGMENTS) {
		uint64_t sealed = i < 0 ? 0 : atomic_load_explicit(&table[i].end, memory_order_acquire);

		ret = i < 0 ? damaged(&p, "the table of its segments is wrong")
			    : replay_segment(&p, (unsigned)i, first, &end);
		/* One that is full must have all of its records, the last one those that were counted, or one more. */
		if (ret == 0 && (sealed ? end != sealed : end < next || end > next + 1))
			ret = damaged(&p, "records are missing");
		if (ret < 0) {
			*ret_fault = p.fault;
			return ret;
		}
		from = MAX(end, first + 1);
	}
	return 0;
}
