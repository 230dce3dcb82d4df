/* SPDX-License-Identifier: MIT */
/* test_sim.c - the simulated file: timing by seed or by hand, faults, power cuts */
#include "aio_test.h"

#include <errno.h>

#include "aio/sim.h"

#define NR_OPS 64

struct sim_op {
	struct aio_op op;
	struct iovec iov;
	uint8_t buf[1024];
	struct bench *b;
	bool done;
	int64_t res;
	unsigned order; /* of completion */
};

struct bench {
	struct queue *q;
	struct sim_file *s;
	struct aio_file file;
	struct sim_op ops[NR_OPS];
	unsigned nr_done;
	struct fiber *f; /* to be woken by a completion */
};

static void bench_open(struct bench *b, const struct sim_opts *opts)
{
	memset(b, 0, sizeof(*b));
	b->q = make_virtual_queue();
	CHECK(sim_file_new(&b->s, &b->file, opts) == 0);
	CHECK(aio_attach(b->q, b->file.engine, NULL) == 0);
}

static void bench_close(struct bench *b)
{
	sim_file_free(b->s);
	queue_free(b->q);
}

static void sim_done(struct aio_op *op, int64_t res)
{
	struct sim_op *o = container_of(op, struct sim_op, op);

	CHECK(!o->done);
	o->done = true;
	o->res = res;
	o->order = o->b->nr_done++;
	if (o->b->f)
		fiber_wake(o->b->f);
}

/* Submits ops[i]; a write writes the byte. */
static void submit(struct bench *b, unsigned i, enum aio_opcode opcode, uint32_t flags, uint64_t off,
		   size_t len, uint8_t byte)
{
	struct sim_op *o = &b->ops[i];

	CHECK(len <= sizeof(o->buf));
	memset(o->buf, byte, sizeof(o->buf));
	o->b = b;
	o->done = false;
	o->iov = (struct iovec){ o->buf, len };
	o->op = (struct aio_op){
		.file = &b->file, .opcode = (uint8_t)opcode, .flags = flags, .off = off, .len = len
	};
	o->op.done = sim_done;
	if (opcode == AIO_READ || opcode == AIO_WRITE) {
		o->op.iov = &o->iov;
		o->op.nr_iov = 1;
	}
	aio_submit(b->q, &o->op);
	CHECK(!o->done);
}

static void turns(struct bench *b)
{
	queue_turn(b->q, 0);
}

/* Submits, and lets it complete; manual files only. */
static int64_t run(struct bench *b, unsigned i, enum aio_opcode opcode, uint32_t flags, uint64_t off,
		   size_t len, uint8_t byte)
{
	submit(b, i, opcode, flags, off, len, byte);
	sim_complete(b->s, sim_pending(b->s) - 1, 0);
	turns(b);
	CHECK(b->ops[i].done);
	return b->ops[i].res;
}

static bool keep_all(void *arg, unsigned i)
{
	(void)arg;
	(void)i;
	return true;
}

static bool keep_mask(void *arg, unsigned i)
{
	return *(const uint64_t *)arg >> i & 1;
}

static void expect_cut(struct bench *b, uint64_t mask, uint64_t off, uint8_t byte)
{
	uint64_t len;
	uint8_t *bytes = sim_power_cut(b->s, keep_mask, &mask, 0, &len);

	assert_true(off < len);
	assert_int_equal(bytes[off], byte);
	free(bytes);
}

static const struct sim_opts manual = { .len = 4096, .manual = true };

/* ---- time and order ---- */

static void equal_latency_keeps_the_order_and_takes_virtual_time(void **state)
{
	const struct sim_opts opts = { .seed = 1, .len = 4096, .min_ns = 100, .max_ns = 100 };
	struct bench b;

	(void)state;
	bench_open(&b, &opts);
	for (unsigned i = 0; i < 10; i++)
		submit(&b, i, AIO_WRITE, 0, i * 10, 10, (uint8_t)i);
	queue_advance(b.q, 99);
	turns(&b);
	assert_int_equal(b.nr_done, 0);
	queue_advance(b.q, 1);
	turns(&b);
	assert_int_equal(b.nr_done, 10);
	for (unsigned i = 0; i < 10; i++)
		assert_int_equal(b.ops[i].order, i);
	assert_int_equal(sim_nr_ops(b.s), 10);
	bench_close(&b);
}

static void orders_for_seed(uint64_t seed, unsigned *order)
{
	const struct sim_opts opts = { .seed = seed, .len = 4096, .min_ns = 10, .max_ns = 10000 };
	struct bench b;

	bench_open(&b, &opts);
	for (unsigned i = 0; i < NR_OPS; i++)
		submit(&b, i, AIO_READ, 0, 0, 10, 0);
	while (b.nr_done < NR_OPS) {
		queue_advance(b.q, 7);
		turns(&b);
	}
	for (unsigned i = 0; i < NR_OPS; i++)
		order[i] = b.ops[i].order;
	bench_close(&b);
}

static void seed_decides_the_order(void **state)
{
	unsigned a[NR_OPS], again[NR_OPS], other[NR_OPS];

	(void)state;
	orders_for_seed(7, a);
	orders_for_seed(7, again);
	orders_for_seed(8, other);
	assert_memory_equal(a, again, sizeof(a));
	assert_memory_not_equal(a, other, sizeof(a));
}

static int wait_for_op(struct fiber *f, struct bench *b)
{
	b->f = f;
	while (!b->ops[0].done)
		fiber_wait(f);
	return (int)b->ops[0].res;
}

static int sync_read(struct fiber *f, void *arg)
{
	submit(arg, 0, AIO_READ, 0, 0, 10, 0);
	return wait_for_op(f, arg);
}

static int sync_write(struct fiber *f, void *arg)
{
	submit(arg, 0, AIO_WRITE, 0, 0, 10, 1);
	return wait_for_op(f, arg);
}

static void works_in_real_time_too(void **state)
{
	const struct sim_opts opts = { .seed = 1, .len = 4096, .min_ns = 1000, .max_ns = 500000 };
	struct bench b = { 0 };

	(void)state;
	b.q = make_queue(false, NULL);
	CHECK(sim_file_new(&b.s, &b.file, &opts) == 0);
	CHECK(aio_attach(b.q, b.file.engine, NULL) == 0);
	assert_int_equal(fiber_call(b.q, sync_write, &b), 10);
	assert_int_equal(fiber_call(b.q, sync_read, &b), 10);
	assert_int_equal(b.ops[0].buf[9], 1);
	bench_close(&b);
}

static void nothing_completes_by_itself_when_manual(void **state)
{
	struct bench b;
	uint8_t byte;

	(void)state;
	bench_open(&b, &manual);
	for (unsigned i = 0; i < 3; i++)
		submit(&b, i, AIO_WRITE, 0, 100, 1, (uint8_t)(i + 1));
	queue_advance(b.q, 1000000000);
	turns(&b);
	assert_int_equal(b.nr_done, 0);
	assert_int_equal(sim_pending(b.s), 3);
	assert_ptr_equal(sim_op(b.s, 1), &b.ops[1].op);

	sim_complete(b.s, 1, 0); /* the second */
	assert_false(b.ops[1].done);
	turns(&b);
	assert_true(b.ops[1].done);
	sim_peek(b.s, 100, &byte, 1);
	assert_int_equal(byte, 2);
	assert_ptr_equal(sim_op(b.s, 1), &b.ops[2].op);
	sim_complete(b.s, 1, 0); /* now the third */
	sim_complete(b.s, 0, 0); /* and the first wins */
	turns(&b);
	sim_peek(b.s, 100, &byte, 1);
	assert_int_equal(byte, 1);
	assert_int_equal(b.ops[2].order, 1);
	assert_int_equal(b.ops[0].order, 2);
	bench_close(&b);
}

/* ---- content ---- */

static void reads_writes_zeroes_and_discards(void **state)
{
	struct bench b;
	uint8_t buf[4];

	(void)state;
	bench_open(&b, &manual);
	assert_int_equal(run(&b, 0, AIO_WRITE, 0, 4000, 200, 9), 200); /* grows */
	assert_int_equal(sim_len(b.s), 4200);
	assert_int_equal(run(&b, 1, AIO_READ, 0, 4190, 100, 0), 10);
	assert_int_equal(b.ops[1].buf[9], 9);
	assert_int_equal(b.ops[1].buf[10], 0); /* not touched */
	assert_int_equal(run(&b, 1, AIO_READ, 0, 4200, 100, 0), 0);
	assert_int_equal(run(&b, 2, AIO_ZERO, 0, 4100, 200, 0), 0);
	assert_int_equal(sim_len(b.s), 4300);
	sim_peek(b.s, 4098, buf, 4);
	assert_memory_equal(buf, "\x09\x09\0\0", 4);
	assert_int_equal(run(&b, 3, AIO_DISCARD, 0, 4298, 100, 0), 0);
	assert_int_equal(sim_len(b.s), 4300);
	sim_peek(b.s, 4297, buf, 4); /* past the end: zeroes */
	assert_memory_equal(buf, "\0\xdb\xdb\0", 4);
	sim_poke(b.s, 0, "abcd", 4);
	assert_int_equal(run(&b, 1, AIO_READ, 0, 0, 4, 0), 4);
	assert_memory_equal(b.ops[1].buf, "abcd", 4);
	assert_int_equal(sim_truncate(b.s, 100), 0);
	assert_int_equal(sim_truncate(b.s, 5000), 0);
	sim_peek(b.s, 4000, buf, 4);
	assert_memory_equal(buf, "\0\0\0\0", 4);
	assert_int_equal(sim_truncate(b.s, UINT64_MAX), -EFBIG);
	bench_close(&b);
}

/* ---- faults ---- */

static int64_t third_fails(void *arg, uint64_t nr, const struct aio_op *op)
{
	CHECK(op->opcode == AIO_WRITE || op->opcode == AIO_READ || op->opcode == AIO_FLUSH);
	*(unsigned *)arg += 1;
	return nr == 2 ? -EIO : nr == 3 ? 5 : 0;
}

static void faults_fail_and_shorten(void **state)
{
	struct bench b;
	unsigned asked = 0;
	uint8_t byte;

	(void)state;
	bench_open(&b, &manual);
	sim_set_fault(b.s, third_fails, &asked);
	assert_int_equal(run(&b, 0, AIO_WRITE, 0, 0, 10, 1), 10);
	assert_int_equal(run(&b, 0, AIO_WRITE, 0, 0, 10, 2), 10);
	assert_int_equal(run(&b, 0, AIO_WRITE, 0, 0, 10, 3), -EIO);
	assert_int_equal(run(&b, 0, AIO_WRITE, 0, 0, 10, 4), 5);
	assert_int_equal(asked, 4);
	sim_peek(b.s, 4, &byte, 1);
	assert_int_equal(byte, 4);
	sim_peek(b.s, 5, &byte, 1);
	assert_int_equal(byte, 2);
	sim_set_fault(b.s, NULL, NULL);
	submit(&b, 0, AIO_READ, 0, 0, 10, 0);
	sim_complete(b.s, 0, 3);
	turns(&b);
	assert_int_equal(b.ops[0].res, 3);
	submit(&b, 0, AIO_FLUSH, 0, 0, 0, 0);
	sim_complete(b.s, 0, -ENOSPC);
	turns(&b);
	assert_int_equal(b.ops[0].res, -ENOSPC);
	bench_close(&b);
}

/* ---- power cuts ---- */

static void cut_keeps_what_was_flushed_and_any_of_the_rest(void **state)
{
	struct bench b;

	(void)state;
	bench_open(&b, &manual);
	run(&b, 0, AIO_WRITE, 0, 0, 512, 1);
	assert_int_equal(sim_nr_unstable(b.s), 1);
	expect_cut(&b, 0, 0, 0);
	expect_cut(&b, 1, 0, 1);
	assert_int_equal(run(&b, 1, AIO_FLUSH, 0, 0, 0, 0), 0);
	assert_int_equal(sim_nr_unstable(b.s), 0);
	expect_cut(&b, 0, 0, 1);

	run(&b, 0, AIO_WRITE, 0, 0, 512, 2);
	run(&b, 0, AIO_WRITE, 0, 512, 512, 3);
	submit(&b, 1, AIO_WRITE, 0, 1024, 512, 4); /* pending: may be on the disk all the same */
	assert_int_equal(sim_nr_unstable(b.s), 3);
	for (uint64_t mask = 0; mask < 8; mask++) {
		expect_cut(&b, mask, 0, mask & 1 ? 2 : 1);
		expect_cut(&b, mask, 600, mask & 2 ? 3 : 0);
		expect_cut(&b, mask, 1100, mask & 4 ? 4 : 0);
	}
	sim_complete(b.s, 0, 0);
	turns(&b);
	bench_close(&b);
}

static void flush_covers_only_what_completed_before_it_was_submitted(void **state)
{
	struct bench b;

	(void)state;
	bench_open(&b, &manual);
	submit(&b, 0, AIO_WRITE, 0, 0, 512, 1);
	submit(&b, 1, AIO_FLUSH, 0, 0, 0, 0);
	sim_complete(b.s, 0, 0); /* the write completes while the flush is under way */
	turns(&b);
	sim_complete(b.s, 0, 0);
	turns(&b);
	assert_true(b.ops[1].done);
	assert_int_equal(sim_nr_unstable(b.s), 1);
	expect_cut(&b, 0, 0, 0);
	bench_close(&b);
}

static void fua_is_stable_by_itself_and_on_top(void **state)
{
	struct bench b;

	(void)state;
	bench_open(&b, &manual);
	run(&b, 0, AIO_WRITE, 0, 0, 1024, 1);
	run(&b, 0, AIO_WRITE, AIO_FUA, 512, 512, 2); /* half of it again */
	assert_int_equal(sim_nr_unstable(b.s), 1);
	expect_cut(&b, 0, 0, 0);
	expect_cut(&b, 0, 600, 2);
	expect_cut(&b, 1, 0, 1);
	expect_cut(&b, 1, 600, 2); /* the older write does not come out on top */
	run(&b, 0, AIO_WRITE, AIO_FUA, 0, 1024, 3);
	assert_int_equal(sim_nr_unstable(b.s), 0);
	expect_cut(&b, 0, 0, 3);
	bench_close(&b);
}

/* The kernel marks pages clean although their writing failed: only writing again helps. */
static void failed_flush_is_not_mended_by_the_next(void **state)
{
	struct bench b;

	(void)state;
	bench_open(&b, &manual);
	run(&b, 0, AIO_WRITE, 0, 0, 512, 1);
	submit(&b, 1, AIO_FLUSH, 0, 0, 0, 0);
	sim_complete(b.s, 0, -EIO);
	turns(&b);
	assert_int_equal(b.ops[1].res, -EIO);
	assert_int_equal(run(&b, 1, AIO_FLUSH, 0, 0, 0, 0), 0);
	assert_int_equal(sim_nr_unstable(b.s), 1);
	expect_cut(&b, 0, 0, 0);
	run(&b, 0, AIO_WRITE, 0, 0, 512, 1);
	assert_int_equal(run(&b, 1, AIO_FLUSH, 0, 0, 0, 0), 0);
	assert_int_equal(sim_nr_unstable(b.s), 0);
	expect_cut(&b, 0, 0, 1);
	bench_close(&b);
}

static void torn_write_is_new_or_old_by_sectors(void **state)
{
	struct bench b;
	unsigned mixed = 0;

	(void)state;
	bench_open(&b, &manual);
	run(&b, 0, AIO_WRITE, 0, 512, 1024, 7);
	for (uint64_t seed = 1; seed <= 50; seed++) {
		uint64_t len;
		uint8_t *bytes = sim_power_cut(b.s, keep_all, NULL, seed, &len);

		for (unsigned sector = 1; sector < 3; sector++) {
			for (unsigned i = 1; i < 512; i++)
				assert_int_equal(bytes[512 * sector + i], bytes[512 * sector]);
			assert_true(bytes[512 * sector] == 7 || bytes[512 * sector] == 0);
		}
		mixed += bytes[512] != bytes[1024];
		assert_int_equal(bytes[0], 0);
		free(bytes);
	}
	assert_true(mixed > 5 && mixed < 45);
	bench_close(&b);
}

static void cut_may_leave_the_file_short(void **state)
{
	struct bench b;
	uint64_t len, none = 0;

	(void)state;
	bench_open(&b, &manual);
	run(&b, 0, AIO_WRITE, 0, 8192, 512, 7);
	assert_int_equal(sim_len(b.s), 8704);
	free(sim_power_cut(b.s, keep_mask, &none, 0, &len));
	assert_int_equal(len, 4096);
	free(sim_power_cut(b.s, keep_all, NULL, 0, &len));
	assert_int_equal(len, 8704);
	bench_close(&b);
}

/*
 * Random histories against two rules. Everything kept: what readers see. Nothing kept: each byte holds what
 * it held at the last flush, or something newer that was FUA.
 */
static void random_histories_obey_the_rules_of_power_cuts(void **state)
{
	uint64_t seed = test_seed();
	enum { LEN = 64 };

	(void)state;
	for (unsigned history = 0; history < 300; history++) {
		const struct sim_opts opts = { .len = LEN, .manual = true };
		uint8_t seen[LEN] = { 0 }, safe[LEN] = { 0 }, got[LEN];
		uint64_t len, none = 0;
		uint8_t *bytes;
		struct bench b;

		bench_open(&b, &opts);
		for (unsigned step = 1; step < 60; step++) {
			size_t off = rnd(&seed) % LEN, n = 1 + rnd(&seed) % (LEN - off);
			uint8_t byte = (uint8_t)step;

			switch (rnd(&seed) % 8) {
			case 0:
				run(&b, 0, AIO_FLUSH, 0, 0, 0, 0);
				memcpy(safe, seen, LEN);
				break;
			case 1:
				run(&b, 0, AIO_WRITE, AIO_FUA, off, n, byte);
				memset(seen + off, byte, n);
				memset(safe + off, byte, n);
				break;
			case 2:
				run(&b, 0, AIO_ZERO, 0, off, n, 0);
				memset(seen + off, 0, n);
				break;
			default:
				run(&b, 0, AIO_WRITE, 0, off, n, byte);
				memset(seen + off, byte, n);
			}
			sim_peek(b.s, 0, got, LEN);
			assert_memory_equal(got, seen, LEN);
			bytes = sim_power_cut(b.s, keep_all, NULL, 0, &len);
			assert_memory_equal(bytes, seen, LEN);
			free(bytes);
			bytes = sim_power_cut(b.s, keep_mask, &none, 0, &len);
			assert_memory_equal(bytes, safe, LEN);
			free(bytes);
		}
		bench_close(&b);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(equal_latency_keeps_the_order_and_takes_virtual_time),
		cmocka_unit_test(seed_decides_the_order),
		cmocka_unit_test(works_in_real_time_too),
		cmocka_unit_test(nothing_completes_by_itself_when_manual),
		cmocka_unit_test(reads_writes_zeroes_and_discards),
		cmocka_unit_test(faults_fail_and_shorten),
		cmocka_unit_test(cut_keeps_what_was_flushed_and_any_of_the_rest),
		cmocka_unit_test(flush_covers_only_what_completed_before_it_was_submitted),
		cmocka_unit_test(fua_is_stable_by_itself_and_on_top),
		cmocka_unit_test(failed_flush_is_not_mended_by_the_next),
		cmocka_unit_test(torn_write_is_new_or_old_by_sectors),
		cmocka_unit_test(cut_may_leave_the_file_short),
		cmocka_unit_test(random_histories_obey_the_rules_of_power_cuts),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("sim", tests, NULL, NULL);
}
