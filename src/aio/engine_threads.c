/* SPDX-License-Identifier: MIT */
/*
 * aio/engine_threads.c - the engine "threads": ordinary system calls on the worker pool
 *
 * Owns:    the operations submitted in this turn and not yet handed to the workers.
 * Assumes: nothing of the kernel; this engine works everywhere.
 *
 * Completions travel as messages, so there is nothing to reap.
 */
#include <errno.h>
#include <stdlib.h>

#include "aio/loop.h"
#include "base/error.h"

static void op_run(struct work *w)
{
	struct aio_op *op = container_of(w, struct aio_op, work);

	op->res = aio_op_blocking(op);
}

static void op_done(struct msg *m)
{
	struct aio_op *op = container_of(m, struct aio_op, work.done);

	op->q->nr_outside--;
	op->q->stats.aio_completed++;
	op->done(op, op->res);
}

void aio_op_to_worker(struct queue *q, struct aio_op *op)
{
	q->nr_outside++;
	op->work.run = op_run;
	op->work.q = q;
	op->work.done.run = op_done;
	worker_submit(&op->work);
}

struct threads {
	struct queue *q;
	struct aio_op *head, **tail;
};

static int threads_attach(struct queue *q, void **ret_ctx, struct varve_error *err)
{
	struct threads *t = malloc(sizeof(*t));

	if (!t)
		return varve_error_set(err, -ENOMEM, "out of memory for the aio engine 'threads'");
	t->q = q;
	t->head = NULL;
	t->tail = &t->head;
	*ret_ctx = t;
	return 0;
}

static void threads_detach(struct queue *q, void *ctx)
{
	(void)q;
	free(ctx);
}

static void threads_submit(void *ctx, struct aio_op *op)
{
	struct threads *t = ctx;

	*t->tail = op;
	t->tail = &op->next;
}

static void threads_flush(void *ctx)
{
	struct threads *t = ctx;

	while (t->head) {
		struct aio_op *op = t->head;

		t->head = op->next;
		aio_op_to_worker(t->q, op);
	}
	t->tail = &t->head;
}

const struct aio_engine aio_engine_threads = {
	.name = "threads",
	.attach = threads_attach,
	.detach = threads_detach,
	.submit = threads_submit,
	.flush = threads_flush,
};
