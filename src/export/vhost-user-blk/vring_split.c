/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/vring_split.c - the split ring: what is done once a turn
 *
 * Owns:    see vring.h.
 * Assumes: see vring.h.
 * Never:   see vring.h.
 *
 * docs/spec/virtio-blk.md, "Split virtqueue".
 */
#include "export/vhost-user-blk/vring.h"

#define AVAIL_NO_INTERRUPT 1u
#define USED_NO_NOTIFY 1u

static inline uint16_t *used_event(const struct vring *v)
{
	return v->avail + RING_ENTRIES + v->num;
}

static inline uint16_t *avail_event(const struct vring *v)
{
	return v->used + RING_ENTRIES + 4u * v->num;
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
