/* SPDX-License-Identifier: MIT */
/*
 * unit/block/test_wish.c - discard= and detect-zeroes=: what becomes of requests at the door
 */
#include "fake.h"

#include <errno.h>
#include <string.h>

#include "base/opts.h"
#include "block/wish.h"

static uint8_t zeroes[8192], bytes[8192];

static uint32_t wish_of(const char *text)
{
	struct varve_error err = { 0 };
	struct opts *o = opts_new();
	uint32_t wish = UINT32_MAX;

	assert_non_null(o);
	assert_int_equal(opts_parse(o, text, &err), 0);
	if (wish_options(o, &wish, &err) < 0) {
		assert_true(strstr(err.message, "discard") || strstr(err.message, "detect-zeroes"));
		wish = UINT32_MAX;
	}
	opts_free(o);
	return wish;
}

static void options_are_checked(void **state)
{
	(void)state;
	assert_int_equal(wish_of("discard=unmap,detect-zeroes=off"), 0);
	assert_int_equal(wish_of("discard=on"), 0);
	assert_int_equal(wish_of("discard=ignore"), WISH_NO_DISCARD);
	assert_int_equal(wish_of("discard=off,detect-zeroes=on"), WISH_NO_DISCARD | WISH_DETECT_ZEROES);
	assert_int_equal(wish_of("detect-zeroes=unmap"), WISH_DETECT_ZEROES | WISH_UNMAP_ZEROES);
	assert_int_equal(wish_of("discard=ignore,detect-zeroes=unmap"), UINT32_MAX);
	assert_int_equal(wish_of("discard=perhaps"), UINT32_MAX);
	assert_int_equal(wish_of("detect-zeroes=yes"), UINT32_MAX);
}

static struct req request(enum req_op op, const struct iovec *iov, unsigned nr_iov, uint32_t flags)
{
	struct req r = { .op = op, .iov = iov, .nr_iov = nr_iov, .flags = flags };

	return r;
}

static void writes_of_zeroes_are_found(void **state)
{
	struct iovec iov[2] = { { zeroes, 512 }, { zeroes, sizeof(zeroes) } };
	struct node n = { .wish = WISH_DETECT_ZEROES };
	struct req r = request(REQ_WRITE, iov, 2, REQ_FUA);

	(void)state;
	assert_true(wish_apply(&n, &r));
	assert_int_equal(r.op, REQ_ZERO);
	assert_int_equal(r.flags, REQ_FUA);

	n.wish |= WISH_UNMAP_ZEROES;
	r = request(REQ_WRITE, iov, 2, 0);
	assert_true(wish_apply(&n, &r));
	assert_int_equal(r.op, REQ_ZERO);
	assert_int_equal(r.flags, REQ_MAY_UNMAP);

	/* One bit, in the last byte. */
	bytes[sizeof(bytes) - 1] = 1;
	iov[1].iov_base = bytes;
	r = request(REQ_WRITE, iov, 2, 0);
	assert_true(wish_apply(&n, &r));
	assert_int_equal(r.op, REQ_WRITE);
	assert_int_equal(r.flags, 0);

	/* A read of zeroes stays a read. */
	iov[1].iov_base = zeroes;
	r = request(REQ_READ, iov, 2, 0);
	assert_true(wish_apply(&n, &r));
	assert_int_equal(r.op, REQ_READ);
}

static void space_is_kept(void **state)
{
	struct node n = { .wish = WISH_NO_DISCARD };
	struct req r = request(REQ_DISCARD, NULL, 0, 0);

	(void)state;
	assert_false(wish_apply(&n, &r));
	r = request(REQ_ZERO, NULL, 0, REQ_MAY_UNMAP | REQ_FUA);
	assert_true(wish_apply(&n, &r));
	assert_int_equal(r.op, REQ_ZERO);
	assert_int_equal(r.flags, REQ_FUA);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(options_are_checked),
		cmocka_unit_test(writes_of_zeroes_are_found),
		cmocka_unit_test(space_is_kept),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
