/* SPDX-License-Identifier: MIT */
/*
 * qcow2/ahead.c - mappings made ahead of a guest that writes on and on
 *
 *     written | written | linked, reads zero ................ | nothing
 *             ▲ the guest is here                             ▲ next: where an allocation goes on with the
 * run
 *
 * Guest clusters behind a sequential run get clusters of the stock before they are written. Most writes of
 * the run are then plain overwrites: no fiber, no metadata, and a flush that finds the queue empty.
 *
 * What a reader sees there: zeroes, from the cluster as from nothing. What a cut leaves: the entry or not,
 * zeroes in both cases; the count and the length of the file are durable before the entry (stock.c). After a
 * crash the clusters are ordinary ones that nobody has written yet: no leak, no damage.
 *
 * Only where zeroes are what the guest sees now: not above a backing image. A window is at most as long as
 * the run before it and AHEAD_LEN_MAX, and takes nothing but stock whose counts are durable: it costs the
 * next flush no sync, and a full file system fails no write here. When the image closes, clusters of the last
 * windows that are holes in the file are taken back.
 *
 * Owns:    the run that is watched, and the windows until the image closes.
 * Assumes: fibers of the home queue.
 * Never:   touches an entry that is not empty, or a guest cluster that another fiber has locked.
 */
#include "format/qcow2/ahead.h"

#include <stdlib.h>

#include "format/qcow2/refcount.h"
#include "format/qcow2/stock.h"

#define AHEAD_LEN_MAX MiB(16)
#define RUN_LEN_MIN KiB(256) /* and four clusters: shorter runs are none */
#define WINDOWS_MAX 16	     /* that are looked at when the image closes */
#define TRIM_MAX 4096	     /* clusters that the frontier moves back when it closes */
#define BUSY_MAX 1024	     /* clusters that others are at work on: farther on no window begins */

struct window {
	uint64_t guest_off, len;
};

struct ahead {
	uint64_t next;	  /* where the run goes on */
	uint64_t run_len; /* until there */
	bool busy;	  /* a fiber makes a window */
	unsigned next_window;
	struct window windows[WINDOWS_MAX];
};

int ahead_open(struct qcow2 *q)
{
	/* Writethrough: overwrites would each be made stable by themselves; allocations share their syncs. */
	if (q->external || q->leaf->fixed_len || q->node->backing_name || q->node->backing || (q->node->flags & NODE_WRITETHROUGH))
		return 0;
	q->ahead = calloc(1, sizeof(*q->ahead));
	return q->ahead ? 0 : -ENOMEM;
}

void ahead_close(struct qcow2 *q)
{
	free(q->ahead);
	q->ahead = NULL;
}

void ahead_note_alloc(struct qcow2 *q, uint64_t guest_off, uint64_t len)
{
	struct ahead *a = q->ahead;

	if (!a ||
	    (guest_off < a->next && a->next - guest_off <= a->run_len)) /* one of several in flight is late */
		return;
	a->run_len = guest_off == a->next ? a->run_len + len : len;
	a->next = guest_off + len;
}

/* Behind what others are at work on. false: the disk ends there, or they have all of it. */
static bool window_begin(const struct qcow2 *q, uint64_t *guest_off)
{
	for (unsigned i = 0; i < BUSY_MAX && *guest_off < q->h.disk_len; i++) {
		if (!ranges_overlap(&q->node->ranges, *guest_off, q->cluster_len))
			return true;
		*guest_off += q->cluster_len;
	}
	return false;
}

static uint64_t window_len(const struct qcow2 *q, uint64_t guest_off)
{
	uint64_t len = MIN(MIN(q->ahead->run_len, AHEAD_LEN_MAX), stock_nr_durable(q) << q->cluster_bits);

	len = MIN(len, align_up(q->h.disk_len, q->cluster_len) - guest_off);
	len = align_down(len, q->cluster_len);
	while (len && ranges_overlap(&q->node->ranges, guest_off, len))
		len = align_down(len / 2, q->cluster_len);
	return len;
}

static void make_window(struct fiber *f, struct qcow2 *q, uint64_t guest_off, uint64_t len)
{
	struct ahead *a = q->ahead;
	struct range range;
	uint64_t made = 0;

	range_lock(f, &q->node->ranges, &range, guest_off, len); /* nobody has any of it: does not wait */
	while (made < len) {
		uint64_t part = len - made;

		if (l2_link_zeroes(f, q, guest_off + made, &part) < 0 || !part)
			break; /* nobody has asked for it */
		made += part;
	}
	range_unlock(&q->node->ranges, &range);
	if (!made)
		return;
	a->windows[a->next_window++ % WINDOWS_MAX] = (struct window){ guest_off, made };
	if (a->next <= guest_off) /* else the guest went elsewhere while we waited */
		ahead_note_alloc(q, a->next, guest_off + made - a->next);
}

void ahead_make(struct fiber *f, struct qcow2 *q)
{
	struct ahead *a = q->ahead;
	uint64_t guest_off, len;

	if (!a || a->busy || q->packing || q->node->backing || a->run_len < MAX(RUN_LEN_MIN, 4ull * q->cluster_len))
		return;
	a->busy = true;
	if (stock_low(q))
		(void)stock_refill(f, q); /* then the window is shorter, or there is none */
	guest_off = a->next;
	if (window_begin(q, &guest_off)) {
		len = window_len(q, guest_off);
		if (len)
			make_window(f, q, guest_off, len);
	}
	a->busy = false;
}

/* ---- taking back ---- */

/* The first stretch of whole clusters that are holes in the file. *ret_len 0: none. */
static void next_hole(struct fiber *f, struct qcow2 *q, uint64_t guest_off, uint64_t len, uint64_t *ret_off,
		      uint64_t *ret_len)
{
	*ret_len = 0;
	for (uint64_t pos = 0; pos < len;) {
		uint64_t hole_len;
		struct extent e;
		bool hole;

		l2_map(q->node, guest_off + pos, len - pos, &e);
		if (e.kind != EXTENT_DATA || !(e.flags & EXTENT_INPLACE)) {
			pos += e.len;
			continue;
		}
		if (q->leaf->drv->status(f, q->leaf, e.host_off, e.len, &hole, &hole_len) < 0)
			return;
		hole_len = hole ? align_down(hole_len, q->cluster_len) : align_up(hole_len, q->cluster_len);
		if (hole && hole_len) {
			*ret_off = guest_off + pos;
			*ret_len = hole_len;
			return;
		}
		pos += MAX(hole_len, (uint64_t)q->cluster_len);
	}
}

/* Nothing is in flight any more. A hole reads zero, as nothing will; that it fails somewhere costs space, no
 * data. */
void ahead_take_back(struct fiber *f, struct qcow2 *q)
{
	struct ahead *a = q->ahead;

	if (!a || !q->leaf->drv->status)
		return;
	for (unsigned i = 0; i < WINDOWS_MAX; i++) {
		uint64_t off = a->windows[i].guest_off, end = off + a->windows[i].len, len;

		for (next_hole(f, q, off, end - off, &off, &len); len;
		     off += len, next_hole(f, q, off, end - off, &off, &len)) {
			if (l2_unlink(f, q->node, off, len, UNLINK_DISCARD) < 0)
				break;
		}
	}
}

void ahead_trim(struct fiber *f, struct qcow2 *q)
{
	uint64_t count;

	for (unsigned i = 0; q->ahead && q->ahead->next_window && i < TRIM_MAX; i++) {
		if (meta_holds(q, q->end_cluster - 1) || refcount_get(f, q, q->end_cluster - 1, &count) < 0 ||
		    count)
			return;
		q->end_cluster--;
	}
}
