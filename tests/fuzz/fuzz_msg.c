/* SPDX-License-Identifier: MIT */
/*
 * fuzz/fuzz_msg.c - any bytes as the messages of a front end, through a whole session with two rings
 *
 * Input: records of request, flags, kinds of descriptors, length, and the payload; a bit tells that the header lies about the
 * length, another that the message is cut. Two requests are none of the front end: the device is paused, and goes on. The memory that front ends share has a ring with requests in it. Nothing of it may
 * crash, hang or leak: neither a mapping nor a descriptor is left behind, which is looked at every so often.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "block/throttle.h"
#include "export/vhost-user-blk/session.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MEM_LEN 0x10000u
#define MESSAGES 40
#define TURNS 8
#define DO_PAUSE 250
#define DO_RESUME 251

static struct node top = { .len = MiB(1) };
static const struct blk_disk disk = { .top = &top, .writable = true, .in_order = true, .id = "fuzz" };
static struct queue *queue;
static struct session session;
static bool closed;
static int mem_fd, event_fd, sealed_fd, null_fd;
static unsigned nr_fds;

#define check(ok) check_that(ok, #ok)

static void check_that(bool ok, const char *what)
{
	if (ok)
		return;
	fprintf(stderr, "not so: %s\n", what);
	abort();
}

void node_submit(struct node *n, struct req *r)
{
	check(n == &top);
	r->done(r, 0);
}

/* Nor are there any limits. */
void throttle_hurry_begin(struct node *n, struct queue *q)
{
	check(n == &top && q == queue);
}

void throttle_hurry_end(struct node *n, struct queue *q)
{
	check(n == &top && q == queue);
}

uint64_t throttle_paid_at(const struct node *n)
{
	check(n == &top);
	return 0;
}

static void session_closed(struct session *s)
{
	(void)s;
	closed = true;
}

static void session_turned(struct session *s)
{
	(void)s;
}

/* Memory, eventfds and sockets; libFuzzer and the sanitizers open files and pipes of their own, when they like. */
static unsigned count_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	const struct dirent *e;
	unsigned nr = 0;

	check(d != NULL);
	while ((e = readdir(d))) {
		char to[64] = "";

		if (readlinkat(dirfd(d), e->d_name, to, sizeof(to) - 1) > 0)
			nr += strstr(to, "memfd:") || strstr(to, "eventfd") || strstr(to, "socket:");
	}
	closedir(d);
	return nr;
}

/* A split ring of four at 0, 0x100, 0x200, with a read of 512 bytes in it; user addresses as in the corpus. */
static void put_ring(uint8_t *m)
{
	static const struct {
		uint64_t addr;
		uint32_t len;
		uint16_t flags, next;
	} descs[3] = { { 0x1000, 16, 1, 1 }, { 0x2000, 512, 3, 2 }, { 0x3000, 1, 2, 0 } };

	memcpy(m, descs, sizeof(descs));
	m[0x102] = 1;
}

static int memory_file(unsigned seals)
{
	int fd = memfd_create("guest", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	check(fd >= 0 && ftruncate(fd, MEM_LEN) == 0 && fcntl(fd, F_ADD_SEALS, seals) == 0);
	return fd;
}

static void begin_process(void)
{
	struct queue_opts o = { .name = "fuzz", .virtual_time = true };
	struct varve_error err;

	if (queue)
		return;
	check(queue_new(&queue, &o, NULL) == 0);
	mem_fd = memory_file(0);
	sealed_fd = memory_file(F_SEAL_SHRINK);
	event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	check(event_fd >= 0 && null_fd >= 0);
	check(session_init(&session, "fuzz", &disk, queue, &queue, 1, 2, 64, session_closed, session_turned, &err) == 0);
	nr_fds = count_fds();
}

static void look_at_fds(void)
{
	static unsigned runs;

	check(runs++ % 256 || count_fds() == nr_fds);
}

static void turn(void)
{
	for (unsigned i = 0; i < TURNS; i++)
		queue_turn(queue, 0);
}

/* Sends len bytes with descriptors chosen by kinds, two bits each. False: the other side is gone. */
static bool send_with(int sock, const void *bytes, size_t len, uint8_t kinds, unsigned nr)
{
	const int choice[4] = { mem_fd, event_fd, sealed_fd, null_fd };
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(4 * sizeof(int))];
	} control = { .bytes = { 0 } };
	struct iovec iov = { (void *)(uintptr_t)bytes, len };
	struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1 };
	int fds[4];

	for (unsigned i = 0; i < nr; i++)
		fds[i] = choice[kinds >> 2 * i & 3];
	if (nr) {
		struct cmsghdr *c;

		mh.msg_control = &control;
		mh.msg_controllen = CMSG_SPACE(nr * sizeof(int));
		c = CMSG_FIRSTHDR(&mh);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(nr * sizeof(int));
		memcpy(CMSG_DATA(c), fds, nr * sizeof(int));
	}
	return sendmsg(sock, &mh, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)len;
}

/* What the session answers is thrown away, with its descriptors. */
static void drain(int sock)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(8 * sizeof(int))];
	} control;
	char waste[4096];

	for (;;) {
		struct iovec iov = { waste, sizeof(waste) };
		struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
				     .msg_controllen = sizeof(control) };

		if (recvmsg(sock, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) <= 0)
			return;
		for (struct cmsghdr *c = CMSG_FIRSTHDR(&mh); c; c = CMSG_NXTHDR(&mh, c)) {
			for (size_t i = 0; i < (c->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++)
				close(((int *)CMSG_DATA(c))[i]);
		}
	}
}

/* One record of the input; returns what is left of it, NULL when the conversation is over. */
static const uint8_t *one_message(int sock, const uint8_t *p, const uint8_t *end)
{
	uint8_t bytes[sizeof(struct umsg_header) + 255];
	struct umsg_header h;
	size_t len, whole;

	if (end - p < 4)
		return NULL;
	if (p[0] == DO_PAUSE || p[0] == DO_RESUME) {
		if (p[0] == DO_PAUSE)
			session_pause(&session);
		else
			session_resume(&session);
		return p + 1;
	}
	h.request = p[0];
	h.flags = UMSG_VERSION | (p[1] & 0xe);
	len = MIN((size_t)p[3], (size_t)(end - p - 4));
	h.size = (uint32_t)len + (p[1] & 0x10 ? 8 : 0);
	memcpy(bytes, &h, sizeof(h));
	memcpy(bytes + sizeof(h), p + 4, len);
	whole = sizeof(h) + len;
	if (p[1] & 0x20)
		whole -= MIN(whole - 1, (size_t)5);
	if (!send_with(sock, bytes, whole, p[2], p[1] >> 6))
		return NULL;
	return p + 4 + len;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const uint8_t *p = data, *end = data + size;
	uint8_t *m;
	int pair[2];

	begin_process();
	check(ftruncate(mem_fd, 0) == 0 && ftruncate(mem_fd, MEM_LEN) == 0);
	m = mmap(NULL, MEM_LEN, PROT_READ | PROT_WRITE, MAP_SHARED, mem_fd, 0);
	check(m != MAP_FAILED);
	put_ring(m);
	check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) == 0);
	closed = false;
	session_open(&session, pair[0]);
	for (unsigned i = 0; i < MESSAGES && p && !closed; i++) {
		p = one_message(pair[1], p, end);
		turn();
		drain(pair[1]);
	}
	close(pair[1]);
	while (!closed)
		turn();
	check(!session.demand);
	session_resume(&session);
	munmap(m, MEM_LEN);
	look_at_fds();
	return 0;
}
