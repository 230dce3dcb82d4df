/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/vring_split.h - the split ring: what is done for each request
 *
 * Here and not in vring_split.c, which has what is done once a turn, because a call for each step costs about as much as
 * the step.
 *
 * Owns:    see vring.h.
 * Assumes: see vring.h.
 * Never:   loops longer than there are iovec elements left.
 *
 * docs/spec/virtio-blk.md, "Split virtqueue".
 */
#ifndef VARVE_VUBLK_VRING_SPLIT_H
#define VARVE_VUBLK_VRING_SPLIT_H

#include "export/vhost-user-blk/vring_parse.h"

/* Words of the available ring; of the used ring the first two are the same. */
#define RING_FLAGS 0
#define RING_IDX 1
#define RING_ENTRIES 2

/* ---- taking ---- */

static inline int split_next(struct vring *v, uint16_t *ret_slot)
{
	uint16_t head;

	if (v->next_avail == v->avail_idx) {
		uint16_t idx = load16(&v->avail[RING_IDX], __ATOMIC_ACQUIRE);

		if (idx == v->next_avail)
			return 0;
		if (unlikely((uint16_t)(idx - v->next_avail) > v->num)) {
			vring_fault(v, "the available index jumps from %u to %u in a ring of %u",
					   v->next_avail, idx, v->num);
			return -EPROTO;
		}
		v->avail_idx = idx;
	}
	head = load16(&v->avail[RING_ENTRIES + (v->next_avail & v->mask)], __ATOMIC_RELAXED);
	if (unlikely(head >= v->num)) {
		vring_fault(v, "available entry %u names descriptor %u of %u", v->next_avail, head,
				   v->num);
		return -EPROTO;
	}
	v->next_avail++;
	if (v->track.split)
		track_take_split(&v->track, head);
	*ret_slot = head;
	return 1;
}

/* Where a chain is. Lives in registers, as the buffers found so far do. */
struct split_walk {
	const uint8_t *table;
	uint32_t table_len;
	bool nested; /* not to be told from the address: a guest may pass its ring off as a table */
	struct desc d;
};

static inline void split_load(struct split_walk *w, uint32_t i)
{
	w->d = copy_desc(w->table + (size_t)i * DESC_LEN);
}

/* From an indirect descriptor to the first one of its table. */
static inline __attribute__((always_inline)) int split_enter(struct vring *v, struct split_walk *w, struct gather *g)
{
	if (unlikely(w->nested)) {
		vring_fault(v, "an indirect descriptor inside an indirect table");
		return -EPROTO;
	}
	w->table = indirect_table(v, g, w->d.addr, w->d.len, w->d.w6 & DESC_NEXT);
	if (unlikely(!w->table))
		return -EPROTO;
	w->nested = true;
	w->table_len = w->d.len / DESC_LEN;
	split_load(w, 0);
	return 0;
}

/* To the one that this one names. */
static inline __attribute__((always_inline)) int split_follow(struct vring *v, struct split_walk *w)
{
	if (unlikely(w->d.w7 >= w->table_len)) {
		vring_fault(v, "a descriptor is followed by number %u in a table of %u", w->d.w7, w->table_len);
		return -EPROTO;
	}
	split_load(w, w->d.w7);
	return 0;
}

/* First what the device reads, then what it writes. Bounded: all but one descriptor take an element of iov. */
static inline __attribute__((always_inline)) int split_chain(struct vring *v, uint16_t head, struct iovec *iov,
							     unsigned max, struct vring_chain *ret_chain)
{
	struct gather g = gather_begin(v, iov, max);
	struct split_walk w = { .table = v->desc, .table_len = v->num };
	int ret;

	split_load(&w, head);
	for (;;) {
		if (w.d.w6 & (DESC_WRITE | DESC_INDIRECT)) {
			if (!(w.d.w6 & DESC_INDIRECT))
				break;
			ret = split_enter(v, &w, &g);
		} else {
			ret = gather_put(v, &g, iov, w.d.addr, w.d.len);
			if (likely(ret == 0)) {
				if (unlikely(!(w.d.w6 & DESC_NEXT))) {
					gather_in(&g);
					return gather_end(v, &g, iov, ret_chain);
				}
				ret = split_follow(v, &w);
			}
		}
		if (unlikely(ret < 0))
			return ret;
	}
	gather_in(&g);
	for (;;) {
		if (unlikely((w.d.w6 & (DESC_WRITE | DESC_INDIRECT)) != DESC_WRITE)) {
			if (!(w.d.w6 & DESC_INDIRECT)) {
				vring_fault(v, "a readable buffer behind a writable one");
				return -EPROTO;
			}
			ret = split_enter(v, &w, &g);
		} else {
			ret = gather_put(v, &g, iov, w.d.addr, w.d.len);
			if (likely(ret == 0)) {
				if (!(w.d.w6 & DESC_NEXT))
					return gather_end(v, &g, iov, ret_chain);
				ret = split_follow(v, &w);
			}
		}
		if (unlikely(ret < 0))
			return ret;
	}
}

/* ---- giving back ---- */

static inline void split_push(struct vring *v, uint16_t head, uint32_t written)
{
	uint32_t *elem = (uint32_t *)(v->used + RING_ENTRIES) + 2u * (v->used_idx & v->mask);

	__atomic_store_n(&elem[0], htole32(head), __ATOMIC_RELAXED);
	__atomic_store_n(&elem[1], htole32(written), __ATOMIC_RELAXED);
	v->used_idx++;
	if (v->track.split)
		track_push_split(&v->track, head);
}

#endif
