/* SPDX-License-Identifier: MIT */
/* test_queue.c - messages, wake-ups, kicks, hooks, slots, embedding */
#include "aio_test.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- messages ---- */

#define SENDERS 8
#define MESSAGES 5000

struct numbered {
	struct msg msg;
	struct sender *sender;
	unsigned nr;
};

struct sender {
	struct queue *q;
	pthread_t thread;
	struct numbered *msgs;
	unsigned seen; /* queue's thread */
};

static atomic_uint delivered;

static void numbered_run(struct msg *m)
{
	struct numbered *n = container_of(m, struct numbered, msg);

	CHECK(queue_is_mine(n->sender->q));
	CHECK(n->nr == n->sender->seen);
	n->sender->seen++;
	atomic_fetch_add(&delivered, 1);
}

static void *sender_main(void *arg)
{
	struct sender *s = arg;

	CHECK(!queue_is_mine(s->q));
	for (unsigned i = 0; i < MESSAGES; i++) {
		s->msgs[i] = (struct numbered){ .msg.run = numbered_run, .sender = s, .nr = i };
		queue_post(s->q, &s->msgs[i].msg);
	}
	return NULL;
}

static void posts_of_many_threads_arrive_once_and_in_order(void **state)
{
	const struct wait_mode *mode = *state;
	struct queue *q = make_queue(true, mode->engine);
	struct sender senders[SENDERS] = { 0 };

	atomic_store(&delivered, 0);
	for (unsigned i = 0; i < SENDERS; i++) {
		senders[i].q = q;
		senders[i].msgs = calloc(MESSAGES, sizeof(*senders[i].msgs));
		assert_int_equal(pthread_create(&senders[i].thread, NULL, sender_main, &senders[i]), 0);
	}
	for (unsigned i = 0; i < SENDERS; i++)
		pthread_join(senders[i].thread, NULL);
	queue_free(q); /* delivers what is in the inbox before the thread ends */
	assert_int_equal(atomic_load(&delivered), SENDERS * MESSAGES);
	for (unsigned i = 0; i < SENDERS; i++)
		free(senders[i].msgs);
}

#define ROUNDS 20000

struct pingpong {
	struct msg msg;
	struct queue *q[2];
	unsigned at, round;
	struct queue *main;
	struct msg over;
	bool is_over;
};

static void pingpong_over(struct msg *m)
{
	container_of(m, struct pingpong, over)->is_over = true;
}

static void pingpong_run(struct msg *m)
{
	struct pingpong *p = container_of(m, struct pingpong, msg);

	CHECK(queue_is_mine(p->q[p->at]));
	if (++p->round == ROUNDS) {
		queue_post(p->main, &p->over);
		return;
	}
	p->at = !p->at;
	queue_post(p->q[p->at], &p->msg);
}

/* Each hop finds its target asleep, or falling asleep: a wake-up that is lost would hang the test. */
static void no_wakeup_is_lost(void **state)
{
	const struct wait_mode *mode = *state;
	struct pingpong p = {
		.msg.run = pingpong_run,
		.over.run = pingpong_over,
		.q = { make_queue(true, mode->engine), make_queue(true, mode->engine) },
		.main = make_queue(false, mode->engine),
	};

	queue_post(p.q[0], &p.msg);
	while (!p.is_over)
		queue_turn(p.main, -1);
	assert_int_equal(p.round, ROUNDS);
	queue_free(p.q[0]);
	queue_free(p.q[1]);
	queue_free(p.main);
}

struct freer {
	struct msg msg;
	bool done;
};

static void freer_run(struct msg *m)
{
	container_of(m, struct freer, msg)->done = true;
}

struct post_one {
	struct queue *q;
	struct msg *m;
};

static void *post_one_main(void *arg)
{
	struct post_one *p = arg;

	queue_post(p->q, p->m);
	return NULL;
}

/* The receiver may free the queue while the sender is still inside queue_post(). */
static void queue_may_be_freed_when_its_last_message_ran(void **state)
{
	const struct wait_mode *mode = *state;

	for (unsigned i = 0; i < 300; i++) {
		struct queue *q = make_queue(false, mode->engine);
		struct freer fr = { .msg.run = freer_run };
		struct post_one p = { q, &fr.msg };
		pthread_t t;

		assert_int_equal(pthread_create(&t, NULL, post_one_main, &p), 0);
		while (!fr.done)
			queue_turn(q, -1);
		queue_free(q);
		pthread_join(t, NULL);
	}
}

static unsigned order[8], nr_order;

struct step {
	struct msg msg;
	struct queue *q;
	unsigned nr;
	struct step *then;
};

static void step_run(struct msg *m)
{
	struct step *s = container_of(m, struct step, msg);

	order[nr_order++] = s->nr;
	if (s->then)
		queue_later(s->q, &s->then->msg);
}

static void later_runs_in_order_and_soon(void **state)
{
	struct queue *q = make_queue(false, NULL);
	struct step c = { .msg.run = step_run, .q = q, .nr = 3 };
	struct step a = { .msg.run = step_run, .q = q, .nr = 1, .then = &c };
	struct step b = { .msg.run = step_run, .q = q, .nr = 2 };

	(void)state;
	nr_order = 0;
	queue_later(q, &a.msg);
	queue_later(q, &b.msg);
	queue_turn(q, -1); /* must not wait: there is work */
	assert_int_equal(nr_order, 3);
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(order[i], i + 1);
	assert_int_equal(queue_stats(q)->msgs, 3);
	queue_free(q);
}

/* ---- kicks ---- */

static void kick_before_a_wait_ends_it(void **state)
{
	const struct wait_mode *mode = *state;
	struct queue *q = make_queue(false, mode->engine);

	queue_kick(q);
	queue_turn(q, -1);
	queue_kick(q);
	queue_kick(q);
	queue_turn(q, -1);
	queue_free(q);
}

static void *kick_main(void *arg)
{
	queue_kick(arg);
	return NULL;
}

static void kick_of_another_thread_ends_a_wait(void **state)
{
	const struct wait_mode *mode = *state;
	struct queue *q = make_queue(false, mode->engine);

	for (unsigned i = 0; i < 200; i++) {
		pthread_t t;

		assert_int_equal(pthread_create(&t, NULL, kick_main, q), 0);
		queue_turn(q, -1);
		pthread_join(t, NULL);
		queue_turn(q, 0);
	}
	queue_free(q);
}

/* ---- system calls ---- */

static void nop_run(struct msg *m)
{
	(void)m;
}

static void turn_without_work_makes_no_system_call(void **state)
{
	const struct wait_mode *mode = *state;
	struct queue *q = make_queue(false, mode->engine);
	struct msg m = { .run = nop_run };
	uint64_t before;

	queue_turn(q, 0);
	before = queue_stats(q)->syscalls;
	for (unsigned i = 0; i < 100; i++) {
		queue_post(q, &m); /* awake: no wake-up */
		queue_turn(q, 0);
		queue_turn(q, 0);
	}
	assert_int_equal(queue_stats(q)->syscalls, before);
	assert_int_equal(queue_stats(q)->waits, 0);
	queue_free(q);
}

/* ---- hooks ---- */

struct test_hook {
	struct hook hook;
	struct queue *q;
	unsigned runs;
	bool more_once;
	struct hook *remove;
};

static bool test_hook_run(struct hook *h)
{
	struct test_hook *t = container_of(h, struct test_hook, hook);
	bool more = t->more_once;

	t->runs++;
	t->more_once = false;
	if (t->remove)
		hook_del(t->q, t->remove);
	t->remove = NULL;
	return more;
}

static void hook_with_more_work_prevents_the_wait(void **state)
{
	const struct wait_mode *mode = *state;
	struct queue *q = make_queue(false, mode->engine);
	struct test_hook t = { .hook.run = test_hook_run, .q = q, .more_once = true };

	hook_add(q, &t.hook);
	queue_turn(q, -1); /* would never come back */
	assert_true(t.runs >= 1);
	hook_del(q, &t.hook);
	queue_free(q);
}

static void hooks_may_remove_themselves_and_each_other(void **state)
{
	struct queue *q = make_queue(false, NULL);
	struct test_hook t[3];

	(void)state;
	for (unsigned i = 0; i < 3; i++) {
		t[i] = (struct test_hook){ .hook.run = test_hook_run, .q = q };
		hook_add(q, &t[i].hook);
	}
	t[0].remove = &t[1].hook; /* the next one */
	t[2].remove = &t[2].hook; /* itself */
	queue_turn(q, 0);
	assert_int_equal(t[1].runs, 0);
	assert_int_equal(t[2].runs, 1);
	queue_turn(q, 0);
	assert_int_equal(t[2].runs, 1);
	assert_true(t[0].runs >= 2);
	hook_del(q, &t[0].hook);
	queue_free(q);
}

/* ---- embedding ---- */

static bool readable(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	return poll(&p, 1, 0) == 1;
}

/* Bounded: a test that would hang fails. */
static void wait_readable(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	int ret;

	do {
		ret = poll(&p, 1, PATIENCE_MS);
	} while (ret < 0 && errno == EINTR);
	assert_int_equal(ret, 1);
}

/* As an embedder does before it polls. (Who posted a message that has been seen may still be on the way to say so.) */
static void settle(struct queue *q, int fd)
{
	for (unsigned i = 0; i < 10; i++) {
		if (!readable(fd))
			return;
		queue_turn(q, 0);
	}
	fail_msg("the descriptor stays readable");
}

static void fired(struct timer *t)
{
	t->fire = NULL;
}

static void watched(struct watch *w, uint32_t events)
{
	char c;

	CHECK(events & EPOLLIN);
	CHECK(read(w->fd, &c, 1) == 1);
	w->events = 0;
}

static void op_done(struct aio_op *op, int64_t res)
{
	CHECK(res == 0);
	op->file = NULL;
}

static void poll_fd_tells_of_messages_timers_fds_and_io(void **state)
{
	const struct wait_mode *mode = *state;
	const struct aio_engine *engine = mode->engine ? mode->engine : &aio_engine_threads;
	struct queue *q = make_queue(false, mode->engine);
	int fd = queue_poll_fd(q), pipe_fds[2];
	struct step m = { .msg.run = step_run, .q = q, .nr = 1 };
	struct post_one p = { q, &m.msg };
	struct timer t = { .fire = fired };
	struct aio_file file = { .engine = engine,
				 .fd = memfd_create("varve-test", MFD_CLOEXEC),
				 .name = "tmp" };
	struct aio_op op = { .file = &file, .opcode = AIO_FLUSH, .done = op_done };
	struct watch w = { .events = EPOLLIN, .ready = watched };
	pthread_t thread;

	assert_true(fd >= 0);
	assert_int_equal(queue_poll_fd(q), fd);
	settle(q, fd);
	for (unsigned i = 0; i < 3; i++) {
		nr_order = 0;
		assert_int_equal(pthread_create(&thread, NULL, post_one_main, &p), 0);
		wait_readable(fd);
		pthread_join(thread, NULL);
		queue_turn(q, 0);
		assert_int_equal(nr_order, 1);
		settle(q, fd);
	}

	timer_set(q, &t, queue_now(q) + 3000000);
	queue_turn(q, 0);
	while (t.fire) {
		wait_readable(fd);
		queue_turn(q, 0);
	}
	settle(q, fd);

	assert_int_equal(pipe(pipe_fds), 0);
	w.fd = pipe_fds[0];
	assert_int_equal(watch_add(q, &w), 0);
	queue_turn(q, 0);
	settle(q, fd);
	assert_int_equal(write(pipe_fds[1], "x", 1), 1);
	wait_readable(fd);
	for (unsigned i = 0; i < 3 && w.events; i++)
		queue_turn(q, 0);
	assert_int_equal(w.events, 0);
	watch_del(q, &w);
	settle(q, fd);

	assert_int_equal(aio_attach(q, engine, NULL), 0);
	aio_submit(q, &op);
	queue_turn(q, 0);
	while (op.file) {
		wait_readable(fd);
		queue_turn(q, 0);
	}
	settle(q, fd);
	queue_free(q);
	close(pipe_fds[0]);
	close(pipe_fds[1]);
	close(file.fd);
}

/* ---- the rest ---- */

static unsigned destroyed;

static void destroy(void *p)
{
	destroyed += *(unsigned *)p;
}

static void slots_are_destroyed_with_the_queue(void **state)
{
	struct queue *q = make_queue(true, NULL);
	unsigned block = 1, api = 10;

	(void)state;
	assert_null(queue_slot_get(q, QUEUE_SLOT_API));
	queue_slot_set(q, QUEUE_SLOT_BLOCK, &block, destroy);
	queue_slot_set(q, QUEUE_SLOT_API, &api, destroy);
	assert_ptr_equal(queue_slot_get(q, QUEUE_SLOT_BLOCK), &block);
	queue_free(q);
	assert_int_equal(destroyed, 11);
}

static void ids_are_unique_bounded_and_used_again(void **state)
{
	struct queue *q[QUEUE_MAX], *more = NULL;
	bool used[QUEUE_MAX] = { false };
	struct varve_error err = { 0 };

	(void)state;
	need_files(3 * QUEUE_MAX);
	for (unsigned i = 0; i < QUEUE_MAX; i++) {
		q[i] = make_queue(false, NULL);
		assert_true(queue_id(q[i]) < QUEUE_MAX);
		assert_false(used[queue_id(q[i])]);
		used[queue_id(q[i])] = true;
	}
	assert_int_equal(queue_new(&more, NULL, &err), -EMFILE);
	assert_non_null(strstr(err.message, "128"));
	queue_free(q[7]);
	q[7] = make_queue(false, NULL);
	assert_int_equal(queue_id(q[7]), 7);
	for (unsigned i = 0; i < QUEUE_MAX; i++)
		queue_free(q[i]);
	queue_free(NULL);
}

static void virtual_time_stands_still_and_never_waits(void **state)
{
	struct queue *q = make_virtual_queue();
	uint64_t t0 = queue_now(q);

	(void)state;
	queue_turn(q, -1);
	assert_int_equal(queue_now(q), t0);
	queue_advance(q, 5);
	assert_int_equal(queue_now(q), t0 + 5);
	assert_int_equal(queue_stats(q)->waits, 0);
	queue_free(q);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		ALL_MODES(posts_of_many_threads_arrive_once_and_in_order),
		ALL_MODES(no_wakeup_is_lost),
		ALL_MODES(queue_may_be_freed_when_its_last_message_ran),
		cmocka_unit_test(later_runs_in_order_and_soon),
		ALL_MODES(kick_before_a_wait_ends_it),
		ALL_MODES(kick_of_another_thread_ends_a_wait),
		ALL_MODES(turn_without_work_makes_no_system_call),
		ALL_MODES(hook_with_more_work_prevents_the_wait),
		cmocka_unit_test(hooks_may_remove_themselves_and_each_other),
		ALL_MODES(poll_fd_tells_of_messages_timers_fds_and_io),
		cmocka_unit_test(slots_are_destroyed_with_the_queue),
		cmocka_unit_test(ids_are_unique_bounded_and_used_again),
		cmocka_unit_test(virtual_time_stands_still_and_never_waits),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("queue", tests, NULL, NULL);
}
