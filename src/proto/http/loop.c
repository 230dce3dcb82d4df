/* SPDX-License-Identifier: MIT */
/*
 * proto/http/loop.c - libcurl's sockets and timer in the queue's loop
 *
 * Owns:    the multi handle, a watch for each socket that libcurl wants watched, on a descriptor of its own: libcurl may
 *          have closed its own before it says that the socket is to be watched no more.
 * Assumes: the home queue's thread, outside of fibers.
 * Never:   calls into libcurl from one of its own callbacks.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/error.h"
#include "proto/http/http.h"

struct sock {
	struct watch w;
	struct http *h;
	curl_socket_t fd; /* as libcurl calls it; w.fd: the same socket, ours */
	struct sock *next, **prev;
};

static void collect(struct http *h)
{
	CURLMsg *m;
	int left;

	while ((m = lc.multi_info_read(h->multi, &left))) {
		CURL *easy = m->easy_handle;
		CURLcode code = m->data.result; /* m is void after the removal */
		char *private = NULL;

		if (m->msg != CURLMSG_DONE)
			continue;
		lc.easy_getinfo(easy, CURLINFO_PRIVATE, &private);
		lc.multi_remove_handle(h->multi, easy);
		fetch_finished((struct fetch *)private, code);
	}
}

static void act(struct http *h, curl_socket_t fd, int events)
{
	int running;

	lc.multi_socket_action(h->multi, fd, events, &running);
	collect(h);
}

static void sock_ready(struct watch *w, uint32_t events)
{
	struct sock *s = container_of(w, struct sock, w);

	act(s->h, s->fd,
	    (events & EPOLLIN ? CURL_CSELECT_IN : 0) | (events & EPOLLOUT ? CURL_CSELECT_OUT : 0) |
		    (events & (EPOLLERR | EPOLLHUP) ? CURL_CSELECT_ERR : 0));
}

static void sock_free(struct http *h, struct sock *s)
{
	watch_del(h->home, &s->w);
	close(s->w.fd);
	*s->prev = s->next;
	if (s->next)
		s->next->prev = s->prev;
	free(s);
}

static struct sock *sock_new(struct http *h, curl_socket_t fd, uint32_t events)
{
	struct sock *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->h = h;
	s->fd = fd;
	s->w = (struct watch){ .fd = fcntl(fd, F_DUPFD_CLOEXEC, 0), .events = events, .ready = sock_ready };
	if (s->w.fd < 0 || watch_add(h->home, &s->w) < 0) {
		if (s->w.fd >= 0)
			close(s->w.fd);
		free(s);
		return NULL;
	}
	s->next = h->socks;
	s->prev = &h->socks;
	if (s->next)
		s->next->prev = &s->next;
	h->socks = s;
	return s;
}

/* libcurl: this socket is not needed any more. Whoever gets its number next is another one, so ours goes along. */
int http_loop_close(void *arg, curl_socket_t fd)
{
	struct http *h = arg;
	struct sock *s = h->socks;

	while (s && s->fd != fd)
		s = s->next;
	if (s) {
		sock_free(h, s);
		lc.multi_assign(h->multi, fd, NULL);
	}
	return close(fd);
}

/* libcurl: watch this socket so, or no more. */
static int on_socket(CURL *easy, curl_socket_t fd, int what, void *arg, void *sockp)
{
	struct http *h = arg;
	struct sock *s = sockp;
	uint32_t events = (what & CURL_POLL_IN ? EPOLLIN : 0) | (what & CURL_POLL_OUT ? EPOLLOUT : 0);

	(void)easy;
	if (h->unwatched)
		return 0;
	if (what == CURL_POLL_REMOVE) {
		if (s)
			sock_free(h, s);
		return 0;
	}
	if (s) {
		watch_change(h->home, &s->w, events);
		return 0;
	}
	s = sock_new(h, fd, events);
	if (!s)
		return -1; /* libcurl fails its transfers */
	lc.multi_assign(h->multi, fd, s);
	return 0;
}

static void timer_fire(struct timer *t)
{
	act(container_of(t, struct http, timer), CURL_SOCKET_TIMEOUT, 0);
}

static void kick_run(struct msg *m)
{
	struct http *h = container_of(m, struct http, kick);

	h->kicked = false;
	if (h->closing)
		return;
	act(h, CURL_SOCKET_TIMEOUT, 0);
}

/* libcurl: call me in so many milliseconds; -1: no need. Not from here: see "Never". */
static int on_timer(CURLM *multi, long timeout_ms, void *arg)
{
	struct http *h = arg;

	(void)multi;
	timer_cancel(h->home, &h->timer);
	if (h->closing)
		return 0;
	if (timeout_ms > 0) {
		timer_set(h->home, &h->timer, queue_now(h->home) + (uint64_t)timeout_ms * 1000000);
	} else if (timeout_ms == 0 && !h->kicked) {
		h->kicked = true;
		queue_later(h->home, &h->kick);
	}
	return 0;
}

void http_loop_add(struct http *h, CURL *easy)
{
	/* Fails only for a handle that is in a multi handle already. */
	CURLMcode code = lc.multi_add_handle(h->multi, easy);

	assert(code == CURLM_OK);
	(void)code;
}

int http_loop_new(struct http *h, struct varve_error *err)
{
	h->timer.fire = timer_fire;
	h->kick.run = kick_run;
	h->multi = lc.multi_init();
	if (!h->multi || lc.multi_setopt(h->multi, CURLMOPT_SOCKETFUNCTION, on_socket) ||
	    lc.multi_setopt(h->multi, CURLMOPT_SOCKETDATA, h) ||
	    lc.multi_setopt(h->multi, CURLMOPT_TIMERFUNCTION, on_timer) ||
	    lc.multi_setopt(h->multi, CURLMOPT_TIMERDATA, h) ||
	    lc.multi_setopt(h->multi, CURLMOPT_MAX_TOTAL_CONNECTIONS, (long)HTTP_FETCHES_MAX))
		return varve_error_set(err, -ENOMEM, "libcurl cannot be set up");
	return 0;
}

void http_loop_free(struct http *h)
{
	/* While the sockets are open still: libcurl may close them without a word now. */
	while (h->socks)
		sock_free(h, h->socks);
	h->unwatched = true;
	if (h->multi)
		lc.multi_cleanup(h->multi);
	timer_cancel(h->home, &h->timer);
}
