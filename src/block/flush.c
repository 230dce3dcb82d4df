/* SPDX-License-Identifier: MIT */
/*
 * block/flush.c - flushes of one file that wait together
 *
 *     requests ──▶ waiting ──a round begins──▶ one flush of the file ──▶ all of the round are answered
 *
 * A flush promises what had been written when it was asked for. So a sync that begins now serves everybody who waits
 * now; who comes later waits for the next one, which begins when this one has ended. With n writers that each want
 * their write stable, about two rounds serve all of them, where each would cause a sync of its own.
 *
 * A round begins after the completions that are being handled now, so that those of one turn share it. Rounds
 * belong to a queue: no lock, and no line shared with other queues.
 *
 * Owns:    the waiting flushes of a slot.
 * Assumes: the queue's own thread. A request that waits here keeps its queue attached.
 * Never:   answers a request by a sync that began before the request came.
 */
#include "block/block.h"

static void round_done(struct req *r, int ret);

static void round_begin(struct msg *m)
{
	struct flush_rounds *fr = container_of(m, struct flush_rounds, begin);
	struct req *first;

	TAILQ_INIT(&fr->served);
	TAILQ_CONCAT(&fr->served, &fr->waiting, parked);
	first = TAILQ_FIRST(&fr->served);
	TAILQ_REMOVE(&fr->served, first, parked); /* it travels on; the others wait for it */
	fr->nr_rounds++;
	req_set_state(first, (uintptr_t)fr);
	req_forward(first, fr->node, 0, round_done);
}

static void round_done(struct req *r, int ret)
{
	struct flush_rounds *fr = (struct flush_rounds *)req_state(r);
	struct req_list served = TAILQ_HEAD_INITIALIZER(served);

	TAILQ_CONCAT(&served, &fr->served, parked);
	fr->busy = !TAILQ_EMPTY(&fr->waiting);
	if (fr->busy)
		queue_later(r->q, &fr->begin);
	/* From the first answer on the slot may be on its way out. */
	req_done(r, ret);
	while ((r = TAILQ_FIRST(&served))) {
		TAILQ_REMOVE(&served, r, parked);
		req_done(r, ret);
	}
}

void flush_rounds_init(struct flush_rounds *fr, struct node *n)
{
	fr->node = n;
	fr->begin.run = round_begin;
	TAILQ_INIT(&fr->waiting);
	TAILQ_INIT(&fr->served);
}

void flush_share(struct node *n, struct req *r)
{
	struct flush_rounds *fr = &node_slot(n, r->q)->flushes;

	TAILQ_INSERT_TAIL(&fr->waiting, r, parked);
	fr->nr_flushes++;
	if (fr->busy)
		return;
	fr->busy = true;
	queue_later(r->q, &fr->begin);
}
