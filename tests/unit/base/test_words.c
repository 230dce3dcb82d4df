/* SPDX-License-Identifier: MIT */
/*
 * unit/base/test_words.c - the words that an option can be
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "aio/engine.h"
#include "base/math.h"
#include "base/words.h"

static void a_word_is_found_by_its_place(void **state)
{
	assert_int_equal(words_find("off|metadata|falloc|full", "off"), 0);
	assert_int_equal(words_find("off|metadata|falloc|full", "falloc"), 2);
	assert_int_equal(words_find("off|metadata|falloc|full", "full"), 3);
	assert_int_equal(words_find("one", "one"), 0);
}

static void parts_of_words_and_the_bar_are_no_words(void **state)
{
	assert_int_equal(words_find("off|metadata|falloc|full", "o"), -1);
	assert_int_equal(words_find("off|metadata|falloc|full", "fulls"), -1);
	assert_int_equal(words_find("off|metadata|falloc|full", "off|metadata"), -1);
	assert_int_equal(words_find("off|metadata|falloc|full", "|"), -1);
	assert_int_equal(words_find("off|metadata|falloc|full", ""), -1);
}

/* Engines stand in an array in the order of their words. */
static void each_engine_has_the_name_by_which_it_is_chosen(void **state)
{
	const char *const names[] = { "io_uring", "native", "posix", "threads", "io_uring+sqpoll", "io_uring+iopoll+pinned" };

	for (unsigned i = 0; i < ARRAY_LEN(names); i++)
		assert_string_equal(aio_engine_choose(names[i], true, NULL)->name, names[i]);
	assert_null(aio_engine_choose("io_uring+", true, NULL));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_word_is_found_by_its_place),
		cmocka_unit_test(parts_of_words_and_the_bar_are_no_words),
		cmocka_unit_test(each_engine_has_the_name_by_which_it_is_chosen),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
