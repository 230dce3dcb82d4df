/* SPDX-License-Identifier: MIT */
/*
 * test_migration.c - the dirty log, the device's state, and the area of requests in flight, as messages
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_config.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "served.h"

#define BIT(n) (UINT64_C(1) << (n))
#define LOG_ALL 26
#define PAGE 4096u

/* ---- the dirty log ---- */

struct dirty {
	int fd;
	uint8_t *bits;
	size_t len;
};

static void make_log(struct dirty *d, uint64_t memory)
{
	d->len = memory / PAGE / 8 + PAGE;
	d->fd = memfd_create("log", MFD_CLOEXEC);
	assert_true(d->fd >= 0 && ftruncate(d->fd, (off_t)d->len) == 0);
	d->bits = mmap(NULL, d->len, PROT_READ | PROT_WRITE, MAP_SHARED, d->fd, 0);
	assert_ptr_not_equal(d->bits, MAP_FAILED);
}

static void drop_log(struct dirty *d)
{
	munmap(d->bits, d->len);
	close(d->fd);
}

static bool is_dirty(const struct dirty *d, uint64_t guest_addr)
{
	return __atomic_load_n(&d->bits[guest_addr / PAGE / 8], __ATOMIC_SEQ_CST) >> (guest_addr / PAGE % 8) &
	       1;
}

static unsigned nr_dirty(const struct dirty *d)
{
	unsigned nr = 0;

	for (size_t i = 0; i < d->len; i++)
		nr += (unsigned)__builtin_popcount(__atomic_load_n(&d->bits[i], __ATOMIC_SEQ_CST));
	return nr;
}

static void clear(struct dirty *d)
{
	for (size_t i = 0; i < d->len; i++)
		__atomic_store_n(&d->bits[i], 0, __ATOMIC_SEQ_CST);
}

/* Messages by which a front end begins, or ends, to log while the machine runs. */
static void log_features(struct vu_front *f, bool on)
{
	uint64_t set = f->features | BIT(VU_F_PROTOCOL_FEATURES) | (on ? BIT(LOG_ALL) : 0);

	must(f, vu_front_request(f, VU_SET_FEATURES, &set, sizeof(set), NULL, 0));
}

static void log_ring(struct vu_front *f, unsigned q, bool on, uint64_t at)
{
	struct vu_ring *r = &f->ring[q];
	struct vu_vring_addr a = { .index = q,
				   .flags = on,
				   .desc = (uintptr_t)r->desc,
				   .avail = (uintptr_t)r->avail,
				   .used = (uintptr_t)r->used,
				   .log = at };

	must(f, vu_front_request(f, VU_SET_VRING_ADDR, &a, sizeof(a), NULL, 0));
}

/* What was done is shown first and logged then, by the same thread: this goes by way of it. */
static void logged_by_now(struct vu_front *f)
{
	uint64_t q = 0;

	must(f, vu_front_request(f, VU_SET_VRING_CALL, &q, sizeof(q), &f->ring[0].call_fd, 1));
}

static void connect_logging(struct vu_front *f)
{
	struct vu_front_opts o = served_front_opts(0, 2);

	o.protocol_features |= BIT(VU_PROTOCOL_F_LOG_SHMFD);
	must(f, vu_front_open(f, &o));
	assert_true(vu_has(f->dev_features, LOG_ALL));
}

static void what_the_device_writes_is_logged(void **state)
{
	struct vu_log_msg m;
	struct dirty d;
	struct vu_front f;
	struct vu_blk b;
	uint64_t used, zero;
	struct vu_io *io;

	(void)state;
	connect_logging(&f);
	make_log(&d, f.mem.len);
	m = (struct vu_log_msg){ .len = d.len };
	used = vu_mem_guest(&f.mem, f.ring[0].used);
	served_io_works(&f, 0);
	assert_int_equal(nr_dirty(&d), 0);

	must(&f, vu_front_query_u64(&f, VU_SET_LOG_BASE, &m, sizeof(m), d.fd, &zero));
	assert_int_equal(zero, 0);
	served_io_works(&f, 0); /* the log is there, but logging is not negotiated */
	assert_int_equal(nr_dirty(&d), 0);
	log_features(&f, true);
	log_ring(&f, 0, true, used);
	clear(&d);

	/* A read of four pages: those, the status byte, the used ring; nothing of what it read its header
	 * from. */
	if (vu_blk_open(&b, &f, 0, 1, 4 * PAGE) < 0)
		fail_msg("%s", b.err.text);
	io = vu_blk_get(&b);
	vu_io_read(io, 0, 4 * PAGE);
	assert_int_equal(vu_blk_submit(&b, io), 0);
	assert_int_equal(vu_blk_kick(&b), 0);
	while (vu_blk_reap(&b, &io, 1) == 0)
		assert_int_equal(vu_blk_wait(&b, vu_deadline_ns(SERVED_MS)), 0);
	logged_by_now(&f);
	for (unsigned i = 0; i < 4; i++)
		assert_true(is_dirty(&d, vu_mem_guest(&f.mem, io->data) + i * PAGE));
	assert_true(is_dirty(&d, used));
	assert_in_range(nr_dirty(&d), 4 + 1 + 1, 4 + 1 + 2 + 1);

	/* A write changes the status byte and the ring only. */
	clear(&d);
	vu_io_write(io, 0, 4 * PAGE);
	assert_int_equal(vu_blk_submit(&b, io), 0);
	assert_int_equal(vu_blk_kick(&b), 0);
	while (vu_blk_reap(&b, &io, 1) == 0)
		assert_int_equal(vu_blk_wait(&b, vu_deadline_ns(SERVED_MS)), 0);
	logged_by_now(&f);
	assert_true(is_dirty(&d, used));
	assert_in_range(nr_dirty(&d), 1, 3);
	vu_blk_put(&b, io);
	vu_blk_free(&b);

	/* The address of the used ring in the log is the front end's to choose. */
	log_ring(&f, 0, true, d.len * 8 * PAGE - 3 * PAGE);
	clear(&d);
	served_io_works(&f, 0);
	logged_by_now(&f);
	assert_true(is_dirty(&d, d.len * 8 * PAGE - 3 * PAGE));
	log_ring(&f, 0, false, 0);
	log_features(&f, false);
	clear(&d);
	served_io_works(&f, 0);
	served_io_works(&f, 1);
	assert_int_equal(nr_dirty(&d), 0);
	vu_front_close(&f);
	drop_log(&d);
}

/* Logging begins and ends under load: each read that was done in between has all its pages in the log. */
static void logging_begins_and_ends_under_load(void **state)
{
	struct vu_log_msg m;
	struct dirty d;
	struct vu_front f;
	struct load l;
	uint64_t zero;

	(void)state;
	connect_logging(&f);
	make_log(&d, f.mem.len);
	m = (struct vu_log_msg){ .len = d.len };
	must(&f, vu_front_query_u64(&f, VU_SET_LOG_BASE, &m, sizeof(m), d.fd, &zero));
	for (unsigned i = 0; i < 10; i++) {
		log_features(&f, true);
		log_ring(&f, 0, true, vu_mem_guest(&f.mem, f.ring[0].used));
		clear(&d);
		served_shut(0);
		offer_writes(&l, &f, 0, (uint8_t)i);
		served_wait_held(0, LOAD);
		assert_int_equal(nr_dirty(&d), 0); /* nothing is logged before it is written */
		served_open(0);
		wait_writes(&l, LOAD);
		logged_by_now(&f);
		assert_true(is_dirty(&d, vu_mem_guest(&f.mem, f.ring[0].used)));
		check_writes(&l, (uint8_t)i);
		end_load(&l);
		log_features(&f, false);
	}
	vu_front_close(&f);
	drop_log(&d);
}

static void expect_no_log(struct vu_log_msg m, int fd, const char *why)
{
	struct vu_front f;

	connect_logging(&f);
	must(&f, vu_send(f.sock, VU_SET_LOG_BASE, VU_FLAG_VERSION, &m, sizeof(m), &fd, 1,
			 vu_deadline_ns(SERVED_MS), &f.err));
	must(&f, vu_raw_wait_closed(&f, SERVED_MS));
	if (!served_logged(why))
		fail_msg("the log does not say \"%s\"", why);
	vu_front_close(&f);
}

/* A front end that believes in a log which is not there would move a machine with old memory. */
static void a_log_that_cannot_be_ends_the_session(void **state)
{
	struct vu_log_msg m = { .len = PAGE };
	struct dirty d;
	struct vu_front f;
	int fds[2];

	(void)state;
	make_log(&d, MiB(64));
	m.off = d.len;
	expect_no_log(m, d.fd, "are not inside the file");
	m.off = UINT64_MAX;
	expect_no_log(m, d.fd, "0xffffffffffffffff are not inside the file");
	m = (struct vu_log_msg){ .len = 0 };
	expect_no_log(m, d.fd, "0x0 bytes");
	m.len = 8; /* 256 KiB of memory */
	expect_no_log(m, d.fd, "has no bits for memory up to");
	m.len = PAGE;
	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	expect_no_log(m, fds[0], "not a file of memory");
	close(fds[0]);
	close(fds[1]);
	drop_log(&d);
	served_connect(&f, 0, 1);
	served_io_works(&f, 0);
	vu_front_close(&f);
}

/* What comes later must fit the log as well. */
static void a_log_that_has_become_too_short_is_noticed(void **state)
{
	struct vu_front_opts o = served_front_opts(0, 1);
	struct vu_log_msg m;
	struct vu_region_msg far = { .guest_addr = BIT(40), .len = PAGE, .user_addr = PAGE };
	struct dirty d;
	struct vu_front f;
	uint64_t zero;

	(void)state;
	o.protocol_features |= BIT(VU_PROTOCOL_F_LOG_SHMFD) | BIT(VU_PROTOCOL_F_CONFIGURE_MEM_SLOTS);
	must(&f, vu_front_open(&f, &o));
	make_log(&d, f.mem.len);
	m = (struct vu_log_msg){ .len = d.len };
	must(&f, vu_front_query_u64(&f, VU_SET_LOG_BASE, &m, sizeof(m), d.fd, &zero));
	assert_int_equal(vu_front_add_region(&f, &far, f.mem.fd), -EREMOTEIO);
	assert_int_equal(served_logged("the dirty log ends before guest address 0x10000001000"), 1);
	served_io_works(&f, 0);
	vu_front_close(&f);
	drop_log(&d);
}

/* ---- the device's own state ---- */

static uint64_t transfer(struct vu_front *f, uint32_t direction, int fd)
{
	struct vu_transfer_msg t = { .direction = direction };
	uint64_t answer;

	must(f, vu_front_query_u64(f, VU_SET_DEVICE_STATE_FD, &t, sizeof(t), fd, &answer));
	assert_true(answer & VU_STATE_NO_FD);
	return answer & 0xff;
}

static uint64_t transfer_result(struct vu_front *f)
{
	uint64_t answer;

	must(f, vu_front_query_u64(f, VU_CHECK_DEVICE_STATE, NULL, 0, -1, &answer));
	return answer;
}

static void load_state(struct vu_front *f, const void *bytes, size_t len, uint64_t want)
{
	int fds[2];

	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	assert_int_equal(transfer(f, 1, fds[0]), 0);
	close(fds[0]);
	if (len)
		assert_int_equal(write(fds[1], bytes, len), len);
	close(fds[1]);
	assert_int_equal(transfer_result(f), want);
}

static uint8_t write_cache(struct vu_front *f)
{
	uint8_t wce;

	must(f, vu_front_get_config(f, 32, &wce, 1));
	return wce;
}

static void the_state_goes_from_one_device_to_another(void **state)
{
	struct vu_front f;
	uint8_t bytes[64];
	int fds[2];
	ssize_t len;

	(void)state;
	served_connect(&f, 0, 1);
	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	assert_int_not_equal(transfer(&f, 0, fds[1]), 0);
	assert_int_equal(served_logged("the device is running; stop its queues first"), 1);
	must(&f, vu_front_set_config(&f, 32, &(uint8_t){ 0 }, 1, 0));
	must(&f, vu_front_stop_queue(&f, 0, NULL));
	assert_int_equal(transfer(&f, 0, fds[1]), 0);
	close(fds[1]);
	assert_int_equal(transfer_result(&f), 0);
	len = read(fds[0], bytes, sizeof(bytes));
	assert_int_equal(len, 16);
	assert_int_equal(read(fds[0], bytes + 16, 1), 0); /* its end is told */
	close(fds[0]);
	vu_front_close(&f);

	served_connect(&f, 1, 1);
	must(&f, vu_front_stop_queue(&f, 0, NULL));
	assert_int_equal(write_cache(&f), 1);
	load_state(&f, bytes, 0, 0); /* of a back end that has none */
	assert_int_equal(write_cache(&f), 1);
	load_state(&f, bytes, 15, 1);
	load_state(&f, bytes, 17, 1);
	assert_int_equal(write_cache(&f), 1);
	bytes[8]++;
	load_state(&f, bytes, 16, 1);
	bytes[8]--;
	bytes[0] ^= 1;
	load_state(&f, bytes, 16, 1);
	bytes[0] ^= 1;
	load_state(&f, bytes, 16, 0);
	assert_int_equal(write_cache(&f), 0);
	/* Asked before the other end is closed: we do not wait. */
	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	assert_int_equal(transfer(&f, 1, fds[0]), 0);
	assert_int_equal(transfer_result(&f), 1);
	assert_int_equal(served_logged("cannot be read to its end"), 1);
	assert_int_equal(transfer(&f, 2, fds[0]), 1);
	assert_int_equal(transfer(&f, 1, f.mem.fd), 1);
	close(fds[0]);
	close(fds[1]);
	must(&f, vu_front_start_queue(&f, 0));
	served_io_works(&f, 0);
	vu_front_close(&f);
}

/* ---- requests in flight ---- */

static void the_area_of_requests_in_flight_goes_and_comes(void **state)
{
	struct vu_front_opts o = served_front_opts(0, 2);
	struct vu_inflight_msg ask = { .nr_queues = 2, .queue_size = 128 };
	struct vu_front f;
	struct vu_msg reply;

	(void)state;
	o.protocol_features |= BIT(VU_PROTOCOL_F_INFLIGHT_SHMFD);
	must(&f, vu_front_init(&f, &o));
	must(&f, vu_front_connect(&f));
	must(&f, vu_front_negotiate(&f));
	assert_true(vu_has(f.protocol_features, VU_PROTOCOL_F_INFLIGHT_SHMFD));
	for (unsigned len = VU_INFLIGHT_LEN; len <= 24;
	     len += 4) { /* as described, and as compilers pad it */
		uint8_t padded[24] = { 0 };
		struct stat st;

		memcpy(padded, &ask, VU_INFLIGHT_LEN);
		must(&f, vu_front_query(&f, VU_GET_INFLIGHT_FD, padded, len, &reply));
		assert_int_equal(reply.hdr.size, len);
		assert_int_equal(reply.nr_fds, 1);
		assert_int_equal(reply.inflight.nr_queues, 2);
		assert_int_equal(reply.inflight.queue_size, 128);
		assert_int_equal(fstat(reply.fds[0], &st), 0);
		assert_true(reply.inflight.mmap_len <= (uint64_t)st.st_size);
		if (len == VU_INFLIGHT_LEN)
			vu_msg_close_fds(&reply);
	}
	must(&f, vu_front_request(&f, VU_SET_INFLIGHT_FD, &reply.inflight, VU_INFLIGHT_LEN, reply.fds, 1));
	must(&f, vu_front_share_memory(&f));
	must(&f, vu_front_start_queue(&f, 0));
	served_io_works(&f, 0);
	/* One that is shorter than it should be. */
	reply.inflight.mmap_len = UINT64_MAX;
	assert_int_equal(
		vu_front_request(&f, VU_SET_INFLIGHT_FD, &reply.inflight, VU_INFLIGHT_LEN, reply.fds, 1),
		-EREMOTEIO);
	assert_int_equal(served_logged("SET_INFLIGHT_FD: "), 1);
	served_io_works(&f, 0);
	vu_msg_close_fds(&reply);
	vu_front_close(&f);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, served_setup, served_teardown)

/*
 * A guest that has switched its write cache off takes what completes for stable. The server dies, the next one is given the area
 * of requests in flight, and nothing else: it goes on writing through.
 */
static void the_guest_s_choice_of_the_cache_is_kept_beside_its_requests(void **state)
{
	struct vu_front_opts o = served_front_opts(0, 1);
	struct vu_front f;

	(void)state;
	o.protocol_features |= BIT(VU_PROTOCOL_F_INFLIGHT_SHMFD);
	must(&f, vu_front_open(&f, &o));
	for (unsigned i = 0; i < 4; i++) {
		uint8_t wce = i % 2;

		must(&f, vu_front_set_config(&f, 32, &wce, 1, 0));
		served_io_works(&f, 0);
		vu_front_disconnect(&f);
		if (i == 2) { /* a server that really ends */
			struct varve_error err;

			served_stop(0);
			assert_int_equal(served_start(0, &err), 0);
		}
		must(&f, vu_front_connect(&f));
		must(&f, vu_front_negotiate(&f));
		must(&f, vu_front_share_memory(&f));
		assert_int_equal(write_cache(&f), 1);
		must(&f, vu_front_share_inflight(&f));
		assert_int_equal(write_cache(&f), wce);
		must(&f, vu_front_start_queue(&f, 0));
		served_io_works(&f, 0);
	}
	/* What was chosen before there was an area is noted when it comes. */
	must(&f, vu_front_set_config(&f, 32, &(uint8_t){ 0 }, 1, 0));
	must(&f, vu_front_share_inflight(&f));
	assert_int_equal(write_cache(&f), 0);
	vu_front_close(&f);
	/* Nothing of it concerns the next machine. */
	served_connect(&f, 0, 1);
	assert_int_equal(write_cache(&f), 1);
	vu_front_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(what_the_device_writes_is_logged),
		TEST(logging_begins_and_ends_under_load),
		TEST(a_log_that_cannot_be_ends_the_session),
		TEST(a_log_that_has_become_too_short_is_noticed),
		TEST(the_state_goes_from_one_device_to_another),
		TEST(the_area_of_requests_in_flight_goes_and_comes),
		TEST(the_guest_s_choice_of_the_cache_is_kept_beside_its_requests),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
