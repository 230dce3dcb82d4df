/* SPDX-License-Identifier: MIT */
/* test_posix.c - POSIX AIO: requests of one file run side by side, and signals stay the program's */
#include "aio_test.h"

#include <aio.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

struct req {
	struct aio_op op;
	struct iovec iov;
	uint8_t buf[512];
	int64_t res;
	bool done;
};

static void req_done(struct aio_op *op, int64_t res)
{
	struct req *r = container_of(op, struct req, op);

	CHECK(!r->done);
	r->res = res;
	r->done = true;
}

static void req_init(struct req *r, struct aio_file *file, enum aio_opcode opcode, uint64_t off)
{
	memset(r, 0, sizeof(*r));
	r->iov = (struct iovec){ r->buf, sizeof(r->buf) };
	r->op = (struct aio_op){ .file = file, .opcode = (uint8_t)opcode, .iov = &r->iov, .nr_iov = 1 };
	r->op.off = off;
	r->op.len = sizeof(r->buf);
	r->op.done = req_done;
}

static int submit(struct fiber *f, void *arg)
{
	aio_submit(fiber_queue(f), arg);
	return 0;
}

static int close_file(struct fiber *f, void *arg)
{
	aio_engine_posix.file_close(f, arg);
	return 0;
}

static void wait_for(struct queue *q, struct req *r)
{
	while (!r->done)
		queue_turn(q, -1);
}

/*
 * A socket, on which reads wait for the other end (their offset counts for nothing). A write that comes later
 * must get through while they wait: behind them, on the one descriptor that was opened, it would not.
 */
static __attribute__((unused)) void requests_of_one_file_run_side_by_side(void **state)
{
	struct queue *q = make_queue(false, &aio_engine_posix);
	struct aio_file file = { .engine = &aio_engine_posix, .name = "socket" };
	struct req reads[4], write_req;
	struct pollfd p = { .events = POLLIN };
	uint8_t buf[512];
	int ends[2];

	(void)state;
	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
	file.fd = ends[0];
	CHECK(aio_engine_posix.file_open(&file, NULL) == 0);
	for (unsigned i = 0; i < ARRAY_LEN(reads); i++) {
		req_init(&reads[i], &file, AIO_READ, 0);
		fiber_call(q, submit, &reads[i].op);
		queue_turn(q, 0);
	}
	req_init(&write_req, &file, AIO_WRITE, 0);
	memset(write_req.buf, 0x77, sizeof(write_req.buf));
	fiber_call(q, submit, &write_req.op);
	queue_turn(q, 0);
	p.fd = ends[1];
	assert_int_equal(poll(&p, 1, PATIENCE_MS), 1);
	assert_int_equal(read(ends[1], buf, sizeof(buf)), sizeof(buf));
	assert_int_equal(buf[511], 0x77);
	wait_for(q, &write_req);
	for (unsigned i = 0; i < ARRAY_LEN(reads); i++) {
		CHECK(!reads[i].done);
		memset(buf, (int)i, sizeof(buf));
		CHECK(write(ends[1], buf, sizeof(buf)) == sizeof(buf));
	}
	for (unsigned i = 0; i < ARRAY_LEN(reads); i++) {
		wait_for(q, &reads[i]);
		assert_int_equal(reads[i].res, sizeof(buf));
	}
	fiber_call(q, close_file, &file);
	close(ends[0]);
	close(ends[1]);
	queue_free(q);
}

/* ---- signals ---- */

static atomic_uint nr_usr2, nr_io;

static void count_signal(int sig)
{
	atomic_fetch_add(sig == SIGUSR2 ? &nr_usr2 : &nr_io, 1);
}

static void do_io(struct queue *q, struct aio_file *file, unsigned nr)
{
	struct req r;

	for (unsigned i = 0; i < nr; i++) {
		req_init(&r, file, i % 2 ? AIO_READ : AIO_WRITE, 512 * (i / 2));
		fiber_call(q, submit, &r.op);
		wait_for(q, &r);
		CHECK(r.res == sizeof(r.buf));
	}
}

static void memory_file(struct aio_file *file)
{
	*file = (struct aio_file){ .engine = &aio_engine_posix, .name = "memory" };
	file->fd = memfd_create("varve-test", MFD_CLOEXEC);
	CHECK(file->fd >= 0 && aio_engine_posix.file_open(file, NULL) == 0);
}

/* The handlers of a program count its own signals, all of them, and none of ours. */
static void signals_of_the_program_are_its_own(void **state)
{
	struct queue *q = make_queue(false, &aio_engine_posix);
	struct sigaction act = { .sa_handler = count_signal }, old[2];
	struct aio_file file;

	(void)state;
	sigaction(SIGUSR2, &act, &old[0]);
	sigaction(SIGIO, &act, &old[1]);
	memory_file(&file);
	do_io(q, &file, 200);
	assert_int_equal(atomic_load(&nr_usr2) + atomic_load(&nr_io), 0);
	for (unsigned i = 1; i <= 50; i++) {
		/* To this thread, so each is counted before raise() returns. */
		raise(i % 2 ? SIGUSR2 : SIGIO);
		do_io(q, &file, 2);
		assert_int_equal(atomic_load(&nr_usr2) + atomic_load(&nr_io), i);
	}
	sigaction(SIGUSR2, &old[0], NULL);
	sigaction(SIGIO, &old[1], NULL);
	fiber_call(q, close_file, &file);
	close(file.fd);
	queue_free(q);
}

static _Atomic bool bombard_stop;

static void *bombard(void *arg)
{
	(void)arg;
	while (!atomic_load(&bombard_stop)) {
		kill(getpid(), SIGUSR2);
		kill(getpid(), SIGIO);
		sched_yield();
	}
	return NULL;
}

/*
 * A program that blocks signals in all its threads and reads them has left their default action in place,
 * which is to end the process: a thread of ours that does not block them is where they arrive. In a child, so
 * that this is a failure and not the end.
 */
static void no_thread_of_ours_takes_a_blocked_signal(void **state)
{
	pid_t child;
	int status;

	(void)state;
	if (!engine_works(&aio_engine_posix))
		skip();
	fflush(NULL);
	child = fork();
	CHECK(child >= 0);
	if (child == 0) {
		struct queue *q;
		struct aio_file file;
		pthread_t thread;
		sigset_t set;

		sigemptyset(&set);
		sigaddset(&set, SIGUSR2);
		sigaddset(&set, SIGIO);
		pthread_sigmask(SIG_BLOCK, &set, NULL);
		q = make_queue(false, &aio_engine_posix);
		memory_file(&file);
		CHECK(pthread_create(&thread, NULL, bombard, NULL) == 0);
		do_io(q, &file, 1000);
		atomic_store(&bombard_stop, true);
		pthread_join(thread, NULL);
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		/* First: the child must not inherit a C library whose AIO threads stayed behind. */
		cmocka_unit_test(no_thread_of_ours_takes_a_blocked_signal),
#if !TEST_TSAN /* see below */
		cmocka_unit_test(requests_of_one_file_run_side_by_side),
#endif
		cmocka_unit_test(signals_of_the_program_are_its_own),
	};

	/* As in test_engines.c: the C library's AIO threads make no further ones. */
	if (TEST_TSAN)
		aio_init(&(struct aioinit){ .aio_threads = 1, .aio_num = 64 });
	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("posix", tests, NULL, NULL);
}
