/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/notify.c - telling the other side something through an eventfd that is also its own
 *
 * Owns:    see notify.h.
 * Assumes: see notify.h.
 * Never:   see notify.h.
 */
#include "export/vhost-user-blk/notify.h"

#include <fcntl.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/math.h"

/* What the kernel shares with us of an asynchronous context; only the two indices are of interest. */
struct aio_ring_head {
	uint32_t id, nr, head, tail;
};

/* The largest value that a counter has: one more makes a writer wait. */
#define COUNTER_FULL (UINT64_MAX - 1)

void notifier_init(struct notifier *n)
{
	memset(n, 0, sizeof(*n));
	n->fd = -1;
	n->null_fd = -1;
}

void notifier_free(struct notifier *n)
{
	if (n->aio)
		syscall(SYS_io_destroy, n->aio);
	if (n->null_fd >= 0)
		close(n->null_fd);
	n->aio = 0;
	n->null_fd = -1;
}

/* False: the system has no asynchronous context left for us. */
static bool make_aio(struct notifier *n)
{
	if (n->null_fd < 0)
		n->null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	if (!n->aio && n->null_fd >= 0 && syscall(SYS_io_setup, 8, &n->aio) < 0)
		n->aio = 0;
	return n->aio && n->null_fd >= 0;
}

/* Reads nothing from nowhere, which ends at once, and has the kernel signal the end. */
static void notify_careful(struct notifier *n, int fd)
{
	uint64_t nothing = 1;
	struct iocb cb = {
		.aio_lio_opcode = IOCB_CMD_PREAD,
		.aio_buf = (uint64_t)(uintptr_t)&nothing,
		.aio_flags = IOCB_FLAG_RESFD,
		.aio_resfd = (uint32_t)fd,
	}, *list[1] = { &cb };
	struct aio_ring_head *ring;

	if (!make_aio(n)) {
		struct pollfd p = { .fd = fd, .events = POLLOUT };

		/* What is left may wait, for as long as it takes the control thread to look. */
		if (poll(&p, 1, 0) == 1 && write(fd, &nothing, sizeof(nothing)) < 0)
			return;
		return;
	}
	cb.aio_fildes = (uint32_t)n->null_fd;
	if (syscall(SYS_io_submit, n->aio, 1, list) != 1)
		return;
	/* Nobody wants the result. The kernel allows a process to take results off the ring by itself. */
	ring = (struct aio_ring_head *)n->aio;
	__atomic_store_n(&ring->head, __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE), __ATOMIC_RELEASE);
}

void notify(struct notifier *n, int fd)
{
	const uint64_t one = 1;
	ssize_t ret;

	if (fd < 0)
		return;
	atomic_store_explicit(&n->nr, n->nr + 1, memory_order_relaxed);
	atomic_store_explicit(&n->fd, fd, memory_order_relaxed);
	if (atomic_load_explicit(&n->careful, memory_order_relaxed)) {
		notify_careful(n, fd);
	} else {
		ret = write(fd, &one, sizeof(one));
		(void)ret; /* see notify.h */
	}
	atomic_store_explicit(&n->fd, -1, memory_order_relaxed);
}

/* The counter of an eventfd, without taking it. */
static bool is_full(int fd)
{
	char path[48], text[256], *at;
	ssize_t len;
	int info;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	info = open(path, O_RDONLY | O_CLOEXEC);
	if (info < 0)
		return true; /* no /proc: the time that it took has to do */
	len = read(info, text, sizeof(text) - 1);
	close(info);
	text[MAX(len, 0)] = 0;
	at = strstr(text, "eventfd-count:");
	return !at || strtoull(at + strlen("eventfd-count:"), NULL, 16) == COUNTER_FULL;
}

bool notifier_rescue(struct notifier *n)
{
	uint32_t nr = atomic_load_explicit(&n->nr, memory_order_relaxed);
	int fd = atomic_load_explicit(&n->fd, memory_order_relaxed);
	bool same = nr == n->seen;
	uint64_t count;
	struct iovec iov = { &count, sizeof(count) };

	n->seen = nr;
	/*
	 * Waiting, or only not given the processor for so long: the counter tells. Only the notifier's thread
	 * lets go of the descriptor, by a message to ours, so it is still open. The event that we take away
	 * is that of the one who waits.
	 */
	if (fd < 0 || !same || !is_full(fd))
		return false;
	atomic_store_explicit(&n->careful, true, memory_order_relaxed);
	return preadv2(fd, &iov, 1, -1, RWF_NOWAIT) == sizeof(count);
}
