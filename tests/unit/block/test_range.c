/* SPDX-License-Identifier: MIT */
/*
 * unit/block/test_range.c - locked ranges: overlap waits, first come first served
 */
#include "fake.h"

struct locker {
	struct fiber_job job;
	struct ranges *rs;
	uint64_t off, len;
	unsigned steps; /* yields while it holds the lock */
	struct range r;
	bool has, gone;
	unsigned *order, nr; /* *order: counts locks given; nr: this one's number */
};

static void locker_run(struct fiber *f, struct fiber_job *job)
{
	struct locker *l = container_of(job, struct locker, job);

	range_lock(f, l->rs, &l->r, l->off, l->len);
	l->has = true;
	l->nr = (*l->order)++;
	for (unsigned i = 0; i < l->steps; i++)
		fiber_yield(f);
	l->has = false;
	range_unlock(l->rs, &l->r);
	l->gone = true;
}

static void locker_start(struct queue *q, struct ranges *rs, struct locker *l, uint64_t off, uint64_t len,
			 unsigned steps, unsigned *order)
{
	*l = (struct locker){ .job.run = locker_run, .rs = rs, .off = off, .len = len, .steps = steps, .order = order };
	fiber_start(q, &l->job, 0);
}

static void neighbours_do_not_wait_for_each_other(void **state)
{
	struct queue *q = leaf_queue();
	unsigned order = 0;
	struct locker a, b;
	struct ranges rs;

	(void)state;
	ranges_init(&rs);
	locker_start(q, &rs, &a, 0, 512, 1000, &order);
	locker_start(q, &rs, &b, 512, 512, 0, &order);
	for (unsigned i = 0; !b.gone && i < 100; i++)
		queue_turn(q, 0);
	assert_true(b.gone && !a.gone);
	assert_true(ranges_overlap(&rs, 511, 1));
	assert_false(ranges_overlap(&rs, 512, 512));
	while (!a.gone)
		queue_turn(q, 0);
	assert_false(ranges_overlap(&rs, 0, UINT64_MAX));
	queue_free(q);
}

/* b waits for a; c overlaps only b, which waits: c must not overtake it. */
static void a_waiting_range_holds_back_later_ones(void **state)
{
	struct queue *q = leaf_queue();
	struct locker a, b, c;
	unsigned order = 0;
	struct ranges rs;

	(void)state;
	ranges_init(&rs);
	locker_start(q, &rs, &a, 0, 1024, 50, &order);
	locker_start(q, &rs, &b, 512, 1024, 3, &order);
	locker_start(q, &rs, &c, 1024, 1024, 0, &order);
	while (!a.gone || !b.gone || !c.gone)
		queue_turn(q, 0);
	assert_int_equal(a.nr, 0);
	assert_int_equal(b.nr, 1);
	assert_int_equal(c.nr, 2);
	queue_free(q);
}

#define LOCKERS 48

static void random_lockers_never_overlap_and_all_end(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= 50; seed++) {
		struct queue *q = leaf_queue();
		struct locker l[LOCKERS];
		unsigned order = 0, left = LOCKERS;
		struct ranges rs;
		struct rnd rnd;

		rnd_start(&rnd, seed);
		ranges_init(&rs);
		for (unsigned i = 0; i < LOCKERS; i++)
			locker_start(q, &rs, &l[i], rnd_below(&rnd, 100), 1 + rnd_below(&rnd, 30),
				     (unsigned)rnd_below(&rnd, 8), &order);
		for (unsigned turn = 0; left && turn < 10000; turn++) {
			queue_turn(q, 0);
			left = 0;
			for (unsigned i = 0; i < LOCKERS; i++) {
				left += !l[i].gone;
				for (unsigned k = 0; l[i].has && k < i; k++)
					if (l[k].has && l[k].off < l[i].off + l[i].len &&
					    l[i].off < l[k].off + l[k].len)
						fail_msg("seed %llu: %u and %u hold overlapping ranges",
							 (unsigned long long)seed, k, i);
			}
		}
		if (left)
			fail_msg("seed %llu: %u lockers never got their range", (unsigned long long)seed, left);
		/* Of two that overlap the first to come was the first to get it. */
		for (unsigned i = 0; i < LOCKERS; i++)
			for (unsigned k = 0; k < i; k++)
				if (l[k].off < l[i].off + l[i].len && l[i].off < l[k].off + l[k].len)
					assert_true(l[k].nr < l[i].nr);
		queue_free(q);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(neighbours_do_not_wait_for_each_other),
		cmocka_unit_test(a_waiting_range_holds_back_later_ones),
		cmocka_unit_test(random_lockers_never_overlap_and_all_end),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
