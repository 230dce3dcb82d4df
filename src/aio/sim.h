/* SPDX-License-Identifier: MIT */
/*
 * aio/sim.h - a deterministic file in memory, for tests
 *
 * The engine "sim" holds a file's content in memory and completes operations in an order and at (virtual)
 * times chosen by a seed or by the test; it can fail or shorten any operation, remembers what a flush made
 * stable, and builds the contents a power cut could leave. Nothing here looks at the real clock.
 *
 * Where the contract leaves room, sim takes the side that hurts: a discarded range reads as 0xdb; a flush
 * covers only what completed before it was submitted; after a failed flush the writes that it covered are
 * stable only once they are written again and flushed, because that is what kernels do. A failed write
 * changes nothing.
 */
#ifndef VARVE_AIO_SIM_H
#define VARVE_AIO_SIM_H

#include "aio/engine.h"

struct sim_file;

#define SIM_LEN_MAX (1ull << 32)

struct sim_opts {
	uint64_t seed;
	uint64_t len;		 /* initial length; grows by writes */
	uint64_t min_ns, max_ns; /* virtual latency of an op, drawn by the seed; equal: FIFO order */
	bool manual;		 /* nothing completes before sim_complete() */
};

/* Fills *file (engine = &aio_engine_sim). One queue uses it; aio_attach() as for any engine. */
int sim_file_new(struct sim_file **ret, struct aio_file *file, const struct sim_opts *opts);
void sim_file_free(struct sim_file *s);

uint64_t sim_len(const struct sim_file *s);
int sim_truncate(struct sim_file *s, uint64_t len); /* stable at once; -EFBIG past SIM_LEN_MAX */

/* Direct access to the newest content (what a reader sees now), for setting up and checking. */
void sim_peek(const struct sim_file *s, uint64_t off, void *buf, size_t len);
void sim_poke(struct sim_file *s, uint64_t off, const void *buf, size_t len); /* stable at once */

/* ---- manual completion ---- */
unsigned sim_pending(const struct sim_file *s);
/* The i-th pending op in order of submission: what it is. */
const struct aio_op *sim_op(const struct sim_file *s, unsigned i);
/* Lets the i-th pending op take effect and complete in the next turn. res 0: normally; negative: fails with
 * it; positive: short transfer of that many bytes. */
void sim_complete(struct sim_file *s, unsigned i, int64_t res);

/* ---- faults ---- */
/* Called for every op when it is submitted, counted from 0: returns 0 (normal), -errno, or a short length. */
void sim_set_fault(struct sim_file *s, int64_t (*fault)(void *arg, uint64_t nr, const struct aio_op *op),
		   void *arg);
uint64_t sim_nr_ops(const struct sim_file *s); /* submitted so far */

/* ---- power cuts ---- */
/* Writes, discards and zeroes that completed or are pending and are not yet covered by a completed flush, in
 * order of submission. */
unsigned sim_nr_unstable(const struct sim_file *s);
/*
 * The content after a power cut now: stable content plus those unstable writes i for which keep(arg, i) is
 * true, applied in the order in which they completed, then the pending ones as submitted (so keeping
 * everything completed gives what readers see); with torn != 0 each kept write is kept sector by sector (512
 * bytes), chosen by that seed. The buffer has room for the current length, zeroes at the end; *ret_len is the
 * length the file would have, which is shorter when writes that extended it were lost. The caller frees the
 * buffer.
 */
uint8_t *sim_power_cut(const struct sim_file *s, bool (*keep)(void *arg, unsigned i), void *arg,
		       uint64_t torn, uint64_t *ret_len);

#endif
