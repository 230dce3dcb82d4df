/* SPDX-License-Identifier: MIT */
/*
 * qcow2/meta.c - which host clusters hold metadata
 *
 * Refcounts say what is free. A damaged or crafted image may say that of its own tables; then the guest would
 * be given them to write to. This is the second opinion, asked for every cluster that is handed out and every
 * L2 entry that is read.
 *
 * Owns:    a set of the single clusters (L2 tables, refcount blocks, the bitmap directory), and the ranges of snapshots.
 *          Room in it is reserved before it is needed: between the two the fiber may wait, and others reserve and add, too.
 * Assumes: home queue. The header, L1 and refcount table are where struct qcow2_header says.
 *          What becomes metadata is in it before the frontier (alloc.c) is behind it: whoever looks at an entry in between must not
 *          find a cluster that is no longer behind the end, and not metadata yet.
 * Never:   knows the L2 tables that only snapshots have, unless it is asked to (overlap-check=all: finding them costs reading
 *          the L1 tables of all snapshots at open); their clusters are counted, like data.
 */
#include "format/qcow2/bitmaps.h"
#include "format/qcow2/snapshot.h"

#include <stdlib.h>

#define SLOTS_MIN 64
#define INACTIVE_MAX (1u << 24) /* entries of L1 tables of snapshots that are looked at */

struct meta_range {
	uint64_t first, end;
};

struct meta_ranges {
	uint32_t nr;
	struct meta_range range[]; /* ascending, disjoint */
};

struct meta {
	uint64_t *slots;	    /* cluster, 0: free (cluster 0 is the header's) */
	uint64_t nr, nr_reserved;   /* in it; that somebody is going to add */
	uint64_t nr_slots;	    /* a power of two, at least twice as many as both */
	struct meta_ranges *ranges; /* NULL: no snapshots */
};

/* ---- the set: open addressing, linear probing ---- */

static uint64_t slot_of(const struct meta *m, uint64_t cluster)
{
	return ((cluster * 0x9e3779b97f4a7c15ull) >> 32) & (m->nr_slots - 1);
}

static uint64_t find_slot(const struct meta *m, uint64_t cluster)
{
	uint64_t i = slot_of(m, cluster);

	while (m->slots[i] && m->slots[i] != cluster)
		i = (i + 1) & (m->nr_slots - 1);
	return i;
}

/* Room for nr in all. */
static int make_room(struct meta *m, uint64_t nr)
{
	struct meta bigger = { .nr_slots = MAX(m->nr_slots, SLOTS_MIN) };

	while (bigger.nr_slots < 2 * nr)
		bigger.nr_slots *= 2;
	if (bigger.nr_slots == m->nr_slots)
		return 0;
	bigger.slots = calloc(bigger.nr_slots, sizeof(bigger.slots[0]));
	if (!bigger.slots)
		return -ENOMEM;
	for (uint64_t i = 0; i < m->nr_slots; i++) {
		if (m->slots[i])
			bigger.slots[find_slot(&bigger, m->slots[i])] = m->slots[i];
	}
	free(m->slots);
	m->slots = bigger.slots;
	m->nr_slots = bigger.nr_slots;
	return 0;
}

int meta_reserve(struct qcow2 *q, uint64_t nr)
{
	struct meta *m = q->meta;
	int err = make_room(m, m->nr + m->nr_reserved + nr);

	if (err == 0)
		m->nr_reserved += nr;
	return err;
}

void meta_unreserve(struct qcow2 *q, uint64_t nr)
{
	assert(nr <= q->meta->nr_reserved);
	q->meta->nr_reserved -= nr;
}

void meta_add(struct qcow2 *q, uint64_t cluster)
{
	struct meta *m = q->meta;
	uint64_t i = find_slot(m, cluster);

	assert(cluster && m->nr_reserved);
	m->nr_reserved--;
	m->nr += !m->slots[i];
	m->slots[i] = cluster;
}

void meta_remove(struct qcow2 *q, uint64_t cluster)
{
	struct meta *m = q->meta;
	uint64_t mask = m->nr_slots - 1, hole = find_slot(m, cluster);

	if (!m->slots[hole])
		return;
	/* Those behind move up if their search would end at the hole. */
	for (uint64_t i = (hole + 1) & mask; m->slots[i]; i = (i + 1) & mask) {
		if (((i - slot_of(m, m->slots[i])) & mask) < ((i - hole) & mask))
			continue;
		m->slots[hole] = m->slots[i];
		hole = i;
	}
	m->slots[hole] = 0;
	m->nr--;
}

void meta_undo(struct qcow2 *q, uint64_t cluster)
{
	meta_remove(q, cluster);
	q->meta->nr_reserved++;
}

void meta_leave(struct qcow2 *q, uint64_t cluster)
{
	if (!q->guards_inactive)
		meta_remove(q, cluster);
}

/* ---- ranges ---- */

static bool in_table(const struct qcow2 *q, uint64_t cluster, uint64_t host_off, uint64_t len)
{
	return len && cluster >= host_off >> q->cluster_bits &&
	       cluster < div_up(host_off + len, q->cluster_len);
}

static bool in_ranges(const struct meta_ranges *r, uint64_t cluster)
{
	uint32_t low = 0, high = r ? r->nr : 0;

	while (low < high) {
		uint32_t mid = low + (high - low) / 2;

		if (cluster >= r->range[mid].end)
			low = mid + 1;
		else
			high = mid;
	}
	return r && low < r->nr && cluster >= r->range[low].first;
}

bool meta_holds(const struct qcow2 *q, uint64_t cluster)
{
	const struct meta *m = q->meta;

	return cluster == 0 || in_table(q, cluster, q->h.l1_off, q->h.l1_entries * 8ull) ||
	       in_table(q, cluster, q->h.refcount_table_off,
			(uint64_t)q->h.refcount_table_clusters << q->cluster_bits) ||
	       m->slots[find_slot(m, cluster)] == cluster || in_ranges(m->ranges, cluster);
}

static int by_first(const void *a, const void *b)
{
	const struct meta_range *ra = a, *rb = b;

	return ra->first < rb->first ? -1 : ra->first > rb->first;
}

static void merge_ranges(struct meta_ranges *r)
{
	struct meta_range *out = r->range;

	if (!r->nr)
		return;
	qsort(r->range, r->nr, sizeof(r->range[0]), by_first);
	for (uint32_t i = 1; i < r->nr; i++) {
		if (r->range[i].first <= out->end)
			out->end = MAX(out->end, r->range[i].end);
		else
			*++out = r->range[i];
	}
	r->nr = (uint32_t)(out - r->range) + 1;
}

static void add_range(const struct qcow2 *q, struct meta_ranges *r, uint64_t host_off, uint64_t len)
{
	uint64_t end;

	/* What lies outside the file cannot be handed out. It is for check to report. */
	if (len && !u64_add(host_off, len, &end) && end <= q->end_cluster << q->cluster_bits)
		r->range[r->nr++] =
			(struct meta_range){ host_off >> q->cluster_bits, div_up(end, q->cluster_len) };
}

struct meta_ranges *meta_ranges_new(const struct qcow2 *q, const struct qcow2_snapshot *list, uint32_t nr,
				    uint32_t without, uint64_t table_off, uint64_t table_len)
{
	struct meta_ranges *r = calloc(1, sizeof(*r) + (nr + 1ull) * sizeof(r->range[0]));

	if (!r)
		return NULL;
	add_range(q, r, table_off, table_len);
	for (uint32_t i = 0; i < nr; i++) {
		if (i != without)
			add_range(q, r, list[i].l1_off, list[i].l1_entries * 8ull);
	}
	merge_ranges(r);
	return r;
}

void meta_ranges_set(struct qcow2 *q, struct meta_ranges *ranges)
{
	free(q->meta->ranges);
	q->meta->ranges = ranges;
}

/* The snapshot table and the L1 tables that it names. */
static int open_snapshots(struct fiber *f, struct qcow2 *q, struct varve_error *err)
{
	struct qcow2_snapshot *list;
	uint64_t table_len;
	int ret;

	if (!q->h.nr_snapshots)
		return 0;
	ret = snapshots_read(f, q->file, &q->h, &list, &table_len, err);
	if (ret < 0)
		return ret;
	q->meta->ranges = meta_ranges_new(q, list, q->h.nr_snapshots, UINT32_MAX, q->h.snapshots_off, table_len);
	if (!q->meta->ranges)
		ret = varve_error_set(err, -ENOMEM, "metadata map: out of memory");
	snapshots_free(list, q->h.nr_snapshots);
	return ret;
}

/* ---- open, close ---- */

static int add_checked(struct qcow2 *q, const char *what, uint32_t nr, uint64_t host_off,
		       struct varve_error *err)
{
	uint64_t cluster = host_off >> q->cluster_bits;

	if (meta_holds(q, cluster))
		return varve_error_set(
			err, -EIO,
			"%s %u leads to host offset 0x%llx, which holds other metadata: the image is "
			"damaged; open it read-only, or repair it first",
			what, nr, (unsigned long long)host_off);
	if (meta_reserve(q, 1) < 0)
		return varve_error_set(err, -ENOMEM, "metadata map: out of memory");
	meta_add(q, cluster);
	return 0;
}

static int add_l2_tables(struct qcow2 *q, struct varve_error *err)
{
	int ret = 0;

	for (uint32_t i = 0; i < q->h.l1_entries && ret == 0; i++) {
		uint64_t entry = q->l1[i], host_off = entry & QCOW2_OFF_MASK;

		if (!entry)
			continue;
		if ((entry & QCOW2_L1_RESERVED) || !host_off || !is_aligned(host_off, q->cluster_len) ||
		    host_off >> q->cluster_bits >= q->end_cluster)
			return varve_error_set(
				err, -EIO,
				"L1 entry %u (0x%llx) leads to no L2 table inside the file: the image is "
				"damaged; open it read-only, or repair it first",
				i, (unsigned long long)entry);
		ret = add_checked(q, "L1 entry", i, host_off, err);
	}
	return ret;
}

/* Where bitmaps are no longer valid, the directory may be anybody's. */
static int add_bitmap_directory(struct qcow2 *q, struct varve_error *err)
{
	uint64_t nr = div_up(q->h.bitmap_directory_len, q->cluster_len);
	int ret = 0;

	if (!q->h.nr_bitmaps || !bitmaps_valid(&q->h))
		return 0;
	for (uint32_t i = 0; i < nr && ret == 0; i++)
		ret = add_checked(q, "bitmap directory: cluster", i, q->h.bitmap_directory_off + ((uint64_t)i << q->cluster_bits), err);
	return ret;
}

/* Tables that the disk has, too, are in the set already. What leads nowhere is for check to report. */
static int add_tables_of(struct qcow2 *q, const struct l1_copy *l1, struct varve_error *err)
{
	for (uint32_t i = 0; i < l1->nr; i++) {
		uint64_t host_off = l1->entries[i] & QCOW2_OFF_MASK;

		if (!host_off || !is_aligned(host_off, q->cluster_len) || host_off >> q->cluster_bits >= q->end_cluster)
			continue;
		if (meta_reserve(q, 1) < 0)
			return varve_error_set(err, -ENOMEM, "metadata map: out of memory");
		meta_add(q, host_off >> q->cluster_bits);
	}
	return 0;
}

/* The L2 tables of all snapshots. */
static int add_inactive(struct fiber *f, struct qcow2 *q, struct varve_error *err)
{
	struct qcow2_snapshot *list;
	uint64_t table_len, looked = 0;
	int ret;

	if (!q->guards_inactive || !q->h.nr_snapshots)
		return 0;
	ret = snapshots_read(f, q->file, &q->h, &list, &table_len, err);
	if (ret < 0)
		return ret;
	for (uint32_t i = 0; i < q->h.nr_snapshots && ret == 0; i++) {
		struct l1_copy l1 = { 0 };

		looked += list[i].l1_entries;
		if (looked > INACTIVE_MAX)
			ret = varve_error_set(err, -EFBIG, "option overlap-check: the L1 tables of the snapshots have more than %u entries; "
							   "leave out inactive-l2", INACTIVE_MAX);
		if (ret == 0)
			ret = tables_read_l1(f, q, &list[i], &l1, err);
		if (ret == 0)
			ret = add_tables_of(q, &l1, err);
		free(l1.entries);
	}
	snapshots_free(list, q->h.nr_snapshots);
	return ret;
}

int meta_open(struct fiber *f, struct qcow2 *q, struct varve_error *err)
{
	int ret;

	q->meta = calloc(1, sizeof(*q->meta));
	if (!q->meta || make_room(q->meta, 1) < 0)
		return varve_error_set(err, -ENOMEM, "metadata map: out of memory");
	if (q->h.l1_entries && in_table(q, q->h.l1_off >> q->cluster_bits, q->h.refcount_table_off,
					(uint64_t)q->h.refcount_table_clusters << q->cluster_bits))
		return varve_error_set(err, -EIO,
				       "the L1 table lies in the refcount table: the image is damaged");
	if (in_table(q, q->h.refcount_table_off >> q->cluster_bits, q->h.l1_off, q->h.l1_entries * 8ull))
		return varve_error_set(err, -EIO,
				       "the refcount table lies in the L1 table: the image is damaged");
	ret = open_snapshots(f, q, err);
	for (uint32_t i = 0; i < q->refcount_table_entries && ret == 0; i++) {
		if (q->refcount_table[i])
			ret = add_checked(q, "refcount table entry", i, q->refcount_table[i], err);
	}
	if (ret == 0)
		ret = add_bitmap_directory(q, err);
	if (ret == 0)
		ret = add_l2_tables(q, err);
	return ret < 0 ? ret : add_inactive(f, q, err);
}

void meta_close(struct qcow2 *q)
{
	if (q->meta) {
		assert(!q->meta->nr_reserved);
		free(q->meta->slots);
		free(q->meta->ranges);
	}
	free(q->meta);
	q->meta = NULL;
}
