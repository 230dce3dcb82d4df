/* SPDX-License-Identifier: MIT */
/*
 * filter/filter.h - the filters, for the driver list and for tests
 */
#ifndef VARVE_FILTER_FILTER_H
#define VARVE_FILTER_FILTER_H

#include "block/node.h"

extern const struct driver driver_blkdebug, driver_fault, driver_lockstep, driver_write_log;

/* A write may have made the file longer: so is the filter n above it. Any queue. */
static inline void filter_grown(struct node *n)
{
	uint64_t len = node_len(n), file_len = node_len(n->file);

	while (file_len > len && !atomic_compare_exchange_weak(&n->len, &len, file_len))
		;
}

/* Which requests fail, and how. Zero-initialise; op and error must be set. */
struct fault_rule {
	enum req_op op;
	int error;	   /* what the request ends with: a negative errno */
	bool once;	   /* the first time only */
	uint64_t after;	   /* this many matching requests go through first */
	uint64_t off, len; /* only requests that touch this range; len 0: all (a flush always matches) */
};

#define FAULT_RULES_MAX 64

/* Adds a rule to an open fault node. The first rule that matches a request decides. Any thread. */
int fault_inject(struct node *n, const struct fault_rule *rule);

/* Removes all rules: from now on everything goes through. Any thread. */
void fault_clear(struct node *n);

/* Requests that were failed so far. Any thread. */
uint64_t fault_count(struct node *n);

#endif
