/* SPDX-License-Identifier: MIT */
/*
 * block/throttle.h - limits of a disk: requests and bytes a second, with bursts
 *
 * Options among those of the image, by the names that QEMU gives them: throttling.iops-total, iops-read,
 * iops-write, bps-total, bps-read, bps-write; each with -max (the rate in a burst) and -max-length (seconds
 * that a burst may last, 1 when not given); throttling.iops-size (a request counts as one for each so many
 * bytes begun). 0: no limit.
 *
 * All queues of the disk share the limits, and requests are let in by the order in which they came to the
 * disk. Flushes are free.
 */
#ifndef VARVE_BLOCK_THROTTLE_H
#define VARVE_BLOCK_THROTTLE_H

#include "block/node.h"

enum throttle_kind {
	THROTTLE_BPS_TOTAL,
	THROTTLE_BPS_READ,
	THROTTLE_BPS_WRITE,
	THROTTLE_IOPS_TOTAL,
	THROTTLE_IOPS_READ,
	THROTTLE_IOPS_WRITE,
	THROTTLE_KINDS
};

struct throttle_limit {
	uint64_t avg;	     /* a second; 0: no limit */
	uint64_t max;	     /* a second, in a burst; 0: as avg */
	uint64_t max_length; /* of a burst, seconds; > 0 */
};

struct throttle_config {
	struct throttle_limit limit[THROTTLE_KINDS];
	uint64_t iops_size; /* 0: a request is a request */
};

/* "bps-total", ... */
const char *throttle_kind_name(enum throttle_kind kind);

/* 0, or -EINVAL in words. */
int throttle_check(const struct throttle_config *c, struct varve_error *err);

/* The same options without "throttling.", and no other. */
int throttle_parse(struct opts *o, struct throttle_config *ret, struct varve_error *err);

/* Takes the options throttling.*; *ret_any: there was one, and *ret is set. */
int throttle_options(struct opts *o, struct throttle_config *ret, bool *ret_any, struct varve_error *err);

/* Any thread, one at a time for a node; the config has been checked. What waits is judged by the new limits.
 */
int throttle_set(struct node *n, const struct throttle_config *c, struct varve_error *err);

/* Any thread. All limits are 0 if there are none. */
void throttle_get(const struct node *n, struct throttle_config *ret);

/* Between these two nothing waits. What comes through is counted, so later requests pay for it. Nests. Any thread. */
void throttle_pass_begin(struct node *n);
void throttle_pass_end(struct node *n);

/*
 * The same for the requests of one queue, on its thread: somebody waits until his requests there are done. What waits
 * goes at once, before begin returns.
 */
void throttle_hurry_begin(struct node *n, struct queue *q);
void throttle_hurry_end(struct node *n, struct queue *q);

/*
 * Until when (queue_now()) whoever was hurried should bring nothing new; not later than now: he may. Without that, who is
 * hurried again and again would know no limits. New limits may end it earlier. Any thread.
 */
uint64_t throttle_paid_at(const struct node *n);

#endif
