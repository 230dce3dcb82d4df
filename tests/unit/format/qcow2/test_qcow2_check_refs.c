/* SPDX-License-Identifier: MIT */
/*
 * unit/format/qcow2/test_qcow2_check_refs.c - the counters of check: exact, and within their memory
 */
#include "image.h"

static void references_add_up_and_keep_their_flags(void **state)
{
	struct refs r;

	(void)state;
	assert_int_equal(refs_init(&r, 100), 0);
	refs_window(&r, 0, 1000);
	assert_int_equal(refs_add(&r, 5, 1, REF_COPIED_SET), 0);
	assert_int_equal(refs_add(&r, 5, 2, 0), 0);
	assert_int_equal(refs_get(&r, 5), 3 | REF_COPIED_SET);
	assert_int_equal(refs_get(&r, 6), 0);
	assert_int_equal(refs_get(&r, 900), 0);
	assert_int_equal(refs_add(&r, 1000, 1, 0), 0); /* outside */
	assert_int_equal(refs_get(&r, 1000), 0);
	assert_int_equal(refs_add(&r, 7, UINT64_MAX, 0), 0);
	assert_int_equal(refs_add(&r, 7, UINT64_MAX, 0), 0);
	assert_int_equal(refs_get(&r, 7), REF_COUNT_MAX);
	refs_free(&r);
}

static void metadata_shares_with_nothing(void **state)
{
	struct refs r;

	(void)state;
	assert_int_equal(refs_init(&r, 100), 0);
	refs_window(&r, 0, 1000);
	refs_add(&r, 1, 5, REF_METADATA);
	assert_int_equal(refs_get(&r, 1), 5 | REF_METADATA);
	refs_add(&r, 1, 1, 0);
	assert_int_equal(refs_get(&r, 1), 6 | REF_METADATA | REF_OVERLAP);
	refs_add(&r, 2, 1, 0);
	refs_add(&r, 2, 1, REF_METADATA);
	assert_int_equal(refs_get(&r, 2), 2 | REF_METADATA | REF_OVERLAP);
	refs_free(&r);
}

/* Any pattern of clusters is counted completely by going from window to window, each within its memory. */
static void windows_cover_everything_within_their_memory(void **state)
{
	(void)state;
	for (unsigned seed = 1; seed <= 50; seed++) {
		uint64_t clusters[500], from = 0, end = seed % 2 ? 1ull << 50 : 20000;
		unsigned counted = 0, windows = 0;
		struct refs r;

		srandom(seed);
		for (unsigned i = 0; i < 500; i++)
			clusters[i] = ((uint64_t)random() << 31 | (uint64_t)random()) % (seed % 3 ? end : end / 1000 + 1);
		assert_int_equal(refs_init(&r, 16), 0);
		while (from < end) {
			struct ref_page **pages;
			size_t nr;

			refs_window(&r, from, end);
			for (unsigned i = 0; i < 500; i++)
				assert_int_equal(refs_add(&r, clusters[i], 1, 0), 0);
			assert_true(r.nr_pages <= 16);
			assert_true(r.to > from);
			pages = refs_sorted(&r, &nr);
			assert_int_equal(nr, r.nr_pages);
			for (size_t p = 0; p < nr; p++) {
				assert_true(p == 0 || pages[p - 1]->first < pages[p]->first);
				for (unsigned i = 0; i < REF_PAGE; i++)
					counted += pages[p]->counters[i];
			}
			free(pages);
			from = r.to;
			assert_true(++windows < 2000);
		}
		if (counted != 500)
			fail_msg("seed %u: %u of 500 counted", seed, counted);
		refs_free(&r);
	}
}

static void l2_tables_are_weighed(void **state)
{
	struct l2_set s;

	(void)state;
	assert_int_equal(l2_set_init(&s, 5000), 0);
	for (uint64_t i = 1; i <= 5000; i++)
		assert_int_equal(l2_set_add(&s, i * 1000, 1), 0);
	assert_int_equal(l2_set_add(&s, 7000, 5), 0);
	assert_int_equal(l2_set_find(&s, 7000)->weight, 6);
	assert_int_equal(l2_set_find(&s, 8000)->weight, 1);
	assert_null(l2_set_find(&s, 7001));
	assert_int_equal(l2_set_add(&s, 1, 1), -EFBIG);
	assert_int_equal(l2_set_add(&s, 7000, UINT32_MAX), 0);
	assert_int_equal(l2_set_find(&s, 7000)->weight, UINT32_MAX);
	l2_set_free(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(references_add_up_and_keep_their_flags),
		cmocka_unit_test(metadata_shares_with_nothing),
		cmocka_unit_test(windows_cover_everything_within_their_memory),
		cmocka_unit_test(l2_tables_are_weighed),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
