/* SPDX-License-Identifier: MIT */
/*
 * test_mem.c - the memory table: what is mapped, what is refused, what is translated
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>

#include "export/vhost-user-blk/mem.h"

#define FILE_LEN MiB(4)
#define USER UINT64_C(0x7e0000000000)

static int memfd;
static uint8_t *file;
static struct gmem mem;
static struct varve_error err;

static int setup(void **state)
{
	(void)state;
	memset(&mem, 0, sizeof(mem));
	memfd = memfd_create("test", MFD_CLOEXEC);
	if (memfd < 0 || ftruncate(memfd, FILE_LEN) < 0)
		return -1;
	file = mmap(NULL, FILE_LEN, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	return file == MAP_FAILED ? -1 : 0;
}

static int teardown(void **state)
{
	(void)state;
	gmem_unmap(&mem);
	munmap(file, FILE_LEN);
	close(memfd);
	return 0;
}

static int map(const struct umsg_region *regions, unsigned nr)
{
	const int fds[UMSG_REGIONS_MAX] = { memfd, memfd, memfd, memfd, memfd, memfd, memfd, memfd };

	return gmem_map(&mem, regions, fds, nr, &err);
}

/* The region is refused with words that contain why, and nothing is left mapped. */
static void expect_refused(const struct umsg_region *regions, unsigned nr, const char *why)
{
	int ret = map(regions, nr);

	if (ret >= 0 || !strstr(err.message, why))
		fail_msg("got %d \"%s\", expected \"%s\"", ret, err.message, why);
	assert_int_equal(mem.nr_regions, 0);
}

static void regions_show_their_part_of_the_file(void **state)
{
	const struct umsg_region regions[] = {
		{ .guest_addr = 0, .len = MiB(1), .user_addr = USER, .mmap_off = 0 },
		{ .guest_addr = GiB(4), .len = MiB(2), .user_addr = USER + GiB(1), .mmap_off = MiB(2) },
		{ .guest_addr = MiB(1),
		  .len = 0x3000,
		  .user_addr = USER + GiB(2),
		  .mmap_off = MiB(1) + 0x1234 },
	};
	uint64_t off;

	(void)state;
	assert_int_equal(map(regions, 3), 0);
	assert_int_equal(mem.nr_regions, 3);
	file[MiB(2) + 77] = 42;
	file[MiB(1) + 0x1234] = 43;
	assert_int_equal(*(uint8_t *)gmem_by_user(&mem, USER + GiB(1) + 77, 1), 42);
	assert_int_equal(mem.region[2].host[77], 42); /* they are kept by guest address */
	assert_int_equal(mem.region[1].host[0], 43); /* an offset that is no multiple of a page */
	assert_ptr_equal(gmem_region_at(&mem, GiB(4) + MiB(2) - 1, &off), &mem.region[2]);
	assert_int_equal(off, MiB(2) - 1);
	assert_null(gmem_region_at(&mem, GiB(4) + MiB(2), &off));
	assert_null(gmem_region_at(&mem, GiB(4) - 1, &off));
	assert_null(gmem_region_at(&mem, UINT64_MAX, &off));
}

static void only_whole_ranges_are_translated(void **state)
{
	const struct umsg_region regions[] = {
		{ .guest_addr = 0, .len = MiB(1), .user_addr = USER, .mmap_off = 0 },
		{ .guest_addr = MiB(1), .len = MiB(1), .user_addr = USER + MiB(1), .mmap_off = MiB(2) },
	};

	(void)state;
	assert_int_equal(map(regions, 2), 0);
	assert_non_null(gmem_by_user(&mem, USER, MiB(1)));
	assert_null(gmem_by_user(&mem, USER, MiB(1) + 1)); /* goes on in the next region, but not for us */
	assert_null(gmem_by_user(&mem, USER + MiB(2) - 1, 2));
	assert_non_null(gmem_by_user(&mem, USER + MiB(2) - 1, 1));
	assert_null(gmem_by_user(&mem, USER - 1, 2));
	assert_null(gmem_by_user(&mem, USER, 0));
	assert_null(gmem_by_user(&mem, USER + 16, UINT64_MAX));
	assert_null(gmem_by_user(&mem, USER + 16, UINT64_MAX - 15));
}

static void overlapping_regions_are_refused(void **state)
{
	struct umsg_region r[3] = {
		{ .guest_addr = 0, .len = MiB(1), .user_addr = USER },
		{ .guest_addr = MiB(1), .len = MiB(1), .user_addr = USER + MiB(1) },
		{ .guest_addr = MiB(2), .len = MiB(1), .user_addr = USER + MiB(2) },
	};

	(void)state;
	r[2].guest_addr = MiB(2) - 1;
	expect_refused(r, 3, "regions 1 and 2 overlap at guest address 0x1fffff");
	r[2].guest_addr = 0;
	expect_refused(r, 3, "regions 0 and 2 overlap at guest address 0x0");
	r[2].guest_addr = MiB(2);
	r[2].user_addr = USER + MiB(1) - 1;
	expect_refused(r, 3, "regions 0 and 2 overlap at front-end address");
	r[2].user_addr = USER + MiB(2);
	assert_int_equal(map(r, 3), 0); /* touching is fine, and so is the same part of the file twice */
}

static void regions_beyond_their_file_are_refused(void **state)
{
	struct umsg_region r = { .guest_addr = 0, .len = FILE_LEN, .user_addr = USER, .mmap_off = 1 };

	(void)state;
	expect_refused(&r, 1, "beyond the end of the file");
	r.mmap_off = 0;
	r.len = FILE_LEN + 1;
	expect_refused(&r, 1, "beyond the end of the file");
	r.len = 1;
	r.mmap_off = FILE_LEN;
	expect_refused(&r, 1, "beyond the end of the file");
	r.mmap_off = UINT64_MAX;
	expect_refused(&r, 1, "beyond the end of the file");
	r.mmap_off = UINT64_MAX - 0xfff;
	r.len = 0x2000;
	expect_refused(&r, 1, "beyond the end of the file");
	r.mmap_off = 0;
	r.user_addr = 0;
	r.len = UINT64_MAX;
	expect_refused(&r, 1, "beyond the end of the file");
}

static void regions_that_wrap_are_refused(void **state)
{
	struct umsg_region r = { .guest_addr = UINT64_MAX - 0xfff, .len = 0x2000, .user_addr = USER };

	(void)state;
	expect_refused(&r, 1, "wrap around");
	r.guest_addr = 0;
	r.user_addr = UINT64_MAX - 0xfff;
	expect_refused(&r, 1, "wrap around");
}

static void an_empty_region_is_refused(void **state)
{
	struct umsg_region r = { .guest_addr = 0, .len = 0, .user_addr = USER };

	(void)state;
	expect_refused(&r, 1, "empty");
}

static void descriptors_without_memory_are_refused(void **state)
{
	const struct umsg_region r = { .guest_addr = 0, .len = 4096, .user_addr = USER };
	int fds[2], ev = eventfd(0, EFD_CLOEXEC), bad = -1, readable;
	char path[64];

	(void)state;
	assert_int_equal(pipe(fds), 0);
	assert_int_equal(gmem_map(&mem, &r, &fds[0], 1, &err), -EINVAL);
	assert_int_equal(gmem_map(&mem, &r, &ev, 1, &err), -EINVAL);
	assert_int_equal(gmem_map(&mem, &r, &bad, 1, &err), -EBADF);
	close(fds[0]);
	close(fds[1]);
	close(ev);
	/* Memory that may be read only. */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", memfd);
	readable = open(path, O_RDONLY | O_CLOEXEC);
	assert_true(readable >= 0);
	assert_int_equal(gmem_map(&mem, &r, &readable, 1, &err), -EACCES);
	close(readable);
	assert_int_equal(mem.nr_regions, 0);
}

/* A later region that is refused takes the earlier ones with it; the table before stays as it was. */
static void a_refused_table_changes_nothing(void **state)
{
	const struct umsg_region good = { .guest_addr = 0, .len = MiB(1), .user_addr = USER };
	const struct umsg_region bad[] = {
		good, { .guest_addr = MiB(8), .len = MiB(8), .user_addr = USER + MiB(8) }
	};
	struct gmem before;

	(void)state;
	assert_int_equal(map(&good, 1), 0);
	before = mem;
	assert_true(map(bad, 2) < 0);
	assert_memory_equal(&before, &mem, sizeof(mem));
	assert_int_equal(*(uint8_t *)gmem_by_user(&mem, USER, 1), 0);
}

static void no_region_is_a_table_too(void **state)
{
	uint64_t off;

	(void)state;
	assert_int_equal(map(NULL, 0), 0);
	assert_null(gmem_by_user(&mem, 0, 1));
	assert_null(gmem_region_at(&mem, 0, &off));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(regions_show_their_part_of_the_file),
		TEST(only_whole_ranges_are_translated),
		TEST(overlapping_regions_are_refused),
		TEST(regions_beyond_their_file_are_refused),
		TEST(regions_that_wrap_are_refused),
		TEST(an_empty_region_is_refused),
		TEST(descriptors_without_memory_are_refused),
		TEST(a_refused_table_changes_nothing),
		TEST(no_region_is_a_table_too),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
