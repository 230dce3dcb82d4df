/* SPDX-License-Identifier: MIT */
/*
 * proto/http/http.c - an object on a web server as a file to read: http and https, through libcurl
 *
 * Requests of other queues come to the home queue and go back from there: what the network takes is so much longer that a
 * message does not matter, and one place knows what has been fetched.
 *
 * Owns:    struct http of the node.
 * Never:   answers with bytes of an object that is not the one that was opened (fetch.c compares), sends cookies, or
 *          trusts a certificate that does not verify, unless told so.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <jansson.h>

#include "base/error.h"
#include "base/iov.h"
#include "base/log.h"
#include "base/opts.h"
#include "config.h"
#include "proto/http/http.h"
#include "proto/proto.h"

#define AUTH_FILE_MAX 4096
#define AHEAD_DEFAULT MiB(16)
#define AHEAD_MAX GiB(1)

/* ---- options ---- */

/* "user:password" in the first line of a file, so that it is in no list of processes and in no shell history. */
static int read_auth(struct http *h, const char *path, struct varve_error *err)
{
	char line[AUTH_FILE_MAX];
	FILE *file = fopen(path, "re");
	bool ok;

	if (!file)
		return varve_error_errno(err, -errno, "option auth-file: %s", path);
	ok = fgets(line, sizeof(line), file);
	fclose(file);
	if (!ok)
		return varve_error_set(err, -EINVAL, "option auth-file: %s is empty", path);
	line[strcspn(line, "\r\n")] = 0;
	ok = strchr(line, ':');
	h->user_password = ok ? strdup(line) : NULL;
	explicit_bzero(line, sizeof(line));
	if (!ok)
		return varve_error_set(err, -EINVAL, "option auth-file: the first line of %s is not USER:PASSWORD", path);
	return h->user_password ? 0 : varve_error_errno(err, -ENOMEM, "option auth-file");
}

static int get_seconds(struct opts *o, const char *key, uint64_t *ret_ns, struct varve_error *err)
{
	uint64_t seconds = *ret_ns / 1000000000;
	int ret = opts_get_u64(o, key, &seconds, err);

	if (ret < 0)
		return ret;
	if (!seconds || seconds > 86400)
		return varve_error_set(err, -EINVAL, "option %s: %llu is not from 1 to 86400 (seconds)", key,
				       (unsigned long long)seconds);
	*ret_ns = seconds * 1000000000;
	return 0;
}

static int get_options(struct http *h, struct opts *o, struct varve_error *err)
{
	const char *url = opts_get(o, "filename"), *ca = opts_get(o, "ca-file"), *auth = opts_get(o, "auth-file");
	int ret;

	h->verify = true;
	h->timeout_ns = 10000000000;
	h->deadline_ns = 60000000000;
	h->ahead_max = AHEAD_DEFAULT;
	if (!url || (strncmp(url, "http://", 7) && strncmp(url, "https://", 8)))
		return varve_error_set(err, -EINVAL, "option filename must begin with http:// or https://");
	if (strchr(url, '@') && strchr(url, '@') < url + strcspn(url + 8, "/") + 8)
		return varve_error_set(err, -EINVAL, "a password in the URL would be in every log; use auth-file=FILE");
	h->url = strdup(url);
	h->ca_file = ca ? strdup(ca) : NULL;
	if (!h->url || (ca && !h->ca_file))
		return varve_error_errno(err, -ENOMEM, "options");
	if ((ret = opts_get_bool(o, "sslverify", &h->verify, err)) < 0 ||
	    (ret = get_seconds(o, "timeout", &h->timeout_ns, err)) < 0 ||
	    (ret = get_seconds(o, "deadline", &h->deadline_ns, err)) < 0 ||
	    (ret = opts_get_size(o, "readahead", &h->ahead_max, err)) < 0)
		return ret;
	if (h->ahead_max > AHEAD_MAX || (h->ahead_max && h->ahead_max < MiB(2)))
		return varve_error_set(err, -EINVAL, "option readahead: %llu is neither 0 nor from 2 MiB to 1 GiB",
				       (unsigned long long)h->ahead_max);
	return auth ? read_auth(h, auth, err) : 0;
}

/* ---- open, close: by messages, because fibers have small stacks ---- */

struct setup {
	struct msg msg;
	struct http *h;
	struct fiber *f;
	struct varve_error *err;
	struct fetch probe;
	struct iovec iov;
	uint8_t byte;
	int ret;
	bool done;
};

static void setup_end(struct setup *s, int ret)
{
	s->ret = ret;
	s->done = true;
	fiber_wake(s->f);
}

static void probe_done(struct fetch *ft, int ret)
{
	struct setup *s = container_of(ft, struct setup, probe);
	struct http *h = s->h;

	/* An empty object has no first byte: some servers say 416, some send all of it. */
	if ((ft->status == 416 && ft->has_range && ft->range_total == 0) || (ft->status == 200 && ft->empty)) {
		ft->range_total = 0;
		ret = 0;
	}
	if (ret == 0 && ft->range_total > VARVE_LEN_MAX)
		ret = varve_error_set(s->err, -EFBIG, "an object of %llu bytes is too large",
				      (unsigned long long)ft->range_total);
	else if (ret < 0)
		varve_error_set(s->err, ret, "%s", h->why);
	if (ret == 0) {
		h->len = ft->range_total;
		memcpy(h->etag, ft->etag, sizeof(h->etag));
		memcpy(h->modified, ft->modified, sizeof(h->modified));
		h->known = true;
	}
	setup_end(s, ret);
}

static void setup_run(struct msg *m)
{
	struct setup *s = container_of(m, struct setup, msg);
	struct http *h = s->h;
	int ret = http_loop_new(h, s->err);

	if (ret == 0)
		ret = fetch_pool_new(h, s->err);
	if (ret < 0) {
		setup_end(s, ret);
		return;
	}
	s->iov = (struct iovec){ &s->byte, 1 };
	s->probe = (struct fetch){ .h = h, .off = 0, .len = 1, .iov = &s->iov, .nr_iov = 1, .done = probe_done, .once = true };
	fetch_start(&s->probe);
}

static void teardown_run(struct msg *m)
{
	struct setup *s = container_of(m, struct setup, msg);
	struct http *h = s->h;

	h->closing = true;
	ahead_free(h);
	fetch_pool_free(h);
	http_loop_free(h);
	setup_end(s, 0);
}

static int run_and_wait(struct fiber *f, struct http *h, void (*run)(struct msg *m), struct varve_error *err)
{
	struct setup s = { .msg.run = run, .h = h, .f = f, .err = err };

	queue_later(h->home, &s.msg);
	while (!s.done)
		fiber_wait(f);
	return s.ret;
}

static void http_close(struct fiber *f, struct node *n)
{
	struct http *h = node_state(n);

	if (h->multi)
		run_and_wait(f, h, teardown_run, NULL);
	while (h->kicked)
		fiber_yield(f);
	if (h->headers)
		lc.slist_free_all(h->headers);
	if (h->user_password)
		explicit_bzero(h->user_password, strlen(h->user_password));
	free(h->user_password);
	free(h->ca_file);
	free(h->url);
}

static int http_open(struct fiber *f, struct node *n, struct opts *o, struct varve_error *err)
{
	struct http *h = node_state(n);
	int ret;

	h->node = n;
	h->home = n->home;
	TAILQ_INIT(&h->segments);
	TAILQ_INIT(&h->waiting);
	if (n->flags & NODE_WRITABLE)
		return varve_error_set(err, -EROFS, "objects on web servers can only be read");
	ret = get_options(h, o, err);
	if (ret == 0)
		ret = libcurl_load(err);
	if (ret == 0) {
		h->headers = lc.slist_append(NULL, "User-Agent: varve/" VARVE_VERSION);
		ret = h->headers ? run_and_wait(f, h, setup_run, err) : varve_error_errno(err, -ENOMEM, "options");
	}
	if (ret < 0) {
		http_close(f, n);
		return ret;
	}
	n->fixed_len = true;
	atomic_store_explicit(&n->len, h->len, memory_order_relaxed);
	return 0;
}

/* ---- requests ---- */

static void answer_run(struct msg *m)
{
	struct req *r = container_of(m, struct req, msg);

	req_done(r, r->ret);
}

static void answer(struct req *r, int ret)
{
	r->ret = ret;
	r->msg.run = answer_run;
	queue_post(r->q, &r->msg);
}

static void complain_once(struct http *h, int ret)
{
	if (h->told)
		return;
	h->told = true;
	log_error("%s: %s (%s); further failures are counted only", node_name(h->node), h->why, strerror(-ret));
}

void http_read_part(struct http_read *hr, int ret)
{
	if (ret < 0 && hr->ret == 0)
		hr->ret = ret;
	if (--hr->pending)
		return;
	if (hr->ret < 0)
		complain_once(hr->h, hr->ret);
	answer(hr->r, hr->ret);
	free(hr);
}

static void part_done(struct fetch *ft, int ret)
{
	http_read_part(ft->read, ret);
}

static void read_run(struct msg *m)
{
	struct req *r = container_of(m, struct req, msg);
	struct node *n = r->at;
	struct http *h = node_state(n);
	uint64_t end = MIN(r->off + r->len, h->len), off = r->off, next;
	/* Between two segments lies at least one part; and each part is full but for the last before a segment. */
	unsigned max = (unsigned)(r->len / HTTP_PART_LEN + 2 * (h->ahead_bytes / KiB(4)) + 4), nr = 0;
	struct http_read *hr = malloc(sizeof(*hr) + MIN(max, 4096u) * sizeof(hr->parts[0]));

	max = MIN(max, 4096u);
	if (!hr) {
		answer(r, -ENOMEM);
		return;
	}
	*hr = (struct http_read){ .h = h, .r = r, .pending = 1 };
	if (r->off + r->len > end) /* behind the end of the object: a last sector that it holds a part of */
		iov_fill(r->iov, r->nr_iov, MAX(end, r->off) - r->off, 0, r->off + r->len - MAX(end, r->off));
	while (off < end && hr->ret == 0) {
		uint64_t len = ahead_serve(h, hr, off, end, &next);
		struct fetch *ft;

		if (len) {
			off += len;
			continue;
		}
		if (nr == max) { /* cannot be, but memory must hold it */
			hr->ret = -EIO;
			break;
		}
		len = MIN(next - off, HTTP_PART_LEN);
		ft = &hr->parts[nr++];
		*ft = (struct fetch){ .h = h, .off = off, .len = len, .iov = r->iov, .nr_iov = r->nr_iov,
				      .iov_off = off - r->off, .done = part_done, .read = hr };
		hr->pending++;
		fetch_start(ft);
		off += len;
	}
	ahead_note(h, r->off, r->len);
	http_read_part(hr, 0);
}

static void http_submit(struct node *n, struct req *r)
{
	struct http *h = node_state(n);

	r->at = n;
	if (r->op == REQ_FLUSH) {
		answer(r, 0);
		return;
	}
	if (r->op != REQ_READ) {
		answer(r, -EROFS);
		return;
	}
	r->msg.run = read_run;
	queue_post(h->home, &r->msg);
}

static int64_t http_get_len(struct fiber *f, struct node *n)
{
	(void)f;
	return (int64_t)node_len(n);
}

static void http_stats(struct node *n, void *json_stats)
{
	struct http *h = node_state(n);

	json_object_set_new(json_stats, "http",
			    json_pack("{s:I, s:I, s:I}", "requests", (json_int_t)h->nr_requests, "retries",
				      (json_int_t)h->nr_retries, "bytes", (json_int_t)h->bytes));
}

static int http_parse_name(const char *name, struct opts *o, struct varve_error *err)
{
	char url[NODE_NAME_MAX + 8];

	snprintf(url, sizeof(url), "http:%s", name);
	return opts_set(o, "filename", url, err);
}

static int https_parse_name(const char *name, struct opts *o, struct varve_error *err)
{
	char url[NODE_NAME_MAX + 8];

	snprintf(url, sizeof(url), "https:%s", name);
	return opts_set(o, "filename", url, err);
}

static const struct varve_option_info open_options[] = {
	{ "filename", "str", "the URL", false },
	{ "timeout", "num", "seconds without a byte after which a connection counts as dead (10)", false },
	{ "deadline", "num", "seconds for one request with all its tries (60)", false },
	{ "readahead", "size", "memory for reading ahead (16M; 0: off)", false },
	{ "auth-file", "file", "its first line is USER:PASSWORD", false },
	{ "ca-file", "file", "certificates to trust, instead of the system's", false },
	{ "sslverify", "bool", "off: any certificate will do (on)", false },
	{ NULL, NULL, NULL, false },
};

const struct driver driver_http = {
	.name = "http",
	.kind = DRIVER_LEAF,
	.state_len = sizeof(struct http),
	.prefix = "http:",
	.parse_name = http_parse_name,
	.open_options = open_options,
	.open = http_open,
	.close = http_close,
	.submit = http_submit,
	.get_len = http_get_len,
	.stats = http_stats,
};

const struct driver driver_https = {
	.name = "https",
	.kind = DRIVER_LEAF,
	.state_len = sizeof(struct http),
	.prefix = "https:",
	.parse_name = https_parse_name,
	.open_options = open_options,
	.open = http_open,
	.close = http_close,
	.submit = http_submit,
	.get_len = http_get_len,
	.stats = http_stats,
};
