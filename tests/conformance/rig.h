/* SPDX-License-Identifier: MIT */
/*
 * conformance/rig.h - one file or device, one engine, one cache mode: what the tests of this folder stand on
 *
 * A rig is a leaf of proto/file on a queue without a thread, and a second descriptor that sees the same bytes
 * without us. Calls are requests in flight, of which each counts how often it ended.
 */
#ifndef VARVE_TEST_RIG_H
#define VARVE_TEST_RIG_H

#include "../unit/proto/leaf.h"

#include "places.h"

enum cache { WRITEBACK, NONE, WRITETHROUGH, DIRECTSYNC, UNSAFE, CACHES };

struct setting {
	const char *engine;
	enum cache cache;
	enum ground ground;
};

struct rig {
	const struct setting *s;
	struct leaf l; /* for the calls of leaf.h: one at a time */
	int fd;	       /* the other descriptor */
	const char *path;
	struct faultfs *fs; /* on faultfs, whichever mode */
};

const char *rig_cache_name(enum cache cache);
uint32_t rig_flags(const struct setting *s); /* NODE_*, writable */

/* ---- a rig ---- */

/* A disk of RIG_LEN zeroes (a regular file: any len), opened. */
void rig_open(struct rig *rig, const struct setting *s, uint64_t len);
void rig_close(struct rig *rig);
/* Only our side, and its queue; the other descriptor stays. It must end with result. */
void rig_close_node(struct rig *rig, int result);
void rig_reopen(struct rig *rig);
const char *rig_options(const struct rig *rig);

/* What the other descriptor reads there. */
void rig_peek(const struct rig *rig, uint64_t off, void *buf, size_t len);
void rig_peek_expect(const struct rig *rig, uint64_t off, const void *bytes, size_t len);
uint64_t rig_peek_len(const struct rig *rig);

/* ---- requests in flight ---- */

struct call {
	struct req r;
	struct iovec iov;
	int ret;
	unsigned endings;
};

/* Submits; the queue is not run. Memory in c->iov, len bytes, for reads and writes. */
void call_start(struct rig *rig, struct call *c, enum req_op op, uint64_t off, void *buf, size_t len,
		uint32_t flags);
void call_startv(struct rig *rig, struct call *c, enum req_op op, uint64_t off, const struct iovec *iov,
		 unsigned nr_iov, uint64_t len, uint32_t flags);
/* Runs the queue until all of them have ended, and a turn more: each has ended exactly once. */
void calls_finish(struct queue *q, struct call *calls, unsigned nr);
/* As one call. */
int rig_do(struct rig *rig, enum req_op op, uint64_t off, void *buf, size_t len, uint32_t flags);

/* ---- random numbers that a failure can be repeated with ---- */

uint32_t rig_seed(void); /* VARVE_SEED or a fixed one; printed when a test fails */
void fill_random(void *buf, size_t len, uint32_t seed);

/* An aligned block of memory; free(). */
void *rig_memory(size_t len);

/* ---- running ---- */

/* Every engine takes part; those settings that an engine refuses are left out. */
struct rig_case {
	const char *name;
	void (*run)(const struct setting *s);
	unsigned caches;     /* bits of enum cache */
	unsigned grounds;    /* bits of enum ground */
	const char *without; /* an engine that cannot be tested so; NULL: none */
};

#define ALL_CACHES ((1u << CACHES) - 1)
#define BOTH_CACHES (1u << WRITEBACK | 1u << NONE) /* through the page cache and past it */
#define REAL_GROUNDS (1u << ON_FILE | 1u << ON_LOOP | 1u << ON_TMPFS)

/* Why, it prints: the engine cannot be had on this machine, whoever asks. */
bool rig_engine_missing(const char *engine);

/* One test for each case and setting, named "engine cache ground: case". */
int rig_run(const char *group, const struct rig_case *cases, unsigned nr_cases);

#endif
