/* SPDX-License-Identifier: MIT */
/*
 * aio/fiber_thread.c - fibers as threads that hand over a baton (-Dfiber=thread)
 *
 * Owns:    a thread per context, which waits unless the loop gave it the baton.
 * Assumes: the loop waits while a context runs, so that one thread of a queue runs at a time.
 * Never:   used where speed matters: it exists so that ThreadSanitizer sees every step of a fiber.
 */
#include "config.h"

#ifdef VARVE_FIBER_THREAD

#include <assert.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>

#include "aio/fiber_switch.h"
#include "aio/loop.h"

#define THREAD_STACK_LEN (512 * 1024) /* sanitizers need room */

struct fiber_ctx {
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t cond;
	bool inside; /* the baton: true, the context has it; false, the loop */
	bool quit;
	const void *self; /* thread_self() of the loop that entered */
	void (*entry)(void *arg);
	void *arg;
};

/* Gives the baton away and waits until it is back. Called with the lock held. */
static void hand_over(struct fiber_ctx *c, bool to_inside)
{
	c->inside = to_inside;
	pthread_cond_broadcast(&c->cond);
	while (c->inside == to_inside)
		pthread_cond_wait(&c->cond, &c->lock);
}

static void *context_thread(void *arg)
{
	struct fiber_ctx *c = arg;

	pthread_mutex_lock(&c->lock);
	for (;;) {
		while (!c->inside)
			pthread_cond_wait(&c->cond, &c->lock);
		if (c->quit)
			break;
		pthread_mutex_unlock(&c->lock);
		thread_set_self(c->self);
		c->entry(c->arg);
		pthread_mutex_lock(&c->lock);
		c->inside = false;
		pthread_cond_broadcast(&c->cond);
	}
	pthread_mutex_unlock(&c->lock);
	return NULL;
}

struct fiber_ctx *fiber_ctx_new(void)
{
	struct fiber_ctx *c = calloc(1, sizeof(*c));
	sigset_t all, old;
	pthread_attr_t attr;
	int ret;

	if (!c)
		return NULL;
	pthread_mutex_init(&c->lock, NULL);
	pthread_cond_init(&c->cond, NULL);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, THREAD_STACK_LEN);
	thread_signals(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	ret = pthread_create(&c->thread, &attr, context_thread, c);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	if (!ret)
		return c;
	pthread_cond_destroy(&c->cond);
	pthread_mutex_destroy(&c->lock);
	free(c);
	return NULL;
}

void fiber_ctx_free(struct fiber_ctx *c)
{
	if (!c)
		return;
	pthread_mutex_lock(&c->lock);
	assert(!c->inside);
	c->quit = true;
	c->inside = true;
	pthread_cond_broadcast(&c->cond);
	pthread_mutex_unlock(&c->lock);
	pthread_join(c->thread, NULL);
	pthread_cond_destroy(&c->cond);
	pthread_mutex_destroy(&c->lock);
	free(c);
}

void fiber_ctx_prepare(struct fiber_ctx *c, void (*entry)(void *arg), void *arg)
{
	c->entry = entry;
	c->arg = arg;
}

void fiber_ctx_enter(struct fiber_ctx *c)
{
	pthread_mutex_lock(&c->lock);
	c->self = thread_self();
	hand_over(c, true);
	pthread_mutex_unlock(&c->lock);
}

void fiber_ctx_leave(struct fiber_ctx *c)
{
	pthread_mutex_lock(&c->lock);
	hand_over(c, false);
	pthread_mutex_unlock(&c->lock);
	thread_set_self(c->self); /* another thread may run the queue now */
}

#endif
