/* SPDX-License-Identifier: MIT */
/*
 * conformance/test_choice.c - which engine a user gets, and which one is refused with what words
 */
#include "rig.h"

static const char *options_of(const char *engine)
{
	static char text[512];

	snprintf(text, sizeof(text), "filename=%s%s%s", place_disk(ON_FILE, RIG_LEN), engine ? ",aio=" : "",
		 engine ? engine : "");
	return text;
}

/* Whoever asks for Linux AIO and the page cache would get blocking I/O under another name. */
static void native_refuses_a_cached_file(void **state)
{
	static const uint32_t cached[] = { 0, NODE_WRITETHROUGH, NODE_NO_FLUSH };

	const bool missing = rig_engine_missing("native");

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(cached); i++) {
		struct leaf l = { .q = leaf_queue() };
		const char *options = options_of("native");

		assert_true(leaf_try(&l, &driver_file, NULL, options, NODE_WRITABLE | cached[i]) < 0);
		assert_non_null(strstr(l.err.message, "native"));
		assert_non_null(strstr(l.err.message, "block"));
		assert_null(strchr(l.err.message, '\n'));
		if (missing) {
			queue_free(l.q);
			continue;
		}
		/* Nothing of the attempt is left: the same file opens, past the page cache. */
		if (leaf_try(&l, &driver_file, NULL, options, NODE_WRITABLE | NODE_DIRECT) < 0)
			fail_msg("%s", l.err.message);
		leaf_close(&l);
	}
}

/* The message names what there is. */
static void an_unknown_engine_is_refused_by_name(void **state)
{
	struct leaf l = { .q = leaf_queue() };

	(void)state;
	assert_int_equal(leaf_try(&l, &driver_file, NULL, options_of("libaio"), NODE_WRITABLE), -EINVAL);
	assert_non_null(strstr(l.err.message, "libaio"));
	assert_non_null(strstr(l.err.message, "io_uring"));
	assert_non_null(strstr(l.err.message, "native"));
	assert_non_null(strstr(l.err.message, "posix"));
	assert_non_null(strstr(l.err.message, "threads"));
	queue_free(l.q);
}

/* Without a name there is always one that works, whatever the file and the flags are. */
static void some_engine_works_for_every_file(void **state)
{
	(void)state;
	for (unsigned i = 0; i < CACHES * GROUNDS; i++) {
		struct setting s = { NULL, (enum cache)(i % CACHES), (enum ground)(i / CACHES) };
		char options[512], bytes[512] = { 1 }, back[512];
		struct leaf l;

		if (place_missing(s.ground))
			continue;
		snprintf(options, sizeof(options), "filename=%s", place_disk(s.ground, RIG_LEN));
		leaf_open(&l, &driver_file, options, rig_flags(&s));
		assert_int_equal(leaf_write(&l, 4096, bytes, sizeof(bytes), REQ_FUA), 0);
		assert_int_equal(leaf_read(&l, 4096, back, sizeof(back)), 0);
		assert_memory_equal(bytes, back, sizeof(bytes));
		assert_int_equal(leaf_close(&l), 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(native_refuses_a_cached_file),
		cmocka_unit_test(an_unknown_engine_is_refused_by_name),
		cmocka_unit_test(some_engine_works_for_every_file),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, places_make, places_away);
}
