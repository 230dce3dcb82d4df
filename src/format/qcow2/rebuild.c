/* SPDX-License-Identifier: MIT */
/*
 * qcow2/rebuild.c - the refcounts of an image that its last writer did not close
 *
 * With lazy refcounts a writer sets the dirty bit and lets the counts on disk fall behind. What refers to
 * clusters is counted as check does it, and new counts are written behind the end of the file:
 *
 *     file as it was | refcount blocks, only those that count something | refcount table
 *
 * Assumes: called while the image is opened, before anything else of it is; the old refcount table is not
 * looked at. Never:   guesses. Where references cannot be counted, or tables are damaged, the image stays as
 * it is.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "format/qcow2/check.h"

struct rebuild {
	struct qcow2 *q;
	const char *why;      /* in the words of errors */
	unsigned refcount_order; /* of the new counts */
	struct checker *k;
	struct varve_error *err;
	uint64_t first; /* cluster: the new region */
	uint64_t nr_blocks, nr_table;
	uint64_t per_block;
	uint8_t *used;	  /* for each block: does it count something? */
	uint64_t nr_used; /* elements */
	be64 *table;
	char found[256]; /* the first line of the examination that is no leak */
};

static void note_found(void *user_data, const char *line)
{
	struct rebuild *b = user_data;

	if (!*b->found)
		snprintf(b->found, sizeof(b->found), "%s", line);
}

/* Who asked for a repair has no other to ask for. */
static const char *advice(const struct rebuild *b)
{
	return b->q->node->flags & NODE_REPAIR ? "nobody can tell what is right; what can be read is read by a copy (img convert --salvage)" :
						 "open it read-only, or see what is wrong (img check)";
}

static uint64_t region_end(const struct rebuild *b)
{
	return b->first + b->nr_blocks + b->nr_table;
}

static int no_memory(struct rebuild *b)
{
	return varve_error_set(b->err, -ENOMEM, "rebuilding the refcounts: out of memory");
}

/* What the counters say must fit into counts, and agree with the COPIED flags that let the guest write in
 * place. */
static int judge_page(struct rebuild *b, const struct ref_page *p)
{
	uint64_t most = UINT64_MAX >> (64 - (1u << b->refcount_order));

	for (unsigned i = 0; i < REF_PAGE; i++) {
		uint64_t refs = p->counters[i] & REF_COUNT_MAX;

		if (refs > most && !(p->counters[i] & REF_OVERLAP))
			return varve_error_set(b->err, -ERANGE,
					       "%s: host offset 0x%llx is used %llu times, which counts of %u bits cannot say",
					       b->why, (unsigned long long)(p->first + i) << b->q->cluster_bits,
					       (unsigned long long)refs, 1u << b->refcount_order);
		if ((p->counters[i] & REF_OVERLAP) ||
		    ((p->counters[i] & REF_COPIED_SET) && refs != 1))
			return varve_error_set(b->err, -EIO,
					       "%s, and host offset 0x%llx is used %llu times in ways that exclude each "
					       "other: %s",
					       b->why, (unsigned long long)(p->first + i) << b->q->cluster_bits,
					       (unsigned long long)refs, advice(b));
		if (refs)
			b->used[(p->first + i) / b->per_block] = 1;
	}
	return 0;
}

/* How many blocks, and how long a table, the region with them included. */
static int plan(struct rebuild *b)
{
	struct ref_page **pages;
	uint64_t before;
	size_t nr;
	int ret = 0;

	b->first = b->k->nr_clusters;
	b->per_block = ((uint64_t)b->q->cluster_len * 8) >> b->refcount_order;
	/* The region is shorter than the file by far, but for the smallest files. */
	b->nr_used = div_up(2 * b->first + 1024, b->per_block) + 2;
	if (b->nr_used > QCOW2_REFCOUNT_TABLE_LEN_MAX / 8)
		return varve_error_set(b->err, -EFBIG,
				       "rebuilding the refcounts: the file is too long for %u-bit "
				       "counts and this cluster size",
				       1u << b->refcount_order);
	b->used = calloc(b->nr_used, 1);
	pages = refs_sorted(&b->k->refs, &nr);
	if (!b->used || !pages) {
		free(pages);
		return no_memory(b);
	}
	for (size_t i = 0; ret == 0 && i < nr; i++)
		ret = judge_page(b, pages[i]);
	free(pages);
	do {
		uint64_t last;

		before = region_end(b);
		last = before / b->per_block; /* the region grows by one cluster at least */
		if (ret == 0 && last >= b->nr_used)
			ret = varve_error_set(b->err, -EFBIG, "rebuilding the refcounts: no room for them");
		if (ret < 0)
			return ret;
		for (uint64_t i = b->first / b->per_block; i <= last; i++)
			b->used[i] = 1;
		b->nr_blocks = 0;
		for (uint64_t i = 0; i < b->nr_used; i++)
			b->nr_blocks += b->used[i];
		b->nr_table = div_up((last + 1) * 8, b->q->cluster_len);
	} while (region_end(b) != before);
	return 0;
}

static void fill_block(struct rebuild *b, uint64_t nr, uint8_t *content)
{
	uint64_t first = nr * b->per_block;

	memset(content, 0, b->q->cluster_len);
	for (uint64_t i = 0; i < b->per_block && first + i < region_end(b); i++) {
		uint64_t refs = first + i >= b->first ? 1 : refs_get(&b->k->refs, first + i) & REF_COUNT_MAX;

		if (refs)
			refcount_write(content, b->refcount_order, i, refs);
	}
}

static int write_region(struct fiber *f, struct rebuild *b)
{
	uint64_t cluster = b->first;
	int ret = 0;

	b->table = calloc(b->nr_table, b->q->cluster_len);
	if (!b->table)
		return no_memory(b);
	for (uint64_t i = 0; ret == 0 && i < b->nr_used; i++) {
		if (!b->used[i])
			continue;
		fill_block(b, i, b->k->table);
		b->table[i] = be64_put(cluster << b->q->cluster_bits);
		ret = node_write(f, b->q->file, cluster++ << b->q->cluster_bits, b->k->table,
				 b->q->cluster_len);
	}
	if (ret == 0)
		ret = node_write(f, b->q->file, cluster << b->q->cluster_bits, b->table,
				 b->nr_table << b->q->cluster_bits);
	return ret < 0 ? varve_error_errno(b->err, ret, "cannot write new refcounts") : 0;
}

/*
 * Durable first: the new blocks and the table. Only then: the header that names the table, without the dirty
 * bit, both in one sector. Power lost in between: the bit is still set, and the next writer counts again; the
 * region is not referred to, and is counted as free then. The old table and blocks are free as soon as the
 * header is durable.
 */
static int switch_over(struct fiber *f, struct rebuild *b)
{
	uint8_t sector[512];
	struct qcow2_header_disk d;
	struct qcow2 *q = b->q;
	int ret = node_flush(f, q->file);

	static_assert(sizeof(d) <= sizeof(sector), "written as one");
	if (ret == 0)
		ret = node_read(f, q->file, 0, sector, sizeof(sector));
	if (ret < 0)
		return varve_error_errno(b->err, ret, "new refcounts");
	q->h.refcount_table_off = (b->first + b->nr_blocks) << q->cluster_bits;
	q->h.refcount_table_clusters = (uint32_t)b->nr_table;
	q->h.incompatible &= ~QCOW2_INCOMPAT_DIRTY;
	q->changing = 0;
	if (q->node->flags & NODE_REPAIR) /* all of it has been examined, or we were not here */
		q->h.incompatible &= ~QCOW2_INCOMPAT_CORRUPT;
	/* Who keeps a journal has been recovered, and sets the mark anew. Left here, an old one would be written over the new counts. */
	q->h.autoclear &= ~ORDER_MARK_BITS;
	q->h.refcount_order = b->refcount_order;
	memcpy(&d, sector, sizeof(d));
	d.refcount_table_off = be64_put(q->h.refcount_table_off);
	d.refcount_table_clusters = be32_put(q->h.refcount_table_clusters);
	if (q->h.version >= 3) { /* version 2 has other things there */
		d.incompatible = be64_put(q->h.incompatible);
		d.autoclear = be64_put(q->h.autoclear);
		d.refcount_order = be32_put(q->h.refcount_order);
	}
	memcpy(sector, &d, sizeof(d));
	ret = node_write(f, q->file, 0, sector, sizeof(sector));
	if (ret == 0)
		ret = node_flush(f, q->file);
	return ret < 0 ? varve_error_errno(b->err, ret, "cannot write the header with new refcounts") : 0;
}

/* Writes back the entries that changed, as one stretch. */
static int write_entries(struct fiber *f, struct rebuild *b, uint64_t host_off, const be64 *entries, uint32_t first,
			 uint32_t end)
{
	return first < end ? node_write(f, b->q->file, host_off + first * 8ull, entries + first, (end - first) * 8ull) : 0;
}

/* An entry that leads to what is used once, and does not say so. */
static bool lacks_copied(struct rebuild *b, uint64_t entry)
{
	uint64_t host_off = entry & QCOW2_OFF_MASK;

	return host_off && !(entry & (QCOW2_COPIED | QCOW2_COMPRESSED)) &&
	       (refs_get(&b->k->refs, host_off >> b->q->cluster_bits) & REF_COUNT_MAX) == 1;
}

static int mark_entries(struct fiber *f, struct rebuild *b, uint64_t host_off, be64 *entries, uint32_t nr, unsigned step)
{
	uint32_t first = 0, end = 0;

	for (uint32_t i = 0; i < nr; i += step) {
		uint64_t entry = be64_get(entries[i]);

		if (!lacks_copied(b, entry))
			continue;
		entries[i] = be64_put(entry | QCOW2_COPIED);
		if (!end)
			first = i;
		end = i + 1;
	}
	return write_entries(f, b, host_off, entries, first, end);
}

/*
 * A writer that was cut off while it made or deleted a snapshot left clusters that are used once and not marked so; check
 * would complain. A mark on what is used once is right whatever happens next. (A mark on what is used twice is refused by
 * judge_page().) check_references() has found all tables readable and in their place.
 */
static int mark_copied(struct fiber *f, struct rebuild *b)
{
	struct qcow2 *q = b->q;
	be64 *l1 = malloc(MAX(q->h.l1_entries, 1u) * sizeof(l1[0])), *table = (be64 *)b->k->table;
	int ret = l1 ? 0 : -ENOMEM;

	if (ret == 0 && q->h.l1_entries)
		ret = node_read(f, q->file, q->h.l1_off, l1, q->h.l1_entries * 8ull);
	for (uint32_t i = 0; ret == 0 && i < q->h.l1_entries; i++) {
		uint64_t l2_off = be64_get(l1[i]) & QCOW2_OFF_MASK;

		if (q->external) /* entries lead to what is not counted here */
			break;
		/* The entries of a table that several have are used several times: they need no mark. */
		if (!l2_off || (refs_get(&b->k->refs, l2_off >> q->cluster_bits) & REF_COUNT_MAX) != 1)
			continue;
		ret = check_read(f, b->k, l2_off, table, q->cluster_len);
		if (ret == 0)
			ret = mark_entries(f, b, l2_off, table, q->cluster_len / 8, q->l2_entry_len / 8);
	}
	if (ret == 0)
		ret = mark_entries(f, b, q->h.l1_off, l1, q->h.l1_entries, 1);
	free(l1);
	return ret < 0 ? varve_error_errno(b->err, ret, "cannot mark what is used once") : 0;
}

static int count(struct fiber *f, struct rebuild *b)
{
	const struct varve_check_result *r = b->k->c->result;
	int ret = check_references(f, b->k);

	if (ret < 0)
		return ret;
	if (r->corruptions || r->check_errors)
		return varve_error_set(
			b->err, -EIO,
			"%s, and its refcounts cannot be rebuilt (%s): %s",
			b->why, *b->found ? b->found : "some of it cannot be read", advice(b));
	if (b->k->refs.to < b->k->nr_clusters)
		return varve_error_set(
			b->err, -EFBIG,
			"%s, and is too long to rebuild its refcounts in memory", b->why);
	return 0;
}

/* judge: only whether it can be, as far as that is known before space is taken. */
static int recount(struct fiber *f, struct qcow2 *q, unsigned refcount_order, bool judge, const char *why, struct varve_error *err)
{
	struct varve_check_result result = { 0 };
	struct rebuild b = { .q = q, .why = why, .refcount_order = refcount_order, .err = err };
	struct check c = { .result = &result, .report = note_found, .user_data = &b };
	struct checker k = { .q = q, .c = &c, .err = err };
	int ret;

	b.k = &k;
	ret = count(f, &b);
	if (ret == 0)
		ret = plan(&b);
	if (ret == 0 && q->leaf->fixed_len && region_end(&b) << q->cluster_bits > node_len(q->leaf))
		ret = varve_error_set(err, -ENOSPC,
				      "rebuilding the refcounts: the device has no room for them");
	if (ret == 0 && !judge)
		ret = mark_copied(f, &b);
	if (ret == 0 && !judge)
		ret = write_region(f, &b);
	if (ret == 0 && !judge)
		ret = switch_over(f, &b);
	checker_free(&k);
	free(b.used);
	free(b.table);
	return ret;
}

int qcow2_rebuild_refcounts(struct fiber *f, struct qcow2 *q, struct varve_error *err)
{
	bool repair = q->node->flags & NODE_REPAIR;
	int ret = recount(f, q, q->h.refcount_order, false, repair ? "the image is damaged" : "the image was not closed cleanly", err);

	if (ret == 0)
		log_warning("%s: the image was not closed cleanly: its refcounts have been rebuilt",
			    node_name(q->node));
	return ret;
}

int qcow2_recount(struct fiber *f, struct qcow2 *q, unsigned refcount_order, bool judge, struct varve_error *err)
{
	return recount(f, q, refcount_order, judge, "the refcounts of the image are to get another width", err);
}
