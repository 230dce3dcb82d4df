/* SPDX-License-Identifier: MIT */
/*
 * qcow2/lazy.c - counts that fall behind on disk while the image is open
 *
 *     first change of a count ──▶ header: dirty ──▶ entries that rely on counts ──▶ ... ──▶ close: counts ──▶
 * header: clean
 *
 * With lazy refcounts a count changes in memory only; the piece of its block stays in the cache, pinned,
 * until the image closes. Nobody reads the old count meanwhile but a writer after a crash, and the dirty bit
 * tells him to count anew (rebuild.c).
 *
 * Durable first: the dirty bit. Only then: an entry that leads to a cluster whose count is behind. Power lost
 * in between: a dirty bit too many, counts that happen to be right are made anew. The other way round, the
 * next writer would believe a count of 0 and hand the cluster out again.
 *
 * At close, durable first: all counts, and everything else that is queued. Only then: the header without the
 * bit. Power lost in between: the bit is still set. The other way round, old counts would be believed.
 *
 * Memory:  pieces beyond half of the refcount cache are written early; that is no order, the bit still
 * stands.
 *
 * Owns:    the pins of the pieces that are behind, and the dirty bit.
 * Assumes: fibers of the home queue; version 3. Counts are changed in refcount.c only.
 * Never:   drops a count that is not on disk while the bit could still be cleared.
 */
#include "block/event.h"
#include "format/qcow2/lazy.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "format/qcow2/refcount.h"
#include "format/qcow2/sites.h"

struct lazy {
	bool marked; /* the bit stands, or is about to */
	bool queued; /* it has been put, for `mark` */
	order_mark mark;
	struct fiber_mutex marking;
	struct piece **behind; /* pinned */
	unsigned nr, room;
	struct fiber_mutex writing; /* who takes them out */
};

int lazy_open(struct qcow2 *q, bool on, struct varve_error *err)
{
	if (!on)
		return 0;
	if (q->h.version < 3)
		return varve_error_set(err, -ENOTSUP,
				       "option 'lazy-refcounts': an image of version 2 (compat=0.10) has no "
				       "place for the dirty bit "
				       "that they need");
	q->lazy = calloc(1, sizeof(*q->lazy));
	return q->lazy ? 0 : varve_error_set(err, -ENOMEM, "lazy refcounts: out of memory");
}

void lazy_close(struct qcow2 *q)
{
	if (!q->lazy)
		return;
	while (q->lazy->nr)
		cache_unpin(q->refcounts->cache, q->lazy->behind[--q->lazy->nr]);
	free(q->lazy->behind);
	free(q->lazy);
	q->lazy = NULL;
}

/* ---- the dirty bit ---- */

static int put_incompatible(struct fiber *f, struct qcow2 *q, uint64_t bits, order_mark after,
			    order_mark *ret_mark)
{
	be64 disk = be64_put(bits);

	return order_put(f, q->order, offsetof(struct qcow2_header_disk, incompatible), &disk, sizeof(disk), after,
			 ret_mark);
}

static int mark_dirty(struct fiber *f, struct qcow2 *q)
{
	struct lazy *l = q->lazy;
	int err = 0;

	fiber_lock(f, &l->marking);
	if (!l->marked && !site_off(q, SITE_DIRTY)) {
		uint64_t before = q->h.incompatible & QCOW2_INCOMPAT_DIRTY;

		/* From now on nobody else clears the bit, and whoever writes the header writes it, too. */
		l->marked = true;
		q->h.incompatible |= QCOW2_INCOMPAT_DIRTY;
		err = put_incompatible(f, q, q->h.incompatible, ORDER_NONE, &l->mark);
		l->marked = l->queued = err == 0;
		if (err < 0)
			q->h.incompatible &= ~QCOW2_INCOMPAT_DIRTY | before;
	}
	fiber_unlock(&l->marking);
	return err;
}

int lazy_wait_dirty(struct fiber *f, struct qcow2 *q, bool *ret_dirty)
{
	struct lazy *l = q->lazy;

	*ret_dirty = false;
	if (!l || !l->marked)
		return 0;
	fiber_lock(f, &l->marking);
	*ret_dirty = l->queued;
	fiber_unlock(&l->marking);
	return *ret_dirty ? order_wait(f, q->order, l->mark) : 0;
}

bool lazy_behind(const struct qcow2 *q)
{
	return q->lazy && q->lazy->marked;
}

/* ---- pieces ---- */

static int keep(struct lazy *l, struct piece *p)
{
	if (p->kept)
		return 0;
	if (l->nr == l->room) {
		unsigned room = MAX(2 * l->room, 64u);
		struct piece **behind = realloc(l->behind, room * sizeof(behind[0]));

		if (!behind)
			return -ENOMEM;
		l->behind = behind;
		l->room = room;
	}
	l->behind[l->nr++] = p;
	p->pins++;
	p->kept = true;
	return 0;
}

/* What changes while this waits finds the piece not kept, and keeps it once more: then it is here twice,
 * which is no harm. */
static int put_pieces(struct fiber *f, struct qcow2 *q)
{
	struct lazy *l = q->lazy;
	uint32_t len = q->refcounts->cache->piece_len;
	int err = 0;

	fiber_lock(f, &l->writing);
	for (unsigned left = l->nr; left && err == 0; left--) {
		struct piece *p = l->behind[0];

		p->kept = false;
		err = order_put(f, order_as(q->order, EVENT_REFBLOCK_UPDATE_PART), q->refcount_table[p->table] + (uint64_t)p->nr * len,
				(const void *)p->words, len, ORDER_NONE, NULL);
		if (err < 0) {
			p->kept = true;
		} else {
			l->behind[0] = l->behind[--l->nr];
			cache_unpin(q->refcounts->cache, p);
		}
	}
	fiber_unlock(&l->writing);
	return err;
}

int lazy_count(struct fiber *f, struct qcow2 *q, struct piece *p, order_mark *ret_mark)
{
	struct lazy *l = q->lazy;
	int err = keep(l, p);

	if (err == 0 && !l->queued)
		err = mark_dirty(f, q);
	if (err < 0)
		return err;
	*ret_mark = l->mark;
	if (l->nr > q->refcounts->cache->max / 2)
		(void)put_pieces(f, q); /* no memory: they stay, and are tried again */
	return 0;
}

int lazy_write_out(struct fiber *f, struct qcow2 *q)
{
	int err = put_pieces(f, q);

	return err < 0 ? err : order_flush(f, q->order);
}

int lazy_end(struct fiber *f, struct qcow2 *q)
{
	struct lazy *l = q->lazy;
	int err;

	if (!l->marked)
		return 0;
	err = put_pieces(f, q);
	if (err == 0)
		err = put_incompatible(f, q, q->changing ? q->h.incompatible : q->h.incompatible & ~QCOW2_INCOMPAT_DIRTY,
				       site_after(q, SITE_CLEAN, order_all(q->order)), NULL);
	if (err == 0)
		err = order_flush(f, q->order);
	if (err < 0)
		log_warning("%s: its refcounts could not be written (%s): the next writer makes them anew",
			    node_name(q->node), strerror(-err));
	else
		l->marked = l->queued = false;
	return err;
}
