/* SPDX-License-Identifier: MIT */
/*
 * test_blkload.c - what the load generator measures and what it judges can be believed
 *
 * Owns:    nothing.
 * Assumes: nothing.
 * Never:   runs a load: that is for the tests against a back end.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "blkload_hist.h"
#include "blkload_model.h"

/* ---- the histogram --------------------------------------------------------------------------- */

static void every_value_has_a_bucket_in_order(void **state)
{
	unsigned last = 0, bit;

	(void)state;
	assert_int_equal(hist_bucket(0), 0);
	for (bit = 0; bit < 64; bit++) {
		uint64_t v = UINT64_C(1) << bit;

		assert_true(hist_bucket(v) > last || v == 0);
		assert_true(hist_bucket(v - 1) < hist_bucket(v));
		last = hist_bucket(v);
	}
	assert_int_equal(hist_bucket(UINT64_MAX), HIST_BUCKETS - 1);
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* Against sorting: every percentile is within one percent, the maximum and the count are exact. */
static void percentiles_are_within_one_percent(void **state)
{
	enum { N = 20011 };
	static const unsigned points[] = { 1, 5000, 9000, 9900, 9990, 10000 };
	uint64_t seed = 42, *v = calloc(N, sizeof(*v)), sum = 0;
	struct hist *h = calloc(2, sizeof(*h));
	unsigned i;

	(void)state;
	assert_non_null(v);
	assert_non_null(h);
	for (i = 0; i < N; i++) {
		v[i] = vu_random(&seed) >> (24 + vu_random_below(&seed, 36));
		hist_add(&h[i & 1], v[i]);
		sum += v[i];
	}
	hist_merge(&h[0], &h[1]);
	qsort(v, N, sizeof(*v), compare);
	for (i = 0; i < sizeof(points) / sizeof(points[0]); i++) {
		uint64_t rank = ((uint64_t)N * points[i] + 9999) / 10000;
		uint64_t want = v[rank - 1], got = hist_percentile(&h[0], points[i]);
		uint64_t off = got > want ? got - want : want - got;

		if (off * 100 > want)
			fail_msg("point %u: %llu, exactly %llu", points[i], (unsigned long long)got,
				 (unsigned long long)want);
	}
	assert_true(h[0].max == v[N - 1]);
	assert_int_equal(h[0].count, N);
	assert_true(hist_mean(&h[0]) == sum / N);
	free(v);
	free(h);
}

static void an_empty_histogram_is_all_zero(void **state)
{
	struct hist *h = calloc(1, sizeof(*h));

	(void)state;
	assert_non_null(h);
	assert_int_equal(hist_percentile(h, 5000), 0);
	assert_int_equal(hist_mean(h), 0);
	free(h);
}

/* ---- the model ------------------------------------------------------------------------------- */

#define FIRST	1000u
#define NR	64u
#define SEED	77u

struct disk {
	struct model m;
	uint8_t bytes[NR * 512];
};

static int set_up(void **state)
{
	struct disk *d = calloc(1, sizeof(*d));
	struct vu_err err;

	assert_non_null(d);
	assert_int_equal(model_init(&d->m, SEED, FIRST, NR, &err), 0);
	*state = d;
	return 0;
}

static int tear_down(void **state)
{
	struct disk *d = *state;

	model_free(&d->m);
	free(d);
	return 0;
}

static uint8_t *at(struct disk *d, unsigned i)
{
	return d->bytes + (size_t)i * 512;
}

static void disk_write(struct disk *d, unsigned i, unsigned nr, uint32_t gen)
{
	model_fill(&d->m, FIRST + i, nr, gen, at(d, i));
	model_set(&d->m, FIRST + i, nr, gen);
}

/* All sectors but one are right, and the wrong one is described so. */
static void expect_wrong(struct disk *d, const char *text)
{
	struct vu_err first;

	assert_int_equal(model_check(&d->m, FIRST, NR, d->bytes, &first), 1);
	if (strcmp(first.text, text) != 0)
		fail_msg("got:      %s\nexpected: %s", first.text, text);
}

static void what_was_written_is_right(void **state)
{
	struct disk *d = *state;
	struct vu_err first;

	disk_write(d, 0, NR, 1);
	disk_write(d, 3, 5, 2);
	model_set(&d->m, FIRST + 10, 2, MODEL_ZEROES);
	memset(at(d, 10), 0, 2 * 512);
	assert_int_equal(model_check(&d->m, FIRST, NR, d->bytes, &first), 0);
	assert_true(model_known(&d->m, FIRST + 10, 1));
}

static void an_older_write_is_found_out(void **state)
{
	struct disk *d = *state;

	disk_write(d, 7, 1, 4);
	model_set(&d->m, FIRST + 7, 1, 5);
	expect_wrong(d, "sector 1007: expected generation 5, "
		     "found generation 4 of sector 1007 (seed 77)");
}

static void another_sectors_data_is_found_out(void **state)
{
	struct disk *d = *state;

	disk_write(d, 7, 2, 4);
	memcpy(at(d, 7), at(d, 8), 512);
	expect_wrong(d, "sector 1007: expected generation 4, "
		     "found generation 4 of sector 1008 (seed 77)");
}

static void a_torn_sector_is_found_out(void **state)
{
	struct disk *d = *state;

	disk_write(d, 7, 1, 4);
	at(d, 7)[300] ^= 1;
	expect_wrong(d, "sector 1007: expected generation 4, "
		     "found generation 4 of sector 1007 (seed 77), torn at byte 300");
}

static void lost_and_foreign_data_is_found_out(void **state)
{
	struct disk *d = *state;

	disk_write(d, 7, 1, 4);
	memset(at(d, 7), 0, 512);
	expect_wrong(d, "sector 1007: expected generation 4, "
		     "found zeroes");
	memset(at(d, 7), 0xee, 512);
	expect_wrong(d, "sector 1007: expected generation 4, "
		     "found foreign bytes ee ee ee ee ee ee ee ee ...");
}

static void zeroes_that_are_none_are_found_out(void **state)
{
	struct disk *d = *state;

	model_set(&d->m, FIRST + 63, 1, MODEL_ZEROES);
	at(d, 63)[511] = 1;
	expect_wrong(d, "sector 1063: expected zeroes, "
		     "found foreign bytes 00 00 00 00 00 00 00 00 ...");
}

/* After a discard, or before a first write, anything may be there but another sector's data. */
static void the_unknown_is_not_judged_unless_it_strayed(void **state)
{
	struct disk *d = *state;
	struct vu_err first;

	disk_write(d, 7, 2, 4);
	model_set(&d->m, FIRST + 7, 1, MODEL_UNKNOWN);
	memset(at(d, 20), 0xab, 512);
	assert_int_equal(model_check(&d->m, FIRST, NR, d->bytes, &first), 0);
	assert_false(model_known(&d->m, FIRST + 7, 1));
	memcpy(at(d, 20), at(d, 8), 512);
	expect_wrong(d, "sector 1020: expected nothing of this run, "
		     "found generation 4 of sector 1008 (seed 77)");
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_value_has_a_bucket_in_order),
		cmocka_unit_test(percentiles_are_within_one_percent),
		cmocka_unit_test(an_empty_histogram_is_all_zero),
		T(what_was_written_is_right),
		T(an_older_write_is_found_out),
		T(another_sectors_data_is_found_out),
		T(a_torn_sector_is_found_out),
		T(lost_and_foreign_data_is_found_out),
		T(zeroes_that_are_none_are_found_out),
		T(the_unknown_is_not_judged_unless_it_strayed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
