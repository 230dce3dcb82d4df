/* SPDX-License-Identifier: MIT */
/*
 * aio/loop.h - inside of the event loop, for the files of aio/ only
 *
 * struct queue and what its parts call of each other: queue.c (life), turn.c (the loop), timer.c, watch.c,
 * fiber.c and the engines. Nothing outside aio/ includes this.
 */
#ifndef VARVE_AIO_LOOP_H
#define VARVE_AIO_LOOP_H

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/epoll.h>

#include "aio/engine.h"
#include "aio/fiber.h"
#include "aio/queue.h"
#include "aio/spin.h"
#include "base/math.h"

#define QUEUE_ENGINES 10	      /* engines attached to one queue at most */
#define QUEUE_EVENTS 64		      /* ready fds fetched by one epoll_wait */
#define FIBER_LEVEL_CALL FIBER_LEVELS /* fiber_call() and nothing else: above all levels */

struct msg_list {
	struct msg *head, **tail;
};

struct fiber_list {
	struct fiber *head, **tail;
};

struct fiber_level {
	unsigned running;			/* fibers that have a stack */
	struct fiber_job *parked, *parked_tail; /* jobs that wait for one */
	struct fiber *reserve;			/* for when there is no memory for a stack; NULL: runs */
};

struct fiber_pool {
	struct fiber_list ready;
	struct fiber *idle; /* have a stack, run nothing */
	struct fiber_level levels[FIBER_LEVELS + 1];
	unsigned nr_parked;
	struct timer retry; /* no memory for a stack: try again */
};

#define AT_ONCE_SLOW_NS 1000000ull

struct at_once {
	uint64_t slow_ns;	 /* what takes so long is not a copy any more, but a wait */
	uint64_t pause_until_ns; /* all goes to the engine until then */
	unsigned nr_slow;	 /* tries in a row that took long */
	unsigned nr;		 /* made and not yet answered */
	uint64_t bytes;		 /* since nr was 0 */
};

#define BOUNCE_NR 16u

struct bounce {
	uint8_t *base;
	unsigned free; /* a bit for each buffer */
	bool tried;
};

struct queue {
	struct queue_head head; /* id: set by queue_new(); now_ns: the queue's thread only */

	/* set by queue_new() */
	char name[32];
	bool own_thread;  /* false again once the thread was joined */
	const void *only; /* thread_self() of the one thread that runs it; NULL: own_thread, or any */
	bool virtual_time;
	pthread_t thread;
	int epoll_fd, event_fd;

	/* any thread, atomically */
	_Atomic(struct msg *) inbox __attribute__((aligned(64))); /* newest first */
	_Atomic unsigned posters; /* threads inside queue_post() or queue_kick(); queue_free() waits */
	_Atomic unsigned signals; /* writes to event_fd not yet counted in stats */
	_Atomic bool asleep;	  /* see loop_wait() */
	_Atomic bool kicked;
	_Atomic bool stop;
	_Atomic(const void *) runner; /* thread_self() of the thread that runs turns now; NULL: none */

	/* the queue's thread only, from here on */
	bool in_turn __attribute__((aligned(64)));
	uint64_t work_done; /* passes of the loop that found something to do */
	uint64_t work_before; /* the same when this turn began */
	struct {
		bool hold;
		uint64_t nr;		  /* that ever began */
		struct fiber_work *done; /* oldest first */
	} works;			  /* fiber_works_hold() */
	struct msg_list later;
	struct timer *timers; /* root of the heap */
	uint64_t timer_seq;
	TAILQ_HEAD(, hook) hooks;
	struct {
		TAILQ_HEAD(, poller) pollers;
		uint64_t max_ns, now_ns; /* now_ns: how long it spins next */
		bool adaptive;
		uint64_t done; /* queue_progress() */
		struct spin learnt;
	} poll;
	struct hook *hook_next; /* the one to run next, while hooks run */

	/* file descriptors */
	unsigned nr_watches;
	bool fds_ready; /* epoll_wait() would find something */
	bool no_pwait2; /* the kernel has no epoll_pwait2() */
	unsigned nr_events, event_pos;
	struct epoll_event events[QUEUE_EVENTS];

	/* for embedding, see queue_poll_fd() */
	int poll_fd, timer_fd; /* -1: nobody asked */
	uint64_t timer_fd_ns;  /* what timer_fd is set to; 0: off */

	struct fiber_pool fibers;

	/* engines */
	unsigned nr_engines;
	struct {
		const struct aio_engine *engine;
		void *ctx;
	} engines[QUEUE_ENGINES];
	struct at_once at_once;
	unsigned nr_memory;
	struct aio_memory memory[AIO_MEMORY_MAX];
	struct bounce bounce;
	unsigned nr_polled; /* operations that end only if an engine asks the device: the queue does not sleep
			     */
	uint64_t nr_outside; /* work given to the kernel or to workers that is sure to come back */
	/*
	 * Set by an engine whose context can wait for everything (io_uring): hands over what was submitted,
	 * and waits at most timeout_ns for a completion, the event fd, or (then it sets fds_ready) the epoll
	 * fd.
	 */
	void (*wait)(void *ctx, int64_t timeout_ns);
	void *wait_ctx;
	int wait_fd; /* readable when wait() would return at once; -1: no such engine */
	/*
	 * Of such an engine, or NULL: it waits for new events of w->fd itself, which saves a look into the epoll set. False: it
	 * cannot; else w->direct is set, until the other is called.
	 */
	bool (*watch)(void *ctx, struct watch *w);
	void (*unwatch)(void *ctx, struct watch *w);

	struct {
		void *p;
		void (*destroy)(void *p);
	} slots[QUEUE_SLOTS];

	struct queue_stats stats;
};

/* ---- who runs ---- */

/* Names the calling thread. A thread that plays a fiber has the name of the thread that runs its queue. */
const void *thread_self(void);
void thread_set_self(const void *self);

/* The signals that threads of ours block. */
void thread_signals(sigset_t *ret_blocked);

/* One more of what queue_turns() tells other threads. */
static inline void loop_count(uint64_t *n)
{
	__atomic_store_n(n, *n + 1, __ATOMIC_RELAXED);
}

/* ---- turn.c ---- */

/* The loop of an own thread, and of fiber_call(): turns until *until is true. */
void loop_run(struct queue *q, const _Atomic bool *until);

/* The calling thread runs q from here to loop_leave(); for queues without a thread. */
void loop_enter(struct queue *q);
void loop_leave(struct queue *q);

/*
 * Before somebody polls queue_poll_fd(): hands everything over, and sees to it that whatever comes from now
 * on makes the descriptor readable.
 */
void loop_embed(struct queue *q);

/* Does everything that is ready without waiting. Returns false when nothing is left. */
bool loop_work(struct queue *q);

/* Reads the clock. */
void loop_clock(struct queue *q);

/* Wakes the queue's thread if it sleeps, or is about to. Any thread. */
void loop_wake(struct queue *q);

/* Readable now, for whoever polls queue_poll_fd(). */
void loop_signal(struct queue *q);

static inline void msg_list_add(struct msg_list *l, struct msg *m)
{
	m->next = NULL;
	*l->tail = m;
	l->tail = &m->next;
}

/* ---- poll.c ---- */

/* Nothing is ready: spins, if the queue does. True: now there is. */
bool loop_spin(struct queue *q);
/* It slept that long. */
void loop_slept(struct queue *q, uint64_t ns);

/* ---- timer.c ---- */

/* Fires what is due. True: something fired. */
bool timers_run(struct queue *q);

/* True and the time of the next one, if any is armed. */
bool timers_next(const struct queue *q, uint64_t *ret_when_ns);

/* ---- watch.c ---- */

/* Delivers fetched events, fetching them first if fds_ready. True: something was delivered. */
bool watches_run(struct queue *q);

/* Without an engine that waits: waits in epoll. */
void watches_wait(struct queue *q, int64_t timeout_ns);

/* The event fd is (not) to be watched by epoll: an engine that waits watches it in its own way. */
int watches_event_fd(struct queue *q, bool watched);

/* From now on the engine waits for everything; undone by wait == NULL. */
int watches_set_wait(struct queue *q, void (*wait)(void *ctx, int64_t timeout_ns), void *ctx, int fd);

/* Brings poll_fd and timer_fd up to date before the caller of queue_turn() goes to poll. */
void watches_embed(struct queue *q);

/* ---- fiber.c ---- */

/* -ENOMEM: nothing is left behind. */
int fibers_init(struct queue *q);
/* As fiber_start(), for FIBER_LEVEL_CALL too. */
void fibers_start(struct queue *q, struct fiber_job *job, unsigned level);
/* Runs every fiber that is ready now, once. True: something ran. */
bool fibers_run(struct queue *q);
bool fibers_ready(const struct queue *q);
void fibers_free(struct queue *q);

/* For primitives built on fibers: sleep until fiber_resume(), untouched by fiber_wake(). */
void fiber_pause(struct fiber *f);
void fiber_resume(struct fiber *f);

/* ---- engine.c ---- */

void engines_flush(struct queue *q);
bool engines_reap(struct queue *q);
void engines_detach(struct queue *q);

/* Performs op with blocking system calls (blocking.c); returns what done() is to be given. Any thread. */
int64_t aio_op_blocking(const struct aio_op *op);

/* AIO_ZERO on a regular file: the mode for fallocate(). Makes at most one (non-blocking) system call. */
int aio_zero_mode(const struct aio_op *op);

/* Hands op to the worker pool (engine_threads.c); done() is called in a later turn of q. */
void aio_op_to_worker(struct queue *q, struct aio_op *op);

/* at_once.c: makes the copy here and now, if that is wise; done() comes later in this turn. False: for the
 * engine. */
bool aio_at_once(struct queue *q, struct aio_op *op);
/* One took from begin_ns to end_ns. */
void at_once_note(struct at_once *a, uint64_t begin_ns, uint64_t end_ns);

/* 0 if io_uring can be used on this machine, else a negative errno; asks the kernel once. */
int uring_works(void);

/* True if Linux AIO can be used on this machine, now: a limit of the system may be reached. */
bool native_works(void);

/* ---- memory.c ---- */

void memory_free(struct queue *q);

/* ---- worker.c ---- */

/* Every queue holds one reference on the worker threads; the last one stops them. */
void workers_ref(void);
void workers_unref(void);

#endif
