/* SPDX-License-Identifier: MIT */
/*
 * tools/img_bench_report.c - what `varve img bench` prints
 *
 * Owns:    nothing.
 * Assumes: the lines "Sending ..." and "Run completed in ..." are parsed by scripts: their form is
 * qemu-img's. Never:   adds a line to them that was not asked for.
 */
#include <inttypes.h>
#include <stdlib.h>

#include "img_bench.h"

static const struct {
	const char *name;
	double share;
} quantiles[] = {
	{ "p50", 0.5 },
	{ "p90", 0.9 },
	{ "p99", 0.99 },
	{ "p99.9", 0.999 },
};

void bench_announce(const struct bench_args *a)
{
	if (a->quiet || a->output == OUTPUT_JSON)
		return;
	printf("Sending ");
	if (a->has_count)
		printf("%u ", a->count);
	printf("%s requests, %" PRIu64 " bytes each, %u in parallel (starting at offset %" PRIu64
	       ", step size %" PRIu64 ")\n",
	       a->write ? "write" : "read", a->size, a->depth, a->offset, a->step);
	if (a->flush_interval)
		printf("Sending flush every %u requests\n", a->flush_interval);
	if (a->random)
		printf("Random offsets, seed %" PRIu64 "\n", a->seed);
	if (a->seconds)
		printf("Stopping after %u seconds\n", a->seconds);
	fflush(stdout);
}

static void print_latency(const char *what, const struct histogram *h)
{
	if (!h->count)
		return;
	printf("%s in microseconds: min %.1f, mean %.1f", what, (double)h->min / 1e3,
	       histogram_mean(h) / 1e3);
	for (size_t i = 0; i < ARRAY_LEN(quantiles); i++)
		printf(", %s %.1f", quantiles[i].name,
		       (double)histogram_quantile(h, quantiles[i].share) / 1e3);
	printf(", max %.1f\n", (double)h->max / 1e3);
}

static json_t *latency_json(const struct histogram *h)
{
	json_t *o = json_object();

	json_object_set_new(o, "min", json_real((double)h->min / 1e3));
	json_object_set_new(o, "mean", json_real(histogram_mean(h) / 1e3));
	for (size_t i = 0; i < ARRAY_LEN(quantiles); i++)
		json_object_set_new(o, quantiles[i].name,
				    json_real((double)histogram_quantile(h, quantiles[i].share) / 1e3));
	json_object_set_new(o, "max", json_real((double)h->max / 1e3));
	return o;
}

static json_t *string_or_null(const char *text)
{
	return text ? json_string(text) : json_null();
}

static json_t *parameters_json(const struct bench_args *a, struct varve_image *image)
{
	json_t *o = json_object();

	json_object_set_new(o, "filename", string_or_null(a->name));
	json_object_set_new(o, "format", json_string(varve_image_format(image)));
	json_object_set_new(o, "virtual-size", json_integer((json_int_t)varve_image_length(image)));
	json_object_set_new(o, "operation", json_string(a->write ? "write" : "read"));
	json_object_set_new(o, "count", a->has_count ? json_integer(a->count) : json_null());
	json_object_set_new(o, "duration", a->seconds ? json_integer(a->seconds) : json_null());
	json_object_set_new(o, "depth", json_integer(a->depth));
	json_object_set_new(o, "buffer-size", json_integer((json_int_t)a->size));
	json_object_set_new(o, "step-size", json_integer((json_int_t)a->step));
	json_object_set_new(o, "offset", json_integer((json_int_t)a->offset));
	json_object_set_new(o, "random-seed", a->random ? json_integer((json_int_t)a->seed) : json_null());
	json_object_set_new(o, "pattern", json_integer(a->pattern));
	json_object_set_new(o, "flush-interval", json_integer(a->flush_interval));
	json_object_set_new(o, "drain", json_boolean(!a->no_drain));
	json_object_set_new(o, "aio", string_or_null(a->open.aio));
	json_object_set_new(o, "cache", string_or_null(a->open.cache));
	return o;
}

/* What the library counted; NULL, after a message. */
static json_t *statistics_json(struct varve_image *image)
{
	struct varve_error err;
	json_t *stats;
	char *text;

	if (varve_image_stats(image, &text, &err) < 0) {
		complain("%s", err.message);
		return NULL;
	}
	stats = json_loads(text, 0, NULL);
	free(text);
	if (!stats)
		complain("the library's statistics are not JSON: this is an error in varve");
	return stats;
}

static int report_json(const struct bench_args *a, struct varve_image *image, const struct bench_result *r)
{
	json_t *o = parameters_json(a, image), *stats = statistics_json(image);
	double n = r->requests ? (double)r->requests : 1, bytes = (double)r->requests * (double)a->size;
	int ret;

	if (!stats) {
		json_decref(o);
		return 1;
	}
	json_object_set_new(o, "requests", json_integer((json_int_t)r->requests));
	json_object_set_new(o, "flushes", json_integer((json_int_t)r->flushes));
	json_object_set_new(o, "seconds", json_real(r->seconds));
	json_object_set_new(o, "iops", json_real((double)r->requests / r->seconds));
	json_object_set_new(o, "mib-per-second", json_real(bytes / r->seconds / 1048576));
	json_object_set_new(o, "latency-us", latency_json(&r->latency));
	json_object_set_new(o, "flush-latency-us",
			    r->flushes ? latency_json(&r->flush_latency) : json_null());
	json_object_set_new(o, "user-us-per-request", json_real(r->user_us / n));
	json_object_set_new(o, "system-us-per-request", json_real(r->system_us / n));
	json_object_set_new(o, "statistics", stats);
	ret = json_dumpf(o, stdout, JSON_INDENT(4) | JSON_REAL_PRECISION(9));
	putchar('\n');
	json_decref(o);
	if (ret < 0)
		complain("the result cannot be written as JSON (memory, or a file name that is not UTF-8)");
	return ret < 0;
}

int bench_report(const struct bench_args *a, struct varve_image *image, const struct bench_result *r)
{
	if (a->output == OUTPUT_JSON)
		return report_json(a, image, r);
	if (!a->quiet)
		printf("Run completed in %3.3f seconds.\n", r->seconds);
	if (a->latency) {
		print_latency("Latency", &r->latency);
		print_latency("Latency of flushes", &r->flush_latency);
	}
	return 0;
}
