/* SPDX-License-Identifier: MIT */
/*
 * blkload_link.c - a back end that goes away and comes back
 *
 * Owns:    the connection while no worker uses it.
 * Assumes: a worker that finds the connection gone waits here; those that are left will find it too.
 * Never:   connects anew while a worker may still look at its ring.
 *
 * With an area for requests in flight the back end finishes what its predecessor owed. Without, all of
 * that is offered again, which we may do because no two requests of ours in flight touch a block that
 * one of them writes, and a real driver may not.
 */
#include "blkload.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define RETRY_NS	10000000	/* between two attempts to connect */

int load_link_init(struct load *l)
{
	int ret = pthread_mutex_init(&l->link_lock, NULL);

	return ret ? -ret : -pthread_cond_init(&l->link_changed, NULL);
}

/* The main thread has something to look at. */
static void raise_done(struct load *l)
{
	uint64_t one = 1;

	if (write(l->done_fd, &one, sizeof(one)) != sizeof(one))
		abort();	/* an eventfd far below its limit takes every write */
}

void load_worker_ended(struct load_worker *w)
{
	struct load *l = w->load;

	pthread_mutex_lock(&l->link_lock);
	l->nr_live--;
	pthread_mutex_unlock(&l->link_lock);
	raise_done(l);
}

int load_link_lost(struct load_worker *w)
{
	struct load *l = w->load;
	unsigned generation;
	int ret;

	if (!l->o.reconnect_ns)
		return -ECONNRESET;
	pthread_mutex_lock(&l->link_lock);
	generation = l->generation;
	l->nr_lost++;
	raise_done(l);
	while (l->generation == generation && !l->given_up)
		pthread_cond_wait(&l->link_changed, &l->link_lock);
	ret = l->given_up ? -ECONNRESET : 0;
	pthread_mutex_unlock(&l->link_lock);
	return ret;
}

/* Nobody is there yet, or who was there is gone again. */
static bool may_come(int ret)
{
	return ret == -ECONNREFUSED || ret == -ENOENT || ret == -ECONNRESET || ret == -EPIPE;
}

int load_link_open(struct load *l, const struct vu_front_opts *fo)
{
	const struct timespec pause = { .tv_nsec = RETRY_NS };
	uint64_t until = vu_now_ns() + l->o.reconnect_ns;
	int ret;

	while ((ret = vu_front_open(&l->front, fo)) < 0 && may_come(ret) && vu_now_ns() < until) {
		vu_front_close(&l->front);
		nanosleep(&pause, NULL);
	}
	return ret;
}

static int check_same(struct load *l, uint64_t features)
{
	struct vu_blk_limits limits;

	vu_blk_limits(&l->front, &limits);
	if (l->front.features != features)
		return vu_fail(&l->front.err, -EPROTO,
			       "the back end that came back offers features 0x%llx, 0x%llx are in use",
			       (unsigned long long)l->front.dev_features, (unsigned long long)features);
	if (limits.capacity < l->o.range_off + l->o.range_len)
		return vu_fail(&l->front.err, -EPROTO, "the disk came back with %llu bytes only",
			       (unsigned long long)limits.capacity);
	return 0;
}

static int attempt(struct load *l)
{
	uint64_t features = l->front.features;
	unsigned q;
	int ret;

	ret = vu_front_connect(&l->front);
	if (ret == 0)
		ret = vu_front_negotiate(&l->front);
	if (ret == 0)
		ret = check_same(l, features);
	else
		l->front.features = features;
	if (ret == 0)
		ret = vu_front_share_memory(&l->front);
	if (ret == 0)
		ret = vu_front_share_inflight(&l->front);
	for (q = 0; ret == 0 && q < l->o.nr_queues; q++) {
		if (l->front.inflight_fd < 0)
			ret = load_worker_offer_again(&l->worker[q]);
		if (ret == 0)
			ret = vu_front_start_queue(&l->front, q);
	}
	return ret;
}

static int connect_anew(struct load *l)
{
	const struct timespec pause = { .tv_nsec = RETRY_NS };
	uint64_t until = vu_now_ns() + l->o.reconnect_ns;
	int ret;

	for (;;) {
		vu_front_disconnect(&l->front);
		ret = attempt(l);
		if (!may_come(ret) || vu_now_ns() >= until ||
		    __atomic_load_n(&l->interrupted, __ATOMIC_RELAXED))
			return ret;
		nanosleep(&pause, NULL);
	}
}

unsigned load_link_mend(struct load *l)
{
	unsigned live;

	pthread_mutex_lock(&l->link_lock);
	live = l->nr_live;
	if (live > 0 && l->nr_lost == live && !l->given_up) {
		/* All who could look at a ring wait for this lock. */
		l->given_up = connect_anew(l) < 0;
		if (l->given_up)
			load_say(l, "the back end did not come back: %s", l->front.err.text);
		l->nr_lost = 0;
		l->generation++;
		pthread_cond_broadcast(&l->link_changed);
	}
	pthread_mutex_unlock(&l->link_lock);
	return live;
}
