/* SPDX-License-Identifier: MIT */
/*
 * unit/proto/test_file_sim.c - the file driver's request path when operations fail or stop half-way
 *
 * Over the simulated engine: each test says what the kernel would have answered.
 */
#include "leaf.h"

#include "proto/file.h"

struct script {
	struct sim_file *sim;
	struct aio_file af;
	struct leaf l;

	/* what the fault function does */
	enum aio_opcode opcode; /* it looks at these only */
	int64_t res;		/* 0: normal */
	unsigned times;		/* how often; then normal again */
	unsigned seen;		/* operations of that kind so far */
	uint32_t flags_any;	/* if not 0: only those with one of these flags */
	uint64_t last_off, last_len;
};

static int64_t script_fault(void *arg, uint64_t nr, const struct aio_op *op)
{
	struct script *s = arg;

	(void)nr;
	if (op->opcode != s->opcode || (s->flags_any && !(op->flags & s->flags_any)))
		return 0;
	s->seen++;
	s->last_off = op->off;
	s->last_len = op->len;
	if (!s->times)
		return 0;
	s->times--;
	return s->res;
}

static void script_open(struct script *s, uint64_t len, uint32_t flags, bool direct)
{
	struct sim_opts opts = { .seed = 1, .len = len };

	memset(s, 0, sizeof(*s));
	s->opcode = AIO_OPCODES;
	assert_int_equal(sim_file_new(&s->sim, &s->af, &opts), 0);
	s->af.direct = direct;
	sim_set_fault(s->sim, script_fault, s);
	leaf_open_sim(&s->l, s->sim, &s->af, flags);
}

static void script_close(struct script *s)
{
	sim_set_fault(s->sim, NULL, NULL);
	leaf_close(&s->l);
	sim_file_free(s->sim);
}

static void script_set(struct script *s, enum aio_opcode opcode, int64_t res, unsigned times)
{
	s->opcode = opcode;
	s->res = res;
	s->times = times;
	s->seen = 0;
	s->flags_any = 0;
}

static void sim_fill(struct script *s, uint64_t len)
{
	for (uint64_t i = 0; i < len; i++) {
		uint8_t b = leaf_pattern(i);

		sim_poke(s->sim, i, &b, 1);
	}
}

static void expect_pattern(struct script *s, uint64_t off, uint64_t len)
{
	for (uint64_t i = off; i < off + len; i++) {
		uint8_t b;

		sim_peek(s->sim, i, &b, 1);
		if (b != leaf_pattern(i))
			fail_msg("byte %llu is 0x%02x", (unsigned long long)i, b);
	}
}

/* ---- short transfers ---- */

static void short_reads_are_continued(void **state)
{
	struct iovec iov[500];
	uint8_t buf[5000];
	struct script s;

	(void)state;
	script_open(&s, 10000, 0, false);
	sim_fill(&s, 10000);
	for (unsigned i = 0; i < 500; i++)
		iov[i] = (struct iovec){ buf + 10 * i, 10 };
	for (int64_t stop = 1; stop < 60; stop += 7) {
		memset(buf, 0, sizeof(buf));
		script_set(&s, AIO_READ, stop, 30);
		assert_int_equal(leaf_iov(&s.l, REQ_READ, 100, sizeof(buf), iov, 500, 0), 0);
		assert_true(s.seen > 30);
		for (unsigned i = 0; i < sizeof(buf); i++)
			assert_int_equal(buf[i], leaf_pattern(100 + i));
	}
	script_close(&s);
}

static void short_writes_are_continued(void **state)
{
	struct iovec iov[500];
	uint8_t buf[5000];
	struct script s;

	(void)state;
	script_open(&s, 0, NODE_WRITABLE, false);
	for (unsigned i = 0; i < sizeof(buf); i++)
		buf[i] = leaf_pattern(i);
	for (unsigned i = 0; i < 500; i++)
		iov[i] = (struct iovec){ buf + 10 * i, 10 };
	script_set(&s, AIO_WRITE, 3, 100);
	assert_int_equal(leaf_iov(&s.l, REQ_WRITE, 0, sizeof(buf), iov, 500, 0), 0);
	assert_true(s.seen > 100);
	expect_pattern(&s, 0, sizeof(buf));
	assert_int_equal(node_len(s.l.n), sizeof(buf));
	script_close(&s);
}

/* With O_DIRECT the rest must begin at a sector; a transfer that stopped inside of one is repeated from its start. */
static void short_direct_writes_go_on_at_a_sector(void **state)
{
	static uint8_t buf[8192] __attribute__((aligned(4096)));
	struct script s;

	(void)state;
	script_open(&s, 16384, NODE_WRITABLE, true);
	for (unsigned i = 0; i < sizeof(buf); i++)
		buf[i] = leaf_pattern(i);
	script_set(&s, AIO_WRITE, 1300, 1);
	assert_int_equal(leaf_write(&s.l, 0, buf, sizeof(buf), 0), 0);
	assert_int_equal(s.seen, 2);
	assert_int_equal(s.last_off, 1024);
	expect_pattern(&s, 0, sizeof(buf));
	script_close(&s);
}

static void a_direct_read_that_stops_early_is_continued_from_whole_sectors(void **state)
{
	static uint8_t buf[4096] __attribute__((aligned(4096)));
	struct script s;

	(void)state;
	script_open(&s, 8192, 0, true);
	sim_fill(&s, 8192);
	memset(buf, 0xee, sizeof(buf));
	script_set(&s, AIO_READ, 700, 1);
	assert_int_equal(leaf_read(&s.l, 0, buf, sizeof(buf)), 0);
	assert_int_equal(s.seen, 2);
	assert_int_equal(s.last_off, 512); /* the sector that it stopped in, again */
	for (unsigned i = 0; i < sizeof(buf); i++)
		assert_int_equal(buf[i], leaf_pattern(i));
	memset(buf, 0xee, sizeof(buf));
	script_set(&s, AIO_READ, 1024, 1);
	assert_int_equal(leaf_read(&s.l, 0, buf, sizeof(buf)), 0);
	assert_int_equal(s.seen, 2);
	for (unsigned i = 0; i < sizeof(buf); i++)
		assert_int_equal(buf[i], leaf_pattern(i));
	script_close(&s);
}

static void an_error_behind_a_short_transfer_is_told(void **state)
{
	uint8_t buf[4096] = { 0 };
	struct script s;

	(void)state;
	script_open(&s, 10000, NODE_WRITABLE, false);
	script_set(&s, AIO_WRITE, -ENOSPC, 1);
	assert_int_equal(leaf_write(&s.l, 0, buf, sizeof(buf), 0), -ENOSPC);
	script_set(&s, AIO_READ, -EIO, 1);
	assert_int_equal(leaf_read(&s.l, 0, buf, sizeof(buf)), -EIO);
	/* Neither is remembered. */
	assert_int_equal(leaf_write(&s.l, 0, buf, sizeof(buf), 0), 0);
	assert_int_equal(leaf_read(&s.l, 0, buf, sizeof(buf)), 0);
	assert_int_equal(leaf_flush(&s.l), 0);
	script_close(&s);
}

/* ---- many at once ---- */

static int64_t half_way(void *arg, uint64_t nr, const struct aio_op *op)
{
	(void)arg;
	(void)nr;
	return (op->opcode == AIO_READ || op->opcode == AIO_WRITE) && op->len > 1024 ? 1024 : 0;
}

struct many {
	struct req r;
	struct iovec iov;
	uint8_t buf[3000];
	unsigned *nr_left;
};

static void many_done(struct req *r, int ret)
{
	struct many *m = container_of(r, struct many, r);

	assert_int_equal(ret, 0);
	--*m->nr_left;
}

/*
 * Unaligned direct requests hold a fiber each, and wait for transfers that need a fiber too. With more of them than
 * the pool has fibers, all must come to an end.
 */
static void more_requests_than_fibers_all_end(void **state)
{
	enum { NR = 300 };
	struct many *many = calloc(NR, sizeof(*many));
	unsigned nr_left = NR;
	struct script s;

	(void)state;
	script_open(&s, MiB(2), NODE_WRITABLE, true);
	sim_set_fault(s.sim, half_way, NULL);
	for (unsigned i = 0; i < NR; i++) {
		struct many *m = &many[i];

		memset(m->buf, (int)i + 1, sizeof(m->buf));
		m->iov = (struct iovec){ m->buf, sizeof(m->buf) };
		m->nr_left = &nr_left;
		req_init(&m->r, s.l.q, REQ_WRITE, 5000 * i + 100, sizeof(m->buf), &m->iov, 1, 0, many_done);
		node_submit(s.l.n, &m->r);
	}
	for (unsigned turn = 0; nr_left && turn < 100000; turn++)
		queue_turn(s.l.q, 0);
	assert_int_equal(nr_left, 0);
	for (unsigned i = 0; i < NR; i++) {
		leaf_expect(&s.l, 5000 * i + 100, 3000, (uint8_t)(i + 1));
		leaf_expect(&s.l, 5000 * i + 3100, 1000, 0);
	}
	script_close(&s);
	free(many);
}

/* ---- flush ---- */

static void a_failed_flush_is_never_forgotten(void **state)
{
	uint8_t buf[512] = { 1 };
	struct script s;

	(void)state;
	script_open(&s, 4096, NODE_WRITABLE, false);
	assert_int_equal(leaf_flush(&s.l), 0);
	script_set(&s, AIO_FLUSH, -EIO, 1);
	assert_int_equal(leaf_flush(&s.l), -EIO);
	for (int i = 0; i < 3; i++) {
		assert_int_equal(leaf_write(&s.l, 0, buf, sizeof(buf), 0), 0);
		assert_int_equal(leaf_flush(&s.l), -EIO);
		assert_int_equal(leaf_zero(&s.l, 0, 512, REQ_FUA), -EIO);
		assert_int_equal(leaf_write(&s.l, 0, buf, sizeof(buf), REQ_FUA), -EIO);
	}
	script_close(&s);
}

/* The sync after the write failed: as a failed flush, for it used up the kernel's only report. */
static void a_failed_sync_of_a_fua_write_is_never_forgotten(void **state)
{
	uint8_t buf[512] = { 1 };
	struct script s;

	(void)state;
	script_open(&s, 4096, NODE_WRITABLE, false);
	script_set(&s, AIO_WRITE, -EIO, 1);
	s.flags_any = AIO_FUA;
	assert_int_equal(leaf_write(&s.l, 0, buf, sizeof(buf), REQ_FUA), -EIO);
	assert_int_equal(s.seen, 1);
	assert_int_equal(leaf_flush(&s.l), -EIO);
	script_close(&s);
}

static struct doubt *script_doubt(struct script *s)
{
	return ((struct file *)node_state(s->l.n))->doubt;
}

/* Everything since the last good flush written again, and synced: nothing is in doubt. Less than everything is not enough. */
static void what_is_written_again_is_in_doubt_no_more(void **state)
{
	struct script s;

	(void)state;
	script_open(&s, 1 << 20, NODE_WRITABLE, false);
	leaf_fill(&s.l, 900000, 1000, 1); /* stable before it fails */
	assert_int_equal(leaf_flush(&s.l), 0);
	leaf_fill(&s.l, 0, 4096, 1);
	leaf_fill(&s.l, 100000, 10000, 2);
	assert_int_equal(leaf_zero(&s.l, 200000, 500, 0), 0);
	assert_int_equal(doubt_bytes(script_doubt(&s)), 0);
	script_set(&s, AIO_FLUSH, -EIO, 1);
	assert_int_equal(leaf_flush(&s.l), -EIO);
	assert_int_equal(doubt_bytes(script_doubt(&s)), 14596);

	leaf_fill(&s.l, 0, 4096, 1);
	leaf_fill(&s.l, 200000, 500, 0);
	assert_int_equal(doubt_bytes(script_doubt(&s)), 14596); /* written, not synced */
	assert_int_equal(leaf_flush(&s.l), -EIO);
	assert_int_equal(doubt_bytes(script_doubt(&s)), 10000);
	leaf_fill(&s.l, 100001, 9998, 2);
	assert_int_equal(leaf_flush(&s.l), -EIO);
	assert_int_equal(doubt_bytes(script_doubt(&s)), 2);
	leaf_fill(&s.l, 90000, 30000, 2);
	assert_int_equal(leaf_flush(&s.l), 0);
	assert_int_equal(leaf_flush(&s.l), 0);
	assert_int_equal(doubt_bytes(script_doubt(&s)), 0);
	script_close(&s);
}

/* A second failure puts what was written again in doubt once more. */
static void a_retry_that_fails_is_in_doubt_again(void **state)
{
	struct script s;

	(void)state;
	script_open(&s, 1 << 20, NODE_WRITABLE, false);
	leaf_fill(&s.l, 0, 4096, 1);
	script_set(&s, AIO_FLUSH, -EIO, 2);
	assert_int_equal(leaf_flush(&s.l), -EIO);
	leaf_fill(&s.l, 0, 4096, 1);
	leaf_fill(&s.l, 8192, 4096, 1);
	assert_int_equal(leaf_flush(&s.l), -EIO);
	assert_int_equal(doubt_bytes(script_doubt(&s)), 8192);
	leaf_fill(&s.l, 0, 4096, 1);
	assert_int_equal(leaf_flush(&s.l), -EIO);
	leaf_fill(&s.l, 8192, 4096, 1);
	assert_int_equal(leaf_flush(&s.l), 0);
	script_close(&s);
}

static void a_fua_write_again_needs_no_flush(void **state)
{
	uint8_t buf[512] = { 1 };
	struct script s;

	(void)state;
	script_open(&s, 1 << 20, NODE_WRITABLE, false);
	script_set(&s, AIO_WRITE, -EIO, 1);
	s.flags_any = AIO_FUA;
	assert_int_equal(leaf_write(&s.l, 512, buf, sizeof(buf), REQ_FUA), -EIO);
	assert_int_equal(leaf_write(&s.l, 0, buf, sizeof(buf), REQ_FUA), -EIO); /* not the one in doubt */
	assert_int_equal(leaf_write(&s.l, 512, buf, sizeof(buf), REQ_FUA), 0);
	assert_int_equal(leaf_flush(&s.l), 0);
	script_close(&s);
}

static void an_acknowledged_error_is_forgotten(void **state)
{
	uint64_t bytes;
	struct script s;

	(void)state;
	script_open(&s, 1 << 20, NODE_WRITABLE, false);
	leaf_fill(&s.l, 0, 4096, 1);
	script_set(&s, AIO_FLUSH, -ENOSPC, 1);
	assert_int_equal(leaf_flush(&s.l), -ENOSPC);
	assert_int_equal(leaf_flush(&s.l), -ENOSPC);
	assert_int_equal(doubt_acknowledge(script_doubt(&s), &bytes), -ENOSPC);
	assert_int_equal(bytes, 4096);
	assert_int_equal(leaf_flush(&s.l), 0);
	assert_int_equal(doubt_acknowledge(script_doubt(&s), &bytes), 0);
	script_close(&s);
}

/* Where another process looks when this one is dead: as it is now, whenever it changes, and what stood there if nothing happened. */
static void what_flushes_fail_with_is_published(void **state)
{
	_Atomic uint64_t where = EROFS;
	uint64_t bytes;
	struct script s;

	(void)state;
	script_open(&s, 1 << 20, NODE_WRITABLE, false);
	doubt_publish(script_doubt(&s), &where);
	leaf_fill(&s.l, 0, 4096, 1);
	assert_int_equal(leaf_flush(&s.l), 0);
	assert_int_equal(where, EROFS);
	leaf_fill(&s.l, 0, 4096, 1);
	script_set(&s, AIO_FLUSH, -EIO, 1);
	assert_int_equal(leaf_flush(&s.l), -EIO);
	assert_int_equal(where, EIO);
	leaf_fill(&s.l, 0, 4096, 1);
	assert_int_equal(leaf_flush(&s.l), 0); /* mended */
	assert_int_equal(where, 0);
	leaf_fill(&s.l, 0, 4096, 1);
	script_set(&s, AIO_FLUSH, -ENOSPC, 1);
	assert_int_equal(leaf_flush(&s.l), -ENOSPC);
	assert_int_equal(where, ENOSPC);
	doubt_publish(script_doubt(&s), NULL);
	assert_int_equal(doubt_acknowledge(script_doubt(&s), &bytes), -ENOSPC);
	assert_int_equal(where, ENOSPC);
	/* An error of before is there from the first moment on. */
	leaf_fill(&s.l, 0, 4096, 1);
	script_set(&s, AIO_FLUSH, -EDQUOT, 1);
	assert_int_equal(leaf_flush(&s.l), -EDQUOT);
	doubt_publish(script_doubt(&s), &where);
	assert_int_equal(where, EDQUOT);
	assert_int_equal(doubt_acknowledge(script_doubt(&s), &bytes), -EDQUOT);
	assert_int_equal(where, 0);
	script_close(&s);
}

struct raced {
	struct req r;
	struct iovec iov;
	bool done;
	int ret;
};

static void raced_done(struct req *r, int ret)
{
	struct raced *x = container_of(r, struct raced, r);

	x->done = true;
	x->ret = ret;
}

static void raced_start(struct script *s, struct raced *x, enum req_op op, uint64_t off, uint64_t len, void *buf)
{
	*x = (struct raced){ .iov = { buf, len } };
	req_init(&x->r, s->l.q, op, off, len, buf ? &x->iov : NULL, buf ? 1 : 0, 0, raced_done);
	node_submit(s->l.n, &x->r);
}

static void raced_end(struct script *s, struct raced *x, unsigned pending, int64_t res)
{
	sim_complete(s->sim, pending, res);
	for (unsigned turn = 0; !x->done && turn < 100; turn++)
		queue_turn(s->l.q, 0);
	assert_true(x->done);
}

struct closing {
	struct fiber_job job;
	struct leaf *l;
	bool done;
};

static void closing_run(struct fiber *f, struct fiber_job *job)
{
	struct closing *c = container_of(job, struct closing, job);

	assert_int_equal(graph_close(f, c->l->n, NULL), 0);
	c->done = true;
}

/* Closing flushes once more. */
static void raced_close(struct script *s)
{
	struct closing c = { .job.run = closing_run, .l = &s->l };

	fiber_start(s->l.q, &c.job, 3);
	for (unsigned turn = 0; !c.done && turn < 100; turn++) {
		queue_turn(s->l.q, 0);
		if (sim_pending(s->sim))
			sim_complete(s->sim, 0, 0);
	}
	assert_true(c.done);
	queue_free(s->l.q);
	sim_file_free(s->sim);
}

/*
 * The write was under way when a sync failed: the kernel may have tried to write its pages too, and dropped them. That it
 * ends after the failure does not make it a write that came after; only one that began after it is.
 */
static void a_write_under_way_when_a_sync_fails_is_in_doubt(void **state)
{
	struct sim_opts opts = { .seed = 1, .len = 1 << 20, .manual = true };
	struct raced write, again, flush;
	static uint8_t buf[512];
	struct script s;

	(void)state;
	memset(&s, 0, sizeof(s));
	assert_int_equal(sim_file_new(&s.sim, &s.af, &opts), 0);
	leaf_open_sim(&s.l, s.sim, &s.af, NODE_WRITABLE);

	raced_start(&s, &write, REQ_WRITE, 4096, sizeof(buf), buf);
	raced_start(&s, &flush, REQ_FLUSH, 0, 0, NULL);
	raced_end(&s, &flush, 1, -EIO);
	assert_int_equal(flush.ret, -EIO);
	raced_end(&s, &write, 0, 0);
	assert_int_equal(write.ret, 0);
	assert_int_equal(doubt_bytes(script_doubt(&s)), sizeof(buf));

	raced_start(&s, &flush, REQ_FLUSH, 0, 0, NULL);
	raced_end(&s, &flush, 0, 0);
	assert_int_equal(flush.ret, -EIO);
	/* A sync that began before the second write ended does not cover it. */
	raced_start(&s, &again, REQ_WRITE, 4096, sizeof(buf), buf);
	raced_start(&s, &flush, REQ_FLUSH, 0, 0, NULL);
	raced_end(&s, &again, 0, 0);
	raced_end(&s, &flush, 0, 0);
	assert_int_equal(flush.ret, -EIO);
	assert_int_equal(doubt_bytes(script_doubt(&s)), sizeof(buf));
	doubt_acknowledge(script_doubt(&s), &(uint64_t){ 0 });
	raced_start(&s, &flush, REQ_FLUSH, 0, 0, NULL);
	raced_end(&s, &flush, 0, 0);
	assert_int_equal(flush.ret, 0);

	raced_close(&s);
}

/* More places than are kept one by one: more may be in doubt than was written, never less; written again, it heals. */
static void many_places_in_doubt_heal_too(void **state)
{
	enum { NR = 3000, STEP = 5000 };
	struct script s;

	(void)state;
	script_open(&s, NR * STEP, NODE_WRITABLE, false);
	for (unsigned i = 0; i < NR; i++)
		leaf_fill(&s.l, (uint64_t)(i * 7919 % NR) * STEP, 512, 1);
	script_set(&s, AIO_FLUSH, -EIO, 1);
	assert_int_equal(leaf_flush(&s.l), -EIO);
	assert_true(doubt_bytes(script_doubt(&s)) >= NR * 512);
	for (unsigned i = 0; i + 1 < NR; i++)
		leaf_fill(&s.l, (uint64_t)i * STEP, STEP, 1);
	assert_int_equal(leaf_flush(&s.l), -EIO); /* the last place is missing */
	leaf_fill(&s.l, (uint64_t)(NR - 1) * STEP, 512, 1);
	assert_int_equal(leaf_flush(&s.l), -EIO); /* it is known as a part of a block only */
	leaf_fill(&s.l, 0, NR * STEP, 1);
	assert_int_equal(leaf_flush(&s.l), 0);
	script_close(&s);
}

/* Every write and zeroing is FUA; what fails then is the write, at once. */
static void sync_on_makes_every_write_stable(void **state)
{
	uint8_t buf[512] = { 1 };
	struct script s;

	(void)state;
	script_open(&s, 4096, NODE_WRITABLE | NODE_SYNC, false);
	script_set(&s, AIO_WRITE, 0, 0);
	s.flags_any = AIO_FUA;
	assert_int_equal(leaf_write(&s.l, 0, buf, sizeof(buf), 0), 0);
	assert_int_equal(s.seen, 1);
	assert_int_equal(sim_nr_unstable(s.sim), 0);
	script_set(&s, AIO_FLUSH, 0, 0);
	assert_int_equal(leaf_zero(&s.l, 0, 512, 0), 0);
	assert_int_equal(s.seen, 1);
	assert_int_equal(sim_nr_unstable(s.sim), 0);
	script_close(&s);
}

/* The write itself failed: the guest may repeat it, and flushes say nothing of it. */
static void a_failed_fua_write_is_only_its_own_failure(void **state)
{
	uint8_t buf[512] = { 1 };
	struct script s;

	(void)state;
	script_open(&s, 4096, NODE_WRITABLE, false);
	script_set(&s, AIO_WRITE, -ENOSPC, 2);
	assert_int_equal(leaf_write(&s.l, 0, buf, sizeof(buf), REQ_FUA), -ENOSPC);
	assert_int_equal(leaf_flush(&s.l), 0);
	assert_int_equal(leaf_write(&s.l, 0, buf, sizeof(buf), REQ_FUA), 0);
	script_close(&s);
}

static void cache_unsafe_syncs_nothing(void **state)
{
	uint8_t buf[512] = { 1 };
	struct script s;

	(void)state;
	script_open(&s, 4096, NODE_WRITABLE | NODE_NO_FLUSH, false);
	script_set(&s, AIO_FLUSH, -EIO, 100);
	assert_int_equal(leaf_flush(&s.l), 0);
	assert_int_equal(leaf_zero(&s.l, 0, 512, REQ_FUA), 0);
	assert_int_equal(s.seen, 0);
	script_set(&s, AIO_WRITE, 0, 0);
	s.flags_any = AIO_FUA;
	assert_int_equal(leaf_write(&s.l, 0, buf, sizeof(buf), REQ_FUA), 0);
	assert_int_equal(s.seen, 0);
	script_close(&s);
}

static void a_file_open_for_reading_has_nothing_to_sync(void **state)
{
	struct script s;

	(void)state;
	script_open(&s, 4096, 0, false);
	script_set(&s, AIO_FLUSH, -EIO, 100);
	assert_int_equal(leaf_flush(&s.l), 0);
	assert_int_equal(s.seen, 0);
	script_close(&s);
}

/* ---- what the file system cannot do ---- */

static void zeroes_are_written_where_they_cannot_be_made(void **state)
{
	enum { LEN = 700000 };
	uint8_t *buf = malloc(LEN);
	struct script s;

	(void)state;
	script_open(&s, LEN, NODE_WRITABLE, false);
	sim_fill(&s, LEN);
	script_set(&s, AIO_ZERO, -EOPNOTSUPP, 1000);
	assert_int_equal(leaf_zero(&s.l, 1000, LEN - 2000, 0), 0);
	sim_peek(s.sim, 0, buf, LEN);
	for (unsigned i = 0; i < LEN; i++)
		assert_int_equal(buf[i], i < 1000 || i >= LEN - 1000 ? leaf_pattern(i) : 0);
	/* It has learnt, and does not ask again; the other way of making zeroes is still to be found out. */
	assert_int_equal(s.seen, 1);
	assert_int_equal(leaf_zero(&s.l, 0, 1000, 0), 0);
	assert_int_equal(s.seen, 1);
	assert_int_equal(leaf_zero(&s.l, 0, 1000, REQ_MAY_UNMAP), 0);
	assert_int_equal(s.seen, 2);
	script_close(&s);
	free(buf);
}

/* Holes are refused, zeroes in place are not: nothing is written. */
static void zeroes_without_holes_are_tried_before_writing(void **state)
{
	struct script s;

	(void)state;
	script_open(&s, 65536, NODE_WRITABLE, false);
	sim_fill(&s, 65536);
	script_set(&s, AIO_ZERO, -EOPNOTSUPP, 1000);
	s.flags_any = AIO_MAY_UNMAP;
	assert_int_equal(leaf_zero(&s.l, 0, 32768, REQ_MAY_UNMAP), 0);
	assert_int_equal(s.seen, 1);
	script_set(&s, AIO_WRITE, 0, 0);
	assert_int_equal(leaf_zero(&s.l, 32768, 32768, REQ_MAY_UNMAP), 0);
	assert_int_equal(s.seen, 0);
	leaf_expect(&s.l, 0, 65536, 0);
	script_close(&s);
}

static void a_real_error_of_zeroing_is_told(void **state)
{
	struct script s;

	(void)state;
	script_open(&s, 4096, NODE_WRITABLE, false);
	script_set(&s, AIO_ZERO, -ENOSPC, 1);
	assert_int_equal(leaf_zero(&s.l, 0, 4096, 0), -ENOSPC);
	script_close(&s);
}

static void discard_is_advice(void **state)
{
	struct script s;

	(void)state;
	script_open(&s, 4096, NODE_WRITABLE, false);
	sim_fill(&s, 4096);
	script_set(&s, AIO_DISCARD, -EOPNOTSUPP, 1000);
	assert_int_equal(leaf_discard(&s.l, 0, 4096), 0);
	assert_int_equal(leaf_discard(&s.l, 0, 4096), 0);
	assert_int_equal(s.seen, 1);
	expect_pattern(&s, 0, 4096);
	script_close(&s);

	script_open(&s, 4096, NODE_WRITABLE, false);
	script_set(&s, AIO_DISCARD, -EIO, 1);
	assert_int_equal(leaf_discard(&s.l, 0, 4096), -EIO);
	script_close(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(short_reads_are_continued),
		cmocka_unit_test(short_writes_are_continued),
		cmocka_unit_test(short_direct_writes_go_on_at_a_sector),
		cmocka_unit_test(a_direct_read_that_stops_early_is_continued_from_whole_sectors),
		cmocka_unit_test(an_error_behind_a_short_transfer_is_told),
		cmocka_unit_test(more_requests_than_fibers_all_end),
		cmocka_unit_test(a_failed_flush_is_never_forgotten),
		cmocka_unit_test(a_failed_sync_of_a_fua_write_is_never_forgotten),
		cmocka_unit_test(what_is_written_again_is_in_doubt_no_more),
		cmocka_unit_test(a_retry_that_fails_is_in_doubt_again),
		cmocka_unit_test(a_fua_write_again_needs_no_flush),
		cmocka_unit_test(an_acknowledged_error_is_forgotten),
		cmocka_unit_test(what_flushes_fail_with_is_published),
		cmocka_unit_test(a_write_under_way_when_a_sync_fails_is_in_doubt),
		cmocka_unit_test(many_places_in_doubt_heal_too),
		cmocka_unit_test(sync_on_makes_every_write_stable),
		cmocka_unit_test(a_failed_fua_write_is_only_its_own_failure),
		cmocka_unit_test(cache_unsafe_syncs_nothing),
		cmocka_unit_test(a_file_open_for_reading_has_nothing_to_sync),
		cmocka_unit_test(zeroes_are_written_where_they_cannot_be_made),
		cmocka_unit_test(zeroes_without_holes_are_tried_before_writing),
		cmocka_unit_test(a_real_error_of_zeroing_is_told),
		cmocka_unit_test(discard_is_advice),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
