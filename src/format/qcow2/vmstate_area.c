/* SPDX-License-Identifier: MIT */
/*
 * qcow2/vmstate_area.c - the state that stands behind the end of the active disk
 *
 * Other programs put a machine's state there before they make a snapshot, and find it there after they applied one. Our own
 * states go into the snapshot at once (snapshot_draft.c); this is for the tools that look and write there by hand.
 *
 * Assumes: fibers of the home queue.
 * Never:   lets the disk grow over what stands there.
 */
#include "block/event.h"
#include "format/qcow2/snapshot.h"

#include <stdlib.h>
#include <string.h>

#include "format/cache.h"

static uint64_t area_start(const struct qcow2 *q)
{
	return disk_tables(q, q->h.disk_len) * table_covers(q);
}

/* Bytes of the area that L1 has entries for. */
static uint64_t area_len(const struct qcow2 *q)
{
	return q->h.l1_entries * table_covers(q) - MIN(area_start(q), q->h.l1_entries * table_covers(q));
}

static int map_loaded(struct fiber *f, struct node *n, uint64_t off, uint64_t len, struct extent *e)
{
	for (;;) {
		int ret;

		l2_map(n, off, len, e);
		if (e->kind != EXTENT_UNLOADED)
			return e->kind == EXTENT_ERROR || e->kind == EXTENT_PACKED ? (e->error ? e->error : -EIO) : 0;
		ret = l2_load(f, n, off);
		if (ret < 0)
			return ret;
	}
}

/* off: as a place of the disk. Clusters are locked, or nobody writes. */
static int read_area(struct fiber *f, struct node *n, uint64_t off, uint8_t *buf, uint64_t len)
{
	struct extent e;
	int ret = 0;

	for (uint64_t pos = 0; ret == 0 && pos < len; pos += e.len) {
		ret = map_loaded(f, n, off + pos, len - pos, &e);
		if (ret == 0 && e.kind == EXTENT_DATA)
			ret = node_read(f, e.node, e.host_off, buf + pos, e.len);
		else if (ret == 0)
			memset(buf + pos, 0, e.len);
	}
	return ret;
}

int qcow2_state_area_read(struct fiber *f, struct node *n, uint64_t off, void *buf, size_t len)
{
	struct qcow2 *q = node_state(n);
	uint64_t there = off < area_len(q) ? MIN((uint64_t)len, area_len(q) - off) : 0;

	if (q->unmapped || q->external)
		return q->unmapped ? q->unmapped : -ENOTSUP;
	memset((uint8_t *)buf + there, 0, len - there);
	node_event(f, n->file, EVENT_VMSTATE_LOAD);
	return read_area(f, n, area_start(q) + off, buf, there);
}

/* One run of new clusters, with what stood around the new bytes. *ret_len: how much of them it took. */
static int write_new(struct fiber *f, struct node *n, uint64_t off, const uint8_t *buf, uint64_t len, uint64_t *ret_len)
{
	uint64_t first = align_down(off, map_unit(n)), end = align_up(off + len, map_unit(n));
	struct extent x;
	uint8_t *all;
	int ret = l2_alloc(f, n, first, end - first, &x);

	if (ret < 0)
		return ret;
	first -= x.before;
	*ret_len = MIN(len, first + x.len - off);
	all = malloc(x.len);
	ret = all ? read_area(f, n, first, all, x.len) : -ENOMEM;
	if (ret == 0) {
		memcpy(all + (off - first), buf, *ret_len);
		ret = node_write(f, n->file, x.host_off, all, x.len);
	}
	if (ret == 0)
		ret = l2_link(f, n, first, &x);
	if (ret < 0)
		l2_unalloc(f, n, &x);
	free(all);
	return ret;
}

static int write_area(struct fiber *f, struct node *n, uint64_t off, const uint8_t *buf, uint64_t len)
{
	uint64_t step;
	int ret = 0;

	for (uint64_t pos = 0; ret == 0 && pos < len; pos += step) {
		struct extent e;

		ret = map_loaded(f, n, off + pos, len - pos, &e);
		step = e.len;
		if (ret == 0 && e.kind == EXTENT_DATA && (e.flags & EXTENT_INPLACE))
			ret = node_write(f, e.node, e.host_off, buf + pos, step);
		else if (ret == 0)
			ret = write_new(f, n, off + pos, buf + pos, step, &step);
	}
	return ret;
}

int qcow2_state_area_write(struct fiber *f, struct node *n, uint64_t off, const void *buf, size_t len)
{
	struct qcow2 *q = node_state(n);
	uint64_t end, start, nr;
	struct range range;
	bool moved;
	int ret = 0;

	if (!q->order)
		return -EROFS;
	if (q->unmapped)
		return q->unmapped;
	if (q->external)
		return -ENOTSUP; /* as no snapshots */
	if (!len)
		return 0;
	if (u64_add(off, len, &end) || u64_add(end, area_start(q), &end) || end > VARVE_LEN_MAX)
		return -EFBIG;
	nr = div_up(end, table_covers(q));
	if (nr > QCOW2_L1_LEN_MAX / 8)
		return -EFBIG;
	node_event(f, n->file, EVENT_VMSTATE_SAVE);
	fiber_lock(f, &q->l1_mutex);
	if (nr > q->h.l1_entries)
		ret = l1_grow(f, q, (uint32_t)nr);
	fiber_unlock(&q->l1_mutex);
	if (ret < 0)
		return ret;
	start = area_start(q) + off;
	range_lock(f, &n->ranges, &range, align_down(start, q->cluster_len),
		   align_up(start + len, q->cluster_len) - align_down(start, q->cluster_len));
	moved = start != area_start(q) + off; /* the disk has another length since */
	if (!moved)
		ret = write_area(f, n, start, buf, len);
	range_unlock(&n->ranges, &range);
	return moved ? qcow2_state_area_write(f, n, off, buf, len) : ret;
}

/* The entries behind the disk's; *ret->nr 0: none of them leads anywhere. */
static int take_entries(struct qcow2 *q, uint32_t first, struct l1_copy *ret)
{
	*ret = (struct l1_copy){ .whose = "the state behind the disk" };
	for (uint32_t i = first; i < q->h.l1_entries; i++)
		ret->nr = q->l1[i] ? i - first + 1 : ret->nr;
	if (!ret->nr)
		return 0;
	ret->entries = malloc(ret->nr * sizeof(ret->entries[0]));
	for (uint32_t i = 0; ret->entries && i < ret->nr; i++)
		ret->entries[i] = q->l1[first + i] & ~QCOW2_COPIED;
	return ret->entries ? 0 : -ENOMEM;
}

/*
 * First nothing leads to the state any more, on disk too; then its counts go down. Power lost in between leaks it.
 */
int state_area_clear(struct fiber *f, struct qcow2 *q, struct varve_error *err)
{
	uint32_t first = (uint32_t)MIN(disk_tables(q, q->h.disk_len), (uint64_t)q->h.l1_entries);
	struct l1_copy old;
	order_mark mark = ORDER_NONE;
	be64 none = be64_put(0);
	int ret = take_entries(q, first, &old);

	if (ret == 0 && old.nr)
		ret = tables_verify(f, q, &old, err);
	else if (ret < 0)
		varve_error_errno(err, ret, "the state behind the disk");
	for (uint32_t i = 0; ret == 0 && i < old.nr; i++) {
		if (!old.entries[i])
			continue;
		ret = order_put(f, q->order, q->h.l1_off + (first + i) * 8ull, &none, sizeof(none), ORDER_NONE, NULL);
		if (ret < 0) {
			varve_error_errno(err, ret, "cannot change the L1 table");
			break;
		}
		q->l1[first + i] = 0;
		meta_leave(q, old.entries[i] >> q->cluster_bits);
		cache_drop(f, q->l2, first + i, 1);
		cache_set_empty(q->l2, first + i, true);
	}
	if (ret == 0 && old.nr) {
		mark = order_all(q->order);
		ret = order_wait(f, q->order, mark);
		if (ret < 0)
			varve_error_errno(err, ret, "cannot change the L1 table");
	}
	if (ret == 0 && old.nr)
		ret = tables_release(f, q, &old, mark, err);
	free(old.entries);
	return ret;
}
