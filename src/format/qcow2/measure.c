/* SPDX-License-Identifier: MIT */
/*
 * qcow2/measure.c - how large a new image will be
 *
 * Counts what an image with all its tables has: more than a sparse one begins with, and what it grows to. A writer that
 * makes tables in one pass, in no better order than they are needed, takes no more.
 */
#include "format/qcow2/layout.h"
#include "format/qcow2/measure.h"

/* The refcount structures count themselves: grown until they cover what there is. *clusters: those of all else. */
static uint64_t refcount_clusters(uint64_t others, unsigned cluster_bits, unsigned refcount_order)
{
	uint64_t per_block = (8ull << cluster_bits) >> refcount_order, per_table = (1ull << cluster_bits) / 8;
	uint64_t blocks = 0, table = 0, before;

	do {
		before = blocks + table;
		blocks = div_up(others + before, per_block);
		table = div_up(blocks, per_table);
	} while (blocks + table != before);
	return before;
}

int qcow2_measure_tables(uint64_t disk_len, unsigned cluster_bits, unsigned refcount_order, bool extended_l2,
			 uint64_t *ret_bytes, struct varve_error *err)
{
	uint64_t data = div_up(disk_len, 1ull << cluster_bits), l2 = div_up(data, (1ull << cluster_bits) / (extended_l2 ? 16 : 8));
	uint64_t l1 = MAX(div_up(l2 * 8, 1ull << cluster_bits), 1), others = 1 + l1 + l2 + data;
	char text[32];

	if (l2 > QCOW2_L1_LEN_MAX / 8)
		return varve_error_set(err, -EFBIG,
				       "a disk of %s is too large for clusters of %llu bytes; choose a larger cluster_size",
				       size_format(text, disk_len), 1ull << cluster_bits);
	*ret_bytes = (1 + l1 + l2 + refcount_clusters(others, cluster_bits, refcount_order)) << cluster_bits;
	return 0;
}
