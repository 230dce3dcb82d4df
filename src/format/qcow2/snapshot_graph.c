/* SPDX-License-Identifier: MIT */
/*
 * qcow2/snapshot_graph.c - what each snapshot holds alone and shares, and which grew out of which
 *
 * The format does not say from what a snapshot was made. Whoever shares most with it is taken for its parent: among the
 * snapshots before it in the table the one with most L2 tables in common, or, where all tables differ, most entries of some.
 *
 * Owns:    the L1 tables of all snapshots, in memory, for as long as one call takes.
 * Assumes: a fiber of the home queue. The image may be open for reading only.
 * Never:   reads more L2 tables for one L1 table than the file has clusters.
 */
#include "format/qcow2/snapshot.h"

#include <stdlib.h>
#include <string.h>

#define L1_BYTES_MAX MiB(64) /* of all tables together; beyond that each is taken for the child of the one before */
#define TABLES_COMPARED 8

/* Counts, also of an image that is open for reading only. */
struct counts {
	uint64_t block; /* that is in memory; UINT64_MAX: none */
	uint8_t *bytes;
};

struct grapher {
	struct qcow2 *q;
	struct counts counts;
	be64 *table, *other;
	struct l1_copy *l1s; /* of the snapshots, then of the disk */
	uint32_t nr;
	struct varve_error *err;
};

static int read_meta(struct fiber *f, struct qcow2 *q, uint64_t host_off, void *buf, size_t len)
{
	uint64_t file_len = node_len(q->leaf), there = host_off < file_len ? MIN((uint64_t)len, file_len - host_off) : 0;

	if (q->order)
		return order_read(f, q->order, host_off, buf, len);
	memset((uint8_t *)buf + there, 0, len - there);
	return there ? node_read(f, q->file, host_off, buf, there) : 0;
}

static int count_of(struct fiber *f, struct grapher *g, uint64_t cluster, uint64_t *ret)
{
	struct qcow2 *q = g->q;
	uint64_t per_block = ((uint64_t)q->cluster_len * 8) >> q->h.refcount_order, block = cluster / per_block;
	be64 entry = be64_put(0);
	int r = 0;

	if (q->order)
		return refcount_get(f, q, cluster, ret);
	if (g->counts.block != block) {
		g->counts.block = UINT64_MAX;
		if (block < (uint64_t)q->h.refcount_table_clusters << (q->cluster_bits - 3))
			r = read_meta(f, q, q->h.refcount_table_off + block * 8, &entry, sizeof(entry));
		memset(g->counts.bytes, 0, q->cluster_len);
		if (r == 0 && be64_get(entry))
			r = read_meta(f, q, be64_get(entry) & ~0x1ffull, g->counts.bytes, q->cluster_len);
		if (r < 0)
			return r;
		g->counts.block = block;
	}
	*ret = refcount_read(g->counts.bytes, q->h.refcount_order, cluster % per_block);
	return 0;
}

/* One cluster that is referred to. */
static int tally(struct fiber *f, struct grapher *g, uint64_t cluster, struct snapshot_usage *u)
{
	uint64_t count = 0;
	int ret = count_of(f, g, cluster, &count);

	if (count == 1)
		u->alone += g->q->cluster_len;
	else
		u->shared += g->q->cluster_len;
	return ret;
}

static int tally_entry(struct fiber *f, struct grapher *g, uint64_t entry, struct snapshot_usage *u)
{
	struct qcow2 *q = g->q;

	if (entry & QCOW2_COMPRESSED) {
		/* Bytes in a cluster that others fill too: counted where it begins. */
		u->shared += 512 * (((entry & ~(QCOW2_COPIED | QCOW2_COMPRESSED)) >> (62 - (q->cluster_bits - 8))) + 1);
		return 0;
	}
	entry &= QCOW2_OFF_MASK;
	return entry ? tally(f, g, entry >> q->cluster_bits, u) : 0;
}

static int tally_l1(struct fiber *f, struct grapher *g, const struct l1_copy *l1, struct snapshot_usage *u)
{
	struct qcow2 *q = g->q;
	uint64_t left = div_up(node_len(q->leaf), q->cluster_len);
	int ret = 0;

	for (uint32_t i = 0; ret == 0 && i < l1->nr; i++) {
		uint64_t l2_off = l1->entries[i] & QCOW2_OFF_MASK;

		if (!l2_off)
			continue;
		if (!left--)
			return varve_error_set(g->err, -EIO, "%s: more L2 tables than the file has clusters: run a check of the "
					       "image first", l1->whose);
		ret = tally(f, g, l2_off >> q->cluster_bits, u);
		if (ret == 0)
			ret = read_meta(f, q, l2_off, g->table, q->cluster_len);
		for (uint32_t k = 0; ret == 0 && k < q->l2_entries; k++)
			ret = tally_entry(f, g, be64_get(g->table[k * (q->l2_entry_len / 8)]), u);
	}
	return ret < 0 ? varve_error_errno(g->err, ret, "%s: reading its tables", l1->whose) : 0;
}

/* ---- parents ---- */

/* What two have in common, and what the elder has that the younger has not. */
struct likeness {
	uint64_t common, lost;
};

/* More in common; as much, but less lost; as much of both, but later in the table. */
static bool is_liker(const struct likeness *a, const struct likeness *best)
{
	return a->common && (a->common > best->common || (a->common == best->common && a->lost <= best->lost));
}

static struct likeness like_tables(const struct l1_copy *elder, const struct l1_copy *younger)
{
	struct likeness like = { 0 };

	for (uint32_t i = 0; i < elder->nr; i++) {
		uint64_t l2_off = elder->entries[i] & QCOW2_OFF_MASK;

		if (!l2_off)
			continue;
		if (i < younger->nr && l2_off == (younger->entries[i] & QCOW2_OFF_MASK))
			like.common++;
		else
			like.lost++;
	}
	return like;
}

/* Of the first tables that both have. */
static struct likeness like_entries(struct fiber *f, struct grapher *g, const struct l1_copy *elder,
				    const struct l1_copy *younger)
{
	struct qcow2 *q = g->q;
	struct likeness like = { 0 };

	for (uint32_t i = 0, tables = 0; i < MIN(elder->nr, younger->nr) && tables < TABLES_COMPARED; i++) {
		uint64_t at = elder->entries[i] & QCOW2_OFF_MASK, bt = younger->entries[i] & QCOW2_OFF_MASK;

		if (!at || !bt)
			continue;
		tables++;
		if (read_meta(f, q, at, g->table, q->cluster_len) < 0 || read_meta(f, q, bt, g->other, q->cluster_len) < 0)
			continue; /* then it says nothing about who is whose parent */
		for (uint32_t k = 0; k < q->cluster_len / 8; k += q->l2_entry_len / 8) {
			uint64_t x = be64_get(g->table[k]) & ~QCOW2_COPIED;

			if (x && x == (be64_get(g->other[k]) & ~QCOW2_COPIED))
				like.common++;
			else
				like.lost += x != 0;
		}
	}
	return like;
}

static int64_t parent_of(struct fiber *f, struct grapher *g, uint32_t i)
{
	struct likeness best = { 0 };
	int64_t parent = -1;

	for (uint32_t k = 0; k < i; k++) {
		struct likeness like = like_tables(&g->l1s[k], &g->l1s[i]);

		if (is_liker(&like, &best)) {
			best = like;
			parent = k;
		}
	}
	if (parent >= 0)
		return parent;
	for (uint32_t k = 0; k < i; k++) {
		struct likeness like = like_entries(f, g, &g->l1s[k], &g->l1s[i]);

		if (is_liker(&like, &best)) {
			best = like;
			parent = k;
		}
	}
	return parent;
}

/* ---- all of it ---- */

static int load_l1s(struct fiber *f, struct grapher *g, struct snapshots *s, uint64_t *ret_bytes)
{
	struct qcow2 *q = g->q;
	struct l1_copy *now = &g->l1s[s->nr];
	int ret = 0;

	*ret_bytes = 0;
	for (uint32_t i = 0; ret == 0 && i < s->nr; i++) {
		ret = tables_read_l1(f, q, &s->list[i], &g->l1s[i], g->err);
		*ret_bytes += s->list[i].l1_entries * 8ull;
		if (ret == 0 && *ret_bytes > L1_BYTES_MAX)
			ret = varve_error_set(g->err, -EFBIG, "the L1 tables of all snapshots have more than %llu MiB",
					      (unsigned long long)(L1_BYTES_MAX >> 20));
	}
	if (ret < 0)
		return ret;
	*now = (struct l1_copy){ .nr = q->h.l1_entries, .whose = "the disk" };
	now->entries = malloc(MAX(now->nr, 1u) * sizeof(now->entries[0]));
	if (!now->entries)
		return varve_error_set(g->err, -ENOMEM, "L1 tables: out of memory");
	if (q->h.l1_entries)
		memcpy(now->entries, q->l1, now->nr * sizeof(now->entries[0]));
	return 0;
}

static int fill(struct fiber *f, struct grapher *g, struct snapshots *s, struct snapshot_usage *list)
{
	uint64_t bytes;
	int ret = load_l1s(f, g, s, &bytes);

	for (uint32_t i = 0; ret == 0 && i <= s->nr; i++) {
		struct snapshot_usage *u = &list[i];

		if (i < s->nr) {
			u->id = s->list[i].id;
			u->name = s->list[i].name;
			u->date_s = s->list[i].date_s;
			u->vm_state_len = s->list[i].vm_state_len;
			s->list[i].id = s->list[i].name = NULL; /* they are the list's now */
			g->l1s[i].whose = u->name;
		}
		u->parent = parent_of(f, g, i);
		ret = tally_l1(f, g, &g->l1s[i], u);
	}
	return ret;
}

int qcow2_snapshot_graph(struct fiber *f, struct node *n, struct snapshot_usage **ret_list, uint32_t *ret_nr,
			 struct varve_error *err)
{
	struct qcow2 *q = node_state(n);
	struct grapher g = { .q = q, .counts.block = UINT64_MAX, .err = err };
	struct snapshot_usage *list = NULL;
	struct snapshots s = { 0 };
	int ret;

	if (q->unmapped)
		return varve_error_set(err, -EINVAL, "the image is open for its header only");
	fiber_lock(f, &q->snapshot_mutex);
	ret = snapshots_open(f, q, &s, err);
	if (ret == 0) {
		g.nr = s.nr + 1;
		g.l1s = calloc(g.nr, sizeof(g.l1s[0]));
		list = calloc(g.nr, sizeof(list[0]));
		g.table = malloc(q->cluster_len);
		g.other = malloc(q->cluster_len);
		g.counts.bytes = malloc(q->cluster_len);
		if (!g.l1s || !list || !g.table || !g.other || !g.counts.bytes)
			ret = varve_error_set(err, -ENOMEM, "snapshots: out of memory");
	}
	if (ret == 0)
		ret = fill(f, &g, &s, list);
	for (uint32_t i = 0; i < g.nr && g.l1s; i++)
		free(g.l1s[i].entries);
	free(g.l1s);
	free(g.table);
	free(g.other);
	free(g.counts.bytes);
	snapshots_close(&s);
	fiber_unlock(&q->snapshot_mutex);
	if (ret < 0) {
		snapshot_usage_free(list, list ? g.nr : 0);
		return ret;
	}
	*ret_list = list;
	*ret_nr = g.nr;
	return 0;
}
