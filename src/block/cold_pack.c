/* SPDX-License-Identifier: MIT */
/*
 * block/cold_pack.c - writes whose clusters are to be stored compressed
 *
 * A wish, not a promise: clusters that have space of their own are written there, and so are those that do not get
 * smaller, and parts of clusters. Only formats that cannot compress at all refuse it.
 */
#include "base/iov.h"
#include "block/block.h"

#include <stdlib.h>
#include <string.h>

/* True: a cluster that can be compressed begins at pos; its guest bytes, with zeroes behind the disk's end, are in bytes. */
static bool take_cluster(struct node *n, const struct req *r, uint64_t pos, uint8_t *bytes)
{
	uint64_t off = r->off + pos, len = MIN((uint64_t)n->cluster_len, node_len(n) - off);

	if (!is_aligned(off, n->cluster_len) || len > r->len - pos)
		return false;
	iov_to_buf(r->iov, r->nr_iov, pos, bytes, len);
	memset(bytes + len, 0, n->cluster_len - len);
	return true;
}

/* 1: it has to be written plainly. */
static int pack_cluster(struct fiber *f, struct node *n, uint64_t off, const uint8_t *bytes)
{
	struct extent e;
	int ret;

	for (;;) {
		n->drv->map(n, off, MIN((uint64_t)n->cluster_len, node_len(n) - off), &e);
		if (e.kind != EXTENT_UNLOADED)
			break;
		ret = n->drv->load(f, n, off);
		if (ret < 0)
			return ret;
	}
	if (e.kind == EXTENT_ERROR)
		return damage_met(f, n, off, e.len, &e, true);
	if ((e.kind == EXTENT_DATA && (e.flags & EXTENT_INPLACE)) || (e.flags & EXTENT_ALLOCATED))
		return 1;
	return n->drv->pack(f, n, off, bytes);
}

static int write_plainly(struct fiber *f, struct node *n, struct req *r, uint64_t pos, uint64_t len, struct iovec *part)
{
	size_t got;
	unsigned nr = iov_slice(part, r->nr_iov, r->iov, r->nr_iov, pos, len, &got);

	assert(got == len);
	return write_locked(f, n, r->off + pos, len, part, nr);
}

int cold_pack(struct fiber *f, struct node *n, struct req *r)
{
	struct iovec *part = NULL;
	uint8_t *bytes = NULL;
	struct range range;
	uint64_t step;
	int ret = 0;

	if (!n->drv->pack || n->data) /* what is compressed has no place of its own */
		return -ENOTSUP;
	part = malloc(r->nr_iov * sizeof(*part));
	if (!part || posix_memalign((void **)&bytes, 4096, n->cluster_len)) {
		free(part);
		return -ENOMEM;
	}
	clusters_lock(f, n, &range, r->off, r->len);
	for (uint64_t pos = 0; ret == 0 && pos < r->len; pos += step) {
		uint64_t in_cluster = (r->off + pos) & (n->cluster_len - 1);

		step = MIN(n->cluster_len - in_cluster, r->len - pos);
		ret = take_cluster(n, r, pos, bytes) ? pack_cluster(f, n, r->off + pos, bytes) : 1;
		if (ret == 1)
			ret = write_plainly(f, n, r, pos, step, part);
	}
	range_unlock(&n->ranges, &range);
	free(bytes);
	free(part);
	return ret;
}
