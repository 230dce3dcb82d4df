/* SPDX-License-Identifier: MIT */
/*
 * unit/export/test_complaints.c - how many lines a disk's front ends cause, on a clock that the test turns
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "export/vhost-user-blk/complaints.h"

#define SECOND UINT64_C(1000000000)

static struct queue *q;
static unsigned nr_lines;
static char last[VARVE_ERROR_MAX];

static void keep_line(void *user_data, enum varve_log_level level, const char *line)
{
	(void)user_data;
	assert_int_equal(level, VARVE_LOG_WARNING);
	nr_lines++;
	snprintf(last, sizeof(last), "%s", line);
}

static int setup(void **state)
{
	struct queue_opts opts = { .name = "clock", .virtual_time = true };

	(void)state;
	nr_lines = 0;
	varve_set_log(keep_line, NULL);
	assert_int_equal(queue_new(&q, &opts, NULL), 0);
	queue_advance(q, 1000 * SECOND);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	queue_free(q);
	varve_set_log(NULL, NULL);
	return 0;
}

static void complain(struct complaints *c, unsigned nr)
{
	for (unsigned i = 0; i < nr; i++)
		complain_about(c, q, "number %u", i);
	complaints_look(c);
}

static void pass(unsigned seconds)
{
	for (unsigned i = 0; i < seconds; i++) {
		queue_advance(q, SECOND);
		queue_turn(q, 0);
	}
}

static void a_few_are_all_told(void **state)
{
	struct complaints c;

	(void)state;
	complaints_init(&c, "disk", q);
	complain(&c, 20);
	assert_int_equal(nr_lines, 20);
	assert_string_equal(last, "disk: number 19");
	pass(3600);
	complaints_end(&c);
	assert_int_equal(nr_lines, 20);
}

static void many_are_counted(void **state)
{
	struct complaints c;

	(void)state;
	complaints_init(&c, "disk", q);
	complain(&c, 500);
	assert_int_equal(nr_lines, 20);
	pass(29);
	assert_int_equal(nr_lines, 20);
	pass(2);
	assert_int_equal(nr_lines, 21);
	assert_string_equal(last, "disk: 480 more lines about its front ends were left out: there are 20 at once, and one in 30 seconds");
	/* All day: a line in half a minute. */
	for (unsigned i = 0; i < 1000; i++) {
		complain(&c, 1000);
		pass(30);
	}
	assert_in_range(nr_lines, 21 + 998, 21 + 1001);
	/* A quiet time, and there are as many again; the first tells what was left out last. */
	pass(700);
	nr_lines = 0;
	complain(&c, 100);
	assert_in_range(nr_lines, 19, 20);
	complaints_end(&c);
	assert_non_null(strstr(last, "more lines about its front ends were left out"));
	nr_lines = 0;
	pass(100);
	assert_int_equal(nr_lines, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(a_few_are_all_told, setup, teardown),
		cmocka_unit_test_setup_teardown(many_are_counted, setup, teardown),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
