/* SPDX-License-Identifier: MIT */
/*
 * filter/blkdebug.c - errors and break points at what a format does with its file: rules of that name's
 * grammar
 *
 *     driver=qcow2,file.driver=blkdebug,file.image.filename=x,file.inject-error.0.event=l2_update,file.inject-error.0.once=on
 *     blkdebug:RULES:x
 *
 * A request tells its events first: what the format above said it is for (block/event.h), then that it is a
 * write of the file. An event changes the state and arms rules; the request after it (of any kind, unless the
 * rule chooses) fails. At a break point the request, or the fiber that told the event, is held until somebody
 * lets it go.
 *
 * Owns:    the rules, the break points, and what is held.
 * Assumes: break points are set and lifted on the home queue; requests come from any.
 * Never:   lets a request that it fails reach the file.
 */
#include "filter/blkdebug.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/iov.h"
#include "base/log.h"
#include "base/opts.h"
#include "filter/filter.h"

#define BREAKS_MAX 64
#define TAG_MAX 64

struct break_point {
	enum event event;
	char tag[TAG_MAX];
};

/* A request (req) or fiber that was stopped. */
struct held {
	char tag[TAG_MAX];
	struct req *r;	 /* NULL: the fiber */
	struct fiber *f; /* on the home queue */
	bool released;	 /* of the fiber, home queue only */
	TAILQ_ENTRY(held) link;
};

/* What requests of one kind are cut to. */
struct limits {
	uint64_t unit, max; /* 0: none */
};

struct blkdebug {
	/* set at open */
	struct limits limits[REQ_OPS];
	bool limited;

	/* any queue, under lock */
	pthread_mutex_t lock;
	struct blkdebug_rules rules;
	struct break_point breaks[BREAKS_MAX];
	unsigned nr_breaks;
	TAILQ_HEAD(, held) held;

	/* any queue, atomically: without rules and break points there is nothing to lock */
	_Atomic bool armed;
};

/* ---- events ---- */

/* Under lock. The break point is used up. NULL: goes on. */
static struct held *stop_at(struct blkdebug *d, enum event event)
{
	struct held *h;
	unsigned i = 0;

	while (i < d->nr_breaks && d->breaks[i].event != event)
		i++;
	if (i == d->nr_breaks || !(h = calloc(1, sizeof(*h))))
		return NULL;
	memcpy(h->tag, d->breaks[i].tag, sizeof(h->tag));
	memmove(&d->breaks[i], &d->breaks[i + 1], (--d->nr_breaks - i) * sizeof(d->breaks[0]));
	TAILQ_INSERT_TAIL(&d->held, h, link);
	return h;
}

/* True: r (or f) is held. Whoever lets it go finds all that is needed in them. */
static bool happens(struct blkdebug *d, enum event event, struct req *r, struct fiber *f, struct held **ret)
{
	char tag[TAG_MAX];
	struct held *h;

	pthread_mutex_lock(&d->lock);
	blkdebug_rules_event(&d->rules, event);
	h = stop_at(d, event);
	if (h) {
		h->r = r;
		h->f = f;
		memcpy(tag, h->tag, sizeof(tag));
		if (ret)
			*ret = h;
	}
	pthread_mutex_unlock(&d->lock);
	if (h)
		log_info("blkdebug: Suspended request '%s'", tag);
	return h;
}

static void blkdebug_event(struct fiber *f, struct node *n, unsigned event)
{
	struct blkdebug *d = node_state(n);
	struct held *h;

	if (!atomic_load_explicit(&d->armed, memory_order_relaxed) ||
	    !happens(d, (enum event)event, NULL, f, &h))
		return;
	while (!h->released)
		fiber_wait(f);
	free(h);
}

/* ---- limits ---- */

/* How much of a request at off goes in one piece. */
static uint64_t piece_len(const struct limits *l, uint64_t off, uint64_t len)
{
	if (l->unit && off % l->unit)
		len = MIN(len, l->unit - off % l->unit);
	else if (l->unit && len > l->unit)
		len -= len % l->unit;
	return l->max ? MIN(len, l->max) : len;
}

static int pieces(struct fiber *f, struct node *n, struct req *r)
{
	const struct limits *l = &((struct blkdebug *)node_state(n))->limits[r->op];
	struct iovec *iov = r->nr_iov ? malloc(r->nr_iov * sizeof(*iov)) : NULL;
	uint64_t len;
	int ret = r->nr_iov && !iov ? -ENOMEM : 0;

	for (uint64_t pos = 0; ret == 0 && pos < r->len; pos += len) {
		struct req sub;
		unsigned nr = 0;
		size_t got;

		len = piece_len(l, r->off + pos, r->len - pos);
		if (iov)
			nr = iov_slice(iov, r->nr_iov, r->iov, r->nr_iov, pos, len, &got);
		req_init(&sub, fiber_queue(f), r->op, r->off + pos, len, iov, nr,
			 (r->flags & (REQ_FUA | REQ_MAY_UNMAP | REQ_NO_FALLBACK)) | REQ_META | REQ_ALIGNED,
			 NULL);
		ret = node_submit_wait(f, n, &sub);
	}
	free(iov);
	return ret;
}

/* Its events have been told; each piece is a request of its own. */
static void pieces_run(struct fiber *f, struct fiber_job *job)
{
	struct req *r = container_of(job, struct req, job);

	req_done(r, pieces(f, r->at, r));
}

static bool is_cut(const struct blkdebug *d, const struct req *r)
{
	return d->limited && r->op != REQ_FLUSH && piece_len(&d->limits[r->op], r->off, r->len) < r->len;
}

/* ---- requests ---- */

#define EVENTS_OF_REQUEST 4
#define AFTER_DONE EVENTS_OF_REQUEST /* the place behind pwritev_done, in req_state() */

static unsigned events_of(const struct blkdebug *d, const struct req *r, enum event ev[EVENTS_OF_REQUEST])
{
	unsigned nr = 0;

	if (r->op == REQ_FLUSH) {
		if (!(r->flags & REQ_META)) /* otherwise the format has told it */
			ev[nr++] = EVENT_FLUSH_TO_OS;
		ev[nr++] = EVENT_FLUSH_TO_DISK;
		return nr;
	}
	if (req_event(r) != EVENT_UNNAMED)
		ev[nr++] = req_event(r);
	if (req_second_event(r) != EVENT_UNNAMED)
		ev[nr++] = req_second_event(r);
	if ((r->op == REQ_WRITE || r->op == REQ_ZERO) && !is_cut(d, r))
		ev[nr++] = r->op == REQ_WRITE ? EVENT_PWRITEV : EVENT_PWRITEV_ZERO;
	return nr;
}

static void fail_run(struct msg *m)
{
	struct req *r = container_of(m, struct req, msg);

	req_done(r, (int)r->aio.res);
}

/* A write has made the file longer: so are we. Any queue. */
static void note_length(struct node *n)
{
	uint64_t len = node_len(n), file_len = node_len(n->file);

	while (file_len > len && !atomic_compare_exchange_weak(&n->len, &len, file_len))
		;
}

static void change_done(struct req *r, int ret)
{
	struct blkdebug *d = node_state(r->at);

	note_length(r->at);
	r->aio.res = ret;
	req_set_state(r, AFTER_DONE);
	if (atomic_load_explicit(&d->armed, memory_order_relaxed) &&
	    happens(d, EVENT_PWRITEV_DONE, r, NULL, NULL))
		return;
	req_done(r, ret);
}

static void forward(struct node *n, struct req *r)
{
	r->flags &= ~REQ_ALIGNED; /* to what we want; the file below may want more */
	req_forward(r, n->file, r->off, r->op == REQ_WRITE || r->op == REQ_ZERO ? change_done : NULL);
}

static void end_or_forward(struct node *n, struct req *r)
{
	struct blkdebug *d = node_state(n);
	bool immediately = false;
	int error;

	if (unlikely(is_cut(d, r))) {
		r->job.run = pieces_run;
		fiber_start(r->q, &r->job,
			    n->level - 1); /* ours: open() has taken one more than we stand on */
		return;
	}
	pthread_mutex_lock(&d->lock);
	error = blkdebug_rules_judge(&d->rules, r, &immediately);
	pthread_mutex_unlock(&d->lock);
	if (!error) {
		forward(n, r);
	} else if (immediately) {
		req_done(r, error);
	} else {
		/* Later, as a device would: nothing above may count on an answer inside of submit. */
		r->aio.res = error;
		r->msg.run = fail_run;
		queue_later(r->q, &r->msg);
	}
}

/* From its event number `from` on. */
static void go_on(struct node *n, struct req *r, unsigned from)
{
	enum event ev[EVENTS_OF_REQUEST];
	unsigned nr = events_of(node_state(n), r, ev);

	for (unsigned i = from; i < nr; i++) {
		req_set_state(r, i + 1); /* before it is held: another thread may let it go at once */
		if (happens(node_state(n), ev[i], r, NULL, NULL))
			return;
	}
	end_or_forward(n, r);
}

static void released_run(struct msg *m)
{
	struct req *r = container_of(m, struct req, msg);

	if (req_state(r) == AFTER_DONE)
		req_done(r, (int)r->aio.res);
	else
		go_on(r->at, r, (unsigned)req_state(r));
}

static void blkdebug_submit(struct node *n, struct req *r)
{
	struct blkdebug *d = node_state(n);

	if (d->limited || atomic_load_explicit(&d->armed, memory_order_relaxed))
		go_on(n, r, 0);
	else
		forward(n, r);
}

/* ---- break points ---- */

static int add_break(struct blkdebug *d, const char *event, const char *tag, struct varve_error *err)
{
	enum event e = event_by_name(event);
	struct break_point *b;

	if (e == EVENT_UNNAMED)
		return varve_error_set(err, -ENOENT, "there is no event '%.100s'", event);
	if (!event_occurs(e))
		return varve_error_set(err, -ENOTSUP, "event %s never occurs in this engine", event);
	if (d->nr_breaks == BREAKS_MAX)
		return varve_error_set(err, -ENOSPC, "more than %d break points", BREAKS_MAX);
	b = &d->breaks[d->nr_breaks++];
	b->event = e;
	strcpy(b->tag, tag);
	return 0;
}

/* Takes what is held under that name (NULL: any) out of the list. */
static struct held *take_held(struct blkdebug *d, const char *tag)
{
	struct held *h;

	TAILQ_FOREACH(h, &d->held, link) {
		if (!tag || !strcmp(h->tag, tag))
			break;
	}
	if (h)
		TAILQ_REMOVE(&d->held, h, link);
	return h;
}

static void release(struct held *h)
{
	log_info("blkdebug: Resuming request '%s'", h->tag);
	if (h->f) {
		h->released = true;
		fiber_wake(h->f); /* it frees h */
		return;
	}
	h->r->msg.run = released_run;
	queue_post(h->r->q, &h->r->msg);
	free(h);
}

/* All that is held under the name. How many. */
static unsigned release_all(struct blkdebug *d, const char *tag)
{
	TAILQ_HEAD(, held) list = TAILQ_HEAD_INITIALIZER(list);
	struct held *h;
	unsigned nr = 0;

	/* First all of them out: one that goes on may be held again. */
	pthread_mutex_lock(&d->lock);
	while ((h = take_held(d, tag)))
		TAILQ_INSERT_TAIL(&list, h, link);
	pthread_mutex_unlock(&d->lock);
	for (; (h = TAILQ_FIRST(&list)); nr++) {
		TAILQ_REMOVE(&list, h, link);
		release(h);
	}
	return nr;
}

static unsigned remove_breaks(struct blkdebug *d, const char *tag)
{
	unsigned kept = 0, nr;

	for (unsigned i = 0; i < d->nr_breaks; i++) {
		if (tag && strcmp(d->breaks[i].tag, tag))
			d->breaks[kept++] = d->breaks[i];
	}
	nr = d->nr_breaks - kept;
	d->nr_breaks = kept;
	return nr;
}

static bool is_held(struct blkdebug *d, const char *tag)
{
	struct held *h;

	TAILQ_FOREACH(h, &d->held, link) {
		if (!strcmp(h->tag, tag))
			return true;
	}
	return false;
}

static int blkdebug_debug(struct node *n, unsigned op, const char *event, const char *tag,
			  struct varve_error *err)
{
	struct blkdebug *d = node_state(n);
	unsigned nr;
	int ret = 0;

	if (tag && strlen(tag) >= TAG_MAX)
		return varve_error_set(err, -ENAMETOOLONG,
				       "a tag has at most %d characters, '%.20s...' has %zu", TAG_MAX - 1,
				       tag, strlen(tag));
	pthread_mutex_lock(&d->lock);
	if (op == DEBUG_BREAK) {
		ret = add_break(d, event, tag, err);
		atomic_store(&d->armed, d->rules.nr || d->nr_breaks);
	} else if (op == DEBUG_IS_SUSPENDED) {
		ret = is_held(d, tag);
	}
	nr = op == DEBUG_REMOVE_BREAK || !tag ? remove_breaks(d, tag) : 0;
	pthread_mutex_unlock(&d->lock);
	if (op == DEBUG_RESUME || op == DEBUG_REMOVE_BREAK)
		nr += release_all(d, tag);
	if ((op == DEBUG_RESUME || op == DEBUG_REMOVE_BREAK) && tag && !nr)
		return varve_error_set(err, -ENOENT,
				       op == DEBUG_RESUME ? "no request is suspended under the tag '%s'"
							  : "no break point has the tag '%s'",
				       tag);
	return ret;
}

/* ---- open, close ---- */

/* Sizes, all of them multiples of align. */
static int parse_limits(struct node *n, struct blkdebug *d, struct opts *o, struct varve_error *err)
{
	static const char *const keys[] = { "align",	      "max-transfer", "opt-write-zero",
					    "max-write-zero", "opt-discard",  "max-discard" };
	uint64_t v[ARRAY_LEN(keys)] = { 0 }, align;

	for (unsigned i = 0; i < ARRAY_LEN(keys); i++) {
		int r = opts_get_size(o, keys[i], &v[i], err);

		if (r < 0)
			return r;
		if (v[i] > INT32_MAX)
			return varve_error_set(err, -EINVAL, "option '%s': %llu is 2 GiB or more", keys[i],
					       (unsigned long long)v[i]);
	}
	align = v[0] ? v[0] : 1;
	if (align & (align - 1))
		return varve_error_set(err, -EINVAL, "option 'align': %llu is no power of two",
				       (unsigned long long)align);
	for (unsigned i = 1; i < ARRAY_LEN(keys); i++) {
		if (v[i] % align)
			return varve_error_set(err, -EINVAL,
					       "option '%s': %llu is no multiple of align (%llu)", keys[i],
					       (unsigned long long)v[i], (unsigned long long)align);
		d->limited |= v[i] != 0;
	}
	n->align = (uint32_t)align;
	d->limits[REQ_READ].max = d->limits[REQ_WRITE].max = v[1];
	d->limits[REQ_ZERO] = (struct limits){ v[2], v[3] };
	d->limits[REQ_DISCARD] = (struct limits){ v[4], v[5] };
	if (!d->limited)
		return 0;
	if (n->level + 1 >= FIBER_LEVEL_JOB)
		return varve_error_set(err, -EINVAL,
				       "too many layers above one file for max-transfer and the like");
	n->level++;
	return 0;
}

static int blkdebug_open(struct fiber *f, struct node *n, struct opts *o, struct varve_error *err)
{
	struct blkdebug *d = node_state(n);
	int ret = parse_limits(n, d, o, err);

	(void)f;
	if (ret == 0)
		ret = blkdebug_rules_open(&d->rules, o, err);
	if (ret < 0) {
		blkdebug_rules_free(&d->rules);
		return ret;
	}
	pthread_mutex_init(&d->lock, NULL);
	TAILQ_INIT(&d->held);
	blkdebug_rules_event(&d->rules, EVENT_NONE);
	atomic_init(&d->armed, d->rules.nr != 0);
	atomic_store_explicit(&n->len, node_len(n->file), memory_order_relaxed);
	return 0;
}

static void blkdebug_close(struct fiber *f, struct node *n)
{
	struct blkdebug *d = node_state(n);

	(void)f;
	assert(TAILQ_EMPTY(&d->held));
	blkdebug_rules_free(&d->rules);
	pthread_mutex_destroy(&d->lock);
}

static const struct varve_option_info open_options[] = {
	{ "config", "file", "rules, one section each", false },
	{ "image", "node", "what it stands on: image.driver, image.filename, ...", false },
	{ "align", "size", "offsets and lengths that it takes: multiples of that power of two", false },
	{ "max-transfer", "size", "longest read or write that it takes", false },
	{ "opt-write-zero", "size", "zeroing that it likes: multiples of that", false },
	{ "max-write-zero", "size", "longest zeroing that it takes", false },
	{ "opt-discard", "size", "discards that it likes: multiples of that", false },
	{ "max-discard", "size", "longest discard that it takes", false },
	{ "inject-error.0.event", "str", "step of the format at which a request fails (inject-error.1. and so on: more)", false },
	{ "inject-error.0.iotype", BLKDEBUG_IOTYPE_WORDS, "requests that fail there (any)", false },
	{ "inject-error.0.errno", "num", "with which error (5)", false },
	{ "inject-error.0.sector", "num", "only those that touch it (-1: any)", false },
	{ "inject-error.0.once", "bool", "one request only (off)", false },
	{ "inject-error.0.immediately", "bool", "without going to the file (off)", false },
	{ "inject-error.0.state", "num", "only in this state (0: any)", false },
	{ "set-state.0.event", "str", "step at which the state changes", false },
	{ "set-state.0.state", "num", "only from that (0: any)", false },
	{ "set-state.0.new_state", "num", "to this", false },
	{ NULL, NULL, NULL, false },
};

const struct driver driver_blkdebug = {
	.name = "blkdebug",
	.kind = DRIVER_FILTER,
	.state_len = sizeof(struct blkdebug),
	.child_key = "image",
	.open_options = open_options,
	.open = blkdebug_open,
	.close = blkdebug_close,
	.submit = blkdebug_submit,
	.event = blkdebug_event,
	.debug = blkdebug_debug,
};
