/* SPDX-License-Identifier: MIT */
/*
 * unit/block/test_grace_drain.c - waiting for requests in flight: grace periods and drain
 */
#include "fake.h"

#include <errno.h>

#define CL KiB(4)

/* A fiber that does one thing and says when it has. */
struct task {
	struct fiber_job job;
	struct node *n;
	void (*fn)(struct fiber *f, struct node *n);
	bool ended;
};

static void task_run(struct fiber *f, struct fiber_job *job)
{
	struct task *t = container_of(job, struct task, job);

	t->fn(f, t->n);
	t->ended = true;
}

static void task_start(struct task *t, struct image *img, void (*fn)(struct fiber *f, struct node *n))
{
	*t = (struct task){ .job.run = task_run, .n = img->l.n, .fn = fn };
	fiber_start(img->l.q, &t->job, img->l.n->level);
	turns(img->l.q, 10);
}

static void mapped_open(struct image *img)
{
	image_open(img, NULL, CL, KiB(64), NODE_WRITABLE);
	for (uint64_t i = 0; i < 16; i++)
		fake_set(img->l.n, i, EXTENT_DATA, i * CL, true);
	hold_of(img->hold)->writes = true;
}

static void a_hot_write_in_flight_holds_the_grace_period(void **state)
{
	static uint8_t buf[CL];
	struct image img;
	struct task t;
	struct io a, b;

	(void)state;
	mapped_open(&img);
	io_start(&a, img.l.n, img.l.q, REQ_WRITE, 0, buf, CL, 0);
	task_start(&t, &img, node_grace);
	assert_false(t.ended);
	/* One that began after it is not waited for. */
	io_start(&b, img.l.n, img.l.q, REQ_WRITE, CL, buf, CL, 0);
	assert_true(hold_release(img.hold));
	turns(img.l.q, 10);
	assert_true(a.done && t.ended && !b.done);
	/* And the next grace period waits for that one. */
	task_start(&t, &img, node_grace);
	assert_false(t.ended);
	assert_true(hold_release(img.hold));
	turns(img.l.q, 10);
	assert_true(b.done && t.ended);
	image_close(&img);
}

static void grace_periods_take_turns(void **state)
{
	static uint8_t buf[CL];
	struct image img;
	struct task t[3];
	struct io io[3];

	(void)state;
	mapped_open(&img);
	for (unsigned i = 0; i < 3; i++) {
		io_start(&io[i], img.l.n, img.l.q, REQ_WRITE, i * CL, buf, CL, 0);
		task_start(&t[i], &img, node_grace);
	}
	/* The first one needs the first write only; the second begins after it, and counts all that is left. */
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(t[0].ended, i > 0);
		assert_false(t[1].ended || t[2].ended);
		assert_true(hold_release(img.hold));
		turns(img.l.q, 10);
		assert_true(io[i].done);
	}
	assert_true(t[1].ended && t[2].ended);
	image_close(&img);
}

static void drain_waits_for_what_is_in_flight_and_parks_the_rest(void **state)
{
	static uint8_t buf[CL];
	struct image img;
	struct task t, again;
	struct io a, b, c;

	(void)state;
	mapped_open(&img);
	io_start(&a, img.l.n, img.l.q, REQ_WRITE, 0, buf, CL, 0);
	task_start(&t, &img, node_drain_begin);
	assert_false(t.ended);
	io_start(&b, img.l.n, img.l.q, REQ_READ, 0, buf, CL, 0);
	turns(img.l.q, 10);
	assert_false(b.done);
	assert_true(hold_release(img.hold));
	turns(img.l.q, 10);
	assert_true(a.done && t.ended && !b.done);
	task_start(&again, &img, node_drain_begin); /* it nests */
	assert_true(again.ended);
	node_drain_end(img.l.n);
	io_start(&c, img.l.n, img.l.q, REQ_FLUSH, 0, NULL, 0, 0);
	turns(img.l.q, 10);
	assert_false(b.done || c.done);
	node_drain_end(img.l.n);
	assert_int_equal(io_wait(&b), 0);
	assert_int_equal(io_wait(&c), 0);
	image_close(&img);
}

/* Whoever drains the disk may make it shorter: what waited at the door is looked at again. */
static void what_waits_for_the_end_of_a_drain_keeps_within_the_disk_of_then(void **state)
{
	static uint8_t buf[CL];
	struct io inside, across, behind, flush;
	struct image img;
	struct task t;

	(void)state;
	mapped_open(&img);
	hold_of(img.hold)->writes = false;
	task_start(&t, &img, node_drain_begin);
	assert_true(t.ended);
	io_start(&inside, img.l.n, img.l.q, REQ_WRITE, 7 * CL, buf, CL, 0);
	io_start(&across, img.l.n, img.l.q, REQ_WRITE, 8 * CL - 512, buf, CL, 0);
	io_start(&behind, img.l.n, img.l.q, REQ_READ, 9 * CL, buf, CL, 0);
	io_start(&flush, img.l.n, img.l.q, REQ_FLUSH, 0, NULL, 0, 0);
	turns(img.l.q, 10);
	assert_false(inside.done || across.done || behind.done || flush.done);
	atomic_store(&img.l.n->len, 8 * CL);
	node_drain_end(img.l.n);
	assert_int_equal(io_wait(&inside), 0);
	assert_int_equal(io_wait(&across), -EINVAL);
	assert_int_equal(io_wait(&behind), -EINVAL);
	assert_int_equal(io_wait(&flush), 0);
	assert_int_equal(hold_of(img.hold)->nr_writes, 1);
	image_close(&img);
}

struct leaver {
	struct req r;
	struct iovec iov;
	struct image *img;
	struct queue *q;
	int ret;
	bool done;
};

static int leave(struct fiber *f, void *arg)
{
	struct leaver *l = arg;

	node_detach(f, l->img->l.n, l->q);
	return 0;
}

/* The last request of its queue, which nobody needs any more. */
static void leaver_done(struct req *r, int ret)
{
	struct leaver *l = container_of(r, struct leaver, r);

	l->ret = ret;
	assert_int_equal(fiber_call(l->img->l.q, leave, l), 0);
	l->done = true;
}

/* What waited for the end of a drain is let in, is the last one, and its queue is detached at that moment (as by another thread): seen by the sanitizer. */
static void a_queue_may_be_detached_while_it_lets_in_what_has_waited(void **state)
{
	static uint8_t buf[CL];
	struct varve_error err;
	struct image img;
	struct leaver l = { .img = &img, .q = leaf_queue(), .iov = { buf, CL } };
	struct task t;

	(void)state;
	mapped_open(&img);
	fake_set(img.l.n, 0, EXTENT_ZERO, 0, false);
	assert_int_equal(node_attach(img.l.n, l.q, &err), 0);
	task_start(&t, &img, node_drain_begin);
	while (!t.ended) {
		turns(l.q, 1);
		turns(img.l.q, 1);
	}
	req_init(&l.r, l.q, REQ_READ, 0, CL, &l.iov, 1, 0, leaver_done);
	node_submit(img.l.n, &l.r);
	turns(l.q, 3);
	assert_false(l.done);
	node_drain_end(img.l.n);
	turns(l.q, 3);
	assert_true(l.done);
	assert_int_equal(l.ret, 0);
	queue_free(l.q);
	image_close(&img);
}

/* What waits for metadata is in flight too. */
static void drain_waits_for_the_cold_path(void **state)
{
	static uint8_t buf[512];
	struct image img;
	struct task t;
	struct io a;

	(void)state;
	mapped_open(&img);
	fake_set(img.l.n, 3, EXTENT_ABSENT, 0, false);
	fake_of(img.l.n)->next_host = KiB(64);
	io_start(&a, img.l.n, img.l.q, REQ_WRITE, 3 * CL, buf, 512, 0);
	task_start(&t, &img, node_drain_begin);
	assert_false(t.ended || a.done);
	while (!a.done) {
		hold_release(img.hold);
		queue_turn(img.l.q, 0);
	}
	turns(img.l.q, 10);
	assert_true(t.ended);
	node_drain_end(img.l.n);
	turns(img.l.q, 2);
	image_close(&img);
}

/* ---- several queues ---- */

#define CLUSTERS 64

/* Discards begun so far. The writers go on until there were enough, however the threads are scheduled. */
static _Atomic unsigned nr_discards;
#define DISCARDS_WANTED 30
#define WRITES_MAX 1000000

static int write_lots(struct worker *w)
{
	static uint8_t bufs[4][CL];
	struct rnd rnd;
	int ret = 0;

	rnd_start(&rnd, 77 + w->nr);
	for (unsigned i = 0; ret == 0 && (i < 1500 || (nr_discards < DISCARDS_WANTED && i < WRITES_MAX)); i++) {
		struct io io[4];

		for (unsigned k = 0; k < 4; k++) {
			/* Workers keep to their own clusters: overlapping writes would be the guest's race. */
			uint64_t cluster = 8 * rnd_below(&rnd, CLUSTERS / 8) + 4 * w->nr + k;

			io_start(&io[k], w->n, w->q, REQ_WRITE, cluster * CL, bufs[w->nr], CL, 0);
		}
		for (unsigned k = 0; k < 4; k++) {
			int r = io_wait(&io[k]);

			ret = ret < 0 ? ret : r;
		}
	}
	return ret;
}

struct discarder {
	struct image *img;
	struct rnd rnd;
	struct io io;
	struct task drain;
	bool draining;
	unsigned nr;
};

/* Home discards clusters all the time; sometimes it drains and looks at the counts. */
static void discard_some(void *arg)
{
	struct discarder *d = arg;
	struct node *n = d->img->l.n;

	if (d->draining) {
		if (!d->drain.ended)
			return;
		for (unsigned i = 0; i < QUEUE_MAX; i++)
			if (n->slots[i])
				assert_int_equal(n->slots[i]->entered, 0);
		node_drain_end(n);
		d->draining = false;
		d->nr++;
	}
	if (!d->io.done)
		return;
	if (rnd_below(&d->rnd, 20) == 0) {
		d->draining = true;
		task_start(&d->drain, d->img, node_drain_begin);
		return;
	}
	nr_discards++;
	io_start(&d->io, n, d->img->l.q, REQ_DISCARD, rnd_below(&d->rnd, CLUSTERS) * CL, NULL, CL, 0);
}

/* A memory leaf that answers later and minds that nothing is written to space that was given back. */
static struct driver driver_ledger;
static _Atomic unsigned char given_back[65536];
static _Atomic unsigned ledger_bad;

static void ledger_later(struct msg *m)
{
	struct req *r = container_of(m, struct req, msg);

	if (r->op == REQ_WRITE && given_back[r->off / CL])
		ledger_bad++;
	driver_memory.submit(r->at, r);
}

static void ledger_submit(struct node *n, struct req *r)
{
	r->msg.run = ledger_later;
	queue_later(r->q, &r->msg);
}

static struct driver driver_freeing; /* the fake, but what it unlinks is given back after the grace period */

static int freeing_unlink(struct fiber *f, struct node *n, uint64_t off, uint64_t len, enum unlink_mode mode)
{
	uint64_t host[CLUSTERS], nr = 0;

	for (uint64_t pos = off; pos < off + len; pos += CL) {
		struct extent e;

		n->drv->map(n, pos, CL, &e);
		if (e.kind == EXTENT_DATA)
			host[nr++] = e.host_off;
	}
	if (driver_fake.unlink(f, n, off, len, mode) < 0)
		return -EIO;
	while (nr)
		given_back[host[--nr] / CL] = 1;
	return 0;
}

static void no_write_reaches_space_that_was_given_back(void **state)
{
	struct worker w[2] = { { .fn = write_lots }, { .fn = write_lots } };
	struct discarder d = { .io.done = true };
	struct leaf m;
	struct image img = { .l.q = leaf_queue() };

	(void)state;
	driver_ledger = driver_memory;
	driver_ledger.submit = ledger_submit;
	driver_freeing = driver_fake;
	driver_freeing.unlink = freeing_unlink;
	memset((void *)given_back, 0, sizeof(given_back));
	m.q = img.l.q;
	assert_int_equal(leaf_try(&m, &driver_memory, NULL, "size=1M", NODE_WRITABLE), 0);
	m.n->drv = &driver_ledger;
	node_set_submit(m.n);
	assert_int_equal(leaf_try(&img.l, &driver_freeing, m.n, "size=256k,cluster=4k", NODE_WRITABLE), 0);
	d.img = &img;
	rnd_start(&d.rnd, 5);
	workers_run(&img.l, w, 2, discard_some, &d);
	while (!d.io.done || (d.draining && !d.drain.ended))
		queue_turn(img.l.q, 0);
	if (d.draining)
		node_drain_end(img.l.n);
	turns(img.l.q, 3);
	assert_int_equal(ledger_bad, 0);
	assert_true(fake_of(img.l.n)->nr_unlink > 10);
	image_close(&img);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_hot_write_in_flight_holds_the_grace_period),
		cmocka_unit_test(grace_periods_take_turns),
		cmocka_unit_test(drain_waits_for_what_is_in_flight_and_parks_the_rest),
		cmocka_unit_test(what_waits_for_the_end_of_a_drain_keeps_within_the_disk_of_then),
		cmocka_unit_test(a_queue_may_be_detached_while_it_lets_in_what_has_waited),
		cmocka_unit_test(drain_waits_for_the_cold_path),
		cmocka_unit_test(no_write_reaches_space_that_was_given_back),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
