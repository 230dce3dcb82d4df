/* SPDX-License-Identifier: MIT */
/*
 * unit/block/fake.h - a format whose answers the test decides, and a filter that holds requests back
 *
 * The fake format keeps one entry for each cluster in memory; the test sets them and reads how often each call
 * came. Fresh space holds rubbish (0xaa) unless the test says that it reads as zeroes.
 */
#ifndef VARVE_TEST_FAKE_H
#define VARVE_TEST_FAKE_H

#include "../proto/leaf.h"
#include "block/block.h"

#include <pthread.h>

struct fake {
	/* set by the test */
	uint64_t alloc_run;   /* clusters that alloc() gives at once */
	bool alloc_gaps;      /* no two runs are neighbours */
	bool fresh_zero;      /* alloc() answers READS_ZERO (and it is true) */
	bool load_yields;     /* load() lets others run */
	bool dirty;	      /* clean() says no */
	int load_error, alloc_error, link_error, unlink_error;

	uint64_t next_host;
	uint64_t nr_clusters;
	_Atomic uint64_t *entries; /* host_off | FAKE_* */
	_Atomic unsigned nr_map;
	unsigned nr_load, nr_alloc, nr_link, nr_unalloc, nr_unlink, nr_sync;
};

/* The low bits of an entry: an extent_kind, and: */
#define FAKE_INPLACE 8u
#define FAKE_UNLOADED 16u

extern const struct driver driver_fake; /* options: cluster, size */

static inline struct fake *fake_of(struct node *n)
{
	return node_state(n);
}

void fake_set(struct node *n, uint64_t cluster, enum extent_kind kind, uint64_t host_off, bool inplace);
void fake_forget(struct node *n, uint64_t cluster); /* map() says UNLOADED until load() */
enum extent_kind fake_kind(struct node *n, uint64_t cluster);

/* Holding back and failing is for tests on one queue. */
struct hold {
	bool reads, writes; /* hold back */
	bool flushes;	    /* hold them back, too */
	int fail_writes;    /* negative: answer of the next writes */
	unsigned fail_every; /* one of so many writes fails */
	int fail_flush;	    /* and of the next flushes */
	_Atomic uint64_t nr_reads, nr_writes, nr_flushes, bytes_written;
	unsigned nr_held;
	struct req_list held;
};

extern const struct driver driver_hold;

static inline struct hold *hold_of(struct node *n)
{
	return node_state(n);
}

/* Lets the oldest held request go on; false: there is none. */
bool hold_release(struct node *n);

/* ---- a fake image above hold above memory ---- */

struct image {
	struct leaf l; /* l.n: the top; l.q */
	struct node *hold, *memory;
};

/* flags: NODE_WRITABLE, NODE_FORCE_COLD. On a queue of its own if q is NULL. The memory is full of 0xaa. */
void image_open(struct image *img, struct queue *q, uint64_t cluster, uint64_t size, uint32_t flags);
/* lower becomes top's backing image; it is closed with top from then on. Call from the bottom up. */
void image_chain(struct image *top, struct image *lower);
void image_close(struct image *img);

/* ---- requests through the door ---- */

struct io {
	struct req r;
	struct iovec iov;
	int ret;
	bool done;
};

void io_start(struct io *io, struct node *n, struct queue *q, enum req_op op, uint64_t off, void *buf, uint64_t len,
	      uint32_t flags);
/* Turns the queue until the request is done; returns its result. */
int io_wait(struct io *io);
/* Some turns, for things to happen that shall not end anything. */
void turns(struct queue *q, unsigned nr);
int io_now(struct image *img, enum req_op op, uint64_t off, void *buf, uint64_t len, uint32_t flags);

/* ---- queues with threads ---- */

/* A queue that a thread of the test runs: attaches to n, calls fn, ends. */
struct worker {
	struct node *n;
	struct queue *q;
	int (*fn)(struct worker *w); /* negative: failed, why[] says how */
	void *arg;
	unsigned nr; /* 0, 1, ... */
	int ret;
	char why[200];
	pthread_t thread;
	_Atomic bool done;
};

/* Runs the workers, and the home queue on this thread, until all have ended; meanwhile() between its turns (or NULL). */
void workers_run(struct leaf *home, struct worker *w, unsigned nr, void (*meanwhile)(void *arg), void *arg);

/* ---- random numbers with a seed that failures print ---- */

struct rnd {
	uint64_t seed, s;
};

void rnd_start(struct rnd *r, uint64_t seed);
uint64_t rnd_below(struct rnd *r, uint64_t n);

#endif
