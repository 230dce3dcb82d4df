/* SPDX-License-Identifier: MIT */
/*
 * qcow2/subcluster.c - changing the mapping where each entry has a bitmap of subclusters
 *
 * A cluster gets its place when the first of its subclusters is written; the others stay what they were: in the backing image,
 * zeroes, or nothing. Only a cluster that leaves a shared or compressed place moves with all that has data in it.
 *
 * One entry is 16 bytes at a multiple of 16: no sector's end falls into it, and it goes to disk whole or not at all, with one
 * order_put(). In memory its words are stored one after the other; subcluster.h says in which order, and why.
 *
 * With an external data file nothing is allocated, moved or freed: a cluster's place is where the guest sees it, and each
 * subcluster is filled by itself. The bitmap alone says what of it counts.
 *
 * Assumes: fibers of the home queue; block/ has locked the clusters concerned, whole.
 * Never:   makes a subcluster reachable before all of its bytes are written, or a place whose bytes are somebody else's.
 */
#include "format/qcow2/subcluster.h"

#include "block/event.h"
#include "format/qcow2/ahead.h"
#include "format/qcow2/sites.h"
#include "format/qcow2/stock.h"

#define RUN_MAX (PIECE_LEN / 16) /* entries that are changed at once: see run_at() in l2.c */

/* Entries on their way from one state to another. */
struct change {
	struct run run;
	struct wide_entry old[RUN_MAX], next[RUN_MAX];
};

static uint64_t cluster_start(const struct qcow2 *q, const struct run *run, unsigned i)
{
	return align_down(run->guest_off, q->cluster_len) + ((uint64_t)i << q->cluster_bits);
}

/* Which subclusters of the run's entry number i are in [off, off + len)? Both are multiples of a subcluster. */
static uint32_t covered(const struct qcow2 *q, const struct run *run, unsigned i, uint64_t off, uint64_t len)
{
	uint64_t start = cluster_start(q, run, i), end = start + q->cluster_len;
	uint64_t from = MAX(off, start), to = MIN(off + len, end);

	return (uint32_t)((1ull << ((to - start) >> sub_bits(q))) - (1ull << ((from - start) >> sub_bits(q))));
}

/* The place is ours alone: subclusters without data can be written there. */
static bool is_kept(const struct qcow2 *q, const struct wide_entry *e)
{
	return !(e->place & QCOW2_COMPRESSED) && (e->place & QCOW2_COPIED) &&
	       ((e->place & QCOW2_OFF_MASK) || at_zero(q, e->place));
}

static bool is_packed(const struct wide_entry *e)
{
	return e->place & QCOW2_COMPRESSED;
}

static void set_place(struct piece *p, unsigned i, const struct wide_entry *e)
{
	entry_set(p, 2 * i, e->place);
}

static void set_bitmap(struct piece *p, unsigned i, const struct wide_entry *e)
{
	entry_set(p, 2 * i + 1, wide_bitmap(e));
}

static int put(struct fiber *f, struct qcow2 *q, const struct change *c, unsigned event, order_mark after,
	       order_mark *ret_mark)
{
	be64 disk[2 * RUN_MAX];

	for (unsigned i = 0; i < c->run.nr; i++) {
		disk[2 * i] = be64_put(c->next[i].place);
		disk[2 * i + 1] = be64_put(wide_bitmap(&c->next[i]));
	}
	return order_put(f, order_as(q->order, event), run_host_off(q, &c->run), disk, c->run.nr * 16ull, after, ret_mark);
}

/* Entries that get a place, or more data in theirs (subcluster.h, "adding" and "from a compressed cluster"). */
static void publish(struct fiber *f, struct qcow2 *q, struct piece *p, const struct change *c)
{
	bool wait = false;

	for (unsigned i = 0; i < c->run.nr; i++) {
		if (!is_packed(&c->old[i]) || is_packed(&c->next[i]))
			continue;
		set_bitmap(p, c->run.first + i, &c->next[i]);
		wait = true;
	}
	if (wait)
		node_grace(f, q->node);
	for (unsigned i = 0; i < c->run.nr; i++) {
		set_place(p, c->run.first + i, &c->next[i]);
		set_bitmap(p, c->run.first + i, &c->next[i]);
	}
}

/* ---- alloc ---- */

/*
 * What [off, off + len) meets first: entries that keep their place, contiguous ones (*ret_host_off: of the first cluster), or
 * those that need one. Cuts the run where the other kind begins. -EIO: damage.
 */
static int look(const struct qcow2 *q, const struct piece *p, struct run *run, struct wide_entry *ret_first,
		struct wide_entry *ret_last, bool *ret_kept, uint64_t *ret_host_off)
{
	unsigned nr = 0;

	for (; nr < run->nr; nr++) {
		struct wide_entry e = wide_get(p, run->first + nr);

		if (wide_damaged(q, &e) && !nr)
			return -EIO;
		if (wide_damaged(q, &e))
			break;
		if (nr == 0) {
			*ret_first = e;
			*ret_kept = is_kept(q, &e);
			*ret_host_off = e.place & QCOW2_OFF_MASK;
		} else if (is_kept(q, &e) != *ret_kept ||
			   (*ret_kept && (e.place & QCOW2_OFF_MASK) != *ret_host_off + ((uint64_t)nr << q->cluster_bits))) {
			break;
		}
		*ret_last = e;
	}
	run->nr = nr;
	return 0;
}

/*
 * The subclusters that must be written with a cluster that gets a new place. whole: it reads zero there, and zeroes are what
 * the guest sees now; so all of it may be, for nothing, and what is written there next needs no metadata.
 */
static uint32_t moves(const struct wide_entry *e, bool whole)
{
	return (whole && !e->place) || is_packed(e) ? SUB_ALL : e->data;
}

/* [*off, *end), which ends in the run's entry number nr - 1, grows to what has to be written with it. */
static void widen(const struct qcow2 *q, const struct run *run, const struct wide_entry *first, const struct wide_entry *last,
		  bool whole, uint64_t *off, uint64_t *end)
{
	uint32_t low = moves(first, whole), high = moves(last, whole);

	if (low)
		*off = MIN(*off, cluster_start(q, run, 0) + ((uint64_t)__builtin_ctz(low) << sub_bits(q)));
	if (high)
		*end = MAX(*end, cluster_start(q, run, run->nr - 1) +
					 ((uint64_t)(QCOW2_SUBCLUSTERS - __builtin_clz(high)) << sub_bits(q)));
}

static int alloc_new(struct fiber *f, struct qcow2 *q, struct run *run, uint64_t *ret_host_off, bool *ret_fresh)
{
	uint64_t nr;
	order_mark mark;
	int ret = alloc_clusters(f, q, run->nr, ret_host_off, &nr, ret_fresh, &mark);

	if (ret < 0)
		return ret;
	run->nr = (unsigned)nr;
	ahead_note_alloc(q, cluster_start(q, run, 0), nr << q->cluster_bits);
	return 0;
}

/* Space is counted as used before anything points at it: see l2_alloc(). */
int sub_alloc(struct fiber *f, struct qcow2 *q, uint64_t off, uint64_t len, struct extent *ret)
{
	struct run run = run_at(q, off, len);
	struct wide_entry first = { 0 }, last = { 0 };
	uint64_t host_off = 0, from = off, end;
	bool kept = false, fresh = false;
	struct piece *p;
	int err = 0;

	if (q->l1[run.table]) {
		err = cache_get(f, q->l2, run.table, run.piece_nr, false, &p);
		if (err < 0)
			return err;
		err = look(q, p, &run, &first, &last, &kept, &host_off);
		if (err == 0 && !kept) {
			unsigned nr = run.nr;

			err = alloc_new(f, q, &run, &host_off, &fresh);
			if (err == 0 && run.nr < nr)
				last = wide_get(p, run.first + run.nr - 1);
		}
		cache_unpin(q->l2, p);
	} else {
		err = alloc_new(f, q, &run, &host_off, &fresh);
	}
	if (err < 0)
		return err;
	end = MIN(off + len, cluster_start(q, &run, run.nr));
	if (!kept)
		widen(q, &run, &first, &last,
		      fresh && !has_backing(q) && host_off + ((uint64_t)run.nr << q->cluster_bits) <= node_len(q->leaf), &from,
		      &end);
	*ret = (struct extent){
		.kind = EXTENT_DATA,
		.flags = kept ? EXTENT_ALLOCATED : fresh ? EXTENT_READS_ZERO : 0,
		.before = (uint32_t)(off - from),
		.node = q->file,
		.host_off = host_off + (from - cluster_start(q, &run, 0)),
		.len = end - from,
	};
	return 0;
}

/*
 * The places are there, and may hold anything: what is asked for is filled, and nothing else. Entries are looked at all the same,
 * because link() keeps what they say of their other subclusters, and damage is not to be kept.
 */
int sub_alloc_external(struct fiber *f, struct qcow2 *q, uint64_t off, uint64_t len, struct extent *ret)
{
	struct run run = run_at(q, off, len);
	unsigned nr = run.nr;
	struct piece *p;
	int err;

	if (q->l1[run.table]) {
		err = cache_get(f, q->l2, run.table, run.piece_nr, false, &p);
		if (err < 0)
			return err;
		for (nr = 0; nr < run.nr; nr++) {
			struct wide_entry e = wide_get(p, run.first + nr);

			if (wide_damaged(q, &e))
				break;
		}
		cache_unpin(q->l2, p);
	}
	if (!nr)
		return -EIO;
	*ret = (struct extent){ .kind = EXTENT_DATA, .node = q->data, .host_off = off,
				.len = MIN(off + len, cluster_start(q, &run, nr)) - off };
	return 0;
}

/* ---- link ---- */

/* The order of l2.c's link_after(), for the same reasons. Without a place, an entry can say nothing but zeroes. */
static order_mark link_after(struct qcow2 *q, const struct change *c, const struct extent *extent)
{
	order_mark all = site_after(q, SITE_L2_ENTRY, order_max(order_now(q->order), alloc_counted(q)));

	if (!(extent->flags & EXTENT_READS_ZERO) || has_backing(q))
		return all;
	for (unsigned i = 0; i < c->run.nr; i++) {
		if (c->old[i].place)
			return all;
	}
	return site_after(q, SITE_STOCK_ENTRY, stock_mark(q, extent->host_off >> q->cluster_bits, c->run.nr, all));
}

static void plan_link(const struct qcow2 *q, const struct piece *p, struct change *c, uint64_t off,
		      const struct extent *extent)
{
	uint64_t host_off = align_down(extent->host_off, q->cluster_len);

	for (unsigned i = 0; i < c->run.nr; i++) {
		uint32_t mask = covered(q, &c->run, i, off, extent->len);
		struct wide_entry *e = &c->next[i];

		*e = c->old[i] = wide_get(p, c->run.first + i);
		if (!(extent->flags & EXTENT_ALLOCATED)) {
			assert(q->external || !(moves(e, false) & ~mask)); /* alloc() has asked for them */
			e->place = (host_off + ((uint64_t)i << q->cluster_bits)) | QCOW2_COPIED;
		}
		e->data |= mask;
		e->zero &= ~mask;
	}
}

/*
 * Durable first: the bytes of the subclusters, whose writes have completed, and the count of a new place. Only then: the
 * entries. Power lost in between leaks the new clusters, which check finds; the old entries hold, and where they say "zeroes"
 * or nothing, what was written behind them does not show. The other way round, bytes would show that were never written for
 * the guest: a subcluster of a place that was used before holds somebody else's.
 *
 * In a data file likewise, whose sync is part of every mark (order_sync_too()): power lost before the entry leaves bytes there that
 * the bitmap does not speak of. The other way round, the guest would see what the file held before, which nobody keeps clean.
 */
int sub_link(struct fiber *f, struct qcow2 *q, uint64_t off, const struct extent *extent)
{
	struct change c = { .run = run_at(q, off, extent->len) };
	struct piece *p;
	order_mark mark;
	int err;

	err = run_open(f, q, &c.run, &p);
	if (err < 0)
		return err;
	plan_link(q, p, &c, off, extent);
	err = put(f, q, &c, EVENT_L2_UPDATE, link_after(q, &c, extent), &mark);
	if (err == 0)
		publish(f, q, p, &c);
	/* A place that was shared, or compressed: as in l2_link(). */
	for (unsigned i = 0; err == 0 && !(extent->flags & EXTENT_ALLOCATED) && i < c.run.nr; i++)
		release_entry(q, c.old[i].place, mark, FREED_OTHER);
	cache_unpin(q->l2, p);
	if (err == 0 && (extent->flags & EXTENT_READS_ZERO))
		ahead_make(f, q);
	return err;
}

int sub_keeps_place(struct fiber *f, struct qcow2 *q, uint64_t off)
{
	struct run run = run_at(q, off, q->cluster_len);
	struct wide_entry e;
	struct piece *p;
	int err;

	if (!q->l1[run.table])
		return 0;
	err = cache_get(f, q->l2, run.table, run.piece_nr, false, &p);
	if (err < 0)
		return err;
	e = wide_get(p, run.first);
	cache_unpin(q->l2, p);
	return wide_damaged(q, &e) ? -EIO : is_kept(q, &e);
}

int sub_link_packed(struct fiber *f, struct qcow2 *q, uint64_t off, uint64_t entry)
{
	struct change c = { .run = run_at(q, off, q->cluster_len) };
	struct piece *p;
	order_mark mark;
	int err = run_open(f, q, &c.run, &p);

	if (err < 0)
		return err;
	c.old[0] = wide_get(p, c.run.first);
	c.next[0] = (struct wide_entry){ .place = entry };
	assert(!is_kept(q, &c.old[0])); /* sub_keeps_place() was asked */
	err = put(f, q, &c, EVENT_L2_UPDATE_COMPRESSED,
		  site_after(q, SITE_L2_ENTRY, order_max(order_now(q->order), alloc_counted(q))), &mark);
	if (err == 0) {
		publish(f, q, p, &c);
		release_entry(q, c.old[0].place, mark, FREED_OTHER);
	}
	cache_unpin(q->l2, p);
	return err;
}

int sub_link_zeroes(struct fiber *f, struct qcow2 *q, uint64_t off, uint64_t *len)
{
	struct change c = { .run = run_at(q, off, *len) };
	uint64_t cluster, nr = 0;
	struct piece *p;
	int err = run_open(f, q, &c.run, &p);

	*len = 0;
	if (err < 0)
		return err;
	for (; nr < c.run.nr; nr++) {
		c.old[nr] = wide_get(p, c.run.first + (unsigned)nr);
		if (c.old[nr].place || wide_bitmap(&c.old[nr]))
			break;
	}
	nr = stock_take(q, nr, &cluster);
	c.run.nr = (unsigned)nr;
	for (unsigned i = 0; i < nr; i++)
		c.next[i] = (struct wide_entry){ ((cluster + i) << q->cluster_bits) | QCOW2_COPIED, SUB_ALL, 0 };
	if (nr)
		err = put(f, q, &c, EVENT_L2_UPDATE,
			  site_after(q, SITE_STOCK_ENTRY,
				     stock_mark(q, cluster, nr, order_max(order_now(q->order), alloc_counted(q)))), NULL);
	if (err == 0)
		publish(f, q, p, &c);
	cache_unpin(q->l2, p);
	if (err < 0)
		alloc_undo(f, q, cluster << q->cluster_bits, nr);
	else
		*len = nr << q->cluster_bits;
	return err;
}

/* ---- unlink ---- */

/* What an entry becomes whose subclusters `mask` go. Its place goes with the last of them that has data. */
static struct wide_entry unlinked(const struct qcow2 *q, struct wide_entry e, uint32_t mask, enum unlink_mode mode)
{
	bool keep = (mode == UNLINK_ZERO || (q->keeps_space && mode != UNLINK_ABSENT)) && is_kept(q, &e);
	bool had_data = is_packed(&e) || e.data;
	/* Zeroes that were told stay told; without a backing image, nothing reads as zeroes too, unless the place is kept. */
	uint32_t stays = mode == UNLINK_ZERO || mode == UNLINK_ZERO_UNMAP ? e.zero : 0;

	e.data &= ~mask;
	e.zero &= ~mask;
	if (mode != UNLINK_ABSENT)
		e.zero |= has_backing(q) || keep ? mask : stays & mask;
	if (!keep && !e.data && (had_data || mask == SUB_ALL))
		e.place = 0;
	return e;
}

static int plan_unlink(const struct qcow2 *q, const struct piece *p, struct change *c, uint64_t off, uint64_t len,
		       enum unlink_mode mode, bool *ret_changes, bool *ret_wait)
{
	*ret_changes = *ret_wait = false;
	for (unsigned i = 0; i < c->run.nr; i++) {
		uint32_t mask = covered(q, &c->run, i, off, len);
		struct wide_entry old = wide_get(p, c->run.first + i), *next = &c->next[i];

		*next = c->old[i] = old;
		if (wide_damaged(q, &old) || (is_packed(&old) && mask != SUB_ALL)) {
			if (mode != UNLINK_DISCARD) /* which is advice: leave it to check, or as it is */
				return wide_damaged(q, &old) ? -EUCLEAN : -ENOTSUP;
			continue;
		}
		*next = unlinked(q, old, mask, mode);
		if (next->place == old.place && next->data == old.data && next->zero == old.zero)
			continue;
		*ret_changes = true;
		*ret_wait |= old.place != 0;
	}
	return 0;
}

/* Has the cluster lost all of its data, and kept its place? */
static bool is_emptied(const struct qcow2 *q, const struct change *c, unsigned i)
{
	return is_kept(q, &c->old[i]) && c->old[i].data && !c->next[i].data && c->next[i].place == c->old[i].place;
}

/* discard-no-unref: their blocks go at once, as zeroes; see punch_emptied() in l2.c. */
static void punch_emptied(struct fiber *f, const struct qcow2 *q, const struct change *c)
{
	for (unsigned i = 0; i < c->run.nr; i++) {
		if (is_emptied(q, c, i))
			(void)node_zero(f, q->data, c->old[i].place & QCOW2_OFF_MASK, q->cluster_len, REQ_MAY_UNMAP | REQ_NO_FALLBACK);
	}
}

/*
 * Of the data file, what the bitmap no longer calls data, at once and for the reason that punch_released() in l2.c gives: power lost
 * before the entry is durable leaves zeroes behind the old one. Subclusters of the same cluster that stay are not touched.
 */
static void punch_external(struct fiber *f, struct qcow2 *q, const struct change *c)
{
	uint64_t from = 0, end = 0; /* lost, and not yet punched */

	for (unsigned i = 0; i < c->run.nr; i++) {
		uint32_t lost = c->old[i].data & ~c->next[i].data;

		while (lost) {
			unsigned first = (unsigned)__builtin_ctz(lost), nr = (unsigned)__builtin_ctzll(~((uint64_t)lost >> first));
			uint64_t at = cluster_start(q, &c->run, i) + ((uint64_t)first << sub_bits(q));

			if (at != end) {
				data_punch(f, q, from, end - from);
				from = at;
			}
			end = at + ((uint64_t)nr << sub_bits(q));
			lost &= (uint32_t)~(((1ull << nr) - 1) << first);
		}
	}
	data_punch(f, q, from, end - from);
}

/*
 * As in l2.c's unlink_pinned(): first nobody finds the old mapping any more and nothing is in flight under it, then the entry
 * is queued, and what it gave up is freed when it is durable. In between, places go after the bitmaps (subcluster.h, "taking").
 */
int sub_unlink(struct fiber *f, struct qcow2 *q, struct piece *p, const struct run *run, uint64_t off, uint64_t len,
	       enum unlink_mode mode)
{
	struct change c = { .run = *run };
	bool changes, wait;
	order_mark mark;
	int err = plan_unlink(q, p, &c, off, len, mode, &changes, &wait);

	if (err < 0 || !changes)
		return err;
	for (unsigned i = 0; i < run->nr; i++)
		set_bitmap(p, run->first + i, &c.next[i]);
	if (wait)
		node_grace(f, q->node);
	for (unsigned i = 0; i < run->nr; i++)
		set_place(p, run->first + i, &c.next[i]);
	err = put(f, q, &c, EVENT_L2_UPDATE, ORDER_NONE, &mark);
	for (unsigned i = 0; i < run->nr; i++) {
		if (err < 0) {
			set_place(p, run->first + i, &c.old[i]);
			set_bitmap(p, run->first + i, &c.old[i]);
		} else if (c.next[i].place != c.old[i].place) {
			release_entry(q, c.old[i].place, mark, freed_by(mode));
		}
	}
	if (err == 0 && q->external && unlink_discards(q, mode))
		punch_external(f, q, &c);
	else if (err == 0 && q->keeps_space && unlink_discards(q, mode))
		punch_emptied(f, q, &c);
	return err;
}
