/* SPDX-License-Identifier: MIT */
/*
 * tools/img_bench.h - what the parts of `varve img bench` share
 *
 *   img_bench.c         options, their limits, opening the image
 *   img_bench_run.c     the measured loop
 *   img_bench_report.c  what is printed
 */
#ifndef VARVE_TOOLS_IMG_BENCH_H
#define VARVE_TOOLS_IMG_BENCH_H

#include "histogram.h"
#include "img.h"

#define BENCH_DEPTH_MAX 4096	      /* of a queue of the library */
#define BENCH_SIZE_MAX 2147483647u    /* as the peer's */
#define BENCH_MEMORY_MAX (1ull << 30) /* all buffers together */
#define BENCH_SECONDS_MAX (86400u * 7)

struct bench_args {
	const char *name;
	struct open_args open;
	bool has_count; /* else no limit, the time decides */
	unsigned count;
	unsigned depth;
	uint64_t size, step; /* of a request; from one to the next */
	uint64_t offset;     /* of the first */
	bool write;
	unsigned pattern;
	unsigned flush_interval; /* 0: no flushes */
	bool no_drain;
	bool random;
	uint64_t seed;
	unsigned seconds; /* 0: no limit, the count decides */
	enum output output;
	bool quiet, latency;
};

struct bench_result {
	uint64_t requests, flushes; /* completed */
	double seconds;
	double user_us, system_us;		 /* processor time of the process */
	struct histogram latency, flush_latency; /* ns */
};

/* The processor, the queue and the image are ready, the arguments fit the image. 0, or 1 after a message. */
int bench_run(const struct bench_args *a, struct varve_queue *queue, struct varve_image *image,
	      struct bench_result *r);

/* Before: the lines that say what is done. */
void bench_announce(const struct bench_args *a);
/* After. 0, or 1 after a message. */
int bench_report(const struct bench_args *a, struct varve_image *image, const struct bench_result *r);

#endif
