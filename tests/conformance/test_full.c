/* SPDX-License-Identifier: MIT */
/*
 * conformance/test_full.c - every engine on disks that are really full, and on write-back that really fails
 *
 * A tmpfs and a file system of 1 MiB; a loop device whose file cannot get its space; a limit of the process;
 * the page cache writing back to a file system that refuses. The errors are the kernel's own.
 */
#include "rig.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/statvfs.h>

#define BLOCK 4096

static int write_filled(struct rig *rig, uint64_t off, uint8_t byte, size_t len)
{
	uint8_t *buf = rig_memory(len);
	int ret;

	memset(buf, byte, len);
	ret = rig_do(rig, REQ_WRITE, off, buf, len, 0);
	free(buf);
	return ret;
}

static void expect_filled(struct rig *rig, uint64_t off, uint8_t byte, size_t len)
{
	uint8_t *buf = rig_memory(len), *want = rig_memory(len);

	memset(want, byte, len);
	memset(buf, ~byte, len);
	assert_int_equal(rig_do(rig, REQ_READ, off, buf, len, 0), 0);
	assert_memory_equal(buf, want, len);
	rig_peek_expect(rig, off, want, len);
	free(buf);
	free(want);
}

/*
 * Writes of 64 KiB until one fails: that one with ENOSPC, whole. What was written before is there and becomes
 * stable; in place everything goes on; and when space is freed, so does the rest.
 */
static void a_full_file_system_says_so(const struct setting *s)
{
	const size_t part = 65536;
	uint64_t at = 0;
	struct rig rig;
	int ret;

	rig_open(&rig, s, RIG_LEN); /* sparse: none of it has space yet */
	while ((ret = write_filled(&rig, at, 0x41, part)) == 0) {
		at += part;
		assert_true(at < RIG_LEN);
	}
	assert_int_equal(ret, -ENOSPC);
	assert_true(at >= part);
	expect_filled(&rig, 0, 0x41, at);
	assert_int_equal(write_filled(&rig, 0, 0x42, part), 0); /* has its space already */
	assert_int_equal(rig_do(&rig, REQ_FLUSH, 0, NULL, 0, 0), 0);
	assert_int_equal(rig_do(&rig, REQ_ZERO, RIG_LEN - MiB(2), NULL, MiB(2), 0), -ENOSPC);
	assert_int_equal(rig_do(&rig, REQ_DISCARD, part, NULL, 2 * part, 0), 0);
	assert_int_equal(write_filled(&rig, at, 0x43, part), 0);
	assert_int_equal(rig_do(&rig, REQ_FLUSH, 0, NULL, 0, 0), 0);
	expect_filled(&rig, 0, 0x42, part);
	expect_filled(&rig, 3 * part, 0x41, at - 3 * part);
	expect_filled(&rig, at, 0x43, part);
	rig_close(&rig);
}

/* Some of many requests in flight find no space: each of them says so, the others are written. */
static void some_of_many_find_no_space(const struct setting *s)
{
	enum { NR = 400 };
	struct call *calls = calloc(NR, sizeof(*calls));
	unsigned nr_full = 0;
	uint8_t *buf = rig_memory(BLOCK);
	struct rig rig;

	memset(buf, 0x44, BLOCK);
	rig_open(&rig, s, RIG_LEN);
	for (unsigned i = 0; i < NR; i++)
		call_start(&rig, &calls[i], REQ_WRITE, i * BLOCK, buf, BLOCK, 0);
	calls_finish(rig.l.q, calls, NR);
	for (unsigned i = 0; i < NR; i++) {
		assert_true(calls[i].ret == 0 || calls[i].ret == -ENOSPC);
		nr_full += calls[i].ret < 0;
		if (!calls[i].ret)
			expect_filled(&rig, i * BLOCK, 0x44, BLOCK);
	}
	assert_true(nr_full >= 100 && nr_full < NR);
	assert_int_equal(rig_do(&rig, REQ_FLUSH, 0, NULL, 0, 0), 0);
	rig_close(&rig);
	free(calls);
	free(buf);
}

/* The kernel transfers what the limit allows, and then answers EFBIG: a short write and an error. */
static void a_limit_of_the_process_is_an_error(const struct setting *s)
{
	struct rlimit limit, was;
	struct rig rig;

	signal(SIGXFSZ, SIG_IGN);
	rig_open(&rig, s, 65536);
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
	limit = was;
	limit.rlim_cur = MiB(1) + 2 * BLOCK;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
	/* node_submit() takes nothing beyond the end; growing is for formats, by leaf_write(). */
	assert_int_equal(leaf_truncate(&rig.l, MiB(1), false), 0);
	{
		uint8_t *buf = rig_memory(4 * BLOCK);

		memset(buf, 0x45, 4 * BLOCK);
		assert_int_equal(leaf_write(&rig.l, MiB(1), buf, 4 * BLOCK, 0), -EFBIG);
		setrlimit(RLIMIT_FSIZE, &was);
		assert_int_equal(leaf_write(&rig.l, MiB(1), buf, 4 * BLOCK, 0), 0);
		free(buf);
	}
	expect_filled(&rig, MiB(1), 0x45, 4 * BLOCK);
	rig_close(&rig);
}

/* ---- a device that loses writes behind our back ---- */

/*
 * The page cache took the writes; the space below the device is missing when they are written back. The flush
 * must say so, and so must every flush after it, although the kernel tells it only once.
 */
static void lost_write_back_is_never_forgotten(const struct setting *s)
{
	uint8_t *buf = rig_memory(MiB(4));
	struct rig rig;
	int ret;

	rig_open(&rig, s, RIG_LEN);
	memset(buf, 0x46, MiB(4));
	ret = rig_do(&rig, REQ_WRITE, 0, buf, MiB(4), 0);
	if (rig_flags(s) & NODE_DIRECT) {
		/* Nothing is hidden: the write itself fails, and nothing else does. */
		assert_true(ret == -EIO || ret == -ENOSPC);
		assert_int_equal(rig_do(&rig, REQ_FLUSH, 0, NULL, 0, 0), 0);
		rig_close(&rig);
	} else {
		assert_int_equal(ret, 0);
		ret = rig_do(&rig, REQ_FLUSH, 0, NULL, 0, 0);
		assert_true(ret == -EIO || ret == -ENOSPC);
		for (unsigned i = 0; i < 3; i++)
			assert_int_equal(rig_do(&rig, REQ_FLUSH, 0, NULL, 0, 0), ret);
		assert_int_equal(rig_do(&rig, REQ_WRITE, 0, buf, BLOCK, REQ_FUA), ret);
		rig_close_node(&rig, ret);
		close(rig.fd);
	}
	free(buf);
}

/* The same through a file system's own write-back: a write that fails long after it was acknowledged. */
static void a_write_back_that_fails_fails_the_flush(const struct setting *s)
{
	uint8_t *buf = rig_memory(MiB(1));
	struct rig rig;

	rig_open(&rig, s, RIG_LEN);
	memset(buf, 0x47, MiB(1));
	assert_int_equal(rig_do(&rig, REQ_WRITE, 0, buf, MiB(1), 0), 0);
	faultfs_tell(rig.fs, "rule write 0 1 error %d", EIO);
	assert_int_equal(rig_do(&rig, REQ_FLUSH, 0, NULL, 0, 0), -EIO);
	faultfs_tell(rig.fs, "clear");
	assert_int_equal(rig_do(&rig, REQ_FLUSH, 0, NULL, 0, 0), -EIO);
	assert_int_equal(rig_do(&rig, REQ_WRITE, MiB(2), buf, BLOCK, 0), 0);
	assert_int_equal(rig_do(&rig, REQ_FLUSH, 0, NULL, 0, 0), -EIO);
	rig_close_node(&rig, -EIO);
	close(rig.fd);
	free(buf);
}

int main(void)
{
	static const struct rig_case cases[] = {
		{ "a full file system says so", a_full_file_system_says_so, BOTH_CACHES, 1u << ON_SMALL_TMPFS,
		  NULL },
		{ "some of many find no space", some_of_many_find_no_space, BOTH_CACHES, 1u << ON_SMALL_TMPFS,
		  NULL },
		{ "a limit of the process is an error", a_limit_of_the_process_is_an_error, BOTH_CACHES,
		  1u << ON_FILE | 1u << ON_TMPFS, NULL },
		{ "lost write-back is never forgotten", lost_write_back_is_never_forgotten, BOTH_CACHES,
		  1u << ON_STARVED_LOOP, NULL },
		{ "a write-back that fails fails the flush", a_write_back_that_fails_fails_the_flush,
		  1u << WRITEBACK, 1u << ON_FAULTFS_CACHED, NULL },
	};

	return rig_run("full", cases, ARRAY_LEN(cases));
}
