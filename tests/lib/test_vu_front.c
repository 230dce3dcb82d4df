/* SPDX-License-Identifier: MIT */
/*
 * test_vu_front.c - the front end says what the protocol wants, and notices a back end that lies
 *
 * Owns:    a back end of its own, on a thread: it answers every message, and one of them wrongly.
 * Assumes: a folder for temporary files where a unix socket can be made.
 * Never:   processes a ring: real back ends do that in tests/interop and tests/dataplane.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include <endian.h>
#include <errno.h>
#include <linux/virtio_config.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "patience.h"
#include "vu_blk.h"
#include "vu_raw.h"

#define BIT(n) (UINT64_C(1) << (n))

/* ---- the back end ---------------------------------------------------------------------------- */

enum lie {
	TRUTH,
	OTHER_REQUEST,		/* answers a question that was not asked */
	NO_REPLY_FLAG,
	WRONG_VERSION,
	SHORT_ANSWER,		/* four bytes */
	HUGE_ANSWER,		/* announces more than any answer has */
	HALF_ANSWER,		/* closes in the middle */
	REFUSES,		/* acknowledges with an error */
	CLOSES,
	SILENT,
};

struct backend {
	char dir[64], path[96];
	int listener;
	pthread_t thread;
	uint64_t features, protocol_features, nr_queues;
	enum lie lie;
	uint32_t lie_about;		/* the request that is answered wrongly */
	/* What was seen, to be read after the thread has ended. */
	uint64_t got_features, got_protocol_features;
	struct vu_mem_table_msg table;
	unsigned nr_table_fds;
	unsigned nr_seen[64];
	bool memory_is_shared;		/* what the test wrote was found through the memory table */
};

/* Send one answer, or what the lie makes of it. */
static int answer(struct backend *b, int sock, const struct vu_msg *m, const void *payload,
		  uint32_t len)
{
	enum lie lie = b->lie_about == m->hdr.request ? b->lie : TRUTH;
	uint64_t deadline = vu_deadline_ns(PATIENCE_MS), code = 5;
	struct vu_hdr hdr = { m->hdr.request, VU_FLAG_VERSION | VU_FLAG_REPLY, len };

	switch (lie) {
	case OTHER_REQUEST:
		hdr.request = 99;
		break;
	case NO_REPLY_FLAG:
		hdr.flags = VU_FLAG_VERSION;
		break;
	case WRONG_VERSION:
		hdr.flags = VU_FLAG_REPLY | 2;
		break;
	case SHORT_ANSWER:
		hdr.size = 4;
		break;
	case REFUSES:
		payload = &code;
		break;
	case HUGE_ANSWER:
		hdr.size = 1u << 30;
		return vu_send_bytes(sock, &hdr, sizeof(hdr), NULL, 0, deadline, NULL);
	case HALF_ANSWER:
		vu_send_bytes(sock, &hdr, sizeof(hdr), NULL, 0, deadline, NULL);
		return -1;
	case CLOSES:
		return -1;
	case SILENT:
		return 0;
	case TRUTH:
		break;
	}
	return vu_send(sock, hdr.request, hdr.flags, payload, hdr.size, NULL, 0, deadline, NULL);
}

/* Look through the memory table for the mark that the test left at guest address 16. */
static void look_at_memory(struct backend *b, const struct vu_msg *m)
{
	const struct vu_region_msg *r = &b->table.region[0];
	uint8_t *p;

	memcpy(&b->table, m->bytes, sizeof(b->table));
	b->nr_table_fds = m->nr_fds;
	if (m->nr_fds == 0)
		return;
	p = mmap(NULL, r->len, PROT_READ, MAP_SHARED, m->fds[0], (off_t)r->mmap_off);
	if (p == MAP_FAILED)
		return;
	b->memory_is_shared = memcmp(p + (16 - r->guest_addr), "mark", 4) == 0;
	munmap(p, r->len);
}

static int handle(struct backend *b, int sock, struct vu_msg *m)
{
	uint64_t zero = 0;
	bool acks = b->got_protocol_features & BIT(VU_PROTOCOL_F_REPLY_ACK);

	b->nr_seen[m->hdr.request % 64]++;
	switch (m->hdr.request) {
	case VU_GET_FEATURES:
		return answer(b, sock, m, &b->features, 8);
	case VU_GET_PROTOCOL_FEATURES:
		return answer(b, sock, m, &b->protocol_features, 8);
	case VU_GET_QUEUE_NUM:
		return answer(b, sock, m, &b->nr_queues, 8);
	case VU_GET_CONFIG:
		memset(m->config.data, 0x5a, VU_BLK_CONFIG);
		return answer(b, sock, m, &m->config, m->hdr.size);
	case VU_GET_VRING_BASE:
		m->state.num = 7;
		return answer(b, sock, m, &m->state, sizeof(m->state));
	case VU_SET_FEATURES:
		b->got_features = m->u64;
		break;
	case VU_SET_PROTOCOL_FEATURES:
		b->got_protocol_features = m->u64;
		return 0;
	case VU_SET_MEM_TABLE:
		look_at_memory(b, m);
		break;
	}
	if (acks != !!(m->hdr.flags & VU_FLAG_NEED_REPLY))
		return -1;	/* a front end that forgets to ask, or asks without leave */
	return acks ? answer(b, sock, m, &zero, sizeof(zero)) : 0;
}

static void *serve(void *backend)
{
	struct backend *b = backend;
	int sock = accept(b->listener, NULL, NULL);
	struct vu_msg m;

	while (vu_recv(sock, &m, vu_deadline_ns(PATIENCE_MS), NULL) == 0) {
		int ret = handle(b, sock, &m);

		vu_msg_close_fds(&m);
		if (ret < 0)
			break;
	}
	close(sock);
	return NULL;
}

static int set_up(void **state)
{
	struct backend *b = calloc(1, sizeof(*b));
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	const char *tmp = getenv("TMPDIR");

	assert_non_null(b);
	snprintf(b->dir, sizeof(b->dir), "%.40s/vu-XXXXXX", tmp ? tmp : "/tmp");
	assert_non_null(mkdtemp(b->dir));
	snprintf(b->path, sizeof(b->path), "%s/s", b->dir);
	strcpy(addr.sun_path, b->path);
	b->listener = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_true(b->listener >= 0);
	assert_int_equal(bind(b->listener, (struct sockaddr *)&addr, sizeof(addr)), 0);
	assert_int_equal(listen(b->listener, 1), 0);
	b->features = BIT(VIRTIO_F_VERSION_1) | BIT(VU_F_PROTOCOL_FEATURES) |
		      BIT(VIRTIO_BLK_F_FLUSH) | BIT(VIRTIO_RING_F_EVENT_IDX) | BIT(40);
	b->protocol_features = BIT(VU_PROTOCOL_F_MQ) | BIT(VU_PROTOCOL_F_CONFIG) |
			       BIT(VU_PROTOCOL_F_REPLY_ACK) | BIT(VU_PROTOCOL_F_STATUS);
	b->nr_queues = 4;
	*state = b;
	return 0;
}

static int tear_down(void **state)
{
	struct backend *b = *state;

	close(b->listener);
	unlink(b->path);
	rmdir(b->dir);
	free(b);
	return 0;
}

/* Open a session with the back end as it is set up; returns what vu_front_open() returned. */
static int open_session(struct backend *b, struct vu_front *f, unsigned nr_queues,
			unsigned timeout_ms)
{
	struct vu_front_opts o = vu_front_defaults(b->path);

	o.nr_queues = nr_queues;
	o.nr_regions = 3;
	o.timeout_ms = timeout_ms;
	assert_int_equal(pthread_create(&b->thread, NULL, serve, b), 0);
	return vu_front_open(f, &o);
}

static void end_session(struct backend *b, struct vu_front *f)
{
	vu_front_disconnect(f);
	pthread_join(b->thread, NULL);
	vu_front_close(f);
}

/* ---- what the front end says ----------------------------------------------------------------- */

static void negotiation_takes_what_both_sides_know(void **state)
{
	struct backend *b = *state;
	struct vu_front f;

	if (open_session(b, &f, 2, PATIENCE_MS) < 0)
		fail_msg("%s", f.err.text);
	assert_int_equal(f.dev_queues, 4);
	assert_true(f.ring[1].event_idx);
	assert_int_equal(f.ring[0].indirect, VU_DIRECT);	/* not offered */
	assert_int_equal(f.config[0], 0x5a);
	assert_int_equal(f.config[VU_BLK_CONFIG - 1], 0x5a);
	end_session(b, &f);
	assert_int_equal(b->got_features, b->features & ~BIT(40));
	assert_int_equal(b->got_protocol_features,
			 b->protocol_features & ~BIT(VU_PROTOCOL_F_STATUS));
	assert_int_equal(b->nr_seen[VU_SET_OWNER], 1);
	assert_int_equal(b->nr_seen[VU_SET_VRING_KICK], 2);
	assert_int_equal(b->nr_seen[VU_SET_VRING_ENABLE], 2);
}

static void an_old_back_end_is_asked_nothing_new(void **state)
{
	struct backend *b = *state;
	struct vu_front f;

	b->features = BIT(VIRTIO_F_VERSION_1);
	if (open_session(b, &f, 1, PATIENCE_MS) < 0)
		fail_msg("%s", f.err.text);
	end_session(b, &f);
	assert_int_equal(b->nr_seen[VU_GET_PROTOCOL_FEATURES], 0);
	assert_int_equal(b->nr_seen[VU_GET_QUEUE_NUM], 0);
	assert_int_equal(b->nr_seen[VU_GET_CONFIG], 0);
	assert_int_equal(b->nr_seen[VU_SET_VRING_ENABLE], 0);
	assert_int_equal(b->got_features, BIT(VIRTIO_F_VERSION_1));
}

static void memory_arrives_in_all_its_regions(void **state)
{
	struct backend *b = *state;
	struct vu_front f;
	unsigned i;

	struct vu_front_opts o = vu_front_defaults(b->path);

	o.nr_regions = 5;
	o.timeout_ms = PATIENCE_MS;
	assert_int_equal(vu_front_init(&f, &o), 0);
	memcpy(vu_mem_host(&f.mem, 16, 4), "mark", 4);
	assert_int_equal(pthread_create(&b->thread, NULL, serve, b), 0);
	assert_int_equal(vu_front_connect(&f), 0);
	assert_int_equal(vu_front_negotiate(&f), 0);
	assert_int_equal(vu_front_share_memory(&f), 0);
	vu_front_disconnect(&f);
	pthread_join(b->thread, NULL);
	assert_int_equal(b->table.nr_regions, 5);
	assert_int_equal(b->nr_table_fds, 5);
	assert_true(b->memory_is_shared);
	for (i = 0; i < 5; i++) {
		assert_int_equal(b->table.region[i].guest_addr, f.mem.region[i].guest_addr);
		assert_int_equal(b->table.region[i].mmap_off, i * f.mem.region[0].len);
		assert_int_equal(b->table.region[i].user_addr,
				 (uintptr_t)vu_mem_host(&f.mem, f.mem.region[i].guest_addr, 1));
	}
	vu_front_close(&f);
}

static void stopping_a_queue_tells_where(void **state)
{
	struct backend *b = *state;
	struct vu_front f;
	uint32_t base = 0;

	assert_int_equal(open_session(b, &f, 1, PATIENCE_MS), 0);
	assert_int_equal(vu_front_stop_queue(&f, 0, &base), 0);
	assert_int_equal(base, 7);
	end_session(b, &f);
}

/* ---- what it notices ------------------------------------------------------------------------- */

static void every_lie_is_noticed_and_named(void **state)
{
	static const struct {
		enum lie lie;
		uint32_t about;
		int ret;
		const char *text;
	} cases[] = {
		{ OTHER_REQUEST, VU_GET_FEATURES, -EPROTO, "GET_FEATURES: answered by request 99" },
		{ NO_REPLY_FLAG, VU_GET_PROTOCOL_FEATURES, -EPROTO, "with flags 0x1" },
		{ WRONG_VERSION, VU_GET_QUEUE_NUM, -EPROTO, "with flags 0x6" },
		{ SHORT_ANSWER, VU_GET_FEATURES, -EPROTO, "answered with 4 bytes, not 8" },
		{ SHORT_ANSWER, VU_GET_CONFIG, -EPROTO, "answered with 4 bytes, expected 72" },
		{ SHORT_ANSWER, VU_SET_OWNER, -EPROTO, "SET_OWNER: acknowledged with 4 bytes" },
		{ HUGE_ANSWER, VU_GET_FEATURES, -EPROTO, "announces 1073741824 bytes" },
		{ HALF_ANSWER, VU_GET_FEATURES, -ECONNRESET, "in the middle of a message" },
		{ REFUSES, VU_SET_MEM_TABLE, -EREMOTEIO, "SET_MEM_TABLE: refused" },
		{ REFUSES, VU_SET_VRING_ADDR, -EREMOTEIO,
		  "queue 0: SET_VRING_ADDR: refused by the back end with code 5" },
		{ CLOSES, VU_SET_FEATURES, -ECONNRESET, "the back end closed the connection" },
		{ SILENT, VU_GET_QUEUE_NUM, -ETIMEDOUT, "the back end did not answer" },
	};
	struct backend *b = *state;
	unsigned i;

	for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct vu_front f;
		int ret;

		b->lie = cases[i].lie;
		b->lie_about = cases[i].about;
		b->got_protocol_features = 0;
		ret = open_session(b, &f, 1, cases[i].lie == SILENT ? 50 : PATIENCE_MS);
		if (ret != cases[i].ret || !strstr(f.err.text, cases[i].text))
			fail_msg("case %u: %d, \"%s\"; expected %d, \"%s\"", i, ret, f.err.text,
				 cases[i].ret, cases[i].text);
		end_session(b, &f);
	}
}

static void what_the_back_end_cannot_do_is_an_error(void **state)
{
	struct backend *b = *state;
	struct vu_front f;

	assert_int_equal(open_session(b, &f, 5, PATIENCE_MS), -EINVAL);
	assert_string_equal(f.err.text, "5 queues asked for, the back end has 4");
	end_session(b, &f);
	b->features &= ~BIT(VIRTIO_F_VERSION_1);
	assert_int_equal(open_session(b, &f, 1, PATIENCE_MS), -ENOTSUP);
	assert_non_null(strstr(f.err.text, "VIRTIO_F_VERSION_1"));
	end_session(b, &f);
}

static void an_absent_back_end_is_an_error(void **state)
{
	struct vu_front_opts o = vu_front_defaults("/nonexistent/socket");
	struct vu_front f;

	(void)state;
	assert_int_equal(vu_front_open(&f, &o), -ENOENT);
	assert_non_null(strstr(f.err.text, "/nonexistent/socket: cannot connect"));
	vu_front_close(&f);
}

/* ---- memory and requests --------------------------------------------------------------------- */

static void addresses_translate_both_ways(void **state)
{
	struct vu_region at[3] = { { .guest_addr = 0x10000, .len = 0x2000 },
				   { .guest_addr = 0x12000, .len = 0x1000 },	/* touches it */
				   { .guest_addr = 0x1000, .len = 0x1000 } };
	struct vu_mem m;
	unsigned i;

	(void)state;
	assert_int_equal(vu_mem_create_at(&m, at, 3, NULL), 0);
	assert_ptr_equal(vu_mem_host(&m, 0x10000, 0x3000), m.base);	/* across the seam */
	assert_null(vu_mem_host(&m, 0x10000, 0x3001));
	assert_null(vu_mem_host(&m, 0xffff, 1));
	assert_null(vu_mem_host(&m, 0x2000, 1));
	assert_null(vu_mem_host(&m, UINT64_MAX, 2));
	assert_ptr_equal(vu_mem_host(&m, 0x1fff, 1), m.base + 0x3fff);
	assert_int_equal(vu_mem_guest(&m, m.base + 0x3fff), 0x1fff);
	for (i = 0; i < 6; i++) {	/* round the regions until they are full */
		uint64_t addr;
		void *p = vu_mem_alloc(&m, 0x800, 0x800, &addr);

		assert_non_null(p);
		assert_int_equal(vu_mem_guest(&m, p), addr);
	}
	assert_null(vu_mem_alloc(&m, 0x1001, 1, NULL));
	vu_mem_free(&m);
}

/* The segments of one direction, put together again, are these bytes of guest memory. */
static void expect_stream(struct vu_io *io, bool dev_writes, const uint8_t *const *part,
			  const uint32_t *len, unsigned nr_parts)
{
	struct vu_mem *mem = &io->blk->front->mem;
	unsigned s, p = 0;
	uint32_t at = 0;

	for (s = 0; s < io->nr_segs; s++) {
		uint32_t left = io->segs[s].len;
		uint8_t *host = vu_mem_host(mem, io->segs[s].guest_addr, left);

		if (io->segs[s].dev_writes != dev_writes)
			continue;
		assert_non_null(host);
		assert_true(left > 0);
		while (left > 0) {
			uint32_t n;

			assert_true(p < nr_parts);
			n = left < len[p] - at ? left : len[p] - at;
			assert_ptr_equal(host, part[p] + at);
			host += n;
			left -= n;
			at += n;
			if (at == len[p]) {
				p++;
				at = 0;
			}
		}
	}
	assert_int_equal(p, nr_parts);
}

/* Whatever the layout: header, data and status, in order, nothing twice, nothing missing. */
static void every_layout_covers_the_request_exactly(void **state)
{
	struct vu_front_opts o = vu_front_defaults("unused");
	unsigned round, layout, i;
	struct vu_front f;
	struct vu_blk b;

	(void)state;
	o.nr_regions = 4;
	assert_int_equal(vu_front_init(&f, &o), 0);
	assert_int_equal(vu_blk_open(&b, &f, 0, 8, 65536), 0);
	for (round = 0; round < 500; round++) {
		for (layout = VU_LAYOUT_PLAIN; layout <= VU_LAYOUT_RANDOM; layout++) {
			struct vu_io *io = vu_blk_get(&b);
			uint32_t n = 512 * (1 + round % 128);
			bool readable = true;

			b.layout = (enum vu_layout)layout;
			b.seg_len = layout == VU_LAYOUT_PLAIN ? 512 * (round % 7) : 0;
			if (round & 1) {
				vu_io_read(io, 4096, n);
				expect_stream(io, false, (const uint8_t *[]){ (uint8_t *)io->hdr },
					      (uint32_t[]){ 16 }, 1);
				expect_stream(io, true, (const uint8_t *[]){ io->data, io->status },
					      (uint32_t[]){ n, 1 }, 2);
			} else {
				vu_io_write(io, 4096, n);
				expect_stream(io, false,
					      (const uint8_t *[]){ (uint8_t *)io->hdr, io->data },
					      (uint32_t[]){ 16, n }, 2);
				expect_stream(io, true, (const uint8_t *[]){ io->status },
					      (uint32_t[]){ 1 }, 1);
			}
			assert_int_equal(le64toh(io->hdr->sector), 8);
			for (i = 0; i < io->nr_segs; i++) {	/* readable ones first */
				assert_true(readable || io->segs[i].dev_writes);
				readable = !io->segs[i].dev_writes;
			}
			vu_blk_put(&b, io);
		}
	}
	vu_blk_free(&b);
	vu_front_close(&f);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		T(negotiation_takes_what_both_sides_know),
		T(an_old_back_end_is_asked_nothing_new),
		T(memory_arrives_in_all_its_regions),
		T(stopping_a_queue_tells_where),
		T(every_lie_is_noticed_and_named),
		T(what_the_back_end_cannot_do_is_an_error),
		cmocka_unit_test(an_absent_back_end_is_an_error),
		cmocka_unit_test(addresses_translate_both_ways),
		cmocka_unit_test(every_layout_covers_the_request_exactly),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
