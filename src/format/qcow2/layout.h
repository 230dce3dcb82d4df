/* SPDX-License-Identifier: MIT */
/*
 * qcow2/layout.h - where everything lies in a new image, and writing it
 *
 *     header | refcount table | refcount blocks | L1 | L2 tables | data
 *
 * L2 tables and data exist only with preallocation. The regions are contiguous and in clusters, so each table is a
 * formula and is written in pieces of bounded size, whatever the disk's length.
 */
#ifndef VARVE_QCOW2_LAYOUT_H
#define VARVE_QCOW2_LAYOUT_H

#include "format/qcow2/qcow2.h"

/* Clusters, unless the name says otherwise. */
struct layout {
	unsigned cluster_bits, refcount_order;
	unsigned entry_words; /* of an L2 entry: 2 with a bitmap of subclusters */
	bool over_backing;    /* preallocated clusters have their place, but none of their subclusters has data */
	uint64_t disk_len; /* bytes */
	uint64_t table, blocks, l1, l2, data;
	uint64_t mapped;   /* entries of the L2 tables that lead somewhere: `data`, or as many clusters of an external data file */
	bool external;	   /* where each has its guest's offset */
	uint64_t l1_entries, nr; /* nr: of the whole file */
};

/*
 * Fills *ret, where disk_len, cluster_bits, refcount_order, entry_words, external and over_backing are set; -EFBIG with the reason when a
 * limit of the format is exceeded.
 */
int layout_plan(struct layout *ret, enum prealloc prealloc, struct varve_error *err);

/* Places as the header needs them. */
uint64_t layout_table_off(const struct layout *l);
uint64_t layout_l1_off(const struct layout *l);

/*
 * Makes the image in file: prepares its length, writes all tables and the preallocated data, syncs, writes header (one
 * cluster), syncs.
 */
int layout_write(struct fiber *f, struct node *file, const struct layout *l, enum prealloc prealloc,
		 const uint8_t *header, varve_progress_fn progress, void *user_data, struct varve_error *err);

#endif
