/* SPDX-License-Identifier: MIT */
/*
 * test_msg.c - receiving and checking vhost-user messages: in pieces, with wrong sizes, with too many
 * descriptors
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/math.h"
#include "export/vhost-user-blk/msg.h"

static int sock[2]; /* [0]: the front end; [1]: ours */
static struct umsg m;
static struct varve_error err;

static unsigned open_fds(void)
{
	unsigned n = 0;

	for (int fd = 0; fd < 256; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

static unsigned fds_before;

static int setup(void **state)
{
	(void)state;
	memset(&m, 0, sizeof(m));
	memset(&err, 0, sizeof(err));
	fds_before = open_fds();
	return socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sock);
}

static int teardown(void **state)
{
	(void)state;
	umsg_reset(&m);
	if (sock[0] >= 0)
		close(sock[0]);
	close(sock[1]);
	return open_fds() == fds_before ? 0 : -1; /* whatever happened, no descriptor is left */
}

/* Sends bytes with nr copies of an eventfd attached. */
static void send_with_fds(const void *bytes, size_t len, unsigned nr)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(64 * sizeof(int))];
	} control;
	struct iovec iov = { (void *)bytes, len };
	struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1 };
	int fds[64], one = eventfd(0, EFD_CLOEXEC);

	assert_true(one >= 0 && nr <= 64);
	if (nr) {
		mh.msg_control = &control;
		mh.msg_controllen = CMSG_SPACE(nr * sizeof(int));
		memset(&control, 0, sizeof(control));
		*CMSG_FIRSTHDR(&mh) = (struct cmsghdr){ .cmsg_len = CMSG_LEN(nr * sizeof(int)),
							.cmsg_level = SOL_SOCKET,
							.cmsg_type = SCM_RIGHTS };
		for (unsigned i = 0; i < nr; i++)
			fds[i] = one;
		memcpy(CMSG_DATA(CMSG_FIRSTHDR(&mh)), fds, nr * sizeof(int));
	}
	assert_int_equal(sendmsg(sock[0], &mh, 0), len);
	close(one);
}

struct wire {
	struct umsg_header header;
	uint8_t payload[512];
};

static struct wire wire(uint32_t request, const void *payload, uint32_t len)
{
	struct wire w = { .header = { request, UMSG_VERSION, len } };

	memcpy(w.payload, payload, len);
	return w;
}

/* Sends one message whole and receives it; returns what the check says. */
static int exchange(uint32_t request, const void *payload, uint32_t len, unsigned nr_fds)
{
	struct wire w = wire(request, payload, len);

	umsg_reset(&m);
	send_with_fds(&w, sizeof(w.header) + len, nr_fds);
	assert_int_equal(umsg_recv(&m, sock[1], &err), 1);
	assert_int_equal(m.nr_fds, nr_fds);
	return umsg_check(&m, &err);
}

static void a_message_is_received_in_pieces_of_one_byte(void **state)
{
	struct umsg_vring_state st = { 3, 256 };
	struct wire w = wire(UMSG_SET_VRING_NUM, &st, sizeof(st));
	const size_t len = sizeof(w.header) + sizeof(st);

	(void)state;
	for (size_t i = 0; i < len; i++) {
		assert_int_equal(umsg_recv(&m, sock[1], &err), -EAGAIN);
		assert_int_equal(write(sock[0], (char *)&w + i, 1), 1);
	}
	assert_int_equal(umsg_recv(&m, sock[1], &err), 1);
	assert_int_equal(umsg_check(&m, &err), 0);
	assert_int_equal(m.payload.state.index, 3);
	assert_int_equal(m.payload.state.num, 256);
	assert_int_equal(umsg_ring(&m), 3);
}

static void two_messages_at_once_stay_two(void **state)
{
	struct umsg_header h[2] = { { UMSG_SET_OWNER, UMSG_VERSION, 0 },
				    { UMSG_GET_FEATURES, UMSG_VERSION, 0 } };

	(void)state;
	assert_int_equal(write(sock[0], h, sizeof(h)), sizeof(h));
	assert_int_equal(umsg_recv(&m, sock[1], &err), 1);
	assert_int_equal(m.header.request, UMSG_SET_OWNER);
	umsg_reset(&m);
	assert_int_equal(umsg_recv(&m, sock[1], &err), 1);
	assert_int_equal(m.header.request, UMSG_GET_FEATURES);
	umsg_reset(&m);
	assert_int_equal(umsg_recv(&m, sock[1], &err), -EAGAIN);
}

static void the_end_is_told_from_an_end_in_the_middle(void **state)
{
	struct umsg_header h = { UMSG_SET_FEATURES, UMSG_VERSION, 8 };

	(void)state;
	assert_int_equal(write(sock[0], &h, sizeof(h)), sizeof(h));
	assert_int_equal(umsg_recv(&m, sock[1], &err), -EAGAIN);
	close(sock[0]);
	sock[0] = -1;
	assert_int_equal(umsg_recv(&m, sock[1], &err), -ECONNRESET);
	assert_non_null(strstr(err.message, "12 bytes"));
	umsg_reset(&m);
	assert_int_equal(umsg_recv(&m, sock[1], &err), 0);
}

static void headers_that_cannot_be_are_refused_before_the_payload(void **state)
{
	static const struct umsg_header bad[] = {
		{ UMSG_SET_FEATURES, 0, 8 },
		{ UMSG_SET_FEATURES, 2, 8 },
		{ UMSG_SET_FEATURES, UMSG_VERSION | UMSG_REPLY, 8 },
		{ UMSG_SET_FEATURES, UMSG_VERSION, sizeof(union umsg_payload) + 1 },
		{ UMSG_SET_MEM_TABLE, UMSG_VERSION, UINT32_MAX },
		{ 99, UMSG_VERSION, 0x80000000 },
	};

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(bad); i++) {
		umsg_reset(&m);
		assert_int_equal(write(sock[0], &bad[i], sizeof(bad[i])), sizeof(bad[i]));
		assert_int_equal(umsg_recv(&m, sock[1], &err), -EPROTO);
	}
}

/* Every request that is served, with each size up to the largest: exactly one is right. */
static void payloads_of_another_size_are_refused(void **state)
{
	static const struct {
		uint32_t request, len;
	} right[] = {
		{ UMSG_GET_FEATURES, 0 },
		{ UMSG_SET_FEATURES, 8 },
		{ UMSG_SET_OWNER, 0 },
		{ UMSG_RESET_OWNER, 0 },
		{ UMSG_SET_VRING_NUM, 8 },
		{ UMSG_SET_VRING_ADDR, 40 },
		{ UMSG_SET_VRING_BASE, 8 },
		{ UMSG_GET_VRING_BASE, 8 },
		{ UMSG_GET_PROTOCOL_FEATURES, 0 },
		{ UMSG_SET_PROTOCOL_FEATURES, 8 },
		{ UMSG_GET_QUEUE_NUM, 0 },
		{ UMSG_SET_VRING_ENABLE, 8 },
		{ UMSG_RESET_DEVICE, 0 },
		{ UMSG_GET_CONFIG, 12 },
		{ UMSG_SET_CONFIG, 12 },
		{ UMSG_SET_MEM_TABLE, 8 },
		{ UMSG_GET_MAX_MEM_SLOTS, 0 },
		{ UMSG_REM_MEM_REG, 40 },
		{ UMSG_SET_STATUS, 8 },
		{ UMSG_GET_STATUS, 0 },
		{ UMSG_CHECK_DEVICE_STATE, 0 },
	};
	uint8_t zeroes[sizeof(union umsg_payload)] = { 0 };

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(right); i++) {
		for (uint32_t len = 0; len <= sizeof(zeroes); len++) {
			int ret = exchange(right[i].request, zeroes, len, 0);

			if ((ret == 0) != (len == right[i].len))
				fail_msg("%s with %u bytes: %d %s", umsg_name(right[i].request), len, ret,
					 err.message);
		}
	}
}

/* The same for those that bring a descriptor, which is counted too. */
static void payloads_beside_a_descriptor_have_one_size(void **state)
{
	static const struct {
		uint32_t request, len;
	} right[] = {
		{ UMSG_SET_LOG_BASE, 16 },	    { UMSG_SET_LOG_FD, 0 },   { UMSG_SET_BACKEND_REQ_FD, 0 },
		{ UMSG_SET_DEVICE_STATE_FD, 8 }, { UMSG_ADD_MEM_REG, 40 }, { UMSG_REM_MEM_REG, 40 },
	};
	uint8_t zeroes[64] = { 0 };

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(right); i++) {
		for (uint32_t len = 0; len <= sizeof(zeroes); len++) {
			int ret = exchange(right[i].request, zeroes, len, 1);

			if ((ret == 0) != (len == right[i].len))
				fail_msg("%s with %u bytes: %d %s", umsg_name(right[i].request), len, ret,
					 err.message);
		}
		assert_int_equal(exchange(right[i].request, zeroes, right[i].len, 2), -EPROTO);
		assert_int_equal(exchange(right[i].request, zeroes, right[i].len, 0),
				 right[i].request == UMSG_REM_MEM_REG ? 0 : -EPROTO);
	}
	/* As described, or as C compilers pad it. */
	for (uint32_t len = 0; len <= sizeof(zeroes); len++) {
		bool good = len == 20 || len == 24;

		assert_int_equal(exchange(UMSG_GET_INFLIGHT_FD, zeroes, len, 0), good ? 0 : -EPROTO);
		assert_int_equal(exchange(UMSG_SET_INFLIGHT_FD, zeroes, len, 1), good ? 0 : -EPROTO);
		assert_int_equal(exchange(UMSG_SET_INFLIGHT_FD, zeroes, len, 0), -EPROTO);
	}
}

static void lengths_inside_a_payload_must_agree_with_it(void **state)
{
	struct umsg_config c = { .len = 60 };
	struct umsg_mem_table t = { .nr_regions = 2 };

	(void)state;
	assert_int_equal(exchange(UMSG_GET_CONFIG, &c, 12 + 60, 0), 0);
	assert_int_equal(exchange(UMSG_GET_CONFIG, &c, 12 + 59, 0), -EPROTO);
	assert_int_equal(exchange(UMSG_GET_CONFIG, &c, 12 + 61, 0), -EPROTO);
	c.len = UINT32_MAX;
	assert_int_equal(exchange(UMSG_GET_CONFIG, &c, 11, 0), -EPROTO);
	assert_int_equal(exchange(UMSG_GET_CONFIG, &c, 12, 0), -EPROTO);
	c.len = UMSG_CONFIG_MAX;
	assert_int_equal(exchange(UMSG_GET_CONFIG, &c, 12 + 256, 0), 0);

	assert_int_equal(exchange(UMSG_SET_MEM_TABLE, &t, 8 + 2 * 32, 2), 0);
	assert_int_equal(exchange(UMSG_SET_MEM_TABLE, &t, 8 + 3 * 32, 2), -EPROTO);
	t.nr_regions = 8;
	assert_int_equal(exchange(UMSG_SET_MEM_TABLE, &t, 8 + 8 * 32, 8), 0);
	t.nr_regions = 9;
	assert_int_equal(exchange(UMSG_SET_MEM_TABLE, &t, 8 + 8 * 32, 8), -EPROTO);
	t.nr_regions = 0x08000000; /* times 32 this is 2^32: nothing, if computed in 32 bits */
	assert_int_equal(exchange(UMSG_SET_MEM_TABLE, &t, 8, 0), -EPROTO);
}

static void descriptors_come_exactly_where_they_belong(void **state)
{
	struct umsg_mem_table t = { .nr_regions = 2 };
	uint64_t u = 1;

	(void)state;
	assert_int_equal(exchange(UMSG_SET_VRING_KICK, &u, 8, 1), 0);
	assert_int_equal(umsg_ring(&m), 1);
	assert_int_equal(exchange(UMSG_SET_VRING_KICK, &u, 8, 0), -EPROTO);
	assert_int_equal(exchange(UMSG_SET_VRING_CALL, &u, 8, 2), -EPROTO);
	u = 1 | UMSG_VRING_NO_FD;
	assert_int_equal(exchange(UMSG_SET_VRING_CALL, &u, 8, 0), 0);
	assert_int_equal(umsg_ring(&m), 1);
	assert_int_equal(exchange(UMSG_SET_VRING_CALL, &u, 8, 1), -EPROTO);
	u = 0x200;
	assert_int_equal(exchange(UMSG_SET_VRING_ERR, &u, 8, 1), -EPROTO);
	u = UINT64_C(1) << 32;
	assert_int_equal(exchange(UMSG_SET_VRING_ERR, &u, 8, 1), -EPROTO);
	assert_int_equal(exchange(UMSG_SET_MEM_TABLE, &t, 8 + 64, 1), -EPROTO);
	assert_int_equal(exchange(UMSG_SET_MEM_TABLE, &t, 8 + 64, 3), -EPROTO);
	/* CVE-2022-0669 and its kin: descriptors with messages that have none are closed, see teardown(). */
	assert_int_equal(exchange(UMSG_GET_FEATURES, &u, 0, 8), -EPROTO);
	assert_int_equal(exchange(UMSG_SET_FEATURES, &u, 8, 1), -EPROTO);
	assert_int_equal(exchange(UMSG_GET_CONFIG, &(struct umsg_config){ 0 }, 12, 3), -EPROTO);
}

static void more_descriptors_than_any_message_has_end_it(void **state)
{
	static const unsigned nr[] = { 9, 10, 16, 64 };

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(nr); i++) {
		struct wire w = wire(UMSG_GET_FEATURES, "", 0);

		umsg_reset(&m);
		send_with_fds(&w, sizeof(w.header), nr[i]);
		assert_int_equal(umsg_recv(&m, sock[1], &err), -EPROTO);
		assert_non_null(strstr(err.message, "descriptors"));
	}
}

/* Eight with every byte of one message. */
static void descriptors_are_counted_over_the_whole_message(void **state)
{
	struct wire w = wire(UMSG_GET_FEATURES, "", 0);
	int ret = -EAGAIN;

	(void)state;
	send_with_fds(&w, 1, 8);
	assert_int_equal(umsg_recv(&m, sock[1], &err), -EAGAIN);
	assert_int_equal(m.nr_fds, 8);
	send_with_fds((char *)&w + 1, 1, 8);
	ret = umsg_recv(&m, sock[1], &err);
	assert_int_equal(ret, -EPROTO);
	assert_int_equal(m.nr_fds, 8);
}

static void what_is_not_offered_is_refused_by_name(void **state)
{
	static const struct {
		uint32_t request;
		const char *name;
	} no[] = {
		{ 22, "IOTLB_MSG (22)" },    { 28, "POSTCOPY_ADVISE (28)" }, { 29, "POSTCOPY_LISTEN" },
		{ 30, "POSTCOPY_END" },	     { 35, "VRING_KICK (35)" },	     { 0, "request (0)" },
		{ 19, "request (19)" },	     { 44, "request (44)" },	     { UINT32_MAX, "request (" },
	};

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(no); i++) {
		uint64_t u = 0;

		assert_int_equal(exchange(no[i].request, &u, 8, 1), -ENOTSUP);
		if (!strstr(err.message, no[i].name))
			fail_msg("\"%s\" does not name %s", err.message, no[i].name);
	}
}

static void a_taken_descriptor_is_the_takers(void **state)
{
	uint64_t u = 0;
	int fd;

	(void)state;
	assert_int_equal(exchange(UMSG_SET_VRING_KICK, &u, 8, 1), 0);
	fd = umsg_take_fd(&m, 0);
	umsg_reset(&m);
	assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
	close(fd);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(a_message_is_received_in_pieces_of_one_byte),
		TEST(two_messages_at_once_stay_two),
		TEST(the_end_is_told_from_an_end_in_the_middle),
		TEST(headers_that_cannot_be_are_refused_before_the_payload),
		TEST(payloads_of_another_size_are_refused),
		TEST(payloads_beside_a_descriptor_have_one_size),
		TEST(lengths_inside_a_payload_must_agree_with_it),
		TEST(descriptors_come_exactly_where_they_belong),
		TEST(more_descriptors_than_any_message_has_end_it),
		TEST(descriptors_are_counted_over_the_whole_message),
		TEST(what_is_not_offered_is_refused_by_name),
		TEST(a_taken_descriptor_is_the_takers),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
