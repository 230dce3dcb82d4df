/* SPDX-License-Identifier: MIT */
/*
 * qcow2/refcount_grow.c - new refcount blocks, longer refcount tables
 *
 * What is new lies in one region at the frontier, which begins with the new blocks, each of which counts
 * clusters of the region too, perhaps itself:
 *
 *     frontier ─▶ | blocks | refcount table, if it moves | clusters for the caller |
 *
 * Owns:    the region, while grow is held: nobody else takes clusters of it.
 * Never:   gives a new block a place or a count that somebody may have had before: what lies below the
 * frontier in the range of a new block is counted as used. At worst that leaks.
 */
#include "block/event.h"
#include "format/qcow2/refcount.h"
#include "format/qcow2/stock.h"

#include <stdlib.h>
#include <string.h>
#include "format/qcow2/sites.h"

struct growth {
	uint64_t start, nr;			 /* of the region, clusters */
	uint64_t nr_blocks, nr_table, nr_caller; /* what it is for */
	uint64_t nr_reserved;			 /* blocks that the set of metadata has room for, until they are in it */
	uint64_t first_block, last_block;	 /* refcount blocks whose range it touches */
	uint32_t entries;			 /* of the new refcount table; 0: the old one stays */
	uint64_t *table;			 /* the new one, for memory */
	order_mark before;			 /* durable before what is new is linked */
};

static uint64_t new_blocks(const struct qcow2 *q, uint64_t first, uint64_t last)
{
	uint64_t nr = 0;

	for (uint64_t b = first; b <= last; b++)
		nr += !refcount_covered(q, b * block_counts(q));
	return nr;
}

/* The table's new length if it must name block number last; 0: it can. */
static int plan_table(const struct qcow2 *q, uint64_t last, uint32_t *ret_entries)
{
	uint64_t most = QCOW2_REFCOUNT_TABLE_LEN_MAX / 8, entries = last + 1;

	*ret_entries = 0;
	if (last < q->refcount_table_entries)
		return 0;
	if (entries > most)
		return -EFBIG;
	/* Half as much again, so that it does not move often. */
	entries = MAX(entries, q->refcount_table_entries + q->refcount_table_entries / 2ull);
	*ret_entries = (uint32_t)MIN(align_up(entries, q->cluster_len / 8), most);
	return 0;
}

/* What the region needs, itself included. Each round can only add, and what it adds covers much more than it
 * takes. */
static int plan(const struct qcow2 *q, uint64_t nr_caller, struct growth *g)
{
	uint64_t before;
	int err;

	*g = (struct growth){ .start = q->end_cluster, .nr_caller = nr_caller, .nr = nr_caller };
	g->first_block = g->start / block_counts(q);
	do {
		before = g->nr;
		g->last_block = (g->start + MAX(g->nr, 1) - 1) / block_counts(q);
		err = plan_table(q, g->last_block, &g->entries);
		if (err < 0)
			return err;
		g->nr_table = g->entries / (q->cluster_len / 8);
		g->nr_blocks = new_blocks(q, g->first_block, g->last_block);
		g->nr = nr_caller + g->nr_table + g->nr_blocks;
	} while (g->nr != before);
	return 0;
}

/* Memory for everything, so that nothing but the queue can fail afterwards. */
static int prepare(struct fiber *f, struct qcow2 *q, struct growth *g)
{
	int err = meta_reserve(q, g->nr_blocks);

	if (err < 0)
		return err;
	g->nr_reserved = g->nr_blocks;
	if (!g->entries)
		return 0;
	g->table = calloc(g->entries, sizeof(g->table[0]));
	if (!g->table)
		return -ENOMEM;
	memcpy(g->table, q->refcount_table, q->refcount_table_entries * sizeof(g->table[0]));
	return cache_grow(f, q->refcounts->cache, g->entries,
			  false); /* does not wait: only home looks there */
}

/* Clusters of the region that blocks of old count. */
static int count_in_old_blocks(struct fiber *f, struct qcow2 *q, struct growth *g)
{
	for (uint64_t b = g->first_block; b <= g->last_block; b++) {
		uint64_t first = MAX(b * block_counts(q), g->start);
		uint64_t end = MIN((b + 1) * block_counts(q), g->start + g->nr);
		order_mark mark;
		int err;

		if (!refcount_covered(q, first))
			continue;
		err = refcount_add(f, q, first, end - first, 1, ORDER_NONE, &mark);
		if (err < 0)
			return err;
		g->before = order_max(g->before, mark);
	}
	return 0;
}

static int write_block(struct fiber *f, struct qcow2 *q, struct growth *g, uint64_t b, uint64_t cluster)
{
	uint64_t first = b * block_counts(q), end = MIN(first + block_counts(q), g->start + g->nr);
	uint8_t *content = calloc(1, q->cluster_len);
	order_mark mark = ORDER_NONE;
	int err;

	if (!content)
		return -ENOMEM;
	for (uint64_t i = 0; first + i < end; i++)
		refcount_write(content, q->h.refcount_order, i, 1);
	err = order_put(f, order_as(q->order, g->table ? EVENT_REFBLOCK_ALLOC_WRITE_BLOCKS : EVENT_REFBLOCK_ALLOC_WRITE),
			cluster << q->cluster_bits, content, q->cluster_len, ORDER_NONE, &mark);
	free(content);
	g->before = order_max(g->before, mark);
	return err;
}

static int write_blocks(struct fiber *f, struct qcow2 *q, struct growth *g)
{
	uint64_t cluster = g->start;
	int err = 0;

	for (uint64_t b = g->first_block; b <= g->last_block && err == 0; b++) {
		if (refcount_covered(q, b * block_counts(q)))
			continue;
		if (g->table)
			g->table[b] = cluster << q->cluster_bits;
		err = write_block(f, q, g, b, cluster++);
	}
	return err;
}

/* In memory the blocks exist from now on. */
static void adopt_blocks(struct qcow2 *q, struct growth *g)
{
	uint64_t cluster = g->start;

	for (uint64_t b = g->first_block; b <= g->last_block; b++) {
		if (refcount_covered(q, b * block_counts(q)))
			continue;
		meta_add(q, cluster);
		g->nr_reserved--;
		if (!g->table)
			q->refcount_table[b] = cluster << q->cluster_bits;
		cluster++;
	}
}

/*
 * The table stays where it is. Durable first: the blocks' content with their own counts. Only then: the table
 * entries. Power lost in between leaks the blocks. The other way round, the table would lead to a block with
 * whatever lay there, and counts would be wrong, the block's own perhaps 0: it would be handed out.
 */
static int link_blocks(struct fiber *f, struct qcow2 *q, struct growth *g)
{
	uint64_t cluster = g->start;
	order_mark mark = ORDER_NONE, linked = ORDER_NONE;
	int err = 0;

	for (uint64_t b = g->first_block; b <= g->last_block && err == 0; b++) {
		be64 entry = be64_put(cluster << q->cluster_bits);

		if (refcount_covered(q, b * block_counts(q)))
			continue;
		err = order_put(f, order_as(q->order, EVENT_REFBLOCK_ALLOC_HOOKUP), q->h.refcount_table_off + b * 8, &entry, sizeof(entry),
				site_after(q, SITE_REFCOUNT_ENTRY, g->before), &mark);
		linked = order_max(linked, mark);
		cluster++;
	}
	if (err < 0)
		return err;
	q->refcounts->linked = order_max(q->refcounts->linked, linked);
	adopt_blocks(q, g);
	return 0;
}

static int write_new_table(struct fiber *f, struct qcow2 *q, struct growth *g, uint64_t host_off)
{
	be64 *disk = malloc(g->entries * sizeof(disk[0]));
	order_mark mark = ORDER_NONE;
	int err;

	if (!disk)
		return -ENOMEM;
	for (uint32_t i = 0; i < g->entries; i++)
		disk[i] = be64_put(g->table[i]);
	err = order_put(f, order_as(q->order, EVENT_REFBLOCK_ALLOC_WRITE_TABLE), host_off, disk,
			g->entries * sizeof(disk[0]), ORDER_NONE, &mark);
	free(disk);
	g->before = order_max(g->before, mark);
	return err;
}

/*
 * The table moves. Durable first: the new table and the new blocks. Only then: the header's two fields, which
 * lie in one sector and are written as one. Power lost in between leaks the region; the old table holds.
 * Counts that are needed for what is done meanwhile are in new blocks, or in old ones that both tables name;
 * who relies on the first waits for `linked`.
 *
 * The old table's clusters are freed when the header and all that is queued for the old place have been
 * written.
 */
static int link_table(struct fiber *f, struct qcow2 *q, struct growth *g)
{
	struct {
		be64 host_off;
		be32 clusters;
	} header;
	uint64_t host_off = (g->start + g->nr_blocks) << q->cluster_bits, old_off = q->h.refcount_table_off;
	uint32_t old_clusters = q->h.refcount_table_clusters;
	order_mark linked;
	int err;

	node_event(f, q->file, EVENT_REFTABLE_GROW);
	err = write_new_table(f, q, g, host_off);
	header.host_off = be64_put(host_off);
	header.clusters = be32_put((uint32_t)g->nr_table);
	if (err == 0)
		err = order_put(f, order_as(q->order, EVENT_REFBLOCK_ALLOC_SWITCH_TABLE),
				offsetof(struct qcow2_header_disk, refcount_table_off), &header,
				12, site_after(q, SITE_REFCOUNT_TABLE, g->before), &linked);
	if (err < 0)
		return err;
	q->refcounts->linked = order_max(q->refcounts->linked, linked);
	adopt_blocks(q, g);
	q->h.refcount_table_off = host_off;
	q->h.refcount_table_clusters = (uint32_t)g->nr_table;
	free(q->refcount_table);
	q->refcount_table = g->table;
	q->refcount_table_entries = g->entries;
	g->table = NULL;
	alloc_free(q, old_off, old_clusters, order_max(linked, order_all(q->order)), FREED_OTHER);
	return 0;
}

/*
 * Under grow. Failure leaves nothing on disk that is reachable. The region is lost then until the image is
 * opened again: content may be queued for it, so it must not be used for anything else.
 */
static int extend(struct fiber *f, struct qcow2 *q, struct growth *g)
{
	struct refcounts *rc = q->refcounts;
	int err;

	rc->reserved = g->start;
	rc->reserved_end = q->end_cluster = g->start + g->nr;
	err = node_allocate(f, q->file, g->start << q->cluster_bits, (g->nr_blocks + g->nr_table) << q->cluster_bits);
	if (err < 0 && q->end_cluster == rc->reserved_end)
		q->end_cluster = g->start; /* nothing has been done with it, and the next attempt may try again */
	if (err == 0)
		err = count_in_old_blocks(f, q, g);
	rc->reserved = rc->reserved_end = 0;
	if (err == 0)
		err = write_blocks(f, q, g);
	if (err == 0)
		err = g->table ? link_table(f, q, g) : link_blocks(f, q, g);
	return err;
}

static int extend_locked(struct fiber *f, struct qcow2 *q, uint64_t nr, struct growth *g)
{
	uint64_t room;
	int err;

	stock_drop(f, q);
	err = plan(q, nr, g);
	if (err == 0 && g->nr)
		err = alloc_room(q, g->nr, &room);
	if (err < 0 || !g->nr)
		return err;
	if (room < g->nr)
		return -ENOSPC;
	err = prepare(f, q, g);
	if (err == 0)
		err = extend(f, q, g);
	meta_unreserve(q, g->nr_reserved);
	free(g->table);
	return err;
}

int refcount_cover(struct fiber *f, struct qcow2 *q)
{
	struct growth g;
	int err;

	fiber_lock(f, &q->refcounts->grow);
	err = extend_locked(f, q, 0, &g);
	fiber_unlock(&q->refcounts->grow);
	return err;
}

int refcount_extend(struct fiber *f, struct qcow2 *q, uint64_t nr, uint64_t *ret_cluster,
		    order_mark *ret_mark)
{
	struct growth g;
	int err;

	fiber_lock(f, &q->refcounts->grow);
	err = extend_locked(f, q, nr, &g);
	if (err == 0) {
		*ret_cluster = g.start + g.nr_blocks + g.nr_table;
		*ret_mark = order_max(g.before, site_after(q, SITE_REFCOUNT_LINKED, q->refcounts->linked));
	}
	fiber_unlock(&q->refcounts->grow);
	return err;
}
