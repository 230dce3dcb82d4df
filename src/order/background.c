/* SPDX-License-Identifier: MIT */
/*
 * order/background.c - the block queue: written out without a flush, because it is large or old
 *
 *     queued   0 ......... limit .................... 2 x limit
 *              puts go on  │ and a fiber writes out   │ puts wait for room
 *
 * Owns:    the fiber and the timer of one queue.
 * Assumes: the home queue; a pool of fibers that may be full of puts that wait: so they do not count on this one.
 * Never:   reports an error: what failed stays queued, and the next flush meets it.
 */
#include "order/queue.h"

static void age_timer_set(struct order *o)
{
	if (o->age_ns && !o->age_timer.armed && !TAILQ_EMPTY(&o->sections))
		timer_set(o->file->home, &o->age_timer, o->dirty_since_ns + o->age_ns);
}

static void background_run(struct fiber *f, struct fiber_job *job)
{
	struct order *o = container_of(job, struct order, background);
	uint64_t now = queue_now(o->file->home);
	order_mark all = order_all(o);

	while (o->writing) /* a flush was faster */
		waitlist_wait(f, &o->waiting);
	if (!o->ending && o->durable < all && !TAILQ_EMPTY(&o->sections))
		(void)order_write_out(f, o, all, o->background_cause); /* counted; a flush meets it again */
	o->background_busy = false;
	/* What is queued now came after the write-out began, or could not be written: its time starts anew. */
	o->dirty_since_ns = now;
	if (!o->ending)
		age_timer_set(o);
	waitlist_wake_all(&o->waiting);
}

static void background_start(struct order *o, enum order_cause cause)
{
	if (o->background_busy || o->writing)
		return;
	o->background_busy = true;
	o->background_cause = cause;
	fiber_start(o->file->home, &o->background, o->file->level + 1);
}

/* A timer that was set for entries which have left the queue since is set again for those that are there. */
static void age_timer_fire(struct timer *t)
{
	struct order *o = container_of(t, struct order, age_timer);

	if (TAILQ_EMPTY(&o->sections) || o->background_busy)
		return;
	if (queue_now(o->file->home) - o->dirty_since_ns < o->age_ns)
		age_timer_set(o);
	else if (o->writing) /* who writes may stop before the last section */
		timer_set(o->file->home, t, queue_now(o->file->home) + o->age_ns / 4 + 1);
	else
		background_start(o, ORDER_AGE);
}

void order_background_init(struct order *o)
{
	o->age_ns = ORDER_AGE_DEFAULT_NS;
	o->age_timer.fire = age_timer_fire;
	o->background.run = background_run;
}

void order_set_age(struct order *o, uint64_t age_ns)
{
	o->age_ns = age_ns;
	timer_cancel(o->file->home, &o->age_timer);
	age_timer_set(o);
}

void order_background_end(struct fiber *f, struct order *o)
{
	o->ending = true;
	timer_cancel(o->file->home, &o->age_timer);
	while (o->background_busy)
		waitlist_wait(f, &o->waiting);
}

void order_grew(struct order *o, bool was_empty)
{
	if (was_empty)
		o->dirty_since_ns = queue_now(o->file->home);
	age_timer_set(o);
	o->stats.queued_bytes_max = MAX(o->stats.queued_bytes_max, order_queued(o));
}

/*
 * A place that is written again and again takes one sector of the queue, and a record of the journal each time. The
 * largest usual put must find room in it, for then nobody can wait any more.
 */
#define JOURNAL_PUT KiB(256)

static uint64_t pressure(struct order *o)
{
	uint64_t queued = order_queued(o);

	if (!o->journal)
		return queued;
	queued = MAX(queued, journal_used(o->journal) / 2);
	return journal_reserve(o->journal, JOURNAL_PUT) < 0 ? MAX(queued, 2 * o->limit + 1) : queued;
}

/*
 * Beyond twice the limit somebody has to make room at once. If nobody writes, the fiber that puts does: the one of
 * the background may be waiting for a place among the fibers that wait here. Errors are not its concern: the
 * entry is queued, and a flush will tell.
 */
void order_relieve(struct fiber *f, struct order *o)
{
	uint64_t errors = o->stats.errors;

	if (pressure(o) > o->limit)
		background_start(o, ORDER_SIZE);
	while (pressure(o) > 2 * o->limit && !TAILQ_EMPTY(&o->sections) && o->stats.errors == errors) {
		if (o->writing)
			waitlist_wait(f, &o->waiting);
		else
			(void)order_write_out(f, o, order_all(o), ORDER_SIZE); /* counted; a flush meets it again */
	}
}
