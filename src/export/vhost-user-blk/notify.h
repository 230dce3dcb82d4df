/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/notify.h - telling the other side something through an eventfd that is also its own
 *
 * Owns:    nothing but what the careful way needs.
 * Assumes: one thread notifies; the control thread looks after it every now and then.
 * Never:   lets a front end hold our thread for longer than between two such looks, and never twice.
 *
 * A write to an eventfd waits when the counter is full and the descriptor is in blocking mode. Both can be
 * brought about by the front end, at any moment, so that no check before the write is worth anything. Nobody
 * does so by accident: so the plain write stays, until the control thread finds it waiting on a full counter.
 * It then empties the counter, which lets the writer go, and from then on that front end's disk is notified
 * in the careful way: by an asynchronous operation that ends at once, and whose end the kernel signals on the
 * eventfd, for which it never waits. That costs three times as much.
 */
#ifndef VARVE_VUBLK_NOTIFY_H
#define VARVE_VUBLK_NOTIFY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* Between two looks of the control thread. */
#define NOTIFY_LOOK_NS 100000000ull

struct notifier {
	_Atomic bool careful; /* set by the control thread */
	_Atomic int fd;	      /* being written to; -1: none */
	_Atomic uint32_t nr;  /* writes begun */
	uint32_t seen;	      /* control thread: nr when it looked last */
	unsigned long aio;    /* the careful way; 0: not made yet */
	int null_fd;
};

void notifier_init(struct notifier *n);
void notifier_free(struct notifier *n);

/* fd: an eventfd, or -1. A counter that is full is signalled all the same; other failures are the front end's
 * loss. */
void notify(struct notifier *n, int fd);

/* Control thread: true if the notifier was found waiting, which it does no more. */
bool notifier_rescue(struct notifier *n);

#endif
