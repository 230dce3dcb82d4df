/* SPDX-License-Identifier: MIT */
/*
 * test_limits.c - what a disk's front ends may take: requests that wait for their turn while somebody wants the rings to
 * stop, lines of the log, and descriptors
 *
 * The limit is a byte a second: a write waits for more than an hour, so whoever waits for one never comes to an end.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <cmocka.h>

#include "block/throttle.h"
#include "served.h"

#define BIT(n) (UINT64_C(1) << (n))
#define LOG_ALL 26
#define WCE 32
#define ACCEPT_PAUSE_NS 500000000ull /* as in export.c */
#define FEATURES                                                                                             \
	(BIT(VU_PROTOCOL_F_LOG_SHMFD) | BIT(VU_PROTOCOL_F_INFLIGHT_SHMFD) | BIT(VU_PROTOCOL_F_RESET_DEVICE) | \
	 BIT(VU_PROTOCOL_F_CONFIGURE_MEM_SLOTS) | BIT(VU_PROTOCOL_F_STATUS))

static void limit(uint64_t bytes)
{
	struct throttle_config c = { .iops_size = 0 };

	for (unsigned i = 0; i < THROTTLE_KINDS; i++)
		c.limit[i].max_length = 1;
	c.limit[THROTTLE_BPS_TOTAL].avg = bytes;
	assert_int_equal(throttle_set(served[0].top, &c, NULL), 0);
}

/* ---- what stops a ring, and how it is started again ---- */

static void base(struct vu_front *f)
{
	must(f, vu_front_stop_queue(f, 0, NULL));
}

static void begin(struct vu_front *f)
{
	must(f, vu_front_start_queue(f, 0));
}

static void disable(struct vu_front *f)
{
	must(f, vu_front_enable_queue(f, 0, false));
}

static void enable(struct vu_front *f)
{
	must(f, vu_front_enable_queue(f, 0, true));
}

static void nothing(struct vu_front *f)
{
	(void)f; /* it goes on by itself */
}

static void mem_table(struct vu_front *f)
{
	must(f, vu_front_share_memory(f));
}

static void a_region_more_and_less(struct vu_front *f)
{
	struct vu_region_msg m = { .guest_addr = UINT64_C(1) << 40, .len = 4096, .user_addr = UINT64_C(0x10000000) };
	int fd = memfd_create("spare", MFD_CLOEXEC);

	assert_true(fd >= 0 && ftruncate(fd, 4096) == 0);
	must(f, vu_front_add_region(f, &m, fd));
	must(f, vu_front_remove_region(f, &m));
	close(fd);
}

static void remove_region(struct vu_front *f)
{
	struct vu_region_msg m = { f->mem.region[0].guest_addr, f->mem.region[0].len, (uintptr_t)f->mem.base, 0 };

	must(f, vu_front_remove_region(f, &m));
}

static void log_base(struct vu_front *f)
{
	struct vu_log_msg m = { .len = f->mem.len / 4096 / 8 + 4096 };
	int fd = memfd_create("log", MFD_CLOEXEC);
	uint64_t zero;

	assert_true(fd >= 0 && ftruncate(fd, (off_t)m.len) == 0);
	must(f, vu_front_query_u64(f, VU_SET_LOG_BASE, &m, sizeof(m), fd, &zero));
	assert_int_equal(zero, 0);
	close(fd);
}

static void set_features(struct vu_front *f, uint64_t more)
{
	uint64_t set = f->features | BIT(VU_F_PROTOCOL_FEATURES) | more;

	must(f, vu_front_request(f, VU_SET_FEATURES, &set, sizeof(set), NULL, 0));
}

static void start_logging(struct vu_front *f)
{
	set_features(f, BIT(LOG_ALL));
}

static void write_cache(struct vu_front *f)
{
	must(f, vu_front_set_config(f, WCE, &(uint8_t){ 0 }, 1, 0));
}

static void status_zero(struct vu_front *f)
{
	must(f, vu_front_request(f, VU_SET_STATUS, &(uint64_t){ 0 }, 8, NULL, 0));
}

static void reset_device(struct vu_front *f)
{
	must(f, vu_front_request(f, VU_RESET_DEVICE, NULL, 0, NULL, 0));
}

static void begin_anew(struct vu_front *f)
{
	set_features(f, 0);
	must(f, vu_front_start_queue(f, 0));
}

static void inflight(struct vu_front *f)
{
	must(f, vu_front_share_inflight(f));
}

static void kick(struct vu_front *f)
{
	uint64_t q = 0;

	must(f, vu_front_request(f, VU_SET_VRING_KICK, &q, sizeof(q), &f->ring[0].kick_fd, 1));
}

static void addr(struct vu_front *f)
{
	struct vu_ring *r = &f->ring[0];
	struct vu_vring_addr a = { .desc = (uintptr_t)r->desc, .avail = (uintptr_t)r->avail, .used = (uintptr_t)r->used };

	must(f, vu_front_request(f, VU_SET_VRING_ADDR, &a, sizeof(a), NULL, 0));
}

static void vanish(struct vu_front *f)
{
	vu_front_disconnect(f);
	must(f, vu_front_connect(f));
	must(f, vu_front_negotiate(f)); /* the first answer comes when the last conversation is over */
}

static void come_back(struct vu_front *f)
{
	must(f, vu_front_share_memory(f));
	must(f, vu_front_start_queue(f, 0));
}

static void pause_it(struct vu_front *f)
{
	(void)f;
	vublk_pause(served[0].vublk);
}

static void resume_it(struct vu_front *f)
{
	(void)f;
	vublk_resume(served[0].vublk);
}

static const struct {
	const char *what;
	void (*stop)(struct vu_front *f);
	void (*again)(struct vu_front *f);
} stops[] = {
	{ "GET_VRING_BASE", base, begin },
	{ "SET_VRING_ENABLE", disable, enable },
	{ "SET_MEM_TABLE", mem_table, nothing },
	{ "ADD_MEM_REG", a_region_more_and_less, nothing },
	{ "REM_MEM_REG", remove_region, mem_table },
	{ "SET_LOG_BASE", log_base, nothing },
	{ "SET_FEATURES", start_logging, nothing },
	{ "SET_CONFIG", write_cache, nothing },
	{ "SET_STATUS", status_zero, begin_anew },
	{ "RESET_DEVICE", reset_device, begin_anew },
	{ "SET_INFLIGHT_FD", inflight, nothing },
	{ "SET_VRING_KICK", kick, nothing },
	{ "SET_VRING_ADDR", addr, nothing },
	{ "the end of the connection", vanish, come_back },
	{ "pause", pause_it, resume_it },
};

/* ---- tests ---- */

static void offer(struct load *l, struct vu_front *f, uint8_t first)
{
	offer_writes(l, f, 0, first);
}

static void connect_limited(struct vu_front *f, struct load *l, uint8_t first)
{
	struct vu_front_opts o = served_front_opts(0, 1);

	o.protocol_features |= FEATURES;
	must(f, vu_front_open(f, &o));
	limit(1);
	offer(l, f, first);
	wait_writes(l, 1); /* there is a burst of one; those behind it were taken in the same turn */
	assert_int_equal(reap_writes(l), 0);
}

/* What was waiting is done, and what comes then waits until the limit has made up for it: no more is taken, so no more can be let go. */
static void no_stop_waits_for_the_limits_nor_gets_around_them(void **state)
{
	(void)state;
	for (unsigned i = 0; i < sizeof(stops) / sizeof(stops[0]); i++) {
		struct vu_front f;
		struct load l;
		uint32_t was, is;

		print_message("# %s\n", stops[i].what);
		connect_limited(&f, &l, 1);
		stops[i].stop(&f);
		wait_writes(&l, LOAD - 1);
		end_load(&l);
		stops[i].again(&f);
		was = vu_ring_base(&f.ring[0]);
		offer(&l, &f, 101);
		for (unsigned k = 0; k < 3; k++) {
			must(&f, vu_front_stop_queue(&f, 0, &is));
			assert_int_equal(is, was);
			assert_int_equal(reap_writes(&l), 0);
			must(&f, vu_front_start_queue(&f, 0));
		}
		limit(0);
		wait_writes(&l, LOAD);
		check_writes(&l, 101);
		end_load(&l);
		served_io_works(&f, 0);
		vu_front_close(&f);
	}
}

/* On a thread that the two rings share: the requests of the other one lose nothing by it. */
static void a_ring_on_the_same_thread_goes_on(void **state)
{
	struct vu_front_opts o = served_front_opts(0, 3);
	struct load first, third;
	struct vu_front f;
	unsigned nr;

	(void)state;
	must(&f, vu_front_open(&f, &o));
	limit(1);
	offer_writes(&first, &f, 0, 1);
	wait_writes(&first, 1);
	offer_writes(&third, &f, 2, 51);
	must(&f, vu_front_stop_queue(&f, 0, NULL));
	wait_writes(&first, LOAD - 1);
	must(&f, vu_front_stop_queue(&f, 2, NULL));
	nr = reap_writes(&third); /* those that were taken before */
	limit(0);
	must(&f, vu_front_start_queue(&f, 0));
	must(&f, vu_front_start_queue(&f, 2));
	wait_writes(&third, LOAD - nr);
	check_writes(&first, 1);
	check_writes(&third, 51);
	end_load(&first);
	end_load(&third);
	vu_front_close(&f);
}

/* The server itself ends, whatever waits. */
static void a_server_stops_at_once(void **state)
{
	struct varve_error err;
	struct vu_front f;
	struct load l;

	(void)state;
	connect_limited(&f, &l, 1);
	served_stop(0);
	wait_writes(&l, LOAD - 1);
	end_load(&l);
	vu_front_close(&f);
	if (served_start(0, &err) < 0)
		fail_msg("%s", err.message);
	/* Another server of the same disk has the same limits. */
	assert_true(throttle_paid_at(served[0].top) > vu_deadline_ns(0));
	limit(0);
	assert_int_equal(throttle_paid_at(served[0].top), 0);
}

/* ---- the log ---- */

/* Sessions are not counted, so what they may say in the log is not counted by session. The other disk keeps its lines. */
static void front_ends_do_not_fill_the_log(void **state)
{
	const struct vu_vring_state st = { 0, 0 };
	struct varve_error err;
	struct vu_front f;

	(void)state;
	for (unsigned i = 0; i < 30; i++) {
		served_connect(&f, 0, 1);
		assert_int_equal(vu_front_request(&f, VU_SET_VRING_ENABLE, &(struct vu_vring_state){ 0, 2 }, 8, NULL, 0),
				 -EREMOTEIO);
		must(&f, vu_send(f.sock, VU_SET_VRING_NUM, VU_FLAG_VERSION, &st, sizeof(st), NULL, 0,
				 vu_deadline_ns(SERVED_MS), &f.err));
		must(&f, vu_raw_wait_closed(&f, SERVED_MS));
		vu_front_close(&f);
	}
	served_connect(&f, 0, 1); /* by now the last one's lines are said */
	vu_raw_avail_idx(&f.ring[0], 1000);
	vu_raw_kick(&f.ring[0]);
	if (!served_packed())
		assert_int_equal(vu_raw_wait_broken(&f, 0, SERVED_MS), VU_RAW_ERR_SIGNALLED);
	vu_front_close(&f);
	assert_int_equal(served_logged("refused: ") + served_logged("connection closed: "), 20);
	assert_int_equal(served_logged("is broken"), 0);
	served_connect(&f, 1, 1);
	assert_int_equal(vu_front_request(&f, VU_SET_VRING_ENABLE, &(struct vu_vring_state){ 0, 2 }, 8, NULL, 0), -EREMOTEIO);
	assert_int_equal(served_logged("refused: "), 11);
	vu_front_close(&f);
	served_stop(0);
	assert_int_equal(served_logged(served_packed() ? ": 40 more lines about its front ends were left out" :
							 ": 41 more lines about its front ends were left out"),
			 1);
	if (served_start(0, &err) < 0)
		fail_msg("%s", err.message);
}

/* ---- descriptors ---- */

struct table {
	struct rlimit before;
	int fds[256];
	unsigned nr;
};

/* No descriptor can be made any more, on either side. */
static void fill_table(struct table *t)
{
	struct rlimit few;

	assert_int_equal(getrlimit(RLIMIT_NOFILE, &t->before), 0);
	few = t->before;
	few.rlim_cur = 200;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
	for (t->nr = 0; t->nr < 256 && (t->fds[t->nr] = dup(2)) >= 0; t->nr++)
		;
	assert_true(t->nr < 256);
	assert_int_equal(errno, EMFILE);
}

static void empty_table(struct table *t)
{
	while (t->nr)
		close(t->fds[--t->nr]);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &t->before), 0);
}

static void wait_logged(const char *part, unsigned nr)
{
	uint64_t deadline = vu_deadline_ns(SERVED_MS);

	while (served_logged(part) < nr) {
		if (!vu_ms_left(deadline))
			fail_msg("the log does not say \"%s\"", part);
		usleep(1000);
	}
}

/* It is our table that is full, and not the message that has too many. */
static void descriptors_that_we_cannot_take_are_not_the_front_ends_fault(void **state)
{
	int fds[10];
	struct table t;
	struct vu_front f;
	uint64_t q = 0;

	(void)state;
	served_connect(&f, 0, 1);
	served_io_works(&f, 0); /* nothing is opened for a while and closed later */
	fill_table(&t);
	must(&f, vu_send(f.sock, VU_SET_VRING_CALL, VU_FLAG_VERSION, &q, sizeof(q), &f.ring[0].call_fd, 1,
			 vu_deadline_ns(SERVED_MS), &f.err));
	must(&f, vu_raw_wait_closed(&f, SERVED_MS));
	empty_table(&t);
	assert_int_equal(served_logged("this process has as many open as it may"), 1);
	assert_int_equal(served_logged("more than the 8 descriptors"), 0);
	vu_front_close(&f);
	served_connect(&f, 0, 1);
	for (unsigned i = 0; i < 10; i++)
		fds[i] = f.ring[0].call_fd;
	must(&f, vu_send(f.sock, VU_SET_VRING_CALL, VU_FLAG_VERSION, &q, sizeof(q), fds, 9, vu_deadline_ns(SERVED_MS), &f.err));
	must(&f, vu_raw_wait_closed(&f, SERVED_MS));
	assert_int_equal(served_logged("more than the 8 descriptors"), 1);
	assert_int_equal(served_logged("this process has as many open as it may"), 1);
	vu_front_close(&f);
}

/* The linker leads accept4() to here (--wrap, see meson.build). */
static _Atomic unsigned nr_not_accepted;

int __real_accept4(int fd, struct sockaddr *addr, socklen_t *len, int flags);
int __wrap_accept4(int fd, struct sockaddr *addr, socklen_t *len, int flags);

int __wrap_accept4(int fd, struct sockaddr *addr, socklen_t *len, int flags)
{
	int ret = __real_accept4(fd, addr, len, flags);

	if (ret < 0 && errno == EMFILE)
		atomic_fetch_add(&nr_not_accepted, 1);
	return ret;
}

/* One more attempt has been made, and all has been said about it. */
static void wait_attempt(void)
{
	unsigned before = atomic_load(&nr_not_accepted);
	uint64_t deadline = vu_deadline_ns(SERVED_MS);

	served_pass(ACCEPT_PAUSE_NS);
	while (atomic_load(&nr_not_accepted) == before) {
		if (!vu_ms_left(deadline))
			fail_msg("it is not tried again");
		usleep(1000);
	}
	served_pass(0);
}

/* Said once, tried again and again; and once more when it happens again. */
static void who_cannot_be_accepted_is_told_of_once(void **state)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	unsigned before = served_open_fds();
	struct table t;
	struct vu_front f;
	int sock;

	(void)state;
	strcpy(addr.sun_path, served[0].path);
	for (unsigned i = 1; i <= 2; i++) {
		served_wait_fds(before); /* what the server closes after this would leave room */
		sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
		assert_true(sock >= 0);
		fill_table(&t);
		assert_int_equal(connect(sock, (struct sockaddr *)&addr, sizeof(addr)), 0);
		wait_logged("cannot accept a front end: ", i);
		wait_attempt();
		wait_attempt();
		assert_int_equal(served_logged("cannot accept a front end: "), i);
		empty_table(&t);
		close(sock);
		served_pass(ACCEPT_PAUSE_NS);
		served_connect(&f, 0, 1); /* behind the other */
		served_io_works(&f, 0);
		vu_front_close(&f);
	}
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, served_setup, served_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(no_stop_waits_for_the_limits_nor_gets_around_them),
		TEST(a_ring_on_the_same_thread_goes_on),
		TEST(a_server_stops_at_once),
		TEST(front_ends_do_not_fill_the_log),
		TEST(descriptors_that_we_cannot_take_are_not_the_front_ends_fault),
		cmocka_unit_test_setup_teardown(who_cannot_be_accepted_is_told_of_once, served_setup_timeless, served_teardown),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
