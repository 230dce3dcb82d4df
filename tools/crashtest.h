/* SPDX-License-Identifier: MIT */
/*
 * tools/crashtest.h - varve crashtest: what a power cut could leave, tried out
 *
 *   crashtest.c         options, the report
 *   crashtest_work.c    the workload: a seeded guest, and what it was promised
 *   crashtest_log.c     the write log: entries, cuts, the states that each cut allows
 *   crashtest_state.c   one state: made, opened, checked, read, written again
 *   crashtest_shrink.c  a failure made small
 */
#ifndef VARVE_TOOLS_CRASHTEST_H
#define VARVE_TOOLS_CRASHTEST_H

#include "common.h"

#define CT_SECTOR 512u
#define CT_IMAGE_MAX (256ull << 20) /* bytes of virtual disk: they are kept in memory several times */
#define CT_DEPTH_MAX 64u
#define CT_OPS_MAX 100000u

struct ct_options {
	/* image */
	const char *format, *create, *cache, *image;
	uint64_t len;
	/* workload */
	unsigned ops, depth, flush, zero, discard, fua, compress, seq, unaligned;
	uint64_t maxlen, seed;
	/* states */
	uint64_t states;
	int64_t only; /* one state, or -1 */
	bool leaks_fail;
	const char *dir;
	enum output output;
	bool progress, quiet;
};

/* ---- the workload ---- */

enum ct_kind { CT_WRITE, CT_ZERO, CT_DISCARD };

struct ct_op {
	enum ct_kind kind;
	bool completed;
	uint64_t sector, nr;
	uint64_t durable; /* promised from this length of the log on; UINT64_MAX: never */
	struct ct_op *in_flight_next;
};

/* The ops that touched one sector, oldest first. */
struct ct_versions {
	uint32_t *ops;
	unsigned nr;
};

struct ct_work {
	const struct ct_options *o;
	struct ct_op *ops; /* 1 .. nr_ops; 0 stands for what the image held before */
	unsigned nr_ops;
	uint64_t len;
	uint8_t *before; /* the virtual disk before the workload */
	struct ct_versions *versions;
};

/* Makes dir/base, runs the workload on dir/run, which is a copy of it, and logs to dir/log. 0, or 1 after a
 * message. */
int ct_work_run(struct ct_work *w, const struct ct_options *o, const char *dir);
void ct_work_free(struct ct_work *w);

/* What op wrote into sector; ops from 1 << 24 on are of the writes after a cut. */
void ct_fill(uint8_t *to, uint64_t seed, uint32_t op, uint64_t sector);

/*
 * Is this what the sector may hold after a cut at log_len? Otherwise says in why what it holds and what was
 * promised.
 */
bool ct_sector_allowed(const struct ct_work *w, uint64_t sector, const uint8_t *bytes, uint64_t log_len,
		       char *why, size_t why_len);

/* ---- the log ---- */

#define CT_FLUSH 1u
#define CT_FUA 2u
#define CT_DISCARD_FLAG 4u
#define CT_MARK 8u

struct ct_entry {
	uint64_t off, len, flags;
	const uint8_t *data;				       /* of a write; NULL otherwise */
	uint64_t log_end;				       /* length of the log with this entry */
	enum { CT_KEEPS_LEN, CT_LEN, CT_LEN_AT_LEAST } resize; /* the file's length becomes off */
};

struct ct_log {
	struct ct_entry *entries;
	unsigned nr;
	unsigned *flushes; /* indexes of FLUSH entries, and at last nr */
	unsigned nr_flushes;
	void *map;
	size_t map_len;
};

int ct_log_read(struct ct_log *l, const char *name);
void ct_log_free(struct ct_log *l);

/* Something that a cut may lose. */
static inline bool ct_changes(const struct ct_entry *e)
{
	return e->len || e->resize;
}

/* One state: what stands before entry `first` is there; of [first, cut) the writes with keep[i - first]. */
struct ct_state {
	uint64_t nr;
	unsigned first, cut;
	uint8_t *keep; /* 0: lost, 1: there, 2: torn, sectors chosen by torn_seed */
	uint64_t torn_seed;
};

/* The state of number nr. s->keep has room for all entries. */
void ct_state_choose(const struct ct_log *l, uint64_t seed, uint64_t nr, struct ct_state *s);
/* Does the sector'th sector of a torn write reach the disk? */
bool ct_torn_keeps(const struct ct_state *s, unsigned entry, uint64_t sector);

/* ---- trying states ---- */

struct ct_result {
	uint64_t states, leaky, max_leaks;
	char why[1024]; /* of the first failure */
};

struct ct_lab; /* files, queue and buffers for trying states */

int ct_lab_new(struct ct_lab **ret, const struct ct_work *w, const struct ct_log *l, const char *dir);
void ct_lab_free(struct ct_lab *lab);
/* 0: as promised, 1: not (r->why), -1: could not be tried, after a message. In ascending order of s->first it
 * is fast. */
int ct_lab_try(struct ct_lab *lab, const struct ct_state *s, struct ct_result *r);
/* The state as it lies there, before anything opened it, is stored under name. */
int ct_lab_keep(struct ct_lab *lab, const struct ct_state *s, const char *name);

/* Drops what the failure does not need: kept writes, tearing. s still fails afterwards. */
void ct_shrink_state(struct ct_lab *lab, const struct ct_log *l, struct ct_state *s, struct ct_result *r);

/* splitmix64 */
static inline uint64_t ct_random(uint64_t *state)
{
	uint64_t x = *state += 0x9e3779b97f4a7c15ull;

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ x >> 27) * 0x94d049bb133111ebull;
	return x ^ x >> 31;
}

#endif
