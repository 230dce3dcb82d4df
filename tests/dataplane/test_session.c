/* SPDX-License-Identifier: MIT */
/*
 * test_session.c - the conversation: messages at any time and in any order, and what is refused
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_config.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <cmocka.h>

#include "served.h"

#define BIT(n) (UINT64_C(1) << (n))

/* The message is refused, and the log says why; the session goes on. */
static void must_be_refused(struct vu_front *f, uint32_t request, const void *payload, uint32_t len,
			    const int *fds, unsigned nr_fds, const char *why)
{
	unsigned before = served_logged(why);

	assert_int_equal(vu_front_request(f, request, payload, len, fds, nr_fds), -EREMOTEIO);
	if (served_logged(why) == before)
		fail_msg("the log does not say \"%s\"", why);
}

/* ---- what may change while requests are in flight ---- */

/* GET_VRING_BASE is answered when the last request is done, not before. */
static void stopping_a_ring_waits_for_its_requests(void **state)
{
	struct vu_vring_state st = { .index = 0 };
	struct vu_msg reply;
	struct vu_front f;
	struct load l;

	(void)state;
	served_connect(&f, 0, 2);
	served_shut(0);
	offer_writes(&l, &f, 0, 1);
	served_wait_held(0, LOAD);
	send_only(&f, VU_GET_VRING_BASE, &st, sizeof(st));
	/* The other disk's front end talks on the same control queue meanwhile. */
	for (unsigned i = 0; i < 3; i++) {
		struct vu_front other;

		served_connect(&other, 1, 2);
		served_io_works(&other, 1);
		vu_front_close(&other);
		assert_false(has_answered(&f));
	}
	assert_int_equal(reap_writes(&l), 0);
	served_open(0);
	must(&f, vu_recv(f.sock, &reply, vu_deadline_ns(SERVED_MS), &f.err));
	assert_int_equal(reply.hdr.request, VU_GET_VRING_BASE);
	assert_int_equal(reply.state.index, 0);
	assert_int_equal(reply.state.num, vu_ring_end(&f.ring[0]));
	assert_int_equal(reap_writes(&l), LOAD); /* all visible when the answer comes */
	must(&f, vu_front_start_queue(&f, 0));
	check_writes(&l, 1);
	end_load(&l);
	vu_front_close(&f);
}

struct sharing {
	struct vu_front *f;
	pthread_t thread;
	_Atomic bool answered;
	int ret;
};

static void *share_memory(void *arg)
{
	struct sharing *s = arg;

	s->ret = vu_front_share_memory(s->f);
	s->answered = true;
	return NULL;
}

static void a_new_memory_table_waits_for_requests_in_flight(void **state)
{
	struct vu_front f, other;
	struct load l;

	(void)state;
	served_connect(&f, 0, 4);
	for (unsigned i = 0; i < 10; i++) {
		struct sharing s = { .f = &f };

		served_shut(0);
		offer_writes(&l, &f, i % 4, (uint8_t)i);
		served_wait_held(0, LOAD);
		assert_int_equal(pthread_create(&s.thread, NULL, share_memory, &s), 0);
		/* Several exchanges of another front end with the same control queue: no answer so far. */
		served_connect(&other, 1, 2);
		served_io_works(&other, i % 2);
		vu_front_close(&other);
		assert_false(s.answered);
		served_open(0);
		pthread_join(s.thread, NULL);
		must(&f, s.ret);
		assert_int_equal(reap_writes(&l), LOAD);
		check_writes(&l, (uint8_t)i);
		end_load(&l);
	}
	vu_front_close(&f);
}

static void the_call_descriptor_changes_while_requests_are_in_flight(void **state)
{
	struct vu_front f;
	struct load l;
	uint64_t q = 0, count;

	(void)state;
	served_connect(&f, 0, 1);
	for (unsigned i = 0; i < 20; i++) {
		int old = f.ring[0].call_fd, fresh = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

		served_shut(0);
		offer_writes(&l, &f, 0, (uint8_t)i);
		served_wait_held(0, LOAD);
		/* Answered at once: changing interrupts must not wait for a slow disk. */
		must(&f, vu_front_request(&f, VU_SET_VRING_CALL, &q, sizeof(q), &fresh, 1));
		f.ring[0].call_fd = fresh;
		(void)!read(old, &count, sizeof(count));
		served_open(0);
		wait_writes(&l, LOAD);
		assert_true(read(old, &count, sizeof(count)) < 0); /* nothing goes to the old one any more */
		close(old);
		end_load(&l);
	}
	/* No descriptor: the driver polls. */
	q = VU_VRING_NO_FD;
	must(&f, vu_front_request(&f, VU_SET_VRING_CALL, &q, sizeof(q), NULL, 0));
	f.ring[0].spin = true;
	served_io_works(&f, 0);
	vu_front_close(&f);
}

/* Without a kick: what the guest offered before anybody listened. */
static void requests_offered_before_the_start_are_served(void **state)
{
	struct vu_front_opts o = served_front_opts(0, 1);
	struct vu_front f;
	struct load l;
	uint64_t count;

	(void)state;
	must(&f, vu_front_init(&f, &o));
	must(&f, vu_front_connect(&f));
	must(&f, vu_front_negotiate(&f));
	must(&f, vu_front_share_memory(&f));
	offer_writes(&l, &f, 0, 9);
	(void)!read(f.ring[0].kick_fd, &count, sizeof(count)); /* the kick got lost */
	must(&f, vu_front_start_queue(&f, 0));
	wait_writes(&l, LOAD);
	check_writes(&l, 9);
	end_load(&l);
	vu_front_close(&f);
}

/* Kicks are not counted while the ring runs; a front end that looks afterwards must not think that one was missed. */
static void a_stopped_ring_leaves_no_kick_behind(void **state)
{
	const uint64_t one = 1;
	uint64_t count;
	struct vu_front f;

	(void)state;
	served_connect(&f, 0, 1);
	for (unsigned i = 0; i < 3; i++) {
		served_io_works(&f, 0);
		assert_int_equal(write(f.ring[0].kick_fd, &one, sizeof(one)), sizeof(one)); /* at least one, whatever it asked for */
		must(&f, vu_front_stop_queue(&f, 0, NULL));
		errno = 0;
		assert_int_equal(read(f.ring[0].kick_fd, &count, sizeof(count)), -1);
		assert_int_equal(errno, EAGAIN);
		must(&f, vu_front_start_queue(&f, 0));
	}
	served_io_works(&f, 0);
	vu_front_close(&f);
}

static void a_disabled_ring_holds_its_requests(void **state)
{
	struct vu_front f;
	struct load l;

	(void)state;
	served_connect(&f, 0, 2);
	must(&f, vu_front_enable_queue(&f, 0, false));
	offer_writes(&l, &f, 0, 3);
	/* Two exchanges through that thread, and another ring of it: the requests still lie there. */
	must(&f, vu_front_enable_queue(&f, 0, false));
	served_io_works(&f, 1);
	assert_int_equal(reap_writes(&l), 0);
	must(&f, vu_front_enable_queue(&f, 0, true));
	wait_writes(&l, LOAD);
	end_load(&l);
	vu_front_close(&f);
}

/* Rings of front ends that do not know of SET_VRING_ENABLE run as soon as they have a kick descriptor. */
static void without_protocol_features_rings_are_enabled(void **state)
{
	struct vu_front_opts o = served_front_opts(0, 1);
	struct vu_front f;
	uint64_t features;

	(void)state;
	must(&f, vu_front_init(&f, &o));
	must(&f, vu_front_connect(&f));
	must(&f, vu_front_negotiate(&f));
	features = f.features;
	must(&f, vu_front_request(&f, VU_SET_FEATURES, &features, sizeof(features), NULL, 0));
	must(&f, vu_front_share_memory(&f));
	f.dev_features &= ~BIT(VU_F_PROTOCOL_FEATURES); /* so that start_queue() does not enable */
	must(&f, vu_front_start_queue(&f, 0));
	served_io_works(&f, 0);
	vu_front_close(&f);
}

/* Any order of what a ring needs will do. */
static void a_ring_starts_whatever_comes_last(void **state)
{
	(void)state;
	for (unsigned last = 0; last < 6; last++) {
		struct vu_front_opts o = served_front_opts(0, 1);
		struct vu_front f;

		must(&f, vu_front_init(&f, &o));
		must(&f, vu_front_connect(&f));
		must(&f, vu_front_negotiate(&f));
		for (unsigned i = 1; i <= 6; i++) {
			struct vu_ring *r = &f.ring[0];
			struct vu_vring_state num = { 0, r->len };
			struct vu_vring_addr addr = { .desc = (uintptr_t)r->desc,
						      .avail = (uintptr_t)r->avail,
						      .used = (uintptr_t)r->used };
			uint64_t q = 0;

			switch ((last + i) % 6) {
			case 0:
				must(&f, vu_front_share_memory(&f));
				break;
			case 1:
				must(&f, vu_front_request(&f, VU_SET_VRING_NUM, &num, sizeof(num), NULL, 0));
				break;
			case 2:
				must(&f,
				     vu_front_request(&f, VU_SET_VRING_ADDR, &addr, sizeof(addr), NULL, 0));
				break;
			case 3:
				must(&f,
				     vu_front_request(&f, VU_SET_VRING_CALL, &q, sizeof(q), &r->call_fd, 1));
				break;
			case 4:
				must(&f,
				     vu_front_request(&f, VU_SET_VRING_KICK, &q, sizeof(q), &r->kick_fd, 1));
				break;
			case 5:
				must(&f, vu_front_enable_queue(&f, 0, true));
				break;
			}
		}
		served_io_works(&f, 0);
		vu_front_close(&f);
	}
}

static void a_device_reset_begins_anew(void **state)
{
	struct vu_front_opts o = served_front_opts(0, 2);
	struct vu_front f;

	(void)state;
	o.protocol_features |= BIT(VU_PROTOCOL_F_RESET_DEVICE);
	must(&f, vu_front_open(&f, &o));
	for (unsigned i = 0; i < 3; i++) {
		uint64_t set = f.features | BIT(VU_F_PROTOCOL_FEATURES);

		served_io_works(&f, 0);
		served_io_works(&f, 1);
		must(&f, vu_front_request(&f, VU_RESET_DEVICE, NULL, 0, NULL, 0));
		must(&f, vu_front_request(&f, VU_SET_FEATURES, &set, sizeof(set), NULL, 0));
		for (unsigned q = 0; q < 2; q++) {
			vu_ring_reset(&f.ring[q], 0);
			must(&f, vu_front_start_queue(&f, q));
		}
	}
	vu_front_close(&f);
}

/* ---- what is refused, with the session going on ---- */

static void what_cannot_be_is_refused(void **state)
{
	struct vu_vring_state st = { 0, 64 };
	struct vu_vring_addr addr = { .index = 0 };
	struct vu_front f;
	uint64_t u;
	int fds[2];

	(void)state;
	served_connect(&f, 0, 2);
	addr.desc = (uintptr_t)f.ring[0].desc;
	addr.avail = (uintptr_t)f.ring[0].avail;
	addr.used = (uintptr_t)f.ring[0].used;

	must_be_refused(&f, VU_SET_VRING_NUM, &st, sizeof(st), NULL, 0, "SET_VRING_NUM: queue 0 is running");
	must_be_refused(&f, VU_SET_VRING_BASE, &st, sizeof(st), NULL, 0,
			"SET_VRING_BASE: queue 0 is running");
	st.index = 3;
	st.num = 100;
	must_be_refused(&f, VU_SET_VRING_NUM, &st, sizeof(st), NULL, 0,
			"size of 100 is not a power of two up to 256");
	st.num = 512;
	must_be_refused(&f, VU_SET_VRING_NUM, &st, sizeof(st), NULL, 0,
			"size of 512 is not a power of two up to 256");
	st.num = 65536;
	must_be_refused(&f, VU_SET_VRING_BASE, &st, sizeof(st), NULL, 0, "65536 is not an index");
	st.index = 4;
	st.num = 1;
	must_be_refused(&f, VU_SET_VRING_ENABLE, &st, sizeof(st), NULL, 0, "SET_VRING_ENABLE: queue 4 of 4");
	st.index = UINT32_MAX;
	must_be_refused(&f, VU_SET_VRING_NUM, &st, sizeof(st), NULL, 0, "queue 4294967295 of 4");
	st.index = 0;
	st.num = 2;
	must_be_refused(&f, VU_SET_VRING_ENABLE, &st, sizeof(st), NULL, 0, "2 is neither 0 nor 1");

	addr.flags = 6;
	must_be_refused(&f, VU_SET_VRING_ADDR, &addr, sizeof(addr), NULL, 0, "unknown flags 0x6");
	addr.flags = 0;
	addr.used += 2;
	must_be_refused(&f, VU_SET_VRING_ADDR, &addr, sizeof(addr), NULL, 0, "used ring");
	addr.used -= 2;
	addr.avail = UINT64_MAX;
	must_be_refused(&f, VU_SET_VRING_ADDR, &addr, sizeof(addr), NULL, 0, "available ring");

	u = BIT(63);
	must_be_refused(&f, VU_SET_FEATURES, &u, sizeof(u), NULL, 0,
			"0x8000000000000000, which was not offered");
	u = BIT(VU_F_PROTOCOL_FEATURES);
	must_be_refused(&f, VU_SET_FEATURES, &u, sizeof(u), NULL, 0, "while queue 0 runs");
	u = BIT(VIRTIO_F_VERSION_1);
	must_be_refused(&f, VU_SET_FEATURES, &u, sizeof(u), NULL, 0, "while queue 0 runs");
	u = BIT(2);
	must_be_refused(&f, VU_SET_PROTOCOL_FEATURES, &u, sizeof(u), NULL, 0, "0x4, which was not offered");

	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	u = 0;
	must_be_refused(&f, VU_SET_VRING_KICK, &u, sizeof(u), fds, 1, "not an eventfd");
	must_be_refused(&f, VU_SET_VRING_CALL, &u, sizeof(u), fds + 1, 1, "not an eventfd");
	close(fds[0]);
	close(fds[1]);
	u = BIT(VIRTIO_F_RING_PACKED);
	must_be_refused(&f, VU_SET_FEATURES, &u, sizeof(u), NULL, 0, "RING_PACKED, without VERSION_1");
	assert_int_equal(vu_front_set_config(&f, 33, &(uint8_t){ 0 }, 1, 0), -EREMOTEIO);
	assert_int_equal(vu_front_set_config(&f, 32, &(uint8_t){ 2 }, 1, 0), -EREMOTEIO);
	assert_int_equal(vu_front_set_config(&f, 0, &(uint64_t){ 0 }, 8, 0), -EREMOTEIO);

	/* After all that, both rings still run. */
	served_io_works(&f, 0);
	served_io_works(&f, 1);
	vu_front_close(&f);
}

/* A driver from before virtio 1.0: the same split ring, on a machine like ours. */
static void a_driver_without_version_1_is_served(void **state)
{
	struct vu_front_opts o = served_front_opts(0, 1);
	struct vu_front f;

	(void)state;
	o.features &= ~(BIT(VIRTIO_F_VERSION_1) | BIT(VIRTIO_F_RING_PACKED));
	must(&f, vu_front_open(&f, &o));
	assert_false(vu_has(f.features, VIRTIO_F_VERSION_1));
	served_io_works(&f, 0);
	vu_front_close(&f);
}

/* No kick descriptor means that we look at the ring by ourselves, also after it was idle for a while. */
static void a_ring_without_a_kick_descriptor_is_polled(void **state)
{
	uint64_t u = VU_VRING_NO_FD | 1;
	struct vu_front f;
	uint32_t base;

	(void)state;
	served_connect(&f, 0, 2);
	must(&f, vu_front_request(&f, VU_SET_VRING_KICK, &u, sizeof(u), NULL, 0));
	for (unsigned i = 0; i < 20; i++) {
		served_io_works(&f, 1);
		served_io_works(&f, 0);
	}
	assert_in_range(f.ring[1].nr_kicks, 0, 1); /* one that was asked for before */
	/* It drains like another, and may get a descriptor again. */
	must(&f, vu_front_stop_queue(&f, 1, &base));
	assert_int_equal(base, vu_ring_end(&f.ring[1]));
	must(&f, vu_front_start_queue(&f, 1));
	served_io_works(&f, 1);
	vu_front_close(&f);
}

/* One write that is held, and a question that is answered at once. Returns how many are done before the write. */
static int done_before_a_held_write(bool in_order)
{
	struct vu_front_opts o = served_front_opts(0, 1);
	struct vu_io *done[2], *slow, *fast;
	struct vu_front f;
	struct vu_blk b;
	int n, before;

	o.features |= BIT(VIRTIO_F_IN_ORDER);
	must(&f, vu_front_open(&f, &o));
	assert_int_equal(f.ring[0].in_order, in_order);
	assert_int_equal(vu_blk_open(&b, &f, 0, 2, 4096), 0);
	served_shut(0);
	slow = vu_blk_get(&b);
	fast = vu_blk_get(&b);
	vu_io_write(slow, 0, 4096);
	vu_io_get_id(fast);
	assert_int_equal(vu_blk_submit(&b, slow), 0);
	assert_int_equal(vu_blk_submit(&b, fast), 0);
	assert_int_equal(vu_blk_kick(&b), 0);
	served_wait_held(0, 1);
	/* Nothing is to come with IN_ORDER; what would come has the time of two ways to the ring's thread and back. */
	if (!in_order)
		assert_int_equal(vu_blk_wait(&b, vu_deadline_ns(SERVED_MS)), 0);
	for (unsigned i = 0; i < 2; i++) {
		uint64_t q = 0;

		must(&f, vu_front_request(&f, VU_SET_VRING_CALL, &q, sizeof(q), &f.ring[0].call_fd, 1));
	}
	before = vu_blk_reap(&b, done, 2);
	assert_in_range(before, 0, 1);
	served_open(0);
	for (n = before; n < 2;) {
		assert_int_equal(vu_blk_wait(&b, vu_deadline_ns(SERVED_MS)), 0);
		n += vu_blk_reap(&b, done + n, 2 - (unsigned)n);
	}
	assert_ptr_equal(done[0], in_order ? slow : fast);
	vu_blk_free(&b);
	vu_front_close(&f);
	return before;
}

static void requests_end_in_order_when_that_was_negotiated(void **state)
{
	struct varve_error err;

	(void)state;
	assert_int_equal(done_before_a_held_write(false), 1);
	served_stop(0);
	served_opts.in_order = true;
	assert_int_equal(served_start(0, &err), 0);
	assert_int_equal(done_before_a_held_write(true), 0);
}

static void the_configuration_is_read_in_any_part(void **state)
{
	struct vu_front f;
	uint8_t whole[256], part[256];

	(void)state;
	served_connect(&f, 0, 1);
	must(&f, vu_front_get_config(&f, 0, whole, 256));
	assert_int_equal(whole[0] | whole[1] << 8 | whole[2] << 16, SERVED_LEN / 512);
	for (unsigned off = 0; off <= 256; off += 5) {
		must(&f, vu_front_get_config(&f, off, part, 256 - off));
		assert_memory_equal(part, whole + off, 256 - off);
	}
	assert_int_equal(vu_front_get_config(&f, 1, part, 256), -EPROTO);
	assert_int_equal(vu_front_get_config(&f, UINT32_MAX, part, 16), -EPROTO);
	served_io_works(&f, 0);
	vu_front_close(&f);
}

/* Nobody is left in the belief that a refused message was obeyed. */
static void without_acknowledgements_a_refusal_ends_the_session(void **state)
{
	struct vu_front_opts o = served_front_opts(0, 1);
	struct vu_vring_state st = { 0, 100 };
	struct vu_front f;

	(void)state;
	o.protocol_features &= ~BIT(VU_PROTOCOL_F_REPLY_ACK);
	must(&f, vu_front_open(&f, &o));
	served_io_works(&f, 0);
	must(&f, vu_front_request(&f, VU_SET_VRING_NUM, &st, sizeof(st), NULL, 0));
	must(&f, vu_raw_wait_closed(&f, SERVED_MS));
	assert_int_equal(served_logged("connection closed: SET_VRING_NUM"), 1);
	vu_front_disconnect(&f);
	/* But what a guest can make its front end send does no harm: it is ignored. */
	must(&f, vu_front_connect(&f));
	must(&f, vu_front_negotiate(&f));
	must(&f, vu_front_set_config(&f, 0, &(uint8_t){ 0 }, 1, 0));
	must(&f, vu_front_get_config(&f, 0, &(uint64_t){ 0 }, 8));
	vu_front_close(&f);
}

static void what_was_not_offered_ends_the_session(void **state)
{
	static const uint32_t requests[] = { 0, 19, 20, 22, 23, 26, 28, 29, 30, 35, 41, 44, 77 };

	(void)state;
	for (unsigned i = 0; i < sizeof(requests) / sizeof(requests[0]); i++) {
		struct vu_front f;
		uint64_t u = 0;

		served_connect(&f, 0, 1);
		assert_int_equal(vu_send(f.sock, requests[i], VU_FLAG_VERSION, &u, sizeof(u),
					 &f.ring[0].call_fd, 1, vu_deadline_ns(SERVED_MS), &f.err),
				 0);
		must(&f, vu_raw_wait_closed(&f, SERVED_MS));
		vu_front_close(&f);
	}
	assert_int_equal(served_logged("which is not offered"), sizeof(requests) / sizeof(requests[0]));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, served_setup, served_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(stopping_a_ring_waits_for_its_requests),
		TEST(a_new_memory_table_waits_for_requests_in_flight),
		TEST(the_call_descriptor_changes_while_requests_are_in_flight),
		TEST(requests_offered_before_the_start_are_served),
		TEST(a_stopped_ring_leaves_no_kick_behind),
		TEST(a_disabled_ring_holds_its_requests),
		TEST(without_protocol_features_rings_are_enabled),
		TEST(a_ring_starts_whatever_comes_last),
		TEST(a_device_reset_begins_anew),
		TEST(a_driver_without_version_1_is_served),
		TEST(requests_end_in_order_when_that_was_negotiated),
		TEST(a_ring_without_a_kick_descriptor_is_polled),
		TEST(the_configuration_is_read_in_any_part),
		TEST(without_acknowledgements_a_refusal_ends_the_session),
		TEST(what_was_not_offered_ends_the_session),
		TEST(what_cannot_be_is_refused), /* sizes, indices and parts of split rings */
	};
	size_t nr = sizeof(tests) / sizeof(tests[0]) - (served_packed() ? 1 : 0);

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return _cmocka_run_group_tests("tests", tests, nr, NULL, NULL);
}
