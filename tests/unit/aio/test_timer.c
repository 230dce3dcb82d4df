/* SPDX-License-Identifier: MIT */
/* test_timer.c - the heap of timers, in virtual time and (once) in real time */
#include "aio_test.h"

struct probe {
	struct timer timer;
	struct queue *q;
	unsigned nr;
	struct probe *cancel; /* in fire() */
	unsigned again;	      /* times to re-arm in fire() */
	uint64_t every;
	unsigned fired;
};

static unsigned order[64], nr_order;

static void probe_fire(struct timer *t)
{
	struct probe *p = container_of(t, struct probe, timer);

	CHECK(!t->armed);
	CHECK(queue_now(p->q) >= t->when_ns);
	p->fired++;
	if (nr_order < ARRAY_LEN(order))
		order[nr_order++] = p->nr;
	if (p->cancel)
		timer_cancel(p->q, &p->cancel->timer);
	if (p->again) {
		p->again--;
		timer_set(p->q, t, queue_now(p->q) + p->every);
	}
}

static struct probe probe(struct queue *q, unsigned nr)
{
	return (struct probe){ .timer.fire = probe_fire, .q = q, .nr = nr };
}

static void timers_fire_in_order_of_time_then_of_arming(void **state)
{
	static const uint64_t when[] = { 30, 10, 20, 10, 30, 10 };
	static const unsigned expected[] = { 1, 3, 5, 2, 0, 4 };
	struct queue *q = make_virtual_queue();
	struct probe p[6];

	(void)state;
	nr_order = 0;
	for (unsigned i = 0; i < 6; i++) {
		p[i] = probe(q, i);
		timer_set(q, &p[i].timer, when[i]);
	}
	queue_advance(q, 9);
	queue_turn(q, 0);
	assert_int_equal(nr_order, 0);
	queue_advance(q, 21);
	queue_turn(q, 0);
	assert_int_equal(nr_order, 6);
	assert_memory_equal(order, expected, sizeof(expected));
	assert_int_equal(queue_stats(q)->timers, 6);
	queue_free(q);
}

static void cancelled_and_moved_timers_keep_their_word(void **state)
{
	struct queue *q = make_virtual_queue();
	struct probe a = probe(q, 0), b = probe(q, 1), c = probe(q, 2);

	(void)state;
	nr_order = 0;
	timer_cancel(q, &a.timer); /* not armed: nothing happens */
	timer_set(q, &a.timer, 10);
	timer_set(q, &b.timer, 10);
	timer_set(q, &c.timer, 10);
	timer_set(q, &a.timer, 50); /* later */
	timer_set(q, &c.timer, 5);  /* sooner */
	b.cancel = &a;
	a.again = 1;
	queue_advance(q, 5);
	queue_turn(q, 0);
	assert_int_equal(c.fired, 1);
	queue_advance(q, 100);
	queue_turn(q, 0);
	assert_int_equal(b.fired, 1);
	assert_int_equal(a.fired, 0); /* cancelled by b, in the same run */
	assert_false(a.timer.armed);
	queue_free(q);
}

/* A timer that is due again at once must not keep the turn from everything else. */
static void timer_rearmed_in_its_callback_fires_again_without_starving(void **state)
{
	struct queue *q = make_virtual_queue();
	struct probe forever = probe(q, 0), periodic = probe(q, 1);

	(void)state;
	forever.again = 1000000;
	timer_set(q, &forever.timer, 0);
	queue_turn(q, 0);
	assert_true(forever.fired >= 1 && forever.fired < 1000);
	timer_cancel(q, &forever.timer);

	periodic.again = 4;
	periodic.every = 10;
	timer_set(q, &periodic.timer, 10);
	for (unsigned i = 0; i < 10; i++) {
		queue_advance(q, 10);
		queue_turn(q, 0);
	}
	assert_int_equal(periodic.fired, 5);
	queue_free(q);
}

static void free_fire(struct timer *t)
{
	free(container_of(t, struct probe, timer));
	nr_order++;
}

static void timer_may_be_freed_in_its_callback(void **state)
{
	struct queue *q = make_virtual_queue();

	(void)state;
	nr_order = 0;
	for (unsigned i = 0; i < 50; i++) {
		struct probe *p = calloc(1, sizeof(*p));

		CHECK(p);
		p->timer.fire = free_fire;
		timer_set(q, &p->timer, i / 3);
	}
	queue_advance(q, 100);
	queue_turn(q, 0);
	assert_int_equal(nr_order, 50);
	queue_free(q);
}

#define MODEL_TIMERS 200

static uint64_t model_last;

static void model_fire(struct timer *t)
{
	CHECK(t->when_ns >= model_last); /* within one advance, in order of time */
	model_last = t->when_ns;
	container_of(t, struct probe, timer)->fired++;
}

/* Against the plainest model: an array of times. */
static void timers_agree_with_a_model_under_random_use(void **state)
{
	struct queue *q = make_virtual_queue();
	struct probe p[MODEL_TIMERS];
	bool armed[MODEL_TIMERS] = { false };
	unsigned fired[MODEL_TIMERS] = { 0 };
	uint64_t seed = test_seed();

	(void)state;
	for (unsigned i = 0; i < MODEL_TIMERS; i++) {
		p[i] = probe(q, i);
		p[i].timer.fire = model_fire;
	}
	for (unsigned step = 0; step < 20000; step++) {
		unsigned i = (unsigned)(rnd(&seed) % MODEL_TIMERS);

		switch (rnd(&seed) % 8) {
		case 0:
			timer_cancel(q, &p[i].timer);
			armed[i] = false;
			break;
		case 1:
			queue_advance(q, rnd(&seed) % 50);
			model_last = 0;
			for (unsigned j = 0; j < MODEL_TIMERS; j++) {
				if (armed[j] && p[j].timer.when_ns <= queue_now(q)) {
					armed[j] = false;
					fired[j]++;
				}
			}
			queue_turn(q, 0);
			break;
		default:
			timer_set(q, &p[i].timer, queue_now(q) + rnd(&seed) % 500);
			armed[i] = true;
		}
		for (unsigned j = 0; j < MODEL_TIMERS; j += 37) {
			assert_int_equal(p[j].timer.armed, armed[j]);
			assert_int_equal(p[j].fired, fired[j]);
		}
	}
	for (unsigned i = 0; i < MODEL_TIMERS; i++) {
		assert_int_equal(p[i].fired, fired[i]);
		timer_cancel(q, &p[i].timer);
	}
	queue_free(q);
}

/* No upper bound on the time: the machine may be busy. But never early, and without spinning. */
static void real_timer_ends_the_wait_and_is_not_early(void **state)
{
	const struct wait_mode *mode = *state;
	struct queue *q = make_queue(false, mode->engine);
	struct probe p = probe(q, 0);
	uint64_t turns;

	for (unsigned i = 1; i <= 5; i++) {
		turns = queue_stats(q)->turns;
		timer_set(q, &p.timer, queue_now(q) + i * 1100000);
		while (p.fired < i)
			queue_turn(q, -1); /* probe_fire() checks the time */
		assert_true(queue_stats(q)->turns - turns < 10);
	}
	queue_free(q);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(timers_fire_in_order_of_time_then_of_arming),
		cmocka_unit_test(cancelled_and_moved_timers_keep_their_word),
		cmocka_unit_test(timer_rearmed_in_its_callback_fires_again_without_starving),
		cmocka_unit_test(timer_may_be_freed_in_its_callback),
		cmocka_unit_test(timers_agree_with_a_model_under_random_use),
		ALL_MODES(real_timer_ends_the_wait_and_is_not_early),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("timer", tests, NULL, NULL);
}
