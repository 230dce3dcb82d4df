/* SPDX-License-Identifier: MIT */
/*
 * proto/file_doubt.c - what a failed sync of a file has left in doubt
 *
 *   written ──sync begins──▶ closing ──it succeeds──▶ stable, forgotten
 *      └──────────────────────┴──a sync fails──▶ in doubt ──written again, sync succeeds──▶ forgotten
 *                                                    └──acknowledged──▶ forgotten
 *
 * Each of the three is a set of byte ranges in bounded memory: DOUBT_RANGES of them exactly, what goes beyond
 * in blocks, one bit each. A set may hold more than was put in (then more is in doubt than need be), never
 * less; where the opposite is needed (what has been written again), only the exact ranges count.
 *
 * Owns:    the sets, the rings of notes.
 * Assumes: a write is noted before it is acknowledged, so that a sync that its writer asks for finds it.
 * Never:   takes data for stable that a failed sync may have lost.
 */
#include "proto/file_doubt.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

#define DOUBT_RANGES 256

struct span {
	uint64_t off, end;
};

struct span_set {
	unsigned nr;
	struct span spans[DOUBT_RANGES]; /* sorted; neither overlap nor touch */
	bool has_bits;
	unsigned shift; /* of a block */
	uint64_t bits[DOUBT_WORDS];
};

struct doubt_sets {
	pthread_mutex_t lock;
	struct span_set written; /* since the last sync began */
	struct span_set closing; /* before it began, since the last that succeeded */
	struct span_set doubt;
	uint64_t nr_begun; /* syncs; the ticket of the newest */
	uint64_t end;	   /* behind the last byte written */
	int last_error;
	_Atomic uint64_t *where; /* doubt_publish() */
	bool cause_unknown; /* a sync failed although we knew of nothing unsynced */
};

/* ---- sets ---- */

static void set_clear(struct span_set *s)
{
	s->nr = 0;
	if (s->has_bits)
		memset(s->bits, 0, sizeof(s->bits));
	s->has_bits = false;
	s->shift = DOUBT_BLOCK_MIN_SHIFT;
}

static bool set_is_empty(const struct span_set *s)
{
	return !s->nr && !s->has_bits;
}

static bool bit_get(const struct span_set *s, uint64_t i)
{
	return s->bits[i / 64] >> i % 64 & 1;
}

/* Blocks twice as large. */
static void bits_fold(struct span_set *s)
{
	for (uint64_t i = 0; i < DOUBT_BITS; i++) {
		bool on = i < DOUBT_BITS / 2 && (bit_get(s, 2 * i) || bit_get(s, 2 * i + 1));

		if (on)
			s->bits[i / 64] |= 1ull << i % 64;
		else
			s->bits[i / 64] &= ~(1ull << i % 64);
	}
	s->shift++;
}

static void bits_add(struct span_set *s, uint64_t off, uint64_t end)
{
	if (!s->has_bits)
		while ((end - 1) >> s->shift >= DOUBT_BITS)
			s->shift++;
	while ((end - 1) >> s->shift >= DOUBT_BITS)
		bits_fold(s);
	s->has_bits = true;
	for (uint64_t i = off >> s->shift; i <= (end - 1) >> s->shift; i++)
		s->bits[i / 64] |= 1ull << i % 64;
}

/* The first span that ends at or behind off. */
static unsigned span_find(const struct span_set *s, uint64_t off)
{
	unsigned low = 0, high = s->nr;

	while (low < high) {
		unsigned mid = (low + high) / 2;

		if (s->spans[mid].end < off)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

static void spans_replace(struct span_set *s, unsigned at, unsigned nr_old, const struct span *new_spans,
			  unsigned nr_new)
{
	memmove(s->spans + at + nr_new, s->spans + at + nr_old, (s->nr - at - nr_old) * sizeof(s->spans[0]));
	memcpy(s->spans + at, new_spans, nr_new * sizeof(s->spans[0]));
	s->nr = s->nr - nr_old + nr_new;
}

static void set_add(struct span_set *s, uint64_t off, uint64_t end)
{
	unsigned first = span_find(s, off), last = first;
	struct span joined = { off, end };

	while (last < s->nr && s->spans[last].off <= end) {
		joined.off = MIN(joined.off, s->spans[last].off);
		joined.end = MAX(joined.end, s->spans[last].end);
		last++;
	}
	if (first == last && s->nr == DOUBT_RANGES)
		bits_add(s, off, end);
	else
		spans_replace(s, first, last - first, &joined, 1);
}

static void set_add_all(struct span_set *to, const struct span_set *from)
{
	for (unsigned i = 0; i < from->nr; i++)
		set_add(to, from->spans[i].off, from->spans[i].end);
	if (!from->has_bits)
		return;
	for (uint64_t i = 0; i < DOUBT_BITS; i++) {
		if (bit_get(from, i))
			bits_add(to, i << from->shift, (i + 1) << from->shift);
	}
}

/* The blocks that lie in [off, end) whole, as far as the file was written (file_end). */
static void bits_remove(struct span_set *s, uint64_t off, uint64_t end, uint64_t file_end)
{
	uint64_t block = 1ull << s->shift, left = 0;
	uint64_t last = end >= file_end ? DOUBT_BITS : MIN(end >> s->shift, DOUBT_BITS);

	for (uint64_t i = (off + block - 1) >> s->shift; i < last; i++)
		s->bits[i / 64] &= ~(1ull << i % 64);
	for (unsigned i = 0; i < DOUBT_WORDS; i++)
		left |= s->bits[i];
	s->has_bits = left;
}

static void set_remove(struct span_set *s, uint64_t off, uint64_t end, uint64_t file_end)
{
	unsigned first = span_find(s, off + 1), last = first, nr = 0;
	struct span rest[2];

	while (last < s->nr && s->spans[last].off < end)
		last++;
	if (first < last) {
		if (s->spans[first].off < off)
			rest[nr++] = (struct span){ s->spans[first].off, off };
		if (s->spans[last - 1].end > end)
			rest[nr++] = (struct span){ end, s->spans[last - 1].end };
		if (nr == 2 && last - first == 1 && s->nr == DOUBT_RANGES) {
			bits_add(s, rest[1].off, rest[1].end); /* no room for one more */
			nr = 1;
		}
		spans_replace(s, first, last - first, rest, nr);
	}
	if (s->has_bits)
		bits_remove(s, off, end, file_end);
}

static uint64_t set_bytes(const struct span_set *s)
{
	uint64_t sum = 0, nr = 0;

	for (unsigned i = 0; i < s->nr; i++)
		sum += s->spans[i].end - s->spans[i].off;
	for (unsigned i = 0; s->has_bits && i < DOUBT_WORDS; i++)
		nr += (uint64_t)__builtin_popcountll(s->bits[i]);
	return sum + (nr << s->shift);
}

/* Under the lock. */
static void set_error(struct doubt *d, int error)
{
	atomic_store_explicit(&d->error, error, memory_order_relaxed);
	if (d->sets->where)
		atomic_store_explicit(d->sets->where, (uint64_t)-error, memory_order_release);
}

/* ---- from the rings into the sets; all under the lock ---- */

/* A sync failed while this was being written: it may be lost as what was written before. */
static void add_stale(struct doubt *d, uint64_t off, uint64_t end)
{
	set_add(&d->sets->doubt, off, end);
	if (!doubt_error(d)) /* settled or acknowledged meanwhile, without it */
		set_error(d, d->sets->last_error);
}

static void drain_notes(struct doubt *d, struct doubt_ring *ring)
{
	struct doubt_sets *s = d->sets;
	uint64_t gen = atomic_load_explicit(&d->gen, memory_order_relaxed);
	uint32_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
	uint32_t head = atomic_load_explicit(&ring->head, memory_order_acquire); /* pairs with doubt_note() */

	for (; tail != head; tail++) {
		const struct doubt_note *n = &ring->notes[tail % DOUBT_RING];

		s->end = MAX(s->end, n->off + n->len);
		if (likely(n->gen == gen)) {
			set_add(&s->written, n->off, n->off + n->len);
			continue;
		}
		add_stale(d, n->off, n->off + n->len);
	}
	atomic_store_explicit(&ring->tail, tail, memory_order_release); /* pairs with doubt_note() */
}

static void drain_bits(struct doubt_sets *s, struct doubt_ring *ring)
{
	uint64_t file_end;

	if (!atomic_exchange_explicit(&ring->has_bits, false, memory_order_acquire))
		return;
	for (unsigned w = 0; w < DOUBT_WORDS; w++) {
		uint64_t bits = atomic_exchange_explicit(&ring->bits[w], 0, memory_order_acquire);

		file_end = atomic_load_explicit(&ring->end, memory_order_relaxed);
		s->end = MAX(s->end, file_end);
		for (; bits; bits &= bits - 1) {
			uint64_t i = (uint64_t)w * 64 + (unsigned)__builtin_ctzll(bits);
			uint64_t end = MIN((i + 1) << ring->shift, file_end);

			/* As blocks, not as a range: only what was written to the byte may heal anything. */
			bits_add(&s->written, i << ring->shift, i == DOUBT_BITS - 1 ? file_end : end);
		}
	}
}

static void drain_ring(struct doubt *d, struct doubt_ring *ring)
{
	drain_notes(d, ring);
	drain_bits(d->sets, ring);
}

static void drain_rings(struct doubt *d)
{
	for (unsigned i = 0; i < QUEUE_MAX; i++) {
		struct doubt_ring *ring = atomic_load_explicit(&d->rings[i], memory_order_acquire);

		if (ring)
			drain_ring(d, ring);
	}
}

/*
 * A write that was noted coarsely although a sync had failed meanwhile puts itself in doubt, too: it set its
 * bit, then looked at the number of failures; we change the number, then look at the bits. One of us sees the
 * other.
 */
void doubt_note_coarsely(struct doubt *d, struct doubt_ring *ring, const struct doubt_note *note)
{
	uint64_t end = note->off + note->len;
	uint64_t last = MIN((end - 1) >> ring->shift, DOUBT_BITS - 1);
	struct doubt_sets *s = d->sets;
	bool changed = false;

	if (end > atomic_load_explicit(&ring->end, memory_order_relaxed))
		atomic_store_explicit(&ring->end, end, memory_order_relaxed);
	for (uint64_t i = MIN(note->off >> ring->shift, DOUBT_BITS - 1); i <= last; i++) {
		uint64_t bit = 1ull << i % 64;

		/* A bit that is set still will be collected: by a sync that begins after this write has
		 * ended. */
		if (atomic_load_explicit(&ring->bits[i / 64], memory_order_relaxed) & bit)
			continue;
		atomic_fetch_or_explicit(&ring->bits[i / 64], bit, memory_order_release);
		changed = true;
	}
	if (changed) {
		atomic_store_explicit(&ring->has_bits, true, memory_order_release);
		atomic_thread_fence(memory_order_seq_cst); /* pairs with the one in doubt_sync_failed() */
	}
	if (likely(doubt_gen(d) == note->gen))
		return;
	pthread_mutex_lock(&s->lock);
	add_stale(d, note->off, end);
	pthread_mutex_unlock(&s->lock);
}

/* Called with the lock held: nothing is in doubt any more? */
static int settle(struct doubt *d)
{
	int error = doubt_error(d);

	if (!error || d->sets->cause_unknown || !set_is_empty(&d->sets->doubt))
		return error;
	set_error(d, 0);
	log_info("%s: all that a failed flush had left in doubt has been written again and is stable",
		 d->name);
	return 0;
}

/* ---- syncs ---- */

uint64_t doubt_sync_begin(struct doubt *d)
{
	struct doubt_sets *s = d->sets;
	uint64_t ticket;

	pthread_mutex_lock(&s->lock);
	drain_rings(d);
	set_add_all(&s->closing, &s->written);
	set_clear(&s->written);
	ticket = ++s->nr_begun;
	pthread_mutex_unlock(&s->lock);
	return ticket;
}

int doubt_sync_ok(struct doubt *d, uint64_t ticket)
{
	struct doubt_sets *s = d->sets;
	int ret;

	pthread_mutex_lock(&s->lock);
	/*
	 * `closing` holds what was written before the newest sync began; an older sync does not speak for all
	 * of it. Among syncs that overlap for ever more would stay in the set than need be, which costs
	 * nothing unless one fails.
	 */
	if (ticket == s->nr_begun) {
		for (unsigned i = 0; i < s->closing.nr && !set_is_empty(&s->doubt); i++)
			set_remove(&s->doubt, s->closing.spans[i].off, s->closing.spans[i].end, s->end);
		set_clear(&s->closing);
	}
	ret = settle(d);
	pthread_mutex_unlock(&s->lock);
	return ret;
}

int doubt_sync_failed(struct doubt *d, int error)
{
	struct doubt_sets *s = d->sets;
	uint64_t bytes;
	bool first;

	pthread_mutex_lock(&s->lock);
	first = !doubt_error(d);
	if (first)
		set_error(d, error);
	s->last_error = error;
	/* What is being written now has read the old number: it goes to `doubt` when it is noted. */
	atomic_fetch_add_explicit(&d->gen, 1, memory_order_release);
	atomic_thread_fence(memory_order_seq_cst); /* pairs with the one in doubt_note_coarsely() */
	drain_rings(d);
	set_add_all(&s->doubt, &s->closing);
	set_add_all(&s->doubt, &s->written);
	set_clear(&s->closing);
	set_clear(&s->written);
	if (set_is_empty(&s->doubt))
		s->cause_unknown = true;
	bytes = set_bytes(&s->doubt);
	pthread_mutex_unlock(&s->lock);
	if (first)
		log_error("%s: a flush failed (%s): up to %llu bytes written before may not be on the disk; "
			  "every flush fails "
			  "until they are written again or the error is acknowledged",
			  d->name, strerror(-error), (unsigned long long)bytes);
	return error;
}

int doubt_stable(struct doubt *d, uint64_t off, uint64_t len, uint64_t gen)
{
	struct doubt_sets *s = d->sets;
	int ret;

	if (likely(!doubt_error(d)))
		return 0;
	pthread_mutex_lock(&s->lock);
	/* Its note first: if a sync failed meanwhile, that is what puts the range in doubt. */
	drain_rings(d);
	if (gen == atomic_load_explicit(&d->gen, memory_order_relaxed))
		set_remove(&s->doubt, off, off + len, s->end);
	ret = settle(d);
	pthread_mutex_unlock(&s->lock);
	return ret;
}

/* ---- for the operator ---- */

int doubt_acknowledge(struct doubt *d, uint64_t *ret_bytes)
{
	struct doubt_sets *s = d->sets;
	int error;

	pthread_mutex_lock(&s->lock);
	drain_rings(d);
	error = doubt_error(d);
	set_error(d, 0);
	*ret_bytes = set_bytes(&s->doubt);
	set_clear(&s->doubt);
	s->cause_unknown = false;
	pthread_mutex_unlock(&s->lock);
	return error;
}

void doubt_publish(struct doubt *d, _Atomic uint64_t *where)
{
	pthread_mutex_lock(&d->sets->lock);
	d->sets->where = where;
	if (doubt_error(d))
		set_error(d, doubt_error(d));
	pthread_mutex_unlock(&d->sets->lock);
}

uint64_t doubt_bytes(struct doubt *d)
{
	uint64_t bytes;

	pthread_mutex_lock(&d->sets->lock);
	drain_rings(d);
	bytes = set_bytes(&d->sets->doubt);
	pthread_mutex_unlock(&d->sets->lock);
	return bytes;
}

/* ---- life ---- */

struct doubt *doubt_new(const char *name)
{
	struct doubt *d = calloc(1, sizeof(*d));
	struct doubt_sets *s = calloc(1, sizeof(*s));

	if (!d || !s) {
		free(d);
		free(s);
		return NULL;
	}
	pthread_mutex_init(&s->lock, NULL);
	set_clear(&s->written);
	set_clear(&s->closing);
	set_clear(&s->doubt);
	d->name = name;
	d->sets = s;
	return d;
}

void doubt_free(struct doubt *d)
{
	if (!d)
		return;
	for (unsigned i = 0; i < QUEUE_MAX; i++)
		free(d->rings[i]);
	pthread_mutex_destroy(&d->sets->lock);
	free(d->sets);
	free(d);
}

int doubt_attach(struct doubt *d, const struct queue *q, uint64_t len)
{
	struct doubt_ring *_Atomic *at = &d->rings[queue_id(q)];
	struct doubt_ring *ring;

	/* A queue that had this number before has detached, and left nothing under way. */
	if (atomic_load_explicit(at, memory_order_relaxed))
		return 0;
	ring = aligned_alloc(64, align_up(sizeof(*ring), 64));
	if (!ring)
		return -ENOMEM;
	memset(ring, 0, sizeof(*ring));
	ring->shift = DOUBT_BLOCK_MIN_SHIFT;
	while (len >> ring->shift >= DOUBT_BITS)
		ring->shift++;
	atomic_store_explicit(at, ring, memory_order_release); /* pairs with the acquire in drain_rings() */
	return 0;
}
