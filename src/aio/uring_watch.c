/* SPDX-License-Identifier: MIT */
/*
 * aio/uring_watch.c - descriptors that the ring watches itself
 *
 * A descriptor in the epoll set costs two system calls for each event: the wait in the ring ends because the epoll set is
 * ready, and epoll_wait() tells why. A multishot poll of the descriptor ends the wait and says so at once, and stays armed.
 * It tells of new events only, so it is for watches that ask for just that (EPOLLET).
 *
 * Owns:    which watches are in the ring. A place is free again when the last completion of its poll has come.
 * Assumes: the queue's thread.
 * Never:   calls ready() of a watch that was removed: completions find it by its place, not by its address. Asks again for
 *          a descriptor that cannot be watched: that is told by EPOLLERR, once.
 */
#include "config.h"

#ifdef HAVE_LIBURING

#include <errno.h>

#include "aio/uring.h"

static bool watch_in_ring(void *ctx, struct watch *w)
{
	struct uring *u = ctx;

	for (unsigned i = 0; i < URING_WATCHES; i++) {
		struct uring_watch *uw = &u->watches[i];

		if (uw->w || uw->armed)
			continue;
		*uw = (struct uring_watch){ .w = w };
		w->direct = i + 1;
		u->watches_changed = true;
		return true;
	}
	return false;
}

static void unwatch_in_ring(void *ctx, struct watch *w)
{
	struct uring *u = ctx;

	u->watches[w->direct - 1].w = NULL;
	u->watches_changed = true;
	w->direct = 0;
}

bool uring_watches_arm(struct uring *u)
{
	for (unsigned i = 0; i < URING_WATCHES; i++) {
		struct uring_watch *uw = &u->watches[i];
		bool cancel = !uw->w && uw->armed && !uw->cancelled;
		struct io_uring_sqe *sqe;

		if (!cancel && (!uw->w || uw->armed))
			continue;
		sqe = uring_sqe(u);
		if (!sqe)
			return false;
		if (cancel) {
			io_uring_prep_rw(IORING_OP_ASYNC_CANCEL, sqe, -1, NULL, 0, 0);
			sqe->addr = TAG_WATCH + i;
			sqe->user_data = TAG_CANCEL;
			uw->cancelled = true;
		} else {
			io_uring_prep_poll_multishot(sqe, uw->w->fd, uw->w->events & ~EPOLLET);
			sqe->user_data = TAG_WATCH + i;
			uw->armed = true;
		}
	}
	u->watches_changed = false;
	return true;
}

bool uring_watch_done(struct uring *u, unsigned i, int res, unsigned flags)
{
	struct uring_watch *uw = &u->watches[i];
	bool more = flags & IORING_CQE_F_MORE;

	if (!more) {
		uw->armed = uw->cancelled = false;
		/* The kernel had no memory for it, or for a completion: armed anew, which looks first. */
		u->watches_changed |= uw->w && (res >= 0 || res == -ENOMEM || res == -EAGAIN);
	}
	if (uw->w && res && res != -ENOMEM && res != -EAGAIN) {
		u->q->stats.fd_events++;
		uw->w->ready(uw->w, res < 0 ? EPOLLERR : (uint32_t)res);
	}
	return more;
}

void uring_watches_init(struct uring *u)
{
	/* Multishot polls came with 5.13, and so did this. */
	if (!u->waits || !(u->ring.features & IORING_FEAT_RSRC_TAGS))
		return;
	u->q->watch = watch_in_ring;
	u->q->unwatch = unwatch_in_ring;
}

void uring_watches_exit(struct uring *u)
{
	bool armed;

	if (u->q->wait_ctx != u || !u->q->watch)
		return;
	u->q->watch = NULL;
	for (unsigned i = 0; i < URING_WATCHES; i++) {
		struct watch *w = u->watches[i].w;
		int ret;

		if (!w)
			continue;
		unwatch_in_ring(u, w);
		ret = watch_add(u->q, w);
		assert(ret == 0 && "no memory to watch a descriptor");
		(void)ret;
	}
	u->q->unwatch = NULL;
	armed = uring_watches_arm(u); /* that is, cancelled; uring_disarm() waits for it */
	assert(armed);
	(void)armed;
}

#endif
