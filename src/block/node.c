/* SPDX-License-Identifier: MIT */
/*
 * block/node.c - nodes: making and freeing, queues that use them, the door where requests come in
 *
 * Owns:    the slots: what each queue knows of a node.
 * Assumes: a slot is touched by its queue's thread only; the array of slots changes on attach and detach.
 * Never:   lets a request pass that is out of bounds or writes to a read-only node.
 */
#include "block/block.h"
#include "block/copy_on_read.h"
#include "block/wish.h"

#include <stdlib.h>
#include <string.h>

struct node *node_new(const struct driver *drv, const char *name, struct node *file, uint32_t flags,
		      struct queue *home)
{
	struct node *n = aligned_alloc(64, align_up(sizeof(*n), 64));

	if (!n)
		return NULL;
	memset(n, 0, sizeof(*n));
	n->drv = drv;
	n->flags = flags;
	n->file = file;
	n->home = home;
	n->level = file ? file->level + 1 : 1;
	n->align = n->mem_align = 1;
	ranges_init(&n->ranges);
	TAILQ_INIT(&n->len_watches);
	n->name = strdup(name);
	n->state = calloc(1, drv->state_len ? drv->state_len : 1);
	if (!n->name || !n->state) {
		node_free(n);
		return NULL;
	}
	return n;
}

void node_set_submit(struct node *n)
{
	if (n->drv->kind == DRIVER_FORMAT)
		n->submit = n->through && !(n->flags & NODE_FORCE_COLD) ? through_submit : map_submit;
	else if (n->align > 1 || n->mem_align > 1)
		n->submit = align_submit;
	else
		n->submit = n->drv->submit;
}

/* Messages may be under way to it: the last one frees it. */
static void slot_put(struct node_slot *s)
{
	if (atomic_fetch_sub(&s->refs, 1) == 1)
		free(s);
}

void node_free(struct node *n)
{
	if (!n)
		return;
	for (unsigned i = 0; i < QUEUE_MAX; i++) {
		if (n->slots[i])
			slot_put(n->slots[i]);
	}
	chain_cache_free(n->chain);
	cor_free(n);
	policy_free(n);
	throttle_free(n);
	free(n->backing_name);
	free(n->backing_format);
	free(n->name);
	free(n->id);
	free(n->state);
	free(n);
}

/* The node and everything below. What is attached stays as it is. */
static int attach_all(struct node *n, struct queue *q, struct varve_error *err)
{
	struct node_slot *s;
	int ret;

	for (; n; n = n->backing) {
		if (n->file) {
			ret = attach_all(n->file, q, err);
			if (ret == 0 && n->data)
				ret = attach_all(n->data, q, err);
			if (ret < 0)
				return ret;
		}
		if (atomic_load_explicit(&n->slots[queue_id(q)], memory_order_relaxed))
			continue;
		if (n->drv->attach) {
			ret = n->drv->attach(n, q, err);
			if (ret < 0)
				return varve_error_prefix(err, ret, "%s: ", node_name(n));
		}
		ret = split_pool_new(q);
		s = ret < 0 ? NULL : aligned_alloc(64, sizeof(*s));
		if (!s)
			return varve_error_errno(err, -ENOMEM, "%s: a queue cannot be attached", node_name(n));
		memset(s, 0, sizeof(*s));
		s->node = n;
		s->q = q;
		TAILQ_INIT(&s->parked);
		TAILQ_INIT(&s->stopped);
		TAILQ_INIT(&s->throttled[0]);
		TAILQ_INIT(&s->throttled[1]);
		s->throttle_timer.fire = throttle_fired;
		atomic_init(&s->refs, 1);
		flush_rounds_init(&s->flushes, n);
		/*
		 * Store the slot, then look: pairs with node_grace() and drain in home, which change and then look
		 * for slots. So home sees this slot, or we see what home changed before it looked.
		 */
		atomic_store(&n->slots[queue_id(q)], s);
		atomic_thread_fence(memory_order_seq_cst);
		s->quiesced = atomic_load(&n->drained);
	}
	return 0;
}

static void slot_restarted(struct msg *m)
{
	struct node_slot *s = container_of(m, struct node_slot, restart);

	atomic_store(&s->restart_sent, false); /* from here on another one may be sent; it finds what we do not */
	if (!TAILQ_EMPTY(&s->stopped)) /* then it is attached, and the node is there */
		policy_restart(s->node, s);
	slot_put(s);
}

void node_slot_restart(struct node_slot *s)
{
	if (atomic_exchange(&s->restart_sent, true))
		return;
	atomic_fetch_add(&s->refs, 1);
	s->restart.run = slot_restarted;
	queue_post(s->q, &s->restart);
}

int node_attach(struct node *n, struct queue *q, struct varve_error *err)
{
	int ret = attach_all(n, q, err);

	if (ret == 0)
		atomic_fetch_add(&node_slot(n, q)->users, 1);
	return ret;
}

static void detach_all(struct fiber *f, struct node *n, struct queue *q)
{
	for (; n; n = n->backing) {
		struct node_slot *s;

		if (n->file)
			detach_all(f, n->file, q);
		if (n->data)
			detach_all(f, n->data, q);
		/* No grace period or drain may be waiting for this queue's answer. */
		fiber_lock(f, &n->grace_mutex);
		fiber_lock(f, &n->drain_mutex);
		policy_lock(n);
		s = atomic_exchange(&n->slots[queue_id(q)], NULL);
		policy_unlock(n);
		assert(!s || (!s->entered && !s->hot[0] && !s->hot[1] && TAILQ_EMPTY(&s->parked) &&
			      TAILQ_EMPTY(&s->stopped) && TAILQ_EMPTY(&s->throttled[0]) &&
			      TAILQ_EMPTY(&s->throttled[1])));
		if (s)
			slot_put(s);
		fiber_unlock(&n->drain_mutex);
		fiber_unlock(&n->grace_mutex);
	}
}

void node_detach(struct fiber *f, struct node *n, struct queue *q)
{
	if (q == n->home || atomic_fetch_sub(&node_slot(n, q)->users, 1) > 1)
		return;
	fiber_lock(f, &n->chain_mutex); /* it waits in the middle of the chain */
	detach_all(f, n, q);
	fiber_unlock(&n->chain_mutex);
}

/* ---- the door ---- */

/*
 * A write that must be stable goes on as a flush of the whole node when its data and mapping are in place. Where there is
 * nothing but data (raw), one alone is best made stable by the leaf, in one go; several at once share flushes, if the
 * leaf's own way would have them wait for one another.
 */
static bool fua_becomes_flush(const struct node *n, const struct node_slot *s)
{
	const struct node *leaf;

	while (n->drv->kind == DRIVER_FILTER)
		n = n->file;
	if (n->drv->kind != DRIVER_FORMAT)
		return false;
	if (n->drv->sync)
		return true;
	leaf = n;
	while (leaf->drv->kind != DRIVER_LEAF)
		leaf = leaf->file;
	return leaf->fua_waits && s->nr_stable;
}

bool node_hold(struct node *n, const struct queue *q)
{
	struct node_slot *s = node_slot(n, q);

	if (s->quiesced)
		return false;
	s->entered++;
	return true;
}

/* The last one that was in; home waits for that. */
static void drain_last(struct node_slot *s)
{
	struct msg *m = s->drain_reply;

	s->drain_reply = NULL;
	queue_post(s->node->home, m);
}

static inline void slot_release(struct node_slot *s)
{
	if (!--s->entered && unlikely(s->drain_reply != NULL))
		drain_last(s);
}

void node_release(struct node *n, const struct queue *q)
{
	slot_release(node_slot(n, q));
}

/* Ways out that are rarely taken. Apart, so that the others need no stack. */
static __attribute__((noinline, cold)) void entry_leave_slow(struct node_slot *s, struct req *r, int ret)
{
	struct node *n = s->node;

	if (ret < 0 && n->policy && policy_takes(n, r, ret)) {
		slot_release(s);
		return;
	}
	slot_release(s);
	req_done(r, ret);
}

static inline void entry_leave(struct node_slot *s, struct req *r, int ret)
{
	if (unlikely(ret < 0 || s->drain_reply)) {
		entry_leave_slow(s, r, ret);
		return;
	}
	s->entered--;
	req_done(r, ret);
}

void entry_done(struct req *r, int ret)
{
	entry_leave(node_slot(r->at, r->q), r, ret);
}

static void entry_hot_done_0(struct req *r, int ret)
{
	struct node_slot *s = node_slot(r->at, r->q);

	hot_end(s, 0);
	entry_leave(s, r, ret);
}

static void entry_hot_done_1(struct req *r, int ret)
{
	struct node_slot *s = node_slot(r->at, r->q);

	hot_end(s, 1);
	entry_leave(s, r, ret);
}

void (*const entry_hot_done[2])(struct req *r, int ret) = { entry_hot_done_0, entry_hot_done_1 };

static void entry_stable_done(struct req *r, int ret)
{
	struct node_slot *s = node_slot(r->at, r->q);

	s->nr_stable--;
	entry_leave(s, r, ret);
}

static void entry_data_done(struct req *r, int ret)
{
	struct node *n = r->at;

	if (ret < 0) {
		entry_stable_done(r, ret);
		return;
	}
	r->op = REQ_FLUSH;
	r->flags &= ~REQ_REPAIRED;
	req_forward(r, n, 0, entry_stable_done);
}

static int entry_check(const struct node *n, const struct req *r)
{
	uint64_t len = node_len(n);

	if (r->op == REQ_FLUSH)
		return 0;
	if (r->off > len || r->len > len - r->off)
		return -EINVAL;
	if (r->op != REQ_READ && !(n->flags & NODE_WRITABLE))
		return -EROFS;
	return 0;
}

/* Sends r, which is in, to the node itself. */
static inline void enter(struct node *n, struct node_slot *s, struct req *r, void (*done)(struct req *r, int ret))
{
	struct hop *h = &r->hops[r->depth++];

	s->entered++;
	h->node = n;
	h->done = done;
	h->off = r->off;
	r->at = n;
	n->submit(n, r);
}

static void node_enter(struct node *n, struct node_slot *s, struct req *r)
{
	void (*done)(struct req *r, int ret) = entry_done;

	if (unlikely(n->wish) && !wish_apply(n, r)) {
		req_done(r, 0);
		return;
	}
	if (unlikely(n->policy) && !policy_enter(n, s, r))
		return;
	if ((n->flags & NODE_WRITETHROUGH) && r->op != REQ_READ && r->op != REQ_FLUSH)
		r->flags |= REQ_FUA;
	if (unlikely(r->flags & REQ_FUA) && r->op != REQ_FLUSH) {
		done = entry_stable_done;
		if (fua_becomes_flush(n, s) || r->op != REQ_WRITE) {
			r->flags &= ~REQ_FUA; /* the flush makes the data stable too: one sync, not two */
			done = entry_data_done;
		}
		s->nr_stable++;
	}
	enter(n, s, r, done);
}

static void admit(struct node *n, struct node_slot *s, struct req *r)
{
	if (unlikely(s->quiesced)) {
		r->at = n;
		TAILQ_INSERT_TAIL(&s->parked, r, parked);
		return;
	}
	node_enter(n, s, r);
}

/* It has waited since somebody looked at it, and the disk may be shorter now. */
void node_admitted(struct node *n, struct node_slot *s, struct req *r)
{
	int ret = entry_check(n, r);

	if (unlikely(ret < 0))
		req_done(r, ret);
	else
		admit(n, s, r);
}

/* All that there can be about a request at the door, one after the other. */
static __attribute__((noinline)) void submit_checked(struct node *n, struct node_slot *s, struct req *r)
{
	struct throttle *throttle;
	int ret = entry_check(n, r);

	if (unlikely(ret < 0)) {
		req_done(r, ret);
		return;
	}
	if (unlikely(!r->len) && r->op != REQ_FLUSH) {
		req_done(r, 0);
		return;
	}
	throttle = atomic_load_explicit(&n->throttle, memory_order_acquire);
	if (unlikely(throttle != NULL) && !throttle_admit(throttle, s, r))
		return;
	admit(n, s, r);
}

/* A read or write that nothing is to be done about: not empty, in bounds, allowed, and stable whenever it likes. */
static inline bool is_plain(const struct node *n, const struct req *r)
{
	uint64_t len = node_len(n);

	if (r->off >= len || r->len - 1 >= len - r->off || (r->flags & REQ_FUA) || n->wish || n->policy)
		return false;
	return r->op == REQ_READ ||
	       (r->op == REQ_WRITE && (n->flags & (NODE_WRITABLE | NODE_WRITETHROUGH)) == NODE_WRITABLE);
}

/* What most requests need is looked at here, without a call; for anything else there is submit_checked(). */
void node_submit(struct node *n, struct req *r)
{
	struct node_slot *s = node_slot(n, r->q);

	if (likely(is_plain(n, r)) && likely(!s->quiesced) &&
	    likely(!atomic_load_explicit(&n->throttle, memory_order_acquire)))
		enter(n, s, r, entry_done);
	else
		submit_checked(n, s, r);
}

void req_forward(struct req *r, struct node *child, uint64_t child_off, void (*done)(struct req *r, int ret))
{
	if (done) {
		struct hop *h = &r->hops[r->depth++];

		h->node = r->at;
		h->done = done;
		h->off = r->off;
	}
	r->at = child;
	r->off = child_off;
	child->submit(child, r);
}

/* ---- drain ---- */

struct drain {
	struct fiber *f;
	unsigned nr_pending;
};

struct drain_msg {
	struct msg m; /* first to the queue, then back */
	struct node_slot *s;
	struct drain *d;
};

static void drain_answered(struct msg *m)
{
	struct drain_msg *dm = container_of(m, struct drain_msg, m);

	if (!--dm->d->nr_pending)
		fiber_wake(dm->d->f);
}

static void drain_arrived(struct msg *m)
{
	struct drain_msg *dm = container_of(m, struct drain_msg, m);

	dm->s->quiesced = true;
	m->run = drain_answered;
	if (dm->s->entered)
		dm->s->drain_reply = m;
	else
		queue_post(dm->s->node->home, m);
}

static void drain_ended(struct msg *m)
{
	struct node_slot *s = container_of(m, struct node_slot, drain_end);
	struct req *r;

	s->quiesced = false;
	while (!s->quiesced && (r = TAILQ_FIRST(&s->parked))) {
		TAILQ_REMOVE(&s->parked, r, parked);
		node_admitted(s->node, s, r);
	}
	slot_put(s);
}

void node_drain_begin(struct fiber *f, struct node *n)
{
	struct drain d = { .f = f };
	struct drain_msg msgs[QUEUE_MAX];

	fiber_lock(f, &n->drain_mutex);
	if (atomic_fetch_add(&n->drained, 1))
		goto out;
	for (unsigned i = 0; i < QUEUE_MAX; i++) {
		struct node_slot *s = atomic_load(&n->slots[i]); /* pairs with node_attach() */

		if (!s)
			continue;
		msgs[i] = (struct drain_msg){ .m.run = drain_arrived, .s = s, .d = &d };
		d.nr_pending++;
		queue_post(s->q, &msgs[i].m);
	}
	while (d.nr_pending)
		fiber_wait(f);
out:
	fiber_unlock(&n->drain_mutex);
}

void node_drain_end(struct node *n)
{
	unsigned before = atomic_fetch_sub(&n->drained, 1);

	assert(before);
	if (before > 1)
		return;
	for (unsigned i = 0; i < QUEUE_MAX; i++) {
		struct node_slot *s = atomic_load(&n->slots[i]); /* pairs with node_attach() */

		if (!s)
			continue;
		/* Nobody waits for an answer: the slot may be detached before its queue hears of it, or while it lets in what has waited. */
		atomic_fetch_add(&s->refs, 1);
		s->drain_end.run = drain_ended;
		queue_post(s->q, &s->drain_end);
	}
}

void node_change_begin(struct fiber *f, struct node *top)
{
	fiber_lock(f, &top->change_mutex);
	node_drain_begin(f, top);
	fiber_lock(f, &top->chain_mutex);
}

void node_change_end(struct node *top)
{
	fiber_unlock(&top->chain_mutex);
	node_drain_end(top);
	fiber_unlock(&top->change_mutex);
}

int node_chain_hold(struct fiber *f, void *top)
{
	fiber_lock(f, &((struct node *)top)->chain_mutex);
	return 0;
}

int node_chain_let_go(struct fiber *f, void *top)
{
	(void)f;
	fiber_unlock(&((struct node *)top)->chain_mutex);
	return 0;
}
