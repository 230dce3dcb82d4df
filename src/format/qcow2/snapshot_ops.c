/* SPDX-License-Identifier: MIT */
/*
 * qcow2/snapshot_ops.c - list, delete and apply
 *
 * Assumes: fibers of the home queue. For apply: the disk is drained, and nobody keeps anything of what it was.
 * Never:   gives up a reference before the header that no longer needs it is durable.
 */
#include "format/qcow2/snapshot.h"

#include <stdlib.h>
#include <string.h>

#include "format/cache.h"
#include "format/qcow2/bitmap_note.h"
#include "format/qcow2/bitmap_resize.h"
#include "format/qcow2/sites.h"

int qcow2_snapshot_list(struct fiber *f, struct node *n, struct snapshot_info **ret_list, uint32_t *ret_nr,
			struct varve_error *err)
{
	struct qcow2 *q = node_state(n);
	struct snapshot_info *list = NULL;
	struct snapshots s;
	int ret;

	fiber_lock(f, &q->snapshot_mutex);
	ret = snapshots_open(f, q, &s, err);
	fiber_unlock(&q->snapshot_mutex);
	if (ret < 0)
		return ret;
	list = calloc(s.nr + 1ull, sizeof(*list));
	for (uint32_t i = 0; list && i < s.nr; i++) {
		struct qcow2_snapshot *e = &s.list[i];

		list[i] = (struct snapshot_info){ .id = e->id,
						  .name = e->name,
						  .date_s = e->date_s,
						  .date_ns = e->date_ns,
						  .vm_clock_ns = e->vm_clock_ns,
						  .vm_state_len = e->vm_state_len,
						  .disk_len = e->disk_len,
						  .icount = e->icount };
		e->id = e->name = NULL; /* they are the list's now */
	}
	*ret_list = list;
	*ret_nr = s.nr;
	snapshots_close(&s);
	return list ? 0 : varve_error_set(err, -ENOMEM, "snapshot table: out of memory");
}

/* ---- finding ---- */

/* A snapshot with its L1 table, which was examined: it is safe to follow. */
struct found {
	struct snapshots all;
	uint32_t index;
	struct l1_copy l1;
};

static int find(struct fiber *f, struct qcow2 *q, const struct snapshot_pick *pick, struct found *ret,
		struct varve_error *err)
{
	int r;

	*ret = (struct found){ 0 };
	if (!q->order)
		return varve_error_set(err, -EACCES, "open read-only, its snapshots cannot be changed");
	r = qcow2_whole(q, err);
	if (r == 0)
		r = snapshots_open(f, q, &ret->all, err);
	if (r == 0)
		r = snapshots_find(&ret->all, pick, &ret->index, err);
	if (r == 0)
		r = tables_read_l1(f, q, &ret->all.list[ret->index], &ret->l1, err);
	return r < 0 ? r : tables_verify(f, q, &ret->l1, err);
}

static void found_free(struct found *fd)
{
	snapshots_close(&fd->all);
	free(fd->l1.entries);
}

/* ---- delete ---- */

/*
 * Durable first: the header that leads to a table without this snapshot. Only then: its counts go down, and space is free.
 * Power lost in between leaves the dirty bit and counts that are too high. The other way round, the snapshot would lead to
 * space that somebody else has got.
 */
static int drop(struct fiber *f, struct qcow2 *q, struct found *fd, struct varve_error *err)
{
	const struct qcow2_snapshot *s = &fd->all.list[fd->index];
	order_mark mark;
	int ret = snapshot_dirty_begin(f, q, err);

	if (ret < 0)
		return ret;
	ret = snapshots_write(f, q, &fd->all, fd->index, false, &mark, err);
	if (ret < 0) {
		(void)snapshot_dirty_end(f, q, NULL); /* nothing has changed */
		return ret;
	}
	if (!site_off(q, SITE_SNAPSHOT_GONE))
		ret = order_wait(f, q->order, mark);
	if (ret < 0)
		return varve_error_errno(err, ret, "cannot write the header; space is given back by a check");
	mark = site_after(q, SITE_SNAPSHOT_GONE, mark);
	ret = tables_release(f, q, &fd->l1, mark, err);
	if (s->l1_entries) /* a disk of 0 bytes has none, and what stands for its place is that of something else, as of the header */
		alloc_free_metadata(q, s->l1_off, div_up(s->l1_entries * 8ull, q->cluster_len), mark);
	(void)alloc_settle_all(f, q); /* what is damaged stays counted, and was logged */
	if (ret == 0)
		ret = tables_restore_copied(f, q, err);
	if (ret == 0)
		ret = snapshot_dirty_end(f, q, err);
	return ret;
}

/* What was done is stable, and the space is free. */
static int settle(struct fiber *f, struct qcow2 *q, int ret, struct varve_error *err)
{
	int flushed = order_flush(f, q->order);

	if (flushed == 0)
		(void)alloc_settle_all(f, q);
	if (ret < 0)
		return ret;
	return flushed < 0 ? varve_error_errno(err, flushed, "the change could not be made durable") : 0;
}

int qcow2_snapshot_delete(struct fiber *f, struct node *n, const struct snapshot_pick *pick, struct varve_error *err)
{
	struct qcow2 *q = node_state(n);
	struct found fd;
	int ret;

	fiber_lock(f, &q->snapshot_mutex);
	ret = find(f, q, pick, &fd, err);
	if (ret == 0)
		ret = qcow2_begin_changes(f, q, err);
	if (ret == 0)
		ret = settle(f, q, drop(f, q, &fd, err), err);
	found_free(&fd);
	fiber_unlock(&q->snapshot_mutex);
	return ret;
}

/* ---- apply ---- */

/* From one L1 table to another, in memory: no wait in here, so nobody sees half of it. Room for nr is reserved among the metadata. */
static void swap_l1(struct qcow2 *q, uint64_t *l1, uint32_t nr, uint64_t l1_off, uint64_t disk_len)
{
	for (uint32_t i = 0; i < q->h.l1_entries; i++) {
		if (q->l1[i])
			meta_leave(q, (q->l1[i] & QCOW2_OFF_MASK) >> q->cluster_bits);
	}
	for (uint32_t i = 0; i < nr; i++) {
		if (l1[i])
			meta_add(q, l1[i] >> q->cluster_bits);
		else
			meta_unreserve(q, 1);
	}
	free(q->l1);
	q->l1 = l1;
	q->h.l1_entries = nr;
	q->h.l1_off = l1_off;
	q->h.disk_len = disk_len;
	atomic_store_explicit(&q->node->len, disk_len, memory_order_release);
}

/* Look-ups forget the old tables. */
static void refresh_cache(struct fiber *f, struct qcow2 *q, uint32_t nr_before)
{
	cache_drop(f, q->l2, 0, UINT32_MAX);
	for (uint32_t i = 0; i < MAX(nr_before, q->h.l1_entries); i++)
		cache_set_empty(q->l2, i, i >= q->h.l1_entries || !q->l1[i]);
}

/* The L1 table of the disk that is left, all of it: also what stood behind its end. */
static int copy_active(struct qcow2 *q, struct l1_copy *ret)
{
	*ret = (struct l1_copy){ .nr = q->h.l1_entries, .whose = "the disk" };
	ret->entries = malloc(MAX(ret->nr, 1u) * sizeof(ret->entries[0]));
	for (uint32_t i = 0; ret->entries && i < ret->nr; i++)
		ret->entries[i] = q->l1[i] & ~QCOW2_COPIED;
	return ret->entries ? 0 : -ENOMEM;
}

/*
 * The header leads to the new L1 table, or is queued to. With bitmaps of another length it is written here; if that fails it stays
 * queued, and whoever waits for *ret_mark tries again, and hears of it.
 */
static int put_header(struct fiber *f, struct qcow2 *q, struct bitmap_resize *bitmaps, const struct new_l1 *l1, uint64_t disk_len,
		      order_mark *ret_mark, struct varve_error *err)
{
	int ret;

	if (!bitmaps) {
		ret = l1_put_header(f, q, disk_len, l1->off, l1->entries, site_after(q, SITE_SNAPSHOT_LINK, order_all(q->order)), ret_mark);
		return ret < 0 ? varve_error_errno(err, ret, "cannot write the new L1 table") : 0;
	}
	ret = bitmap_resize_commit(f, q, bitmaps, l1, err);
	*ret_mark = order_all(q->order);
	return bitmap_resize_done(bitmaps) ? 0 : ret;
}

/*
 * Durable first: counts, flags, and the new L1 table. Only then: the header, which in one sector says where L1 is, how long
 * it is, and how long the disk; and, if the length is another one, where the bitmaps for that are. Power lost in between: the disk is
 * the old one, with the dirty bit and its own bitmaps. After that the old tables lose their counts.
 */
static int switch_disk(struct fiber *f, struct qcow2 *q, const struct found *fd, struct bitmap_resize *bitmaps, order_mark *ret_mark,
		       struct varve_error *err)
{
	uint32_t nr = MAX(fd->l1.nr, 1u), nr_before = q->h.l1_entries;
	uint64_t clusters = div_up(nr * 8ull, q->cluster_len), host_off, disk_len = fd->all.list[fd->index].disk_len;
	uint64_t *l1 = calloc(clusters, q->cluster_len);
	order_mark counted;
	bool zero;
	int ret = l1 ? meta_reserve(q, nr) : -ENOMEM;
	bool reserved = ret == 0;

	if (ret == 0 && nr > nr_before)
		ret = cache_grow(f, q->l2, nr, true);
	if (ret == 0)
		ret = alloc_metadata(f, q, clusters, &host_off, &zero, &counted);
	if (ret < 0) {
		meta_unreserve(q, reserved ? nr : 0);
		free(l1);
		return varve_error_errno(err, ret, "cannot make a new L1 table");
	}
	memcpy(l1, fd->l1.entries, fd->l1.nr * sizeof(l1[0]));
	ret = l1_write(f, q, host_off, l1, (clusters << q->cluster_bits) / 8, NULL);
	if (ret < 0)
		varve_error_errno(err, ret, "cannot write the new L1 table");
	else
		ret = put_header(f, q, bitmaps, &(struct new_l1){ host_off, nr }, disk_len, ret_mark, err);
	if (ret < 0) {
		alloc_free_metadata(q, host_off, clusters, order_all(q->order));
		meta_unreserve(q, nr);
		free(l1);
		return ret;
	}
	if (nr_before)
		alloc_free_metadata(q, q->h.l1_off, div_up(nr_before * 8ull, q->cluster_len),
				    order_max(*ret_mark, order_all(q->order)));
	q->l1_linked = order_max(q->l1_linked, *ret_mark);
	swap_l1(q, l1, nr, host_off, disk_len);
	refresh_cache(f, q, nr_before);
	return 0;
}

static int apply(struct fiber *f, struct qcow2 *q, const struct found *fd, const struct l1_copy *old, struct bitmap_resize *bitmaps,
		 struct varve_error *err)
{
	order_mark mark;
	bool whole;
	int ret = snapshot_dirty_begin(f, q, err);

	if (ret < 0)
		return ret;
	ret = tables_count(f, q, &fd->l1, 1, &whole, err);
	if (ret < 0) {
		if (whole)
			(void)snapshot_dirty_end(f, q, NULL); /* nothing has changed */
		return ret;
	}
	ret = tables_clear_copied(f, q, &fd->l1, false, err);
	if (ret == 0)
		ret = switch_disk(f, q, fd, bitmaps, &mark, err);
	if (ret < 0) {
		/* The disk as before; what fails now is space that a check gives back. */
		if (tables_release(f, q, &fd->l1, ORDER_NONE, NULL) == 0)
			(void)snapshot_dirty_end(f, q, NULL);
		return ret;
	}
	ret = site_off(q, SITE_SNAPSHOT_GONE) ? 0 : order_wait(f, q->order, mark);
	if (ret < 0)
		return varve_error_errno(err, ret, "cannot write the header");
	/* No entry of theirs is written in place any more, and nothing of them waits to be written. */
	ret = tables_release(f, q, old, site_after(q, SITE_SNAPSHOT_GONE, mark), err);
	return ret < 0 ? ret : snapshot_dirty_end(f, q, err);
}

/* Bitmaps for the length that the snapshot brings, if it is another one. *ret NULL: all stays. */
static int prepare_bitmaps(struct fiber *f, struct qcow2 *q, const struct snapshot_pick *pick, struct bitmap_resize **ret,
			   struct varve_error *err)
{
	struct snapshots all = { 0 };
	uint64_t disk_len = 0;
	uint32_t i;
	int r;

	*ret = NULL;
	if (!bitmaps_valid(&q->h) || !q->order || qcow2_whole(q, NULL) < 0)
		return 0; /* find() tells */
	r = snapshots_open(f, q, &all, err);
	if (r == 0)
		r = snapshots_find(&all, pick, &i, err);
	if (r == 0)
		disk_len = all.list[i].disk_len;
	snapshots_close(&all);
	if (r == 0 && disk_len != q->h.disk_len)
		r = bitmap_resize_begin(f, q, disk_len, ret, err);
	return r;
}

/*
 * Bitmaps have the bits that they had, as far as the disk reaches. What enabled ones are to know is that all of the disk may have
 * changed: of what is not of the same place in both disks, nobody knows. They are marked "in use" on disk, in the old directory and in
 * the new one, until the image is closed.
 */
static int apply_locked(struct fiber *f, struct qcow2 *q, const struct snapshot_pick *pick, struct bitmap_resize *bitmaps,
			struct varve_error *err)
{
	struct l1_copy old = { 0 };
	struct found fd;
	int ret = find(f, q, pick, &fd, err);

	if (ret == 0 && copy_active(q, &old) < 0)
		ret = varve_error_set(err, -ENOMEM, "L1 table: out of memory");
	if (ret == 0)
		ret = tables_verify(f, q, &old, err);
	/* A table that the disk gave up for a copy, and gets back now, is not to be forgotten as one when that is settled later. */
	if (ret == 0)
		ret = settle(f, q, 0, err);
	if (ret == 0) {
		bitmap_note_write(q->node, 0, q->h.disk_len);
		ret = apply(f, q, &fd, &old, bitmaps, err);
		bitmap_note_write(q->node, 0, q->h.disk_len); /* its length now */
		ret = settle(f, q, ret, err);
	}
	free(old.entries);
	found_free(&fd);
	return ret;
}

int qcow2_snapshot_apply(struct fiber *f, struct node *n, const struct snapshot_pick *pick, struct varve_error *err)
{
	struct qcow2 *q = node_state(n);
	struct bitmap_resize *bitmaps;
	struct range all;
	int ret;

	if (n->flags & NODE_BITMAPS)
		return varve_error_set(err, -EACCES, "opened for changes that leave the disk as it is");
	fiber_lock(f, &q->snapshot_mutex);
	fiber_lock(f, &q->resize_mutex);
	ret = prepare_bitmaps(f, q, pick, &bitmaps, err);
	if (ret == 0) {
		range_lock(f, &n->ranges, &all, 0, UINT64_MAX); /* who holds a part of it may want the next: this first */
		fiber_lock(f, &q->l1_mutex);
		ret = apply_locked(f, q, pick, bitmaps, err);
		fiber_unlock(&q->l1_mutex);
		range_unlock(&n->ranges, &all);
	}
	bitmap_resize_end(q, bitmaps);
	fiber_unlock(&q->resize_mutex);
	fiber_unlock(&q->snapshot_mutex);
	return ret;
}
