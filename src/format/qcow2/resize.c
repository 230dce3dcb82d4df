/* SPDX-License-Identifier: MIT */
/*
 * qcow2/resize.c - a longer virtual disk
 *
 * Assumes: home queue. The disk is drained while the L1 table is exchanged, because other queues look into it.
 */
#include "format/qcow2/qcow2.h"

#include <stdlib.h>
#include <string.h>

/*
 * An L1 table with room for `entries`, at a new place.
 *
 * Durable first: the new table's content and its refcounts. Only then: the header fields that lead to it. Power lost in between
 * leaves the old table in force and the new one leaked. The old table is freed when the header is durable.
 */
static int l1_grow(struct fiber *f, struct qcow2 *q, uint32_t entries, order_mark *ret_mark, struct varve_error *err)
{
	uint64_t clusters = div_up(entries * 8ull, q->cluster_len), host_off = 0, got = 0;
	uint64_t old_off = q->h.l1_off, old_clusters = div_up(q->h.l1_entries * 8ull, q->cluster_len);
	struct { be32 entries; be64 off; } __attribute__((packed)) header;
	be64 part[512];
	order_mark mark;
	uint64_t *l1;
	bool fresh;
	int r;

	if (entries > QCOW2_L1_LEN_MAX / 8)
		return varve_error_set(err, -EFBIG, "the L1 table would have %u entries, at most %llu are possible", entries,
				       (unsigned long long)(QCOW2_L1_LEN_MAX / 8));
	l1 = calloc(entries, 8);
	if (!l1)
		return varve_error_errno(err, -ENOMEM, "L1 table");
	memcpy(l1, q->l1, q->h.l1_entries * 8ull);
	/* A table must be in one piece: freed runs that are too short are given back, and the frontier is tried. */
	do {
		if (got)
			alloc_free(f, q, host_off, got, ORDER_NONE);
		r = alloc_clusters(f, q, clusters, &host_off, &got, &fresh, &mark);
	} while (r == 0 && got < clusters);
	for (uint32_t done = 0; r == 0 && done < clusters * q->cluster_len / 8;) {
		uint32_t n = (uint32_t)MIN(clusters * q->cluster_len / 8 - done, ARRAY_LEN(part));

		for (uint32_t i = 0; i < n; i++)
			part[i] = be64_put(done + i < entries ? l1[done + i] : 0);
		r = order_put(f, q->order, host_off + done * 8ull, part, n * 8ull, ORDER_NONE, NULL);
		done += n;
	}
	header.entries = be32_put(entries);
	header.off = be64_put(host_off);
	if (r == 0)
		r = order_put(f, q->order, offsetof(struct qcow2_header_disk, l1_entries), &header, sizeof(header),
			      order_max(order_now(q->order), mark), &mark);
	if (r == 0)
		r = l2_grow(q, entries);
	if (r < 0) {
		free(l1);
		return varve_error_errno(err, r, "a longer L1 table cannot be made");
	}
	free(q->l1);
	q->l1 = l1;
	q->h.l1_off = host_off;
	q->h.l1_entries = entries;
	if (old_clusters)
		alloc_free(f, q, old_off, old_clusters, mark);
	*ret_mark = mark;
	return 0;
}

int qcow2_truncate(struct fiber *f, struct node *n, uint64_t len, bool preallocate, struct varve_error *err)
{
	struct qcow2 *q = node_state(n);
	uint64_t span = (uint64_t)q->l2_entries << q->cluster_bits, entries;
	order_mark grown = ORDER_NONE;
	be64 disk_len;
	int r = 0;

	if (!q->writable)
		return varve_error_set(err, -EACCES, "%s: opened read-only", node_name(n));
	if (len < q->h.disk_len)
		return varve_error_set(err, -ENOTSUP, "%s: making a qcow2 image smaller is not supported by this version",
				       node_name(n));
	if (preallocate)
		return varve_error_set(err, -ENOTSUP, "%s: preallocation while resizing is not supported by this version",
				       node_name(n));
	if (len > VARVE_LEN_MAX - q->cluster_len || len % 512)
		return varve_error_set(err, -EINVAL, "%s: %llu is no possible size of a disk", node_name(n),
				       (unsigned long long)len);
	if (q->h.nr_snapshots && q->h.version < 3)
		return varve_error_set(err, -ENOTSUP, "%s: a version 2 image with snapshots cannot be resized", node_name(n));
	entries = div_up(len, span);
	node_drain_begin(f, n);
	if (entries > q->h.l1_entries)
		r = entries > UINT32_MAX ? varve_error_set(err, -EFBIG, "%s: too large", node_name(n)) :
					   l1_grow(f, q, (uint32_t)entries, &grown, err);
	if (r == 0) {
		/* The longer size only when the L1 table for it is durable: a header with too short a table is refused. */
		disk_len = be64_put(len);
		r = order_put(f, q->order, offsetof(struct qcow2_header_disk, disk_len), &disk_len, sizeof(disk_len),
			      grown, NULL);
		if (r < 0)
			varve_error_errno(err, r, "%s: the size in the header", node_name(n));
	}
	if (r == 0) {
		q->h.disk_len = len;
		atomic_store(&n->len, len);
	}
	node_drain_end(n);
	return r < 0 ? r : order_flush(f, q->order);
}
