/* SPDX-License-Identifier: MIT */
/*
 * test_stats.c - latency buckets: each time is in one, and they are as narrow as stats.h says
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "export/vhost-user-blk/stats.h"

static void expect_inside(uint64_t ns)
{
	unsigned b = blk_latency_bucket(ns);

	assert_true(b < BLK_LATENCY_BUCKETS);
	if (b < BLK_LATENCY_BUCKETS - 1)
		assert_true(ns < blk_latency_end(b));
	if (b)
		assert_true(ns >= blk_latency_end(b - 1));
}

static void every_time_is_in_one_bucket(void **state)
{
	(void)state;
	for (unsigned bit = 0; bit < 64; bit++) {
		for (unsigned i = 0; i < 64; i++) {
			uint64_t ns = (UINT64_C(1) << bit) + ((UINT64_C(1) << bit) / 64) * i;

			expect_inside(ns);
			expect_inside(ns - 1);
		}
	}
	expect_inside(0);
	expect_inside(UINT64_MAX);
}

static void buckets_are_a_quarter_of_an_octave(void **state)
{
	(void)state;
	for (unsigned b = 4; b < BLK_LATENCY_BUCKETS; b++) {
		uint64_t start = blk_latency_end(b - 1), len = blk_latency_end(b) - start;

		assert_true(len * 4 <= start);
		assert_int_equal(blk_latency_bucket(start), b);
	}
	assert_true(blk_latency_end(BLK_LATENCY_BUCKETS - 2) > UINT64_C(30000000000));
}

static void what_is_counted_adds_up(void **state)
{
	static struct blk_stats s, copy;

	(void)state;
	blk_count_add(&s.count[BLK_READS], 4096, false, 5000);
	blk_count_add(&s.count[BLK_READS], 512, true, 9000);
	blk_count_add(&s.count[BLK_FLUSHES], 0, false, 0);
	blk_stats_read(&s, &copy);
	assert_int_equal(copy.count[BLK_READS].requests, 2);
	assert_int_equal(copy.count[BLK_READS].bytes, 4096);
	assert_int_equal(copy.count[BLK_READS].errors, 1);
	assert_int_equal(copy.count[BLK_READS].total_ns, 14000);
	assert_int_equal(copy.count[BLK_READS].max_ns, 9000);
	assert_int_equal(copy.count[BLK_READS].latency[blk_latency_bucket(5000)], 1);
	assert_int_equal(copy.count[BLK_FLUSHES].requests, 1);
	assert_int_equal(copy.count[BLK_WRITES].requests, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_time_is_in_one_bucket),
		cmocka_unit_test(buckets_are_a_quarter_of_an_octave),
		cmocka_unit_test(what_is_counted_adds_up),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
