/* SPDX-License-Identifier: MIT */
/*
 * qcow2/map.c - from guest offsets to extents: the look-up of the hot path
 *
 * Assumes: nothing about the queue it runs on: L1 entries and slices are read atomically.
 * Never:   waits, changes anything, or answers with a place that lies beyond the end of the file. Such a cluster was lost:
 *          reading zeroes there would hide that.
 */
#include "format/qcow2/l2_cache.h"

/* What one unit (cluster, or subcluster of an extended entry) is. */
struct unit {
	enum extent_kind kind;
	uint32_t flags;
	uint64_t host_off; /* of the unit */
};

static const struct unit unit_error = { .kind = EXTENT_ERROR };

static struct unit unit_data(const struct qcow2 *q, uint64_t entry, uint64_t host_off, uint64_t file_len)
{
	if (!is_aligned(entry & QCOW2_OFF_MASK, q->cluster_len) || (entry & QCOW2_OFF_MASK) >= file_len)
		return unit_error;
	return (struct unit){ EXTENT_DATA, (entry & QCOW2_COPIED) && q->writable ? EXTENT_INPLACE : 0, host_off };
}

/* docs/spec/qcow2.md, "L2 entries" */
static struct unit unit_of_entry(const struct qcow2 *q, uint64_t entry, uint64_t file_len)
{
	uint64_t host_off = entry & QCOW2_OFF_MASK;
	struct unit u;

	if (entry & QCOW2_COMPRESSED)
		return (struct unit){ .kind = EXTENT_PACKED };
	if ((entry & QCOW2_L2_RESERVED) || ((entry & QCOW2_ZERO) && q->h.version < 3))
		return unit_error;
	if (!(entry & QCOW2_ZERO))
		return host_off ? unit_data(q, entry, host_off, file_len) : (struct unit){ .kind = EXTENT_ABSENT };
	if (!host_off)
		return (struct unit){ .kind = EXTENT_ZERO };
	if (!is_aligned(host_off, q->cluster_len))
		return unit_error;
	u = (struct unit){ EXTENT_ZERO, EXTENT_ALLOCATED, host_off };
	if ((entry & QCOW2_COPIED) && q->writable)
		u.flags |= EXTENT_INPLACE;
	return u;
}

/* docs/spec/qcow2.md, "Extended L2 entries": 32 subclusters, a bit "allocated" and a bit "reads zero" for each. */
static struct unit unit_of_subcluster(const struct qcow2 *q, uint64_t entry, uint64_t bitmap, unsigned sub,
				      uint64_t file_len)
{
	bool allocated = bitmap >> sub & 1, zero = bitmap >> (32 + sub) & 1;
	uint64_t host_off = (entry & QCOW2_OFF_MASK) + (uint64_t)sub * (q->cluster_len / 32);

	if (entry & QCOW2_COMPRESSED)
		return (struct unit){ .kind = EXTENT_PACKED };
	if ((entry & (QCOW2_L2_RESERVED | QCOW2_ZERO)) || (allocated && zero) || (allocated && !(entry & QCOW2_OFF_MASK)))
		return unit_error;
	if (allocated)
		return unit_data(q, entry, host_off, file_len);
	return (struct unit){ .kind = zero ? EXTENT_ZERO : EXTENT_ABSENT };
}

static struct unit unit_at(const struct qcow2 *q, const struct l2_slice *s, uint64_t off, uint64_t file_len)
{
	uint64_t entry = l2_slice_entry(q, s, off);
	unsigned sub;

	if (q->l2_entry_len == 8)
		return unit_of_entry(q, entry, file_len);
	sub = (unsigned)((off & (q->cluster_len - 1)) / (q->cluster_len / 32));
	return unit_of_subcluster(q, entry, l2_slice_bitmap(q, s, off), sub, file_len);
}

static bool unit_continues(const struct unit *a, const struct unit *b, uint64_t distance)
{
	if (a->kind != b->kind || a->flags != b->flags || a->kind == EXTENT_ERROR || a->kind == EXTENT_PACKED)
		return false;
	if (a->kind == EXTENT_DATA || (a->flags & EXTENT_ALLOCATED))
		return b->host_off == a->host_off + distance;
	return true;
}

/* Empty L1 entries: nothing is mapped, as far as the next table. */
static void map_empty(const struct qcow2 *q, uint64_t span, uint64_t off, uint64_t len, struct extent *ret)
{
	uint64_t i = off / span, end = (i + 1) * span - off;

	while (end < len && ++i < q->h.l1_entries && !__atomic_load_n(&q->l1[i], __ATOMIC_ACQUIRE))
		end += span;
	ret->kind = EXTENT_ABSENT;
	ret->len = MIN(end, len);
}

void l2_map(struct node *n, uint64_t off, uint64_t len, struct extent *ret)
{
	const struct qcow2 *q = node_state(n);
	uint64_t span = (uint64_t)q->l2_entries << q->cluster_bits, i = off / span, l1;
	uint64_t unit_len = q->l2_entry_len == 8 ? q->cluster_len : q->cluster_len / 32;
	uint64_t slice_span = (uint64_t)q->l2->slice_entries << q->cluster_bits;
	uint64_t start = align_down(off, unit_len), limit, file_len, pos;
	const struct l2_slice *s;
	struct unit first;

	*ret = (struct extent){ .kind = EXTENT_ERROR, .error = -EIO, .node = n, .len = len };
	if (i >= q->h.l1_entries)
		return;
	l1 = __atomic_load_n(&q->l1[i], __ATOMIC_ACQUIRE); /* pairs with the release in l1_set() */
	if (!l1) {
		map_empty(q, span, off, len, ret);
		return;
	}
	ret->len = MIN(len, span - off % span);
	file_len = node_len(q->file);
	if ((l1 & QCOW2_L1_RESERVED) || !is_aligned(l1 & QCOW2_OFF_MASK, q->cluster_len) || !(l1 & QCOW2_OFF_MASK))
		return;
	s = l2_cache_find(q, off);
	limit = MIN(len, slice_span - off % slice_span); /* what this slice can answer */
	if (!s) {
		ret->kind = EXTENT_UNLOADED;
		ret->len = limit;
		return;
	}
	first = unit_at(q, s, off, file_len);
	for (pos = start + unit_len; pos - off < limit; pos += unit_len) {
		struct unit next = unit_at(q, s, pos, file_len);

		if (!unit_continues(&first, &next, pos - start))
			break;
	}
	ret->len = MIN(limit, pos - off);
	ret->kind = first.kind;
	ret->flags = first.flags;
	ret->error = first.kind == EXTENT_ERROR ? -EIO : first.kind == EXTENT_PACKED ? -ENOTSUP : 0;
	if (first.kind == EXTENT_DATA || (first.flags & EXTENT_ALLOCATED)) {
		ret->node = q->file;
		ret->host_off = first.host_off + (off - start);
	}
}
