/* SPDX-License-Identifier: MIT */
/*
 * unit/filter/test_fault.c - the fault filter fails what its rules say, and nothing else
 */
#include "../proto/leaf.h"

#include "filter/filter.h"

static int fault_try(struct leaf *l, const char *options)
{
	struct leaf m;
	int ret;

	leaf_open(&m, &driver_memory, "size=64k", NODE_WRITABLE);
	l->q = m.q;
	ret = leaf_try(l, &driver_fault, m.n, options, NODE_WRITABLE);
	if (ret < 0)
		leaf_close(&m);
	return ret;
}

static void fault_open(struct leaf *l, const char *options)
{
	if (fault_try(l, options) < 0)
		fail_msg("'%s': %s", options, l->err.message);
}

static int write_at(struct leaf *l, uint64_t off)
{
	uint8_t buf[512];

	memset(buf, 0x11, sizeof(buf));
	return leaf_write(l, off, buf, sizeof(buf), 0);
}

static int read_at(struct leaf *l, uint64_t off)
{
	uint8_t buf[512];

	return leaf_read(l, off, buf, sizeof(buf));
}

static void without_rules_everything_passes(void **state)
{
	struct leaf l;

	(void)state;
	fault_open(&l, "");
	assert_int_equal(node_len(l.n), 65536);
	assert_int_equal(write_at(&l, 0), 0);
	leaf_expect(&l, 0, 512, 0x11);
	assert_int_equal(leaf_zero(&l, 0, 512, 0), 0);
	assert_int_equal(leaf_discard(&l, 0, 512), 0);
	assert_int_equal(leaf_flush(&l), 0);
	assert_int_equal(fault_count(l.n), 0);
	leaf_close(&l);
}

static void the_length_follows_the_file(void **state)
{
	struct leaf l;

	(void)state;
	fault_open(&l, "");
	assert_int_equal(write_at(&l, 70000), 0);
	assert_int_equal(node_len(l.n), 70512);
	assert_int_equal(leaf_zero(&l, 80000, 1000, 0), 0);
	assert_int_equal(node_len(l.n), 81000);
	assert_int_equal(leaf_truncate(&l, 4096, false), 0);
	assert_int_equal(node_len(l.n), 4096);
	leaf_close(&l);
}

static void each_event_fails_alone(void **state)
{
	static const char *const events[] = { "read", "write", "flush", "discard", "zero" };

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(events); i++) {
		char options[64];
		struct leaf l;

		snprintf(options, sizeof(options), "rule.0.event=%s", events[i]);
		fault_open(&l, options);
		assert_int_equal(read_at(&l, 0), i == 0 ? -EIO : 0);
		assert_int_equal(write_at(&l, 0), i == 1 ? -EIO : 0);
		assert_int_equal(leaf_flush(&l), i == 2 ? -EIO : 0);
		assert_int_equal(leaf_discard(&l, 0, 512), i == 3 ? -EIO : 0);
		assert_int_equal(leaf_zero(&l, 0, 512, 0), i == 4 ? -EIO : 0);
		assert_int_equal(fault_count(l.n), 1);
		leaf_close(&l);
	}
}

static void a_failed_write_does_not_reach_the_file(void **state)
{
	struct leaf l;

	(void)state;
	fault_open(&l, "rule.0.event=write,rule.0.errno=ENOSPC");
	assert_int_equal(write_at(&l, 0), -ENOSPC);
	leaf_expect(&l, 0, 512, 0);
	leaf_close(&l);
}

static void once_and_after_count(void **state)
{
	struct leaf l;

	(void)state;
	fault_open(&l, "rule.5.event=write,rule.5.errno=28,rule.5.after=2,rule.5.once=on,rule.7.event=read,rule.7.after=1");
	for (int i = 0; i < 6; i++)
		assert_int_equal(write_at(&l, 0), i == 2 ? -ENOSPC : 0);
	for (int i = 0; i < 3; i++)
		assert_int_equal(read_at(&l, 0), i >= 1 ? -EIO : 0);
	assert_int_equal(fault_count(l.n), 3);
	leaf_close(&l);
}

static void a_window_limits_the_rule(void **state)
{
	struct leaf l;

	(void)state;
	fault_open(&l, "rule.0.event=write,rule.0.offset=4k,rule.0.length=1k");
	assert_int_equal(write_at(&l, 4096 - 512), 0);
	assert_int_equal(write_at(&l, 4096 - 511), -EIO);
	assert_int_equal(write_at(&l, 4096), -EIO);
	assert_int_equal(write_at(&l, 5119), -EIO);
	assert_int_equal(write_at(&l, 5120), 0);
	leaf_close(&l);
}

static void rules_come_and_go_while_it_is_open(void **state)
{
	struct fault_rule rule = { .op = REQ_FLUSH, .error = -EIO, .once = true };
	struct leaf l;

	(void)state;
	fault_open(&l, "");
	assert_int_equal(fault_inject(l.n, &rule), 0);
	assert_int_equal(leaf_flush(&l), -EIO);
	assert_int_equal(leaf_flush(&l), 0);
	rule.once = false;
	assert_int_equal(fault_inject(l.n, &rule), 0);
	assert_int_equal(leaf_flush(&l), -EIO);
	fault_clear(l.n);
	assert_int_equal(leaf_flush(&l), 0);
	for (int i = 0; i < FAULT_RULES_MAX; i++)
		assert_int_equal(fault_inject(l.n, &rule), 0);
	assert_int_equal(fault_inject(l.n, &rule), -ENOSPC);
	fault_clear(l.n);
	leaf_close(&l);
}

static void bad_rules_are_refused_by_name(void **state)
{
	static const struct {
		const char *options, *words;
	} bad[] = {
		{ "rule.0.errno=EIO", "rule.0: option 'event' is missing" },
		{ "rule.0.event=open", "'open' is none of" },
		{ "rule.3.event=read,rule.3.errno=EWHAT", "rule.3: option 'errno': 'EWHAT'" },
		{ "rule.0.event=read,rule.0.errno=0", "'0'" },
		{ "rule.0.event=read,rule.0.errno=4096", "'4096'" },
		{ "rule.0.event=read,rule.0.offset=1k", "needs 'length'" },
		{ "rule.0.event=read,rule.0.offset=1k,rule.0.length=15E", "too far" },
		{ "rule.0.event=read,rule.0.sometimes=on", "sometimes" },
		{ "rule.64.event=read", "64.event" },
		{ "rule.x.event=read", "x.event" },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		struct leaf l;

		if (fault_try(&l, bad[i].options) != -EINVAL || !strstr(l.err.message, bad[i].words))
			fail_msg("'%s': '%s'", bad[i].options, l.err.message);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(without_rules_everything_passes),
		cmocka_unit_test(the_length_follows_the_file),
		cmocka_unit_test(each_event_fails_alone),
		cmocka_unit_test(a_failed_write_does_not_reach_the_file),
		cmocka_unit_test(once_and_after_count),
		cmocka_unit_test(a_window_limits_the_rule),
		cmocka_unit_test(rules_come_and_go_while_it_is_open),
		cmocka_unit_test(bad_rules_are_refused_by_name),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
