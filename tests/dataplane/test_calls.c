/* SPDX-License-Identifier: MIT */
/*
 * test_calls.c - when a driver is shown what is done, and how often it is called
 *
 * All requests end in one turn of the server's queue: its thread opens the valve itself.
 */
#include <errno.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>
#include <cmocka.h>

#include "aio/fiber.h"
#include "served.h"
#include "vu_raw.h"

static int open_valve(struct fiber *f, void *arg)
{
	(void)f;
	(void)arg;
	served_open(0);
	return 0;
}

/* LOAD writes end in one turn. Returns how often the driver was called, which wanted to be each time. */
static uint64_t calls_for_one_turn(void)
{
	uint64_t deadline = vu_deadline_ns(SERVED_MS), nr_calls = 0, rest;
	struct vu_front_opts o = served_front_opts(0, 1);
	struct vu_front f;
	unsigned done = 0;
	struct load l;

	o.features &= ~(UINT64_C(1) << VIRTIO_RING_F_EVENT_IDX);
	must(&f, vu_front_open(&f, &o));
	served_shut(0);
	vu_raw_avail_flags(&f.ring[0], 0);
	offer_writes(&l, &f, 0, 1);
	served_wait_held(0, LOAD);
	/* What the start of the ring may have said. */
	(void)!read(f.ring[0].call_fd, &rest, sizeof(rest));
	assert_int_equal(fiber_call(served_queues[0], open_valve, NULL), 0);
	while ((done += reap_writes(&l)) < LOAD) {
		assert_true(vu_ms_left(deadline));
		sched_yield();
	}
	/* The last call comes after the last request is to be seen. */
	must(&f, vu_front_stop_queue(&f, 0, NULL));
	if (read(f.ring[0].call_fd, &nr_calls, sizeof(nr_calls)) < 0)
		assert_int_equal(errno, EAGAIN);
	end_load(&l);
	vu_front_close(&f);
	return nr_calls;
}

/* Where threads sleep, calls cost more than they gain. */
static void a_queue_that_sleeps_calls_once_a_turn(void **state)
{
	(void)state;
	assert_int_equal(calls_for_one_turn(), 1);
}

/* The first one at once, then two at a time, so that the driver works while the server does; the last one at the end. */
static void a_queue_that_spins_shows_what_is_done_at_once(void **state)
{
	(void)state;
	assert_int_equal(calls_for_one_turn(), 1 + (LOAD - 1) / 2 + (LOAD - 1) % 2);
}

/* The requests of a turn end in the middle of it: that their memory is gone is noticed there and at the turn's own steps. */
static void memory_that_is_lost_is_told_once(void **state)
{
	struct vu_io *ios[4];
	struct vu_front f;
	struct vu_blk b;

	(void)state;
	served_connect(&f, 0, 1);
	assert_int_equal(vu_blk_open(&b, &f, 0, 4, 4096), 0);
	for (unsigned i = 0; i < 4; i++) {
		ios[i] = vu_blk_get(&b);
		vu_io_read(ios[i], i * UINT64_C(4096), 4096);
		assert_int_equal(vu_blk_submit(&b, ios[i]), 0);
	}
	/* The rings stay, the data does not. */
	assert_int_equal(ftruncate(f.mem.fd, (off_t)(ios[0]->data - f.mem.base)), 0);
	assert_int_equal(vu_blk_kick(&b), 0);
	assert_int_equal(vu_raw_wait_broken(&f, 0, SERVED_MS), VU_RAW_ERR_SIGNALLED);
	assert_int_equal(ftruncate(f.mem.fd, (off_t)f.mem.len), 0);
	vu_blk_free(&b);
	vu_front_close(&f);
	/* The next one is served after all that. */
	served_connect(&f, 0, 1);
	assert_int_equal(served_logged("has cut off memory"), 1);
	vu_front_close(&f);
}

static int setup_spinning(void **state)
{
	served_poll_ns = 20000;
	return served_setup(state);
}

static int teardown_spinning(void **state)
{
	served_poll_ns = 0;
	return served_teardown(state);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(a_queue_that_sleeps_calls_once_a_turn, served_setup, served_teardown),
		cmocka_unit_test_setup_teardown(a_queue_that_spins_shows_what_is_done_at_once, setup_spinning,
						teardown_spinning),
		cmocka_unit_test_setup_teardown(memory_that_is_lost_is_told_once, served_setup, served_teardown),
		cmocka_unit_test_setup_teardown(memory_that_is_lost_is_told_once, setup_spinning, teardown_spinning),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
