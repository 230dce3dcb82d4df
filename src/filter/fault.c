/* SPDX-License-Identifier: MIT */
/*
 * filter/fault.c - fails chosen requests, for tests of everything above it
 *
 * A request that a rule fails does not reach the file at all; the others pass unchanged.
 *
 *     driver=fault,file.filename=x,rule.0.event=write,rule.0.errno=ENOSPC,rule.0.after=10,rule.0.once=on
 *
 * Owns:    the rules and their counts.
 */
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/opts.h"
#include "base/words.h"
#include "filter/filter.h"

struct fault {
	/* any queue, under lock */
	pthread_mutex_t lock;
	unsigned nr_rules;
	struct fault_rule rules[FAULT_RULES_MAX];
	uint64_t nr_matched[FAULT_RULES_MAX];
	uint64_t nr_failed;

	/* any queue, atomically: without rules there is nothing to lock */
	_Atomic bool armed;
};

/* ---- rules ---- */

int fault_inject(struct node *n, const struct fault_rule *rule)
{
	struct fault *fa = node_state(n);
	int ret = 0;

	assert(rule->error < 0 && rule->op < REQ_OPS);
	pthread_mutex_lock(&fa->lock);
	if (fa->nr_rules == FAULT_RULES_MAX) {
		ret = -ENOSPC;
	} else {
		fa->nr_matched[fa->nr_rules] = 0;
		fa->rules[fa->nr_rules++] = *rule;
		atomic_store_explicit(&fa->armed, true, memory_order_relaxed);
	}
	pthread_mutex_unlock(&fa->lock);
	return ret;
}

void fault_clear(struct node *n)
{
	struct fault *fa = node_state(n);

	pthread_mutex_lock(&fa->lock);
	fa->nr_rules = 0;
	atomic_store_explicit(&fa->armed, false, memory_order_relaxed);
	pthread_mutex_unlock(&fa->lock);
}

uint64_t fault_count(struct node *n)
{
	struct fault *fa = node_state(n);
	uint64_t nr;

	pthread_mutex_lock(&fa->lock);
	nr = fa->nr_failed;
	pthread_mutex_unlock(&fa->lock);
	return nr;
}

static bool rule_matches(const struct fault_rule *rule, const struct req *r)
{
	if (rule->op != r->op)
		return false;
	if (!rule->len || r->op == REQ_FLUSH)
		return true;
	return r->off < rule->off + rule->len && rule->off < r->off + r->len;
}

/* The error that r must end with, or 0. */
static int fault_decide(struct fault *fa, const struct req *r)
{
	int error = 0;

	pthread_mutex_lock(&fa->lock);
	for (unsigned i = 0; !error && i < fa->nr_rules; i++) {
		uint64_t nr;

		if (!rule_matches(&fa->rules[i], r))
			continue;
		nr = fa->nr_matched[i]++;
		if (nr < fa->rules[i].after || (fa->rules[i].once && nr > fa->rules[i].after))
			continue;
		error = fa->rules[i].error;
		fa->nr_failed++;
	}
	pthread_mutex_unlock(&fa->lock);
	return error;
}

/* ---- options ---- */

#define EVENT_WORDS "read|write|flush|discard|zero" /* in the order of enum req_op */

static int parse_event(struct opts *o, enum req_op *ret, struct varve_error *err)
{
	const char *text = opts_get(o, "event");
	int i = text ? words_find(EVENT_WORDS, text) : -1;

	if (i >= 0) {
		*ret = (enum req_op)i;
		return 0;
	}
	if (!text)
		return varve_error_set(err, -EINVAL, "option 'event' is missing");
	return varve_error_set(err, -EINVAL,
			       "option 'event': '%.200s' is none of read, write, flush, discard, zero", text);
}

static int parse_errno(struct opts *o, int *ret, struct varve_error *err)
{
	const char *text = opts_get(o, "errno");
	uint64_t number = 0;

	if (!text || !strcmp(text, "EIO")) {
		*ret = -EIO;
		return 0;
	}
	if (!strcmp(text, "ENOSPC")) {
		*ret = -ENOSPC;
		return 0;
	}
	if (opts_get_u64(o, "errno", &number, NULL) < 0 || number < 1 || number > 4095)
		return varve_error_set(
			err, -EINVAL,
			"option 'errno': '%.200s' is neither EIO, ENOSPC nor a number from 1 to 4095", text);
	*ret = -(int)number;
	return 0;
}

static int parse_rule(struct opts *o, struct fault_rule *ret, struct varve_error *err)
{
	struct fault_rule rule = { .len = 0 };
	uint64_t end;
	int r;

	r = parse_event(o, &rule.op, err);
	if (!r)
		r = parse_errno(o, &rule.error, err);
	if (!r)
		r = opts_get_bool(o, "once", &rule.once, err);
	if (!r)
		r = opts_get_u64(o, "after", &rule.after, err);
	if (!r)
		r = opts_get_size(o, "offset", &rule.off, err);
	if (!r)
		r = opts_get_size(o, "length", &rule.len, err);
	if (!r)
		r = opts_done(o, err);
	if (r < 0)
		return r;
	if (rule.off && !rule.len)
		return varve_error_set(err, -EINVAL, "option 'offset' needs 'length'");
	if (u64_add(rule.off, rule.len, &end) || end > VARVE_LEN_MAX)
		return varve_error_set(err, -EINVAL, "options 'offset' and 'length' reach too far");
	*ret = rule;
	return 0;
}

static int parse_rules(struct node *n, struct opts *rules, struct varve_error *err)
{
	struct fault_rule rule;
	char number[8];

	for (unsigned i = 0; i < FAULT_RULES_MAX; i++) {
		struct opts *o;
		int ret;

		snprintf(number, sizeof(number), "%u", i);
		o = opts_take_sub(rules, number);
		if (!o)
			continue;
		ret = parse_rule(o, &rule, err);
		opts_free(o);
		if (ret < 0)
			return varve_error_prefix(err, ret, "rule.%u: ", i);
		(void)fault_inject(n, &rule); /* there is room: i counts to the same limit */
	}
	return opts_done(rules, err) < 0 ? varve_error_prefix(err, -EINVAL, "rule: ") : 0;
}

static int fault_open(struct fiber *f, struct node *n, struct opts *o, struct varve_error *err)
{
	struct fault *fa = node_state(n);
	struct opts *rules = opts_take_sub(o, "rule");
	int ret;

	(void)f;
	pthread_mutex_init(&fa->lock, NULL);
	ret = rules ? parse_rules(n, rules, err) : 0;
	opts_free(rules);
	if (ret < 0)
		pthread_mutex_destroy(&fa->lock);
	else
		atomic_store_explicit(&n->len, node_len(n->file), memory_order_relaxed);
	return ret;
}

static void fault_close(struct fiber *f, struct node *n)
{
	struct fault *fa = node_state(n);

	(void)f;
	pthread_mutex_destroy(&fa->lock);
}

/* ---- requests ---- */

static void fail_run(struct msg *m)
{
	struct req *r = container_of(m, struct req, msg);

	req_done(r, (int)r->aio.res);
}

static void grown(struct req *r, int ret)
{
	filter_grown(r->at);
	req_done(r, ret);
}

static void fault_submit(struct node *n, struct req *r)
{
	struct fault *fa = node_state(n);
	int error = atomic_load_explicit(&fa->armed, memory_order_relaxed) ? fault_decide(fa, r) : 0;

	if (!error) {
		bool grows = (r->op == REQ_WRITE || r->op == REQ_ZERO) && r->off + r->len > node_len(n);

		req_forward(r, n->file, r->off, grows ? grown : NULL);
		return;
	}
	/* Later, as a real device would: nothing above may count on an answer inside of submit. */
	r->aio.res = error;
	r->msg.run = fail_run;
	queue_later(r->q, &r->msg);
}

static const struct varve_option_info open_options[] = {
	{ "rule.0.event", EVENT_WORDS, "requests that fail (the first rule; rule.1. and so on: more)", false },
	{ "rule.0.errno", "str", "EIO (default), ENOSPC, or a number", false },
	{ "rule.0.once", "bool", "one request only (off)", false },
	{ "rule.0.after", "num", "so many requests do not fail first", false },
	{ "rule.0.offset", "size", "only what touches the bytes from there on, length of them", false },
	{ "rule.0.length", "size", "see offset", false },
	{ NULL, NULL, NULL, false },
};

const struct driver driver_fault = {
	.name = "fault",
	.kind = DRIVER_FILTER,
	.state_len = sizeof(struct fault),
	.open_options = open_options,
	.open = fault_open,
	.close = fault_close,
	.submit = fault_submit,
};
