/* SPDX-License-Identifier: MIT */
/*
 * unit/proto/test_file.c - the file driver on real files: opening, lengths, holes, edges of the file
 *
 * Everything that does I/O runs with each engine that works here.
 */
#include "leaf.h"

#include <fcntl.h>
#include <jansson.h>
#include <linux/capability.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "proto/file.h"

static const char *const engines[] = { "threads", "io_uring" };

static bool engine_works(const char *name)
{
	const struct aio_engine *engine = aio_engine_choose(name, false, NULL);
	struct queue *q = leaf_queue();
	bool works = engine && aio_attach(q, engine, NULL) == 0;

	queue_free(q);
	return works;
}

#define FOR_EACH_ENGINE(aio)                                                                                          \
	for (unsigned e_ = 0; e_ < ARRAY_LEN(engines); e_++)                                                          \
		for (const char *aio = engine_works(engines[e_]) ? engines[e_] : NULL; aio; aio = NULL)

static const char *with_aio(const char *name, const char *aio)
{
	char more[64];

	snprintf(more, sizeof(more), ",aio=%s", aio);
	return leaf_file_opts(name, more);
}

static void written_bytes_are_read_back(void **state)
{
	uint8_t out[10000], in[10000];
	struct leaf l;

	(void)state;
	FOR_EACH_ENGINE(aio) {
		leaf_make_file("a", 100000, false);
		leaf_open(&l, &driver_file, with_aio("a", aio), NODE_WRITABLE);
		for (size_t i = 0; i < sizeof(out); i++)
			out[i] = leaf_pattern(i);
		assert_int_equal(leaf_write(&l, 12345, out, sizeof(out), 0), 0);
		assert_int_equal(leaf_write(&l, 50000, out, sizeof(out), REQ_FUA), 0);
		assert_int_equal(leaf_flush(&l), 0);
		assert_int_equal(leaf_read(&l, 12345, in, sizeof(in)), 0);
		assert_memory_equal(in, out, sizeof(in));
		assert_int_equal(leaf_read(&l, 50000, in, sizeof(in)), 0);
		assert_memory_equal(in, out, sizeof(in));
		leaf_expect(&l, 0, 12345, 0);
		assert_int_equal(leaf_close(&l), 0);
	}
}

static void reading_past_the_end_gives_zeroes(void **state)
{
	uint8_t buf[3000];
	struct leaf l;

	(void)state;
	FOR_EACH_ENGINE(aio) {
		leaf_make_file("a", 1000, true);
		leaf_open(&l, &driver_file, with_aio("a", aio), 0);
		assert_int_equal(node_len(l.n), 1000);
		memset(buf, 0xee, sizeof(buf));
		assert_int_equal(leaf_read(&l, 500, buf, sizeof(buf)), 0);
		for (size_t i = 0; i < sizeof(buf); i++)
			assert_int_equal(buf[i], i < 500 ? leaf_pattern(500 + i) : 0);
		leaf_expect(&l, 5000, 100, 0);
		leaf_close(&l);
	}
}

/* The file was cut by somebody else while we have it open: zeroes, not a loop and not an error of the leaf. */
static void a_file_cut_by_another_reads_as_zeroes_behind(void **state)
{
	struct leaf l;

	(void)state;
	FOR_EACH_ENGINE(aio) {
		leaf_make_file("a", 8192, true);
		leaf_open(&l, &driver_file, with_aio("a", aio), 0);
		assert_int_equal(truncate(leaf_path("a"), 100), 0);
		leaf_expect(&l, 100, 8092, 0);
		leaf_expect(&l, 4096, 4096, 0);
		leaf_close(&l);
	}
}

static void a_write_past_the_end_makes_the_file_longer(void **state)
{
	struct leaf l;

	(void)state;
	FOR_EACH_ENGINE(aio) {
		leaf_make_file("a", 1000, true);
		leaf_open(&l, &driver_file, with_aio("a", aio), NODE_WRITABLE);
		leaf_fill(&l, 5000, 100, 0x11);
		assert_int_equal(node_len(l.n), 5100);
		leaf_fill(&l, 0, 100, 0x22);
		assert_int_equal(node_len(l.n), 5100);
		assert_int_equal(leaf_len(&l), 5100);
		leaf_expect(&l, 1000, 4000, 0);
		leaf_close(&l);
	}
}

/* More elements than one operation takes: cut into several, in both directions. */
static void vectors_of_any_length_are_moved(void **state)
{
	enum { NR = 3000, EACH = 7 };
	static uint8_t out[NR * EACH], in[NR * EACH];
	static struct iovec iov[NR];
	struct leaf l;

	(void)state;
	FOR_EACH_ENGINE(aio) {
		leaf_make_file("a", 100, false);
		leaf_open(&l, &driver_file, with_aio("a", aio), NODE_WRITABLE);
		for (size_t i = 0; i < sizeof(out); i++)
			out[i] = leaf_pattern(i);
		for (unsigned i = 0; i < NR; i++)
			iov[i] = (struct iovec){ out + i * EACH, EACH };
		assert_int_equal(leaf_iov(&l, REQ_WRITE, 33, sizeof(out), iov, NR, REQ_FUA), 0);
		for (unsigned i = 0; i < NR; i++)
			iov[i].iov_base = in + i * EACH;
		memset(in, 0, sizeof(in));
		assert_int_equal(leaf_iov(&l, REQ_READ, 33, sizeof(in), iov, NR, 0), 0);
		assert_memory_equal(in, out, sizeof(in));
		/* and across the end of the file */
		assert_int_equal(leaf_iov(&l, REQ_READ, 33 + 5000, sizeof(in), iov, NR, 0), 0);
		assert_memory_equal(in, out + 5000, sizeof(in) - 5000);
		for (size_t i = sizeof(in) - 5000; i < sizeof(in); i++)
			assert_int_equal(in[i], 0);
		leaf_close(&l);
	}
}

static void zeroes_and_discards_read_as_zeroes_inside_a_file(void **state)
{
	struct leaf l;

	(void)state;
	FOR_EACH_ENGINE(aio) {
		leaf_make_file("a", 300000, false);
		leaf_open(&l, &driver_file, with_aio("a", aio), NODE_WRITABLE);
		leaf_fill(&l, 0, 300000, 0x33);
		assert_int_equal(leaf_zero(&l, 1000, 100001, 0), 0);
		leaf_expect(&l, 0, 1000, 0x33);
		leaf_expect(&l, 1000, 100001, 0);
		leaf_expect(&l, 101001, 1000, 0x33);
		assert_int_equal(leaf_zero(&l, 150000, 20000, REQ_MAY_UNMAP | REQ_FUA), 0);
		leaf_expect(&l, 149000, 1000, 0x33);
		leaf_expect(&l, 150000, 20000, 0);
		leaf_expect(&l, 170000, 1000, 0x33);
		assert_int_equal(leaf_discard(&l, 200000, 50000), 0);
		leaf_expect(&l, 199000, 1000, 0x33);
		leaf_expect(&l, 250000, 50000, 0x33);
		assert_int_equal(node_len(l.n), 300000);
		assert_int_equal(leaf_len(&l), 300000);
		leaf_close(&l);
	}
}

static void zeroes_past_the_end_make_the_file_longer(void **state)
{
	struct leaf l;

	(void)state;
	FOR_EACH_ENGINE(aio) {
		for (uint32_t flags = 0; flags <= REQ_MAY_UNMAP; flags += REQ_MAY_UNMAP) {
			leaf_make_file("a", 5000, true);
			leaf_open(&l, &driver_file, with_aio("a", aio), NODE_WRITABLE);
			assert_int_equal(leaf_zero(&l, 4000, 100000, flags), 0);
			assert_int_equal(node_len(l.n), 104000);
			assert_int_equal(leaf_len(&l), 104000);
			leaf_expect(&l, 4000, 100000, 0);
			leaf_close(&l);
		}
	}
}

/* Longer than one operation may be. The file is sparse. */
static void huge_zeroes_and_discards_are_cut(void **state)
{
	struct stat st;
	struct leaf l;

	(void)state;
	FOR_EACH_ENGINE(aio) {
		leaf_make_file("a", GiB(5), false);
		leaf_open(&l, &driver_file, with_aio("a", aio), NODE_WRITABLE);
		leaf_fill(&l, GiB(4) - 4096, 8192, 0x44);
		assert_int_equal(leaf_discard(&l, 4096, GiB(4) - 4096), 0);
		leaf_expect(&l, GiB(4) - 4096, 4096, 0);
		leaf_expect(&l, GiB(4), 4096, 0x44);
		assert_int_equal(leaf_zero(&l, 0, GiB(5), REQ_MAY_UNMAP), 0);
		leaf_expect(&l, GiB(4), 4096, 0);
		leaf_close(&l);
		assert_int_equal(stat(leaf_path("a"), &st), 0);
		assert_true(st.st_size == (off_t)GiB(5));
		assert_true(st.st_blocks * 512 < (blkcnt_t)MiB(1));
		unlink(leaf_path("a"));
	}
}

/* A damaged image may send a format anywhere. */
static void places_beyond_any_file_are_an_error(void **state)
{
	uint8_t buf[512] = { 0 };
	struct leaf l;

	(void)state;
	leaf_make_file("a", 1000, false);
	leaf_open(&l, &driver_file, leaf_file_opts("a", ""), NODE_WRITABLE);
	assert_int_equal(leaf_read(&l, VARVE_LEN_MAX - 512, buf, 512), -EFBIG);
	assert_int_equal(leaf_read(&l, UINT64_MAX - 511, buf, 512), -EFBIG);
	assert_int_equal(leaf_write(&l, VARVE_LEN_MAX - 1000, buf, 512, REQ_FUA), -EFBIG);
	assert_int_equal(leaf_zero(&l, 0, VARVE_LEN_MAX, 0), -EFBIG);
	assert_int_equal(leaf_discard(&l, 512, UINT64_MAX - 100), -EFBIG);
	leaf_expect(&l, 1ull << 56, 512, 0);
	assert_int_equal(leaf_len(&l), 1000);
	leaf_close(&l);
}

static void lengths_change_and_room_is_reserved(void **state)
{
	struct stat st;
	struct leaf l;

	(void)state;
	leaf_make_file("a", 1000, true);
	leaf_open(&l, &driver_file, leaf_file_opts("a", ""), NODE_WRITABLE);
	assert_int_equal(leaf_truncate(&l, 100, false), 0);
	assert_int_equal(node_len(l.n), 100);
	assert_int_equal(leaf_truncate(&l, 3000, false), 0);
	leaf_expect(&l, 100, 2900, 0);
	assert_int_equal(leaf_truncate(&l, 2000001, true), 0);
	assert_int_equal(node_len(l.n), 2000001);
	leaf_expect(&l, 100, 1000000, 0);
	assert_int_equal(stat(leaf_path("a"), &st), 0);
	assert_true(st.st_blocks * 512 >= 1900000);
	assert_int_equal(leaf_truncate(&l, 10, true), 0);
	assert_int_equal(leaf_len(&l), 10);
	leaf_close(&l);
}

static void room_that_is_not_there_leaves_the_length(void **state)
{
	struct statvfs fs;
	struct leaf l;

	(void)state;
	leaf_make_file("a", 1000, true);
	leaf_open(&l, &driver_file, leaf_file_opts("a", ""), NODE_WRITABLE);
	/* More than any disk of a test machine, less than what a file may be long at most. It is not even tried: that would fill
	 * the disk for a moment, under everybody else. */
	assert_int_equal(statvfs(leaf_dir(), &fs), 0);
	if ((uint64_t)fs.f_bavail * fs.f_frsize >= TiB(14)) {
		leaf_close(&l);
		print_message("# left out: there is that much room\n");
		return;
	}
	assert_int_equal(leaf_truncate(&l, TiB(14), true), -ENOSPC);
	assert_non_null(strstr(l.err.message, "cannot reserve"));
	assert_int_equal(node_len(l.n), 1000);
	assert_int_equal(leaf_len(&l), 1000);
	leaf_close(&l);
	leaf_open(&l, &driver_file, leaf_file_opts("a", ""), 0);
	assert_int_equal(leaf_truncate(&l, 5, false), -EACCES);
	leaf_close(&l);
}

static void holes_are_found(void **state)
{
	uint64_t len;
	struct leaf l;
	bool hole;

	(void)state;
	leaf_make_file("a", MiB(3), false);
	leaf_open(&l, &driver_file, leaf_file_opts("a", ""), NODE_WRITABLE);
	leaf_fill(&l, MiB(1), MiB(1), 0x55);
	assert_int_equal(leaf_flush(&l), 0);
	assert_int_equal(leaf_status(&l, 0, MiB(3), &hole, &len), 0);
	if (hole) { /* a file system without holes says that all is data */
		assert_int_equal(len, MiB(1));
		assert_int_equal(leaf_status(&l, 4096, 8192, &hole, &len), 0);
		assert_true(hole && len == 8192);
		assert_int_equal(leaf_status(&l, MiB(2), MiB(1), &hole, &len), 0);
		assert_true(hole && len == MiB(1));
	}
	assert_int_equal(leaf_status(&l, MiB(1) + 5, MiB(9), &hole, &len), 0);
	assert_true(!hole && len >= MiB(1) - 5 && len <= MiB(9));
	assert_int_equal(leaf_status(&l, MiB(5), 100, &hole, &len), 0);
	assert_true(hole && len == 100);
	leaf_close(&l);
}

static void info_tells_the_room_taken(void **state)
{
	json_t *info = json_object();
	struct leaf l;

	(void)state;
	leaf_make_file("a", MiB(64), false);
	leaf_open(&l, &driver_file, leaf_file_opts("a", ""), NODE_WRITABLE);
	leaf_fill(&l, 0, 65536, 1);
	assert_int_equal(leaf_flush(&l), 0);
	assert_int_equal(leaf_info(&l, info), 0);
	assert_in_range(json_integer_value(json_object_get(info, "actual-size")), 65536, MiB(1));
	json_decref(info);
	leaf_close(&l);
}

/* ---- what cannot be opened ---- */

static void what_holds_no_image_is_refused_by_name(void **state)
{
	(void)state;
	leaf_expect_refused(&driver_file, leaf_file_opts("absent", ""), 0, -ENOENT, "absent: cannot open: No such file");
	leaf_expect_refused(&driver_file, leaf_file_opts("", ""), 0, -EISDIR, "is a directory");
	leaf_expect_refused(&driver_file, "filename=/dev/zero", 0, -EINVAL, "is a character device");
	assert_int_equal(mkfifo(leaf_path("pipe"), 0600), 0);
	leaf_expect_refused(&driver_file, leaf_file_opts("pipe", ""), 0, -EINVAL, "is a pipe");
	leaf_expect_refused(&driver_file, leaf_file_opts("pipe", ""), NODE_WRITABLE, -EINVAL, "is a pipe");
	leaf_make_file("a", 10, false);
	leaf_expect_refused(&driver_host_device, leaf_file_opts("a", ""), 0, -ENOTBLK, "takes block devices");
	leaf_expect_refused(&driver_file, leaf_file_opts("a/b", ""), 0, -ENOTDIR, "a/b: cannot open");
}

static void bad_options_are_refused_by_name(void **state)
{
	(void)state;
	leaf_make_file("a", 10, false);
	leaf_expect_refused(&driver_file, "", 0, -EINVAL, "'filename' is missing");
	leaf_expect_refused(&driver_file, "filename=", 0, -EINVAL, "'filename' is missing");
	leaf_expect_refused(&driver_file, leaf_file_opts("a", ",locking=maybe"), 0, -EINVAL, "locking");
	leaf_expect_refused(&driver_file, leaf_file_opts("a", ",aio=magic"), 0, -EINVAL, "magic");
	leaf_expect_refused(&driver_file, leaf_file_opts("a", ",aio=sim"), 0, -EINVAL, "sim");
	leaf_expect_refused(&driver_file, leaf_file_opts("a", ",nonsense=1"), 0, -EINVAL, "nonsense");
}

/* Root may lock what it likes, unless it gives that up. */
static int child_that_may_lock_nothing(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct caps[2];
	struct leaf l = { .q = leaf_queue() };
	int ret;

	if (syscall(SYS_capget, &header, caps) < 0)
		return 2;
	caps[0].effective &= ~(1u << CAP_IPC_LOCK);
	if (syscall(SYS_capset, &header, caps) < 0 || setrlimit(RLIMIT_MEMLOCK, &(struct rlimit){ 0 }) < 0)
		return 2;
	ret = leaf_try(&l, &driver_file, NULL, with_aio("a", "io_uring"), NODE_WRITABLE);
	if (ret == 0)
		return 0; /* this kernel does not count rings */
	fprintf(stderr, "%d: %s\n", ret, l.err.message);
	return ret == -ENOMEM && strstr(l.err.message, "RLIMIT_MEMLOCK") && strstr(l.err.message, "aio=threads") ? 0 : 1;
}

static void a_ring_without_memory_to_lock_names_the_limit(void **state)
{
	int status;
	pid_t pid;

	(void)state;
	if (!engine_works("io_uring"))
		skip();
	leaf_make_file("a", 4096, true);
	fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0)
		_exit(child_that_may_lock_nothing());
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

/* ---- direct I/O ---- */

static bool direct_works_here(void)
{
	int fd;

	leaf_make_file("probe", 65536, true);
	fd = open(leaf_path("probe"), O_RDONLY | O_DIRECT);
	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

/* Whatever the alignment is: every offset and length gives the right bytes, and the length stays what it was. */
static void direct_io_takes_any_offset_and_length(void **state)
{
	enum { LEN = 20000 };
	uint8_t shadow[LEN], buf[LEN];
	uint32_t seed = 99;
	struct leaf l;

	(void)state;
	if (!direct_works_here())
		skip();
	FOR_EACH_ENGINE(aio) {
		leaf_make_file("a", LEN, true);
		leaf_open(&l, &driver_file, with_aio("a", aio), NODE_WRITABLE | NODE_DIRECT);
		assert_true(l.n->align >= 1 && is_pow2(l.n->align) && l.n->align <= 65536);
		assert_true(l.n->mem_align >= 512 && is_pow2(l.n->mem_align));
		for (int i = 0; i < LEN; i++)
			shadow[i] = leaf_pattern((uint64_t)i);
		for (int round = 0; round < 200; round++) {
			uint64_t off = (uint32_t)rand_r(&seed) % LEN, len = 1 + (uint32_t)rand_r(&seed) % (LEN - off);

			if (round % 2) {
				memset(shadow + off, round, len);
				assert_int_equal(leaf_write(&l, off, shadow + off, len, round % 4 == 1 ? REQ_FUA : 0), 0);
			} else {
				assert_int_equal(leaf_read(&l, off, buf, len), 0);
				assert_memory_equal(buf, shadow + off, len);
			}
		}
		assert_int_equal(leaf_flush(&l), 0);
		leaf_expect(&l, 100000, 5000, 0);
		leaf_close(&l);
	}
}

/* On kernels that do not say what O_DIRECT takes it is tried out: what is found works, the kernel's own word or not. */
static void alignment_is_tried_out_where_the_kernel_does_not_say(void **state)
{
	uint32_t align[2], mem_align[2];
	struct varve_error err;
	void *buf = NULL;
	int fd;

	(void)state;
	if (!direct_works_here()) {
		print_message("# left out: no O_DIRECT here\n");
		return;
	}
	fd = open(leaf_path("probe"), O_RDONLY | O_DIRECT | O_CLOEXEC);
	assert_int_equal(posix_memalign(&buf, 65536, 65536 * 2), 0);
	for (int ask = 0; ask < 2; ask++) {
		assert_int_equal(file_find_align(fd, false, ask, &align[ask], &mem_align[ask], &err), 0);
		assert_true(is_pow2(align[ask]) && is_pow2(mem_align[ask]) && mem_align[ask] >= 512);
		assert_int_equal(pread(fd, (char *)buf + mem_align[ask], align[ask], align[ask]), align[ask]);
	}
	free(buf);
	close(fd);
}

static void direct_io_on_an_empty_file_works(void **state)
{
	struct leaf l;

	(void)state;
	if (!direct_works_here())
		skip();
	leaf_make_file("a", 0, false);
	leaf_open(&l, &driver_file, leaf_file_opts("a", ""), NODE_WRITABLE | NODE_DIRECT);
	leaf_expect(&l, 0, 4096, 0);
	leaf_fill(&l, 0, 65536, 0x66);
	leaf_expect(&l, 0, 65536, 0x66);
	assert_int_equal(leaf_truncate(&l, 300000, true), 0);
	leaf_expect(&l, 65536, 100000, 0);
	leaf_close(&l);
}

static int extend_fiber(struct fiber *f, void *arg)
{
	struct leaf *l = arg;

	return node_extend(f, l->n, 2000000);
}

/* Writers with O_DIRECT find their space there already; in the page cache a hole is better. What stands there stays. */
static void a_file_made_longer_has_its_space_with_direct_io_only(void **state)
{
	const uint32_t flags[] = { NODE_WRITABLE, NODE_WRITABLE | NODE_DIRECT };
	blkcnt_t blocks[2];
	struct stat st;
	struct leaf l;

	(void)state;
	if (!direct_works_here())
		skip();
	for (unsigned i = 0; i < 2; i++) {
		leaf_make_file("a", 8192, true);
		leaf_open(&l, &driver_file, leaf_file_opts("a", ""), flags[i]);
		assert_int_equal(fiber_call(l.q, extend_fiber, &l), 0);
		assert_int_equal(node_len(l.n), 2000000);
		assert_int_equal(fiber_call(l.q, extend_fiber, &l), 0); /* is that long already */
		leaf_expect(&l, 8192, 1900000, 0);
		assert_int_equal(stat(leaf_path("a"), &st), 0);
		assert_int_equal(st.st_size, 2000000);
		blocks[i] = st.st_blocks;
		leaf_close(&l);
	}
	assert_true(blocks[0] * 512 < 1000000);
	assert_true(blocks[1] * 512 >= 1900000);
}

static void a_file_system_without_direct_io_is_named(void **state)
{
	int fd = open("/proc/version", O_RDONLY | O_DIRECT);

	(void)state;
	if (fd >= 0) {
		close(fd);
		skip();
	}
	leaf_expect_refused(&driver_file, "filename=/proc/version,locking=off", NODE_DIRECT, -EINVAL, "no direct I/O");
}

/* ---- locks within one process: descriptions, not processes, own them ---- */

static void one_writer_or_many_readers(void **state)
{
	struct leaf a, b;

	(void)state;
	leaf_make_file("a", 4096, true);
	leaf_open(&a, &driver_file, leaf_file_opts("a", ""), 0);
	leaf_open(&b, &driver_file, leaf_file_opts("a", ""), 0);
	leaf_expect_refused(&driver_file, leaf_file_opts("a", ""), NODE_WRITABLE, -EAGAIN, "Failed to get \"write\" lock");
	leaf_close(&a);
	leaf_expect_refused(&driver_file, leaf_file_opts("a", ""), NODE_WRITABLE, -EAGAIN,
			    "Is another process using the image");
	leaf_close(&b);

	leaf_open(&a, &driver_file, leaf_file_opts("a", ""), NODE_WRITABLE);
	leaf_expect_refused(&driver_file, leaf_file_opts("a", ""), NODE_WRITABLE, -EAGAIN, "Failed to get \"write\" lock");
	leaf_expect_refused(&driver_file, leaf_file_opts("a", ",locking=on"), 0, -EAGAIN,
			    "Failed to get shared \"write\" lock");
	/* Forced, or without locks: not our business who else is there. */
	leaf_open(&b, &driver_file, leaf_file_opts("a", ""), NODE_FORCE_SHARE);
	leaf_close(&b);
	leaf_open(&b, &driver_file, leaf_file_opts("a", ",locking=off"), NODE_WRITABLE);
	leaf_close(&b);
	leaf_expect_refused(&driver_file, leaf_file_opts("a", ""), 0, -EAGAIN, "It is held by this process,");
	leaf_close(&a);
	leaf_open(&b, &driver_file, leaf_file_opts("a", ""), NODE_WRITABLE);
	leaf_close(&b);
}

/* ---- answers come after submit ---- */

static bool answered;

static void note_answer(struct req *r, int ret)
{
	(void)r;
	assert_int_equal(ret, 0);
	answered = true;
}

static void no_request_is_answered_inside_submit(void **state)
{
	static const enum req_op ops[] = { REQ_READ, REQ_WRITE, REQ_FLUSH, REQ_DISCARD, REQ_ZERO };
	uint8_t buf[512] = { 0 };
	struct iovec iov = { buf, sizeof(buf) };
	struct leaf l;

	(void)state;
	for (unsigned unsafe = 0; unsafe < 2; unsafe++) {
		leaf_make_file("a", 4096, true);
		leaf_open(&l, &driver_file, leaf_file_opts("a", ""), NODE_WRITABLE | (unsafe ? NODE_NO_FLUSH : 0));
		for (unsigned i = 0; i < ARRAY_LEN(ops); i++) {
			struct req r;

			req_init(&r, l.q, ops[i], 0, ops[i] == REQ_FLUSH ? 0 : 512, &iov, 1, 0, note_answer);
			answered = false;
			node_submit(l.n, &r);
			assert_false(answered);
			while (!answered)
				queue_turn(l.q, -1);
		}
		leaf_close(&l);
	}
}

/* ---- copy inside of the kernel ---- */

struct copy_call {
	struct node *src, *dst;
	uint64_t src_off, dst_off, len, done;
};

static int copy_fiber(struct fiber *f, void *arg)
{
	struct copy_call *c = arg;

	return file_copy_range(f, c->src, c->src_off, c->dst, c->dst_off, c->len, &c->done);
}

/* What the kernel copied is written as anything else is: the file may be longer, and a flush that fails speaks of it. */
static void a_copy_makes_the_file_longer_and_is_in_doubt_until_a_flush(void **state)
{
	struct leaf src, dst = { 0 };
	struct copy_call c;
	struct doubt *d;
	int ret;

	(void)state;
	leaf_make_file("src", 10000, true);
	leaf_make_file("dst", 100, false);
	leaf_open(&src, &driver_file, leaf_file_opts("src", ""), 0);
	dst.q = src.q;
	assert_int_equal(leaf_try(&dst, &driver_file, NULL, leaf_file_opts("dst", ""), NODE_WRITABLE), 0);
	d = ((struct file *)node_state(dst.n))->doubt;
	c = (struct copy_call){ .src = src.n, .dst = dst.n, .src_off = 1000, .dst_off = 50, .len = 100000 };
	ret = fiber_call(src.q, copy_fiber, &c);
	if (ret == -ENOTSUP) {
		leaf_close_node(&dst);
		leaf_close(&src);
		print_message("# left out: no copy_file_range() here\n");
		return;
	}
	assert_int_equal(ret, 0);
	assert_int_equal(c.done, 9000); /* as far as the source goes */
	assert_int_equal(node_len(dst.n), 9050);
	for (unsigned i = 0; i < 9000; i += 499)
		leaf_expect(&dst, 50 + i, 1, leaf_pattern(1000 + i));
	doubt_sync_failed(d, -EIO);
	assert_int_equal(doubt_bytes(d), 9000);
	assert_int_equal(leaf_flush(&dst), -EIO);
	assert_int_equal(fiber_call(src.q, copy_fiber, &c), 0); /* again */
	assert_int_equal(leaf_flush(&dst), 0);
	/* Nothing is behind the end of the source, and a file that is open for reading is not written. */
	c.src_off = 10000;
	assert_int_equal(fiber_call(src.q, copy_fiber, &c), -ENOTSUP);
	c = (struct copy_call){ .src = dst.n, .dst = src.n, .len = 10 };
	assert_int_equal(fiber_call(src.q, copy_fiber, &c), -EBADF);
	assert_int_equal(leaf_close_node(&dst), 0);
	leaf_close(&src);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(written_bytes_are_read_back),
		cmocka_unit_test(reading_past_the_end_gives_zeroes),
		cmocka_unit_test(a_file_cut_by_another_reads_as_zeroes_behind),
		cmocka_unit_test(a_write_past_the_end_makes_the_file_longer),
		cmocka_unit_test(vectors_of_any_length_are_moved),
		cmocka_unit_test(zeroes_and_discards_read_as_zeroes_inside_a_file),
		cmocka_unit_test(zeroes_past_the_end_make_the_file_longer),
		cmocka_unit_test(huge_zeroes_and_discards_are_cut),
		cmocka_unit_test(places_beyond_any_file_are_an_error),
		cmocka_unit_test(lengths_change_and_room_is_reserved),
		cmocka_unit_test(room_that_is_not_there_leaves_the_length),
		cmocka_unit_test(holes_are_found),
		cmocka_unit_test(info_tells_the_room_taken),
		cmocka_unit_test(what_holds_no_image_is_refused_by_name),
		cmocka_unit_test(bad_options_are_refused_by_name),
		cmocka_unit_test(a_ring_without_memory_to_lock_names_the_limit),
		cmocka_unit_test(direct_io_takes_any_offset_and_length),
		cmocka_unit_test(alignment_is_tried_out_where_the_kernel_does_not_say),
		cmocka_unit_test(direct_io_on_an_empty_file_works),
		cmocka_unit_test(a_file_made_longer_has_its_space_with_direct_io_only),
		cmocka_unit_test(a_file_system_without_direct_io_is_named),
		cmocka_unit_test(one_writer_or_many_readers),
		cmocka_unit_test(no_request_is_answered_inside_submit),
		cmocka_unit_test(a_copy_makes_the_file_longer_and_is_in_doubt_until_a_flush),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, leaf_remove_dir);
}
