/* SPDX-License-Identifier: MIT */
/*
 * bench/order_cost.c - what the block queue itself costs: time and memory of one put, time of writing it out
 *
 * Puts of 8 bytes (an L2 entry) at scattered and at neighbouring places of a file in memory, half of them behind a barrier; then
 * one flush. Prints JSON. Uses the library's internals: no program outside could ask for a put.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "block/graph.h"
#include "order/order.h"
#include "proto/proto.h"

#define PUTS 100000u
#define FILE_LEN MiB(256)

struct run {
	bool scattered;
	double put_ns, bytes_per_put, flush_ns_per_put;
	uint64_t syncs, writes;
};

static double now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec * 1e9 + (double)ts.tv_nsec;
}

static int measure(struct fiber *f, void *arg)
{
	struct run *r = arg;
	struct opts *o = opts_new();
	struct order_stats s;
	struct order *order;
	struct node *file;
	uint8_t entry[8] = { 1 };
	double begin;
	int ret = opts_set(o, "size", "256M", NULL);

	if (ret == 0)
		ret = graph_stack(f, &driver_memory, NULL, o, NODE_WRITABLE, &file, NULL);
	opts_free(o);
	if (ret == 0)
		ret = order_new(&order, file, GiB(1)); /* no limit is met */
	if (ret < 0)
		return ret;
	begin = now_ns();
	for (uint64_t i = 0; i < PUTS && ret == 0; i++) {
		uint64_t off = (r->scattered ? i * 7919 * 512 : i * sizeof(entry)) % FILE_LEN;

		ret = order_put(f, order, off, entry, sizeof(entry), i / 64 & 1 ? order_now(order) : ORDER_NONE, NULL);
	}
	r->put_ns = (now_ns() - begin) / PUTS;
	order_stats(order, &s);
	r->bytes_per_put = (double)s.queued_bytes / PUTS;
	begin = now_ns();
	if (ret == 0)
		ret = order_flush(f, order);
	r->flush_ns_per_put = (now_ns() - begin) / PUTS;
	order_stats(order, &s);
	r->syncs = s.syncs;
	r->writes = s.writes;
	order_free(f, order);
	graph_close(f, file, NULL);
	return ret;
}

int main(void)
{
	struct run runs[2] = { { .scattered = true }, { .scattered = false } };
	struct queue *q;

	if (queue_new(&q, NULL, NULL) < 0)
		return 1;
	for (unsigned i = 0; i < 2; i++) {
		if (fiber_call(q, measure, &runs[i]) < 0)
			return 1;
	}
	queue_free(q);
	printf("[\n");
	for (unsigned i = 0; i < 2; i++)
		printf("  {\"puts\": %u, \"scattered\": %s, \"put_ns\": %.1f, \"bytes_per_put\": %.1f, \"flush_ns_per_put\": %.1f, "
		       "\"syncs\": %llu, \"writes\": %llu}%s\n",
		       PUTS, runs[i].scattered ? "true" : "false", runs[i].put_ns, runs[i].bytes_per_put,
		       runs[i].flush_ns_per_put, (unsigned long long)runs[i].syncs, (unsigned long long)runs[i].writes,
		       i ? "" : ",");
	printf("]\n");
	return 0;
}
