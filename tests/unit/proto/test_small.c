/* SPDX-License-Identifier: MIT */
/*
 * unit/proto/test_small.c - the null and memory leaves
 */
#include "leaf.h"

static void null_has_the_length_asked_for_and_takes_everything(void **state)
{
	uint8_t buf[100];
	struct leaf l;

	(void)state;
	leaf_open(&l, &driver_null, "", NODE_WRITABLE);
	assert_true(node_len(l.n) == GiB(1));
	leaf_close(&l);
	leaf_open(&l, &driver_null, "size=10M", NODE_WRITABLE);
	assert_true(node_len(l.n) == MiB(10));
	memset(buf, 0xaa, sizeof(buf));
	assert_int_equal(leaf_read(&l, 0, buf, sizeof(buf)), 0);
	assert_int_equal(buf[0], 0xaa); /* left alone */
	assert_int_equal(leaf_write(&l, 0, buf, sizeof(buf), REQ_FUA), 0);
	assert_int_equal(leaf_zero(&l, 0, 100, 0), 0);
	assert_int_equal(leaf_discard(&l, 0, 100), 0);
	assert_int_equal(leaf_flush(&l), 0);
	assert_int_equal(leaf_truncate(&l, 4096, false), 0);
	assert_int_equal(leaf_len(&l), 4096);
	leaf_close(&l);
	leaf_open(&l, &driver_null, "read-zeroes=on", 0);
	leaf_expect(&l, 1000, 5000, 0);
	leaf_close(&l);
	leaf_expect_refused(&driver_null, "size=9E", 0, -EFBIG, "too large");
	leaf_expect_refused(&driver_null, "read-zeroes=perhaps", 0, -EINVAL, "read-zeroes");
}

static void memory_keeps_bytes_and_grows(void **state)
{
	struct leaf l;

	(void)state;
	leaf_open(&l, &driver_memory, "size=1000", NODE_WRITABLE);
	leaf_expect(&l, 0, 3000, 0);
	leaf_fill(&l, 500, 1000, 0x11);
	assert_int_equal(node_len(l.n), 1500);
	leaf_expect(&l, 0, 500, 0);
	leaf_expect(&l, 500, 1000, 0x11);
	/* across the border of two segments */
	leaf_fill(&l, MiB(32) - 1000, 2000, 0x22);
	leaf_expect(&l, MiB(32) - 1000, 2000, 0x22);
	leaf_expect(&l, MiB(32) + 1000, 1000, 0);
	assert_true(leaf_len(&l) == MiB(32) + 1000);
	leaf_close(&l);
}

static void memory_gives_zeroes_for_what_was_discarded_or_cut(void **state)
{
	struct leaf l;

	(void)state;
	leaf_open(&l, &driver_memory, "", NODE_WRITABLE);
	leaf_fill(&l, 0, 50000, 0x33);
	assert_int_equal(leaf_zero(&l, 100, 10000, 0), 0);
	leaf_expect(&l, 0, 100, 0x33);
	leaf_expect(&l, 100, 10000, 0);
	leaf_expect(&l, 10100, 100, 0x33);
	assert_int_equal(leaf_discard(&l, 20000, 100), 0);
	leaf_expect(&l, 19900, 100, 0x33);
	leaf_expect(&l, 20000, 100, 0);
	leaf_expect(&l, 20100, 100, 0x33);
	assert_int_equal(leaf_truncate(&l, 30000, false), 0);
	assert_int_equal(leaf_truncate(&l, 50000, true), 0);
	leaf_expect(&l, 29900, 100, 0x33);
	leaf_expect(&l, 30000, 20000, 0);
	assert_int_equal(leaf_zero(&l, 60000, 1000, 0), 0);
	assert_int_equal(leaf_len(&l), 61000);
	leaf_close(&l);
}

static void memory_ends_at_its_limit(void **state)
{
	uint8_t buf[512] = { 0 };
	struct leaf l;

	(void)state;
	leaf_expect_refused(&driver_memory, "size=2T", 0, -EFBIG, "1 TiB");
	leaf_open(&l, &driver_memory, "size=1T", NODE_WRITABLE);
	leaf_fill(&l, TiB(1) - 512, 512, 0x44);
	assert_int_equal(leaf_write(&l, TiB(1) - 256, buf, sizeof(buf), 0), -ENOSPC);
	assert_int_equal(leaf_zero(&l, TiB(1) - 256, 512, 0), -ENOSPC);
	leaf_expect(&l, TiB(1), 512, 0);
	assert_int_equal(leaf_truncate(&l, TiB(1) + 1, false), -EFBIG);
	leaf_close(&l);
}

static void memory_knows_its_holes(void **state)
{
	uint64_t len;
	struct leaf l;
	bool hole;

	(void)state;
	leaf_open(&l, &driver_memory, "size=1G", NODE_WRITABLE);
	assert_int_equal(leaf_status(&l, 5, 100, &hole, &len), 0);
	assert_true(hole && len == 100);
	leaf_fill(&l, MiB(40), 1, 1);
	assert_int_equal(leaf_status(&l, 5, GiB(1), &hole, &len), 0);
	assert_true(hole && len == MiB(32) - 5);
	assert_int_equal(leaf_status(&l, MiB(33), MiB(1), &hole, &len), 0);
	assert_true(!hole && len == MiB(1));
	leaf_close(&l);
}

static void prefixes_name_the_drivers(void **state)
{
	const char *rest;

	(void)state;
	assert_ptr_equal(driver_by_prefix("null-co://", &rest), &driver_null);
	assert_string_equal(rest, "//");
	assert_ptr_equal(driver_by_prefix("file:a:b", &rest), &driver_file);
	assert_string_equal(rest, "a:b");
	assert_null(driver_by_prefix("/tmp/file:a", &rest));
	assert_int_equal(driver_null.parse_name("//", NULL, NULL), 0);
	assert_int_equal(driver_null.parse_name("", NULL, NULL), 0);
	assert_int_equal(driver_null.parse_name("//x", NULL, NULL), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(null_has_the_length_asked_for_and_takes_everything),
		cmocka_unit_test(memory_keeps_bytes_and_grows),
		cmocka_unit_test(memory_gives_zeroes_for_what_was_discarded_or_cut),
		cmocka_unit_test(memory_ends_at_its_limit),
		cmocka_unit_test(memory_knows_its_holes),
		cmocka_unit_test(prefixes_name_the_drivers),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
