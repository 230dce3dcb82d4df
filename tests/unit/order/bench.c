/* SPDX-License-Identifier: MIT */
/*
 * tests/unit/order/bench.c - a block queue on a simulated file, and nothing else
 *
 * Owns:    the stand-ins for node_read(), node_writev(), node_flush() and node_file_len().
 * Assumes: one bench at a time touches a queue; the engine's completions come in queue_turn().
 * Never:   sleeps, or looks at the real clock.
 */
#include "bench.h"

#include <stdlib.h>

/* ---- block/, as far as order/ needs it ---- */

struct pending {
	struct aio_op op;
	struct fiber *f;
	int64_t res;
	bool done;
};

static void pending_done(struct aio_op *op, int64_t res)
{
	struct pending *p = container_of(op, struct pending, op);

	p->res = res;
	p->done = true;
	fiber_wake(p->f);
}

static int64_t io(struct fiber *f, struct node *n, enum aio_opcode opcode, uint64_t off,
		  const struct iovec *iov, unsigned nr_iov)
{
	struct bench *b = container_of(n, struct bench, node);
	struct pending p = { .f = f };

	p.op.file = &b->file;
	p.op.opcode = opcode;
	p.op.iov = iov;
	p.op.nr_iov = nr_iov;
	p.op.off = off;
	for (unsigned i = 0; i < nr_iov; i++)
		p.op.len += iov[i].iov_len;
	p.op.done = pending_done;
	aio_submit(fiber_queue(f), &p.op);
	while (!p.done)
		fiber_wait(f);
	return p.res;
}

int node_read(struct fiber *f, struct node *n, uint64_t off, void *buf, size_t len)
{
	struct bench *b = container_of(n, struct bench, node);
	struct iovec iov = { buf, len };
	int64_t res = io(f, n, AIO_READ, off, &iov, 1);

	while (b->hold_reads)
		waitlist_wait(f, &b->held);
	if (res >= 0)
		assert_int_equal(res, len);
	return res < 0 ? (int)res : 0;
}

int node_write(struct fiber *f, struct node *n, uint64_t off, const void *buf, size_t len)
{
	struct iovec iov = { (void *)buf, len };

	return node_writev(f, n, off, &iov, 1, 0);
}

int node_writev(struct fiber *f, struct node *n, uint64_t off, const struct iovec *iov, unsigned nr_iov,
		uint32_t flags)
{
	struct bench *b = container_of(n, struct bench, node);
	int64_t res;

	assert_int_equal(flags, 0);
	assert_in_range(nr_iov, 1, AIO_IOV_MAX);
	b->nr_writes++;
	res = io(f, n, AIO_WRITE, off, iov, nr_iov);
	return res < 0 ? (int)res : 0;
}

int node_write_all(struct fiber *f, struct node *n, struct node_write *writes, unsigned nr)
{
	int first = 0;

	for (unsigned i = 0; i < nr; i++) {
		struct bench *b = container_of(n, struct bench, node);
		int err = node_writev(f, n, writes[i].off, writes[i].iov, writes[i].nr_iov, 0);

		assert_true(writes[i].flags & REQ_META);
		if (b->nr_flags < ARRAY_LEN(b->flags))
			b->flags[b->nr_flags++] = writes[i].flags;
		first = first ? first : err;
	}
	return first;
}

int node_flush(struct fiber *f, struct node *n)
{
	struct bench *b = container_of(n, struct bench, node);

	b->nr_flushes++;
	return (int)io(f, n, AIO_FLUSH, 0, NULL, 0);
}

int64_t node_file_len(struct fiber *f, struct node *n)
{
	(void)f;
	return (int64_t)sim_len(container_of(n, struct bench, node)->sim);
}

/* ---- the bench ---- */

static int64_t bench_fault(void *arg, uint64_t nr, const struct aio_op *op)
{
	struct bench *b = arg;

	if (b->fail_all && op->opcode != AIO_READ)
		return -EIO;
	return b->fail_nr >= 0 && (uint64_t)b->fail_nr == nr ? -EIO : 0;
}

/*
 * One queue for all benches: starting a thread or a stack for each of thousands of histories would be most
 * of the work.
 */
static struct queue *shared;

static void free_shared(void)
{
	queue_free(shared);
}

static struct queue *shared_queue(void)
{
	struct queue_opts qo = { .name = "bench", .virtual_time = true };

	if (!shared) {
		assert_int_equal(queue_new(&shared, &qo, NULL), 0);
		assert_int_equal(aio_attach(shared, &aio_engine_sim, NULL), 0);
		atexit(free_shared);
	}
	return shared;
}

struct bench *bench_new(bool manual, uint64_t limit)
{
	struct sim_opts so = { .seed = 1, .len = BENCH_LEN, .manual = manual };
	struct bench *b = calloc(1, sizeof(*b));

	assert_non_null(b);
	b->fail_nr = -1;
	b->q = b->node.home = shared_queue();
	assert_int_equal(sim_file_new(&b->sim, &b->file, &so), 0);
	sim_set_fault(b->sim, bench_fault, b);
	assert_int_equal(order_new(&b->o, &b->node, limit), 0);
	return b;
}

static int job_free(struct fiber *f, struct bench *b, void *arg)
{
	(void)arg;
	order_free(f, b->o);
	return 0;
}

void bench_free(struct bench *b)
{
	struct job j;

	assert_int_equal(b->jobs, 0);
	bench_start(b, &j, job_free, NULL);
	bench_finish(b);
	sim_file_free(b->sim);
	free(b);
}

static void job_main(struct fiber *f, struct fiber_job *fj)
{
	struct job *j = container_of(fj, struct job, fiber);

	j->ret = j->fn(f, j->b, j->arg);
	j->done = true;
	j->b->jobs--;
}

void bench_settle(struct bench *b)
{
	for (int i = 0; i < 4; i++)
		queue_turn(b->q, 0);
}

void bench_launch(struct bench *b, struct job *j, int (*fn)(struct fiber *f, struct bench *b, void *arg),
		  void *arg)
{
	*j = (struct job){ .fiber.run = job_main, .b = b, .fn = fn, .arg = arg };
	b->jobs++;
	fiber_start(b->q, &j->fiber, 1);
}

void bench_start(struct bench *b, struct job *j, int (*fn)(struct fiber *f, struct bench *b, void *arg),
		 void *arg)
{
	bench_launch(b, j, fn, arg);
	bench_settle(b);
}

void bench_complete(struct bench *b, unsigned i, int64_t res)
{
	sim_complete(b->sim, i, res);
	bench_settle(b);
}

void bench_release_reads(struct bench *b)
{
	b->hold_reads = false;
	waitlist_wake_all(&b->held);
	bench_settle(b);
}

void bench_finish(struct bench *b)
{
	for (int i = 0; b->jobs && i < 100000; i++) {
		if (sim_pending(b->sim))
			sim_complete(b->sim, 0, 0);
		queue_turn(b->q, 0);
	}
	assert_int_equal(b->jobs, 0);
}

int bench_run(struct bench *b, int (*fn)(struct fiber *f, struct bench *b, void *arg), void *arg)
{
	struct job j;

	bench_start(b, &j, fn, arg);
	for (int i = 0; !j.done && i < 100000; i++)
		queue_turn(b->q, 0);
	assert_true(j.done);
	return j.ret;
}

int job_flush(struct fiber *f, struct bench *b, void *arg)
{
	(void)arg;
	return order_flush(f, b->o);
}

int job_wait(struct fiber *f, struct bench *b, void *mark)
{
	return order_wait(f, b->o, *(order_mark *)mark);
}

int job_put(struct fiber *f, struct bench *b, void *put_args)
{
	struct put_args *a = put_args;

	return order_put(f, b->o, a->off, a->bytes, a->len, a->after, &a->mark);
}

static int job_read(struct fiber *f, struct bench *b, void *put_args)
{
	struct put_args *a = put_args;

	return order_read(f, b->o, a->off, (void *)a->bytes, a->len);
}

static int job_data_write(struct fiber *f, struct bench *b, void *put_args)
{
	struct put_args *a = put_args;

	return node_write(f, &b->node, a->off, a->bytes, a->len);
}

order_mark bench_put(struct bench *b, uint64_t off, const void *bytes, size_t len, order_mark after)
{
	struct put_args a = { off, bytes, len, after, 0 };

	assert_int_equal(bench_run(b, job_put, &a), 0);
	return a.mark;
}

int bench_flush(struct bench *b)
{
	return bench_run(b, job_flush, NULL);
}

int bench_wait(struct bench *b, order_mark mark)
{
	return bench_run(b, job_wait, &mark);
}

int bench_read(struct bench *b, uint64_t off, void *buf, size_t len)
{
	struct put_args a = { off, buf, len, 0, 0 };

	return bench_run(b, job_read, &a);
}

int bench_data_write(struct bench *b, uint64_t off, const void *bytes, size_t len)
{
	struct put_args a = { off, bytes, len, 0, 0 };

	return bench_run(b, job_data_write, &a);
}
