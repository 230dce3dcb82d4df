/* SPDX-License-Identifier: MIT */
/*
 * qcow2/reserved.c - was space of this image only reserved?
 *
 * An image made with preallocation=metadata has all its clusters counted and mapped, and nothing behind them. Whoever looks for
 * data there does better to ask the file, too. Images that just have small holes here and there do not gain by that.
 *
 * Assumes: the home queue.
 * Never:   believes a refcount table or block; a damaged one counts for nothing here, check tells of it.
 */
#include <stdlib.h>

#include "format/qcow2/qcow2.h"

#define TABLE_ENTRY_OFF (~0x1ffull)

static int read_file(struct fiber *f, const struct qcow2 *q, uint64_t off, void *buf, uint64_t len)
{
	uint64_t file_len = node_len(q->leaf);

	if (q->order)
		return order_read(f, q->order, off, buf, len);
	return off <= file_len && len <= file_len - off ? node_read(f, q->file, off, buf, len) : -EIO;
}

/* How many of the first nr counts of a block are not 0, as far as `most`. */
static uint64_t count_used(const uint8_t *block, unsigned order, uint64_t nr, uint64_t most)
{
	uint64_t used = 0;

	for (uint64_t i = 0; i < nr && used < most; i++)
		used += refcount_read(block, order, i) != 0;
	return used;
}

/* *ret: clusters with a count, up to `most`, among the first nr. */
static int used_clusters(struct fiber *f, const struct qcow2 *q, uint8_t *block, uint64_t nr, uint64_t most, uint64_t *ret)
{
	unsigned order = q->h.refcount_order;
	uint64_t per_block = ((uint64_t)q->cluster_len * 8) >> order;
	uint64_t entries = (uint64_t)q->h.refcount_table_clusters << (q->cluster_bits - 3);
	int err = 0;

	*ret = 0;
	for (uint64_t i = 0; err == 0 && i < entries && i * per_block < nr && *ret < most; i++) {
		uint64_t off;
		be64 entry;

		err = read_file(f, q, q->h.refcount_table_off + i * sizeof(entry), &entry, sizeof(entry));
		off = err == 0 ? be64_get(entry) & TABLE_ENTRY_OFF : 0;
		if (!off || !is_aligned(off, q->cluster_len))
			continue;
		err = read_file(f, q, off, block, q->cluster_len);
		if (err == 0)
			*ret += count_used(block, order, MIN(per_block, nr - i * per_block), most - *ret);
	}
	return err;
}

int qcow2_reserved(struct fiber *f, struct node *n, uint64_t taken, bool *ret)
{
	struct qcow2 *q = node_state(n);
	uint64_t there = div_up(node_len(q->leaf), q->cluster_len), full = taken >> q->cluster_bits, used, many;
	uint8_t *block;
	int err;

	*ret = false;
	/* A tenth more, and more than a cluster or two: what is filled in part is no reservation. */
	many = MAX(full * 10 / 9, full + 2);
	if (taken == UINT64_MAX || there < many || q->unmapped)
		return 0;
	block = malloc(q->cluster_len);
	if (!block)
		return -ENOMEM;
	err = used_clusters(f, q, block, there, many, &used);
	*ret = err == 0 && used >= many;
	free(block);
	return err == -ENOMEM ? err : 0;
}
