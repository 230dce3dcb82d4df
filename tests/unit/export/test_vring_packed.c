/* SPDX-License-Identifier: MIT */
/*
 * test_vring_packed.c - the packed ring over plain memory: what a driver may do, and what a hostile one tries
 *
 * Guest memory is an array; the driver here is written from the specification, once more.
 */
#include <endian.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "export/vhost-user-blk/vring.h"

#define DESC_F_NEXT 1
#define DESC_F_WRITE 2
#define DESC_F_INDIRECT 4
#define DESC_F_AVAIL 0x80
#define DESC_F_USED 0x8000

#define EVENT_ENABLE 0
#define EVENT_DISABLE 1
#define EVENT_DESC 2

struct driver_desc {
	uint64_t addr;
	uint32_t len;
	uint16_t id, flags;
};

struct driver_event {
	uint16_t pos, flags;
};

#define NUM 12 /* a packed ring need not be a power of two */
#define MEM 0x10000u
#define USER_ADDR UINT64_C(0x7f0000000000)
#define DESC_AT 0
#define DRIVER_AT 0x1000
#define DEVICE_AT 0x2000
#define TABLE_AT 0x3000
#define DATA_AT 0x8000

static struct {
	uint8_t bytes[MEM] __attribute__((aligned(4096)));
	struct gmem mem;
	struct vring ring;
	struct driver_desc *desc;
	struct driver_event *driver, *device;

	/* the driver's place, and where it looks for used ones */
	unsigned next, used;
	bool wrap, used_wrap;

	struct iovec iov[64];
	struct vring_chain chain;
} g;

static const struct vring_addr ring_addr = { USER_ADDR + DESC_AT, USER_ADDR + DRIVER_AT,
					     USER_ADDR + DEVICE_AT };

static void open_ring(bool indirect, bool event_idx, uint32_t base)
{
	const struct vring_opts o = {
		.num = NUM, .base = base, .packed = true, .indirect = indirect, .event_idx = event_idx
	};
	struct varve_error err;

	if (vring_open(&g.ring, &g.mem, &ring_addr, &o, &err) < 0)
		fail_msg("%s", err.message);
}

static int setup(void **state)
{
	(void)state;
	memset(&g, 0, sizeof(g));
	g.mem.nr_regions = 1;
	g.mem.region[0] = (struct gmem_region){ .user_addr = USER_ADDR, .len = MEM, .host = g.bytes };
	g.desc = (struct driver_desc *)(g.bytes + DESC_AT);
	g.driver = (struct driver_event *)(g.bytes + DRIVER_AT);
	g.device = (struct driver_event *)(g.bytes + DEVICE_AT);
	g.wrap = g.used_wrap = true;
	open_ring(true, true, 0x8000);
	return 0;
}

static uint16_t mine(void)
{
	return g.wrap ? DESC_F_AVAIL : DESC_F_USED;
}

static void put(uint64_t addr, uint32_t len, uint16_t id, uint16_t flags)
{
	g.desc[g.next] =
		(struct driver_desc){ htole64(addr), htole32(len), htole16(id), htole16(flags | mine()) };
	if (++g.next == NUM) {
		g.next = 0;
		g.wrap = !g.wrap;
	}
}

/* A request of nr descriptors, the last one writable. */
static void offer(unsigned nr, uint16_t id)
{
	for (unsigned i = 0; i < nr; i++)
		put(DATA_AT + 64 * i, 16 + i, id, i + 1 < nr ? DESC_F_NEXT : DESC_F_WRITE);
}

static uint16_t take(void)
{
	uint16_t slot = UINT16_MAX;

	assert_int_equal(vring_next(&g.ring, &slot), 1);
	if (vring_chain(&g.ring, slot, g.iov, 64, &g.chain) < 0)
		fail_msg("%s", g.ring.fault);
	return slot;
}

/* The driver finds the next used one. */
static void expect_used(uint16_t id, uint32_t len, unsigned nr)
{
	struct driver_desc *d = &g.desc[g.used];
	uint16_t flags = le16toh(d->flags);

	assert_int_equal(!!(flags & DESC_F_AVAIL), g.used_wrap);
	assert_int_equal(!!(flags & DESC_F_USED), g.used_wrap);
	assert_int_equal(!!(flags & DESC_F_WRITE), len > 0);
	assert_int_equal(le16toh(d->id), id);
	assert_int_equal(le32toh(d->len), len);
	g.used += nr;
	if (g.used >= NUM) {
		g.used -= NUM;
		g.used_wrap = !g.used_wrap;
	}
}

static void expect_nothing_used(void)
{
	uint16_t flags = le16toh(g.desc[g.used].flags);

	assert_false(!!(flags & DESC_F_AVAIL) == g.used_wrap && !!(flags & DESC_F_USED) == g.used_wrap);
}

static void expect_fault(const char *why)
{
	uint16_t slot;
	int ret = vring_next(&g.ring, &slot);

	if (ret == 1)
		ret = vring_chain(&g.ring, slot, g.iov, 64, &g.chain);
	assert_int_equal(ret, -EPROTO);
	if (!strstr(g.ring.fault, why))
		fail_msg("the fault is \"%s\", expected something with \"%s\"", g.ring.fault, why);
}

/* ---- what a driver may do ---- */

static void an_empty_ring_gives_nothing(void **state)
{
	uint16_t slot;

	(void)state;
	assert_int_equal(vring_next(&g.ring, &slot), 0);
}

static void a_chain_is_collected_and_given_back_with_its_id(void **state)
{
	uint16_t slot;

	(void)state;
	put(DATA_AT, 16, 0, DESC_F_NEXT);
	put(DATA_AT + 0x100, 512, 0, DESC_F_NEXT | DESC_F_WRITE);
	put(DATA_AT + 0x400, 1, 0xbeef, DESC_F_WRITE); /* the id of the last one counts, and may be any */
	slot = take();
	assert_int_equal(g.chain.nr_out, 1);
	assert_int_equal(g.chain.nr_in, 2);
	assert_int_equal(g.chain.out_len, 16);
	assert_int_equal(g.chain.in_len, 513);
	assert_ptr_equal(g.iov[1].iov_base, g.bytes + DATA_AT + 0x100);
	vring_push(&g.ring, slot, 513);
	expect_nothing_used();
	assert_true(vring_publish(&g.ring));
	expect_used(0xbeef, 513, 3);
	assert_false(vring_publish(&g.ring));
}

static void requests_end_in_any_order_and_ids_may_be_equal(void **state)
{
	uint16_t slot[3];

	(void)state;
	offer(2, 7);
	offer(1, 7);
	offer(3, 9);
	for (unsigned i = 0; i < 3; i++)
		slot[i] = take();
	vring_push(&g.ring, slot[2], 3);
	vring_push(&g.ring, slot[0], 1);
	vring_publish(&g.ring);
	expect_used(9, 3, 3);
	expect_used(7, 1, 2);
	expect_nothing_used();
	vring_push(&g.ring, slot[1], 2);
	vring_publish(&g.ring);
	expect_used(7, 2, 1);
}

static void a_chain_goes_on_over_the_end_of_the_ring(void **state)
{
	(void)state;
	for (unsigned lap = 0; lap < 50; lap++) {
		unsigned nr = 1 + lap % 7;
		uint16_t slot;

		offer(nr, (uint16_t)lap);
		slot = take();
		assert_int_equal(g.chain.nr_out + g.chain.nr_in, nr);
		vring_push(&g.ring, slot, lap);
		vring_publish(&g.ring);
		expect_used((uint16_t)lap, lap, nr);
		assert_int_equal(vring_next(&g.ring, &slot), 0);
	}
}

static void a_chain_may_be_as_long_as_the_ring(void **state)
{
	uint16_t slot;

	(void)state;
	offer(NUM, 3);
	slot = take();
	vring_push(&g.ring, slot, 1);
	vring_publish(&g.ring);
	expect_used(3, 1, NUM);
	offer(NUM, 4);
	take();
}

static void an_indirect_table_is_one_descriptor(void **state)
{
	struct driver_desc *t = (struct driver_desc *)(g.bytes + TABLE_AT);
	uint16_t slot;

	(void)state;
	/* In a table only the direction counts: no ids, no "next". */
	for (unsigned i = 0; i < 40; i++)
		t[i] = (struct driver_desc){ htole64(DATA_AT + i), htole32(1), htole16(0x1234),
					     htole16(i > 1 ? DESC_F_WRITE : 0) };
	put(TABLE_AT, 40 * 16, 5, DESC_F_INDIRECT);
	offer(1, 6);
	slot = take();
	assert_int_equal(g.chain.nr_out, 2);
	assert_int_equal(g.chain.nr_in, 38);
	vring_push(&g.ring, slot, 38);
	vring_publish(&g.ring);
	expect_used(5, 38, 1);
	take();
}

static void a_ring_goes_on_where_it_was_stopped(void **state)
{
	uint32_t base;
	uint16_t slot;

	(void)state;
	for (unsigned i = 0; i < 3; i++) {
		offer(5, 1);
		slot = take();
		vring_push(&g.ring, slot, 1);
		vring_publish(&g.ring);
		expect_used(1, 1, 5);
	}
	base = vring_base(&g.ring);
	assert_int_equal(base, 0x00030003); /* 15 descriptors: place 3, second lap */
	offer(2, 2);
	open_ring(true, true, base);
	slot = take();
	vring_push(&g.ring, slot, 9);
	vring_publish(&g.ring);
	expect_used(2, 9, 2);
	/* A front end that tells of the available place only. */
	open_ring(true, true, vring_base(&g.ring) & 0xffff);
	assert_int_equal(vring_base(&g.ring), 0x00050005);
}

/* ---- notifications ---- */

static void kicks_are_asked_for_only_when_the_ring_is_empty(void **state)
{
	(void)state;
	offer(1, 1);
	take();
	assert_false(vring_kick_on(&g.ring));
	assert_int_equal(le16toh(g.device->flags), EVENT_DESC);
	assert_int_equal(le16toh(g.device->pos), 0x8001);
	offer(1, 2);
	assert_true(vring_kick_on(&g.ring)); /* came in between: no kick will tell */
	take();

	open_ring(true, false, 0x80028002);
	vring_kick_off(&g.ring);
	assert_int_equal(le16toh(g.device->flags), EVENT_DISABLE);
	assert_false(vring_kick_on(&g.ring));
	assert_int_equal(le16toh(g.device->flags), EVENT_ENABLE);
	offer(1, 3);
	assert_true(vring_kick_on(&g.ring));
	assert_int_equal(le16toh(g.device->flags), EVENT_DISABLE);
}

/* Gives back n requests of one descriptor each at once. */
static bool complete(unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		offer(1, 0);
	for (unsigned i = 0; i < n; i++)
		vring_push(&g.ring, take(), 1);
	return vring_publish(&g.ring);
}

static void the_driver_is_called_as_it_asked(void **state)
{
	(void)state;
	g.driver->flags = htole16(EVENT_DISABLE);
	assert_true(complete(1)); /* the first one after a start always */
	assert_false(complete(1));
	g.driver->flags = htole16(EVENT_ENABLE);
	assert_true(complete(1));
}

/* From every place in both laps: called exactly when the descriptor that it waits for is among those. */
static void event_positions_call_exactly_when_wanted(void **state)
{
	(void)state;
	for (unsigned start = 0; start < 2 * NUM; start++) {
		for (unsigned wait = 0; wait < 2 * NUM; wait++) {
			for (unsigned n = 1; n <= NUM; n++) {
				unsigned at = (start + wait) % (2 * NUM);
				bool want = wait < n;

				setup(NULL);
				for (unsigned i = 0; i < start; i++)
					complete(1);
				if (!start)
					g.ring.fresh = false;
				g.driver->flags = htole16(EVENT_DESC);
				g.driver->pos = htole16((uint16_t)(at % NUM | (at < NUM ? 0x8000 : 0)));
				if (wait > NUM)
					continue; /* behind us: nobody waits there */
				if (complete(n) != want)
					fail_msg("from %u, %u completions, waiting for %u: %scalled", start,
						 n, wait, want ? "not " : "");
			}
		}
	}
}

/* ---- what a hostile one tries ---- */

static void more_descriptors_than_the_ring_has_are_a_fault(void **state)
{
	(void)state;
	/* All are in flight, and all are made available again. */
	for (unsigned i = 0; i < NUM; i++)
		offer(1, (uint16_t)i);
	for (unsigned i = 0; i < NUM; i++)
		take();
	offer(1, 0);
	expect_fault("all 12 are in flight");
}

static void a_chain_longer_than_what_is_left_is_a_fault(void **state)
{
	(void)state;
	offer(5, 1);
	take();
	for (unsigned i = 0; i < NUM; i++)
		put(DATA_AT, 16, 1, DESC_F_NEXT);
	expect_fault("has left (7)");
}

static void a_chain_around_the_whole_ring_is_a_fault(void **state)
{
	(void)state;
	for (unsigned i = 0; i < NUM; i++)
		put(DATA_AT, 16, 1, DESC_F_NEXT);
	expect_fault("longer than what the ring");
}

static void indirect_where_it_may_not_be_is_a_fault(void **state)
{
	struct driver_desc *t = (struct driver_desc *)(g.bytes + TABLE_AT);

	(void)state;
	t[0] = (struct driver_desc){ htole64(TABLE_AT), htole32(16), 0, htole16(DESC_F_INDIRECT) };
	put(TABLE_AT, 16, 1, DESC_F_INDIRECT);
	expect_fault("inside an indirect table");
	setup(NULL);
	put(DESC_AT, 16, 1, DESC_F_INDIRECT); /* the ring itself as its table */
	expect_fault("inside an indirect table");
	setup(NULL);
	put(TABLE_AT, 16, 1, DESC_F_INDIRECT | DESC_F_NEXT);
	expect_fault("with a next one");
	setup(NULL);
	open_ring(false, true, 0x8000);
	put(TABLE_AT, 16, 1, DESC_F_INDIRECT);
	expect_fault("not negotiated");
}

static void indirect_tables_of_bad_length_are_faults(void **state)
{
	static const uint32_t lens[] = { 0, 1, 15, 17, UINT32_MAX };

	for (unsigned i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
		setup(state);
		put(TABLE_AT, lens[i], 1, DESC_F_INDIRECT);
		expect_fault("an indirect table of");
	}
	setup(state);
	put(TABLE_AT, 0xfffffff0, 1, DESC_F_INDIRECT);
	expect_fault("not in one region");
	setup(state);
	put(MEM - 16, 32, 1, DESC_F_INDIRECT);
	expect_fault("not in one region");
}

static void too_many_buffers_are_a_fault(void **state)
{
	struct driver_desc *t = (struct driver_desc *)(g.bytes + TABLE_AT);

	(void)state;
	for (unsigned i = 0; i < 65; i++)
		t[i] = (struct driver_desc){ htole64(DATA_AT), htole32(1), 0, 0 };
	put(TABLE_AT, 65 * 16, 1, DESC_F_INDIRECT);
	expect_fault("more than 64 buffers");
}

static void buffers_that_are_none_are_faults(void **state)
{
	(void)state;
	put(DATA_AT, 0, 1, 0);
	expect_fault("no bytes");
	setup(NULL);
	put(MEM - 1, 2, 1, 0);
	expect_fault("not in the guest's memory");
	setup(NULL);
	put(UINT64_MAX, 2, 1, 0);
	expect_fault("wraps around");
	setup(NULL);
	put(DATA_AT, 16, 1, DESC_F_NEXT | DESC_F_WRITE);
	put(DATA_AT, 16, 1, 0);
	expect_fault("behind a writable one");
}

static void places_outside_the_ring_do_not_open(void **state)
{
	static const uint32_t bad[] = { NUM, 0x8000 | NUM, 0x7fff, NUM << 16 | 1, 0xffff0000u };
	struct varve_error err;

	(void)state;
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		const struct vring_opts o = { .num = NUM, .base = bad[i], .packed = true };

		assert_true(vring_open(&g.ring, &g.mem, &ring_addr, &o, &err) < 0);
		assert_non_null(strstr(err.message, "not a position"));
	}
}

static void parts_outside_memory_or_misaligned_do_not_open(void **state)
{
	static const struct {
		struct vring_addr addr;
		const char *why;
	} bad[] = {
		{ { USER_ADDR + MEM - 16, USER_ADDR + DRIVER_AT, USER_ADDR + DEVICE_AT }, "descriptor ring" },
		{ { USER_ADDR + 8, USER_ADDR + DRIVER_AT, USER_ADDR + DEVICE_AT }, "aligned to 16" },
		{ { USER_ADDR, USER_ADDR + MEM - 2, USER_ADDR + DEVICE_AT }, "driver event" },
		{ { USER_ADDR, USER_ADDR + 2, USER_ADDR + DEVICE_AT }, "aligned to 4" },
		{ { USER_ADDR, USER_ADDR + DRIVER_AT, USER_ADDR + MEM - 2 }, "device event" },
		{ { USER_ADDR, USER_ADDR + DRIVER_AT, USER_ADDR + 2 }, "aligned to 4" },
	};
	struct varve_error err;

	(void)state;
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		assert_true(vring_check(&g.mem, &bad[i].addr, NUM, true, &err) < 0);
		if (!strstr(err.message, bad[i].why))
			fail_msg("case %u: \"%s\"", i, err.message);
	}
}

#define TEST(name) cmocka_unit_test_setup(name, setup)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(an_empty_ring_gives_nothing),
		TEST(a_chain_is_collected_and_given_back_with_its_id),
		TEST(requests_end_in_any_order_and_ids_may_be_equal),
		TEST(a_chain_goes_on_over_the_end_of_the_ring),
		TEST(a_chain_may_be_as_long_as_the_ring),
		TEST(an_indirect_table_is_one_descriptor),
		TEST(a_ring_goes_on_where_it_was_stopped),
		TEST(kicks_are_asked_for_only_when_the_ring_is_empty),
		TEST(the_driver_is_called_as_it_asked),
		TEST(event_positions_call_exactly_when_wanted),
		TEST(more_descriptors_than_the_ring_has_are_a_fault),
		TEST(a_chain_longer_than_what_is_left_is_a_fault),
		TEST(a_chain_around_the_whole_ring_is_a_fault),
		TEST(indirect_where_it_may_not_be_is_a_fault),
		TEST(indirect_tables_of_bad_length_are_faults),
		TEST(too_many_buffers_are_a_fault),
		TEST(buffers_that_are_none_are_faults),
		TEST(places_outside_the_ring_do_not_open),
		TEST(parts_outside_memory_or_misaligned_do_not_open),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
