/* SPDX-License-Identifier: MIT */
/*
 * tools/img_bench_run.c - the measured loop of `varve img bench`
 *
 * Owns:    the slots of the requests and their memory, allocated once before the clock starts.
 * Assumes: the queue is the image's home, is run by this thread and takes bench_args.depth requests.
 * Never:   allocates or prints while the clock runs; leaves before everything in flight has come back.
 *
 * The clock is read once in a turn: what comes back together is stamped together, and so are the requests
 * that take its place. A latency therefore includes the time a request waits to be sent and to be noticed.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "img_bench.h"

#define BUFFER_ALIGN 65536 /* direct I/O asks for no more anywhere */
#define BUFFER_ROUND 64	   /* tiny buffers do not share a cache line */

struct slot {
	struct iovec iov;
	uint64_t start_ns;
	uint64_t off;
	bool flush;
	struct slot *next; /* while free */
};

#define NS UINT64_C(1000000000) /* in a second */

struct bench {
	const struct bench_args *a;
	struct varve_queue *queue;
	struct varve_image *image;
	struct bench_result *r;
	uint64_t len;
	struct slot *slots, *free;
	struct varve_completion *done;
	uint8_t *memory;
	unsigned in_flight;
	uint64_t submitted; /* reads or writes, without flushes */
	uint64_t next_off;
	uint64_t random_places;
	uint64_t rng;
	bool flush_due;	  /* before the next write */
	bool flush_alone; /* the flush of a drained queue is in flight */
	bool stop;
	uint64_t now_ns, end_ns;
};

static uint64_t clock_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

/* splitmix64: a counter, mixed until no bit follows from another. */
static uint64_t rng_next(struct bench *b)
{
	uint64_t z = b->rng += 0x9e3779b97f4a7c15u;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

/* Where the next request goes. The sequence goes round at the end of the image. */
static uint64_t take_offset(struct bench *b)
{
	uint64_t off = b->next_off;

	if (b->a->random)
		return b->a->offset +
		       (uint64_t)(((unsigned __int128)rng_next(b) * b->random_places) >> 64) * b->a->step;
	b->next_off = (off + b->a->step) % b->len;
	return off;
}

static void fail(struct bench *b, const struct slot *s, int error)
{
	const struct bench_args *a = b->a;

	if (!b->stop && s->flush)
		complain("%s: flush: %s", a->name, strerror(-error));
	else if (!b->stop)
		complain("%s: %s of %" PRIu64 " bytes at offset %" PRIu64 ": %s", a->name,
			 a->write ? "write" : "read", a->size, s->off, strerror(-error));
	b->stop = true;
}

static struct slot *slot_take(struct bench *b)
{
	struct slot *s = b->free;

	b->free = s->next;
	s->start_ns = b->now_ns;
	return s;
}

static void slot_give(struct bench *b, struct slot *s)
{
	s->next = b->free;
	b->free = s;
}

static void sent(struct bench *b, struct slot *s, int ret)
{
	if (ret == 0) {
		b->in_flight++;
		return;
	}
	fail(b, s, ret);
	slot_give(b, s);
}

static void send_flush(struct bench *b)
{
	struct slot *s = slot_take(b);

	s->flush = true;
	b->flush_due = false;
	b->flush_alone = !b->a->no_drain;
	sent(b, s, varve_submit_flush(b->queue, b->image, s));
}

static void send_one(struct bench *b)
{
	const struct bench_args *a = b->a;
	struct slot *s = slot_take(b);

	s->flush = false;
	s->off = take_offset(b);
	if (s->off > b->len - a->size) {
		if (!b->stop)
			complain("%s: request %" PRIu64 ", %" PRIu64 " bytes at offset %" PRIu64
				 ", crosses the end of "
				 "the image at %" PRIu64 "; choose -s, -S and -o that divide it, or --random",
				 a->name, b->submitted, a->size, s->off, b->len);
		b->stop = true;
		slot_give(b, s);
		return;
	}
	b->submitted++;
	if (a->write)
		sent(b, s, varve_submit_writev(b->queue, b->image, &s->iov, 1, s->off, 0, s));
	else
		sent(b, s, varve_submit_readv(b->queue, b->image, &s->iov, 1, s->off, s));
	if (a->flush_interval)
		b->flush_due = (a->has_count ? a->count - b->submitted : b->submitted) % a->flush_interval == 0;
}

static bool finished(const struct bench *b)
{
	return b->stop || (b->a->has_count && b->submitted == b->a->count) || b->now_ns >= b->end_ns;
}

/* Fills the queue, as far as flushes let it. */
static void refill(struct bench *b)
{
	while (b->free && !b->stop && !b->flush_alone) {
		if (b->flush_due) {
			if (b->in_flight && !b->a->no_drain)
				return;
			send_flush(b);
		} else if (finished(b)) {
			return;
		} else {
			send_one(b);
		}
	}
}

static void completed(struct bench *b, struct slot *s, int result)
{
	uint64_t took = b->now_ns - s->start_ns;

	b->in_flight--;
	if (result < 0) {
		fail(b, s, result);
	} else if (s->flush) {
		b->r->flushes++;
		histogram_add(&b->r->flush_latency, took);
	} else {
		b->r->requests++;
		histogram_add(&b->r->latency, took);
	}
	if (s->flush)
		b->flush_alone = false;
	slot_give(b, s);
}

/* Whatever happens, what is in flight comes back before the memory goes. */
static void loop(struct bench *b)
{
	refill(b);
	while (b->in_flight) {
		int n = varve_queue_reap(b->queue, b->done, (int)b->a->depth, -1);

		if (n < 0 && n != -EINTR) {
			complain("%s: waiting for requests: %s", b->a->name, strerror(-n));
			/* The kernel may still write to the buffers: nothing may be freed. */
			exit(1);
		}
		b->now_ns = clock_ns();
		for (int i = 0; i < n; i++)
			completed(b, b->done[i].user_data, b->done[i].result);
		refill(b);
		if (b->a->has_count)
			progress_update(NULL, b->submitted, b->a->count);
		else
			progress_update(NULL, b->a->seconds * NS - MIN(b->now_ns < b->end_ns ? b->end_ns - b->now_ns : 0, b->a->seconds * NS), b->a->seconds * NS);
	}
}

static int prepare(struct bench *b)
{
	const struct bench_args *a = b->a;
	size_t stride = (a->size + BUFFER_ROUND - 1) / BUFFER_ROUND * BUFFER_ROUND, len = stride * a->depth;
	void *memory;

	b->slots = calloc(a->depth, sizeof(*b->slots));
	b->done = calloc(a->depth, sizeof(*b->done));
	/* No buffer is misaligned for a device whose unit divides the size of the requests. */
	if (!b->slots || !b->done || posix_memalign(&memory, BUFFER_ALIGN, len)) {
		complain("no memory for %u requests of %" PRIu64 " bytes; lower -d or -s", a->depth, a->size);
		return 1;
	}
	b->memory = memory;
	memset(memory, (int)a->pattern, len); /* and the pages are there before the clock starts */
	for (unsigned i = a->depth; i-- > 0;) {
		b->slots[i].iov = (struct iovec){ .iov_base = b->memory + i * stride, .iov_len = a->size };
		slot_give(b, &b->slots[i]);
	}
	return 0;
}

static double usage_us(const struct timeval *from, const struct timeval *to)
{
	return (double)(to->tv_sec - from->tv_sec) * 1e6 + (double)(to->tv_usec - from->tv_usec);
}

static void measure(struct bench *b)
{
	struct rusage before, after;
	uint64_t start_ns;

	getrusage(RUSAGE_SELF, &before);
	start_ns = b->now_ns = clock_ns();
	b->end_ns = b->a->seconds ? start_ns + (uint64_t)b->a->seconds * 1000000000 : UINT64_MAX;
	loop(b);
	b->r->seconds = (double)(clock_ns() - start_ns) / 1e9;
	getrusage(RUSAGE_SELF, &after);
	b->r->user_us = usage_us(&before.ru_utime, &after.ru_utime);
	b->r->system_us = usage_us(&before.ru_stime, &after.ru_stime);
}

int bench_run(const struct bench_args *a, struct varve_queue *queue, struct varve_image *image,
	      struct bench_result *r)
{
	struct bench b = {
		.a = a,
		.queue = queue,
		.image = image,
		.r = r,
		.len = varve_image_length(image),
		.next_off = a->offset,
		.rng = a->seed,
	};
	int ret = prepare(&b);

	if (ret == 0) {
		if (a->random)
			b.random_places = (b.len - a->offset - a->size) / a->step + 1;
		measure(&b);
		ret = b.stop;
	}
	free(b.slots);
	free(b.done);
	free(b.memory);
	return ret;
}
