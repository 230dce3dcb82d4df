/* SPDX-License-Identifier: MIT */
/*
 * qcow2/resize.c - a longer virtual disk
 *
 * Assumes: a fiber of the home queue. Other queues may be at work: they see the longer disk when its tables
 * are ready. Never:   lets something appear in the new part of the disk but zeroes.
 */
#include "format/cache.h"
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
	err = order_put(f, q->order, host_off, disk, nr * sizeof(disk[0]), ORDER_NONE, ret_mark);
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
	return order_put(f, q->order, offsetof(struct qcow2_header_disk, disk_len), &fields, sizeof(fields),
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

static int grow(struct fiber *f, struct qcow2 *q, uint64_t len, struct varve_error *err)
{
	uint64_t nr = div_up(len, (uint64_t)q->l2_entries << q->cluster_bits);
	int ret = state_area_clear(f, q, err); /* or it would appear as data of the disk */

	if (ret < 0)
		return ret;
	if (nr > QCOW2_L1_LEN_MAX / 8)
		return varve_error_set(
			err, -EFBIG,
			"a disk of %llu bytes needs an L1 table of more than %llu MiB; use larger "
			"clusters",
			(unsigned long long)len, (unsigned long long)(QCOW2_L1_LEN_MAX >> 20));
	if (nr > q->h.l1_entries) {
		/* Readers first learn that there are more tables, all empty; only then that the disk is
		 * longer. */
		ret = cache_grow(f, q->l2, (uint32_t)nr, true);
		if (ret == 0)
			ret = move_l1(f, q, len, (uint32_t)nr);
	} else {
		ret = l1_put_header(f, q, len, q->h.l1_off, q->h.l1_entries, ORDER_NONE, NULL);
		if (ret == 0)
			q->h.disk_len = len;
	}
	if (ret < 0)
		return varve_error_errno(err, ret, "cannot make the L1 table longer");
	atomic_store_explicit(&q->node->len, len, memory_order_release);
	ret = order_flush(f, q->order);
	return ret < 0 ? varve_error_errno(err, ret, "the new length %llu could not be made durable",
					   (unsigned long long)len)
		       : 0;
}

/* What is behind the old end of the disk must read as zeroes, not as what a longer backing image has there.
 */
static int check_backing(const struct qcow2 *q, struct varve_error *err)
{
	const struct node *n = q->node;

	if (!n->backing_name && !n->backing)
		return 0;
	if (!n->backing)
		return varve_error_set(err, -ENOTSUP,
				       "a disk opened without its backing image cannot be made longer");
	if (node_len(n->backing) > q->h.disk_len)
		return varve_error_set(
			err, -ENOTSUP,
			"the backing image (%llu bytes) is longer than this one (%llu bytes): making "
			"this one longer is not supported, old data of the backing image would appear",
			(unsigned long long)node_len(n->backing), (unsigned long long)q->h.disk_len);
	return 0;
}

int qcow2_truncate(struct fiber *f, struct node *n, uint64_t len, bool preallocate, struct varve_error *err)
{
	struct qcow2 *q = node_state(n);
	int ret;

	if (!q->writable)
		return varve_error_set(err, -EACCES, "open read-only, the length cannot change");
	if (preallocate)
		return varve_error_set(err, -ENOTSUP,
				       "preallocation of the new part of a qcow2 image is not supported");
	if (len > VARVE_LEN_MAX - 512)
		return varve_error_set(err, -EFBIG, "a disk of %llu bytes is too large",
				       (unsigned long long)len);
	len = align_up(len, 512);
	if (q->h.version < 3 && q->h.nr_snapshots)
		return varve_error_set(
			err, -ENOTSUP,
			"a version 2 image with snapshots cannot change its length: its snapshots do "
			"not know theirs");
	ret = check_backing(q, err);
	if (ret < 0)
		return ret;
	fiber_lock(f, &q->l1_mutex);
	if (len < q->h.disk_len)
		ret = varve_error_set(err, -ENOTSUP,
				      "making a qcow2 image shorter is not supported (it has %llu bytes)",
				      (unsigned long long)q->h.disk_len);
	else if (len > q->h.disk_len)
		ret = grow(f, q, len, err);
	fiber_unlock(&q->l1_mutex);
	return ret;
}
