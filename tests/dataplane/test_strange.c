/* SPDX-License-Identifier: MIT */
/*
 * test_strange.c - descriptors of a file system in user space that has stopped to answer: whoever looks at one, maps it or closes
 * it waits, and that must be nobody who is needed
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
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "faultfs.h"
#include "served.h"

#define BIT(n) (UINT64_C(1) << (n))

static struct faultfs fs;
static char dir[] = "/tmp/varve-strange-XXXXXX";

static int setup(void **state)
{
	const char *why = "no directory";

	if (!mkdtemp(dir) || !faultfs_own_mounts() || !faultfs_start(&fs, dir, "async", &why)) {
		print_message("# not possible here: %s\n", why);
		fs.pid = 0;
	}
	return served_setup(state);
}

static int teardown(void **state)
{
	int ret;

	if (fs.pid)
		kill(fs.pid, SIGCONT); /* it may be waited for */
	ret = served_teardown(state);
	if (fs.pid)
		faultfs_stop(&fs);
	rmdir(dir);
	return ret;
}

/* One message with one descriptor, for which no answer is waited. */
static void send_with(struct vu_front *f, uint32_t request, const void *payload, uint32_t len, int fd)
{
	struct vu_hdr hdr = { .request = request, .flags = VU_FLAG_VERSION, .size = len };
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = { .bytes = { 0 } };
	struct iovec iov[2] = { { &hdr, sizeof(hdr) }, { (void *)(uintptr_t)payload, len } };
	struct msghdr mh = { .msg_iov = iov, .msg_iovlen = 2, .msg_control = &control, .msg_controllen = sizeof(control) };
	struct cmsghdr *c = CMSG_FIRSTHDR(&mh);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &fd, sizeof(int));
	assert_int_equal(sendmsg(f->sock, &mh, 0), sizeof(hdr) + len);
}

static void files_that_do_not_answer_hold_up_nobody(void **state)
{
	static const struct {
		uint32_t request, len;
	} messages[] = {
		{ VU_ADD_MEM_REG, sizeof(struct vu_mem_reg_msg) }, { VU_SET_LOG_BASE, sizeof(struct vu_log_msg) },
		{ VU_SET_VRING_CALL, 8 },			   { VU_SET_VRING_KICK, 8 },
		{ VU_SET_BACKEND_REQ_FD, 0 },			   { VU_SET_DEVICE_STATE_FD, 8 },
		{ VU_SET_INFLIGHT_FD, VU_INFLIGHT_LEN },
	};
	struct vu_front f, other;
	uint8_t byte;

	(void)state;
	if (!fs.pid)
		skip();
	served_connect(&other, 1, 1);
	for (unsigned i = 0; i < sizeof(messages) / sizeof(messages[0]); i++) {
		struct vu_mem_reg_msg region = { .region = { UINT64_C(1) << 40, 1 << 20, UINT64_C(1) << 41, 0 } };
		unsigned fds;
		int fd;

		faultfs_tell(&fs, "resize %u", 1u << 20);
		fd = open(fs.disk, O_RDWR | O_CLOEXEC);
		assert_true(fd >= 0);
		served_connect(&f, 0, 1);
		fds = served_open_fds();
		assert_int_equal(kill(fs.pid, SIGSTOP), 0);
		assert_int_equal(waitpid(fs.pid, NULL, WUNTRACED), fs.pid); /* it has stopped */
		if (messages[i].request == VU_ADD_MEM_REG)
			send_with(&f, messages[i].request, &region, messages[i].len, fd);
		else
			send_with(&f, messages[i].request, &(uint8_t[64]){ 0 }, messages[i].len, fd);
		/* The sender is done with, and his place is not given to another; the other disk goes on. */
		assert_int_equal(vu_raw_wait_closed(&f, SERVED_MS), 0);
		must(&other, vu_front_get_config(&other, 0, &byte, 1));
		served_io_works(&other, 0);
		assert_int_equal(served_logged("might make us wait"), i + 1);
		vu_front_close(&f);
		{
			struct vu_front_opts o = served_front_opts(0, 1);

			o.timeout_ms = 300;
			assert_true(vu_front_open(&f, &o) < 0);
			vu_front_close(&f);
		}
		assert_int_equal(kill(fs.pid, SIGCONT), 0);
		close(fd);
		served_wait_fds(fds);
	}
	/* When they are closed at last. */
	served_connect(&f, 0, 1);
	served_io_works(&f, 0);
	vu_front_close(&f);
	vu_front_close(&other);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(files_that_do_not_answer_hold_up_nobody, setup, teardown),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
