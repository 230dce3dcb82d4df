/* SPDX-License-Identifier: MIT */
/*
 * test_rings_packed.c - guests that lie in packed rings: each ends in a broken ring that its front end can
 * reset, while the other rings of the disk, and another disk on the same threads, go on
 */
#include <linux/virtio_config.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "served.h"

/* Room in guest memory that the lies use; set before each. */
static struct vu_ring *ring;
static uint64_t room_addr;
static uint8_t *room; /* 64 KiB */

#define HEADER (room_addr + 0x100)
#define STATUS (room_addr + 0x200)
#define TABLE (room_addr + 0x1000)
#define DATA (room_addr + 0x8000)

#define NEXT VRING_DESC_F_NEXT
#define WRITE VRING_DESC_F_WRITE
#define INDIRECT VRING_DESC_F_INDIRECT

static struct vu_front_opts packed_opts(unsigned disk, unsigned nr_queues)
{
	struct vu_front_opts o = served_front_opts(disk, nr_queues);

	o.features |= UINT64_C(1) << VIRTIO_F_RING_PACKED;
	return o;
}

static void connect_packed(struct vu_front *f, unsigned disk, unsigned nr_queues)
{
	struct vu_front_opts o = packed_opts(disk, nr_queues);

	must(f, vu_front_open(f, &o));
	assert_true(f->ring[0].packed);
}

/* Descriptor i behind the driver's place, not beyond the end of the ring. */
static void put(unsigned i, uint64_t addr, uint32_t len, uint16_t flags)
{
	vu_raw_packed_desc(ring, ring->next_avail + i, addr, len, 5, flags | vu_raw_packed_lap(ring));
}

static void put_in_table(unsigned i, uint64_t addr, uint32_t len, uint16_t flags)
{
	struct vring_packed_desc *t = (struct vring_packed_desc *)(room + 0x1000) + i;

	*t = (struct vring_packed_desc){ .addr = htole64(addr),
					 .len = htole32(len),
					 .flags = htole16(flags) };
}

/* A request of header, 512 bytes and status; the one descriptor that a lie spoils is given instead. */
static void request_but(unsigned which, uint64_t addr, uint32_t len, uint16_t flags)
{
	const struct {
		uint64_t addr;
		uint32_t len;
		uint16_t flags;
	} honest[3] = { { HEADER, 16, NEXT }, { DATA, 512, NEXT | WRITE }, { STATUS, 1, WRITE } };

	/* The first one last: it is what makes the request available. */
	for (unsigned i = 3; i-- > 0;) {
		if (i == which)
			put(i, addr, len, flags);
		else
			put(i, honest[i].addr, honest[i].len, honest[i].flags);
	}
}

static void address_outside(void)
{
	request_but(1, UINT64_C(1) << 60, 512, NEXT | WRITE);
}

static void address_that_wraps(void)
{
	request_but(1, UINT64_MAX - 100, 512, NEXT | WRITE);
}

static void buffer_over_the_end(void)
{
	request_but(1, room_addr, UINT32_MAX - 1000, NEXT | WRITE);
}

static void buffer_of_nothing(void)
{
	request_but(1, DATA, 0, NEXT | WRITE);
}

static void readable_behind_writable(void)
{
	request_but(2, STATUS, 1, 0);
}

static void no_status(void)
{
	put(0, HEADER, 16, 0);
}

static void read_only_status(void)
{
	request_but(2, STATUS, 1, 0);
	put(1, DATA, 512, NEXT); /* a write: all of it is readable */
}

static void short_header(void)
{
	request_but(0, HEADER, 15, NEXT);
}

static void no_header(void)
{
	put(0, STATUS, 1, WRITE);
}

static void chain_without_end(void)
{
	for (unsigned i = ring->len - ring->next_avail; i-- > 0;)
		put(i, HEADER, 16, NEXT);
	/* The rest is in the next lap, where the device has to stop looking. */
	for (unsigned i = 0; i < ring->next_avail; i++)
		vu_raw_packed_desc(ring, i, HEADER, 16, 5, NEXT);
}

static void indirect_of_odd_length(void)
{
	put(0, TABLE, 24, INDIRECT);
}

static void indirect_of_nothing(void)
{
	put(0, TABLE, 0, INDIRECT);
}

static void indirect_outside(void)
{
	put(0, UINT64_C(1) << 50, 32, INDIRECT);
}

static void indirect_over_the_end(void)
{
	put(0, TABLE, 0xfffffff0, INDIRECT);
}

static void indirect_with_next(void)
{
	put_in_table(0, HEADER, 16, 0);
	put(0, TABLE, 16, INDIRECT | NEXT);
}

static void indirect_in_indirect(void)
{
	put_in_table(0, HEADER, 16, 0);
	put_in_table(1, TABLE, 32, INDIRECT);
	put(0, TABLE, 32, INDIRECT);
}

static void indirect_of_too_many(void)
{
	for (unsigned i = 0; i < 300; i++)
		put_in_table(i, HEADER, 16, 0);
	put_in_table(300, STATUS, 1, WRITE);
	put(0, TABLE, 301 * 16, INDIRECT);
}

static const struct lie {
	const char *name;
	void (*tell)(void);
	const char *logged;
} lies[] = {
	{ "an address outside memory", address_outside, "not in the guest's memory" },
	{ "an address that wraps", address_that_wraps, "wraps around" },
	{ "a buffer over the end of memory", buffer_over_the_end, "not in the guest's memory" },
	{ "a buffer of no bytes", buffer_of_nothing, "no bytes" },
	{ "a readable buffer behind a writable one", readable_behind_writable, "behind a writable one" },
	{ "no place for a status", no_status, "status" },
	{ "a read-only status byte", read_only_status, "for its status" },
	{ "a short header", short_header, "header" },
	{ "no header", no_header, "header" },
	{ "a chain without an end", chain_without_end, "longer than what the ring of 128 has left" },
	{ "an indirect table of odd length", indirect_of_odd_length, "indirect table of 24 bytes" },
	{ "an indirect table of nothing", indirect_of_nothing, "indirect table of 0 bytes" },
	{ "an indirect table outside memory", indirect_outside, "not in one region" },
	{ "an indirect table over the end of memory", indirect_over_the_end, "not in one region" },
	{ "an indirect descriptor with a next one", indirect_with_next, "with a next one" },
	{ "an indirect table in an indirect table", indirect_in_indirect, "inside an indirect table" },
	{ "an indirect table of too many buffers", indirect_of_too_many, "more than 256 buffers" },
};

static void prepare(struct vu_front *f, unsigned q)
{
	ring = &f->ring[q];
	room = vu_mem_alloc(&f->mem, 0x10000, 4096, &room_addr);
	assert_non_null(room);
}

static void expect_broken(struct vu_front *f, unsigned q, const char *name)
{
	enum vu_raw_end end = vu_raw_wait_broken(f, q, SERVED_MS);

	if (end != VU_RAW_ERR_SIGNALLED)
		fail_msg("%s: %s", name,
			 end == VU_RAW_CLOSED ? "the connection was closed" : "nothing happened");
}

static void reset(struct vu_front *f, unsigned q)
{
	must(f, vu_front_stop_queue(f, q, NULL));
	vu_raw_take_err(&f->ring[q]);
	vu_ring_set_packed(&f->ring[q], true);
	must(f, vu_front_start_queue(f, q));
}

static void a_lie_breaks_one_ring_which_can_be_reset(void **state)
{
	struct vu_front other;

	(void)state;
	connect_packed(&other, 1, 2);
	for (unsigned i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
		struct vu_front f;

		connect_packed(&f, 0, 4);
		served_io_works(&f, 2);
		prepare(&f, 2);
		lies[i].tell();
		vu_raw_kick(ring);
		expect_broken(&f, 2, lies[i].name);
		if (served_logged(lies[i].logged) == 0)
			fail_msg("%s: the log does not say \"%s\"", lies[i].name, lies[i].logged);
		served_io_works(&f, 0);
		served_io_works(&f, 3);
		served_io_works(&other, 0);
		served_io_works(&other, 1);
		reset(&f, 2);
		served_io_works(&f, 2);
		vu_front_close(&f);
	}
	vu_front_close(&other);
}

/* The whole ring is in flight, and made available once more: no more requests than places. */
static void descriptors_in_flight_cannot_be_offered_again(void **state)
{
	struct vu_front f;

	(void)state;
	connect_packed(&f, 0, 2);
	prepare(&f, 1);
	served_shut(0);
	for (unsigned i = 0; i < ring->len; i++)
		put_in_table(2 * i, HEADER, 16, 0), put_in_table(2 * i + 1, STATUS, 1, WRITE);
	memset(room + 0x100, 0, 16);
	room[0x100] = 4; /* flush */
	for (unsigned i = 0; i < ring->len; i++)
		put(i, TABLE + 32 * i, 32, INDIRECT);
	vu_raw_kick(ring);
	served_wait_held(0, ring->len);
	ring->avail_wrap = !ring->avail_wrap;
	put(0, TABLE, 32, INDIRECT);
	vu_raw_kick(ring);
	expect_broken(&f, 1, "the same descriptor twice");
	assert_true(served_logged("all 128 are in flight") > 0);
	served_open(0);
	reset(&f, 1);
	served_io_works(&f, 1);
	vu_front_close(&f);
}

/* A guest that changes everything while it is being looked at, for a while, on two rings. */
static void a_guest_that_scribbles_all_the_time_harms_only_itself(void **state)
{
	struct vu_front f, other;
	uint64_t seed = 7;

	(void)state;
	connect_packed(&f, 0, 2);
	connect_packed(&other, 1, 2);
	prepare(&f, 0);
	for (unsigned round = 0; round < 200; round++) {
		for (unsigned k = 0; k < 50; k++) {
			uint64_t x = vu_random(&seed);

			vu_raw_packed_desc(
				ring, x % 8, x % 5 ? room_addr + x % 60000 : x, x % 3 ? 512 : 16,
				(uint16_t)(x >> 20),
				(uint16_t)((x % 8) | (x % 11 ? vu_raw_packed_lap(ring) : x & 0x8080)));
			if (x % 4 == 0)
				vu_raw_kick(ring);
		}
		if (round % 20 == 0)
			served_io_works(&other, round / 20 % 2);
		reset(&f, 0);
		if (round % 20 == 10)
			served_io_works(&f, 0);
	}
	vu_front_close(&f);
	vu_front_close(&other);
}

/* ---- what a guest may do ---- */

static void every_layout_works(void **state)
{
	static const enum vu_indirect ways[] = { VU_DIRECT, VU_INDIRECT, VU_INDIRECT_MIXED };

	(void)state;
	for (unsigned event_idx = 0; event_idx < 2; event_idx++) {
		for (unsigned way = 0; way < 3; way++) {
			struct vu_front_opts o = packed_opts(0, 2);
			struct vu_front f;
			struct load l;

			o.indirect = ways[way];
			o.queue_len = 128;
			if (!event_idx)
				o.features &= ~(UINT64_C(1) << VIRTIO_RING_F_EVENT_IDX);
			must(&f, vu_front_open(&f, &o));
			/* Round the ring several times, in batches and alone. */
			for (unsigned i = 0; i < 20; i++) {
				offer_writes(&l, &f, 0, (uint8_t)i);
				wait_writes(&l, LOAD);
				check_writes(&l, (uint8_t)i);
				end_load(&l);
				if (i % 4 ==
				    3) { /* the pool takes memory that is given back at the end only */
					vu_front_close(&f);
					must(&f, vu_front_open(&f, &o));
				}
			}
			vu_front_close(&f);
		}
	}
}

/* GET_VRING_BASE tells the place in the ring, and from there it goes on. */
static void a_ring_goes_on_where_it_was_stopped(void **state)
{
	struct vu_front f;
	uint32_t base;

	(void)state;
	connect_packed(&f, 0, 1);
	for (unsigned i = 0; i < 100; i++) {
		served_io_works(&f, 0);
		must(&f, vu_front_stop_queue(&f, 0, &base));
		assert_int_equal(base, vu_ring_end(&f.ring[0]));
		must(&f, vu_front_start_queue(&f, 0));
	}
	vu_front_close(&f);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, served_setup, served_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(every_layout_works),
		TEST(a_ring_goes_on_where_it_was_stopped),
		TEST(a_lie_breaks_one_ring_which_can_be_reset),
		TEST(descriptors_in_flight_cannot_be_offered_again),
		TEST(a_guest_that_scribbles_all_the_time_harms_only_itself),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
