/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/vring.c - the split ring
 *
 * Owns:    see vring.h.
 * Assumes: little-endian rings (VIRTIO_F_VERSION_1 is negotiated).
 * Never:   loops longer than the guest's table is, or than iovec elements are left.
 *
 * docs/spec/virtio-blk.md, "Ring".
 */
#include "export/vhost-user-blk/vring.h"

#include <endian.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define DESC_LEN 16u
#define DESC_NEXT 1u
#define DESC_WRITE 2u
#define DESC_INDIRECT 4u

#define AVAIL_NO_INTERRUPT 1u
#define USED_NO_NOTIFY 1u

/* Words of the available ring; of the used ring the first two are the same. */
#define RING_FLAGS 0
#define RING_IDX 1
#define RING_ENTRIES 2

struct desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags, next;
};

static_assert(sizeof(struct desc) == DESC_LEN, "a descriptor as it lies in memory");

static inline uint16_t load16(const uint16_t *p, int order)
{
	return le16toh(__atomic_load_n(p, order));
}

static inline void store16(uint16_t *p, uint16_t value, int order)
{
	__atomic_store_n(p, htole16(value), order);
}

static inline uint16_t *used_event(const struct vring *v)
{
	return v->avail + RING_ENTRIES + v->num;
}

static inline uint16_t *avail_event(const struct vring *v)
{
	return v->used + RING_ENTRIES + 4u * v->num;
}

int vring_fault(struct vring *v, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(v->fault, sizeof(v->fault), fmt, ap);
	va_end(ap);
	return -EPROTO;
}

/* ---- opening ---- */

static void *open_part(const struct gmem *mem, const char *name, uint64_t addr, uint64_t len, unsigned align,
		       struct varve_error *err)
{
	void *p = gmem_by_user(mem, addr, len);

	if (!p) {
		varve_error_set(err, -EFAULT,
				"%s at 0x%" PRIx64 " (%" PRIu64 " bytes) is not inside one memory region",
				name, addr, len);
		return NULL;
	}
	if ((uintptr_t)p & (align - 1)) {
		varve_error_set(err, -EINVAL, "%s at 0x%" PRIx64 " is not aligned to %u bytes", name, addr,
				align);
		return NULL;
	}
	return p;
}

int vring_open(struct vring *v, const struct gmem *mem, const struct vring_addr *addr, unsigned num,
	       uint16_t base, bool indirect, bool event_idx, struct varve_error *err)
{
	struct vring fresh = {
		.mem = mem,
		.num = (uint16_t)num,
		.mask = (uint16_t)(num - 1),
		.indirect = indirect,
		.event_idx = event_idx,
		.next_avail = base,
		.avail_idx = base,
		.fresh = true,
	};

	assert(is_pow2(num) && num <= VRING_NUM_MAX);
	fresh.desc = open_part(mem, "descriptor table", addr->desc, (uint64_t)DESC_LEN * num, 16, err);
	if (!fresh.desc)
		return -EFAULT;
	fresh.avail = open_part(mem, "available ring", addr->avail, 6 + 2 * (uint64_t)num, 2, err);
	if (!fresh.avail)
		return -EFAULT;
	fresh.used = open_part(mem, "used ring", addr->used, 6 + 8 * (uint64_t)num, 4, err);
	if (!fresh.used)
		return -EFAULT;
	/* Where an earlier start, or back end, left off. Any value is as good to us as any other. */
	fresh.used_idx = fresh.published = load16(&fresh.used[RING_IDX], __ATOMIC_RELAXED);
	*v = fresh;
	return 0;
}

/* ---- taking ---- */

int vring_next(struct vring *v, uint16_t *ret_head)
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
	*ret_head = head;
	return 1;
}

/* One read of guest memory: the compiler cannot go back to the original afterwards. */
static inline struct desc copy_desc(const uint8_t *p)
{
	uint64_t addr, rest;

	memcpy(&addr, p, 8);
	memcpy(&rest, p + 8, 8);
	__asm__ volatile("" : "+r"(addr), "+r"(rest));
	rest = le64toh(rest);
	return (struct desc){ le64toh(addr), (uint32_t)rest, (uint16_t)(rest >> 32), (uint16_t)(rest >> 48) };
}

/*
 * A buffer that the region of the last one does not hold: finds its region; it may reach into the next ones.
 * Returns how many elements of iov are in use then, 0 on a fault.
 */
static __attribute__((noinline)) unsigned add_far_buffer(struct vring *v, uint64_t addr, uint32_t len,
							 struct iovec *iov, unsigned nr, unsigned max)
{
	uint64_t at = addr, left = len, off, end;

	if (u64_add(addr, len, &end)) {
		vring_fault(v, "a buffer of %u bytes at 0x%" PRIx64 " wraps around", len, addr);
		return 0;
	}
	while (left) {
		const struct gmem_region *r = gmem_region_at(v->mem, at, &off);
		uint64_t part;

		if (!r) {
			vring_fault(v, "a buffer of %u bytes at 0x%" PRIx64 " is not in the guest's memory",
				    len, addr);
			return 0;
		}
		if (nr == max) {
			vring_fault(v, "a request of more than %u buffers", max);
			return 0;
		}
		part = MIN(left, r->len - off);
		iov[nr].iov_base = r->host + off;
		iov[nr++].iov_len = part;
		v->region = (unsigned)(r - v->mem->region);
		at += part;
		left -= part;
	}
	return nr;
}

/* The table that an indirect descriptor points to: sets *ret_nr. NULL: a fault. */
static const uint8_t *indirect_table(struct vring *v, const struct desc *d, bool nested, uint32_t *ret_nr)
{
	const struct gmem_region *r;
	uint64_t off;

	if (!v->indirect)
		vring_fault(v, "an indirect descriptor, which was not negotiated");
	else if (nested)
		vring_fault(v, "an indirect descriptor inside an indirect table");
	else if (d->flags & DESC_NEXT)
		vring_fault(v, "an indirect descriptor with a next one");
	else if (!d->len || d->len % DESC_LEN)
		vring_fault(v, "an indirect table of %u bytes", d->len);
	else if (!(r = gmem_region_at(v->mem, d->addr, &off)) || d->len > r->len - off)
		vring_fault(v,
			    "an indirect table of %u bytes at 0x%" PRIx64
			    " is not in one region of the guest's memory",
			    d->len, d->addr);
	else {
		*ret_nr = d->len / DESC_LEN;
		return r->host + off;
	}
	return NULL;
}

int vring_chain(struct vring *v, uint16_t head, struct iovec *iov, unsigned max,
		struct vring_chain *ret_chain)
{
	const struct gmem_region *r = &v->mem->region[v->region];
	const uint8_t *table = v->desc;
	uint32_t table_len = v->num, left = v->num, i = head;
	unsigned nr = 0, nr_out = 0;
	uint64_t len = 0, out_len = 0; /* no overflow: less than 2^32 for each of at most max buffers */
	bool in = false, nested = false;

	for (;;) {
		struct desc d;
		uint64_t off;

		/* A chain as long as its table that does not end has met one of its descriptors twice. */
		if (unlikely(!left--))
			return vring_fault(
				v, "a chain that loops, or is longer than its table of %u descriptors",
				table_len);
		d = copy_desc(table + (size_t)i * DESC_LEN);
		if (d.flags & DESC_INDIRECT) {
			table = indirect_table(v, &d, nested, &table_len);
			if (!table)
				return -EPROTO;
			nested = true;
			left = table_len;
			i = 0;
			continue;
		}
		if (unlikely(!d.len))
			return vring_fault(v, "a buffer of no bytes");
		if (!(d.flags & DESC_WRITE)) {
			if (unlikely(in))
				return vring_fault(v, "a readable buffer behind a writable one");
			nr_out = nr + 1;
			out_len += d.len;
		}
		in = d.flags & DESC_WRITE;
		len += d.len;
		if (likely(gmem_region_has(r, d.addr, &off) && d.len <= r->len - off && nr < max)) {
			iov[nr].iov_base = r->host + off;
			iov[nr++].iov_len = d.len;
		} else {
			nr = add_far_buffer(v, d.addr, d.len, iov, nr, max);
			if (!nr)
				return -EPROTO;
			r = &v->mem->region[v->region];
			nr_out = in ? nr_out : nr;
		}
		if (!(d.flags & DESC_NEXT))
			break;
		i = d.next;
		if (unlikely(i >= table_len))
			return vring_fault(v, "a descriptor is followed by number %u in a table of %u", i,
					   table_len);
	}
	if (unlikely(len > VRING_CHAIN_LEN_MAX))
		return vring_fault(v, "a request of more than 2^32 - 1 bytes");
	ret_chain->nr_out = nr_out;
	ret_chain->nr_in = nr - nr_out;
	ret_chain->out_len = (uint32_t)out_len;
	ret_chain->in_len = (uint32_t)(len - out_len);
	return 0;
}

/* ---- giving back ---- */

void vring_push(struct vring *v, uint16_t head, uint32_t written)
{
	uint32_t *elem = (uint32_t *)(v->used + RING_ENTRIES) + 2u * (v->used_idx & v->mask);

	__atomic_store_n(&elem[0], htole32(head), __ATOMIC_RELAXED);
	__atomic_store_n(&elem[1], htole32(written), __ATOMIC_RELAXED);
	v->used_idx++;
}

bool vring_publish(struct vring *v)
{
	uint16_t old = v->published, now = v->used_idx;
	bool fresh = v->fresh;

	if (old == now)
		return false;
	store16(&v->used[RING_IDX], now, __ATOMIC_SEQ_CST); /* release, and ordered before the load below */
	v->published = now;
	v->fresh = false;
	if (fresh)
		return true;
	if (v->event_idx) {
		uint16_t event = load16(used_event(v), __ATOMIC_SEQ_CST);

		/* Was the element with that index among those from old up to, not including, now? */
		return (uint16_t)(event - old) < (uint16_t)(now - old);
	}
	return !(load16(&v->avail[RING_FLAGS], __ATOMIC_SEQ_CST) & AVAIL_NO_INTERRUPT);
}

void vring_kick_off(struct vring *v)
{
	/* With EVENT_IDX nothing is to be done: the event index stays behind, no driver passes it again. */
	if (!v->event_idx)
		store16(&v->used[RING_FLAGS], USED_NO_NOTIFY, __ATOMIC_RELAXED);
}

bool vring_kick_on(struct vring *v)
{
	if (v->event_idx)
		store16(avail_event(v), v->next_avail, __ATOMIC_SEQ_CST);
	else
		store16(&v->used[RING_FLAGS], 0, __ATOMIC_SEQ_CST);
	if (load16(&v->avail[RING_IDX], __ATOMIC_SEQ_CST) == v->next_avail)
		return false;
	vring_kick_off(v);
	return true;
}
