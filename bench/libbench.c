/* SPDX-License-Identifier: MIT */
/*
 * libbench.c - asynchronous I/O of a fixed depth on one disk image, through libvarve
 *
 * Owns:    the queue, the image, one buffer for each request in flight, the histogram of latencies.
 * Assumes: the contents of the image do not matter: writes put a pattern of no meaning there.
 * Never:   allocates, prints or looks at a clock more than twice for each batch while it measures.
 *
 * The result is one JSON object on stdout. CPU time is that of this process between the first and the last
 * request; the kernel's workers for io_uring are threads of the process and are in it.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include <varve/varve.h>

#include "blkload_hist.h"

#define DEPTH_MAX 1024
#define BLOCK_MAX (1u << 20)
#define BUF_ALIGN 4096

static const char usage[] =
	"usage: libbench [option ...] IMAGE\n"
	"  --format F          raw, qcow2 (probed)\n"
	"  --rw MODE           randread, randwrite: offsets drawn at random; read, write: --step apart (randread)\n"
	"  --step BYTES        distance of two requests of read and write, around the end of the image (block size)\n"
	"  --block-size BYTES  of a request (4096)\n"
	"  --depth N           requests in flight, 1 to 1024 (32)\n"
	"  --cache MODE        as varve's (none)\n"
	"  --aio ENGINE        io_uring, threads (the best one)\n"
	"  --runtime SECONDS   for how long (3)\n"
	"  --ops N             how many requests, instead of a time\n"
	"  --flush-interval N  of writes: a flush after each N of them; 0: none (0). From the depth on all requests\n"
	"                      in flight end first; a shorter interval sends the flush between them\n"
	"  --seed N            of the offsets (1)\n";

struct slot {
	struct iovec iov;
	uint64_t begin_ns;
	bool flushes;
};

struct bench {
	/* options */
	struct varve_open_options open;
	const char *name, *rw;
	uint64_t block_len, depth, step, runtime_ns, nr_ops, seed, flush_interval;
	bool write, random;

	/* while it runs */
	struct varve_queue *queue;
	struct varve_image *image;
	struct slot *slots;
	unsigned char *memory;
	uint64_t nr_blocks, next_off, rng;
	uint64_t started, finished, begin_ns, end_ns, until_ns;
	uint64_t flushes_started, flushes_finished, flush_at;
	uint64_t idle[DEPTH_MAX]; /* slots without a request, while a flush waits for those in flight */
	unsigned nr_idle;
	struct hist hist;
};

static int fail(const char *fmt, ...)
{
	va_list ap;

	fputs("libbench: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	return 1;
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* ---- options ---- */

enum { FORMAT = 256, RW, STEP, BLOCK, DEPTH, CACHE, AIO, RUNTIME, OPS, SEED, FLUSH, HELP };

static int take_number(const char *option, const char *text, uint64_t min, uint64_t max, uint64_t *ret)
{
	char *end;

	errno = 0;
	*ret = strtoull(text, &end, 10);
	if (errno || end == text || *end || *text == '-' || *ret < min || *ret > max)
		return fail("--%s: '%s' is not a number of %" PRIu64 " .. %" PRIu64, option, text, min, max);
	return 0;
}

static int take_runtime(const char *text, uint64_t *ret_ns)
{
	char *end;
	double s = strtod(text, &end);

	if (end == text || *end || !(s >= 0.001 && s <= 3600))
		return fail("--runtime: '%s' is not a number of seconds, 0.001 .. 3600", text);
	*ret_ns = (uint64_t)(s * 1e9);
	return 0;
}

static int take_rw(struct bench *b, const char *text)
{
	b->rw = text;
	b->random = !strncmp(text, "rand", 4);
	if (b->random)
		text += 4;
	b->write = !strcmp(text, "write");
	if (!b->write && strcmp(text, "read"))
		return fail("--rw: '%s' is not read, write, randread or randwrite", b->rw);
	return 0;
}

static int take(struct bench *b, int c)
{
	switch (c) {
	case FORMAT:
		b->open.format = optarg;
		return 0;
	case RW:
		return take_rw(b, optarg);
	case STEP:
		return take_number("step", optarg, 1, INT64_MAX, &b->step);
	case BLOCK:
		return take_number("block-size", optarg, 1, BLOCK_MAX, &b->block_len);
	case DEPTH:
		return take_number("depth", optarg, 1, DEPTH_MAX, &b->depth);
	case CACHE:
		b->open.cache = optarg;
		return 0;
	case AIO:
		b->open.aio = optarg;
		return 0;
	case RUNTIME:
		return take_runtime(optarg, &b->runtime_ns);
	case OPS:
		return take_number("ops", optarg, 1, INT64_MAX, &b->nr_ops);
	case FLUSH:
		return take_number("flush-interval", optarg, 0, INT64_MAX, &b->flush_interval);
	case SEED:
		return take_number("seed", optarg, 0, UINT64_MAX, &b->seed);
	default:
		fputs(usage, c == HELP ? stdout : stderr);
		return c == HELP ? -1 : 1;
	}
}

/* 0; 1: wrong, told; -1: help was wanted. */
static int parse(struct bench *b, int argc, char **argv)
{
	static const struct option longs[] = {
		{ "format", required_argument, NULL, FORMAT },	{ "rw", required_argument, NULL, RW },
		{ "step", required_argument, NULL, STEP },	{ "block-size", required_argument, NULL, BLOCK },
		{ "depth", required_argument, NULL, DEPTH },	{ "cache", required_argument, NULL, CACHE },
		{ "aio", required_argument, NULL, AIO },	{ "runtime", required_argument, NULL, RUNTIME },
		{ "ops", required_argument, NULL, OPS },	{ "seed", required_argument, NULL, SEED },
		{ "flush-interval", required_argument, NULL, FLUSH },
		{ "help", no_argument, NULL, HELP },		{ 0 },
	};
	int c, ret;

	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		ret = take(b, c);
		if (ret)
			return ret;
	}
	if (argc - optind != 1)
		return fail("one IMAGE is wanted; see --help");
	b->name = argv[optind];
	if (b->flush_interval && !b->write)
		return fail("--flush-interval: there is nothing to flush while reading");
	b->flush_at = b->flush_interval ? b->flush_interval : UINT64_MAX;
	if (b->step == 0)
		b->step = b->block_len;
	b->open.flags = b->write ? VARVE_OPEN_WRITABLE : 0;
	return 0;
}

/* ---- the run ---- */

static int prepare(struct bench *b)
{
	struct varve_queue_options qo = { .flags = VARVE_QUEUE_ONE_THREAD, .depth = (unsigned)b->depth, .name = "libbench" };
	struct varve_error err;
	void *memory;
	uint64_t i;

	if (varve_queue_new(&b->queue, &qo, &err) < 0)
		return fail("%s", err.message);
	b->open.home = b->queue;
	if (varve_image_open(&b->image, b->name, &b->open, &err) < 0)
		return fail("%s", err.message);
	b->nr_blocks = varve_image_length(b->image) / b->block_len;
	if (b->nr_blocks == 0)
		return fail("%s: shorter than one block of %" PRIu64 " bytes", b->name, b->block_len);
	b->slots = calloc(b->depth, sizeof(*b->slots));
	if (!b->slots || posix_memalign(&memory, BUF_ALIGN, b->depth * b->block_len))
		return fail("no memory for %" PRIu64 " buffers of %" PRIu64 " bytes", b->depth, b->block_len);
	b->memory = memory;
	memset(memory, 0x5a, b->depth * b->block_len);
	for (i = 0; i < b->depth; i++)
		b->slots[i].iov = (struct iovec){ b->memory + i * b->block_len, b->block_len };
	b->rng = b->seed * 2 + 1;
	return 0;
}

/* xorshift64*: fast, and good enough to spread offsets. */
static uint64_t draw(struct bench *b)
{
	b->rng ^= b->rng >> 12;
	b->rng ^= b->rng << 25;
	b->rng ^= b->rng >> 27;
	return b->rng * 0x2545f4914f6cdd1du;
}

static uint64_t choose_off(struct bench *b)
{
	uint64_t off = b->next_off, all = b->nr_blocks * b->block_len;

	if (b->random) /* the high bits of the product: no division */
		return (uint64_t)(((unsigned __int128)draw(b) * b->nr_blocks) >> 64) * b->block_len;
	b->next_off = (off + b->step % all) % all;
	return off <= all - b->block_len ? off : all - b->block_len;
}

static int start(struct bench *b, struct slot *s, uint64_t now)
{
	uint64_t off = choose_off(b);
	int ret;

	s->begin_ns = now;
	if (b->write)
		ret = varve_submit_writev(b->queue, b->image, &s->iov, 1, off, 0, s);
	else
		ret = varve_submit_readv(b->queue, b->image, &s->iov, 1, off, s);
	if (ret < 0)
		return fail("%s: offset %" PRIu64 ": not submitted: %s", b->name, off, strerror(-ret));
	b->started++;
	return 0;
}

static int start_flush(struct bench *b, struct slot *s)
{
	int ret = varve_submit_flush(b->queue, b->image, s);

	if (ret < 0)
		return fail("%s: flush not submitted: %s", b->name, strerror(-ret));
	s->flushes = true;
	b->flush_at += b->flush_interval;
	b->flushes_started++;
	return 0;
}

static bool may_start(const struct bench *b, uint64_t now)
{
	return b->nr_ops ? b->started < b->nr_ops : now < b->until_ns;
}

static uint64_t in_flight(const struct bench *b)
{
	return b->started - b->finished + b->flushes_started - b->flushes_finished;
}

/* What a free slot does next: a write or read, a flush, or nothing until those in flight have ended. */
static int start_next(struct bench *b, unsigned i, uint64_t now)
{
	struct slot *s = &b->slots[i];
	bool drains = b->flush_interval >= b->depth;

	if (b->started >= b->flush_at) {
		if (!drains || !in_flight(b))
			return start_flush(b, s);
	} else if (may_start(b, now) && !(drains && b->flushes_started > b->flushes_finished)) {
		return start(b, s, now);
	}
	b->idle[b->nr_idle++] = i;
	return 0;
}

static int start_idle(struct bench *b, uint64_t now)
{
	unsigned nr = b->nr_idle;
	uint64_t idle[DEPTH_MAX];

	memcpy(idle, b->idle, nr * sizeof(idle[0]));
	b->nr_idle = 0;
	for (unsigned i = 0; i < nr; i++)
		if (start_next(b, (unsigned)idle[i], now))
			return 1;
	return 0;
}

static int run(struct bench *b)
{
	struct varve_completion done[DEPTH_MAX];
	uint64_t now = now_ns();
	int i, n;

	b->begin_ns = now;
	b->until_ns = now + b->runtime_ns;
	for (i = 0; i < (int)b->depth; i++)
		b->idle[b->nr_idle++] = (uint64_t)i;
	if (start_idle(b, now))
		return 1;
	while (in_flight(b)) {
		n = varve_queue_reap(b->queue, done, DEPTH_MAX, -1);
		if (n < 0)
			return fail("%s: the queue failed: %s", b->name, strerror(-n));
		now = now_ns();
		for (i = 0; i < n; i++) {
			struct slot *s = done[i].user_data;

			if (done[i].result < 0)
				return fail("%s: a request failed: %s", b->name, strerror(-done[i].result));
			if (s->flushes) {
				s->flushes = false;
				b->flushes_finished++;
			} else {
				hist_add(&b->hist, now - s->begin_ns);
				b->finished++;
			}
			b->idle[b->nr_idle++] = (uint64_t)(s - b->slots);
		}
		if (start_idle(b, now))
			return 1;
	}
	b->end_ns = now;
	return 0;
}

/* ---- the result ---- */

static double seconds(struct timeval a, struct timeval b)
{
	return (double)(b.tv_sec - a.tv_sec) + (double)(b.tv_usec - a.tv_usec) / 1e6;
}

static void report(const struct bench *b, const struct rusage *before, const struct rusage *after, char *stats)
{
	double elapsed = (double)(b->end_ns - b->begin_ns) / 1e9;
	double user = seconds(before->ru_utime, after->ru_utime), sys = seconds(before->ru_stime, after->ru_stime);
	const struct hist *h = &b->hist;

	printf("{\"rw\": \"%s\", \"block_size_bytes\": %" PRIu64 ", \"depth\": %" PRIu64 ", \"requests\": %" PRIu64
	       ", \"elapsed_seconds\": %.6f, \"iops\": %.1f,\n",
	       b->rw, b->block_len, b->depth, b->finished, elapsed, (double)b->finished / elapsed);
	printf(" \"flushes\": %" PRIu64 ",\n", b->flushes_finished);
	printf(" \"cpu_user_ns_per_op\": %.1f, \"cpu_sys_ns_per_op\": %.1f, \"context_switches\": %ld,\n",
	       user * 1e9 / (double)b->finished, sys * 1e9 / (double)b->finished,
	       after->ru_nvcsw - before->ru_nvcsw + after->ru_nivcsw - before->ru_nivcsw);
	printf(" \"latency_mean_ns\": %" PRIu64 ", \"latency_p50_ns\": %" PRIu64 ", \"latency_p90_ns\": %" PRIu64
	       ", \"latency_p99_ns\": %" PRIu64 ", \"latency_p99_9_ns\": %" PRIu64 ", \"latency_max_ns\": %" PRIu64
	       ",\n",
	       hist_mean(h), hist_percentile(h, 5000), hist_percentile(h, 9000), hist_percentile(h, 9900),
	       hist_percentile(h, 9990), h->max);
	printf(" \"stats\": %s}\n", stats ? stats : "null");
}

int main(int argc, char **argv)
{
	static struct bench b = { .open.cache = "none", .block_len = 4096, .depth = 32, .runtime_ns = 3000000000u,
				  .seed = 1, .rw = "randread", .random = true };
	struct rusage before, after;
	struct varve_error err;
	char *stats = NULL;
	int ret;

	ret = parse(&b, argc, argv);
	if (ret)
		return ret > 0;
	if (prepare(&b))
		return 1;
	getrusage(RUSAGE_SELF, &before);
	if (run(&b))
		return 1;
	getrusage(RUSAGE_SELF, &after);
	if (varve_image_stats(b.image, &stats, &err) < 0)
		return fail("%s", err.message);
	if (varve_image_close(b.image, &err) < 0)
		return fail("%s", err.message);
	varve_queue_free(b.queue);
	report(&b, &before, &after, stats);
	free(stats);
	free(b.slots);
	free(b.memory);
	return 0;
}
