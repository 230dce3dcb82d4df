/* SPDX-License-Identifier: MIT */
/*
 * proto/http/ahead.c - read-ahead for sequential readers
 *
 * A reader who goes on where he stopped, the third time in a row, gets a window of segments fetched ahead of him, which doubles
 * with each of his requests up to a quarter of the memory allowed. What was fetched ahead is kept until it has been
 * read or others need the room: it is given up before it is fetched a second time only when memory runs out.
 *
 * Owns:    the segments and their memory (ahead_max), the places of up to four readers.
 * Assumes: the home queue, outside of fibers.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/iov.h"
#include "proto/http/http.h"

#define SEGMENT_LEN KiB(512)
#define HITS_WANTED 2

/* A read that waits for a segment. */
struct ahead_wait {
	struct http_read *hr;
	uint64_t off, len;
	struct ahead_wait *next;
};

struct segment {
	TAILQ_ENTRY(segment) link;
	struct http *h;
	struct fetch fetch;
	struct iovec iov;
	uint64_t off, len;
	uint64_t unread; /* bytes that nobody has asked for yet */
	bool ready;
	struct ahead_wait *waiting;
};

static void segment_free(struct http *h, struct segment *s)
{
	TAILQ_REMOVE(&h->segments, s, link);
	h->ahead_bytes -= s->len;
	free(s->iov.iov_base);
	free(s);
}

static void copy_out(const struct segment *s, struct http_read *hr, uint64_t off, uint64_t len)
{
	iov_from_buf(hr->r->iov, hr->r->nr_iov, off - hr->r->off, (const uint8_t *)s->iov.iov_base + (off - s->off), len);
}

static void segment_done(struct fetch *ft, int ret)
{
	struct segment *s = container_of(ft, struct segment, fetch);
	struct ahead_wait *w = s->waiting;
	struct http *h = s->h;

	s->ready = true;
	s->waiting = NULL;
	while (w) {
		struct ahead_wait *next = w->next;

		if (ret == 0)
			copy_out(s, w->hr, w->off, w->len);
		http_read_part(w->hr, ret);
		free(w);
		w = next;
	}
	if (ret < 0 || !s->unread)
		segment_free(h, s);
}

/* Makes room; false: all that is there is being fetched. */
static bool make_room(struct http *h, uint64_t len)
{
	struct segment *s = TAILQ_FIRST(&h->segments);

	while (s && h->ahead_bytes + len > h->ahead_max) {
		struct segment *next = TAILQ_NEXT(s, link);

		if (s->ready)
			segment_free(h, s);
		s = next;
	}
	return h->ahead_bytes + len <= h->ahead_max;
}

static struct segment *segment_at(struct http *h, uint64_t off)
{
	struct segment *s;

	TAILQ_FOREACH(s, &h->segments, link) {
		if (off >= s->off && off - s->off < s->len)
			return s;
	}
	return NULL;
}

/* The first segment behind off begins there; limit: none before. */
static uint64_t next_segment(struct http *h, uint64_t off, uint64_t limit)
{
	struct segment *s;

	TAILQ_FOREACH(s, &h->segments, link) {
		if (s->off > off && s->off < limit)
			limit = s->off;
	}
	return limit;
}

uint64_t ahead_serve(struct http *h, struct http_read *hr, uint64_t off, uint64_t limit, uint64_t *ret_next)
{
	struct segment *s = segment_at(h, off);
	struct ahead_wait *w;
	uint64_t len;

	if (!s) {
		*ret_next = next_segment(h, off, limit);
		return 0;
	}
	len = MIN(s->off + s->len, limit) - off;
	if (s->ready) {
		copy_out(s, hr, off, len);
	} else {
		w = malloc(sizeof(*w));
		if (!w) {
			hr->ret = -ENOMEM;
			return len;
		}
		*w = (struct ahead_wait){ hr, off, len, s->waiting };
		s->waiting = w;
		hr->pending++;
	}
	s->unread -= MIN(s->unread, len);
	if (!s->unread && s->ready)
		segment_free(h, s);
	return len;
}

static bool segment_start(struct http *h, uint64_t off, uint64_t len)
{
	struct segment *s;

	if (!make_room(h, len))
		return false;
	s = calloc(1, sizeof(*s));
	if (!s || !(s->iov.iov_base = malloc(len))) {
		free(s);
		return false;
	}
	s->h = h;
	s->iov.iov_len = len;
	s->off = off;
	s->len = s->unread = len;
	h->ahead_bytes += len;
	TAILQ_INSERT_TAIL(&h->segments, s, link);
	s->fetch = (struct fetch){ .h = h, .off = off, .len = len, .iov = &s->iov, .nr_iov = 1, .done = segment_done };
	fetch_start(&s->fetch);
	return true;
}

/* Has [from, to) in memory, or on the way there. */
static void fill(struct http *h, uint64_t from, uint64_t to)
{
	while (from < to) {
		struct segment *s = segment_at(h, from);
		uint64_t end;

		if (s) {
			from = s->off + s->len;
			continue;
		}
		end = next_segment(h, from, MIN(from + SEGMENT_LEN, to));
		if (!segment_start(h, from, end - from))
			return;
		from = end;
	}
}

/* The reader who may have sent this request; else the place used longest ago. */
static struct stream *stream_of(struct http *h, uint64_t off)
{
	struct stream *oldest = &h->streams[0];

	for (unsigned i = 0; i < STREAMS; i++) {
		struct stream *s = &h->streams[i];

		if (s->used && s->next == off)
			return s;
		if (s->used < oldest->used)
			oldest = s;
	}
	*oldest = (struct stream){ .next = UINT64_MAX };
	return oldest;
}

void ahead_note(struct http *h, uint64_t off, uint64_t len)
{
	struct stream *s;
	uint64_t end = off + len;

	if (!h->ahead_max || h->node->kept_above)
		return;
	s = stream_of(h, off);
	s->used = ++h->clock;
	s->hits = s->next == off ? s->hits + 1 : 0;
	s->next = end;
	if (s->hits < HITS_WANTED)
		return;
	s->window = MIN(MAX(s->window * 2, MAX(len * 2, SEGMENT_LEN)), h->ahead_max / 4);
	/* By whole segments, and not a little with each request. */
	if (end + s->window / 2 >= h->len || !segment_at(h, end + s->window / 2))
		fill(h, end, MIN(end + s->window, h->len));
}

void ahead_free(struct http *h)
{
	struct segment *s;

	while ((s = TAILQ_FIRST(&h->segments))) {
		assert(!s->waiting);
		if (!s->ready)
			fetch_cancel(&s->fetch);
		segment_free(h, s);
	}
}
