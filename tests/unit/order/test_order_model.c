/* SPDX-License-Identifier: MIT */
/*
 * tests/unit/order/test_order_model.c - the block queue against a model: histories, failures, power cuts
 *
 * The file is a row of slots of 8 bytes. Each put writes a slot's next version number, so that the content of
 * a disk after a power cut tells which puts are there. What must hold then, for any subset of the writes that
 * no sync covered:
 *
 *   1. a put that is there has everything there that it was put after, and the data completed before that
 * mark
 *   2. everything up to the durable mark is there
 */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>

#define SLOTS 24     /* put through the queue */
#define DATA_SLOTS 8 /* written around it, as guest data is */
#define PUTS_MAX 400
#define SLOT_OFF(i) ((uint64_t)(i)*72) /* so that some share a sector and some are neighbours of none */
#define DATA_OFF(i) (KiB(4) + (uint64_t)(i)*512)

struct put_record {
	unsigned slot;
	uint64_t version;
	order_mark after, mark;
	uint64_t data[DATA_SLOTS]; /* versions that `after` covers */
};

struct model {
	struct bench *b;
	uint64_t versions[SLOTS];
	uint64_t data[DATA_SLOTS]; /* completed */
	struct put_record puts[PUTS_MAX];
	unsigned nr_puts;
	order_mark mark;		/* the last order_now() ... */
	uint64_t mark_data[DATA_SLOTS]; /* ... and the data it covers */
	bool data_may_be_lost;		/* a sync failed: what it covered of data is the leaf's to remember */
	const char *history;
};

static struct model *model_new(bool manual, uint64_t limit)
{
	struct model *m = calloc(1, sizeof(*m));
	uint8_t zeroes[BENCH_LEN] = { 0 };

	assert_non_null(m);
	m->b = bench_new(manual, limit);
	sim_poke(m->b->sim, 0, zeroes, sizeof(zeroes));
	return m;
}

static void model_free(struct model *m)
{
	bench_free(m->b);
	free(m);
}

/* ---- power cuts ---- */

struct keep {
	uint64_t bits;
	unsigned seed; /* != 0: beyond 64 writes or at random */
};

static bool keep_write(void *arg, unsigned i)
{
	struct keep *k = arg;

	if (k->seed)
		return rand_r(&k->seed) & 64;
	return i < 64 && (k->bits >> i & 1);
}

static uint64_t slot_on(const uint8_t *disk, uint64_t len, uint64_t off)
{
	uint64_t v;

	if (off + 8 > len)
		return 0;
	memcpy(&v, disk + off, 8);
	return v;
}

static void check_disk(struct model *m, const uint8_t *disk, uint64_t len)
{
	order_mark durable = order_durable(m->b->o);

	for (unsigned i = 0; i < m->nr_puts; i++) {
		const struct put_record *p = &m->puts[i];
		uint64_t there = slot_on(disk, len, SLOT_OFF(p->slot));

		if (p->mark <= durable && there < p->version)
			fail_msg("%s: put %u (mark %lu) lost, durable is %lu", m->history, i, p->mark,
				 durable);
		if (there != p->version)
			continue;
		for (unsigned j = 0; j < m->nr_puts; j++) {
			const struct put_record *need = &m->puts[j];

			if (need->mark <= p->after &&
			    slot_on(disk, len, SLOT_OFF(need->slot)) < need->version)
				fail_msg("%s: put %u is there, put %u that it needs is not", m->history, i,
					 j);
		}
		for (unsigned j = 0; j < DATA_SLOTS && !m->data_may_be_lost; j++) {
			if (slot_on(disk, len, DATA_OFF(j)) < p->data[j])
				fail_msg("%s: put %u is there, its data %u is not", m->history, i, j);
		}
	}
}

static void cut_once(struct model *m, struct keep k, uint64_t torn)
{
	uint64_t len;
	uint8_t *disk = sim_power_cut(m->b->sim, keep_write, &k, torn, &len);

	assert_non_null(disk);
	check_disk(m, disk, len);
	free(disk);
}

/* Every subset while they are few, `tries` at random otherwise; torn ones too. */
static void cut_power(struct model *m, unsigned exhaustive, unsigned tries)
{
	unsigned nr = sim_nr_unstable(m->b->sim);

	if (nr <= exhaustive) {
		for (uint64_t bits = 0; bits < 1ull << nr; bits++)
			cut_once(m, (struct keep){ .bits = bits }, 0);
		return;
	}
	cut_once(m, (struct keep){ .bits = 0 }, 0);
	cut_once(m, (struct keep){ .bits = ~0ull }, 0);
	for (unsigned i = 0; i < tries; i++)
		cut_once(m, (struct keep){ .seed = 1 + (unsigned)random() },
			 (uint64_t)(i & 1 ? random() : 0));
}

/* ---- what a history is made of ---- */

static void do_put(struct model *m, unsigned slot, order_mark after, const uint64_t *data)
{
	struct put_record *p = &m->puts[m->nr_puts];
	struct put_args a = { SLOT_OFF(slot), &p->version, 8, after, 0 };
	struct job j;

	assert_true(m->nr_puts < PUTS_MAX);
	p->slot = slot;
	p->version = ++m->versions[slot];
	p->after = after;
	if (data)
		memcpy(p->data, data, sizeof(p->data));
	bench_start(m->b, &j, job_put, &a);
	assert_true(j.done); /* the limit is never met here */
	assert_int_equal(j.ret, 0);
	assert_true(a.mark > after);
	p->mark = a.mark;
	m->nr_puts++;
}

static void do_now(struct model *m)
{
	m->mark = order_now(m->b->o);
	assert_true(m->mark > order_durable(m->b->o));
	memcpy(m->mark_data, m->data, sizeof(m->data));
}

struct data_job {
	struct job job;
	unsigned slot;
	uint64_t version;
	struct model *m;
};

static int job_data(struct fiber *f, struct bench *b, void *arg)
{
	struct data_job *d = arg;
	int ret = node_write(f, &b->node, DATA_OFF(d->slot), &d->version, 8);

	if (ret == 0 && d->m->data[d->slot] < d->version)
		d->m->data[d->slot] = d->version;
	return ret;
}

/* ---- every short history ---- */

/*
 * The alphabet: puts to two places, with no dependency, after the last put, after now; a data write; a flush
 * that stops at its first, second, ... operation to have the power cut there.
 */
static void step(struct model *m, char what)
{
	struct data_job d = { .m = m };

	switch (what) {
	case 'a':
	case 'b':
		do_put(m, what == 'a' ? 0 : 1, ORDER_NONE, NULL);
		break;
	case 'A':
	case 'B':
		do_put(m, what == 'A' ? 0 : 1, m->nr_puts ? m->puts[m->nr_puts - 1].mark : ORDER_NONE, NULL);
		break;
	case 'n':
		do_now(m);
		do_put(m, 2, m->mark, m->mark_data);
		break;
	case 'd':
		d.version = m->data[0] + 1;
		bench_start(m->b, &d.job, job_data, &d);
		bench_finish(m->b);
		break;
	}
}

static void flush_with_cuts(struct model *m)
{
	struct job flushing;

	bench_start(m->b, &flushing, job_flush, NULL);
	while (!flushing.done) {
		cut_power(m, 10, 0);
		assert_int_equal(sim_pending(m->b->sim), 1);
		bench_complete(m->b, 0, 0);
	}
	assert_int_equal(flushing.ret, 0);
	cut_power(m, 10, 0);
	for (unsigned i = 0; i < m->nr_puts; i++)
		assert_true(m->puts[i].mark <= order_durable(m->b->o));
	assert_true(order_clean(m->b->o));
}

static void every_short_history_survives_every_power_cut(void **state)
{
	static const char alphabet[] = "abABndF";
	const unsigned letters = sizeof(alphabet) - 1, len = 4;
	unsigned total = 1;

	for (unsigned i = 0; i < len; i++)
		total *= letters;
	for (unsigned nr = 0; nr < total; nr++) {
		struct model *m = model_new(true, 0);
		char history[8] = "";

		m->history = history;
		for (unsigned i = 0, rest = nr; i < len; i++, rest /= letters) {
			history[i] = alphabet[rest % letters];
			if (history[i] == 'F')
				flush_with_cuts(m);
			else
				step(m, history[i]);
		}
		flush_with_cuts(m);
		model_free(m);
	}
}

/* ---- every short history, failing at every single operation ---- */

/* Power may be cut between any two operations, and after the flush that failed; the next flush must go through. */
static void flush_again_with_cuts(struct model *m)
{
	for (int tries = 0; tries < 2; tries++) {
		struct job flushing;
		enum aio_opcode last = AIO_READ;

		bench_start(m->b, &flushing, job_flush, NULL);
		while (!flushing.done) {
			cut_power(m, 6, 0);
			assert_int_equal(sim_pending(m->b->sim), 1);
			last = sim_op(m->b->sim, 0)->opcode;
			bench_complete(m->b, 0, 0);
		}
		/* What it covered of data is the leaf's to remember, not the queue's. */
		if (flushing.ret < 0 && last == AIO_FLUSH)
			m->data_may_be_lost = true;
		cut_power(m, 6, 0);
		if (flushing.ret == 0)
			return;
		assert_int_equal(flushing.ret, -EIO);
		assert_false(order_clean(m->b->o));
	}
	fail_msg("%s: operation %lld failed once, and two flushes for it", m->history, (long long)m->b->fail_nr);
}

/* Returns how many operations it took. */
static uint64_t replay(const char *history, int64_t fail_nr)
{
	struct model *m = model_new(true, 0);
	uint64_t nr_ops, version;

	m->history = history;
	m->b->fail_nr = fail_nr;
	for (; *history; history++) {
		if (*history == 'F')
			flush_again_with_cuts(m);
		else
			step(m, *history);
	}
	flush_again_with_cuts(m);
	assert_true(order_clean(m->b->o));
	for (unsigned i = 0; i < SLOTS; i++) {
		sim_peek(m->b->sim, SLOT_OFF(i), &version, 8);
		if (version != m->versions[i])
			fail_msg("%s, operation %lld failed: slot %u is not the newest", m->history, (long long)fail_nr, i);
	}
	nr_ops = sim_nr_ops(m->b->sim);
	model_free(m);
	return nr_ops;
}

static void every_short_history_survives_every_single_failure(void **state)
{
	static const char alphabet[] = "abABndF";
	const unsigned letters = sizeof(alphabet) - 1, len = 4;
	unsigned total = 1;

	for (unsigned i = 0; i < len; i++)
		total *= letters;
	for (unsigned nr = 0; nr < total; nr++) {
		char history[8] = "";
		uint64_t nr_ops;

		for (unsigned i = 0, rest = nr; i < len; i++, rest /= letters)
			history[i] = alphabet[rest % letters];
		nr_ops = replay(history, -1);
		for (uint64_t i = 0; i < nr_ops; i++)
			replay(history, (int64_t)i);
	}
}

/* ---- long histories at random ---- */

#define JOBS_MAX 12

struct random_run {
	struct model *m;
	struct job jobs[JOBS_MAX]; /* flushes and waits */
	order_mark marks[JOBS_MAX];
	bool busy[JOBS_MAX];
	struct data_job data[DATA_SLOTS];
	bool data_busy[DATA_SLOTS];
	bool faults;
	unsigned nr_errors;
};

static void collect(struct random_run *r)
{
	for (unsigned i = 0; i < JOBS_MAX; i++) {
		if (!r->busy[i] || !r->jobs[i].done)
			continue;
		r->busy[i] = false;
		if (r->jobs[i].ret == 0)
			assert_true(order_durable(r->m->b->o) >= r->marks[i]);
		else
			assert_true(r->faults && r->jobs[i].ret == -EIO);
		r->nr_errors += r->jobs[i].ret != 0;
	}
	for (unsigned i = 0; i < DATA_SLOTS; i++)
		r->data_busy[i] = r->data_busy[i] && !r->data[i].job.done;
}

static void random_wait(struct random_run *r)
{
	struct model *m = r->m;
	unsigned i = (unsigned)random() % JOBS_MAX;

	if (r->busy[i])
		return;
	r->busy[i] = true;
	if (random() % 2) {
		r->marks[i] = order_all(m->b->o);
		bench_start(m->b, &r->jobs[i], job_flush, NULL);
	} else {
		r->marks[i] = m->nr_puts ? m->puts[(unsigned)random() % m->nr_puts].mark : order_now(m->b->o);
		bench_start(m->b, &r->jobs[i], job_wait, &r->marks[i]);
	}
}

static void random_data(struct random_run *r)
{
	unsigned slot = (unsigned)random() % DATA_SLOTS;
	struct data_job *d = &r->data[slot];

	if (r->data_busy[slot])
		return;
	r->data_busy[slot] = true;
	*d = (struct data_job){ .m = r->m, .slot = slot, .version = d->version + 1 };
	bench_start(r->m->b, &d->job, job_data, d);
}

static void random_step(struct random_run *r)
{
	struct model *m = r->m;
	unsigned slot = (unsigned)random() % SLOTS;

	switch (random() % 9) {
	case 0:
		do_now(m);
		break;
	case 1:
	case 2:
		do_put(m, slot, ORDER_NONE, NULL);
		break;
	case 3:
		if (m->mark)
			do_put(m, slot, m->mark, m->mark_data);
		break;
	case 4:
		if (m->nr_puts)
			do_put(m, slot, m->puts[(unsigned)random() % m->nr_puts].mark, NULL);
		break;
	case 5:
		random_wait(r);
		break;
	case 6:
		random_data(r);
		break;
	case 7: /* write-outs of the background join in */
		queue_advance(m->b->q, 2000000000);
		bench_settle(m->b);
		break;
	default:
		if (sim_pending(m->b->sim)) {
			unsigned i = (unsigned)random() % sim_pending(m->b->sim);
			bool failing = r->faults && random() % 6 == 0;

			if (failing && sim_op(m->b->sim, i)->opcode == AIO_FLUSH)
				m->data_may_be_lost = true;
			bench_complete(m->b, i, failing ? -EIO : 0);
		}
	}
	collect(r);
}

/* After all errors are over, a flush brings everything to the disk. */
static void expect_newest_on_disk(struct random_run *r)
{
	struct model *m = r->m;
	struct job flushing;
	uint64_t version;

	bench_start(m->b, &flushing, job_flush, NULL);
	bench_finish(m->b);
	assert_int_equal(flushing.ret, 0);
	assert_true(order_clean(m->b->o));
	if (!m->data_may_be_lost)
		assert_int_equal(sim_nr_unstable(m->b->sim), 0);
	for (unsigned i = 0; i < SLOTS; i++) {
		sim_peek(m->b->sim, SLOT_OFF(i), &version, 8);
		assert_int_equal(version, m->versions[i]);
	}
	cut_power(m, 0, 1);
}

/* Returns how many write-outs began by age. */
static uint64_t random_history(unsigned seed, bool faults)
{
	struct order_stats stats;
	struct random_run r = { .m = model_new(true, 0), .faults = faults };
	char history[64];

	snprintf(history, sizeof(history), "seed %u%s", seed, faults ? " with faults" : "");
	r.m->history = history;
	srandom(seed);
	for (unsigned i = 0; i < 500; i++) {
		random_step(&r);
		/*
		 * The simulated kernel forgets what a failed sync covered: entries survive because they
		 * are written again.
		 */
		if (i % 8 == 0)
			cut_power(r.m, 4, 6);
	}
	for (int round = 0; round < 10; round++) {
		bench_finish(r.m->b);
		collect(&r);
		random_wait(&r);
	}
	bench_finish(r.m->b);
	collect(&r);
	expect_newest_on_disk(&r);
	order_stats(r.m->b->o, &stats);
	model_free(r.m);
	return stats.write_outs[ORDER_AGE];
}

static void random_histories_survive_power_cuts(void **state)
{
	uint64_t by_age = 0;

	for (unsigned seed = 1; seed <= 100; seed++)
		by_age += random_history(seed, false);
	if (by_age < 20)
		fail_msg("only %lu write-outs by age in all of them", by_age);
}

static void random_histories_with_failing_operations_survive_too(void **state)
{
	for (unsigned seed = 1001; seed <= 1100; seed++)
		(void)random_history(seed, true); /* what the number shows has been asked above */
}

/* One fiber, no failures: what is read is always the newest, whatever has been written out. */
static void reads_always_agree_with_the_model(void **state)
{
	for (unsigned seed = 1; seed <= 20; seed++) {
		struct model *m =
			model_new(false, seed % 2 ? 0 : KiB(8)); /* small limits write out on their own */
		uint8_t newest[KiB(8)] = { 0 }, buf[KiB(8)];
		order_mark mark = ORDER_NONE;

		srandom(seed);
		for (unsigned i = 0; i < 400; i++) {
			unsigned from = (unsigned)random() % sizeof(newest);
			unsigned len = 1 + (unsigned)random() % MIN(sizeof(newest) - from, 700u);
			uint8_t bytes[700];

			memset(bytes, (int)random(), sizeof(bytes));
			bytes[0] = (uint8_t)i;
			mark = bench_put(m->b, from, bytes, len, random() % 3 ? ORDER_NONE : mark);
			memcpy(newest + from, bytes, len);
			if (random() % 20 == 0)
				assert_int_equal(bench_wait(m->b, mark), 0);
			if (random() % 50 == 0)
				assert_int_equal(bench_flush(m->b), 0);
			from = (unsigned)random() % sizeof(newest);
			len = 1 + (unsigned)random() % (unsigned)(sizeof(newest) - from);
			assert_int_equal(bench_read(m->b, from, buf, len), 0);
			if (memcmp(buf, newest + from, len))
				fail_msg("seed %u, step %u: [%u, +%u) is not the newest", seed, i, from, len);
		}
		assert_int_equal(bench_flush(m->b), 0);
		sim_peek(m->b->sim, 0, buf, sizeof(buf));
		assert_memory_equal(buf, newest, sizeof(buf));
		model_free(m);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(reads_always_agree_with_the_model),
		cmocka_unit_test(every_short_history_survives_every_power_cut),
		cmocka_unit_test(every_short_history_survives_every_single_failure),
		cmocka_unit_test(random_histories_survive_power_cuts),
		cmocka_unit_test(random_histories_with_failing_operations_survive_too),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
