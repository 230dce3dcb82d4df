/* SPDX-License-Identifier: MIT */
/*
 * block/throttle.c - see throttle.h
 *
 * Each limit is one or two clocks: how long the requests that were let in so far would have taken at exactly
 * that rate. A request moves the clocks of its limits on by what it costs, at once, and so reserves its turn:
 * it may go when they were no further ahead of the time than the burst allows. So requests of several queues
 * are served by the order in which they came, a clock is one atomic number, and nobody asks twice.
 *
 * What waits does so in the slot of its queue; a timer of that queue lets it go, or somebody who cannot wait for it. It has
 * reserved its turn all the same, and so has what comes meanwhile: the clocks run ahead, and others wait the longer.
 *
 * Owns:    the clocks.
 * Assumes: node.c asks at the door, before a request counts as being inside: drain does not wait for it.
 * Never:   lets a request wait when there is no limit for it.
 */
#include "block/throttle.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "block/block.h"

#define SECOND_NS UINT64_C(1000000000)

/* How long a rate may be exceeded that has no burst: a tenth of a second's worth at once. */
#define SLACK_NS (SECOND_NS / 10)

/* New limits, and that all pass, are noticed that soon by what waits. */
#define LOOK_NS (SECOND_NS / 10)

#define RATE_MAX (UINT64_C(1) << 50)
#define BURST_SECONDS_MAX 86400u

/* At rate `rate`, with so much ahead of it. */
struct clock {
	_Atomic uint64_t rate; /* 0: off */
	_Atomic uint64_t ahead_ns;
	_Atomic uint64_t at_ns;
};

struct throttle {
	/* any queue, atomically */
	struct clock avg[THROTTLE_KINDS], burst[THROTTLE_KINDS];
	_Atomic uint64_t iops_size;
	_Atomic unsigned passing;
	_Atomic unsigned generation; /* of the limits */
	_Atomic uint64_t paid_at_ns; /* when the last one that was hurried would have had its turn */

	/* any thread, under a lock of the caller's */
	struct throttle_config config;
};

static const char *const names[THROTTLE_KINDS] = {
	[THROTTLE_BPS_TOTAL] = "bps-total", [THROTTLE_BPS_READ] = "bps-read",
	[THROTTLE_BPS_WRITE] = "bps-write", [THROTTLE_IOPS_TOTAL] = "iops-total",
	[THROTTLE_IOPS_READ] = "iops-read", [THROTTLE_IOPS_WRITE] = "iops-write",
};

const char *throttle_kind_name(enum throttle_kind kind)
{
	return names[kind];
}

/* ---- limits ---- */

int throttle_check(const struct throttle_config *c, struct varve_error *err)
{
	for (unsigned i = 0; i < THROTTLE_KINDS; i++) {
		const struct throttle_limit *l = &c->limit[i];

		if (l->avg > RATE_MAX || l->max > RATE_MAX)
			return varve_error_set(err, -EINVAL,
					       "throttling.%s: more than %llu a second is no limit", names[i],
					       (unsigned long long)RATE_MAX);
		if (l->max && !l->avg)
			return varve_error_set(err, -EINVAL,
					       "throttling.%s-max needs throttling.%s beside it", names[i],
					       names[i]);
		if (l->max && l->max < l->avg)
			return varve_error_set(
				err, -EINVAL, "throttling.%s-max (%llu) is less than throttling.%s (%llu)",
				names[i], (unsigned long long)l->max, names[i], (unsigned long long)l->avg);
		if (!l->max_length || l->max_length > BURST_SECONDS_MAX)
			return varve_error_set(
				err, -EINVAL, "throttling.%s-max-length: %llu seconds are not 1 .. %u",
				names[i], (unsigned long long)l->max_length, BURST_SECONDS_MAX);
		if (l->max_length > 1 && !l->max)
			return varve_error_set(err, -EINVAL,
					       "throttling.%s-max-length needs throttling.%s-max beside it",
					       names[i], names[i]);
	}
	for (unsigned i = THROTTLE_BPS_TOTAL; i < THROTTLE_KINDS; i += 3) {
		if (c->limit[i].avg && (c->limit[i + 1].avg || c->limit[i + 2].avg))
			return varve_error_set(
				err, -EINVAL,
				"throttling.%s goes neither with throttling.%s nor with throttling.%s",
				names[i], names[i + 1], names[i + 2]);
	}
	return 0;
}

int throttle_parse(struct opts *o, struct throttle_config *ret, struct varve_error *err)
{
	struct throttle_config c = { .iops_size = 0 };
	char key[40];
	int r = opts_get_size(o, "iops-size", &c.iops_size, err);

	for (unsigned i = 0; i < THROTTLE_KINDS; i++) {
		struct throttle_limit *l = &c.limit[i];

		l->max_length = 1;
		r = r ? r : opts_get_size(o, names[i], &l->avg, err);
		snprintf(key, sizeof(key), "%s-max", names[i]);
		r = r ? r : opts_get_size(o, key, &l->max, err);
		snprintf(key, sizeof(key), "%s-max-length", names[i]);
		r = r ? r : opts_get_u64(o, key, &l->max_length, err);
	}
	if (r == 0)
		r = opts_done(o, err);
	if (r == 0)
		r = throttle_check(&c, err);
	if (r == 0)
		*ret = c;
	return r;
}

int throttle_options(struct opts *o, struct throttle_config *ret, bool *ret_any, struct varve_error *err)
{
	struct opts *sub = opts_take_sub(o, "throttling");
	int r = sub ? throttle_parse(sub, ret, err) : 0;

	*ret_any = sub != NULL;
	opts_free(sub);
	return r;
}

static void clock_set(struct clock *c, uint64_t rate, uint64_t ahead_ns)
{
	atomic_store(&c->ahead_ns, ahead_ns);
	atomic_store(&c->at_ns, 0);
	atomic_store(&c->rate, rate);
}

/* Units that a burst may take beyond what the average gives, as time at the average. */
static uint64_t burst_ns(const struct throttle_limit *l)
{
	double units = (double)(l->max - l->avg) * (double)l->max_length;

	return SLACK_NS + (uint64_t)MIN(units / (double)l->avg * (double)SECOND_NS, 0x1p61);
}

int throttle_set(struct node *n, const struct throttle_config *c, struct varve_error *err)
{
	struct throttle *t = atomic_load(&n->throttle);

	if (!t) {
		t = calloc(1, sizeof(*t));
		if (!t)
			return varve_error_errno(err, -ENOMEM, "throttling");
	}
	t->config = *c;
	atomic_store(&t->iops_size, c->iops_size);
	for (unsigned i = 0; i < THROTTLE_KINDS; i++) {
		const struct throttle_limit *l = &c->limit[i];

		clock_set(&t->avg[i], l->avg, l->avg && l->max ? burst_ns(l) : SLACK_NS);
		clock_set(&t->burst[i], l->avg ? l->max : 0, SLACK_NS);
	}
	atomic_store(&t->paid_at_ns, 0);
	atomic_fetch_add(&t->generation, 1);
	atomic_store(&n->throttle, t); /* pairs with the load in node_submit() */
	return 0;
}

void throttle_get(const struct node *n, struct throttle_config *ret)
{
	struct throttle *t = atomic_load(&n->throttle);

	if (t) {
		*ret = t->config;
		return;
	}
	memset(ret, 0, sizeof(*ret));
	for (unsigned i = 0; i < THROTTLE_KINDS; i++)
		ret->limit[i].max_length = 1;
}

void throttle_pass_begin(struct node *n)
{
	struct throttle *t = atomic_load(&n->throttle);

	if (t)
		atomic_fetch_add(&t->passing, 1);
}

void throttle_pass_end(struct node *n)
{
	struct throttle *t = atomic_load(&n->throttle);

	if (t && atomic_load(&t->passing))
		atomic_fetch_sub(&t->passing, 1);
}

void throttle_free(struct node *n)
{
	free(atomic_load(&n->throttle));
}

/* ---- turns ---- */

/* Moves the clock on by so many units; when it may go on, no earlier than `when`. */
static uint64_t clock_reserve(struct clock *c, uint64_t units, uint64_t now, uint64_t when)
{
	uint64_t rate = atomic_load_explicit(&c->rate, memory_order_relaxed), at, from, ahead, cost;

	if (!rate)
		return when;
	/* units < 2^33, so the product fits; at 2^50 a second a unit may cost nothing */
	cost = units * SECOND_NS / rate;
	at = atomic_load_explicit(&c->at_ns, memory_order_relaxed);
	do
		from = MAX(at, now);
	while (!atomic_compare_exchange_weak(&c->at_ns, &at, from + cost));
	ahead = atomic_load_explicit(&c->ahead_ns, memory_order_relaxed);
	return from - now > ahead ? MAX(when, from - ahead) : when;
}

static uint64_t reserve_kind(struct throttle *t, unsigned kind, uint64_t units, uint64_t now, uint64_t when)
{
	when = clock_reserve(&t->avg[kind], units, now, when);
	return clock_reserve(&t->burst[kind], units, now, when);
}

/* When the request may go: now, or later. */
static uint64_t reserve(struct throttle *t, const struct req *r, uint64_t now)
{
	uint64_t size = atomic_load_explicit(&t->iops_size, memory_order_relaxed), when = now;
	uint64_t bytes = MIN(r->len, UINT64_C(1) << 33), ops = size ? div_up(bytes, size) : 1;
	unsigned own = r->op == REQ_READ ? 1 : 2; /* read, write: behind total */

	when = reserve_kind(t, THROTTLE_BPS_TOTAL, bytes, now, when);
	when = reserve_kind(t, THROTTLE_BPS_TOTAL + own, bytes, now, when);
	when = reserve_kind(t, THROTTLE_IOPS_TOTAL, ops, now, when);
	return reserve_kind(t, THROTTLE_IOPS_TOTAL + own, ops, now, when);
}

static struct req_list *list_of(struct node_slot *s, const struct req *r)
{
	return &s->throttled[r->op == REQ_READ ? 0 : 1];
}

static void set_timer(struct node_slot *s, uint64_t now)
{
	uint64_t when = UINT64_MAX;

	for (unsigned i = 0; i < 2; i++) {
		const struct req *r = TAILQ_FIRST(&s->throttled[i]);

		if (r)
			when = MIN(when, r->leaf_state);
	}
	if (when == UINT64_MAX)
		timer_cancel(s->q, &s->throttle_timer);
	else
		timer_set(s->q, &s->throttle_timer, MIN(when, now + LOOK_NS));
}

/* The limits are others: everybody who waits gets a new turn, in the old order. */
static void reserve_again(struct throttle *t, struct node_slot *s, uint64_t now)
{
	struct req *r;

	for (unsigned i = 0; i < 2; i++)
		TAILQ_FOREACH(r, &s->throttled[i], parked)
			r->leaf_state = reserve(t, r, now);
}

/* It does not wait for its turn, at `when`. */
static void note_hurried(struct throttle *t, uint64_t when)
{
	uint64_t at = atomic_load(&t->paid_at_ns);

	while (at < when && !atomic_compare_exchange_weak(&t->paid_at_ns, &at, when))
		;
}

static void let_go(struct throttle *t, struct node_slot *s)
{
	unsigned generation = atomic_load(&t->generation);
	struct req_list go = TAILQ_HEAD_INITIALIZER(go);
	uint64_t now = queue_now(s->q);
	struct req *r;

	if (generation != s->throttle_generation) {
		s->throttle_generation = generation;
		reserve_again(t, s, now);
	}
	for (unsigned i = 0; i < 2; i++) {
		while ((r = TAILQ_FIRST(&s->throttled[i])) &&
		       (r->leaf_state <= now || s->throttle_hurry || atomic_load(&t->passing))) {
			if (r->leaf_state > now)
				note_hurried(t, r->leaf_state);
			TAILQ_REMOVE(&s->throttled[i], r, parked);
			TAILQ_INSERT_TAIL(&go, r, parked);
		}
	}
	/* First the timer: what is let go may come back, or detach. */
	set_timer(s, now);
	while ((r = TAILQ_FIRST(&go))) {
		TAILQ_REMOVE(&go, r, parked);
		node_admitted(s->node, s, r);
	}
}

void throttle_fired(struct timer *timer)
{
	struct node_slot *s = container_of(timer, struct node_slot, throttle_timer);

	let_go(atomic_load(&s->node->throttle), s);
}

void throttle_hurry_begin(struct node *n, struct queue *q)
{
	struct node_slot *s = node_slot(n, q);
	struct throttle *t = atomic_load(&n->throttle);

	s->throttle_hurry++;
	if (t)
		let_go(t, s);
}

void throttle_hurry_end(struct node *n, struct queue *q)
{
	struct node_slot *s = node_slot(n, q);

	assert(s->throttle_hurry);
	s->throttle_hurry--;
}

uint64_t throttle_paid_at(const struct node *n)
{
	const struct throttle *t = atomic_load(&n->throttle);

	return t ? atomic_load(&t->paid_at_ns) : 0;
}

bool throttle_admit(struct throttle *t, struct node_slot *s, struct req *r)
{
	uint64_t now = queue_now(s->q), when;
	struct req_list *list = list_of(s, r);

	if (r->op == REQ_FLUSH)
		return true;
	when = reserve(t, r, now);
	if (when <= now && TAILQ_EMPTY(list))
		return true;
	if (s->throttle_hurry || atomic_load_explicit(&t->passing, memory_order_relaxed)) {
		note_hurried(t, when);
		return true;
	}
	if (TAILQ_EMPTY(&s->throttled[0]) && TAILQ_EMPTY(&s->throttled[1]))
		s->throttle_generation = atomic_load(&t->generation);
	r->leaf_state = when;
	TAILQ_INSERT_TAIL(list, r, parked);
	set_timer(s, now);
	return false;
}
