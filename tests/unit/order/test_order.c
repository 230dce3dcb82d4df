/* SPDX-License-Identifier: MIT */
/*
 * tests/unit/order/test_order.c - the block queue, one promise at a time
 */
#include "bench.h"

#include "block/event.h"

#include <stdlib.h>

static void expect_read(struct bench *b, uint64_t off, const char *bytes)
{
	char buf[64];

	assert_int_equal(bench_read(b, off, buf, strlen(bytes)), 0);
	assert_memory_equal(buf, bytes, strlen(bytes));
}

static void expect_disk(struct bench *b, uint64_t off, const char *bytes)
{
	char buf[64];

	sim_peek(b->sim, off, buf, strlen(bytes));
	assert_memory_equal(buf, bytes, strlen(bytes));
}

static struct order_stats stats(struct bench *b)
{
	struct order_stats s;

	order_stats(b->o, &s);
	return s;
}

/* ---- reading ---- */

static void queued_bytes_are_read_before_they_are_written(void **state)
{
	struct bench *b = bench_new(false, 0);

	sim_poke(b->sim, 1000, "the old content", 15);
	bench_put(b, 1004, "new", 3, ORDER_NONE);
	expect_read(b, 1000, "the new content");
	expect_disk(b, 1000, "the old content");
	assert_int_equal(bench_flush(b), 0);
	expect_disk(b, 1000, "the new content");
	expect_read(b, 1000, "the new content");
	bench_free(b);
}

static void a_put_across_sectors_is_whole(void **state)
{
	struct bench *b = bench_new(false, 0);
	uint8_t bytes[2000], buf[2000];

	for (unsigned i = 0; i < sizeof(bytes); i++)
		bytes[i] = (uint8_t)(i * 7);
	bench_put(b, 509, bytes, sizeof(bytes), ORDER_NONE);
	assert_int_equal(bench_read(b, 509, buf, sizeof(buf)), 0);
	assert_memory_equal(buf, bytes, sizeof(buf));
	assert_int_equal(bench_flush(b), 0);
	sim_peek(b->sim, 509, buf, sizeof(buf));
	assert_memory_equal(buf, bytes, sizeof(buf));
	bench_free(b);
}

static void beyond_the_end_of_the_file_zeroes_are_read(void **state)
{
	struct bench *b = bench_new(false, 0);
	uint8_t buf[32], expected[32] = { 0 };

	sim_poke(b->sim, BENCH_LEN - 4, "tail", 4);
	memcpy(expected, "tail", 4);
	bench_put(b, BENCH_LEN + 10, "x", 1, ORDER_NONE);
	expected[14] = 'x';
	assert_int_equal(bench_read(b, BENCH_LEN - 4, buf, sizeof(buf)), 0);
	assert_memory_equal(buf, expected, sizeof(buf));
	bench_free(b);
}

static void an_unreadable_file_is_an_error(void **state)
{
	struct bench *b = bench_new(false, 0);
	uint8_t buf[8];

	b->fail_nr = 0;
	assert_int_equal(bench_read(b, 0, buf, sizeof(buf)), -EIO);
	bench_free(b);
}

static int job_read_8(struct fiber *f, struct bench *b, void *buf)
{
	return order_read(f, b->o, 0, buf, 8);
}

/*
 * The read of the file takes the old bytes; before it returns the new ones are written and leave the
 * queue.
 */
static void a_read_that_meets_a_write_out_sees_the_newest(void **state)
{
	struct bench *b = bench_new(true, 0);
	struct put_args put = { 0, "newbytes", 8, ORDER_NONE, 0 };
	struct job putting, flushing, reading;
	char buf[8];

	sim_poke(b->sim, 0, "oldbytes", 8);
	bench_start(b, &putting, job_put, &put);
	bench_start(b, &flushing, job_flush, NULL);
	b->hold_reads = true;
	bench_start(b, &reading, job_read_8, buf);
	assert_int_equal(sim_pending(b->sim), 2);
	bench_complete(b, 1, 0); /* the read */
	bench_complete(b, 0, 0); /* the write */
	bench_complete(b, 0, 0); /* the sync */
	assert_true(flushing.done);
	assert_true(order_clean(b->o));
	assert_false(reading.done);
	bench_release_reads(b);
	bench_finish(b);
	assert_memory_equal(buf, "newbytes", 8);
	bench_free(b);
}

/* ---- sections and syncs ---- */

static void puts_behind_one_barrier_cost_two_syncs(void **state)
{
	struct bench *b = bench_new(false, 0);

	for (unsigned i = 0; i < 100; i++) {
		order_mark refcount = bench_put(b, 2 * i, "rc", 2, ORDER_NONE), mark;
		char data[64];

		memset(data, 'd', sizeof(data));
		assert_int_equal(bench_data_write(b, 32768 + 64 * i, data, sizeof(data)), 0);
		mark = order_max(order_now(b->o), refcount);
		bench_put(b, 16384 + 8 * i, "l2 entry", 8, mark);
	}
	assert_int_equal(b->nr_flushes, 0);
	assert_int_equal(stats(b).queued_sections, 2);
	assert_int_equal(stats(b).barriers_asked, 100);
	b->nr_writes = 0;
	assert_int_equal(bench_flush(b), 0);
	assert_int_equal(b->nr_flushes, 2);
	assert_int_equal(b->nr_writes, 2); /* neighbours are joined */
	assert_int_equal(stats(b).syncs, 2);
	assert_int_equal(stats(b).queued_bytes, 0);
	assert_int_equal(stats(b).bytes, 1000);
	bench_free(b);
}

static void the_entry_is_written_after_the_sync_of_what_it_needs(void **state)
{
	struct bench *b = bench_new(true, 0);
	struct put_args first = { 512, "first", 5, ORDER_NONE, 0 }, second = { 0, "second", 6, 0, 0 };
	struct job j, flushing;

	bench_start(b, &j, job_put, &first);
	second.after = first.mark;
	bench_start(b, &j, job_put, &second);
	assert_true(second.mark > first.mark);
	bench_start(b, &flushing, job_flush, NULL);
	assert_int_equal(sim_pending(b->sim), 1);
	assert_int_equal(sim_op(b->sim, 0)->off, 512);
	bench_complete(b, 0, 0);
	assert_int_equal(sim_pending(b->sim), 1);
	assert_int_equal(sim_op(b->sim, 0)->opcode, AIO_FLUSH);
	assert_true(order_durable(b->o) < first.mark);
	bench_complete(b, 0, 0);
	assert_true(order_durable(b->o) >= first.mark);
	assert_int_equal(sim_op(b->sim, 0)->opcode, AIO_WRITE);
	assert_int_equal(sim_op(b->sim, 0)->off, 0);
	bench_complete(b, 0, 0);
	assert_int_equal(sim_op(b->sim, 0)->opcode, AIO_FLUSH);
	bench_finish(b);
	assert_int_equal(flushing.ret, 0);
	assert_true(order_durable(b->o) >= second.mark);
	bench_free(b);
}

static void a_later_put_to_the_same_place_wins_on_disk(void **state)
{
	struct bench *b = bench_new(false, 0);
	order_mark m1, m2, m3;

	m1 = bench_put(b, 100, "AAAA", 4, ORDER_NONE);
	m2 = bench_put(b, 100, "BBBB", 4, m1);
	m3 = bench_put(b, 102, "CC", 2, ORDER_NONE); /* must not go in front of B */
	assert_true(m2 > m1);
	assert_int_equal(m3, m2);
	expect_read(b, 100, "BBCC");
	assert_int_equal(bench_flush(b), 0);
	expect_disk(b, 100, "BBCC");
	bench_free(b);
}

/* Only bytes that overlap count, not the sector they share. */
static void a_put_beside_a_later_entry_stays_in_the_open_section(void **state)
{
	struct bench *b = bench_new(false, 0);
	order_mark m1 = bench_put(b, 100, "A", 1, ORDER_NONE);

	assert_true(bench_put(b, 101, "B", 1, m1) > m1);
	assert_int_equal(bench_put(b, 102, "C", 1, ORDER_NONE), m1);
	assert_int_equal(bench_flush(b), 0);
	expect_disk(b, 100, "ABC");
	bench_free(b);
}

static void neighbours_are_joined_and_rewrites_merged(void **state)
{
	struct bench *b = bench_new(false, 0);

	for (int round = 0; round < 3; round++) {
		for (int i = 255; i >= 0; i--) /* any order of arrival */
			bench_put(b, 8 * (unsigned)(i * 37 % 256), "8 bytes!", 8, ORDER_NONE);
	}
	assert_int_equal(stats(b).puts, 768);
	assert_int_equal(stats(b).merges, 768 - 4);
	assert_int_equal(bench_flush(b), 0);
	assert_int_equal(stats(b).writes, 1);
	assert_int_equal(stats(b).bytes, 2048);
	bench_free(b);
}

/* An event travels with the bytes to the disk. For who listens, neighbours of other events are writes of their own. */
static void a_write_says_which_events_it_is(void **state)
{
	struct bench *b = bench_new(false, 0);

	order_as(b->o, EVENT_L2_ALLOC_WRITE);
	bench_put(b, 0, "new table", 9, ORDER_NONE);
	order_as(b->o, EVENT_L2_UPDATE);
	bench_put(b, 0, "its entry", 9, ORDER_NONE);
	order_as(b->o, EVENT_REFBLOCK_UPDATE_PART);
	bench_put(b, 2048, "count", 5, ORDER_NONE);
	bench_put(b, 4096, "header", 6, ORDER_NONE); /* the event was the last one's alone */
	assert_int_equal(bench_flush(b), 0);
	assert_int_equal(b->nr_flags, 3);
	assert_int_equal(b->flags[0], req_flags_of(EVENT_L2_ALLOC_WRITE, EVENT_L2_UPDATE));
	assert_int_equal(b->flags[1], req_flags_of(EVENT_REFBLOCK_UPDATE_PART, EVENT_UNNAMED));
	assert_int_equal(b->flags[2], REQ_META);
	for (unsigned listens = 0; listens < 2; listens++) {
		uint8_t sector[512] = { 1 };

		b->node.flags = listens ? NODE_EVENTS : 0;
		b->nr_flags = 0;
		for (unsigned i = 0; i < 2; i++) {
			order_as(b->o, i ? EVENT_L2_UPDATE : EVENT_REFBLOCK_UPDATE_PART);
			bench_put(b, i * 512, sector, 512, ORDER_NONE);
		}
		assert_int_equal(bench_flush(b), 0);
		assert_int_equal(b->nr_flags, 1 + listens);
	}
	bench_free(b);
}

static void a_long_run_is_written_in_several_vectors(void **state)
{
	struct bench *b = bench_new(false, 0);
	uint8_t *big = malloc(MiB(1)), *buf = malloc(MiB(1));

	memset(big, 0x5a, MiB(1));
	bench_put(b, 4096, big, MiB(1), ORDER_NONE);
	assert_int_equal(bench_flush(b), 0);
	assert_in_range(stats(b).writes, 2, 4);
	sim_peek(b->sim, 4096, buf, MiB(1));
	assert_memory_equal(buf, big, MiB(1));
	free(big);
	free(buf);
	bench_free(b);
}

static void waiting_for_now_syncs_data_once_when_nothing_is_queued(void **state)
{
	struct bench *b = bench_new(false, 0);
	order_mark m = order_now(b->o);

	assert_true(order_clean(b->o));
	assert_int_equal(bench_wait(b, m), 0);
	assert_int_equal(b->nr_flushes, 1);
	assert_int_equal(bench_wait(b, m), 0); /* durable already */
	assert_int_equal(b->nr_flushes, 1);
	assert_int_equal(bench_wait(b, ORDER_NONE), 0);
	assert_int_equal(b->nr_flushes, 1);
	assert_int_equal(bench_flush(b), 0); /* new data may have come */
	assert_int_equal(b->nr_flushes, 2);
	bench_free(b);
}

static void waiting_for_an_early_mark_leaves_later_sections_queued(void **state)
{
	struct bench *b = bench_new(false, 0);
	order_mark m1 = bench_put(b, 0, "1", 1, ORDER_NONE), m2 = bench_put(b, 1, "2", 1, m1);

	assert_int_equal(bench_wait(b, m1), 0);
	assert_int_equal(b->nr_flushes, 1);
	assert_int_equal(order_durable(b->o), m1);
	assert_false(order_clean(b->o));
	assert_int_equal(bench_wait(b, m2), 0);
	assert_int_equal(b->nr_flushes, 2);
	assert_true(order_clean(b->o));
	bench_free(b);
}

static void all_covers_later_sections_too(void **state)
{
	struct bench *b = bench_new(false, 0);
	order_mark m1 = bench_put(b, 0, "1", 1, ORDER_NONE), m2 = bench_put(b, 1, "2", 1, m1);

	assert_int_equal(order_now(b->o), m1);
	assert_int_equal(order_all(b->o), m2);
	assert_true(bench_put(b, 2, "3", 1, order_all(b->o)) > m2);
	assert_int_equal(bench_flush(b), 0);
	bench_free(b);
}

/*
 * The sync of a section is under way when data completes. A mark asked for now must not be the one of that
 * sync: it may have passed the data by.
 */
static void now_never_names_a_section_whose_sync_has_begun(void **state)
{
	struct bench *b = bench_new(true, 0);
	struct put_args put = { 0, "x", 1, ORDER_NONE, 0 };
	struct job j, flushing, waiting;
	order_mark before, during;

	bench_start(b, &j, job_put, &put);
	before = order_now(b->o);
	assert_int_equal(before, put.mark);
	bench_start(b, &flushing, job_flush, NULL);
	assert_true(order_now(b->o) > before); /* closed when writing began */
	bench_complete(b, 0, 0);	       /* the write; now the sync is pending */
	assert_int_equal(sim_op(b->sim, 0)->opcode, AIO_FLUSH);
	during = order_now(b->o);
	bench_start(b, &waiting, job_wait, &during);
	assert_int_equal(sim_pending(b->sim), 1);
	bench_complete(b, 0, 0);
	assert_true(flushing.done);
	assert_false(waiting.done);
	assert_true(order_durable(b->o) < during);
	assert_int_equal(sim_op(b->sim, 0)->opcode, AIO_FLUSH); /* a sync of its own */
	bench_finish(b);
	assert_int_equal(waiting.ret, 0);
	assert_int_equal(b->nr_flushes, 2);
	bench_free(b);
}

/*
 * What completes while the section is being written is served by the same sync, if nothing else was put
 * meanwhile.
 */
static void a_sync_also_serves_who_asked_before_it_began(void **state)
{
	struct bench *b = bench_new(true, 0);
	struct put_args put = { 0, "x", 1, ORDER_NONE, 0 };
	struct job j, flushing, waiting;
	order_mark during;

	bench_start(b, &j, job_put, &put);
	bench_start(b, &flushing, job_flush, NULL);
	during = order_now(b->o);
	bench_start(b, &waiting, job_wait, &during);
	bench_finish(b);
	assert_int_equal(waiting.ret, 0);
	assert_int_equal(b->nr_flushes, 1);
	bench_free(b);
}

/* ---- several fibers ---- */

static void concurrent_flushes_share_their_syncs(void **state)
{
	struct bench *b = bench_new(true, 0);
	struct job jobs[20];

	for (unsigned i = 0; i < 20; i++)
		bench_start(b, &jobs[i], job_flush, NULL);
	assert_int_equal(sim_pending(b->sim), 1);
	bench_finish(b);
	for (unsigned i = 0; i < 20; i++)
		assert_int_equal(jobs[i].ret, 0);
	assert_int_equal(b->nr_flushes, 2); /* the one under way, and one for the nineteen */
	bench_free(b);
}

static void waiters_share_an_error_and_nobody_hammers_the_disk(void **state)
{
	struct bench *b = bench_new(true, 0);
	struct put_args put = { 0, "x", 1, ORDER_NONE, 0 };
	struct job j, jobs[10];

	bench_start(b, &j, job_put, &put);
	for (unsigned i = 0; i < 10; i++)
		bench_start(b, &jobs[i], job_flush, NULL);
	assert_int_equal(sim_pending(b->sim), 1);
	bench_complete(b, 0, -ENOSPC);
	for (unsigned i = 0; i < 10; i++) {
		assert_true(jobs[i].done);
		assert_int_equal(jobs[i].ret, -ENOSPC);
	}
	assert_int_equal(b->nr_writes, 1);
	assert_int_equal(stats(b).errors, 1);
	bench_free(b);
}

/* A section that failed is closed, but what is put meanwhile and the retry get along. */
static void puts_after_a_failure_follow_the_retry(void **state)
{
	struct bench *b = bench_new(false, 0);

	bench_put(b, 0, "AA", 2, ORDER_NONE);
	b->fail_all = true;
	assert_int_equal(bench_flush(b), -EIO);
	bench_put(b, 1, "B", 1, ORDER_NONE);
	expect_read(b, 0, "AB");
	b->fail_all = false;
	assert_int_equal(bench_flush(b), 0);
	expect_disk(b, 0, "AB");
	bench_free(b);
}

/* ---- errors ---- */

/*
 * Three sections, with data around: op `nr` of the flush fails; the second flush writes what was missing.
 * True: there was no op `nr`.
 */
static bool fail_one(int64_t nr)
{
	struct bench *b = bench_new(false, 0);
	order_mark m;
	int ret;

	bench_put(b, 0, "one", 3, ORDER_NONE);
	bench_put(b, 4096, "uno", 3, ORDER_NONE);
	m = order_now(b->o);
	m = bench_put(b, 512, "two", 3, m);
	bench_put(b, 1024, "three", 5, m);
	b->fail_nr = (int64_t)sim_nr_ops(b->sim) + nr;
	ret = bench_flush(b);
	if (ret == 0) {
		assert_true((uint64_t)b->fail_nr >= sim_nr_ops(b->sim)); /* no more ops to fail */
	} else {
		assert_int_equal(ret, -EIO);
		assert_false(order_clean(b->o));
		/* Everything not durable is still read. */
		expect_read(b, 0, "one");
		expect_read(b, 4096, "uno");
		expect_read(b, 512, "two");
		expect_read(b, 1024, "three");
		b->fail_nr = -1;
		assert_int_equal(bench_flush(b), 0);
	}
	assert_true(order_clean(b->o));
	expect_disk(b, 0, "one");
	expect_disk(b, 4096, "uno");
	expect_disk(b, 512, "two");
	expect_disk(b, 1024, "three");
	bench_free(b);
	return ret == 0;
}

static void every_single_failing_operation_is_retried(void **state)
{
	int64_t nr = 0;

	while (!fail_one(nr))
		nr++;
	assert_int_equal(nr, 7); /* 2 writes + sync, write + sync, write + sync */
}

static void a_failed_sync_is_answered_by_writing_again(void **state)
{
	struct bench *b = bench_new(false, 0);

	bench_put(b, 0, "one", 3, ORDER_NONE);
	bench_put(b, 600, "two", 3, ORDER_NONE);
	b->fail_nr = 2;
	assert_int_equal(bench_flush(b), -EIO);
	assert_int_equal(b->nr_writes, 2);
	assert_int_equal(order_durable(b->o), ORDER_NONE);
	b->nr_writes = 0;
	assert_int_equal(bench_flush(b), 0);
	assert_int_equal(b->nr_writes, 2);
	bench_free(b);
}

static void a_failed_sync_of_data_alone_leaves_the_queue_unclean(void **state)
{
	struct bench *b = bench_new(false, 0);

	b->fail_nr = 0;
	assert_int_equal(bench_flush(b), -EIO);
	assert_false(order_clean(b->o));
	assert_int_equal(bench_flush(b), 0);
	assert_true(order_clean(b->o));
	assert_int_equal(b->nr_flushes, 2);
	bench_free(b);
}

/* ---- limits ---- */

static void beyond_the_limit_a_put_writes_out(void **state)
{
	struct bench *b = bench_new(false, KiB(16));
	unsigned i;

	for (i = 0; b->nr_writes == 0 && i < 100; i++) {
		assert_true(stats(b).queued_bytes <= KiB(16));
		bench_put(b, 1024 * i, "x", 1, ORDER_NONE);
	}
	assert_in_range(i, 20, 32);
	bench_settle(b);
	assert_true(order_clean(b->o));
	assert_int_equal(stats(b).write_outs[ORDER_SIZE], 1);
	assert_in_range(stats(b).queued_bytes_max, KiB(16), KiB(17));
	bench_free(b);
}

static void beyond_twice_the_limit_puts_wait_for_room(void **state)
{
	struct bench *b = bench_new(true, KiB(16));
	struct put_args args[100];
	struct job jobs[100];
	unsigned nr;

	for (nr = 0; nr < 100; nr++) {
		args[nr] = (struct put_args){ 1024 * nr, "x", 1, ORDER_NONE, 0 };
		bench_start(b, &jobs[nr], job_put, &args[nr]);
		/* Beyond the limit somebody writes, but no put waits for it. */
		assert_int_equal(sim_pending(b->sim) > 0, stats(b).queued_bytes > KiB(16));
		if (!jobs[nr].done)
			break;
	}
	assert_true(stats(b).queued_bytes > KiB(32));
	assert_true(stats(b).queued_bytes < KiB(33));
	bench_finish(b);
	assert_int_equal(jobs[nr].ret, 0);
	assert_true(stats(b).queued_bytes <= KiB(32));
	bench_free(b);
}

/* All fibers of the level wait for room: the one in the background finds no place among them. */
static void puts_that_fill_the_pool_make_room_themselves(void **state)
{
	enum { NR = 3 * FIBER_MAX_PER_LEVEL };
	static char bytes[16][KiB(2)];
	struct bench *b = bench_new(true, KiB(16));
	static struct put_args args[NR];
	static struct job jobs[NR];

	memset(bytes, 'x', sizeof(bytes));
	for (unsigned i = 0; i < NR; i++) {
		args[i] = (struct put_args){ KiB(2) * i, bytes[i % 16], KiB(2), ORDER_NONE, 0 };
		bench_launch(b, &jobs[i], job_put, &args[i]);
	}
	bench_finish(b);
	for (unsigned i = 0; i < NR; i++)
		assert_int_equal(jobs[i].ret, 0);
	bench_free(b);
}

#define SECOND 1000000000ull

static void what_is_old_is_written_out_without_a_flush(void **state)
{
	struct bench *b = bench_new(false, 0);
	order_mark mark = bench_put(b, 0, "x", 1, ORDER_NONE);

	bench_put(b, 512, "y", 1, mark);
	queue_advance(b->q, 5 * SECOND - 1);
	bench_settle(b);
	assert_int_equal(b->nr_writes, 0);
	queue_advance(b->q, 1);
	for (int i = 0; i < 4; i++)
		bench_settle(b);
	assert_true(order_clean(b->o));
	assert_int_equal(stats(b).write_outs[ORDER_AGE], 1);
	assert_int_equal(stats(b).write_outs[ORDER_FLUSH], 0);
	expect_disk(b, 0, "x");
	expect_disk(b, 512, "y");
	bench_free(b);
}

/* The time counts from the first put behind the flush, not from the timer that the flushed one had set. */
static void a_flush_gives_later_puts_their_own_time(void **state)
{
	struct bench *b = bench_new(false, 0);

	bench_put(b, 0, "x", 1, ORDER_NONE);
	queue_advance(b->q, 4 * SECOND);
	assert_int_equal(bench_flush(b), 0);
	bench_put(b, 0, "y", 1, ORDER_NONE);
	queue_advance(b->q, 4 * SECOND);
	bench_settle(b);
	expect_disk(b, 0, "x");
	queue_advance(b->q, SECOND);
	bench_settle(b);
	bench_settle(b);
	expect_disk(b, 0, "y");
	assert_int_equal(stats(b).write_outs[ORDER_AGE], 1);
	bench_free(b);
}

static void an_old_entry_that_cannot_be_written_is_tried_again(void **state)
{
	struct bench *b = bench_new(false, 0);

	order_set_age(b->o, SECOND);
	b->fail_all = true;
	bench_put(b, 0, "x", 1, ORDER_NONE);
	for (int i = 1; i <= 3; i++) {
		queue_advance(b->q, SECOND);
		bench_settle(b);
		bench_settle(b);
		assert_int_equal(stats(b).errors, i);
	}
	assert_false(order_clean(b->o));
	b->fail_all = false;
	queue_advance(b->q, SECOND);
	bench_settle(b);
	bench_settle(b);
	assert_true(order_clean(b->o));
	expect_disk(b, 0, "x");
	bench_free(b);
}

static void without_a_limit_of_age_nothing_is_written_by_itself(void **state)
{
	struct bench *b = bench_new(false, 0);

	bench_put(b, 0, "x", 1, ORDER_NONE);
	order_set_age(b->o, 0);
	queue_advance(b->q, 1000 * SECOND);
	bench_put(b, 512, "y", 1, ORDER_NONE);
	queue_advance(b->q, 1000 * SECOND);
	bench_settle(b);
	assert_int_equal(b->nr_writes, 0);
	bench_free(b);
}

/* The queue is given up while its timer's write-out is on its way: that is waited for. */
static void freeing_waits_for_the_background(void **state)
{
	struct bench *b = bench_new(true, 0);

	bench_put(b, 0, "x", 1, ORDER_NONE);
	queue_advance(b->q, 5 * SECOND);
	bench_settle(b);
	assert_int_equal(sim_pending(b->sim), 1);
	bench_free(b);
}

static int job_put_until_refused(struct fiber *f, struct bench *b, void *arg)
{
	unsigned *nr = arg;
	int ret;

	do {
		ret = order_put(f, b->o, 1024 * *nr, "x", 1, ORDER_NONE, NULL);
		*nr += ret == 0;
	} while (ret == 0 && *nr < 1000);
	return ret;
}

static void a_disk_that_keeps_failing_cannot_eat_all_memory(void **state)
{
	struct bench *b = bench_new(false, KiB(16));
	struct order_stats before;
	unsigned nr = 0;

	b->fail_all = true;
	assert_int_equal(bench_run(b, job_put_until_refused, &nr), -ENOMEM);
	assert_in_range(nr, 40, 64);
	before = stats(b);
	assert_int_equal(before.puts, nr);
	assert_int_equal(bench_run(b, job_put_until_refused, &nr), -ENOMEM);
	assert_int_equal(stats(b).queued_bytes, before.queued_bytes);

	/*
	 * The operator mends the disk: the next attempt is refused still, but it has written the queue
	 * out.
	 */
	b->fail_all = false;
	assert_int_equal(bench_run(b, job_put_until_refused, &nr), -ENOMEM);
	assert_int_equal(stats(b).queued_bytes, 0);
	bench_put(b, 0, "y", 1, ORDER_NONE);
	assert_int_equal(bench_flush(b), 0);
	for (unsigned i = 1; i < nr; i++)
		expect_disk(b, 1024 * i, "x");
	expect_disk(b, 0, "y");
	bench_free(b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(queued_bytes_are_read_before_they_are_written),
		cmocka_unit_test(a_put_across_sectors_is_whole),
		cmocka_unit_test(beyond_the_end_of_the_file_zeroes_are_read),
		cmocka_unit_test(an_unreadable_file_is_an_error),
		cmocka_unit_test(a_read_that_meets_a_write_out_sees_the_newest),
		cmocka_unit_test(puts_behind_one_barrier_cost_two_syncs),
		cmocka_unit_test(the_entry_is_written_after_the_sync_of_what_it_needs),
		cmocka_unit_test(a_later_put_to_the_same_place_wins_on_disk),
		cmocka_unit_test(a_put_beside_a_later_entry_stays_in_the_open_section),
		cmocka_unit_test(neighbours_are_joined_and_rewrites_merged),
		cmocka_unit_test(a_write_says_which_events_it_is),
		cmocka_unit_test(a_long_run_is_written_in_several_vectors),
		cmocka_unit_test(waiting_for_now_syncs_data_once_when_nothing_is_queued),
		cmocka_unit_test(waiting_for_an_early_mark_leaves_later_sections_queued),
		cmocka_unit_test(all_covers_later_sections_too),
		cmocka_unit_test(now_never_names_a_section_whose_sync_has_begun),
		cmocka_unit_test(a_sync_also_serves_who_asked_before_it_began),
		cmocka_unit_test(concurrent_flushes_share_their_syncs),
		cmocka_unit_test(waiters_share_an_error_and_nobody_hammers_the_disk),
		cmocka_unit_test(puts_after_a_failure_follow_the_retry),
		cmocka_unit_test(every_single_failing_operation_is_retried),
		cmocka_unit_test(a_failed_sync_is_answered_by_writing_again),
		cmocka_unit_test(a_failed_sync_of_data_alone_leaves_the_queue_unclean),
		cmocka_unit_test(beyond_the_limit_a_put_writes_out),
		cmocka_unit_test(beyond_twice_the_limit_puts_wait_for_room),
		cmocka_unit_test(puts_that_fill_the_pool_make_room_themselves),
		cmocka_unit_test(what_is_old_is_written_out_without_a_flush),
		cmocka_unit_test(a_flush_gives_later_puts_their_own_time),
		cmocka_unit_test(an_old_entry_that_cannot_be_written_is_tried_again),
		cmocka_unit_test(without_a_limit_of_age_nothing_is_written_by_itself),
		cmocka_unit_test(freeing_waits_for_the_background),
		cmocka_unit_test(a_disk_that_keeps_failing_cannot_eat_all_memory),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
