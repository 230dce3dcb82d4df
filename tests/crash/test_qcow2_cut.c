/* SPDX-License-Identifier: MIT */
/*
 * crash/test_qcow2_cut.c - power cuts in the middle of random work on a qcow2 disk
 *
 * Whatever subset of the writes that no flush covers has reached the disk, torn or whole: the image opens, check finds no
 * corruption (leaks are allowed), and what a completed flush covers is there.
 *
 * The linker leads order_put() and others to here (--wrap, see meson.build), so that a test can take the order away and prove that
 * this would be noticed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/math.h"
#include "base/sanitizer.h"
#include "cut.h"
#include "order/order.h"

static bool forget_order, forget_sections, forget_data_sync, taking_over;

int __real_order_put(struct fiber *f, struct order *o, uint64_t off, const void *bytes, size_t len, order_mark after,
		     order_mark *ret_mark);
int __wrap_order_put(struct fiber *f, struct order *o, uint64_t off, const void *bytes, size_t len, order_mark after,
		     order_mark *ret_mark);

int __wrap_order_put(struct fiber *f, struct order *o, uint64_t off, const void *bytes, size_t len, order_mark after,
		     order_mark *ret_mark)
{
	return __real_order_put(f, o, off, bytes, len, forget_order ? ORDER_NONE : after, ret_mark);
}

/* seed decides all the rest. */
static struct cut_config config_of(uint64_t seed)
{
	static const struct { uint64_t cluster, len; } sizes[] = {
		{ 512, KiB(256) }, { 4096, MiB(1) }, { 65536, MiB(2) }, { 512, KiB(100) }, { 4096, KiB(4000) },
	};
	static const unsigned depths[] = { 1, 4, 16, 32 };

	return (struct cut_config){
		.format = "qcow2",
		.seed = seed,
		.cluster = sizes[seed % 5].cluster,
		.len = sizes[seed % 5].len,
		.depth = depths[seed / 5 % 4],
		.steps = 400,
		.cuts = 12,
		.backing = seed / 2 % 3 == 0,
		.version2 = seed % 7 == 3,
	};
}

static void every_power_cut_is_survived(void **state)
{
	const char *only = getenv("VARVE_CRASH_SEED");
	unsigned cuts = 0, flushes = 0, unstable = 0;
	uint64_t first = only ? strtoull(only, NULL, 0) : 1, last = only ? first : 40;

	(void)state;
	for (uint64_t seed = first; seed <= last; seed++) {
		struct cut_config config = config_of(seed);
		struct cut_result result;

		cut_run(&config, &result);
		if (*result.broken)
			fail_msg("%s (again with VARVE_CRASH_SEED=%llu)", result.broken, (unsigned long long)seed);
		cuts += result.nr_cuts;
		flushes += result.nr_flushes;
		unstable += result.nr_unstable;
	}
	print_message("# seeds %llu to %llu: %u cuts, %u flushes, %u writes in doubt\n", (unsigned long long)first,
		      (unsigned long long)last, cuts, flushes, unstable);
	assert_true(only || (cuts >= 300 && flushes >= 500 && unstable >= 5 * cuts));
}

/* Copies of what the guest reads are stored between its writes, and no more than these may a cut spoil anything. */
static void every_power_cut_while_reads_are_copied_is_survived(void **state)
{
	unsigned cuts = 0;

	(void)state;
	for (uint64_t seed = 500; seed < 520; seed++) {
		struct cut_config config = config_of(seed);
		struct cut_result result;

		config.backing = config.copy_on_read = true;
		cut_run(&config, &result);
		if (*result.broken)
			fail_msg("%s", result.broken);
		cuts += result.nr_cuts;
	}
	assert_true(cuts >= 150);
}

/* The seeds from first on, or the one that VARVE_CRASH_SEED names. Returns the number of cuts; with one seed as many as asked for. */
static unsigned survived(struct cut_config (*config_for)(uint64_t seed), uint64_t first, uint64_t nr, unsigned enough)
{
	const char *only = getenv("VARVE_CRASH_SEED");
	unsigned cuts = only ? enough : 0;

	if (only) {
		first = strtoull(only, NULL, 0);
		nr = 1;
	}
	for (uint64_t seed = first; seed < first + nr; seed++) {
		struct cut_config config = config_for(seed);
		struct cut_result result;

		cut_run(&config, &result);
		if (*result.broken)
			fail_msg("%s (again with VARVE_CRASH_SEED=%llu)", result.broken, (unsigned long long)seed);
		cuts += result.nr_cuts;
	}
	return cuts;
}

/* Clusters of 32 parts: entries of two words, and places that only some of the parts have been written to. */
static struct cut_config subclusters_of(uint64_t seed)
{
	struct cut_config config = config_of(seed);

	config.subclusters = true;
	config.version2 = false;
	config.cluster = seed % 4 ? KiB(16) : KiB(64);
	config.len = seed % 3 ? KiB(400) : MiB(1);
	config.backing = seed % 3 != 1;
	config.copy_on_read = config.backing && seed % 5 == 0;
	config.run = !config.backing && seed % 2;
	return config;
}

static void every_power_cut_with_subclusters_is_survived(void **state)
{
	(void)state;
	assert_true(survived(subclusters_of, 800, 50, 350) >= 350);
}

/* What is unmapped keeps its place, and has holes there before the entry says so. */
static struct cut_config kept_places_of(uint64_t seed)
{
	struct cut_config config = seed % 2 ? subclusters_of(seed) : config_of(seed);

	config.keeps_space = true;
	config.version2 = false;
	return config;
}

static void every_power_cut_over_kept_places_is_survived(void **state)
{
	(void)state;
	assert_true(survived(kept_places_of, 1000, 30, 200) >= 200);
}

/* Whatever becomes free is punched: places that copying left, tables, what was discarded. */
static struct cut_config punched_of(uint64_t seed)
{
	struct cut_config config = seed % 3 ? config_of(seed) : subclusters_of(seed);

	config.discards_other = true;
	config.backing = false; /* then zeroes and discards leave nothing behind, and clusters are freed again and again */
	config.copy_on_read = false;
	config.version2 = false;
	return config;
}

static void every_power_cut_with_all_discards_is_survived(void **state)
{
	(void)state;
	assert_true(survived(punched_of, 1200, 25, 180) >= 180);
}

/* Punched before the entry that led there is gone from the disk: seen. */
static void punching_too_early_is_noticed(void **state)
{
	struct cut_result result = { 0 };

	(void)state;
	setenv("VARVE_FORGET_ORDER", "free", 1);
	for (uint64_t seed = 1200; seed < 1300 && !*result.broken; seed++) {
		struct cut_config config = punched_of(seed);

		cut_run(&config, &result);
	}
	unsetenv("VARVE_FORGET_ORDER");
	print_message("# free: %s\n", result.broken);
	assert_true(*result.broken);
}

/* Each of the two files keeps what it likes of its unstable writes. */
static struct cut_config data_file_of(uint64_t seed)
{
	struct cut_config config = config_of(seed);

	config.data_file = true;
	config.version2 = false;
	config.data_file_raw = seed % 3 == 0;
	config.backing = config.backing && !config.data_file_raw;
	return config;
}

static void every_power_cut_over_a_data_file_is_survived(void **state)
{
	(void)state;
	assert_true(survived(data_file_of, 900, 25, 200) >= 200);
}

/* The same with entries that say of each part of a cluster whether it is there. */
static struct cut_config data_file_parts_of(uint64_t seed)
{
	struct cut_config config = subclusters_of(seed);

	config.data_file = true;
	config.data_file_raw = seed % 3 == 0;
	config.backing = config.backing && !config.data_file_raw;
	config.copy_on_read = config.backing && seed % 5 == 0;
	config.keeps_space = seed % 4 == 1;
	return config;
}

static void every_power_cut_over_a_data_file_with_subclusters_is_survived(void **state)
{
	(void)state;
	assert_true(survived(data_file_parts_of, 1100, 25, 200) >= 200);
}

/* Entries that do not wait for the data, a data file that is not synced along: both are seen. */
static void forgotten_syncs_of_the_data_file_are_noticed(void **state)
{
	static const char *const orders[] = { "data-sync", "l2-entry", "data-sync", "l2-entry" };

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(orders); i++) {
		struct cut_result result = { 0 };
		uint64_t seed = 900;

		setenv("VARVE_FORGET_ORDER", orders[i], 1);
		for (; seed < 960 && !*result.broken; seed++) {
			struct cut_config config = i < 2 ? data_file_of(seed) : data_file_parts_of(seed);

			config.data_file_raw = false;
			cut_run(&config, &result);
		}
		unsetenv("VARVE_FORGET_ORDER");
		print_message("# %s: %s\n", orders[i], result.broken);
		assert_true(*result.broken);
	}
}

/* Clusters are counted and linked ahead of a guest that writes on and on. */
static void every_power_cut_in_a_run_is_survived(void **state)
{
	unsigned cuts = 0;

	(void)state;
	for (uint64_t seed = 600; seed < 620; seed++) {
		struct cut_config config = config_of(seed);
		struct cut_result result;

		config.run = true;
		config.backing = false;
		config.len = MiB(4);
		config.cluster = seed % 2 ? 4096 : 16384;
		cut_run(&config, &result);
		if (*result.broken)
			fail_msg("%s", result.broken);
		cuts += result.nr_cuts;
	}
	assert_true(cuts >= 150);
}

/*
 * Seeds that have failed: a count in a refcount block that was made a moment ago is worth nothing before the table entry that
 * leads to the block is durable, also for the next request, which did not make the block.
 */
static void a_new_refcount_block_can_be_found_before_what_it_counts(void **state)
{
	static const uint64_t seeds[] = { 80, 110, 145, 208, 239, 295, 313 };

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(seeds); i++) {
		struct cut_config config = config_of(seeds[i]);
		struct cut_result result;

		cut_run(&config, &result);
		if (*result.broken)
			fail_msg("%s", result.broken);
	}
}

int __real_order_restore(struct order *o, uint64_t section, uint64_t off, const void *bytes, size_t len);
int __wrap_order_restore(struct order *o, uint64_t section, uint64_t off, const void *bytes, size_t len);

int __wrap_order_restore(struct order *o, uint64_t section, uint64_t off, const void *bytes, size_t len)
{
	return __real_order_restore(o, forget_sections ? 1 : section, off, bytes, len);
}

/*
 * The process is killed again and again, and the next one takes over what was queued, with power cuts before, in the middle
 * of that, and after.
 */
static struct cut_config kills_of(uint64_t seed, const char *dir)
{
	struct cut_config config = config_of(seed);

	config.kills = 4;
	config.state_dir = dir;
	config.version2 = false; /* it has no place for the mark */
	return config;
}

/* Every third with subclusters. */
static struct cut_config plain_kills_of(uint64_t seed, const char *dir)
{
	struct cut_config config = kills_of(seed, dir);

	if (seed % 3 == 0) {
		config.subclusters = true;
		config.cluster = KiB(16);
	}
	return config;
}

/* The data is in a file that the journal knows nothing of, but that its entries lead to. */
static struct cut_config data_file_kills_of(uint64_t seed, const char *dir)
{
	struct cut_config config = seed % 2 ? data_file_of(seed) : data_file_parts_of(seed);

	config.kills = 4;
	config.state_dir = dir;
	return config;
}

static void kills_are_survived(struct cut_config (*config_for)(uint64_t seed, const char *dir), uint64_t first, unsigned nr)
{
	char dir[] = "/tmp/varve-cut-XXXXXX";
	unsigned cuts = 0, kills = 0, inside = 0;

	assert_non_null(mkdtemp(dir));
	for (uint64_t seed = first; seed < first + nr; seed++) {
		struct cut_config config = config_for(seed, dir);
		struct cut_result result;

		cut_run(&config, &result);
		if (*result.broken)
			fail_msg("%s", result.broken);
		cuts += result.nr_cuts;
		kills += result.nr_kills;
		inside += result.nr_cuts_in_takeover;
	}
	print_message("# %u kills, %u cuts, %u of them during a takeover\n", kills, cuts, inside);
	assert_true(kills >= nr && inside >= 2 * nr);
	assert_int_equal(rmdir(dir), 0);
}

static void kills_and_power_cuts_are_survived(void **state)
{
	(void)state;
#if WITH_TSAN
	skip(); /* the threads of the dead would be reported */
#endif
	kills_are_survived(plain_kills_of, 700, 20);
}

static void kills_and_power_cuts_over_a_data_file_are_survived(void **state)
{
	(void)state;
#if WITH_TSAN
	skip();
#endif
	kills_are_survived(data_file_kills_of, 1200, 20);
}

/* Without the order between metadata writes some cut is not survived: the test above would see such a fault. */
static void forgotten_order_is_noticed(void **state)
{
	struct cut_result result = { 0 };
	uint64_t seed = 0;

	(void)state;
	forget_order = true;
	while (seed < 60 && !*result.broken) {
		struct cut_config config = config_of(++seed);

		cut_run(&config, &result);
	}
	forget_order = false;
	print_message("# noticed at %s\n", result.broken);
	assert_true(*result.broken);
}

/* The same of images with subclusters: each of the orders in which their entries take part. */
static void forgotten_order_of_subclusters_is_noticed(void **state)
{
	static const char *const orders[] = { "l2-entry", "stock-entry", "free" };

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(orders); i++) {
		struct cut_result result = { 0 };
		uint64_t seed = 800;

		setenv("VARVE_FORGET_ORDER", orders[i], 1);
		while (seed < 900 && !*result.broken) {
			struct cut_config config = subclusters_of(seed++);

			cut_run(&config, &result);
		}
		unsetenv("VARVE_FORGET_ORDER");
		print_message("# %s: noticed at %s\n", orders[i], result.broken);
		assert_true(*result.broken);
	}
}

/* Something is forgotten meanwhile: one of the runs ends badly. */
static void kills_are_not_survived(struct cut_config (*config_for)(uint64_t seed, const char *dir), uint64_t seed, unsigned nr)
{
	char dir[] = "/tmp/varve-cut-XXXXXX", remove[128];
	struct cut_result result = { 0 };
	uint64_t end = seed + nr;

	assert_non_null(mkdtemp(dir));
	while (seed < end && !*result.broken) {
		struct cut_config config = config_for(seed++, dir);

		cut_run(&config, &result);
	}
	print_message("# noticed at %s\n", result.broken);
	assert_true(*result.broken);
	snprintf(remove, sizeof(remove), "rm -r %s", dir); /* a run that breaks off leaves its state file */
	assert_int_equal(system(remove), 0);
}

/* A takeover that writes out what was queued without its sections is noticed, too, when power is lost in the middle of it. */
static void a_takeover_without_order_is_noticed(void **state)
{
	(void)state;
#if WITH_TSAN
	skip();
#endif
	forget_sections = true;
	kills_are_not_survived(kills_of, 700, 40);
	forget_sections = false;
}

int __real_order_recover(struct fiber *f, struct node *file, struct node *data, const char *dir, uint64_t header_bits,
			 struct order_left *ret_left, struct varve_error *err);
int __wrap_order_recover(struct fiber *f, struct node *file, struct node *data, const char *dir, uint64_t header_bits,
			 struct order_left *ret_left, struct varve_error *err);
void __real_order_sync_too(struct order *o, struct node *data);
void __wrap_order_sync_too(struct order *o, struct node *data);

int __wrap_order_recover(struct fiber *f, struct node *file, struct node *data, const char *dir, uint64_t header_bits,
			 struct order_left *ret_left, struct varve_error *err)
{
	int ret;

	taking_over = true;
	ret = __real_order_recover(f, file, data, dir, header_bits, ret_left, err);
	taking_over = false;
	return ret;
}

void __wrap_order_sync_too(struct order *o, struct node *data)
{
	if (!taking_over || !forget_data_sync)
		__real_order_sync_too(o, data);
}

/*
 * What the dead process had queued is written out with syncs of the image only, as if all of its data were stable; the process that
 * comes next, and everything before, is as it should be.
 */
static void a_takeover_that_does_not_sync_the_data_file_is_noticed(void **state)
{
	(void)state;
#if WITH_TSAN
	skip();
#endif
	forget_data_sync = true;
	kills_are_not_survived(data_file_kills_of, 1200, 60);
	forget_data_sync = false;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_power_cut_is_survived),
		cmocka_unit_test(every_power_cut_while_reads_are_copied_is_survived),
		cmocka_unit_test(every_power_cut_with_subclusters_is_survived),
		cmocka_unit_test(every_power_cut_over_kept_places_is_survived),
		cmocka_unit_test(every_power_cut_with_all_discards_is_survived),
		cmocka_unit_test(punching_too_early_is_noticed),
		cmocka_unit_test(every_power_cut_over_a_data_file_is_survived),
		cmocka_unit_test(every_power_cut_over_a_data_file_with_subclusters_is_survived),
		cmocka_unit_test(forgotten_syncs_of_the_data_file_are_noticed),
		cmocka_unit_test(every_power_cut_in_a_run_is_survived),
		cmocka_unit_test(a_new_refcount_block_can_be_found_before_what_it_counts),
		cmocka_unit_test(kills_and_power_cuts_are_survived),
		cmocka_unit_test(kills_and_power_cuts_over_a_data_file_are_survived),
		cmocka_unit_test(forgotten_order_is_noticed),
		cmocka_unit_test(forgotten_order_of_subclusters_is_noticed),
		cmocka_unit_test(a_takeover_without_order_is_noticed),
		cmocka_unit_test(a_takeover_that_does_not_sync_the_data_file_is_noticed),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
