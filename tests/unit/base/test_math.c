/* SPDX-License-Identifier: MIT */
/*
 * unit/base/test_math.c - checked arithmetic and alignment
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/math.h"

static void add_and_mul_report_overflow(void **state)
{
	uint64_t x;

	(void)state;
	assert_false(u64_add(UINT64_MAX - 1, 1, &x));
	assert_true(x == UINT64_MAX);
	assert_true(u64_add(UINT64_MAX, 1, &x));
	assert_false(u64_mul(1ull << 32, (1ull << 32) - 1, &x));
	assert_true(x == 0xffffffff00000000);
	assert_true(u64_mul(1ull << 32, 1ull << 32, &x));
	assert_false(u64_mul(0, UINT64_MAX, &x));
	assert_true(x == 0);
}

static void alignment_rounds_the_right_way(void **state)
{
	(void)state;
	for (uint64_t align = 1; align <= 4096; align *= 2) {
		for (uint64_t x = 0; x < 10000; x += 7) {
			uint64_t down = align_down(x, align), up = align_up(x, align);

			assert_true(down <= x && x <= up);
			assert_true(up - down == (x % align ? align : 0));
			assert_true(down % align == 0 && up % align == 0);
			assert_int_equal(is_aligned(x, align), x % align == 0);
		}
	}
	assert_true(align_up(VARVE_LEN_MAX, 4096) == 1ull << 63);
}

static void powers_of_two_are_known(void **state)
{
	(void)state;
	assert_false(is_pow2(0));
	for (unsigned i = 0; i < 64; i++) {
		assert_true(is_pow2(1ull << i));
		assert_int_equal(log2_u64(1ull << i), i);
		if (i > 1)
			assert_false(is_pow2((1ull << i) - 1));
	}
}

static void div_up_does_not_overflow(void **state)
{
	(void)state;
	assert_true(div_up(0, 5) == 0);
	assert_true(div_up(1, 5) == 1);
	assert_true(div_up(5, 5) == 1);
	assert_true(div_up(6, 5) == 2);
	assert_true(div_up(UINT64_MAX, 512) == 1ull << 55);
	assert_true(div_up(UINT64_MAX, 1) == UINT64_MAX);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(add_and_mul_report_overflow),
		cmocka_unit_test(alignment_rounds_the_right_way),
		cmocka_unit_test(powers_of_two_are_known),
		cmocka_unit_test(div_up_does_not_overflow),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
