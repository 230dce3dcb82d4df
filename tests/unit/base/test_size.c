/* SPDX-License-Identifier: MIT */
/*
 * unit/base/test_size.c - sizes as people write and read them
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "base/error.h"
#include "base/math.h"
#include "base/opts.h"

static void well_formed_sizes_are_read(void **state)
{
	static const struct {
		const char *text;
		uint64_t bytes;
	} cases[] = {
		{ "0", 0 }, { "1", 1 }, { "512", 512 }, { "512b", 512 }, { "512B", 512 }, { "007", 7 },
		{ "1k", 1024 }, { "1K", 1024 }, { "64k", 65536 }, { "1M", MiB(1) }, { "1m", MiB(1) },
		{ "2G", GiB(2) }, { "3T", TiB(3) }, { "1P", 1ull << 50 }, { "1E", 1ull << 60 }, { "15E", 15ull << 60 },
		{ "1.5k", 1536 }, { "1.5G", GiB(1) + MiB(512) }, { "0.5k", 512 }, { "1.0", 1 }, { "1.000b", 1 },
		{ "1.2k", 1229 }, /* 1228.8: to the nearest */
		{ "15.5E", 31ull << 59 }, { "18446744073709551615", UINT64_MAX },
		{ "0x10", 16 }, { "0xfFe", 0xffe }, { "0x1b", 27 },
	};
	uint64_t x;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		x = 77;
		if (size_parse(cases[i].text, &x, NULL) != 0)
			fail_msg("'%s' was refused", cases[i].text);
		if (x != cases[i].bytes)
			fail_msg("'%s' read as %llu", cases[i].text, (unsigned long long)x);
	}
}

static void rubbish_is_refused_and_leaves_the_result(void **state)
{
	static const char *const bad[] = { "", " 1", "1 ", "-1", "+1", "k", ".5", "1.", "1.k", "1.5", "1.5b", "1kb", "1KiB",
					   "1..5k", "1,5k", "0x", "0x1k", "1e3", "0xg", "G1", "1\n" };
	static const char *const large[] = { "16E", "15.99999999999999999999E", "18446744073709551616",
					     "99999999999999999999999", "1000000000000000000k",
					     "0x10000000000000000" };
	uint64_t x = 77;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		if (size_parse(bad[i], &x, NULL) != -EINVAL)
			fail_msg("'%s' was not refused", bad[i]);
	}
	for (size_t i = 0; i < ARRAY_LEN(large); i++) {
		if (size_parse(large[i], &x, NULL) != -ERANGE)
			fail_msg("'%s' was not found too large", large[i]);
	}
	assert_int_equal(x, 77);
}

static void the_end_is_told_to_those_who_read_on(void **state)
{
	const char *end, *text = "1.5k,rest";
	uint64_t x;

	(void)state;
	assert_int_equal(size_parse(text, &x, &end), 0);
	assert_int_equal(x, 1536);
	assert_string_equal(end, ",rest");
}

static void sizes_are_shown_with_three_digits(void **state)
{
	static const struct {
		uint64_t bytes;
		const char *text;
	} cases[] = {
		{ 0, "0 B" }, { 1, "1 B" }, { 512, "512 B" }, { 999, "999 B" }, { 1000, "0.977 KiB" }, { 1024, "1 KiB" },
		{ 1536, "1.5 KiB" }, { 10240, "10 KiB" }, { 10188, "9.95 KiB" }, { 10239, "10 KiB" }, { 65536, "64 KiB" },
		{ 102400, "100 KiB" }, { 1023488, "0.976 MiB" }, { 1024000, "0.977 MiB" }, { MiB(1), "1 MiB" },
		{ GiB(1) + MiB(128), "1.12 GiB" }, { GiB(10), "10 GiB" }, { 196 * 1024, "196 KiB" }, { TiB(1), "1 TiB" },
		{ 1ull << 60, "1 EiB" }, { UINT64_MAX, "16 EiB" },
	};
	char buf[32];

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(cases); i++)
		assert_string_equal(size_format(buf, cases[i].bytes), cases[i].text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(well_formed_sizes_are_read),
		cmocka_unit_test(rubbish_is_refused_and_leaves_the_result),
		cmocka_unit_test(the_end_is_told_to_those_who_read_on),
		cmocka_unit_test(sizes_are_shown_with_three_digits),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
