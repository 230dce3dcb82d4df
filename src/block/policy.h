/* SPDX-License-Identifier: MIT */
/*
 * block/policy.h - what becomes of a write or flush that fails: reported, or kept until somebody has seen to the cause
 *
 *   RUNNING ──a write, zeroing or flush fails, and the policy is for it──▶ STOPPED ──resume, or failing──▶ RUNNING
 *
 * STOPPED: what failed and what comes later (reads excepted) waits at the door of the disk, and is sent again by resume.
 * It does not count as being under way: drain does not wait for it.
 */
#ifndef VARVE_BLOCK_POLICY_H
#define VARVE_BLOCK_POLICY_H

#include "block/node.h"

enum werror { WERROR_REPORT, WERROR_STOP, WERROR_ENOSPC };
#define WERROR_WORDS "report|stop|enospc" /* in that order */

struct policy;

/* Takes option werror=report|stop|enospc. */
int policy_options(struct opts *o, enum werror *ret, struct varve_error *err);
/* Home queue, before any request; report needs none. */
int policy_open(struct node *n, enum werror werror, struct varve_error *err);

struct policy_state {
	enum werror werror;
	int error; /* negative errno that stopped it; 0: running */
	uint64_t nr_parked, parked_bytes;
};

const char *werror_name(enum werror werror);

/* Any thread, n not being closed. False: the node has none, which is the same as report. */
bool policy_get_state(const struct node *n, struct policy_state *ret);
/* Any thread. Sends everything that waits once more. 0, or the error that had stopped it. */
int policy_resume(struct node *n);
/* Between these two what fails is reported, and what waits is answered with the error that stopped it. Nests. Any thread. */
void policy_failing_begin(struct node *n);
void policy_failing_end(struct node *n);

#endif
