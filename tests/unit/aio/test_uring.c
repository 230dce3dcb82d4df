/* SPDX-License-Identifier: MIT */
/* test_uring.c - what only the engines "io_uring..." do: registered files and memory, polling, several rings
 */
#include "aio_test.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>
#include <varve/varve.h>

#define PAGE 4096
#define URING_FILES_AT_LEAST 300 /* more than a table has places */

static int make_file(void)
{
	char name[] = "varve-test-XXXXXX";
	int fd = mkostemp(name, O_CLOEXEC);

	CHECK(fd >= 0);
	unlink(name);
	return fd;
}

/* By the engine io_uring's file_open: that of iopoll refuses devices like those under tests. */
static struct aio_file open_on(const struct aio_engine *engine, int fd)
{
	struct aio_file file = { .engine = engine, .fd = fd, .name = "test" };

	CHECK(aio_engine_uring.file_open(&file, NULL) == 0);
	return file;
}

static int close_fiber(struct fiber *f, void *arg)
{
	struct aio_file *file = arg;

	file->engine->file_close(f, file);
	return 0;
}

struct one {
	struct aio_op op;
	struct fiber *f;
	bool done;
	int64_t res;
};

static void one_done(struct aio_op *op, int64_t res)
{
	struct one *o = container_of(op, struct one, op);

	o->res = res;
	o->done = true;
	fiber_wake(o->f);
}

static int one_fiber(struct fiber *f, void *arg)
{
	struct one *o = arg;

	o->f = f;
	o->op.done = one_done;
	aio_submit(fiber_queue(f), &o->op);
	while (!o->done)
		fiber_wait(f);
	return 0;
}

static int64_t run(struct queue *q, struct aio_file *file, enum aio_opcode opcode, uint64_t off,
		   const struct iovec *iov, unsigned nr_iov)
{
	struct one o = {
		.op = { .file = file, .opcode = (uint8_t)opcode, .iov = iov, .nr_iov = nr_iov, .off = off }
	};

	for (unsigned i = 0; i < nr_iov; i++)
		o.op.len += iov[i].iov_len;
	fiber_call(q, one_fiber, &o);
	return o.res;
}

static int64_t read_at(struct queue *q, struct aio_file *file, uint64_t off, void *buf, size_t len)
{
	return run(q, file, AIO_READ, off, &(struct iovec){ buf, len }, 1);
}

/* ---- files ---- */

/* Once a ring has the file, the descriptor is not looked at any more. */
static void a_registered_file_is_found_without_its_descriptor(void **state)
{
	const struct aio_engine *engine = *state;
	struct queue *q = make_queue(true, engine);
	int fd = make_file(), other = make_file();
	struct aio_file file = open_on(engine, fd);
	char c = 0;

	CHECK(pwrite(fd, "A", 1, 0) == 1 && pwrite(other, "B", 1, 0) == 1);
	assert_int_equal(read_at(q, &file, 0, &c, 1), 1);
	assert_int_equal(c, 'A');
	CHECK(dup2(other, fd) == fd);
	assert_int_equal(read_at(q, &file, 0, &c, 1), 1);
	assert_int_equal(c, 'A');
	fiber_call(q, close_fiber, &file);
	file = open_on(engine, fd);
	assert_int_equal(read_at(q, &file, 0, &c, 1), 1);
	assert_int_equal(c, 'B');
	fiber_call(q, close_fiber, &file);
	queue_free(q);
	close(fd);
	close(other);
}

/* Takes and keeps the lock; a second one of it on the same file fails. */
static bool lock_file(int fd)
{
	struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1 };

	return fcntl(fd, F_OFD_SETLK, &l) == 0;
}

/*
 * Whoever closes a file has it closed: no ring, of whatever thread, keeps it, nor the locks that hang on it.
 * The rings: home's, one of another thread, one that nobody runs just now, one that has ended.
 */
static void closing_takes_the_file_out_of_every_ring(void **state)
{
	const struct aio_engine *engine = *state;
	struct queue *home = make_queue(true, engine), *other = make_queue(true, engine),
		     *idle = make_queue(false, engine);

	for (unsigned round = 0; round < 20; round++) {
		struct queue *gone = make_queue(round & 1, engine);
		char name[] = "varve-test-XXXXXX", c;
		int fd = mkostemp(name, O_CLOEXEC), again = open(name, O_RDWR | O_CLOEXEC);
		struct aio_file file = open_on(engine, fd);

		unlink(name);
		CHECK(fd >= 0 && again >= 0 && lock_file(fd) && !lock_file(again));
		CHECK(pwrite(fd, "A", 1, 0) == 1);
		assert_int_equal(read_at(home, &file, 0, &c, 1), 1);
		assert_int_equal(read_at(other, &file, 0, &c, 1), 1);
		assert_int_equal(read_at(idle, &file, 0, &c, 1), 1);
		assert_int_equal(read_at(gone, &file, 0, &c, 1), 1);
		queue_free(gone);
		fiber_call(round & 2 ? home : idle, close_fiber, &file);
		close(fd);
		assert_true(lock_file(again));
		close(again);
	}
	queue_free(home);
	queue_free(other);
	queue_free(idle);
}

/* A ring's table is full some day; what has no place in it works all the same. */
static void more_files_than_a_table_holds_all_work(void **state)
{
	const struct aio_engine *engine = *state;
	struct queue *q = make_queue(true, engine);
	struct aio_file *files = calloc(URING_FILES_AT_LEAST, sizeof(*files));
	int fd = make_file();
	char c;

	CHECK(files && pwrite(fd, "A", 1, 0) == 1);
	for (unsigned i = 0; i < URING_FILES_AT_LEAST; i++)
		files[i] = open_on(engine, fd);
	for (unsigned i = 0; i < URING_FILES_AT_LEAST; i++)
		assert_int_equal(read_at(q, &files[i], 0, &c, 1), 1);
	for (unsigned i = 0; i < URING_FILES_AT_LEAST; i++)
		fiber_call(q, close_fiber, &files[i]);
	queue_free(q);
	free(files);
	close(fd);
}

/* ---- a queue that only one thread runs ---- */

static struct queue *make_one_thread_queue(const struct aio_engine *engine)
{
	const struct queue_opts opts = { .name = "one", .one_thread = true };
	struct queue *q;

	if (!engine_works(engine))
		skip();
	CHECK(queue_new(&q, &opts, NULL) == 0);
	CHECK(fiber_call(q, attach_fn, (void *)(uintptr_t)engine) == 0);
	return q;
}

/* Nobody else may change its ring, and it may not be run for long: whoever closes a file does not wait for
 * it. */
static void closing_does_not_wait_for_a_queue_that_nobody_runs(void **state)
{
	struct queue *home = make_queue(true, *state), *one = make_one_thread_queue(*state);
	int fds[2] = { make_file(), make_file() };
	char c;

	CHECK(pwrite(fds[0], "A", 1, 0) == 1 && pwrite(fds[1], "B", 1, 0) == 1);
	for (unsigned i = 0; i < 2 * URING_FILES_AT_LEAST; i++) {
		struct aio_file file = open_on(*state, fds[i & 1]);

		/* Never what a slot held before. */
		assert_int_equal(read_at(one, &file, 0, &c, 1), 1);
		assert_int_equal(c, i & 1 ? 'B' : 'A');
		fiber_call(home, close_fiber, &file);
	}
	queue_free(one);
	queue_free(home);
	close(fds[0]);
	close(fds[1]);
}

/* ---- memory ---- */

struct view {
	struct queue *q;
	struct aio_file file;
	uint8_t *at, *original; /* what the engine was told of; the same pages, seen elsewhere */
	size_t len;
	bool resident;
};

static int memory_fiber(struct fiber *f, void *arg)
{
	struct view *v = arg;

	aio_memory_add(fiber_queue(f), v->at, v->len, v->resident);
	return 0;
}

static int forget_fiber(struct fiber *f, void *arg)
{
	struct view *v = arg;

	aio_memory_del(fiber_queue(f), v->at, v->len);
	return 0;
}

static void view_open_len(struct view *v, const struct aio_engine *engine, bool resident, size_t len)
{
	int mem = memfd_create("varve-test", MFD_CLOEXEC), fd = make_file();
	uint8_t bytes[4 * PAGE];

	memset(bytes, 0x5a, sizeof(bytes));
	CHECK(pwrite(fd, bytes, sizeof(bytes), 0) == sizeof(bytes));
	*v = (struct view){ .q = make_queue(true, engine), .len = len, .resident = resident };
	v->file = open_on(engine, fd);
	CHECK(mem >= 0 && ftruncate(mem, (off_t)v->len) == 0);
	v->at = mmap(NULL, v->len, PROT_READ | PROT_WRITE, MAP_SHARED, mem, 0);
	v->original = mmap(NULL, v->len, PROT_READ | PROT_WRITE, MAP_SHARED, mem, 0);
	CHECK(v->at != MAP_FAILED && v->original != MAP_FAILED);
	close(mem);
	fiber_call(v->q, memory_fiber, v);
	/* From here on the address means other pages, except to a ring that has registered the first ones. */
	CHECK(mmap(v->at, v->len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
	      v->at);
}

static void view_open(struct view *v, const struct aio_engine *engine, bool resident)
{
	view_open_len(v, engine, resident, 8 * PAGE);
}

static void view_close(struct view *v)
{
	fiber_call(v->q, close_fiber, &v->file);
	close(v->file.fd);
	queue_free(v->q);
	munmap(v->at, v->len);
	munmap(v->original, v->len);
}

static bool registered(struct view *v, uint64_t off, size_t len)
{
	memset(v->at, 0, v->len);
	memset(v->original, 0, v->len);
	assert_int_equal(read_at(v->q, &v->file, 0, v->at + off, len), len);
	assert_int_equal(v->at[off] + v->original[off], 0x5a);
	assert_int_equal(v->at[off + len - 1], v->at[off]);
	assert_int_equal(v->original[off + len - 1], v->original[off]);
	return v->original[off];
}

static void registered_memory_is_used_by_requests_of_one_piece_inside(void **state)
{
	struct iovec two[2];
	struct view v;

	view_open(&v, *state, true);
	assert_true(registered(&v, 0, PAGE));
	assert_true(registered(&v, v.len - PAGE, PAGE));
	assert_true(registered(&v, 5, 512));
	two[0] = (struct iovec){ v.at, PAGE };
	two[1] = (struct iovec){ v.at + 2 * PAGE, PAGE };
	memset(v.original, 0, v.len);
	assert_int_equal(run(v.q, &v.file, AIO_READ, 0, two, 2), 2 * PAGE);
	assert_int_equal(v.original[0], 0);
	assert_int_equal(v.at[2 * PAGE], 0x5a);
	/* Writes come from there as well. */
	memset(v.at, 1, v.len);
	memset(v.original, 2, v.len);
	assert_int_equal(run(v.q, &v.file, AIO_WRITE, 0, &(struct iovec){ v.at, PAGE }, 1), PAGE);
	assert_int_equal(pread(v.file.fd, v.at, 1, 0), 1);
	assert_int_equal(v.at[0], 2);
	fiber_call(v.q, forget_fiber, &v);
	view_close(&v);
}

/* After aio_memory_del() the address means what the process sees there, at once. */
static void forgotten_memory_is_not_used(void **state)
{
	struct view v;

	view_open(&v, *state, true);
	assert_true(registered(&v, 0, PAGE));
	fiber_call(v.q, forget_fiber, &v);
	assert_false(registered(&v, 0, PAGE));
	view_close(&v);
}

/* Two users, one registration: it lasts as long as the longer one. */
static void memory_is_kept_for_its_last_user(void **state)
{
	struct view v;

	view_open(&v, *state, true);
	fiber_call(v.q, memory_fiber, &v);
	fiber_call(v.q, forget_fiber, &v);
	assert_true(registered(&v, 0, PAGE));
	fiber_call(v.q, forget_fiber, &v);
	assert_false(registered(&v, 0, PAGE));
	view_close(&v);
}

/* To register memory is to keep it: what could be swapped or given back is registered for those who ask. */
static void pageable_memory_is_registered_only_on_demand(void **state)
{
	struct view v;

	(void)state;
	view_open(&v, &aio_engine_uring, false);
	assert_false(registered(&v, 0, PAGE));
	fiber_call(v.q, forget_fiber, &v);
	view_close(&v);
	view_open(&v, &aio_engine_uring_pinned, false);
	assert_true(registered(&v, 0, PAGE));
	fiber_call(v.q, forget_fiber, &v);
	view_close(&v);
}

static int many_regions_fiber(struct fiber *f, void *arg)
{
	struct view *v = arg;

	for (unsigned i = 1; i < 2 * AIO_MEMORY_MAX; i++)
		aio_memory_add(fiber_queue(f), v->original + i, 1, true);
	/* Their places in the table are found again, in whatever order they come free. */
	for (unsigned i = 1; i < 2 * AIO_MEMORY_MAX; i += 2)
		aio_memory_del(fiber_queue(f), v->original + i, 1);
	for (unsigned i = 1; i < 2 * AIO_MEMORY_MAX; i += 2)
		aio_memory_add(fiber_queue(f), v->original + i, 1, true);
	for (unsigned i = 1; i < 2 * AIO_MEMORY_MAX; i++)
		aio_memory_del(fiber_queue(f), v->original + i, 1);
	return 0;
}

static void more_regions_than_places_do_no_harm(void **state)
{
	struct view v;

	view_open(&v, *state, true);
	fiber_call(v.q, many_regions_fiber, &v);
	assert_true(registered(&v, 0, PAGE));
	fiber_call(v.q, forget_fiber, &v);
	view_close(&v);
}

static unsigned nr_told;

static void count_line(void *user_data, enum varve_log_level level, const char *line)
{
	(void)user_data;
	(void)level;
	nr_told += strstr(line, "RLIMIT_MEMLOCK") != NULL;
}

#define NOT_HERE 77

/* In a process without the right to lock memory: one line says so, and everything works. */
static int child_without_memlock(const struct aio_engine *engine)
{
	struct rlimit little;
	struct view v;

	/* Enough for the ring itself, unless there is less to begin with, which not even root may raise in every container. */
	if (getrlimit(RLIMIT_MEMLOCK, &little) < 0)
		return 2;
	little.rlim_max = MIN(little.rlim_max, MiB(1));
	little.rlim_cur = little.rlim_max;

	varve_set_log(count_line, NULL);
	/*
	 * Another user may not make files where the test runs. One of this process's own: what the processes of a user have
	 * locked is added up.
	 */
	if (chdir(P_tmpdir) < 0 || setrlimit(RLIMIT_MEMLOCK, &little) < 0 ||
	    (geteuid() == 0 && (setgroups(0, NULL) < 0 || setuid((uid_t)(61000 + getpid() % 4000)) < 0)))
		return 2;
	if (!engine_works(engine))
		return little.rlim_max < MiB(1) ? NOT_HERE : 5;
	view_open_len(&v, engine, true, MiB(4));
	if (registered(&v, 0, PAGE))
		return 3;
	fiber_call(v.q, forget_fiber, &v);
	view_close(&v);
	return nr_told == 1 ? 0 : 4;
}

static void without_the_right_to_lock_memory_it_works_unregistered(void **state)
{
	int status;
	pid_t pid;

	if (!engine_works(*state))
		skip();
	pid = fork();
	CHECK(pid >= 0);
	if (pid == 0)
		_exit(child_without_memlock(*state));
	CHECK(waitpid(pid, &status, 0) == pid);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) == NOT_HERE)
		skip();
	assert_int_equal(WEXITSTATUS(status), 0);
}

/* ---- bounce buffers ---- */

static int bounce_fiber(struct fiber *f, void *arg)
{
	struct queue *q = fiber_queue(f);
	void *small[40], *large, *wide;

	(void)arg;
	for (unsigned round = 0; round < 2; round++) {
		for (unsigned i = 0; i < ARRAY_LEN(small); i++) {
			small[i] = aio_bounce_get(q, AIO_BOUNCE_LEN, 4096);
			CHECK(small[i] && is_aligned((uintptr_t)small[i], 4096));
			memset(small[i], (int)i, AIO_BOUNCE_LEN);
		}
		large = aio_bounce_get(q, MiB(1), 4096);
		wide = aio_bounce_get(q, 512, 2 * AIO_BOUNCE_LEN);
		CHECK(large && wide && is_aligned((uintptr_t)wide, 2 * AIO_BOUNCE_LEN));
		memset(large, 0xff, MiB(1));
		for (unsigned i = 0; i < ARRAY_LEN(small); i++) {
			const uint8_t *p = small[i];

			CHECK(p[0] == i && p[AIO_BOUNCE_LEN - 1] == i);
			aio_bounce_put(q, small[i]);
		}
		aio_bounce_put(q, large);
		aio_bounce_put(q, wide);
	}
	return 0;
}

/* However many, however long: each its own memory, aligned; with and without an engine that registers them.
 */
static void bounce_buffers_never_run_out(void **state)
{
	struct queue *q = make_queue(true, *state);

	fiber_call(q, bounce_fiber, NULL);
	queue_free(q);
}

/* ---- several rings, polling ---- */

/* A queue waits in one place; the rings of all engines are heard there. */
static void several_rings_on_one_queue_all_complete(void **state)
{
	static const struct aio_engine *const orders[][3] = {
		{ &aio_engine_uring, &aio_engine_uring_sqpoll, &aio_engine_uring_iopoll },
		{ &aio_engine_uring_iopoll, &aio_engine_uring_sqpoll, &aio_engine_uring },
		{ &aio_engine_native, &aio_engine_uring_sqpoll, &aio_engine_uring },
		{ &aio_engine_threads, &aio_engine_uring, &aio_engine_uring_pinned },
	};
	int fd = make_file();
	char c;

	(void)state;
	CHECK(pwrite(fd, "A", 1, 0) == 1);
	for (unsigned i = 0; i < 2 * ARRAY_LEN(orders); i++) {
		struct queue *q = make_queue(i & 1, orders[i / 2][0]);

		for (unsigned k = 0; k < 300; k++) {
			const struct aio_engine *e = orders[i / 2][k % 3];
			/* Not opened by the engine: the descriptor serves. */
			struct aio_file file = { .engine = e, .fd = fd, .name = "test" };

			if (k < 3)
				CHECK(fiber_call(q, attach_fn, (void *)(uintptr_t)e) == 0);
			c = 0;
			assert_int_equal(read_at(q, &file, 0, &c, 1), 1);
			assert_int_equal(c, 'A');
		}
		queue_free(q);
	}
	close(fd);
}

struct late {
	struct aio_op op;
	int done_fd;
};

static void late_done(struct aio_op *op, int64_t res)
{
	const uint64_t one = 1;

	CHECK(res == 8 &&
	      write(container_of(op, struct late, op)->done_fd, &one, sizeof(one)) == sizeof(one));
}

static int late_fiber(struct fiber *f, void *arg)
{
	struct late *l = arg;

	aio_submit(fiber_queue(f), &l->op);
	return 0;
}

/* A queue that sleeps in one ring is woken by what another one completes. */
static void a_ring_that_is_not_waited_in_wakes_its_queue(void **state)
{
	static const struct aio_engine *const pairs[][2] = {
		{ &aio_engine_uring, &aio_engine_uring_pinned },
		{ &aio_engine_uring, &aio_engine_uring_sqpoll },
		{ &aio_engine_uring_sqpoll, &aio_engine_uring },
		{ &aio_engine_native, &aio_engine_uring },
	};
	const uint64_t one = 1;
	uint64_t value;

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(pairs); i++) {
		struct queue *q = make_queue(true, pairs[i][0]);
		int fd = eventfd(0, EFD_CLOEXEC), done_fd = eventfd(0, EFD_CLOEXEC);
		struct aio_file file = open_on(pairs[i][1], fd);
		struct iovec iov = { &value, sizeof(value) };
		struct late l = {
			.op = { .file = &file, .opcode = AIO_READ, .iov = &iov, .nr_iov = 1, .len = 8 },
			.done_fd = done_fd
		};
		struct pollfd pfd = { .fd = done_fd, .events = POLLIN };

		l.op.done = late_done;
		CHECK(fd >= 0 && done_fd >= 0);
		CHECK(fiber_call(q, attach_fn, (void *)(uintptr_t)pairs[i][1]) == 0);
		for (unsigned round = 0; round < 50; round++) {
			fiber_call(q, late_fiber, &l);
			CHECK(write(fd, &one, sizeof(one)) == sizeof(one));
			assert_int_equal(poll(&pfd, 1, PATIENCE_MS), 1);
			CHECK(read(done_fd, &value, sizeof(value)) == sizeof(value));
		}
		fiber_call(q, close_fiber, &file);
		queue_free(q);
		close(fd);
		close(done_fd);
	}
}

struct crowd {
	struct aio_op ops[64];
	struct iovec iov[64];
	_Atomic unsigned nr_done;
};

static struct crowd crowd;

static void crowd_done(struct aio_op *op, int64_t res)
{
	(void)op;
	CHECK(res == PAGE);
	crowd.nr_done++;
}

static int crowd_fiber(struct fiber *f, void *arg)
{
	(void)arg;
	for (unsigned i = 0; i < ARRAY_LEN(crowd.ops); i++)
		aio_submit(fiber_queue(f), &crowd.ops[i]);
	return 0;
}

/* Linux AIO has waited for the queue until now; what it has under way is heard of all the same. */
static void requests_under_way_are_heard_of_when_another_engine_takes_over_the_wait(void **state)
{
	struct aio_file file = {
		.engine = &aio_engine_native, .fd = make_file(), .direct = true, .name = "test"
	};
	uint8_t *buf;

	(void)state;
	if (!engine_works(&aio_engine_uring) || !engine_works(&aio_engine_native))
		skip();
	CHECK(posix_memalign((void **)&buf, PAGE, ARRAY_LEN(crowd.ops) * PAGE) == 0);
	memset(buf, 1, ARRAY_LEN(crowd.ops) * PAGE);
	CHECK(write(file.fd, buf, ARRAY_LEN(crowd.ops) * PAGE) == (ssize_t)(ARRAY_LEN(crowd.ops) * PAGE));
	CHECK(fsync(file.fd) == 0);
	(void)fcntl(file.fd, F_SETFL, O_DIRECT); /* where it cannot, the requests end at once */
	for (unsigned round = 0; round < 30; round++) {
		struct queue *q = make_queue(true, &aio_engine_native);

		for (unsigned i = 0; i < ARRAY_LEN(crowd.ops); i++) {
			crowd.iov[i] = (struct iovec){ buf + i * PAGE, PAGE };
			crowd.ops[i] = (struct aio_op){ .file = &file,
							.opcode = AIO_READ,
							.iov = &crowd.iov[i],
							.nr_iov = 1,
							.off = i * PAGE,
							.len = PAGE,
							.done = crowd_done };
		}
		crowd.nr_done = 0;
		fiber_call(q, crowd_fiber, NULL);
		CHECK(fiber_call(q, attach_fn, (void *)(uintptr_t)&aio_engine_uring) == 0);
		for (unsigned ms = 0; crowd.nr_done < ARRAY_LEN(crowd.ops); ms++) {
			CHECK(ms < PATIENCE_MS);
			poll(NULL, 0, 1); /* nothing that would wake the queue */
		}
		queue_free(q);
	}
	free(buf);
	close(file.fd);
}

/* With O_DIRECT the ring itself polls, where the file system can; aligned, because it is O_DIRECT. */
static void polled_reads_and_writes_complete(void **state)
{
	int fd = make_file();
	struct queue *q = make_queue(*state != NULL, &aio_engine_uring_iopoll);
	struct aio_file file = {
		.engine = &aio_engine_uring_iopoll, .fd = fd, .direct = true, .name = "test"
	};
	uint8_t *buf;

	if (fcntl(fd, F_SETFL, O_DIRECT) < 0) {
		queue_free(q);
		close(fd);
		skip();
	}
	CHECK(posix_memalign((void **)&buf, PAGE, 2 * PAGE) == 0);
	memset(buf, 0x5a, PAGE);
	for (unsigned i = 0; i < 50; i++) {
		assert_int_equal(run(q, &file, AIO_WRITE, i * PAGE, &(struct iovec){ buf, PAGE }, 1), PAGE);
		memset(buf + PAGE, 0, PAGE);
		assert_int_equal(read_at(q, &file, i * PAGE, buf + PAGE, PAGE), PAGE);
		assert_memory_equal(buf, buf + PAGE, PAGE);
	}
	assert_int_equal(run(q, &file, AIO_FLUSH, 0, NULL, 0), 0);
	free(buf);
	queue_free(q);
	close(fd);
}

/* The words name the device and the way out. */
static void what_cannot_be_polled_is_refused(void **state)
{
	struct aio_file file = { .engine = &aio_engine_uring_iopoll, .name = "test" };
	struct varve_error err = { 0 };

	(void)state;
	if (!engine_works(file.engine))
		skip();
	file.fd = memfd_create("varve-test", MFD_CLOEXEC); /* in memory: no device at all */
	assert_int_equal(file.engine->file_open(&file, &err), -EINVAL);
	assert_non_null(strstr(err.message, "cache.direct=on"));
	file.direct = true;
	assert_int_equal(file.engine->file_open(&file, &err), -EOPNOTSUPP);
	assert_non_null(strstr(err.message, "io_poll"));
	assert_non_null(strstr(err.message, "use aio=io_uring"));
	close(file.fd);
}

static unsigned count_threads(const char *prefix)
{
	DIR *d = opendir("/proc/self/task");
	char path[300], comm[32] = "";
	unsigned nr = 0;

	CHECK(d);
	for (struct dirent *e = readdir(d); e; e = readdir(d)) {
		FILE *f;

		snprintf(path, sizeof(path), "/proc/self/task/%s/comm", e->d_name);
		f = fopen(path, "re");
		if (!f)
			continue;
		if (fgets(comm, sizeof(comm), f))
			nr += !strncmp(comm, prefix, strlen(prefix));
		fclose(f);
	}
	closedir(d);
	return nr;
}

/* A thread of the kernel takes the requests, also after it went to sleep because none came. */
static void sqpoll_wakes_the_thread_that_takes_its_requests(void **state)
{
	struct queue *q = make_queue(true, &aio_engine_uring_sqpoll);
	int fd = make_file();
	struct aio_file file = open_on(&aio_engine_uring_sqpoll, fd);
	char c;

	(void)state;
	CHECK(pwrite(fd, "A", 1, 0) == 1);
	assert_int_equal(read_at(q, &file, 0, &c, 1), 1);
	assert_true(count_threads("iou-sqp-") >= 1); /* it gives itself its name, so not before it has run */
	/* Longer than the thread stays awake: that time, 100 ms, is the kernel's, and has no event to wait
	 * for. */
	poll(NULL, 0, 250);
	assert_int_equal(read_at(q, &file, 0, &c, 1), 1);
	fiber_call(q, close_fiber, &file);
	queue_free(q);
	close(fd);
}

#define ON(test, engine)                                                                                     \
	{                                                                                                    \
#test " (" #engine ")", test, NULL, NULL, (void *)(uintptr_t)&aio_engine_##engine            \
	}
#define BOTH(test) ON(test, uring), ON(test, uring_sqpoll)
#define EACH(test) BOTH(test), ON(test, uring_iopoll)

int main(void)
{
	const struct CMUnitTest tests[] = {
		/* First: the threads of other rings live on for a while. */
		cmocka_unit_test(sqpoll_wakes_the_thread_that_takes_its_requests),
		BOTH(a_registered_file_is_found_without_its_descriptor),
		BOTH(closing_does_not_wait_for_a_queue_that_nobody_runs),
		EACH(closing_takes_the_file_out_of_every_ring),
		EACH(more_files_than_a_table_holds_all_work),
		BOTH(registered_memory_is_used_by_requests_of_one_piece_inside),
		BOTH(forgotten_memory_is_not_used),
		BOTH(memory_is_kept_for_its_last_user),
		cmocka_unit_test(pageable_memory_is_registered_only_on_demand),
		BOTH(more_regions_than_places_do_no_harm),
		ON(without_the_right_to_lock_memory_it_works_unregistered, uring),
		ON(bounce_buffers_never_run_out, uring),
		ON(bounce_buffers_never_run_out, threads),
		cmocka_unit_test(a_ring_that_is_not_waited_in_wakes_its_queue),
		cmocka_unit_test(requests_under_way_are_heard_of_when_another_engine_takes_over_the_wait),
		cmocka_unit_test(several_rings_on_one_queue_all_complete),
		{ "polled_reads_and_writes_complete", polled_reads_and_writes_complete, NULL, NULL, NULL },
		{ "polled_reads_and_writes_complete (own thread)", polled_reads_and_writes_complete, NULL,
		  NULL, "" },
		cmocka_unit_test(what_cannot_be_polled_is_refused),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("uring", tests, NULL, NULL);
}
