/* SPDX-License-Identifier: MIT */
/*
 * test_lost_memory.c - a front end makes the file of its memory shorter: SIGBUS, which must not end the
 * server
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_config.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "export/vhost-user-blk/memguard.h"
#include "served.h"

#define BIT(n) (UINT64_C(1) << (n))

/* Sees to it that our own side does not touch what is gone: only the kick. */
static void kick(struct vu_front *f, unsigned q)
{
	const uint64_t one = 1;

	assert_int_equal(write(f->ring[q].kick_fd, &one, sizeof(one)), sizeof(one));
}

static void wait_error(struct vu_front *f, unsigned q)
{
	uint64_t count, deadline = vu_deadline_ns(SERVED_MS);

	while (read(f->ring[q].err_fd, &count, sizeof(count)) < 0) {
		if (!vu_ms_left(deadline))
			fail_msg("queue %u is not broken", q);
		usleep(1000);
	}
}

static void cut_off_memory_breaks_one_device(void **state)
{
	struct vu_front f, other;
	unsigned fds = served_open_fds();

	(void)state;
	served_connect(&other, 1, 1);
	for (unsigned i = 0; i < 4; i++) {
		served_connect(&f, 0, 2);
		served_io_works(&f, 0);
		if (i == 0) {
			/* The rings are gone. */
			assert_int_equal(ftruncate(f.mem.fd, 0), 0);
			kick(&f, 0);
		} else {
			struct vu_blk b;
			struct vu_io *io;

			/* The data of a request in flight is; the rings themselves stay. */
			assert_int_equal(vu_blk_open(&b, &f, 0, 1, 4096), 0);
			io = vu_blk_get(&b);
			if (i % 2)
				vu_io_read(io, 0, 4096);
			else
				vu_io_write(io, 0, 4096);
			served_shut(0);
			assert_int_equal(vu_blk_submit(&b, io), 0);
			assert_int_equal(vu_blk_kick(&b), 0);
			served_wait_held(0, 1);
			assert_int_equal(ftruncate(f.mem.fd, (off_t)(io->data - f.mem.base)), 0);
			served_open(0);
			wait_error(&f, 0);
			assert_int_equal(ftruncate(f.mem.fd, (off_t)f.mem.len), 0); /* vu_blk writes there */
			vu_blk_free(&b);
			vu_front_close(&f);
			served_io_works(&other, 0);
			continue;
		}
		wait_error(&f, 0);
		assert_true(served_logged("has cut off memory") >= 1);
		served_io_works(&other, 0); /* on the same thread */
		vu_front_close(&f);
	}
	/* The next front end is served as if nothing had been. */
	served_connect(&f, 0, 2);
	served_io_works(&f, 0);
	served_io_works(&f, 1);
	vu_front_close(&f);
	vu_front_close(&other);
	served_wait_fds(fds);
}

/* The same session goes on when the memory is shared anew. */
static void a_device_with_cut_off_memory_can_be_reset(void **state)
{
	struct vu_front f;

	(void)state;
	served_connect(&f, 0, 1);
	assert_int_equal(ftruncate(f.mem.fd, 0), 0);
	kick(&f, 0);
	wait_error(&f, 0);
	assert_int_equal(ftruncate(f.mem.fd, (off_t)f.mem.len), 0);
	must(&f, vu_front_stop_queue(&f, 0, NULL));
	vu_ring_reset(&f.ring[0], 0);
	assert_int_equal(vu_front_start_queue(&f, 0), -EREMOTEIO);
	assert_int_equal(served_logged("share it anew"), 1);
	must(&f, vu_front_stop_queue(&f, 0, NULL));
	must(&f, vu_front_share_memory(&f));
	must(&f, vu_front_start_queue(&f, 0));
	served_io_works(&f, 0);
	vu_front_close(&f);
}

/* A dirty log that is cut off is memory that the front end shares, too. */
static void a_cut_off_dirty_log_breaks_the_device(void **state)
{
	struct vu_front_opts o = served_front_opts(0, 1);
	int fd = memfd_create("log", MFD_CLOEXEC);
	struct vu_log_msg m = { .len = 1 << 20 };
	struct vu_vring_addr a = { .flags = 1 };
	uint64_t set, zero;
	struct vu_front f;
	struct load l;

	(void)state;
	assert_int_equal(ftruncate(fd, 1 << 20), 0);
	o.protocol_features |= BIT(VU_PROTOCOL_F_LOG_SHMFD);
	must(&f, vu_front_open(&f, &o));
	must(&f, vu_front_query_u64(&f, VU_SET_LOG_BASE, &m, sizeof(m), fd, &zero));
	set = f.features | BIT(VU_F_PROTOCOL_FEATURES) | BIT(26);
	must(&f, vu_front_request(&f, VU_SET_FEATURES, &set, sizeof(set), NULL, 0));
	a.desc = (uintptr_t)f.ring[0].desc;
	a.avail = (uintptr_t)f.ring[0].avail;
	a.used = (uintptr_t)f.ring[0].used;
	must(&f, vu_front_request(&f, VU_SET_VRING_ADDR, &a, sizeof(a), NULL, 0));
	assert_int_equal(ftruncate(fd, 0), 0);
	offer_writes(&l, &f, 0, 1);
	wait_error(&f, 0);
	end_load(&l);
	vu_front_close(&f);
	close(fd);
}

/* ---- an embedding program with a handler of its own ---- */

static _Atomic int theirs;
static sigjmp_buf back;

static void their_handler(int sig, siginfo_t *info, void *context)
{
	(void)sig;
	(void)info;
	(void)context;
	theirs++;
	siglongjmp(back, 1);
}

static void install_theirs(void)
{
	struct sigaction a = { .sa_sigaction = their_handler, .sa_flags = SA_SIGINFO };

	sigaction(SIGBUS, &a, NULL);
}

static void fault_of_their_own(void)
{
	int fd = memfd_create("theirs", MFD_CLOEXEC);
	volatile char *p;

	assert_int_equal(ftruncate(fd, 4096), 0);
	p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_int_equal(ftruncate(fd, 0), 0);
	if (!sigsetjmp(back, 1))
		p[0] = 1;
	munmap((void *)p, 4096);
	close(fd);
}

static void faults_of_others_go_to_the_handler_that_was_there(void **state)
{
	struct sigaction now;
	struct varve_error err;
	struct vu_front f;

	(void)state;
	theirs = 0;
	install_theirs();
	served_connect(&f, 0, 1);
	served_io_works(&f, 0);
	fault_of_their_own();
	assert_int_equal(theirs, 1);
	assert_int_equal(ftruncate(f.mem.fd, 0), 0);
	kick(&f, 0);
	wait_error(&f, 0);
	assert_int_equal(theirs, 1);
	fault_of_their_own();
	assert_int_equal(theirs, 2);
	vu_front_close(&f);
	served_stop(0);
	sigaction(SIGBUS, NULL, &now);
	assert_true(now.sa_sigaction == their_handler); /* it stands where it stood */
	signal(SIGBUS, SIG_DFL);
	assert_int_equal(served_start(0, &err), 0);
}

static _Atomic int repaired;

static void calling_handler(int sig, siginfo_t *info, void *context)
{
	(void)sig;
	(void)context;
	if (info->si_code == BUS_ADRERR && memguard_fault(info->si_addr)) {
		repaired = 1;
		return;
	}
	siglongjmp(back, 1);
}

/* A program that sets own_sigbus keeps its handler, and asks us from there. */
static void a_program_may_handle_it_itself(void **state)
{
	struct sigaction a = { .sa_sigaction = calling_handler, .sa_flags = SA_SIGINFO }, now;
	struct vu_front f;

	(void)state;
	memguard_keep_out(true);
	sigaction(SIGBUS, &a, NULL);
	served_connect(&f, 0, 1);
	served_io_works(&f, 0);
	sigaction(SIGBUS, NULL, &now);
	assert_true(now.sa_sigaction == calling_handler);
	fault_of_their_own();
	assert_int_equal(repaired, 0);
	assert_int_equal(ftruncate(f.mem.fd, 0), 0);
	kick(&f, 0);
	wait_error(&f, 0);
	assert_int_equal(repaired, 1);
	vu_front_close(&f);
	served_stop(0);
	signal(SIGBUS, SIG_DFL);
	memguard_keep_out(false);
	assert_int_equal(served_start(0, NULL), 0);
}

/* Without any handler such a fault ends the process by SIGBUS, as if we were not there. */
static void faults_of_nobody_end_the_process(void **state)
{
	static char *page;
	_Atomic bool lost = false;
	struct varve_error err;
	int status, slot;
	pid_t child;

	(void)state;
	signal(SIGBUS, SIG_DFL); /* cmocka's own */
	page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	slot = memguard_add(page, 4096, 4096, &lost, &err);
	assert_true(slot >= 0);
	child = fork();
	if (child == 0) {
		int fd = memfd_create("x", 0);
		volatile char *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

		p[0] = 1; /* beyond the end of an empty file */
		_exit(0);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
	assert_false(memguard_fault(page + 4096));
	assert_true(memguard_fault(page + 4095));
	assert_true(lost);
	memguard_del(slot);
	assert_false(memguard_fault(page));
	munmap(page, 4096);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, served_setup, served_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(cut_off_memory_breaks_one_device),
		TEST(a_device_with_cut_off_memory_can_be_reset),
		TEST(a_cut_off_dirty_log_breaks_the_device),
		TEST(faults_of_others_go_to_the_handler_that_was_there),
		TEST(a_program_may_handle_it_itself),
		cmocka_unit_test(faults_of_nobody_end_the_process),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
