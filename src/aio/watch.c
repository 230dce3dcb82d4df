/* SPDX-License-Identifier: MIT */
/*
 * aio/watch.c - file descriptors: epoll, and the descriptor for those who embed the queue
 *
 * Owns:    the epoll set, the events that were fetched and not yet delivered, poll_fd and timer_fd.
 * Assumes: a watch is removed before its descriptor is closed.
 * Never:   delivers an event to a watch that was removed.
 *
 * The event fd is registered edge-triggered: it never needs to be read.
 */
#include <errno.h>
#include <limits.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "aio/loop.h"

int watch_add(struct queue *q, struct watch *w)
{
	struct epoll_event ev = { .events = w->events, .data.ptr = w };

	assert(queue_is_mine(q));
	w->direct = 0;
	if ((w->events & EPOLLET) && q->watch && q->watch(q->wait_ctx, w))
		return 0;
	q->stats.syscalls++;
	if (epoll_ctl(q->epoll_fd, EPOLL_CTL_ADD, w->fd, &ev) < 0)
		return -errno;
	q->nr_watches++;
	return 0;
}

void watch_change(struct queue *q, struct watch *w, uint32_t events)
{
	struct epoll_event ev = { .events = events, .data.ptr = w };
	int ret;

	assert(queue_is_mine(q) && !w->direct);
	if (w->events == events)
		return;
	w->events = events;
	q->stats.syscalls++;
	ret = epoll_ctl(q->epoll_fd, EPOLL_CTL_MOD, w->fd, &ev);
	assert(ret == 0 && "watch_change() of a descriptor that is not watched");
	(void)ret;
}

void watch_del(struct queue *q, struct watch *w)
{
	int ret;

	assert(queue_is_mine(q));
	if (w->direct) {
		q->unwatch(q->wait_ctx, w);
		return;
	}
	q->stats.syscalls++;
	ret = epoll_ctl(q->epoll_fd, EPOLL_CTL_DEL, w->fd, NULL);
	assert(ret == 0 && "watch_del() of a descriptor that is not watched, or closed already");
	(void)ret;
	q->nr_watches--;
	for (unsigned i = q->event_pos; i < q->nr_events; i++) {
		if (q->events[i].data.ptr == w)
			q->events[i].data.ptr = NULL;
	}
}

int watches_event_fd(struct queue *q, bool watched)
{
	struct epoll_event ev = { .events = EPOLLIN | EPOLLET, .data.ptr = NULL };

	return epoll_ctl(q->epoll_fd, watched ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, q->event_fd, &ev) < 0 ? -errno
												     : 0;
}

/* ---- fetching and delivering ---- */

static void fetched(struct queue *q, int n)
{
	q->event_pos = 0;
	q->nr_events = n > 0 ? (unsigned)n : 0; /* n < 0: a signal; the next turn looks again */
	q->fds_ready = n == QUEUE_EVENTS;
}

bool watches_run(struct queue *q)
{
	bool any = false;

	if (q->event_pos == q->nr_events) {
		if (likely(!q->fds_ready))
			return false;
		q->stats.syscalls++;
		fetched(q, epoll_wait(q->epoll_fd, q->events, QUEUE_EVENTS, 0));
	}
	while (q->event_pos < q->nr_events) {
		const struct epoll_event *ev = &q->events[q->event_pos++];
		struct watch *w = ev->data.ptr;

		if (!w)
			continue; /* removed meanwhile, or the event fd */
		q->stats.fd_events++;
		any = true;
		w->ready(w, ev->events);
	}
	return any;
}

static int wait_ns(struct queue *q, int64_t timeout_ns)
{
	int64_t ms;

#ifdef SYS_epoll_pwait2
	if (timeout_ns > 0 && !q->no_pwait2) {
		struct timespec ts = { timeout_ns / 1000000000, timeout_ns % 1000000000 };
		long n = syscall(SYS_epoll_pwait2, q->epoll_fd, q->events, QUEUE_EVENTS, &ts, NULL, 0);

		if (n >= 0 || errno != ENOSYS)
			return (int)n;
		q->no_pwait2 = true;
	}
#endif
	/* Rounded up: a wait that ends early would turn the loop until the timer is due. */
	ms = timeout_ns < 0 ? -1 : timeout_ns / 1000000 + (timeout_ns % 1000000 != 0);
	return epoll_wait(q->epoll_fd, q->events, QUEUE_EVENTS, (int)MIN(ms, INT_MAX));
}

void watches_wait(struct queue *q, int64_t timeout_ns)
{
	assert(q->event_pos == q->nr_events);
	/* Messages are seen in the inbox; without watches the kernel has nothing to tell. */
	if (!timeout_ns && !q->nr_watches && q->poll_fd < 0)
		return;
	q->stats.syscalls++;
	fetched(q, wait_ns(q, timeout_ns));
}

int watches_set_wait(struct queue *q, void (*wait)(void *ctx, int64_t timeout_ns), void *ctx, int fd)
{
	int ret;

	if (q->poll_fd >= 0) {
		struct epoll_event ev = { .events = EPOLLIN };

		if (epoll_ctl(q->poll_fd, wait ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, wait ? fd : q->wait_fd, &ev) <
		    0)
			return -errno;
	}
	ret = watches_event_fd(q, !wait);
	if (ret < 0)
		return ret;
	q->wait = wait;
	q->wait_ctx = ctx;
	q->wait_fd = wait ? fd : -1;
	return 0;
}

/* ---- embedding ---- */

static int poll_fd_add(struct queue *q, int fd)
{
	struct epoll_event ev = { .events = EPOLLIN };

	return epoll_ctl(q->poll_fd, EPOLL_CTL_ADD, fd, &ev) < 0 ? -errno : 0;
}

int queue_poll_fd(struct queue *q)
{
	int ret;

	assert(!q->own_thread && "queue_poll_fd() of a queue that has its own thread");
	assert(!q->only && "queue_poll_fd() of a queue made to be run by one thread");
	assert(queue_is_mine(q));
	if (q->poll_fd >= 0)
		return q->poll_fd;
	q->poll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (q->poll_fd < 0)
		return -errno;
	q->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	ret = q->timer_fd < 0 ? -errno : poll_fd_add(q, q->timer_fd);
	if (ret == 0)
		ret = poll_fd_add(q, q->epoll_fd);
	if (ret == 0 && q->wait_fd >= 0)
		ret = poll_fd_add(q, q->wait_fd);
	if (ret == 0) {
		if (!q->in_turn)
			loop_embed(q);
		loop_signal(q); /* readable: there may be work that no turn has seen yet */
		return q->poll_fd;
	}
	if (q->timer_fd >= 0)
		close(q->timer_fd);
	close(q->poll_fd);
	q->poll_fd = q->timer_fd = -1;
	return ret;
}

void watches_embed(struct queue *q)
{
	struct itimerspec its = { 0 };
	uint64_t when = 0;

	if (q->wait)
		q->wait(q->wait_ctx, 0);
	if (!q->virtual_time && timers_next(q, &when) && !when)
		when = 1; /* 0 would switch it off */
	if (q->virtual_time || when == q->timer_fd_ns)
		return;
	q->timer_fd_ns = when;
	its.it_value.tv_sec = (time_t)(when / 1000000000);
	its.it_value.tv_nsec = (long)(when % 1000000000);
	q->stats.syscalls++;
	timerfd_settime(q->timer_fd, TFD_TIMER_ABSTIME, &its, NULL);
}
