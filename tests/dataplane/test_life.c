/* SPDX-License-Identifier: MIT */
/*
 * test_life.c - front ends that come, go, vanish or do nothing; servers that start and stop
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <cmocka.h>

#include "served.h"

/* ---- front ends that go, or stay and do nothing ---- */

/* After any number of bytes of a whole conversation. */
static void a_front_end_may_vanish_anywhere(void **state)
{
	unsigned fds = served_open_fds();
	struct vu_front f;

	(void)state;
	for (unsigned step = 0; step < 6; step++) {
		for (unsigned i = 0; i < 5; i++) {
			struct vu_front_opts o = served_front_opts(0, 2);
			struct load l;

			must(&f, vu_front_init(&f, &o));
			must(&f, vu_front_connect(&f));
			if (step > 0)
				must(&f, vu_front_negotiate(&f));
			if (step > 1)
				must(&f, vu_front_share_memory(&f));
			if (step > 2)
				must(&f, vu_front_start_queue(&f, 0));
			if (step > 3) {
				offer_writes(&l, &f, 0, 1);
				end_load(&l);
			}
			if (step > 4)
				send_only(&f, VU_GET_VRING_BASE, &(struct vu_vring_state){ 0, 0 }, 4);
			vu_front_close(&f);
		}
	}
	served_wait_fds(fds);
	served_connect(&f, 0, 4);
	served_io_works(&f, 3);
	vu_front_close(&f);
}

/* The next front end waits for the last one's requests in flight: they use the last one's memory. */
static void a_new_front_end_waits_for_the_requests_of_the_last(void **state)
{
	struct vu_front_opts o = served_front_opts(0, 2);
	struct vu_front f, next;
	struct vu_msg reply;
	struct load l;

	(void)state;
	served_connect(&f, 0, 2);
	served_shut(0);
	offer_writes(&l, &f, 1, 1);
	served_wait_held(0, LOAD);
	end_load(&l);
	vu_front_close(&f);
	must(&next, vu_front_init(&next, &o));
	must(&next, vu_front_connect(&next));
	send_only(&next, VU_GET_FEATURES, NULL, 0);
	for (unsigned i = 0; i < 3; i++) {
		struct vu_front other;

		served_connect(&other, 1, 1);
		vu_front_close(&other);
		assert_false(has_answered(&next));
	}
	served_open(0);
	must(&next, vu_recv(next.sock, &reply, vu_deadline_ns(SERVED_MS), &next.err));
	must(&next, vu_front_negotiate(&next));
	vu_front_close(&next);
}

static void a_hundred_reconnects_leave_nothing_behind(void **state)
{
	struct vu_front f;
	unsigned fds;

	(void)state;
	served_connect(&f, 0, 4);
	fds = served_open_fds(); /* with one session, as at the end */
	for (unsigned i = 0; i < 100; i++) {
		served_io_works(&f, i % 4);
		/* Politely or not. */
		for (unsigned q = 0; q < 4 && i % 2; q++)
			must(&f, vu_front_stop_queue(&f, q, NULL));
		vu_front_disconnect(&f);
		must(&f, vu_front_connect(&f));
		must(&f, vu_front_negotiate(&f));
		must(&f, vu_front_share_memory(&f));
		for (unsigned q = 0; q < 4; q++)
			must(&f, vu_front_start_queue(&f, q));
		if (i % 10 == 9) { /* guest memory is not given back by the pool: begin anew */
			vu_front_close(&f);
			served_connect(&f, 0, 4);
		}
	}
	served_wait_fds(fds);
	vu_front_close(&f);
}

/* SET_VRING_*, SET_MEM_TABLE a thousand times: descriptors and mappings are replaced, not collected. */
static void repeated_messages_leave_nothing_behind(void **state)
{
	struct vu_front f;
	unsigned fds;
	uint64_t q = 0;

	(void)state;
	served_connect(&f, 0, 1);
	fds = served_open_fds();
	for (unsigned i = 0; i < 300; i++) {
		must(&f, vu_front_request(&f, VU_SET_VRING_CALL, &q, sizeof(q), &f.ring[0].call_fd, 1));
		must(&f, vu_front_request(&f, VU_SET_VRING_ERR, &q, sizeof(q), &f.ring[0].err_fd, 1));
		must(&f, vu_front_request(&f, VU_SET_VRING_KICK, &q, sizeof(q), &f.ring[0].kick_fd, 1));
		must(&f, vu_front_share_memory(&f));
	}
	served_wait_fds(fds);
	served_io_works(&f, 0);
	vu_front_close(&f);
}

/* One that sends half a message, one that reads no answers: the other disk does not notice. */
static void a_slow_front_end_holds_up_nobody(void **state)
{
	const struct vu_hdr half = { VU_SET_FEATURES, VU_FLAG_VERSION, 8 };
	struct vu_front_opts o = served_front_opts(0, 1);
	struct vu_config_msg c = { .len = VU_CONFIG_LEN };
	struct vu_front slow, other;
	uint64_t offered;
	unsigned sent = 0;

	(void)state;
	must(&slow, vu_front_init(&slow, &o));
	must(&slow, vu_front_connect(&slow));
	must(&slow,
	     vu_send_bytes(slow.sock, &half, sizeof(half), NULL, 0, vu_deadline_ns(SERVED_MS), &slow.err));
	for (unsigned i = 0; i < 10; i++) {
		served_connect(&other, 1, 2);
		served_io_works(&other, 1);
		vu_front_close(&other);
	}
	offered = UINT64_MAX;
	must(&slow, vu_send_bytes(slow.sock, &offered, sizeof(offered), NULL, 0, vu_deadline_ns(SERVED_MS),
				  &slow.err));
	must(&slow, vu_raw_wait_closed(&slow, SERVED_MS)); /* features that were not offered */
	vu_front_disconnect(&slow);

	must(&slow, vu_front_connect(&slow));
	must(&slow, vu_front_negotiate(&slow));
	/* Until both directions of the socket are full. */
	while (vu_send(slow.sock, VU_GET_CONFIG, VU_FLAG_VERSION, &c, sizeof(c), NULL, 0, vu_deadline_ns(50),
		       &slow.err) == 0)
		sent++;
	assert_true(sent > 10);
	for (unsigned i = 0; i < 10; i++) {
		served_connect(&other, 1, 2);
		served_io_works(&other, 1);
		vu_front_close(&other);
	}
	for (unsigned i = 0; i < sent; i++) {
		struct vu_msg reply;

		must(&slow, vu_recv(slow.sock, &reply, vu_deadline_ns(SERVED_MS), &slow.err));
		assert_int_equal(reply.hdr.request, VU_GET_CONFIG);
		assert_int_equal(reply.hdr.size, sizeof(c));
	}
	vu_front_close(&slow);
}

static void refusing_all_day_does_not_fill_the_log(void **state)
{
	struct vu_vring_state st = { 0, 100 };
	struct vu_front f;

	(void)state;
	served_connect(&f, 0, 1);
	for (unsigned i = 0; i < 100; i++)
		assert_int_equal(vu_front_request(&f, VU_SET_VRING_NUM, &st, sizeof(st), NULL, 0),
				 -EREMOTEIO);
	assert_int_equal(served_logged("refused"), 20);
	vu_front_close(&f);
}

/* ---- starting and stopping ---- */

static void stopping_waits_for_requests_and_ends_the_session(void **state)
{
	struct varve_error err;
	struct vu_front f;
	struct load l;

	(void)state;
	served_connect(&f, 0, 1);
	offer_writes(&l, &f, 0, 1);
	served_stop(0);
	must(&f, vu_raw_wait_closed(&f, SERVED_MS));
	/* Each of them was either done, or not begun. */
	reap_writes(&l);
	end_load(&l);
	vu_front_close(&f);
	assert_true(access(served[0].path, F_OK) < 0);
	assert_int_equal(served_start(0, &err), 0);
	served_connect(&f, 0, 1);
	served_io_works(&f, 0);
	vu_front_close(&f);
}

/* The server does not start on this path, for this reason, and leaves what is there. */
static void expect_no_start(const char *path, int code, const char *why)
{
	struct varve_vhost_user_blk_options o = served_opts;
	struct varve_error err = { 0 };
	struct stat before = { 0 }, after = { 0 };
	struct vublk *v;
	int ret;

	lstat(path, &before);
	o.socket_path = path;
	ret = vublk_start(&v, served[0].top, &o, served_control, served_queues, 2, &err);
	if (ret != code || !strstr(err.message, why))
		fail_msg("%s: %d \"%s\", expected \"%s\"", path, ret, err.message, why);
	assert_non_null(strstr(err.message, path));
	lstat(path, &after);
	assert_true(before.st_ino == after.st_ino && before.st_size == after.st_size);
}

static void a_path_that_cannot_be_a_socket_is_an_error(void **state)
{
	char path[200], dir[64];

	(void)state;
	snprintf(dir, sizeof(dir), "%s", served[0].path);
	*strrchr(dir, '/') = 0;

	snprintf(path, sizeof(path), "%s/", dir);
	memset(path + strlen(path), 'x', 108 - strlen(path));
	path[108] = 0;
	expect_no_start(path, -ENAMETOOLONG, "at most 107 bytes, this one has 108");

	snprintf(path, sizeof(path), "%s/file", dir);
	close(open(path, O_CREAT | O_WRONLY, 0600));
	expect_no_start(path, -EEXIST, "exists and is not a socket");
	unlink(path);

	snprintf(path, sizeof(path), "%s/nowhere/s", dir);
	expect_no_start(path, -ENOENT, "");
	expect_no_start(dir, -EEXIST, "exists and is not a socket");
	expect_no_start(served[1].path, -EADDRINUSE, "another program listens");

	/* Someone listens there, but would not take us in: its backlog is full. */
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), full[2];

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/busy", dir);
	assert_int_equal(bind(listener, (struct sockaddr *)&addr, sizeof(addr)), 0);
	assert_int_equal(listen(listener, 0), 0);
	for (unsigned i = 0; i < 2; i++) {
		full[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		(void)!connect(full[i], (struct sockaddr *)&addr, sizeof(addr));
	}
	expect_no_start(addr.sun_path, -EADDRINUSE, "another program listens");
	close(full[0]);
	close(full[1]);
	close(listener);

	/* Now nobody does: a socket that a dead program left behind is replaced. */
	struct varve_vhost_user_blk_options o = served_opts;
	struct varve_error err = { 0 };
	struct vublk *v;

	o.socket_path = addr.sun_path;
	if (vublk_start(&v, served[0].top, &o, served_control, served_queues, 2, &err) < 0)
		fail_msg("%s", err.message);
	vublk_stop(v);
	assert_true(access(addr.sun_path, F_OK) < 0);
}

static void options_out_of_bounds_are_errors(void **state)
{
	struct varve_vhost_user_blk_options good = served_opts, o;
	char path[72];

	(void)state;
	snprintf(path, sizeof(path), "%s-more", served[0].path);
	for (unsigned i = 0; i < 5; i++) {
		struct varve_error err = { 0 };
		struct vublk *v;

		o = good;
		o.socket_path = path;
		if (i == 0)
			o.nr_queues = 65;
		else if (i == 1)
			o.queue_size = 100;
		else if (i == 2)
			o.queue_size = 2048;
		else if (i == 3)
			o.queue_size = 1;
		else
			o.serial = "123456789012345678901";
		assert_int_equal(vublk_start(&v, served[0].top, &o, served_control, served_queues, 2, &err),
				 -EINVAL);
		assert_non_null(strstr(err.message, path));
		assert_true(access(path, F_OK) < 0);
	}
}

/* One disk on two sockets and the same queues: stopping one server leaves the other its queues. */
static void a_disk_may_be_served_twice(void **state)
{
	struct varve_vhost_user_blk_options o = served_opts;
	struct vu_front_opts fo = served_front_opts(0, 4);
	struct varve_error err = { 0 };
	struct vu_front first, second;
	struct vublk *v;
	char path[72];

	(void)state;
	snprintf(path, sizeof(path), "%s-2", served[0].path);
	o.socket_path = path;
	if (vublk_start(&v, served[0].top, &o, served_control, served_queues, 2, &err) < 0)
		fail_msg("%s", err.message);
	served_connect(&first, 0, 4);
	fo.path = path;
	must(&second, vu_front_open(&second, &fo));
	served_io_works(&first, 1);
	served_io_works(&second, 1);
	vu_front_close(&first);
	served_stop(0);
	for (unsigned q = 0; q < 4; q++)
		served_io_works(&second, q);
	vu_front_close(&second);
	vublk_stop(v);
	assert_int_equal(served_start(0, &err), 0);
}

/* A socket that somebody put in the place of ours is not ours to remove. */
static void a_replaced_socket_is_left_alone(void **state)
{
	struct varve_error err;

	(void)state;
	assert_int_equal(unlink(served[0].path), 0);
	close(open(served[0].path, O_CREAT | O_WRONLY, 0600));
	served_stop(0);
	assert_int_equal(access(served[0].path, F_OK), 0);
	unlink(served[0].path);
	assert_int_equal(served_start(0, &err), 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, served_setup, served_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(a_front_end_may_vanish_anywhere),
		TEST(a_new_front_end_waits_for_the_requests_of_the_last),
		TEST(a_hundred_reconnects_leave_nothing_behind),
		TEST(repeated_messages_leave_nothing_behind),
		TEST(a_slow_front_end_holds_up_nobody),
		TEST(refusing_all_day_does_not_fill_the_log),
		TEST(stopping_waits_for_requests_and_ends_the_session),
		TEST(a_path_that_cannot_be_a_socket_is_an_error),
		TEST(options_out_of_bounds_are_errors),
		TEST(a_disk_may_be_served_twice),
		TEST(a_replaced_socket_is_left_alone),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
