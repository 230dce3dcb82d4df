/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/vring_parse.h - what reading split and packed chains has in common; for vring*.c only
 *
 * Owns:    nothing.
 * Assumes: see vring.h.
 * Never:   follows anything that the guest can make longer than the ring, its table or the iovec array.
 */
#ifndef VARVE_VUBLK_VRING_PARSE_H
#define VARVE_VUBLK_VRING_PARSE_H

#include <endian.h>
#include <string.h>

#include "export/vhost-user-blk/vring_types.h"

#define DESC_LEN 16u
#define DESC_NEXT 1u
#define DESC_WRITE 2u
#define DESC_INDIRECT 4u
#define DESC_AVAIL 0x80u /* these two: packed */
#define DESC_USED 0x8000u

/* The last four bytes of a descriptor: split: flags, next; packed: id, flags. */
struct desc {
	uint64_t addr;
	uint32_t len;
	uint16_t w6, w7;
};

/* As it lies in memory: little-endian, and for a table anywhere. */
struct desc_at {
	uint64_t addr;
	uint32_t len;
	uint16_t w6, w7;
} __attribute__((packed));

static_assert(sizeof(struct desc_at) == DESC_LEN, "see the spec");

static inline uint16_t load16(const uint16_t *p, int order)
{
	return le16toh(__atomic_load_n(p, order));
}

static inline void store16(uint16_t *p, uint16_t value, int order)
{
	__atomic_store_n(p, htole16(value), order);
}

/* One read of each word of guest memory: the compiler cannot go back to the original afterwards. */
static inline struct desc copy_desc(const uint8_t *p)
{
	const volatile struct desc_at *at = (const volatile struct desc_at *)p;

	return (struct desc){ le64toh(at->addr), le32toh(at->len), le16toh(at->w6), le16toh(at->w7) };
}

/*
 * The buffers found so far. No pointer to one is ever taken where speed counts: it lives in registers.
 *
 * Each takes an element of the array at least, so that the array's end is that of a chain that loops, too.
 */
struct gather {
	const struct gmem_region *near; /* of the last one */
	struct iovec *next, *end;
	struct iovec *in; /* the first writable one; NULL: none was met yet */
	uint64_t len;	  /* no overflow: less than 2^32 for each of a few hundred buffers */
	uint64_t out_len; /* bytes before the first writable one */
};

static inline struct gather gather_begin(const struct vring *v, struct iovec *iov, unsigned max)
{
	return (struct gather){ .near = v->near, .next = iov, .end = iov + max };
}

/* Are there any bytes, and has the region them all? *ret_off: from its start. */
static inline bool near_has(const struct gmem_region *r, uint64_t addr, uint32_t len, uint64_t *ret_off)
{
	uint64_t end;

	*ret_off = addr - r->guest_addr; /* wraps to something large below the region */
	return !u64_add(*ret_off, len, &end) && end <= r->len && len;
}

/*
 * A buffer that the region of the last one does not hold, that is empty, or for which there is no place: puts it into
 * next[0] and those behind. Returns what is next then, or NULL: a fault. v->near is the last one's.
 */
struct iovec *gather_far(struct vring *v, struct iovec *iov, struct iovec *next, struct iovec *end,
			 uint64_t addr, uint32_t len);

/* One buffer more. iov: as it was given to gather_begin(). */
static inline __attribute__((always_inline)) int gather_put(struct vring *v, struct gather *g, struct iovec *iov,
							    uint64_t addr, uint32_t len)
{
	uint64_t off;

	g->len += len;
	if (likely(near_has(g->near, addr, len, &off)) && likely(g->next != g->end)) {
		g->next->iov_base = g->near->host + off;
		g->next++->iov_len = len;
		return 0;
	}
	g->next = gather_far(v, iov, g->next, g->end, addr, len);
	g->near = v->near;
	return g->next ? 0 : -EPROTO;
}

/* The buffers from here on are writable. */
static inline void gather_in(struct gather *g)
{
	g->in = g->next;
	g->out_len = g->len;
}

/* After gather_in(). */
static inline __attribute__((always_inline)) int gather_end(struct vring *v, const struct gather *g,
							    const struct iovec *iov, struct vring_chain *ret_chain)
{
	if (unlikely(g->len > VRING_CHAIN_LEN_MAX)) {
		vring_fault(v, "a request of more than 2^32 - 1 bytes");
		return -EPROTO;
	}
	ret_chain->nr_out = (unsigned)(g->in - iov);
	ret_chain->nr_in = (unsigned)(g->next - g->in);
	ret_chain->out_len = (uint32_t)g->out_len;
	ret_chain->in_len = (uint32_t)(g->len - g->out_len);
	return 0;
}

/* The len bytes of the table that an indirect descriptor points to, of whole descriptors. NULL: a fault. */
const uint8_t *far_table(struct vring *v, uint64_t addr, uint32_t len, bool has_next);

static inline const uint8_t *indirect_table(struct vring *v, const struct gather *g, uint64_t addr,
					    uint32_t len, bool has_next)
{
	uint64_t off;

	if (likely(near_has(g->near, addr, len, &off)) && likely(v->indirect && !has_next && !(len % DESC_LEN)))
		return g->near->host + off;
	return far_table(v, addr, len, has_next);
}

#endif
