/* SPDX-License-Identifier: MIT */
/*
 * aio/timer.c - timers in a pairing heap
 *
 * Owns:    the heap; its links are in the timers, so that arming one never allocates and never fails.
 * Assumes: the queue's thread.
 * Never:   fires a timer before its time, or two of equal time out of the order in which they were armed.
 *
 * Arming is O(1), disarming and firing O(log n) amortised. A timer is the root, or in the list of children of
 * another one that fires no later; prev is the sibling before, or the parent for the first child.
 */
#include "aio/loop.h"

static bool before(const struct timer *a, const struct timer *b)
{
	return a->when_ns < b->when_ns || (a->when_ns == b->when_ns && a->seq < b->seq);
}

/* Both are roots, or NULL. */
static struct timer *merge(struct timer *a, struct timer *b)
{
	if (!a || !b)
		return a ? a : b;
	if (before(b, a)) {
		struct timer *t = a;

		a = b;
		b = t;
	}
	b->prev = a;
	b->next = a->child;
	if (b->next)
		b->next->prev = b;
	a->child = b;
	return a;
}

/* Makes one heap of a list of siblings: merges neighbours in pairs, then the pairs from the last to the
 * first. */
static struct timer *merge_list(struct timer *t)
{
	struct timer *pairs = NULL, *root = NULL;

	while (t) {
		struct timer *a = t, *b = t->next;

		t = b ? b->next : NULL;
		a->next = a->prev = NULL;
		if (b)
			b->next = b->prev = NULL;
		a = merge(a, b);
		a->next = pairs;
		pairs = a;
	}
	while (pairs) {
		struct timer *next = pairs->next;

		pairs->next = NULL;
		root = merge(root, pairs);
		pairs = next;
	}
	return root;
}

static void heap_remove(struct queue *q, struct timer *t)
{
	struct timer *children = merge_list(t->child);

	if (t == q->timers) {
		q->timers = children;
	} else {
		if (t->prev->child == t)
			t->prev->child = t->next;
		else
			t->prev->next = t->next;
		if (t->next)
			t->next->prev = t->prev;
		q->timers = merge(q->timers, children);
	}
	t->child = t->next = t->prev = NULL;
	t->armed = false;
}

void timer_set(struct queue *q, struct timer *t, uint64_t when_ns)
{
	assert(queue_is_mine(q));
	if (t->armed)
		heap_remove(q, t);
	t->when_ns = when_ns;
	t->seq = q->timer_seq++;
	t->child = t->next = t->prev = NULL;
	t->armed = true;
	q->timers = merge(q->timers, t);
}

void timer_cancel(struct queue *q, struct timer *t)
{
	assert(queue_is_mine(q));
	if (t->armed)
		heap_remove(q, t);
}

bool timers_next(const struct queue *q, uint64_t *ret_when_ns)
{
	if (!q->timers)
		return false;
	*ret_when_ns = q->timers->when_ns;
	return true;
}

bool timers_run(struct queue *q)
{
	/* What fire() arms waits for the next pass, or a timer that re-arms itself for now would never let
	 * go. */
	const uint64_t end = q->timer_seq;
	bool any = false;

	while (q->timers && q->timers->when_ns <= q->head.now_ns && q->timers->seq < end) {
		struct timer *t = q->timers;

		heap_remove(q, t);
		q->stats.timers++;
		any = true;
		t->fire(t);
	}
	return any;
}
