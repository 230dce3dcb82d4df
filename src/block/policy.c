/* SPDX-License-Identifier: MIT */
/*
 * block/policy.c - werror=: a disk that stops instead of failing a write
 *
 * A request that failed is put back as it came (a write that became a flush is a write again: a failed flush says
 * that data may be lost, and only writing it again brings it back), and waits in the slot of its queue.
 *
 * Owns:    the state, and the requests that wait.
 * Assumes: node.c asks at the door and hands over what failed there; a slot outlives the messages sent to it.
 * Never:   lets a request wait while the state says RUNNING, beyond the message that restarts its queue.
 */
#include "block/policy.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/words.h"
#include "block/block.h"

struct policy {
	/* set at open */
	enum werror werror;
	pthread_mutex_t slots_lock; /* no slot goes while it is held */

	/* any queue, atomically */
	_Atomic int error;	 /* 0: RUNNING */
	_Atomic int last_error;	 /* what waits is answered with it when it fails */
	_Atomic unsigned failing;
	_Atomic uint64_t nr_parked, parked_bytes;
};

static const char *const names[] = {
	[WERROR_REPORT] = "report", [WERROR_STOP] = "stop", [WERROR_ENOSPC] = "enospc"
};

const char *werror_name(enum werror werror)
{
	return names[werror];
}

int policy_options(struct opts *o, enum werror *ret, struct varve_error *err)
{
	const char *value = opts_get(o, "werror");
	int i;

	*ret = WERROR_REPORT;
	if (!value)
		return 0;
	i = words_find(WERROR_WORDS, value);
	if (i >= 0) {
		*ret = (enum werror)i;
		return 0;
	}
	return varve_error_set(err, -EINVAL, "option 'werror': '%.200s' is not report, stop or enospc", value);
}

int policy_open(struct node *n, enum werror werror, struct varve_error *err)
{
	struct policy *p;

	if (werror == WERROR_REPORT)
		return 0;
	p = calloc(1, sizeof(*p));
	if (!p)
		return varve_error_errno(err, -ENOMEM, "option 'werror'");
	p->werror = werror;
	pthread_mutex_init(&p->slots_lock, NULL);
	n->policy = p;
	return 0;
}

void policy_free(struct node *n)
{
	if (!n->policy)
		return;
	pthread_mutex_destroy(&n->policy->slots_lock);
	free(n->policy);
	n->policy = NULL;
}

void policy_lock(struct node *n)
{
	if (n->policy)
		pthread_mutex_lock(&n->policy->slots_lock);
}

void policy_unlock(struct node *n)
{
	if (n->policy)
		pthread_mutex_unlock(&n->policy->slots_lock);
}

/* ---- at the door, on the request's queue ---- */

static void park(struct policy *p, struct node_slot *s, struct req *r)
{
	TAILQ_INSERT_TAIL(&s->stopped, r, parked);
	atomic_fetch_add(&p->nr_parked, 1);
	atomic_fetch_add(&p->parked_bytes, r->op == REQ_FLUSH ? 0 : r->len);
}

static struct req *unpark(struct policy *p, struct node_slot *s)
{
	struct req *r = TAILQ_FIRST(&s->stopped);

	if (!r)
		return NULL;
	TAILQ_REMOVE(&s->stopped, r, parked);
	atomic_fetch_sub(&p->nr_parked, 1);
	atomic_fetch_sub(&p->parked_bytes, r->op == REQ_FLUSH ? 0 : r->len);
	return r;
}

bool policy_enter(struct node *n, struct node_slot *s, struct req *r)
{
	struct policy *p = n->policy;

	if (unlikely(atomic_load(&p->error)) && r->op != REQ_READ && !(r->flags & REQ_NO_STOP)) {
		park(p, s, r);
		return false;
	}
	/* As it came, to be sent again: in the hop that the door is about to take. */
	req_set_state(r, (uintptr_t)r->op | (uintptr_t)r->flags << 8);
	return true;
}

static bool is_for(const struct policy *p, enum req_op op, int ret)
{
	return (op == REQ_WRITE || op == REQ_ZERO || op == REQ_FLUSH) && !atomic_load(&p->failing) &&
	       (p->werror == WERROR_STOP || ret == -ENOSPC);
}

bool policy_takes(struct node *n, struct req *r, int ret)
{
	struct policy *p = n->policy;
	uintptr_t came = req_state(r);
	enum req_op op = (enum req_op)(came & 0xff);
	int running = 0;

	if (!is_for(p, op, ret) || ((uint32_t)(came >> 8) & REQ_NO_STOP))
		return false;
	r->op = op;
	r->flags = (uint32_t)(came >> 8);
	atomic_store(&p->last_error, ret);
	park(p, node_slot(n, r->q), r);
	if (atomic_compare_exchange_strong(&p->error, &running, ret))
		log_error("%s: a %s failed (%s): the disk stops; writes wait until it is resumed", node_name(n),
			  op == REQ_FLUSH ? "flush" : "write", strerror(-ret));
	/*
	 * Failing has begun since we looked: its message may have come before this request was here. Pairs with the
	 * increment, which comes before its look at `error`.
	 */
	if (unlikely(atomic_load(&p->failing)))
		policy_restart(n, node_slot(n, r->q));
	return true;
}

/* ---- restarting ---- */

/* On the slot's queue. Only what waits now: what fails again waits for the next time. */
void policy_restart(struct node *n, struct node_slot *s)
{
	struct policy *p = n->policy;
	struct req_list again = TAILQ_HEAD_INITIALIZER(again);
	struct req *r;

	while ((r = unpark(p, s)))
		TAILQ_INSERT_TAIL(&again, r, parked);
	if (atomic_load(&p->failing))
		atomic_store(&p->error, 0);
	while ((r = TAILQ_FIRST(&again))) {
		TAILQ_REMOVE(&again, r, parked);
		if (atomic_load(&p->failing))
			req_done(r, atomic_load(&p->last_error));
		else
			node_submit(n, r);
	}
}

static void restart_all(struct node *n)
{
	policy_lock(n);
	for (unsigned i = 0; i < QUEUE_MAX; i++) {
		struct node_slot *s = atomic_load(&n->slots[i]); /* pairs with node_attach() */

		if (s)
			node_slot_restart(s);
	}
	policy_unlock(n);
}

int policy_resume(struct node *n)
{
	int error;

	if (!n->policy)
		return 0;
	/* First the state, then the messages: what parks because of the old state is there when its message comes. */
	error = atomic_exchange(&n->policy->error, 0);
	if (error)
		restart_all(n);
	return error;
}

void policy_failing_begin(struct node *n)
{
	if (!n->policy)
		return;
	atomic_fetch_add(&n->policy->failing, 1);
	atomic_exchange(&n->policy->error, 0);
	restart_all(n);
}

void policy_failing_end(struct node *n)
{
	if (n->policy)
		atomic_fetch_sub(&n->policy->failing, 1);
}

bool policy_get_state(const struct node *n, struct policy_state *ret)
{
	struct policy *p = n->policy;

	if (!p)
		return false;
	ret->werror = p->werror;
	ret->error = atomic_load(&p->error);
	ret->nr_parked = atomic_load(&p->nr_parked);
	ret->parked_bytes = atomic_load(&p->parked_bytes);
	return true;
}
