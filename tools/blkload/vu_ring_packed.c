/* SPDX-License-Identifier: MIT */
/*
 * vu_ring_packed.c - the driver's side of a packed virtqueue
 *
 * Owns:    what vu_ring.h says, of a packed ring.
 * Assumes: the layout of the virtio 1.2 packed ring, little-endian.
 * Never:   lets the device see a part of a batch: the flags of its first descriptor are written last.
 *
 * A request has an id of its own, which is a number of r->slot; free ids are in a list there.
 */
#include "vu_ring_packed.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <string.h>

#define AVAIL	(1u << VRING_PACKED_DESC_F_AVAIL)
#define USED	(1u << VRING_PACKED_DESC_F_USED)
#define WRAP	(1u << VRING_PACKED_EVENT_F_WRAP_CTR)

static struct vring_packed_desc *descs(const struct vu_ring *r)
{
	return (struct vring_packed_desc *)r->desc;
}

static struct vring_packed_desc_event *ours(struct vu_ring *r)
{
	return (struct vring_packed_desc_event *)r->avail;
}

static struct vring_packed_desc_event *theirs(struct vu_ring *r)
{
	return (struct vring_packed_desc_event *)r->used;
}

void vu_packed_reset(struct vu_ring *r, uint16_t base)
{
	r->next_avail = r->last_used = base & (uint16_t)~WRAP;
	r->avail_wrap = r->used_wrap = base & WRAP;
	r->first = NULL;
	memset(theirs(r), 0, sizeof(*theirs(r)));
	vu_packed_call_off(r);
}

/* ---- adding ---------------------------------------------------------------------------------- */

/* Write the next descriptor of the ring. The flags of a batch's first one are kept back. */
static void put(struct vu_ring *r, uint64_t addr, uint32_t len, uint16_t id, uint16_t flags)
{
	struct vring_packed_desc *d = &descs(r)[r->next_avail];

	d->addr = htole64(addr);
	d->len = htole32(len);
	d->id = htole16(id);
	flags = (uint16_t)(flags | (r->avail_wrap ? AVAIL : USED));
	if (!r->first) {
		r->first = &d->flags;
		r->first_flags = flags;
		r->shown = r->next_avail;
		r->shown_wrap = r->avail_wrap;
	} else {
		__atomic_store_n(&d->flags, htole16(flags), __ATOMIC_RELAXED);
	}
	if (++r->next_avail == r->len) {
		r->next_avail = 0;
		r->avail_wrap = !r->avail_wrap;
	}
}

static uint16_t seg_flags(const struct vu_seg *s)
{
	return s->dev_writes ? VRING_DESC_F_WRITE : 0;
}

static void put_table(struct vu_ring *r, uint16_t id, const struct vu_seg *segs, unsigned nr)
{
	size_t first = (size_t)id * r->table_len;
	struct vring_packed_desc *t = (struct vring_packed_desc *)(r->tables + first);
	unsigned i;

	for (i = 0; i < nr; i++) {
		t[i].addr = htole64(segs[i].guest_addr);
		t[i].len = htole32(segs[i].len);
		t[i].id = 0;
		t[i].flags = htole16(seg_flags(&segs[i]));
	}
	put(r, r->tables_guest_addr + first * sizeof(*t), (uint32_t)(nr * sizeof(*t)), id,
	    VRING_DESC_F_INDIRECT);
}

int vu_packed_add(struct vu_ring *r, const struct vu_seg *segs, unsigned nr_segs, void *cookie)
{
	enum vu_indirect how = r->indirect;
	uint16_t id = r->free_head, need;
	uint32_t writable = 0;
	unsigned i;

	assert(nr_segs > 0);
	if (how == VU_INDIRECT_MIXED)
		how = r->nr_added & 1 ? VU_INDIRECT : VU_DIRECT;
	if (how == VU_INDIRECT_TAIL)
		how = VU_INDIRECT;	/* a packed ring has either, not both in one request */
	if (nr_segs == 1)
		how = VU_DIRECT;
	if (nr_segs > (how == VU_DIRECT ? r->len : r->table_len))
		return vu_fail(&r->err, -E2BIG,
			       "a request of %u segments: the ring has %u descriptors, a table %u",
			       nr_segs, r->len, r->table_len);
	need = how == VU_DIRECT ? (uint16_t)nr_segs : 1;
	if (need > r->nr_free)
		return vu_fail(&r->err, -ENOSPC, "queue %u has %u descriptors free, %u needed",
			       r->index, r->nr_free, need);
	if (how == VU_INDIRECT)
		put_table(r, id, segs, nr_segs);
	for (i = 0; how == VU_DIRECT && i < nr_segs; i++) {
		uint16_t more = i + 1 < nr_segs ? VRING_DESC_F_NEXT : 0;

		put(r, segs[i].guest_addr, segs[i].len, id, (uint16_t)(seg_flags(&segs[i]) | more));
	}
	for (i = 0; i < nr_segs; i++)
		writable += segs[i].dev_writes ? segs[i].len : 0;

	r->free_head = r->slot[id].next;
	r->slot[id] = (struct vu_slot){ .nr = need, .writable = writable, .cookie = cookie,
					.seq = r->nr_added++ };
	r->nr_free = (uint16_t)(r->nr_free - need);
	r->nr_chains++;
	return 0;
}

bool vu_packed_show(struct vu_ring *r)
{
	uint16_t off, flags, event, now = r->next_avail, old = r->shown;
	uint32_t both;

	if (!r->first)
		return false;
	__atomic_store_n(r->first, htole16(r->first_flags), __ATOMIC_RELEASE);
	r->first = NULL;
	/* The device first asks for kicks, then looks at the flags once more; we the other way round. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	both = le32toh(__atomic_load_n((uint32_t *)theirs(r), __ATOMIC_RELAXED));
	off = (uint16_t)both;
	flags = (uint16_t)(both >> 16);
	if (flags != VRING_PACKED_EVENT_FLAG_DESC)
		return flags == VRING_PACKED_EVENT_FLAG_ENABLE;
	/* On one line, on which the lap that we are in begins at 0. */
	event = off & (uint16_t)~WRAP;
	if (!!(off & WRAP) != r->avail_wrap)
		event = (uint16_t)(event - r->len);
	if (r->shown_wrap != r->avail_wrap)
		old = (uint16_t)(old - r->len);
	return vring_need_event(event, now, old);
}

/* ---- reaping --------------------------------------------------------------------------------- */

bool vu_packed_has_used(const struct vu_ring *r)
{
	/* Acquire: what the device wrote before these flags is visible afterwards. */
	uint16_t flags = le16toh(__atomic_load_n(&descs(r)[r->last_used].flags, __ATOMIC_ACQUIRE));

	return (flags & (AVAIL | USED)) == (r->used_wrap ? AVAIL | USED : 0);
}

static void free_id(struct vu_ring *r, uint16_t id)
{
	struct vu_slot *s = &r->slot[id];

	r->last_used = (uint16_t)(r->last_used + s->nr);
	if (r->last_used >= r->len) {
		r->last_used = (uint16_t)(r->last_used - r->len);
		r->used_wrap = !r->used_wrap;
	}
	r->nr_free = (uint16_t)(r->nr_free + s->nr);
	r->nr_chains--;
	s->nr = 0;
	s->next = r->free_head;
	r->free_head = id;
}

int vu_packed_reap(struct vu_ring *r, struct vu_done *done, unsigned max)
{
	unsigned n;

	for (n = 0; n < max && vu_packed_has_used(r); n++) {
		const struct vring_packed_desc *d = &descs(r)[r->last_used];
		uint16_t id = le16toh(d->id);
		uint32_t len = le16toh(d->flags) & VRING_DESC_F_WRITE ? le32toh(d->len) : 0;
		int ret;

		if (id >= r->len || r->slot[id].nr == 0)
			return vu_fail(&r->err, -EPROTO,
				       "queue %u: used descriptor %u has id %u, of no request in flight",
				       r->index, r->last_used, id);
		ret = vu_ring_check_done(r, id, len);
		if (ret < 0)
			return ret;
		done[n].cookie = r->slot[id].cookie;
		done[n].written = len;
		free_id(r, id);
	}
	return (int)n;
}

/* ---- being told ------------------------------------------------------------------------------ */

static void ask(struct vu_ring *r, uint32_t off, uint32_t flags)
{
	__atomic_store_n((uint32_t *)ours(r), htole32(off | flags << 16), __ATOMIC_RELAXED);
}

void vu_packed_call_on(struct vu_ring *r)
{
	if (r->event_idx)
		ask(r, r->last_used | (r->used_wrap ? WRAP : 0), VRING_PACKED_EVENT_FLAG_DESC);
	else
		ask(r, 0, VRING_PACKED_EVENT_FLAG_ENABLE);
}

void vu_packed_call_off(struct vu_ring *r)
{
	ask(r, 0, VRING_PACKED_EVENT_FLAG_DISABLE);
}
