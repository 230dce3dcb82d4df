/* SPDX-License-Identifier: MIT */
/*
 * unit/base/test_bytes.c - integers on disk have the byte order that their type says
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "base/bytes.h"

static void big_endian_puts_the_high_byte_first(void **state)
{
	be16 a = be16_put(0x0102);
	be32 b = be32_put(0x01020304);
	be64 c = be64_put(0x0102030405060708);

	(void)state;
	assert_memory_equal(&a, "\1\2", 2);
	assert_memory_equal(&b, "\1\2\3\4", 4);
	assert_memory_equal(&c, "\1\2\3\4\5\6\7\10", 8);
}

static void little_endian_puts_the_low_byte_first(void **state)
{
	le16 a = le16_put(0x0102);
	le32 b = le32_put(0x01020304);
	le64 c = le64_put(0x0102030405060708);

	(void)state;
	assert_memory_equal(&a, "\2\1", 2);
	assert_memory_equal(&b, "\4\3\2\1", 4);
	assert_memory_equal(&c, "\10\7\6\5\4\3\2\1", 8);
}

static void get_undoes_put_at_the_edges(void **state)
{
	static const uint64_t values[] = { 0, 1, 0x7f, 0x80, 0xff, 0x8000, 0xffff, 0x80000000, 0xffffffff,
					   0x8000000000000000, UINT64_MAX };

	(void)state;
	for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
		uint64_t v = values[i];

		assert_int_equal(be16_get(be16_put((uint16_t)v)), (uint16_t)v);
		assert_int_equal(be32_get(be32_put((uint32_t)v)), (uint32_t)v);
		assert_true(be64_get(be64_put(v)) == v);
		assert_int_equal(le16_get(le16_put((uint16_t)v)), (uint16_t)v);
		assert_int_equal(le32_get(le32_put((uint32_t)v)), (uint32_t)v);
		assert_true(le64_get(le64_put(v)) == v);
	}
}

/* On-disk structures are laid over buffers at any address. */
static void types_need_no_alignment_and_no_padding(void **state)
{
	struct disk {
		uint8_t a;
		be32 b;
		le16 c;
		be64 d;
	};
	uint8_t raw[16] = { 0, 1, 0, 0, 0, 5, 6, 0, 0, 0, 0, 0, 0, 0, 0, 7 };
	struct disk d;

	(void)state;
	assert_int_equal(sizeof(struct disk), 15);
	memcpy(&d, raw + 1, sizeof(d));
	assert_int_equal(be32_get(d.b), 5);
	assert_int_equal(le16_get(d.c), 6);
	assert_int_equal(be64_get(d.d), 7);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(big_endian_puts_the_high_byte_first),
		cmocka_unit_test(little_endian_puts_the_low_byte_first),
		cmocka_unit_test(get_undoes_put_at_the_edges),
		cmocka_unit_test(types_need_no_alignment_and_no_padding),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
