/* SPDX-License-Identifier: MIT */
/*
 * qcow2/refcount.c - how often each host cluster is referenced
 *
 * Owns:    the refcount table in memory and a bounded cache of refcount blocks.
 * Assumes: home queue. A cached block is never dirty: a change goes to memory and into the order queue at once, so a
 *          block may be dropped at any time (order_read() sees queued bytes).
 * Never:   lets a count leave its width, and never links a refcount block before its content is durable.
 */
#include "format/qcow2/qcow2.h"

#include <stdlib.h>
#include <string.h>

#define REFCOUNT_CACHE_LEN MiB(8)

struct block {
	uint64_t host_off; /* 0: empty */
	uint64_t used;
	uint8_t *bytes;
};

struct refcount_cache {
	unsigned nr;
	uint64_t clock;
	struct fiber_mutex mutex; /* one change of refcounts at a time: it may wait for blocks in the middle */
	struct block *blocks;
	/*
	 * Durable when every refcount block can be found: the newest mark of a table entry or of the header. A count in
	 * a block that was made a moment ago is queued in the open section, the table entry that leads to the block in a
	 * later one: whoever waits for the count must wait for this too, also when another request made the block.
	 */
	order_mark reachable;
};

uint64_t refcount_read(const uint8_t *block, unsigned order, uint64_t index)
{
	switch (order) {
	case 0:
	case 1:
	case 2: {
		unsigned bits = 1u << order, per = 8 / bits;

		return block[index / per] >> (index % per * bits) & ((1u << bits) - 1);
	}
	case 3:
		return block[index];
	case 4:
		return be16_get(((const be16 *)block)[index]);
	case 5:
		return be32_get(((const be32 *)block)[index]);
	default:
		return be64_get(((const be64 *)block)[index]);
	}
}

void refcount_write(uint8_t *block, unsigned order, uint64_t index, uint64_t value)
{
	switch (order) {
	case 0:
	case 1:
	case 2: {
		unsigned bits = 1u << order, per = 8 / bits, shift = index % per * bits;

		block[index / per] = (uint8_t)((block[index / per] & ~(((1u << bits) - 1) << shift)) | value << shift);
		break;
	}
	case 3:
		block[index] = (uint8_t)value;
		break;
	case 4:
		((be16 *)block)[index] = be16_put((uint16_t)value);
		break;
	case 5:
		((be32 *)block)[index] = be32_put((uint32_t)value);
		break;
	default:
		((be64 *)block)[index] = be64_put(value);
	}
}

static uint64_t block_entries(const struct qcow2 *q)
{
	return ((uint64_t)q->cluster_len * 8) >> q->h.refcount_order;
}

static uint64_t count_max(const struct qcow2 *q)
{
	return q->h.refcount_order == 6 ? UINT64_MAX : (1ull << (1u << q->h.refcount_order)) - 1;
}

/* ---- the cache ---- */

static struct block *block_find(struct refcount_cache *c, uint64_t host_off)
{
	for (unsigned i = 0; i < c->nr; i++)
		if (c->blocks[i].host_off == host_off) {
			c->blocks[i].used = ++c->clock;
			return &c->blocks[i];
		}
	return NULL;
}

/* The least recently used place, with memory. NULL: no memory. */
static struct block *block_take(const struct qcow2 *q, uint64_t host_off)
{
	struct refcount_cache *c = q->refcounts;
	struct block *b = &c->blocks[0];

	for (unsigned i = 1; i < c->nr; i++)
		if (c->blocks[i].used < b->used)
			b = &c->blocks[i];
	if (!b->bytes && !(b->bytes = malloc(q->cluster_len)))
		return NULL;
	b->host_off = host_off;
	b->used = ++c->clock;
	return b;
}

/* The block at host_off, in memory until the next call. Under the mutex. */
static int block_load(struct fiber *f, struct qcow2 *q, uint64_t host_off, struct block **ret)
{
	struct block *b = block_find(q->refcounts, host_off);
	int r;

	if (!b) {
		if (!host_off || !is_aligned(host_off, q->cluster_len) || host_off >= node_len(q->file))
			return -EIO;
		b = block_take(q, host_off);
		if (!b)
			return -ENOMEM;
		r = order_read(f, q->order, host_off, b->bytes, q->cluster_len);
		if (r < 0) {
			b->host_off = 0;
			return r;
		}
	}
	*ret = b;
	return 0;
}

/* ---- growth ---- */

static int add_locked(struct fiber *f, struct qcow2 *q, uint64_t cluster, uint64_t nr, int delta, order_mark after,
		      order_mark *ret_mark);

/* The refcount table as it lies on disk, [first, first + nr) of its entries. */
static int table_put(struct fiber *f, struct qcow2 *q, uint64_t table_off, uint32_t first, uint32_t nr,
		     order_mark after, order_mark *ret_mark)
{
	be64 part[512];
	int r = 0;

	for (uint32_t done = 0; r == 0 && done < nr;) {
		uint32_t n = MIN(nr - done, (uint32_t)ARRAY_LEN(part));
		order_mark m = ORDER_NONE;

		for (uint32_t i = 0; i < n; i++)
			part[i] = be64_put(q->refcount_table[first + done + i]);
		r = order_put(f, q->order, table_off + (first + done) * 8ull, part, n * 8, after, &m);
		*ret_mark = order_max(*ret_mark, m);
		done += n;
	}
	return r;
}

/*
 * A table of twice the length, at the frontier.
 *
 * Durable first: the new table, the blocks it names, and the counts of its clusters. Only then: the header that points to
 * it. Power lost in between leaves the old table in force and the new clusters leaked. While it is being built, blocks
 * made on the way are entered in memory only: the old table on disk does not need them.
 */
static int table_grow(struct fiber *f, struct qcow2 *q, uint64_t need, order_mark *ret_mark)
{
	uint64_t per_cluster = q->cluster_len / 8, old_off = q->h.refcount_table_off;
	uint32_t old_clusters = q->h.refcount_table_clusters;
	uint64_t entries = MAX(q->refcount_table_entries * 2ull, need + 1), off, clusters;
	order_mark mark = ORDER_NONE, m;
	struct { be64 off; be32 clusters; } header;
	uint64_t *table;
	int r;

	for (;;) { /* it must also cover itself and the blocks that it brings */
		entries = align_up(entries, per_cluster);
		clusters = entries / per_cluster;
		if ((q->end_cluster + clusters + entries) / block_entries(q) < entries)
			break;
		entries += per_cluster;
	}
	if (clusters * q->cluster_len > QCOW2_REFCOUNT_TABLE_LEN_MAX)
		return -EFBIG;
	table = calloc(entries, 8);
	if (!table)
		return -ENOMEM;
	memcpy(table, q->refcount_table, q->refcount_table_entries * 8ull);
	free(q->refcount_table);
	q->refcount_table = table;
	q->refcount_table_entries = (uint32_t)entries;
	off = q->end_cluster * q->cluster_len;
	q->end_cluster += clusters;
	q->h.refcount_table_off = 0; /* moving: new_block() leaves the table on disk alone */
	r = add_locked(f, q, off >> q->cluster_bits, clusters, 1, ORDER_NONE, &mark);
	if (r == 0)
		r = table_put(f, q, off, 0, (uint32_t)entries, ORDER_NONE, &mark);
	if (r < 0) {
		/* The longer table stays in memory; on disk the old one holds, so nothing may be counted beyond it. */
		q->h.refcount_table_off = old_off;
		q->refcount_table_entries = old_clusters * (uint32_t)per_cluster;
		return r;
	}
	q->h.refcount_table_off = off;
	q->h.refcount_table_clusters = (uint32_t)clusters;
	header.off = be64_put(off);
	header.clusters = be32_put((uint32_t)clusters);
	r = order_put(f, q->order, offsetof(struct qcow2_header_disk, refcount_table_off), &header, 12,
		      order_max(mark, order_now(q->order)), &m);
	if (r < 0)
		return r;
	*ret_mark = order_max(*ret_mark, m);
	return alloc_free(f, q, old_off, old_clusters, m);
}

/*
 * A refcount block for table entry `index`, at the frontier. If the block covers its own cluster it counts itself.
 *
 * Durable first: the block's content (and its own count, if that stands elsewhere). Only then: the table entry. Power lost in
 * between leaks one cluster.
 */
static int new_block(struct fiber *f, struct qcow2 *q, uint64_t index, order_mark *ret_mark)
{
	uint64_t cluster = q->end_cluster++, host_off = cluster * q->cluster_len;
	uint64_t own = cluster / block_entries(q);
	order_mark m = ORDER_NONE, mark = ORDER_NONE;
	struct block *b;
	int r;

	if (host_off > QCOW2_HOST_OFF_MAX - q->cluster_len)
		return -EFBIG;
	b = block_take(q, host_off);
	if (!b)
		return -ENOMEM;
	memset(b->bytes, 0, q->cluster_len);
	if (own == index)
		refcount_write(b->bytes, q->h.refcount_order, cluster % block_entries(q), 1);
	r = order_put(f, q->order, host_off, b->bytes, q->cluster_len, ORDER_NONE, &m);
	if (r < 0) {
		b->host_off = 0;
		return r;
	}
	mark = order_max(mark, m);
	q->refcount_table[index] = host_off;
	if (own != index) {
		r = add_locked(f, q, cluster, 1, 1, ORDER_NONE, &m);
		if (r < 0)
			goto undo;
		mark = order_max(mark, m);
	}
	if (q->h.refcount_table_off) {
		m = ORDER_NONE;
		r = table_put(f, q, q->h.refcount_table_off, (uint32_t)index, 1, mark, &m);
		if (r < 0)
			goto undo;
		mark = order_max(mark, m);
	}
	*ret_mark = order_max(*ret_mark, mark);
	return 0;
undo:
	q->refcount_table[index] = 0;
	return r;
}

/* ---- counting ---- */

/* First look at everything: each block exists, each count stays in its width. */
static int add_prepare(struct fiber *f, struct qcow2 *q, uint64_t cluster, uint64_t nr, int delta,
		       order_mark *ret_mark)
{
	struct block *b;
	int r;

	for (uint64_t i = 0; i < nr; i++) {
		uint64_t index = (cluster + i) / block_entries(q), value;

		if (index >= q->refcount_table_entries) {
			r = delta < 0 ? -EIO : table_grow(f, q, index, ret_mark);
			if (r < 0)
				return r;
		}
		if (!q->refcount_table[index]) {
			r = delta < 0 ? -EIO : new_block(f, q, index, ret_mark);
			if (r < 0)
				return r;
		}
		r = block_load(f, q, q->refcount_table[index], &b);
		if (r < 0)
			return r;
		value = refcount_read(b->bytes, q->h.refcount_order, (cluster + i) % block_entries(q));
		if (delta < 0 ? value < (uint64_t)-delta : value > count_max(q) - (uint64_t)delta)
			return delta < 0 ? -EIO : -ERANGE;
	}
	return 0;
}

static int add_locked(struct fiber *f, struct qcow2 *q, uint64_t cluster, uint64_t nr, int delta, order_mark after,
		      order_mark *ret_mark)
{
	unsigned order = q->h.refcount_order;
	order_mark mark = ORDER_NONE;
	struct block *b;
	int r = add_prepare(f, q, cluster, nr, delta, &mark);

	q->refcounts->reachable = order_max(q->refcounts->reachable, mark);
	for (uint64_t i = 0; r == 0 && i < nr;) {
		uint64_t index = (cluster + i) / block_entries(q), at = (cluster + i) % block_entries(q);
		uint64_t run = MIN(nr - i, block_entries(q) - at), first, last;
		order_mark m = ORDER_NONE;

		r = block_load(f, q, q->refcount_table[index], &b);
		if (r < 0)
			break;
		for (uint64_t k = 0; k < run; k++)
			refcount_write(b->bytes, order, at + k,
				       refcount_read(b->bytes, order, at + k) + (uint64_t)(int64_t)delta);
		first = (at << order) / 8;
		last = (((at + run) << order) + 7) / 8;
		r = order_put(f, q->order, q->refcount_table[index] + first, b->bytes + first, last - first, after, &m);
		mark = order_max(mark, m);
		i += run;
	}
	if (r == 0)
		*ret_mark = order_max(mark, q->refcounts->reachable);
	return r;
}

order_mark refcount_mark(const struct qcow2 *q)
{
	return q->refcounts->reachable;
}

int refcount_add(struct fiber *f, struct qcow2 *q, uint64_t cluster, uint64_t nr, int delta, order_mark after,
		 order_mark *ret_mark)
{
	order_mark mark = ORDER_NONE;
	int r;

	fiber_lock(f, &q->refcounts->mutex);
	r = add_locked(f, q, cluster, nr, delta, after, &mark);
	fiber_unlock(&q->refcounts->mutex);
	if (r == 0 && ret_mark)
		*ret_mark = mark;
	return r;
}

int refcount_get(struct fiber *f, struct qcow2 *q, uint64_t cluster, uint64_t *ret)
{
	uint64_t index = cluster / block_entries(q);
	struct block *b;
	int r = 0;

	fiber_lock(f, &q->refcounts->mutex);
	if (index >= q->refcount_table_entries || !q->refcount_table[index]) {
		*ret = 0;
	} else {
		r = block_load(f, q, q->refcount_table[index], &b);
		if (r == 0)
			*ret = refcount_read(b->bytes, q->h.refcount_order, cluster % block_entries(q));
	}
	fiber_unlock(&q->refcounts->mutex);
	return r;
}

int refcount_open(struct fiber *f, struct qcow2 *q, struct varve_error *err)
{
	uint64_t len = (uint64_t)q->h.refcount_table_clusters * q->cluster_len;
	be64 *table = malloc(len);
	int r;

	q->refcounts = calloc(1, sizeof(*q->refcounts));
	q->refcount_table = malloc(len);
	if (!table || !q->refcounts || !q->refcount_table) {
		free(table);
		return varve_error_errno(err, -ENOMEM, "refcount table");
	}
	q->refcounts->nr = (unsigned)MAX(4, REFCOUNT_CACHE_LEN / q->cluster_len);
	if (q->refcounts->nr > 512)
		q->refcounts->nr = 512;
	q->refcounts->blocks = calloc(q->refcounts->nr, sizeof(struct block));
	r = q->refcounts->blocks ? node_read(f, q->file, q->h.refcount_table_off, table, len) : -ENOMEM;
	q->refcount_table_entries = (uint32_t)(len / 8);
	for (uint32_t i = 0; r == 0 && i < q->refcount_table_entries; i++)
		q->refcount_table[i] = be64_get(table[i]) & ~511ull;
	free(table);
	return r < 0 ? varve_error_errno(err, r, "refcount table at offset %llu cannot be read",
					 (unsigned long long)q->h.refcount_table_off) : 0;
}

void refcount_close(struct qcow2 *q)
{
	if (q->refcounts) {
		for (unsigned i = 0; q->refcounts->blocks && i < q->refcounts->nr; i++)
			free(q->refcounts->blocks[i].bytes);
		free(q->refcounts->blocks);
	}
	free(q->refcounts);
	free(q->refcount_table);
}
