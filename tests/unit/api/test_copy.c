/* SPDX-License-Identifier: MIT */
/*
 * test_copy.c - copying between images: the same bytes whoever moves them, and the kernel moves them where it can
 */
#include <linux/fs.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <fcntl.h>

#include "api_test.h"

#define DISK_LEN (4 * MIB)

static struct varve_error err;
static struct varve_queue *home;
static uint8_t expected[DISK_LEN], found[DISK_LEN];

static int setup(void **state)
{
	return dir_make(state) || varve_queue_new(&home, NULL, &err);
}

static int teardown(void **state)
{
	varve_queue_free(home);
	umount2(path_of("fs"), MNT_DETACH);
	return dir_remove(state);
}

/* An image with bytes of its own in [off, off + len). */
static struct varve_image *filled(const char *name, const char *format, const char *options, uint64_t off, uint64_t len,
				  unsigned seed)
{
	struct varve_open_options oo = { .flags = VARVE_OPEN_WRITABLE, .format = format, .home = home };
	struct varve_image *image;
	uint8_t *buf = malloc(len);

	make_image(name, format, DISK_LEN, options);
	expect_ok(varve_image_open(&image, path_of(name), &oo, &err));
	for (uint64_t i = 0; i < len; i++)
		buf[i] = (uint8_t)(i * 31 + i / 257 + seed);
	expect_ok(varve_image_write(image, off, buf, len, 0, &err));
	free(buf);
	return image;
}

/* Copies, and compares all of dst with what it must hold now. Returns how much the kernel copied. */
static uint64_t copy(struct varve_image *dst, uint64_t dst_off, struct varve_image *src, uint64_t src_off, uint64_t len,
		     unsigned flags)
{
	uint64_t offloaded = UINT64_MAX;

	expect_ok(varve_image_read(dst, 0, expected, DISK_LEN, &err));
	expect_ok(varve_image_read(src, src_off, expected + dst_off, len, &err));
	expect_ok(varve_image_copy(dst, dst_off, src, src_off, len, flags, &offloaded, NULL, NULL, &err));
	expect_ok(varve_image_read(dst, 0, found, DISK_LEN, &err));
	assert_memory_equal(found, expected, DISK_LEN);
	return offloaded;
}

static void close_two(struct varve_image *a, struct varve_image *b)
{
	expect_ok(varve_image_flush(a, &err));
	expect_ok(varve_image_close(a, &err));
	expect_ok(varve_image_close(b, &err));
}

/* Does the file system of the tests copy at all? */
static bool kernel_copies(void)
{
	int a = open(path_of("probe-a"), O_RDWR | O_CREAT | O_CLOEXEC, 0600),
	    b = open(path_of("probe-b"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	bool works = write(a, "x", 1) == 1 && copy_file_range(a, &(off_t){ 0 }, b, &(off_t){ 0 }, 1, 0) == 1;

	close(a);
	close(b);
	return works;
}

static void raw_is_copied_by_the_kernel(void **state)
{
	struct varve_image *a = filled("a", "raw", NULL, 0, DISK_LEN, 1), *b = filled("b", "raw", NULL, 0, MIB, 2);
	uint64_t whole = kernel_copies() ? 3 * MIB : 0;

	(void)state;
	assert_int_equal(copy(b, MIB, a, 0, 3 * MIB, 0), whole);
	/* Any offset and length, and both ways between the two. */
	assert_int_equal(copy(b, 777, a, 123456, 345678, 0), whole ? 345678 : 0);
	assert_int_equal(copy(a, 3, b, 1, 511, 0), whole ? 511 : 0);
	/* Within one image. */
	assert_int_equal(copy(a, 2 * MIB + 5, a, 100, MIB, 0), whole ? MIB : 0);
	assert_int_equal(copy(b, MIB, a, 0, 3 * MIB, VARVE_COPY_NO_OFFLOAD), 0);
	close_two(a, b);
}

/* What another writer of the source has in flight is not our affair; what was acknowledged is in the copy. */
static void a_write_before_is_in_the_copy(void **state)
{
	struct varve_image *a = filled("a", "raw", NULL, 0, DISK_LEN, 1), *b = filled("b", "raw", NULL, 0, MIB, 2);
	char text[] = "newest", back[sizeof(text)];

	(void)state;
	expect_ok(varve_image_write(a, 1000, text, sizeof(text), 0, &err));
	expect_ok(varve_image_copy(b, 0, a, 0, DISK_LEN, 0, NULL, NULL, NULL, &err));
	expect_ok(varve_image_read(b, 1000, back, sizeof(back), &err));
	assert_string_equal(back, text);
	close_two(a, b);
}

static void a_qcow2_without_space_is_written_one_with_space_is_copied_to(void **state)
{
	struct varve_image *a = filled("a.raw", "raw", NULL, 0, DISK_LEN, 1),
			   *b = filled("b.qcow2", "qcow2", NULL, MIB, 100000, 2);
	uint64_t nr;

	(void)state;
	/* The cluster that b has takes it by the kernel, the others need space first. */
	nr = copy(b, MIB, a, 0, 2 * MIB, 0);
	assert_true(nr == (kernel_copies() ? 2 * 65536 : 0));
	assert_true(copy(b, MIB, a, 500, 2 * MIB, 0) == (kernel_copies() ? 2 * MIB : 0));
	/* Holes of the source are zeroes in the copy. */
	assert_int_equal(copy(a, 0, b, 0, MIB, 0), 0);
	assert_true(copy(a, 0, b, 0, DISK_LEN, 0) == (kernel_copies() ? 2 * MIB : 0));
	close_two(b, a);
}

/* A cluster shared with nobody may be written in place; a probed raw image keeps its first sector. */
static void the_guard_of_a_probed_image_holds(void **state)
{
	struct varve_image *a = filled("a.qcow2", "qcow2", NULL, 0, 65536, 1), *b, *r;
	struct varve_open_options oo = { .format = "raw", .home = home };

	(void)state;
	expect_ok(varve_image_close(a, &err));
	make_image("b", "raw", DISK_LEN, NULL);
	b = open_image("b", VARVE_OPEN_WRITABLE, home); /* probed */
	expect_ok(varve_image_open(&r, path_of("a.qcow2"), &oo, &err)); /* its bytes begin with the magic of qcow2 */
	assert_true(varve_image_copy(b, 0, r, 0, 65536, 0, NULL, NULL, NULL, &err) < 0);
	expect_ok(varve_image_copy(b, 65536, r, 0, 65536, 0, NULL, NULL, NULL, &err));
	/* Harmless bytes may go there; only the guarded part passes through us. */
	assert_true(copy(b, 0, r, 8192, 65536, 0) == (kernel_copies() ? 65536 - 2048 : 0));
	close_two(b, r);
}

static void a_source_shorter_than_its_last_sector_is_zeroes_there(void **state)
{
	struct varve_image *a, *b = filled("b", "raw", NULL, 0, MIB, 2);
	int fd = open(path_of("odd"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	(void)state;
	assert_int_equal(write(fd, "0123456789", 10), 10);
	assert_int_equal(ftruncate(fd, 5000), 0);
	close(fd);
	a = open_image("odd", 0, home);
	assert_int_equal(varve_image_length(a), 5120);
	copy(b, 100, a, 0, 5120, 0);
	close_two(b, a);
}

static void direct_io_copies_too(void **state)
{
	struct varve_open_options oo = { .flags = VARVE_OPEN_WRITABLE, .format = "raw", .cache = "none", .home = home };
	struct varve_image *a = filled("a", "raw", NULL, 0, DISK_LEN, 1), *b;

	(void)state;
	make_image("b", "raw", DISK_LEN, NULL);
	if (varve_image_open(&b, path_of("b"), &oo, &err) < 0) {
		expect_ok(varve_image_close(a, &err));
		leave_out("no O_DIRECT on this file system");
	}
	assert_true(copy(b, 65536, a, 0, 2 * MIB, 0) == (kernel_copies() ? 2 * MIB : 0));
	assert_int_equal(copy(b, 513, a, 0, 10000, 0), 0); /* parts of blocks are read, changed and written by us */
	close_two(b, a);
}

static void what_cannot_be_copied_is_refused_in_words(void **state)
{
	struct varve_image *a = filled("a", "raw", NULL, 0, MIB, 1), *b, *alone;

	(void)state;
	assert_int_equal(varve_image_copy(a, 100, a, 0, 200, 0, NULL, NULL, NULL, &err), -EINVAL);
	assert_non_null(strstr(err.message, "overlap"));
	assert_int_equal(varve_image_copy(a, DISK_LEN - 10, a, 0, 20, 0, NULL, NULL, NULL, &err), -EINVAL);
	assert_int_equal(varve_image_copy(a, 0, a, MIB, 20, 1u << 9, NULL, NULL, NULL, &err), -EINVAL);
	expect_ok(varve_image_copy(a, 0, a, 0, 0, 0, NULL, NULL, NULL, &err));
	make_image("b", "raw", MIB, NULL);
	alone = open_image("b", VARVE_OPEN_WRITABLE, NULL);
	assert_int_equal(varve_image_copy(alone, 0, a, 0, 20, 0, NULL, NULL, NULL, &err), -EINVAL);
	assert_non_null(strstr(err.message, "same home queue"));
	expect_ok(varve_image_close(alone, &err));
	b = open_image("b", 0, home);
	assert_int_equal(varve_image_copy(b, 0, a, 0, 20, 0, NULL, NULL, NULL, &err), -EACCES);
	close_two(a, b);
}

/* ---- a file system that shares blocks ---- */

static bool xfs_make(void)
{
	struct loop_config config = { .info.lo_flags = LO_FLAGS_AUTOCLEAR };
	int control, back, fd = -1;
	char command[512], dev[32] = "";
	bool made = false;

	snprintf(command, sizeof(command), "truncate -s 320M '%s' && mkfs.xfs -q -m reflink=1 '%s' >/dev/null 2>&1",
		 path_of("xfs"), path_of("xfs"));
	if (system(command) != 0 || mkdir(path_of("fs"), 0700) < 0)
		return false;
	back = open(path_of("xfs"), O_RDWR | O_CLOEXEC);
	config.fd = (uint32_t)back;
	control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	for (int i = 0; control >= 0 && !made && i < 10; i++) {
		int nr = ioctl(control, LOOP_CTL_GET_FREE);

		if (nr < 0)
			break;
		snprintf(dev, sizeof(dev), "/dev/loop%d", nr);
		fd = open(dev, O_RDWR | O_CLOEXEC);
		if (fd < 0)
			break;
		made = ioctl(fd, LOOP_CONFIGURE, &config) == 0;
		if (!made)
			close(fd);
	}
	made = made && mount(dev, path_of("fs"), "xfs", 0, NULL) == 0;
	if (fd >= 0)
		close(fd);
	if (control >= 0)
		close(control);
	close(back);
	return made;
}

static uint64_t blocks_used(void)
{
	struct stat st;

	assert_int_equal(stat(path_of("fs/b"), &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

/* How many bytes of the file share their blocks with another, asked from the file system. */
static uint64_t bytes_shared(const char *name)
{
	char command[512], line[256];
	uint64_t shared = 0;
	FILE *p;

	snprintf(command, sizeof(command), "filefrag -v '%s' 2>/dev/null | grep -c shared", path_of(name));
	p = popen(command, "r");
	if (p && fgets(line, sizeof(line), p))
		shared = strtoull(line, NULL, 10);
	if (p)
		pclose(p);
	return shared;
}

static void blocks_are_shared_where_the_file_system_can(void **state)
{
	struct varve_image *a, *b;

	(void)state;
	if (!xfs_make())
		leave_out("no XFS: mkfs.xfs, mount and loop devices are needed");
	a = filled("fs/a", "raw", NULL, 0, DISK_LEN, 1);
	b = filled("fs/b", "raw", NULL, 0, 4096, 2);
	expect_ok(varve_image_flush(a, &err));
	assert_int_equal(copy(b, 0, a, 0, DISK_LEN, 0), DISK_LEN);
	expect_ok(varve_image_flush(b, &err));
	assert_true(blocks_used() >= DISK_LEN);
	assert_true(bytes_shared("fs/b") > 0);
	/* What shares blocks is separate for who writes. */
	expect_ok(varve_image_write(b, 0, "b", 1, 0, &err));
	expect_ok(varve_image_read(a, 0, found, 1, &err));
	assert_int_equal(found[0], 1);
	close_two(b, a);
}

/* What the target reads from its backing file is plain data in a file, too; but nobody writes there. */
static void a_copy_over_a_backing_file_gets_space_of_its_own(void **state)
{
	struct varve_image *a = filled("a", "raw", NULL, 0, DISK_LEN, 1), *base = filled("base.raw", "raw", NULL, 0, DISK_LEN, 2), *b;
	char options[PATH_MAX + 64];

	(void)state;
	expect_ok(varve_image_close(base, &err));
	snprintf(options, sizeof(options), "backing_file=%s,backing_fmt=raw", path_of("base.raw"));
	b = filled("b", "qcow2", options, MIB, 65536, 3);
	assert_int_equal(copy(b, 0, a, 0, DISK_LEN, 0), kernel_copies() ? 65536 : 0);
	close_two(a, b);
}

struct ending {
	struct varve_image *image;
	uint64_t done;
};

static void end_it(void *user_data, uint64_t done, uint64_t total)
{
	struct ending *e = user_data;

	(void)total;
	e->done = done;
	varve_image_cancel(e->image);
}

/* What takes long ends, then and later; what a guest does goes on, and the image closes clean. */
static void what_takes_long_ends_when_told_to(void **state)
{
	struct varve_image *a = filled("a", "qcow2", NULL, 0, 4 * MIB, 1), *b = filled("b", "qcow2", NULL, 0, 4096, 2);
	struct varve_convert_options slow = { .rate = 4 * MIB, .parallel = 1 };
	struct ending e = { .image = b };
	struct varve_image *sources[] = { a };
	struct varve_check_result check;
	uint8_t byte = 9;

	(void)state;
	assert_int_equal(varve_convert(b, sources, 1, &slow, end_it, &e, &err), -ECANCELED);
	assert_non_null(strstr(err.message, "b: "));
	assert_in_range(e.done, 1, 3 * MIB);
	assert_int_equal(varve_image_copy(b, 0, a, 0, MIB, 0, NULL, NULL, NULL, &err), -ECANCELED);
	assert_int_equal(varve_image_resize(b, 64 * MIB, VARVE_PREALLOC_FULL, 0, &err), -ECANCELED);
	assert_int_equal(varve_image_length(b), DISK_LEN);
	expect_ok(varve_image_write(b, 0, &byte, 1, 0, &err));
	expect_ok(varve_image_copy(a, MIB, b, 0, 4096, 0, NULL, NULL, NULL, &err));
	close_two(a, b);
	b = open_image("b", 0, home);
	expect_ok(varve_image_check(b, &check, NULL, NULL, NULL, &err));
	assert_int_equal(check.corruptions + check.leaks, 0);
	expect_ok(varve_image_close(b, &err));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(raw_is_copied_by_the_kernel),
		cmocka_unit_test(a_write_before_is_in_the_copy),
		cmocka_unit_test(a_qcow2_without_space_is_written_one_with_space_is_copied_to),
		cmocka_unit_test(a_copy_over_a_backing_file_gets_space_of_its_own),
		cmocka_unit_test(the_guard_of_a_probed_image_holds),
		cmocka_unit_test(a_source_shorter_than_its_last_sector_is_zeroes_there),
		cmocka_unit_test(direct_io_copies_too),
		cmocka_unit_test(what_cannot_be_copied_is_refused_in_words),
		cmocka_unit_test(what_takes_long_ends_when_told_to),
		cmocka_unit_test(blocks_are_shared_where_the_file_system_can),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, setup, teardown);
}
