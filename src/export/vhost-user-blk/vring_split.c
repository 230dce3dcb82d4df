/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/vring_split.c - the split ring
 *
 * Owns:    see vring.h.
 * Assumes: see vring.h.
 * Never:   loops longer than the guest's table is, or than iovec elements are left.
 *
 * docs/spec/virtio-blk.md, "Split virtqueue".
 */
#include "export/vhost-user-blk/vring_parse.h"

#define AVAIL_NO_INTERRUPT 1u
#define USED_NO_NOTIFY 1u

/* Words of the available ring; of the used ring the first two are the same. */
#define RING_FLAGS 0
#define RING_IDX 1
#define RING_ENTRIES 2

static inline uint16_t *used_event(const struct vring *v)
{
	return v->avail + RING_ENTRIES + v->num;
}

static inline uint16_t *avail_event(const struct vring *v)
{
	return v->used + RING_ENTRIES + 4u * v->num;
}

/* ---- taking ---- */

int split_next(struct vring *v, uint16_t *ret_slot)
{
	uint16_t head;

	if (v->next_avail == v->avail_idx) {
		uint16_t idx = load16(&v->avail[RING_IDX], __ATOMIC_ACQUIRE);

		if (idx == v->next_avail)
			return 0;
		if (unlikely((uint16_t)(idx - v->next_avail) > v->num))
			return vring_fault(v, "the available index jumps from %u to %u in a ring of %u",
					   v->next_avail, idx, v->num);
		v->avail_idx = idx;
	}
	head = load16(&v->avail[RING_ENTRIES + (v->next_avail & v->mask)], __ATOMIC_RELAXED);
	if (unlikely(head >= v->num))
		return vring_fault(v, "available entry %u names descriptor %u of %u", v->next_avail, head,
				   v->num);
	v->next_avail++;
	if (v->track.split)
		track_take_split(&v->track, head);
	*ret_slot = head;
	return 1;
}

int split_chain(struct vring *v, uint16_t head, struct iovec *iov, unsigned max,
		struct vring_chain *ret_chain)
{
	struct gather g = gather_begin(v, iov, max);
	const uint8_t *table = v->desc;
	uint32_t table_len = v->num, left = v->num, i = head;
	bool nested = false; /* not to be told from the address: a guest may pass its ring off as a table */

	for (;;) {
		struct desc d = copy_desc(table + (size_t)i * DESC_LEN);
		uint16_t flags = d.w6;

		if (flags & DESC_INDIRECT) {
			if (unlikely(nested))
				return vring_fault(v, "an indirect descriptor inside an indirect table");
			table = indirect_table(v, &g, d.addr, d.len, flags & DESC_NEXT);
			if (unlikely(!table))
				return -EPROTO;
			nested = true;
			left = table_len = d.len / DESC_LEN;
			i = 0;
			continue;
		}
		if (unlikely(gather_add(v, &g, d.addr, d.len, flags & DESC_WRITE) < 0))
			return -EPROTO;
		if (!(flags & DESC_NEXT))
			return gather_end(v, &g, ret_chain);
		i = d.w7;
		if (unlikely(i >= table_len))
			return vring_fault(v, "a descriptor is followed by number %u in a table of %u", i,
					   table_len);
		/* A chain as long as its table that does not end has met one of its descriptors twice. */
		if (unlikely(!--left))
			return vring_fault(
				v, "a chain that loops, or is longer than its table of %u descriptors",
				table_len);
	}
}

/* ---- giving back ---- */

void split_push(struct vring *v, uint16_t head, uint32_t written)
{
	uint32_t *elem = (uint32_t *)(v->used + RING_ENTRIES) + 2u * (v->used_idx & v->mask);

	__atomic_store_n(&elem[0], htole32(head), __ATOMIC_RELAXED);
	__atomic_store_n(&elem[1], htole32(written), __ATOMIC_RELAXED);
	v->used_idx++;
	if (v->track.split)
		track_push_split(&v->track, head);
}

bool split_publish(struct vring *v)
{
	uint16_t old = v->published, now = v->used_idx;
	bool fresh = v->fresh;

	if (old == now)
		return false;
	store16(&v->used[RING_IDX], now, __ATOMIC_SEQ_CST); /* release, and ordered before the load below */
	v->published = now;
	v->fresh = false;
	if (v->track.split)
		track_published_split(&v->track, now);
	if (fresh)
		return true;
	if (v->event_idx) {
		uint16_t event = load16(used_event(v), __ATOMIC_SEQ_CST);

		/* Was the element with that index among those from old up to, not including, now? */
		return (uint16_t)(event - old) < (uint16_t)(now - old);
	}
	return !(load16(&v->avail[RING_FLAGS], __ATOMIC_SEQ_CST) & AVAIL_NO_INTERRUPT);
}

void split_kick_off(struct vring *v)
{
	/* With EVENT_IDX nothing is to be done: the event index stays behind, no driver passes it again. */
	if (!v->event_idx)
		store16(&v->used[RING_FLAGS], USED_NO_NOTIFY, __ATOMIC_RELAXED);
}

bool split_kick_on(struct vring *v)
{
	if (v->event_idx)
		store16(avail_event(v), v->next_avail, __ATOMIC_SEQ_CST);
	else
		store16(&v->used[RING_FLAGS], 0, __ATOMIC_SEQ_CST);
	if (load16(&v->avail[RING_IDX], __ATOMIC_SEQ_CST) == v->next_avail)
		return false;
	split_kick_off(v);
	return true;
}
