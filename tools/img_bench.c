/* SPDX-License-Identifier: MIT */
/*
 * tools/img_bench.c - `varve img bench`: options, their limits, opening the image
 *
 * Owns:    nothing beyond one run.
 * Assumes: see img_bench.h.
 * Never:   starts a run that cannot end: what can be known to be wrong is refused before anything is printed.
 */
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "img_bench.h"

enum {
	BENCH_PATTERN = LONG_COMMAND,
	BENCH_FLUSH_INTERVAL,
	BENCH_NO_DRAIN,
	BENCH_RANDOM,
	BENCH_DURATION,
	BENCH_LATENCY
};

static const struct option_row options[] = {
	{ 'c', "count", "COUNT", "requests in all (75000)" },
	{ 'd', "depth", "DEPTH", "requests at once (64)" },
	{ 's', "buffer-size", "SIZE", "of a request (4096)" },
	{ 'S', "step-size", "SIZE", "from one request to the next (the size of a request)" },
	{ 'o', "offset", "OFFSET", "of the first request (0)" },
	{ BENCH_RANDOM, "random", "=SEED", "at random multiples of the step behind the offset, not in sequence" },
	{ BENCH_DURATION, "duration", "SECONDS", "stop then; without -c the number of requests has no limit" },
	{ 'w', "write", NULL, "write; destroys the content of FILE" },
	{ BENCH_PATTERN, "pattern", "BYTE", "write this byte (0)" },
	{ BENCH_FLUSH_INTERVAL, "flush-interval", "COUNT", "flush after so many writes, when all of them have completed" },
	{ BENCH_NO_DRAIN, "no-drain", NULL, "do not wait for them" },
	{ 'i', "aio", ARG_ENGINE, "io_uring, native, posix, threads" },
	{ 'n', "native", NULL, "the same as -i native" },
	OPT_CACHE('t'),
	OPT_FORMAT,
	OPT_IMAGE_OPTS,
	{ 'U', "force-share", NULL, "also while another process writes to the image; not with -w" },
	{ BENCH_LATENCY, "latency", NULL, "print a line of latencies too" },
	{ LONG_OUTPUT, "output", OUTPUT_WORDS, "human (default) or json (parameters, speed, latency, processor time)" },
	OPT_OBJECT,
	{ 'q', "quiet", NULL, "print neither parameters nor the time taken" },
	OPTION_END,
};

/* What needs no image to be judged. 0, or 1 after a message. */
static int check_arguments(struct bench_args *a)
{
	if (!a->step)
		a->step = a->size;
	if (a->flush_interval && !a->write)
		return complain_usage("bench: --flush-interval needs -w: reads leave nothing to flush");
	if (a->flush_interval && a->flush_interval < a->depth)
		return complain_usage("bench: --flush-interval %u is smaller than the depth %u (-d)",
				      a->flush_interval, a->depth);
	if (a->open.force_share && a->write)
		return complain_usage(
			"bench: -U is for reads; an image that another process holds is not written");
	if (a->size * a->depth > BENCH_MEMORY_MAX)
		return complain_usage("bench: %u requests of %" PRIu64
				      " bytes are more than 1 GiB of buffers; lower -d "
				      "or -s",
				      a->depth, a->size);
	return 0;
}

/* What the image must allow. 0, or 1 after a message. */
static int check_image(const struct bench_args *a, const struct varve_image *image)
{
	uint64_t len = varve_image_length(image);

	if (!len)
		complain("%s: the image is empty: there is nothing to read or write", a->name);
	else if (a->write && !varve_image_writable(image))
		complain("%s: the image is read-only; leave out -w", a->name);
	else if (a->size > len)
		complain("%s: a request of %" PRIu64 " bytes (-s) is larger than the image of %" PRIu64,
			 a->name, a->size, len);
	else if (a->offset > len - a->size)
		complain("%s: %" PRIu64 " bytes at offset %" PRIu64 " (-o) end beyond the image of %" PRIu64
			 " bytes",
			 a->name, a->size, a->offset, len);
	else
		return 0;
	return 1;
}

static int bench_on(const struct bench_args *a, struct varve_queue *queue, struct bench_result *r)
{
	struct varve_image *image = open_image(a->name, &a->open, a->write ? VARVE_OPEN_WRITABLE : 0, queue);
	int ret;

	if (!image)
		return 1;
	ret = check_image(a, image);
	if (ret == 0) {
		bench_announce(a);
		ret = bench_run(a, queue, image, r);
		if (ret == 0)
			ret = bench_report(a, image, r);
		ret |= finish_stdout();
	}
	return close_image(image) | ret;
}

static int bench(const struct bench_args *a)
{
	struct varve_queue_options qo = { .flags = VARVE_QUEUE_ONE_THREAD,
					  .depth = a->depth,
					  .name = "bench" };
	struct bench_result *r = calloc(1, sizeof(*r));
	struct varve_queue *queue;
	struct varve_error err;
	int ret = 1;

	if (!r) {
		complain("out of memory");
	} else if (varve_queue_new(&queue, &qo, &err) < 0) {
		complain("%s", err.message);
	} else {
		ret = bench_on(a, queue, r);
		varve_queue_free(queue);
	}
	free(r);
	return ret;
}

/* Numbers with a largest and a smallest value. */
static int parse_count(const char *option, const char *text, unsigned min, unsigned max, unsigned *ret)
{
	unsigned v;

	if (parse_unsigned(text, max, &v) < 0 || v < min)
		return complain_usage("bench: %s '%s' is no number from %u to %u", option, text, min, max);
	*ret = v;
	return 0;
}

static int parse_bytes(const char *option, const char *text, uint64_t min, uint64_t max, uint64_t *ret)
{
	uint64_t v;

	if (parse_size(text, &v) < 0 || v < min || v > max)
		return complain_usage("bench: %s '%s' is no size from %" PRIu64 " to %" PRIu64, option, text,
				      min, max);
	*ret = v;
	return 0;
}

static int parse_pattern(const char *text, unsigned *ret)
{
	uint64_t v;

	if (parse_size(text, &v) < 0 || v > 255)
		return complain_usage("bench: --pattern '%s' is no byte from 0 to 255", text);
	*ret = (unsigned)v;
	return 0;
}

static int parse_random(const char *text, struct bench_args *a)
{
	a->random = true;
	if (text && (parse_size(text, &a->seed) < 0 || a->seed > INT64_MAX))
		return complain_usage("bench: --random '%s' is no seed from 0 to %" PRId64, text, INT64_MAX);
	return 0;
}

/* Options of the pattern of requests. -1: not one of them; else 0, or 1 after a message. */
static int take_request_option(int id, const char *value, struct bench_args *a)
{
	switch (id) {
	case 'c':
		a->has_count = true;
		return parse_count("-c", value, 0, INT_MAX, &a->count);
	case 'd':
		return parse_count("-d", value, 1, BENCH_DEPTH_MAX, &a->depth);
	case 's':
		return parse_bytes("-s", value, 1, BENCH_SIZE_MAX, &a->size);
	case 'S':
		return parse_bytes("-S", value, 0, BENCH_SIZE_MAX, &a->step);
	case 'o':
		return parse_bytes("-o", value, 0, INT64_MAX, &a->offset);
	case 'w':
		a->write = true;
		return 0;
	case BENCH_PATTERN:
		return parse_pattern(value, &a->pattern);
	case BENCH_FLUSH_INTERVAL:
		return parse_count("--flush-interval", value, 0, INT_MAX, &a->flush_interval);
	case BENCH_NO_DRAIN:
		a->no_drain = true;
		return 0;
	case BENCH_RANDOM:
		return parse_random(value, a);
	case BENCH_DURATION:
		return parse_count("--duration", value, 1, BENCH_SECONDS_MAX, &a->seconds);
	default:
		return -1;
	}
}

static int take_image_option(int id, const char *value, struct bench_args *a)
{
	switch (id) {
	case 'i':
		a->open.aio = value;
		return 0;
	case 'n':
		a->open.aio = "native";
		return 0;
	case BENCH_LATENCY:
		a->latency = true;
		return 0;
	case LONG_OUTPUT:
		return parse_output(value, &a->output);
	case 'q':
		a->quiet = true;
		return 0;
	default:
		return open_option(&a->open, id, value);
	}
}

static int img_bench(int argc, char **argv)
{
	struct bench_args a = { .depth = 64, .size = 4096, .seed = 1 };
	struct parse p;
	int id, ret = 0;

	parse_start(&p, &cmd_bench, argc, argv);
	while (!ret && (id = parse_next(&p)) > 0) {
		ret = take_request_option(id, p.value, &a);
		if (ret < 0)
			ret = take_image_option(id, p.value, &a);
	}
	if (ret || id < 0)
		return ret ? ret : p.status;
	if (p.nr_args != 1)
		return complain_usage("bench: one file name is needed");
	a.name = p.args[0];
	if (!a.has_count && !a.seconds) {
		a.has_count = true;
		a.count = 75000;
	}
	return check_arguments(&a) || bench(&a);
}

const struct command cmd_bench = {
	.name = "bench",
	.run = img_bench,
	.what = "measure how fast an image is",
	.args = "FILE",
	.options = options,
};
