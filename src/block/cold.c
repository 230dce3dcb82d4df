/* SPDX-License-Identifier: MIT */
/*
 * block/cold.c - the cold path: a request visits a fiber of the home queue and comes back
 *
 * Assumes: the request's msg and job are unused while it is handled here.
 * Never:   completes a request on another queue than the one it was born on.
 */
#include "block/block.h"

/* The function to run travels in the hop above the request's stack: state of the next, unused hop. */
static void cold_set_fn(struct req *r, cold_fn *fn)
{
	r->hops[r->depth].state = (uintptr_t)fn;
}

static void cold_finish(struct req *r)
{
	int ret = r->ret;

	if (ret == COLD_RETRY) {
		r->flags |= REQ_REPAIRED;
		r->at->submit(r->at, r);
	} else {
		req_done(r, ret);
	}
}

static void cold_returned(struct msg *m)
{
	cold_finish(container_of(m, struct req, msg));
}

static void cold_run(struct fiber *f, struct fiber_job *job)
{
	struct req *r = container_of(job, struct req, job);
	cold_fn *fn = (cold_fn *)r->hops[r->depth].state;

	r->ret = fn(f, r->at, r);
	if (fiber_queue(f) == r->q) {
		cold_finish(r);
		return;
	}
	r->msg.run = cold_returned;
	queue_post(r->q, &r->msg);
}

static void cold_arrived(struct msg *m)
{
	struct req *r = container_of(m, struct req, msg);

	fiber_start(r->at->home, &r->job, r->at->level);
}

void cold_start(struct node *n, struct req *r, cold_fn *fn, bool home)
{
	assert(r->depth < REQ_HOPS);
	cold_set_fn(r, fn);
	r->job.run = cold_run;
	if (!home || r->q == n->home) {
		fiber_start(r->q, &r->job, n->level);
		return;
	}
	r->msg.run = cold_arrived;
	queue_post(n->home, &r->msg);
}
