/* SPDX-License-Identifier: MIT */
/*
 * test_vring.c - the split ring over plain memory: what a driver may do, and what a hostile one tries
 *
 * Guest memory is an array, seen as two regions that touch (at guest address 0x10000) and a third one far
 * away.
 */
#include <endian.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "export/vhost-user-blk/vring.h"

/* The ring as the driver sees it: written down here once more, from the specification. */
#define DESC_F_NEXT 1
#define DESC_F_WRITE 2
#define DESC_F_INDIRECT 4
#define AVAIL_F_NO_INTERRUPT 1
#define USED_F_NO_NOTIFY 1

struct driver_desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags, next;
};

struct driver_avail {
	uint16_t flags, idx, ring[];
};

struct driver_used {
	uint16_t flags, idx;
	struct {
		uint32_t id, len;
	} ring[];
};

#define NUM 16
#define HALF 0x10000u
#define FAR_ADDR UINT64_C(0x4000000000)
#define USER_ADDR UINT64_C(0x7f0000000000)

/* Where things lie in the first region. */
#define DESC_AT 0
#define AVAIL_AT 0x1000
#define USED_AT 0x2000
#define TABLE_AT 0x3000
#define DATA_AT 0x8000

struct guest {
	uint8_t low[HALF] __attribute__((aligned(4096)));
	/* follows low for the guest, but is a mapping of its own */
	uint8_t high[HALF] __attribute__((aligned(4096)));
	uint8_t far[HALF] __attribute__((aligned(4096)));
	struct gmem mem;
	struct vring ring;
	struct driver_desc *desc;
	struct driver_avail *avail;
	struct driver_used *used;
	struct iovec iov[64];
	struct vring_chain chain;
};

static struct guest g;

static const struct vring_addr ring_addr = { USER_ADDR + DESC_AT, USER_ADDR + AVAIL_AT, USER_ADDR + USED_AT };

static void open_ring(bool indirect, bool event_idx, uint16_t base)
{
	const struct vring_opts o = { .num = NUM, .base = base, .indirect = indirect, .event_idx = event_idx };
	struct varve_error err;

	assert_int_equal(vring_open(&g.ring, &g.mem, &ring_addr, &o, &err), 0);
}

static int setup(void **state)
{
	(void)state;
	memset(&g, 0, sizeof(g));
	g.mem.nr_regions = 3;
	g.mem.region[0] =
		(struct gmem_region){ .guest_addr = 0, .user_addr = USER_ADDR, .len = HALF, .host = g.low };
	g.mem.region[1] = (struct gmem_region){
		.guest_addr = HALF, .user_addr = USER_ADDR + MiB(1), .len = HALF, .host = g.high
	};
	g.mem.region[2] = (struct gmem_region){
		.guest_addr = FAR_ADDR, .user_addr = USER_ADDR + MiB(2), .len = HALF, .host = g.far
	};
	g.desc = (struct driver_desc *)(g.low + DESC_AT);
	g.avail = (struct driver_avail *)(g.low + AVAIL_AT);
	g.used = (struct driver_used *)(g.low + USED_AT);
	open_ring(true, true, 0);
	return 0;
}

static void put_desc(struct driver_desc *d, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
	d->addr = htole64(addr);
	d->len = htole32(len);
	d->flags = htole16(flags);
	d->next = htole16(next);
}

static void offer(uint16_t head)
{
	uint16_t idx = le16toh(g.avail->idx);

	g.avail->ring[idx % NUM] = htole16(head);
	g.avail->idx = htole16((uint16_t)(idx + 1));
}

static uint16_t take(void)
{
	uint16_t head = UINT16_MAX;

	assert_int_equal(vring_next(&g.ring, &head), 1);
	return head;
}

static int chain(uint16_t head)
{
	return vring_chain(&g.ring, head, g.iov, 64, &g.chain);
}

/* The chain that begins at head is refused, with words that contain why. */
static void expect_fault(uint16_t head, const char *why)
{
	struct vring_chain before = { 7, 7, 7, 7 }, after = before;

	assert_int_equal(vring_chain(&g.ring, head, g.iov, 64, &after), -EPROTO);
	if (!strstr(g.ring.fault, why))
		fail_msg("the fault is \"%s\", expected something with \"%s\"", g.ring.fault, why);
	assert_memory_equal(&before, &after, sizeof(before));
}

/* ---- what a driver may do ---- */

static void an_empty_ring_gives_nothing(void **state)
{
	uint16_t head = 77;

	(void)state;
	assert_int_equal(vring_next(&g.ring, &head), 0);
	assert_int_equal(head, 77);
}

static void a_chain_of_three_is_collected(void **state)
{
	(void)state;
	put_desc(&g.desc[5], DATA_AT, 16, DESC_F_NEXT, 2);
	put_desc(&g.desc[2], FAR_ADDR + 0x100, 4096, DESC_F_NEXT | DESC_F_WRITE, 9);
	put_desc(&g.desc[9], DATA_AT + 64, 1, DESC_F_WRITE, 0);
	offer(5);
	assert_int_equal(take(), 5);
	assert_int_equal(chain(5), 0);
	assert_int_equal(g.chain.nr_out, 1);
	assert_int_equal(g.chain.nr_in, 2);
	assert_int_equal(g.chain.out_len, 16);
	assert_int_equal(g.chain.in_len, 4097);
	assert_ptr_equal(g.iov[0].iov_base, g.low + DATA_AT);
	assert_ptr_equal(g.iov[1].iov_base, g.far + 0x100);
	assert_int_equal(g.iov[1].iov_len, 4096);
	assert_ptr_equal(g.iov[2].iov_base, g.low + DATA_AT + 64);
}

static void a_chain_may_be_as_long_as_the_ring(void **state)
{
	(void)state;
	for (unsigned i = 0; i < NUM; i++)
		put_desc(&g.desc[i], DATA_AT + i, 1, i < NUM - 1 ? DESC_F_NEXT : 0, (uint16_t)(i + 1));
	assert_int_equal(chain(0), 0);
	assert_int_equal(g.chain.nr_out, NUM);
	assert_int_equal(g.chain.nr_in, 0);
	assert_int_equal(g.chain.in_len, 0);
}

static void an_indirect_table_may_be_longer_than_the_ring(void **state)
{
	struct driver_desc *table = (struct driver_desc *)(g.low + TABLE_AT);

	(void)state;
	for (unsigned i = 0; i < 40; i++)
		put_desc(&table[i], DATA_AT + i, 1, (i < 39 ? DESC_F_NEXT : 0) | (i > 0 ? DESC_F_WRITE : 0),
			 (uint16_t)(i + 1));
	/* The write flag of the descriptor that refers to the table means nothing. */
	put_desc(&g.desc[3], TABLE_AT, 40 * 16, DESC_F_INDIRECT | DESC_F_WRITE, 0);
	assert_int_equal(chain(3), 0);
	assert_int_equal(g.chain.nr_out, 1);
	assert_int_equal(g.chain.nr_in, 39);
}

static void an_indirect_table_may_end_a_chain_and_lie_anywhere(void **state)
{
	struct driver_desc table[2];

	(void)state;
	put_desc(&table[0], DATA_AT + 100, 100, DESC_F_NEXT | DESC_F_WRITE, 1);
	put_desc(&table[1], DATA_AT + 300, 1, DESC_F_WRITE, 0);
	memcpy(g.high + 3, table, sizeof(table)); /* not aligned to anything */
	put_desc(&g.desc[0], DATA_AT, 16, DESC_F_NEXT, 1);
	put_desc(&g.desc[1], HALF + 3, 32, DESC_F_INDIRECT, 0);
	assert_int_equal(chain(0), 0);
	assert_int_equal(g.chain.nr_out, 1);
	assert_int_equal(g.chain.nr_in, 2);
	assert_int_equal(g.chain.in_len, 101);
	assert_ptr_equal(g.iov[2].iov_base, g.low + DATA_AT + 300);
}

static void a_buffer_across_two_regions_takes_two_elements(void **state)
{
	(void)state;
	put_desc(&g.desc[0], HALF - 100, 300, DESC_F_NEXT, 1);
	put_desc(&g.desc[1], FAR_ADDR, 1, DESC_F_WRITE, 0);
	assert_int_equal(chain(0), 0);
	assert_int_equal(g.chain.nr_out, 2);
	assert_int_equal(g.chain.out_len, 300);
	assert_ptr_equal(g.iov[0].iov_base, g.low + HALF - 100);
	assert_int_equal(g.iov[0].iov_len, 100);
	assert_ptr_equal(g.iov[1].iov_base, g.high);
	assert_int_equal(g.iov[1].iov_len, 200);
	assert_ptr_equal(g.iov[2].iov_base, g.far);
}

static void the_last_byte_of_a_region_belongs_to_it(void **state)
{
	(void)state;
	put_desc(&g.desc[0], FAR_ADDR + HALF - 1, 1, 0, 0);
	assert_int_equal(chain(0), 0);
	put_desc(&g.desc[0], FAR_ADDR + HALF - 1, 2, 0, 0);
	expect_fault(0, "not in the guest's memory");
}

static void completions_appear_when_they_are_published(void **state)
{
	(void)state;
	vring_push(&g.ring, 7, 513);
	vring_push(&g.ring, 3, 1);
	assert_int_equal(le16toh(g.used->idx), 0);
	assert_true(vring_publish(&g.ring));
	assert_int_equal(le16toh(g.used->idx), 2);
	assert_int_equal(le32toh(g.used->ring[0].id), 7);
	assert_int_equal(le32toh(g.used->ring[0].len), 513);
	assert_int_equal(le32toh(g.used->ring[1].id), 3);
	assert_false(vring_publish(&g.ring)); /* nothing new */
}

static void a_ring_goes_on_where_it_was_stopped(void **state)
{
	(void)state;
	g.avail->idx = htole16(41);
	g.used->idx = htole16(40);
	open_ring(false, false, 40);
	g.avail->ring[40 % NUM] = htole16(6);
	assert_int_equal(take(), 6);
	vring_push(&g.ring, 6, 1);
	vring_publish(&g.ring);
	assert_int_equal(le16toh(g.used->idx), 41);
	assert_int_equal(le32toh(g.used->ring[40 % NUM].id), 6);
}

/* ---- notifications ---- */

static void set_used_event(uint16_t idx)
{
	g.avail->ring[NUM] = htole16(idx);
}

/* Publishes n completions at once. */
static bool complete(unsigned n)
{
	while (n--)
		vring_push(&g.ring, 0, 1);
	return vring_publish(&g.ring);
}

/* For every start, also around 65535: the driver is called exactly when the index it waits for was passed. */
static void event_idx_calls_exactly_when_wanted(void **state)
{
	static const uint16_t starts[] = { 0, 1, 100, 32767, 32768, 65530, 65534, 65535 };

	(void)state;
	for (unsigned s = 0; s < sizeof(starts) / sizeof(starts[0]); s++) {
		for (int wait = -3; wait < 8; wait++) {
			for (unsigned n = 1; n < 6; n++) {
				uint16_t old;
				bool want;

				g.used->idx = htole16((uint16_t)(starts[s] - 1));
				open_ring(false, true, 0);
				complete(1); /* the first one always calls */
				old = g.ring.used_idx;
				assert_int_equal(old, starts[s]);
				set_used_event((uint16_t)(old + wait));
				want = wait >= 0 && wait < (int)n;
				if (complete(n) != want)
					fail_msg("from %u, %u completions, waiting for %u: %scalled",
						 starts[s], n, (uint16_t)(old + wait), want ? "not " : "");
			}
		}
	}
}

static void the_first_completion_after_a_start_always_calls(void **state)
{
	(void)state;
	set_used_event(9999);
	assert_true(complete(1));
	assert_false(complete(1));
	open_ring(false, false, 0);
	g.avail->flags = htole16(AVAIL_F_NO_INTERRUPT);
	assert_true(complete(1));
	assert_false(complete(1));
	g.avail->flags = 0;
	assert_true(complete(1));
}

static uint16_t avail_event(void)
{
	uint16_t v;

	memcpy(&v, (char *)g.used + 4 + 8 * NUM, 2);
	return le16toh(v);
}

static void kicks_are_asked_for_only_when_the_ring_is_empty(void **state)
{
	(void)state;
	/* With event indices: the index that we wait for; flags stay 0 whatever happens. */
	offer(1);
	vring_kick_off(&g.ring);
	take();
	assert_false(vring_kick_on(&g.ring));
	assert_int_equal(avail_event(), 1);
	vring_kick_off(&g.ring);
	offer(2);
	assert_true(vring_kick_on(&g.ring)); /* came in between: no kick will tell */
	take();
	assert_false(vring_kick_on(&g.ring));
	assert_int_equal(avail_event(), 2);
	assert_int_equal(g.used->flags, 0);

	/* Without: the flag. */
	open_ring(false, false, 2);
	vring_kick_off(&g.ring);
	assert_int_equal(le16toh(g.used->flags), USED_F_NO_NOTIFY);
	assert_false(vring_kick_on(&g.ring));
	assert_int_equal(g.used->flags, 0);
	offer(3);
	assert_true(vring_kick_on(&g.ring));
	assert_int_equal(le16toh(g.used->flags), USED_F_NO_NOTIFY);
}

static void the_avail_event_wraps_around(void **state)
{
	(void)state;
	g.avail->idx = htole16(65535);
	open_ring(false, true, 65535);
	assert_false(vring_kick_on(&g.ring));
	assert_int_equal(avail_event(), 65535);
	offer(1);
	take();
	assert_false(vring_kick_on(&g.ring));
	assert_int_equal(avail_event(), 0);
	assert_int_equal(g.ring.next_avail, 0);
}

/* ---- what a hostile one tries ---- */

static void an_index_that_jumps_is_a_fault(void **state)
{
	uint16_t head;

	(void)state;
	g.avail->idx = htole16(NUM + 1);
	assert_int_equal(vring_next(&g.ring, &head), -EPROTO);
	assert_non_null(strstr(g.ring.fault, "jumps"));
	/* Backwards is forwards by almost 65536. */
	g.avail->idx = htole16(9);
	open_ring(false, true, 10);
	assert_int_equal(vring_next(&g.ring, &head), -EPROTO);
	/* A whole ring at once is fine. */
	g.avail->idx = htole16(NUM + 10);
	open_ring(false, true, 10);
	assert_int_equal(vring_next(&g.ring, &head), 1);
}

static void a_head_outside_the_table_is_a_fault(void **state)
{
	uint16_t head;

	(void)state;
	offer(NUM);
	assert_int_equal(vring_next(&g.ring, &head), -EPROTO);
	assert_non_null(strstr(g.ring.fault, "names descriptor 16"));
}

static void a_next_outside_the_table_is_a_fault(void **state)
{
	struct driver_desc *table = (struct driver_desc *)(g.low + TABLE_AT);

	(void)state;
	put_desc(&g.desc[0], DATA_AT, 16, DESC_F_NEXT, NUM);
	expect_fault(0, "number 16 in a table of 16");
	put_desc(&table[0], DATA_AT, 16, DESC_F_NEXT, 2);
	put_desc(&g.desc[0], TABLE_AT, 32, DESC_F_INDIRECT, 0);
	expect_fault(0, "number 2 in a table of 2");
}

static void loops_are_faults(void **state)
{
	struct driver_desc *table = (struct driver_desc *)(g.low + TABLE_AT);

	(void)state;
	put_desc(&g.desc[4], DATA_AT, 16, DESC_F_NEXT, 4);
	expect_fault(4, "loops");
	put_desc(&g.desc[4], DATA_AT, 16, DESC_F_NEXT, 5);
	put_desc(&g.desc[5], DATA_AT, 16, DESC_F_NEXT, 4);
	expect_fault(4, "loops");
	put_desc(&table[0], DATA_AT, 16, DESC_F_NEXT, 1);
	put_desc(&table[1], DATA_AT, 16, DESC_F_NEXT, 0);
	put_desc(&g.desc[4], TABLE_AT, 32, DESC_F_INDIRECT, 0);
	expect_fault(4, "loops");
}

static void more_buffers_than_there_is_room_for_are_a_fault(void **state)
{
	struct driver_desc *table = (struct driver_desc *)(g.low + TABLE_AT);

	(void)state;
	for (unsigned i = 0; i < 65; i++)
		put_desc(&table[i], DATA_AT, 1, i < 64 ? DESC_F_NEXT : 0, (uint16_t)(i + 1));
	put_desc(&g.desc[0], TABLE_AT, 65 * 16, DESC_F_INDIRECT, 0);
	expect_fault(0, "more than 64 buffers");
	/* The last one that fits, cut in two by the border between regions. */
	put_desc(&table[63], HALF - 1, 2, 0, 0);
	expect_fault(0, "more than 64 buffers");
	put_desc(&table[63], HALF - 1, 1, 0, 0);
	assert_int_equal(chain(0), 0);
}

static void indirect_tables_of_bad_length_are_faults(void **state)
{
	static const uint32_t lens[] = { 0, 1, 15, 17, 40, UINT32_MAX };

	(void)state;
	for (unsigned i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
		put_desc(&g.desc[0], TABLE_AT, lens[i], DESC_F_INDIRECT, 0);
		expect_fault(0, "an indirect table of");
	}
	/* A good length that the region does not have, and the largest there is. */
	put_desc(&g.desc[0], FAR_ADDR + HALF - 16, 32, DESC_F_INDIRECT, 0);
	expect_fault(0, "not in one region");
	put_desc(&g.desc[0], TABLE_AT, 0xfffffff0, DESC_F_INDIRECT, 0);
	expect_fault(0, "not in one region");
	put_desc(&g.desc[0], UINT64_MAX - 15, 32, DESC_F_INDIRECT, 0);
	expect_fault(0, "not in one region");
	put_desc(&g.desc[0], HALF - 16, 32, DESC_F_INDIRECT, 0);
	expect_fault(0, "not in one region");
}

static void indirect_where_it_may_not_be_is_a_fault(void **state)
{
	struct driver_desc *table = (struct driver_desc *)(g.low + TABLE_AT);

	(void)state;
	put_desc(&table[0], TABLE_AT, 16, DESC_F_INDIRECT, 0);
	put_desc(&g.desc[0], TABLE_AT, 16, DESC_F_INDIRECT, 0);
	expect_fault(0, "inside an indirect table");
	/* The ring itself as its table, which no look at addresses would tell from the ring. */
	put_desc(&g.desc[0], DESC_AT, 16, DESC_F_INDIRECT, 0);
	expect_fault(0, "inside an indirect table");
	put_desc(&g.desc[0], TABLE_AT, 16, DESC_F_INDIRECT | DESC_F_NEXT, 1);
	expect_fault(0, "with a next one");
	open_ring(false, true, 0);
	put_desc(&g.desc[0], TABLE_AT, 16, DESC_F_INDIRECT, 0);
	expect_fault(0, "not negotiated");
}

static void buffers_outside_memory_are_faults(void **state)
{
	static const struct {
		uint64_t addr;
		uint32_t len;
	} bad[] = {
		{ 2 * HALF, 1 },	/* behind the two that touch */
		{ 2 * HALF - 1, 2 },	/* begins inside, ends outside */
		{ FAR_ADDR - 1, 2 },	/* the other way round */
		{ HALF - 1, HALF + 2 }, /* through one whole region and out */
		{ UINT64_MAX, 1 },
		{ UINT64_MAX, 2 }, /* wraps to address 0, which is memory */
		{ UINT64_MAX - 0xfff, UINT32_MAX },
		{ 0, UINT32_MAX },
	};

	(void)state;
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		put_desc(&g.desc[0], bad[i].addr, bad[i].len, 0, 0);
		assert_int_equal(chain(0), -EPROTO);
		put_desc(&g.desc[0], bad[i].addr, bad[i].len, DESC_F_WRITE, 0);
		assert_int_equal(chain(0), -EPROTO);
	}
}

static void an_empty_buffer_is_a_fault(void **state)
{
	(void)state;
	put_desc(&g.desc[0], DATA_AT, 0, 0, 0);
	expect_fault(0, "no bytes");
}

static void readable_behind_writable_is_a_fault(void **state)
{
	(void)state;
	put_desc(&g.desc[0], DATA_AT, 16, DESC_F_NEXT | DESC_F_WRITE, 1);
	put_desc(&g.desc[1], DATA_AT, 16, 0, 0);
	expect_fault(0, "behind a writable one");
}

static void a_chain_of_4_gib_is_a_fault(void **state)
{
	static struct gmem big;
	struct vring_chain c;

	(void)state;
	/* Only addresses are computed, so the region need not exist. */
	big.nr_regions = 1;
	big.region[0] = g.mem.region[0];
	big.region[0].len = GiB(16);
	g.ring.mem = &big;
	put_desc(&g.desc[0], 0, UINT32_MAX, 0, 0);
	assert_int_equal(vring_chain(&g.ring, 0, g.iov, 64, &c), 0);
	assert_int_equal(c.out_len, UINT32_MAX);
	put_desc(&g.desc[0], 0, UINT32_MAX, DESC_F_NEXT, 1);
	put_desc(&g.desc[1], 0, 1, DESC_F_WRITE, 0);
	assert_int_equal(vring_chain(&g.ring, 0, g.iov, 64, &c), -EPROTO);
}

static void rings_outside_memory_or_misaligned_do_not_open(void **state)
{
	static const struct {
		struct vring_addr addr;
		const char *why;
	} bad[] = {
		{ { USER_ADDR + HALF - 16, USER_ADDR + AVAIL_AT, USER_ADDR + USED_AT }, "descriptor table" },
		{ { USER_ADDR - 16, USER_ADDR + AVAIL_AT, USER_ADDR + USED_AT }, "descriptor table" },
		{ { UINT64_MAX - 15, USER_ADDR + AVAIL_AT, USER_ADDR + USED_AT }, "descriptor table" },
		{ { USER_ADDR + 8, USER_ADDR + AVAIL_AT, USER_ADDR + USED_AT }, "aligned to 16" },
		{ { USER_ADDR, USER_ADDR + HALF - 37, USER_ADDR + USED_AT }, "available ring" },
		{ { USER_ADDR, USER_ADDR + AVAIL_AT + 1, USER_ADDR + USED_AT }, "aligned to 2" },
		{ { USER_ADDR, USER_ADDR + AVAIL_AT, USER_ADDR + HALF - 132 }, "used ring" },
		{ { USER_ADDR, USER_ADDR + AVAIL_AT, USER_ADDR + USED_AT + 2 }, "aligned to 4" },
		{ { 0, USER_ADDR + AVAIL_AT, USER_ADDR + USED_AT }, "descriptor table" },
	};
	struct varve_error err;

	(void)state;
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		assert_true(vring_check(&g.mem, &bad[i].addr, NUM, false, &err) < 0);
		if (!strstr(err.message, bad[i].why))
			fail_msg("case %u: \"%s\"", i, err.message);
	}
	/* Exactly at the end is inside: 6 + 2 * 16 and 6 + 8 * 16 bytes, event indices included. */
	struct vring_addr last = { USER_ADDR, USER_ADDR + HALF - 38, USER_ADDR + MiB(1) + HALF - 136 };

	assert_int_equal(vring_check(&g.mem, &last, NUM, false, &err), 0);
}

/* Any bytes at all in table and rings: an answer, in bounds, and no more elements than allowed. */
static void garbage_is_survived(void **state)
{
	uint64_t seed = 0x5eed;

	(void)state;
	for (unsigned round = 0; round < 20000; round++) {
		unsigned n;

		for (unsigned i = 0; i < NUM; i++) {
			seed = seed * 6364136223846793005u + 1442695040888963407u;
			uint64_t x = seed >> 20;

			/* Mostly plausible, so that chains get long before they go wrong. */
			put_desc(&g.desc[i], x % 3 ? DATA_AT + x % 64 : x << 13,
				 x % 7 ? 16 * (x % 5) : (uint32_t)x, (uint16_t)((x >> 8) & (x % 11 ? 3 : 7)),
				 (uint16_t)((x >> 12) % (NUM + x % 2)));
		}
		if (vring_chain(&g.ring, (uint16_t)(round % NUM), g.iov, 64, &g.chain) < 0)
			continue;
		n = g.chain.nr_out + g.chain.nr_in;
		assert_in_range(n, 1, 64);
		for (unsigned i = 0; i < n; i++) {
			uint8_t *p = g.iov[i].iov_base, *end = p + g.iov[i].iov_len;

			assert_true(g.iov[i].iov_len > 0);
			assert_true((p >= g.low && end <= g.low + HALF) ||
				    (p >= g.high && end <= g.high + HALF) ||
				    (p >= g.far && end <= g.far + HALF));
		}
	}
}

#define TEST(name) cmocka_unit_test_setup(name, setup)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(an_empty_ring_gives_nothing),
		TEST(a_chain_of_three_is_collected),
		TEST(a_chain_may_be_as_long_as_the_ring),
		TEST(an_indirect_table_may_be_longer_than_the_ring),
		TEST(an_indirect_table_may_end_a_chain_and_lie_anywhere),
		TEST(a_buffer_across_two_regions_takes_two_elements),
		TEST(the_last_byte_of_a_region_belongs_to_it),
		TEST(completions_appear_when_they_are_published),
		TEST(a_ring_goes_on_where_it_was_stopped),
		TEST(event_idx_calls_exactly_when_wanted),
		TEST(the_first_completion_after_a_start_always_calls),
		TEST(kicks_are_asked_for_only_when_the_ring_is_empty),
		TEST(the_avail_event_wraps_around),
		TEST(an_index_that_jumps_is_a_fault),
		TEST(a_head_outside_the_table_is_a_fault),
		TEST(a_next_outside_the_table_is_a_fault),
		TEST(loops_are_faults),
		TEST(more_buffers_than_there_is_room_for_are_a_fault),
		TEST(indirect_tables_of_bad_length_are_faults),
		TEST(indirect_where_it_may_not_be_is_a_fault),
		TEST(buffers_outside_memory_are_faults),
		TEST(an_empty_buffer_is_a_fault),
		TEST(readable_behind_writable_is_a_fault),
		TEST(a_chain_of_4_gib_is_a_fault),
		TEST(rings_outside_memory_or_misaligned_do_not_open),
		TEST(garbage_is_survived),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
