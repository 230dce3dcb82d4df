/* SPDX-License-Identifier: MIT */
/*
 * blkload.h - what the parts of the load generator share: options, workers, results
 *
 * Owns:    nothing.
 * Assumes: blkload.c parses and judges, blkload_run.c works, blkload_report.c tells.
 * Never:   used by anything but blkload, or includes anything of varve.
 */
#ifndef BLKLOAD_H
#define BLKLOAD_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "blkload_hist.h"
#include "blkload_model.h"
#include "vu_blk.h"

#define PROG "varve blkload"

/* What `varve` runs. */
int blkload_main(int argc, char **argv);

struct load_options;
/* blkload_hostile.c: the exit status. */
int blkload_hostile(const struct load_options *o);

enum load_rw { LOAD_READ, LOAD_WRITE, LOAD_RANDREAD, LOAD_RANDWRITE, LOAD_RANDRW };

enum load_kind { KIND_READ, KIND_WRITE, KIND_FLUSH, KIND_DISCARD, KIND_ZEROES, NR_KINDS };

struct load_options {
	const char *socket;
	unsigned nr_queues;
	unsigned depth;			/* requests in flight on each queue */
	uint32_t block_len;		/* bytes of a read or write */
	enum load_rw rw;
	const char *rw_name;
	uint64_t range_off, range_len;	/* part of the disk under test, bytes; len 0: to the end */
	uint64_t runtime_ns;		/* 0: until nr_ops are done */
	uint64_t nr_ops;		/* over all queues; 0: until runtime_ns has passed */
	uint64_t seed;
	unsigned read_percent;		/* of the reads and writes of randrw */
	unsigned discard_percent;	/* of all requests but flushes */
	unsigned zeroes_percent;
	uint64_t flush_every;		/* writes between two flushes of a queue; 0: no flushes */
	bool verify, progress, json, spin, event_idx, use_indirect;
	bool packed, in_order, inflight; /* taken when offered */
	bool hostile;			/* no load, but lies */
	uint64_t reconnect_ns;		/* how long to look for a back end that is gone; 0: not at all */
	enum vu_indirect indirect;
	unsigned queue_len;		/* descriptors; 0: chosen from depth */
	unsigned nr_regions;
	uint32_t seg_len;		/* longest data segment; 0: one segment */
	enum vu_layout layout;
	unsigned timeout_ms;		/* longest a request may take */
	unsigned notice_ms;		/* longest that a lie may go unnoticed */
};

/* A request in flight, beside its struct vu_io. */
struct load_op {
	enum load_kind kind;
	bool readback;			/* of the final verification */
	uint64_t block;			/* the first one, counted from the range's start */
	uint32_t nr_blocks;
	uint32_t gen;
	uint64_t start_ns;
	uint64_t seq;			/* the order in which requests were started */
};

struct load_count {
	uint64_t ops;
	uint64_t bytes;
};

struct load {
	struct load_options o;
	struct vu_front front;
	struct vu_blk_limits limits;
	struct model model;		/* used when o.verify */
	uint32_t buf_len;
	unsigned descs_per_io;		/* descriptors that a request may take, at most */
	struct load_worker *worker;	/* o.nr_queues of them */
	int done_fd;			/* raised by a worker that ends, or that has lost the back end */
	pthread_mutex_t link_lock;	/* the four below */
	pthread_cond_t link_changed;
	unsigned nr_live, nr_lost;	/* workers that have not ended; of these, that wait for a back end */
	unsigned generation;		/* connections that were made anew */
	bool given_up;
	pthread_mutex_t say_lock;	/* keeps lines on stderr whole; taken for failures only */
	uint64_t nr_session_errors;	/* dead workers, queues that did not stop in order */
	bool stop;			/* set by a signal or a dying worker; atomic */
	bool interrupted;
	bool time_over;			/* set by a signal: as if --runtime were over; atomic */
};

struct load_worker {
	/* Set before the thread starts. */
	struct load *load;
	unsigned q;
	pthread_t thread;
	bool started;
	struct vu_blk blk;
	struct load_op *op;		/* indexed by vu_io.slot */
	struct vu_io **batch;		/* submitted since the last kick */
	uint64_t *busy;			/* a bit for each of its blocks; NULL: no verification */
	uint64_t first_block, nr_blocks;
	uint64_t max_ops;		/* its share of o.nr_ops */

	/* Its own thread. */
	uint64_t rng;
	uint64_t next_block;		/* sequential modes */
	uint64_t since_flush;
	uint64_t nr_issued;
	uint64_t nr_started;
	uint32_t gen;
	unsigned nr_inflight;
	unsigned nr_said;
	bool written;			/* something was, so a flush makes sense */
	uint64_t begin_ns, end_ns;	/* of the load, without the final verification */
	struct hist hist[NR_KINDS];
	struct vu_err fatal;		/* why the worker gave up; empty: it did not */

	/* Written by its own thread, read by the progress line: relaxed atomics. */
	struct load_count count[NR_KINDS];
	uint64_t nr_errors, nr_mismatches, nr_verified;	/* the last two in sectors */
	bool verifying;
};

static inline void load_bump(uint64_t *counter, uint64_t by)
{
	/* Only one thread writes it, so no locked instruction is needed. */
	__atomic_store_n(counter, *counter + by, __ATOMIC_RELAXED);
}

static inline uint64_t load_peek(const uint64_t *counter)
{
	return __atomic_load_n(counter, __ATOMIC_RELAXED);
}

/* blkload_run.c: make a worker ready, and what its thread runs. */
int load_worker_prepare(struct load_worker *w, struct vu_err *err);
void load_worker_free(struct load_worker *w);
void *load_worker_main(void *worker);

/* Without a record of what is in flight: offer all of it again to an empty ring. The worker waits. */
int load_worker_offer_again(struct load_worker *w);

/* blkload_link.c: the connection, lost and made anew. */
int load_link_init(struct load *l);
/* The first connection; who is not there yet is waited for as one who went away. */
int load_link_open(struct load *l, const struct vu_front_opts *fo);
void load_worker_ended(struct load_worker *w);
/* By a worker, on -ECONNRESET: 0 when there is a connection again, or -errno. */
int load_link_lost(struct load_worker *w);
/* By the main thread: connects anew if all workers that are left wait for it. Returns how many are left. */
unsigned load_link_mend(struct load *l);

/* blkload_report.c */
void load_say(struct load *l, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void load_progress(struct load *l, uint64_t begin_ns);
void load_progress_end(struct load *l);
void load_report(struct load *l);

#endif
