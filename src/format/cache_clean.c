/* SPDX-License-Identifier: MIT */
/*
 * format/cache_clean.c - what nobody has used for a while is given back
 *
 *     ─────┬───────── interval ─────────┬───────── interval ─────────┬─────▶
 *     marks go                   not marked since: dropped     and so on
 *
 * Each piece has a mark that whoever uses it sets (piece_touch(), as for the clock). So a piece is dropped between one and two
 * intervals after its last use. The timer runs only while there are pieces: an idle disk wakes nobody.
 *
 * Owns:    the timer, and the fiber that it starts.
 * Assumes: the home queue.
 * Never:   drops what is pinned, so nothing that has to be written.
 */
#include "format/cache.h"

#include <malloc.h>

/* Less than that is not worth looking through the heap for whole pages. */
#define TRIM_LEN KiB(256)

static int trim_work(void *arg)
{
#ifdef __GLIBC__
	malloc_trim(0);
#endif
	return 0;
}

static void arm(struct cache_cleaner *cl)
{
	timer_set(cl->node->home, &cl->timer, queue_now(cl->node->home) + cl->interval_ns);
}

static bool anything_left(const struct cache_cleaner *cl)
{
	for (size_t i = 0; i < ARRAY_LEN(cl->caches); i++) {
		if (cl->caches[i] && cl->caches[i]->nr_pieces)
			return true;
	}
	return false;
}

static void clean_run(struct fiber *f, struct fiber_job *job)
{
	struct cache_cleaner *cl = container_of(job, struct cache_cleaner, job);
	uint64_t len = 0;

	for (size_t i = 0; i < ARRAY_LEN(cl->caches); i++) {
		if (cl->caches[i]) /* looked up anew after each wait: an option may have been amended */
			len += cache_clean(f, cl->caches[i]);
	}
	if (len >= TRIM_LEN)
		fiber_work(f, trim_work, NULL); /* what was free before stays in the process otherwise */
	cl->busy = false;
	if (!cl->ending && anything_left(cl))
		arm(cl);
	waitlist_wake_all(&cl->idle);
}

static void timer_fire(struct timer *t)
{
	struct cache_cleaner *cl = container_of(t, struct cache_cleaner, timer);

	cl->busy = true;
	cl->job.run = clean_run;
	fiber_start(cl->node->home, &cl->job, cl->node->level);
}

void cache_cleaner_init(struct cache_cleaner *cl, struct node *node, uint64_t interval_ns)
{
	*cl = (struct cache_cleaner){ .node = node, .interval_ns = interval_ns, .timer.fire = timer_fire };
}

void cache_cleaner_watch(struct cache_cleaner *cl, unsigned i, struct cache *c)
{
	cl->caches[i] = c;
	if (c && cl->interval_ns)
		c->cleaner = cl;
}

void cache_cleaner_note(struct cache_cleaner *cl)
{
	if (!cl->timer.armed && !cl->busy && !cl->ending)
		arm(cl);
}

void cache_cleaner_end(struct fiber *f, struct cache_cleaner *cl)
{
	if (!cl->node)
		return;
	cl->ending = true;
	timer_cancel(cl->node->home, &cl->timer);
	while (cl->busy)
		waitlist_wait(f, &cl->idle);
}
