/* SPDX-License-Identifier: MIT */
/*
 * unit/block/test_throttle.c - throttling.*: how many requests come through in a time, on a clock that the
 * test turns
 */
#include "fake.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "block/throttle.h"

#define CL KiB(64)
#define MS UINT64_C(1000000)
#define NR 2000

static uint8_t buf[CL];
static struct io ios[NR];

static struct throttle_config none(void)
{
	struct throttle_config c = { .iops_size = 0 };

	for (unsigned i = 0; i < THROTTLE_KINDS; i++)
		c.limit[i].max_length = 1;
	return c;
}

static void open_with(struct image *img, const struct throttle_config *c)
{
	struct queue_opts opts = { .name = "clock", .virtual_time = true };
	struct queue *clock_queue;

	assert_int_equal(queue_new(&clock_queue, &opts, NULL), 0);
	image_open(img, clock_queue, CL, MiB(1), NODE_WRITABLE);
	for (unsigned i = 0; i < 16; i++)
		fake_set(img->l.n, i, EXTENT_DATA, i * CL, true);
	assert_int_equal(throttle_check(c, NULL), 0);
	assert_int_equal(throttle_set(img->l.n, c, NULL), 0);
	queue_advance(img->l.q, 1000 * MS);
	turns(img->l.q, 2);
}

static void start(struct image *img, unsigned from, unsigned to, enum req_op op, uint64_t len)
{
	for (unsigned i = from; i < to; i++)
		io_start(&ios[i], img->l.n, img->l.q, op, 0, op == REQ_READ || op == REQ_WRITE ? buf : NULL,
			 len, 0);
	turns(img->l.q, 4);
}

static unsigned done(unsigned from, unsigned to)
{
	unsigned nr = 0;

	for (unsigned i = from; i < to; i++)
		nr += ios[i].done;
	return nr;
}

/* Milliseconds until so many of them are done. */
static unsigned ms_until(struct image *img, unsigned from, unsigned to, unsigned nr)
{
	unsigned ms = 0;

	for (; done(from, to) < nr; ms++) {
		assert_true(ms < 1000000);
		queue_advance(img->l.q, MS);
		turns(img->l.q, 4);
	}
	return ms;
}

static void requests_come_at_the_rate(void **state)
{
	struct throttle_config c = none();
	struct image img;

	(void)state;
	c.limit[THROTTLE_IOPS_TOTAL].avg = 100;
	open_with(&img, &c);
	start(&img, 0, 200, REQ_WRITE, 4096);
	assert_in_range(done(0, 200), 10, 11); /* a tenth of a second's worth at once */
	assert_in_range(ms_until(&img, 0, 200, 110), 980, 1010);
	assert_in_range(ms_until(&img, 0, 200, 200), 880, 910);
	/* In the order in which they came. */
	for (unsigned i = 0; i < 200; i++)
		assert_int_equal(ios[i].ret, 0);
	/* After a pause there is no more than that saved up. */
	queue_advance(img.l.q, 100000 * MS);
	start(&img, 0, 100, REQ_READ, 512);
	assert_in_range(done(0, 100), 10, 11);
	ms_until(&img, 0, 100, 100);
	image_close(&img);
}

static void bytes_count_whatever_the_requests_are(void **state)
{
	struct throttle_config c = none();
	struct image img;

	(void)state;
	c.limit[THROTTLE_BPS_WRITE].avg = MiB(1);
	open_with(&img, &c);
	start(&img, 0, 64, REQ_WRITE, CL); /* 4 MiB */
	start(&img, 64, 128, REQ_READ, CL);
	assert_int_equal(done(64, 128), 64); /* reads are not meant */
	assert_in_range(ms_until(&img, 0, 64, 64), 3800, 3950);
	/* Zeroes and discards are writes; a flush is free. */
	start(&img, 0, 16, REQ_ZERO, CL);
	start(&img, 16, 32, REQ_DISCARD, CL);
	start(&img, 32, 40, REQ_FLUSH, 0);
	assert_int_equal(done(32, 40), 8);
	assert_in_range(ms_until(&img, 0, 32, 32), 1800, 2100);
	image_close(&img);
}

static void a_burst_lasts_as_long_as_it_may(void **state)
{
	struct throttle_config c = none();
	struct image img;

	(void)state;
	c.limit[THROTTLE_IOPS_TOTAL] = (struct throttle_limit){ .avg = 100, .max = 500, .max_length = 3 };
	open_with(&img, &c);
	start(&img, 0, NR, REQ_WRITE, 512);
	assert_in_range(done(0, NR), 20, 60);
	assert_in_range(ms_until(&img, 0, NR, 500), 880, 1000);	  /* 500 a second ... */
	assert_in_range(ms_until(&img, 0, NR, 1500), 1950, 2100); /* ... for three seconds, then 100 */
	assert_in_range(ms_until(&img, 0, NR, 1600), 800, 1010);
	assert_in_range(ms_until(&img, 0, NR, NR), 3900, 4010);
	image_close(&img);
}

static void large_requests_count_as_many_with_iops_size(void **state)
{
	struct throttle_config c = none();
	struct image img;

	(void)state;
	c.limit[THROTTLE_IOPS_READ].avg = 160;
	c.iops_size = 4096;
	open_with(&img, &c);
	start(&img, 0, 20, REQ_READ, CL); /* 16 each */
	assert_in_range(ms_until(&img, 0, 20, 20), 1700, 1950);
	queue_advance(img.l.q, 1000 * MS); /* the last one is paid for */
	start(&img, 0, 16, REQ_READ, 512); /* 1 each */
	assert_in_range(ms_until(&img, 0, 16, 16), 0, 20);
	image_close(&img);
}

static void new_limits_are_for_those_who_wait_too(void **state)
{
	struct throttle_config c = none(), back;
	struct image img;

	(void)state;
	c.limit[THROTTLE_IOPS_TOTAL].avg = 1;
	open_with(&img, &c);
	start(&img, 0, 101, REQ_WRITE, 512);
	assert_in_range(done(0, 101), 1, 2);
	throttle_get(img.l.n, &back);
	assert_int_equal(back.limit[THROTTLE_IOPS_TOTAL].avg, 1);
	c.limit[THROTTLE_IOPS_TOTAL].avg = 100;
	assert_int_equal(throttle_set(img.l.n, &c, NULL), 0);
	assert_in_range(ms_until(&img, 0, 101, 101), 850, 1100);
	c.limit[THROTTLE_IOPS_TOTAL].avg = 1;
	assert_int_equal(throttle_set(img.l.n, &c, NULL), 0);
	start(&img, 0, 101, REQ_WRITE, 512);
	c = none();
	assert_int_equal(throttle_set(img.l.n, &c, NULL), 0);
	assert_in_range(ms_until(&img, 0, 101, 101), 0, 101);
	image_close(&img);
}

static void nobody_waits_while_it_passes(void **state)
{
	struct throttle_config c = none();
	struct image img;

	(void)state;
	c.limit[THROTTLE_IOPS_TOTAL].avg = 1;
	open_with(&img, &c);
	start(&img, 0, 100, REQ_WRITE, 512);
	throttle_pass_begin(img.l.n);
	assert_in_range(ms_until(&img, 0, 100, 100), 0, 101);
	start(&img, 0, 100, REQ_WRITE, 512);
	assert_int_equal(done(0, 100), 100);
	throttle_pass_end(img.l.n);
	start(&img, 0, 100, REQ_WRITE, 512);
	assert_true(done(0, 100) < 100);
	throttle_pass_begin(img.l.n);
	ms_until(&img, 0, 100, 100);
	image_close(&img);
}

/* What passes is paid for by what comes later, and nobody who passes is to come back before that. */
static void what_is_hurried_is_paid_for(void **state)
{
	struct throttle_config c = none();
	struct image img;

	(void)state;
	c.limit[THROTTLE_IOPS_TOTAL].avg = 100;
	open_with(&img, &c);
	assert_int_equal(throttle_paid_at(img.l.n), 0);
	start(&img, 0, 210, REQ_WRITE, 512);
	assert_in_range(done(0, 210), 10, 11);
	throttle_hurry_begin(img.l.n, img.l.q);
	turns(img.l.q, 4);
	assert_int_equal(done(0, 210), 210);
	start(&img, 210, 310, REQ_WRITE, 512); /* they belong to what is waited for */
	assert_int_equal(done(210, 310), 100);
	throttle_hurry_end(img.l.n, img.l.q);
	assert_in_range(throttle_paid_at(img.l.n) - queue_now(img.l.q), 2880 * MS, 3010 * MS);
	start(&img, 310, 320, REQ_WRITE, 512);
	assert_in_range(ms_until(&img, 310, 320, 10), 2900, 3110);
	assert_true(throttle_paid_at(img.l.n) <= queue_now(img.l.q));
	/* Nobody had to be hurried: nothing is owed. */
	queue_advance(img.l.q, 10000 * MS);
	throttle_hurry_begin(img.l.n, img.l.q);
	start(&img, 0, 5, REQ_WRITE, 512);
	throttle_hurry_end(img.l.n, img.l.q);
	assert_true(throttle_paid_at(img.l.n) <= queue_now(img.l.q));
	image_close(&img);
}

static int end_drain(struct fiber *f, void *arg)
{
	(void)f;
	node_drain_end(arg);
	return 0;
}

static int drain(struct fiber *f, void *arg)
{
	node_drain_begin(f, arg);
	return 0;
}

/* Drain does not wait for those who wait for their turn, and keeps them out when it comes. */
static void a_drained_disk_lets_nobody_in(void **state)
{
	struct throttle_config c = none();
	struct image img;

	(void)state;
	c.limit[THROTTLE_IOPS_TOTAL].avg = 100;
	open_with(&img, &c);
	start(&img, 0, 60, REQ_WRITE, 512);
	assert_int_equal(fiber_call(img.l.q, drain, img.l.n), 0);
	assert_true(done(0, 60) < 60);
	for (unsigned i = 0, before = done(0, 60); i < 1000; i++) {
		queue_advance(img.l.q, MS);
		turns(img.l.q, 2);
		assert_int_equal(done(0, 60), before);
	}
	assert_int_equal(fiber_call(img.l.q, end_drain, img.l.n), 0);
	assert_in_range(ms_until(&img, 0, 60, 60), 0, 5);
	image_close(&img);
}

/* A turn may come when the disk has become shorter. */
static void who_comes_late_keeps_within_the_disk_of_then(void **state)
{
	struct throttle_config c = none();
	struct image img;

	(void)state;
	c.limit[THROTTLE_IOPS_TOTAL].avg = 100;
	open_with(&img, &c);
	start(&img, 0, 40, REQ_WRITE, 512);
	for (unsigned i = 40; i < 50; i++)
		io_start(&ios[i], img.l.n, img.l.q, REQ_WRITE, 8 * CL - (i < 45 ? 512 : 0), buf, 512, 0);
	assert_int_equal(done(40, 50), 0);
	atomic_store(&img.l.n->len, 8 * CL);
	ms_until(&img, 0, 50, 50);
	for (unsigned i = 0; i < 50; i++)
		assert_int_equal(ios[i].ret, i < 45 ? 0 : -EINVAL);
	image_close(&img);
}

static void limits_that_cannot_be_are_refused(void **state)
{
	static const struct {
		const char *text, *why;
	} bad[] = {
		{ "throttling.iops-total-max=5", "needs throttling.iops-total beside it" },
		{ "throttling.bps-read=9,throttling.bps-read-max=5", "is less than" },
		{ "throttling.bps-read=9,throttling.bps-read-max-length=5",
		  "needs throttling.bps-read-max beside" },
		{ "throttling.bps-read=9,throttling.bps-read-max=10,throttling.bps-read-max-length=0",
		  "are not 1 .." },
		{ "throttling.bps-read=9,throttling.bps-read-max=10,throttling.bps-read-max-length=86401",
		  "are not 1 .." },
		{ "throttling.iops-total=9,throttling.iops-write=5", "goes neither" },
		{ "throttling.bps-total=9,throttling.bps-read=5", "goes neither" },
		{ "throttling.iops-total=2P", "is no limit" },
		{ "throttling.iops-all=2", "iops-all" },
		{ "throttling.iops-total=many", "many" },
	};
	struct throttle_config c;
	struct varve_error err;
	struct opts *o;
	bool any;

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(bad); i++) {
		o = opts_new();
		assert_int_equal(opts_parse(o, bad[i].text, NULL), 0);
		assert_true(throttle_options(o, &c, &any, &err) < 0);
		if (!strstr(err.message, bad[i].why))
			fail_msg("%s: \"%s\" does not say \"%s\"", bad[i].text, err.message, bad[i].why);
		opts_free(o);
	}
	o = opts_new();
	assert_int_equal(
		opts_parse(
			o,
			"throttling.iops-total=100,throttling.iops-total-max=1k,"
			"throttling.iops-total-max-length=60,throttling.bps-read=1M,throttling.iops-size=4k",
			NULL),
		0);
	assert_int_equal(throttle_options(o, &c, &any, &err), 0);
	assert_true(any);
	assert_int_equal(c.limit[THROTTLE_IOPS_TOTAL].avg, 100);
	assert_int_equal(c.limit[THROTTLE_IOPS_TOTAL].max, 1024);
	assert_int_equal(c.limit[THROTTLE_IOPS_TOTAL].max_length, 60);
	assert_int_equal(c.limit[THROTTLE_BPS_READ].avg, MiB(1));
	assert_int_equal(c.iops_size, 4096);
	opts_free(o);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(requests_come_at_the_rate),
		cmocka_unit_test(bytes_count_whatever_the_requests_are),
		cmocka_unit_test(a_burst_lasts_as_long_as_it_may),
		cmocka_unit_test(large_requests_count_as_many_with_iops_size),
		cmocka_unit_test(new_limits_are_for_those_who_wait_too),
		cmocka_unit_test(nobody_waits_while_it_passes),
		cmocka_unit_test(what_is_hurried_is_paid_for),
		cmocka_unit_test(a_drained_disk_lets_nobody_in),
		cmocka_unit_test(who_comes_late_keeps_within_the_disk_of_then),
		cmocka_unit_test(limits_that_cannot_be_are_refused),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
