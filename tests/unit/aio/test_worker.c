/* SPDX-License-Identifier: MIT */
/* test_worker.c - the pool of threads for blocking calls */
#include "aio_test.h"

#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

struct job {
	struct work work;
	struct queue *q;
	pthread_t submitter;
	unsigned nr, result;
	bool done;
};

static unsigned done_jobs;

static void job_run(struct work *w)
{
	struct job *j = container_of(w, struct job, work);

	CHECK(!pthread_equal(pthread_self(), j->submitter));
	j->result = j->nr * 3;
}

static void job_done(struct msg *m)
{
	struct job *j = container_of(m, struct job, work.done);

	CHECK(queue_is_mine(j->q));
	CHECK(j->result == j->nr * 3);
	j->done = true;
	done_jobs++;
}

static void job_init(struct job *j, struct queue *q, unsigned nr, void (*run)(struct work *w))
{
	*j = (struct job){ .work = { .run = run, .q = q, .done.run = job_done }, .q = q, .nr = nr };
	j->submitter = pthread_self();
}

static void every_job_runs_once_and_is_answered_on_its_queue(void **state)
{
	const struct wait_mode *mode = *state;
	struct queue *q = make_queue(false, mode->engine);
	enum { N = 5000 };
	struct job *jobs = calloc(N, sizeof(*jobs));

	CHECK(jobs);
	done_jobs = 0;
	for (unsigned i = 0; i < N; i++) {
		job_init(&jobs[i], q, i, job_run);
		worker_submit(&jobs[i].work);
	}
	while (done_jobs < N)
		queue_turn(q, -1);
	for (unsigned i = 0; i < N; i++)
		assert_true(jobs[i].done);
	queue_free(q);
	free(jobs);
}

static pthread_barrier_t barrier;

static void meet(struct work *w)
{
	pthread_barrier_wait(&barrier);
	job_run(w);
}

/* All must be on threads of their own at the same time, or the barrier never opens. */
static void pool_grows_while_jobs_block(void **state)
{
	struct queue *q = make_queue(false, NULL);
	struct job jobs[WORKER_MAX];

	(void)state;
	done_jobs = 0;
	pthread_barrier_init(&barrier, NULL, WORKER_MAX);
	for (unsigned i = 0; i < WORKER_MAX; i++) {
		job_init(&jobs[i], q, i, meet);
		worker_submit(&jobs[i].work);
	}
	while (done_jobs < WORKER_MAX)
		queue_turn(q, -1);
	pthread_barrier_destroy(&barrier);
	queue_free(q);
}

static atomic_uint at_once, most_at_once;

static void crowd(struct work *w)
{
	unsigned n = atomic_fetch_add(&at_once, 1) + 1, most = atomic_load(&most_at_once);

	while (n > most && !atomic_compare_exchange_weak(&most_at_once, &most, n))
		;
	for (unsigned i = 0; i < 20; i++)
		sched_yield();
	job_run(w);
	atomic_fetch_sub(&at_once, 1);
}

static void pool_never_grows_past_its_limit(void **state)
{
	struct queue *q = make_queue(false, NULL);
	enum { N = 20 * WORKER_MAX };
	struct job *jobs = calloc(N, sizeof(*jobs));

	(void)state;
	CHECK(jobs);
	done_jobs = 0;
	for (unsigned i = 0; i < N; i++) {
		job_init(&jobs[i], q, i, crowd);
		worker_submit(&jobs[i].work);
	}
	while (done_jobs < N)
		queue_turn(q, -1);
	assert_true(atomic_load(&most_at_once) <= WORKER_MAX);
	queue_free(q);
	free(jobs);
}

static void look_at_signals(struct work *w)
{
	sigset_t set;

	CHECK(pthread_sigmask(SIG_BLOCK, NULL, &set) == 0);
	CHECK(sigismember(&set, SIGINT) == 1 && sigismember(&set, SIGALRM) == 1 &&
	      sigismember(&set, SIGUSR1) == 1);
	job_run(w);
}

static void signals_are_blocked_in_workers(void **state)
{
	struct queue *q = make_queue(false, NULL);
	struct job j;

	(void)state;
	job_init(&j, q, 1, look_at_signals);
	worker_submit(&j.work);
	while (!j.done)
		queue_turn(q, -1);
	queue_free(q);
}

/* The workers that are there. One that has ended, and been joined, is in /proc for an instant more, but does not sleep. */
static unsigned count_workers(unsigned *ret_asleep)
{
	DIR *d = opendir("/proc/self/task");
	char path[300], line[64];
	unsigned nr = 0;

	CHECK(d);
	*ret_asleep = 0;
	for (struct dirent *e = readdir(d); e; e = readdir(d)) {
		const char *state;
		FILE *f;

		snprintf(path, sizeof(path), "/proc/self/task/%s/stat", e->d_name);
		f = fopen(path, "re");
		if (!f)
			continue;
		if (fgets(line, sizeof(line), f) && strstr(line, "(varve-worker) ")) {
			state = strrchr(line, ')') + 2;
			nr++;
			*ret_asleep += *state == 'S';
		}
		fclose(f);
	}
	closedir(d);
	return nr;
}

static void last_queue_takes_the_threads_along(void **state)
{
	unsigned asleep;

	(void)state;
	for (unsigned round = 0; round < 20; round++) {
		struct queue *q = make_queue(false, NULL), *other = make_queue(true, NULL);
		struct job jobs[10];

		done_jobs = 0;
		for (unsigned i = 0; i < 10; i++) {
			job_init(&jobs[i], q, i, job_run);
			worker_submit(&jobs[i].work);
		}
		while (done_jobs < 10)
			queue_turn(q, -1);
		queue_free(other);
		assert_true(count_workers(&asleep) > 0);
		queue_free(q);
	}
	while (count_workers(&asleep)) {
		assert_int_equal(asleep, 0);
		sched_yield();
	}
}

static void *queue_maker(void *arg)
{
	for (unsigned i = 0; i < 100; i++) {
		struct queue *q = NULL;
		struct job j;

		CHECK(queue_new(&q, NULL, NULL) == 0);
		job_init(&j, q, i, job_run);
		j.work.done.run = arg;
		worker_submit(&j.work);
		while (!j.done)
			queue_turn(q, -1);
		queue_free(q);
	}
	return NULL;
}

static void only_done(struct msg *m)
{
	container_of(m, struct job, work.done)->done = true;
}

/* The pool is stopped and started by threads that know nothing of each other. */
static void pool_may_stop_and_start_at_any_time(void **state)
{
	pthread_t t[4];

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(t); i++)
		assert_int_equal(pthread_create(&t[i], NULL, queue_maker, (void *)(uintptr_t)only_done), 0);
	for (unsigned i = 0; i < ARRAY_LEN(t); i++)
		pthread_join(t[i], NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		ALL_MODES(every_job_runs_once_and_is_answered_on_its_queue),
		cmocka_unit_test(pool_grows_while_jobs_block),
		cmocka_unit_test(pool_never_grows_past_its_limit),
		cmocka_unit_test(signals_are_blocked_in_workers),
		cmocka_unit_test(last_queue_takes_the_threads_along),
		cmocka_unit_test(pool_may_stop_and_start_at_any_time),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("worker", tests, NULL, NULL);
}
