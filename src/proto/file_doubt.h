/* SPDX-License-Identifier: MIT */
/*
 * proto/file_doubt.h - what a failed sync of a file has left in doubt
 *
 * After a failed fsync() the kernel may have marked pages clean that never reached the disk; the next fsync()
 * would succeed and say so about data that is gone. So everything written since the last sync that succeeded
 * is in doubt from then on, and every later sync fails, until either all of it has been written again and
 * synced, or somebody who knows acknowledges the error.
 *
 * The hot path notes each finished write in a ring of its queue, or, when that is full until the next sync,
 * in a coarse bitmap of its queue: no lock, no line shared with the writers of other queues. Syncs collect
 * them under a lock.
 */
#ifndef VARVE_PROTO_FILE_DOUBT_H
#define VARVE_PROTO_FILE_DOUBT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "aio/queue.h"
#include "base/math.h"

#define DOUBT_RING 256
#define DOUBT_BITS 65536u
#define DOUBT_WORDS (DOUBT_BITS / 64)
#define DOUBT_BLOCK_MIN_SHIFT 16 /* a bit stands for 64 KiB up to 4 GiB, for more in longer files */

struct doubt_note {
	uint64_t off, len;
	uint64_t gen;
};

/* Filled by one queue's thread, emptied under the lock of its doubt. */
struct doubt_ring {
	_Atomic uint32_t head __attribute__((aligned(64))); /* the queue's */
	_Atomic uint32_t tail __attribute__((aligned(64))); /* under the lock */
	struct doubt_note notes[DOUBT_RING];
	/* Written while the ring was full. The last bit stands for everything behind it, too. */
	unsigned shift; /* set when made */
	_Atomic bool has_bits;
	_Atomic uint64_t end; /* behind the last byte noted here */
	_Atomic uint64_t bits[DOUBT_WORDS];
};

struct doubt_sets;

struct doubt {
	/* set at open; the rings by the queues when they attach */
	const char *name; /* of the file, for the log */
	struct doubt_sets *sets;
	struct doubt_ring *_Atomic rings[QUEUE_MAX];

	/* any queue, atomically */
	_Atomic int error;    /* what syncs fail with; 0: nothing is in doubt */
	_Atomic uint64_t gen; /* failed syncs so far */
};

struct doubt *doubt_new(const char *name);
void doubt_free(struct doubt *d);

/* On q's thread, before q notes anything; len: of the file now. -ENOMEM. Idempotent. */
int doubt_attach(struct doubt *d, const struct queue *q, uint64_t len);

/* What every sync must fail with now. */
static inline int doubt_error(const struct doubt *d)
{
	return atomic_load_explicit(&d->error, memory_order_relaxed);
}

/*
 * To be read before a write is handed to the kernel and given to doubt_note() when it has ended. A sync that
 * fails in between may have lost this write too: then it is in doubt, and does not count as written again.
 */
static inline uint64_t doubt_gen(const struct doubt *d)
{
	/* pairs with the release in doubt_sync_failed(): who sees the new number writes after that sync ended
	 */
	return atomic_load_explicit(&d->gen, memory_order_acquire);
}

/* file_doubt.c: the ring is full. */
void doubt_note_coarsely(struct doubt *d, struct doubt_ring *ring, const struct doubt_note *note);

/* [off, off + len) has been written, and is not known to be stable. Before the write is acknowledged; q's
 * thread. */
static inline void doubt_note(struct doubt *d, const struct queue *q, uint64_t off, uint64_t len,
			      uint64_t gen)
{
	struct doubt_ring *ring = atomic_load_explicit(&d->rings[queue_id(q)], memory_order_relaxed);
	uint32_t head = atomic_load_explicit(&ring->head, memory_order_relaxed);
	struct doubt_note note = { off, len, gen };

	/* pairs with the release in drain_ring(): the place is free when the tail is behind it */
	if (unlikely(head - atomic_load_explicit(&ring->tail, memory_order_acquire) == DOUBT_RING)) {
		doubt_note_coarsely(d, ring, &note);
		return;
	}
	ring->notes[head % DOUBT_RING] = note;
	/* pairs with the acquire in drain_ring(): the note is there before it is counted */
	atomic_store_explicit(&ring->head, head + 1, memory_order_release);
}

/* Around each sync: begin before it is handed to the kernel, then one of the others with what begin returned.
 */
uint64_t doubt_sync_begin(struct doubt *d);
/* It succeeded. Returns what it is answered with: 0, or the error of those before if something is in doubt
 * still. */
int doubt_sync_ok(struct doubt *d, uint64_t ticket);
/* It failed; also for a FUA write whose sync failed (noted before). Returns error. */
int doubt_sync_failed(struct doubt *d, int error);

/* A FUA write of the range, begun at gen and noted, succeeded. Returns what it is answered with. */
int doubt_stable(struct doubt *d, uint64_t off, uint64_t len, uint64_t gen);

/* Forgets the error. Returns it; *ret_bytes: how much was in doubt, at most. */
int doubt_acknowledge(struct doubt *d, uint64_t *ret_bytes);

/*
 * *where follows doubt_error(), as a positive errno, from now on; NULL: no more. What stands there is left as it is as long as
 * there is no error. For who wants to know when this process is dead.
 */
void doubt_publish(struct doubt *d, _Atomic uint64_t *where);

/* At most so many bytes are in doubt; 0 too when only the error is known. */
uint64_t doubt_bytes(struct doubt *d);

#endif
