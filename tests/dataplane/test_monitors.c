/* SPDX-License-Identifier: MIT */
/*
 * test_monitors.c - the front ends that people use: what each takes of what is offered, and in which order it
 * sends what
 *
 * Taken from their documents and from what they were seen to send (strace of a back end under QEMU 7.2).
 */
#include <errno.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "served.h"

#define BIT(n) (UINT64_C(1) << (n))

#define MODERN (BIT(VIRTIO_F_VERSION_1) | BIT(VIRTIO_RING_F_EVENT_IDX))
#define LIMITS                                                                                               \
	(BIT(VIRTIO_BLK_F_SIZE_MAX) | BIT(VIRTIO_BLK_F_SEG_MAX) | BIT(VIRTIO_BLK_F_GEOMETRY) |               \
	 BIT(VIRTIO_BLK_F_BLK_SIZE) | BIT(VIRTIO_BLK_F_TOPOLOGY))
#define WRITES                                                                                               \
	(BIT(VIRTIO_BLK_F_FLUSH) | BIT(VIRTIO_BLK_F_CONFIG_WCE) | BIT(VIRTIO_BLK_F_DISCARD) |                \
	 BIT(VIRTIO_BLK_F_WRITE_ZEROES))

/*
 * A script is a list of words; the letters of a word that begins with * are done for each queue in turn.
 *
 *	F features	M memory	R memory, region by region	I area of requests in flight
 *	s status: running	z status 0	r requests on all queues	D device state saved
 *	n size	b base	a addresses	c call	k kick	x error	e enable	d disable g base asked for
 */
static const struct monitor {
	const char *name;
	unsigned nr_queues;
	uint64_t features, protocol_features;
	const char *script;
} monitors[] = {
	{ "QEMU 7.2, its machine is stopped and goes on", 2,
	  MODERN | LIMITS | WRITES | BIT(VIRTIO_BLK_F_MQ) | BIT(VIRTIO_RING_F_INDIRECT_DESC),
	  BIT(VU_PROTOCOL_F_MQ) | BIT(VU_PROTOCOL_F_LOG_SHMFD) | BIT(VU_PROTOCOL_F_REPLY_ACK) |
		  BIT(VU_PROTOCOL_F_CONFIG) | BIT(VU_PROTOCOL_F_BACKEND_REQ) |
		  BIT(VU_PROTOCOL_F_INFLIGHT_SHMFD) | BIT(VU_PROTOCOL_F_CONFIGURE_MEM_SLOTS) |
		  BIT(VU_PROTOCOL_F_RESET_DEVICE) | BIT(VU_PROTOCOL_F_STATUS),
	  "F s I *c F R *nbak *e s r z *g F *nbak *e s r" },
	{ "QEMU that asks before it resets", 2,
	  MODERN | LIMITS | WRITES | BIT(VIRTIO_BLK_F_MQ) | BIT(VIRTIO_RING_F_INDIRECT_DESC),
	  BIT(VU_PROTOCOL_F_MQ) | BIT(VU_PROTOCOL_F_REPLY_ACK) | BIT(VU_PROTOCOL_F_CONFIG) |
		  BIT(VU_PROTOCOL_F_INFLIGHT_SHMFD) | BIT(VU_PROTOCOL_F_STATUS),
	  "F I *c F M *nbak *e s r *d *g z F M *nbak *e s r" },
	{ "Cloud Hypervisor: pauses, resumes, saves", 4,
	  MODERN | LIMITS | WRITES | BIT(VIRTIO_BLK_F_RO) | BIT(VIRTIO_BLK_F_MQ) |
		  BIT(VIRTIO_RING_F_INDIRECT_DESC) | BIT(VIRTIO_F_IN_ORDER) | BIT(VIRTIO_F_ORDER_PLATFORM),
	  BIT(VU_PROTOCOL_F_CONFIG) | BIT(VU_PROTOCOL_F_MQ) | BIT(VU_PROTOCOL_F_CONFIGURE_MEM_SLOTS) |
		  BIT(VU_PROTOCOL_F_REPLY_ACK) | BIT(VU_PROTOCOL_F_INFLIGHT_SHMFD) |
		  BIT(VU_PROTOCOL_F_LOG_SHMFD) | BIT(VU_PROTOCOL_F_DEVICE_STATE),
	  "F F M I *nabck *e r *d *e r *d *g D *nabck *e r" },
	{ "Firecracker", 1, MODERN | BIT(VIRTIO_BLK_F_RO), BIT(VU_PROTOCOL_F_CONFIG), "F M *nabcke r" },
	{ "Firecracker with a write cache", 1, MODERN | BIT(VIRTIO_BLK_F_RO) | BIT(VIRTIO_BLK_F_FLUSH),
	  BIT(VU_PROTOCOL_F_CONFIG), "F M *nabcke r" },
	{ "crosvm: a snapshot", 2, MODERN | LIMITS | WRITES | BIT(VIRTIO_BLK_F_MQ),
	  BIT(VU_PROTOCOL_F_CONFIG) | BIT(VU_PROTOCOL_F_MQ) | BIT(VU_PROTOCOL_F_BACKEND_REQ) |
		  BIT(VU_PROTOCOL_F_DEVICE_STATE) | BIT(VU_PROTOCOL_F_REPLY_ACK),
	  "F M *nabcke r *g D *nabcke r" },
	{ "libblkio: a program, no machine", 2, MODERN | LIMITS | WRITES | BIT(VIRTIO_BLK_F_MQ),
	  BIT(VU_PROTOCOL_F_CONFIG) | BIT(VU_PROTOCOL_F_MQ) | BIT(VU_PROTOCOL_F_CONFIGURE_MEM_SLOTS),
	  "F R *nbakce r" },
};

static void share_by_regions(struct vu_front *f)
{
	for (unsigned i = 0; i < f->mem.nr_regions; i++) {
		const struct vu_region *r = &f->mem.region[i];
		struct vu_region_msg m = { r->guest_addr, r->len, (uintptr_t)f->mem.base + r->file_off,
					   r->file_off };

		must(f, vu_front_add_region(f, &m, f->mem.fd));
	}
}

static void save_state(struct vu_front *f)
{
	uint64_t ask = 0, answer; /* direction and phase */
	uint8_t bytes[64];
	int fds[2];

	assert_int_equal(pipe(fds), 0);
	must(f, vu_front_query_u64(f, VU_SET_DEVICE_STATE_FD, &ask, sizeof(ask), fds[1], &answer));
	assert_int_equal(answer, 0x100);
	close(fds[1]);
	assert_true(read(fds[0], bytes, sizeof(bytes)) > 0);
	must(f, vu_front_query_u64(f, VU_CHECK_DEVICE_STATE, NULL, 0, -1, &answer));
	assert_int_equal(answer, 0);
	close(fds[0]);
}

static void send_u64(struct vu_front *f, uint32_t request, uint64_t value)
{
	must(f, vu_front_request(f, request, &value, sizeof(value), NULL, 0));
}

static void whole_device(struct vu_front *f, char letter)
{
	switch (letter) {
	case 'F':
		send_u64(f, VU_SET_FEATURES, f->features | BIT(VU_F_PROTOCOL_FEATURES));
		break;
	case 'M':
		must(f, vu_front_share_memory(f));
		break;
	case 'R':
		share_by_regions(f);
		break;
	case 'I':
		must(f, vu_front_share_inflight(f));
		break;
	case 's':
		send_u64(f, VU_SET_STATUS, 0xf);
		break;
	case 'z':
		send_u64(f, VU_SET_STATUS, 0);
		break;
	case 'D':
		save_state(f);
		break;
	case 'r':
		for (unsigned q = 0; q < f->opts.nr_queues; q++)
			served_io_works(f, q);
		break;
	default:
		fail_msg("no letter is '%c'", letter);
	}
}

static void one_queue(struct vu_front *f, unsigned q, char letter)
{
	struct vu_ring *r = &f->ring[q];
	struct vu_vring_state num = { q, r->len }, base = { q, vu_ring_base(r) };
	struct vu_vring_addr addr = { .index = q,
				      .desc = (uintptr_t)r->desc,
				      .avail = (uintptr_t)r->avail,
				      .used = (uintptr_t)r->used };
	uint64_t which = q;
	uint32_t end;

	switch (letter) {
	case 'n':
		must(f, vu_front_request(f, VU_SET_VRING_NUM, &num, sizeof(num), NULL, 0));
		break;
	case 'b':
		must(f, vu_front_request(f, VU_SET_VRING_BASE, &base, sizeof(base), NULL, 0));
		break;
	case 'a':
		must(f, vu_front_request(f, VU_SET_VRING_ADDR, &addr, sizeof(addr), NULL, 0));
		break;
	case 'c':
		must(f, vu_front_request(f, VU_SET_VRING_CALL, &which, sizeof(which), &r->call_fd, 1));
		break;
	case 'k':
		must(f, vu_front_request(f, VU_SET_VRING_KICK, &which, sizeof(which), &r->kick_fd, 1));
		r->peer_fd = f->sock;
		break;
	case 'e':
	case 'd':
		must(f, vu_front_enable_queue(f, q, letter == 'e'));
		break;
	case 'g':
		must(f, vu_front_stop_queue(f, q, &end));
		assert_int_equal(end, vu_ring_end(r));
		break;
	default:
		fail_msg("no letter for a queue is '%c'", letter);
	}
}

static void play(struct vu_front *f, const char *script)
{
	for (const char *word = script; *word; word += strcspn(word, " "), word += *word == ' ') {
		size_t len = strcspn(word, " ");

		if (*word != '*') {
			whole_device(f, *word);
			continue;
		}
		for (unsigned q = 0; q < f->opts.nr_queues; q++) {
			for (size_t i = 1; i < len; i++)
				one_queue(f, q, word[i]);
		}
	}
}

static void every_monitor_gets_its_disk(void **state)
{
	struct varve_error err;

	(void)state;
	served_stop(0);
	served_opts.in_order = true; /* for whoever takes it */
	served_opts.nr_queues = 4;
	assert_int_equal(served_start(0, &err), 0);
	for (unsigned i = 0; i < sizeof(monitors) / sizeof(monitors[0]); i++) {
		const struct monitor *m = &monitors[i];
		struct vu_front_opts o = served_front_opts(0, m->nr_queues);
		struct vu_front f;

		print_message("# %s\n", m->name);
		o.features = m->features;
		o.protocol_features = m->protocol_features;
		o.queue_len = 256;
		if (!(m->features & BIT(VIRTIO_RING_F_INDIRECT_DESC))) {
			o.table_len = 0;
			o.indirect = VU_DIRECT;
		}
		must(&f, vu_front_init(&f, &o));
		must(&f, vu_front_connect(&f));
		must(&f, vu_front_negotiate(&f));
		assert_int_equal(f.protocol_features, m->protocol_features);
		play(&f, m->script);
		vu_front_close(&f);
	}
	served_stop(0);
	served_opts.in_order = false;
	served_opts.nr_queues = 2;
	assert_int_equal(served_start(0, &err), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(every_monitor_gets_its_disk, served_setup, served_teardown),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
