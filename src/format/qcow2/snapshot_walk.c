/* SPDX-License-Identifier: MIT */
/*
 * qcow2/snapshot_walk.c - all that an L1 table refers to: examined, counted, given back, COPIED or not
 *
 * Every path from an L1 table to a cluster counts: a data cluster has as many references as there are L1 tables (active
 * or of snapshots) from which it can be reached, and so has an L2 table.
 *
 * Owns:    nothing. The walks read tables through the order queue, so they see what is queued.
 * Assumes: a fiber of the home queue. For walks over the active tables: the disk is drained, or (restore) the stretch that
 *          is changed is locked.
 * Never:   believes a table of a snapshot: tables_verify() comes first.
 */
#include "format/qcow2/snapshot.h"

#include <stdlib.h>
#include <string.h>

#include "format/cache.h"
#include "format/qcow2/entry.h"
#include "format/qcow2/refcount.h"

#define SETTLE_NR 512 /* stretches given back at once */

/* One stretch of host clusters that tables refer to, each once more. table: it is an L2 table. */
typedef int ref_fn(struct fiber *f, struct qcow2 *q, uint64_t cluster, uint64_t nr, bool table, void *arg);

struct walk {
	const struct l1_copy *l1;
	ref_fn *fn;
	void *arg;
	uint64_t left; /* stretches, then it stops; for going back over what was done */
	uint64_t done;
	be64 *table;
	struct varve_error *err;
	uint64_t guest_off;   /* of the entry that is looked at */
	uint64_t cluster, nr; /* the stretch that is being gathered */
};

static int call(struct fiber *f, struct qcow2 *q, struct walk *w, uint64_t cluster, uint64_t nr, bool table)
{
	int ret;

	if (!w->left)
		return 0;
	w->left--;
	ret = w->fn(f, q, cluster, nr, table, w->arg);
	if (ret == 0)
		w->done++;
	return ret;
}

static int flush_stretch(struct fiber *f, struct qcow2 *q, struct walk *w)
{
	uint64_t nr = w->nr;

	w->nr = 0;
	return nr ? call(f, q, w, w->cluster, nr, false) : 0;
}

static int damaged(struct walk *w, uint64_t entry)
{
	return varve_error_set(w->err, -EIO,
			       "%s: the entry 0x%llx for offset 0x%llx is damaged: run a check of the image first",
			       w->l1->whose, (unsigned long long)entry, (unsigned long long)w->guest_off);
}

/* The host clusters that an entry refers to. *ret_nr 0: none. */
static int entry_place(const struct qcow2 *q, struct walk *w, uint64_t entry, uint64_t *ret_cluster, uint64_t *ret_nr)
{
	uint64_t host_off = entry & QCOW2_OFF_MASK;

	*ret_nr = 0;
	if (q->external) /* nothing of this file */
		return 0;
	if (entry & QCOW2_COMPRESSED) {
		unsigned bits = 62 - (q->cluster_bits - 8);
		uint64_t off = entry & ((1ull << bits) - 1);
		uint64_t sectors = (entry & ~(QCOW2_COPIED | QCOW2_COMPRESSED)) >> bits;

		*ret_cluster = off >> q->cluster_bits;
		*ret_nr = div_up(align_down(off, 512) + (sectors + 1) * 512, q->cluster_len) - *ret_cluster;
		return 0;
	}
	if ((entry & QCOW2_L2_RESERVED) || ((entry & QCOW2_ZERO) && q->l2_entry_len == 16) || !is_aligned(host_off, q->cluster_len))
		return damaged(w, entry);
	*ret_cluster = host_off >> q->cluster_bits;
	*ret_nr = host_off ? 1 : 0;
	return 0;
}

static int walk_table(struct fiber *f, struct qcow2 *q, struct walk *w, uint64_t l2_off)
{
	int ret = order_read(f, q->order, l2_off, w->table, q->cluster_len);

	if (ret < 0)
		return varve_error_errno(w->err, ret, "%s: cannot read the L2 table at host offset 0x%llx",
					 w->l1->whose, (unsigned long long)l2_off);
	for (uint32_t i = 0; ret == 0 && w->left && i < q->l2_entries; i++, w->guest_off += q->cluster_len) {
		uint64_t cluster, nr;

		ret = entry_place(q, w, be64_get(w->table[i * (q->l2_entry_len / 8)]), &cluster, &nr);
		if (ret < 0 || !nr)
			continue;
		if (w->nr && cluster == w->cluster + w->nr) {
			w->nr += nr;
			continue;
		}
		ret = flush_stretch(f, q, w);
		w->cluster = cluster;
		w->nr = nr;
	}
	return ret < 0 ? ret : flush_stretch(f, q, w);
}

static int walk(struct fiber *f, struct qcow2 *q, struct walk *w)
{
	int ret = 0;

	w->table = malloc(q->cluster_len);
	if (!w->table)
		return varve_error_set(w->err, -ENOMEM, "%s: out of memory", w->l1->whose);
	for (uint32_t i = 0; ret == 0 && w->left && i < w->l1->nr; i++) {
		uint64_t l2_off = w->l1->entries[i] & QCOW2_OFF_MASK;

		w->guest_off = i * table_covers(q);
		if ((w->l1->entries[i] & QCOW2_L1_RESERVED) || !is_aligned(l2_off, q->cluster_len) ||
		    (l2_off && l2_off >> q->cluster_bits >= q->end_cluster))
			ret = damaged(w, w->l1->entries[i]);
		else if (l2_off)
			ret = walk_table(f, q, w, l2_off);
		if (ret == 0 && l2_off)
			ret = call(f, q, w, l2_off >> q->cluster_bits, 1, true);
	}
	free(w->table);
	return ret;
}

/* ---- examined ---- */

static int verify_ref(struct fiber *f, struct qcow2 *q, uint64_t cluster, uint64_t nr, bool table, void *arg)
{
	struct walk *w = arg;

	for (uint64_t i = 0; i < nr; i++) {
		uint64_t count = 0;
		int ret = cluster + i < q->end_cluster ? refcount_get(f, q, cluster + i, &count) : 0;

		if (ret < 0)
			return varve_error_errno(w->err, ret, "%s: cannot read refcounts", w->l1->whose);
		/* A table may be one of the active disk too; data never is where metadata is. */
		if (!count || (!table && meta_holds(q, cluster + i)))
			return varve_error_set(w->err, -EIO,
					       "%s: it uses host offset 0x%llx, which %s: run a check of the image first",
					       w->l1->whose, (unsigned long long)((cluster + i) << q->cluster_bits),
					       count ? "holds metadata" : "is counted as free");
	}
	return 0;
}

int tables_verify(struct fiber *f, struct qcow2 *q, const struct l1_copy *l1, struct varve_error *err)
{
	struct walk w = { .l1 = l1, .fn = verify_ref, .left = UINT64_MAX, .err = err };

	w.arg = &w;
	return walk(f, q, &w);
}

/* ---- counted ---- */

static int count_ref(struct fiber *f, struct qcow2 *q, uint64_t cluster, uint64_t nr, bool table, void *arg)
{
	(void)table;
	return refcount_add(f, q, cluster, nr, *(int *)arg, ORDER_NONE, NULL);
}

int tables_count(struct fiber *f, struct qcow2 *q, const struct l1_copy *l1, int delta, bool *ret_whole, struct varve_error *err)
{
	uint64_t half_done = q->refcounts->nr_half_done;
	int back = -delta, ret;
	struct walk w = { .l1 = l1, .fn = count_ref, .arg = &delta, .left = UINT64_MAX, .err = err };
	struct walk undo = { .l1 = l1, .fn = count_ref, .arg = &back };

	if (err)
		*err->message = 0;
	ret = walk(f, q, &w);
	if (ret == 0)
		return 0;
	undo.left = w.done;
	*ret_whole = (!w.done || walk(f, q, &undo) == 0) && q->refcounts->nr_half_done == half_done;
	if (ret == -ERANGE)
		return varve_error_set(err, ret,
				       "%s: refcounts of %u bits cannot count one more snapshot of the same clusters",
				       l1->whose, 1u << q->h.refcount_order);
	return err && *err->message ? ret : varve_error_errno(err, ret, "%s: changing refcounts", l1->whose);
}

/* ---- given back ---- */

struct release {
	order_mark gone;
	unsigned nr;
};

static int release_ref(struct fiber *f, struct qcow2 *q, uint64_t cluster, uint64_t nr, bool table, void *arg)
{
	struct release *rel = arg;

	(void)table;
	alloc_free(q, cluster << q->cluster_bits, nr, rel->gone, FREED_SNAPSHOT);
	if (++rel->nr % SETTLE_NR == 0)
		(void)alloc_settle(f, q); /* what is damaged stays counted, and was logged */
	return 0;
}

int tables_release(struct fiber *f, struct qcow2 *q, const struct l1_copy *l1, order_mark gone, struct varve_error *err)
{
	struct release rel = { .gone = gone };
	struct walk w = { .l1 = l1, .fn = release_ref, .arg = &rel, .left = UINT64_MAX, .err = err };
	int ret = walk(f, q, &w);

	/* What is damaged stays counted, and was logged. What the queue has no room for is tried again later, behind the looks at the counts. */
	if (alloc_settle_all(f, q) == -ENOMEM && ret == 0)
		ret = varve_error_errno(err, -ENOMEM, "%s: giving back its space", l1->whose);
	return ret;
}

/* ---- COPIED ---- */

static void clear_piece(struct piece *p, void *arg)
{
	struct qcow2 *q = arg;
	unsigned words = q->l2_entry_len / 8; /* the flag is in the first, where there are two */

	for (unsigned i = 0; i < 1u << q->l2_piece_bits; i++) {
		uint64_t entry = entry_get(p, i * words);

		if (entry & QCOW2_COPIED)
			entry_set(p, i * words, entry & ~QCOW2_COPIED);
	}
}

/* Entries of one table, in memory as they are on disk. *ret_first, *ret_end: words, those that changed. */
static void clear_entries(const struct qcow2 *q, be64 *entries, uint32_t *ret_first, uint32_t *ret_end)
{
	*ret_first = *ret_end = 0;
	for (uint32_t i = 0; i < q->cluster_len / 8; i += q->l2_entry_len / 8) {
		uint64_t entry = be64_get(entries[i]);

		if (!(entry & QCOW2_COPIED))
			continue;
		entries[i] = be64_put(entry & ~QCOW2_COPIED);
		if (!*ret_end)
			*ret_first = i;
		*ret_end = i + 1;
	}
}

int tables_clear_copied(struct fiber *f, struct qcow2 *q, const struct l1_copy *l1, bool active, struct varve_error *err)
{
	be64 *entries = malloc(q->cluster_len);
	uint32_t first, end;
	int ret = entries ? 0 : -ENOMEM;

	for (uint32_t i = 0; ret == 0 && i < l1->nr; i++) {
		uint64_t l2_off = l1->entries[i] & QCOW2_OFF_MASK;

		if (!l2_off)
			continue;
		ret = order_read(f, q->order, l2_off, entries, q->cluster_len);
		if (ret < 0)
			break;
		clear_entries(q, entries, &first, &end);
		if (first < end)
			ret = order_put(f, q->order, l2_off + first * 8ull, entries + first, (end - first) * 8ull,
					ORDER_NONE, NULL);
		/* After the bytes are queued: who loads a piece from now on finds them. */
		if (ret == 0 && active)
			cache_each(f, q->l2, i, clear_piece, q);
	}
	free(entries);
	return ret < 0 ? varve_error_errno(err, ret, "%s: changing L2 tables", l1->whose) : 0;
}

/* Of the entries of a piece, those that nobody else refers to. */
static int restore_piece(struct fiber *f, struct qcow2 *q, uint32_t table, uint32_t nr, struct piece *p)
{
	unsigned per_piece = 1u << q->l2_piece_bits, words = q->l2_entry_len / 8;
	uint64_t host_off = (q->l1[table] & QCOW2_OFF_MASK) + (uint64_t)nr * q->l2->piece_len;

	for (unsigned i = 0; i < per_piece; i++) {
		uint64_t entry = entry_get(p, i * words), count;
		be64 disk = be64_put(entry | QCOW2_COPIED);
		int ret;

		if ((entry & (QCOW2_COPIED | QCOW2_COMPRESSED | QCOW2_L2_RESERVED)) || !(entry & QCOW2_OFF_MASK))
			continue;
		ret = refcount_get(f, q, (entry & QCOW2_OFF_MASK) >> q->cluster_bits, &count);
		if (ret == 0 && count == 1) {
			ret = order_put(f, q->order, host_off + i * (uint64_t)q->l2_entry_len, &disk, sizeof(disk),
					ORDER_NONE, NULL);
			if (ret == 0)
				entry_set(p, i * words, entry | QCOW2_COPIED);
		}
		if (ret < 0)
			return ret;
	}
	return 0;
}

static int restore_table(struct fiber *f, struct qcow2 *q, uint32_t table)
{
	uint64_t piece_covers = 1ull << (q->l2_piece_bits + q->cluster_bits), off = table * table_covers(q);
	int ret = 0;

	for (uint32_t nr = 0; ret == 0 && nr < q->l2->nr_per_row; nr++, off += piece_covers) {
		struct range range;
		struct piece *p;

		/* Nobody changes these entries meanwhile, nor the table they are in: it is ours. */
		range_lock(f, &q->node->ranges, &range, off, piece_covers);
		if (table < q->h.l1_entries && (q->l1[table] & QCOW2_COPIED)) {
			ret = cache_get(f, q->l2, table, nr, false, &p);
			if (ret == 0) {
				ret = restore_piece(f, q, table, nr, p);
				cache_unpin(q->l2, p);
			}
		}
		range_unlock(&q->node->ranges, &range);
	}
	return ret;
}

/* The L1 entry, if only the active disk has the table. */
static int restore_l1(struct fiber *f, struct qcow2 *q, uint32_t table)
{
	uint64_t entry = q->l1[table], count;
	be64 disk = be64_put(entry | QCOW2_COPIED);
	int ret;

	if (!entry || (entry & QCOW2_COPIED))
		return 0;
	ret = refcount_get(f, q, (entry & QCOW2_OFF_MASK) >> q->cluster_bits, &count);
	if (ret < 0 || count != 1)
		return ret;
	ret = order_put(f, q->order, q->h.l1_off + table * 8ull, &disk, sizeof(disk), ORDER_NONE, NULL);
	if (ret == 0)
		q->l1[table] = entry | QCOW2_COPIED;
	return ret;
}

/*
 * Setting a flag needs nothing durable before it but the end of the other reference: the caller has seen to that. A flag
 * that a cut keeps from the disk costs a copy that was not needed.
 */
int tables_restore_copied(struct fiber *f, struct qcow2 *q, struct varve_error *err)
{
	int ret = 0;

	for (uint32_t i = 0; ret == 0 && i < q->h.l1_entries; i++) {
		fiber_lock(f, &q->l1_mutex);
		if (i < q->h.l1_entries)
			ret = restore_l1(f, q, i);
		fiber_unlock(&q->l1_mutex);
		if (ret == 0 && i < q->h.l1_entries && (q->l1[i] & QCOW2_COPIED))
			ret = restore_table(f, q, i);
	}
	return ret < 0 ? varve_error_errno(err, ret, "marking clusters as used once") : 0;
}

/* ---- L1 of a snapshot ---- */

int tables_read_l1(struct fiber *f, struct qcow2 *q, const struct qcow2_snapshot *s, struct l1_copy *ret,
		   struct varve_error *err)
{
	uint64_t len = s->l1_entries * 8ull, end;
	int r;

	if (s->l1_entries > QCOW2_L1_LEN_MAX / 8 || !is_aligned(s->l1_off, q->cluster_len) ||
	    u64_add(s->l1_off, len, &end) || end > align_up(node_len(q->leaf), q->cluster_len) || (len && !s->l1_off))
		return varve_error_set(err, -EIO,
				       "snapshot '%s': its L1 table of %u entries at host offset 0x%llx is not inside the "
				       "file: the image is damaged",
				       s->name, s->l1_entries, (unsigned long long)s->l1_off);
	if (s->disk_len > VARVE_LEN_MAX || disk_tables(q, s->disk_len) > s->l1_entries)
		return varve_error_set(err, -EIO,
				       "snapshot '%s': an L1 table of %u entries is too short for a disk of %llu bytes: the "
				       "image is damaged",
				       s->name, s->l1_entries, (unsigned long long)s->disk_len);
	*ret = (struct l1_copy){ .nr = s->l1_entries, .whose = s->name };
	ret->entries = malloc(MAX(len, (uint64_t)8));
	r = ret->entries ? 0 : -ENOMEM;
	if (r == 0 && len)
		r = q->order ? order_read(f, q->order, s->l1_off, ret->entries, len) :
			       node_read(f, q->file, s->l1_off, ret->entries, len);
	if (r < 0) {
		free(ret->entries);
		ret->entries = NULL;
		return varve_error_errno(err, r, "snapshot '%s': cannot read its L1 table", s->name);
	}
	for (uint32_t i = 0; i < ret->nr; i++)
		ret->entries[i] = be64_get(((be64 *)ret->entries)[i]) & ~QCOW2_COPIED;
	return 0;
}
