/* SPDX-License-Identifier: MIT */
/*
 * test_vu_ring.c - the driver's ring lays out what the specification says and believes no lie
 *
 * Owns:    a ring in guest memory, and a device played by this file on the other side of it.
 * Assumes: nothing of varve; the device here is written from the specification on its own.
 * Never:   sleeps: what is waited for has happened before, or must not happen.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "seed.h"
#include "vu_raw.h"
#include "vu_ring.h"

#define LEN		8
#define TABLE		6
#define MAX_SEGS	16

struct bed {
	struct vu_mem mem;
	struct vu_ring r;
	uint16_t last_avail;		/* the device's place in the available ring */
};

/* What the device finds when it follows a chain. */
struct chain {
	uint16_t head;
	unsigned nr, nr_tables;
	struct vu_seg seg[MAX_SEGS];
};

static int set_up(void **state)
{
	struct bed *b = calloc(1, sizeof(*b));
	struct vu_err err;

	assert_non_null(b);
	assert_int_equal(vu_mem_create(&b->mem, 1 << 20, 2, &err), 0);
	assert_int_equal(vu_ring_init(&b->r, &b->mem, 0, LEN, TABLE), 0);
	*state = b;
	return 0;
}

static int tear_down(void **state)
{
	struct bed *b = *state;

	vu_ring_free(&b->r);
	vu_mem_free(&b->mem);
	free(b);
	return 0;
}

/* ---- the device ------------------------------------------------------------------------------ */

static void follow(struct bed *b, const struct vring_desc *table, unsigned len, uint16_t i,
		   struct chain *c)
{
	for (;;) {
		const struct vring_desc *d = &table[i];
		uint16_t flags = le16toh(d->flags);

		assert_true(i < len);
		if (flags & VRING_DESC_F_INDIRECT) {
			unsigned n = le32toh(d->len) / (unsigned)sizeof(*d);

			assert_false(flags & VRING_DESC_F_NEXT);
			assert_ptr_equal(table, b->r.desc);	/* tables do not nest */
			c->nr_tables++;
			follow(b, vu_mem_host(&b->mem, le64toh(d->addr), le32toh(d->len)), n, 0, c);
			return;
		}
		assert_true(c->nr < MAX_SEGS);
		c->seg[c->nr++] = (struct vu_seg){ le64toh(d->addr), le32toh(d->len),
						   flags & VRING_DESC_F_WRITE };
		if (!(flags & VRING_DESC_F_NEXT))
			return;
		i = le16toh(d->next);
	}
}

/* Take the next available request; false when there is none. */
static bool device_pop(struct bed *b, struct chain *c)
{
	memset(c, 0, sizeof(*c));
	if (b->last_avail == le16toh(b->r.avail->idx))
		return false;
	c->head = le16toh(b->r.avail->ring[b->last_avail++ % LEN]);
	follow(b, b->r.desc, LEN, c->head, c);
	return true;
}

static void device_push(struct bed *b, uint32_t id, uint32_t len)
{
	uint16_t idx = le16toh(b->r.used->idx);

	b->r.used->ring[idx % LEN].id = htole32(id);
	b->r.used->ring[idx % LEN].len = htole32(len);
	b->r.used->idx = htole16((uint16_t)(idx + 1));
}

static uint64_t take_count(int fd)
{
	uint64_t count = 0;

	return read(fd, &count, sizeof(count)) == sizeof(count) ? count : 0;
}

/* ---- requests -------------------------------------------------------------------------------- */

/* A request like a read: 16 bytes for the device, then nr - 1 pieces that it writes. */
static void make_segs(struct vu_seg *segs, unsigned nr, uint64_t mark)
{
	unsigned i;

	for (i = 0; i < nr; i++)
		segs[i] = (struct vu_seg){ 0x1000 * mark + i, 16 + i, i > 0 };
}

static void add(struct bed *b, unsigned nr, uint64_t mark)
{
	struct vu_seg segs[MAX_SEGS];

	make_segs(segs, nr, mark);
	assert_int_equal(vu_ring_add(&b->r, segs, nr, (void *)(uintptr_t)mark), 0);
}

static void expect_chain(struct bed *b, unsigned nr, unsigned nr_tables, uint64_t mark,
			 uint16_t *ret_head)
{
	struct vu_seg segs[MAX_SEGS];
	struct chain c;
	unsigned i;

	make_segs(segs, nr, mark);
	assert_true(device_pop(b, &c));
	assert_int_equal(c.nr, nr);
	assert_int_equal(c.nr_tables, nr_tables);
	for (i = 0; i < nr; i++) {
		assert_int_equal(c.seg[i].guest_addr, segs[i].guest_addr);
		assert_int_equal(c.seg[i].len, segs[i].len);
		assert_int_equal(c.seg[i].dev_writes, segs[i].dev_writes);
	}
	*ret_head = c.head;
}

static void every_layout_arrives_whole(void **state)
{
	static const struct {
		enum vu_indirect how;
		unsigned tables, descs;
	} cases[] = { { VU_DIRECT, 0, 4 }, { VU_INDIRECT, 1, 1 }, { VU_INDIRECT_TAIL, 1, 2 } };
	struct bed *b = *state;
	struct vu_done done;
	uint16_t head;
	unsigned i;

	for (i = 0; i < 3; i++) {
		b->r.indirect = cases[i].how;
		add(b, 4, i + 1);
		assert_int_equal(b->r.nr_free, LEN - cases[i].descs);
		assert_int_equal(vu_ring_kick(&b->r), 0);
		expect_chain(b, 4, cases[i].tables, i + 1, &head);
		device_push(b, head, 17);
		assert_int_equal(vu_ring_reap(&b->r, &done, 1), 1);
		assert_ptr_equal(done.cookie, (void *)(uintptr_t)(i + 1));
		assert_int_equal(done.written, 17);
		assert_int_equal(b->r.nr_free, LEN);
	}
}

static void mixed_layout_takes_turns(void **state)
{
	struct bed *b = *state;
	uint16_t head;

	b->r.indirect = VU_INDIRECT_MIXED;
	add(b, 3, 1);
	add(b, 3, 2);
	assert_int_equal(vu_ring_kick(&b->r), 0);
	expect_chain(b, 3, 0, 1, &head);
	expect_chain(b, 3, 1, 2, &head);
}

static void a_batch_is_invisible_before_its_kick(void **state)
{
	struct bed *b = *state;
	struct chain c;

	add(b, 2, 1);
	add(b, 2, 2);
	assert_false(device_pop(b, &c));
	assert_int_equal(vu_ring_kick(&b->r), 0);
	assert_true(device_pop(b, &c));
	assert_true(device_pop(b, &c));
	assert_int_equal(take_count(b->r.kick_fd), 1);
}

static void full_ring_and_endless_request_are_refused(void **state)
{
	struct vu_seg segs[MAX_SEGS];
	struct bed *b = *state;

	make_segs(segs, MAX_SEGS, 1);
	assert_int_equal(vu_ring_add(&b->r, segs, LEN + 1, NULL), -E2BIG);
	add(b, LEN - 1, 1);
	assert_int_equal(vu_ring_add(&b->r, segs, 2, NULL), -ENOSPC);
	add(b, 1, 2);
	b->r.indirect = VU_INDIRECT;
	assert_int_equal(vu_ring_add(&b->r, segs, TABLE + 1, NULL), -E2BIG);
	assert_int_equal(vu_ring_add(&b->r, segs, 2, NULL), -ENOSPC);
}

/* ---- notifications --------------------------------------------------------------------------- */

static void no_kick_when_the_device_set_no_notify(void **state)
{
	struct bed *b = *state;

	b->r.used->flags = htole16(VRING_USED_F_NO_NOTIFY);
	add(b, 1, 1);
	assert_int_equal(vu_ring_kick(&b->r), 0);
	assert_int_equal(take_count(b->r.kick_fd), 0);
	b->r.used->flags = 0;
	add(b, 1, 2);
	assert_int_equal(vu_ring_kick(&b->r), 0);
	assert_int_equal(take_count(b->r.kick_fd), 1);
	assert_int_equal(b->r.nr_kicks, 1);
	assert_int_equal(b->r.nr_kicks_spared, 1);
}

/* With EVENT_IDX the device wants one kick: when the index passes the one that it names. */
static void kick_exactly_at_the_event_index(void **state)
{
	struct bed *b = *state;
	unsigned i;

	b->r.event_idx = true;
	b->r.used->flags = htole16(VRING_USED_F_NO_NOTIFY);	/* does not count now */
	*(uint16_t *)&b->r.used->ring[LEN] = htole16(2);
	for (i = 0; i < 5; i++) {
		add(b, 1, i + 1);
		assert_int_equal(vu_ring_kick(&b->r), 0);
		assert_int_equal(take_count(b->r.kick_fd), i == 2);
	}
}

static void wait_asks_for_a_call_and_takes_the_request_back(void **state)
{
	struct bed *b = *state;

	add(b, 1, 1);
	assert_int_equal(vu_ring_kick(&b->r), 0);
	assert_int_equal(le16toh(b->r.avail->flags), VRING_AVAIL_F_NO_INTERRUPT);
	assert_int_equal(vu_ring_wait(&b->r, 0), -ETIMEDOUT);
	assert_non_null(strstr(b->r.err.text, "none of 1 requests"));
	assert_int_equal(le16toh(b->r.avail->flags), VRING_AVAIL_F_NO_INTERRUPT);

	b->r.event_idx = true;
	assert_int_equal(vu_ring_wait(&b->r, 0), -ETIMEDOUT);
	assert_int_equal(le16toh(b->r.avail->ring[LEN]), 0);	/* a call at used index 1 */
}

static void wait_ends_when_the_device_is_done(void **state)
{
	struct bed *b = *state;
	uint64_t one = 1;
	int spin;

	for (spin = 0; spin < 2; spin++) {
		uint16_t head;

		b->r.spin = spin;
		add(b, 2, 1);
		assert_int_equal(vu_ring_kick(&b->r), 0);
		expect_chain(b, 2, 0, 1, &head);
		/* A call for nothing first: it must not be taken for a completion. */
		assert_int_equal(write(b->r.call_fd, &one, sizeof(one)), sizeof(one));
		assert_int_equal(vu_ring_wait(&b->r, vu_deadline_ns(1)), -ETIMEDOUT);
		device_push(b, head, 0);
		assert_int_equal(vu_ring_wait(&b->r, 0), 0);
		assert_int_equal(vu_ring_reap(&b->r, &(struct vu_done){ 0 }, 1), 1);
	}
}

static void wait_ends_when_the_device_breaks_or_goes(void **state)
{
	struct bed *b = *state;
	uint64_t one = 1;
	int spin, pair[2];

	for (spin = 0; spin < 2; spin++) {
		b->r.spin = spin;
		assert_int_equal(write(b->r.err_fd, &one, sizeof(one)), sizeof(one));
		assert_int_equal(vu_ring_wait(&b->r, UINT64_MAX), -EIO);
		assert_true(vu_raw_take_err(&b->r));
		assert_false(vu_raw_take_err(&b->r));

		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
		b->r.peer_fd = pair[0];
		close(pair[1]);
		assert_int_equal(vu_ring_wait(&b->r, UINT64_MAX), -ECONNRESET);
		close(pair[0]);
		b->r.peer_fd = -1;
	}
}

/* ---- lies ------------------------------------------------------------------------------------ */

static void expect_lie(struct bed *b, const char *text)
{
	struct vu_done done[LEN];

	assert_int_equal(vu_ring_reap(&b->r, done, LEN), -EPROTO);
	if (!strstr(b->r.err.text, text))
		fail_msg("\"%s\" does not say \"%s\"", b->r.err.text, text);
}

static void used_index_beyond_what_is_in_flight(void **state)
{
	struct bed *b = *state;

	add(b, 1, 1);
	assert_int_equal(vu_ring_kick(&b->r), 0);
	b->r.used->idx = htole16(2);
	expect_lie(b, "went from 0 to 2 with 1 requests");
	b->r.used->idx = htole16(0xffff);	/* backwards */
	expect_lie(b, "went from 0 to 65535");
}

static void used_element_that_names_no_request(void **state)
{
	static const uint32_t bad[] = { 1, LEN - 1, LEN, UINT32_MAX };	/* 1: the chain's middle */
	struct bed *b = *state;
	unsigned i;

	add(b, 3, 1);
	assert_int_equal(vu_ring_kick(&b->r), 0);
	for (i = 0; i < 4; i++) {
		b->r.used->idx = 0;
		device_push(b, bad[i], 0);
		expect_lie(b, "heads no request");
	}
}

static void request_finished_twice(void **state)
{
	struct bed *b = *state;
	struct vu_done done[LEN];

	add(b, 1, 1);
	add(b, 1, 2);
	assert_int_equal(vu_ring_kick(&b->r), 0);
	device_push(b, 0, 0);
	assert_int_equal(vu_ring_reap(&b->r, done, LEN), 1);
	device_push(b, 0, 0);
	expect_lie(b, "heads no request");
}

static void more_written_than_there_was_room_for(void **state)
{
	struct bed *b = *state;

	add(b, 2, 1);	/* 17 bytes that the device may write */
	assert_int_equal(vu_ring_kick(&b->r), 0);
	device_push(b, 0, 18);
	expect_lie(b, "wrote 18 bytes into a request with room for 17");
}

/* ---- long runs ------------------------------------------------------------------------------- */

/* Random requests, finished in random order, across the wrap of the indices: none is lost. */
static void random_traffic_keeps_the_books(void **state)
{
	uint64_t seed = seed_of_run();
	uint16_t held[LEN];
	uint64_t mark_of[LEN], next_mark = 1, finished = 0;
	struct bed *b = *state;
	unsigned nr_held = 0, step;

	vu_ring_reset(&b->r, 65000);
	b->last_avail = 65000;
	for (step = 0; step < 100000; step++) {
		struct vu_done done[LEN];
		struct vu_seg segs[MAX_SEGS];
		unsigned nr = 1 + (unsigned)vu_random_below(&seed, TABLE), i;
		struct chain c;
		int n;

		switch (vu_random_below(&seed, 4)) {
		case 0:
			b->r.indirect = (enum vu_indirect)vu_random_below(&seed, 4);
			make_segs(segs, nr, next_mark);
			if (vu_ring_add(&b->r, segs, nr, (void *)(uintptr_t)next_mark) == 0)
				next_mark++;
			break;
		case 1:
			assert_int_equal(vu_ring_kick(&b->r), 0);
			break;
		case 2:
			if (!device_pop(b, &c))
				break;
			mark_of[nr_held] = c.seg[0].guest_addr / 0x1000;
			held[nr_held++] = c.head;
			break;
		default:
			if (nr_held == 0)
				break;
			i = (unsigned)vu_random_below(&seed, nr_held);
			device_push(b, held[i], 0);
			n = vu_ring_reap(&b->r, done, LEN);
			assert_int_equal(n, 1);
			assert_int_equal((uintptr_t)done[0].cookie, mark_of[i]);
			held[i] = held[--nr_held];
			mark_of[i] = mark_of[nr_held];
			finished++;
			break;
		}
	}
	assert_true(finished > 2000);
	assert_int_equal(next_mark - 1 - finished, b->r.nr_chains);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		T(every_layout_arrives_whole),
		T(mixed_layout_takes_turns),
		T(a_batch_is_invisible_before_its_kick),
		T(full_ring_and_endless_request_are_refused),
		T(no_kick_when_the_device_set_no_notify),
		T(kick_exactly_at_the_event_index),
		T(wait_asks_for_a_call_and_takes_the_request_back),
		T(wait_ends_when_the_device_is_done),
		T(wait_ends_when_the_device_breaks_or_goes),
		T(used_index_beyond_what_is_in_flight),
		T(used_element_that_names_no_request),
		T(request_finished_twice),
		T(more_written_than_there_was_room_for),
		T(random_traffic_keeps_the_books),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
