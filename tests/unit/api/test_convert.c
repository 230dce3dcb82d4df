/* SPDX-License-Identifier: MIT */
/*
 * test_convert.c - varve_convert(): what the tools cannot ask for, and what is refused
 */
#include "api_test.h"

#include <sys/stat.h>

static struct varve_queue *queue;

static int group_start(void **state)
{
	struct varve_error err;

	return dir_make(state) || varve_queue_new(&queue, NULL, &err);
}

static int group_end(void **state)
{
	varve_queue_free(queue);
	return dir_remove(state);
}

static void put(struct varve_image *image, uint64_t off, uint64_t len, int byte)
{
	void *buf = malloc(len);
	struct varve_error err;

	assert_non_null(buf);
	memset(buf, byte, len);
	expect_ok(varve_image_write(image, off, buf, len, 0, &err));
	free(buf);
}

static void expect_bytes(struct varve_image *image, uint64_t off, uint64_t len, int byte)
{
	uint8_t *buf = malloc(len);
	struct varve_error err;

	assert_non_null(buf);
	expect_ok(varve_image_read(image, off, buf, len, &err));
	for (uint64_t i = 0; i < len; i++) {
		if (buf[i] != byte)
			fail_msg("byte %llu is 0x%x, not 0x%x", (unsigned long long)(off + i), buf[i], byte);
	}
	free(buf);
}

static void close_image(struct varve_image *image)
{
	struct varve_error err;

	expect_ok(varve_image_close(image, &err));
}

/* Zeroes of the source replace what the target held, data and holes alike; behind the source's end nothing changes. */
static void zeroes_are_written_where_the_target_is_not_zero(void **state)
{
	struct varve_image *source, *target;
	struct varve_error err;

	(void)state;
	make_image("source", "qcow2", 4 * MIB, NULL);
	make_image("target", "qcow2", 5 * MIB, NULL);
	source = open_image("source", VARVE_OPEN_WRITABLE, queue);
	target = open_image("target", VARVE_OPEN_WRITABLE, queue);
	put(target, 0, 5 * MIB, 0x55);
	put(source, MIB, 100000, 0xaa);
	put(source, 3 * MIB, 65536, 0);
	expect_ok(varve_convert(target, &source, 1, NULL, NULL, NULL, &err));
	expect_bytes(target, 0, MIB, 0);
	expect_bytes(target, MIB, 100000, 0xaa);
	expect_bytes(target, MIB + 100000, 3 * MIB - 100000, 0);
	expect_bytes(target, 4 * MIB, MIB, 0x55);
	close_image(source);
	close_image(target);
}

/* Sources that end inside of a cluster are joined there, compressed or not. */
static void sources_meet_inside_of_a_cluster(void **state)
{
	static const unsigned flags[] = { 0, VARVE_CONVERT_COMPRESS, VARVE_CONVERT_OFFLOAD, VARVE_CONVERT_CANONICAL,
					  VARVE_CONVERT_ALL_DATA, VARVE_CONVERT_OUT_OF_ORDER };
	struct varve_image *sources[3], *target;
	static const char *const names[] = { "a", "b", "c" };
	static const uint64_t lens[] = { 1024, 70144, 512 };
	struct varve_error err;

	(void)state;
	for (unsigned i = 0; i < 3; i++) {
		make_image(names[i], "qcow2", lens[i], NULL);
		sources[i] = open_image(names[i], VARVE_OPEN_WRITABLE, queue);
		put(sources[i], 0, lens[i], 0x11 * (int)(i + 1));
	}
	for (unsigned i = 0; i < sizeof(flags) / sizeof(flags[0]); i++) {
		struct varve_convert_options o = { .flags = flags[i] | VARVE_CONVERT_TARGET_IS_ZERO };

		make_image("joined", "qcow2", 1024 + 70144 + 512, NULL);
		target = open_image("joined", VARVE_OPEN_WRITABLE, queue);
		expect_ok(varve_convert(target, sources, 3, &o, NULL, NULL, &err));
		expect_bytes(target, 0, 1024, 0x11);
		expect_bytes(target, 1024, 70144, 0x22);
		expect_bytes(target, 1024 + 70144, 512, 0x33);
		close_image(target);
	}
	for (unsigned i = 0; i < 3; i++)
		close_image(sources[i]);
}

struct seen {
	uint64_t done, total;
	unsigned calls;
};

static void see(void *user_data, uint64_t done, uint64_t total)
{
	struct seen *s = user_data;

	assert_true(done >= s->done && done <= total);
	*s = (struct seen){ done, total, s->calls + 1 };
}

/* It begins at nothing, never goes back, and ends at everything. */
static void progress_ends_at_the_end(void **state)
{
	struct varve_image *source, *target;
	struct seen s = { 0 };
	struct varve_error err;

	(void)state;
	make_image("source", "raw", 9 * MIB, NULL);
	make_image("target", "raw", 9 * MIB, NULL);
	source = open_image("source", VARVE_OPEN_WRITABLE, queue);
	target = open_image("target", VARVE_OPEN_WRITABLE, queue);
	put(source, 3 * MIB, 4 * MIB, 1);
	expect_ok(varve_convert(target, &source, 1, NULL, see, &s, &err));
	assert_int_equal(s.done, 9 * MIB);
	assert_int_equal(s.total, 9 * MIB);
	close_image(source);
	close_image(target);
}

static void what_cannot_be_is_refused_before_anything_is_written(void **state)
{
	struct varve_image *source, *target, *stranger;
	struct varve_error err;
	struct varve_convert_options o = { 0 };

	(void)state;
	make_image("source", "raw", MIB, NULL);
	make_image("target", "raw", MIB, NULL);
	make_image("small", "raw", MIB / 2, NULL);
	source = open_image("source", VARVE_OPEN_WRITABLE, queue);
	put(source, 0, MIB, 0x77);
	target = open_image("target", VARVE_OPEN_WRITABLE, queue);
	stranger = open_image("small", 0, NULL);
	assert_int_equal(varve_convert(target, &source, 0, NULL, NULL, NULL, &err), -EINVAL);
	assert_int_equal(varve_convert(target, &stranger, 1, NULL, NULL, NULL, &err), -EINVAL);
	o.flags = 1u << 31;
	assert_int_equal(varve_convert(target, &source, 1, &o, NULL, NULL, &err), -EINVAL);
	o.flags = VARVE_CONVERT_COMPRESS;
	assert_int_equal(varve_convert(target, &source, 1, &o, NULL, NULL, &err), -ENOTSUP);
	o = (struct varve_convert_options){ .parallel = 17 };
	assert_int_equal(varve_convert(target, &source, 1, &o, NULL, NULL, &err), -EINVAL);
	o = (struct varve_convert_options){ .sparse = 1000 };
	assert_int_equal(varve_convert(target, &source, 1, &o, NULL, NULL, &err), -EINVAL);
	close_image(stranger);
	stranger = open_image("small", VARVE_OPEN_WRITABLE, queue);
	assert_int_equal(varve_convert(stranger, &source, 1, NULL, NULL, NULL, &err), -EINVAL);
	close_image(stranger);
	stranger = open_image("small", 0, queue);
	assert_int_equal(varve_convert(stranger, &stranger, 1, NULL, NULL, NULL, &err), -EACCES);
	close_image(stranger);
	expect_bytes(target, 0, MIB, 0);
	close_image(source);
	close_image(target);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(zeroes_are_written_where_the_target_is_not_zero),
		cmocka_unit_test(sources_meet_inside_of_a_cluster),
		cmocka_unit_test(progress_ends_at_the_end),
		cmocka_unit_test(what_cannot_be_is_refused_before_anything_is_written),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("convert", tests, group_start, group_end);
}
