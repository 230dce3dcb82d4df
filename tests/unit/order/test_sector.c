/* SPDX-License-Identifier: MIT */
/*
 * tests/unit/order/test_sector.c - the queued bytes: found, merged, sorted
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "order/sector.h"

static struct sector *make(struct sector_table *t, uint64_t nr, uint64_t section)
{
	struct sector *s = calloc(1, sizeof(*s));

	assert_non_null(s);
	s->nr = nr;
	s->section = section;
	sector_insert(t, s);
	return s;
}

static void versions_of_a_place_are_found_newest_first(void **state)
{
	struct sector_table t;
	struct sector *s;

	assert_int_equal(sector_table_init(&t), 0);
	make(&t, 7, 2);
	make(&t, 7, 5);
	make(&t, 7, 1);
	make(&t, 8, 9);
	s = sector_newest(&t, 7);
	assert_int_equal(s->section, 5);
	s = sector_older(s);
	assert_int_equal(s->section, 2);
	s = sector_older(s);
	assert_int_equal(s->section, 1);
	assert_null(sector_older(s));
	assert_null(sector_find(&t, 7, 3));
	assert_non_null(sector_find(&t, 7, 2));
	assert_null(sector_newest(&t, 9));
	sector_table_free(&t);
}

/* Thousands of sectors, several versions of each: growth keeps all of them and their order. */
static void growth_keeps_the_order_of_versions(void **state)
{
	struct sector_table t;

	assert_int_equal(sector_table_init(&t), 0);
	for (uint64_t section = 1; section <= 3; section++) {
		for (uint64_t nr = 0; nr < 3000; nr++)
			make(&t, nr * 128, section);
	}
	for (uint64_t nr = 0; nr < 3000; nr++) {
		struct sector *s = sector_newest(&t, nr * 128);

		for (uint64_t section = 3; section; section--, s = sector_older(s))
			assert_int_equal(s->section, section);
		assert_null(s);
	}
	for (uint64_t nr = 0; nr < 3000; nr++) {
		struct sector *s = sector_find(&t, nr * 128, 2);

		sector_remove(&t, s);
		free(s);
		assert_null(sector_find(&t, nr * 128, 2));
	}
	assert_int_equal(t.nr, 6000);
	sector_table_free(&t);
}

static void runs_are_the_stretches_that_were_filled(void **state)
{
	struct sector s = { 0 };
	uint8_t bytes[512];
	unsigned from = 0, len;

	memset(bytes, 1, sizeof(bytes));
	sector_fill(&s, 3, bytes, 2);
	sector_fill(&s, 60, bytes, 200);
	sector_fill(&s, 511, bytes, 1);
	assert_true(sector_run(&s, &from, &len));
	assert_int_equal(from, 3);
	assert_int_equal(len, 2);
	from += len;
	assert_true(sector_run(&s, &from, &len));
	assert_int_equal(from, 60);
	assert_int_equal(len, 200);
	from += len;
	assert_true(sector_run(&s, &from, &len));
	assert_int_equal(from, 511);
	assert_int_equal(len, 1);
	from += len;
	assert_false(sector_run(&s, &from, &len));
	assert_true(sector_has(&s, 0, 4));
	assert_false(sector_has(&s, 5, 55));
	assert_true(sector_has(&s, 5, 56));
}

/* Against a plain array, at random: every start and length, three versions. */
static void overlay_shows_the_newest_bytes(void **state)
{
	unsigned seed = 20260101;

	srandom(seed);
	for (int round = 0; round < 2000; round++) {
		struct sector_table t;
		uint8_t model[512], bytes[512], buf[512];

		memset(model, 0xee, sizeof(model));
		assert_int_equal(sector_table_init(&t), 0);
		for (uint64_t section = 1; section <= 3; section++) {
			struct sector *s = make(&t, 5, section);

			for (int i = 0; i < 3; i++) {
				unsigned from = (unsigned)(random() % 512);
				unsigned len = 1 + (unsigned)random() % (512 - from);

				memset(bytes, (int)random(), sizeof(bytes));
				sector_fill(s, from, bytes, len);
				memcpy(model + from, bytes, len);
			}
		}
		for (int i = 0; i < 4; i++) {
			unsigned from = (unsigned)(random() % 512);
			unsigned len = 1 + (unsigned)random() % (512 - from);

			memset(buf, 0xee, sizeof(buf));
			sector_overlay(sector_newest(&t, 5), from, buf, len);
			assert_memory_equal(buf, model + from, len);
		}
		sector_table_free(&t);
	}
}

static void sort_orders_any_list_by_place(void **state)
{
	for (unsigned nr = 0; nr < 70; nr++) {
		struct sector *all = calloc(nr + 1, sizeof(*all)), *list = NULL, *s;
		unsigned seen = 0;

		for (unsigned i = 0; i < nr; i++) {
			all[i].nr = (i * 37) % 71;
			all[i].next = list;
			list = &all[i];
		}
		for (s = sector_sort(list); s; s = s->next, seen++)
			assert_true(!s->next || s->nr < s->next->nr);
		assert_int_equal(seen, nr);
		free(all);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(versions_of_a_place_are_found_newest_first),
		cmocka_unit_test(growth_keeps_the_order_of_versions),
		cmocka_unit_test(runs_are_the_stretches_that_were_filled),
		cmocka_unit_test(overlay_shows_the_newest_bytes),
		cmocka_unit_test(sort_orders_any_list_by_place),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
