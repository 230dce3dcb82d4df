/* SPDX-License-Identifier: MIT */
/*
 * aio/queue.h - the event loop: messages, timers, file descriptors, fibers, asynchronous I/O
 *
 * One queue is run by one thread at a time (its own, or whoever calls queue_turn()). Everything here is for
 * that thread only, except queue_post(), queue_kick(), queue_id() and queue_name().
 *
 * One turn: 1. messages  2. timers  3. ready fds  4. ready fibers  5. completions of the engines
 *             (all this again while there is cheap work)  6. end-of-turn hooks
 *          7. one submit per engine, joined with the wait where the engine allows
 *          8. what the wait brought: 1 to 6 again
 * A turn that found something to do before the wait does not wait.
 */
#ifndef VARVE_AIO_QUEUE_H
#define VARVE_AIO_QUEUE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include <varve/varve.h>

struct queue;

/* What every queue begins with: for the functions here that each request calls. */
struct queue_head {
	uint64_t now_ns;
	unsigned id;
};

/* Queues alive at once in one process; ids are 0 .. QUEUE_MAX - 1 and are reused after queue_free(). */
#define QUEUE_MAX 128

struct queue_opts {
	const char *name;  /* copied; NULL: "varve" */
	bool own_thread;   /* queue_new() starts a thread that runs turns until queue_free() */
	bool one_thread;   /* no thread of its own, and only the one that calls queue_new() ever runs it; no queue_poll_fd() */
	bool virtual_time; /* time moves only by queue_advance(): for tests */
	const char *cpus;  /* own_thread: where it may run, "0-3,8"; NULL: where its maker may */
	/* own_thread: how long it looks for work before it sleeps; 0: not at all. adaptive: at most, and while it pays */
	uint64_t poll_ns;
	bool poll_adaptive;
};

int queue_new(struct queue **ret, const struct queue_opts *opts, struct varve_error *err);

/* Stops and joins the queue's own thread, if any. Nothing may be in flight. */
void queue_free(struct queue *q);

static inline unsigned queue_id(const struct queue *q)
{
	return ((const struct queue_head *)(const void *)q)->id;
}
const char *queue_name(const struct queue *q);
bool queue_has_thread(const struct queue *q);

/* True on the thread that runs the queue now; if none does, on any. For asserts. */
bool queue_is_mine(const struct queue *q);

/* One turn. Waits for something to do at most timeout_ns (0: not at all; negative: without limit). */
void queue_turn(struct queue *q, int64_t timeout_ns);

/*
 * Readable when a queue_turn() would find something to do. For embedding in another event loop: whoever polls
 * this descriptor must have returned from queue_turn(q, 0) with nothing left to submit.
 */
int queue_poll_fd(struct queue *q);

/* Monotonic time in nanoseconds, as of the start of this turn. */
static inline uint64_t queue_now(const struct queue *q)
{
	return ((const struct queue_head *)(const void *)q)->now_ns;
}

/* Virtual time only: moves the clock; due timers fire in the next turn. */
void queue_advance(struct queue *q, uint64_t ns);

/* ---- messages: work for another thread, or for later on this one; embedded in the sender's object ---- */

struct msg {
	struct msg *next;
	void (*run)(struct msg *m);
};

/* Any thread. m->run() is called on q's thread, and m is free then; messages of one sender keep their order.
 */
void queue_post(struct queue *q, struct msg *m);

/* The queue's own thread: runs after what is being done now, in this turn or the next. No atomics. */
void queue_later(struct queue *q, struct msg *m);

/* Any thread: ends a wait in queue_turn(). */
void queue_kick(struct queue *q);

/* ---- timers ---- */

struct timer {
	uint64_t when_ns;
	void (*fire)(struct timer *t); /* disarmed when called; may arm it again, or free it */
	bool armed;

	/* internal: place in the heap, order of arming among equal times */
	uint64_t seq;
	struct timer *child, *next, *prev;
};

/* Arms or re-arms for the absolute time when_ns. The caller set fire; the rest is zero before first use. */
void timer_set(struct queue *q, struct timer *t, uint64_t when_ns);
void timer_cancel(struct queue *q, struct timer *t);

/* ---- file descriptors (level-triggered, EPOLLIN / EPOLLOUT / ...) ---- */

struct watch {
	int fd;
	uint32_t events; /* with EPOLLET: told of what is new, also if nobody has read what was there */
	void (*ready)(struct watch *w, uint32_t events);
	unsigned direct; /* internal: 0: in the epoll set; else an engine's */
};

/* 0 or a negative errno (-EPERM: a regular file, which is always ready). */
int watch_add(struct queue *q, struct watch *w);
void watch_change(struct queue *q, struct watch *w, uint32_t events);
/* No ready() after this returns; may be called inside ready(). Before w->fd is closed, not after. */
void watch_del(struct queue *q, struct watch *w);

/* ---- hooks ---- */

struct hook {
	TAILQ_ENTRY(hook) link;
	/*
	 * Called at the end of each turn before it may wait. For batching: one notification for all
	 * completions of a turn. Returns true if it made more work for this turn (the turn then does not
	 * wait).
	 */
	bool (*run)(struct hook *h);
};

/* Something was given to the kernel or to workers, and is sure to come back. The queue's own thread. */
bool queue_awaits(const struct queue *q);
/* In a hook: this turn has found nothing to do so far, and nothing is awaited. Timers do not count. */
bool queue_idle(const struct queue *q);

void hook_add(struct queue *q, struct hook *h);
void hook_del(struct queue *q, struct hook *h);

/* ---- pollers: work that nobody announces while the queue is awake (aio/poll.c) ---- */

struct poller {
	TAILQ_ENTRY(poller) link;
	bool (*look)(struct poller *p); /* does what there is to do. True: something was */
	bool (*rest)(struct poller *p); /* the queue is about to sleep: asks to be woken. True: something came meanwhile */
};

/* For queues for which queue_polls(); on the queue's thread, not inside look() or rest(). */
void poller_add(struct queue *q, struct poller *p);
void poller_del(struct queue *q, struct poller *p);
bool queue_polls(const struct queue *q);
/* look() will be called before the queue sleeps next, and rest() after it: nobody need announce anything until then. */
bool queue_spins(const struct queue *q);
/* The queue's thread: nr more things are done of those that the queue is for. By that it is told whether spinning pays. */
void queue_progress(struct queue *q, uint64_t nr);

/* ---- per-queue attachments of other rooms (request pools, ...) ---- */

enum queue_slot { QUEUE_SLOT_BLOCK, QUEUE_SLOT_API, QUEUE_SLOTS };

/* The slot's destructor, if set, runs in queue_free(). */
void *queue_slot_get(const struct queue *q, enum queue_slot slot);
void queue_slot_set(struct queue *q, enum queue_slot slot, void *p, void (*destroy)(void *p));

/* ---- counters; read on the queue's thread or when nothing runs ---- */

struct queue_stats {
	uint64_t turns, waits;	    /* waits: turns that slept in the kernel */
	uint64_t spins, spins_paid; /* looked around before a wait; and found something */
	uint64_t syscalls;     /* made by the loop and the engines of this queue, or by others to wake it */
	uint64_t msgs, timers, fd_events;
	uint64_t fibers_started, fibers_parked, fiber_switches;
	uint64_t aio_submitted, aio_completed;
	uint64_t aio_registered; /* of these, by a registration of their memory with the kernel (aio_memory_add()) */
};

const struct queue_stats *queue_stats(const struct queue *q);

/* Any thread, at any time: how the queue's thread spends its turns. The numbers may be of slightly different moments. */
struct queue_turns {
	uint64_t turns, waits, spins, spins_paid;
	bool spinning; /* it would look around before the next wait */
};

void queue_turns(const struct queue *q, struct queue_turns *ret);

#endif
