/* SPDX-License-Identifier: MIT */
/*
 * aio/worker.c - the pool of threads for calls that block
 *
 * Owns:    the worker threads of the process, and the work not yet begun.
 * Assumes: work belongs to a queue that lives until the work is done; the last queue_free() stops the
 *          threads, so that nothing is left behind. fork() without exec is not supported.
 * Never:   loses work: when no thread can be made and none runs, the caller does the work itself.
 *
 * A thread that ends joins the one that ended before it; the last one is joined by workers_unref(). So
 * at most one thread at a time has ended without being joined.
 */
#include <limits.h>
#include <signal.h>
#include <time.h>

#include "aio/loop.h"
#include "aio/worker.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(__clang__)
#define WORKER_STACK_LEN (512 * 1024)
#else
#define WORKER_STACK_LEN (128 * 1024)
#endif

static struct {
	pthread_mutex_t lock;
	pthread_cond_t work, ended;
	bool cond_ready; /* work has been initialised: its clock is the monotonic one */
	unsigned refs;
	struct work *head, **tail;
	unsigned nr_queued, nr_threads, nr_idle;
	unsigned nr_starting; /* made, and not yet come to take work */
	bool stop;
	bool has_zombie;
	pthread_t zombie; /* ended, not joined */
} pool = {
	.lock = PTHREAD_MUTEX_INITIALIZER,
	.ended = PTHREAD_COND_INITIALIZER,
	.tail = &pool.head,
};

static struct work *take(void)
{
	struct work *w = pool.head;

	pool.head = w->next;
	if (!pool.head)
		pool.tail = &pool.head;
	pool.nr_queued--;
	return w;
}

static void perform(struct work *w)
{
	w->run(w);
	queue_post(w->q, &w->done); /* w and its queue may be gone after this */
}

/* Called with the lock held. False: nothing came for WORKER_IDLE_NS, or the pool stops. */
static bool wait_for_work(void)
{
	struct timespec until;
	int ret = 0;

	if (pool.head)
		return true;
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += WORKER_IDLE_NS / 1000000000;
	pool.nr_idle++;
	while (!pool.head && !pool.stop && !ret)
		ret = pthread_cond_timedwait(&pool.work, &pool.lock, &until);
	pool.nr_idle--;
	return pool.head;
}

static void *worker_thread(void *arg)
{
	pthread_t before;
	bool join;

	(void)arg;
	pthread_setname_np(pthread_self(), "varve-worker");
	pthread_mutex_lock(&pool.lock);
	pool.nr_starting--;
	while (wait_for_work()) {
		struct work *w = take();

		pthread_mutex_unlock(&pool.lock);
		perform(w);
		pthread_mutex_lock(&pool.lock);
	}
	join = pool.has_zombie;
	before = pool.zombie;
	pool.has_zombie = true;
	pool.zombie = pthread_self();
	pool.nr_threads--;
	pthread_cond_broadcast(&pool.ended);
	pthread_mutex_unlock(&pool.lock);
	if (join)
		pthread_join(before, NULL);
	return NULL;
}

/* Called with the lock held. False: there can be no more now. */
static bool start_thread(void)
{
	bool started;

	pthread_attr_t attr;
	sigset_t all, old;
	pthread_t thread;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, WORKER_STACK_LEN);
	thread_signals(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	started = pthread_create(&thread, &attr, worker_thread, NULL) == 0;
	if (started) {
		pool.nr_threads++;
		pool.nr_starting++;
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	return started;
}

/* Called with the lock held, after nr works were added: threads for those that no idle one will take. */
static void wake_threads(unsigned nr)
{
	unsigned wake = MIN(nr, pool.nr_idle);

	while (pool.nr_queued > pool.nr_idle + pool.nr_starting && pool.nr_threads < WORKER_MAX) {
		if (!start_thread())
			break;
	}
	while (wake--)
		pthread_cond_signal(&pool.work);
}

void worker_submit_all(struct work *head, struct work **tail, unsigned nr)
{
	struct work *mine = NULL;

	pthread_mutex_lock(&pool.lock);
	assert(pool.refs && "work without a queue");
	*pool.tail = head;
	pool.tail = tail;
	pool.nr_queued += nr;
	wake_threads(nr);
	if (!pool.nr_threads) {
		/* Without threads nothing stays in the list, so it holds nothing else. */
		mine = pool.head;
		pool.head = NULL;
		pool.tail = &pool.head;
		pool.nr_queued = 0;
	}
	pthread_mutex_unlock(&pool.lock);
	while (mine) {
		struct work *next = mine->next;

		perform(mine);
		mine = next;
	}
}

void worker_submit(struct work *w)
{
	w->next = NULL;
	worker_submit_all(w, &w->next, 1);
}

void workers_ref(void)
{
	pthread_mutex_lock(&pool.lock);
	if (!pool.cond_ready) {
		pthread_condattr_t attr;

		pthread_condattr_init(&attr);
		pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
		pthread_cond_init(&pool.work, &attr);
		pthread_condattr_destroy(&attr);
		pool.cond_ready = true;
	}
	/* Another thread may be stopping the pool right now. */
	while (pool.stop)
		pthread_cond_wait(&pool.ended, &pool.lock);
	pool.refs++;
	pthread_mutex_unlock(&pool.lock);
}

void workers_unref(void)
{
	pthread_t last;
	bool join;

	pthread_mutex_lock(&pool.lock);
	if (--pool.refs) {
		pthread_mutex_unlock(&pool.lock);
		return;
	}
	assert(!pool.head && "the last queue was freed with work unfinished");
	pool.stop = true;
	pthread_cond_broadcast(&pool.work);
	while (pool.nr_threads)
		pthread_cond_wait(&pool.ended, &pool.lock);
	join = pool.has_zombie;
	last = pool.zombie;
	pool.has_zombie = false;
	pool.stop = false;
	pthread_cond_broadcast(&pool.ended);
	pthread_mutex_unlock(&pool.lock);
	if (join)
		pthread_join(last, NULL);
}
