/* SPDX-License-Identifier: MIT */
/*
 * block/cold_unmap.c - discard and write-zeroes on formats with a mapping
 *
 * Whole clusters change their mapping, and so do parts of them in formats that map parts. What is left at both ends is written
 * with zeroes (write-zeroes) or left alone (discard, which is advice).
 */
#include "block/block.h"

#define ZERO_BUF_LEN KiB(256)

static const uint8_t zero_buf[ZERO_BUF_LEN];

static int write_zero_bytes(struct fiber *f, struct node *n, uint64_t off, uint64_t len)
{
	for (uint64_t pos = 0; pos < len;) {
		uint64_t part = MIN(len - pos, ZERO_BUF_LEN);
		struct iovec iov = { (void *)zero_buf, part };
		int ret = write_locked(f, n, off + pos, part, &iov, 1);

		if (ret < 0)
			return ret;
		pos += part;
	}
	return 0;
}

/* Zeroes for a part that no mapping can speak of: nothing to do where it reads as zeroes already. */
static int zero_bytes(struct fiber *f, struct node *n, uint64_t off, uint64_t len, bool fallback)
{
	struct extent e;
	int ret;

	for (uint64_t pos = 0; pos < len; pos += e.len) {
		chain_map(n, off + pos, len - pos, &e);
		if (e.kind == EXTENT_UNLOADED) {
			ret = e.node->drv->load(f, e.node, off + pos);
			e.len = 0;
		} else {
			ret = e.kind == EXTENT_ZERO ? 0 : fallback ? write_zero_bytes(f, n, off + pos, e.len) : -ENOTSUP;
		}
		if (ret < 0)
			return ret;
	}
	return 0;
}

/* What of [off, off + len) is whole in units of `unit`; the disk's end counts as the end of one. *first >= *last: nothing. */
static void inner(const struct node *n, uint64_t unit, uint64_t off, uint64_t len, uint64_t *first, uint64_t *last)
{
	uint64_t end = off + len;

	*first = align_up(off, unit);
	*last = end == node_len(n) ? align_up(end, unit) : align_down(end, unit);
}

/* In units of the mapping, of which the last may go on behind `end`. What the format cannot say is written, or refused. */
static int unlink_zero(struct fiber *f, struct node *n, uint64_t first, uint64_t last, uint64_t end, bool unmap,
		       bool fallback)
{
	int ret = n->drv->unlink(f, n, first, last - first, unmap ? UNLINK_ZERO_UNMAP : UNLINK_ZERO);

	if (ret == -ENOTSUP && fallback)
		ret = write_zero_bytes(f, n, first, MIN(last, end) - first);
	return ret;
}

/* Of one cluster, and not all of it. */
static int zero_part(struct fiber *f, struct node *n, uint64_t off, uint64_t len, bool unmap, bool fallback)
{
	uint64_t end = off + len, first, last;
	int ret;

	inner(n, map_unit(n), off, len, &first, &last);
	if (first >= last || map_unit(n) == n->cluster_len)
		return zero_bytes(f, n, off, len, fallback);
	ret = off < first ? zero_bytes(f, n, off, first - off, fallback) : 0;
	if (ret == 0 && last < end)
		ret = zero_bytes(f, n, last, end - last, fallback);
	return ret < 0 ? ret : unlink_zero(f, n, first, last, end, unmap, fallback);
}

/* fallback: what is no whole cluster, and what the format cannot say, is written as zeroes. */
static int zero_locked(struct fiber *f, struct node *n, uint64_t off, uint64_t len, bool unmap, bool fallback)
{
	uint64_t end = off + len, first, last;
	int ret;

	inner(n, n->cluster_len, off, len, &first, &last);
	if (first >= last) { /* in one cluster, or at the meeting of two */
		if (last > off && last < end) {
			ret = zero_part(f, n, off, last - off, unmap, fallback);
			off = last;
			len = end - last;
			if (ret < 0)
				return ret;
		}
		return zero_part(f, n, off, len, unmap, fallback);
	}
	/* The ends first: where clusters have no parts, what they refuse has changed nothing. */
	ret = off < first ? zero_part(f, n, off, first - off, unmap, fallback) : 0;
	if (ret == 0 && last < end)
		ret = zero_part(f, n, last, end - last, unmap, fallback);
	return ret < 0 ? ret : unlink_zero(f, n, first, last, end, unmap, fallback);
}

/* What the format cannot say of a part it leaves alone: discard is advice. */
static int discard_locked(struct fiber *f, struct node *n, uint64_t off, uint64_t len)
{
	uint64_t first, last;
	int ret;

	inner(n, map_unit(n), off, len, &first, &last);
	if (first >= last)
		return 0;
	ret = n->drv->unlink(f, n, first, last - first, UNLINK_DISCARD);
	return ret == -ENOTSUP ? 0 : ret;
}

int zero_range_locked(struct fiber *f, struct node *n, uint64_t off, uint64_t len)
{
	return zero_locked(f, n, off, len, true, true);
}

int zero_range(struct fiber *f, struct node *n, uint64_t off, uint64_t len)
{
	struct range range;
	int ret;

	clusters_lock(f, n, &range, off, len);
	ret = zero_range_locked(f, n, off, len);
	range_unlock(&n->ranges, &range);
	return ret;
}

int make_empty(struct fiber *f, struct node *n)
{
	uint64_t len = align_up(node_len(n), n->cluster_len);
	struct range range;
	int ret;

	clusters_lock(f, n, &range, 0, len);
	ret = len ? n->drv->unlink(f, n, 0, len, UNLINK_ABSENT) : 0;
	range_unlock(&n->ranges, &range);
	return ret == 0 ? n->drv->sync(f, n) : ret;
}

int cold_unmap(struct fiber *f, struct node *n, struct req *r)
{
	struct range range;
	int ret;

	clusters_lock(f, n, &range, r->off, r->len);
	if (r->op == REQ_DISCARD)
		ret = discard_locked(f, n, r->off, r->len);
	else
		ret = zero_locked(f, n, r->off, r->len, r->flags & REQ_MAY_UNMAP, !(r->flags & REQ_NO_FALLBACK));
	range_unlock(&n->ranges, &range);
	return ret;
}
