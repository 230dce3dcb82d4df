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

#include "export/vhost-user-blk/vring.h"

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

static_assert(sizeof(struct desc) == DESC_LEN, "a descriptor as it lies in memory");

static inline uint16_t load16(const uint16_t *p, int order)
{
	return le16toh(__atomic_load_n(p, order));
}

static inline void store16(uint16_t *p, uint16_t value, int order)
{
	__atomic_store_n(p, htole16(value), order);
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

/* The buffers found so far. No pointer to one is ever taken where speed counts: it lives in registers. */
struct gather {
	const struct gmem_region *region; /* of the last one */
	struct iovec *iov, *next, *end;
	uint64_t len;	  /* no overflow: less than 2^32 for each of a few hundred buffers */
	bool in;	  /* the last one is writable, and since then: */
	uint64_t out_len; /* bytes before the first writable one */
	unsigned nr_out;
};

static inline struct gather gather_begin(const struct vring *v, struct iovec *iov, unsigned max)
{
	return (struct gather){
		.region = &v->mem->region[v->region], .iov = iov, .next = iov, .end = iov + max
	};
}

/*
 * A buffer that the region of the last one does not hold, or for which there is no place: puts it into
 * next[0] and those behind. Returns what is next then, or NULL: a fault. v->region is the last one's.
 */
struct iovec *gather_far(struct vring *v, struct iovec *iov, struct iovec *next, struct iovec *end,
			 uint64_t addr, uint32_t len);

static inline __attribute__((always_inline)) int gather_add(struct vring *v, struct gather *g, uint64_t addr,
							    uint32_t len, bool in)
{
	uint64_t off;

	if (unlikely(!len))
		return vring_fault(v, "a buffer of no bytes");
	if (in != g->in) {
		if (unlikely(!in))
			return vring_fault(v, "a readable buffer behind a writable one");
		g->in = true;
		g->out_len = g->len;
		g->nr_out = (unsigned)(g->next - g->iov);
	}
	g->len += len;
	if (likely(gmem_region_has(g->region, addr, &off) && len <= g->region->len - off &&
		   g->next < g->end)) {
		g->next->iov_base = g->region->host + off;
		g->next++->iov_len = len;
		return 0;
	}
	g->next = gather_far(v, g->iov, g->next, g->end, addr, len);
	g->region = &v->mem->region[v->region];
	return g->next ? 0 : -EPROTO;
}

static inline __attribute__((always_inline)) int gather_end(struct vring *v, const struct gather *g,
							    struct vring_chain *ret_chain)
{
	unsigned nr = (unsigned)(g->next - g->iov);

	if (unlikely(g->len > VRING_CHAIN_LEN_MAX))
		return vring_fault(v, "a request of more than 2^32 - 1 bytes");
	ret_chain->nr_out = g->in ? g->nr_out : nr;
	ret_chain->nr_in = nr - ret_chain->nr_out;
	ret_chain->out_len = (uint32_t)(g->in ? g->out_len : g->len);
	ret_chain->in_len = (uint32_t)g->len - ret_chain->out_len;
	return 0;
}

/* The len bytes of the table that an indirect descriptor points to, of whole descriptors. NULL: a fault. */
const uint8_t *far_table(struct vring *v, uint64_t addr, uint32_t len, bool has_next);

static inline const uint8_t *indirect_table(struct vring *v, const struct gather *g, uint64_t addr,
					    uint32_t len, bool has_next)
{
	uint64_t off;

	if (likely(v->indirect && !has_next && len && !(len % DESC_LEN) &&
		   gmem_region_has(g->region, addr, &off) && len <= g->region->len - off))
		return g->region->host + off;
	return far_table(v, addr, len, has_next);
}

#endif
