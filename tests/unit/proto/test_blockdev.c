/* SPDX-License-Identifier: MIT */
/*
 * unit/proto/test_blockdev.c - the file driver on block devices
 *
 * Loop devices over a sparse file, with sectors of 512 and 4096 bytes. Needs root; skipped where the kernel does not
 * let us make one.
 */
#include "leaf.h"

#include <fcntl.h>
#include <linux/loop.h>
#include <sys/ioctl.h>

#define DEV_LEN MiB(8)

struct loop {
	int fd;
	char path[32];
};

/* false: no loop devices here. The device goes away by itself with its last user. */
static bool loop_make(struct loop *loop, unsigned sector)
{
	struct loop_config config = { .block_size = sector };
	int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC), nr, back;
	bool made = false;

	leaf_make_file("back", DEV_LEN, true);
	back = open(leaf_path("back"), O_RDWR | O_CLOEXEC);
	config.fd = (uint32_t)back;
	config.info.lo_flags = LO_FLAGS_AUTOCLEAR;
	/* Another test may take the free number first: look again a few times. */
	for (int i = 0; control >= 0 && !made && i < 10; i++) {
		nr = ioctl(control, LOOP_CTL_GET_FREE);
		if (nr < 0)
			break;
		snprintf(loop->path, sizeof(loop->path), "/dev/loop%d", nr);
		loop->fd = open(loop->path, O_RDWR | O_CLOEXEC);
		if (loop->fd < 0)
			break;
		made = ioctl(loop->fd, LOOP_CONFIGURE, &config) == 0;
		if (!made)
			close(loop->fd);
	}
	if (control >= 0)
		close(control);
	close(back);
	return made;
}

static const char *loop_opts(const struct loop *loop)
{
	static char text[64];

	snprintf(text, sizeof(text), "filename=%s", loop->path);
	return text;
}

static void any_offset_and_length(struct leaf *l)
{
	enum { LEN = 200000 };
	uint8_t *shadow = malloc(LEN), *buf = malloc(LEN);
	uint32_t seed = 5;

	for (unsigned i = 0; i < LEN; i++)
		shadow[i] = leaf_pattern(i);
	for (int round = 0; round < 100; round++) {
		uint64_t off = (uint32_t)rand_r(&seed) % LEN, len = 1 + (uint32_t)rand_r(&seed) % (LEN - off);

		switch (round % 3) {
		case 0:
			memset(shadow + off, round, len);
			assert_int_equal(leaf_write(l, off, shadow + off, len, round % 2 ? REQ_FUA : 0), 0);
			break;
		case 1:
			memset(shadow + off, 0, len);
			assert_int_equal(leaf_zero(l, off, len, round % 2 ? REQ_MAY_UNMAP : 0), 0);
			break;
		default:
			assert_int_equal(leaf_read(l, off, buf, len), 0);
			assert_memory_equal(buf, shadow + off, len);
		}
	}
	assert_int_equal(leaf_read(l, 0, buf, LEN), 0);
	assert_memory_equal(buf, shadow, LEN);
	assert_int_equal(leaf_discard(l, 1001, 5000), 0);
	assert_int_equal(leaf_read(l, 0, buf, 1001), 0);
	assert_memory_equal(buf, shadow, 1001);
	assert_int_equal(leaf_flush(l), 0);
	free(shadow);
	free(buf);
}

static void a_device_with_sectors_of(unsigned sector, uint32_t flags)
{
	struct loop loop;
	struct leaf l;

	if (!loop_make(&loop, sector))
		skip();
	leaf_open(&l, &driver_host_device, loop_opts(&loop), NODE_WRITABLE | flags);
	assert_true(node_len(l.n) == DEV_LEN);
	assert_int_equal(l.n->align, flags & NODE_DIRECT ? sector : 1);
	any_offset_and_length(&l);
	assert_true(leaf_len(&l) == DEV_LEN);
	leaf_close(&l);
	close(loop.fd);
}

static void small_sectors_through_the_page_cache(void **state)
{
	(void)state;
	a_device_with_sectors_of(512, 0);
}

static void small_sectors_with_direct_io(void **state)
{
	(void)state;
	a_device_with_sectors_of(512, NODE_DIRECT);
}

static void large_sectors_through_the_page_cache(void **state)
{
	(void)state;
	a_device_with_sectors_of(4096, 0);
}

static void large_sectors_with_direct_io(void **state)
{
	(void)state;
	a_device_with_sectors_of(4096, NODE_DIRECT);
}

static void a_device_keeps_its_length(void **state)
{
	struct loop loop;
	struct leaf l, again;
	uint64_t len;
	bool hole;

	(void)state;
	if (!loop_make(&loop, 512))
		skip();
	leaf_open(&l, &driver_file, loop_opts(&loop), NODE_WRITABLE);
	assert_int_equal(leaf_truncate(&l, 0, false), 0);
	assert_int_equal(leaf_truncate(&l, DEV_LEN, true), 0);
	assert_true(node_len(l.n) == DEV_LEN);
	assert_int_equal(leaf_truncate(&l, DEV_LEN + 512, false), -ENOSPC);
	assert_non_null(strstr(l.err.message, "8388608"));
	assert_int_equal(leaf_status(&l, 0, 4096, &hole, &len), 0);
	assert_true(!hole && len == 4096);
	leaf_expect_refused(&driver_file, loop_opts(&loop), 0, -EAGAIN, "lock");
	leaf_open(&again, &driver_file, loop_opts(&loop), NODE_FORCE_SHARE);
	assert_true(again.n->file_id[0] == l.n->file_id[0] && again.n->file_id[1] == l.n->file_id[1]);
	leaf_close(&again);
	leaf_close(&l);
	close(loop.fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(small_sectors_through_the_page_cache),
		cmocka_unit_test(small_sectors_with_direct_io),
		cmocka_unit_test(large_sectors_through_the_page_cache),
		cmocka_unit_test(large_sectors_with_direct_io),
		cmocka_unit_test(a_device_keeps_its_length),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, leaf_remove_dir);
}
