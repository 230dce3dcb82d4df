/* SPDX-License-Identifier: MIT */
/*
 * qcow2/resize.c - a longer or shorter virtual disk
 *
 * Assumes: a fiber of the home queue. A disk that gets longer may be in use: other queues see it when its tables are ready.
 *          One that gets shorter has been drained.
 * Never:   lets something appear in the new part of the disk but zeroes, or says a length that is not durable.
 */
#include "block/block.h"
#include "block/event.h"
#include "format/cache.h"
#include "format/qcow2/bitmap_note.h"
#include "format/qcow2/bitmap_resize.h"
#include "format/qcow2/l2.h"
#include "format/qcow2/qcow2.h"
#include "format/qcow2/sites.h"
#include "format/qcow2/snapshot.h"

#include <stdlib.h>
#include <string.h>

int l1_write(struct fiber *f, struct qcow2 *q, uint64_t host_off, const uint64_t *l1, uint64_t nr,
	     order_mark *ret_mark)
{
	be64 *disk = malloc(nr * sizeof(disk[0]));
	int err;

	if (!disk)
		return -ENOMEM;
	for (uint64_t i = 0; i < nr; i++)
		disk[i] = be64_put(l1[i]);
	err = order_put(f, order_as(q->order, EVENT_L1_GROW_WRITE_TABLE), host_off, disk, nr * sizeof(disk[0]), ORDER_NONE, ret_mark);
	free(disk);
	return err;
}

int l1_put_header(struct fiber *f, struct qcow2 *q, uint64_t disk_len, uint64_t l1_off, uint32_t l1_entries,
		  order_mark after, order_mark *ret_mark)
{
	struct {
		be64 disk_len;
		be32 crypt_method, l1_entries;
		be64 l1_off;
	} fields = { be64_put(disk_len), be32_put(q->h.crypt_method), be32_put(l1_entries),
		     be64_put(l1_off) };

	static_assert(sizeof(fields) == 24, "as in struct qcow2_header_disk");
	static_assert(offsetof(struct qcow2_header_disk, l1_off) ==
			      offsetof(struct qcow2_header_disk, disk_len) + 16,
		      "same");
	enum event event = l1_off != q->h.l1_off ? EVENT_L1_GROW_ACTIVATE_TABLE : EVENT_UNNAMED;

	return order_put(f, order_as(q->order, event), offsetof(struct qcow2_header_disk, disk_len),
			 &fields, sizeof(fields),
			 after, ret_mark);
}

/*
 * The L1 table moves to a longer one; disk_len goes with it. Under l1_mutex, so L1 stands still.
 *
 * Durable first: the new table and its refcounts. Only then: the header. Power lost in between leaks the new
 * table; the old one holds. The old one is freed when the header is durable, and whatever was queued for its
 * place is out of the way.
 */
static int move_l1(struct fiber *f, struct qcow2 *q, uint64_t disk_len, uint32_t nr)
{
	uint64_t old_off = q->h.l1_off, old_clusters = div_up(q->h.l1_entries * 8ull, q->cluster_len);
	uint64_t clusters = div_up(nr * 8ull, q->cluster_len), host_off, *l1;
	order_mark counted, content = ORDER_NONE, linked;
	bool zero;
	int err;

	l1 = calloc(clusters << q->cluster_bits, 1);
	if (!l1)
		return -ENOMEM;
	node_event(f, q->file, EVENT_L1_GROW_ALLOC_TABLE);
	err = alloc_metadata(f, q, clusters, &host_off, &zero, &counted);
	if (err < 0)
		goto out;
	memcpy(l1, q->l1, q->h.l1_entries * 8ull);
	err = l1_write(f, q, host_off, l1, (clusters << q->cluster_bits) / 8, &content);
	if (err == 0)
		err = l1_put_header(f, q, disk_len, host_off, nr, site_after(q, SITE_L1_HEADER, order_max(content, counted)),
				 &linked);
	if (err < 0) {
		alloc_free_metadata(q, host_off, clusters, order_all(q->order));
		goto out;
	}
	free(q->l1);
	q->l1 = l1;
	q->h.l1_off = host_off;
	q->l1_linked = order_max(q->l1_linked, linked);
	q->h.l1_entries = nr;
	q->h.disk_len = disk_len;
	if (old_clusters)
		alloc_free_metadata(q, old_off, old_clusters, order_max(linked, order_all(q->order)));
	return 0;
out:
	free(l1);
	return err;
}

int l1_grow(struct fiber *f, struct qcow2 *q, uint32_t nr)
{
	/* Readers first learn that there are more tables, all empty. */
	int ret = cache_grow(f, q->l2, nr, true);

	return ret < 0 ? ret : move_l1(f, q, q->h.disk_len, nr);
}

/* bitmaps: of the new length (bitmap_resize.c), or NULL. */
static int set_len(struct fiber *f, struct qcow2 *q, uint64_t len, struct bitmap_resize *bitmaps, struct varve_error *err)
{
	int ret;

	if (bitmaps) {
		ret = bitmap_resize_commit(f, q, bitmaps, NULL, err);
		return ret < 0 ? varve_error_prefix(err, ret, "the new length %llu: ", (unsigned long long)len) : 0;
	}
	fiber_lock(f, &q->l1_mutex);
	ret = l1_put_header(f, q, len, q->h.l1_off, q->h.l1_entries, order_all(q->order), NULL);
	if (ret == 0) {
		q->h.disk_len = len;
		atomic_store_explicit(&q->node->len, len, memory_order_release);
	}
	fiber_unlock(&q->l1_mutex);
	if (ret == 0)
		ret = order_flush(f, q->order);
	return ret < 0 ? varve_error_errno(err, ret, "the new length %llu could not be made durable", (unsigned long long)len)
		       : 0;
}

/* ---- longer ---- */

/* L1 is long enough, and leads nowhere behind the disk: a machine's state there would appear as data of the disk. */
static int more_tables(struct fiber *f, struct qcow2 *q, uint32_t nr, struct varve_error *err)
{
	int ret;

	fiber_lock(f, &q->l1_mutex);
	ret = state_area_clear(f, q, err);
	if (ret == 0 && nr > q->h.l1_entries) {
		ret = l1_grow(f, q, nr);
		if (ret < 0)
			varve_error_errno(err, ret, "cannot make the L1 table longer");
	}
	fiber_unlock(&q->l1_mutex);
	return ret;
}

/*
 * What the image holds behind its end (the rest of the last cluster, entries that a power cut or another program left there)
 * and what a longer backing image has there must not appear. Durable before the header with the new length.
 */
static int hide_old_bytes(struct fiber *f, struct qcow2 *q, uint64_t len, struct varve_error *err)
{
	uint64_t old = q->h.disk_len, first = align_up(old, q->cluster_len), end = align_up(len, q->cluster_len);
	struct range range;
	int ret = 0;

	if (first < end) {
		range_lock(f, &q->node->ranges, &range, first, end - first);
		ret = l2_unlink(f, q->node, first, end - first, UNLINK_ABSENT);
		range_unlock(&q->node->ranges, &range);
	}
	end = q->node->backing ? MAX(first, node_len(q->node->backing)) : first;
	end = MIN(end, len);
	if (ret == 0 && old < end)
		ret = zero_range(f, q->node, old, end - old);
	return ret < 0 ? varve_error_errno(err, ret, "cannot write zeroes behind the old end at %llu", (unsigned long long)old)
		       : 0;
}

/* Space that nobody writes must be inside the file all the same. */
static int cover(struct fiber *f, struct qcow2 *q, uint64_t end)
{
	int ret = end > node_len(q->leaf) ? node_extend(f, q->file, end) : 0;

	return ret == -ENOTSUP ? node_truncate(f, q->file, end, PREALLOC_OFF, NULL) : ret;
}

/* Space for an extent that alloc() gave gets what the mode wants behind it. */
static int fill_extent(struct fiber *f, struct qcow2 *q, const struct extent *x, enum prealloc prealloc,
		       const void *zeroes, size_t zeroes_len)
{
	int ret = 0;

	if (prealloc == PREALLOC_METADATA && (x->flags & EXTENT_READS_ZERO))
		return cover(f, q, x->host_off + x->len);
	if (prealloc == PREALLOC_METADATA)
		return node_zero(f, x->node, x->host_off, x->len, REQ_MAY_UNMAP);
	if (prealloc == PREALLOC_FALLOC)
		return node_zero(f, x->node, x->host_off, x->len, 0);
	for (uint64_t pos = 0; ret == 0 && pos < x->len; pos += zeroes_len)
		ret = node_ending(q->node) ? -ECANCELED :
					     node_write(f, x->node, x->host_off + pos, zeroes, (size_t)MIN(zeroes_len, x->len - pos));
	return ret;
}

/* The guest cluster at off, and some behind it, up to the new end at len. *ret_len: for how many bytes it is done. */
static int preallocate_piece(struct fiber *f, struct qcow2 *q, uint64_t off, uint64_t len, enum prealloc prealloc,
			     const void *zeroes, size_t zeroes_len, uint64_t *ret_len)
{
	uint64_t end = align_up(len, q->cluster_len);
	struct node *n = q->node;
	struct extent x, behind;
	int ret;

	l2_map(n, off, end - off, &x);
	*ret_len = x.len;
	if (x.kind == EXTENT_UNLOADED) {
		*ret_len = 0;
		return l2_load(f, n, off);
	}
	if (x.kind == EXTENT_DATA && (x.flags & EXTENT_INPLACE))
		return 0; /* the old end's cluster */
	ret = l2_alloc(f, n, off, x.len, &x);
	if (ret < 0)
		return ret;
	off -= x.before; /* not here: all that moves is what is preallocated */
	*ret_len = x.len - x.before;
	behind = x;
	if (q->external) /* that file ends where the disk does */
		behind.len = MIN(x.len, len - off);
	ret = fill_extent(f, q, &behind, prealloc, zeroes, zeroes_len);
	if (ret == 0)
		ret = l2_link(f, n, off, &x);
	if (ret < 0) {
		/* What got space already, by zeroes or by promise, is still nobody else's: the file system has it back. */
		if (!(x.flags & EXTENT_ALLOCATED) && !q->external)
			(void)node_discard(f, q->file, x.host_off, x.len);
		l2_unalloc(f, n, &x);
	}
	return ret;
}

/*
 * All clusters behind the old end get space, before the header says that the disk is longer. Power lost in between leaves
 * clusters behind the end of the disk: no leak, and the next growth gives them back.
 */
static int preallocate(struct fiber *f, struct qcow2 *q, uint64_t len, enum prealloc prealloc, struct varve_error *err)
{
	uint64_t first = align_down(q->h.disk_len, q->cluster_len), end = align_up(len, q->cluster_len), done;
	size_t zeroes_len = MAX(MiB(1), (size_t)q->cluster_len);
	void *zeroes = NULL;
	struct range range;
	int ret = 0;

	if (prealloc == PREALLOC_FULL) {
		zeroes = aligned_alloc(4096, zeroes_len);
		if (!zeroes)
			return varve_error_errno(err, -ENOMEM, "preallocation");
		memset(zeroes, 0, zeroes_len);
	}
	if (!is_aligned(q->h.disk_len, q->cluster_len))
		first += q->cluster_len; /* that cluster has what it has */
	if (first < end) {
		range_lock(f, &q->node->ranges, &range, first, end - first);
		for (uint64_t off = first; ret == 0 && off < end; off += done)
			ret = node_ending(q->node) ? -ECANCELED :
						     preallocate_piece(f, q, off, len, prealloc, zeroes, zeroes_len, &done);
		if (ret < 0) /* the disk keeps its length, and has nothing behind it */
			(void)l2_unlink(f, q->node, first, end - first, UNLINK_ABSENT);
		range_unlock(&q->node->ranges, &range);
	}
	free(zeroes);
	return ret < 0 ? varve_error_errno(err, ret, "cannot preallocate the new part of %llu bytes",
					   (unsigned long long)(len - q->h.disk_len))
		       : 0;
}

static uint64_t tables_for(const struct qcow2 *q, uint64_t len)
{
	return div_up(len, (uint64_t)q->l2_entries << q->cluster_bits);
}

static int grow(struct fiber *f, struct qcow2 *q, uint64_t len, enum prealloc prealloc, struct bitmap_resize *bitmaps,
		struct varve_error *err)
{
	int ret = more_tables(f, q, (uint32_t)tables_for(q, len), err);

	if (ret == 0 && q->external)
		ret = data_grow(f, q, len, prealloc, err);
	if (ret == 0)
		ret = hide_old_bytes(f, q, len, err);
	if (q->raw_data && prealloc == PREALLOC_OFF)
		prealloc = PREALLOC_METADATA; /* as other programs do: who reads the tables finds what the file holds */
	if (ret == 0 && prealloc != PREALLOC_OFF)
		ret = preallocate(f, q, len, prealloc, err);
	return ret < 0 ? ret : set_len(f, q, len, bitmaps, err);
}

/* ---- shorter ---- */

/* The part of the last cluster that is cut off becomes zeroes: who makes the disk longer again need not know of us. It is locked. */
static int clear_tail(struct fiber *f, struct qcow2 *q, uint64_t len)
{
	uint64_t end = MIN(align_up(len, q->cluster_len), q->h.disk_len);
	struct extent e;
	int ret = 0;

	if (len == end)
		return 0;
	do {
		l2_map(q->node, len, end - len, &e);
		if (e.kind == EXTENT_UNLOADED)
			ret = l2_load(f, q->node, len);
	} while (ret == 0 && e.kind == EXTENT_UNLOADED);
	if (ret < 0 || e.kind == EXTENT_ABSENT || e.kind == EXTENT_ZERO)
		return ret;
	return zero_range_locked(f, q->node, len, end - len);
}

/* The tables of [first, end) become the disk's own, so that their entries change in place. What the disk reads stays. */
static int own_tables(struct fiber *f, struct qcow2 *q, uint64_t first, uint64_t end)
{
	uint64_t covers = (uint64_t)q->l2_entries << q->cluster_bits;
	int ret = 0;

	for (uint64_t off = first; ret == 0 && off < end; off = align_down(off, covers) + covers) {
		struct run run = run_at(q, off, 1);
		struct piece *p;

		if (!q->l1[run.table] || (q->l1[run.table] & QCOW2_COPIED))
			continue;
		ret = run_open(f, q, &run, &p);
		if (ret == 0)
			cache_unpin(q->l2, p);
	}
	return ret;
}

/*
 * All that needs space is durable before the first entry goes: bitmaps of the new length (queued before), copies of tables that a
 * snapshot shares, then the last cluster with zeroes in its rest, which may get a place of its own, and all their counts. What
 * comes after that (entries, the header, lower counts) changes bytes that the file has, so that a full disk is met here: with no
 * entry gone. Of the data, the rest of the last cluster may be zeroes by then. Power lost in here leaves the old disk, which has
 * the tables for itself or not yet; of what was allocated, leaks.
 */
static int prepare_shrink(struct fiber *f, struct qcow2 *q, uint64_t len, uint64_t first, uint64_t end)
{
	int ret = own_tables(f, q, first, end);

	if (ret == 0 && !order_clean(q->order))
		ret = order_flush(f, q->order);
	if (ret == 0)
		ret = clear_tail(f, q, len);
	return ret < 0 || order_clean(q->order) ? ret : order_flush(f, q->order);
}

/*
 * Durable first: entries that lead nowhere behind the new end, zeroes in the rest of the last cluster. Only then: the header
 * with the shorter length. Power lost in between leaves a disk of the old length that has lost data only behind the new
 * end, which was to go. The other way round, the data would be there again when somebody makes the disk longer. The space is
 * freed when the entries are durably gone, as with any discard; a table after that. Bitmaps that do not know of it have been marked.
 */
static int shrink_locked(struct fiber *f, struct qcow2 *q, uint64_t len, struct bitmap_resize *bitmaps, struct varve_error *err)
{
	uint64_t first = align_up(len, q->cluster_len), end = align_up(q->h.disk_len, q->cluster_len);
	int ret = prepare_shrink(f, q, len, first, end);

	if (ret == 0 && first < end)
		ret = l2_unlink(f, q->node, first, end - first, UNLINK_ABSENT);
	if (ret < 0)
		return varve_error_errno(err, ret, "cannot cut off what lies behind %llu", (unsigned long long)len);
	ret = set_len(f, q, len, bitmaps, err);
	if (ret < 0)
		return ret;
	/* Tables behind the end, and what else they lead to: a machine's state. What fails here leaks; the length is durable. */
	fiber_lock(f, &q->l1_mutex);
	(void)state_area_clear(f, q, NULL);
	fiber_unlock(&q->l1_mutex);
	if (order_flush(f, q->order) == 0)
		(void)alloc_settle(f, q);
	return q->external ? data_shrink(f, q, len, err) : 0;
}

/*
 * All that is cut off is locked until it has gone: not all who make clusters there come in by the door (streams, copy-on-read ahead of
 * readers), and a snapshot would be of half of it. They find a shorter disk.
 */
static int shrink(struct fiber *f, struct qcow2 *q, uint64_t len, struct bitmap_resize *bitmaps, struct varve_error *err)
{
	uint64_t from = align_down(len, q->cluster_len);
	struct range range;
	int ret;

	range_lock(f, &q->node->ranges, &range, from, UINT64_MAX - from);
	ret = shrink_locked(f, q, len, bitmaps, err);
	range_unlock(&q->node->ranges, &range);
	return ret;
}

/* ---- both ---- */

static int check_tables(const struct qcow2 *q, uint64_t len, struct varve_error *err)
{
	if (tables_for(q, len) > QCOW2_L1_LEN_MAX / 8)
		return varve_error_set(err, -EFBIG,
				       "a disk of %llu bytes needs an L1 table of more than %llu MiB; use larger clusters",
				       (unsigned long long)len, (unsigned long long)(QCOW2_L1_LEN_MAX >> 20));
	return 0;
}

static int check_len(const struct qcow2 *q, unsigned version, uint64_t len, enum prealloc prealloc, struct varve_error *err)
{
	const struct node *n = q->node;

	if (!q->writable)
		return varve_error_set(err, -EACCES, "open read-only, the length cannot change");
	if (len > VARVE_LEN_MAX - 512)
		return varve_error_set(err, -EFBIG, "a disk of %llu bytes is too large", (unsigned long long)len);
	if (version < 3 && (q->h.nr_snapshots || q->nr_frozen))
		return varve_error_set(err, -ENOTSUP, "a version 2 image with snapshots cannot change its length: its "
						      "snapshots do not know theirs");
	if (len > q->h.disk_len && n->backing_name && !n->backing)
		return varve_error_set(err, -ENOTSUP, "a disk opened without its backing image cannot be made longer");
	if (q->external && (n->flags & NODE_NO_DATA))
		return varve_error_set(err, -ENOTSUP, "a disk opened without its data file cannot get another length");
	if (len <= q->h.disk_len && prealloc != PREALLOC_OFF)
		return varve_error_set(err, -EINVAL, "preallocation is for new space, but the disk does not get longer");
	if (q->external)
		return data_fits(q, len, err);
	return 0;
}

/* Under resize_mutex, and snapshot_mutex if there are bitmaps. */
static int set_new_len(struct fiber *f, struct qcow2 *q, uint64_t len, enum prealloc prealloc, struct varve_error *err)
{
	struct bitmap_resize *bitmaps;
	int ret;

	if (len == q->h.disk_len)
		return 0;
	ret = len > q->h.disk_len ? check_tables(q, len, err) : 0;
	if (ret == 0)
		ret = bitmap_resize_fits(f, q, len, err);
	if (ret == 0)
		ret = qcow2_begin_changes(f, q, err);
	if (ret == 0)
		ret = bitmap_resize_begin(f, q, len, &bitmaps, err);
	if (ret < 0)
		return ret;
	ret = len < q->h.disk_len ? shrink(f, q, len, bitmaps, err) : grow(f, q, len, prealloc, bitmaps, err);
	if (ret < 0 && len < q->h.disk_len) /* some of what is behind the end that it would have had may be gone */
		bitmap_note_write(q->node, len, q->h.disk_len - len);
	bitmap_resize_end(q, bitmaps);
	return ret;
}

int qcow2_truncate_fits(struct fiber *f, struct node *n, unsigned version, uint64_t len, struct varve_error *err)
{
	struct qcow2 *q = node_state(n);
	int ret;

	fiber_lock(f, &q->snapshot_mutex);
	fiber_lock(f, &q->resize_mutex);
	ret = check_len(q, version, len, PREALLOC_OFF, err);
	len = ret == 0 ? align_up(len, 512) : len;
	if (ret == 0 && len > q->h.disk_len)
		ret = check_tables(q, len, err);
	if (ret == 0 && len != q->h.disk_len)
		ret = bitmap_resize_fits(f, q, len, err);
	fiber_unlock(&q->resize_mutex);
	fiber_unlock(&q->snapshot_mutex);
	return ret;
}

int qcow2_truncate(struct fiber *f, struct node *n, uint64_t len, enum prealloc prealloc, struct varve_error *err)
{
	struct qcow2 *q = node_state(n);
	bool bitmaps = bitmaps_valid(&q->h); /* none are made, or go, while somebody may change the length */
	int ret;

	if (bitmaps)
		fiber_lock(f, &q->snapshot_mutex);
	fiber_lock(f, &q->resize_mutex);
	ret = qcow2_whole(q, err);
	if (ret == 0)
		ret = check_len(q, q->h.version, len, prealloc, err); /* as things are now */
	if (ret == 0)
		ret = set_new_len(f, q, align_up(len, 512), prealloc, err);
	fiber_unlock(&q->resize_mutex);
	if (bitmaps)
		fiber_unlock(&q->snapshot_mutex);
	return ret;
}
