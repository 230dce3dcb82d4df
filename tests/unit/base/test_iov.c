/* SPDX-License-Identifier: MIT */
/*
 * unit/base/test_iov.c - vectors: slices and copies agree with a flat buffer, whatever the cuts
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/iov.h"

#define FLAT_LEN 512
#define SEED 20240917u

static uint32_t rnd_state;

static uint32_t rnd(uint32_t below)
{
	rnd_state = rnd_state * 1664525u + 1013904223u;
	return (uint32_t)((uint64_t)(rnd_state >> 4) * below >> 28);
}

/* Cuts buf into up to 16 pieces, empty ones included. */
static unsigned cut(uint8_t *buf, size_t len, struct iovec *iov)
{
	unsigned n = 0;
	size_t off = 0;

	while (off < len && n < 15) {
		size_t part = rnd(4) ? rnd(60) : 0;

		part = part > len - off ? len - off : part;
		iov[n++] = (struct iovec){ buf + off, part };
		off += part;
	}
	iov[n++] = (struct iovec){ buf + off, len - off };
	return n;
}

static void copies_agree_with_a_flat_buffer(void **state)
{
	uint8_t flat[FLAT_LEN], scattered[FLAT_LEN], buf[FLAT_LEN];
	struct iovec iov[16];

	(void)state;
	rnd_state = SEED;
	for (int round = 0; round < 2000; round++) {
		unsigned n = cut(scattered, FLAT_LEN, iov);
		size_t off = rnd(FLAT_LEN + 50), len = rnd(FLAT_LEN), fit = off >= FLAT_LEN ? 0 : FLAT_LEN - off;

		fit = fit < len ? fit : len;
		assert_int_equal(iov_len(iov, n), FLAT_LEN);
		for (int i = 0; i < FLAT_LEN; i++)
			flat[i] = scattered[i] = (uint8_t)rnd(256);
		assert_int_equal(iov_to_buf(iov, n, off, buf, len), fit);
		assert_memory_equal(buf, flat + (fit ? off : 0), fit);
		for (size_t i = 0; i < len; i++)
			buf[i] = (uint8_t)rnd(256);
		assert_int_equal(iov_from_buf(iov, n, off, buf, len), fit);
		memcpy(flat + (fit ? off : 0), buf, fit);
		assert_memory_equal(flat, scattered, FLAT_LEN);
		assert_int_equal(iov_fill(iov, n, off, 0x5a, len), fit);
		memset(flat + (fit ? off : 0), 0x5a, fit);
		assert_memory_equal(flat, scattered, FLAT_LEN);
	}
}

/* Slices taken one after the other, through a small array, cover the vector exactly once and in order. */
static void slices_cover_the_vector_in_order(void **state)
{
	uint8_t buf[FLAT_LEN];
	struct iovec iov[16], part[4];

	(void)state;
	rnd_state = SEED + 1;
	for (int round = 0; round < 2000; round++) {
		unsigned n = cut(buf, FLAT_LEN, iov), max = 1 + rnd(4);
		size_t off = 0;

		while (off < FLAT_LEN) {
			size_t wish = 1 + rnd(FLAT_LEN), got, at = off;
			unsigned k = iov_slice(part, max, iov, n, off, wish, &got);

			assert_true(k > 0 && k <= max && got > 0 && got <= wish);
			for (unsigned i = 0; i < k; i++) {
				assert_ptr_equal(part[i].iov_base, buf + at);
				at += part[i].iov_len;
			}
			assert_int_equal(at - off, got);
			off += got;
		}
	}
}

static void slice_past_the_end_is_empty(void **state)
{
	uint8_t buf[8];
	struct iovec iov = { buf, 8 }, part[2];
	size_t got = 99;

	(void)state;
	assert_int_equal(iov_slice(part, 2, &iov, 1, 8, 4, &got), 0);
	assert_int_equal(got, 0);
	assert_int_equal(iov_slice(part, 2, &iov, 1, 6, 4, &got), 1);
	assert_int_equal(got, 2);
}

static void alignment_looks_at_addresses_and_lengths(void **state)
{
	static uint8_t buf[8192] __attribute__((aligned(4096)));
	struct iovec ok[] = { { buf, 512 }, { buf + 1024, 1024 } };
	struct iovec odd_len[] = { { buf, 512 }, { buf + 1024, 100 } };
	struct iovec odd_base[] = { { buf + 8, 512 } };

	(void)state;
	assert_true(iov_is_aligned(ok, 2, 512));
	assert_false(iov_is_aligned(ok, 2, 4096));
	assert_false(iov_is_aligned(odd_len, 2, 512));
	assert_false(iov_is_aligned(odd_base, 1, 512));
	assert_true(iov_is_aligned(odd_base, 1, 1));
	assert_true(iov_is_aligned(NULL, 0, 4096));
}

static void zero_search_finds_a_single_byte_anywhere(void **state)
{
	uint8_t buf[100];

	(void)state;
	memset(buf, 0, sizeof(buf));
	assert_true(buf_is_zero(buf, 0));
	for (size_t len = 1; len <= sizeof(buf); len++) {
		assert_true(buf_is_zero(buf, len));
		for (size_t at = 0; at < len; at++) {
			buf[at] = 1;
			assert_false(buf_is_zero(buf, len));
			assert_true(buf_is_zero(buf, at));
			buf[at] = 0;
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(copies_agree_with_a_flat_buffer),
		cmocka_unit_test(slices_cover_the_vector_in_order),
		cmocka_unit_test(slice_past_the_end_is_empty),
		cmocka_unit_test(alignment_looks_at_addresses_and_lengths),
		cmocka_unit_test(zero_search_finds_a_single_byte_anywhere),
	};

	print_message("# seed %u\n", SEED);
	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
