/* SPDX-License-Identifier: MIT */
/*
 * qcow2/l2_cache.h - L2 tables in memory, in slices that all queues can look up without a lock
 */
#ifndef VARVE_QCOW2_L2_CACHE_H
#define VARVE_QCOW2_L2_CACHE_H

#include "format/qcow2/qcow2.h"

#define L2_SLICE_LEN 4096		 /* bytes; the whole table if a cluster is shorter */
#define L2_CACHE_LEN_DEFAULT MiB(32) /* memory for slices, option l2-cache-size */

/* Part of one L2 table. The entries are as on disk (big endian); a version-3 table with extended entries has two words each. */
struct l2_slice {
	uint64_t l1_index;
	uint32_t slice_index;
	_Atomic uint64_t words[L2_SLICE_LEN / 8];
};

/* The slices of one L2 table, NULL where not loaded. Made when the first is loaded, freed with the image. */
struct l2_row {
	struct l2_slice *_Atomic slice[1]; /* slices_per_table of them */
};

struct l2_cache {
	unsigned slice_len, slices_per_table;
	uint32_t slice_entries;
	struct l2_row *_Atomic *rows; /* one for each L1 entry; any queue */
	/* home queue */
	struct l2_slice **slices; /* all that exist */
	unsigned nr, room, hand;
	struct fiber_mutex table_mutex; /* making of tables */
	struct fiber_mutex load_mutex;
};

/* The slice that holds the entry for guest_off, if it is loaded. Any queue; valid until the caller waits or returns. */
struct l2_slice *l2_cache_find(const struct qcow2 *q, uint64_t guest_off);

/* Entry (first word) in host byte order. */
uint64_t l2_slice_entry(const struct qcow2 *q, const struct l2_slice *s, uint64_t guest_off);
/* Second word of an extended entry: the subcluster bitmap. */
uint64_t l2_slice_bitmap(const struct qcow2 *q, const struct l2_slice *s, uint64_t guest_off);
void l2_slice_set(const struct qcow2 *q, struct l2_slice *s, uint64_t guest_off, uint64_t value);

/* Forgets all slices of one table, which has moved. */
void l2_cache_drop_table(struct fiber *f, struct qcow2 *q, uint64_t l1_index);

#endif
