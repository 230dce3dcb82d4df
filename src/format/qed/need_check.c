/* SPDX-License-Identifier: MIT */
/*
 * qed/need_check.c - the flag that says "look before you trust this"
 *
 *   CLEAR ──need_check_begin()──▶ SET ──idle for 5 s, or closed, all durable──▶ CLEAR
 *
 * Owns:    the bit NEED_CHECK of the header, the idle timer and its fiber.
 * Assumes: fibers of the home queue.
 * Never:   clears the flag before everything that was done under it is durable.
 */
#include "format/qed/qed.h"

#include <stdlib.h>

#define IDLE_NS 5000000000ull

struct need_check {
	struct qed *q;
	struct fiber_mutex mutex; /* who changes the flag */
	order_mark mark;	  /* durable when the flag is */
	uint64_t allocations;	  /* begun since the image was opened */
	unsigned under_way;	  /* of these: that have not ended; the flag stays */
	struct timer timer;
	struct fiber_job job;
	bool running;
	struct waitlist idle; /* for the end of the job */
};

/* Under the mutex. */
static int clear(struct fiber *f, struct qed *q)
{
	order_mark mark;
	int ret = order_flush(f, q->order);

	/*
	 * Durable first: all that was written while the flag stood. Only then: the flag's absence. Power lost in
	 * between leaves a flag too many, and the next writer looks at an image that is whole. The other way round,
	 * nobody would look at one that may not be.
	 */
	if (ret == 0)
		ret = qed_put_features(f, q, q->h.features & ~QED_F_NEED_CHECK, order_all(q->order), &mark);
	return ret < 0 ? ret : order_wait(f, q->order, mark);
}

int need_check_clear(struct fiber *f, struct qed *q)
{
	int ret = 0;

	fiber_lock(f, &q->need_check->mutex);
	if (q->h.features & QED_F_NEED_CHECK)
		ret = clear(f, q);
	fiber_unlock(&q->need_check->mutex);
	return ret;
}

/* An allocation may begin while we wait: then the flag has to stay, and the end of that one arms the timer. */
static void idle_run(struct fiber *f, struct fiber_job *job)
{
	struct need_check *nc = container_of(job, struct need_check, job);
	struct qed *q = nc->q;
	uint64_t before = nc->allocations;

	fiber_lock(f, &nc->mutex);
	/* An error has been counted, and meets the guest's next flush; the flag stays, and close tries again. */
	if ((q->h.features & QED_F_NEED_CHECK) && !nc->under_way && order_flush(f, q->order) == 0 &&
	    nc->allocations == before)
		(void)clear(f, q);
	fiber_unlock(&nc->mutex);
	nc->running = false;
	waitlist_wake_all(&nc->idle);
}

static void idle_fire(struct timer *t)
{
	struct need_check *nc = container_of(t, struct need_check, timer);

	if (nc->running)
		return;
	nc->running = true;
	nc->job.run = idle_run;
	fiber_start(nc->q->node->home, &nc->job, nc->q->node->level);
}

static void arm(struct need_check *nc)
{
	struct queue *home = nc->q->node->home;

	timer_set(home, &nc->timer, queue_now(home) + IDLE_NS);
}

int need_check_begin(struct fiber *f, struct qed *q)
{
	struct need_check *nc = q->need_check;
	int ret = 0;

	nc->allocations++;
	if (nc->mutex.held || !(q->h.features & QED_F_NEED_CHECK)) {
		fiber_lock(f, &nc->mutex);
		if (!(q->h.features & QED_F_NEED_CHECK))
			ret = qed_put_features(f, q, q->h.features | QED_F_NEED_CHECK, ORDER_NONE, &nc->mark);
		fiber_unlock(&nc->mutex);
	}
	if (ret == 0)
		nc->under_way++;
	return ret;
}

void need_check_end(struct qed *q)
{
	assert(q->need_check->under_way);
	q->need_check->under_way--;
	arm(q->need_check);
}

order_mark need_check_mark(const struct qed *q)
{
	return q->need_check->mark;
}

int need_check_open(struct qed *q)
{
	struct need_check *nc = calloc(1, sizeof(*nc));

	if (!nc)
		return -ENOMEM;
	nc->q = q;
	nc->mark = ORDER_NONE;
	nc->timer.fire = idle_fire;
	q->need_check = nc;
	return 0;
}

void need_check_close(struct fiber *f, struct qed *q)
{
	struct need_check *nc = q->need_check;

	if (!nc)
		return;
	timer_cancel(q->node->home, &nc->timer);
	while (nc->running)
		waitlist_wait(f, &nc->idle);
	free(nc);
	q->need_check = NULL;
}
