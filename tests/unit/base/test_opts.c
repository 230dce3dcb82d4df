/* SPDX-License-Identifier: MIT */
/*
 * unit/base/test_opts.c - option lists: grammar, JSON, limits, unused keys
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/error.h"
#include "base/opts.h"

static struct opts *parsed(const char *text)
{
	struct varve_error err = { 0, "" };
	struct opts *o = opts_new();

	if (opts_parse(o, text, &err) < 0)
		fail_msg("'%s': %s", text, err.message);
	return o;
}

static struct opts *parsed_json(const char *text)
{
	struct varve_error err = { 0, "" };
	struct opts *o = opts_new();

	if (opts_parse_json(o, text, &err) < 0)
		fail_msg("'%s': %s", text, err.message);
	return o;
}

static void pairs_are_split_at_single_commas(void **state)
{
	struct opts *o = parsed("a=1,b=x,,y,,,,z,c,d=,file.filename=/tmp/x=y,e=last");

	(void)state;
	assert_string_equal(opts_get(o, "a"), "1");
	assert_string_equal(opts_get(o, "b"), "x,y,,z");
	assert_string_equal(opts_get(o, "c"), "on");
	assert_string_equal(opts_get(o, "d"), "");
	assert_string_equal(opts_get(o, "file.filename"), "/tmp/x=y");
	assert_string_equal(opts_get(o, "e"), "last");
	assert_null(opts_get(o, "f"));
	assert_int_equal(opts_done(o, NULL), 0);
	opts_free(o);
}

static void a_value_may_end_in_a_comma(void **state)
{
	struct opts *o = parsed("a=x,,");

	(void)state;
	assert_string_equal(opts_get(o, "a"), "x,");
	opts_free(o);
	o = parsed("");
	assert_null(opts_get(o, "a"));
	opts_free(o);
}

static void a_later_value_replaces_an_earlier_one(void **state)
{
	struct opts *o = parsed("size=1,size=2,b=1");

	(void)state;
	assert_string_equal(opts_get(o, "size"), "2");
	assert_int_equal(opts_parse(o, "size=3", NULL), 0);
	assert_int_equal(opts_parse_json(o, "{\"b\": 7}", NULL), 0);
	assert_string_equal(opts_get(o, "size"), "3");
	assert_string_equal(opts_get(o, "b"), "7");
	assert_int_equal(opts_set(o, "b", "8", NULL), 0);
	assert_int_equal(opts_done(o, NULL), -EINVAL); /* the new value was not asked for yet */
	assert_string_equal(opts_get(o, "b"), "8");
	assert_int_equal(opts_done(o, NULL), 0);
	opts_free(o);
}

/* opts_set(o, key, opts_get(o, key)) is what code that passes options on ends up doing. */
static void setting_a_value_to_itself_keeps_the_string(void **state)
{
	struct opts *o = parsed("filename=x");
	const char *value = opts_get(o, "filename");

	(void)state;
	assert_int_equal(opts_set(o, "filename", value, NULL), 0);
	assert_ptr_equal(opts_get(o, "filename"), value);
	assert_string_equal(value, "x");
	opts_free(o);
}

static void malformed_pairs_are_refused_and_change_nothing(void **state)
{
	static const char *const bad[] = { ",", "a=1,", ",a=1", "=x", "a=1,=2", "a b=1", "a..b=1", ".a=1", "a.=1", "a=1,b\n=2",
					   "\xff=1", "a=1,,b=2,", "a,,b" };
	struct varve_error err;
	struct opts *o = parsed("a=old");

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		if (opts_parse(o, bad[i], &err) != -EINVAL)
			fail_msg("'%s' was not refused", bad[i]);
		assert_true(strlen(err.message) > 0);
		assert_string_equal(opts_get(o, "a"), "old");
	}
	opts_free(o);
}

static void json_nesting_becomes_dots(void **state)
{
	struct opts *o = parsed_json("{\"driver\": \"qcow2\", \"file\": {\"driver\": \"file\", \"filename\": \"/x,y\","
				     " \"locking\": false}, \"n\": 12, \"neg\": -3, \"t\": true, \"backing\": null,"
				     " \"l\": [{\"a\": 1}, {\"a\": 2}], \"x.y\": \"z\"}");

	(void)state;
	assert_string_equal(opts_get(o, "driver"), "qcow2");
	assert_string_equal(opts_get(o, "file.driver"), "file");
	assert_string_equal(opts_get(o, "file.filename"), "/x,y");
	assert_string_equal(opts_get(o, "file.locking"), "off");
	assert_string_equal(opts_get(o, "n"), "12");
	assert_string_equal(opts_get(o, "neg"), "-3");
	assert_string_equal(opts_get(o, "t"), "on");
	assert_string_equal(opts_get(o, "backing"), "");
	assert_string_equal(opts_get(o, "l.0.a"), "1");
	assert_string_equal(opts_get(o, "l.1.a"), "2");
	assert_string_equal(opts_get(o, "x.y"), "z");
	assert_int_equal(opts_done(o, NULL), 0);
	opts_free(o);
}

static void bad_json_is_refused_and_changes_nothing(void **state)
{
	static const char *const bad[] = { "", "{", "[]", "1", "\"x\"", "{\"a\": 1.5}", "{\"a\": 1, \"a\": 2}",
					   "{\"a.b\": 1, \"a\": {\"b\": 2}}", "{\"a\": \"\\u0000\"}", "{\"\": 1}",
					   "{\"a b\": 1}", "{\"a\": 1} x", "{\"b\": {}}", "{\"b\": []}", "{\"b\": {\"c\": [{}]}}", "{\"a\": \"\xff\"}",
					   "{\"a\": 99999999999999999999}" };
	struct varve_error err;
	struct opts *o = parsed("a=old");

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		if (opts_parse_json(o, bad[i], &err) != -EINVAL)
			fail_msg("'%s' was not refused", bad[i]);
		assert_null(strchr(err.message, '\n'));
		assert_string_equal(opts_get(o, "a"), "old");
	}
	opts_free(o);
}

/* The name in a backing file header may be json:..., and we parse it on a small stack. */
static void deep_json_is_refused_before_anything_recurses(void **state)
{
	size_t depth = OPTS_TEXT_MAX / 6;
	char *text = malloc(6 * depth + 1);
	struct varve_error err;
	struct opts *o = opts_new();

	(void)state;
	for (size_t i = 0; i < depth; i++)
		memcpy(text + 5 * i, "{\"a\":", 5);
	memset(text + 5 * depth, '}', depth);
	text[6 * depth] = '\0';
	assert_int_equal(opts_parse_json(o, text, &err), -EINVAL);
	assert_non_null(strstr(err.message, "nested"));
	memset(text, '[', depth);
	text[depth] = '\0';
	assert_int_equal(opts_parse_json(o, text, &err), -EINVAL);
	assert_non_null(strstr(err.message, "nested"));
	/* Brackets inside of strings are not depth, escaped quotes do not end a string. */
	assert_int_equal(opts_parse_json(o, "{\"a\": \"\\\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\"}", &err), 0);
	opts_free(o);
	free(text);
}

static void limits_are_kept_from_every_source(void **state)
{
	char *text = calloc(1, OPTS_TEXT_MAX + 10), key[64];
	struct varve_error err;
	struct opts *o = opts_new();
	size_t at = 0;

	(void)state;
	memset(text, 'x', OPTS_TEXT_MAX + 1);
	assert_int_equal(opts_parse(o, text, &err), -E2BIG);
	assert_int_equal(opts_parse_json(o, text, &err), -E2BIG);
	for (int i = 0; i <= OPTS_MAX; i++)
		at += (size_t)sprintf(text + at, "%sk%d=1", i ? "," : "", i);
	assert_int_equal(opts_parse(o, text, &err), -E2BIG);
	assert_null(opts_get(o, "k0"));
	for (int i = 0; i < OPTS_MAX; i++) {
		sprintf(key, "k%d", i);
		assert_int_equal(opts_set(o, key, "1", &err), 0);
	}
	assert_int_equal(opts_set(o, "one-more", "1", &err), -E2BIG);
	assert_int_equal(opts_parse(o, "one-more=1", &err), -E2BIG);
	assert_int_equal(opts_parse(o, "k3=2", &err), 0);
	memset(text, 'k', 300);
	strcpy(text + 300, "=1");
	assert_int_equal(opts_parse(o, text, &err), -EINVAL);
	opts_free(o);
	free(text);
}

static void booleans_are_words(void **state)
{
	struct opts *o = parsed("a=on,b=off,c=true,d=false,e=yes,f=no,g,h=1,i=ON");
	struct varve_error err;
	bool x = false;

	(void)state;
	for (const char *key = "acegz"; *key; key++) {
		char name[2] = { *key, '\0' };

		x = *key == 'z'; /* absent: keeps its value */
		assert_int_equal(opts_get_bool(o, name, &x, &err), 0);
		assert_true(x);
	}
	for (const char *key = "bdf"; *key; key++) {
		char name[2] = { *key, '\0' };

		x = true;
		assert_int_equal(opts_get_bool(o, name, &x, &err), 0);
		assert_false(x);
	}
	assert_int_equal(opts_get_bool(o, "h", &x, &err), -EINVAL);
	assert_string_equal(err.message, "option 'h': '1' is neither on nor off");
	assert_int_equal(opts_get_bool(o, "i", &x, &err), -EINVAL);
	opts_free(o);
}

static void numbers_name_the_key_when_they_are_wrong(void **state)
{
	struct opts *o = parsed("s=64k,t=x,u=99E,n=18446744073709551615,m=18446744073709551616,k=-1,e=");
	struct varve_error err;
	uint64_t x = 5;

	(void)state;
	assert_int_equal(opts_get_size(o, "absent", &x, &err), 0);
	assert_int_equal(opts_get_u64(o, "absent", &x, &err), 0);
	assert_int_equal(x, 5);
	assert_int_equal(opts_get_size(o, "t", &x, &err), -EINVAL);
	assert_non_null(strstr(err.message, "'t': 'x'"));
	assert_int_equal(opts_get_size(o, "u", &x, &err), -ERANGE);
	assert_int_equal(opts_get_u64(o, "m", &x, &err), -ERANGE);
	assert_int_equal(opts_get_u64(o, "k", &x, &err), -EINVAL);
	assert_int_equal(opts_get_u64(o, "e", &x, &err), -EINVAL);
	assert_int_equal(opts_get_u64(o, "s", &x, &err), -EINVAL);
	assert_int_equal(x, 5);
	assert_int_equal(opts_get_size(o, "s", &x, &err), 0);
	assert_int_equal(x, 65536);
	assert_int_equal(opts_get_u64(o, "n", &x, &err), 0);
	assert_true(x == UINT64_MAX);
	opts_free(o);
}

static void a_sub_list_takes_its_keys_along(void **state)
{
	struct opts *o = parsed("driver=qcow2,file.driver=file,filex=1,file.filename=x,backing.file.filename=y");
	struct opts *file = opts_take_sub(o, "file"), *backing = opts_take_sub(o, "backing");
	struct varve_error err;

	(void)state;
	assert_null(opts_take_sub(o, "file"));
	assert_null(opts_take_sub(o, "none"));
	assert_string_equal(opts_get(file, "driver"), "file");
	assert_string_equal(opts_get(file, "filename"), "x");
	assert_string_equal(opts_get(backing, "file.filename"), "y");
	assert_string_equal(opts_get(o, "driver"), "qcow2");
	assert_int_equal(opts_done(o, &err), -EINVAL);
	assert_string_equal(err.message, "option 'filex' is not known here");
	opts_free(o);
	opts_free(file);
	opts_free(backing);
	opts_free(NULL);
}

/* Mutated texts: nothing crashes, and what is accepted can be read back. */
static void mutated_texts_are_survived(void **state)
{
	static const char *const seeds[] = { "a=1,b=x,,y,c,file.filename=z",
					     "{\"a\": {\"b\": [1, true, null, \"x\\n\"]}, \"c\": -7}" };
	static const char bytes[] = "a,=.{}[]\":\\1 \n\xff";
	unsigned seed = 4711;

	(void)state;
	for (int round = 0; round < 20000; round++) {
		char text[100];
		struct opts *o = opts_new();
		size_t len;

		strcpy(text, seeds[round % 2]);
		len = strlen(text);
		for (int i = 0; i < 1 + round % 4; i++)
			text[(unsigned)rand_r(&seed) % len] = bytes[(unsigned)rand_r(&seed) % (sizeof(bytes) - 1)];
		if (round % 2)
			(void)opts_parse_json(o, text, NULL);
		else
			(void)opts_parse(o, text, NULL);
		opts_free(opts_take_sub(o, "a"));
		opts_free(o);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(pairs_are_split_at_single_commas),
		cmocka_unit_test(a_value_may_end_in_a_comma),
		cmocka_unit_test(a_later_value_replaces_an_earlier_one),
		cmocka_unit_test(setting_a_value_to_itself_keeps_the_string),
		cmocka_unit_test(malformed_pairs_are_refused_and_change_nothing),
		cmocka_unit_test(json_nesting_becomes_dots),
		cmocka_unit_test(bad_json_is_refused_and_changes_nothing),
		cmocka_unit_test(deep_json_is_refused_before_anything_recurses),
		cmocka_unit_test(limits_are_kept_from_every_source),
		cmocka_unit_test(booleans_are_words),
		cmocka_unit_test(numbers_name_the_key_when_they_are_wrong),
		cmocka_unit_test(a_sub_list_takes_its_keys_along),
		cmocka_unit_test(mutated_texts_are_survived),
	};

	print_message("# seed 4711\n");
	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
