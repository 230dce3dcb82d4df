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

#include "base/log.h"

/* The log is the operator's; a guest that breaks its rings all day does not get to fill it. */
#define BREAKS_LOGGED 20

/* An eventfd whose counter is full is signalled all the same; other failures are the front end's loss. */
static void signal_fd(int fd)
{
	const uint64_t one = 1;

	if (fd >= 0 && write(fd, &one, sizeof(one)) < 0)
		return;
}

static void stop_watching(struct ring *r)
{
	if (r->watching)
		watch_del(r->q, &r->kick);
	r->watching = false;
}

static __attribute__((cold)) void ring_break(struct ring *r)
{
	r->broken = true;
	stop_watching(r);
	if (r->nr_breaks++ < BREAKS_LOGGED)
		log_warning("%s: queue %u is broken: %s; it waits for the front end to reset it%s", r->name,
			    r->index, r->vr.fault,
			    r->nr_breaks == BREAKS_LOGGED ? " (the last time in this session that is logged)"
							  : "");
	signal_fd(r->err_fd);
}

/* ---- requests ---- */

static int take_request(struct ring *r, uint16_t head)
{
	struct blk_slot *s = &r->slots[head];
	struct vring_chain chain;
	const char *wrong;
	int ret;

	if (unlikely(s->busy))
		return vring_fault(&r->vr, "descriptor %u is offered again while its request is in flight",
				   head);
	ret = vring_chain(&r->vr, head, s->iov, BLK_IOV_MAX, &chain);
	if (unlikely(ret < 0))
		return ret;
	s->busy = true;
	r->nr_busy++;
	wrong = blk_begin(s, &chain);
	if (unlikely(wrong)) {
		s->busy = false;
		r->nr_busy--;
		return vring_fault(&r->vr, "%s", wrong);
	}
	return 0;
}

/*
 * Takes all requests that are there, but no more than the ring has places: a guest that adds them as fast as
 * they are completed shares the thread with others.
 */
static void take_requests(struct ring *r)
{
	if (r->broken || r->stopping || r->more_posted)
		return;
	vring_kick_off(&r->vr);
	for (unsigned i = 0; i < r->vr.num; i++) {
		uint16_t head;
		int ret = vring_next(&r->vr, &head);

		if (ret == 0 && !vring_kick_on(&r->vr))
			return;
		if (ret > 0)
			ret = take_request(r, head);
		if (unlikely(ret < 0)) {
			ring_break(r);
			return;
		}
	}
	r->more_posted = true;
	queue_later(r->q, &r->more);
}

static void ring_kicked(struct watch *w, uint32_t events)
{
	struct ring *r = container_of(w, struct ring, kick);
	uint64_t count;
	struct iovec iov = { &count, sizeof(count) };
	ssize_t n = preadv2(r->kick_fd, &iov, 1, -1, RWF_NOWAIT);

	/* Somebody else may have read it in between; what must not be is a descriptor that stays readable. */
	if (unlikely(n != sizeof(count) && !(n < 0 && errno == EAGAIN))) {
		vring_fault(&r->vr, "its kick descriptor cannot be read (events 0x%x)", events);
		ring_break(r);
		return;
	}
	take_requests(r);
}

/* Once a turn: everything that was completed becomes visible, with one call if the guest wants one. */
static bool ring_hook(struct hook *h)
{
	struct ring *r = container_of(h, struct ring, hook);

	if (r->dirty) {
		r->dirty = false;
		if (vring_publish(&r->vr))
			signal_fd(r->call_fd);
	}
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
	r->stopping = false;
	r->base = r->vr.next_avail;
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

void blk_finished(struct blk_slot *s, uint32_t written)
{
	struct ring *r = container_of(s->ctx, struct ring, ctx);

	vring_push(&r->vr, s->head, written);
	s->busy = false;
	r->nr_busy--;
	r->dirty = true;
	if (unlikely(r->stopping))
		stop_if_idle(r);
}

static int start(struct ring *r)
{
	int ret;

	r->kick = (struct watch){ .fd = r->kick_fd, .events = EPOLLIN, .ready = ring_kicked };
	ret = watch_add(r->q, &r->kick);
	if (ret < 0)
		return ret;
	r->watching = true;
	gmem_announce(r->vr.mem, r->q);
	r->hook.run = ring_hook;
	hook_add(r->q, &r->hook);
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
		/* What the guest offered before there was anybody to be kicked. */
		if (ret == 0)
			take_requests(r);
		return;
	case RING_STOP:
		r->stopping = true;
		stop_watching(r);
		stop_if_idle(r);
		return;
	case RING_CALL:
		r->old_fd = r->call_fd;
		r->call_fd = r->new_fd;
		/* A call that went to the old one may have been missed: the guest copes with one too many. */
		signal_fd(r->call_fd);
		break;
	case RING_ERR:
		r->old_fd = r->err_fd;
		r->err_fd = r->new_fd;
		if (r->broken)
			signal_fd(r->err_fd);
		break;
	}
	order_done(r, 0);
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
		r->on = false;
		break;
	case RING_CALL:
	case RING_ERR:
		close_fd(r->old_fd);
		break;
	}
	r->answered(r);
}

void ring_init(struct ring *r, unsigned index, const char *name, struct queue *q, struct queue *control,
	       const struct blk_disk *disk, void (*answered)(struct ring *r), void *owner)
{
	*r = (struct ring){
		.index = index,
		.name = name,
		.q = q,
		.control = control,
		.answered = answered,
		.owner = owner,
		.kick_fd = -1,
		.call_fd = -1,
		.err_fd = -1,
		.ctx = { .disk = disk, .q = q },
		.more = { .run = ring_more },
		.order_msg = { .run = carry_out },
		.answer_msg = { .run = order_answered },
	};
}

void ring_reset(struct ring *r)
{
	assert(!r->on);
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
	r->enabled = r->has_addr = r->broken = false;
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
		r->slots[i].head = (uint16_t)i;
	}
	return 0;
}

int ring_start(struct ring *r, const struct gmem *mem, uint64_t features, struct varve_error *err)
{
	int ret;

	assert(!r->on && r->num && r->has_addr && r->kick_fd >= 0);
	ret = vring_open(&r->vr, mem, &r->addr, r->num, r->base, features >> BLK_F_INDIRECT_DESC & 1,
			 features >> BLK_F_EVENT_IDX & 1, err);
	if (ret < 0)
		return varve_error_prefix(err, ret, "queue %u: ", r->index);
	ret = make_slots(r, err);
	if (ret < 0)
		return ret;
	r->ctx.features = features;
	/*
	 * A driver that cannot flush takes what is acknowledged for durable. Without FUA a power cut would
	 * take back writes that a file system has built upon, with nobody to notice.
	 */
	r->ctx.write_flags = features >> BLK_F_FLUSH & 1 ? 0 : REQ_FUA;
	r->on = true;
	give_order(r, RING_START);
	return 0;
}

void ring_stop(struct ring *r)
{
	assert(r->on);
	give_order(r, RING_STOP);
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

void ring_set_kick(struct ring *r, int fd)
{
	assert(!r->on);
	close_fd(r->kick_fd);
	r->kick_fd = fd;
}
