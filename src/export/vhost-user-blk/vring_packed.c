/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/vring_packed.c - the packed ring
 *
 * Owns:    see vring.h.
 * Assumes: see vring.h.
 * Never:   takes more descriptors than the ring has, whatever their flags say; loops longer than an indirect
 *          table is, or than iovec elements are left.
 *
 * docs/spec/virtio-blk.md, "Packed virtqueue".
 */
#include "export/vhost-user-blk/vring.h"

/* What the event structures ask for. */
#define EVENT_ENABLE 0u
#define EVENT_DISABLE 1u
#define EVENT_DESC 2u
#define EVENT_WRAP 0x8000u

/* The second word of an event structure; the first is a position, as in vring_opts.base. */
#define EVENT_FLAGS 1

static inline uint8_t *desc_at(const struct vring *v, unsigned pos)
{
	return v->desc + (size_t)pos * DESC_LEN;
}

static inline uint16_t *flags_at(const struct vring *v, unsigned pos)
{
	return (uint16_t *)(desc_at(v, pos) + 14);
}

/* Is the next descriptor ours to take? */
static inline bool is_available(const struct vring *v, int order)
{
	uint16_t flags = load16(flags_at(v, v->next_avail), order) & (DESC_AVAIL | DESC_USED);

	return flags == (v->avail_wrap ? DESC_AVAIL : DESC_USED);
}

static inline void advance_avail(struct vring *v)
{
	if (++v->next_avail == v->num) {
		v->next_avail = 0;
		v->avail_wrap = !v->avail_wrap;
	}
}

/* ---- taking ---- */

int packed_next(struct vring *v, uint16_t *ret_slot)
{
	if (!is_available(v, __ATOMIC_ACQUIRE))
		return 0;
	if (unlikely(v->nr_out == v->num)) {
		vring_fault(v, "descriptor %u is available, but all %u are in flight", v->next_avail,
				   v->num);
		return -EPROTO;
	}
	*ret_slot = v->free_head;
	return 1;
}

static inline __attribute__((always_inline)) int gather_add(struct vring *v, struct gather *g, struct iovec *iov,
							    uint64_t addr, uint32_t len, bool in)
{
	if (in) {
		if (!g->in)
			gather_in(g);
	} else if (unlikely(g->in != NULL)) {
		vring_fault(v, "a readable buffer behind a writable one");
		return -EPROTO;
	}
	return gather_put(v, g, iov, addr, len);
}

static inline __attribute__((always_inline)) int end_chain(struct vring *v, struct gather *g, const struct iovec *iov,
							   struct vring_chain *ret_chain)
{
	if (!g->in)
		gather_in(g);
	return gather_end(v, g, iov, ret_chain);
}

/* Adds the buffers of an indirect table. Of a descriptor in it only address, length and direction count. */
static inline __attribute__((always_inline)) int add_table(struct vring *v, struct gather *g, struct iovec *iov,
							   const struct desc *d)
{
	const uint8_t *table = indirect_table(v, g, d->addr, d->len, d->w7 & DESC_NEXT);
	uint32_t nr = d->len / DESC_LEN;

	if (unlikely(!table))
		return -EPROTO;
	/* Bounded by the iovec array: each descriptor takes an element of it, or is a fault. */
	for (uint32_t i = 0; i < nr; i++) {
		struct desc e = copy_desc(table + (size_t)i * DESC_LEN);

		if (unlikely(e.w7 & DESC_INDIRECT)) {
			vring_fault(v, "an indirect descriptor inside an indirect table");
			return -EPROTO;
		}
		if (unlikely(gather_add(v, g, iov, e.addr, e.len, e.w7 & DESC_WRITE) < 0))
			return -EPROTO;
	}
	return 0;
}

static inline __attribute__((always_inline)) int add_desc(struct vring *v, struct gather *g, struct iovec *iov,
							  const struct desc *d)
{
	if (d->w7 & DESC_INDIRECT)
		return add_table(v, g, iov, d);
	return gather_add(v, g, iov, d->addr, d->len, d->w7 & DESC_WRITE);
}

static void record_desc(struct inflight_packed_desc *to, const struct desc *d)
{
	to->addr = d->addr;
	to->len = d->len;
	to->id = d->w6;
	to->flags = d->w7;
}

/*
 * The chain is being read: as the in-flight area wants it, one number of the free list is taken for each
 * descriptor. Nothing is recorded for good before the last one, so a process that ends here has taken
 * nothing.
 */
int packed_chain(struct vring *v, uint16_t slot, struct iovec *iov, unsigned max,
		 struct vring_chain *ret_chain)
{
	struct inflight_packed_region *rec = v->track.packed;
	struct gather g = gather_begin(v, iov, max);
	uint16_t at = slot, nr = 0;
	struct desc d;

	assert(slot == v->free_head);
	do {
		if (unlikely(v->nr_out + nr == v->num)) {
			vring_fault(v, "a chain that is longer than what the ring of %u has left (%u)",
					   v->num, v->num - v->nr_out);
			return -EPROTO;
		}
		d = copy_desc(desc_at(v, v->next_avail));
		if (unlikely(add_desc(v, &g, iov, &d) < 0))
			return -EPROTO;
		if (rec)
			record_desc(&rec->desc[at], &d);
		advance_avail(v);
		nr++;
		v->slot[slot].last = at;
		at = v->next[at];
	} while (d.w7 & DESC_NEXT);
	v->slot[slot].id = d.w6;
	v->slot[slot].nr = nr;
	v->nr_out += nr;
	v->free_head = at;
	if (rec)
		track_take_packed(&v->track, v, slot);
	return end_chain(v, &g, iov, ret_chain);
}

/* From the record: the ring may hold other descriptors in their place. */
int packed_redo(struct vring *v, uint16_t slot, struct iovec *iov, unsigned max,
		struct vring_chain *ret_chain)
{
	const struct inflight_packed_region *rec = v->track.packed;
	struct gather g = gather_begin(v, iov, max);
	uint16_t at = slot;

	for (uint16_t i = 0; i < v->slot[slot].nr; i++, at = v->next[at]) {
		const struct inflight_packed_desc *r = &rec->desc[at];
		struct desc d = { r->addr, r->len, r->id, r->flags };

		__asm__ volatile("" : "+r"(d.addr), "+r"(d.len), "+r"(d.w7));
		if (unlikely(add_desc(v, &g, iov, &d) < 0))
			return -EPROTO;
	}
	return end_chain(v, &g, iov, ret_chain);
}

/* ---- giving back ---- */

void packed_push(struct vring *v, uint16_t slot, uint32_t written)
{
	const struct vring_packed_slot *s = &v->slot[slot];
	uint16_t flags = (v->used_wrap ? DESC_AVAIL | DESC_USED : 0) | (written ? DESC_WRITE : 0);
	uint32_t *len = (uint32_t *)(desc_at(v, v->used_idx) + 8);
	uint16_t *id = (uint16_t *)(desc_at(v, v->used_idx) + 12);

	__atomic_store_n(len, htole32(written), __ATOMIC_RELAXED);
	store16(id, s->id, __ATOMIC_RELAXED);
	/* The driver goes on to the others only after it has seen the first one. */
	if (!v->nr_batch)
		v->first_flags = flags;
	else
		store16(flags_at(v, v->used_idx), flags, __ATOMIC_RELAXED);
	v->nr_batch++;
	v->used_idx += s->nr;
	if (v->used_idx >= v->num) {
		v->used_idx -= v->num;
		v->used_wrap = !v->used_wrap;
	}
	if (v->track.packed) {
		track_push_packed(&v->track, slot);
		return; /* its numbers are free when the batch is shown */
	}
	v->next[s->last] = v->free_head;
	v->free_head = slot;
	v->nr_out -= s->nr;
}

/* The driver named a position: was it passed since the last batch? */
static bool passed(const struct vring *v, uint16_t old, uint16_t event)
{
	uint16_t now = v->used_idx, pos = event & (uint16_t)~EVENT_WRAP;

	/* All three on one line, on which the lap that "now" is in begins at 0. */
	if (!!(event & EVENT_WRAP) != v->used_wrap)
		pos -= v->num;
	if (v->published_wrap != v->used_wrap)
		old -= v->num;
	return (uint16_t)(now - pos - 1) < (uint16_t)(now - old);
}

static bool wants_call(const struct vring *v, uint16_t old)
{
	uint32_t both = le32toh(__atomic_load_n((uint32_t *)v->avail, __ATOMIC_SEQ_CST));
	uint16_t flags = both >> 16 & 3;

	if (flags == EVENT_DESC && v->event_idx)
		return passed(v, old, (uint16_t)both);
	return flags != EVENT_DISABLE;
}

bool packed_publish(struct vring *v)
{
	uint16_t old = v->published;
	bool fresh = v->fresh, call;

	if (!v->nr_batch)
		return false;
	if (v->track.packed)
		track_publish_packed(&v->track, v);
	/* release, and ordered before the load in wants_call() */
	store16(flags_at(v, old), v->first_flags, __ATOMIC_SEQ_CST);
	if (v->track.packed)
		track_published_packed(&v->track, v);
	call = wants_call(v, old) || fresh;
	v->nr_batch = 0;
	v->published = v->used_idx;
	v->published_wrap = v->used_wrap;
	v->fresh = false;
	return call;
}

/* Both words at once, so that the driver never sees a position of one time with the flags of another. */
static void ask_for_kick(struct vring *v, uint32_t flags)
{
	uint32_t pos = v->next_avail | (v->avail_wrap ? EVENT_WRAP : 0);

	__atomic_store_n((uint32_t *)v->used, htole32(pos | flags << 16), __ATOMIC_SEQ_CST);
}

void packed_kick_off(struct vring *v)
{
	/* With EVENT_IDX the position stays behind, and costs a kick too many once in two laps at most. */
	if (!v->event_idx)
		store16(&v->used[EVENT_FLAGS], EVENT_DISABLE, __ATOMIC_RELAXED);
}

bool packed_kick_on(struct vring *v)
{
	ask_for_kick(v, v->event_idx ? EVENT_DESC : EVENT_ENABLE);
	if (!is_available(v, __ATOMIC_SEQ_CST))
		return false;
	packed_kick_off(v);
	return true;
}
