/* SPDX-License-Identifier: MIT */
/* test_engines.c - what every engine must do alike, on a regular file and on one in memory */
#include "aio_test.h"

#include <aio.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

/* ---- one engine on one kind of file, on one kind of queue ---- */

struct setup {
	const struct aio_engine *engine;
	bool in_memory;
	bool own_thread;
};

struct fixture {
	struct queue *q;
	struct aio_file file;
	bool own_thread;
};

static int open_file(bool in_memory)
{
	char name[] = "varve-test-XXXXXX"; /* where the test runs: a real file system, mostly */
	int fd;

	if (in_memory)
		return memfd_create("varve-test", MFD_CLOEXEC);
	fd = mkostemp(name, O_CLOEXEC);
	if (fd >= 0)
		unlink(name);
	return fd;
}

/* io_uring+iopoll refuses files on devices that are not polled; what it does with one all the same is tested
 * here. */
static int file_open(struct aio_file *file)
{
	const struct aio_engine *e =
		file->engine == &aio_engine_uring_iopoll ? &aio_engine_uring : file->engine;

	return e->file_open ? e->file_open(file, NULL) : 0;
}

static void fixture_open(struct fixture *fx, void **state)
{
	const struct setup *s = *state;

	fx->q = make_queue(s->own_thread, s->engine);
	fx->own_thread = s->own_thread;
	fx->file = (struct aio_file){ .engine = s->engine, .fd = open_file(s->in_memory), .name = "test" };
	CHECK(fx->file.fd >= 0);
	CHECK(file_open(&fx->file) == 0);
}

static int close_file(struct fiber *f, void *arg)
{
	struct aio_file *file = arg;

	if (file->engine->file_close)
		file->engine->file_close(f, file);
	return 0;
}

static void fixture_close(struct fixture *fx)
{
	fiber_call(fx->q, close_file, &fx->file);
	queue_free(fx->q);
	close(fx->file.fd);
}

struct waiting_op {
	struct aio_op op;
	struct fiber *f;
	bool done, in_submit;
	int64_t res;
};

static void waiting_done(struct aio_op *op, int64_t res)
{
	struct waiting_op *w = container_of(op, struct waiting_op, op);

	CHECK(!w->in_submit && !w->done && queue_is_mine(op->q));
	w->res = res;
	w->done = true;
	fiber_wake(w->f);
}

static int run_op(struct fiber *f, void *arg)
{
	struct waiting_op *w = arg;

	w->f = f;
	w->op.done = waiting_done;
	w->in_submit = true;
	aio_submit(fiber_queue(f), &w->op);
	w->in_submit = false;
	while (!w->done)
		fiber_wait(f);
	return 0;
}

static int64_t do_op(struct fixture *fx, enum aio_opcode opcode, uint32_t flags, const struct iovec *iov,
		     unsigned nr_iov, uint64_t off, uint64_t len)
{
	struct waiting_op w = {
		.op = { .file = &fx->file,
			.opcode = (uint8_t)opcode,
			.flags = flags,
			.iov = iov,
			.nr_iov = nr_iov,
			.off = off,
			.len = len },
	};

	fiber_call(fx->q, run_op, &w);
	return w.res;
}

static int64_t do_read(struct fixture *fx, uint64_t off, void *buf, size_t len)
{
	struct iovec iov = { buf, len };

	return do_op(fx, AIO_READ, 0, &iov, 1, off, len);
}

static int64_t do_write(struct fixture *fx, uint64_t off, const void *buf, size_t len, uint32_t flags)
{
	struct iovec iov = { (void *)(uintptr_t)buf, len };

	return do_op(fx, AIO_WRITE, flags, &iov, 1, off, len);
}

static uint64_t file_len(const struct fixture *fx)
{
	struct stat st;

	CHECK(fstat(fx->file.fd, &st) == 0);
	return (uint64_t)st.st_size;
}

static void expect_bytes(struct fixture *fx, uint64_t off, size_t len, uint8_t byte)
{
	uint8_t *buf = malloc(len);

	CHECK(buf && pread(fx->file.fd, buf, len, (off_t)off) == (ssize_t)len);
	for (size_t i = 0; i < len; i++)
		CHECK(buf[i] == byte);
	free(buf);
}

/* ---- the contract ---- */

static void what_was_written_is_read(void **state)
{
	struct fixture fx;
	uint8_t a[5000], b[5000];

	fixture_open(&fx, state);
	memset(a, 0x5a, sizeof(a));
	memset(b, 0, sizeof(b));
	assert_int_equal(do_write(&fx, 777, a, sizeof(a), 0), sizeof(a));
	assert_int_equal(do_read(&fx, 777, b, sizeof(b)), sizeof(b));
	assert_memory_equal(a, b, sizeof(a));
	expect_bytes(&fx, 0, 777, 0);
	assert_int_equal(do_op(&fx, AIO_FLUSH, 0, NULL, 0, 0, 0), 0);
	memset(a, 0x11, sizeof(a));
	assert_int_equal(do_write(&fx, 100, a, 512, AIO_FUA), 512);
	expect_bytes(&fx, 100, 512, 0x11);
	fixture_close(&fx);
}

static void vectors_scatter_and_gather(void **state)
{
	struct fixture fx;
	struct iovec iov[AIO_IOV_MAX];
	uint8_t *a, *b;

	fixture_open(&fx, state);
	a = calloc(AIO_IOV_MAX, 7);
	b = calloc(AIO_IOV_MAX, 7);
	CHECK(a && b);
	for (unsigned i = 0; i < AIO_IOV_MAX * 7; i++)
		a[i] = (uint8_t)(i * 31 >> 3);
	for (unsigned i = 0; i < AIO_IOV_MAX; i++)
		iov[i] = (struct iovec){ a + 7 * i, 7 };
	assert_int_equal(do_op(&fx, AIO_WRITE, 0, iov, AIO_IOV_MAX, 3, AIO_IOV_MAX * 7), AIO_IOV_MAX * 7);
	iov[0] = (struct iovec){ b, 1 };
	iov[1] = (struct iovec){ b + 1, AIO_IOV_MAX * 7 - 1 };
	assert_int_equal(do_op(&fx, AIO_READ, 0, iov, 2, 3, AIO_IOV_MAX * 7), AIO_IOV_MAX * 7);
	assert_memory_equal(a, b, AIO_IOV_MAX * 7);
	fixture_close(&fx);
	free(a);
	free(b);
}

static void reads_stop_at_the_end_of_the_file(void **state)
{
	struct fixture fx;
	uint8_t buf[4096] = { 0 };

	fixture_open(&fx, state);
	assert_int_equal(do_read(&fx, 0, buf, sizeof(buf)), 0);
	assert_int_equal(do_write(&fx, 0, buf, 1000, 0), 1000);
	assert_int_equal(do_read(&fx, 600, buf, sizeof(buf)), 400);
	assert_int_equal(do_read(&fx, 1000, buf, sizeof(buf)), 0);
	assert_int_equal(do_read(&fx, 1ull << 40, buf, sizeof(buf)), 0);
	fixture_close(&fx);
}

/* The same file by another descriptor, as an engine is told of it. */
static void fixture_use(struct fixture *fx, int fd)
{
	fiber_call(fx->q, close_file, &fx->file);
	fx->file.fd = fd;
	CHECK(file_open(&fx->file) == 0);
}

static void errors_are_the_kernels(void **state)
{
	struct fixture fx;
	uint8_t buf[512] = { 0 };
	int fd, read_only;
	char path[64];

	fixture_open(&fx, state);
	fd = fx.file.fd;
	fixture_use(&fx, 1 << 20);
	assert_int_equal(do_read(&fx, 0, buf, sizeof(buf)), -EBADF);
	assert_int_equal(do_write(&fx, 0, buf, sizeof(buf), 0), -EBADF);
	assert_int_equal(do_op(&fx, AIO_FLUSH, 0, NULL, 0, 0, 0), -EBADF);
	assert_int_equal(do_op(&fx, AIO_DISCARD, 0, NULL, 0, 0, 4096), -EBADF);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	read_only = open(path, O_RDONLY | O_CLOEXEC);
	assert_true(read_only >= 0);
	fixture_use(&fx, read_only);
	assert_int_equal(do_write(&fx, 0, buf, sizeof(buf), 0), -EBADF);
	fixture_use(&fx, fd);
	close(read_only);
	fixture_close(&fx);
}

static void discard_keeps_the_length_and_the_neighbours(void **state)
{
	struct fixture fx;
	uint8_t *buf;
	int64_t res;

	fixture_open(&fx, state);
	buf = malloc(MiB(1));
	CHECK(buf);
	memset(buf, 0xcc, MiB(1));
	assert_int_equal(do_write(&fx, 0, buf, MiB(1), 0), MiB(1));
	res = do_op(&fx, AIO_DISCARD, 0, NULL, 0, KiB(64), KiB(512));
	if (res != -ENOTSUP) {
		assert_int_equal(res, 0);
		expect_bytes(&fx, KiB(64), KiB(512), 0); /* a hole */
	}
	expect_bytes(&fx, 0, KiB(64), 0xcc);
	expect_bytes(&fx, KiB(576), KiB(448), 0xcc);
	res = do_op(&fx, AIO_DISCARD, 0, NULL, 0, MiB(1) - KiB(4), MiB(1));
	assert_true(res == 0 || res == -ENOTSUP);
	assert_int_equal(file_len(&fx), MiB(1));
	fixture_close(&fx);
	free(buf);
}

/* flags, offset, length: zeroes there afterwards, and a file that reaches to the end of the range. */
static void zero_and_check(struct fixture *fx, uint32_t flags, uint64_t off, uint64_t len)
{
	uint64_t before = file_len(fx);
	int64_t res = do_op(fx, AIO_ZERO, flags, NULL, 0, off, len);

	if (res == -ENOTSUP) {
		assert_int_equal(file_len(fx), before);
		return; /* the layer above writes zeroes */
	}
	assert_int_equal(res, 0);
	assert_int_equal(file_len(fx), MAX(before, off + len));
	expect_bytes(fx, off, len, 0);
}

static void zeroed_ranges_read_as_zeroes_and_extend_the_file(void **state)
{
	struct fixture fx;
	uint8_t *buf;

	fixture_open(&fx, state);
	buf = malloc(MiB(1));
	CHECK(buf);
	memset(buf, 0xcc, MiB(1));
	assert_int_equal(do_write(&fx, 0, buf, MiB(1), 0), MiB(1));
	zero_and_check(&fx, 0, KiB(4), KiB(64));
	zero_and_check(&fx, AIO_MAY_UNMAP, KiB(128), KiB(64));
	expect_bytes(&fx, KiB(68), KiB(60), 0xcc);
	expect_bytes(&fx, KiB(192), KiB(64), 0xcc);
	zero_and_check(&fx, AIO_MAY_UNMAP, MiB(1) - KiB(64), KiB(64)); /* ends at the end */
	zero_and_check(&fx, 0, MiB(1) - KiB(4), KiB(8));	       /* ends behind it */
	zero_and_check(&fx, AIO_MAY_UNMAP, MiB(2), KiB(4));	       /* begins behind it */
	fixture_close(&fx);
	free(buf);
}

/* ---- many at once ---- */

struct many {
	struct aio_op op;
	struct crowd *crowd;
	struct iovec iov;
	uint64_t value;
	bool done;
};

struct crowd {
	struct fixture *fx;
	struct many *ops;
	unsigned nr, nr_submitted, nr_done, nr_failed;
	struct fiber *f;
	int depth; /* nesting of done() */
};

static void many_submit(struct crowd *c, unsigned i, enum aio_opcode opcode)
{
	struct many *m = &c->ops[i];

	m->crowd = c;
	m->iov = (struct iovec){ &m->value, sizeof(m->value) };
	m->op.file = &c->fx->file;
	m->op.opcode = (uint8_t)opcode;
	m->op.iov = &m->iov;
	m->op.nr_iov = 1;
	m->op.off = i * sizeof(m->value);
	m->op.len = sizeof(m->value);
	c->nr_submitted++;
	aio_submit(c->fx->q, &m->op);
}

static void crowd_read_done(struct aio_op *op, int64_t res)
{
	struct many *m = container_of(op, struct many, op);
	struct crowd *c = m->crowd;

	c->nr_failed += res != sizeof(m->value) || m->value != (uint64_t)(m - c->ops) * 0x9e3779b97f4a7c15u;
	if (++c->nr_done == c->nr)
		fiber_wake(c->f);
}

/* Each write, when done, submits the read of what it wrote: from inside done(), without recursion. */
static void crowd_write_done(struct aio_op *op, int64_t res)
{
	struct many *m = container_of(op, struct many, op);
	struct crowd *c = m->crowd;

	CHECK(++c->depth == 1);
	c->nr_failed += res != sizeof(m->value);
	m->value = 0;
	m->op.done = crowd_read_done;
	many_submit(c, (unsigned)(m - c->ops), AIO_READ);
	c->depth--;
}

static int crowd_fiber(struct fiber *f, void *arg)
{
	struct crowd *c = arg;

	c->f = f;
	for (unsigned i = 0; i < c->nr; i++) {
		c->ops[i].value = i * 0x9e3779b97f4a7c15u;
		c->ops[i].op.done = crowd_write_done;
		many_submit(c, i, AIO_WRITE);
	}
	CHECK(!c->nr_done);
	while (c->nr_done < c->nr)
		fiber_wait(f);
	return 0;
}

/* More than the submission ring, and more than the completion ring. */
static void more_operations_than_a_ring_holds_all_complete(void **state)
{
	struct fixture fx;
	struct crowd c = { .fx = &fx, .nr = 10000 };

	fixture_open(&fx, state);
	c.ops = calloc(c.nr, sizeof(*c.ops));
	CHECK(c.ops);
	fiber_call(fx.q, crowd_fiber, &c);
	assert_int_equal(c.nr_failed, 0);
	assert_int_equal(c.nr_submitted, 2 * c.nr);
	if (!fx.own_thread) {
		assert_int_equal(queue_stats(fx.q)->aio_submitted, 2 * c.nr);
		assert_int_equal(queue_stats(fx.q)->aio_completed, 2 * c.nr);
	}
	fixture_close(&fx);
	free(c.ops);
}

/* Operations that never end by themselves fill the completion ring; a message must wake the queue all the
 * same. */
struct stuck {
	struct aio_op op;
	struct iovec iov;
	uint64_t value;
};

static unsigned stuck_done;

static void stuck_op_done(struct aio_op *op, int64_t res)
{
	(void)op;
	CHECK(res == 8);
	stuck_done++;
}

struct stuck_all {
	struct fixture *fx;
	struct stuck *ops;
	unsigned nr;
};

static int stuck_submit(struct fiber *f, void *arg)
{
	struct stuck_all *a = arg;

	for (unsigned i = 0; i < a->nr; i++) {
		struct stuck *s = &a->ops[i];

		s->iov = (struct iovec){ &s->value, sizeof(s->value) };
		s->op = (struct aio_op){
			.file = &a->fx->file, .opcode = AIO_READ, .iov = &s->iov, .nr_iov = 1
		};
		s->op.len = 8;
		s->op.done = stuck_op_done;
		aio_submit(fiber_queue(f), &s->op);
	}
	return 0;
}

static int stuck_count(struct fiber *f, void *arg)
{
	(void)f;
	(void)arg;
	return (int)stuck_done;
}

static void full_ring_still_hears_messages(void **state)
{
	struct fixture fx;
	struct stuck_all a = { .fx = &fx, .nr = 6000 };
	uint64_t one = 1;
	int fd = eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE), file_fd, seen;

	(void)state;
	stuck_done = 0;
	fx.q = make_queue(true, &aio_engine_uring);
	fx.file = (struct aio_file){ .engine = &aio_engine_uring, .fd = fd, .name = "eventfd" };
	file_fd = fd;
	a.ops = calloc(a.nr, sizeof(*a.ops));
	CHECK(a.ops && fd >= 0);
	fiber_call(fx.q, stuck_submit, &a);
	for (unsigned i = 0; i < 10; i++)
		assert_int_equal(fiber_call(fx.q, stuck_count, NULL), 0);
	one = a.nr;
	CHECK(write(fd, &one, 8) == 8);
	do {
		seen = fiber_call(fx.q, stuck_count, NULL);
	} while (seen < (int)a.nr);
	queue_free(fx.q);
	close(file_fd);
	free(a.ops);
}

/* ---- economy ---- */

struct depth {
	struct fixture *fx;
	struct many ops[32];
	unsigned left, in_flight;
	struct fiber *f;
};

static void depth_done(struct aio_op *op, int64_t res)
{
	struct many *m = container_of(op, struct many, op);
	struct depth *d = (struct depth *)(void *)m->crowd;

	CHECK(res == 8);
	d->in_flight--;
	if (d->left) {
		d->left--;
		d->in_flight++;
		aio_submit(d->fx->q, op);
	} else if (!d->in_flight) {
		fiber_wake(d->f);
	}
}

static int depth_fiber(struct fiber *f, void *arg)
{
	struct depth *d = arg;

	d->f = f;
	for (unsigned i = 0; i < ARRAY_LEN(d->ops); i++) {
		struct many *m = &d->ops[i];

		m->crowd = (struct crowd *)(void *)d;
		m->iov = (struct iovec){ &m->value, 8 };
		m->op = (struct aio_op){
			.file = &d->fx->file, .opcode = AIO_READ, .iov = &m->iov, .nr_iov = 1
		};
		m->op.len = 8;
		m->op.done = depth_done;
		d->in_flight++;
		aio_submit(fiber_queue(f), &m->op);
	}
	while (d->in_flight)
		fiber_wait(f);
	return 0;
}

/*
 * With 32 in flight a system call carries many operations; with one, handing over and waiting is one call in
 * a ring, two with Linux AIO.
 */
static void turn_batches_its_system_calls(void **state)
{
	const struct setup *s = *state;
	const unsigned calls = s->engine == &aio_engine_uring ? 1 : 2;
	struct fixture fx;
	struct depth d = { .fx = &fx, .left = 20000 };
	uint64_t before, value = 0;

	fixture_open(&fx, state);
	assert_int_equal(do_write(&fx, 0, &value, 8, 0), 8);
	before = queue_stats(fx.q)->syscalls;
	for (unsigned i = 0; i < 100; i++)
		assert_int_equal(do_read(&fx, 0, &value, 8), 8);
	assert_true(queue_stats(fx.q)->syscalls - before <= 100 * calls + 5);
	before = queue_stats(fx.q)->syscalls;
	fiber_call(fx.q, depth_fiber, &d);
	assert_true(queue_stats(fx.q)->syscalls - before < 20000 / 8);
	fixture_close(&fx);
}

/* Reads of what is in the page cache are answered in the turn that asked, by the queue's own thread. */
static void cached_reads_need_no_worker(void **state)
{
	struct fixture fx;
	uint8_t buf[4096] = { 0 };
	uint64_t msgs;

	fixture_open(&fx, state);
	assert_int_equal(do_write(&fx, 0, buf, sizeof(buf), 0), sizeof(buf));
	buf[0] = 1;
	if (preadv2(fx.file.fd, &(struct iovec){ buf, 1 }, 1, 0, RWF_NOWAIT) != 1) {
		fixture_close(&fx); /* a file system that does not know it */
		skip();
	}
	msgs = queue_stats(fx.q)->msgs;
	for (unsigned i = 0; i < 100; i++)
		assert_int_equal(do_read(&fx, 0, buf, sizeof(buf)), sizeof(buf));
	assert_int_equal(queue_stats(fx.q)->msgs, msgs);
	fixture_close(&fx);
}

/* ---- choosing ---- */

static void engines_are_found_by_name(void **state)
{
	struct varve_error err = { 0 };

	(void)state;
	assert_ptr_equal(aio_engine_choose("threads", false, &err), &aio_engine_threads);
	assert_ptr_equal(aio_engine_choose("io_uring", false, &err), &aio_engine_uring);
	assert_ptr_equal(aio_engine_choose("posix", true, &err), &aio_engine_posix);
	assert_ptr_equal(aio_engine_choose("native", true, &err), &aio_engine_native);
	assert_ptr_equal(aio_engine_choose(NULL, false, &err),
			 engine_works(&aio_engine_uring) ? &aio_engine_uring : &aio_engine_threads);
	assert_null(aio_engine_choose("sim", false, &err));
	assert_int_equal(err.code, -EINVAL);
	assert_non_null(strstr(err.message, "'sim'"));
	assert_non_null(strstr(err.message, "io_uring, native, posix, threads"));
	/* It would block, so it says no, why, and what to use. */
	assert_null(aio_engine_choose("native", false, &err));
	assert_int_equal(err.code, -EINVAL);
	assert_non_null(strstr(err.message, "cache.direct=on"));
	assert_non_null(strstr(err.message, "aio=threads"));
	assert_null(aio_engine_choose("native", false, NULL));
}

static void attaching_twice_is_one(void **state)
{
	struct queue *q = make_queue(false, NULL);

	(void)state;
	assert_int_equal(aio_attach(q, &aio_engine_threads, NULL), 0);
	assert_int_equal(aio_attach(q, &aio_engine_threads, NULL), 0);
	queue_free(q);
}

static struct setup uring_file = { &aio_engine_uring, false, false };
static struct setup uring_memory = { &aio_engine_uring, true, false };
static struct setup uring_thread = { &aio_engine_uring, false, true };
static struct setup sqpoll_file = { &aio_engine_uring_sqpoll, false, false };
static struct setup sqpoll_memory = { &aio_engine_uring_sqpoll, true, false };
static struct setup sqpoll_thread = { &aio_engine_uring_sqpoll, false, true };
static struct setup iopoll_file = { &aio_engine_uring_iopoll, false, false };
static struct setup iopoll_memory = { &aio_engine_uring_iopoll, true, false };
static struct setup iopoll_thread = { &aio_engine_uring_iopoll, false, true };
static struct setup native_file = { &aio_engine_native, false, false };
static struct setup native_memory = { &aio_engine_native, true, false };
static struct setup native_thread = { &aio_engine_native, false, true };
static struct setup posix_file = { &aio_engine_posix, false, false };
static struct setup posix_memory = { &aio_engine_posix, true, false };
static struct setup posix_thread = { &aio_engine_posix, false, true };
static struct setup threads_file = { &aio_engine_threads, false, false };
static struct setup threads_memory = { &aio_engine_threads, true, false };
static struct setup threads_thread = { &aio_engine_threads, false, true };

#define THREE(test, name, engine)                                                                            \
	{ #test " (" name ")", test, NULL, NULL, &engine##_file },                                           \
		{ #test " (" name ", memory)", test, NULL, NULL, &engine##_memory },                         \
	{                                                                                                    \
#test " (" name ", own thread)", test, NULL, NULL, &engine##_thread                          \
	}

#define ALL(test)                                                                                            \
	THREE(test, "io_uring", uring), THREE(test, "io_uring+sqpoll", sqpoll),                              \
		THREE(test, "io_uring+iopoll", iopoll), THREE(test, "native", native),                       \
		THREE(test, "posix", posix), THREE(test, "threads", threads)

int main(void)
{
	const struct CMUnitTest tests[] = {
		ALL(what_was_written_is_read),
		ALL(vectors_scatter_and_gather),
		ALL(reads_stop_at_the_end_of_the_file),
		ALL(errors_are_the_kernels),
		ALL(discard_keeps_the_length_and_the_neighbours),
		ALL(zeroed_ranges_read_as_zeroes_and_extend_the_file),
		ALL(more_operations_than_a_ring_holds_all_complete),
		cmocka_unit_test(full_ring_still_hears_messages),
		{ "cached_reads_need_no_worker", cached_reads_need_no_worker, NULL, NULL, &threads_file },
		{ "turn_batches_its_system_calls (native)", turn_batches_its_system_calls, NULL, NULL,
		  &native_file },
		{ "turn_batches_its_system_calls (io_uring)", turn_batches_its_system_calls, NULL, NULL,
		  &uring_file },
		cmocka_unit_test(engines_are_found_by_name),
		cmocka_unit_test(attaching_twice_is_one),
	};

	/*
	 * The C library's AIO threads make further ones, which crashes under the thread sanitizer: it does not know
	 * them, and they allocate. One thread makes none.
	 */
	if (TEST_TSAN)
		aio_init(&(struct aioinit){ .aio_threads = 1, .aio_num = 64 });
	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("engines", tests, NULL, NULL);
}
