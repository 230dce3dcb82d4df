/* SPDX-License-Identifier: MIT */
/*
 * aio/poll.c - spinning before sleeping
 *
 * A queue that has nothing to do may look around for a while before it goes to sleep: being woken costs more
 * than a short wait, on this side and on that of whoever wakes it. It costs a processor, too. So the time is
 * either fixed, or it is spun only where that has turned out to be better than sleeping at once (spin.h).
 *
 * Owns:    the pollers, and how long the queue spins.
 * Assumes: a queue with a thread of its own.
 * Never:   spins past the time of a timer; sleeps before every poller has asked to be woken.
 */
#include <stdlib.h>

#include "aio/loop.h"

void poller_add(struct queue *q, struct poller *p)
{
	assert(queue_is_mine(q));
	TAILQ_INSERT_TAIL(&q->poll.pollers, p, link);
}

void poller_del(struct queue *q, struct poller *p)
{
	assert(queue_is_mine(q));
	TAILQ_REMOVE(&q->poll.pollers, p, link);
}

bool queue_polls(const struct queue *q)
{
	return q->poll.max_ns > 0;
}

bool queue_spins(const struct queue *q)
{
	return q->poll.now_ns > 0;
}

static void cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

static bool look(struct queue *q)
{
	struct poller *p, *next;
	bool any = false;

	for (p = TAILQ_FIRST(&q->poll.pollers); p; p = next) {
		next = TAILQ_NEXT(p, link);
		any |= p->look(p);
	}
	return any;
}

static bool spin(struct queue *q)
{
	uint64_t when, end, before = q->work_done;

	loop_clock(q);
	end = q->head.now_ns + q->poll.now_ns;
	if (timers_next(q, &when))
		end = MIN(end, when);
	while (q->head.now_ns < end) {
		if (look(q))
			return true;
		/* Hands over what was submitted, and takes what the kernel has for us; no system call without
		 * either. */
		if (q->wait)
			q->wait(q->wait_ctx, 0);
		loop_work(q);
		if (q->work_done != before)
			return true;
		cpu_relax();
		loop_clock(q);
	}
	return false;
}

/* Other threads may look at it. */
static void set_time(struct queue *q)
{
	__atomic_store_n(&q->poll.now_ns, q->poll.learnt.spins ? q->poll.max_ns : 0, __ATOMIC_RELAXED);
}

bool loop_spin(struct queue *q)
{
	struct poller *p, *next;
	bool any = false;

	if (!q->poll.max_ns)
		return false;
	if (q->poll.adaptive && spin_pause(&q->poll.learnt)) {
		loop_clock(q);
		spin_next(&q->poll.learnt, q->head.now_ns, q->poll.done);
		set_time(q);
	}
	if (q->poll.now_ns) {
		loop_count(&q->stats.spins);
		if (spin(q)) {
			loop_count(&q->stats.spins_paid);
			spin_paid(&q->poll.learnt);
			return true;
		}
		if (q->poll.adaptive) {
			spin_in_vain(&q->poll.learnt);
			set_time(q);
		}
	}
	for (p = TAILQ_FIRST(&q->poll.pollers); p; p = next) {
		next = TAILQ_NEXT(p, link);
		any |= p->rest(p);
	}
	return any;
}

void loop_slept(struct queue *q, uint64_t ns)
{
	if (!q->poll.adaptive)
		return;
	spin_slept(&q->poll.learnt, ns);
	set_time(q);
}
