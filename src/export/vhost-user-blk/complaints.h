/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/complaints.h - what the log says about front ends and their guests, who do not get to fill it
 *
 * For each disk there are COMPLAINTS_AT_ONCE lines, and one more in each COMPLAINTS_NS. Further ones are counted, and the
 * number is told when there may be a line again.
 *
 * Owns:    the count, and the timer that tells it.
 * Assumes: the disk's control queue runs complaints_look(), _end() and the timer.
 * Never:   waits, or locks: rings complain, too.
 */
#ifndef VARVE_VUBLK_COMPLAINTS_H
#define VARVE_VUBLK_COMPLAINTS_H

#include "aio/queue.h"

#define COMPLAINTS_AT_ONCE 20u
#define COMPLAINTS_NS 30000000000ull

struct complaints {
	const char *name; /* of the export, before each line; set once */
	struct queue *control;
	_Atomic uint64_t paid_until_ns; /* the lines so far are used up then */
	_Atomic unsigned nr_left_out;
	struct timer tell; /* control thread */
	bool telling;
};

void complaints_init(struct complaints *c, const char *name, struct queue *control);

/* A warning. q: the one whose thread this is. */
void complain_about(struct complaints *c, const struct queue *q, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Control thread, now and then: sees to it that what was left out is told. */
void complaints_look(struct complaints *c);

/* Control thread; nobody complains any more. */
void complaints_end(struct complaints *c);

#endif
