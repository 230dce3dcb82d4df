/* SPDX-License-Identifier: MIT */
/*
 * proto/http/http.h - what the parts of the http driver share
 *
 *   http.c    the driver: options, open, requests in and out
 *   fetch.c   one range of the object, with retries; what the server's answer must say to be believed
 *   loop.c    libcurl's sockets and timer in the queue's loop
 *   libcurl.c libcurl's functions, found when they are needed
 *   ahead.c   read-ahead for sequential readers
 *
 * Everything but http_submit() happens on the home queue, outside of fibers (their stacks are small, and TLS is not).
 */
#ifndef VARVE_HTTP_H
#define VARVE_HTTP_H

#include <curl/curl.h>

#include "block/node.h"

#define HTTP_FETCHES_MAX 16 /* in flight for one node; more wait in order of arrival */
#define HTTP_PART_LEN MiB(1) /* longer requests are fetched in parallel parts */
#define HTTP_TAG_MAX 256     /* ETag and Last-Modified, longer ones are cut: compared as far as they go */

struct http;
struct http_read;

/* ---- libcurl.c ---- */

struct libcurl {
	CURLcode (*global_init)(long flags);
	CURL *(*easy_init)(void);
	void (*easy_cleanup)(CURL *easy);
	CURLcode (*easy_setopt)(CURL *easy, CURLoption option, ...);
	CURLcode (*easy_getinfo)(CURL *easy, CURLINFO info, ...);
	const char *(*easy_strerror)(CURLcode code);
	CURLM *(*multi_init)(void);
	CURLMcode (*multi_cleanup)(CURLM *multi);
	CURLMcode (*multi_setopt)(CURLM *multi, CURLMoption option, ...);
	CURLMcode (*multi_add_handle)(CURLM *multi, CURL *easy);
	CURLMcode (*multi_remove_handle)(CURLM *multi, CURL *easy);
	CURLMcode (*multi_socket_action)(CURLM *multi, curl_socket_t fd, int events, int *running);
	CURLMsg *(*multi_info_read)(CURLM *multi, int *left);
	CURLMcode (*multi_assign)(CURLM *multi, curl_socket_t fd, void *sockp);
	struct curl_slist *(*slist_append)(struct curl_slist *list, const char *text);
	void (*slist_free_all)(struct curl_slist *list);
};

extern struct libcurl lc; /* after libcurl_load() has returned 0 */

/* Any thread. -ENOSYS: there is none. */
int libcurl_load(struct varve_error *err);

/* ---- fetch.c ---- */

/*
 * [off, off + len) of the object into memory. The owner fills the first part; done() is called once, from the loop: 0,
 * or a negative errno with h->why. The memory may hold some of the bytes when it fails, never wrong ones.
 */
struct fetch {
	struct http *h;
	uint64_t off, len;
	const struct iovec *iov;
	unsigned nr_iov;
	uint64_t iov_off; /* where in the vector the first byte goes */
	void (*done)(struct fetch *ft, int ret);
	struct http_read *read; /* of http.c's parts */
	bool once;		/* no second try: who opens a disk wants to know at once */

	/* fetch.c */
	TAILQ_ENTRY(fetch) link; /* waiting for a handle */
	CURL *easy;
	uint64_t got;
	uint64_t deadline_ns;
	unsigned attempts;
	struct timer retry;
	char range[48];
	char error[CURL_ERROR_SIZE];
	/* of the answer that is coming in */
	long status;
	bool checked, refused;
	bool has_range, empty; /* empty: "Content-Length: 0" */
	uint64_t range_first, range_last, range_total;
	char etag[HTTP_TAG_MAX], modified[HTTP_TAG_MAX];
};

TAILQ_HEAD(fetch_list, fetch);

void fetch_start(struct fetch *ft);
/* done() is not called. For the end of the node: what waits for the handle goes on waiting. */
void fetch_cancel(struct fetch *ft);
/* libcurl is done with it: goes on, tries again, or ends. */
void fetch_finished(struct fetch *ft, CURLcode code);
int fetch_pool_new(struct http *h, struct varve_error *err);
void fetch_pool_free(struct http *h);

/* ---- loop.c ---- */

int http_loop_new(struct http *h, struct varve_error *err);
void http_loop_free(struct http *h);
void http_loop_add(struct http *h, CURL *easy);
/* CURLOPT_CLOSESOCKETFUNCTION of every transfer; arg: the struct http. */
int http_loop_close(void *arg, curl_socket_t fd);

/* ---- ahead.c ---- */

struct segment;
TAILQ_HEAD(segment_list, segment);

#define STREAMS 4

/* A place where a reader may go on. */
struct stream {
	uint64_t next;	 /* he has read up to here */
	uint64_t window; /* bytes to have ahead of him; 0: not known to be sequential */
	unsigned hits;
	uint64_t used; /* when, for replacement */
};

/* A read in progress: counts its parts; ends when all have. */
struct http_read {
	struct http *h;
	struct req *r;
	unsigned pending;
	int ret;
	struct fetch parts[];
};

/*
 * The first bytes of [off, ...) of the request that read-ahead has or is fetching: they will be copied, and pending counts
 * it. 0: none; *ret_next: where the next such byte is, at most limit.
 */
uint64_t ahead_serve(struct http *h, struct http_read *hr, uint64_t off, uint64_t limit, uint64_t *ret_next);
/* A reader has asked for [off, off + len). */
void ahead_note(struct http *h, uint64_t off, uint64_t len);
void ahead_free(struct http *h);

/* ---- http.c ---- */

struct http {
	/* set at open */
	struct node *node;
	struct queue *home;
	char *url, *user_password, *ca_file;
	bool verify;
	uint64_t timeout_ns, deadline_ns, ahead_max;
	struct curl_slist *headers;

	/* home queue only */
	CURLM *multi;
	struct timer timer;
	struct msg kick; /* libcurl wants to be called at once */
	bool kicked, closing, unwatched;
	struct sock *socks;
	CURL *idle[HTTP_FETCHES_MAX];
	unsigned nr_idle;
	struct fetch_list waiting; /* for a handle */
	bool known; /* what the object is: length and tags are compared from now on */
	uint64_t len;
	char etag[HTTP_TAG_MAX], modified[HTTP_TAG_MAX];
	char why[256]; /* of the last failure */
	bool told;
	struct stream streams[STREAMS];
	uint64_t clock; /* of the streams' use */
	struct segment_list segments; /* oldest first */
	uint64_t ahead_bytes;

	/* counters */
	uint64_t nr_requests, nr_retries, bytes;
};

/* One part of a read has ended. */
void http_read_part(struct http_read *hr, int ret);

#endif
