/* SPDX-License-Identifier: MIT */
/*
 * test_lost_flush.c - a real device that fails: a loop device over a sparse file in a full tmpfs
 *
 * Writes go into the page cache and are acknowledged; the flush finds that there is no room for them. Needs root, and
 * is skipped where nothing can be mounted or no loop device is to be had.
 */
#include <fcntl.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include "api_test.h"

#define DISK_LEN (8 * MIB)

static struct varve_error err;

struct device {
	char path[32];
	int fd;
};

/* false: not here. The loop device goes away by itself with its last user. */
static bool device_make(struct device *d)
{
	struct loop_config config = { .info.lo_flags = LO_FLAGS_AUTOCLEAR };
	int control, back;
	bool made = false;

	assert_true(mkdir(path_of("small"), 0700) == 0 || errno == EEXIST);
	if (mount("tmpfs", path_of("small"), "tmpfs", 0, "size=1m") < 0)
		return false;
	back = open(path_of("small/back"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_true(back >= 0);
	assert_int_equal(ftruncate(back, DISK_LEN), 0);
	config.fd = (uint32_t)back;
	control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	/* Another test may take the free number first: look again a few times. */
	for (int i = 0; control >= 0 && !made && i < 10; i++) {
		int nr = ioctl(control, LOOP_CTL_GET_FREE);

		if (nr < 0)
			break;
		snprintf(d->path, sizeof(d->path), "/dev/loop%d", nr);
		d->fd = open(d->path, O_RDWR | O_CLOEXEC);
		if (d->fd < 0)
			break;
		made = ioctl(d->fd, LOOP_CONFIGURE, &config) == 0;
		if (!made)
			close(d->fd);
	}
	if (control >= 0)
		close(control);
	close(back);
	if (!made)
		umount2(path_of("small"), MNT_DETACH);
	return made;
}

static void device_free(struct device *d)
{
	close(d->fd);
	umount2(path_of("small"), MNT_DETACH);
}

static void device_mend(void)
{
	assert_int_equal(mount("tmpfs", path_of("small"), "tmpfs", MS_REMOUNT, "size=64m"), 0);
}

static struct varve_image *device_open(const struct device *d)
{
	struct varve_open_options oo = { .flags = VARVE_OPEN_WRITABLE, .format = "raw" };
	struct varve_image *image;

	expect_ok(varve_image_open(&image, d->path, &oo, &err));
	return image;
}

static void fill_all(struct varve_image *image)
{
	static char buf[MIB];

	memset(buf, 0x5a, sizeof(buf));
	for (uint64_t off = 0; off < DISK_LEN; off += MIB)
		expect_ok(varve_image_write(image, off, buf, MIB, 0, &err));
}

static void expect_stats(struct varve_image *image, const char *words)
{
	char *json;

	expect_ok(varve_image_stats(image, &json, &err));
	if (!strstr(json, words))
		fail_msg("no %s in %s", words, json);
	free(json);
}

static void a_mended_disk_is_well_again_when_all_is_written_again(void **state)
{
	struct varve_image *image;
	struct device d;
	int ret;

	(void)state;
	if (!device_make(&d))
		leave_out("no loop device on a tmpfs here");
	image = device_open(&d);
	fill_all(image);
	expect_stats(image, "\"flush-error\":null,\"bytes-in-doubt\":0");
	ret = varve_image_flush(image, &err);
	assert_true(ret == -EIO || ret == -ENOSPC);
	expect_stats(image, ret == -EIO ? "\"flush-error\":\"EIO\",\"bytes-in-doubt\":8388608" :
					  "\"flush-error\":\"ENOSPC\",\"bytes-in-doubt\":8388608");
	/* The kernel has told its error, and would call the second flush a success. */
	assert_int_equal(varve_image_flush(image, &err), ret);
	device_mend();
	assert_int_equal(varve_image_flush(image, &err), ret);
	fill_all(image);
	expect_ok(varve_image_flush(image, &err));
	expect_stats(image, "\"flush-error\":null,\"bytes-in-doubt\":0");
	expect_ok(varve_image_close(image, &err));
	device_free(&d);
}

static void an_operator_may_acknowledge_the_loss(void **state)
{
	struct varve_image *image;
	struct device d;
	uint64_t bytes;
	int ret;

	(void)state;
	if (!device_make(&d))
		leave_out("no loop device on a tmpfs here");
	image = device_open(&d);
	fill_all(image);
	ret = varve_image_flush(image, &err);
	assert_true(ret < 0);
	device_mend();
	assert_int_equal(varve_image_flush(image, &err), ret);
	assert_int_equal(varve_image_acknowledge_flush_error(image, &bytes, &err), 1);
	assert_int_equal(bytes, DISK_LEN);
	expect_ok(varve_image_flush(image, &err));
	assert_int_equal(varve_image_acknowledge_flush_error(image, NULL, &err), 0);
	expect_ok(varve_image_close(image, &err));
	device_free(&d);
}

/* Closing flushes: who closes with data in doubt is told. */
static void closing_with_data_in_doubt_is_an_error(void **state)
{
	struct varve_image *image;
	struct device d;

	(void)state;
	if (!device_make(&d))
		leave_out("no loop device on a tmpfs here");
	image = device_open(&d);
	fill_all(image);
	assert_true(varve_image_flush(image, &err) < 0);
	device_mend();
	assert_true(varve_image_close(image, &err) < 0);
	assert_non_null(strstr(err.message, "may be lost"));
	device_free(&d);
}

/* No room is the write's own error: nothing is in doubt by it, and with room again the file goes on. */
static void a_full_file_system_is_told_and_got_over(void **state)
{
	struct varve_open_options oo = { .flags = VARVE_OPEN_WRITABLE, .format = "raw" };
	struct varve_image *image;
	static char buf[MIB];

	(void)state;
	assert_true(mkdir(path_of("small"), 0700) == 0 || errno == EEXIST);
	if (mount("tmpfs", path_of("small"), "tmpfs", 0, "size=1m") < 0)
		leave_out("nothing can be mounted here");
	make_image("small/file", "raw", DISK_LEN, NULL);
	expect_ok(varve_image_open(&image, path_of("small/file"), &oo, &err));
	expect_ok(varve_image_write(image, 0, buf, MIB / 2, 0, &err));
	assert_int_equal(varve_image_write(image, 2 * MIB, buf, MIB, 0, &err), -ENOSPC);
	assert_non_null(strstr(err.message, "No space left"));
	expect_ok(varve_image_read(image, 0, buf, MIB / 2, &err));
	expect_ok(varve_image_flush(image, &err));
	expect_stats(image, "\"flush-error\":null");
	/* Room is made by giving some back, or from outside. */
	expect_ok(varve_image_discard(image, 0, DISK_LEN, &err));
	expect_ok(varve_image_write(image, 2 * MIB, buf, MIB / 2, 0, &err));
	device_mend();
	expect_ok(varve_image_write(image, 4 * MIB, buf, MIB, VARVE_REQ_FUA, &err));
	expect_ok(varve_image_close(image, &err));
	umount2(path_of("small"), MNT_DETACH);
}

/* What a test that failed half-way has left mounted. */
static int clean_up(void **state)
{
	umount2(path_of("small"), MNT_DETACH);
	return dir_remove(state);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_mended_disk_is_well_again_when_all_is_written_again),
		cmocka_unit_test(an_operator_may_acknowledge_the_loss),
		cmocka_unit_test(closing_with_data_in_doubt_is_an_error),
		cmocka_unit_test(a_full_file_system_is_told_and_got_over),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, dir_make, clean_up);
}
