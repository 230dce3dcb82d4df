/* SPDX-License-Identifier: MIT */
/*
 * qcow2/l2.c - changing the mapping: space for guest clusters, entries that point at it, entries that no
 * longer do
 *
 * Every change is of entries in one piece of one table, with one order_put(): it happens, or it does not. What entries of two
 * words hold, and how they change, is subcluster.c's; here they get their tables.
 *
 * Assumes: fibers of the home queue; block/ has locked the guest clusters concerned against other changes.
 * Other entries, also of the same table, change whenever we wait. Never:   makes an entry durable before what
 * it points at, or gives space back while something may point at it.
 */
#include "block/event.h"
#include "format/cache.h"
#include "format/qcow2/qcow2.h"
#include "format/qcow2/sites.h"
#include "format/qcow2/ahead.h"
#include "format/qcow2/entry.h"
#include "format/qcow2/l2.h"
#include "format/qcow2/pack.h"
#include "format/qcow2/stock.h"
#include "format/qcow2/subcluster.h"

#include <stdlib.h>
#include <string.h>

#define RUN_MAX (PIECE_LEN / 8) /* entries that are changed at once: see run_at() */

struct run run_at(const struct qcow2 *q, uint64_t off, uint64_t len)
{
	uint64_t index = off >> q->cluster_bits;
	uint32_t in_table = (uint32_t)(index & (q->l2_entries - 1)), per_piece = 1u << q->l2_piece_bits;
	uint32_t most = PIECE_LEN / q->l2_entry_len; /* pieces may be larger than what is changed at once */
	struct run run = { .guest_off = off };

	run.table = (uint32_t)(index >> q->l2_bits);
	run.piece_nr = in_table >> q->l2_piece_bits;
	run.first = in_table & (per_piece - 1);
	run.nr = (unsigned)MIN(((off & (q->cluster_len - 1)) + len + q->cluster_len - 1) >> q->cluster_bits,
			       (uint64_t)MIN(per_piece - run.first, most));
	return run;
}

uint64_t run_host_off(const struct qcow2 *q, const struct run *run)
{
	return (q->l1[run->table] & QCOW2_OFF_MASK) + (uint64_t)run->piece_nr * q->l2->piece_len +
	       run->first * (uint64_t)q->l2_entry_len;
}

bool has_backing(const struct qcow2 *q)
{
	return q->node->backing || q->node->backing_name;
}

/* ---- tables ---- */

/* A table's new place gets its content: zeroes, or what the table at old_off holds. */
static int write_table(struct fiber *f, struct qcow2 *q, uint64_t host_off, uint64_t old_off,
		       order_mark *ret_mark)
{
	void *content = calloc(1, q->cluster_len);
	int err = content ? 0 : -ENOMEM;

	if (err == 0 && old_off) {
		node_event(f, q->file, EVENT_L2_ALLOC_COW_READ);
		err = order_read(f, q->order, old_off, content, q->cluster_len);
	}
	if (err == 0)
		err = order_put(f, order_as(q->order, EVENT_L2_ALLOC_WRITE), host_off, content, q->cluster_len, ORDER_NONE, ret_mark);
	free(content);
	return err;
}

/*
 * A table of our own for an L1 entry that has none, or shares one with a snapshot. Under l1_mutex.
 *
 * Durable first: the new table's content, and its refcount of 1. Only then: the L1 entry. Power lost in
 * between leaks one cluster, which check finds. The other way round, L1 would lead to a table with whatever
 * the cluster held before. A new table in space that reads zero, as far as the file is durably long, is an empty
 * table already: nothing is written, and L1 waits for the count only.
 *
 * The shared table loses one reference, once the L1 entry is durable; power lost before that leaves its count
 * one too high, again a leak. The clusters that both tables point at keep their counts: making the snapshot
 * has counted them for both already.
 */
static int make_table(struct fiber *f, struct qcow2 *q, uint32_t table)
{
	uint64_t old_off = q->l1[table] & QCOW2_OFF_MASK, host_off;
	order_mark counted, content = ORDER_NONE, linked;
	be64 entry;
	bool zero;
	int err = alloc_metadata(f, q, 1, &host_off, &zero, &counted);

	if (err < 0)
		return err;
	/* Others make images whose L1 table is a hole. */
	err = node_allocate(f, q->file, q->h.l1_off + table * sizeof(entry), sizeof(entry));
	if (err == 0 && (old_off || !zero))
		err = write_table(f, q, host_off, old_off, &content);
	entry = be64_put(host_off | QCOW2_COPIED);
	if (err == 0)
		err = order_put(f, order_as(q->order, EVENT_L1_UPDATE), q->h.l1_off + table * 8ull, &entry, sizeof(entry),
				site_after(q, SITE_L1_ENTRY, order_max(content, counted)), &linked);
	if (err < 0) {
		/* Content of the table may be queued: nobody gets the cluster before that is out of the way.
		 */
		alloc_free_metadata(q, host_off, 1, order_all(q->order));
		return err;
	}
	q->l1[table] = host_off | QCOW2_COPIED;
	q->l1_linked = order_max(q->l1_linked, linked);
	if (old_off)
		alloc_free_metadata(q, old_off, 1, order_max(linked, order_all(q->order)));
	else
		cache_set_empty(q->l2, table, false);
	return 0;
}

int run_open(struct fiber *f, struct qcow2 *q, const struct run *run, struct piece **ret)
{
	bool fresh = false;
	int err = q->unmapped;

	if (err < 0)
		return err;
	if (!(q->l1[run->table] & QCOW2_COPIED)) {
		fiber_lock(f, &q->l1_mutex);
		if (!(q->l1[run->table] & QCOW2_COPIED)) { /* nobody has made it while we waited */
			fresh = !q->l1[run->table];
			err = make_table(f, q, run->table);
		}
		fiber_unlock(&q->l1_mutex);
	}
	/* Nobody has run since the table was made: it is all zeroes. */
	if (err == 0)
		err = cache_get(f, q->l2, run->table, run->piece_nr, fresh, ret);
	return err;
}

/* ---- what entries hold ---- */

/*
 * Not before the table with the entry that replaces it is what the disk's L1 leads to: until then a cut falls back to the
 * table before, shared with a snapshot, whose entry still counts on the reference.
 */
void release_entry(struct qcow2 *q, uint64_t entry, order_mark gone, enum freed why)
{
	uint64_t host_off = entry & QCOW2_OFF_MASK, nr = 1;

	if (q->external) /* no counts, and nobody else is given the place */
		return;
	gone = order_max(gone, site_after(q, SITE_TABLE_LINKED, q->l1_linked));
	if (entry & QCOW2_COMPRESSED) {
		/* Each cluster that it touches counts one for it. */
		struct packed_place p = packed_place_of(q->cluster_bits, entry);

		host_off = align_down(p.off, q->cluster_len);
		nr = div_up(p.off + p.len - host_off, q->cluster_len);
	}
	if (host_off)
		alloc_free(q, host_off, nr, gone, why);
}

enum freed freed_by(enum unlink_mode mode)
{
	switch (mode) {
	case UNLINK_ZERO_UNMAP:
	case UNLINK_DISCARD:
		return FREED_REQUEST;
	case UNLINK_ABSENT:
		return FREED_CUT;
	case UNLINK_ZERO:
		break;
	}
	return FREED_OTHER; /* shared with a snapshot, or compressed */
}

bool unlink_discards(const struct qcow2 *q, enum unlink_mode mode)
{
	return freed_by(mode) == FREED_REQUEST && q->discards >> FREED_REQUEST & 1;
}

/* A cluster of zeroes that keeps its space for us: it can be written there. Its bytes are not zero. */
static bool is_kept(uint64_t entry)
{
	return !(entry & QCOW2_COMPRESSED) && (entry & QCOW2_ZERO) && (entry & QCOW2_COPIED) &&
	       (entry & QCOW2_OFF_MASK);
}

static bool is_damaged(const struct qcow2 *q, uint64_t entry)
{
	return !(entry & QCOW2_COMPRESSED) &&
	       ((entry & QCOW2_L2_RESERVED) || !is_aligned(entry & QCOW2_OFF_MASK, q->cluster_len) ||
		((entry & QCOW2_ZERO) && q->h.version < 3));
}

/* ---- alloc, link ---- */

/* How many entries from the run's first on keep space for us, contiguously? Cuts the run before the first
 * that does. */
static unsigned kept_run(const struct qcow2 *q, const struct piece *p, struct run *run,
			 uint64_t *ret_host_off)
{
	uint64_t first = entry_get(p, run->first);
	unsigned nr = 1;

	*ret_host_off = first & QCOW2_OFF_MASK;
	if (!is_kept(first)) {
		while (nr < run->nr && !is_kept(entry_get(p, run->first + nr)))
			nr++;
		run->nr = nr;
		return 0;
	}
	while (nr < run->nr && entry_get(p, run->first + nr) == first + ((uint64_t)nr << q->cluster_bits))
		nr++;
	return nr;
}

/*
 * Space is counted as used before anything points at it. Power lost, or an error, in between leaks it at
 * worst.
 */
int l2_alloc(struct fiber *f, struct node *n, uint64_t off, uint64_t len, struct extent *ret)
{
	struct qcow2 *q = node_state(n);
	struct run run = run_at(q, off, len);
	struct piece *p;
	uint64_t host_off, nr = 0;
	order_mark mark;
	bool fresh = false;
	int err = q->unmapped;

	if (err < 0)
		return err;
	if (q->external && is_wide(q))
		return sub_alloc_external(f, q, off, len, ret);
	/* The place is there, and may hold anything. */
	if (q->external) {
		*ret = (struct extent){ .kind = EXTENT_DATA, .node = q->data, .host_off = off,
					.len = (uint64_t)run.nr << q->cluster_bits };
		return 0;
	}
	if (is_wide(q))
		return sub_alloc(f, q, off, len, ret);
	if (q->l1[run.table]) {
		err = cache_get(f, q->l2, run.table, run.piece_nr, false, &p);
		if (err < 0)
			return err;
		nr = kept_run(q, p, &run, &host_off);
		cache_unpin(q->l2, p);
	}
	*ret = (struct extent){ .kind = EXTENT_DATA, .node = n->file };
	if (nr) {
		ret->flags = EXTENT_ALLOCATED;
	} else {
		err = alloc_clusters(f, q, run.nr, &host_off, &nr, &fresh, &mark);
		if (err < 0)
			return err;
		ret->flags = fresh ? EXTENT_READS_ZERO : 0;
		ahead_note_alloc(q, off, nr << q->cluster_bits);
	}
	ret->host_off = host_off;
	ret->len = nr << q->cluster_bits;
	return 0;
}

void l2_unalloc(struct fiber *f, struct node *n, const struct extent *extent)
{
	struct qcow2 *q = node_state(n);

	/* ALLOCATED: the entry that was there has kept the space, and keeps it. */
	if (!(extent->flags & EXTENT_ALLOCATED) && !q->external) {
		uint64_t first = align_down(extent->host_off, q->cluster_len);

		alloc_undo(f, q, first, div_up(extent->host_off + extent->len - first, q->cluster_len));
		/*
		 * Perhaps the file system is full. Who tries again is given these same clusters, and never looks further; what is due to be given
		 * back makes room.
		 */
		(void)alloc_settle(f, q);
	}
}

/*
 * Durable first: the data (the guest's, and what was copied around it), whose writes have completed, and the
 * refcounts of the clusters. Only then: the L2 entries. Power lost in between leaks the clusters, which check
 * finds; the old mapping holds. The other way round, an entry would point at a cluster still marked free, the
 * next allocation would hand it out again, and two guest blocks would share one place on disk.
 *
 * Space from the stock is different: it reads zero, its count and the length of the file are older than the
 * data. Where the guest sees zeroes now, the entry waits for the count only. Power lost with the entry on disk
 * and the data not, or torn: the guest reads zeroes for what it wrote, or what it wrote, for each sector, as
 * with any write that no flush has covered; and zeroes, as before, around it.
 *
 * A new table's L1 entry (make_table()) and the entries in it have no order between them: without the L1
 * entry nobody sees the others, without the others the table says "nothing here", which was true before.
 */
static order_mark link_after(struct qcow2 *q, const struct piece *p, const struct run *run,
			     const struct extent *extent)
{
	uint64_t first = extent->host_off >> q->cluster_bits;
	order_mark all = site_after(q, SITE_L2_ENTRY, order_max(order_now(q->order), alloc_counted(q)));

	if (!(extent->flags & EXTENT_READS_ZERO) || has_backing(q))
		return all;
	for (unsigned i = 0; i < run->nr; i++) {
		if (entry_get(p, run->first + i) & ~QCOW2_ZERO) /* a cluster, or damage */
			return all;
	}
	return site_after(q, SITE_STOCK_ENTRY, stock_mark(q, first, run->nr, all));
}

int l2_link(struct fiber *f, struct node *n, uint64_t off, const struct extent *extent)
{
	struct qcow2 *q = node_state(n);
	struct run run = run_at(q, off, extent->len);
	be64 disk[RUN_MAX];
	struct piece *p;
	order_mark mark;
	int err;

	if (is_wide(q))
		return sub_link(f, q, off, extent);
	assert((uint64_t)run.nr << q->cluster_bits == extent->len);
	err = run_open(f, q, &run, &p);
	if (err < 0)
		return err;
	for (unsigned i = 0; i < run.nr; i++)
		disk[i] = be64_put((extent->host_off + ((uint64_t)i << q->cluster_bits)) | QCOW2_COPIED);
	err = order_put(f, order_as(q->order, EVENT_L2_UPDATE), run_host_off(q, &run), disk, run.nr * sizeof(disk[0]),
			link_after(q, p, &run, extent), &mark);
	for (unsigned i = 0; err == 0 && i < run.nr; i++) {
		uint64_t old = entry_get(p, run.first + i);

		entry_set(p, run.first + i, be64_get(disk[i]));
		/*
		 * Space that a snapshot shares, or that was compressed: our reference goes when this entry is
		 * durable. Power lost before leaves its count too high.
		 */
		if (!(extent->flags & EXTENT_ALLOCATED))
			release_entry(q, old, mark, FREED_OTHER);
	}
	cache_unpin(q->l2, p);
	if (err == 0 && (extent->flags & EXTENT_READS_ZERO))
		ahead_make(f, q);
	return err;
}

/* The order is that of l2_link(): bytes and counts first. */
int l2_link_packed(struct fiber *f, struct qcow2 *q, uint64_t off, uint64_t entry)
{
	struct run run = run_at(q, off, q->cluster_len);
	be64 disk = be64_put(entry);
	struct piece *p;
	order_mark mark;
	uint64_t old;
	int err;

	if (is_wide(q))
		return sub_link_packed(f, q, off, entry);
	err = run_open(f, q, &run, &p);
	if (err < 0)
		return err;
	old = entry_get(p, run.first);
	err = order_put(f, order_as(q->order, EVENT_L2_UPDATE_COMPRESSED), run_host_off(q, &run), &disk, sizeof(disk),
			site_after(q, SITE_L2_ENTRY, order_max(order_now(q->order), alloc_counted(q))), &mark);
	if (err == 0) {
		entry_set(p, run.first, entry);
		release_entry(q, old, mark, FREED_OTHER);
	}
	cache_unpin(q->l2, p);
	return err;
}

int l2_link_zeroes(struct fiber *f, struct qcow2 *q, uint64_t off, uint64_t *len)
{
	struct run run = run_at(q, off, *len);
	uint64_t cluster, nr = 0;
	be64 disk[RUN_MAX];
	struct piece *p;
	int err;

	if (is_wide(q))
		return sub_link_zeroes(f, q, off, len);
	err = run_open(f, q, &run, &p);
	*len = 0;
	if (err < 0)
		return err;
	while (nr < run.nr && !entry_get(p, run.first + (unsigned)nr))
		nr++;
	nr = stock_take(q, nr, &cluster);
	for (unsigned i = 0; i < nr; i++)
		disk[i] = be64_put(((cluster + i) << q->cluster_bits) | QCOW2_COPIED);
	if (nr)
		err = order_put(f, order_as(q->order, EVENT_L2_UPDATE), run_host_off(q, &run), disk, nr * sizeof(disk[0]),
				site_after(q, SITE_STOCK_ENTRY,
					   stock_mark(q, cluster, nr, order_max(order_now(q->order), alloc_counted(q)))),
				NULL);
	for (unsigned i = 0; err == 0 && i < nr; i++)
		entry_set(p, run.first + i, be64_get(disk[i]));
	cache_unpin(q->l2, p);
	if (err < 0)
		alloc_undo(f, q, cluster << q->cluster_bits, nr);
	else
		*len = nr << q->cluster_bits;
	return err;
}

/* ---- unlink ---- */

/* What an entry becomes. *ret_release: the old one's reference goes. */
static uint64_t unlinked(const struct qcow2 *q, uint64_t old, enum unlink_mode mode, bool *ret_release)
{
	uint64_t none =
		q->h.version >= 3 && has_backing(q) ? QCOW2_ZERO : 0; /* reads as zeroes, without space */
	bool space = (old & (QCOW2_COMPRESSED | QCOW2_OFF_MASK)) || at_zero(q, old);

	*ret_release = false;
	if (mode == UNLINK_ABSENT) {
		*ret_release = space;
		return 0;
	}
	if (!space)
		return (old & QCOW2_ZERO) && mode != UNLINK_DISCARD ? old : none;
	/* Ours alone: it will be written again, and is kept. */
	if ((mode == UNLINK_ZERO || q->keeps_space) && q->h.version >= 3 && (old & QCOW2_COPIED) && !(old & QCOW2_COMPRESSED))
		return old | QCOW2_ZERO;
	*ret_release = true;
	return none;
}

/* *ret_changes: entries that will differ. *ret_ours: some of them could be written in place until now. -EUCLEAN: damage. */
static int plan_unlink(const struct qcow2 *q, const struct piece *p, const struct run *run,
		       enum unlink_mode mode, uint64_t *old, be64 *disk, bool *release, bool *ret_changes,
		       bool *ret_ours)
{
	*ret_changes = *ret_ours = false;
	for (unsigned i = 0; i < run->nr; i++) {
		uint64_t next;

		old[i] = entry_get(p, run->first + i);
		if (is_damaged(q, old[i])) {
			if (mode != UNLINK_DISCARD)
				return -EUCLEAN;
			release[i] = false; /* a discard is advice: leave it to check */
			disk[i] = be64_put(old[i]);
			continue;
		}
		next = unlinked(q, old[i], mode, &release[i]);
		disk[i] = be64_put(next);
		*ret_changes |= next != old[i];
		*ret_ours |= next != old[i] && (old[i] & QCOW2_COPIED) && !(old[i] & QCOW2_ZERO);
	}
	return 0;
}

/* Does the entry keep its place, and has lost what is there? */
static bool is_emptied(uint64_t old, uint64_t now)
{
	return !(old & QCOW2_ZERO) && now == (old | QCOW2_ZERO) && !(old & QCOW2_COMPRESSED) && (old & QCOW2_OFF_MASK);
}

/*
 * discard-no-unref: clusters that keep their place give their blocks back. At once, while the guest's clusters are locked: later it
 * could meet what is written there next. Power lost before the entries are durable leaves holes under the old ones: zeroes, which
 * is what was asked for. So zeroes it has to be, and not a discard, after which a device may hold anything.
 */
static void punch_emptied(struct fiber *f, const struct qcow2 *q, const uint64_t *old, const be64 *now, unsigned nr)
{
	for (unsigned i = 0, len; i < nr; i += len) {
		uint64_t host_off = old[i] & QCOW2_OFF_MASK;

		len = 1;
		if (!is_emptied(old[i], be64_get(now[i])))
			continue;
		while (i + len < nr && is_emptied(old[i + len], be64_get(now[i + len])) &&
		       (old[i + len] & QCOW2_OFF_MASK) == host_off + ((uint64_t)len << q->cluster_bits))
			len++;
		/* Not to be had without writing: the blocks stay, and the entry says zeroes. */
		(void)node_zero(f, q->data, host_off, (uint64_t)len << q->cluster_bits, REQ_MAY_UNMAP | REQ_NO_FALLBACK);
	}
}

/*
 * Of the data file, at once: the entries need not be durable before. Power lost in between leaves the old entry with zeroes behind
 * it, which is what was asked for, and no flush has covered it. Nobody else is given the place, and who writes the same guest
 * clusters next waits for the lock of them.
 */
static void punch_released(struct fiber *f, struct qcow2 *q, const struct run *run, const bool *release)
{
	for (unsigned i = 0, nr; i < run->nr; i += nr) {
		for (nr = 1; i + nr < run->nr && release[i + nr] == release[i]; nr++)
			;
		if (release[i])
			data_punch(f, q, run->guest_off + ((uint64_t)i << q->cluster_bits), (uint64_t)nr << q->cluster_bits);
	}
}

/*
 * First nobody finds the old mapping any more and nothing is in flight under it: a write that was on its way
 * when the cluster became "zero, space kept" would otherwise land on top of what the guest writes there next.
 *
 * The entry needs nothing durable before it. What it gives up is freed when it is durable, not before: power
 * lost in between leaks; the other way round, the entry on disk would point at space that somebody else has.
 */
static int unlink_pinned(struct fiber *f, struct qcow2 *q, struct piece *p, const struct run *run,
			 enum unlink_mode mode)
{
	uint64_t old[RUN_MAX];
	be64 disk[RUN_MAX];
	bool release[RUN_MAX], changes, ours;
	order_mark mark;
	int err = plan_unlink(q, p, run, mode, old, disk, release, &changes, &ours);

	if (err < 0 || !changes)
		return err;
	for (unsigned i = 0; i < run->nr; i++)
		entry_set(p, run->first + i, be64_get(disk[i]));
	if (ours)
		node_grace(f, q->node);
	err = order_put(f, order_as(q->order, EVENT_L2_UPDATE), run_host_off(q, run), disk, run->nr * sizeof(disk[0]), ORDER_NONE,
			&mark);
	for (unsigned i = 0; i < run->nr; i++) {
		if (err < 0)
			entry_set(p, run->first + i, old[i]);
		else if (release[i])
			release_entry(q, old[i], mark, freed_by(mode));
	}
	for (unsigned i = 0; q->external && i < run->nr; i++)
		release[i] |= be64_get(disk[i]) != old[i] && (be64_get(disk[i]) & QCOW2_ZERO); /* the place is its own either way */
	if (err == 0 && q->external && unlink_discards(q, mode))
		punch_released(f, q, run, release);
	else if (err == 0 && q->keeps_space && unlink_discards(q, mode))
		punch_emptied(f, q, old, disk, run->nr);
	return err;
}

int l2_unlink(struct fiber *f, struct node *n, uint64_t off, uint64_t len, enum unlink_mode mode)
{
	struct qcow2 *q = node_state(n);
	int err = q->unmapped;

	if (err < 0)
		return err;
	/* Version 2 cannot say "zeroes": what is behind would show. */
	if (q->h.version < 3 && has_backing(q) && mode != UNLINK_ABSENT)
		return -ENOTSUP;
	if (q->raw_data && mode != UNLINK_ABSENT)
		return data_unlink_raw(f, q, off, len, mode);
	for (uint64_t pos = 0; err == 0 && pos < len;) {
		uint64_t at = off + pos, part;
		struct run run = run_at(q, at, len - pos);
		struct piece *p;

		part = MIN(len - pos, ((uint64_t)run.nr << q->cluster_bits) - (at & (q->cluster_len - 1)));
		pos += part;
		if (!q->l1[run.table] && (!has_backing(q) || mode == UNLINK_ABSENT))
			continue; /* is as it shall be already */
		err = run_open(f, q, &run, &p);
		if (err < 0)
			break;
		err = is_wide(q) ? sub_unlink(f, q, p, &run, at, part, mode) : unlink_pinned(f, q, p, &run, mode);
		cache_unpin(q->l2, p);
		if (err == -EUCLEAN)
			err = qcow2_met(f, q, at, part, true);
	}
	return err;
}
