/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/ring.c - emptying a ring, completing its requests, starting and stopping
 *
 * Owns:    see ring.h.
 * Assumes: see ring.h.
 * Never:   allocates, locks or waits while the ring runs; one call of the guest per turn at most.
 */
#include "export/vhost-user-blk/ring.h"

#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/uio.h>
#include <unistd.h>

#include "block/throttle.h"

#define STOP_REVOKED 1 /* r->ret */

/*
 * While the queue spins there are processors enough. The driver is shown the first request that is done in a turn at once, then so
 * many at a time: it works on them while we do the others. If it is on its way to sleep it turns back, or is woken meanwhile; when
 * we are through, there are new requests already, and neither side sleeps at all. Where both share a processor, each call would
 * only take us from our work, so everything is shown at the end of the turn.
 */
#define SHOW_FIRST 1u
#define SHOW_NEXT 2u

/* How often a ring without a kick descriptor is looked at: in use, and after a while without requests. */
#define POLL_MIN_NS 20000ull
#define POLL_MAX_NS 1000000ull

/* New limits are noticed that soon by a ring that waits for the old ones. */
#define HOLD_LOOK_NS 100000000ull

/*
 * New kicks are waited for, and the count that they leave in the descriptor is read only here: a front end that finds one
 * there after the ring was stopped may take it for a kick that nobody has seen.
 */
static void stop_watching(struct ring *r)
{
	uint64_t count;
	struct iovec iov = { &count, sizeof(count) };

	if (r->watching) {
		watch_del(r->q, &r->kick);
		(void)!preadv2(r->kick_fd, &iov, 1, -1, RWF_NOWAIT); /* somebody else may have read it: so be it */
	}
	r->watching = false;
	timer_cancel(r->q, &r->poll);
	timer_cancel(r->q, &r->hold);
}

static __attribute__((cold)) void ring_break(struct ring *r)
{
	__atomic_store_n(&r->broken, true, __ATOMIC_RELAXED); /* read for the statistics */
	__atomic_store_n(&r->nr_breaks, r->nr_breaks + 1, __ATOMIC_RELAXED);
	stop_watching(r);
	complain_about(r->complaints, r->q, "queue %u is broken: %s; it waits for the front end to reset it", r->index,
		       r->vr.fault);
	notify(&r->notifier, r->err_fd);
}

/* A page of the guest's memory is gone (memguard.h): nothing that is read there means anything. */
static bool memory_lost(struct ring *r)
{
	if (likely(!atomic_load_explicit(&r->vr.mem->lost, memory_order_relaxed)))
		return false;
	if (!r->broken) {
		vring_fault(&r->vr, "the front end has cut off memory that it shares (SIGBUS)");
		ring_break(r);
	}
	return true;
}

/* ---- requests ---- */

static inline int begin_request(struct ring *r, struct blk_slot *s, const struct vring_chain *chain)
{
	const char *wrong;

	if (r->in_order)
		r->fifo[(r->fifo_head + r->nr_busy) % r->nr_slots] = s->index;
	s->busy = true;
	s->finished = false;
	r->nr_busy++;
	wrong = blk_begin(s, chain);
	if (unlikely(wrong)) {
		s->busy = false;
		r->nr_busy--;
		return vring_fault(&r->vr, "%s", wrong);
	}
	return 0;
}

static int take_request(struct ring *r, uint16_t slot)
{
	struct blk_slot *s = &r->slots[slot];
	int ret;

	if (unlikely(s->busy))
		return vring_fault(&r->vr, "descriptor %u is offered again while its request is in flight",
				   slot);
	/* Two of them: that of a split ring never leaves the registers. */
	if (r->vr.packed) {
		struct vring_chain chain;

		ret = packed_chain(&r->vr, slot, s->iov, BLK_IOV_MAX, &chain);
		return unlikely(ret < 0) ? ret : begin_request(r, s, &chain);
	} else {
		struct vring_chain chain;

		ret = split_chain(&r->vr, slot, s->iov, BLK_IOV_MAX, &chain);
		return unlikely(ret < 0) ? ret : begin_request(r, s, &chain);
	}
}

/* Before any other: what a process before us had taken and not given back. */
static __attribute__((noinline, cold)) void redo_requests(struct ring *r)
{
	for (unsigned i = 0; i < r->vr.track.nr_redo; i++) {
		struct blk_slot *s = &r->slots[r->vr.track.redo[i]];
		struct vring_chain chain = { 0 };
		int ret = vring_redo(&r->vr, s->index, s->iov, BLK_IOV_MAX, &chain);

		if (ret == 0)
			ret = begin_request(r, s, &chain);
		if (ret < 0) {
			ring_break(r);
			return;
		}
	}
}

/*
 * Takes all requests that are there, but no more than the ring has places: a guest that adds them as fast as
 * they are completed shares the thread with others. True: there were some.
 */
static bool take_requests(struct ring *r)
{
	bool some = false;

	if (r->broken || r->stopping || r->held || r->more_posted || memory_lost(r))
		return false;
	r->announced = false;
	r->eager = queue_spins(r->q);
	vring_kick_off(&r->vr);
	for (unsigned i = 0; i < r->vr.num; i++) {
		uint16_t slot;
		int ret = vring_next(&r->vr, &slot);

		if (ret == 0 && (r->polled || (queue_spins(r->q) && !r->resting) || !vring_kick_on(&r->vr))) {
			r->announced = !queue_spins(r->q) || r->resting;
			memory_lost(r); /* or else it only looks empty */
			return some;
		}
		if (ret > 0) {
			some = true;
			ret = take_request(r, slot);
		}
		if (memory_lost(r))
			return some;
		if (unlikely(ret < 0)) {
			ring_break(r);
			return some;
		}
	}
	r->more_posted = true;
	queue_later(r->q, &r->more);
	return true;
}

/* ---- after a stop that hurried requests past the limits ---- */

/*
 * While a ring stops its requests need not wait for their turn. A guest that stops and starts its rings all the time would
 * have no limits, if a ring that starts took requests before those of the last time would have had their turn. Others that
 * run have no more in flight than fits in them.
 */
static void look_at_limits(struct ring *r)
{
	uint64_t now = queue_now(r->q), at = throttle_paid_at(r->ctx.disk->top);

	r->held = at > now;
	if (r->held)
		timer_set(r->q, &r->hold, MIN(at, now + HOLD_LOOK_NS));
}

static void hold_fired(struct timer *t)
{
	struct ring *r = container_of(t, struct ring, hold);

	look_at_limits(r);
	take_requests(r);
}

/* ---- a ring without a kick descriptor ---- */

/* Looks again soon while requests come, and ever more rarely while none does. */
static void poll_fired(struct timer *t)
{
	struct ring *r = container_of(t, struct ring, poll);

	r->poll_ns = take_requests(r) ? POLL_MIN_NS : MIN(2 * r->poll_ns, POLL_MAX_NS);
	if (!r->broken)
		timer_set(r->q, &r->poll, queue_now(r->q) + r->poll_ns);
}

/* ---- on a queue that spins ---- */

static bool ring_look(struct poller *p)
{
	return take_requests(container_of(p, struct ring, poller));
}

static bool ring_rest(struct poller *p)
{
	struct ring *r = container_of(p, struct ring, poller);
	bool some;

	if (r->announced)
		return false;
	r->resting = true;
	some = take_requests(r);
	r->resting = false;
	return some;
}

static void ring_kicked(struct watch *w, uint32_t events)
{
	struct ring *r = container_of(w, struct ring, kick);

	if (unlikely(!(events & EPOLLIN))) {
		vring_fault(&r->vr, "its kick descriptor has failed (events 0x%x)", events);
		ring_break(r);
		return;
	}
	blk_stat_add(&r->nr_kicks, 1);
	take_requests(r);
}

/* A packed ring shows what is done in its descriptors, and the address that the log is told is only that of its events. */
static __attribute__((noinline, cold)) void log_used(const struct ring *r)
{
	memlog_mark(r->ctx.log, r->log_addr, vring_used_len(r->num, r->vr.packed));
	if (r->vr.packed)
		memlog_mark_host(r->ctx.log, r->ctx.mem, r->vr.desc, 16 * (uint64_t)r->num);
}

/* Everything that was completed becomes visible, with one call if the guest wants one. */
static void show(struct ring *r)
{
	bool call = vring_publish(&r->vr);

	r->dirty = false;
	queue_progress(r->q, r->nr_done);
	r->nr_done = 0;
	memory_lost(r);
	if (unlikely(r->ctx.log != NULL) && r->log_used)
		log_used(r);
	if (call) {
		blk_stat_add(&r->nr_calls, 1);
		notify(&r->notifier, r->call_fd);
	}
}

/* Once a turn. */
static bool ring_hook(struct hook *h)
{
	struct ring *r = container_of(h, struct ring, hook);

	if (r->dirty)
		show(r);
	r->show_at = SHOW_FIRST;
	return false;
}

/* ---- orders of the control thread ---- */

static void order_done(struct ring *r, int ret)
{
	r->ret = ret;
	queue_post(r->control, &r->answer_msg);
}

/* The last step of STOP, when nothing is left that would come back to this ring. */
static void stop_if_idle(struct ring *r)
{
	if (r->nr_busy || r->more_posted)
		return;
	gmem_forget(r->vr.mem, r->q);
	ring_hook(&r->hook);
	hook_del(r->q, &r->hook);
	if (queue_polls(r->q))
		poller_del(r->q, &r->poller);
	r->stopping = false;
	throttle_hurry_end(r->ctx.disk->top, r->q);
	r->base = vring_base(&r->vr);
	r->has_base = true;
	order_done(r, 0);
}

static void ring_more(struct msg *m)
{
	struct ring *r = container_of(m, struct ring, more);

	r->more_posted = false;
	if (r->stopping)
		stop_if_idle(r);
	else
		take_requests(r);
}

static void push(struct ring *r, struct blk_slot *s)
{
	vring_push(&r->vr, s->index, s->written);
	s->busy = false;
	r->nr_busy--;
	r->nr_done++;
	r->dirty = true;
}

/* IN_ORDER: gives back the oldest ones, as far as they are finished. */
static void push_in_order(struct ring *r)
{
	while (r->nr_busy) {
		struct blk_slot *s = &r->slots[r->fifo[r->fifo_head]];

		if (!s->finished)
			return;
		r->fifo_head = (r->fifo_head + 1) % r->nr_slots;
		push(r, s);
	}
}

void blk_finished(struct blk_slot *s, uint32_t written)
{
	struct ring *r = container_of(s->ctx, struct ring, ctx);

	s->written = written;
	if (unlikely(r->in_order)) {
		s->finished = true;
		push_in_order(r);
	} else {
		push(r, s);
	}
	if (r->eager && r->nr_done >= r->show_at) {
		r->show_at = SHOW_NEXT;
		show(r);
	}
	if (unlikely(r->stopping))
		stop_if_idle(r);
}

static int start_watching(struct ring *r)
{
	int ret;

	r->kick = (struct watch){ .fd = r->kick_fd, .events = EPOLLIN | EPOLLET, .ready = ring_kicked };
	if (r->kick_fd >= 0) {
		ret = watch_add(r->q, &r->kick);
		if (ret < 0)
			return ret;
		r->watching = true;
	} else {
		r->poll_ns = POLL_MIN_NS;
		timer_set(r->q, &r->poll, queue_now(r->q));
	}
	return 0;
}

static int start(struct ring *r)
{
	int ret = start_watching(r);

	if (ret < 0)
		return ret;
	gmem_announce(r->vr.mem, r->q);
	r->hook.run = ring_hook;
	hook_add(r->q, &r->hook);
	r->poller.look = ring_look;
	r->poller.rest = ring_rest;
	if (queue_polls(r->q))
		poller_add(r->q, &r->poller);
	return 0;
}

static void carry_out(struct msg *m)
{
	struct ring *r = container_of(m, struct ring, order_msg);
	int ret = 0;

	switch (r->order) {
	case RING_START:
		ret = start(r);
		order_done(r, ret);
		if (ret < 0)
			return;
		/* A process before us may have died between showing what is done and calling the driver. */
		if (r->vr.track.resumed)
			notify(&r->notifier, r->call_fd);
		redo_requests(r);
		look_at_limits(r);
		/* What the guest offered before there was anybody to be kicked. */
		take_requests(r);
		return;
	case RING_STOP:
		stop_watching(r);
		throttle_hurry_begin(r->ctx.disk->top, r->q); /* what ends in here does not end the stop as well */
		r->stopping = true;
		stop_if_idle(r);
		return;
	case RING_CALL:
		r->old_fd = r->call_fd;
		r->call_fd = r->new_fd;
		/* A call that went to the old one may have been missed: the guest copes with one too many. */
		notify(&r->notifier, r->call_fd);
		break;
	case RING_ERR:
		r->old_fd = r->err_fd;
		r->err_fd = r->new_fd;
		if (r->broken)
			notify(&r->notifier, r->err_fd);
		break;
	}
	order_done(r, 0);
}

static void go_on(struct msg *m)
{
	struct ring *r = container_of(m, struct ring, go_on_msg);

	atomic_store(&r->go_on_sent, false);
	/* Its answer is on its way, or it would have nothing to go on with. */
	if (!r->stopping || r->broken || start_watching(r) < 0)
		return;
	r->stopping = false;
	throttle_hurry_end(r->ctx.disk->top, r->q);
	look_at_limits(r);
	order_done(r, STOP_REVOKED);
	take_requests(r); /* kicks that came meanwhile */
}

/* ---- control thread ---- */

static void close_fd(int fd)
{
	if (fd >= 0)
		close(fd);
}

static void give_order(struct ring *r, enum ring_order order)
{
	r->order = order;
	queue_post(r->q, &r->order_msg);
}

static void order_answered(struct msg *m)
{
	struct ring *r = container_of(m, struct ring, answer_msg);

	switch (r->order) {
	case RING_START:
		r->on = r->ret == 0;
		break;
	case RING_STOP:
		r->on = r->ret == STOP_REVOKED;
		break;
	case RING_CALL:
	case RING_ERR:
		close_fd(r->old_fd);
		break;
	}
	r->answered(r);
}

void ring_init(struct ring *r, unsigned index, struct complaints *complaints, struct queue *q, struct queue *control,
	       const struct blk_disk *disk, void (*answered)(struct ring *r), void *owner)
{
	*r = (struct ring){
		.index = index,
		.complaints = complaints,
		.q = q,
		.control = control,
		.answered = answered,
		.owner = owner,
		.kick_fd = -1,
		.call_fd = -1,
		.err_fd = -1,
		.ctx = { .disk = disk, .q = q },
		.more = { .run = ring_more },
		.poll = { .fire = poll_fired },
		.hold = { .fire = hold_fired },
		.order_msg = { .run = carry_out },
		.answer_msg = { .run = order_answered },
		.go_on_msg = { .run = go_on },
	};
	notifier_init(&r->notifier);
}

void ring_reset(struct ring *r)
{
	assert(!r->on);
	notifier_free(&r->notifier);
	close_fd(r->kick_fd);
	close_fd(r->call_fd);
	close_fd(r->err_fd);
	r->kick_fd = r->call_fd = r->err_fd = -1;
	free(r->slots);
	r->slots = NULL;
	r->nr_slots = 0;
	r->num = 0;
	r->base = 0;
	r->nr_breaks = 0;
	r->enabled = r->has_addr = r->has_base = r->polled = r->broken = false;
}

static int make_slots(struct ring *r, struct varve_error *err)
{
	if (r->nr_slots == r->num)
		return 0;
	free(r->slots);
	r->nr_slots = 0;
	r->slots = calloc(r->num, sizeof(*r->slots));
	if (!r->slots)
		return varve_error_errno(err, -ENOMEM, "queue %u: %u request slots", r->index, r->num);
	r->nr_slots = r->num;
	for (unsigned i = 0; i < r->num; i++) {
		r->slots[i].ctx = &r->ctx;
		r->slots[i].index = (uint16_t)i;
	}
	return 0;
}

static int open_ring(struct ring *r, const struct gmem *mem, uint64_t features,
		     const struct inflight *inflight, struct varve_error *err)
{
	struct vring_opts o = {
		.num = r->num,
		.packed = features >> BLK_F_RING_PACKED & 1,
		.indirect = features >> BLK_F_INDIRECT_DESC & 1,
		.event_idx = features >> BLK_F_EVENT_IDX & 1,
		.inflight = inflight_region(inflight, r->index),
	};

	o.base = r->has_base ? r->base : o.packed ? VRING_PACKED_BEGIN : 0;
	if (!o.packed && !is_pow2(o.num))
		return varve_error_set(err, -EINVAL, "a split ring of %u, which is not a power of two",
				       o.num);
	if (o.inflight && o.num > inflight->queue_size)
		return varve_error_set(err, -EINVAL, "the in-flight area is for rings of %u, this one has %u",
				       inflight->queue_size, o.num);
	return vring_open(&r->vr, mem, &r->addr, &o, err);
}

int ring_start(struct ring *r, const struct gmem *mem, uint64_t features, const struct inflight *inflight,
	       struct varve_error *err)
{
	int ret;

	assert(!r->on && r->num && r->has_addr && (r->kick_fd >= 0 || r->polled));
	ret = open_ring(r, mem, features, inflight, err);
	if (ret < 0)
		return varve_error_prefix(err, ret, "queue %u: ", r->index);
	ret = make_slots(r, err);
	if (ret < 0)
		return ret;
	r->in_order = features >> BLK_F_IN_ORDER & 1;
	r->announced = false;
	r->show_at = SHOW_FIRST;
	r->fifo_head = 0;
	r->ctx.features = features;
	r->ctx.mem = mem;
	r->ctx.write_flags = blk_write_flags(&r->ctx);
	r->on = true;
	give_order(r, RING_START);
	return 0;
}

void ring_stop(struct ring *r)
{
	assert(r->on);
	give_order(r, RING_STOP);
}

void ring_go_on(struct ring *r)
{
	if (r->on && !atomic_exchange(&r->go_on_sent, true))
		queue_post(r->q, &r->go_on_msg);
}

bool ring_set_call(struct ring *r, int fd)
{
	if (r->on) {
		r->new_fd = fd;
		give_order(r, RING_CALL);
		return true;
	}
	close_fd(r->call_fd);
	r->call_fd = fd;
	return false;
}

bool ring_set_err(struct ring *r, int fd)
{
	if (r->on) {
		r->new_fd = fd;
		give_order(r, RING_ERR);
		return true;
	}
	close_fd(r->err_fd);
	r->err_fd = fd;
	return false;
}

void ring_set_kick(struct ring *r, int fd, bool polled)
{
	assert(!r->on);
	close_fd(r->kick_fd);
	r->kick_fd = fd;
	r->polled = polled;
}
