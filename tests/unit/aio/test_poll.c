/* SPDX-License-Identifier: MIT */
/*
 * unit/aio/test_poll.c - queues that spin before they sleep, and where their threads run
 */
#include <errno.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "aio/fiber.h"
#include "aio/loop.h"

#define US UINT64_C(1000)

/* ---- how long ---- */

/* What is learnt (test_spin.c) is what the queue does; a fixed time stays. */
static void the_time_is_all_or_nothing(void **state)
{
	struct queue *q;

	(void)state;
	assert_int_equal(queue_new(&q, NULL, NULL), 0);
	q->poll.max_ns = 50 * US;
	q->poll.adaptive = true;
	spin_init(&q->poll.learnt, q->poll.max_ns);
	assert_false(queue_spins(q));
	q->poll.learnt.spins = true;
	loop_slept(q, 1 * US);
	assert_true(queue_spins(q));
	assert_int_equal(q->poll.now_ns, 50 * US);
	q->poll.learnt.spins = false;
	loop_slept(q, 1 * US);
	assert_false(queue_spins(q));
	q->poll.adaptive = false;
	q->poll.now_ns = 50 * US;
	for (unsigned i = 0; i < 20; i++)
		loop_slept(q, 1000000 * US);
	assert_int_equal(q->poll.now_ns, 50 * US);
	queue_free(q);
}

/* ---- pollers ---- */

struct box {
	struct poller p;
	_Atomic unsigned put, taken;
	_Atomic bool awake; /* who puts something in need not tell */
	_Atomic unsigned rests;
};

static bool box_take(struct box *b)
{
	unsigned put = atomic_load(&b->put), taken = atomic_load(&b->taken);

	atomic_store(&b->taken, put);
	return put != taken;
}

static bool box_look(struct poller *p)
{
	struct box *b = container_of(p, struct box, p);

	atomic_store(&b->awake, true);
	return box_take(b);
}

/* Store, then look; the one who puts does it the other way round. */
static bool box_rest(struct poller *p)
{
	struct box *b = container_of(p, struct box, p);

	atomic_store(&b->awake, false);
	atomic_fetch_add(&b->rests, 1);
	return box_take(b);
}

static int add_box(struct fiber *f, void *arg)
{
	struct box *b = arg;

	b->p = (struct poller){ .look = box_look, .rest = box_rest };
	poller_add(fiber_queue(f), &b->p);
	return 0;
}

static int del_box(struct fiber *f, void *arg)
{
	poller_del(fiber_queue(f), &((struct box *)arg)->p);
	return 0;
}

/* Nothing that is put in is left lying, whether the queue spins, sleeps, or is just about to. */
static void what_a_poller_finds_is_never_slept_over(void **state)
{
	for (unsigned adaptive = 0; adaptive < 2; adaptive++) {
		struct queue_opts opts = { .own_thread = true,
					   .poll_ns = 20 * US,
					   .poll_adaptive = adaptive };
		struct box b = { .put = 0 };
		struct queue *q;

		(void)state;
		assert_int_equal(queue_new(&q, &opts, NULL), 0);
		assert_int_equal(fiber_call(q, add_box, &b), 0);
		for (unsigned i = 0; i < 3000; i++) {
			for (unsigned k = 0; k < (i % 64) * 100; k++)
				__asm__ volatile("" ::: "memory");
			atomic_fetch_add(&b.put, 1);
			if (!atomic_load(&b.awake))
				queue_kick(q);
			if (i % 100)
				continue;
			/* Would hang here, if it slept with something in the box. A kick alone makes it look.
			 */
			while (atomic_load(&b.taken) != atomic_load(&b.put))
				sched_yield();
		}
		/* With nothing more to come it goes to sleep, at the latest now. */
		while (!atomic_load(&b.rests))
			sched_yield();
		assert_int_equal(fiber_call(q, del_box, &b), 0);
		queue_free(q);
	}
}

/* ---- processors ---- */

static int where(struct fiber *f, void *arg)
{
	(void)f;
	return sched_getaffinity(0, sizeof(cpu_set_t), arg);
}

static void a_thread_runs_where_it_is_told(void **state)
{
	static const char *const bad[] = {
		"", "x", "0-", "-1", "1-0", "0,", "0;1", "99999", "0-99999999999999999999", " 0"
	};
	struct queue_opts opts = { .own_thread = true };
	struct varve_error err;
	struct queue *q;
	char first[16];
	cpu_set_t set;
	int cpu = 0;

	(void)state;
	/* Containers do not have processor 0, necessarily. */
	assert_int_equal(sched_getaffinity(0, sizeof(set), &set), 0);
	while (!CPU_ISSET(cpu, &set))
		cpu++;
	snprintf(first, sizeof(first), "%d", cpu);
	opts.cpus = first;
	assert_int_equal(queue_new(&q, &opts, &err), 0);
	assert_int_equal(fiber_call(q, where, &set), 0);
	assert_int_equal(CPU_COUNT(&set), 1);
	assert_true(CPU_ISSET(cpu, &set));
	queue_free(q);
	for (unsigned i = 0; i < ARRAY_LEN(bad); i++) {
		opts.cpus = bad[i];
		assert_int_equal(queue_new(&q, &opts, &err), -EINVAL);
		assert_non_null(strstr(err.message, "no list of processors"));
	}
	opts.cpus = "1023"; /* a list, but of none that is there */
	assert_true(queue_new(&q, &opts, &err) < 0);
	assert_non_null(strstr(err.message, "on processors 1023"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_time_is_all_or_nothing),
		cmocka_unit_test(what_a_poller_finds_is_never_slept_over),
		cmocka_unit_test(a_thread_runs_where_it_is_told),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
