/* SPDX-License-Identifier: MIT */
/*
 * block/grace.c - grace periods: when has the last user of an old mapping gone?
 *
 * A format that takes a mapping away (discard, snapshot, eviction of a table) first changes what map() answers, then
 * waits here, and only then lets the space be used for something else. Every queue counts the I/O it has in
 * flight under a mapping, in plain counters of its own: hot[phase]. A grace period sends each queue a message; the
 * queue handles it between two requests, so whatever it looks up afterwards sees the change; it turns its phase over
 * and answers when the counter of the old phase is zero. The hot path pays an increment and a decrement, no barrier.
 *
 * Never:   is a request counted while it waits on the cold path: home could wait for it while it waits for home.
 */
#include "block/block.h"

#include <stdlib.h>

struct grace {
	struct fiber *f;
	unsigned nr_pending;
};

struct grace_msg {
	struct msg m; /* first to the queue, then back */
	struct node_slot *s;
	struct grace *g;
};

static void grace_answer(struct node_slot *s, struct msg *m)
{
	queue_post(s->node->home, m);
}

__attribute__((cold)) void grace_last(struct node_slot *s)
{
	struct msg *m = s->grace_reply;

	s->grace_reply = NULL;
	grace_answer(s, m);
}

static void hot_done_0(struct req *r, int ret)
{
	hot_end(node_slot(r->at, r->q), 0);
	req_done(r, ret);
}

static void hot_done_1(struct req *r, int ret)
{
	hot_end(node_slot(r->at, r->q), 1);
	req_done(r, ret);
}

void (*const hot_done[2])(struct req *r, int ret) = { hot_done_0, hot_done_1 };

static void grace_answered(struct msg *m)
{
	struct grace_msg *gm = container_of(m, struct grace_msg, m);

	if (!--gm->g->nr_pending)
		fiber_wake(gm->g->f);
}

static void grace_arrived(struct msg *m)
{
	struct grace_msg *gm = container_of(m, struct grace_msg, m);
	struct node_slot *s = gm->s;

	s->phase = !s->phase;
	m->run = grace_answered;
	if (s->hot[!s->phase])
		s->grace_reply = m;
	else
		grace_answer(s, m);
}

void node_grace(struct fiber *f, struct node *n)
{
	struct grace g = { .f = f };
	/* One message for each queue there can be; grace periods of a node run one at a time. */
	struct grace_msg msgs[QUEUE_MAX];

	fiber_lock(f, &n->grace_mutex);
	/* Pairs with the fence in node_attach(): we see its slot, or it sees what was changed before this call. */
	atomic_thread_fence(memory_order_seq_cst);
	for (unsigned i = 0; i < QUEUE_MAX; i++) {
		struct node_slot *s = atomic_load_explicit(&n->slots[i], memory_order_acquire);

		if (!s)
			continue;
		msgs[i] = (struct grace_msg){ .m.run = grace_arrived, .s = s, .g = &g };
		g.nr_pending++;
		if (s->q == n->home)
			grace_arrived(&msgs[i].m); /* we are on its thread, between two requests */
		else
			queue_post(s->q, &msgs[i].m);
	}
	while (g.nr_pending)
		fiber_wait(f);
	fiber_unlock(&n->grace_mutex);
}
