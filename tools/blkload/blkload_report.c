/* SPDX-License-Identifier: MIT */
/*
 * blkload_report.c - what the load generator tells: failures, the progress line, the results
 *
 * Owns:    stdout (results only) and stderr (the rest).
 * Assumes: load_report() is called when all workers have ended.
 * Never:   changes a worker.
 */
#include "blkload.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define CLEAR_LINE "\r\033[K"

static const char *const kind_name[NR_KINDS] = { "read", "write", "flush", "discard",
						 "write_zeroes" };

void load_say(struct load *l, const char *fmt, ...)
{
	va_list ap;

	pthread_mutex_lock(&l->say_lock);
	fprintf(stderr, "%s" PROG ": ", l->o.progress ? CLEAR_LINE : "");
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	pthread_mutex_unlock(&l->say_lock);
}

/* ---- the progress line ----------------------------------------------------------------------- */

static double seconds(uint64_t ns)
{
	return (double)ns / 1e9;
}

void load_progress(struct load *l, uint64_t begin_ns)
{
	const struct load_options *o = &l->o;
	double passed = seconds(vu_now_ns() - begin_ns), percent;
	uint64_t ops = 0, bytes = 0, counted = 0, bad = 0, verified = 0;
	unsigned q, k, nr_verifying = 0;

	for (q = 0; q < o->nr_queues; q++) {
		const struct load_worker *w = &l->worker[q];

		for (k = 0; k < NR_KINDS; k++) {
			ops += load_peek(&w->count[k].ops);
			counted += k != KIND_FLUSH ? load_peek(&w->count[k].ops) : 0;
		}
		bytes += load_peek(&w->count[KIND_READ].bytes);
		bytes += load_peek(&w->count[KIND_WRITE].bytes);
		bad += load_peek(&w->nr_errors) + load_peek(&w->nr_mismatches);
		verified += load_peek(&w->nr_verified);
		nr_verifying += __atomic_load_n(&w->verifying, __ATOMIC_RELAXED);
	}
	percent = o->runtime_ns ? 100 * passed / seconds(o->runtime_ns) : 0;
	if (o->nr_ops && 100.0 * (double)counted / (double)o->nr_ops > percent)
		percent = 100.0 * (double)counted / (double)o->nr_ops;

	pthread_mutex_lock(&l->say_lock);
	if (nr_verifying > 0)
		fprintf(stderr,
			CLEAR_LINE PROG ": reading back, %.1f MiB verified, %" PRIu64 " errors",
			(double)verified * VU_SECTOR / (1 << 20), bad);
	else
		fprintf(stderr,
			CLEAR_LINE PROG ": %3.0f%%  %.1f s  %.1fk IOPS  %.1f MiB/s  %" PRIu64
			" errors",
			percent > 100 ? 100 : percent, passed, (double)ops / passed / 1000,
			(double)bytes / passed / (1 << 20), bad);
	fflush(stderr);
	pthread_mutex_unlock(&l->say_lock);
}

void load_progress_end(struct load *l)
{
	pthread_mutex_lock(&l->say_lock);
	fputs(CLEAR_LINE, stderr);
	fflush(stderr);
	pthread_mutex_unlock(&l->say_lock);
}

/* ---- the result ------------------------------------------------------------------------------ */

struct total {
	double elapsed;			/* seconds from the first begin to the last end */
	struct load_count count[NR_KINDS], sum;
	struct hist hist[NR_KINDS], all;
	uint64_t nr_errors, nr_mismatches, nr_verified;
	uint64_t nr_kicks, nr_kicks_spared, nr_sleeps;
};

static void add_up(const struct load *l, struct total *t)
{
	uint64_t begin = UINT64_MAX, end = 0;
	unsigned q, k;

	for (q = 0; q < l->o.nr_queues; q++) {
		const struct load_worker *w = &l->worker[q];

		begin = w->begin_ns < begin ? w->begin_ns : begin;
		end = w->end_ns > end ? w->end_ns : end;
		for (k = 0; k < NR_KINDS; k++) {
			t->count[k].ops += w->count[k].ops;
			t->count[k].bytes += w->count[k].bytes;
			hist_merge(&t->hist[k], &w->hist[k]);
		}
		t->nr_errors += w->nr_errors;
		t->nr_mismatches += w->nr_mismatches;
		t->nr_verified += w->nr_verified;
		t->nr_kicks += l->front.ring[q].nr_kicks;
		t->nr_kicks_spared += l->front.ring[q].nr_kicks_spared;
		t->nr_sleeps += l->front.ring[q].nr_sleeps;
	}
	t->nr_errors += l->nr_session_errors;
	t->elapsed = end > begin ? seconds(end - begin) : 1e-9;
	for (k = 0; k < NR_KINDS; k++) {
		/* Discards and zeroes move no data: they count as requests, not as throughput. */
		t->sum.ops += t->count[k].ops;
		t->sum.bytes += k == KIND_READ || k == KIND_WRITE ? t->count[k].bytes : 0;
		hist_merge(&t->all, &t->hist[k]);
	}
}

static void human_row(const char *name, const struct load_count *c, const struct hist *h,
		      double elapsed, bool has_data)
{
	char rate[32] = "-";

	if (has_data)
		snprintf(rate, sizeof(rate), "%.1f", (double)c->bytes / elapsed / (1 << 20));
	printf("%-13s %10" PRIu64 " %10.0f %9s %9.1f %9.1f %9.1f %9.1f %10.1f\n", name, c->ops,
	       (double)c->ops / elapsed, rate, (double)hist_percentile(h, 5000) / 1000,
	       (double)hist_percentile(h, 9000) / 1000, (double)hist_percentile(h, 9900) / 1000,
	       (double)hist_percentile(h, 9990) / 1000, (double)h->max / 1000);
}

static void report_human(const struct load *l, const struct total *t)
{
	const struct load_options *o = &l->o;
	unsigned k;

	printf("%s: %" PRIu32 "-byte blocks, depth %u on %u queue%s, %.1f MiB of disk, %.2f s"
	       ", seed %" PRIu64 "\n",
	       o->rw_name, o->block_len, o->depth, o->nr_queues, o->nr_queues == 1 ? "" : "s",
	       (double)o->range_len / (1 << 20), t->elapsed, o->seed);
	printf("%-13s %10s %10s %9s %9s %9s %9s %9s %10s\n", "", "requests", "IOPS", "MiB/s",
	       "p50 us", "p90 us", "p99 us", "p99.9 us", "max us");
	for (k = 0; k < NR_KINDS; k++)
		if (t->count[k].ops > 0)
			human_row(kind_name[k], &t->count[k], &t->hist[k], t->elapsed,
				  k == KIND_READ || k == KIND_WRITE);
	human_row("total", &t->sum, &t->all, t->elapsed, true);
	printf("kicks %" PRIu64 " (%" PRIu64 " spared), sleeps %" PRIu64 "\n", t->nr_kicks,
	       t->nr_kicks_spared, t->nr_sleeps);
	if (o->verify)
		printf("verified %.1f MiB read back, %" PRIu64 " sectors wrong\n",
		       (double)t->nr_verified * VU_SECTOR / (1 << 20), t->nr_mismatches);
	if (l->generation)
		printf("connected anew %u times\n", l->generation);
	printf("errors %" PRIu64 "\n", t->nr_errors);
}

static void json_string(const char *s)
{
	putchar('"');
	for (; *s; s++) {
		if (*s == '"' || *s == '\\')
			printf("\\%c", *s);
		else if ((unsigned char)*s < 0x20)
			printf("\\u%04x", (unsigned char)*s);
		else
			putchar(*s);
	}
	putchar('"');
}

static void json_kind(const char *name, const struct load_count *c, const struct hist *h,
		      double elapsed)
{
	printf("  \"%s\": {\"requests\": %" PRIu64 ", \"iops\": %.1f, \"bytes\": %" PRIu64
	       ", \"bytes_per_second\": %.0f,\n"
	       "    \"latency_mean_ns\": %" PRIu64 ", \"latency_p50_ns\": %" PRIu64
	       ", \"latency_p90_ns\": %" PRIu64 ", \"latency_p99_ns\": %" PRIu64
	       ", \"latency_p99_9_ns\": %" PRIu64 ", \"latency_max_ns\": %" PRIu64 "},\n",
	       name, c->ops, (double)c->ops / elapsed, c->bytes, (double)c->bytes / elapsed,
	       hist_mean(h), hist_percentile(h, 5000), hist_percentile(h, 9000),
	       hist_percentile(h, 9900), hist_percentile(h, 9990), h->max);
}

static void report_json(const struct load *l, const struct total *t)
{
	const struct load_options *o = &l->o;
	unsigned k;

	printf("{\n  \"socket\": ");
	json_string(o->socket);
	printf(",\n  \"rw\": \"%s\", \"block_size_bytes\": %" PRIu32 ", \"depth\": %u"
	       ", \"queues\": %u, \"range_bytes\": %" PRIu64 ", \"capacity_bytes\": %" PRIu64 ",\n"
	       "  \"event_idx\": %s, \"indirect\": %s, \"poll\": %s, \"verify\": %s"
	       ", \"packed\": %s, \"in_order\": %s, \"inflight\": %s, \"reconnects\": %u"
	       ", \"interrupted\": %s, \"seed\": %" PRIu64 ",\n",
	       o->rw_name, o->block_len, o->depth, o->nr_queues, o->range_len, l->limits.capacity,
	       l->front.ring[0].event_idx ? "true" : "false",
	       l->front.ring[0].indirect != VU_DIRECT ? "true" : "false",
	       o->spin ? "true" : "false", o->verify ? "true" : "false",
	       l->front.ring[0].packed ? "true" : "false", l->front.ring[0].in_order ? "true" : "false",
	       l->front.inflight_fd >= 0 ? "true" : "false", l->generation,
	       l->interrupted ? "true" : "false", o->seed);
	printf("  \"elapsed_seconds\": %.6f,\n", t->elapsed);
	for (k = 0; k < NR_KINDS; k++)
		json_kind(kind_name[k], &t->count[k], &t->hist[k], t->elapsed);
	json_kind("total", &t->sum, &t->all, t->elapsed);
	printf("  \"kicks\": %" PRIu64 ", \"kicks_spared\": %" PRIu64 ", \"sleeps\": %" PRIu64 ",\n"
	       "  \"verified_sectors\": %" PRIu64 ", \"mismatched_sectors\": %" PRIu64
	       ", \"errors\": %" PRIu64 "\n}\n",
	       t->nr_kicks, t->nr_kicks_spared, t->nr_sleeps, t->nr_verified, t->nr_mismatches,
	       t->nr_errors);
}

void load_report(struct load *l)
{
	struct total *t = calloc(1, sizeof(*t));

	if (!t) {
		load_say(l, "no memory to add up the results");
		return;
	}
	add_up(l, t);
	if (l->o.json)
		report_json(l, t);
	else
		report_human(l, t);
	free(t);
}
