/* SPDX-License-Identifier: MIT */
/*
 * qcow2/stock.c - clusters that are counted as used before anybody wants them
 *
 *     ........ | frontier ──▶ ...... stock ...... | stock end ....
 *      used    |  counted 1, the file is this long, reads zero    |
 *
 * A refcount that is durable already is one that no entry has to wait for, and space that reads zero can be
 * linked before the data in it is stable. So an allocation from the stock asks for no barrier, and the
 * guest's flush is one sync, whatever was allocated. The file is made longer once for each batch, not once
 * for each write; whether that takes space or leaves a hole the leaf knows best.
 *
 * The price: a cut leaves the stock counted, with nothing that leads to it, which check calls leaks; at most
 * three times as much as the session had allocated before, and 3/2 STOCK_LEN_MAX. Closing gives it
 * back.
 *
 * Owns:    the batches, and the length of the file beyond the frontier.
 * Assumes: fibers of the home queue; a file that grows. On a device there is no stock; nor with cache=unsafe, where there
 *          are no syncs to save, and a file that is cut when it is closed makes XFS and btrfs write it out there and then.
 * Never:   moves the frontier over what was not handed out: no entry of a crafted image may lead into a
 *          cluster that is made into a table later (see guard_entries() in map.c).
 */
#include "format/qcow2/stock.h"

#include <stdlib.h>

#include "format/qcow2/refcount.h"
#include "format/qcow2/sites.h"

#define TAKEN_MIN 8	      /* sessions that allocate less clusters get no stock */
#define STOCK_LEN_MAX MiB(32) /* of a batch; a cluster at least */
#define BATCHES_MAX 8	      /* whose marks are remembered */

struct batch {
	uint64_t first, end; /* clusters */
	order_mark mark;     /* durable when their counts and the length of the file are */
};

struct stock {
	uint64_t end;	   /* of the last batch; the stock is [frontier, end), empty when that is not below */
	uint64_t nr_taken; /* fresh clusters handed out in this session */
	unsigned next_batch; /* the place in batches for the next */
	struct batch batches[BATCHES_MAX];
	bool off;	/* the file cannot be made longer: as if it were a device */
	bool refilling; /* somebody is at it */
	bool grown;	/* the file was made longer than it need be */
	bool ended;	/* the image closes */
};

int stock_open(struct qcow2 *q)
{
	q->stock = calloc(1, sizeof(*q->stock));
	if (!q->stock)
		return -ENOMEM;
	q->stock->off = q->leaf->fixed_len || (q->leaf->flags & NODE_NO_FLUSH);
	return 0;
}

void stock_close(struct qcow2 *q)
{
	free(q->stock);
	q->stock = NULL;
}

uint64_t stock_nr(const struct qcow2 *q)
{
	return q->stock->end > q->end_cluster ? q->stock->end - q->end_cluster : 0;
}

uint64_t stock_take(struct qcow2 *q, uint64_t nr, uint64_t *ret_cluster)
{
	*ret_cluster = q->end_cluster;
	nr = MIN(nr, stock_nr(q));
	q->end_cluster += nr;
	q->stock->nr_taken += nr;
	stock_note(q);
	return nr;
}

/* ---- what outlives the process ---- */

/* The frontier before the end: killed in between, less is left over than is there. */
void stock_note(const struct qcow2 *q)
{
	order_note(q->order, 0, q->end_cluster);
	order_note(q->order, 1, q->stock->end);
}

/*
 * Without this, each process that is killed would leak its stock. The file must end where the stock does, and every
 * cluster must be counted once: then nobody has been there since. Their marks are durable, because what the dead process
 * had queued was written out before we came here.
 */
void stock_adopt(struct fiber *f, struct qcow2 *q)
{
	uint64_t first = q->left.notes[0], end = q->left.notes[1], most = MAX(STOCK_LEN_MAX >> q->cluster_bits, 1);

	if (!first || first >= end || end - first > 2 * most || end != q->end_cluster || q->stock->off)
		return;
	for (uint64_t i = first; i < end; i++) {
		uint64_t count;

		if (!refcount_covered(q, i) || refcount_get(f, q, i, &count) < 0 || count != 1)
			return;
	}
	q->end_cluster = first;
	q->zero_from = first << q->cluster_bits;
	q->stock->end = end;
	q->stock->nr_taken = (end - first) / 2;
	q->stock->grown = true;
	q->stock->batches[q->stock->next_batch++] = (struct batch){ first, end, order_now(q->order) };
}

static const struct batch *batch_of(const struct stock *s, uint64_t cluster)
{
	for (unsigned i = 0; i < BATCHES_MAX; i++) {
		if (cluster >= s->batches[i].first && cluster < s->batches[i].end)
			return &s->batches[i];
	}
	return NULL;
}

order_mark stock_mark(const struct qcow2 *q, uint64_t cluster, uint64_t nr, order_mark otherwise)
{
	order_mark mark = ORDER_NONE;

	for (uint64_t end = cluster + nr; cluster < end;) {
		const struct batch *b = batch_of(q->stock, cluster);

		if (!b)
			return otherwise;
		mark = order_max(mark, b->mark);
		cluster = b->end;
	}
	return mark;
}

uint64_t stock_nr_durable(const struct qcow2 *q)
{
	uint64_t cluster = q->end_cluster;

	while (cluster < q->end_cluster + stock_nr(q)) {
		const struct batch *b = batch_of(q->stock, cluster);

		if (!b || b->mark > order_durable(q->order))
			break;
		cluster = b->end;
	}
	return cluster - q->end_cluster;
}

void stock_note_taken(struct qcow2 *q, uint64_t nr)
{
	q->stock->nr_taken += nr;
}

/* Twice what the session has taken already, so that a small one stays small. 0: nothing yet. */
static uint64_t batch_nr(const struct qcow2 *q)
{
	uint64_t most = MAX(STOCK_LEN_MAX >> q->cluster_bits, 1);

	return q->stock->nr_taken >= TAKEN_MIN ? MIN(2 * q->stock->nr_taken, most) : 0;
}

bool stock_low(const struct qcow2 *q)
{
	const struct stock *s = q->stock;

	return !s->off && !s->ended && !s->refilling && stock_nr(q) <= batch_nr(q) / 2 && batch_nr(q);
}

/*
 * Durable together with the counts: the length of the file, because it is set before they are queued, so that
 * the sync that makes them durable finds it done. Power lost before that: the counts may be there or not, and
 * the file be longer or not; nothing leads there in either case. The other way round, an entry might lead
 * beyond the end of the file.
 */
static int add_batch(struct fiber *f, struct qcow2 *q, uint64_t first, uint64_t nr)
{
	struct stock *s = q->stock;
	uint64_t len = (first + nr) << q->cluster_bits, got;
	order_mark mark;
	int err = 0;

	if (len > node_len(q->leaf) && !site_off(q, SITE_STOCK_LENGTH)) {
		/* Not by setting the length: data of others may be on its way to behind that. */
		err = node_extend(f, q->file, len);
		s->grown = true;
	}
	if (err < 0) {
		s->off = true; /* a limit of the file system: from here on one by one */
		return err;
	}
	err = refcount_stock(f, q, first, nr, &got, &mark);
	if (err < 0 || !got)
		return err;
	if (q->lazy) /* the mark of the counts says nothing about the length */
		mark = order_max(mark, site_after(q, SITE_STOCK_LENGTH, order_now(q->order)));
	s->end = first + got;
	s->batches[s->next_batch++ % BATCHES_MAX] = (struct batch){ first, first + got, mark };
	stock_note(q);
	/* While they were being counted, others took more than there was in stock, and the frontier went on over these. */
	if (q->end_cluster > first)
		alloc_undo(f, q, first << q->cluster_bits, MIN(got, q->end_cluster - first));
	return 0;
}

/*
 * Under grow, so that nobody else makes the file longer behind the stock while its length is being set, which
 * would cut that off again.
 */
int stock_refill(struct fiber *f, struct qcow2 *q)
{
	struct stock *s = q->stock;
	uint64_t first, nr = batch_nr(q), room;
	int err;

	s->refilling = true;
	fiber_lock(f, &q->refcounts->grow);
	first = q->end_cluster + stock_nr(q);
	err = s->ended ? -ESHUTDOWN : alloc_room(q, stock_nr(q) + nr, &room);
	if (err == 0 && room > stock_nr(q) && refcount_covered(q, first)) {
		nr = MIN(room - stock_nr(q), piece_counts(q) - first % piece_counts(q));
		nr = MIN(nr, batch_nr(q));
		err = add_batch(f, q, first, nr);
	}
	fiber_unlock(&q->refcounts->grow);
	s->refilling = false;
	return err;
}

void stock_lengthen(struct fiber *f, struct qcow2 *q, uint64_t len)
{
	struct stock *s = q->stock;
	uint64_t end = (q->end_cluster + stock_nr(q)) << q->cluster_bits;

	if (s->off || s->ended || end + STOCK_LEN_MAX + q->cluster_len <= node_len(q->leaf))
		return;
	fiber_lock(f, &q->refcounts->grow);
	s->grown = true;
	(void)node_extend(f, q->file, end + STOCK_LEN_MAX + len); /* if not, the next batch finds out why */
	fiber_unlock(&q->refcounts->grow);
}

void stock_drop(struct fiber *f, struct qcow2 *q)
{
	struct stock *s = q->stock;
	uint64_t first = q->end_cluster, nr = stock_nr(q);

	s->end = 0; /* from now on nobody takes from it */
	stock_note(q);
	for (unsigned i = 0; i < BATCHES_MAX; i++)
		s->batches[i].end = MIN(s->batches[i].end, first); /* those behind will be counted anew */
	if (nr)
		(void)refcount_add(f, q, first, nr, -1, ORDER_NONE, NULL); /* at worst they leak */
}

void stock_end(struct fiber *f, struct qcow2 *q)
{
	q->stock->ended = true;
	stock_drop(f, q);
}

void stock_trim(struct fiber *f, struct qcow2 *q)
{
	uint64_t len = q->end_cluster << q->cluster_bits;

	if (q->stock->grown && len < node_len(q->leaf))
		(void)node_truncate(f, q->file, len, PREALLOC_OFF, NULL); /* a file that stays longer is no fault */
}
