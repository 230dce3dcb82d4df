/* SPDX-License-Identifier: MIT */
/*
 * aio/fiber_sync.c - what fibers wait for: each other, time, worker threads; and threads that wait for a
 * fiber
 *
 * Owns:    nothing; a waiter is a variable on the stack of the fiber that waits.
 * Assumes: all fibers that use one waitlist or mutex belong to the same queue.
 * Never:   lets a fiber overtake an older waiter.
 */
#include <stdlib.h>

#include "aio/loop.h"
#include "aio/perturb.h"
#include "aio/worker.h"

/* ---- waitlist, mutex ---- */

struct waiter {
	struct waiter *next;
	struct fiber *f;
};

void waitlist_wait(struct fiber *f, struct waitlist *wl)
{
	struct waiter w = { .f = f };

	if (!wl->head)
		wl->tail = &wl->head;
	*wl->tail = &w;
	wl->tail = &w.next;
	fiber_pause(f);
}

void waitlist_wake_one(struct waitlist *wl)
{
	struct waiter *w = wl->head;

	if (!w)
		return;
	wl->head = w->next;
	fiber_resume(w->f); /* w is gone once that fiber runs */
}

void waitlist_wake_all(struct waitlist *wl)
{
	while (wl->head)
		waitlist_wake_one(wl);
}

void fiber_lock(struct fiber *f, struct fiber_mutex *m)
{
	if (m->held)
		waitlist_wait(f, &m->waiting); /* woken as the holder */
	else
		m->held = true;
	perturb(f);
}

void fiber_unlock(struct fiber_mutex *m)
{
	assert(m->held);
	if (m->waiting.head)
		waitlist_wake_one(&m->waiting); /* stays held: nobody can slip in */
	else
		m->held = false;
}

/* ---- time ---- */

struct sleeper {
	struct timer timer;
	struct fiber *f;
};

static void sleeper_fire(struct timer *t)
{
	fiber_resume(container_of(t, struct sleeper, timer)->f);
}

void fiber_sleep_until(struct fiber *f, uint64_t when_ns)
{
	struct sleeper s = { .timer.fire = sleeper_fire, .f = f };

	timer_set(fiber_queue(f), &s.timer, when_ns);
	fiber_pause(f);
}

/* ---- workers ---- */

struct fiber_work {
	struct work work;
	struct fiber *f;
	int (*fn)(void *arg);
	void *arg;
	int ret;
	uint64_t nr;
	struct fiber_work *next; /* of those that are held */
};

static void fiber_work_run(struct work *w)
{
	struct fiber_work *fw = container_of(w, struct fiber_work, work);

	fw->ret = fw->fn(fw->arg);
}

static void hold(struct fiber_work *fw)
{
	struct fiber_work **at = &fw->work.q->works.done;

	while (*at && (*at)->nr < fw->nr)
		at = &(*at)->next;
	fw->next = *at;
	*at = fw;
}

static void fiber_work_done(struct msg *m)
{
	struct fiber_work *fw = container_of(m, struct fiber_work, work.done);

	fw->work.q->nr_outside--;
	if (unlikely(fw->work.q->works.hold))
		hold(fw);
	else
		fiber_resume(fw->f);
}

int fiber_work(struct fiber *f, int (*fn)(void *arg), void *arg)
{
	struct fiber_work fw = {
		.work = { .run = fiber_work_run, .q = fiber_queue(f), .done.run = fiber_work_done },
		.f = f,
		.fn = fn,
		.arg = arg,
		.nr = fiber_queue(f)->works.nr++,
	};

	fw.work.q->nr_outside++;
	worker_submit(&fw.work);
	fiber_pause(f);
	return fw.ret;
}

bool fiber_works_give(struct queue *q)
{
	struct fiber_work *fw = q->works.done;
	bool any = fw;

	q->works.done = NULL;
	while (fw) {
		struct fiber_work *next = fw->next; /* fw is on its fiber's stack */

		fiber_resume(fw->f);
		fw = next;
	}
	return any;
}

void fiber_works_hold(struct queue *q, bool hold)
{
	q->works.hold = hold;
	if (!hold)
		(void)fiber_works_give(q);
}

/* ---- a thread waits for a fiber ---- */

struct call {
	struct msg msg;
	struct fiber_job job;
	struct queue *q;
	int (*fn)(struct fiber *f, void *arg);
	void *arg;
	int ret;
	_Atomic bool done;
	pthread_mutex_t lock; /* when q has a thread */
	pthread_cond_t cond;
};

static void call_run(struct fiber *f, struct fiber_job *job)
{
	struct call *c = container_of(job, struct call, job);

	c->ret = c->fn(f, c->arg);
	if (!c->q->own_thread) {
		atomic_store_explicit(&c->done, true, memory_order_relaxed); /* this very thread looks */
		return;
	}
	pthread_mutex_lock(&c->lock);
	atomic_store_explicit(&c->done, true, memory_order_relaxed);
	pthread_cond_signal(&c->cond);
	pthread_mutex_unlock(&c->lock); /* c is gone once the caller has the lock */
}

static void call_start(struct msg *m)
{
	struct call *c = container_of(m, struct call, msg);

	fibers_start(c->q, &c->job, FIBER_LEVEL_CALL);
}

int fiber_call(struct queue *q, int (*fn)(struct fiber *f, void *arg), void *arg)
{
	struct call c = { .msg.run = call_start, .job.run = call_run, .q = q, .fn = fn, .arg = arg };

	if (!q->own_thread) {
		loop_enter(q);
		call_start(&c.msg);
		loop_run(q, &c.done);
		loop_leave(q);
		return c.ret;
	}
	assert(!queue_is_mine(q) && "fiber_call() on the queue's own thread would wait for itself");
	pthread_mutex_init(&c.lock, NULL);
	pthread_cond_init(&c.cond, NULL);
	queue_post(q, &c.msg);
	pthread_mutex_lock(&c.lock);
	while (!atomic_load_explicit(&c.done, memory_order_relaxed))
		pthread_cond_wait(&c.cond, &c.lock);
	pthread_mutex_unlock(&c.lock);
	pthread_cond_destroy(&c.cond);
	pthread_mutex_destroy(&c.lock);
	return c.ret;
}
