/* SPDX-License-Identifier: MIT */
/*
 * qcow2/alloc.c - finding space in the file, and giving it back once that is safe
 *
 *     0 ........ hint ............ end_cluster (the frontier) ....
 *       no cluster    some may have    nothing was ever used
 *       known free    been freed       here
 *
 * Data goes to freed clusters first, found by looking at one stretch of counts for each allocation, then to
 * the frontier, where stock.c has counted some already. Metadata goes to the frontier only: entries of L2 tables are compared with the frontier when
 * they are read (map.c), so that no entry of a crafted image can point into a table that is made later.
 *
 * Owns:    the frontier, the hint, and the frees that wait for their mark.
 * Assumes: fibers of the home queue.
 * Never:   hands out a cluster while an entry on disk, or I/O in flight, may still refer to it.
 */
#include "block/event.h"
#include "format/cache.h"
#include "format/qcow2/pack.h"
#include "format/qcow2/qcow2.h"
#include "format/qcow2/sites.h"
#include "format/qcow2/refcount.h"
#include "format/qcow2/stock.h"

#include <stdlib.h>

#include "base/log.h"

/* Pieces of refcount blocks that are looked at for the last cluster in use of a device. */
#define FRONTIER_PIECES_MAX 16384

struct pending_free {
	TAILQ_ENTRY(pending_free) link;
	uint64_t cluster, nr;
	order_mark gone; /* when this is durable, nothing on disk refers to them */
	enum freed why;
	bool metadata;
	unsigned todo; /* order_todo(); 0: leaked if the process dies */
};

TAILQ_HEAD(pending_list, pending_free);

struct alloc_state {
	uint64_t hint;	    /* no cluster below is known to be free */
	order_mark counted; /* see alloc_counted() */
	unsigned giving;    /* see alloc_giving() */
	struct fiber_mutex settling; /* who gives back what was in the list has it */
	struct pending_list frees;
};

/* ---- open, close ---- */

/* The last count of a piece that is not 0; false: all are. */
static bool last_used(const struct qcow2 *q, const struct piece *p, uint64_t *ret)
{
	for (uint64_t i = piece_counts(q); i > 0; i--) {
		if (refcount_read((const uint8_t *)p->words, q->h.refcount_order, i - 1)) {
			*ret = i - 1;
			return true;
		}
	}
	return false;
}

/* The frontier of an image on a device, whose length says nothing: behind the last cluster that is counted.
 */
static int find_frontier(struct fiber *f, struct qcow2 *q)
{
	uint64_t device = node_len(q->leaf) >> q->cluster_bits, per_block = block_counts(q);
	uint64_t block = MIN(div_up(device, per_block), (uint64_t)q->refcount_table_entries);
	unsigned looked = 0;

	q->end_cluster = device;
	while (block-- > 0) {
		if (!q->refcount_table[block])
			continue;
		for (uint32_t nr = (uint32_t)(per_block / piece_counts(q)); nr-- > 0; looked++) {
			struct piece *p;
			uint64_t i;
			int err;

			q->end_cluster = MIN(device, block * per_block + (nr + 1) * piece_counts(q));
			if (looked >= FRONTIER_PIECES_MAX)
				return 0; /* some free space at the end stays unused */
			err = cache_get(f, q->refcounts->cache, (uint32_t)block, nr, false, &p);
			if (err < 0)
				return err;
			if (last_used(q, p, &i)) {
				q->end_cluster = block * per_block + nr * piece_counts(q) + i + 1;
				cache_unpin(q->refcounts->cache, p);
				return 0;
			}
			cache_unpin(q->refcounts->cache, p);
		}
	}
	return 0;
}

int alloc_open(struct fiber *f, struct qcow2 *q, struct varve_error *err)
{
	int ret = 0;

	q->alloc = calloc(1, sizeof(*q->alloc));
	if (!q->alloc)
		return varve_error_set(err, -ENOMEM, "allocator: out of memory");
	TAILQ_INIT(&q->alloc->frees);
	if (stock_open(q) < 0)
		return varve_error_set(err, -ENOMEM, "allocator: out of memory");
	/* What lies beyond the file's end now has never been written: it reads as zeroes. Devices have no
	 * such place. */
	q->zero_from = node_len(q->leaf);
	if (q->leaf->fixed_len)
		ret = find_frontier(f, q);
	else
		q->end_cluster = div_up(node_len(q->leaf), q->cluster_len);
	return ret < 0 ? varve_error_errno(err, ret, "cannot find the last cluster in use") : 0;
}

void alloc_close(struct qcow2 *q)
{
	stock_close(q);
	struct pending_free *p;

	while (q->alloc && (p = TAILQ_FIRST(&q->alloc->frees))) {
		order_todo_done(q->order, p->todo); /* nobody knows what becomes of the counts now */
		TAILQ_REMOVE(&q->alloc->frees, p, link);
		free(p);
	}
	free(q->alloc);
	q->alloc = NULL;
}

/* ---- taking ---- */

order_mark alloc_counted(const struct qcow2 *q)
{
	return q->alloc->counted;
}

static void note_counted(struct qcow2 *q, order_mark mark)
{
	q->alloc->counted = order_max(q->alloc->counted, mark);
}

int alloc_room(const struct qcow2 *q, uint64_t nr, uint64_t *ret_nr)
{
	uint64_t end = (QCOW2_HOST_OFF_MAX + 1) >> q->cluster_bits;
	int full = -EFBIG;

	if (q->leaf->fixed_len) {
		end = MIN(end, node_len(q->leaf) >> q->cluster_bits);
		full = -ENOSPC;
	}
	if (q->end_cluster >= end)
		return full;
	*ret_nr = MIN(nr, end - q->end_cluster);
	return 0;
}

/* *ret_nr 0: none found in the stretch that was looked at. */
static int take_freed(struct fiber *f, struct qcow2 *q, uint64_t nr, uint64_t *ret_cluster, uint64_t *ret_nr)
{
	struct alloc_state *a = q->alloc;
	uint64_t from = a->hint, next;
	order_mark mark;
	int err;

	*ret_nr = 0;
	if (from >= q->end_cluster)
		return 0;
	if (!refcount_covered(q, from)) {
		/* No counts: nobody knows what is there, a hole or what a damaged table has lost. */
		a->hint = (from / block_counts(q) + 1) * block_counts(q);
		return 0;
	}
	err = refcount_take(f, q, from, nr, TAKE_FREED, ret_cluster, ret_nr, &next, &mark);
	if (err < 0)
		return err;
	if (a->hint == from) /* else clusters were freed below, or another fiber was here */
		a->hint = next;
	if (*ret_nr)
		note_counted(q, mark);
	return 0;
}

static int take_fresh(struct fiber *f, struct qcow2 *q, uint64_t nr, enum take how, uint64_t *ret_cluster, uint64_t *ret_nr)
{
	uint64_t next, room;
	order_mark mark = ORDER_NONE;
	bool stocked;
	int err;

	if (stock_low(q))
		(void)stock_refill(f, q); /* then they are counted one by one */
	do {
		*ret_nr = stock_take(q, nr, ret_cluster);
		stocked = *ret_nr;
		for (uint64_t i = 0; how == TAKE_TABLE && i < *ret_nr; i++)
			meta_add(q, *ret_cluster + i);
		if (stocked)
			break;
		err = alloc_room(q, nr, &room);
		while (err == 0 && !refcount_covered(q, q->end_cluster)) {
			err = refcount_cover(f, q);
			if (err == 0)
				err = alloc_room(q, nr, &room);
		}
		if (err == 0)
			err = refcount_take(f, q, q->end_cluster, room, how, ret_cluster, ret_nr, &next,
					    &mark);
		if (err < 0)
			return err;
	} while (!*ret_nr); /* the frontier moved: clusters there were counted as used, or another fiber took
			       them */
	note_counted(q, order_max(mark, stock_mark(q, *ret_cluster, *ret_nr, ORDER_NONE)));
	if (!stocked)
		stock_note_taken(q, *ret_nr);
	return 0;
}

static bool frees_due(const struct qcow2 *q)
{
	const struct pending_free *first = TAILQ_FIRST(&q->alloc->frees);

	return first && first->gone <= order_durable(q->order);
}

int alloc_clusters(struct fiber *f, struct qcow2 *q, uint64_t nr, uint64_t *ret_host_off, uint64_t *ret_nr,
		   bool *ret_fresh, order_mark *ret_mark)
{
	uint64_t cluster;
	int err;

	if (q->unmapped) /* found corrupt: nobody is given anything any more */
		return q->unmapped;
	node_event(f, q->file, EVENT_CLUSTER_ALLOC);
	node_event(f, q->file, EVENT_REFBLOCK_ALLOC);
	err = take_freed(f, q, nr, &cluster, ret_nr);
	if (err == 0 && !*ret_nr && frees_due(q)) {
		(void)alloc_settle(f, q); /* what cannot be freed now stays in the list */
		err = take_freed(f, q, nr, &cluster, ret_nr);
	}
	*ret_fresh = false;
	if (err == 0 && !*ret_nr) {
		err = take_fresh(f, q, nr, TAKE_FRESH, &cluster, ret_nr);
		*ret_fresh = err == 0 && cluster << q->cluster_bits >= q->zero_from;
	}
	if (err < 0)
		return err;
	*ret_host_off = cluster << q->cluster_bits;
	*ret_mark = q->alloc->counted;
	return 0;
}

/* One cluster, known as metadata. */
static int take_table(struct fiber *f, struct qcow2 *q, uint64_t *ret_cluster)
{
	uint64_t nr;
	int err = meta_reserve(q, 1);

	if (err < 0)
		return err;
	err = take_fresh(f, q, 1, TAKE_TABLE, ret_cluster, &nr);
	if (err < 0)
		meta_unreserve(q, 1);
	return err;
}

int alloc_metadata(struct fiber *f, struct qcow2 *q, uint64_t nr, uint64_t *ret_host_off, bool *ret_zero,
		   order_mark *ret_mark)
{
	order_mark mark = ORDER_NONE;
	uint64_t cluster;
	int err = q->unmapped;

	if (err == 0)
		err = nr == 1 ? take_table(f, q, &cluster) : refcount_extend(f, q, nr, &cluster, &mark);
	if (err < 0)
		return err;
	err = node_allocate(f, q->file, cluster << q->cluster_bits, nr << q->cluster_bits);
	if (err < 0) {
		/* First this: what is counted 0 and known as metadata is damage, to who looks for space. */
		for (uint64_t i = 0; i < nr; i++)
			meta_remove(q, cluster + i);
		alloc_undo(f, q, cluster << q->cluster_bits, nr);
		return err;
	}
	note_counted(q, mark);
	*ret_host_off = cluster << q->cluster_bits;
	mark = nr == 1 ? stock_mark(q, cluster, 1, ORDER_NONE) : ORDER_NONE;
	*ret_zero = mark != ORDER_NONE;
	*ret_mark = *ret_zero ? mark : q->alloc->counted;
	return 0;
}

int alloc_share(struct fiber *f, struct qcow2 *q, uint64_t host_off)
{
	order_mark mark;
	int err = refcount_add(f, q, host_off >> q->cluster_bits, 1, 1, ORDER_NONE, &mark);

	if (err == 0)
		note_counted(q, mark);
	return err;
}

/* ---- giving back ---- */

static void note_free(struct qcow2 *q, uint64_t cluster)
{
	q->alloc->hint = MIN(q->alloc->hint, cluster);
}

void alloc_undo(struct fiber *f, struct qcow2 *q, uint64_t host_off, uint64_t nr)
{
	uint64_t cluster = host_off >> q->cluster_bits;

	/* Nothing on disk ever referred to them. If the counts cannot be changed they stay as they are: a
	 * leak. */
	if (refcount_add(f, q, cluster, nr, -1, ORDER_NONE, NULL) == 0)
		note_free(q, cluster);
}

/* As a thing to be done by whoever comes after us: cluster; a bit that makes it not 0, why, how many. */
#define TODO_FREE (1ull << 63)
#define TODO_WHY_SHIFT 56
#define TODO_NR_MAX UINT32_MAX

static uint64_t todo_of(const struct pending_free *p)
{
	return TODO_FREE | (uint64_t)p->why << TODO_WHY_SHIFT | p->nr;
}

/*
 * Data only, of which there may be much: the put that takes the last reference away is in the journal already, so who finds this finds the
 * reference gone. Tables and what snapshots had are left out: other steps belong to them.
 */
static void pending_note(struct qcow2 *q, struct pending_free *p)
{
	if (p->metadata || p->why == FREED_SNAPSHOT || p->nr > TODO_NR_MAX) {
		order_todo_done(q->order, p->todo);
		p->todo = 0;
	} else if (p->todo) {
		order_todo_change(q->order, p->todo, p->cluster, todo_of(p));
	} else {
		p->todo = order_todo(q->order, p->cluster, todo_of(p));
	}
}

static void pending_add(struct qcow2 *q, uint64_t host_off, uint64_t nr, order_mark gone, enum freed why,
			bool metadata)
{
	uint64_t cluster = host_off >> q->cluster_bits;
	struct pending_free *p = TAILQ_LAST(&q->alloc->frees, pending_list);

	gone = site_after(q, SITE_FREE, gone);
	if (p && p->cluster + p->nr == cluster && p->gone == gone && p->why == why &&
	    p->metadata == metadata) {
		p->nr += nr;
		pending_note(q, p);
		return;
	}
	p = malloc(sizeof(*p));
	if (!p) {
		log_warning("%s: out of memory: %llu clusters at host offset 0x%llx stay counted as used",
			    node_name(q->node), (unsigned long long)nr, (unsigned long long)host_off);
		return;
	}
	*p = (struct pending_free){
		.cluster = cluster, .nr = nr, .gone = gone, .why = why, .metadata = metadata
	};
	TAILQ_INSERT_TAIL(&q->alloc->frees, p, link);
	pending_note(q, p);
}

/*
 * Nobody has been there since that process died (the mark), and no cluster has changed its count but by what was written out. Settled by
 * the next flush or allocation; until then a kill finds them in our journal.
 */
void alloc_adopt(struct fiber *f, struct qcow2 *q)
{
	for (size_t i = 0; i < q->left.nr_todo; i++) {
		const struct order_todo *t = &q->left.todo[i];
		uint64_t nr = t->b & TODO_NR_MAX, end, why = t->b >> TODO_WHY_SHIFT & 0x7f, count = 1;

		if (!nr || why > FREED_OTHER || u64_add(t->a, nr, &end) || end > q->end_cluster)
			continue;
		for (uint64_t c = t->a; c < end && count; c++) {
			if (!refcount_covered(q, c) || refcount_get(f, q, c, &count) < 0)
				count = 0;
		}
		if (count)
			pending_add(q, t->a << q->cluster_bits, nr, ORDER_NONE, (enum freed)why, false);
	}
	q->left.nr_todo = 0;
}

void alloc_free(struct qcow2 *q, uint64_t host_off, uint64_t nr, order_mark gone, enum freed why)
{
	/* They may have held compressed clusters. */
	pack_forget(q, host_off, nr);
	unpack_forget(q, host_off, nr);
	pending_add(q, host_off, nr, gone, why, false);
}

void alloc_free_metadata(struct qcow2 *q, uint64_t host_off, uint64_t nr, order_mark gone)
{
	pending_add(q, host_off, nr, gone, FREED_OTHER, true);
}

bool alloc_idle(const struct qcow2 *q)
{
	return TAILQ_EMPTY(&q->alloc->frees);
}

/*
 * The file system gets the space of those that nobody else refers to. They are still counted as used, so
 * nobody is given them meanwhile. A file that cannot do it keeps the space.
 */
static void punch(struct fiber *f, struct qcow2 *q, const struct pending_free *p)
{
	uint64_t run = 0;

	for (uint64_t i = 0; i <= p->nr; i++) {
		uint64_t count = 0;

		if (i < p->nr && refcount_get(f, q, p->cluster + i, &count) == 0 && count == 1) {
			run++;
			continue;
		}
		if (run)
			(void)node_discard(f, q->file, (p->cluster + i - run) << q->cluster_bits,
					   run << q->cluster_bits);
		run = 0;
	}
}

/*
 * One by one, so that each is both counted and known as what it is: a run that were done by half would leave clusters that are counted as
 * free and known as metadata, and the next one who is looking for space would take that for damage. -ENOMEM: what is left in p is as it was.
 *
 * With guards for snapshots, tables that the disk gives up may be those of a snapshot, and the other way round: only what nobody has any more
 * is free.
 */
static int give_back_each(struct fiber *f, struct qcow2 *q, struct pending_free *p)
{
	int ret = 0;

	for (; p->nr; p->cluster++, p->nr--) {
		uint64_t count = 0;
		int err = refcount_add(f, q, p->cluster, 1, -1, ORDER_NONE, NULL);

		if (err == -ENOMEM)
			return err;
		/* Behind it, with what it has just changed still in memory: two who give up one each must not both see the other's. */
		if (err == 0 && q->guards_inactive)
			err = refcount_get(f, q, p->cluster, &count);
		if (err == 0 && count == 0) {
			meta_remove(q, p->cluster);
			note_free(q, p->cluster);
		}
		ret = ret ? ret : err;
	}
	return ret == -ENOMEM ? -EIO : ret; /* of looking: the count is right */
}

bool alloc_giving(const struct qcow2 *q)
{
	return q->alloc->giving;
}

static int give_back(struct fiber *f, struct qcow2 *q, struct pending_free *p)
{
	int err;

	node_event(f, q->file, EVENT_CLUSTER_FREE);
	/* Before the first count goes down: killed in between, they leak. The other way round, the next one would take them down again. */
	order_todo_done(q->order, p->todo);
	p->todo = 0;
	if (q->discards >> p->why & 1)
		punch(f, q, p);
	if (p->metadata || q->guards_inactive)
		return give_back_each(f, q, p);
	err = refcount_add(f, q, p->cluster, p->nr, -1, ORDER_NONE, NULL);
	if (err == 0)
		note_free(q, p->cluster);
	return err;
}

/*
 * Durable before: the entries that no longer lead to these clusters (their marks). Now: no I/O that was
 * started when an entry still did is in flight on any queue (grace). Only then the counts go down, which
 * makes the space available, and the space may be punched. Power lost before the lower counts are on disk
 * leaks; the other way round, the entry on disk would point at space that somebody else has got.
 */
static int settle(struct fiber *f, struct qcow2 *q)
{
	struct alloc_state *a = q->alloc;
	struct pending_list due = TAILQ_HEAD_INITIALIZER(due);
	struct pending_free *p, *next;
	int ret = 0;

	for (p = TAILQ_FIRST(&a->frees); p; p = next) {
		next = TAILQ_NEXT(p, link);
		if (p->gone > order_durable(q->order))
			continue;
		TAILQ_REMOVE(&a->frees, p, link);
		TAILQ_INSERT_TAIL(&due, p, link);
	}
	if (!TAILQ_EMPTY(&due))
		node_grace(f, q->node);
	while ((p = TAILQ_FIRST(&due))) {
		int err;

		a->giving++;
		err = give_back(f, q, p);
		a->giving--;
		TAILQ_REMOVE(&due, p, link);
		if (err == -ENOMEM) {
			TAILQ_INSERT_HEAD(&a->frees, p, link); /* next time */
			pending_note(q, p);
		} else {
			free(p); /* damaged or unreadable counts stay as they are: at worst a leak */
		}
		if (ret == 0 || err == -ENOMEM) /* that is what somebody may have to wait for */
			ret = err;
	}
	return ret;
}

static bool any_due(const struct qcow2 *q)
{
	const struct pending_free *p;

	TAILQ_FOREACH (p, &q->alloc->frees, link) {
		if (p->gone <= order_durable(q->order))
			return true;
	}
	return false;
}

int alloc_settle(struct fiber *f, struct qcow2 *q)
{
	return any_due(q) ? alloc_settle_all(f, q) : 0;
}

int alloc_settle_all(struct fiber *f, struct qcow2 *q)
{
	int ret;

	fiber_lock(f, &q->alloc->settling);
	ret = settle(f, q);
	fiber_unlock(&q->alloc->settling);
	return ret;
}
