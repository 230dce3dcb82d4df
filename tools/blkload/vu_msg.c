/* SPDX-License-Identifier: MIT */
/*
 * vu_msg.c - vhost-user messages over a unix socket
 *
 * Owns:    nothing.
 * Assumes: one thread at a time talks on a socket.
 * Never:   blocks past the deadline that it was given.
 */
#include "vu_msg.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

const char *vu_request_name(uint32_t request)
{
	static const char *const names[] = {
		[VU_GET_FEATURES] = "GET_FEATURES",
		[VU_SET_FEATURES] = "SET_FEATURES",
		[VU_SET_OWNER] = "SET_OWNER",
		[VU_RESET_OWNER] = "RESET_OWNER",
		[VU_SET_MEM_TABLE] = "SET_MEM_TABLE",
		[VU_SET_LOG_BASE] = "SET_LOG_BASE",
		[VU_SET_LOG_FD] = "SET_LOG_FD",
		[VU_SET_VRING_NUM] = "SET_VRING_NUM",
		[VU_SET_VRING_ADDR] = "SET_VRING_ADDR",
		[VU_SET_VRING_BASE] = "SET_VRING_BASE",
		[VU_GET_VRING_BASE] = "GET_VRING_BASE",
		[VU_SET_VRING_KICK] = "SET_VRING_KICK",
		[VU_SET_VRING_CALL] = "SET_VRING_CALL",
		[VU_SET_VRING_ERR] = "SET_VRING_ERR",
		[VU_GET_PROTOCOL_FEATURES] = "GET_PROTOCOL_FEATURES",
		[VU_SET_PROTOCOL_FEATURES] = "SET_PROTOCOL_FEATURES",
		[VU_GET_QUEUE_NUM] = "GET_QUEUE_NUM",
		[VU_SET_VRING_ENABLE] = "SET_VRING_ENABLE",
		[VU_SET_BACKEND_REQ_FD] = "SET_BACKEND_REQ_FD",
		[VU_GET_CONFIG] = "GET_CONFIG",
		[VU_SET_CONFIG] = "SET_CONFIG",
		[VU_GET_INFLIGHT_FD] = "GET_INFLIGHT_FD",
		[VU_SET_INFLIGHT_FD] = "SET_INFLIGHT_FD",
		[VU_RESET_DEVICE] = "RESET_DEVICE",
		[VU_GET_MAX_MEM_SLOTS] = "GET_MAX_MEM_SLOTS",
		[VU_ADD_MEM_REG] = "ADD_MEM_REG",
		[VU_REM_MEM_REG] = "REM_MEM_REG",
		[VU_SET_STATUS] = "SET_STATUS",
		[VU_GET_STATUS] = "GET_STATUS",
		[VU_SET_DEVICE_STATE_FD] = "SET_DEVICE_STATE_FD",
		[VU_CHECK_DEVICE_STATE] = "CHECK_DEVICE_STATE",
	};

	if (request < sizeof(names) / sizeof(names[0]) && names[request])
		return names[request];
	return "request ?";
}

int vu_sock_connect(const char *path, struct vu_err *err)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	size_t len = strlen(path);
	int sock, ret;

	if (len >= sizeof(addr.sun_path))
		return vu_fail(err, -ENAMETOOLONG,
			       "%s: a socket path may have at most %zu bytes, this one has %zu",
			       path, sizeof(addr.sun_path) - 1, len);
	memcpy(addr.sun_path, path, len + 1);

	sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (sock < 0)
		return vu_fail(err, -errno, "cannot make a unix socket: %s", strerror(errno));
	if (connect(sock, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
		ret = -errno;
		close(sock);
		return vu_fail(err, ret, "%s: cannot connect: %s", path, strerror(-ret));
	}
	return sock;
}

/* Wait until sock is ready for events. */
static int wait_ready(int sock, short events, uint64_t deadline_ns, struct vu_err *err)
{
	struct pollfd p = { .fd = sock, .events = events };

	for (;;) {
		int n = poll(&p, 1, vu_ms_left(deadline_ns));

		if (n > 0)
			return 0;
		if (n == 0)
			return vu_fail(err, -ETIMEDOUT, "the back end did not %s in time",
				       events & POLLIN ? "answer" : "take our message");
		if (errno != EINTR)
			return vu_fail(err, -errno, "poll: %s", strerror(errno));
	}
}

int vu_send_bytes(int sock, const void *bytes, size_t len, const int *fds, unsigned nr_fds,
		  uint64_t deadline_ns, struct vu_err *err)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(VU_MAX_FDS * sizeof(int))];
	} control;
	size_t done = 0;
	int ret;

	if (nr_fds > VU_MAX_FDS)
		return vu_fail(err, -E2BIG, "%u descriptors in one message, at most %u fit",
			       nr_fds, VU_MAX_FDS);
	while (done < len) {
		struct iovec iov = { (char *)bytes + done, len - done };
		struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1 };
		ssize_t n;

		if (done == 0 && nr_fds > 0) {
			struct cmsghdr *c;

			memset(&control, 0, sizeof(control));
			mh.msg_control = &control;
			mh.msg_controllen = CMSG_SPACE(nr_fds * sizeof(int));
			c = CMSG_FIRSTHDR(&mh);
			c->cmsg_level = SOL_SOCKET;
			c->cmsg_type = SCM_RIGHTS;
			c->cmsg_len = CMSG_LEN(nr_fds * sizeof(int));
			memcpy(CMSG_DATA(c), fds, nr_fds * sizeof(int));
		}
		n = sendmsg(sock, &mh, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n >= 0) {
			done += (size_t)n;
		} else if (errno == EAGAIN) {
			ret = wait_ready(sock, POLLOUT, deadline_ns, err);
			if (ret < 0)
				return ret;
		} else if (errno != EINTR) {
			return vu_fail(err, -errno, "cannot send to the back end: %s",
				       strerror(errno));
		}
	}
	return 0;
}

int vu_send(int sock, uint32_t request, uint32_t flags, const void *payload, uint32_t len,
	    const int *fds, unsigned nr_fds, uint64_t deadline_ns, struct vu_err *err)
{
	struct vu_hdr hdr = { request, flags, len };
	uint8_t bytes[sizeof(hdr) + VU_MAX_PAYLOAD];

	if (len > VU_MAX_PAYLOAD)
		return vu_fail(err, -E2BIG, "a payload of %u bytes, at most %u are sent", len,
			       VU_MAX_PAYLOAD);
	memcpy(bytes, &hdr, sizeof(hdr));
	if (len > 0)
		memcpy(bytes + sizeof(hdr), payload, len);
	return vu_send_bytes(sock, bytes, sizeof(hdr) + len, fds, nr_fds, deadline_ns, err);
}

/* Keep the descriptors that came with a piece of a message; those beyond our room are closed. */
static void take_fds(struct vu_msg *m, struct msghdr *mh)
{
	struct cmsghdr *c;

	for (c = CMSG_FIRSTHDR(mh); c; c = CMSG_NXTHDR(mh, c)) {
		size_t nr, i;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		nr = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (i = 0; i < nr; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
			if (m->nr_fds < VU_MAX_FDS)
				m->fds[m->nr_fds++] = fd;
			else
				close(fd);
		}
	}
}

/* Receive exactly len bytes of message m. */
static int recv_exactly(int sock, struct vu_msg *m, void *buf, size_t len, bool first,
			uint64_t deadline_ns, struct vu_err *err)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(VU_MAX_FDS * sizeof(int))];
	} control;
	size_t done = 0;

	while (done < len) {
		struct iovec iov = { (char *)buf + done, len - done };
		struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
				     .msg_controllen = sizeof(control) };
		ssize_t n = recvmsg(sock, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

		if (n > 0) {
			take_fds(m, &mh);
			done += (size_t)n;
		} else if (n == 0) {
			return vu_fail(err, -ECONNRESET, "the back end closed the connection%s",
				       first && done == 0 ? "" : " in the middle of a message");
		} else if (errno == EAGAIN) {
			int ret = wait_ready(sock, POLLIN, deadline_ns, err);

			if (ret < 0)
				return ret;
		} else if (errno != EINTR) {
			return vu_fail(err, -errno, "cannot receive from the back end: %s",
				       strerror(errno));
		}
	}
	return 0;
}

int vu_recv(int sock, struct vu_msg *m, uint64_t deadline_ns, struct vu_err *err)
{
	int ret;

	m->nr_fds = 0;
	ret = recv_exactly(sock, m, &m->hdr, sizeof(m->hdr), true, deadline_ns, err);
	if (ret == 0 && m->hdr.size > VU_MAX_PAYLOAD)
		ret = vu_fail(err, -EPROTO,
			      "the answer to %s announces %u bytes of payload, at most %u expected",
			      vu_request_name(m->hdr.request), m->hdr.size, VU_MAX_PAYLOAD);
	if (ret == 0)
		ret = recv_exactly(sock, m, m->bytes, m->hdr.size, false, deadline_ns, err);
	if (ret < 0)
		vu_msg_close_fds(m);
	return ret;
}

void vu_msg_close_fds(struct vu_msg *m)
{
	while (m->nr_fds > 0)
		close(m->fds[--m->nr_fds]);
}
