/* SPDX-License-Identifier: MIT */
/*
 * proto/http/fetch.c - one range of the object, with retries
 *
 *   WAITING ──a handle is free──▶ RUNNING ──all bytes──▶ done(0)
 *                                   │ ▲
 *                 some bytes, or a trouble that may pass
 *                                   ▼ │ after a pause, until the deadline
 *                                  PAUSED ──deadline, or a trouble that will not pass──▶ done(error)
 *
 * An answer is believed when it is 206, its Content-Range begins where we asked, ends no later, and names the object's length,
 * and its ETag and Last-Modified are those of the first answer. Nothing is written to memory before that is known.
 *
 * Owns:    the pool of libcurl handles; a fetch from fetch_start() until done().
 * Never:   takes more bytes than asked for, whatever the server sends.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/error.h"
#include "base/iov.h"
#include "proto/http/http.h"

#define PAUSE_MIN_NS 100000000ull
#define PAUSE_MAX_NS 5000000000ull
#define REDIRECTS_MAX 5L
#define RECEIVE_BUFFER 262144L /* bytes taken from a connection by one call */

/* ---- the answer's head ---- */

static void head_begins(struct fetch *ft, const char *line)
{
	const char *sp = strchr(line, ' ');

	/* After a redirect the next answer's head comes: what the one before said is void. */
	ft->status = sp ? strtol(sp, NULL, 10) : 0;
	ft->checked = ft->has_range = ft->empty = false;
	*ft->etag = *ft->modified = 0;
}

static void copy_value(char *to, const char *value)
{
	snprintf(to, HTTP_TAG_MAX, "%s", value);
}

/* "bytes 0-499/1234", "bytes * /0" (without the space). */
static void parse_range(struct fetch *ft, const char *value)
{
	char *end;

	if (strncasecmp(value, "bytes ", 6))
		return;
	value += 6;
	errno = 0;
	if (*value == '*') {
		ft->range_first = 1;
		ft->range_last = 0;
		end = (char *)value + 1;
	} else {
		ft->range_first = strtoull(value, &end, 10);
		if (end == value || *end != '-')
			return;
		value = end + 1;
		ft->range_last = strtoull(value, &end, 10);
		if (end == value)
			return;
	}
	if (*end != '/')
		return;
	value = end + 1;
	ft->range_total = strtoull(value, &end, 10);
	ft->has_range = end != value && !*end && !errno;
}

static size_t on_header(char *data, size_t size, size_t nr, void *arg)
{
	struct fetch *ft = arg;
	size_t len = size * nr;
	char line[HTTP_TAG_MAX + 64], *value;

	/* No header that matters is longer; the cut value of one that is compares unequal to nothing but itself. */
	snprintf(line, sizeof(line), "%.*s", (int)MIN(len, sizeof(line) - 1), data);
	line[strcspn(line, "\r\n")] = 0;
	if (!strncmp(line, "HTTP/", 5)) {
		head_begins(ft, line);
		return len;
	}
	value = strchr(line, ':');
	if (!value)
		return len;
	*value++ = 0;
	value += strspn(value, " \t");
	if (!strcasecmp(line, "content-range"))
		parse_range(ft, value);
	else if (!strcasecmp(line, "content-length"))
		ft->empty = !strcmp(value, "0");
	else if (!strcasecmp(line, "etag"))
		copy_value(ft->etag, value);
	else if (!strcasecmp(line, "last-modified"))
		copy_value(ft->modified, value);
	return len;
}

/* ---- is it what we asked for? ---- */

static int __attribute__((format(printf, 3, 4))) refuse(struct fetch *ft, int error, const char *fmt, ...)
{
	va_list ap;

	ft->refused = true;
	va_start(ap, fmt);
	vsnprintf(ft->h->why, sizeof(ft->h->why), fmt, ap);
	va_end(ap);
	return error;
}

/* 0: go on. -EAGAIN: may pass. Other: will not pass. */
static int judge_status(struct fetch *ft)
{
	if (ft->status == 206)
		return 0;
	if (ft->status == 200)
		return refuse(ft, -ENOTSUP, "the server ignores ranges (status 200 instead of 206)");
	if (ft->status == 404 || ft->status == 410)
		return refuse(ft, -ENOENT, "not found (status %ld)", ft->status);
	if (ft->status == 401 || ft->status == 403 || ft->status == 407)
		return refuse(ft, -EACCES, "access denied (status %ld)", ft->status);
	if (ft->status == 416)
		return refuse(ft, -EIO, "the server has no bytes there (status 416): the object became shorter");
	if (ft->status >= 500 || ft->status == 408 || ft->status == 429) {
		snprintf(ft->h->why, sizeof(ft->h->why), "the server answers with status %ld", ft->status);
		return -EAGAIN;
	}
	return refuse(ft, -EIO, "the server answers with status %ld", ft->status);
}

static int judge(struct fetch *ft)
{
	struct http *h = ft->h;
	int ret = judge_status(ft);

	if (ret < 0)
		return ret;
	if (!ft->has_range || ft->range_first != ft->off + ft->got || ft->range_last < ft->range_first ||
	    ft->range_last >= ft->off + ft->len || ft->range_last >= ft->range_total)
		return refuse(ft, -EIO, "the server's Content-Range is not what was asked for");
	if (!h->known)
		return 0;
	if (ft->range_total != h->len)
		return refuse(ft, -ESTALE, "the object has changed: %llu bytes long, was %llu",
			      (unsigned long long)ft->range_total, (unsigned long long)h->len);
	if (strcmp(ft->etag, h->etag) || strcmp(ft->modified, h->modified))
		return refuse(ft, -ESTALE, "the object has changed: its ETag or Last-Modified is another");
	return 0;
}

static size_t on_body(char *data, size_t size, size_t nr, void *arg)
{
	struct fetch *ft = arg;
	size_t len = size * nr;

	if (!ft->checked) {
		if (judge(ft) < 0)
			return 0; /* ends the transfer; fetch_finished() judges again */
		ft->checked = true;
	}
	if (len > ft->range_last + 1 - (ft->off + ft->got)) {
		refuse(ft, -EIO, "the server sends more than its Content-Range says");
		return 0;
	}
	iov_from_buf(ft->iov, ft->nr_iov, ft->iov_off + ft->got, data, len);
	ft->got += len;
	ft->h->bytes += len;
	return len;
}

/* ---- handles ---- */

static CURL *handle_new(struct http *h)
{
	CURL *e = lc.easy_init();
	bool https = !strncasecmp(h->url, "https:", 6);
	long timeout_ms = (long)(h->timeout_ns / 1000000);
	CURLcode c;

	if (!e)
		return NULL;
	c = lc.easy_setopt(e, CURLOPT_URL, h->url);
	c |= lc.easy_setopt(e, CURLOPT_NOSIGNAL, 1L);
	c |= lc.easy_setopt(e, CURLOPT_CLOSESOCKETFUNCTION, http_loop_close);
	c |= lc.easy_setopt(e, CURLOPT_CLOSESOCKETDATA, h);
	/* A redirect leads nowhere but to http(s), and from https to https only. */
	c |= lc.easy_setopt(e, CURLOPT_PROTOCOLS_STR, "http,https");
	c |= lc.easy_setopt(e, CURLOPT_REDIR_PROTOCOLS_STR, https ? "https" : "http,https");
	c |= lc.easy_setopt(e, CURLOPT_FOLLOWLOCATION, 1L);
	c |= lc.easy_setopt(e, CURLOPT_MAXREDIRS, REDIRECTS_MAX);
	c |= lc.easy_setopt(e, CURLOPT_HTTPHEADER, h->headers);
	c |= lc.easy_setopt(e, CURLOPT_CONNECTTIMEOUT_MS, timeout_ms);
	/* No byte for so long: the server is gone, or as good as. */
	c |= lc.easy_setopt(e, CURLOPT_LOW_SPEED_LIMIT, 1L);
	c |= lc.easy_setopt(e, CURLOPT_LOW_SPEED_TIME, MAX(timeout_ms / 1000, 1));
	c |= lc.easy_setopt(e, CURLOPT_SSL_VERIFYPEER, h->verify ? 1L : 0L);
	c |= lc.easy_setopt(e, CURLOPT_SSL_VERIFYHOST, h->verify ? 2L : 0L);
	if (h->ca_file)
		c |= lc.easy_setopt(e, CURLOPT_CAINFO, h->ca_file);
	if (h->user_password) {
		c |= lc.easy_setopt(e, CURLOPT_USERPWD, h->user_password);
		c |= lc.easy_setopt(e, CURLOPT_HTTPAUTH, CURLAUTH_BASIC | CURLAUTH_DIGEST);
	}
	c |= lc.easy_setopt(e, CURLOPT_BUFFERSIZE, RECEIVE_BUFFER);
	c |= lc.easy_setopt(e, CURLOPT_HEADERFUNCTION, on_header);
	c |= lc.easy_setopt(e, CURLOPT_WRITEFUNCTION, on_body);
	if (c == CURLE_OK)
		return e;
	lc.easy_cleanup(e);
	return NULL;
}

int fetch_pool_new(struct http *h, struct varve_error *err)
{
	TAILQ_INIT(&h->waiting);
	for (unsigned i = 0; i < HTTP_FETCHES_MAX; i++) {
		h->idle[i] = handle_new(h);
		if (!h->idle[i])
			return varve_error_set(err, -ENOMEM, "libcurl cannot make a handle with these options");
		h->nr_idle++;
	}
	return 0;
}

void fetch_pool_free(struct http *h)
{
	while (h->nr_idle)
		lc.easy_cleanup(h->idle[--h->nr_idle]);
}

/* ---- running ---- */

static void run(struct fetch *ft)
{
	struct http *h = ft->h;
	CURL *e = h->idle[--h->nr_idle];

	ft->easy = e;
	ft->refused = ft->checked = false;
	ft->status = 0;
	*ft->error = 0;
	snprintf(ft->range, sizeof(ft->range), "%llu-%llu", (unsigned long long)(ft->off + ft->got),
		 (unsigned long long)(ft->off + ft->len - 1));
	/* These cannot fail: the values are in our memory, or copied with what the handle has already. */
	lc.easy_setopt(e, CURLOPT_RANGE, ft->range);
	lc.easy_setopt(e, CURLOPT_HEADERDATA, ft);
	lc.easy_setopt(e, CURLOPT_WRITEDATA, ft);
	lc.easy_setopt(e, CURLOPT_ERRORBUFFER, ft->error);
	lc.easy_setopt(e, CURLOPT_PRIVATE, ft);
	h->nr_requests++;
	http_loop_add(h, e);
}

static void queue_or_run(struct fetch *ft)
{
	if (ft->h->nr_idle)
		run(ft);
	else
		TAILQ_INSERT_TAIL(&ft->h->waiting, ft, link);
}

void fetch_start(struct fetch *ft)
{
	ft->got = 0;
	ft->attempts = 0;
	ft->easy = NULL;
	ft->deadline_ns = queue_now(ft->h->home) + ft->h->deadline_ns;
	ft->retry = (struct timer){ 0 };
	queue_or_run(ft);
}

static void retry_fire(struct timer *t)
{
	queue_or_run(container_of(t, struct fetch, retry));
}

/* False: the deadline would pass first. */
static bool try_again(struct fetch *ft)
{
	uint64_t now = queue_now(ft->h->home), pause = PAUSE_MIN_NS << MIN(ft->attempts, 6);

	ft->attempts++;
	pause = MIN(pause, PAUSE_MAX_NS);
	if (ft->once || now + pause >= ft->deadline_ns)
		return false;
	ft->h->nr_retries++;
	ft->retry.fire = retry_fire;
	timer_set(ft->h->home, &ft->retry, now + pause);
	return true;
}

/* Certificates, names and malformed URLs do not mend themselves; the network may. */
static bool may_pass(CURLcode code)
{
	switch (code) {
	case CURLE_COULDNT_RESOLVE_PROXY:
	case CURLE_COULDNT_RESOLVE_HOST:
	case CURLE_COULDNT_CONNECT:
	case CURLE_PARTIAL_FILE:
	case CURLE_OPERATION_TIMEDOUT:
	case CURLE_SSL_CONNECT_ERROR:
	case CURLE_GOT_NOTHING:
	case CURLE_SEND_ERROR:
	case CURLE_RECV_ERROR:
	case CURLE_AGAIN:
	case CURLE_HTTP2:
	case CURLE_HTTP2_STREAM:
		return true;
	default:
		return false;
	}
}

static int error_of(CURLcode code)
{
	switch (code) {
	case CURLE_OUT_OF_MEMORY:
		return -ENOMEM;
	case CURLE_OPERATION_TIMEDOUT:
		return -ETIMEDOUT;
	case CURLE_COULDNT_RESOLVE_HOST:
	case CURLE_COULDNT_RESOLVE_PROXY:
		return -EHOSTUNREACH;
	case CURLE_COULDNT_CONNECT:
		return -ECONNREFUSED;
	case CURLE_TOO_MANY_REDIRECTS:
		return -ELOOP;
	default:
		return -EIO;
	}
}

/* 0: all is there; -EAGAIN: go on, or try again; other: the end. */
static int outcome(struct fetch *ft, CURLcode code)
{
	struct http *h = ft->h;
	int ret;

	if (ft->refused) {
		ret = ft->checked ? -EIO : judge(ft);
		return ret < 0 ? ret : -EIO;
	}
	if (ft->got == ft->len)
		return 0;
	/* Whole heads that were no 206 come here without a body, too. */
	if ((code == CURLE_OK || code == CURLE_WRITE_ERROR) && !ft->checked && ft->status) {
		ret = judge(ft);
		return ret < 0 ? ret : -EAGAIN;
	}
	if (code == CURLE_OK) {
		snprintf(h->why, sizeof(h->why), "the server sent %llu bytes of %llu", (unsigned long long)ft->got,
			 (unsigned long long)ft->len);
		return -EAGAIN;
	}
	snprintf(h->why, sizeof(h->why), "%s", *ft->error ? ft->error : lc.easy_strerror(code));
	return may_pass(code) ? -EAGAIN : error_of(code);
}

void fetch_cancel(struct fetch *ft)
{
	struct http *h = ft->h;

	if (ft->easy) {
		lc.multi_remove_handle(h->multi, ft->easy);
		h->idle[h->nr_idle++] = ft->easy;
		ft->easy = NULL;
	} else if (ft->retry.armed) {
		timer_cancel(h->home, &ft->retry);
	} else {
		TAILQ_REMOVE(&h->waiting, ft, link);
	}
}

static void hand_on(struct http *h)
{
	struct fetch *next = TAILQ_FIRST(&h->waiting);

	if (!next || !h->nr_idle)
		return;
	TAILQ_REMOVE(&h->waiting, next, link);
	run(next);
}

void fetch_finished(struct fetch *ft, CURLcode code)
{
	struct http *h = ft->h;
	uint64_t before = ft->range_first; /* of this answer, when it was one */
	int ret = outcome(ft, code);
	bool progress = ft->checked && ft->off + ft->got > before;

	h->idle[h->nr_idle++] = ft->easy;
	ft->easy = NULL;
	hand_on(h);
	if (ret == -EAGAIN && progress && code == CURLE_OK) {
		queue_or_run(ft); /* a shorter range than asked for is allowed: the rest, at once */
		return;
	}
	if (ret == -EAGAIN) {
		if (try_again(ft))
			return;
		ret = code == CURLE_OK ? -EIO : error_of(code);
	}
	ft->done(ft, ret);
}
