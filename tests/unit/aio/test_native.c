/* SPDX-License-Identifier: MIT */
/* test_native.c - Linux AIO: refused operations, full contexts, limits of the system, company of io_uring */
#include "aio_test.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define NR 64
#define LOW_WORD (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? 4 : 0) /* of a 64-bit argument */

struct many {
	struct aio_file good, bad;
	struct aio_op ops[NR];
	struct iovec iov[NR];
	uint64_t values[NR];
	int64_t res[NR];
	unsigned nr_done;
	bool in_submit;
};

static struct many *the_many; /* done() has no other way to it */

static void op_done(struct aio_op *op, int64_t res)
{
	struct many *m = the_many;

	CHECK(!m->in_submit);
	m->res[op - m->ops] = res;
	m->nr_done++;
}

static void many_open(struct many *m)
{
	memset(m, 0, sizeof(*m));
	the_many = m;
	m->good = (struct aio_file){ .engine = &aio_engine_native, .name = "good" };
	m->good.fd = memfd_create("varve-test", MFD_CLOEXEC);
	CHECK(m->good.fd >= 0);
	m->bad = (struct aio_file){ .engine = &aio_engine_native, .fd = 1 << 20, .name = "bad" };
}

/* Every third one goes to a descriptor that is not open; kinds of operations alternate. */
static int submit_mixed(struct fiber *f, void *arg)
{
	struct many *m = arg;

	m->in_submit = true;
	for (unsigned i = 0; i < NR; i++) {
		m->values[i] = i;
		m->iov[i] = (struct iovec){ &m->values[i], 8 };
		m->ops[i] = (struct aio_op){ .file = i % 3 == 1 ? &m->bad : &m->good, .done = op_done };
		m->ops[i].opcode = i % 7 == 6 ? AIO_FLUSH : AIO_WRITE;
		m->ops[i].iov = &m->iov[i];
		m->ops[i].nr_iov = 1;
		m->ops[i].off = 8 * i;
		m->ops[i].len = 8;
		aio_submit(fiber_queue(f), &m->ops[i]);
	}
	m->in_submit = false;
	return 0;
}

static void check_mixed(struct many *m)
{
	for (unsigned i = 0; i < NR; i++)
		CHECK(m->res[i] == (i % 3 == 1 ? -EBADF : i % 7 == 6 ? 0 : 8));
}

/* One io_submit() carries them all; the kernel stops at the first that it refuses. */
static void refused_operation_fails_only_itself(void **state)
{
	struct queue *q = make_queue(false, &aio_engine_native);
	struct many m;

	(void)state;
	many_open(&m);
	fiber_call(q, submit_mixed, &m);
	while (m.nr_done < NR)
		queue_turn(q, -1);
	check_mixed(&m);
	close(m.good.fd);
	queue_free(q);
}

/* Whoever polls the queue hears of completions and of refusals. */
static void embedded_queue_tells_of_all_endings(void **state)
{
	struct queue *q = make_queue(false, &aio_engine_native);
	struct many m;

	(void)state;
	many_open(&m);
	for (unsigned round = 0; round < 20; round++) {
		struct pollfd p = { .fd = queue_poll_fd(q), .events = POLLIN };

		m.nr_done = 0;
		fiber_call(q, submit_mixed, &m);
		while (m.nr_done < NR) {
			CHECK(poll(&p, 1, PATIENCE_MS) == 1);
			queue_turn(q, 0);
		}
		check_mixed(&m);
	}
	/* And is quiet when all is told. */
	for (unsigned i = 0;; i++) {
		struct pollfd p = { .fd = queue_poll_fd(q), .events = POLLIN };

		if (poll(&p, 1, 0) == 0)
			break;
		CHECK(i < 10);
		queue_turn(q, 0);
	}
	close(m.good.fd);
	queue_free(q);
}

/* The queue waits in io_uring; Linux AIO was there before, or comes after. */
static void lives_with_io_uring(void **state)
{
	const bool native_first = *(const bool *)*state;
	struct queue *q;
	struct many m;

	if (!engine_works(&aio_engine_uring))
		skip();
	q = make_queue(false, native_first ? &aio_engine_native : &aio_engine_uring);
	many_open(&m);
	if (native_first) {
		/* Completions may be under way while who waits changes. */
		fiber_call(q, submit_mixed, &m);
		CHECK(aio_attach(q, &aio_engine_uring, NULL) == 0);
		while (m.nr_done < NR)
			queue_turn(q, -1);
	}
	CHECK(aio_attach(q, &aio_engine_native, NULL) == 0);
	for (unsigned round = 0; round < 20; round++) {
		m.nr_done = 0;
		fiber_call(q, submit_mixed, &m);
		while (m.nr_done < NR)
			queue_turn(q, -1);
		check_mixed(&m);
	}
	close(m.good.fd);
	queue_free(q);
}

/* From here on io_setup() of more than `most` requests fails as at the system's limit. Only for a child. */
static void limit_contexts(uint32_t most)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_setup, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0]) + LOW_WORD),
		BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, most, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EAGAIN),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = { ARRAY_LEN(code), code };

	CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) == 0);
}

static void child_at_the_limit(uint32_t most)
{
	const bool enough = most >= 33;
	struct varve_error err = { 0 };
	struct queue *q = NULL;
	struct many m;
	int ret;

	limit_contexts(most);
	CHECK(queue_new(&q, NULL, NULL) == 0);
	ret = aio_attach(q, &aio_engine_native, &err);
	if (!enough) {
		CHECK(ret == -EAGAIN && strstr(err.message, "fs.aio-max-nr"));
		_exit(0);
	}
	CHECK(ret == 0);
	/* More than the context holds: the rest waits for room. */
	many_open(&m);
	fiber_call(q, submit_mixed, &m);
	while (m.nr_done < NR)
		queue_turn(q, -1);
	check_mixed(&m);
	_exit(0);
}

/* A smaller context if the system has no more; if that is too small, an error that names the sysctl. */
static void limit_of_the_system_is_lived_with_or_named(void **state)
{
	static const uint32_t limits[] = { 100, 40, 10, 0 };

	(void)state;
	if (!engine_works(&aio_engine_native))
		skip();
	for (unsigned i = 0; i < ARRAY_LEN(limits); i++) {
		pid_t child;
		int status;

		fflush(NULL);
		child = fork();
		CHECK(child >= 0);
		if (child == 0)
			child_at_the_limit(limits[i]);
		CHECK(waitpid(child, &status, 0) == child);
		assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	}
}

static bool yes = true, no;

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(limit_of_the_system_is_lived_with_or_named), /* forks: before any thread */
		cmocka_unit_test(refused_operation_fails_only_itself),
		cmocka_unit_test(embedded_queue_tells_of_all_endings),
		{ "lives_with_io_uring (native first)", lives_with_io_uring, NULL, NULL, &yes },
		{ "lives_with_io_uring (io_uring first)", lives_with_io_uring, NULL, NULL, &no },
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("native", tests, NULL, NULL);
}
