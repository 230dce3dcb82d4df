/* SPDX-License-Identifier: MIT */
/*
 * unit/aio/test_spin.c - whether to spin is learnt from what each way brings, on machines that are made up here
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "aio/spin.h"
#include "base/math.h"

#define US UINT64_C(1000)
#define LONGEST (50 * US)

/* How long it is from one pause to the next, either way, and whether spinning finds something. */
struct machine {
	uint64_t asleep_ns, spinning_ns;
	unsigned things; /* done in between */
	bool in_vain;
	unsigned spoilt; /* one pause of so many takes 3 ms more: another program has the processor */
};

static struct spin s;
static uint64_t now, done, nr_pauses, nr_spun;

static int begin(void **state)
{
	(void)state;
	spin_init(&s, LONGEST);
	now = done = nr_pauses = nr_spun = 0;
	return 0;
}

/* As the loop does it. */
static void run(const struct machine *m, unsigned nr)
{
	while (nr--) {
		nr_pauses++;
		if (spin_pause(&s))
			spin_next(&s, now, done);
		done += m->things;
		if (m->spoilt && nr_pauses % m->spoilt == 0)
			now += 3000 * US;
		if (s.spins) {
			nr_spun++;
			now += m->spinning_ns;
			if (!m->in_vain) {
				spin_paid(&s);
				continue;
			}
			now += LONGEST;
			spin_in_vain(&s);
		}
		now += m->asleep_ns;
		spin_slept(&s, m->asleep_ns);
	}
}

static void it_spins_where_that_is_faster(void **state)
{
	const struct machine m = { .asleep_ns = 40 * US, .spinning_ns = 4 * US, .things = 1 };

	(void)state;
	run(&m, 1000);
	assert_true(s.best);
	assert_true(s.nr_contests >= 1);
}

/* A client that has to be woken either way; or one that runs only while we sleep. */
static void it_sleeps_where_spinning_gains_nothing(void **state)
{
	const struct machine same = { .asleep_ns = 40 * US, .spinning_ns = 38 * US, .things = 1 };
	const struct machine worse = { .asleep_ns = 8 * US, .spinning_ns = 45 * US, .things = 1 };

	run(&same, 100000);
	assert_false(s.best);
	assert_true(s.nr_contests >= 3);
	begin(state);
	run(&worse, 100000);
	assert_false(s.best);
	/* Trying costs little: less than one pause of fifty. */
	assert_true(nr_spun * 50 < nr_pauses);
}

/* What counts is what gets done: twenty requests a pause are better than one, though the pause comes later. */
static void things_done_count_not_pauses(void **state)
{
	struct machine m = { .asleep_ns = 40 * US, .spinning_ns = 30 * US };
	bool was;

	(void)state;
	for (unsigned i = 0; i < 3000; i++) {
		was = s.spins;
		m.things = was ? 1 : 20;
		run(&m, 1);
	}
	assert_false(s.best);
	assert_true(s.nr_contests >= 1);
}

static void other_programs_do_not_decide(void **state)
{
	const struct machine m = { .asleep_ns = 40 * US, .spinning_ns = 4 * US, .things = 1, .spoilt = 61 };

	(void)state;
	run(&m, 1000);
	assert_true(s.best);
}

/* Nobody comes for a while: four spins in vain, and no more until requests come thick and fast again. */
static void an_idle_queue_does_not_spin(void **state)
{
	const struct machine busy = { .asleep_ns = 40 * US, .spinning_ns = 4 * US, .things = 1 };
	const struct machine idle = { .asleep_ns = 10000 * US, .in_vain = true };

	(void)state;
	run(&idle, 100000);
	assert_int_equal(nr_spun, 0);
	assert_int_equal(s.nr_contests, 0);
	run(&busy, 1000);
	assert_true(s.best);
	nr_spun = 0;
	run(&idle, 100000);
	assert_false(s.best);
	assert_true(nr_spun <= 4);
}

static void it_finds_out_that_times_have_changed(void **state)
{
	const struct machine ample = { .asleep_ns = 40 * US, .spinning_ns = 4 * US, .things = 1 };
	const struct machine scarce = { .asleep_ns = 8 * US, .spinning_ns = 45 * US, .things = 1 };

	(void)state;
	for (unsigned i = 0; i < 3; i++) {
		run(&ample, 100000);
		assert_true(s.best);
		run(&scarce, 100000);
		assert_false(s.best);
	}
}

/* In the middle of a contest, too. */
static void spinning_in_vain_ends_a_contest(void **state)
{
	const struct machine m = { .asleep_ns = 8 * US, .in_vain = true, .things = 1 };

	(void)state;
	run(&m, 300);
	assert_int_equal(s.nr_contests, 1);
	assert_int_equal(nr_spun, 4);
	assert_false(s.best);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(it_spins_where_that_is_faster, begin),
		cmocka_unit_test_setup(it_sleeps_where_spinning_gains_nothing, begin),
		cmocka_unit_test_setup(things_done_count_not_pauses, begin),
		cmocka_unit_test_setup(other_programs_do_not_decide, begin),
		cmocka_unit_test_setup(an_idle_queue_does_not_spin, begin),
		cmocka_unit_test_setup(it_finds_out_that_times_have_changed, begin),
		cmocka_unit_test_setup(spinning_in_vain_ends_a_contest, begin),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
