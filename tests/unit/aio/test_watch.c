/* SPDX-License-Identifier: MIT */
/* test_watch.c - watched file descriptors, with epoll alone and with epoll inside a ring */
#include "aio_test.h"

#include <errno.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

struct end {
	struct watch w;
	struct queue *q;
	int write_fd;
	unsigned called;
	bool read_it;
	struct end *remove; /* in ready() */
};

static void end_ready(struct watch *w, uint32_t events)
{
	struct end *e = container_of(w, struct end, w);
	char c;

	CHECK(queue_is_mine(e->q));
	CHECK(events & (EPOLLIN | EPOLLHUP));
	e->called++;
	if (e->read_it)
		CHECK(read(w->fd, &c, 1) == 1);
	if (e->remove) {
		watch_del(e->q, &e->remove->w);
		e->remove = NULL;
	}
}

static void end_open(struct queue *q, struct end *e)
{
	int fds[2];

	CHECK(pipe(fds) == 0);
	*e = (struct end){ .w = { .fd = fds[0], .events = EPOLLIN, .ready = end_ready },
			   .q = q,
			   .write_fd = fds[1] };
	CHECK(watch_add(q, &e->w) == 0);
}

static void end_close(struct end *e)
{
	close(e->w.fd);
	close(e->write_fd);
}

static void put(const struct end *e, const char *text)
{
	CHECK(write(e->write_fd, text, strlen(text)) == (ssize_t)strlen(text));
}

static void turn_until(struct queue *q, const struct end *e, unsigned called)
{
	while (e->called < called)
		queue_turn(q, -1);
}

/* What was not read is reported again; so does a ring, which by itself hears of changes only. */
static void watches_are_level_triggered(void **state)
{
	const struct wait_mode *mode = *state;
	struct queue *q = make_queue(false, mode->engine);
	struct end e;

	end_open(q, &e);
	e.read_it = true;
	put(&e, "abcdef");
	turn_until(q, &e, 6);
	for (unsigned i = 0; i < 5; i++)
		queue_turn(q, 0);
	assert_int_equal(e.called, 6);
	put(&e, "g");
	turn_until(q, &e, 7);
	watch_del(q, &e.w);
	end_close(&e);
	queue_free(q);
}

static void *put_main(void *arg)
{
	put(arg, "x");
	return NULL;
}

static void descriptor_ends_a_wait(void **state)
{
	const struct wait_mode *mode = *state;
	struct queue *q = make_queue(false, mode->engine);
	struct end e;

	end_open(q, &e);
	e.read_it = true;
	for (unsigned i = 1; i <= 200; i++) {
		pthread_t t;

		assert_int_equal(pthread_create(&t, NULL, put_main, &e), 0);
		turn_until(q, &e, i);
		pthread_join(t, NULL);
	}
	watch_del(q, &e.w);
	end_close(&e);
	queue_free(q);
}

/* More descriptors than one epoll_wait() fetches, all ready: each callback removes another watch. */
static void removed_watch_is_not_called_although_its_event_was_fetched(void **state)
{
	const struct wait_mode *mode = *state;
	enum { N = 150 };
	struct end e[N];
	unsigned called = 0;
	struct queue *q;

	need_files(2 * N + 50);
	q = make_queue(false, mode->engine);
	for (unsigned i = 0; i < N; i++) {
		end_open(q, &e[i]);
		put(&e[i], "x");
	}
	/* Pairs: whichever is called first removes the other; a call of both would be the mistake. */
	for (unsigned i = 0; i < N; i++)
		e[i].remove = &e[i ^ 1];
	/* Until one of each pair was called, and some turns more, for those that should not be. */
	for (unsigned i = 0; i < N; i += 2)
		while (!e[i].called && !e[i + 1].called)
			queue_turn(q, -1);
	for (unsigned i = 0; i < 20; i++)
		queue_turn(q, 0);
	for (unsigned i = 0; i < N; i += 2) {
		assert_true(!e[i].called != !e[i + 1].called);
		called += e[i].called + e[i + 1].called;
	}
	assert_true(called >= N / 2);
	for (unsigned i = 0; i < N; i++) {
		if (e[i].called)
			watch_del(q, &e[i].w);
		end_close(&e[i]);
	}
	queue_free(q);
}

struct own {
	struct watch w;
	struct queue *q;
	unsigned *freed;
};

static void own_ready(struct watch *w, uint32_t events)
{
	struct own *o = container_of(w, struct own, w);

	(void)events;
	watch_del(o->q, w);
	close(w->fd);
	++*o->freed;
	free(o);
}

static void watch_may_remove_and_free_itself(void **state)
{
	const struct wait_mode *mode = *state;
	struct queue *q = make_queue(false, mode->engine);
	unsigned freed = 0;

	for (unsigned i = 0; i < 20; i++) {
		struct own *o = calloc(1, sizeof(*o));
		int fds[2];

		CHECK(o && pipe(fds) == 0);
		*o = (struct own){ .w = { .fd = fds[0], .events = EPOLLIN, .ready = own_ready }, .q = q };
		o->freed = &freed;
		CHECK(watch_add(q, &o->w) == 0);
		close(fds[1]); /* hang-up */
	}
	while (freed < 20)
		queue_turn(q, -1);
	queue_turn(q, 0);
	queue_free(q);
}

static void changed_events_are_heeded(void **state)
{
	const struct wait_mode *mode = *state;
	struct queue *q = make_queue(false, mode->engine);
	struct end e;

	end_open(q, &e);
	watch_change(q, &e.w, 0);
	put(&e, "x");
	for (unsigned i = 0; i < 5; i++)
		queue_turn(q, 0);
	assert_int_equal(e.called, 0);
	watch_change(q, &e.w, EPOLLIN);
	e.read_it = true;
	turn_until(q, &e, 1);
	watch_del(q, &e.w);
	end_close(&e);
	queue_free(q);
}

static void file_that_cannot_be_watched_is_refused(void **state)
{
	struct queue *q = make_queue(false, NULL);
	struct watch w = { .fd = memfd_create("varve-test", MFD_CLOEXEC),
			   .events = EPOLLIN,
			   .ready = own_ready };
	int fd = w.fd;

	(void)state;
	assert_int_equal(watch_add(q, &w), -EPERM);
	w.fd = -1;
	assert_int_equal(watch_add(q, &w), -EBADF);
	close(fd);
	queue_free(q);
}

/* A watch that was there before the ring, and one that is there after it is gone, work too. */
static void watch_survives_the_attaching_of_a_ring(void **state)
{
	struct queue *q = make_queue(false, NULL);
	struct end e;

	(void)state;
	if (!engine_works(&aio_engine_uring)) {
		queue_free(q);
		skip();
	}
	end_open(q, &e);
	e.read_it = true;
	put(&e, "x");
	assert_int_equal(aio_attach(q, &aio_engine_uring, NULL), 0);
	turn_until(q, &e, 1);
	put(&e, "x");
	turn_until(q, &e, 2);
	watch_del(q, &e.w);
	end_close(&e);
	queue_free(q);
}

/* ---- of which only new events count ---- */

struct bell {
	struct watch w;
	struct queue *q;
	unsigned called;
};

static void bell_ready(struct watch *w, uint32_t events)
{
	struct bell *b = container_of(w, struct bell, w);

	CHECK(queue_is_mine(b->q));
	CHECK(events & EPOLLIN);
	b->called++;
}

static void bell_open(struct queue *q, struct bell *b, unsigned count)
{
	*b = (struct bell){ .w = { .fd = eventfd(count, EFD_CLOEXEC | EFD_NONBLOCK),
				   .events = EPOLLIN | EPOLLET,
				   .ready = bell_ready },
			    .q = q };
	CHECK(b->w.fd >= 0 && watch_add(q, &b->w) == 0);
}

static void bell_close(struct bell *b)
{
	watch_del(b->q, &b->w);
	close(b->w.fd);
}

static void ring_bell(const struct bell *b)
{
	const uint64_t one = 1;

	CHECK(write(b->w.fd, &one, sizeof(one)) == sizeof(one));
}

static void idle_turns(struct queue *q)
{
	for (unsigned i = 0; i < 5; i++)
		queue_turn(q, 0);
}

/* Nobody reads the count, and each new event is told all the same; an old one once, to whoever comes to watch. */
static void new_events_are_told_although_nobody_reads(void **state)
{
	const struct wait_mode *mode = *state;
	struct queue *q = make_queue(false, mode->engine);
	struct bell b;

	bell_open(q, &b, 7);
	while (!b.called)
		queue_turn(q, -1);
	idle_turns(q);
	assert_int_equal(b.called, 1);
	for (unsigned i = 2; i <= 100; i++) {
		ring_bell(&b);
		while (b.called < i)
			queue_turn(q, -1);
		if (i % 10 == 0)
			idle_turns(q);
		assert_int_equal(b.called, i);
	}
	bell_close(&b);
	queue_free(q);
}

static void a_removed_bell_is_not_heard(void **state)
{
	const struct wait_mode *mode = *state;
	struct queue *q = make_queue(false, mode->engine);
	struct bell b, other;

	bell_open(q, &other, 0);
	for (unsigned i = 0; i < 100; i++) {
		bell_open(q, &b, 0);
		if (i % 3)
			idle_turns(q); /* armed, or not yet */
		ring_bell(&b);
		bell_close(&b);
		idle_turns(q);
		assert_int_equal(b.called, 0);
	}
	ring_bell(&other);
	while (!other.called)
		queue_turn(q, -1);
	bell_close(&other);
	queue_free(q);
}

/* More than an engine watches itself. */
static void many_bells_are_heard(void **state)
{
	const struct wait_mode *mode = *state;
	struct queue *q = make_queue(false, mode->engine);
	enum { N = 100 };
	struct bell b[N];

	for (unsigned round = 0; round < 3; round++) {
		for (unsigned i = 0; i < N; i++)
			bell_open(q, &b[i], 0);
		idle_turns(q);
		for (unsigned i = 0; i < N; i++)
			ring_bell(&b[i]);
		for (unsigned i = 0; i < N; i++)
			while (!b[i].called)
				queue_turn(q, -1);
		idle_turns(q);
		for (unsigned i = 0; i < N; i++) {
			assert_int_equal(b[i].called, 1);
			bell_close(&b[i]);
		}
	}
	queue_free(q);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		ALL_MODES(watches_are_level_triggered),
		ALL_MODES(descriptor_ends_a_wait),
		ALL_MODES(removed_watch_is_not_called_although_its_event_was_fetched),
		ALL_MODES(watch_may_remove_and_free_itself),
		ALL_MODES(changed_events_are_heeded),
		cmocka_unit_test(file_that_cannot_be_watched_is_refused),
		cmocka_unit_test(watch_survives_the_attaching_of_a_ring),
		ALL_MODES(new_events_are_told_although_nobody_reads),
		ALL_MODES(a_removed_bell_is_not_heard),
		ALL_MODES(many_bells_are_heard),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("watch", tests, NULL, NULL);
}
