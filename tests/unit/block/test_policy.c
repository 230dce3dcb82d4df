/* SPDX-License-Identifier: MIT */
/*
 * unit/block/test_policy.c - werror=: disks that stop instead of failing a write
 */
#include "fake.h"

#include <errno.h>

#include "block/policy.h"

#define CL KiB(64)

static uint8_t buf[CL];

static void open_with(struct image *img, enum werror werror)
{
	image_open(img, NULL, CL, MiB(1), NODE_WRITABLE);
	for (unsigned i = 0; i < 16; i++)
		fake_set(img->l.n, i, EXTENT_DATA, i * CL, true);
	assert_int_equal(policy_open(img->l.n, werror, NULL), 0);
}

static struct policy_state state_of(struct image *img)
{
	struct policy_state s;

	assert_true(policy_get_state(img->l.n, &s));
	return s;
}

static void io_begin(struct image *img, struct io *io, enum req_op op, uint64_t off, uint32_t flags)
{
	io_start(io, img->l.n, img->l.q, op, off, op == REQ_WRITE || op == REQ_READ ? buf : NULL,
		 op == REQ_FLUSH ? 0 : CL, flags);
	turns(img->l.q, 6);
}

static void a_failed_write_waits_until_resumed(void **state)
{
	struct io first, second, flush, read;
	struct image img;

	(void)state;
	open_with(&img, WERROR_STOP);
	hold_of(img.hold)->fail_writes = -EIO;
	io_begin(&img, &first, REQ_WRITE, 0, 0);
	assert_false(first.done);
	assert_int_equal(state_of(&img).error, -EIO);
	io_begin(&img, &second, REQ_WRITE, CL, 0);
	io_begin(&img, &flush, REQ_FLUSH, 0, 0);
	assert_int_equal(hold_of(img.hold)->nr_writes, 1); /* the second was not even tried */
	assert_false(second.done || flush.done);
	assert_int_equal(state_of(&img).nr_parked, 3);
	assert_int_equal(state_of(&img).parked_bytes, 2 * CL);
	io_begin(&img, &read, REQ_READ, 0, 0);
	assert_true(read.done && read.ret == 0);

	/* Nothing has changed: it stops again. */
	assert_int_equal(policy_resume(img.l.n), -EIO);
	turns(img.l.q, 6);
	assert_false(first.done || second.done);
	assert_int_equal(state_of(&img).error, -EIO);

	hold_of(img.hold)->fail_writes = 0;
	assert_int_equal(policy_resume(img.l.n), -EIO);
	assert_int_equal(io_wait(&first), 0);
	assert_int_equal(io_wait(&second), 0);
	assert_int_equal(io_wait(&flush), 0);
	assert_int_equal(state_of(&img).error, 0);
	assert_int_equal(state_of(&img).nr_parked, 0);
	assert_int_equal(state_of(&img).parked_bytes, 0);
	assert_int_equal(policy_resume(img.l.n), 0);
	image_close(&img);
}

static void enospc_stops_for_a_full_file_system_only(void **state)
{
	struct io io;
	struct image img;

	(void)state;
	open_with(&img, WERROR_ENOSPC);
	hold_of(img.hold)->fail_writes = -EIO;
	assert_int_equal(io_now(&img, REQ_WRITE, 0, buf, CL, 0), -EIO);
	assert_int_equal(state_of(&img).error, 0);
	hold_of(img.hold)->fail_writes = -ENOSPC;
	io_begin(&img, &io, REQ_WRITE, 0, 0);
	assert_false(io.done);
	assert_int_equal(state_of(&img).error, -ENOSPC);
	hold_of(img.hold)->fail_writes = 0;
	assert_int_equal(policy_resume(img.l.n), -ENOSPC);
	assert_int_equal(io_wait(&io), 0);
	image_close(&img);
}

/* What a failed flush has put in doubt is safe only when it has been written again. */
static void a_stable_write_whose_flush_failed_is_written_again(void **state)
{
	struct io io;
	struct image img;

	(void)state;
	open_with(&img, WERROR_STOP);
	hold_of(img.hold)->fail_flush = -EIO;
	io_begin(&img, &io, REQ_WRITE, 0, REQ_FUA);
	assert_false(io.done);
	assert_int_equal(hold_of(img.hold)->nr_writes, 1);
	hold_of(img.hold)->fail_flush = 0;
	assert_int_equal(policy_resume(img.l.n), -EIO);
	assert_int_equal(io_wait(&io), 0);
	assert_int_equal(hold_of(img.hold)->nr_writes, 2);
	assert_int_equal(hold_of(img.hold)->nr_flushes, 2);
	image_close(&img);
}

static int drain_and_go_on(struct fiber *f, void *arg)
{
	struct image *img = arg;

	node_drain_begin(f, img->l.n);
	/* Resumed while drained: what waited waits for the end of the drain now. */
	hold_of(img->hold)->fail_writes = 0;
	assert_int_equal(policy_resume(img->l.n), -EIO);
	fiber_yield(f);
	assert_int_equal(hold_of(img->hold)->nr_writes, 1);
	node_drain_end(img->l.n);
	return 0;
}

static void a_stopped_disk_can_be_drained(void **state)
{
	struct io io;
	struct image img;

	(void)state;
	open_with(&img, WERROR_STOP);
	hold_of(img.hold)->fail_writes = -EIO;
	io_begin(&img, &io, REQ_WRITE, 0, 0);
	assert_false(io.done);
	assert_int_equal(fiber_call(img.l.q, drain_and_go_on, &img), 0);
	assert_int_equal(io_wait(&io), 0);
	image_close(&img);
}

static void failing_answers_what_waits_with_its_error(void **state)
{
	struct io first, second, third;
	struct image img;

	(void)state;
	open_with(&img, WERROR_STOP);
	hold_of(img.hold)->fail_writes = -ENOSPC;
	io_begin(&img, &first, REQ_WRITE, 0, 0);
	io_begin(&img, &second, REQ_FLUSH, 0, 0);
	assert_false(first.done || second.done);
	policy_failing_begin(img.l.n);
	assert_int_equal(io_wait(&first), -ENOSPC);
	assert_int_equal(io_wait(&second), -ENOSPC);
	assert_int_equal(io_now(&img, REQ_WRITE, 0, buf, CL, 0), -ENOSPC);
	policy_failing_end(img.l.n);
	io_begin(&img, &third, REQ_WRITE, 0, 0);
	assert_false(third.done); /* it stops as before */
	policy_failing_begin(img.l.n);
	assert_int_equal(io_wait(&third), -ENOSPC);
	image_close(&img);
}

/* ---- several queues ---- */

#define WORKERS 3
#define ROUNDS 200

static int write_on_and_on(struct worker *w)
{
	static uint8_t bytes[WORKERS][CL];
	struct io io[8];

	for (unsigned i = 0; i < ROUNDS; i++) {
		for (unsigned k = 0; k < ARRAY_LEN(io); k++)
			io_start(&io[k], w->n, w->q, REQ_WRITE, w->nr * CL, bytes[w->nr], CL, 0);
		for (unsigned k = 0; k < ARRAY_LEN(io); k++) {
			if (io_wait(&io[k]) < 0)
				return snprintf(w->why, sizeof(w->why), "a write failed (%d)", io[k].ret), -1;
		}
	}
	return 0;
}

/* Every 97th write fails once; the home resumes whenever it finds the disk stopped. */
static void resume_if_stopped(void *arg)
{
	policy_resume(arg);
}

static void no_request_is_lost_between_queues(void **state)
{
	struct worker w[WORKERS];
	struct image img;

	(void)state;
	open_with(&img, WERROR_STOP);
	hold_of(img.hold)->fail_every = 97;
	for (unsigned i = 0; i < WORKERS; i++)
		w[i] = (struct worker){ .n = img.l.n, .fn = write_on_and_on, .nr = i };
	workers_run(&img.l, w, WORKERS, resume_if_stopped, img.l.n);
	for (unsigned i = 0; i < WORKERS; i++) {
		if (w[i].ret < 0)
			fail_msg("worker %u: %s", i, w[i].why);
	}
	assert_int_equal(state_of(&img).nr_parked, 0);
	assert_true(hold_of(img.hold)->nr_writes > WORKERS * ROUNDS * 8);
	image_close(&img);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_failed_write_waits_until_resumed),
		cmocka_unit_test(enospc_stops_for_a_full_file_system_only),
		cmocka_unit_test(a_stable_write_whose_flush_failed_is_written_again),
		cmocka_unit_test(a_stopped_disk_can_be_drained),
		cmocka_unit_test(failing_answers_what_waits_with_its_error),
		cmocka_unit_test(no_request_is_lost_between_queues),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
