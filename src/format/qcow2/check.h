/* SPDX-License-Identifier: MIT */
/*
 * qcow2/check.h - what the files of the examination share
 *
 *   check.c          the plan: what is examined, window by window; header, tables, snapshots
 *   check_l2.c       L1 and L2 tables: what their entries refer to
 *   check_bitmaps.c  the bitmap directory, its tables and bitmaps
 *   check_counts.c   references found against the refcounts on disk
 *   check_refs.c     the counters
 */
#ifndef VARVE_QCOW2_CHECK_H
#define VARVE_QCOW2_CHECK_H

#include "format/check_refs.h"
#include "format/qcow2/qcow2.h"

/* Memory: pages of counters about 400 MiB at most, L2 tables about 200 MiB; together under 1 GiB with all buffers. */
#define CHECK_PAGES_MAX 1400000u
#define CHECK_L2_TABLES_MAX 6000000u

#define CHECK_CHUNK KiB(64) /* of a table of 64-bit entries read at once */

/* An L1 table: the active one first, then those of snapshots; tables named several times appear once. */
struct check_l1 {
	uint64_t off;
	uint32_t entries;
	uint32_t weight;	/* how many name it */
	const char *snapshot;	/* NULL: the active one */
};

enum walk_mode {
	WALK_TABLES, /* L1 only: examine its entries, collect the L2 tables */
	WALK_COUNT,  /* L2 tables: count what they refer to; in the first window also examine their entries */
	WALK_BLAME,  /* L2 tables: name the guest offsets that use damaged clusters */
};

struct checker {
	struct qcow2 *q;
	struct check *c;
	struct varve_error *err;
	uint64_t file_len;
	uint64_t nr_clusters; /* of the file, the last one perhaps in part */

	struct refs refs;
	struct l2_set l2s;
	struct l2_set blocks; /* refcount blocks, to meet each once */
	struct check_l1 *l1s;
	unsigned nr_l1s;
	struct qcow2_snapshot *snapshots;
	uint64_t snapshots_len;
	struct qcow2_bitmap *bitmaps;
	bool bitmaps_known;
	bool table_readable; /* the refcount table lies in the file */
	uint64_t crypt_off, crypt_len; /* LUKS header; 0: none */

	uint32_t walk;	     /* number of this walk over the L2 tables */
	bool first;	     /* the first window: places are examined, not only counted */
	bool incomplete;     /* some references could not be found */
	uint64_t blamed;     /* clusters marked REF_BLAME in this window */
	uint64_t next_host;  /* where the next data cluster would lie, were all contiguous; 0: none yet */

	be64 *chunk;	     /* CHECK_CHUNK */
	uint8_t *table;	     /* a cluster: L2 table or refcount block */

	uint64_t done, total, told_ns; /* progress: table entries */
};

/* qcow2_check() with memory bounds of the caller's choice, for tests of several windows. */
int qcow2_check_bounded(struct fiber *f, struct node *n, struct check *c, size_t max_pages, struct varve_error *err);

/* One line, and the count. */
#define check_corruption(k, ...)                                                                                       \
	do {                                                                                                           \
		(k)->c->result->corruptions++;                                                                         \
		check_report((k)->c, "corruption: " __VA_ARGS__);                                                      \
	} while (0)

/* A place that holds references, and that could not be examined: what is not referred to may be no leak. */
#define check_unread(k, ...)                                                                                           \
	do {                                                                                                           \
		(k)->incomplete = true;                                                                                \
		check_uncounted(k, __VA_ARGS__);                                                                       \
	} while (0)

/* Refcounts that could not be compared. */
#define check_uncounted(k, ...)                                                                                        \
	do {                                                                                                           \
		(k)->c->result->check_errors++;                                                                        \
		check_report((k)->c, "not examined: " __VA_ARGS__);                                                    \
	} while (0)

/* check.c */
/*
 * Counts all references but those of the refcount table, in the first window, and examines the tables on the way. The
 * checker is to be freed in any case.
 */
int check_references(struct fiber *f, struct checker *k);
void checker_free(struct checker *k);
/* Reads metadata as the image has it now (queued writes included); zeroes beyond the end of the file. */
int check_read(struct fiber *f, struct checker *k, uint64_t host_off, void *buf, size_t len);
void check_progress(struct fiber *f, struct checker *k, uint64_t entries);
/* True if [host_off, +len) begins at a cluster and lies in the file's clusters. len 0 lies anywhere. */
bool check_inside(const struct checker *k, uint64_t host_off, uint64_t len);
/* Counts references to all clusters that [host_off, +len) touches. The range lies inside the file. */
int check_count(struct checker *k, uint64_t host_off, uint64_t len, uint64_t weight, uint32_t flags);

/* check_l2.c */
int check_walk(struct fiber *f, struct checker *k, enum walk_mode mode);

/* check_bitmaps.c */
int check_bitmaps(struct fiber *f, struct checker *k);

/* check_counts.c */
int check_refcount_table(struct fiber *f, struct checker *k);
int check_compare(struct fiber *f, struct checker *k);

#endif
