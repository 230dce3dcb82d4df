/* SPDX-License-Identifier: MIT */
/*
 * test_disorder.c - messages of every kind, well formed, in any order and with any content: each is obeyed,
 * refused, or ends the session; the server, its other disk, and the next front end do not suffer
 */
#include <errno.h>
#include <linux/virtio_config.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "seed.h"
#include "served.h"

#define BIT(n) (UINT64_C(1) << (n))
#define SESSIONS 150
#define MESSAGES 60

static uint64_t seed, dice;

static uint64_t roll(uint64_t sides)
{
	dice = dice * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (dice >> 33) % sides;
}

/* What a message may carry: sometimes right, sometimes close to it, sometimes anything. */
struct cast {
	struct vu_front *f;
	int channel[2], pipe[2], log;
};

static uint64_t some_number(void)
{
	static const uint64_t favourites[] = { 0,
					       1,
					       2,
					       3,
					       4,
					       7,
					       64,
					       128,
					       255,
					       256,
					       257,
					       1024,
					       4096,
					       65535,
					       65536,
					       1u << 20,
					       UINT32_MAX,
					       UINT64_MAX,
					       UINT64_MAX - 4095,
					       BIT(63),
					       BIT(40) };

	return roll(8) ? favourites[roll(sizeof(favourites) / sizeof(favourites[0]))]
		       : roll(UINT32_MAX) << roll(32);
}

static int some_fd(const struct cast *c)
{
	const int fds[] = { c->f->ring[0].kick_fd,
			    c->f->ring[0].call_fd,
			    c->f->ring[1].kick_fd,
			    c->f->mem.fd,
			    c->channel[1],
			    c->pipe[0],
			    c->pipe[1],
			    c->log };

	return fds[roll(sizeof(fds) / sizeof(fds[0]))];
}

static struct vu_region_msg some_region(const struct cast *c)
{
	const struct vu_region *r = &c->f->mem.region[roll(c->f->mem.nr_regions)];
	struct vu_region_msg m = { r->guest_addr, r->len, (uintptr_t)c->f->mem.base + r->file_off,
				   r->file_off };

	switch (roll(6)) {
	case 0:
		m.len = some_number();
		break;
	case 1:
		m.guest_addr = some_number();
		break;
	case 2:
		m.mmap_off = some_number();
		break;
	case 3:
		m.user_addr = some_number();
		break;
	}
	return m;
}

union body {
	uint64_t u64;
	struct vu_vring_state state;
	struct vu_vring_addr addr;
	struct vu_mem_table_msg mem;
	struct vu_mem_reg_msg reg;
	struct vu_config_msg config;
	struct vu_log_msg log;
	struct vu_inflight_msg inflight;
	struct vu_transfer_msg transfer;
};

static const uint32_t kinds[] = {
	VU_GET_FEATURES,
	VU_SET_FEATURES,
	VU_SET_OWNER,
	VU_RESET_OWNER,
	VU_SET_MEM_TABLE,
	VU_SET_LOG_BASE,
	VU_SET_LOG_FD,
	VU_SET_VRING_NUM,
	VU_SET_VRING_ADDR,
	VU_SET_VRING_BASE,
	VU_GET_VRING_BASE,
	VU_SET_VRING_KICK,
	VU_SET_VRING_CALL,
	VU_SET_VRING_ERR,
	VU_GET_PROTOCOL_FEATURES,
	VU_SET_PROTOCOL_FEATURES,
	VU_GET_QUEUE_NUM,
	VU_SET_VRING_ENABLE,
	VU_SET_BACKEND_REQ_FD,
	VU_GET_CONFIG,
	VU_SET_CONFIG,
	VU_GET_INFLIGHT_FD,
	VU_SET_INFLIGHT_FD,
	VU_RESET_DEVICE,
	VU_GET_MAX_MEM_SLOTS,
	VU_ADD_MEM_REG,
	VU_REM_MEM_REG,
	VU_SET_STATUS,
	VU_GET_STATUS,
	VU_SET_DEVICE_STATE_FD,
	VU_CHECK_DEVICE_STATE,
};

/* Fills in a body and its descriptors; returns the body's length. */
static uint32_t compose(const struct cast *c, uint32_t request, union body *b, int *fds, unsigned *nr_fds)
{
	struct vu_ring *r = &c->f->ring[roll(2)];

	memset(b, 0, sizeof(*b));
	*nr_fds = 0;
	switch (request) {
	case VU_SET_FEATURES:
		b->u64 = c->f->dev_features & ~(roll(2) ? BIT(roll(40)) : 0);
		return 8;
	case VU_SET_PROTOCOL_FEATURES:
		b->u64 = c->f->dev_protocol_features & ~(roll(2) ? BIT(roll(20)) : 0);
		return 8;
	case VU_SET_STATUS:
		b->u64 = roll(3) ? roll(16) : some_number();
		return 8;
	case VU_SET_VRING_NUM:
	case VU_SET_VRING_BASE:
	case VU_GET_VRING_BASE:
	case VU_SET_VRING_ENABLE:
		b->state.index = (uint32_t)roll(5);
		b->state.num = request == VU_SET_VRING_ENABLE		? (uint32_t)roll(2)
			       : request == VU_SET_VRING_NUM && roll(2) ? r->len
									: (uint32_t)some_number();
		return sizeof(b->state);
	case VU_SET_VRING_ADDR:
		b->addr = (struct vu_vring_addr){ r->index,	      (uint32_t)roll(3),   (uintptr_t)r->desc,
						  (uintptr_t)r->used, (uintptr_t)r->avail, some_number() };
		if (!roll(4))
			b->addr.used = some_number();
		return sizeof(b->addr);
	case VU_SET_VRING_KICK:
	case VU_SET_VRING_CALL:
	case VU_SET_VRING_ERR:
		b->u64 = roll(3);
		fds[0] = roll(8) ? r->call_fd : some_fd(c);
		*nr_fds = roll(6) > 0;
		b->u64 |= *nr_fds ? 0 : VU_VRING_NO_FD;
		return 8;
	case VU_SET_MEM_TABLE:
		b->mem.nr_regions = (uint32_t)roll(4);
		for (unsigned i = 0; i < b->mem.nr_regions; i++) {
			b->mem.region[i] = some_region(c);
			fds[(*nr_fds)++] = roll(8) ? c->f->mem.fd : some_fd(c);
		}
		return (uint32_t)offsetof(struct vu_mem_table_msg, region[b->mem.nr_regions]);
	case VU_ADD_MEM_REG:
	case VU_REM_MEM_REG:
		b->reg.region = some_region(c);
		fds[0] = roll(8) ? c->f->mem.fd : some_fd(c);
		*nr_fds = request == VU_ADD_MEM_REG;
		return sizeof(b->reg);
	case VU_SET_LOG_BASE:
		b->log =
			(struct vu_log_msg){ roll(2) ? 1 << 20 : some_number(), roll(2) ? 0 : some_number() };
		fds[(*nr_fds)++] = roll(8) ? c->log : some_fd(c);
		return sizeof(b->log);
	case VU_SET_LOG_FD:
	case VU_SET_BACKEND_REQ_FD:
		fds[(*nr_fds)++] = roll(2) ? c->channel[1] : some_fd(c);
		return 0;
	case VU_GET_CONFIG:
	case VU_SET_CONFIG:
		b->config.off = roll(2) ? 32 : (uint32_t)some_number();
		b->config.len = roll(2) ? 1 : (uint32_t)roll(257);
		b->config.flags = (uint32_t)roll(3);
		return VU_CONFIG_HDR_LEN + b->config.len;
	case VU_GET_INFLIGHT_FD:
	case VU_SET_INFLIGHT_FD:
		b->inflight = (struct vu_inflight_msg){ some_number(), some_number(), (uint16_t)roll(5),
							(uint16_t)some_number() };
		fds[0] = roll(2) ? c->log : some_fd(c);
		*nr_fds = request == VU_SET_INFLIGHT_FD;
		return VU_INFLIGHT_LEN;
	case VU_SET_DEVICE_STATE_FD:
		b->transfer.direction = (uint32_t)roll(3);
		fds[(*nr_fds)++] = roll(4) ? c->pipe[roll(2)] : some_fd(c);
		return sizeof(b->transfer);
	default:
		return 0;
	}
}

/* Reads whatever the server says, and throws it away. False: it has closed the connection. */
static bool listen_to(struct vu_front *f, int timeout_ms)
{
	struct pollfd p = { .fd = f->sock, .events = POLLIN };

	while (poll(&p, 1, timeout_ms) > 0) {
		struct vu_msg m;

		if (vu_recv(f->sock, &m, vu_deadline_ns(SERVED_MS), &f->err) < 0)
			return false;
		vu_msg_close_fds(&m);
		timeout_ms = 0;
	}
	return true;
}

/* The last word of a session is asked for, so that everything before it has been seen to. */
static void disorder(struct vu_front *f, const struct cast *c)
{
	for (unsigned i = 0; i < MESSAGES; i++) {
		uint32_t request = kinds[roll(sizeof(kinds) / sizeof(kinds[0]))], len;
		unsigned nr_fds;
		union body b;
		int fds[8];

		len = compose(c, request, &b, fds, &nr_fds);
		if (vu_send(f->sock, request, VU_FLAG_VERSION | (roll(8) ? VU_FLAG_NEED_REPLY : 0), &b, len,
			    fds, nr_fds, vu_deadline_ns(SERVED_MS), &f->err) < 0)
			return;
		if (!roll(4)) {
			const uint64_t one = 1;

			(void)!write(f->ring[roll(2)].kick_fd, &one, sizeof(one));
		}
		if (!listen_to(f, 0))
			return;
	}
	if (vu_send(f->sock, VU_GET_FEATURES, VU_FLAG_VERSION, NULL, 0, NULL, 0, vu_deadline_ns(SERVED_MS),
		    &f->err) == 0)
		(void)listen_to(f, SERVED_MS);
}

static void any_message_may_come_at_any_time(void **state)
{
	struct vu_front other;
	unsigned fds;

	(void)state;
	seed = seed_of_run();
	dice = seed;
	served_connect(&other, 1, 1);
	fds = served_open_fds();
	for (unsigned i = 0; i < SESSIONS; i++) {
		struct vu_front_opts o = served_front_opts(0, 2);
		struct vu_front f;
		struct cast c = { .f = &f };

		o.nr_regions = 2;
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, c.channel), 0);
		assert_int_equal(pipe(c.pipe), 0);
		c.log = memfd_create("log", MFD_CLOEXEC | MFD_ALLOW_SEALING);
		assert_int_equal(ftruncate(c.log, 1 << 20), 0);
		if (roll(2)) {
			must(&f, vu_front_open(&f, &o));
		} else {
			must(&f, vu_front_init(&f, &o));
			must(&f, vu_front_connect(&f));
			f.dev_features = UINT64_MAX;
			f.dev_protocol_features = 0x9322b;
		}
		disorder(&f, &c);
		vu_front_close(&f);
		close(c.channel[0]);
		close(c.channel[1]);
		close(c.pipe[0]);
		close(c.pipe[1]);
		close(c.log);
		if (i % 10 == 0)
			served_io_works(&other, 0);
	}
	served_wait_fds(fds);
	vu_front_close(&other);
	served_connect(&other, 0, 4);
	for (unsigned q = 0; q < 4; q++)
		served_io_works(&other, q);
	vu_front_close(&other);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(any_message_may_come_at_any_time, served_setup,
						served_teardown),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
