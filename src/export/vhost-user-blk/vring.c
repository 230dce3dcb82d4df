/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/vring.c - what split and packed rings have in common: opening, faults, odd buffers
 *
 * Owns:    see vring.h.
 * Assumes: little-endian rings.
 * Never:   see vring.h.
 *
 * docs/spec/virtio-blk.md, "Split virtqueue", "Packed virtqueue".
 */
#include "export/vhost-user-blk/vring.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#define BASE_WRAP 0x8000u

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

struct parts {
	void *desc, *avail, *used;
};

static int open_parts(struct parts *p, const struct gmem *mem, const struct vring_addr *addr, uint64_t num,
		      bool packed, struct varve_error *err)
{
	p->desc = open_part(mem, packed ? "descriptor ring" : "descriptor table", addr->desc, DESC_LEN * num,
			    16, err);
	if (!p->desc)
		return -EFAULT;
	if (packed)
		p->avail = open_part(mem, "driver event structure", addr->avail, 4, 4, err);
	else
		p->avail = open_part(mem, "available ring", addr->avail, 6 + 2 * num, 2, err);
	if (!p->avail)
		return -EFAULT;
	if (packed)
		p->used = open_part(mem, "device event structure", addr->used,
				    vring_used_len((unsigned)num, true), 4, err);
	else
		p->used =
			open_part(mem, "used ring", addr->used, vring_used_len((unsigned)num, false), 4, err);
	return p->used ? 0 : -EFAULT;
}

int vring_check(const struct gmem *mem, const struct vring_addr *addr, unsigned num, bool packed,
		struct varve_error *err)
{
	struct parts p;

	return open_parts(&p, mem, addr, num, packed, err);
}

static int open_split(struct vring *v, const struct vring_opts *o, struct varve_error *err)
{
	if (o->base > UINT16_MAX)
		return varve_error_set(err, -EINVAL, "0x%" PRIx32 " is not an index of a split ring",
				       o->base);
	v->mask = (uint16_t)(v->num - 1);
	v->next_avail = (uint16_t)o->base;
	/* Where an earlier start, or back end, left off. Any value is as good to us as any other. */
	v->used_idx = v->published = load16(&v->used[1], __ATOMIC_RELAXED);
	if (o->inflight &&
	    track_open_split(&v->track, o->inflight, v->num, v->used_idx, &v->next_avail, err) < 0)
		return -EINVAL;
	v->avail_idx = v->next_avail;
	return 0;
}

static int open_packed(struct vring *v, const struct vring_opts *o, struct varve_error *err)
{
	uint32_t avail = o->base & UINT16_MAX, used = o->base >> 16 ? o->base >> 16 : avail;

	if ((avail & ~BASE_WRAP) >= v->num || (used & ~BASE_WRAP) >= v->num)
		return varve_error_set(err, -EINVAL, "0x%" PRIx32 " is not a position in a packed ring of %u",
				       o->base, v->num);
	v->next_avail = (uint16_t)(avail & ~BASE_WRAP);
	v->avail_wrap = avail & BASE_WRAP;
	v->used_idx = (uint16_t)(used & ~BASE_WRAP);
	v->used_wrap = used & BASE_WRAP;
	for (unsigned i = 0; i < v->num; i++)
		v->next[i] = (uint16_t)(i + 1);
	if (o->inflight && track_open_packed(&v->track, o->inflight, v, err) < 0)
		return -EINVAL;
	v->published = v->used_idx;
	v->published_wrap = v->used_wrap;
	return 0;
}

int vring_open(struct vring *v, const struct gmem *mem, const struct vring_addr *addr,
	       const struct vring_opts *o, struct varve_error *err)
{
	struct parts p;
	int ret;

	assert(o->num && o->num <= VRING_NUM_MAX && (o->packed || is_pow2(o->num)));
	ret = open_parts(&p, mem, addr, o->num, o->packed, err);
	if (ret < 0)
		return ret;
	memset(v, 0, offsetof(struct vring, next));
	memset(&v->track, 0, sizeof(v->track));
	v->fault[0] = 0;
	v->mem = mem;
	v->near = &mem->region[0];
	v->desc = p.desc;
	v->avail = p.avail;
	v->used = p.used;
	v->num = (uint16_t)o->num;
	v->packed = o->packed;
	v->indirect = o->indirect;
	v->event_idx = o->event_idx;
	v->fresh = true;
	return o->packed ? open_packed(v, o, err) : open_split(v, o, err);
}

uint32_t vring_base(const struct vring *v)
{
	uint32_t avail = v->next_avail, used = v->used_idx;

	if (!v->packed)
		return avail;
	return avail | (v->avail_wrap ? BASE_WRAP : 0) | used << 16 | (v->used_wrap ? BASE_WRAP << 16 : 0);
}

/* ---- buffers ---- */

__attribute__((noinline)) struct iovec *gather_far(struct vring *v, struct iovec *iov, struct iovec *next,
						   struct iovec *end, uint64_t addr, uint32_t len)
{
	uint64_t at = addr, left = len, off, sum;

	if (!len) {
		vring_fault(v, "a buffer of no bytes");
		return NULL;
	}
	if (u64_add(addr, len, &sum)) {
		vring_fault(v, "a buffer of %u bytes at 0x%" PRIx64 " wraps around", len, addr);
		return NULL;
	}
	while (left) {
		const struct gmem_region *r = gmem_region_at(v->mem, at, &off);
		uint64_t part;

		if (!r) {
			vring_fault(v, "a buffer of %u bytes at 0x%" PRIx64 " is not in the guest's memory",
				    len, addr);
			return NULL;
		}
		if (next == end) {
			vring_fault(v, "a request of more than %u buffers, or a chain that loops",
				    (unsigned)(end - iov));
			return NULL;
		}
		part = MIN(left, r->len - off);
		next->iov_base = r->host + off;
		next++->iov_len = part;
		v->near = r;
		at += part;
		left -= part;
	}
	return next;
}

const uint8_t *far_table(struct vring *v, uint64_t addr, uint32_t len, bool has_next)
{
	const struct gmem_region *r;
	uint64_t off;

	if (!v->indirect)
		vring_fault(v, "an indirect descriptor, which was not negotiated");
	else if (has_next)
		vring_fault(v, "an indirect descriptor with a next one");
	else if (!len || len % DESC_LEN)
		vring_fault(v, "an indirect table of %u bytes", len);
	else if (!(r = gmem_region_at(v->mem, addr, &off)) || len > r->len - off)
		vring_fault(v,
			    "an indirect table of %u bytes at 0x%" PRIx64
			    " is not in one region of the guest's memory",
			    len, addr);
	else
		return r->host + off;
	return NULL;
}
