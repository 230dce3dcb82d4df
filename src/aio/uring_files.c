/* SPDX-License-Identifier: MIT */
/*
 * aio/uring_files.c - files that rings have registered
 *
 * A request on a registered file does without the look-up of the descriptor and the counting of its users. A
 * file has one slot, the same in the table of every ring; a ring fills it when it meets the file first.
 *
 * Closing has to take the file out of every ring: a ring that keeps it keeps its locks too, and the file
 * system busy. Some rings may be changed by their own thread only; those are asked, and waited for, unless it
 * is the embedding program that runs their queue: it may not do so for long.
 *
 * Owns:    the slots; the list of rings.
 * Assumes: a queue with a thread of its own turns when it is kicked.
 * Never:   fails: a file without a slot, or a ring without a table, does with the descriptor.
 *
 * file_set[] of a ring is changed under the lock, each element by the ring's thread, or by who closes the
 * file of that slot, with no request of it in flight; the ring's thread reads without the lock.
 */
#include "config.h"

#ifdef HAVE_LIBURING

#include <errno.h>

#include "aio/uring.h"

struct closing {
	struct msg msg;
	struct fiber *f;
	unsigned nr_left; /* rings that will answer, and have not */
	bool ended;	  /* home queue */
};

static struct {
	pthread_mutex_t lock;
	LIST_HEAD(, uring) rings;
	struct {
		bool used, closed;
		struct closing *closing; /* waits for rings with a thread of their own to let go of it */
		unsigned nr_later;	 /* others that will, when somebody runs their queue */
	} slots[URING_FILES];
} files = { .lock = PTHREAD_MUTEX_INITIALIZER };

/* ---- rings ---- */

void uring_files_init(struct uring *u)
{
	int fds[URING_FILES];

	for (unsigned i = 0; i < URING_FILES; i++)
		fds[i] = -1;
	/* Refused, for one, when the process may not open that many files. */
	u->has_files = io_uring_register_files(&u->ring, fds, URING_FILES) == 0;
	pthread_mutex_lock(&files.lock);
	LIST_INSERT_HEAD(&files.rings, u, link);
	pthread_mutex_unlock(&files.lock);
}

static void closing_ended(struct msg *m)
{
	struct closing *c = container_of(m, struct closing, msg);

	c->ended = true;
	fiber_wake(c->f);
}

/* Called with the lock held, on a thread that the kernel lets do it. */
static void slot_clear(struct uring *u, unsigned slot)
{
	int fd = -1;

	io_uring_register_files_update(&u->ring, slot, &fd, 1);
	atomic_store_explicit(&u->file_set[slot], false, memory_order_relaxed);
}

/* Called with the lock held. The slot is free when no ring and nobody else knows it any more. */
static void slot_put(unsigned slot)
{
	if (!files.slots[slot].closing && !files.slots[slot].nr_later) {
		files.slots[slot].closed = false;
		files.slots[slot].used = false;
	}
}

static void drop_all(struct uring *u)
{
	for (unsigned i = 0; i < URING_FILES; i++) {
		struct closing *c = files.slots[i].closing;

		if (!files.slots[i].closed || !atomic_load_explicit(&u->file_set[i], memory_order_relaxed))
			continue;
		slot_clear(u, i);
		if (!u->q->own_thread) {
			files.slots[i].nr_later--;
			slot_put(i);
		} else if (--c->nr_left == 0) {
			queue_post(fiber_queue(c->f), &c->msg);
		}
	}
	atomic_store_explicit(&u->nr_drops, 0, memory_order_relaxed);
}

void uring_files_drop(struct uring *u)
{
	pthread_mutex_lock(&files.lock);
	drop_all(u);
	pthread_mutex_unlock(&files.lock);
}

void uring_files_exit(struct uring *u)
{
	pthread_mutex_lock(&files.lock);
	drop_all(u);
	LIST_REMOVE(u, link);
	pthread_mutex_unlock(&files.lock);
	/* The end of a ring happens later, in the background: open files shall not wait for it. */
	if (u->has_files)
		io_uring_unregister_files(&u->ring);
}

bool uring_file_set(struct uring *u, const struct aio_file *file, unsigned slot)
{
	int fd = file->fd;

	pthread_mutex_lock(&files.lock);
	u->q->stats.syscalls++;
	if (io_uring_register_files_update(&u->ring, slot, &fd, 1) == 1)
		atomic_store_explicit(&u->file_set[slot], true, memory_order_relaxed);
	else
		u->has_files = false; /* it will not be better next time */
	pthread_mutex_unlock(&files.lock);
	return u->has_files;
}

/* ---- files ---- */

int uring_file_open(struct aio_file *file, struct varve_error *err)
{
	(void)err;
	pthread_mutex_lock(&files.lock);
	for (unsigned i = 0; i < URING_FILES; i++) {
		if (!files.slots[i].used) {
			files.slots[i].used = true;
			file->engine_data = (void *)(uintptr_t)(i + 1);
			break;
		}
	}
	pthread_mutex_unlock(&files.lock);
	return 0;
}

void uring_file_close(struct fiber *f, struct aio_file *file)
{
	struct closing c = { .msg.run = closing_ended, .f = f };
	const unsigned slot = (unsigned)(uintptr_t)file->engine_data - 1;
	struct uring *u;

	if (!file->engine_data)
		return;
	pthread_mutex_lock(&files.lock);
	files.slots[slot].closed = true;
	files.slots[slot].closing = &c;
	LIST_FOREACH(u, &files.rings, link)
	{
		if (!atomic_load_explicit(&u->file_set[slot], memory_order_relaxed))
			continue;
		if (!u->issuer_only || queue_is_mine(u->q)) {
			slot_clear(u, slot);
			continue;
		}
		/* Under the lock: until it is free again, the ring and its queue cannot end. */
		atomic_store_explicit(&u->nr_drops, 1, memory_order_relaxed);
		if (u->q->own_thread)
			c.nr_left++;
		else
			files.slots[slot].nr_later++;
		queue_kick(u->q);
	}
	c.ended = !c.nr_left;
	pthread_mutex_unlock(&files.lock);
	while (!c.ended)
		fiber_wait(f);
	pthread_mutex_lock(&files.lock);
	files.slots[slot].closing = NULL;
	slot_put(slot);
	pthread_mutex_unlock(&files.lock);
	file->engine_data = NULL;
}

#endif
