/* SPDX-License-Identifier: MIT */
/*
 * qcow2/refcount.c - how often each host cluster is referenced
 *
 * Owns:    the refcount table in memory, and the cached pieces of refcount blocks.
 * Assumes: fibers of the home queue. A cached piece is never dirty: a change goes into it and into the order
 * queue without waiting in between, or, with lazy refcounts, lazy.c keeps the piece. Never:   lets a count leave its width, or believes an offset that it did
 * not compare with the file at open.
 */
#include "block/event.h"
#include "format/qcow2/refcount.h"
#include "format/qcow2/lazy.h"
#include "format/qcow2/stock.h"

#include <stdlib.h>
#include "format/qcow2/sites.h"

uint64_t refcount_read(const uint8_t *block, unsigned order, uint64_t index)
{
	unsigned bits = 1u << order, shift;

	switch (order) {
	case 0:
	case 1:
	case 2:
		shift = (unsigned)(index * bits % 8);
		return block[index * bits / 8] >> shift & ((1u << bits) - 1);
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
	unsigned bits = 1u << order, shift, mask;

	switch (order) {
	case 0:
	case 1:
	case 2:
		shift = (unsigned)(index * bits % 8);
		mask = ((1u << bits) - 1) << shift;
		block[index * bits / 8] =
			(uint8_t)((block[index * bits / 8] & ~mask) | (value << shift & mask));
		break;
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

static uint64_t count_max(const struct qcow2 *q)
{
	return UINT64_MAX >> (64 - (1u << q->h.refcount_order));
}

bool refcount_covered(const struct qcow2 *q, uint64_t cluster)
{
	uint64_t block = cluster / block_counts(q);

	return block < q->refcount_table_entries && q->refcount_table[block];
}

/* ---- pieces ---- */

/* A piece of a block, pinned, and where in it the count of a cluster is. */
struct place {
	struct piece *p;
	uint8_t *bytes;
	uint64_t host_off;  /* of the piece */
	uint64_t index, nr; /* of the count; counts in the piece from there on */
};

static int place_open(struct fiber *f, struct qcow2 *q, uint64_t cluster, struct place *ret)
{
	uint64_t block = cluster / block_counts(q), in_block = cluster % block_counts(q);
	uint32_t nr = (uint32_t)(in_block / piece_counts(q));
	int err;

	if (q->unmapped) /* found corrupt: nothing is counted any more */
		return -EIO;
	if (!refcount_covered(q, cluster))
		return -EIO;
	err = cache_get(f, q->refcounts->cache, (uint32_t)block, nr, false, &ret->p);
	if (err < 0)
		return err;
	ret->bytes = (uint8_t *)ret->p->words;
	/* Blocks never move, so this is still the place after the wait. */
	ret->host_off = q->refcount_table[block] + (uint64_t)nr * q->refcounts->cache->piece_len;
	ret->index = in_block % piece_counts(q);
	ret->nr = piece_counts(q) - ret->index;
	return 0;
}

static void place_close(struct qcow2 *q, struct place *pl)
{
	cache_unpin(q->refcounts->cache, pl->p);
}

/* In memory only. Does not check. */
static void shift_counts(const struct qcow2 *q, struct place *pl, uint64_t index, uint64_t nr, int delta)
{
	unsigned order = q->h.refcount_order;

	for (uint64_t i = index; i < index + nr; i++)
		refcount_write(pl->bytes, order, i,
			       refcount_read(pl->bytes, order, i) + (uint64_t)(int64_t)delta);
}

/* Adds delta to nr counts from index on: at once in memory, then queued. Nothing changed on failure. */
static int place_add(struct fiber *f, struct qcow2 *q, struct place *pl, uint64_t index, uint64_t nr,
		     int delta, order_mark after, order_mark *ret_mark)
{
	unsigned order = q->h.refcount_order;
	uint64_t first = (index << order) / 8, end = (((index + nr) << order) + 7) / 8;
	order_mark mark;
	int err;

	shift_counts(q, pl, index, nr, delta);
	/*
	 * Widths below 8 bits: neighbours in the same byte go along, with what they are in memory, that is,
	 * never with less than what is referenced. The queue keeps a byte behind the section that it was last
	 * put into, and *ret_mark says so.
	 */
	if (q->lazy)
		err = lazy_count(f, q, pl->p, &mark);
	else
		err = order_put(f, order_as(q->order, EVENT_REFBLOCK_UPDATE_PART), pl->host_off + first,
				pl->bytes + first, end - first, after, &mark);
	if (err < 0) {
		shift_counts(q, pl, index, nr, -delta);
		return err;
	}
	if (!q->lazy)
		mark = order_max(mark, site_after(q, SITE_REFCOUNT_LINKED, q->refcounts->linked));
	if (ret_mark)
		*ret_mark = mark;
	return 0;
}

static int check_range(struct qcow2 *q, struct place *pl, uint64_t cluster, uint64_t nr, int delta)
{
	for (uint64_t i = 0; i < nr; i++) {
		uint64_t count = refcount_read(pl->bytes, q->h.refcount_order, pl->index + i);

		if (delta > 0 && count > count_max(q) - (unsigned)delta)
			return -ERANGE;
		if (delta < 0 && count < (unsigned)-delta)
			return qcow2_damaged(q, "host offset 0x%llx is in use, but its refcount is %llu",
					     (unsigned long long)((cluster + i) << q->cluster_bits),
					     (unsigned long long)count);
	}
	return 0;
}

/* ---- for the others ---- */

int refcount_get(struct fiber *f, struct qcow2 *q, uint64_t cluster, uint64_t *ret)
{
	struct place pl;
	int err;

	if (!refcount_covered(q, cluster)) {
		*ret = 0;
		return 0;
	}
	err = place_open(f, q, cluster, &pl);
	if (err < 0)
		return err;
	*ret = refcount_read(pl.bytes, q->h.refcount_order, pl.index);
	place_close(q, &pl);
	return 0;
}

int refcount_add(struct fiber *f, struct qcow2 *q, uint64_t cluster, uint64_t nr, int delta, order_mark after,
		 order_mark *ret_mark)
{
	order_mark mark = ORDER_NONE, m;
	uint64_t done = 0, part;
	struct place pl;
	int err = 0;

	for (; done < nr; done += part) {
		err = place_open(f, q, cluster + done, &pl);
		if (err < 0)
			break;
		part = MIN(nr - done, pl.nr);
		err = check_range(q, &pl, cluster + done, part, delta);
		if (err == 0)
			err = place_add(f, q, &pl, pl.index, part, delta, after, &m);
		place_close(q, &pl);
		if (err < 0)
			break;
		mark = order_max(mark, m);
	}
	if (err < 0 && done) {
		/*
		 * All or nothing: -ENOMEM says that it may be tried again. What was queued is queued again over itself, which fails only
		 * where the journal is full and the disk takes nothing: then it is half done, and never tried again.
		 */
		if (refcount_add(f, q, cluster, done, -delta, after, NULL) < 0) {
			q->refcounts->nr_half_done++;
			err = -EIO;
		}
		return err;
	}
	if (err == 0 && ret_mark)
		*ret_mark = mark;
	return err;
}

/* Is there a free run at index i? *ret_nr: how long, at most max. */
static int free_run(struct fiber *f, struct qcow2 *q, struct place *pl, uint64_t i, uint64_t max, uint64_t cluster,
		    uint64_t *ret_nr)
{
	uint64_t nr = 0;

	for (; nr < max && !refcount_read(pl->bytes, q->h.refcount_order, i + nr); nr++) {
		if (!meta_holds(q, cluster + nr))
			continue;
		if (alloc_giving(q))
			break; /* it will be free in a moment */
		return qcow2_corrupt(f, q, "host offset 0x%llx holds metadata, but its refcount is 0, so that it would be given to data",
					     (unsigned long long)((cluster + nr) << q->cluster_bits));
	}
	*ret_nr = nr;
	return 0;
}

int refcount_take(struct fiber *f, struct qcow2 *q, uint64_t cluster, uint64_t nr, enum take how,
		  uint64_t *ret_cluster, uint64_t *ret_nr, uint64_t *ret_next, order_mark *ret_mark)
{
	struct refcounts *rc = q->refcounts;
	struct place pl;
	uint64_t i = 0, run = 0, limit;
	int err = place_open(f, q, cluster, &pl);

	if (err < 0)
		return err;
	/* From here to the queueing of the counts nothing waits. */
	if (how != TAKE_FREED)
		limit = q->end_cluster == cluster && !stock_nr(q) ? pl.nr : 0; /* 0: not as it was before we waited */
	else
		limit = cluster < q->end_cluster ? MIN(pl.nr, q->end_cluster - cluster) : 0;
	if (how == TAKE_FREED && rc->reserved_end > cluster)
		limit = rc->reserved > cluster ? MIN(limit, rc->reserved - cluster) : 0;
	while (err == 0 && i < limit && !run) {
		err = free_run(f, q, &pl, pl.index + i, MIN(nr, limit - i), cluster + i, &run);
		if (!run)
			i++;
	}
	if (err == 0) {
		*ret_cluster = cluster + i;
		*ret_nr = run;
		*ret_next = cluster + i + run;
		if (how != TAKE_FREED)
			q->end_cluster = MAX(q->end_cluster, *ret_next);
		for (uint64_t k = 0; how == TAKE_TABLE && k < run; k++)
			meta_add(q, *ret_cluster + k);
		if (run)
			err = place_add(f, q, &pl, pl.index + i, run, 1, ORDER_NONE, ret_mark);
		for (uint64_t k = 0; err < 0 && how == TAKE_TABLE && k < run; k++)
			meta_undo(q, *ret_cluster + k);
	}
	place_close(q, &pl);
	return err;
}

int refcount_stock(struct fiber *f, struct qcow2 *q, uint64_t first, uint64_t nr, uint64_t *ret_nr,
		   order_mark *ret_mark)
{
	struct place pl;
	int err = place_open(f, q, first, &pl);

	if (err < 0)
		return err;
	err = free_run(f, q, &pl, pl.index, MIN(nr, pl.nr), first, ret_nr);
	if (err == 0 && *ret_nr)
		err = place_add(f, q, &pl, pl.index, *ret_nr, 1, ORDER_NONE, ret_mark);
	place_close(q, &pl);
	return err;
}

/* ---- open, close ---- */

static int load_piece(struct fiber *f, void *owner, uint32_t table, uint32_t nr, void *words)
{
	struct qcow2 *q = owner;
	uint32_t len = q->refcounts->cache->piece_len;

	node_event(f, q->file, EVENT_REFBLOCK_LOAD);
	return order_read(f, q->order, q->refcount_table[table] + (uint64_t)nr * len, words, len);
}

static int read_refcount_table(struct fiber *f, struct qcow2 *q, struct varve_error *err)
{
	size_t len = (size_t)q->h.refcount_table_clusters << q->cluster_bits;
	uint64_t file_len = node_len(q->leaf);
	int ret;

	q->refcount_table = malloc(len);
	if (!q->refcount_table)
		return varve_error_set(err, -ENOMEM, "refcount table of %zu bytes: out of memory", len);
	node_event(f, q->file, EVENT_REFTABLE_LOAD);
	ret = node_read(f, q->file, q->h.refcount_table_off, q->refcount_table, len);
	if (ret < 0)
		return varve_error_errno(err, ret, "cannot read the refcount table at host offset 0x%llx",
					 (unsigned long long)q->h.refcount_table_off);
	q->refcount_table_entries = (uint32_t)(len / 8);
	for (uint32_t i = 0; i < q->refcount_table_entries; i++) {
		uint64_t host_off = be64_get(((be64 *)q->refcount_table)[i]);

		if (!is_aligned(host_off, q->cluster_len) || host_off >= file_len)
			return varve_error_set(
				err, -EIO,
				"refcount table entry %u (0x%llx) leads to no block inside the file: the "
				"image is damaged; open it read-only, or repair it first",
				i, (unsigned long long)host_off);
		q->refcount_table[i] = host_off;
	}
	return 0;
}

int refcount_open(struct fiber *f, struct qcow2 *q, uint64_t cache_len, struct varve_error *err)
{
	int ret;

	q->refcounts = calloc(1, sizeof(*q->refcounts));
	if (!q->refcounts)
		return varve_error_set(err, -ENOMEM, "refcounts: out of memory");
	ret = read_refcount_table(f, q, err);
	if (ret < 0)
		return ret;
	q->refcounts->cache =
		cache_new(q->node, q, false, q->refcount_table_entries, q->cluster_len, PIECE_LEN, cache_len, load_piece);
	return q->refcounts->cache ? 0 : varve_error_set(err, -ENOMEM, "refcount cache: out of memory");
}

void refcount_close(struct qcow2 *q)
{
	if (q->refcounts)
		cache_free(q->refcounts->cache);
	free(q->refcounts);
	free(q->refcount_table);
	q->refcounts = NULL;
	q->refcount_table = NULL;
}
