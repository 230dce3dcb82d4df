/* SPDX-License-Identifier: MIT */
/*
 * qed/check.c - examination of an image's tables, and the repair of one that was not closed
 *
 * Two things can be wrong. Entries that lead nowhere (not to a cluster, or beyond the end of the file): a crash may
 * leave them, when a program made an entry durable before what it leads to; what they stood for was never promised to
 * anybody. And places that two entries share: no crash explains that, and nobody can say whose they are.
 *
 * Owns:    the scan: what it counts and finds.
 * Assumes: the header was parsed; nothing else about the image is believed. Fibers of the home queue.
 * Never:   reads a table twice in one pass, whatever L1 says, or the holes of a sparse file; takes memory out of
 *          proportion (counters are sparse; beyond 90 million clusters in use the tables are read again for each window).
 */
#include <stdlib.h>
#include <string.h>

#include "format/check_refs.h"
#include "format/qed/qed.h"

#define CHUNK KiB(64)
#define PAGES_MAX 1400000u
#define PROGRESS_NS 100000000ull

struct table_ref {
	uint64_t off;
	uint32_t index; /* in L1 */
};

struct scan {
	struct qed *q;
	struct check *c; /* NULL: repair, which reports nothing */
	struct varve_error *err;
	bool remove;	/* entries that lead nowhere */
	bool first;	/* the first window: entries are judged, not only counted */
	uint64_t nr_clusters; /* whole ones in the file */

	uint64_t *l1;
	uint32_t nr_l1;
	struct table_ref *tables; /* ascending, none over another */
	uint32_t nr_tables;
	struct refs refs;
	le64 *chunk;

	uint64_t nowhere, shared; /* entries of the two kinds */
	uint64_t in_use;	  /* clusters that something refers to */
	uint64_t end;		  /* behind the last of them */
	uint64_t allocated, fragmented, next_host;
	uint64_t done, told_ns;
};

static unsigned long long ull(uint64_t x)
{
	return x;
}

static uint64_t file_end(const struct scan *s)
{
	return s->nr_clusters << s->q->cluster_bits;
}

static int scan_read(struct fiber *f, struct scan *s, uint64_t host_off, void *buf, size_t len)
{
	struct qed *q = s->q;

	return q->order ? order_read(f, q->order, host_off, buf, len) : node_read(f, q->file, host_off, buf, len);
}

static void progress(struct fiber *f, struct scan *s, uint64_t tables)
{
	uint64_t now;

	s->done += tables;
	if (!s->c || !s->c->progress)
		return;
	now = queue_now(fiber_queue(f));
	if (now - s->told_ns >= PROGRESS_NS) {
		s->told_ns = now;
		s->c->progress(s->c->user_data, s->done, MAX(s->done, s->nr_tables));
	}
}

/* ---- verdicts ---- */

/* An entry at host offset `at` leads nowhere. */
static int found_nowhere(struct fiber *f, struct scan *s, uint64_t at)
{
	le64 none = le64_put(QED_ABSENT);

	s->nowhere++;
	return s->remove ? order_put(f, s->q->order, at, &none, sizeof(none), ORDER_NONE, NULL) : 0;
}

#define corruption(s, ...)                                                                                             \
	do {                                                                                                           \
		if ((s)->c) {                                                                                          \
			(s)->c->result->corruptions++;                                                                 \
			check_report((s)->c, "corruption: " __VA_ARGS__);                                              \
		}                                                                                                      \
	} while (0)

/* Not examined, so that more may be wrong than is said. */
#define not_examined(s, ...)                                                                                           \
	do {                                                                                                           \
		if ((s)->c) {                                                                                          \
			(s)->c->result->check_errors++;                                                                \
			check_report((s)->c, "not examined: " __VA_ARGS__);                                            \
		}                                                                                                      \
	} while (0)

/* ---- counting ---- */

/* Counts nr clusters. *ret_shared: one of them had been counted before. */
static int count(struct scan *s, uint64_t host_off, uint64_t nr, bool *ret_shared)
{
	uint64_t first = host_off >> s->q->cluster_bits;

	*ret_shared = false;
	for (uint64_t i = first; i < first + nr; i++) {
		if (i < s->refs.from || i >= s->refs.to)
			continue;
		if (refs_add(&s->refs, i, 1, 0) < 0)
			return varve_error_set(s->err, -ENOMEM, "%s: out of memory", node_name(s->q->node));
		if (i >= s->refs.to) /* the window became shorter: it belongs to the next */
			continue;
		if ((refs_get(&s->refs, i) & REF_COUNT_MAX) > 1)
			*ret_shared = true;
		else
			s->in_use++;
	}
	s->end = MAX(s->end, host_off + (nr << s->q->cluster_bits));
	return 0;
}

static int by_off(const void *a, const void *b)
{
	const struct table_ref *x = a, *y = b;

	return x->off != y->off ? (x->off < y->off ? -1 : 1) : (x->index > y->index) - (x->index < y->index);
}

/*
 * The part of the L1 table that a longer disk would use: nothing is there (qcow2 can be cut, QED cannot). What leads anywhere would
 * come into sight with a longer disk, and keeps it from becoming that.
 */
static int scan_l1_rest(struct fiber *f, struct scan *s)
{
	uint64_t nr = s->q->table_len / 8, i = s->nr_l1;

	while (i < nr) {
		uint64_t part = MIN(nr - i, CHUNK / 8);
		int ret = scan_read(f, s, s->q->h.l1_off + i * 8, s->chunk, part * 8);

		if (ret < 0) {
			not_examined(s, "L1 table from entry %llu on: %s", ull(i), strerror(-ret));
			return 0;
		}
		for (uint64_t j = 0; j < part && ret == 0; j++, i++) {
			uint64_t entry = le64_get(s->chunk[j]);

			if (!entry)
				continue;
			corruption(s, "L1 entry %llu is behind the end of the disk and leads to 0x%llx", ull(i), ull(entry));
			ret = found_nowhere(f, s, s->q->h.l1_off + i * 8);
		}
		if (ret < 0)
			return ret;
	}
	return 0;
}

/* L1: which tables there are. */
static int scan_l1(struct fiber *f, struct scan *s)
{
	struct qed *q = s->q;
	uint32_t nr = 0;
	int ret = 0;

	for (uint32_t i = 0; i < s->nr_l1 && ret == 0; i++) {
		if (!s->l1[i])
			continue;
		if (qed_place_ok(q, s->l1[i], q->table_len, file_end(s))) {
			s->tables[s->nr_tables++] = (struct table_ref){ s->l1[i], i };
			continue;
		}
		corruption(s, "L1 entry %u: 0x%llx is no place for an L2 table", i, ull(s->l1[i]));
		ret = found_nowhere(f, s, q->h.l1_off + i * 8ull);
	}
	if (ret == 0)
		ret = scan_l1_rest(f, s);
	qsort(s->tables, s->nr_tables, sizeof(s->tables[0]), by_off);
	for (uint32_t i = 0; i < s->nr_tables; i++) {
		if (nr && s->tables[i].off - s->tables[nr - 1].off < q->table_len) {
			s->shared++;
			corruption(s, "L1 entries %u and %u: their tables at 0x%llx and 0x%llx share space",
				   s->tables[nr - 1].index, s->tables[i].index, ull(s->tables[nr - 1].off),
				   ull(s->tables[i].off));
		} else {
			s->tables[nr++] = s->tables[i];
		}
	}
	s->nr_tables = nr;
	return ret;
}

static int scan_entry(struct fiber *f, struct scan *s, uint64_t guest_off, uint64_t at, uint64_t entry)
{
	struct qed *q = s->q;
	bool shared;
	int ret;

	if (!qed_place_ok(q, entry, q->cluster_len, file_end(s))) {
		if (!s->first)
			return 0;
		corruption(s, "guest offset 0x%llx leads to 0x%llx, which is no cluster of the file", ull(guest_off),
			   ull(entry));
		return found_nowhere(f, s, at);
	}
	if (s->first) {
		s->allocated++;
		s->fragmented += s->next_host && s->next_host != entry;
		s->next_host = entry + q->cluster_len;
	}
	ret = count(s, entry, 1, &shared);
	if (shared) {
		s->shared++;
		corruption(s, "guest offset 0x%llx leads to 0x%llx, which is in use already", ull(guest_off),
			   ull(entry));
	}
	return ret;
}

/* How much from host_off on, at most len bytes, holds nothing but zeroes, as far as the file knows? */
static uint64_t hole(struct fiber *f, struct scan *s, uint64_t host_off, uint64_t len)
{
	struct node *leaf = s->q->leaf;
	uint64_t hole_len = 0;
	bool is_hole = false;

	/* What is queued is not in the file yet. */
	if (s->q->order || !leaf->drv->status)
		return 0;
	if (leaf->drv->status(f, leaf, host_off, len, &is_hole, &hole_len) < 0 || !is_hole)
		return 0;
	return align_down(MIN(hole_len, len), sizeof(le64));
}

static int scan_table(struct fiber *f, struct scan *s, const struct table_ref *t)
{
	struct qed *q = s->q;
	uint64_t guest_base = (uint64_t)t->index << (q->table_bits + q->cluster_bits), len;

	for (uint64_t pos = 0; pos < q->table_len; pos += len) {
		int ret;

		len = hole(f, s, t->off + pos, q->table_len - pos);
		if (len)
			continue;
		len = MIN(CHUNK, q->table_len - pos);
		ret = scan_read(f, s, t->off + pos, s->chunk, len);
		if (ret < 0) {
			if (!s->c)
				return varve_error_errno(s->err, ret, "%s: L2 table at 0x%llx", node_name(q->node),
							 ull(t->off));
			if (s->first)
				not_examined(s, "L2 table at 0x%llx: %s", ull(t->off + pos), strerror(-ret));
			continue;
		}
		for (uint64_t i = 0; i < len / sizeof(le64); i++) {
			uint64_t entry = le64_get(s->chunk[i]), index = pos / sizeof(le64) + i;

			if (entry == QED_ABSENT || entry == QED_ZERO)
				continue;
			ret = scan_entry(f, s, guest_base + (index << q->cluster_bits),
					 t->off + index * sizeof(le64), entry);
			if (ret < 0)
				return ret;
		}
	}
	return 0;
}

static int scan_window(struct fiber *f, struct scan *s)
{
	bool shared; /* tables do not overlap: scan_l1() */
	int ret = 0;

	for (uint32_t i = 0; i < s->nr_tables && ret == 0; i++)
		ret = count(s, s->tables[i].off, s->q->h.table_clusters, &shared);
	for (uint32_t i = 0; i < s->nr_tables && ret == 0; i++) {
		ret = scan_table(f, s, &s->tables[i]);
		progress(f, s, 1);
	}
	return ret;
}

static int scan_all(struct fiber *f, struct scan *s)
{
	uint64_t from = 0;
	int ret = scan_l1(f, s);

	s->first = true;
	while (ret == 0) {
		refs_window(&s->refs, from, s->nr_clusters);
		ret = scan_window(f, s);
		s->first = false;
		from = s->refs.to;
		if (from >= s->nr_clusters)
			break;
	}
	return ret;
}

/* ---- begin, end ---- */

static void scan_free(struct scan *s)
{
	refs_free(&s->refs);
	free(s->l1);
	free(s->tables);
	free(s->chunk);
}

/* -ENODATA: the L1 table is not in the file. */
static int scan_init(struct fiber *f, struct scan *s, struct qed *q, struct check *c, struct varve_error *err)
{
	uint32_t nr_l1 = qed_nr_l1(q, q->h.disk_len);

	*s = (struct scan){ .q = q, .c = c, .err = err };
	s->nr_clusters = node_len(q->leaf) >> q->cluster_bits;
	s->end = q->h.l1_off + q->table_len;
	s->l1 = calloc(MAX(nr_l1, 1), sizeof(s->l1[0]));
	s->tables = calloc(MAX(nr_l1, 1), sizeof(s->tables[0]));
	s->chunk = malloc(CHUNK);
	if (!s->l1 || !s->tables || !s->chunk || refs_init(&s->refs, PAGES_MAX) < 0)
		return varve_error_set(err, -ENOMEM, "%s: out of memory", node_name(q->node));
	if (q->h.l1_off + q->table_len > file_end(s))
		return -ENODATA;
	s->nr_l1 = nr_l1;
	return qed_read_l1(f, q, s->l1, 0, nr_l1);
}

static void verdict(struct scan *s)
{
	struct varve_check_result *r = s->c->result;
	uint64_t fixed = s->q->h.header_clusters + s->q->h.table_clusters;

	if (s->nr_clusters > fixed + s->in_use && !r->check_errors)
		r->leaks = s->nr_clusters - fixed - s->in_use;
	if (r->leaks)
		check_report(s->c, "leak: %llu clusters of the file are not in use", ull(r->leaks));
	r->image_end_offset = s->end;
	r->total_clusters = div_up(s->q->h.disk_len, s->q->cluster_len);
	r->allocated_clusters = s->allocated;
	r->fragmented_clusters = s->fragmented;
}

int qed_check(struct fiber *f, struct node *n, struct check *c, struct varve_error *err)
{
	struct qed *q = node_state(n);
	struct scan s;
	int ret = scan_init(f, &s, q, c, err);

	if (ret == -ENODATA) {
		corruption(&s, "the L1 table at 0x%llx reaches beyond the end of the file", ull(q->h.l1_off));
		ret = 0;
	} else if (ret == 0) {
		ret = scan_all(f, &s);
		if (ret == 0)
			verdict(&s);
	} else if (ret != -ENOMEM) {
		not_examined(&s, "L1 table at 0x%llx: %s", ull(q->h.l1_off), strerror(-ret));
		ret = 0;
	}
	scan_free(&s);
	return ret;
}

/* ---- repair ---- */

static int scan_once(struct fiber *f, struct qed *q, bool remove, struct scan *ret_found, struct varve_error *err)
{
	struct scan s;
	int ret = scan_init(f, &s, q, NULL, err);

	s.remove = remove;
	if (ret == -ENODATA)
		ret = varve_error_set(err, -EIO, "the image is damaged: its L1 table reaches beyond the end of the file");
	else if (ret < 0)
		varve_error_errno(err, ret, "cannot read the L1 table");
	else
		ret = scan_all(f, &s);
	*ret_found = s;
	scan_free(&s);
	return ret;
}

/*
 * Durable first: our mark in the header, or that there is none. Only then: any change. Another server's journal may be waiting for its next
 * start, and fits as long as its mark is there; what it has queued leads to space that the repair takes away, or gives to others. Who is
 * killed in between leaves an image as that server left it, and a journal that is refused: nothing is lost silently. An image that
 * cannot be repaired keeps the mark, and that server can be started.
 *
 * Durable next: the entries that are removed. Only then: the file without its unused end, which they led to, and the
 * header without the flag. Power lost in between leaves the flag, and the next writer does all this again.
 */
int qed_repair_unclean(struct fiber *f, struct qed *q, struct varve_error *err)
{
	struct scan found;
	int ret = scan_once(f, q, false, &found, err);

	if (ret == 0 && found.shared)
		ret = varve_error_set(err, -EIO,
				      "%llu entries lead to space that is in use already, and nobody can say whose it is; "
				      "the image can only be read (\"img check\" says where)",
				      ull(found.shared));
	if (ret == 0)
		ret = qed_begin_changes(f, q, err);
	if (ret == 0 && found.nowhere)
		ret = scan_once(f, q, true, &found, err);
	if (ret < 0)
		return ret;
	ret = order_flush(f, q->order);
	if (ret == 0 && found.end < node_len(q->leaf) && !q->leaf->fixed_len)
		ret = node_truncate(f, q->file, found.end, PREALLOC_OFF, NULL);
	if (ret == 0)
		ret = qed_put_features(f, q, q->h.features & ~QED_F_NEED_CHECK, order_all(q->order), NULL);
	if (ret == 0)
		ret = order_flush(f, q->order);
	return ret < 0 ? varve_error_errno(err, ret, "the image cannot be repaired") : 0;
}
