/* SPDX-License-Identifier: MIT */
/*
 * filter/blkdebug.h - what the files of the filter blkdebug share
 *
 *   blkdebug.c        the node: requests, events, what is held at break points
 *   blkdebug_rules.c  rules: from options and rule files; what an event changes, which request fails
 */
#ifndef VARVE_FILTER_BLKDEBUG_H
#define VARVE_FILTER_BLKDEBUG_H

#include "block/event.h"
#include "block/node.h"

#define BLKDEBUG_RULES_MAX 256
#define BLKDEBUG_IOTYPE_WORDS "read|write|flush|discard|write-zeroes" /* in the order of enum req_op */
#define BLKDEBUG_FILE_MAX KiB(64) /* bytes of a rule file */

struct blkdebug_rule {
	enum event event;
	unsigned state; /* matches in this state only; 0: in any */
	bool sets_state;
	unsigned new_state;
	/* of a rule that injects an error */
	unsigned ops;	/* one bit for each enum req_op */
	int error;	/* a negative errno */
	int64_t sector; /* -1: any */
	bool once, immediately;
	bool gone; /* once, and it was */
};

/* Callers keep others away. */
struct blkdebug_rules {
	unsigned nr, nr_active;
	unsigned state;				   /* 1 at the beginning */
	struct blkdebug_rule *rule;		   /* in the order they were given */
	unsigned short active[BLKDEBUG_RULES_MAX]; /* rules that wait for a request to fail */
};

/* Takes inject-error.*, set-state.* and config from o. Undoes nothing: blkdebug_rules_free() in any case. */
int blkdebug_rules_open(struct blkdebug_rules *rules, struct opts *o, struct varve_error *err);
void blkdebug_rules_free(struct blkdebug_rules *rules);

/*
 * All rules of the event are judged by the state that was. Those that inject take the place of what was
 * active; if there are none, it stays.
 */
void blkdebug_rules_event(struct blkdebug_rules *rules, enum event event);
/* The error that r ends with, 0: none. The first active rule that fits. */
int blkdebug_rules_judge(struct blkdebug_rules *rules, const struct req *r, bool *ret_immediately);

#endif
