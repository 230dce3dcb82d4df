/* SPDX-License-Identifier: MIT */
/*
 * test_noted_len.c - the length that is noted of a file is never more than the file has, wherever its process is killed
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "block/node.h"

static _Atomic uint64_t noted;
static uint64_t file_len; /* what the kernel would say */
static int result; /* of the truncation */

static void expect_noted_is_there(void)
{
	assert_true(atomic_load(&noted) <= file_len);
}

/* Others go on while it waits: before the file has its new length, and after. A kill at any of these places finds what is noted there. */
static int leaf_truncate(struct fiber *f, struct node *n, uint64_t len, enum prealloc prealloc, struct varve_error *err)
{
	uint64_t after = result == 0 ? len : file_len;

	(void)f;
	(void)prealloc;
	(void)err;
	expect_noted_is_there();
	assert_true(atomic_load(&noted) <= len);
	node_note_len(n);
	assert_true(atomic_load(&noted) <= len);
	file_len = after;
	expect_noted_is_there();
	node_note_len(n); /* n->len is the old one here */
	expect_noted_is_there();
	if (result == 0)
		atomic_store(&n->len, len);
	return result;
}

static const struct driver leaf_driver = { .name = "leaf", .kind = DRIVER_LEAF, .truncate = leaf_truncate };

static void leaf_of_len(struct node *n, uint64_t len)
{
	memset(n, 0, sizeof(*n));
	n->drv = &leaf_driver;
	atomic_store(&n->len, len);
	TAILQ_INIT(&n->len_watches);
	n->noted_len = &noted;
	atomic_store(&noted, 0);
	file_len = len;
	result = 0;
}

static void a_file_that_becomes_shorter_is_noted_before(void **state)
{
	struct node n;

	leaf_of_len(&n, 8000);
	node_note_len(&n);
	assert_int_equal(atomic_load(&noted), 8000);
	assert_int_equal(node_truncate(NULL, &n, 5000, PREALLOC_OFF, NULL), 0);
	assert_int_equal(atomic_load(&noted), 5000);
	node_note_len(&n);
	assert_int_equal(atomic_load(&noted), 5000);
}

static void a_file_that_becomes_longer_is_noted_after(void **state)
{
	struct node n;

	leaf_of_len(&n, 8000);
	node_note_len(&n);
	assert_int_equal(node_truncate(NULL, &n, 9000, PREALLOC_OFF, NULL), 0);
	assert_int_equal(atomic_load(&noted), 8000);
	node_note_len(&n);
	assert_int_equal(atomic_load(&noted), 9000);
}

/* It may have become shorter or not: the next note tells. */
static void one_that_fails_notes_no_more_than_there_is(void **state)
{
	struct node n;

	leaf_of_len(&n, 8000);
	node_note_len(&n);
	result = -EIO;
	assert_int_equal(node_truncate(NULL, &n, 5000, PREALLOC_OFF, NULL), -EIO);
	expect_noted_is_there();
	node_note_len(&n);
	assert_int_equal(atomic_load(&noted), 8000);
}

static void nobody_asked(void **state)
{
	struct node n;

	leaf_of_len(&n, 8000);
	n.noted_len = NULL;
	node_note_len(&n);
	assert_int_equal(node_truncate(NULL, &n, 5000, PREALLOC_OFF, NULL), 0);
	assert_int_equal(atomic_load(&noted), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_file_that_becomes_shorter_is_noted_before),
		cmocka_unit_test(a_file_that_becomes_longer_is_noted_after),
		cmocka_unit_test(one_that_fails_notes_no_more_than_there_is),
		cmocka_unit_test(nobody_asked),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
