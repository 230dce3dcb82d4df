/* SPDX-License-Identifier: MIT */
/*
 * qcow2/check.c - examination of an image's metadata
 *
 * Owns:    the plan, and everything that has one fixed place: header, tables, snapshots, LUKS header.
 * Assumes: the header was parsed; nothing else about the image is believed.
 * Never:   changes the image, and never takes time or memory out of proportion to the file's length: every
 *          table is read once per window, however often it is named, and the counters are sparse.
 *
 * The file is examined in windows: all references into the window are counted by walking all tables, then
 * compared with the refcounts. One window is enough for 90 million clusters in use (6 TiB of 64 KiB); beyond
 * that, the tables are walked again for each window.
 */
#include "format/qcow2/check.h"

#include <stdlib.h>
#include <string.h>

#include "format/qcow2/bitmaps.h"
#include "format/qcow2/lazy.h"
#include "format/qcow2/luks.h"

#define PROGRESS_NS 100000000ull

static unsigned long long ull(uint64_t x)
{
	return x;
}

/* ---- for the other files ---- */

int check_read(struct fiber *f, struct checker *k, uint64_t host_off, void *buf, size_t len)
{
	size_t there = host_off < k->file_len ? (size_t)MIN((uint64_t)len, k->file_len - host_off) : 0;
	int err = 0;

	if (k->q->order)
		return order_read(f, k->q->order, host_off, buf, len);
	if (there)
		err = node_read(f, k->q->file, host_off, buf, there);
	memset((uint8_t *)buf + there, 0, len - there);
	return err;
}

void check_progress(struct fiber *f, struct checker *k, uint64_t entries)
{
	uint64_t now;

	k->done += entries;
	if (!k->c->progress || (k->done & 63))
		return;
	now = queue_now(fiber_queue(f));
	if (now - k->told_ns >= PROGRESS_NS) {
		k->told_ns = now;
		k->c->progress(k->c->user_data, k->done, MAX(k->done, k->total));
	}
}

bool check_inside(const struct checker *k, uint64_t host_off, uint64_t len)
{
	uint64_t end;

	if (len == 0)
		return true;
	return is_aligned(host_off, k->q->cluster_len) && !u64_add(host_off, len, &end) &&
	       end <= VARVE_LEN_MAX && div_up(end, k->q->cluster_len) <= k->nr_clusters;
}

int check_count(struct checker *k, uint64_t host_off, uint64_t len, uint64_t weight, uint32_t flags)
{
	uint64_t end = div_up(host_off + len, k->q->cluster_len);

	for (uint64_t c = host_off >> k->q->cluster_bits; len && c < end; c++) {
		if (refs_add(&k->refs, c, weight, flags) < 0)
			return varve_error_set(k->err, -ENOMEM, "%s: out of memory", node_name(k->q->node));
	}
	return 0;
}

/* ---- preparation ---- */

static int by_l1(const void *a, const void *b)
{
	const struct check_l1 *la = a, *lb = b;

	if (la->off != lb->off)
		return la->off < lb->off ? -1 : 1;
	return la->entries < lb->entries ? -1 : la->entries > lb->entries;
}

/* Each distinct table of a snapshot once; what cannot be a table is reported and left out. */
static void collect_snapshot_l1s(struct checker *k)
{
	struct check_l1 *first = &k->l1s[k->nr_l1s], *out = first;
	uint64_t bytes = 0;
	unsigned nr = 0;

	for (uint32_t i = 0; k->snapshots && i < k->q->h.nr_snapshots; i++) {
		const struct qcow2_snapshot *s = &k->snapshots[i];

		if (s->l1_entries > QCOW2_L1_LEN_MAX / 8 ||
		    !check_inside(k, s->l1_off, (uint64_t)s->l1_entries * 8))
			check_corruption(k,
					 "snapshot '%s': its L1 table of %u entries at host offset 0x%llx is "
					 "not inside the file",
					 s->name, s->l1_entries, ull(s->l1_off));
		else
			first[nr++] = (struct check_l1){ s->l1_off, s->l1_entries, 1, s->name };
	}
	if (nr == 0)
		return;
	qsort(first, nr, sizeof(*first), by_l1);
	for (unsigned i = 0; i < nr; i++) {
		if (out > first && by_l1(&out[-1], &first[i]) == 0) {
			out[-1].weight++;
			continue;
		}
		/*
		 * As for bitmaps: tables longer than the file lie over each other, and must not cost time
		 * without end.
		 */
		bytes += (uint64_t)first[i].entries * 8;
		if (bytes > k->file_len) {
			check_corruption(k, "snapshot '%s': its L1 table overlaps those of other snapshots",
					 first[i].snapshot);
			break;
		}
		*out++ = first[i];
	}
	k->nr_l1s += (unsigned)(out - first);
}

static int collect_l1s(struct checker *k)
{
	const struct qcow2_header *h = &k->q->h;
	uint64_t covers = (uint64_t)k->q->l2_entries << k->q->cluster_bits;

	k->l1s = calloc((size_t)h->nr_snapshots + 1, sizeof(*k->l1s));
	if (!k->l1s)
		return varve_error_set(k->err, -ENOMEM, "%s: out of memory", node_name(k->q->node));
	if (h->l1_entries < div_up(h->disk_len, covers))
		check_corruption(k, "L1 table: %u entries are too few for a disk of %llu bytes",
				 h->l1_entries, ull(h->disk_len));
	if (check_inside(k, h->l1_off, (uint64_t)h->l1_entries * 8))
		k->l1s[k->nr_l1s++] = (struct check_l1){ h->l1_off, h->l1_entries, 1, NULL };
	else
		check_corruption(k, "L1 table: %u entries at host offset 0x%llx are not inside the file",
				 h->l1_entries, ull(h->l1_off));
	collect_snapshot_l1s(k);
	for (unsigned i = 0; i < k->nr_l1s; i++)
		k->total += k->l1s[i].entries;
	return 0;
}

/* Names are shown in lines for a terminal, and come from the image. */
static void make_printable(char *name)
{
	for (; *name; name++) {
		if ((unsigned char)*name < 0x20 || *name == 0x7f)
			*name = '?';
	}
}

static void read_names(struct fiber *f, struct checker *k)
{
	const struct qcow2_header *h = &k->q->h;
	struct varve_error why;

	if (snapshots_read(f, k->q->file, h, &k->snapshots, &k->snapshots_len, &why) < 0)
		check_unread(k, "%s", why.message);
	for (uint32_t i = 0; k->snapshots && i < h->nr_snapshots; i++)
		make_printable(k->snapshots[i].name);
	if (!bitmaps_valid(h))
		return;
	k->bitmaps_known = bitmaps_read(f, k->q->file, h, &k->bitmaps, &why) == 0;
	if (!k->bitmaps_known)
		check_unread(k, "%s", why.message);
	for (uint32_t i = 0; k->bitmaps_known && i < h->nr_bitmaps; i++)
		make_printable(k->bitmaps[i].name);
}

static int prepare(struct fiber *f, struct checker *k, size_t max_pages)
{
	const struct qcow2_header *h = &k->q->h;
	int64_t file_len = node_file_len(f, k->q->file);
	struct varve_error why;

	if (file_len < 0)
		return varve_error_errno(k->err, (int)file_len, "%s: cannot find its length",
					 node_name(k->q->node));
	k->file_len = (uint64_t)file_len;
	k->nr_clusters = div_up(k->file_len, k->q->cluster_len);
	k->chunk = malloc(CHECK_CHUNK);
	k->table = malloc(k->q->cluster_len);
	if (!k->chunk || !k->table || refs_init(&k->refs, max_pages) < 0 ||
	    l2_set_init(&k->l2s, CHECK_L2_TABLES_MAX) < 0 ||
	    l2_set_init(&k->blocks, QCOW2_REFCOUNT_TABLE_LEN_MAX / 8) < 0)
		return varve_error_set(k->err, -ENOMEM, "%s: out of memory", node_name(k->q->node));
	k->c->result->total_clusters = div_up(h->disk_len, k->q->cluster_len);
	read_names(f, k);
	if (h->crypt_method == 2 && luks_place(f, k->q->file, h, &k->crypt_off, &k->crypt_len, &why) < 0)
		check_unread(k, "LUKS header: %s", why.message);
	k->table_readable = check_inside(k, h->refcount_table_off,
					 (uint64_t)h->refcount_table_clusters * k->q->cluster_len);
	if (!k->table_readable)
		check_corruption(k,
				 "refcount table: %u clusters at host offset 0x%llx are not inside the file",
				 h->refcount_table_clusters, ull(h->refcount_table_off));
	return collect_l1s(k);
}

void checker_free(struct checker *k)
{
	refs_free(&k->refs);
	l2_set_free(&k->l2s);
	l2_set_free(&k->blocks);
	snapshots_free(k->snapshots, k->q->h.nr_snapshots);
	if (k->bitmaps_known)
		bitmaps_free(k->bitmaps, k->q->h.nr_bitmaps);
	free(k->l1s);
	free(k->chunk);
	free(k->table);
}

/* ---- windows ---- */

/* A place of metadata named by the header. */
static int count_fixed(struct checker *k, const char *what, uint64_t host_off, uint64_t len, uint32_t weight)
{
	if (check_inside(k, align_down(host_off, k->q->cluster_len), len + host_off % k->q->cluster_len))
		return check_count(k, host_off, len, weight, REF_METADATA);
	if (k->first)
		check_corruption(k, "%s: host offset 0x%llx, length %llu, is not inside the file", what,
				 ull(host_off), ull(len));
	return 0;
}

static int count_all_fixed(struct checker *k)
{
	const struct qcow2_header *h = &k->q->h;
	int err = check_count(k, 0, k->q->cluster_len, 1, REF_METADATA);

	if (err == 0 && k->table_readable)
		err = check_count(k, h->refcount_table_off,
				  (uint64_t)h->refcount_table_clusters * k->q->cluster_len, 1, REF_METADATA);
	if (err == 0 && k->snapshots_len)
		err = count_fixed(k, "snapshot table", h->snapshots_off, k->snapshots_len, 1);
	if (err == 0 && k->crypt_len)
		err = count_fixed(k, "LUKS header", k->crypt_off, k->crypt_len, 1);
	for (unsigned i = 0; err == 0 && i < k->nr_l1s; i++)
		err = check_count(k, k->l1s[i].off, (uint64_t)k->l1s[i].entries * 8, k->l1s[i].weight,
				  REF_METADATA);
	return err;
}

static int check_window(struct fiber *f, struct checker *k)
{
	int err = count_all_fixed(k);

	if (err == 0)
		err = check_refcount_table(f, k);
	if (err == 0)
		err = check_bitmaps(f, k);
	if (err == 0)
		err = check_walk(f, k, WALK_COUNT);
	k->blamed = 0;
	if (err == 0)
		err = check_compare(f, k);
	if (err == 0 && k->blamed)
		err = check_walk(f, k, WALK_BLAME);
	return err;
}

static int check_all(struct fiber *f, struct checker *k)
{
	uint64_t l1_entries = k->total, from = 0;
	int err = check_walk(f, k, WALK_TABLES);

	for (k->first = true; err == 0 && from < k->nr_clusters; k->first = false) {
		k->total += l1_entries;
		if (k->table_readable)
			k->total +=
				2 * ((uint64_t)k->q->h.refcount_table_clusters << (k->q->cluster_bits - 3));
		refs_window(&k->refs, from, k->nr_clusters);
		err = check_window(f, k);
		from = k->refs.to;
	}
	return err;
}

int check_references(struct fiber *f, struct checker *k)
{
	int err = prepare(f, k, CHECK_PAGES_MAX);

	if (err < 0)
		return err;
	k->table_readable = false; /* old counts are nothing that lives on */
	err = check_walk(f, k, WALK_TABLES);
	k->first = true;
	refs_window(&k->refs, 0, k->nr_clusters);
	if (err == 0)
		err = count_all_fixed(k);
	if (err == 0)
		err = check_bitmaps(f, k);
	return err == 0 ? check_walk(f, k, WALK_COUNT) : err;
}

int qcow2_check_bounded(struct fiber *f, struct node *n, struct check *c, size_t max_pages,
			struct varve_error *err)
{
	struct checker k = { .q = node_state(n), .c = c, .err = err };
	int ret;

	*c->result = (struct varve_check_result){ 0 };
	/* An open image is judged by what is on disk. */
	ret = k.q->lazy ? lazy_write_out(f, k.q) : 0;
	if (ret < 0)
		return varve_error_errno(err, ret, "refcounts that were held back cannot be written");
	ret = prepare(f, &k, max_pages);
	if (ret == 0)
		ret = check_all(f, &k);
	if (ret == 0 && k.incomplete)
		check_report(c, "leaks are not counted: what could not be examined may hold the references");
	if (ret == 0 && c->progress)
		c->progress(c->user_data, k.total, k.total);
	checker_free(&k);
	return ret;
}

int qcow2_check(struct fiber *f, struct node *n, struct check *c, struct varve_error *err)
{
	return qcow2_check_bounded(f, n, c, CHECK_PAGES_MAX, err);
}
