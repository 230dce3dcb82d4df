/* SPDX-License-Identifier: MIT */
/*
 * aio/fiber.c - starting, parking, waking and running fibers
 *
 * Owns:    the fibers of a queue (idle ones keep their stacks), the list of those ready, the jobs that wait.
 * Assumes: the queue's thread, for everything.
 * Never:   runs a fiber from inside another one, or from a callback: fibers_run() alone enters them.
 *
 *	 IDLE ──start──▶ READY ──loop──▶ RUNNING ──job returned──▶ IDLE
 *			  ▲ ▲               │ │
 *			  │ └──fiber_wake── │ └──fiber_wait──▶ WAITING
 *			  └────fiber_resume─┴──── fiber_pause ──▶ PAUSED
 *
 * A fiber that is PAUSED inside a primitive (mutex, timer, worker) is woken by that primitive alone; a
 * fiber_wake() that comes meanwhile is remembered for the next fiber_wait().
 *
 * Without memory for stacks: each level has a fiber in reserve, made with the queue, which takes its jobs one after the
 * other. A job waits for lower levels only, and those have theirs: so everything goes on, slowly, and nothing waits for ever.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>

#include "aio/fiber_switch.h"
#include "aio/loop.h"

#define STACK_RETRY_NS 10000000 /* after there was no memory for a stack */

enum fiber_state { FIBER_IDLE, FIBER_READY, FIBER_RUNNING, FIBER_WAITING, FIBER_PAUSED };

struct fiber {
	struct queue *q;
	struct fiber_ctx *ctx;
	struct fiber *next; /* in ready or idle */
	struct fiber_job *job;
	unsigned level;
	enum fiber_state state;
	bool woken;   /* fiber_wake() since the last fiber_wait() */
	bool reserve; /* of its level; never among the idle */
};

struct queue *fiber_queue(const struct fiber *f)
{
	return f->q;
}

/* ---- the ready list ---- */

static void make_ready(struct fiber *f)
{
	struct fiber_list *ready = &f->q->fibers.ready;

	f->state = FIBER_READY;
	f->next = NULL;
	*ready->tail = f;
	ready->tail = &f->next;
}

bool fibers_ready(const struct queue *q)
{
	return q->fibers.ready.head;
}

/* ---- waiting and waking, from inside ---- */

static void leave(struct fiber *f, enum fiber_state state)
{
	assert(f->state == FIBER_RUNNING && "only the running fiber itself can wait");
	f->state = state;
	fiber_ctx_leave(f->ctx);
}

void fiber_wait(struct fiber *f)
{
	if (!f->woken)
		leave(f, FIBER_WAITING);
	f->woken = false;
}

void fiber_wake(struct fiber *f)
{
	assert(queue_is_mine(f->q));
	f->woken = true;
	if (f->state == FIBER_WAITING)
		make_ready(f);
}

void fiber_pause(struct fiber *f)
{
	leave(f, FIBER_PAUSED);
}

void fiber_resume(struct fiber *f)
{
	assert(f->state == FIBER_PAUSED && queue_is_mine(f->q));
	make_ready(f);
}

void fiber_yield(struct fiber *f)
{
	assert(f->state == FIBER_RUNNING);
	make_ready(f);
	fiber_ctx_leave(f->ctx);
}

/* ---- starting ---- */

static void fiber_main(void *arg)
{
	struct fiber *f = arg;

	f->job->run(f, f->job); /* the job may be gone after this */
}

/* NULL without memory for its stack. */
static struct fiber *fiber_new(struct queue *q)
{
	struct fiber *f = calloc(1, sizeof(*f));

	if (!f)
		return NULL;
	f->q = q;
	f->ctx = fiber_ctx_new();
	if (!f->ctx) {
		free(f);
		return NULL;
	}
	q->stats.syscalls += 2; /* the stack and its guard page */
	return f;
}

/* An idle fiber, a new one, or the reserve of the level; NULL without memory for a stack while the reserve runs. */
static struct fiber *fiber_take(struct queue *q, struct fiber_level *l)
{
	struct fiber *f = q->fibers.idle;

	if (f) {
		q->fibers.idle = f->next;
		return f;
	}
	f = fiber_new(q);
	if (!f) {
		f = l->reserve;
		l->reserve = NULL;
	}
	return f;
}

static void fiber_give_back(struct queue *q, struct fiber *f)
{
	f->state = FIBER_IDLE;
	if (f->reserve) {
		q->fibers.levels[f->level].reserve = f;
		return;
	}
	f->next = q->fibers.idle;
	q->fibers.idle = f;
}

/* Gives the job a fiber if its level allows one more. */
static bool job_start(struct queue *q, struct fiber_job *job, unsigned level)
{
	struct fiber_level *l = &q->fibers.levels[level];
	struct fiber *f;

	if (l->running == FIBER_MAX_PER_LEVEL)
		return false;
	f = fiber_take(q, l);
	if (!f) {
		/* The reserve comes back when its job ends. Sooner, perhaps, there is memory again. */
		timer_set(q, &q->fibers.retry, q->head.now_ns + STACK_RETRY_NS);
		return false;
	}
	l->running++;
	q->stats.fibers_started++;
	f->job = job;
	f->level = level;
	f->woken = false;
	fiber_ctx_prepare(f->ctx, fiber_main, f);
	make_ready(f);
	return true;
}

static void unpark(struct queue *q, unsigned level)
{
	struct fiber_level *l = &q->fibers.levels[level];

	while (l->parked) {
		struct fiber_job *job = l->parked, *next = job->next; /* job->next: before it runs */

		if (!job_start(q, job, level))
			break;
		l->parked = next;
		q->fibers.nr_parked--;
	}
}

void fibers_start(struct queue *q, struct fiber_job *job, unsigned level)
{
	struct fiber_level *l = &q->fibers.levels[level];

	assert(queue_is_mine(q));
	if (!l->parked && job_start(q, job, level))
		return;
	job->next = NULL;
	if (l->parked)
		l->parked_tail->next = job;
	else
		l->parked = job;
	l->parked_tail = job;
	q->fibers.nr_parked++;
	q->stats.fibers_parked++;
}

void fiber_start(struct queue *q, struct fiber_job *job, unsigned level)
{
	assert(level < FIBER_LEVELS);
	fibers_start(q, job, level);
}

/* ---- running ---- */

static void fiber_run(struct queue *q, struct fiber *f)
{
	assert(f->state == FIBER_READY);
	f->state = FIBER_RUNNING;
	q->stats.fiber_switches++;
	fiber_ctx_enter(f->ctx);
	if (f->state != FIBER_RUNNING)
		return;
	fiber_give_back(q, f);
	q->fibers.levels[f->level].running--;
	if (unlikely(q->fibers.nr_parked)) {
		for (unsigned i = 0; i <= FIBER_LEVELS; i++)
			unpark(q, i);
	}
}

bool fibers_run(struct queue *q)
{
	struct fiber_list *ready = &q->fibers.ready;
	struct fiber *f = ready->head;

	if (!f)
		return false;
	/* Those that become ready from here on run in the next pass, after what came meanwhile. */
	ready->head = NULL;
	ready->tail = &ready->head;
	while (f) {
		struct fiber *next = f->next;

		fiber_run(q, f);
		f = next;
	}
	return true;
}

/* ---- the pool ---- */

static void retry_fire(struct timer *t)
{
	struct queue *q = container_of(t, struct queue, fibers.retry);

	for (unsigned i = 0; i <= FIBER_LEVELS; i++)
		unpark(q, i);
}

static void fiber_free(struct fiber *f)
{
	if (!f)
		return;
	fiber_ctx_free(f->ctx);
	free(f);
}

int fibers_init(struct queue *q)
{
	q->fibers.ready.tail = &q->fibers.ready.head;
	q->fibers.retry.fire = retry_fire;
	for (unsigned i = 0; FIBER_CTX_RESERVE && i <= FIBER_LEVELS; i++) {
		struct fiber *f = fiber_new(q);

		if (!f) {
			fibers_free(q);
			return -ENOMEM;
		}
		f->level = i;
		f->reserve = true;
		q->fibers.levels[i].reserve = f;
	}
	return 0;
}

void fibers_free(struct queue *q)
{
	timer_cancel(q, &q->fibers.retry);
	assert(!q->fibers.nr_parked && "queue freed with fibers waiting to start");
	for (unsigned i = 0; i <= FIBER_LEVELS; i++)
		assert(!q->fibers.levels[i].running && "queue freed with a fiber that has not ended");
	for (unsigned i = 0; i <= FIBER_LEVELS; i++) {
		fiber_free(q->fibers.levels[i].reserve);
		q->fibers.levels[i].reserve = NULL;
	}
	while (q->fibers.idle) {
		struct fiber *f = q->fibers.idle;

		q->fibers.idle = f->next;
		fiber_free(f);
	}
}
