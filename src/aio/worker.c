/* SPDX-License-Identifier: MIT */
/*
 * aio/worker.c - the pool of threads for calls that block
 *
 * Owns:    the worker threads of the process, and the work not yet begun.
 * Assumes: work belongs to a queue that lives until the work is done; the last queue_free() stops the
 *          threads, so that nothing is left behind. fork() without exec is not supported.
 * Never:   loses work: when no thread can be made and none runs, the caller does the work itself.
 *
 * An idle thread sleeps on a word of its own, so that waking it needs neither the lock nor the others: with a
 * condition variable the woken one ran into the lock of the one who woke it. The last to become idle is woken
 * first: its stack is in a cache, and those at the other end are the ones to end.
 *
 * A thread that ends joins the one that ended before it; the last one is joined by workers_unref(). So
 * at most one thread at a time has ended without being joined.
 */
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "aio/loop.h"
#include "aio/worker.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(__clang__)
#define WORKER_STACK_LEN (512 * 1024)
#else
#define WORKER_STACK_LEN (128 * 1024)
#endif

/* A thread that waits for work. On its stack. */
struct idler {
	LIST_ENTRY(idler) link;
	_Atomic uint32_t woken; /* changed under the lock; what the thread sleeps on */
};

static struct {
	pthread_mutex_t lock;
	pthread_cond_t ended;
	unsigned refs;
	struct work *head, **tail;
	LIST_HEAD(, idler) idle;
	unsigned nr_queued, nr_threads, nr_idle;
	unsigned nr_coming; /* made or woken, and not yet come to take work */
	bool stop;
	bool has_zombie;
	pthread_t zombie; /* ended, not joined */
} pool = {
	.lock = PTHREAD_MUTEX_INITIALIZER,
	.idle = LIST_HEAD_INITIALIZER(pool.idle),
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

/* Until *word is not 0, or the time is over. */
static void sleep_on(_Atomic uint32_t *word)
{
	struct timespec until;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += WORKER_IDLE_NS / 1000000000;
	while (!atomic_load_explicit(word, memory_order_relaxed)) {
		if (syscall(SYS_futex, word, FUTEX_WAIT_BITSET_PRIVATE, 0, &until, NULL,
			    FUTEX_BITSET_MATCH_ANY) < 0 &&
		    errno == ETIMEDOUT)
			return;
	}
}

/* Called with the lock held. False: nothing came for WORKER_IDLE_NS, or the pool stops. */
static bool wait_for_work(void)
{
	bool woken = true;

	while (!pool.head && !pool.stop && woken) {
		struct idler me = { .woken = 0 };

		LIST_INSERT_HEAD(&pool.idle, &me, link);
		pool.nr_idle++;
		pthread_mutex_unlock(&pool.lock);
		sleep_on(&me.woken);
		pthread_mutex_lock(&pool.lock);
		woken = atomic_load_explicit(&me.woken, memory_order_relaxed);
		if (woken) {
			pool.nr_coming--;
		} else {
			LIST_REMOVE(&me, link);
			pool.nr_idle--;
		}
	}
	return pool.head;
}

static void *worker_thread(void *arg)
{
	pthread_t before;
	bool join;

	(void)arg;
	pthread_setname_np(pthread_self(), "varve-worker");
	pthread_mutex_lock(&pool.lock);
	pool.nr_coming--;
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
		pool.nr_coming++;
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	return started;
}

/* Called with the lock held. Threads that are no longer idle; they sleep until wake() is called without it.
 */
static unsigned pick_idle(_Atomic uint32_t *words[], unsigned max)
{
	unsigned nr = 0;

	while (nr < max && !LIST_EMPTY(&pool.idle)) {
		struct idler *i = LIST_FIRST(&pool.idle);

		LIST_REMOVE(i, link);
		atomic_store_explicit(&i->woken, 1, memory_order_relaxed);
		pool.nr_idle--;
		pool.nr_coming++;
		words[nr++] = &i->woken;
	}
	return nr;
}

/* The thread may be awake already, its word gone: then this wakes nobody, or somebody who looks and sleeps
 * on. */
static void wake(_Atomic uint32_t *words[], unsigned nr)
{
	for (unsigned i = 0; i < nr; i++)
		syscall(SYS_futex, words[i], FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

void worker_submit_all(struct work *head, struct work **tail, unsigned nr)
{
	_Atomic uint32_t *words[WORKER_MAX];
	struct work *mine = NULL;
	unsigned nr_wake = 0;

	pthread_mutex_lock(&pool.lock);
	assert(pool.refs && "work without a queue");
	*pool.tail = head;
	pool.tail = tail;
	pool.nr_queued += nr;
	/* One for each that waits: those on their way, then idle ones, then new ones. */
	if (pool.nr_queued > pool.nr_coming)
		nr_wake = pick_idle(words, MIN(pool.nr_queued - pool.nr_coming, (unsigned)WORKER_MAX));
	while (pool.nr_queued > pool.nr_coming && pool.nr_threads < WORKER_MAX) {
		if (!start_thread())
			break;
	}
	if (!pool.nr_threads) {
		/* Without threads nothing stays in the list, so it holds nothing else. */
		mine = pool.head;
		pool.head = NULL;
		pool.tail = &pool.head;
		pool.nr_queued = 0;
	}
	pthread_mutex_unlock(&pool.lock);
	wake(words, nr_wake);
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
	/* Another thread may be stopping the pool right now. */
	while (pool.stop)
		pthread_cond_wait(&pool.ended, &pool.lock);
	pool.refs++;
	pthread_mutex_unlock(&pool.lock);
}

void workers_unref(void)
{
	_Atomic uint32_t *words[WORKER_MAX];
	pthread_t last;
	bool join;

	pthread_mutex_lock(&pool.lock);
	if (--pool.refs) {
		pthread_mutex_unlock(&pool.lock);
		return;
	}
	assert(!pool.head && "the last queue was freed with work unfinished");
	pool.stop = true;
	/* With the lock held: nobody who is woken can go before all are. */
	wake(words, pick_idle(words, WORKER_MAX));
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
