/* SPDX-License-Identifier: MIT */
/*
 * test_rings.c - guests that lie in their rings: each ends in a broken ring that its front end can reset,
 * while the other rings of the disk, and another disk on the same threads, go on
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <cmocka.h>

#include "served.h"
#include "vu_lies.h"

/* Room in guest memory that the lies use; set before each. */
static struct vu_ring *ring;
static uint64_t room_addr;
static uint8_t *room; /* 64 KiB */
static struct vu_liar liar;

#define HEADER (room_addr + 0x100)
#define STATUS (room_addr + 0x200)
#define TABLE (room_addr + 0x1000)
#define DATA (room_addr + 0x8000)

#define NEXT VRING_DESC_F_NEXT
#define WRITE VRING_DESC_F_WRITE
#define INDIRECT VRING_DESC_F_INDIRECT

static struct vring_desc *table(void)
{
	return (struct vring_desc *)(room + 0x1000);
}

/* What the log says of each lie (vu_lies.h). */
static const struct said {
	const char *name;
	const char *logged;
} said[] = {
	{ "a head outside the table", "names descriptor 128 of 128" },
	{ "a head far outside the table", "names descriptor 65535 of 128" },
	{ "an index that jumps", "jumps" },
	{ "an index that goes back", "jumps" },
	{ "a chain of itself", "loops" },
	{ "a chain in a circle", "loops" },
	{ "a next descriptor outside the table", "number 128 in a table of 128" },
	{ "an address outside memory", "not in the guest's memory" },
	{ "an address that wraps", "wraps around" },
	{ "a buffer over the end of memory", "not in the guest's memory" },
	{ "a buffer of no bytes", "no bytes" },
	{ "a readable buffer behind a writable one", "behind a writable one" },
	{ "no place for a status", "status" },
	{ "a read-only status byte", "status" },
	{ "the ring as its own indirect table", "inside an indirect table" },
	{ "a short header", "header" },
	{ "no header", "header" },
	{ "an indirect table of odd length", "indirect table of 24 bytes" },
	{ "an indirect table of nothing", "indirect table of 0 bytes" },
	{ "an indirect table outside memory", "not in one region" },
	{ "an indirect table over the end of memory", "not in one region" },
	{ "an indirect descriptor with a next one", "with a next one" },
	{ "an indirect table in an indirect table", "inside an indirect table" },
	{ "an indirect table in a circle", "loops" },
	{ "an indirect table of too many buffers", "more than 256 buffers" },
};

static const char *said_of(const char *name)
{
	for (unsigned i = 0; i < sizeof(said) / sizeof(said[0]); i++) {
		if (strcmp(said[i].name, name) == 0)
			return said[i].logged;
	}
	fail_msg("nobody knows what is said of %s", name);
	return NULL;
}

static void prepare(struct vu_front *f, unsigned q)
{
	assert_true(vu_liar_init(&liar, f, q));
	ring = liar.ring;
	room = liar.room;
	room_addr = liar.room_addr;
}

static void expect_broken(struct vu_front *f, unsigned q, const char *name)
{
	enum vu_raw_end end = vu_raw_wait_broken(f, q, SERVED_MS);

	if (end != VU_RAW_ERR_SIGNALLED)
		fail_msg("%s: %s", name,
			 end == VU_RAW_CLOSED ? "the connection was closed" : "nothing happened");
}

/* Takes the ring back and starts it anew, as a front end does when the guest resets the device. */
static void reset(struct vu_front *f, unsigned q)
{
	if (vu_front_stop_queue(f, q, NULL) < 0)
		fail_msg("%s", f->err.text);
	vu_raw_take_err(&f->ring[q]);
	vu_ring_reset(&f->ring[q], 0);
	if (vu_front_start_queue(f, q) < 0)
		fail_msg("%s", f->err.text);
}

static void a_lie_breaks_one_ring_which_can_be_reset(void **state)
{
	struct varve_error err;
	struct vu_front other;

	(void)state;
	served_connect(&other, 1, 2);
	assert_int_equal(vu_nr_lies, sizeof(said) / sizeof(said[0]));
	for (unsigned i = 0; i < vu_nr_lies; i++) {
		const struct vu_lie *lie = &vu_lies[i];
		struct vu_front f;

		served_connect(&f, 0, 4);
		served_io_works(&f, 2);
		prepare(&f, 2);
		lie->tell(&liar);
		vu_raw_kick(ring);
		expect_broken(&f, 2, lie->name);
		if (served_logged(said_of(lie->name)) == 0)
			fail_msg("%s: the log does not say \"%s\"", lie->name, said_of(lie->name));
		/* Its neighbour on the same thread, another queue, and the other disk go on. */
		served_io_works(&f, 0);
		served_io_works(&f, 3);
		served_io_works(&other, 0);
		served_io_works(&other, 1);
		reset(&f, 2);
		served_io_works(&f, 2);
		vu_front_close(&f);
		if (i % 10 == 9) { /* a new server has lines for the log again (complaints.h) */
			served_stop(0);
			if (served_start(0, &err) < 0)
				fail_msg("%s", err.message);
		}
	}
	vu_front_close(&other);
}

/* Kicks, and even good requests, do not wake a broken ring. */
static void a_broken_ring_stays_so_until_it_is_reset(void **state)
{
	struct vu_front f;

	(void)state;
	served_connect(&f, 0, 1);
	prepare(&f, 0);
	vu_raw_offer(ring, 999);
	vu_raw_kick(ring);
	expect_broken(&f, 0, "a head outside");
	vu_raw_avail_idx(ring, 0);
	vu_raw_offer(ring, 0);
	vu_raw_kick(ring);
	/* Disabling and enabling, or a new memory table, is no reset either. */
	assert_int_equal(vu_front_enable_queue(&f, 0, false), 0);
	assert_int_equal(vu_front_enable_queue(&f, 0, true), 0);
	assert_int_equal(vu_front_share_memory(&f), 0);
	vu_raw_kick(ring);
	assert_int_equal(vu_front_enable_queue(&f, 0, true), 0); /* goes by way of the ring's thread */
	assert_int_equal(vu_raw_used_idx(ring), 0);
	reset(&f, 0);
	served_io_works(&f, 0);
	vu_front_close(&f);
}

/* CVE-2016-5403: one descriptor offered over and over, more requests than the ring has places. */
static void a_descriptor_in_flight_cannot_be_offered_again(void **state)
{
	struct vu_front f;

	(void)state;
	served_connect(&f, 0, 2);
	prepare(&f, 1);
	served_shut(0);
	vu_raw_offer(ring, 0);
	vu_raw_kick(ring);
	served_wait_held(0, 1);
	vu_raw_offer(ring, 0);
	vu_raw_kick(ring);
	expect_broken(&f, 1, "the same descriptor twice");
	assert_true(served_logged("offered again while its request is in flight") > 0);
	/* What was in flight before is completed all the same, and waited for by the reset. */
	served_open(0);
	assert_int_equal(vu_raw_wait_used(ring, 1, SERVED_MS), 0);
	assert_int_equal(room[0x200], 0);
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
	served_connect(&f, 0, 2);
	served_connect(&other, 1, 2);
	prepare(&f, 0);
	for (unsigned round = 0; round < 200; round++) {
		for (unsigned k = 0; k < 50; k++) {
			uint64_t x = vu_random(&seed);

			vu_raw_desc(ring, x % 8, x % 5 ? room_addr + x % 60000 : x, x % 3 ? 512 : 16,
				    (uint16_t)(x % 8), (uint16_t)(x % 9));
			vu_raw_offer(ring, (uint16_t)(x % 8));
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

/* ---- descriptors that change while they are read ---- */

static bool enough;

/* Every word of a request, between good and bad, as fast as it goes. */
static void *change_all_the_time(void *arg)
{
	struct vring_desc *t = arg;
	uint64_t seed = 11;

	while (!__atomic_load_n(&enough, __ATOMIC_RELAXED)) {
		uint64_t x = vu_random(&seed);

		vu_raw_table_desc(t, 0, x & 1 ? HEADER : x, x & 2 ? 16 : (uint32_t)x, NEXT | (x & 12), 1);
		vu_raw_table_desc(t, 1, x & 16 ? DATA : ~x, x & 32 ? 512 : (uint32_t)(x >> 8), NEXT | WRITE,
				  (uint16_t)(x & 64 ? 2 : x));
		vu_raw_table_desc(t, 2, STATUS, 1, WRITE | (x & 128 ? 0 : NEXT), (uint16_t)(x >> 32));
	}
	return NULL;
}

static void descriptors_that_change_while_they_are_read(void **state)
{
	uint64_t until = vu_deadline_ns(500), deadline = vu_deadline_ns(SERVED_MS);
	struct vu_front f, other;
	unsigned rounds = 0;
	pthread_t guest;

	(void)state;
	served_connect(&f, 0, 2);
	served_connect(&other, 1, 2);
	prepare(&f, 0);
	enough = false;
	assert_int_equal(pthread_create(&guest, NULL, change_all_the_time, table()), 0);
	/* Half a second of it; on a busy machine as long as it takes to have been seen half done. */
	for (; rounds < 500 && (vu_ms_left(until) || !served_logged("is broken")); rounds++) {
		assert_true(vu_ms_left(deadline));
		/* In the ring itself, and in an indirect table that is not the same for two looks. */
		vu_raw_desc(ring, 0, TABLE, 48, INDIRECT, 0);
		vu_raw_offer(ring, 0);
		vu_raw_kick(ring);
		if (rounds % 25 == 0) {
			served_io_works(&f, 1);
			served_io_works(&other, 0);
		}
		reset(&f, 0);
	}
	__atomic_store_n(&enough, true, __ATOMIC_RELAXED);
	pthread_join(guest, NULL);
	assert_true(served_logged("is broken") > 0);
	served_io_works(&f, 0);
	vu_front_close(&f);
	vu_front_close(&other);
}

static void fill_and_block(int fd)
{
	const uint64_t full = UINT64_MAX - 1;
	uint64_t count;

	/* The call for what was done before may still come in between. */
	while (write(fd, &full, sizeof(full)) < 0) {
		assert_int_equal(errno, EAGAIN);
		(void)!read(fd, &count, sizeof(count));
	}
	assert_int_equal(fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK), 0);
}

/*
 * A call descriptor that is full and in blocking mode: who writes to it waits. Queues 0 and 2 share a thread, and the other
 * disk's do too; only for the first time does that thread wait, and not for long.
 */
static void a_call_descriptor_that_blocks_holds_up_nobody(void **state)
{
	uint64_t deadline = vu_deadline_ns(SERVED_MS);
	struct vu_front f, other;

	(void)state;
	served_connect(&f, 0, 4);
	served_connect(&other, 1, 2);
	for (unsigned round = 0; round < 5; round++) {
		prepare(&f, 2);
		fill_and_block(ring->call_fd);
		vu_raw_avail_flags(ring, 0);
		vu_raw_used_event(ring, vu_raw_used_idx(ring));
		vu_raw_offer(ring, 0);
		vu_raw_kick(ring);
		/* Not by way of the descriptor that is full. */
		while (vu_raw_used_idx(ring) == ring->last_used)
			sched_yield();
		served_io_works(&f, 0);
		served_io_works(&f, 3);
		served_io_works(&other, 0);
		served_io_works(&other, 1);
		/* The line is written after the thread was let go. */
		while (!served_logged("was full and in blocking mode") && vu_ms_left(deadline))
			sched_yield();
		assert_int_equal(served_logged("was full and in blocking mode"), 1);
		assert_int_equal(fcntl(ring->call_fd, F_SETFL, O_NONBLOCK), 0);
		reset(&f, 2);
		served_io_works(&f, 2);
	}
	vu_front_close(&f);
	vu_front_close(&other);
}

/* The log tells of the first ones, then holds its tongue. */
static void breaking_a_ring_all_day_does_not_fill_the_log(void **state)
{
	struct vu_front f;

	(void)state;
	served_connect(&f, 0, 1);
	ring = &f.ring[0];
	for (unsigned i = 0; i < 60; i++) {
		vu_raw_offer(ring, 999);
		vu_raw_kick(ring);
		expect_broken(&f, 0, "a head outside");
		reset(&f, 0);
	}
	assert_int_equal(served_logged("is broken"), 20);
	vu_front_close(&f);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, served_setup, served_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(a_lie_breaks_one_ring_which_can_be_reset),
		TEST(a_broken_ring_stays_so_until_it_is_reset),
		TEST(a_descriptor_in_flight_cannot_be_offered_again),
		TEST(a_guest_that_scribbles_all_the_time_harms_only_itself),
		TEST(descriptors_that_change_while_they_are_read),
		TEST(a_call_descriptor_that_blocks_holds_up_nobody),
		TEST(breaking_a_ring_all_day_does_not_fill_the_log),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
