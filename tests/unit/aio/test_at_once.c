/* SPDX-License-Identifier: MIT */
/* test_at_once.c - copies are made by the queue's thread, but not beside anything else */
#include "aio_test.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "aio/loop.h"

/* ---- an engine that counts, and does its work when asked to ---- */

static struct {
	struct aio_op *held;
	unsigned nr;
} counting;

static int counting_attach(struct queue *q, void **ret_ctx, struct varve_error *err)
{
	*ret_ctx = q;
	return 0;
}

static void counting_detach(struct queue *q, void *ctx)
{
}

static void counting_submit(void *ctx, struct aio_op *op)
{
	op->next = counting.held;
	counting.held = op;
	counting.nr++;
}

static unsigned counting_finish(void)
{
	unsigned nr = 0;

	while (counting.held) {
		struct aio_op *op = counting.held;

		counting.held = op->next;
		op->q->stats.aio_completed++;
		op->done(op, aio_op_blocking(op));
		nr++;
	}
	return nr;
}

static const struct aio_engine engine = {
	.name = "counting", .attach = counting_attach, .detach = counting_detach, .submit = counting_submit
};

struct fixture {
	struct queue *q;
	struct aio_file file;
};

static void fixture_open(struct fixture *fx)
{
	fx->q = make_queue(false, &engine);
	fx->q->at_once.slow_ns = UINT64_MAX; /* a busy machine makes any of them look slow */
	fx->file = (struct aio_file){ .engine = &engine,
				      .fd = memfd_create("varve-test", MFD_CLOEXEC | MFD_ALLOW_SEALING),
				      .at_once = true,
				      .name = "test" };
	CHECK(fx->file.fd >= 0);
	counting.nr = 0;
}

static void fixture_close(struct fixture *fx)
{
	queue_free(fx->q);
	close(fx->file.fd);
}

struct test_op {
	struct aio_op op;
	struct iovec iov;
	bool done;
	int64_t res;
};

static void test_op_done(struct aio_op *op, int64_t res)
{
	struct test_op *t = container_of(op, struct test_op, op);

	CHECK(!t->done);
	t->done = true;
	t->res = res;
}

static uint8_t bytes[128 * 1024];

static void submit(struct fixture *fx, struct test_op *t, enum aio_opcode opcode, uint32_t flags,
		   uint64_t off, size_t len)
{
	*t = (struct test_op){ .iov = { bytes, len },
			       .op = { .file = &fx->file,
				       .opcode = (uint8_t)opcode,
				       .flags = flags,
				       .nr_iov = 1,
				       .off = off,
				       .len = len,
				       .done = test_op_done } };
	t->op.iov = &t->iov;
	aio_submit(fx->q, &t->op);
	CHECK(!t->done); /* never inside of submit */
}

/* ---- tests ---- */

static void a_lone_write_is_made_here_and_answered_in_the_next_turn(void **state)
{
	struct fixture fx;
	struct test_op t;
	uint8_t back[512];

	(void)state;
	fixture_open(&fx);
	memset(bytes, 0x5a, sizeof(bytes));
	submit(&fx, &t, AIO_WRITE, 0, 1024, 512);
	assert_int_equal(counting.nr, 0);
	assert_int_equal(pread(fx.file.fd, back, sizeof(back), 1024), sizeof(back));
	assert_memory_equal(back, bytes, sizeof(back));
	queue_turn(fx.q, -1); /* does not sleep: there is an answer to give */
	assert_true(t.done);
	assert_int_equal(t.res, 512);
	assert_int_equal(queue_stats(fx.q)->aio_completed, 1);
	fixture_close(&fx);
}

static void a_write_beside_what_the_engine_has_goes_to_the_engine(void **state)
{
	struct fixture fx;
	struct test_op read, a, b;

	(void)state;
	fixture_open(&fx);
	submit(&fx, &read, AIO_READ, 0, 0, 512);
	submit(&fx, &a, AIO_WRITE, 0, 0, 512);
	assert_int_equal(counting.nr, 2);
	assert_int_equal(counting_finish(), 2);
	submit(&fx, &b, AIO_WRITE, 0, 512, 512);  /* alone again */
	submit(&fx, &a, AIO_WRITE, 0, 1024, 512); /* beside another copy */
	assert_int_equal(counting.nr, 2);
	queue_turn(fx.q, 0);
	assert_true(a.done && b.done && read.done);
	fixture_close(&fx);
}

/* 128 KiB; what comes in the turn after that finds the engine busy, and then the queue idle. */
static void so_many_bytes_are_copied_in_a_turn(void **state)
{
	struct fixture fx;
	struct test_op ops[5];

	(void)state;
	fixture_open(&fx);
	for (unsigned i = 0; i < 5; i++) {
		submit(&fx, &ops[i], AIO_WRITE, 0, i * 32768, 32768);
		assert_int_equal(counting.nr, i / 4);
	}
	queue_turn(fx.q, 0);
	assert_true(ops[0].done && ops[3].done && !ops[4].done);
	submit(&fx, &ops[0], AIO_WRITE, 0, 0, 512);
	assert_int_equal(counting.nr, 2);
	assert_int_equal(counting_finish(), 2);
	submit(&fx, &ops[0], AIO_WRITE, 0, 0, 65536);
	submit(&fx, &ops[1], AIO_WRITE, 0, 0, 65536);
	assert_int_equal(counting.nr, 2);
	queue_turn(fx.q, 0);
	fixture_close(&fx);
}

static void what_may_wait_for_a_disk_goes_to_the_engine(void **state)
{
	struct fixture fx;
	struct test_op t;
	unsigned nr = 0;

	(void)state;
	fixture_open(&fx);
	submit(&fx, &t, AIO_WRITE, AIO_FUA, 0, 512);
	assert_int_equal(counting.nr, ++nr);
	assert_int_equal(counting_finish(), 1);
	submit(&fx, &t, AIO_WRITE, 0, 0, sizeof(bytes)); /* long */
	assert_int_equal(counting.nr, ++nr);
	assert_int_equal(counting_finish(), 1);
	submit(&fx, &t, AIO_READ, 0, 0, 512);
	assert_int_equal(counting.nr, ++nr);
	assert_int_equal(counting_finish(), 1);
	submit(&fx, &t, AIO_FLUSH, 0, 0, 0);
	assert_int_equal(counting.nr, ++nr);
	assert_int_equal(counting_finish(), 1);
	fx.file.at_once = false; /* O_DIRECT, or a server behind it */
	submit(&fx, &t, AIO_WRITE, 0, 0, 512);
	assert_int_equal(counting.nr, ++nr);
	assert_int_equal(counting_finish(), 1);
	fixture_close(&fx);
}

/* Reads, to the end of the file and beyond, and syncs: alone, beside each other, not beside what the engine
 * has. */
static void all_is_done_here_on_a_file_in_memory(void **state)
{
	struct fixture fx;
	struct test_op write, read, end, flush, long_read;

	(void)state;
	fixture_open(&fx);
	fx.file.in_memory = true;
	memset(bytes, 0x5a, 1024);
	submit(&fx, &write, AIO_WRITE, 0, 512, 512);
	memset(bytes, 0, 1024);
	submit(&fx, &read, AIO_READ, 0, 512, 512);
	assert_int_equal(bytes[511], 0x5a);
	submit(&fx, &end, AIO_READ, 0, 1024, 512);
	submit(&fx, &flush, AIO_FLUSH, 0, 0, 0);
	assert_int_equal(counting.nr, 0);
	queue_turn(fx.q, -1);
	assert_true(read.done && end.done && flush.done);
	assert_int_equal(read.res, 512);
	assert_int_equal(end.res, 0);
	assert_int_equal(flush.res, 0);
	submit(&fx, &long_read, AIO_READ, 0, 0, sizeof(bytes));
	assert_int_equal(counting.nr, 1);
	submit(&fx, &read, AIO_READ, 0, 512, 512);
	submit(&fx, &flush, AIO_FLUSH, 0, 0, 0);
	assert_int_equal(counting.nr, 3);
	assert_int_equal(counting_finish(), 3);
	fixture_close(&fx);
}

static void a_failure_is_the_answer(void **state)
{
	struct fixture fx;
	struct test_op t;

	(void)state;
	fixture_open(&fx);
	assert_int_equal(fcntl(fx.file.fd, F_ADD_SEALS, F_SEAL_WRITE), 0);
	submit(&fx, &t, AIO_WRITE, 0, 0, 512);
	queue_turn(fx.q, 0);
	assert_true(t.done);
	assert_int_equal(t.res, -EPERM);
	assert_int_equal(counting.nr, 0);
	fixture_close(&fx);
}

/* 10 times as long as the slow one took, twice that after the next, and so on; forgotten after a quick one.
 */
static void a_slow_write_sends_the_next_ones_to_the_engine_for_a_while(void **state)
{
	const uint64_t ms = 1000000;
	struct at_once a = { .slow_ns = ms };
	struct fixture fx;
	struct test_op t;

	(void)state;
	at_once_note(&a, 0, ms / 10);
	assert_int_equal(a.pause_until_ns, 0);
	at_once_note(&a, 100 * ms, 102 * ms);
	assert_int_equal(a.pause_until_ns, 122 * ms);
	at_once_note(&a, 200 * ms, 202 * ms);
	assert_int_equal(a.pause_until_ns, 242 * ms);
	for (unsigned i = 0; i < 100; i++)
		at_once_note(&a, 300 * ms, 400 * ms);
	assert_int_equal(a.pause_until_ns, 10400 * ms);
	at_once_note(&a, 10500 * ms, 10500 * ms + 1);
	at_once_note(&a, 11000 * ms, 11001 * ms);
	assert_int_equal(a.pause_until_ns, 11011 * ms);

	fixture_open(&fx);
	fx.q->at_once.pause_until_ns = UINT64_MAX;
	submit(&fx, &t, AIO_WRITE, 0, 0, 512);
	assert_int_equal(counting.nr, 1);
	assert_int_equal(counting_finish(), 1);
	fixture_close(&fx);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_lone_write_is_made_here_and_answered_in_the_next_turn),
		cmocka_unit_test(a_write_beside_what_the_engine_has_goes_to_the_engine),
		cmocka_unit_test(so_many_bytes_are_copied_in_a_turn),
		cmocka_unit_test(what_may_wait_for_a_disk_goes_to_the_engine),
		cmocka_unit_test(all_is_done_here_on_a_file_in_memory),
		cmocka_unit_test(a_failure_is_the_answer),
		cmocka_unit_test(a_slow_write_sends_the_next_ones_to_the_engine_for_a_while),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
