/* SPDX-License-Identifier: MIT */
/*
 * unit/filter/test_lockstep.c - one request at a time, in an order that the seed decides and nothing else
 */
#include "../proto/leaf.h"

#include "aio/sim.h"
#include "base/math.h"
#include "filter/filter.h"

#define NR 8u
#define LEN 512u

struct call {
	struct req r;
	struct iovec iov;
	uint8_t buf[LEN];
	unsigned nr;
	struct disk *d;
	bool again; /* when it is done, it asks once more */
};

struct disk {
	struct leaf l;
	struct sim_file *sim;
	struct aio_file af;
	struct call calls[NR];
	unsigned order[4 * NR], nr_done, most_pending;
};

static void disk_open(struct disk *d, const char *options)
{
	struct sim_opts so = { .len = NR * LEN, .manual = true };
	struct leaf m;

	memset(d, 0, sizeof(*d));
	assert_int_equal(sim_file_new(&d->sim, &d->af, &so), 0);
	leaf_open_sim(&m, d->sim, &d->af, NODE_WRITABLE);
	d->l.q = m.q;
	if (leaf_try(&d->l, &driver_lockstep, m.n, options, NODE_WRITABLE) < 0)
		fail_msg("%s", d->l.err.message);
}

struct closing {
	struct fiber_job job;
	struct disk *d;
	bool done;
};

static void close_run(struct fiber *f, struct fiber_job *job)
{
	struct closing *c = container_of(job, struct closing, job);

	assert_int_equal(graph_close(f, c->d->l.n, &c->d->l.err), 0);
	c->done = true;
}

/* It flushes, and the file has to answer. */
static void disk_close(struct disk *d)
{
	struct closing c = { .job.run = close_run, .d = d };

	fiber_start(d->l.q, &c.job, 0);
	while (!c.done) {
		queue_turn(d->l.q, 0);
		if (sim_pending(d->sim))
			sim_complete(d->sim, 0, 0);
	}
	queue_free(d->l.q);
	sim_file_free(d->sim);
}

static void done(struct req *r, int ret);

static void start(struct disk *d, unsigned nr)
{
	struct call *c = &d->calls[nr];

	c->d = d;
	c->nr = nr;
	c->iov = (struct iovec){ c->buf, LEN };
	req_init(&c->r, d->l.q, REQ_WRITE, nr * LEN, LEN, &c->iov, 1, 0, done);
	node_submit(d->l.n, &c->r);
}

static void done(struct req *r, int ret)
{
	struct call *c = container_of(r, struct call, r);

	assert_int_equal(ret, 0);
	c->d->order[c->d->nr_done++] = c->nr;
	if (c->again) {
		c->again = false;
		start(c->d, c->nr);
	}
}

/* The file answers after so many turns. */
static void run(struct disk *d, unsigned nr, unsigned slowness)
{
	for (unsigned turn = 0; d->nr_done < nr; turn++) {
		assert_true(turn < 1000);
		queue_turn(d->l.q, 0);
		d->most_pending = MAX(d->most_pending, sim_pending(d->sim));
		if (sim_pending(d->sim) && turn % (slowness + 1) == slowness)
			sim_complete(d->sim, 0, 0);
	}
}

/* All of the calls, some of them twice, in the order in which they ended. */
static void order_of(const char *options, unsigned slowness, unsigned order[4 * NR])
{
	struct disk d;

	disk_open(&d, options);
	for (unsigned i = 0; i < NR; i++) {
		d.calls[i].again = i % 2;
		start(&d, i);
	}
	run(&d, NR + NR / 2, slowness);
	assert_int_equal(d.most_pending, 1);
	memcpy(order, d.order, sizeof(d.order));
	disk_close(&d);
}

static void the_seed_decides_and_the_speed_of_the_file_does_not(void **state)
{
	unsigned first[4 * NR], again[4 * NR];

	(void)state;
	order_of("seed=1", 0, first);
	for (unsigned slowness = 1; slowness < 5; slowness++) {
		order_of("seed=1", slowness, again);
		assert_memory_equal(first, again, sizeof(first));
	}
	order_of("seed=2", 0, again);
	assert_memory_not_equal(first, again, sizeof(first));
}

/* Whoever asks has had a turn to ask for more before the next one is chosen. */
static void what_is_asked_after_an_answer_takes_part_in_the_next_choice(void **state)
{
	bool other_first = false, new_first = false;

	(void)state;
	for (unsigned seed = 0; seed < 20; seed++) {
		char options[32];
		struct disk d;

		snprintf(options, sizeof(options), "seed=%u", seed);
		disk_open(&d, options);
		start(&d, 0);
		while (!sim_pending(d.sim))
			queue_turn(d.l.q, 0);
		start(&d, 1);
		sim_complete(d.sim, 0, 0);
		while (d.nr_done < 1)
			queue_turn(d.l.q, 0);
		start(&d, 2);
		run(&d, 3, 0);
		other_first |= d.order[1] == 1;
		new_first |= d.order[1] == 2;
		disk_close(&d);
	}
	assert_true(other_first && new_first);
}

struct slow {
	struct fiber_job job;
	struct disk *d;
	unsigned nr;
	_Atomic bool *go;
};

static int sleep_until_told(void *arg)
{
	struct slow *w = arg;

	while (w->go && !atomic_load(w->go))
		usleep(100);
	return 0;
}

static void work_run(struct fiber *f, struct fiber_job *job)
{
	struct slow *w = container_of(job, struct slow, job);

	fiber_work(f, sleep_until_told, w);
	w->d->order[w->d->nr_done++] = w->nr;
}

/* The second one's worker is back long before the first one's; nobody sees it. */
static void workers_come_back_in_the_order_in_which_they_went(void **state)
{
	_Atomic bool go = false;
	struct slow works[2];
	struct disk d;

	(void)state;
	disk_open(&d, "");
	for (unsigned i = 0; i < 2; i++) {
		works[i] = (struct slow){ .job.run = work_run, .d = &d, .nr = i, .go = i ? NULL : &go };
		fiber_start(d.l.q, &works[i].job, 0);
	}
	start(&d, 7);
	while (queue_stats(d.l.q)->msgs == 0) /* one of them is back */
		queue_turn(d.l.q, 1000000);
	for (unsigned i = 0; i < 10; i++)
		queue_turn(d.l.q, 0);
	assert_int_equal(d.nr_done, 0);
	assert_int_equal(sim_pending(d.sim), 0); /* a request would change what the first one sees */
	atomic_store(&go, true);
	while (!sim_pending(d.sim))
		queue_turn(d.l.q, 1000000);
	run(&d, 3, 0);
	assert_int_equal(d.order[0], 0);
	assert_int_equal(d.order[1], 1);
	assert_int_equal(d.order[2], 7);
	disk_close(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_seed_decides_and_the_speed_of_the_file_does_not),
		cmocka_unit_test(what_is_asked_after_an_answer_takes_part_in_the_next_choice),
		cmocka_unit_test(workers_come_back_in_the_order_in_which_they_went),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
