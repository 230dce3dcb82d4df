/* SPDX-License-Identifier: MIT */
/*
 * aio_test.h - what the unit tests of aio/ share
 *
 * CHECK() and not cmocka's asserts inside callbacks and fibers: those jump, and must not jump off a fiber's
 * stack or out of another thread.
 */
#ifndef AIO_TEST_H
#define AIO_TEST_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <setjmp.h>
#include <sys/resource.h>
#include <cmocka.h>

#include "../../lib/patience.h"
#include "aio/engine.h"
#include "aio/fiber.h"
#include "aio/queue.h"
#include "aio/worker.h"
#include "base/math.h"

#define CHECK(x)                                                                                             \
	do {                                                                                                 \
		if (!(x)) {                                                                                  \
			fprintf(stderr, "%s:%d: check failed: %s\n", __FILE__, __LINE__, #x);                \
			abort();                                                                             \
		}                                                                                            \
	} while (0)

/* Sanitizers reserve so much address space that it cannot be limited. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define TEST_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define TEST_SANITIZED 1
#endif
#endif
#ifndef TEST_SANITIZED
#define TEST_SANITIZED 0
#endif

#if defined(__SANITIZE_THREAD__)
#define TEST_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define TEST_TSAN 1
#endif
#endif
#ifndef TEST_TSAN
#define TEST_TSAN 0
#endif

/* The test is skipped where the process may not have so many files open at a time. */
static inline void need_files(unsigned nr)
{
	struct rlimit l;

	CHECK(getrlimit(RLIMIT_NOFILE, &l) == 0);
	if (l.rlim_cur >= nr)
		return;
	if (l.rlim_max < nr) {
		print_message("# %u open files are needed, the limit is %llu (ulimit -n)\n", nr,
			      (unsigned long long)l.rlim_max);
		skip();
	}
	l.rlim_cur = nr;
	CHECK(setrlimit(RLIMIT_NOFILE, &l) == 0);
}

/* A test that runs in each way a queue can wait: in epoll, and in the ring of an attached engine. */
struct wait_mode {
	const struct aio_engine *engine; /* NULL: none */
};

static struct wait_mode wait_epoll __attribute__((unused)) = { NULL };
static struct wait_mode wait_uring __attribute__((unused)) = { &aio_engine_uring };
static struct wait_mode wait_native __attribute__((unused)) = { &aio_engine_native };

#define ALL_MODES(test)                                                                                      \
	{ #test " (epoll)", test, NULL, NULL, &wait_epoll },                                                 \
		{ #test " (io_uring)", test, NULL, NULL, &wait_uring },                                      \
	{                                                                                                    \
#test " (native)", test, NULL, NULL, &wait_native                                            \
	}

static inline int attach_fn(struct fiber *f, void *arg)
{
	struct varve_error err = { 0 };
	int ret = aio_attach(fiber_queue(f), arg, &err);

	if (ret < 0)
		fprintf(stderr, "attach: %s\n", err.message);
	return ret;
}

static inline bool engine_works(const struct aio_engine *engine)
{
	struct varve_error err = { 0 };
	struct queue *q = NULL;
	int ret;

	if (!engine)
		return true;
	CHECK(queue_new(&q, NULL, NULL) == 0);
	ret = aio_attach(q, engine, &err);
	if (ret < 0)
		print_message("# %s: %s\n", engine->name, err.message);
	queue_free(q);
	return ret == 0;
}

/* With the engine attached, so that the queue waits in its way. Skips the test if the machine refuses the
 * engine. */
static inline struct queue *make_queue(bool own_thread, const struct aio_engine *engine)
{
	const struct queue_opts opts = { .name = "test", .own_thread = own_thread };
	struct varve_error err = { 0 };
	struct queue *q = NULL;

	if (!engine_works(engine))
		skip();
	if (queue_new(&q, &opts, &err) < 0) {
		fprintf(stderr, "queue_new: %s\n", err.message);
		abort();
	}
	if (engine)
		CHECK(fiber_call(q, attach_fn, (void *)(uintptr_t)engine) == 0);
	return q;
}

static inline struct queue *make_virtual_queue(void)
{
	const struct queue_opts opts = { .name = "virtual", .virtual_time = true };
	struct queue *q = NULL;

	CHECK(queue_new(&q, &opts, NULL) == 0);
	return q;
}

static inline uint64_t rnd(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

/* From VARVE_TEST_SEED, or fixed; printed, so that a failure can be repeated. */
static inline uint64_t test_seed(void)
{
	const char *s = getenv("VARVE_TEST_SEED");
	uint64_t seed = s ? strtoull(s, NULL, 0) : 20120712;

	print_message("# VARVE_TEST_SEED=%llu\n", (unsigned long long)seed);
	return seed ? seed : 1;
}

#endif
