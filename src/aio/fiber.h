/* SPDX-License-Identifier: MIT */
/*
 * aio/fiber.h - fibers: code that waits, written top to bottom
 *
 * A fiber belongs to one queue and runs on its thread only. Every function that may wait takes
 * struct fiber *f first; nobody stores f beyond a call (except the primitives here), nobody looks one up.
 * Between two calls that take f nothing else on the queue runs: that is the critical section.
 *
 * Stacks are pooled per queue: FIBER_STACK_LEN bytes with a guard page below, at most FIBER_MAX_PER_LEVEL
 * running for each level. A job of level L may wait for jobs of lower levels only (a format at level 2 waits
 * for a leaf at level 1), therefore a full pool parks jobs but can never deadlock; nor can a process without memory for more
 * stacks, because each level has one stack from the start.
 *
 * With -Dfiber=thread each fiber is a thread and exactly one of a queue's threads runs at a time.
 */
#ifndef VARVE_AIO_FIBER_H
#define VARVE_AIO_FIBER_H

#include "aio/queue.h"

struct fiber;

#define FIBER_STACK_LEN (64 * 1024) /* more with sanitizers */
#define FIBER_LEVELS 6
#define FIBER_LEVEL_JOB (FIBER_LEVELS - 1) /* what works on whole disks; nodes are below */
#define FIBER_MAX_PER_LEVEL 64

/* Embedded in the object that needs the work. run() is called once, and may free or reuse the job. */
struct fiber_job {
	struct fiber_job *next;
	void (*run)(struct fiber *f, struct fiber_job *job);
};

/* Queue's own thread: the job starts in this turn or, if the pool of its level is empty, in its order. */
void fiber_start(struct queue *q, struct fiber_job *job, unsigned level);

struct queue *fiber_queue(const struct fiber *f);

/*
 * Sleeps until fiber_wake(). A wake that came before (since the last wait) makes it return at once; also one
 * that came while the fiber slept in a lock, a waitlist, a timer or a worker, which it does not end. Across
 * any wait a fiber of a queue without a thread may change threads: errno does not survive a wait.
 */
void fiber_wait(struct fiber *f);

/* The fiber's queue's thread: makes it ready; it runs later in this turn. */
void fiber_wake(struct fiber *f);

/* Sleeps until the absolute time of queue_now(). */
void fiber_sleep_until(struct fiber *f, uint64_t when_ns);

/* Lets everything else that is ready run first. */
void fiber_yield(struct fiber *f);

/*
 * Runs fn(arg) on a worker thread of the process-wide pool and returns its result. For what the kernel can
 * only do synchronously (open, ftruncate, fallocate on odd files, fsync without an engine).
 */
int fiber_work(struct fiber *f, int (*fn)(void *arg), void *arg);

/*
 * For what must be the same in every run: which of several workers ends first is luck. While q holds works, a fiber whose
 * work is done waits on, until fiber_works_give() resumes all of these, in the order in which they began to wait; it returns
 * false if there was none. q's thread.
 */
void fiber_works_hold(struct queue *q, bool hold);
bool fiber_works_give(struct queue *q);

/* ---- primitives for the fibers of one queue; FIFO; zero-initialised is valid ---- */

struct waiter;

struct waitlist {
	struct waiter *head, **tail;
};

void waitlist_wait(struct fiber *f, struct waitlist *wl);
void waitlist_wake_one(struct waitlist *wl);
void waitlist_wake_all(struct waitlist *wl);

struct fiber_mutex {
	bool held;
	struct waitlist waiting;
};

/* Handed over in order of arrival. */
void fiber_lock(struct fiber *f, struct fiber_mutex *m);
void fiber_unlock(struct fiber_mutex *m);

/*
 * Runs job as a fiber on q and blocks the calling thread until fn returned; for the synchronous API. If q has
 * no thread of its own the caller runs the queue meanwhile; in virtual time the clock then jumps to the next
 * timer when nothing is ready. Not from a fiber, not from q's own thread's callbacks.
 */
int fiber_call(struct queue *q, int (*fn)(struct fiber *f, void *arg), void *arg);

#endif
