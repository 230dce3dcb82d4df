/* SPDX-License-Identifier: MIT */
/*
 * qcow2/snapshot_header.c - the header leads to another snapshot table; the dirty bit around it
 *
 * The number of snapshots, the place of their table and the incompatible features lie side by side in the header's first
 * sector, so one write changes all three: a snapshot exists completely or not at all, and with the same write the counts
 * are said to be right again.
 *
 * Assumes: a fiber of the home queue, under snapshot_mutex (the dirty bit: any one operation at a time).
 * Never:   writes over the table that the header leads to.
 */
#include "format/qcow2/snapshot.h"

#include <stdlib.h>
#include <string.h>

#include "format/qcow2/lazy.h"
#include "format/qcow2/sites.h"

/* Bytes 60 .. 80 of the header. */
struct switch_disk {
	be32 nr_snapshots;
	be64 snapshots_off;
	be64 incompatible;
};
static_assert(sizeof(struct switch_disk) == 20, "no padding");
static_assert(offsetof(struct qcow2_header_disk, incompatible) == offsetof(struct qcow2_header_disk, nr_snapshots) + 12,
	      "side by side");

static int put_header(struct fiber *f, struct qcow2 *q, uint32_t nr, uint64_t off, order_mark after, order_mark *ret_mark)
{
	struct switch_disk d = { be32_put(nr), be64_put(off), be64_put(q->h.incompatible) };

	/* Version 2 has no features: what stands there is something else. */
	return order_put(f, q->order, offsetof(struct qcow2_header_disk, nr_snapshots), &d,
			 q->h.version < 3 ? sizeof(d) - sizeof(d.incompatible) : sizeof(d), after, ret_mark);
}

/*
 * In memory first, and put in the same breath: order_put() queues, and waits only then, and whoever puts bits of his meanwhile (lazy.c, corrupt.c)
 * puts ours with them. Back to what it was if it could not be queued; whoever has set it for himself meanwhile keeps it, and so does a change
 * that failed before and left something to be counted anew.
 */
static void set_dirty(struct qcow2 *q, bool dirty)
{
	if (q->h.version < 3) /* has no such bit */
		return;
	if (dirty || lazy_behind(q) || q->changing)
		q->h.incompatible |= QCOW2_INCOMPAT_DIRTY;
	else
		q->h.incompatible &= ~QCOW2_INCOMPAT_DIRTY;
}

/* ---- the dirty bit ---- */

/*
 * Durable first: the bit. Only then: counts and flags that do not agree. Power lost in between: the next writer, this one or
 * another, counts what is referred to, and marks what is used once. The other way round a check would find flags that lie.
 */
int snapshot_dirty_begin(struct fiber *f, struct qcow2 *q, struct varve_error *err)
{
	order_mark mark;
	bool dirty;
	int ret = lazy_wait_dirty(f, q, &dirty);

	if (ret < 0)
		return varve_error_errno(err, ret, "cannot set the dirty bit in the header");
	q->changing++;
	if (q->h.version < 3 || dirty || (q->h.incompatible & QCOW2_INCOMPAT_DIRTY))
		return 0;
	set_dirty(q, true);
	ret = put_header(f, q, q->h.nr_snapshots, q->h.snapshots_off, ORDER_NONE, &mark);
	if (ret < 0) {
		q->changing--;
		set_dirty(q, false);
	}
	if (ret == 0 && !site_off(q, SITE_SNAPSHOT_DIRTY)) {
		ret = order_wait(f, q->order, mark);
		q->changing -= ret < 0; /* the bit stays until the next change ends */
	}
	return ret < 0 ? varve_error_errno(err, ret, "cannot set the dirty bit in the header") : 0;
}

int snapshot_dirty_end(struct fiber *f, struct qcow2 *q, struct varve_error *err)
{
	int ret;

	assert(q->changing);
	q->changing--;
	if (q->changing || !(q->h.incompatible & QCOW2_INCOMPAT_DIRTY) || q->h.version < 3 || lazy_behind(q))
		return 0;
	set_dirty(q, false);
	ret = put_header(f, q, q->h.nr_snapshots, q->h.snapshots_off, site_after(q, SITE_SNAPSHOT_LINK, order_all(q->order)), NULL);
	if (ret == 0)
		return 0;
	set_dirty(q, true);
	return varve_error_errno(err, ret, "cannot clear the dirty bit in the header");
}

/* ---- the table ---- */

int snapshots_open(struct fiber *f, struct qcow2 *q, struct snapshots *ret, struct varve_error *err)
{
	*ret = (struct snapshots){ .nr = q->h.nr_snapshots };
	/* Read from the file: whoever writes a table waits until it is durable. */
	return snapshots_read(f, q->file, &q->h, &ret->list, &ret->table_len, err);
}

void snapshots_close(struct snapshots *s)
{
	snapshots_free(s->list, s->nr);
	s->list = NULL;
}

int snapshots_find(const struct snapshots *s, const struct snapshot_pick *pick, uint32_t *ret, struct varve_error *err)
{
	uint32_t nr = 0;

	for (uint32_t i = 0; i < s->nr; i++) {
		if ((nr && pick->first) || !snapshot_matches(pick, s->list[i].id, s->list[i].name))
			continue;
		*ret = i;
		nr++;
	}
	if (nr == 1)
		return 0;
	return varve_error_set(err, nr ? -EEXIST : -ENOENT, "snapshot%s%s%s%s%s%s: %s", pick->id ? " with id '" : "",
			       pick->id ? pick->id : "", pick->id ? "'" : "", pick->name ? " '" : "", pick->name ? pick->name : "",
			       pick->name ? "'" : "", nr ? "there are several; name it by its id" : "the image has none such");
}

static void free_old_table(struct qcow2 *q, uint64_t off, uint64_t len, order_mark gone)
{
	/* A table that does not begin where clusters do was not allocated by itself: it stays, as a leak. */
	if (len && is_aligned(off, q->cluster_len))
		alloc_free_metadata(q, off, div_up(len, q->cluster_len), gone);
}

/*
 * Durable first: the new table, all that it names, and the counts. Only then: the header. Power lost in between leaks the
 * new table and what only it names; the old table holds. The old one's space is free when the header is durable.
 */
int snapshots_write(struct fiber *f, struct qcow2 *q, const struct snapshots *s, uint32_t without, bool clean,
		    order_mark *ret_mark, struct varve_error *err)
{
	uint32_t nr = s->nr - (without < s->nr);
	uint64_t off = 0, old_off = q->h.snapshots_off;
	bool dirty = q->h.incompatible & QCOW2_INCOMPAT_DIRTY;
	struct meta_ranges *ranges = NULL;
	order_mark counted;
	uint8_t *bytes;
	size_t len;
	bool zero;
	int ret = snapshots_build(s->list, s->nr, without, &bytes, &len, err);

	if (ret < 0)
		return ret;
	if (len) {
		ret = alloc_metadata(f, q, div_up(len, q->cluster_len), &off, &zero, &counted);
		if (ret == 0)
			ret = order_put(f, q->order, off, bytes, len, ORDER_NONE, NULL);
	}
	if (ret == 0) {
		ranges = meta_ranges_new(q, s->list, s->nr, without, off, len);
		ret = ranges ? 0 : -ENOMEM;
	}
	assert(!clean || q->changing);
	q->changing -= clean;
	set_dirty(q, dirty && !clean);
	if (ret == 0)
		ret = put_header(f, q, nr, off, site_after(q, SITE_SNAPSHOT_LINK, order_all(q->order)), ret_mark);
	free(bytes);
	if (ret < 0) {
		q->changing += clean;
		set_dirty(q, dirty);
		if (off)
			alloc_free_metadata(q, off, div_up(len, q->cluster_len), order_all(q->order));
		free(ranges);
		return varve_error_errno(err, ret, "cannot write the snapshot table");
	}
	q->h.nr_snapshots = nr;
	q->h.snapshots_off = off;
	meta_ranges_set(q, ranges);
	free_old_table(q, old_off, s->table_len, site_after(q, SITE_SNAPSHOT_GONE, *ret_mark));
	return 0;
}
