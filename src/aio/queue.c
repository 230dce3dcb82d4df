/* SPDX-License-Identifier: MIT */
/*
 * aio/queue.c - the life of a queue: making, freeing, its thread, hooks and slots
 *
 * Owns:    the ids of all queues of the process, the queue's file descriptors and its thread.
 * Assumes: queue_free() is called when nothing is in flight; this is checked.
 * Never:   runs work itself: that is turn.c.
 */
#include <ctype.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "aio/loop.h"
#include "base/error.h"

static_assert(offsetof(struct queue, head) == 0, "queue_id() and queue_now() find it there");

/* ---- ids ---- */

static pthread_mutex_t ids_lock = PTHREAD_MUTEX_INITIALIZER;
static bool ids_used[QUEUE_MAX];

static int id_take(unsigned *ret_id)
{
	int ret = -EMFILE;

	pthread_mutex_lock(&ids_lock);
	for (unsigned i = 0; i < QUEUE_MAX && ret < 0; i++) {
		if (!ids_used[i]) {
			ids_used[i] = true;
			*ret_id = i;
			ret = 0;
		}
	}
	pthread_mutex_unlock(&ids_lock);
	return ret;
}

static void id_give(unsigned id)
{
	pthread_mutex_lock(&ids_lock);
	ids_used[id] = false;
	pthread_mutex_unlock(&ids_lock);
}

/* ---- which thread is this ---- */

/* initial-exec: without a call for each look at them. That a library loaded later has room for a few bytes is usual. */
#define OWN_TLS __attribute__((tls_model("initial-exec")))
static _Thread_local const void *self_override OWN_TLS;
static _Thread_local char self_address OWN_TLS;

const void *thread_self(void)
{
	return self_override ? self_override : &self_address;
}

void thread_set_self(const void *self)
{
	self_override = self;
}

bool queue_is_mine(const struct queue *q)
{
	const void *runner = atomic_load_explicit(&q->runner, memory_order_relaxed);

	return runner == thread_self() || (!runner && !q->own_thread);
}

/* ---- the queue's own thread ---- */

struct thread_start {
	struct queue *q;
	pthread_mutex_t lock;
	pthread_cond_t cond;
	bool running;
};

/*
 * The embedder's handlers run on the embedder's threads. Not so for signals that a thread brings upon itself: the kernel
 * ends the process when one of these is blocked, and SIGBUS can be survived (export/).
 */
void thread_signals(sigset_t *ret_blocked)
{
	static const int own[] = { SIGBUS, SIGSEGV, SIGFPE, SIGILL, SIGTRAP };

	sigfillset(ret_blocked);
	for (unsigned i = 0; i < ARRAY_LEN(own); i++)
		sigdelset(ret_blocked, own[i]);
}

static void *queue_thread(void *arg)
{
	struct thread_start *start = arg;
	struct queue *q = start->q;
	char name[16];

	snprintf(name, sizeof(name), "%.15s", q->name);
	pthread_setname_np(pthread_self(), name);
	atomic_store_explicit(&q->runner, thread_self(), memory_order_relaxed);

	pthread_mutex_lock(&start->lock);
	start->running = true;
	pthread_cond_signal(&start->cond);
	pthread_mutex_unlock(&start->lock);

	loop_enter(q);
	loop_run(q, &q->stop);
	while (loop_work(q))
		;
	/* Here and not in queue_free(): a thread that ends cancels what its ring still waits for. */
	engines_detach(q);
	loop_leave(q);
	return NULL;
}

/* "0-3,8". */
static int parse_cpus(const char *text, cpu_set_t *ret, struct varve_error *err)
{
	const char *at = text;

	CPU_ZERO(ret);
	do {
		char *end;
		unsigned long first, last;

		first = last = isdigit((unsigned char)*at) ? strtoul(at, &end, 10) : CPU_SETSIZE;
		if (first < CPU_SETSIZE && *end == '-')
			last = isdigit((unsigned char)end[1]) ? strtoul(end + 1, &end, 10) : CPU_SETSIZE;
		if (first >= CPU_SETSIZE || last >= CPU_SETSIZE || last < first || (*end && *end != ','))
			return varve_error_set(err, -EINVAL, "'%.100s' is no list of processors, as in 0-3,8", text);
		for (; first <= last; first++)
			CPU_SET(first, ret);
		at = *end ? end + 1 : NULL;
	} while (at);
	return 0;
}

static int queue_start_thread(struct queue *q, const char *cpus, struct varve_error *err)
{
	struct thread_start start = { .q = q };
	sigset_t all, old;
	pthread_attr_t attr;
	cpu_set_t set;
	int ret = cpus ? parse_cpus(cpus, &set, err) : 0;

	if (ret < 0)
		return ret;
	pthread_attr_init(&attr);
	if (cpus)
		pthread_attr_setaffinity_np(&attr, sizeof(set), &set);
	pthread_mutex_init(&start.lock, NULL);
	pthread_cond_init(&start.cond, NULL);
	thread_signals(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	ret = pthread_create(&q->thread, &attr, queue_thread, &start);
	pthread_attr_destroy(&attr);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (ret) {
		ret = varve_error_errno(err, -ret, "queue %s: cannot start a thread%s%s", q->name,
					cpus ? " on processors " : "", cpus ? cpus : "");
	} else {
		/* Until then queue_is_mine() could say yes to this thread. */
		pthread_mutex_lock(&start.lock);
		while (!start.running)
			pthread_cond_wait(&start.cond, &start.lock);
		pthread_mutex_unlock(&start.lock);
	}
	pthread_cond_destroy(&start.cond);
	pthread_mutex_destroy(&start.lock);
	return ret;
}

/* ---- making and freeing ---- */

static void queue_close_fds(struct queue *q)
{
	const int fds[] = { q->epoll_fd, q->event_fd, q->poll_fd, q->timer_fd };

	for (unsigned i = 0; i < ARRAY_LEN(fds); i++) {
		if (fds[i] >= 0)
			close(fds[i]);
	}
}

static int queue_open_fds(struct queue *q, struct varve_error *err)
{
	q->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (q->epoll_fd < 0)
		return varve_error_errno(err, -errno, "queue %s: cannot make an epoll descriptor", q->name);
	/* Blocking, because io_uring answers EAGAIN for a read of a non-blocking one instead of waiting. */
	q->event_fd = eventfd(0, EFD_CLOEXEC);
	if (q->event_fd < 0 || watches_event_fd(q, true) < 0)
		return varve_error_errno(err, -errno, "queue %s: cannot make an event descriptor", q->name);
	return 0;
}

int queue_new(struct queue **ret_q, const struct queue_opts *opts, struct varve_error *err)
{
	struct queue *q = aligned_alloc(64, align_up(sizeof(*q), 64));
	int ret;

	if (!q)
		return varve_error_set(err, -ENOMEM, "out of memory for a queue");
	memset(q, 0, sizeof(*q));
	q->at_once.slow_ns = AT_ONCE_SLOW_NS;
	snprintf(q->name, sizeof(q->name), "%s", opts && opts->name ? opts->name : "varve");
	q->virtual_time = opts && opts->virtual_time;
	q->only = opts && opts->one_thread ? thread_self() : NULL;
	q->later.tail = &q->later.head;
	q->epoll_fd = q->event_fd = q->poll_fd = q->timer_fd = q->wait_fd = -1;
	TAILQ_INIT(&q->hooks);
	TAILQ_INIT(&q->poll.pollers);
	if (opts && opts->own_thread && opts->poll_ns) {
		q->poll.max_ns = opts->poll_ns;
		q->poll.adaptive = opts->poll_adaptive;
		spin_init(&q->poll.learnt, opts->poll_ns);
		q->poll.now_ns = opts->poll_adaptive ? 0 : opts->poll_ns;
	}
	ret = fibers_init(q);
	if (ret < 0) {
		free(q);
		return varve_error_set(err, ret, "out of memory for the stacks of a queue");
	}
	loop_clock(q);
	ret = id_take(&q->head.id);
	if (ret < 0) {
		fibers_free(q);
		free(q);
		return varve_error_set(err, ret, "more than %d queues at once", QUEUE_MAX);
	}
	workers_ref();
	ret = queue_open_fds(q, err);
	if (ret == 0 && opts && opts->own_thread) {
		q->own_thread = true;
		ret = queue_start_thread(q, opts->cpus, err);
	}
	if (ret < 0) {
		queue_close_fds(q);
		workers_unref();
		id_give(q->head.id);
		q->own_thread = false; /* none was started */
		fibers_free(q);
		free(q);
		return ret;
	}
	*ret_q = q;
	return 0;
}

static void queue_stop_thread(struct queue *q)
{
	assert(!queue_is_mine(q) && "a queue cannot be freed by its own thread");
	atomic_store_explicit(&q->stop, true, memory_order_relaxed);
	queue_kick(q);
	pthread_join(q->thread, NULL);
	q->own_thread = false;
	atomic_store_explicit(&q->runner, NULL, memory_order_relaxed);
}

void queue_free(struct queue *q)
{
	if (!q)
		return;
	if (q->own_thread)
		queue_stop_thread(q);
	assert(!q->in_turn && "queue freed from inside a turn");
	for (unsigned i = 0; i < QUEUE_SLOTS; i++) {
		if (q->slots[i].destroy)
			q->slots[i].destroy(q->slots[i].p);
	}
	engines_detach(q);
	memory_free(q);
	fibers_free(q);
	/*
	 * The thread that posted the last message may still be on its way out of queue_post(). Pairs with the
	 * release there; a matter of nanoseconds, unless it was preempted.
	 */
	while (atomic_load_explicit(&q->posters, memory_order_acquire))
		sched_yield();
	assert(!atomic_load_explicit(&q->inbox, memory_order_relaxed) && !q->later.head &&
	       "queue freed with undelivered messages");
	assert(!q->timers && "queue freed with a timer armed");
	assert(!q->nr_watches && "queue freed with a file descriptor watched");
	assert(TAILQ_EMPTY(&q->hooks) && "queue freed with a hook");
	queue_close_fds(q);
	workers_unref();
	id_give(q->head.id);
	free(q);
}

const char *queue_name(const struct queue *q)
{
	return q->name;
}

bool queue_has_thread(const struct queue *q)
{
	return q->own_thread;
}

void queue_advance(struct queue *q, uint64_t ns)
{
	assert(q->virtual_time && queue_is_mine(q));
	q->head.now_ns += ns;
}

const struct queue_stats *queue_stats(const struct queue *q)
{
	return &q->stats;
}

void queue_progress(struct queue *q, uint64_t nr)
{
	q->poll.done += nr;
}

void queue_turns(const struct queue *q, struct queue_turns *ret)
{
	ret->turns = __atomic_load_n(&q->stats.turns, __ATOMIC_RELAXED);
	ret->waits = __atomic_load_n(&q->stats.waits, __ATOMIC_RELAXED);
	ret->spins = __atomic_load_n(&q->stats.spins, __ATOMIC_RELAXED);
	ret->spins_paid = __atomic_load_n(&q->stats.spins_paid, __ATOMIC_RELAXED);
	ret->spinning = __atomic_load_n(&q->poll.now_ns, __ATOMIC_RELAXED);
}

/* ---- hooks, slots ---- */

bool queue_awaits(const struct queue *q)
{
	return q->nr_outside;
}

bool queue_idle(const struct queue *q)
{
	return !q->nr_outside && q->work_done == q->work_before;
}

void hook_add(struct queue *q, struct hook *h)
{
	assert(queue_is_mine(q));
	TAILQ_INSERT_TAIL(&q->hooks, h, link);
}

void hook_del(struct queue *q, struct hook *h)
{
	assert(queue_is_mine(q));
	if (q->hook_next == h)
		q->hook_next = TAILQ_NEXT(h, link);
	TAILQ_REMOVE(&q->hooks, h, link);
}

void *queue_slot_get(const struct queue *q, enum queue_slot slot)
{
	return q->slots[slot].p;
}

void queue_slot_set(struct queue *q, enum queue_slot slot, void *p, void (*destroy)(void *p))
{
	q->slots[slot].p = p;
	q->slots[slot].destroy = destroy;
}
