/* SPDX-License-Identifier: MIT */
/*
 * filter/lockstep.c - lets requests on to the file one at a time, in an order that a seed decides
 *
 * Which of several requests a disk finishes first is luck, and what the layers above do next depends on it. Here a request is
 * held until nothing else is left to do: what was finished has been answered, whoever asked has had a turn to ask for
 * more, and no worker is busy; what workers brought back comes first. Then the seed chooses one of those that are held.
 * So the same requests make the same changes in the same order in every run, however busy the machine is.
 *
 *     driver=lockstep,seed=7,file.filename=x
 *
 * Not so with requests of other queues than the one that opened the disk: they are let through. And time is not held: what
 * the layers above do after some seconds, they do then.
 *
 * Owns:    the requests that are held.
 * Assumes: it is closed on the queue that opened it.
 * Never:   lets a request on while another is on its way.
 */
#include "aio/fiber.h"
#include "aio/queue.h"
#include "base/math.h"
#include "base/opts.h"
#include "base/random.h"
#include "filter/filter.h"

struct lockstep {
	/* set at open */
	struct queue *q;

	/* q's thread only */
	struct hook hook;
	uint64_t random;
	struct msg *held; /* their requests' */
	struct msg **tail;
	unsigned nr_held;
	bool busy; /* one is on its way */
	struct req *answered;
	int ret;
	struct msg answer;
};

static struct req *take(struct lockstep *ls)
{
	struct msg **at = &ls->held, *m;

	for (uint64_t i = random_next(&ls->random) % ls->nr_held; i; i--)
		at = &(*at)->next;
	m = *at;
	*at = m->next;
	if (!*at)
		ls->tail = at;
	ls->nr_held--;
	return container_of(m, struct req, msg);
}

static void answer_run(struct msg *m)
{
	struct lockstep *ls = container_of(m, struct lockstep, answer);

	ls->busy = false;
	req_done(ls->answered, ls->ret);
}

/* Always as a message: what a turn does after it is not to depend on where in the turn the file's answer came. */
static void one_done(struct req *r, int ret)
{
	struct lockstep *ls = node_state(r->at);

	filter_grown(r->at);
	ls->answered = r;
	ls->ret = ret;
	queue_later(ls->q, &ls->answer);
}

static bool at_end_of_turn(struct hook *h)
{
	struct lockstep *ls = container_of(h, struct lockstep, hook);
	struct req *r;

	if (ls->busy || queue_awaits(ls->q))
		return false;
	if (!queue_idle(ls->q)) {
		queue_kick(ls->q); /* nobody else would */
		return false;
	}
	if (fiber_works_give(ls->q))
		return true;
	if (!ls->nr_held)
		return false;
	r = take(ls);
	ls->busy = true;
	req_forward(r, r->at->file, r->off, one_done);
	return true;
}

static void passed(struct req *r, int ret)
{
	filter_grown(r->at);
	req_done(r, ret);
}

static void lockstep_submit(struct node *n, struct req *r)
{
	struct lockstep *ls = node_state(n);

	if (r->q != ls->q) {
		req_forward(r, n->file, r->off, passed);
		return;
	}
	r->msg.next = NULL;
	*ls->tail = &r->msg;
	ls->tail = &r->msg.next;
	ls->nr_held++;
}

static int lockstep_open(struct fiber *f, struct node *n, struct opts *o, struct varve_error *err)
{
	struct lockstep *ls = node_state(n);
	int ret = opts_get_u64(o, "seed", &ls->random, err);

	if (ret < 0)
		return ret;
	ls->q = fiber_queue(f);
	ls->tail = &ls->held;
	ls->hook.run = at_end_of_turn;
	ls->answer.run = answer_run;
	fiber_works_hold(ls->q, true);
	hook_add(ls->q, &ls->hook);
	atomic_store_explicit(&n->len, node_len(n->file), memory_order_relaxed);
	return 0;
}

static void lockstep_close(struct fiber *f, struct node *n)
{
	struct lockstep *ls = node_state(n);

	assert(fiber_queue(f) == ls->q && !ls->nr_held);
	hook_del(ls->q, &ls->hook);
	fiber_works_hold(ls->q, false);
}

static const struct varve_option_info open_options[] = {
	{ "seed", "num", "of the order in which requests reach the file", false },
	{ NULL, NULL, NULL, false },
};

const struct driver driver_lockstep = {
	.name = "lockstep",
	.kind = DRIVER_FILTER,
	.state_len = sizeof(struct lockstep),
	.open_options = open_options,
	.open = lockstep_open,
	.close = lockstep_close,
	.submit = lockstep_submit,
};
