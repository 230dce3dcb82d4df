/* SPDX-License-Identifier: MIT */
/*
 * test_create.c - new images, and what a failure leaves behind: nothing, or what was there before
 */
#include "api_test.h"

#include <fcntl.h>
#include <sys/stat.h>

static struct varve_error err;

static const char precious[] = "precious bytes";

static void put_file(const char *name)
{
	FILE *f = fopen(path_of(name), "w");

	assert_non_null(f);
	assert_int_equal(fwrite(precious, 1, sizeof(precious), f), sizeof(precious));
	fclose(f);
}

static void expect_untouched(const char *name)
{
	char buf[sizeof(precious) + 1];
	FILE *f = fopen(path_of(name), "r");

	assert_non_null(f);
	assert_int_equal(fread(buf, 1, sizeof(buf), f), sizeof(precious));
	assert_memory_equal(buf, precious, sizeof(precious));
	fclose(f);
}

/* Once on a name that is free, once over a file; word: must be in the message. */
static void expect_refused(const char *format, uint64_t len, const char *options, unsigned flags, const char *word)
{
	assert_true(varve_image_create(path_of("new"), format, len, options, flags, NULL, NULL, &err) < 0);
	if (!strstr(err.message, word) || !strstr(err.message, "new"))
		fail_msg("'%s' lacks '%s' or the file's name", err.message, word);
	assert_int_equal(access(path_of("new"), F_OK), -1);
	put_file("old");
	assert_true(varve_image_create(path_of("old"), format, len, options, flags, NULL, NULL, NULL) < 0);
	expect_untouched("old");
}

static void wrong_wishes_leave_everything_as_it_was(void **state)
{
	(void)state;
	make_image("base", "raw", MIB, NULL);
	expect_refused("nonsense", MIB, NULL, 0, "nonsense");
	expect_refused("file", MIB, NULL, 0, "file");
	expect_refused("qcow2", UINT64_MAX, NULL, 0, "size");
	expect_refused("qcow2", UINT64_MAX - 1, NULL, 0, "large");
	expect_refused("raw", (uint64_t)INT64_MAX, NULL, 0, "large");
	expect_refused("qcow2", MIB, "nonsense=1", 0, "nonsense");
	expect_refused("raw", MIB, "nonsense=1", 0, "nonsense");
	expect_refused("qcow2", MIB, "cluster_size=777", 0, "cluster_size");
	expect_refused("qcow2", 1ull << 50, "cluster_size=512", 0, "512");
	expect_refused("qcow2", MIB, "size=oops", 0, "oops");
	expect_refused("qcow2", MIB, "backing_file=base", 0, "format");
	expect_refused("qcow2", MIB, "backing_fmt=raw", 0, "backing");
	expect_refused("qcow2", MIB, "backing_file=base,backing_fmt=nonsense", 0, "nonsense");
	expect_refused("qcow2", MIB, "backing_file=missing,backing_fmt=raw", 0, "missing");
	expect_refused("qcow2", MIB, "backing_file=base,backing_fmt=qcow2", 0, "base");
	expect_refused("raw", MIB, "backing_file=base,backing_fmt=raw", 0, "backing");
	expect_refused("qcow2", UINT64_MAX, "backing_file=missing,backing_fmt=raw", VARVE_CREATE_NO_BACKING_CHECK,
		       "size");
	expect_refused("qcow2", MIB, NULL, 1u << 9, "0x200");
}

static void lengths_come_from_where_they_are_said(void **state)
{
	static const struct {
		uint64_t len;
		const char *options;
		uint64_t want;
	} cases[] = {
		{ 1000, NULL, 1024 },
		{ 0, NULL, 0 },
		{ UINT64_MAX, "size=3M", 3 * MIB },
		{ MIB, "size=3M", MIB }, /* the argument wins */
		{ UINT64_MAX, "backing_file=base,backing_fmt=raw", 2 * MIB },
		{ 5 * MIB, "backing_file=base,backing_fmt=raw", 5 * MIB },
	};

	(void)state;
	make_image("base", "raw", 2 * MIB, NULL);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct varve_image *image;

		make_image("disk", "qcow2", cases[i].len, cases[i].options);
		image = open_image("disk", 0, NULL);
		assert_int_equal(varve_image_length(image), cases[i].want);
		expect_ok(varve_image_close(image, &err));
	}
}

static void an_image_in_use_is_not_overwritten(void **state)
{
	struct varve_image *image;
	struct stat before, after;

	(void)state;
	make_image("disk", "qcow2", MIB, NULL);
	assert_int_equal(stat(path_of("disk"), &before), 0);
	image = open_image("disk", 0, NULL);
	assert_true(varve_image_create(path_of("disk"), "raw", 2 * MIB, NULL, 0, NULL, NULL, &err) < 0);
	assert_non_null(strstr(err.message, "lock"));
	expect_ok(varve_image_close(image, &err));
	assert_int_equal(stat(path_of("disk"), &after), 0);
	assert_int_equal(before.st_size, after.st_size);
}

static void an_image_is_not_put_into_its_own_chain(void **state)
{
	char options[PATH_MAX + 64];

	(void)state;
	make_image("base", "qcow2", MIB, NULL);
	make_image("mid", "qcow2", MIB, "backing_file=base,backing_fmt=qcow2");
	assert_int_equal(link(path_of("base"), path_of("other")), 0);
	snprintf(options, sizeof(options), "backing_file=%s,backing_fmt=qcow2", path_of("mid"));
	assert_int_equal(varve_image_create(path_of("other"), "qcow2", MIB, options, 0, NULL, NULL, &err), -EINVAL);
	assert_non_null(strstr(err.message, "chain"));
	expect_ok(varve_image_close(open_image("mid", 0, NULL), &err));
}

static void json_names_are_not_created(void **state)
{
	(void)state;
	assert_int_equal(varve_image_create("json:{}", "raw", MIB, NULL, 0, NULL, NULL, &err), -EINVAL);
	assert_non_null(strstr(err.message, "json"));
	assert_int_equal(varve_image_create("", "raw", MIB, NULL, 0, NULL, NULL, &err), -EINVAL);
}

static void count_calls(void *user_data, uint64_t done, uint64_t total)
{
	unsigned *calls = user_data;

	assert_true(done <= total);
	++*calls;
}

static void long_creations_tell_how_far_they_are(void **state)
{
	unsigned calls = 0;

	(void)state;
	expect_ok(varve_image_create(path_of("disk"), "raw", 4 * MIB, "preallocation=full", 0, count_calls, &calls, &err));
	assert_true(calls > 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(wrong_wishes_leave_everything_as_it_was, dir_make, dir_remove),
		cmocka_unit_test_setup_teardown(lengths_come_from_where_they_are_said, dir_make, dir_remove),
		cmocka_unit_test_setup_teardown(an_image_in_use_is_not_overwritten, dir_make, dir_remove),
		cmocka_unit_test_setup_teardown(an_image_is_not_put_into_its_own_chain, dir_make, dir_remove),
		cmocka_unit_test(json_names_are_not_created),
		cmocka_unit_test_setup_teardown(long_creations_tell_how_far_they_are, dir_make, dir_remove),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
