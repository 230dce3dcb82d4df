/* SPDX-License-Identifier: MIT */
/*
 * qcow2/check_counts.c - references found against the refcounts on disk
 *
 * Owns:    the reading of the refcount table and blocks as an examiner reads them, and the verdict on each
 *          cluster.
 * Assumes: everything that refers to clusters of the window has been counted.
 * Never:   reads a refcount block twice in one window, however many table entries name it.
 */
#include <stdlib.h>
#include <string.h>

#include "base/iov.h"
#include "format/qcow2/check.h"

static unsigned long long ull(uint64_t x)
{
	return x;
}

static unsigned long long host_off(const struct checker *k, uint64_t cluster)
{
	return cluster << k->q->cluster_bits;
}

static uint64_t per_block(const struct checker *k)
{
	return ((uint64_t)k->q->cluster_len * 8) >> k->q->h.refcount_order;
}

static uint32_t table_entries(const struct checker *k)
{
	return k->table_readable ? k->q->h.refcount_table_clusters << (k->q->cluster_bits - 3) : 0;
}

/* ---- the table ---- */

/* Calls fn for every entry of the refcount table. */
static int each_entry(struct fiber *f, struct checker *k,
		      int (*fn)(struct fiber *f, struct checker *k, uint32_t i, uint64_t entry, void *arg),
		      void *arg)
{
	uint32_t nr_all = table_entries(k);
	int err = 0;

	for (uint32_t i = 0; i < nr_all && err == 0;) {
		uint32_t nr = MIN(nr_all - i, (uint32_t)(CHECK_CHUNK / 8));

		err = check_read(f, k, k->q->h.refcount_table_off + (uint64_t)i * 8, k->chunk, nr * 8);
		if (err < 0) {
			if (k->first)
				check_uncounted(k, "refcount table at host offset 0x%llx: %s",
						ull(k->q->h.refcount_table_off), strerror(-err));
			return 0;
		}
		for (uint32_t j = 0; j < nr && err == 0; j++, i++) {
			err = fn(f, k, i, be64_get(k->chunk[j]), arg);
			check_progress(f, k, 1);
		}
	}
	return err;
}

#define TABLE_RESERVED 0x1ffull

/* 0: no usable block. */
static uint64_t block_off(const struct checker *k, uint64_t entry)
{
	uint64_t off = entry & ~TABLE_RESERVED;

	return is_aligned(off, k->q->cluster_len) && check_inside(k, off, k->q->cluster_len) ? off : 0;
}

static void examine_table_entry(struct checker *k, uint32_t i, uint64_t entry)
{
	uint64_t off = entry & ~TABLE_RESERVED;

	if (entry & TABLE_RESERVED)
		check_corruption(k, "refcount table, entry %u: 0x%llx has reserved bits set", i, ull(entry));
	if (!is_aligned(off, k->q->cluster_len))
		check_corruption(
			k,
			"refcount table, entry %u: host offset 0x%llx is not a multiple of the cluster size",
			i, ull(off));
	else if (!check_inside(k, off, k->q->cluster_len))
		check_corruption(k,
				 "refcount table, entry %u: the block at host offset 0x%llx lies beyond the "
				 "end of the file",
				 i, ull(off));
}

static int count_block(struct fiber *f, struct checker *k, uint32_t i, uint64_t entry, void *arg)
{
	uint64_t off = block_off(k, entry);

	(void)f;
	(void)arg;
	if (k->first && entry)
		examine_table_entry(k, i, entry);
	if (!off)
		return 0;
	if (k->first) {
		int err = 0;

		if (l2_set_find(&k->blocks, off >> k->q->cluster_bits))
			check_corruption(k,
					 "refcount table, entry %u: the block at host offset 0x%llx has "
					 "another entry already",
					 i, ull(off));
		else
			err = l2_set_add(&k->blocks, off >> k->q->cluster_bits, 1);
		if (err < 0)
			return varve_error_set(k->err, err, "%s: out of memory", node_name(k->q->node));
	}
	return check_count(k, off, k->q->cluster_len, 1, REF_METADATA);
}

int check_refcount_table(struct fiber *f, struct checker *k)
{
	return each_entry(f, k, count_block, NULL);
}

/* ---- the verdict ---- */

/* Neighbouring leaks of the same kind make one line. */
struct leak {
	uint64_t cluster, nr, refcount;
	uint32_t refs;
};

struct verdict {
	struct ref_page **pages; /* sorted */
	size_t nr_pages, at;	 /* at: the first page that has not been judged */
	uint64_t next;		 /* cluster: all before it have been judged */
	uint32_t walk;
	struct leak leak;
};

static void tell_leak(struct checker *k, struct leak *l)
{
	if (l->nr)
		check_report(
			k->c,
			"leak: host offset 0x%llx, %llu cluster%s: refcount is %llu, references found: %u",
			host_off(k, l->cluster), ull(l->nr), l->nr == 1 ? "" : "s", ull(l->refcount),
			l->refs);
	l->nr = 0;
}

static void add_leak(struct checker *k, struct leak *l, uint64_t cluster, uint64_t refcount, uint32_t refs)
{
	/* What could not be read may hold the missing references. */
	if (k->incomplete)
		return;
	k->c->result->leaks++;
	if (l->nr && l->cluster + l->nr == cluster && l->refcount == refcount && l->refs == refs) {
		l->nr++;
		return;
	}
	tell_leak(k, l);
	*l = (struct leak){ cluster, 1, refcount, refs };
}

static void blame(struct checker *k, uint32_t *counter)
{
	if (!(*counter & REF_BLAME))
		k->blamed++;
	*counter |= REF_BLAME;
}

static void judge_copied(struct checker *k, uint64_t cluster, uint64_t refcount, uint32_t *counter)
{
	if ((*counter & REF_COPIED_SET) && refcount != 1) {
		check_corruption(k, "host offset 0x%llx: marked COPIED (used once), but its refcount is %llu",
				 host_off(k, cluster), ull(refcount));
		blame(k, counter);
	}
	if ((*counter & REF_COPIED_CLEAR) && refcount == 1) {
		check_corruption(k, "host offset 0x%llx: not marked COPIED, but its refcount is 1",
				 host_off(k, cluster));
		blame(k, counter);
	}
}

static void judge(struct checker *k, struct verdict *v, uint64_t cluster, uint64_t refcount,
		  uint32_t *counter)
{
	uint32_t refs = *counter & REF_COUNT_MAX;

	if (refcount || refs)
		k->c->result->image_end_offset = host_off(k, cluster + 1);
	if (refcount < refs) {
		check_corruption(k, "host offset 0x%llx: refcount is %llu, but %u references were found",
				 host_off(k, cluster), ull(refcount), refs);
		blame(k, counter);
	} else if (refs == REF_COUNT_MAX) {
		check_uncounted(k, "host offset 0x%llx: too many references to count", host_off(k, cluster));
	} else if (refcount > refs) {
		add_leak(k, &v->leak, cluster, refcount, refs);
	} else if (*counter & REF_OVERLAP) {
		check_corruption(k, "host offset 0x%llx: holds metadata and is used for something else too",
				 host_off(k, cluster));
		blame(k, counter);
	}
	judge_copied(k, cluster, refcount, counter);
}

/* Clusters [v->next, end) have no refcount on disk: it is 0. */
static void judge_without_block(struct checker *k, struct verdict *v, uint64_t end)
{
	for (; v->at < v->nr_pages && v->pages[v->at]->first < end; v->at++) {
		struct ref_page *p = v->pages[v->at];

		for (unsigned i = 0; i < REF_PAGE; i++) {
			if (p->counters[i])
				judge(k, v, p->first + i, 0, &p->counters[i]);
		}
	}
	v->next = end;
}

/* Clusters [v->next, end), which begin at cluster `first` of the block in k->table. */
static void judge_block(struct checker *k, struct verdict *v, uint64_t first, uint64_t end)
{
	unsigned order = k->q->h.refcount_order;

	for (; v->next < end; v->next += REF_PAGE) {
		uint32_t none[REF_PAGE] = { 0 }, *counters = none;
		uint64_t i = v->next - first;

		if (v->at < v->nr_pages && v->pages[v->at]->first == v->next)
			counters = v->pages[v->at++]->counters;
		else if (buf_is_zero(k->table + ((i << order) >> 3), (REF_PAGE << order) >> 3))
			continue;
		for (unsigned j = 0; j < REF_PAGE && v->next + j < end; j++)
			judge(k, v, v->next + j, refcount_read(k->table, order, i + j), &counters[j]);
	}
	v->next = end;
}

/* Clusters [v->next, end) of the block that begins with cluster `first` cannot be compared. */
static void skip_block(struct checker *k, struct verdict *v, uint64_t first, uint64_t end, const char *why)
{
	if (first >= k->refs.from) /* not told by the window before */
		check_uncounted(k, "refcounts of host offsets 0x%llx to 0x%llx: %s", host_off(k, first),
				host_off(k, end), why);
	for (; v->at < v->nr_pages && v->pages[v->at]->first < end; v->at++) {
		for (unsigned i = 0; i < REF_PAGE; i++) {
			if (v->pages[v->at]->counters[i])
				k->c->result->image_end_offset = host_off(k, v->pages[v->at]->first + i + 1);
		}
	}
	v->next = end;
}

/*
 * A block with two entries counts for the first of them. Seen is marked outside of the window too, so that
 * every window takes the same one.
 */
static bool block_usable(struct checker *k, struct verdict *v, uint64_t off)
{
	struct l2_slot *slot = off ? l2_set_find(&k->blocks, off >> k->q->cluster_bits) : NULL;

	if (!slot || slot->seen == v->walk)
		return false;
	slot->seen = v->walk;
	return true;
}

static int compare_block(struct fiber *f, struct checker *k, uint32_t i, uint64_t entry, void *arg)
{
	struct verdict *v = arg;
	uint64_t first = i * per_block(k), end = MIN(first + per_block(k), k->refs.to),
		 off = block_off(k, entry);
	bool usable = block_usable(k, v, off);
	int err;

	if (end <= v->next)
		return 0;
	assert(first <= v->next);
	if (!(entry & ~TABLE_RESERVED)) {
		judge_without_block(k, v, end);
		return 0;
	}
	if (!usable) {
		skip_block(k, v, first, end, "their entry in the refcount table is damaged");
		return 0;
	}
	err = check_read(f, k, off, k->table, k->q->cluster_len);
	if (err < 0)
		skip_block(k, v, first, end, strerror(-err));
	else
		judge_block(k, v, first, end);
	return 0;
}

int check_compare(struct fiber *f, struct checker *k)
{
	struct verdict v = { .next = k->refs.from, .walk = ++k->walk };
	int err;

	v.pages = refs_sorted(&k->refs, &v.nr_pages);
	if (!v.pages)
		return varve_error_set(k->err, -ENOMEM, "%s: out of memory", node_name(k->q->node));
	err = each_entry(f, k, compare_block, &v);
	if (err == 0)
		judge_without_block(k, &v, k->refs.to);
	tell_leak(k, &v.leak);
	free(v.pages);
	return err;
}
