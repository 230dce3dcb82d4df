/* SPDX-License-Identifier: MIT */
/*
 * qcow2/check_l2.c - examination of L1 and L2 tables
 *
 * Owns:    the reading of entries as an examiner reads them: every bit may be wrong.
 * Assumes: check.c has checked that the L1 tables lie in the file.
 * Never:   reads an L2 table twice in one walk, however many L1 entries name it.
 */
#include <stdlib.h>
#include <string.h>

#include "format/qcow2/check.h"

/* What is being walked, for counting and for words. */
struct walker {
	const struct check_l1 *l1;
	enum walk_mode mode;
	uint64_t guest_off; /* of the current entry */
};

static const char *where(struct walker *w)
{
	return w->l1->snapshot ? w->l1->snapshot : "the active layer";
}

static bool is_active(const struct walker *w)
{
	return !w->l1->snapshot;
}

static unsigned long long ull(uint64_t x)
{
	return x;
}

/* ---- L2 ---- */

struct compressed {
	uint64_t off, len; /* of the sectors that may hold it, from its first byte on */
};

static struct compressed compressed_place(const struct checker *k, uint64_t entry)
{
	unsigned bits = 62 - (k->q->cluster_bits - 8);
	uint64_t sectors = (entry & ~(QCOW2_COPIED | QCOW2_COMPRESSED)) >> bits;
	struct compressed p = { .off = entry & ((1ull << bits) - 1) };

	p.len = (sectors + 1) * 512 - p.off % 512;
	return p;
}

static void note_cluster(struct checker *k, struct walker *w, uint64_t host_off)
{
	struct varve_check_result *res = k->c->result;

	if (!is_active(w) || !k->first)
		return;
	res->allocated_clusters++;
	if (k->next_host && host_off != k->next_host)
		res->fragmented_clusters++;
	k->next_host = host_off + k->q->cluster_len;
}

static int compressed_entry(struct checker *k, struct walker *w, uint64_t entry, uint64_t bitmap,
			    uint32_t weight)
{
	struct compressed p = compressed_place(k, entry);
	uint64_t first = align_down(p.off, k->q->cluster_len);

	if (k->q->external) {
		if (k->first)
			check_corruption(k, "guest offset 0x%llx in %s %s (entry 0x%llx)", ull(w->guest_off), where(w),
					 data_entry_fault(entry, w->guest_off), ull(entry));
		return 0;
	}
	if (k->first && (entry & QCOW2_COPIED))
		check_corruption(k,
				 "guest offset 0x%llx in %s: compressed cluster at host offset 0x%llx is "
				 "marked COPIED",
				 ull(w->guest_off), where(w), ull(p.off));
	if (k->first && bitmap)
		check_corruption(
			k, "guest offset 0x%llx in %s: compressed cluster has a subcluster bitmap (0x%llx)",
			ull(w->guest_off), where(w), ull(bitmap));
	/* The last sector may be a little behind the end: it is the end of what was written. */
	if (p.off >= k->file_len || !check_inside(k, first, p.off - first + p.len)) {
		if (k->first)
			check_corruption(k,
					 "guest offset 0x%llx in %s: compressed data at host offset 0x%llx, "
					 "length %llu, "
					 "lies beyond the end of the file",
					 ull(w->guest_off), where(w), ull(p.off), ull(p.len));
		return 0;
	}
	if (is_active(w) && k->first) {
		/* Packed at byte positions: reading it is never part of one long stretch. */
		k->c->result->allocated_clusters++;
		k->c->result->compressed_clusters++;
		k->c->result->fragmented_clusters++;
	}
	return check_count(k, p.off, p.len, weight, 0);
}

/* The bits of a standard entry. */
static void examine_entry(struct checker *k, struct walker *w, uint64_t entry, uint64_t bitmap)
{
	uint64_t host_off = entry & QCOW2_OFF_MASK;
	bool extended = k->q->l2_entry_len == 16;

	if (k->q->external && data_entry_fault(entry, w->guest_off))
		check_corruption(k, "guest offset 0x%llx in %s %s (entry 0x%llx)", ull(w->guest_off), where(w),
				 data_entry_fault(entry, w->guest_off), ull(entry));
	else if (!is_aligned(host_off, k->q->cluster_len))
		check_corruption(
			k,
			"guest offset 0x%llx in %s: host offset 0x%llx is not a multiple of the cluster size",
			ull(w->guest_off), where(w), ull(host_off));
	if (entry & (QCOW2_L2_RESERVED | (extended ? QCOW2_ZERO : 0)))
		check_corruption(k, "guest offset 0x%llx in %s: L2 entry 0x%llx has reserved bits set",
				 ull(w->guest_off), where(w), ull(entry));
	if (!extended && (entry & QCOW2_ZERO) && k->q->h.version < 3)
		check_corruption(k, "guest offset 0x%llx in %s: zero cluster in a version 2 image",
				 ull(w->guest_off), where(w));
	if (extended && ((uint32_t)bitmap & (uint32_t)(bitmap >> 32)))
		check_corruption(
			k,
			"guest offset 0x%llx in %s: subclusters are both allocated and zero (bitmap 0x%llx)",
			ull(w->guest_off), where(w), ull(bitmap));
	if (extended && host_off == 0 && !at_zero(k->q, entry) && (uint32_t)bitmap)
		check_corruption(
			k, "guest offset 0x%llx in %s: subclusters without a host cluster (bitmap 0x%llx)",
			ull(w->guest_off), where(w), ull(bitmap));
}

static int standard_entry(struct checker *k, struct walker *w, uint64_t entry, uint64_t bitmap,
			  uint32_t weight)
{
	uint64_t host_off = entry & QCOW2_OFF_MASK, in_cluster = host_off % k->q->cluster_len;
	uint32_t flags = 0;

	if (k->first)
		examine_entry(k, w, entry, bitmap);
	if (host_off == 0 && !at_zero(k->q, entry))
		return 0;
	note_cluster(k, w, host_off);
	if (k->q->external)
		return 0; /* a place in the data file: nothing of ours */
	if (!check_inside(k, host_off - in_cluster, in_cluster + k->q->cluster_len)) {
		if (k->first)
			check_corruption(k,
					 "guest offset 0x%llx in %s: host offset 0x%llx lies beyond the end "
					 "of the file (0x%llx)",
					 ull(w->guest_off), where(w), ull(host_off), ull(k->file_len));
		return 0;
	}
	if (is_active(w) && !in_cluster)
		flags = entry & QCOW2_COPIED ? REF_COPIED_SET : REF_COPIED_CLEAR;
	/*
	 * Not aligned, it counts for both clusters that it touches: neither may be taken for a leak and
	 * freed.
	 */
	return check_count(k, host_off, k->q->cluster_len, weight, flags);
}

static void blame_entry(struct checker *k, struct walker *w, uint64_t entry)
{
	uint64_t host_off = entry & QCOW2_OFF_MASK, len = k->q->cluster_len;

	if (entry & QCOW2_COMPRESSED) {
		struct compressed p = compressed_place(k, entry);

		host_off = align_down(p.off, k->q->cluster_len);
		len = p.off - host_off + p.len;
	} else if (k->q->h.incompatible & QCOW2_INCOMPAT_DATA_FILE) {
		return;
	}
	if (host_off == 0 || !check_inside(k, host_off, len))
		return;
	for (uint64_t off = host_off; off < host_off + len; off += k->q->cluster_len) {
		if (refs_get(&k->refs, off >> k->q->cluster_bits) & REF_BLAME)
			check_report(k->c, "affected: guest offset 0x%llx in %s uses host offset 0x%llx",
				     ull(w->guest_off), where(w), ull(off));
	}
}

static int walk_l2(struct fiber *f, struct checker *k, struct walker *w, uint64_t l2_off, uint32_t weight)
{
	const be64 *entries = (const be64 *)k->table;
	unsigned step = k->q->l2_entry_len / 8;
	int err = check_read(f, k, l2_off, k->table, k->q->cluster_len);

	k->next_host = 0; /* fragments are counted within one table, as the other tools do */
	if (err < 0) {
		if (k->first && w->mode == WALK_COUNT)
			check_unread(k, "L2 table at host offset 0x%llx (guest offset 0x%llx in %s): %s",
				     ull(l2_off), ull(w->guest_off), where(w), strerror(-err));
		return 0;
	}
	for (uint32_t i = 0; i < k->q->l2_entries && err == 0; i++, w->guest_off += k->q->cluster_len) {
		uint64_t entry = be64_get(entries[i * step]);
		uint64_t bitmap = step == 2 ? be64_get(entries[i * step + 1]) : 0;

		if (!entry && !bitmap)
			continue;
		if (w->mode == WALK_BLAME)
			blame_entry(k, w, entry);
		else if (entry & QCOW2_COMPRESSED)
			err = compressed_entry(k, w, entry, bitmap, weight);
		else
			err = standard_entry(k, w, entry, bitmap, weight);
	}
	return err;
}

/* ---- L1 ---- */

/* In WALK_TABLES: examines one entry of an L1 table, adds its L2 table to the set. */
static int collect_l1_entry(struct checker *k, struct walker *w, uint32_t i, uint64_t entry)
{
	uint64_t l2_off = entry & QCOW2_OFF_MASK;
	int err;

	if (entry & QCOW2_L1_RESERVED)
		check_corruption(k, "L1 entry %u of %s (guest offset 0x%llx): 0x%llx has reserved bits set",
				 i, where(w), ull(w->guest_off), ull(entry));
	if (l2_off == 0 && (entry & QCOW2_COPIED))
		check_corruption(k,
				 "L1 entry %u of %s (guest offset 0x%llx): 0x%llx is marked COPIED, but has "
				 "no L2 table",
				 i, where(w), ull(w->guest_off), ull(entry));
	if (l2_off == 0)
		return 0;
	if (!is_aligned(l2_off, k->q->cluster_len)) {
		check_corruption(k,
				 "L1 entry %u of %s (guest offset 0x%llx): host offset 0x%llx of the L2 "
				 "table is not a multiple "
				 "of the cluster size",
				 i, where(w), ull(w->guest_off), ull(l2_off));
		return 0;
	}
	if (!check_inside(k, l2_off, k->q->cluster_len)) {
		check_corruption(k,
				 "L1 entry %u of %s (guest offset 0x%llx): the L2 table at host offset "
				 "0x%llx lies beyond the "
				 "end of the file (0x%llx)",
				 i, where(w), ull(w->guest_off), ull(l2_off), ull(k->file_len));
		return 0;
	}
	/* The active layer is walked first. Two of its entries must not share a table: a writer refuses that, whatever the counts say. */
	if (is_active(w) && l2_set_find(&k->l2s, l2_off >> k->q->cluster_bits))
		check_corruption(k, "L1 entry %u of %s (guest offset 0x%llx): the L2 table at host offset 0x%llx is that of another entry, too",
				 i, where(w), ull(w->guest_off), ull(l2_off));
	err = l2_set_add(&k->l2s, l2_off >> k->q->cluster_bits, w->l1->weight);
	if (err == -EFBIG)
		return varve_error_set(k->err, err, "%s: more than %u L2 tables; check cannot hold them all",
				       node_name(k->q->node), CHECK_L2_TABLES_MAX);
	return err < 0 ? varve_error_set(k->err, err, "%s: out of memory", node_name(k->q->node)) : 0;
}

/* In the other modes: counts the L2 table itself, and walks it unless this walk has been there. */
static int follow_l1_entry(struct fiber *f, struct checker *k, struct walker *w, uint64_t entry)
{
	uint64_t l2_off = entry & QCOW2_OFF_MASK, cluster = l2_off >> k->q->cluster_bits;
	struct l2_slot *slot;
	uint32_t weight, flags = 0;
	int err;

	if (l2_off == 0 || !is_aligned(l2_off, k->q->cluster_len))
		return 0;
	slot = l2_set_find(&k->l2s, cluster);
	if (!slot || slot->seen == k->walk)
		return 0;
	slot->seen = k->walk;
	weight = slot->weight;
	if (w->mode == WALK_COUNT) {
		if (is_active(w))
			flags = entry & QCOW2_COPIED ? REF_COPIED_SET : REF_COPIED_CLEAR;
		err = check_count(k, l2_off, k->q->cluster_len, weight, flags | REF_METADATA);
		if (err < 0)
			return err;
	}
	return walk_l2(f, k, w, l2_off, weight);
}

static int walk_l1(struct fiber *f, struct checker *k, struct walker *w)
{
	uint64_t l2_covers = (uint64_t)k->q->l2_entries << k->q->cluster_bits;
	const struct check_l1 *l1 = w->l1;
	int err = 0;

	for (uint32_t i = 0; i < l1->entries && err == 0;) {
		uint32_t nr = MIN(l1->entries - i, (uint32_t)(CHECK_CHUNK / 8));

		err = check_read(f, k, l1->off + (uint64_t)i * 8, k->chunk, nr * 8);
		if (err < 0) {
			if (w->mode == WALK_TABLES)
				check_unread(k, "L1 table of %s at host offset 0x%llx: %s", where(w),
					     ull(l1->off), strerror(-err));
			return 0;
		}
		for (uint32_t j = 0; j < nr && err == 0; j++, i++) {
			uint64_t entry = be64_get(k->chunk[j]);

			w->guest_off = i * l2_covers;
			if (entry && w->mode == WALK_TABLES)
				err = collect_l1_entry(k, w, i, entry);
			else if (entry)
				err = follow_l1_entry(f, k, w, entry);
			check_progress(f, k, 1);
		}
	}
	return err;
}

int check_walk(struct fiber *f, struct checker *k, enum walk_mode mode)
{
	int err = 0;

	k->walk++;
	for (unsigned i = 0; i < k->nr_l1s && err == 0; i++) {
		struct walker w = { .l1 = &k->l1s[i], .mode = mode };

		err = walk_l1(f, k, &w);
	}
	return err;
}
