/* SPDX-License-Identifier: MIT */
/*
 * test_inflight.c - the area of requests in flight: its layout, and what is refused of a front end
 */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>

#include "../../lib/hugepages.h"
#include "export/vhost-user-blk/inflight.h"

static void an_area_comes_back_as_it_was_left(void **state)
{
	struct inflight a = { .map = NULL }, b = { .map = NULL };
	struct inflight_split_region *r;
	struct varve_error err;
	uint64_t len;
	int fd;

	(void)state;
	assert_int_equal(inflight_create(3, 128, &fd, &len, &err), 0);
	assert_int_equal(inflight_map(&a, fd, len, 0, 3, 128, &err), 0);
	for (unsigned q = 0; q < 3; q++) {
		r = inflight_region(&a, q);
		assert_int_equal(r->version, INFLIGHT_FRESH);
		r->version = INFLIGHT_VERSION;
		r->desc_num = (uint16_t)(100 + q);
		r->desc[127].counter = q;
	}
	assert_null(inflight_region(&a, 3));
	inflight_close(&a);
	assert_null(inflight_region(&a, 0));
	assert_int_equal(inflight_map(&b, fd, len, 0, 3, 128, &err), 0);
	for (unsigned q = 0; q < 3; q++) {
		r = inflight_region(&b, q);
		assert_int_equal(r->desc_num, 100 + q);
		assert_int_equal(r->desc[127].counter, q);
	}
	inflight_close(&b);
	close(fd);
}

static void an_area_may_begin_inside_a_page(void **state)
{
	struct inflight a = { .map = NULL };
	struct varve_error err;
	uint64_t len;
	uint8_t *whole;
	int fd, big;

	(void)state;
	assert_int_equal(inflight_create(1, 16, &fd, &len, &err), 0);
	close(fd);
	big = memfd_create("big", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	assert_int_equal(ftruncate(big, 65536), 0);
	assert_int_equal(fcntl(big, F_ADD_SEALS, F_SEAL_SHRINK), 0);
	assert_int_equal(inflight_map(&a, big, len, 4096 + 64, 1, 16, &err), 0);
	memset(inflight_region(&a, 0), 0x5a, len);
	whole = mmap(NULL, 65536, PROT_READ, MAP_SHARED, big, 0);
	assert_ptr_not_equal(whole, MAP_FAILED);
	assert_int_equal(whole[4096 + 63], 0);
	assert_int_equal(whole[4096 + 64], 0x5a);
	assert_int_equal(whole[4096 + 64 + len - 1], 0x5a);
	assert_int_equal(whole[4096 + 64 + len], 0);
	munmap(whole, 65536);
	inflight_close(&a);
	close(big);
}

static void expect_refusal(int fd, uint64_t len, uint64_t off, unsigned queues, unsigned size,
			   const char *why)
{
	struct inflight a = { .map = NULL };
	struct varve_error err;

	assert_true(inflight_map(&a, fd, len, off, queues, size, &err) < 0);
	if (!strstr(err.message, why))
		fail_msg("\"%s\" does not say \"%s\"", err.message, why);
	assert_null(a.map);
}

static void what_a_front_end_says_of_its_area_is_checked(void **state)
{
	struct varve_error err;
	uint64_t len;
	int fd, other;

	(void)state;
	assert_int_equal(inflight_create(2, 64, &fd, &len, &err), 0);
	expect_refusal(fd, len, 4096, 2, 64, "beyond the end");
	expect_refusal(fd, UINT64_MAX, 4096, 2, 64, "beyond the end");
	expect_refusal(fd, len, UINT64_MAX - 7, 2, 64, "beyond the end");
	expect_refusal(fd, len, 0, 3, 64, "3 queues of 64 need");
	expect_refusal(fd, len, 0, 2, 128, "2 queues of 128 need");
	expect_refusal(fd, len, 0, 0, 64, "0 queues");
	expect_refusal(fd, len, 0, 65535, 64, "65535 queues");
	expect_refusal(fd, len, 0, 2, 0, "rings of 0");
	expect_refusal(fd, len, 0, 2, 65535, "rings of 65535");
	expect_refusal(fd, len - 64, 4, 1, 64, "multiple of 8");
	close(fd);

	/* One that could be made shorter while it is mapped; something that is no memory at all. */
	other = memfd_create("unsealed", MFD_CLOEXEC);
	assert_int_equal(ftruncate(other, (off_t)len), 0);
	expect_refusal(other, len, 0, 2, 64, "sealed");
	close(other);
	other = open("/dev/zero", O_RDWR | O_CLOEXEC);
	expect_refusal(other, len, 0, 2, 64, "sealed");
	close(other);
}

static void an_area_that_nobody_needs_is_not_made(void **state)
{
	struct varve_error err;
	uint64_t len;
	int fd;

	(void)state;
	assert_int_equal(inflight_create(0, 64, &fd, &len, &err), -EINVAL);
	assert_int_equal(inflight_create(65535, 64, &fd, &len, &err), -EINVAL);
	assert_int_equal(inflight_create(1, 0, &fd, &len, &err), -EINVAL);
	assert_int_equal(inflight_create(1, 65535, &fd, &len, &err), -EINVAL);
}

static void an_area_cannot_be_made_shorter(void **state)
{
	struct varve_error err;
	uint64_t len;
	int fd;

	(void)state;
	assert_int_equal(inflight_create(1, 64, &fd, &len, &err), 0);
	assert_int_equal(ftruncate(fd, 0), -1);
	close(fd);
}

/* Pages of hugetlbfs can be missing however the file is sealed: touching them would be a SIGBUS. */
static void an_area_of_huge_pages_is_refused(void **state)
{
	struct varve_error err;
	uint64_t len;
	int fd;

	(void)state;
	assert_int_equal(inflight_create(1, 64, &fd, &len, &err), 0);
	close(fd);
	if (!hugepages_take(1))
		skip();
	fd = memfd_create("huge", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB);
	assert_int_equal(ftruncate(fd, 2 << 20), 0);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
	expect_refusal(fd, len, 0, 1, 64, "huge pages");
	close(fd);
	hugepages_give_back(1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(an_area_comes_back_as_it_was_left),
		cmocka_unit_test(an_area_may_begin_inside_a_page),
		cmocka_unit_test(what_a_front_end_says_of_its_area_is_checked),
		cmocka_unit_test(an_area_that_nobody_needs_is_not_made),
		cmocka_unit_test(an_area_cannot_be_made_shorter),
		cmocka_unit_test(an_area_of_huge_pages_is_refused),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
