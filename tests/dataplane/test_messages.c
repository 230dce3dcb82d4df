/* SPDX-License-Identifier: MIT */
/*
 * test_messages.c - memory slots, device status, the write cache, the back-end channel, pause, and front ends
 * that know little
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cmocka.h>

#include "../lib/hugepages.h"
#include "block/policy.h"
#include "served.h"

#define BIT(n) (UINT64_C(1) << (n))
#define WCE 32 /* the writeback field of the configuration space */

static void connect_with(struct vu_front *f, unsigned nr_queues, unsigned protocol_feature)
{
	struct vu_front_opts o = served_front_opts(0, nr_queues);

	o.protocol_features |= BIT(protocol_feature);
	must(f, vu_front_open(f, &o));
	assert_true(vu_has(f->protocol_features, protocol_feature));
}

static void must_be_refused(struct vu_front *f, int ret, const char *why)
{
	(void)f;
	assert_int_equal(ret, -EREMOTEIO);
	if (!served_logged(why))
		fail_msg("the log does not say \"%s\"", why);
}

/* ---- memory slots ---- */

#define SPARE_LEN 4096u

/* A region of one page in a file of its own, far from others. */
static struct vu_region_msg spare(unsigned i)
{
	return (struct vu_region_msg){ .guest_addr = (UINT64_C(1) << 40) + i * UINT64_C(0x10000),
				       .len = SPARE_LEN,
				       .user_addr = UINT64_C(0x10000000) + i * UINT64_C(0x10000) };
}

static int make_memory(uint64_t len)
{
	int fd = memfd_create("spare", MFD_CLOEXEC);

	assert_true(fd >= 0 && ftruncate(fd, (off_t)len) == 0);
	return fd;
}

static void memory_may_come_region_by_region(void **state)
{
	struct vu_front_opts o = served_front_opts(0, 2);
	struct vu_front f;
	uint64_t slots;

	(void)state;
	o.protocol_features |= BIT(VU_PROTOCOL_F_CONFIGURE_MEM_SLOTS);
	o.nr_regions = 5;
	must(&f, vu_front_init(&f, &o));
	must(&f, vu_front_connect(&f));
	must(&f, vu_front_negotiate(&f));
	must(&f, vu_front_query_u64(&f, VU_GET_MAX_MEM_SLOTS, NULL, 0, -1, &slots));
	assert_int_equal(slots, 509);
	for (unsigned i = 5; i--;) {
		const struct vu_region *r = &f.mem.region[i];
		struct vu_region_msg m = { r->guest_addr, r->len, (uintptr_t)f.mem.base + r->file_off,
					   r->file_off };

		must(&f, vu_front_add_region(&f, &m, f.mem.fd));
	}
	must(&f, vu_front_start_queue(&f, 0));
	must(&f, vu_front_start_queue(&f, 1));
	served_io_works(&f, 0);
	served_io_works(&f, 1);
	vu_front_close(&f);
}

/* While requests are in flight: they end first, and go on afterwards. */
static void regions_come_and_go_under_load(void **state)
{
	int fd = make_memory(SPARE_LEN);
	struct vu_front f;
	struct load l;

	(void)state;
	connect_with(&f, 2, VU_PROTOCOL_F_CONFIGURE_MEM_SLOTS);
	for (unsigned i = 0; i < 30; i++) {
		struct vu_region_msg m = spare(i);

		offer_writes(&l, &f, i % 2, (uint8_t)i);
		must(&f, vu_front_add_region(&f, &m, fd));
		wait_writes(&l, LOAD);
		check_writes(&l, (uint8_t)i);
		end_load(&l);
		if (i % 3)
			must(&f, vu_front_remove_region(&f, &m));
	}
	served_io_works(&f, 0);
	vu_front_close(&f);
	close(fd);
}

static void what_no_region_can_be_is_refused(void **state)
{
	struct vu_region_msg m = spare(0), other;
	int fd = make_memory(SPARE_LEN);
	struct vu_front f;

	(void)state;
	connect_with(&f, 1, VU_PROTOCOL_F_CONFIGURE_MEM_SLOTS);
	must_be_refused(&f, vu_front_remove_region(&f, &m),
			"REM_MEM_REG: no memory region has guest address");
	must(&f, vu_front_add_region(&f, &m, fd));
	must_be_refused(&f, vu_front_add_region(&f, &m, fd), "ADD_MEM_REG: memory regions 1 and 2 overlap");
	other = m;
	other.len--;
	must_be_refused(&f, vu_front_remove_region(&f, &other), "and 0xfff bytes");
	other = spare(1);
	other.mmap_off = 1;
	must_be_refused(&f, vu_front_add_region(&f, &other, fd), "reach beyond the end of the file");
	other = spare(1);
	other.len = UINT64_MAX;
	must_be_refused(&f, vu_front_add_region(&f, &other, fd), "wrap around");
	must_be_refused(&f, vu_front_add_region(&f, &other, f.ring[0].call_fd), "wrap around");
	other = spare(1);
	must_be_refused(&f, vu_front_add_region(&f, &other, f.ring[0].call_fd), "not a file of memory");
	must(&f, vu_front_remove_region(&f, &m));
	served_io_works(&f, 0);
	/* Where the rings are: the session goes on, the queue does not. */
	other = (struct vu_region_msg){ f.mem.region[0].guest_addr, f.mem.region[0].len,
					(uintptr_t)f.mem.base, 0 };
	must(&f, vu_front_remove_region(&f, &other));
	must(&f, vu_front_add_region(&f, &other, f.mem.fd));
	served_io_works(&f, 0);
	vu_front_close(&f);
	close(fd);
}

static void there_are_509_slots_and_no_more(void **state)
{
	struct vu_front_opts o = served_front_opts(0, 1);
	int fd = make_memory(SPARE_LEN);
	struct vu_region_msg m;
	struct vu_front f;

	(void)state;
	o.protocol_features |= BIT(VU_PROTOCOL_F_CONFIGURE_MEM_SLOTS);
	must(&f, vu_front_init(&f, &o));
	must(&f, vu_front_connect(&f));
	must(&f, vu_front_negotiate(&f));
	must(&f, vu_front_share_memory(&f));
	for (unsigned i = 1; i < 509; i++) {
		m = spare(i);
		must(&f, vu_front_add_region(&f, &m, fd));
	}
	m = spare(509);
	must_be_refused(&f, vu_front_add_region(&f, &m, fd), "there are 509 memory regions already");
	m = spare(250);
	must(&f, vu_front_remove_region(&f, &m));
	must(&f, vu_front_add_region(&f, &m, fd));
	must(&f, vu_front_start_queue(&f, 0));
	served_io_works(&f, 0);
	/* A table replaces them all. */
	must(&f, vu_front_share_memory(&f));
	m = spare(509);
	must(&f, vu_front_add_region(&f, &m, fd));
	vu_front_close(&f);
	close(fd);
}

static int make_huge(off_t len)
{
	int fd = memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB);

	assert_true(fd >= 0 && ftruncate(fd, len) == 0);
	return fd;
}

/* The region begins and ends inside a huge page; more is mapped than it has, which shows nowhere. */
static void regions_of_huge_pages_are_mapped_whole(void **state)
{
	struct vu_region_msg m = spare(0);
	struct vu_front f;
	int fd;

	(void)state;
	if (!hugepages_take(2))
		skip();
	fd = make_huge(MiB(4));
	m.len = MiB(2);
	m.mmap_off = MiB(2) - 4096;
	connect_with(&f, 1, VU_PROTOCOL_F_CONFIGURE_MEM_SLOTS);
	must(&f, vu_front_add_region(&f, &m, fd));
	served_io_works(&f, 0);
	must(&f, vu_front_remove_region(&f, &m));
	served_io_works(&f, 0);
	vu_front_close(&f);
	close(fd);
	hugepages_give_back(2);
}

/* A request by hand: writes, or reads, len bytes of the disk from, or to, the guest's memory at guest_addr. */
static void offer_raw(struct vu_front *f, uint32_t type, uint64_t guest_addr, uint32_t len)
{
	struct vu_ring *r = &f->ring[0];
	uint8_t *at = f->mem.base + f->mem.len / 2;
	uint64_t guest = vu_mem_guest(&f->mem, at);
	const uint32_t head[4] = { htole32(type) };

	memcpy(at, head, sizeof(head));
	at[16] = 0xff;
	if (served_packed()) {
		uint16_t lap = vu_raw_packed_lap(r), in = type ? 0 : VRING_DESC_F_WRITE;

		vu_raw_packed_desc(r, 2, guest + 16, 1, 7, (uint16_t)(lap | VRING_DESC_F_WRITE));
		vu_raw_packed_desc(r, 1, guest_addr, len, 7, (uint16_t)(lap | VRING_DESC_F_NEXT | in));
		vu_raw_packed_desc(r, 0, guest, 16, 7, (uint16_t)(lap | VRING_DESC_F_NEXT));
	} else {
		vu_raw_desc(r, 0, guest, 16, VRING_DESC_F_NEXT, 1);
		vu_raw_desc(r, 1, guest_addr, len,
			    (uint16_t)(VRING_DESC_F_NEXT | (type ? 0 : VRING_DESC_F_WRITE)), 2);
		vu_raw_desc(r, 2, guest + 16, 1, VRING_DESC_F_WRITE, 0);
		vu_raw_offer(r, 0);
	}
	assert_int_equal(vu_raw_kick(r), 0);
}

/*
 * Pages of hugetlbfs come from a pool: what the front end takes back, or what the pool does not have, is SIGBUS. The
 * fault is repaired for the whole huge page; the device is broken, the other one goes on.
 */
static void huge_pages_that_are_taken_back_break_one_device(void **state)
{
	struct vu_region_msg m = spare(0);
	struct vu_front f, other;
	int fd;

	(void)state;
	if (!hugepages_take(2))
		skip();
	served_connect(&other, 1, 1);
	for (uint32_t type = 0; type < 2; type++) {
		fd = make_huge(MiB(4));
		m.len = MiB(4);
		connect_with(&f, 1, VU_PROTOCOL_F_CONFIGURE_MEM_SLOTS);
		must(&f, vu_front_add_region(&f, &m, fd));
		served_shut(0);
		offer_raw(&f, type, m.guest_addr + MiB(2) - 4096, 8192); /* across two huge pages */
		served_wait_held(0, 1);
		assert_int_equal(ftruncate(fd, MiB(2)), 0);
		served_open(0);
		assert_int_equal(vu_raw_wait_broken(&f, 0, SERVED_MS), VU_RAW_ERR_SIGNALLED);
		served_io_works(&other, 0);
		vu_front_close(&f);
		close(fd);
	}
	assert_int_equal(served_logged("has cut off memory"), 2);
	connect_with(&f, 1, VU_PROTOCOL_F_CONFIGURE_MEM_SLOTS);
	served_io_works(&f, 0);
	vu_front_close(&f);
	vu_front_close(&other);
	hugepages_give_back(2);
}

/* ---- device status ---- */

static void the_status_is_kept_and_zero_is_a_reset(void **state)
{
	struct vu_front f;
	uint64_t status = 0xf, set;

	(void)state;
	connect_with(&f, 2, VU_PROTOCOL_F_STATUS);
	must(&f, vu_front_request(&f, VU_SET_STATUS, &status, 8, NULL, 0));
	must(&f, vu_front_query_u64(&f, VU_GET_STATUS, NULL, 0, -1, &status));
	assert_int_equal(status, 0xf);
	status = 0x100;
	must_be_refused(&f, vu_front_request(&f, VU_SET_STATUS, &status, 8, NULL, 0),
			"0x100 is not a device status");
	served_io_works(&f, 0);
	for (unsigned i = 0; i < 3; i++) {
		status = 0;
		must(&f, vu_front_request(&f, VU_SET_STATUS, &status, 8, NULL, 0));
		status = 0xb; /* FEATURES_OK, without features: it does not stay set */
		must(&f, vu_front_request(&f, VU_SET_STATUS, &status, 8, NULL, 0));
		must(&f, vu_front_query_u64(&f, VU_GET_STATUS, NULL, 0, -1, &status));
		assert_int_equal(status, 0x3);
		set = f.features | BIT(VU_F_PROTOCOL_FEATURES);
		must(&f, vu_front_request(&f, VU_SET_FEATURES, &set, sizeof(set), NULL, 0));
		for (unsigned q = 0; q < 2; q++) {
			vu_ring_reset(&f.ring[q], 0);
			must(&f, vu_front_start_queue(&f, q));
			served_io_works(&f, q);
		}
	}
	vu_front_close(&f);
}

/* ---- the write cache ---- */

static uint8_t write_cache(struct vu_front *f)
{
	uint8_t wce;

	must(f, vu_front_get_config(f, WCE, &wce, 1));
	return wce;
}

static void the_guest_switches_the_write_cache(void **state)
{
	struct vu_front_opts o = served_front_opts(0, 2);
	struct vu_front f;
	uint8_t space[60];

	(void)state;
	served_connect(&f, 0, 2);
	assert_int_equal(write_cache(&f), 1);
	for (unsigned i = 0; i < 4; i++) {
		uint8_t wce = i % 2;

		must(&f, vu_front_set_config(&f, WCE, &wce, 1, 0));
		assert_int_equal(write_cache(&f), wce);
		served_io_works(&f, 0);
		served_io_works(&f, 1);
	}
	/* After a migration the front end brings the whole space; the rest of it is ours to know. */
	must(&f, vu_front_get_config(&f, 0, space, sizeof(space)));
	space[WCE] = 0;
	space[0] ^= 0xff;
	must(&f, vu_front_set_config(&f, 0, space, sizeof(space), 1));
	assert_int_equal(write_cache(&f), 0);
	space[WCE] = 1;
	must(&f, vu_front_get_config(&f, 0, space + 1, 1));
	assert_int_equal(space[1], SERVED_LEN / 512 & 0xff);
	vu_front_close(&f);

	/* The next front end finds it as it was at first; one that does not know the feature cannot change
	 * it. */
	o.features &= ~BIT(VIRTIO_BLK_F_CONFIG_WCE);
	must(&f, vu_front_open(&f, &o));
	assert_int_equal(write_cache(&f), 1);
	must_be_refused(&f, vu_front_set_config(&f, WCE, &(uint8_t){ 0 }, 1, 0),
			"when CONFIG_WCE is negotiated");
	assert_int_equal(write_cache(&f), 1);
	vu_front_close(&f);
}

/*
 * QEMU before 8.0 stops a device, because its machine is stopped or moves elsewhere, by status 0 and asks only then where each
 * ring was: the next one goes on there. The guest has noticed nothing, so what it chose stays, too.
 */
static void a_machine_that_is_stopped_goes_on_where_it_was(void **state)
{
	struct vu_front f;
	uint64_t status = 0, set;

	(void)state;
	connect_with(&f, 2, VU_PROTOCOL_F_STATUS);
	must(&f, vu_front_set_config(&f, WCE, &(uint8_t){ 0 }, 1, 0));
	for (unsigned i = 0; i < 3; i++) {
		uint32_t base;

		for (unsigned q = 0; q < 2; q++)
			served_io_works(&f, q);
		status = 0;
		must(&f, vu_front_request(&f, VU_SET_STATUS, &status, 8, NULL, 0));
		for (unsigned q = 0; q < 2; q++) {
			must(&f, vu_front_stop_queue(&f, q, &base));
			assert_int_equal(base, vu_ring_end(&f.ring[q]));
		}
		set = f.features | BIT(VU_F_PROTOCOL_FEATURES);
		must(&f, vu_front_request(&f, VU_SET_FEATURES, &set, sizeof(set), NULL, 0));
		for (unsigned q = 0; q < 2; q++)
			must(&f, vu_front_start_queue(&f, q));
		assert_int_equal(write_cache(&f), 0);
	}
	vu_front_close(&f);
}

/* ---- the back-end channel ---- */

struct truncate_call {
	struct node *n;
	uint64_t len;
};

static int truncate_disk(struct fiber *f, void *arg)
{
	struct truncate_call *c = arg;

	return node_truncate(f, c->n, c->len, 0, NULL);
}

static void resize(uint64_t len)
{
	struct truncate_call c = { served[0].top, len };

	assert_int_equal(fiber_call(served_queues[0], truncate_disk, &c), 0);
}

static uint64_t capacity(struct vu_front *f)
{
	uint64_t sectors;

	must(f, vu_front_get_config(f, 0, &sectors, sizeof(sectors)));
	return sectors * 512;
}

static void a_new_length_is_announced(void **state)
{
	struct vu_front f;
	struct vu_msg m;
	int channel[2], fds[2];

	(void)state;
	connect_with(&f, 1, VU_PROTOCOL_F_BACKEND_REQ);
	resize(MiB(65)); /* nobody has asked to be told */
	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	must_be_refused(&f, vu_front_request(&f, VU_SET_BACKEND_REQ_FD, NULL, 0, fds + 1, 1),
			"is not a socket");
	close(fds[0]);
	close(fds[1]);
	for (unsigned i = 0; i < 2; i++) { /* the second one takes the place of the first */
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, channel), 0);
		must(&f, vu_front_request(&f, VU_SET_BACKEND_REQ_FD, NULL, 0, channel + 1, 1));
		close(channel[1]);
		resize(MiB(70 + i));
		must(&f, vu_recv(channel[0], &m, vu_deadline_ns(SERVED_MS), &f.err));
		assert_int_equal(m.hdr.request, VU_BACKEND_CONFIG_CHANGE);
		assert_int_equal(m.hdr.flags, VU_FLAG_VERSION);
		assert_int_equal(m.hdr.size, 0);
		assert_int_equal(capacity(&f), MiB(70 + i));
		if (i == 0) {
			close(channel[0]);
			resize(MiB(80)); /* nobody reads it any more */
			while (!served_logged("cannot be told of the new configuration"))
				assert_int_equal(capacity(&f), MiB(80));
		}
	}
	assert_int_equal(served_logged("cannot be told of the new configuration"), 1);
	/* One that never reads: we do not wait for it. */
	for (unsigned i = 0; served_logged("cannot be told of the new configuration") < 2; i++) {
		assert_true(i < 100000);
		resize(MiB(64 + i % 2));
		assert_int_equal(capacity(&f), MiB(64 + i % 2)); /* by way of the thread that tells */
	}
	served_io_works(&f, 0);
	close(channel[0]);
	vu_front_close(&f);
}

/* ---- pause ---- */

static void a_paused_disk_answers_messages_and_takes_no_request(void **state)
{
	struct vu_front f, other;
	struct load l;

	(void)state;
	served_connect(&f, 0, 2);
	served_connect(&other, 1, 1);
	vublk_pause(served[0].vublk);
	offer_writes(&l, &f, 0, 5);
	assert_int_equal(write_cache(&f), 1);
	must(&f, vu_front_enable_queue(&f, 0, true));
	must(&f, vu_front_stop_queue(&f, 1, NULL));
	must(&f, vu_front_start_queue(&f, 1));
	served_io_works(&other, 0); /* on the same queues' threads */
	assert_int_equal(reap_writes(&l), 0);
	vublk_resume(served[0].vublk);
	wait_writes(&l, LOAD);
	check_writes(&l, 5);
	end_load(&l);
	served_io_works(&f, 1);

	/* A front end that comes while the disk is paused waits, too; one that goes does so at once. */
	vublk_pause(served[0].vublk);
	vu_front_close(&f);
	served_connect(&f, 0, 1);
	offer_writes(&l, &f, 0, 6);
	served_io_works(&other, 0);
	assert_int_equal(reap_writes(&l), 0);
	vublk_resume(served[0].vublk);
	wait_writes(&l, LOAD);
	end_load(&l);
	vublk_pause(served[0].vublk); /* and stopping does not wait for anybody to resume it */
	vu_front_close(&f);
	vu_front_close(&other);
}

static void *pause_first(void *done)
{
	vublk_pause(served[0].vublk);
	atomic_store((_Atomic bool *)done, true);
	return NULL;
}

/*
 * The last running queue is being stopped by a message when the pause comes: the message's end is the pause's, too, although
 * the pause itself has stopped nothing.
 */
static void pausing_while_a_message_stops_the_queue_ends(void **state)
{
	for (unsigned i = 0; i < 10; i++) {
		struct vu_vring_state which = { .index = 0 };
		uint64_t deadline = vu_deadline_ns(SERVED_MS);
		_Atomic bool done = false;
		pthread_t thread;
		struct vu_front f;
		struct vu_blk b;
		struct vu_io *io;

		(void)state;
		served_connect(&f, 0, 1);
		assert_int_equal(vu_blk_open(&b, &f, 0, 1, 4096), 0);
		io = vu_blk_get(&b);
		vu_io_write(io, 0, 4096);
		served_shut(0);
		assert_int_equal(vu_blk_submit(&b, io), 0);
		assert_int_equal(vu_blk_kick(&b), 0);
		served_wait_held(0, 1);
		send_only(&f, VU_GET_VRING_BASE, &which, sizeof(which));
		assert_int_equal(pthread_create(&thread, NULL, pause_first, &done), 0);
		usleep(1000 * i); /* any order of the two is right; most of these are that of interest */
		assert_false(atomic_load(&done));
		served_open(0);
		while (!atomic_load(&done)) {
			if (!vu_ms_left(deadline))
				fail_msg("the pause does not end");
			usleep(1000);
		}
		pthread_join(thread, NULL);
		vublk_resume(served[0].vublk);
		vu_blk_free(&b);
		vu_front_close(&f);
	}
}

static void pausing_waits_for_requests_in_flight(void **state)
{
	struct vu_front f;
	struct load l;

	(void)state;
	served_connect(&f, 0, 1);
	for (unsigned i = 0; i < 20; i++) {
		offer_writes(&l, &f, 0, (uint8_t)i);
		vublk_pause(served[0].vublk);
		vublk_resume(served[0].vublk);
		wait_writes(&l, LOAD);
		check_writes(&l, (uint8_t)i);
		end_load(&l);
	}
	vu_front_close(&f);
}

static int stop_for_errors(struct fiber *f, void *top)
{
	(void)f;
	return policy_open(top, WERROR_STOP, NULL);
}

static void *pause_if_running(void *ret)
{
	*(int *)ret = vublk_pause_unless_stopped(served[0].vublk);
	return NULL;
}

static bool is_paused(void)
{
	struct vublk_stats *st = vublk_get_stats(served[0].vublk);
	bool paused = st->paused;

	free(st);
	return paused;
}

/* What waits for somebody to resume the disk cannot be waited for, and the front end hears of no error: as if nobody had paused it. */
static void a_pause_of_a_disk_that_stops_is_taken_back(void **state)
{
	struct policy_state stopped;
	struct vu_front f;
	struct vu_blk b, other;
	struct vu_io *io, *again, *done;
	uint8_t in[4096];
	pthread_t thread;
	int ret = 0;

	(void)state;
	assert_int_equal(fiber_call(served[0].top->home, stop_for_errors, served[0].top), 0);
	served_connect(&f, 0, 2);
	assert_int_equal(vu_blk_open(&b, &f, 0, 2, 4096), 0);
	assert_int_equal(vu_blk_open(&other, &f, 1, 1, 4096), 0);
	b.timeout_ms = other.timeout_ms = SERVED_MS;
	io = vu_blk_get(&b);
	again = vu_blk_get(&b);
	memset(io->data, 0x5a, 4096);
	vu_io_write(io, 0, 4096);
	for (unsigned i = 0; i < 5; i++) {
		served_shut(0);
		if (i == 0) {
			assert_int_equal(vu_blk_submit(&b, io), 0);
			assert_int_equal(vu_blk_kick(&b), 0);
		} else {
			assert_int_equal(policy_resume(served[0].top), -ENOSPC);
		}
		served_wait_held(0, 1);
		assert_int_equal(pthread_create(&thread, NULL, pause_if_running, &ret), 0);
		while (!is_paused()) /* else it would not be what is in flight that it waits for */
			sched_yield();
		served_fail(0);
		pthread_join(thread, NULL);
		assert_int_equal(ret, -ENOSPC);
		served_open(0);
		assert_false(is_paused());
		/* The queue whose request waits goes on with others; so does the one that had stopped already, and messages are answered. */
		vu_io_read(again, 0, 4096);
		assert_int_equal(vu_blk_submit(&b, again), 0);
		assert_int_equal(vu_blk_kick(&b), 0);
		assert_int_equal(vu_blk_wait(&b, vu_deadline_ns(SERVED_MS)), 0);
		assert_int_equal(vu_blk_reap(&b, &done, 1), 1);
		assert_ptr_equal(done, again);
		assert_int_equal(again->ret, 0);
		assert_int_equal(vu_blk_read(&other, 0, in, sizeof(in)), 0);
		assert_int_equal(vublk_pause_unless_stopped(served[0].vublk), -ENOSPC);
		assert_int_equal(write_cache(&f), 1);
		assert_int_equal(vu_blk_reap(&b, &done, 1), 0);
	}
	assert_int_equal(policy_resume(served[0].top), -ENOSPC);
	assert_int_equal(vu_blk_wait(&b, vu_deadline_ns(SERVED_MS)), 0);
	assert_int_equal(vu_blk_reap(&b, &done, 1), 1);
	assert_int_equal(done->ret, 0);
	assert_true(policy_get_state(served[0].top, &stopped) && !stopped.error && !stopped.nr_parked);
	assert_int_equal(vublk_pause_unless_stopped(served[0].vublk), 0);
	vublk_resume(served[0].vublk);
	vu_blk_free(&b);
	vu_blk_free(&other);
	served_io_works(&f, 0);
	served_io_works(&f, 1);
	vu_front_close(&f);
}

/* ---- front ends that know little ---- */

/* Firecracker: VERSION_1, EVENT_IDX, RO, perhaps FLUSH; of the protocol CONFIG alone; one queue of 256. */
static void a_front_end_that_knows_little_is_served(void **state)
{
	(void)state;
	for (unsigned flush = 0; flush < 2; flush++) {
		struct vu_front_opts o = served_front_opts(0, 1);
		struct vu_front f;

		o.queue_len = 256;
		o.table_len = 0;
		o.indirect = VU_DIRECT;
		o.features = BIT(VIRTIO_F_VERSION_1) | BIT(VIRTIO_RING_F_EVENT_IDX) | BIT(VIRTIO_BLK_F_RO) |
			     (flush ? BIT(VIRTIO_BLK_F_FLUSH) : 0);
		o.protocol_features = BIT(VU_PROTOCOL_F_CONFIG);
		must(&f, vu_front_open(&f, &o));
		assert_int_equal(f.protocol_features, BIT(VU_PROTOCOL_F_CONFIG));
		for (unsigned i = 0; i < 20; i++)
			served_io_works(&f, 0);
		vu_front_close(&f);
	}
}

/* What one front end has set, the next one does not find. */
static void a_session_leaves_nothing_behind(void **state)
{
	struct vu_front f;
	uint64_t status = 0xf;
	int channel[2];

	(void)state;
	connect_with(&f, 4, VU_PROTOCOL_F_STATUS);
	must(&f, vu_front_request(&f, VU_SET_STATUS, &status, 8, NULL, 0));
	must(&f, vu_front_set_config(&f, WCE, &(uint8_t){ 0 }, 1, 0));
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, channel), 0);
	must(&f, vu_front_request(&f, VU_SET_BACKEND_REQ_FD, NULL, 0, channel + 1, 1));
	close(channel[1]);
	vu_front_close(&f);
	connect_with(&f, 1, VU_PROTOCOL_F_STATUS);
	must(&f, vu_front_query_u64(&f, VU_GET_STATUS, NULL, 0, -1, &status));
	assert_int_equal(status, 0);
	assert_int_equal(write_cache(&f), 1);
	assert_int_equal(recv(channel[0], &(char){ 0 }, 1, MSG_DONTWAIT), 0); /* closed */
	served_io_works(&f, 0);
	vu_front_close(&f);
	close(channel[0]);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, served_setup, served_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(memory_may_come_region_by_region),
		TEST(regions_come_and_go_under_load),
		TEST(what_no_region_can_be_is_refused),
		TEST(there_are_509_slots_and_no_more),
		TEST(regions_of_huge_pages_are_mapped_whole),
		TEST(huge_pages_that_are_taken_back_break_one_device),
		TEST(the_status_is_kept_and_zero_is_a_reset),
		TEST(a_machine_that_is_stopped_goes_on_where_it_was),
		TEST(the_guest_switches_the_write_cache),
		TEST(a_new_length_is_announced),
		TEST(a_paused_disk_answers_messages_and_takes_no_request),
		TEST(pausing_waits_for_requests_in_flight),
		TEST(pausing_while_a_message_stops_the_queue_ends),
		TEST(a_pause_of_a_disk_that_stops_is_taken_back),
		TEST(a_front_end_that_knows_little_is_served),
		TEST(a_session_leaves_nothing_behind),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
