/* SPDX-License-Identifier: MIT */
/*
 * tests/unit/order/bench.h - a block queue on a simulated file, and nothing else
 *
 * bench.c stands in for block/: its node_*() calls go straight to the engine "sim". Jobs are functions that run on
 * fibers; the test decides when the file's operations complete.
 */
#ifndef VARVE_TEST_ORDER_BENCH_H
#define VARVE_TEST_ORDER_BENCH_H

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "aio/sim.h"
#include "order/order.h"

#define BENCH_LEN KiB(8)

struct bench {
	struct queue *q;
	struct sim_file *sim;
	struct aio_file file;
	struct node node;
	struct order *o;
	unsigned jobs;	       /* started and not ended */
	unsigned nr_writes, nr_flushes; /* submitted */
	int64_t fail_nr;       /* this op (counted from 0) fails with -EIO; -1: none */
	bool fail_all;	       /* all writes and flushes do */
	uint32_t flags[4];     /* of the first writes since it was cleared */
	unsigned nr_flags;
	bool hold_reads;       /* node_read() does not return before bench_release_reads() */
	struct waitlist held;
};

struct job {
	struct fiber_job fiber;
	struct bench *b;
	int (*fn)(struct fiber *f, struct bench *b, void *arg);
	void *arg;
	int ret;
	bool done;
};

/* manual: operations wait for bench_complete(). */
struct bench *bench_new(bool manual, uint64_t limit);
void bench_free(struct bench *b);

/* Starts fn on a fiber and runs it as far as it comes. */
void bench_start(struct bench *b, struct job *j, int (*fn)(struct fiber *f, struct bench *b, void *arg), void *arg);
/* The same without letting it run yet. */
void bench_launch(struct bench *b, struct job *j, int (*fn)(struct fiber *f, struct bench *b, void *arg), void *arg);
/* Turns until nothing happens without a completion. */
void bench_settle(struct bench *b);
/* Lets the i-th pending operation end with res (0: normally), and settles. */
void bench_complete(struct bench *b, unsigned i, int64_t res);
/* Lets the reads that were held return, and settles. */
void bench_release_reads(struct bench *b);
/* Lets everything end, oldest first, until no job is left. */
void bench_finish(struct bench *b);
/* Runs fn to its end; for benches that are not manual. */
int bench_run(struct bench *b, int (*fn)(struct fiber *f, struct bench *b, void *arg), void *arg);

/* The usual jobs, run to their end (the bench is not manual) or, put, without a wait. */
order_mark bench_put(struct bench *b, uint64_t off, const void *bytes, size_t len, order_mark after);
int bench_flush(struct bench *b);
int bench_wait(struct bench *b, order_mark mark);
int bench_read(struct bench *b, uint64_t off, void *buf, size_t len);
int bench_data_write(struct bench *b, uint64_t off, const void *bytes, size_t len);

int job_flush(struct fiber *f, struct bench *b, void *arg);
int job_wait(struct fiber *f, struct bench *b, void *mark);

struct put_args {
	uint64_t off;
	const void *bytes;
	size_t len;
	order_mark after, mark;
};

int job_put(struct fiber *f, struct bench *b, void *put_args);

#endif
