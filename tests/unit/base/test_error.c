/* SPDX-License-Identifier: MIT */
/*
 * unit/base/test_error.c - errors: the text, its bounds, what a stranger may put into it
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "base/error.h"

static void set_returns_the_code_with_and_without_a_place_for_words(void **state)
{
	struct varve_error err;

	(void)state;
	assert_int_equal(varve_error_set(&err, -EINVAL, "cluster size %d", 3), -EINVAL);
	assert_int_equal(err.code, -EINVAL);
	assert_string_equal(err.message, "cluster size 3");
	assert_int_equal(varve_error_set(NULL, -EIO, "x"), -EIO);
	assert_int_equal(varve_error_errno(NULL, -EIO, "x"), -EIO);
	assert_int_equal(varve_error_prefix(NULL, -EIO, "x"), -EIO);
}

static void errno_appends_the_reason(void **state)
{
	struct varve_error err;

	(void)state;
	assert_int_equal(varve_error_errno(&err, -ENOENT, "open '%s'", "a"), -ENOENT);
	assert_string_equal(err.message, "open 'a': No such file or directory");
}

static void prefix_says_where_and_keeps_what(void **state)
{
	struct varve_error err;

	(void)state;
	varve_error_set(&err, -EINVAL, "bad");
	assert_int_equal(varve_error_prefix(&err, -EINVAL, "%s: ", "disk"), -EINVAL);
	assert_string_equal(err.message, "disk: bad");
	assert_int_equal(err.code, -EINVAL);
}

static void texts_that_are_too_long_are_cut_not_overrun(void **state)
{
	char big[3 * VARVE_ERROR_MAX];
	struct varve_error err;

	(void)state;
	memset(big, 'x', sizeof(big) - 1);
	big[sizeof(big) - 1] = '\0';
	varve_error_set(&err, -EINVAL, "%s", big);
	assert_int_equal(strlen(err.message), VARVE_ERROR_MAX - 1);
	varve_error_errno(&err, -ENOENT, "%s", big);
	assert_int_equal(strlen(err.message), VARVE_ERROR_MAX - 1);
	varve_error_prefix(&err, -ENOENT, "head ");
	assert_int_equal(strlen(err.message), VARVE_ERROR_MAX - 1);
	assert_memory_equal(err.message, "head xxx", 8);
	varve_error_prefix(&err, -ENOENT, "%s", big);
	assert_int_equal(strlen(err.message), VARVE_ERROR_MAX - 1);
}

/* An image chooses the names in a text: no second line, no escape sequence comes out of it. */
static void control_characters_do_not_get_through(void **state)
{
	struct varve_error err;

	(void)state;
	varve_error_set(&err, -EINVAL, "name '%s'", "a\nerror: all is well\r\033[2J\x7f");
	assert_string_equal(err.message, "name 'a?error: all is well??[2J?'");
	varve_error_prefix(&err, -EINVAL, "%s: ", "x\ny");
	assert_memory_equal(err.message, "x?y: name", 9);
	varve_error_errno(&err, -EIO, "%s", "\t");
	assert_string_equal(err.message, "?: Input/output error");
	varve_error_set(&err, -EINVAL, "%s", "gr\xc3\xbc\xc3\x9f");
	assert_string_equal(err.message, "gr\xc3\xbc\xc3\x9f");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(set_returns_the_code_with_and_without_a_place_for_words),
		cmocka_unit_test(errno_appends_the_reason),
		cmocka_unit_test(prefix_says_where_and_keeps_what),
		cmocka_unit_test(texts_that_are_too_long_are_cut_not_overrun),
		cmocka_unit_test(control_characters_do_not_get_through),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
