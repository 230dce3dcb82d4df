/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/msg.c - receiving messages and checking their form
 *
 * Owns:    nothing beyond a message's descriptors while it is being received.
 * Assumes: see msg.h.
 * Never:   reads more than one message ahead, or more bytes than its payload may have.
 */
#include "export/vhost-user-blk/msg.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/error.h"
#include "base/math.h"
#include "export/vhost-user-blk/strange.h"

enum form {
	FORM_UNKNOWN, /* not served here */
	FORM_EMPTY,
	FORM_U64,
	FORM_STATE,
	FORM_ADDR,
	FORM_MEM,
	FORM_CONFIG,
	FORM_RING_FD, /* u64 with a ring, a flag, and one descriptor unless the flag is set */
	FORM_FD,      /* nothing but a descriptor */
	FORM_LOG,
	FORM_ADD_REGION,
	FORM_REM_REGION, /* some send a descriptor with it, which is closed unused */
	FORM_ASK_INFLIGHT,
	FORM_SET_INFLIGHT,
	FORM_TRANSFER,
};

static const struct {
	const char *name;
	enum form form;
} requests[] = {
	[UMSG_GET_FEATURES] = { "GET_FEATURES", FORM_EMPTY },
	[UMSG_SET_FEATURES] = { "SET_FEATURES", FORM_U64 },
	[UMSG_SET_OWNER] = { "SET_OWNER", FORM_EMPTY },
	[UMSG_RESET_OWNER] = { "RESET_OWNER", FORM_EMPTY },
	[UMSG_SET_MEM_TABLE] = { "SET_MEM_TABLE", FORM_MEM },
	[UMSG_SET_LOG_BASE] = { "SET_LOG_BASE", FORM_LOG },
	[UMSG_SET_LOG_FD] = { "SET_LOG_FD", FORM_FD },
	[UMSG_SET_VRING_NUM] = { "SET_VRING_NUM", FORM_STATE },
	[UMSG_SET_VRING_ADDR] = { "SET_VRING_ADDR", FORM_ADDR },
	[UMSG_SET_VRING_BASE] = { "SET_VRING_BASE", FORM_STATE },
	[UMSG_GET_VRING_BASE] = { "GET_VRING_BASE", FORM_STATE },
	[UMSG_SET_VRING_KICK] = { "SET_VRING_KICK", FORM_RING_FD },
	[UMSG_SET_VRING_CALL] = { "SET_VRING_CALL", FORM_RING_FD },
	[UMSG_SET_VRING_ERR] = { "SET_VRING_ERR", FORM_RING_FD },
	[UMSG_GET_PROTOCOL_FEATURES] = { "GET_PROTOCOL_FEATURES", FORM_EMPTY },
	[UMSG_SET_PROTOCOL_FEATURES] = { "SET_PROTOCOL_FEATURES", FORM_U64 },
	[UMSG_GET_QUEUE_NUM] = { "GET_QUEUE_NUM", FORM_EMPTY },
	[UMSG_SET_VRING_ENABLE] = { "SET_VRING_ENABLE", FORM_STATE },
	[UMSG_SET_BACKEND_REQ_FD] = { "SET_BACKEND_REQ_FD", FORM_FD },
	[22] = { "IOTLB_MSG", FORM_UNKNOWN },
	[UMSG_GET_CONFIG] = { "GET_CONFIG", FORM_CONFIG },
	[UMSG_SET_CONFIG] = { "SET_CONFIG", FORM_CONFIG },
	[28] = { "POSTCOPY_ADVISE", FORM_UNKNOWN },
	[29] = { "POSTCOPY_LISTEN", FORM_UNKNOWN },
	[30] = { "POSTCOPY_END", FORM_UNKNOWN },
	[UMSG_GET_INFLIGHT_FD] = { "GET_INFLIGHT_FD", FORM_ASK_INFLIGHT },
	[UMSG_SET_INFLIGHT_FD] = { "SET_INFLIGHT_FD", FORM_SET_INFLIGHT },
	[UMSG_RESET_DEVICE] = { "RESET_DEVICE", FORM_EMPTY },
	[35] = { "VRING_KICK", FORM_UNKNOWN },
	[UMSG_GET_MAX_MEM_SLOTS] = { "GET_MAX_MEM_SLOTS", FORM_EMPTY },
	[UMSG_ADD_MEM_REG] = { "ADD_MEM_REG", FORM_ADD_REGION },
	[UMSG_REM_MEM_REG] = { "REM_MEM_REG", FORM_REM_REGION },
	[UMSG_SET_STATUS] = { "SET_STATUS", FORM_U64 },
	[UMSG_GET_STATUS] = { "GET_STATUS", FORM_EMPTY },
	[UMSG_SET_DEVICE_STATE_FD] = { "SET_DEVICE_STATE_FD", FORM_TRANSFER },
	[UMSG_CHECK_DEVICE_STATE] = { "CHECK_DEVICE_STATE", FORM_EMPTY },
};

static_assert(UMSG_REQUESTS <= ARRAY_LEN(requests), "every request that is served has a form");

const char *umsg_name(uint32_t request)
{
	if (request < ARRAY_LEN(requests) && requests[request].name)
		return requests[request].name;
	return "request";
}

static enum form form_of(uint32_t request)
{
	return request < ARRAY_LEN(requests) ? requests[request].form : FORM_UNKNOWN;
}

void umsg_reset(struct umsg *m)
{
	for (unsigned i = 0; i < m->nr_fds; i++) {
		if (m->fds[i] >= 0)
			close(m->fds[i]);
	}
	m->nr_fds = 0;
	m->have = 0;
}

int umsg_take_fd(struct umsg *m, unsigned i)
{
	int fd;

	assert(i < m->nr_fds);
	fd = m->fds[i];
	m->fds[i] = -1;
	return fd;
}

/* ---- receiving ---- */

/* Keeps the descriptors of one recvmsg(), if they are fit to be kept; else they are closed, and told in words. */
static int take_fds(struct umsg *m, struct msghdr *mh, struct varve_error *err)
{
	bool lost = mh->msg_flags & MSG_CTRUNC; /* the kernel has closed those */
	bool strange = false;
	size_t nr_came = 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(mh); c; c = CMSG_NXTHDR(mh, c)) {
		size_t nr;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		nr = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		nr_came += nr;
		for (size_t i = 0; i < nr; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
			if (fd_is_strange(fd)) {
				fd_close_strange(fd, m->debt);
				strange = true;
			} else if (m->nr_fds < UMSG_FDS_MAX) {
				m->fds[m->nr_fds++] = fd;
			} else {
				close(fd);
				lost = true;
			}
		}
	}
	if (strange)
		return varve_error_set(err, -EPROTO,
				       "a descriptor came that is neither memory, nor an eventfd, a pipe or a unix socket, and might "
				       "make us wait");
	/* There is room for as many as a message may carry. If fewer came, and not all, it was we who could not take more. */
	if (mh->msg_flags & MSG_CTRUNC && nr_came < UMSG_FDS_MAX)
		return varve_error_set(err, -EMFILE,
				       "the descriptors of a message cannot be taken: this process has as many open as it may (ulimit -n)");
	return !lost ? 0 : varve_error_set(err, -EPROTO,
					   "a message came with more than the %d descriptors that one may carry",
					   UMSG_FDS_MAX);
}

/* Receives up to len bytes and whatever descriptors come with them. Bytes, or as umsg_recv(). */
static ssize_t recv_part(struct umsg *m, int sock, void *buf, size_t len, struct varve_error *err)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(UMSG_FDS_MAX * sizeof(int))];
	} control;
	struct iovec iov = { buf, len };
	struct msghdr mh = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	ssize_t n;
	int ret;

	do
		n = recvmsg(sock, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
		return -EAGAIN;
	if (n < 0)
		return varve_error_errno(err, -errno, "cannot receive");
	ret = take_fds(m, &mh, err);
	if (ret < 0)
		return ret;
	if (n == 0 && m->have)
		return varve_error_set(
			err, -ECONNRESET,
			"the front end closed the connection inside a message (%zu bytes of it came)",
			m->have);
	return n;
}

/* The header is whole: is it one to read on after? */
static int check_header(const struct umsg_header *h, struct varve_error *err)
{
	if ((h->flags & UMSG_VERSION_MASK) != UMSG_VERSION)
		return varve_error_set(err, -EPROTO, "%s (%" PRIu32 "): protocol version %u, 1 is supported",
				       umsg_name(h->request), h->request, h->flags & UMSG_VERSION_MASK);
	if (h->flags & UMSG_REPLY)
		return varve_error_set(err, -EPROTO,
				       "%s (%" PRIu32 ") has the reply flag, but nothing was asked",
				       umsg_name(h->request), h->request);
	if (h->size > sizeof(union umsg_payload))
		return varve_error_set(
			err, -EPROTO, "%s (%" PRIu32 ") announces %" PRIu32 " bytes, at most %zu fit",
			umsg_name(h->request), h->request, h->size, sizeof(union umsg_payload));
	return 0;
}

int umsg_recv(struct umsg *m, int sock, struct varve_error *err)
{
	const size_t header_len = sizeof(m->header);
	ssize_t n;
	int ret;

	while (m->have < header_len) {
		n = recv_part(m, sock, (char *)&m->header + m->have, header_len - m->have, err);
		if (n <= 0)
			return (int)n;
		m->have += (size_t)n;
	}
	ret = check_header(&m->header, err);
	if (ret < 0)
		return ret;
	while (m->have < header_len + m->header.size) {
		size_t at = m->have - header_len;

		n = recv_part(m, sock, (char *)&m->payload + at, m->header.size - at, err);
		if (n < 0)
			return (int)n;
		m->have += (size_t)n;
	}
	return 1;
}

/* ---- checking ---- */

/* What the payload must measure, given what it says of itself. It was received, but perhaps not that far. */
static uint64_t payload_len(const struct umsg *m, enum form form)
{
	switch (form) {
	case FORM_U64:
	case FORM_RING_FD:
		return sizeof(m->payload.u64);
	case FORM_STATE:
		return sizeof(m->payload.state);
	case FORM_ADDR:
		return sizeof(m->payload.addr);
	case FORM_MEM:
		if (m->header.size < UMSG_MEM_HEADER_LEN)
			return UMSG_MEM_HEADER_LEN;
		return UMSG_MEM_HEADER_LEN + (uint64_t)m->payload.mem.nr_regions * sizeof(struct umsg_region);
	case FORM_CONFIG:
		if (m->header.size < UMSG_CONFIG_HEADER_LEN)
			return UMSG_CONFIG_HEADER_LEN;
		return UMSG_CONFIG_HEADER_LEN + (uint64_t)m->payload.config.len;
	case FORM_LOG:
		return sizeof(m->payload.log);
	case FORM_ADD_REGION:
	case FORM_REM_REGION:
		return sizeof(m->payload.mem_region);
	case FORM_ASK_INFLIGHT:
	case FORM_SET_INFLIGHT:
		/* The specification describes 20 bytes; as a C structure these are 24. */
		return m->header.size == sizeof(m->payload.inflight) ? m->header.size : UMSG_INFLIGHT_LEN;
	case FORM_TRANSFER:
		return sizeof(m->payload.transfer);
	case FORM_FD:
	case FORM_EMPTY:
	case FORM_UNKNOWN:
		break;
	}
	return 0;
}

static unsigned fds_wanted(const struct umsg *m, enum form form)
{
	switch (form) {
	case FORM_MEM:
		return m->payload.mem.nr_regions;
	case FORM_RING_FD:
		return !(m->payload.u64 & UMSG_VRING_NO_FD);
	case FORM_REM_REGION:
		return m->nr_fds == 1;
	case FORM_FD:
	case FORM_LOG:
	case FORM_ADD_REGION:
	case FORM_SET_INFLIGHT:
	case FORM_TRANSFER:
		return 1;
	default:
		return 0;
	}
}

int umsg_check(const struct umsg *m, struct varve_error *err)
{
	uint32_t request = m->header.request;
	enum form form = form_of(request);
	const char *name = umsg_name(request);

	if (form == FORM_UNKNOWN)
		return varve_error_set(err, -ENOTSUP, "%s (%" PRIu32 ") was sent, which is not offered", name,
				       request);
	if (m->header.size != payload_len(m, form))
		return varve_error_set(err, -EPROTO,
				       "%s has %" PRIu32 " bytes, not the %" PRIu64 " that belong to it",
				       name, m->header.size, payload_len(m, form));
	if (m->nr_fds != fds_wanted(m, form))
		return varve_error_set(err, -EPROTO, "%s came with %u descriptors instead of %u", name,
				       m->nr_fds, fds_wanted(m, form));
	if (form == FORM_RING_FD && m->payload.u64 & ~(uint64_t)(UMSG_VRING_INDEX | UMSG_VRING_NO_FD))
		return varve_error_set(err, -EPROTO, "%s: unknown bits in 0x%" PRIx64, name, m->payload.u64);
	return 0;
}

int64_t umsg_ring(const struct umsg *m)
{
	switch (form_of(m->header.request)) {
	case FORM_STATE:
		return m->payload.state.index;
	case FORM_ADDR:
		return m->payload.addr.index;
	case FORM_RING_FD:
		return (int64_t)(m->payload.u64 & UMSG_VRING_INDEX);
	default:
		return -1;
	}
}
