/* SPDX-License-Identifier: MIT */
/*
 * test_image.c - opening, synchronous requests, closing
 */
#include "api_test.h"

#include <pthread.h>

static struct varve_error err;

static void what_is_written_is_read_back(void **state)
{
	static const char *const formats[] = { "raw", "qcow2" };
	uint8_t out[100000], in[sizeof(out)];

	(void)state;
	memset(out, 0x5a, sizeof(out));
	for (int i = 0; i < 2; i++) {
		struct varve_image *image;

		make_image("disk", formats[i], 8 * MIB, NULL);
		image = open_image("disk", VARVE_OPEN_WRITABLE, NULL);
		assert_int_equal(varve_image_length(image), 8 * MIB);
		assert_true(varve_image_writable(image));
		assert_string_equal(varve_image_format(image), formats[i]);
		expect_ok(varve_image_write(image, 12345, out, sizeof(out), 0, &err));
		expect_ok(varve_image_flush(image, &err));
		expect_ok(varve_image_close(image, &err));

		image = open_image("disk", 0, NULL);
		assert_false(varve_image_writable(image));
		expect_ok(varve_image_read(image, 12345, in, sizeof(in), &err));
		assert_memory_equal(in, out, sizeof(in));
		expect_ok(varve_image_close(image, &err));
	}
}

static void zeroes_and_discard(void **state)
{
	uint8_t buf[65536], zero[65536] = { 0 };
	struct varve_image *image;

	(void)state;
	make_image("disk", "qcow2", 8 * MIB, NULL);
	image = open_image("disk", VARVE_OPEN_WRITABLE, NULL);
	memset(buf, 1, sizeof(buf));
	for (uint64_t off = 0; off < 3 * sizeof(buf); off += sizeof(buf))
		expect_ok(varve_image_write(image, off, buf, sizeof(buf), VARVE_REQ_FUA, &err));
	expect_ok(varve_image_write_zeroes(image, 0, 65536, 0, &err));
	expect_ok(varve_image_write_zeroes(image, 65536, 65536, VARVE_REQ_MAY_UNMAP | VARVE_REQ_FUA, &err));
	expect_ok(varve_image_discard(image, 131072, 65536, &err));
	for (uint64_t off = 0; off < 3 * sizeof(buf); off += sizeof(buf)) {
		expect_ok(varve_image_read(image, off, buf, sizeof(buf), &err));
		assert_memory_equal(buf, zero, sizeof(buf));
	}
	expect_ok(varve_image_close(image, &err));
}

static void requests_out_of_bounds_are_refused_in_words(void **state)
{
	struct varve_image *image;
	uint8_t buf[512] = { 0 };

	(void)state;
	make_image("disk", "qcow2", MIB, NULL);
	image = open_image("disk", VARVE_OPEN_WRITABLE, NULL);
	assert_int_equal(varve_image_read(image, MIB - 511, buf, 512, &err), -EINVAL);
	assert_non_null(strstr(err.message, "1048065"));
	assert_int_equal(varve_image_write(image, MIB, buf, 1, 0, &err), -EINVAL);
	assert_int_equal(varve_image_write(image, UINT64_MAX, buf, 512, 0, &err), -EINVAL);
	assert_int_equal(varve_image_discard(image, 1, UINT64_MAX, &err), -EINVAL);
	assert_int_equal(varve_image_write_zeroes(image, 0, MIB + 1, 0, &err), -EINVAL);
	assert_int_equal(varve_image_write(image, 0, buf, 512, 0x80, &err), -EINVAL);
	expect_ok(varve_image_read(image, MIB, buf, 0, &err));
	assert_int_equal(varve_image_read(image, MIB - 511, buf, 512, NULL), -EINVAL);
	expect_ok(varve_image_close(image, &err));
}

static void a_read_only_image_refuses_changes(void **state)
{
	struct varve_image *image;
	uint8_t buf[512] = { 0 };

	(void)state;
	make_image("disk", "qcow2", MIB, NULL);
	image = open_image("disk", 0, NULL);
	assert_int_equal(varve_image_write(image, 0, buf, 512, 0, &err), -EACCES);
	assert_int_equal(varve_image_discard(image, 0, 512, &err), -EACCES);
	assert_int_equal(varve_image_write_zeroes(image, 0, 512, 0, &err), -EACCES);
	expect_ok(varve_image_flush(image, &err));
	expect_ok(varve_image_close(image, &err));
}

static void wrong_open_options_are_refused(void **state)
{
	struct varve_image *image = (void *)1;
	struct varve_open_options oo = { .cache = "fast" };

	(void)state;
	make_image("disk", "qcow2", MIB, NULL);
	assert_int_equal(varve_image_open(&image, path_of("disk"), &oo, &err), -EINVAL);
	assert_non_null(strstr(err.message, "fast"));
	oo = (struct varve_open_options){ .flags = 1u << 31 };
	assert_int_equal(varve_image_open(&image, path_of("disk"), &oo, &err), -EINVAL);
	oo = (struct varve_open_options){ .flags = VARVE_OPEN_WRITABLE | VARVE_OPEN_FORCE_SHARE };
	assert_int_equal(varve_image_open(&image, path_of("disk"), &oo, &err), -EINVAL);
	/* Tables that are not loaded cannot be changed: a discard once tried. */
	oo = (struct varve_open_options){ .flags = VARVE_OPEN_WRITABLE | VARVE_OPEN_CHECK };
	assert_int_equal(varve_image_open(&image, path_of("disk"), &oo, &err), -EINVAL);
	oo = (struct varve_open_options){ .flags = VARVE_OPEN_WRITABLE | VARVE_OPEN_NO_IO };
	assert_int_equal(varve_image_open(&image, path_of("disk"), &oo, &err), -EINVAL);
	oo = (struct varve_open_options){ .flags = VARVE_OPEN_IMAGE_OPTS, .format = "qcow2" };
	assert_int_equal(varve_image_open(&image, "driver=qcow2", &oo, &err), -EINVAL);
	assert_true(varve_image_open(&image, "", NULL, &err) < 0);
	assert_int_equal(varve_image_open(&image, path_of("none"), NULL, &err), -ENOENT);
	assert_non_null(strstr(err.message, "none"));
	assert_ptr_equal(image, (void *)1); /* outputs are written on success only */
}

static void closing_nothing_is_fine(void **state)
{
	(void)state;
	assert_int_equal(varve_image_close(NULL, NULL), 0);
	assert_int_equal(varve_export_stop(NULL, NULL), 0);
	varve_queue_free(NULL);
	assert_int_equal(varve_image_attach(NULL, NULL, NULL), -EINVAL);
	varve_image_detach(NULL, NULL);
	assert_int_equal(varve_image_read(NULL, 0, NULL, 0, NULL), -EINVAL);
}

static void an_info_only_image_does_no_io(void **state)
{
	struct varve_image *image;
	char *json, buf[512];

	(void)state;
	make_image("disk", "qcow2", MIB, NULL);
	image = open_image("disk", VARVE_OPEN_NO_BACKING | VARVE_OPEN_NO_IO, NULL);
	assert_int_equal(varve_image_read(image, 0, buf, 512, &err), -EINVAL);
	expect_ok(varve_image_info(image, &json, &err));
	assert_non_null(strstr(json, "\"virtual-size\":1048576"));
	assert_non_null(strstr(json, "\"actual-size\":"));
	free(json);
	expect_ok(varve_image_close(image, &err));
}

static void names_that_are_no_utf8_become_readable_json(void **state)
{
	static const char name[] = "a\xff\xc3\xa4\xc3z";
	struct varve_image *image;
	char *json;

	(void)state;
	make_image(name, "raw", MIB, NULL);
	image = open_image(name, VARVE_OPEN_NO_IO, NULL);
	expect_ok(varve_image_info(image, &json, &err));
	assert_non_null(strstr(json, "/a\xef\xbf\xbd\xc3\xa4\xef\xbf\xbdz\""));
	free(json);
	expect_ok(varve_image_close(image, &err));
}

static void statistics_count_requests(void **state)
{
	struct varve_image *image;
	char *json, buf[4096] = { 0 };

	(void)state;
	make_image("disk", "qcow2", MIB, NULL);
	image = open_image("disk", VARVE_OPEN_WRITABLE, NULL);
	expect_ok(varve_image_write(image, 0, buf, sizeof(buf), 0, &err)); /* allocates: the cold path */
	expect_ok(varve_image_read(image, 0, buf, sizeof(buf), &err));
	expect_ok(varve_image_stats(image, &json, &err));
	assert_non_null(strstr(json, "\"queues\":1"));
	assert_non_null(strstr(json, "\"order\":{\"puts\":"));
	assert_non_null(strstr(json, "\"syscalls\":"));
	assert_non_null(strstr(json, "\"requests\":{\"hot\":"));
	assert_null(strstr(json, "\"cold\":0,"));
	/* Each file says how it is accessed. */
	assert_non_null(strstr(json, "\"files\":[{\"filename\":"));
	assert_non_null(strstr(json, "\"cache\":\"writeback\",\"direct\":false,\"sync\":false,\"writable\":true"));
	free(json);
	expect_ok(varve_image_close(image, &err));
}

static void map_tells_data_from_zeroes_and_layers(void **state)
{
	struct varve_image *image;
	struct varve_extent e;
	uint8_t buf[65536];

	(void)state;
	memset(buf, 1, sizeof(buf));
	make_image("base", "raw", MIB, NULL);
	image = open_image("base", VARVE_OPEN_WRITABLE, NULL);
	expect_ok(varve_image_write(image, 65536, buf, sizeof(buf), 0, &err));
	expect_ok(varve_image_close(image, &err));
	make_image("top", "qcow2", 2 * MIB, "backing_file=base,backing_fmt=raw");
	image = open_image("top", VARVE_OPEN_WRITABLE, NULL);
	expect_ok(varve_image_write(image, 0, buf, sizeof(buf), 0, &err));
	expect_ok(varve_image_map(image, 0, 2 * MIB, &e, &err));
	assert_true(e.data && e.present && e.has_offset && e.depth == 0 && e.length == 65536);
	assert_string_equal(e.file, path_of("top"));
	expect_ok(varve_image_map(image, 65536, 2 * MIB - 65536, &e, &err));
	assert_true(e.data && e.present && e.depth == 1 && e.offset == 65536 && e.length == 65536);
	assert_string_equal(e.file, path_of("base"));
	/* The rest of the base is a hole in its file. */
	expect_ok(varve_image_map(image, 131072, 2 * MIB - 131072, &e, &err));
	assert_true(e.zero && !e.data && e.present && e.depth == 1 && e.length == MIB - 131072);
	expect_ok(varve_image_map(image, MIB, MIB, &e, &err));
	assert_true(e.zero && !e.data && e.start == MIB && e.length == MIB);
	assert_int_equal(varve_image_map(image, 2 * MIB, 1, &e, &err), -EINVAL);
	assert_int_equal(varve_image_map(image, 0, 0, &e, &err), -EINVAL);
	expect_ok(varve_image_close(image, &err));
}

static void check_of_raw_is_not_supported(void **state)
{
	struct varve_check_result r;
	struct varve_image *image;

	(void)state;
	make_image("raw", "raw", MIB, NULL);
	make_image("qcow2", "qcow2", MIB, NULL);
	image = open_image("raw", 0, NULL);
	assert_int_equal(varve_image_check(image, &r, NULL, NULL, NULL, &err), -ENOTSUP);
	expect_ok(varve_image_close(image, &err));
	image = open_image("qcow2", VARVE_OPEN_CHECK, NULL);
	expect_ok(varve_image_check(image, &r, NULL, NULL, NULL, &err));
	assert_int_equal(r.corruptions + r.leaks + r.check_errors, 0);
	expect_ok(varve_image_close(image, &err));
}

struct writer {
	struct varve_image *image;
	unsigned number;
};

static void *write_many(void *arg)
{
	struct writer *w = arg;
	uint8_t buf[4096];

	memset(buf, (int)w->number + 1, sizeof(buf));
	for (unsigned i = 0; i < 50; i++) {
		if (varve_image_write(w->image, (i * 4ull + w->number) * sizeof(buf), buf, sizeof(buf), 0, NULL) < 0)
			return NULL;
	}
	return w;
}

/* One at a time per image is the rule; an image without a home of the caller's keeps it by itself. */
static void threads_take_turns_on_a_private_image(void **state)
{
	struct varve_image *image;
	struct writer w[4];
	pthread_t t[4];
	uint8_t buf[4096];
	void *done;

	(void)state;
	make_image("disk", "qcow2", MIB, NULL);
	image = open_image("disk", VARVE_OPEN_WRITABLE, NULL);
	for (unsigned i = 0; i < 4; i++) {
		w[i] = (struct writer){ image, i };
		assert_int_equal(pthread_create(&t[i], NULL, write_many, &w[i]), 0);
	}
	for (unsigned i = 0; i < 4; i++) {
		pthread_join(t[i], &done);
		assert_ptr_equal(done, &w[i]);
	}
	for (unsigned i = 0; i < 200; i++) {
		expect_ok(varve_image_read(image, i * sizeof(buf), buf, sizeof(buf), &err));
		assert_int_equal(buf[0], i % 4 + 1);
		assert_int_equal(buf[4095], i % 4 + 1);
	}
	expect_ok(varve_image_close(image, &err));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(what_is_written_is_read_back, dir_make, dir_remove),
		cmocka_unit_test_setup_teardown(zeroes_and_discard, dir_make, dir_remove),
		cmocka_unit_test_setup_teardown(requests_out_of_bounds_are_refused_in_words, dir_make, dir_remove),
		cmocka_unit_test_setup_teardown(a_read_only_image_refuses_changes, dir_make, dir_remove),
		cmocka_unit_test_setup_teardown(wrong_open_options_are_refused, dir_make, dir_remove),
		cmocka_unit_test(closing_nothing_is_fine),
		cmocka_unit_test_setup_teardown(an_info_only_image_does_no_io, dir_make, dir_remove),
		cmocka_unit_test_setup_teardown(names_that_are_no_utf8_become_readable_json, dir_make, dir_remove),
		cmocka_unit_test_setup_teardown(statistics_count_requests, dir_make, dir_remove),
		cmocka_unit_test_setup_teardown(map_tells_data_from_zeroes_and_layers, dir_make, dir_remove),
		cmocka_unit_test_setup_teardown(check_of_raw_is_not_supported, dir_make, dir_remove),
		cmocka_unit_test_setup_teardown(threads_take_turns_on_a_private_image, dir_make, dir_remove),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
