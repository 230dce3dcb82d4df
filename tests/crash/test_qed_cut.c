/* SPDX-License-Identifier: MIT */
/*
 * crash/test_qed_cut.c - power cuts in the middle of random work on a QED disk
 *
 * As test_qcow2_cut.c. A QED image may also have leaks, which the next writer removes where it can.
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

static bool forget_order;

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
		{ 4096, MiB(1) }, { 8192, MiB(2) }, { 65536, MiB(2) }, { 4096, KiB(4000) },
	};
	static const unsigned depths[] = { 1, 4, 16, 32 };

	return (struct cut_config){
		.format = "qed",
		.seed = seed,
		.cluster = sizes[seed % 4].cluster,
		.len = sizes[seed % 4].len,
		.depth = depths[seed / 4 % 4],
		.steps = 400,
		.cuts = 12,
		.backing = seed / 2 % 2 == 0,
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
	assert_true(only || (cuts >= 300 && flushes >= 500 && unstable >= 3 * cuts));
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

/*
 * The process is killed again and again, and the next one takes over what was queued, with power cuts before, in the middle
 * of that, and after.
 */
static void kills_and_power_cuts_are_survived(void **state)
{
	char dir[] = "/tmp/varve-cut-XXXXXX";
	unsigned cuts = 0, kills = 0, inside = 0;

	(void)state;
#if WITH_TSAN
	skip(); /* the threads of the dead would be reported */
#endif
	assert_non_null(mkdtemp(dir));
	for (uint64_t seed = 700; seed < 720; seed++) {
		struct cut_config config = config_of(seed);
		struct cut_result result;

		config.kills = 4;
		config.state_dir = dir;
		cut_run(&config, &result);
		if (*result.broken)
			fail_msg("%s", result.broken);
		cuts += result.nr_cuts;
		kills += result.nr_kills;
		inside += result.nr_cuts_in_takeover;
	}
	print_message("# %u kills, %u cuts, %u of them during a takeover\n", kills, cuts, inside);
	assert_true(kills >= 20 && inside >= 40);
	assert_int_equal(rmdir(dir), 0);
}

/* Without the order between data and entries some cut is not survived: the test above would see such a fault. */
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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_power_cut_is_survived),
		cmocka_unit_test(every_power_cut_while_reads_are_copied_is_survived),
		cmocka_unit_test(kills_and_power_cuts_are_survived),
		cmocka_unit_test(forgotten_order_is_noticed),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
