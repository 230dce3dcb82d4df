/* SPDX-License-Identifier: MIT */
/*
 * aio/turn.c - one turn of the loop, messages, and when a sleeping queue is woken
 *
 * Owns:    the inbox, the flag `asleep`, the clock of the queue.
 * Assumes: one thread at a time runs the queue; any thread posts and kicks.
 * Never:   makes a system call to post to a queue that is awake, or to sleep when something is ready.
 */
#include <errno.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "aio/loop.h"

/* Passes over cheap work before file descriptors and the kernel get their chance again. */
#define WORK_PASSES 16

/* ---- posting, waking ---- */

void loop_signal(struct queue *q)
{
	const uint64_t one = 1;

	atomic_fetch_add_explicit(&q->signals, 1, memory_order_relaxed);
	/* Fails only on a bad descriptor: the counter would have to reach 2^64 - 1 to block. */
	while (write(q->event_fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

/*
 * The sender stores its message (or kick) and then reads `asleep`; the queue stores `asleep` and then looks
 * for messages (loop_wait()). All four are sequentially consistent, so at least one of the two sees the
 * other's store: either the queue does not sleep, or the sender writes to the event fd. Of several senders
 * one writes.
 */
void loop_wake(struct queue *q)
{
	if (atomic_load(&q->asleep) && atomic_exchange(&q->asleep, false))
		loop_signal(q);
}

/*
 * `posters` keeps the queue alive: as soon as the message is in the inbox its receiver may run it and free
 * the queue, while this thread has yet to read `asleep`. Pairs with the acquire in queue_free().
 */
void queue_post(struct queue *q, struct msg *m)
{
	struct msg *head;

	atomic_fetch_add_explicit(&q->posters, 1, memory_order_relaxed);
	head = atomic_load_explicit(&q->inbox, memory_order_relaxed);
	do {
		m->next = head;
	} while (!atomic_compare_exchange_weak_explicit(&q->inbox, &head, m, memory_order_seq_cst,
							memory_order_relaxed));
	loop_wake(q);
	atomic_fetch_sub_explicit(&q->posters, 1, memory_order_release);
}

void queue_kick(struct queue *q)
{
	atomic_fetch_add_explicit(&q->posters, 1, memory_order_relaxed);
	atomic_store(&q->kicked, true);
	loop_wake(q);
	atomic_fetch_sub_explicit(&q->posters, 1, memory_order_release);
}

void queue_later(struct queue *q, struct msg *m)
{
	assert(queue_is_mine(q));
	msg_list_add(&q->later, m);
}

/* A kick is used up by the turn that it ended. The acquire makes visible what the kicker did before. */
static void kick_clear(struct queue *q)
{
	if (atomic_load_explicit(&q->kicked, memory_order_relaxed))
		atomic_exchange_explicit(&q->kicked, false, memory_order_acq_rel);
}

/* ---- the work of a turn ---- */

static bool run_list(struct queue *q, struct msg *m)
{
	bool any = m;

	while (m) {
		struct msg *next = m->next;

		q->stats.msgs++;
		m->run(m);
		m = next;
	}
	return any;
}

static bool messages_run(struct queue *q)
{
	bool any = false;

	/* A plain look first: without a message there is no atomic read-modify-write. */
	if (atomic_load_explicit(&q->inbox, memory_order_relaxed)) {
		struct msg *m = atomic_exchange_explicit(&q->inbox, NULL, memory_order_acquire),
			   *oldest = NULL;

		while (m) {
			struct msg *next = m->next;

			m->next = oldest;
			oldest = m;
			m = next;
		}
		any = run_list(q, oldest);
	}
	if (q->later.head) {
		struct msg *m = q->later.head;

		q->later.head = NULL;
		q->later.tail = &q->later.head;
		run_list(q, m);
		any = true;
	}
	return any;
}

static bool work_pass(struct queue *q)
{
	bool any = messages_run(q);

	any |= timers_run(q);
	any |= watches_run(q);
	any |= fibers_run(q);
	any |= engines_reap(q);
	q->work_done += any;
	return any;
}

bool loop_work(struct queue *q)
{
	for (unsigned i = 0; i < WORK_PASSES; i++) {
		if (!work_pass(q))
			return false;
	}
	return true;
}

static bool hooks_run(struct queue *q)
{
	struct hook *h = TAILQ_FIRST(&q->hooks);
	bool more = false;

	while (h) {
		q->hook_next = TAILQ_NEXT(h, link);
		more |= h->run(h);
		h = q->hook_next;
	}
	q->hook_next = NULL;
	return more;
}

/* What the hooks, or callbacks after the last pass, left to do. */
static bool work_left(struct queue *q)
{
	return q->later.head || q->fds_ready || fibers_ready(q) || atomic_load(&q->inbox) ||
	       atomic_load(&q->kicked);
}

/* ---- waiting ---- */

void loop_clock(struct queue *q)
{
	struct timespec ts;

	if (q->virtual_time)
		return;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	q->head.now_ns = (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

/* timeout_ns, cut to the next timer's time. */
static int64_t timeout_to_timer(struct queue *q, int64_t timeout_ns)
{
	uint64_t when, left;

	if (!timeout_ns || q->virtual_time || !timers_next(q, &when))
		return timeout_ns;
	loop_clock(q);
	if (when <= q->head.now_ns)
		return 0;
	left = when - q->head.now_ns;
	if (timeout_ns > 0 && left > (uint64_t)timeout_ns)
		return timeout_ns;
	return left > INT64_MAX ? INT64_MAX : (int64_t)left;
}

/* One submit per engine, and one wait: with io_uring both are a single system call. */
static void loop_wait(struct queue *q, int64_t timeout_ns)
{
	unsigned signals;

	timeout_ns = timeout_to_timer(q, timeout_ns);
	engines_flush(q);
	if (unlikely(q->nr_polled))
		timeout_ns = 0;
	if (timeout_ns) {
		atomic_store(&q->asleep, true); /* pairs with loop_wake(): store, then look */
		if (work_left(q))
			timeout_ns = 0;
		else
			loop_count(&q->stats.waits);
	}
	if (q->wait)
		q->wait(q->wait_ctx, timeout_ns);
	else
		watches_wait(q, timeout_ns);
	if (atomic_load_explicit(&q->asleep, memory_order_relaxed))
		atomic_store_explicit(&q->asleep, false, memory_order_relaxed);
	signals = atomic_load_explicit(&q->signals, memory_order_relaxed);
	if (signals) {
		atomic_fetch_sub_explicit(&q->signals, signals, memory_order_relaxed);
		q->stats.syscalls += signals;
	}
	kick_clear(q);
}

/* ---- turns ---- */

void loop_enter(struct queue *q)
{
	assert(!q->in_turn && "queue_turn() or fiber_call() from inside a turn of the same queue");
	assert(queue_is_mine(q));
	assert((!q->only || q->only == thread_self()) && "a queue made for one thread is run by another");
	q->in_turn = true;
	if (!q->own_thread)
		atomic_store_explicit(&q->runner, thread_self(), memory_order_relaxed);
	if (atomic_load_explicit(&q->asleep, memory_order_relaxed))
		atomic_store_explicit(&q->asleep, false, memory_order_relaxed); /* left so by loop_embed() */
	loop_clock(q);
}

void loop_embed(struct queue *q)
{
	if (q->poll_fd < 0)
		return;
	engines_flush(q);
	watches_embed(q);
	atomic_store(&q->asleep, true); /* pairs with loop_wake() */
	if (work_left(q) || q->nr_polled)
		loop_wake(q);
}

void loop_leave(struct queue *q)
{
	loop_embed(q);
	if (!q->own_thread)
		atomic_store_explicit(&q->runner, NULL, memory_order_relaxed);
	q->in_turn = false;
}

void queue_turn(struct queue *q, int64_t timeout_ns)
{
	loop_enter(q);
	loop_count(&q->stats.turns);
	/* Virtual time passes only when the test says so; but what the kernel was given comes back in real
	 * time. */
	if (q->virtual_time && !q->nr_outside)
		timeout_ns = 0;
	/* A caller that waits for an outcome must see it before the turn sleeps: any work ends the wait. */
	q->work_before = q->work_done;
	loop_work(q);
	if (hooks_run(q) || q->work_done != q->work_before)
		timeout_ns = 0;
	loop_wait(q, timeout_ns);
	if (timeout_ns)
		loop_clock(q);
	loop_work(q);
	hooks_run(q);
	loop_leave(q);
}

/* Nothing is ready. Virtual time jumps to the next timer: the caller of fiber_call() cannot move it
 * meanwhile. */
static bool time_jump(struct queue *q)
{
	uint64_t when;

	if (!q->virtual_time || q->own_thread || q->nr_outside || !timers_next(q, &when))
		return false;
	if (when > q->head.now_ns)
		q->head.now_ns = when;
	return true;
}

void loop_run(struct queue *q, const _Atomic bool *until)
{
	for (;;) {
		bool more;

		q->work_before = q->work_done;
		more = loop_work(q);
		loop_count(&q->stats.turns);
		more |= hooks_run(q);
		if (atomic_load_explicit(until, memory_order_relaxed))
			break;
		if (!more && time_jump(q))
			continue;
		more = more || loop_spin(q);
		if (more) {
			loop_wait(q, 0);
			loop_clock(q);
		} else {
			uint64_t from = q->head.now_ns;

			loop_wait(q, -1);
			loop_clock(q);
			loop_slept(q, q->head.now_ns - from);
		}
	}
}
