/* SPDX-License-Identifier: MIT */
/* test_fiber.c - fibers: starting, parking, waking, locks, levels, sleeping, calls from other threads */
#include "config.h"

#include "aio_test.h"

#include <pthread.h>
#include <sys/resource.h>
#include <unistd.h>

/* ---- starting and parking ---- */

#define JOBS 10000

struct job {
	struct fiber_job job;
	struct queue *q;
	unsigned nr;
	struct job *next;
};

static unsigned running, most_running, started, ended;

static void job_run(struct fiber *f, struct fiber_job *j)
{
	struct job *job = container_of(j, struct job, job);
	unsigned nr = job->nr;

	CHECK(fiber_queue(f) == job->q && queue_is_mine(job->q));
	CHECK(nr == started); /* in order of arrival */
	started++;
	running++;
	most_running = MAX(most_running, running);
	free(job); /* the job may be freed inside run() */
	for (unsigned i = 0; i <= nr % 3; i++)
		fiber_yield(f);
	running--;
	ended++;
}

static void ten_thousand_jobs_share_few_stacks_in_order(void **state)
{
	struct queue *q = make_queue(false, NULL);

	(void)state;
	for (unsigned i = 0; i < JOBS; i++) {
		struct job *job = calloc(1, sizeof(*job));

		CHECK(job);
		*job = (struct job){ .job.run = job_run, .q = q, .nr = i };
		fiber_start(q, &job->job, 1);
	}
	assert_int_equal(started, 0); /* never from inside fiber_start() */
	while (ended < JOBS)
		queue_turn(q, -1);
	assert_int_equal(most_running, FIBER_MAX_PER_LEVEL);
	assert_int_equal(queue_stats(q)->fibers_started, JOBS);
	assert_int_equal(queue_stats(q)->fibers_parked, JOBS - FIBER_MAX_PER_LEVEL);
	queue_free(q);
}

/* Touches most of a stack, and checks that nobody else's fiber was there meanwhile. */
static unsigned deep(struct fiber *f, unsigned depth, unsigned mark)
{
	volatile unsigned char room[512];
	unsigned sum = 0;

	memset((void *)(uintptr_t)room, (int)(mark & 0xff), sizeof(room));
	if (depth)
		sum = deep(f, depth - 1, mark);
	else
		fiber_yield(f);
	for (unsigned i = 0; i < sizeof(room); i++)
		CHECK(room[i] == (mark & 0xff));
	return sum + 1;
}

struct deep_job {
	struct fiber_job job;
	unsigned mark;
	double x;
	bool done;
};

static void deep_run(struct fiber *f, struct fiber_job *j)
{
	struct deep_job *d = container_of(j, struct deep_job, job);
	double x = d->mark * 1.5; /* lives in a register, perhaps */

	CHECK(deep(f, 60, d->mark) == 61);
	d->x = x;
	d->done = true;
}

static void stacks_are_private_and_deep_enough(void **state)
{
	struct queue *q = make_queue(false, NULL);
	struct deep_job d[50];

	(void)state;
	for (unsigned round = 0; round < 3; round++) {
		for (unsigned i = 0; i < ARRAY_LEN(d); i++) {
			d[i] = (struct deep_job){ .job.run = deep_run, .mark = i + round };
			fiber_start(q, &d[i].job, 0);
		}
		for (unsigned i = 0; i < ARRAY_LEN(d); i++) {
			while (!d[i].done)
				queue_turn(q, -1);
			assert_true(d[i].x == (i + round) * 1.5);
		}
	}
	queue_free(q);
}

/* ---- levels ---- */

struct nested {
	struct fiber_job job;
	struct queue *q;
	unsigned level;
	struct fiber *parent;
	bool child_done;
};

static unsigned nested_done;

/* A job of each level waits for one of the level below; far more of them than there are fibers. */
static void nested_run(struct fiber *f, struct fiber_job *j)
{
	struct nested *n = container_of(j, struct nested, job);

	if (n->level) {
		struct nested child = {
			.job.run = nested_run, .q = n->q, .level = n->level - 1, .parent = f
		};

		fiber_start(n->q, &child.job, child.level);
		while (!child.child_done)
			fiber_wait(f);
	}
	n->child_done = true;
	nested_done++;
	if (n->parent)
		fiber_wake(n->parent);
}

static void full_levels_park_but_never_deadlock(void **state)
{
	struct queue *q = make_queue(false, NULL);
	enum { N = 300 };
	struct nested *n = calloc(N, sizeof(*n));

	(void)state;
	CHECK(n);
	nested_done = 0;
	for (unsigned i = 0; i < N; i++) {
		n[i] = (struct nested){ .job.run = nested_run, .q = q, .level = FIBER_LEVELS - 1 };
		fiber_start(q, &n[i].job, n[i].level);
	}
	while (nested_done < N * FIBER_LEVELS)
		queue_turn(q, -1);
	queue_free(q);
	free(n);
}

/* Without memory for stacks jobs run one after the other in each level; nothing fails, and nothing waits for ever. */
static void without_memory_each_level_has_one_fiber(void **state)
{
	struct queue *q = make_queue(false, NULL);
	struct nested n[20];
	struct rlimit old, none;

	(void)state;
#ifdef VARVE_FIBER_THREAD
	queue_free(q);
	skip(); /* each fiber is a thread there */
#endif
	if (TEST_SANITIZED) {
		queue_free(q);
		skip();
	}
	nested_done = 0;
	CHECK(getrlimit(RLIMIT_AS, &old) == 0);
	none = old;
	none.rlim_cur = 0;
	CHECK(setrlimit(RLIMIT_AS, &none) == 0);
	for (unsigned i = 0; i < ARRAY_LEN(n); i++) {
		n[i] = (struct nested){ .job.run = nested_run, .q = q, .level = FIBER_LEVELS - 1 };
		fiber_start(q, &n[i].job, n[i].level);
	}
	for (unsigned i = 0; i < 2000 && nested_done < ARRAY_LEN(n) * FIBER_LEVELS; i++)
		queue_turn(q, 0);
	CHECK(setrlimit(RLIMIT_AS, &old) == 0);
	assert_int_equal(nested_done, ARRAY_LEN(n) * FIBER_LEVELS);
	assert_int_equal(queue_stats(q)->fibers_parked, ARRAY_LEN(n) - 1);
	queue_free(q);
}

/* ---- waking ---- */

struct sleeper {
	struct fiber_job job;
	struct fiber *f;
	unsigned waits, woken;
	bool done;
};

static void sleeper_run(struct fiber *f, struct fiber_job *j)
{
	struct sleeper *s = container_of(j, struct sleeper, job);

	s->f = f;
	for (unsigned i = 0; i < s->waits; i++) {
		fiber_wait(f);
		s->woken++;
	}
	s->done = true;
}

static void self_wake_run(struct fiber *f, struct fiber_job *j)
{
	struct sleeper *s = container_of(j, struct sleeper, job);

	fiber_wake(f);
	fiber_wake(f); /* does not add up */
	fiber_wait(f); /* returns at once */
	s->woken = 1;
	s->f = f;
	fiber_wait(f);
	s->woken = 2;
	s->done = true;
}

static void wake_before_wait_is_not_lost_and_does_not_add_up(void **state)
{
	struct queue *q = make_queue(false, NULL);
	struct sleeper s = { .job.run = self_wake_run };

	(void)state;
	fiber_start(q, &s.job, 0);
	queue_turn(q, 0);
	queue_turn(q, 0);
	assert_int_equal(s.woken, 1);
	fiber_wake(s.f);
	fiber_wake(s.f);
	queue_turn(q, -1);
	assert_true(s.done);
	queue_free(q);
}

static void wake_lets_a_waiting_fiber_run_once(void **state)
{
	struct queue *q = make_queue(false, NULL);
	struct sleeper s = { .job.run = sleeper_run, .waits = 5 };

	(void)state;
	fiber_start(q, &s.job, 2);
	queue_turn(q, 0);
	for (unsigned i = 1; i <= 5; i++) {
		assert_int_equal(s.woken, i - 1);
		fiber_wake(s.f);
		queue_turn(q, -1);
		assert_int_equal(s.woken, i);
	}
	assert_true(s.done);
	queue_free(q);
}

struct two_waits {
	struct fiber_job job;
	struct fiber *f;
	struct fiber_mutex *m;
	bool locked, done;
};

static void two_waits_run(struct fiber *f, struct fiber_job *j)
{
	struct two_waits *t = container_of(j, struct two_waits, job);

	t->f = f;
	fiber_lock(f, t->m);
	t->locked = true;
	fiber_wait(f); /* the wake that came while it waited for the lock */
	fiber_unlock(t->m);
	t->done = true;
}

static void wake_during_a_lock_is_kept_for_the_next_wait(void **state)
{
	struct queue *q = make_queue(false, NULL);
	struct fiber_mutex m = { .held = true };
	struct two_waits t = { .job.run = two_waits_run, .m = &m };

	(void)state;
	fiber_start(q, &t.job, 0);
	queue_turn(q, 0);
	fiber_wake(t.f); /* say, its I/O completed */
	queue_turn(q, 0);
	assert_false(t.locked); /* the lock is not his yet */
	fiber_unlock(&m);
	queue_turn(q, 0);
	queue_turn(q, 0);
	assert_true(t.done);
	queue_free(q);
}

/* ---- waitlist and mutex ---- */

struct locker {
	struct fiber_job job;
	struct fiber_mutex *m;
	unsigned nr;
};

static unsigned turn_of, inside, lockers_done;

static void locker_run(struct fiber *f, struct fiber_job *j)
{
	struct locker *l = container_of(j, struct locker, job);

	fiber_lock(f, l->m);
	CHECK(!inside);
	inside = 1;
	CHECK(l->nr == turn_of);
	turn_of++;
	for (unsigned i = 0; i < l->nr % 4; i++)
		fiber_yield(f);
	inside = 0;
	fiber_unlock(l->m);
	lockers_done++;
}

static void mutex_excludes_and_is_handed_over_in_order(void **state)
{
	struct queue *q = make_queue(false, NULL);
	struct fiber_mutex m = { 0 };
	struct locker l[200];

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(l); i++) {
		l[i] = (struct locker){ .job.run = locker_run, .m = &m, .nr = i };
		fiber_start(q, &l[i].job, 3);
	}
	while (lockers_done < ARRAY_LEN(l))
		queue_turn(q, -1);
	assert_false(m.held);
	queue_free(q);
}

struct lister {
	struct fiber_job job;
	struct waitlist *wl;
	unsigned nr;
};

static unsigned list_order[8], nr_list_order;

static void lister_run(struct fiber *f, struct fiber_job *j)
{
	struct lister *l = container_of(j, struct lister, job);

	waitlist_wait(f, l->wl);
	list_order[nr_list_order++] = l->nr;
}

static void waitlist_wakes_one_then_all_in_order(void **state)
{
	struct queue *q = make_queue(false, NULL);
	struct waitlist wl = { 0 };
	struct lister l[5];

	(void)state;
	waitlist_wake_one(&wl);
	waitlist_wake_all(&wl);
	for (unsigned i = 0; i < 5; i++) {
		l[i] = (struct lister){ .job.run = lister_run, .wl = &wl, .nr = i };
		fiber_start(q, &l[i].job, 0);
	}
	queue_turn(q, 0);
	assert_int_equal(nr_list_order, 0);
	waitlist_wake_one(&wl);
	queue_turn(q, 0);
	assert_int_equal(nr_list_order, 1);
	waitlist_wake_all(&wl);
	queue_turn(q, 0);
	assert_int_equal(nr_list_order, 5);
	for (unsigned i = 0; i < 5; i++)
		assert_int_equal(list_order[i], i);
	queue_free(q);
}

/* ---- time, workers ---- */

static int sleep_sort(struct fiber *f, void *arg)
{
	uint64_t *ns = arg, t = queue_now(fiber_queue(f));

	fiber_sleep_until(f, t + *ns);
	CHECK(queue_now(fiber_queue(f)) >= t + *ns);
	return 3;
}

static void sleep_ends_at_its_time_and_virtual_time_jumps(void **state)
{
	struct queue *q = make_virtual_queue();
	uint64_t day = 86400000000000, ms = 1000000;

	(void)state;
	assert_int_equal(fiber_call(q, sleep_sort, &day), 3);
	assert_int_equal(queue_now(q), day); /* and the test did not take a day */
	queue_free(q);
	q = make_queue(true, NULL);
	assert_int_equal(fiber_call(q, sleep_sort, &ms), 3);
	queue_free(q);
}

static int blocking_fn(void *arg)
{
	struct queue *q = arg;

	CHECK(!queue_is_mine(q));
	return -77;
}

static int work_on_fiber(struct fiber *f, void *arg)
{
	(void)arg;
	for (unsigned i = 0; i < 100; i++)
		CHECK(fiber_work(f, blocking_fn, fiber_queue(f)) == -77);
	CHECK(queue_is_mine(fiber_queue(f)));
	return 1;
}

static void work_runs_elsewhere_and_its_result_comes_back(void **state)
{
	const struct wait_mode *mode = *state;
	struct queue *q = make_queue(false, mode->engine);

	assert_int_equal(fiber_call(q, work_on_fiber, NULL), 1);
	queue_free(q);
	q = make_queue(true, mode->engine);
	assert_int_equal(fiber_call(q, work_on_fiber, NULL), 1);
	queue_free(q);
	q = make_virtual_queue();
	assert_int_equal(fiber_call(q, work_on_fiber, NULL), 1);
	queue_free(q);
}

/* ---- calls ---- */

static unsigned counter; /* of the queue's fibers: no lock */

static int count(struct fiber *f, void *arg)
{
	unsigned before = counter;

	CHECK(queue_is_mine(fiber_queue(f)));
	counter = before + 1;
	fiber_yield(f);
	return (int)(uintptr_t)arg;
}

static void *caller_main(void *arg)
{
	for (unsigned i = 0; i < 500; i++)
		CHECK(fiber_call(arg, count, (void *)(uintptr_t)i) == (int)i);
	return NULL;
}

static void calls_of_many_threads_run_on_the_queue(void **state)
{
	const struct wait_mode *mode = *state;
	struct queue *q = make_queue(true, mode->engine);
	pthread_t t[6];

	counter = 0;
	for (unsigned i = 0; i < ARRAY_LEN(t); i++)
		assert_int_equal(pthread_create(&t[i], NULL, caller_main, q), 0);
	for (unsigned i = 0; i < ARRAY_LEN(t); i++)
		pthread_join(t[i], NULL);
	queue_free(q);
	assert_int_equal(counter, ARRAY_LEN(t) * 500);
}

static void *lone_caller_main(void *arg)
{
	CHECK(fiber_call(arg, count, (void *)5) == 5);
	return NULL;
}

/* One after the other: different threads may run a queue that has none. */
static void queue_without_thread_is_run_by_whoever_calls(void **state)
{
	const struct wait_mode *mode = *state;
	struct queue *q = make_queue(false, mode->engine);
	struct sleeper s = { .job.run = sleeper_run, .waits = 20 };

	counter = 0;
	fiber_start(q, &s.job, 0); /* migrates with the queue */
	for (unsigned i = 0; i < 20; i++) {
		pthread_t t;

		assert_int_equal(pthread_create(&t, NULL, lone_caller_main, q), 0);
		pthread_join(t, NULL);
		assert_int_equal(fiber_call(q, count, (void *)9), 9);
		fiber_wake(s.f);
	}
	while (!s.done)
		queue_turn(q, -1);
	assert_int_equal(counter, 40);
	queue_free(q);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(ten_thousand_jobs_share_few_stacks_in_order),
		cmocka_unit_test(stacks_are_private_and_deep_enough),
		cmocka_unit_test(without_memory_each_level_has_one_fiber),
		cmocka_unit_test(full_levels_park_but_never_deadlock),
		cmocka_unit_test(wake_before_wait_is_not_lost_and_does_not_add_up),
		cmocka_unit_test(wake_lets_a_waiting_fiber_run_once),
		cmocka_unit_test(wake_during_a_lock_is_kept_for_the_next_wait),
		cmocka_unit_test(mutex_excludes_and_is_handed_over_in_order),
		cmocka_unit_test(waitlist_wakes_one_then_all_in_order),
		cmocka_unit_test(sleep_ends_at_its_time_and_virtual_time_jumps),
		ALL_MODES(work_runs_elsewhere_and_its_result_comes_back),
		ALL_MODES(calls_of_many_threads_run_on_the_queue),
		ALL_MODES(queue_without_thread_is_run_by_whoever_calls),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("fiber", tests, NULL, NULL);
}
