/* SPDX-License-Identifier: MIT */
/*
 * unit/format/qcow2/test_qcow2_info.c - the members of ImageInfo that the format adds
 */
#include "image.h"

static json_t *info_of(struct image *im)
{
	json_t *o;

	if (image_info(im, &o) < 0)
		fail_msg("info: %s", im->err.message);
	return o;
}

static void expect_json(json_t *o, const char *expected)
{
	char *text = json_dumps(o, JSON_COMPACT | JSON_SORT_KEYS);

	assert_string_equal(text, expected);
	free(text);
	json_decref(o);
}

static void a_plain_image_shows_its_features(void **state)
{
	struct image *im = image_made(MiB(1), "lazy_refcounts=on,refcount_bits=8,compression_type=zstd");

	(void)state;
	expect_json(info_of(im), "{\"cluster-size\":65536,\"dirty-flag\":false,\"format-specific\":{\"data\":{"
				 "\"compat\":\"1.1\",\"compression-type\":\"zstd\",\"corrupt\":false,\"extended-l2\":false,"
				 "\"lazy-refcounts\":true,\"refcount-bits\":8},\"type\":\"qcow2\"}}");
	image_free(im);
}

static void version_2_has_fewer(void **state)
{
	struct image *im = image_made(MiB(1), "compat=0.10,cluster_size=512");

	(void)state;
	expect_json(info_of(im), "{\"cluster-size\":512,\"dirty-flag\":false,\"format-specific\":{\"data\":{"
				 "\"compat\":\"0.10\",\"compression-type\":\"zlib\",\"refcount-bits\":16},\"type\":\"qcow2\"}}");
	image_free(im);
}

static void flags_of_trouble_are_shown(void **state)
{
	struct image *im = image_made(MiB(1), "");
	json_t *o;

	(void)state;
	image_put(im, offsetof(struct qcow2_header_disk, incompatible), 8, QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT);
	o = info_of(im);
	assert_true(json_is_true(json_object_get(o, "dirty-flag")));
	assert_true(json_is_true(json_object_get(json_object_get(json_object_get(o, "format-specific"), "data"), "corrupt")));
	json_decref(o);
	image_free(im);
}

static void put_snapshot(struct image *im, const char *name)
{
	uint64_t table = image_grow(im, 1, 1);

	image_put(im, table, 8, image_l1(im));
	image_put(im, table + 8, 4, 1);
	image_put(im, table + 12, 2, 1);
	image_put(im, table + 14, 2, strlen(name));
	image_put(im, table + 16, 4, 1700000000);
	image_put(im, table + 24, 8, 3000000004);
	image_put(im, table + 36, 4, 24);
	image_put(im, table + 40, 8, 77);
	image_put(im, table + 48, 8, MiB(1));
	image_put(im, table + 56, 8, 9);
	sim_poke(im->sim, table + 64, "1", 1);
	sim_poke(im->sim, table + 65, name, strlen(name));
	image_put(im, offsetof(struct qcow2_header_disk, nr_snapshots), 4, 1);
	image_put(im, offsetof(struct qcow2_header_disk, snapshots_off), 8, table);
}

static void snapshots_are_listed(void **state)
{
	struct image *im = image_made(MiB(1), "");
	json_t *o;

	(void)state;
	put_snapshot(im, "sn\xc3\xa4p");
	o = info_of(im);
	expect_json(json_incref(json_object_get(o, "snapshots")),
		    "[{\"date-nsec\":0,\"date-sec\":1700000000,\"icount\":9,\"id\":\"1\",\"name\":\"sn\xc3\xa4p\","
		    "\"vm-clock-nsec\":4,\"vm-clock-sec\":3,\"vm-state-size\":77}]");
	json_decref(o);
	image_free(im);
}

/* A name in another encoding must not make the answer invalid. */
static void names_that_are_no_utf8_are_shown_as_far_as_they_are_text(void **state)
{
	struct image *im = image_made(MiB(1), "");
	json_t *o;

	(void)state;
	put_snapshot(im, "sn\xe4p");
	o = info_of(im);
	assert_string_equal(json_string_value(json_object_get(json_array_get(json_object_get(o, "snapshots"), 0), "name")),
			    "sn?p");
	json_decref(o);
	image_free(im);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_plain_image_shows_its_features),
		cmocka_unit_test(version_2_has_fewer),
		cmocka_unit_test(flags_of_trouble_are_shown),
		cmocka_unit_test(snapshots_are_listed),
		cmocka_unit_test(names_that_are_no_utf8_are_shown_as_far_as_they_are_text),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
