/* SPDX-License-Identifier: MIT */
/*
 * aio/worker.h - the process-wide pool of threads for blocking calls
 *
 * Grows on demand to WORKER_MAX threads, shrinks when idle for WORKER_IDLE_NS. Jobs run in order of arrival.
 * Stacks are small; signals are blocked in the workers.
 */
#ifndef VARVE_AIO_WORKER_H
#define VARVE_AIO_WORKER_H

#include "aio/queue.h"

#define WORKER_MAX 64
#define WORKER_IDLE_NS 10000000000ull

struct work {
	struct work *next;
	void (*run)(struct work *w); /* on a worker thread; must not touch queue-local state */
	struct queue *q;
	struct msg done; /* posted to q after run(); done.run is set by the caller */
};

/* Any thread. */
void worker_submit(struct work *w);

/* Any thread. A list of nr works, linked by next; *tail is the last one's next, NULL. One lock for all of
 * them. */
void worker_submit_all(struct work *head, struct work **tail, unsigned nr);

#endif
