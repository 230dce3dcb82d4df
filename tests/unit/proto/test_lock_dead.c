/* SPDX-License-Identifier: MIT */
/*
 * unit/proto/test_lock_dead.c - locks that outlive the process that took them
 *
 * The kernel may hold a file open that no process has any more: for a ring that is taken down, or, as here,
 * because its descriptor is in a message that nobody has received.
 */
#include "leaf.h"

#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define DEAD_NS 900000000      /* three times as long as the locks of the living are waited for */
#define DEAD_NS_MAX 4000000000 /* less than those of the dead are */

/* A file with the lock of a writer, for which only the kernel can be blamed; it lasts until both sockets are
 * closed. */
static void lock_by_nobody(const char *path, int ret_sockets[2])
{
	struct flock fl = { .l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 101, .l_len = 1 };
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = { 0 };
	struct iovec iov = { "x", 1 };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = control.buf,
			      .msg_controllen = sizeof(control.buf) };
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, 65536), 0);
	assert_int_equal(fcntl(fd, F_OFD_SETLK, &fl), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ret_sockets), 0);
	*c = (struct cmsghdr){ .cmsg_level = SOL_SOCKET,
			       .cmsg_type = SCM_RIGHTS,
			       .cmsg_len = CMSG_LEN(sizeof(int)) };
	memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	assert_int_equal(sendmsg(ret_sockets[0], &msg, 0), 1);
	close(fd);
}

struct holder {
	int sockets[2];
	uint64_t begin_ns, end_ns;
};

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static void *let_go_later(void *arg)
{
	struct holder *h = arg;

	nanosleep(&(struct timespec){ .tv_nsec = DEAD_NS }, NULL);
	close(h->sockets[0]);
	close(h->sockets[1]);
	h->end_ns = now_ns();
	return NULL;
}

/* Opens the file with the lock on it. False: it was refused, but the lock lasted longer than it had to be
 * waited for. */
static bool opens_in_the_end(void)
{
	struct holder h;
	pthread_t thread;
	struct leaf l = { .q = leaf_queue() };
	int ret;

	lock_by_nobody(leaf_path("dead"), h.sockets);
	h.begin_ns = now_ns();
	assert_int_equal(pthread_create(&thread, NULL, let_go_later, &h), 0);
	ret = leaf_try(&l, &driver_file, NULL, leaf_file_opts("dead", ""), NODE_WRITABLE);
	assert_int_equal(pthread_join(thread, NULL), 0);
	if (ret == 0) {
		leaf_close(&l);
		return true;
	}
	queue_free(l.q);
	if (h.end_ns - h.begin_ns < DEAD_NS_MAX)
		fail_msg("%s", l.err.message);
	return false;
}

/* Again where the thread that lets go was kept from running: then nothing was tried. */
static void locks_that_no_process_has_are_waited_for(void **state)
{
	(void)state;
	while (!opens_in_the_end())
		print_message("# the lock was held for too long\n");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(locks_that_no_process_has_are_waited_for),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, leaf_remove_dir);
}
