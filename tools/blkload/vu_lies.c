/* SPDX-License-Identifier: MIT */
/*
 * vu_lies.c - what a guest must not put into a split ring, by name
 */
#include "vu_lies.h"

#include <string.h>

#include "vu_raw.h"

#define HEADER (l->room_addr + VU_LIAR_HEADER)
#define STATUS (l->room_addr + VU_LIAR_STATUS)
#define TABLE (l->room_addr + VU_LIAR_TABLE)
#define DATA (l->room_addr + VU_LIAR_DATA)

#define NEXT VRING_DESC_F_NEXT
#define WRITE VRING_DESC_F_WRITE
#define INDIRECT VRING_DESC_F_INDIRECT

static struct vring_desc *table(const struct vu_liar *l)
{
	return (struct vring_desc *)(l->room + 0x1000);
}

static void honest_request(const struct vu_liar *l)
{
	memset(l->room, 0, 0x10000);
	vu_raw_desc(l->ring, 0, HEADER, 16, NEXT, 1);
	vu_raw_desc(l->ring, 1, DATA, 512, NEXT | WRITE, 2);
	vu_raw_desc(l->ring, 2, STATUS, 1, WRITE, 0);
}

static void head_outside(const struct vu_liar *l)
{
	vu_raw_offer(l->ring, l->ring->len);
}

static void head_far_outside(const struct vu_liar *l)
{
	vu_raw_offer(l->ring, 0xffff);
}

static void index_jumps(const struct vu_liar *l)
{
	vu_raw_avail_idx(l->ring, (uint16_t)(l->ring->next_avail + l->ring->len + 1));
}

static void index_goes_back(const struct vu_liar *l)
{
	vu_raw_avail_idx(l->ring, (uint16_t)(l->ring->next_avail - 1));
}

static void chain_of_itself(const struct vu_liar *l)
{
	vu_raw_desc(l->ring, 0, HEADER, 16, NEXT, 0);
	vu_raw_offer(l->ring, 0);
}

static void chain_in_a_circle(const struct vu_liar *l)
{
	vu_raw_desc(l->ring, 2, DATA, 16, NEXT | WRITE, 1);
	vu_raw_offer(l->ring, 0);
}

static void next_outside(const struct vu_liar *l)
{
	vu_raw_desc(l->ring, 0, HEADER, 16, NEXT, l->ring->len);
	vu_raw_offer(l->ring, 0);
}

static void address_outside(const struct vu_liar *l)
{
	vu_raw_desc(l->ring, 1, UINT64_C(1) << 60, 512, NEXT | WRITE, 2);
	vu_raw_offer(l->ring, 0);
}

static void address_that_wraps(const struct vu_liar *l)
{
	vu_raw_desc(l->ring, 1, UINT64_MAX - 100, 512, NEXT | WRITE, 2);
	vu_raw_offer(l->ring, 0);
}

static void buffer_over_the_end(const struct vu_liar *l)
{
	vu_raw_desc(l->ring, 1, l->room_addr, UINT32_MAX - 1000, NEXT | WRITE, 2);
	vu_raw_offer(l->ring, 0);
}

static void buffer_of_nothing(const struct vu_liar *l)
{
	vu_raw_desc(l->ring, 1, DATA, 0, NEXT | WRITE, 2);
	vu_raw_offer(l->ring, 0);
}

static void readable_behind_writable(const struct vu_liar *l)
{
	vu_raw_desc(l->ring, 2, STATUS, 1, 0, 0);
	vu_raw_offer(l->ring, 0);
}

static void no_status(const struct vu_liar *l)
{
	vu_raw_desc(l->ring, 0, HEADER, 16, 0, 0);
	vu_raw_offer(l->ring, 0);
}

static void read_only_status(const struct vu_liar *l)
{
	memset(l->room + 0x100, 0, 16);
	l->room[0x100] = 1; /* a write: all of it is readable, the byte for the status too */
	vu_raw_desc(l->ring, 1, DATA, 512, NEXT, 2);
	vu_raw_desc(l->ring, 2, STATUS, 1, 0, 0);
	vu_raw_offer(l->ring, 0);
}

static void ring_as_its_table(const struct vu_liar *l)
{
	vu_raw_desc(l->ring, 0, vu_mem_guest(l->mem, l->ring->desc), 16, INDIRECT, 0);
	vu_raw_offer(l->ring, 0);
}

static void short_header(const struct vu_liar *l)
{
	vu_raw_desc(l->ring, 0, HEADER, 15, NEXT, 2);
	vu_raw_offer(l->ring, 0);
}

static void no_header(const struct vu_liar *l)
{
	vu_raw_desc(l->ring, 0, STATUS, 1, WRITE, 0);
	vu_raw_offer(l->ring, 0);
}

static void indirect_of(const struct vu_liar *l, uint64_t addr, uint32_t len, uint16_t flags)
{
	vu_raw_desc(l->ring, 0, addr, len, INDIRECT | flags, 1);
	vu_raw_offer(l->ring, 0);
}

static void indirect_of_odd_length(const struct vu_liar *l)
{
	indirect_of(l, TABLE, 24, 0);
}

static void indirect_of_nothing(const struct vu_liar *l)
{
	indirect_of(l, TABLE, 0, 0);
}

static void indirect_outside(const struct vu_liar *l)
{
	indirect_of(l, UINT64_C(1) << 50, 32, 0);
}

static void indirect_over_the_end(const struct vu_liar *l)
{
	indirect_of(l, TABLE, 0xfffffff0, 0);
}

static void indirect_with_next(const struct vu_liar *l)
{
	vu_raw_table_desc(table(l), 0, HEADER, 16, 0, 0);
	indirect_of(l, TABLE, 16, NEXT);
}

static void indirect_in_indirect(const struct vu_liar *l)
{
	vu_raw_table_desc(table(l), 0, HEADER, 16, NEXT, 1);
	vu_raw_table_desc(table(l), 1, TABLE, 32, INDIRECT, 0);
	indirect_of(l, TABLE, 32, 0);
}

static void indirect_in_a_circle(const struct vu_liar *l)
{
	vu_raw_table_desc(table(l), 0, HEADER, 16, NEXT, 1);
	vu_raw_table_desc(table(l), 1, DATA, 16, NEXT, 0);
	indirect_of(l, TABLE, 32, 0);
}

static void indirect_of_too_many(const struct vu_liar *l)
{
	for (unsigned i = 0; i < 300; i++)
		vu_raw_table_desc(table(l), i, HEADER, 16, NEXT, (uint16_t)(i + 1));
	vu_raw_table_desc(table(l), 300, STATUS, 1, WRITE, 0);
	indirect_of(l, TABLE, 301 * 16, 0);
}

const struct vu_lie vu_lies[] = {
	{ "a head outside the table", head_outside },
	{ "a head far outside the table", head_far_outside },
	{ "an index that jumps", index_jumps },
	{ "an index that goes back", index_goes_back },
	{ "a chain of itself", chain_of_itself },
	{ "a chain in a circle", chain_in_a_circle },
	{ "a next descriptor outside the table", next_outside },
	{ "an address outside memory", address_outside },
	{ "an address that wraps", address_that_wraps },
	{ "a buffer over the end of memory", buffer_over_the_end },
	{ "a buffer of no bytes", buffer_of_nothing },
	{ "a readable buffer behind a writable one", readable_behind_writable },
	{ "no place for a status", no_status },
	{ "a read-only status byte", read_only_status },
	{ "the ring as its own indirect table", ring_as_its_table },
	{ "a short header", short_header },
	{ "no header", no_header },
	{ "an indirect table of odd length", indirect_of_odd_length },
	{ "an indirect table of nothing", indirect_of_nothing },
	{ "an indirect table outside memory", indirect_outside },
	{ "an indirect table over the end of memory", indirect_over_the_end },
	{ "an indirect descriptor with a next one", indirect_with_next },
	{ "an indirect table in an indirect table", indirect_in_indirect },
	{ "an indirect table in a circle", indirect_in_a_circle },
	{ "an indirect table of too many buffers", indirect_of_too_many },
};

const unsigned vu_nr_lies = sizeof(vu_lies) / sizeof(vu_lies[0]);

bool vu_liar_init(struct vu_liar *l, struct vu_front *f, unsigned q)
{
	l->ring = &f->ring[q];
	l->mem = &f->mem;
	l->room = vu_mem_alloc(&f->mem, VU_LIAR_ROOM, 4096, &l->room_addr);
	if (!l->room)
		return false;
	honest_request(l);
	return true;
}
