/* SPDX-License-Identifier: MIT */
/*
 * unit/format/test_codec.c - packing and unpacking: what comes back, what damage does, how large the window is
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <zlib.h>

#include "format/codec.h"

#define LEN (64 * 1024)

static uint8_t in[LEN], packed[2 * LEN], out[LEN + 16];
static const enum codec codecs[] = { CODEC_DEFLATE, CODEC_ZSTD };
static const enum codec_level levels[] = { CODEC_FAST, CODEC_RATIO };
static uint64_t seed;

static uint32_t rnd(void)
{
	seed = seed * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(seed >> 33);
}

/* Text-like: repeats near and far, and some noise. */
static void fill(unsigned kind)
{
	for (size_t i = 0; i < LEN; i++) {
		switch (kind) {
		case 0:
			in[i] = 0;
			break;
		case 1:
			in[i] = (uint8_t)(i >= 20000 && rnd() % 8 ? in[i - 20000] : rnd() % 50);
			break;
		default:
			in[i] = (uint8_t)(i >= 100 && rnd() % 50 ? in[i - 1 - rnd() % 100] : rnd());
		}
	}
}

static void what_is_packed_is_unpacked(void **state)
{
	(void)state;
	for (unsigned kind = 0; kind < 3; kind++) {
		for (unsigned i = 0; i < 4; i++) {
			size_t len;

			fill(kind);
			assert_int_equal(codec_pack(codecs[i & 1], levels[i >> 1], in, LEN, packed, LEN - 1, &len), 0);
			assert_true(len < LEN);
			/* Its length is known to a sector only: what follows is somebody else's. */
			memset(packed + len, 0xa5, 511);
			memset(out, 0x5a, sizeof(out));
			assert_int_equal(codec_unpack(codecs[i & 1], packed, len + 511, out, LEN), 0);
			assert_memory_equal(out, in, LEN);
			assert_int_equal(out[LEN], 0x5a);
		}
	}
}

static void noise_does_not_fit(void **state)
{
	size_t len;

	(void)state;
	for (size_t i = 0; i < LEN; i++)
		in[i] = (uint8_t)rnd();
	for (unsigned i = 0; i < 4; i++) {
		memset(packed, 0x77, sizeof(packed));
		assert_int_equal(codec_pack(codecs[i & 1], levels[i >> 1], in, LEN, packed, LEN - 1, &len), -ENOSPC);
		assert_int_equal(packed[LEN - 1], 0x77);
		assert_int_equal(codec_pack(codecs[i & 1], levels[i >> 1], in, LEN, packed, 100, &len), -ENOSPC);
	}
	/* A coder that failed works again. */
	fill(2);
	assert_int_equal(codec_pack(CODEC_DEFLATE, CODEC_RATIO, in, LEN, packed, LEN - 1, &len), 0);
	assert_int_equal(codec_unpack(CODEC_DEFLATE, packed, len, out, LEN), 0);
	assert_memory_equal(out, in, LEN);
}

/* Reads with a window of 4 KiB and nothing else to look back at, as the strictest reader may. */
static int strict_inflate(size_t len)
{
	z_stream z = { .next_in = packed, .avail_in = (uInt)len };
	size_t done = 0;
	int ret = inflateInit2(&z, -12);

	while (ret == Z_OK && done < LEN) {
		uint8_t small[512];

		z.next_out = small;
		z.avail_out = sizeof(small);
		ret = inflate(&z, Z_SYNC_FLUSH);
		memcpy(out + done, small, sizeof(small) - z.avail_out);
		done += sizeof(small) - z.avail_out;
	}
	inflateEnd(&z);
	return (ret == Z_OK || ret == Z_STREAM_END) && done == LEN ? 0 : -1;
}

static void the_window_is_4_kib(void **state)
{
	size_t len;

	(void)state;
	for (unsigned i = 0; i < 2; i++) {
		fill(1);
		assert_int_equal(codec_pack(CODEC_DEFLATE, levels[i], in, LEN, packed, sizeof(packed), &len), 0);
		assert_int_equal(strict_inflate(len), 0);
		assert_memory_equal(out, in, LEN);
	}
}

static void larger_windows_and_open_ends_are_read(void **state)
{
	z_stream z = { 0 };
	size_t len;

	(void)state;
	fill(1);
	for (unsigned i = 0; i < 2; i++) {
		memset(&z, 0, sizeof(z));
		assert_int_equal(deflateInit2(&z, 6, Z_DEFLATED, -15, 8, Z_DEFAULT_STRATEGY), Z_OK);
		z.next_in = in;
		z.avail_in = LEN;
		z.next_out = packed;
		z.avail_out = sizeof(packed);
		/* The second has no last block. */
		assert_true(deflate(&z, i ? Z_SYNC_FLUSH : Z_FINISH) >= 0);
		len = sizeof(packed) - z.avail_out;
		deflateEnd(&z);
		assert_int_equal(codec_unpack(CODEC_DEFLATE, packed, len, out, LEN), 0);
		assert_memory_equal(out, in, LEN);
	}
}

static void damage_is_an_error_and_stays_inside(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 2; i++) {
		size_t len;

		fill(2);
		assert_int_equal(codec_pack(codecs[i], CODEC_FAST, in, LEN, packed, LEN - 1, &len), 0);
		assert_int_equal(codec_unpack(codecs[i], packed, len / 2, out, LEN), -EIO);
		assert_int_equal(codec_unpack(codecs[i], packed, 0, out, LEN), -EIO);
		memset(out, 0x5a, sizeof(out));
		for (unsigned round = 0; round < 2000; round++) {
			size_t at = rnd() % len;
			uint8_t was = packed[at];

			packed[at] = (uint8_t)rnd();
			(void)codec_unpack(codecs[i], packed, len, out, LEN);
			assert_int_equal(out[LEN], 0x5a);
			packed[at] = was;
		}
		for (unsigned round = 0; round < 500; round++) {
			uint8_t *exact = malloc(200); /* a sanitizer sees who reads behind it */

			assert_non_null(exact);
			for (unsigned b = 0; b < 200; b++)
				exact[b] = (uint8_t)rnd();
			if (i)
				memcpy(exact, "\x28\xb5\x2f\xfd", 4);
			(void)codec_unpack(codecs[i], exact, 200, out, LEN);
			free(exact);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_packed_is_unpacked),
		cmocka_unit_test(noise_does_not_fit),
		cmocka_unit_test(the_window_is_4_kib),
		cmocka_unit_test(larger_windows_and_open_ends_are_read),
		cmocka_unit_test(damage_is_an_error_and_stays_inside),
	};

	seed = 20;
	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
