/* SPDX-License-Identifier: MIT */
/*
 * unit/format/qcow2/test_qcow2_header.c - the header: built, parsed, and every field damaged in turn
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/error.h"
#include "format/qcow2/qcow2.h"

#define CLUSTER KiB(64)
#define FILE_LEN MiB(16)

static struct qcow2_header plain(uint32_t version)
{
	return (struct qcow2_header){
		.version = version,
		.cluster_bits = 16,
		.disk_len = GiB(1),
		.l1_off = 3 * CLUSTER,
		.l1_entries = 2,
		.refcount_table_off = CLUSTER,
		.refcount_table_clusters = 1,
		.refcount_order = 4,
		.header_len = version == 3 ? sizeof(struct qcow2_header_disk) : QCOW2_V2_HEADER_LEN,
	};
}

/* A first cluster with backing file name and format. */
static uint8_t *built(const struct qcow2_header *h)
{
	uint8_t *cluster = calloc(1, 1u << h->cluster_bits);
	struct varve_error err;

	if (qcow2_header_build(h, cluster, &err) < 0)
		fail_msg("build: %s", err.message);
	return cluster;
}

static void put(uint8_t *to, unsigned bytes, uint64_t value)
{
	for (unsigned i = bytes; i--; value >>= 8)
		to[i] = (uint8_t)value;
}

static uint64_t get(const uint8_t *from, unsigned bytes)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < bytes; i++)
		v = v << 8 | from[i];
	return v;
}

/* Parses with every shorter length too: never beyond it (the copy is exactly as long), never a success that
 * lies. */
static int parse(const uint8_t *cluster, size_t len, uint64_t file_len, struct qcow2_header *ret,
		 struct varve_error *err)
{
	uint8_t *exact = malloc(len ? len : 1);
	int r;

	memcpy(exact, cluster, len);
	*err = (struct varve_error){ 0, "" };
	r = qcow2_header_parse(exact, len, file_len, ret, err);
	free(exact);
	return r;
}

/* ---- what is right ---- */

static void what_is_built_is_parsed(void **state)
{
	for (uint32_t version = 2; version <= 3; version++) {
		struct qcow2_header h = plain(version), got;
		struct varve_error err;
		uint8_t *cluster;

		strcpy(h.backing_name, "../base with spaces.raw");
		strcpy(h.backing_format, "raw");
		if (version == 3) {
			h.compatible = QCOW2_COMPAT_LAZY_REFCOUNTS;
			h.incompatible = QCOW2_INCOMPAT_COMPRESSION | QCOW2_INCOMPAT_DIRTY;
			h.compression_type = 1;
			h.refcount_order = 6;
			h.autoclear = 0x80;
		}
		cluster = built(&h);
		assert_int_equal(parse(cluster, CLUSTER, FILE_LEN, &got, &err), 0);
		assert_memory_equal(&got, &h, sizeof(h));
		free(cluster);
	}
}

static void the_smallest_cluster_holds_a_name(void **state)
{
	struct qcow2_header h = plain(3), got;
	struct varve_error err;
	uint8_t *cluster;

	h.cluster_bits = 9;
	h.disk_len = KiB(64);
	h.l1_off = 1536;
	h.refcount_table_off = 512;
	h.l1_entries = 2;
	strcpy(h.backing_format, "qcow2");
	memset(h.backing_name, 'x', 512 - sizeof(struct qcow2_header_disk) - 16 - 8);
	cluster = built(&h);
	assert_int_equal(parse(cluster, 512, FILE_LEN, &got, &err), 0);
	assert_string_equal(got.backing_name, h.backing_name);
	strcat(h.backing_name, "x");
	assert_int_equal(qcow2_header_build(&h, cluster, &err), -EINVAL);
	assert_non_null(strstr(err.message, "does not fit"));
	free(cluster);
}

static void old_images_have_the_name_right_behind_the_header(void **state)
{
	struct qcow2_header h = plain(2), got;
	uint8_t *cluster = built(&h);
	struct varve_error err;

	put(cluster + 8, 8, 72);
	put(cluster + 16, 4, 3);
	memcpy(cluster + 72, "abc", 3);
	assert_int_equal(parse(cluster, CLUSTER, FILE_LEN, &got, &err), 0);
	assert_string_equal(got.backing_name, "abc");
	free(cluster);
}

static void a_name_padded_with_nul_is_the_name(void **state)
{
	struct qcow2_header h = plain(3), got;
	struct varve_error err;
	uint8_t *cluster;

	strcpy(h.backing_name, "base");
	cluster = built(&h);
	put(cluster + 16, 4, 7);
	assert_int_equal(parse(cluster, CLUSTER, FILE_LEN, &got, &err), 0);
	assert_string_equal(got.backing_name, "base");
	free(cluster);
}

/* ---- what is wrong: one field at a time ---- */

struct damage {
	const char *words; /* of the message */
	int code;
	unsigned off, bytes;
	uint64_t value;
};

static const struct damage damages[] = {
	{ "not a qcow2 image", -EINVAL, 0, 4, 0x514649fau },
	{ "version 1 is not supported", -ENOTSUP, 4, 4, 1 },
	{ "version 4 is not supported", -ENOTSUP, 4, 4, 4 },
	{ "version 4294967295", -ENOTSUP, 4, 4, UINT32_MAX },
	{ "cluster size 2^8", -EINVAL, 20, 4, 8 },
	{ "cluster size 2^22", -EINVAL, 20, 4, 22 },
	{ "cluster size 2^4294967295", -EINVAL, 20, 4, UINT32_MAX },
	{ "cluster size 2^63", -EINVAL, 20, 4, 63 },
	/* disk length and L1 */
	{ "larger than 2^63 - 1", -EFBIG, 24, 8, 1ull << 63 },
	{ "larger than 2^63 - 1", -EFBIG, 24, 8, UINT64_MAX },
	{ "too small for a virtual size", -EINVAL, 24, 8, GiB(1) + 1 },
	{ "too small for a virtual size", -EINVAL, 24, 8, INT64_MAX },
	{ "too small for a virtual size", -EINVAL, 36, 4, 1 },
	{ "too small for a virtual size", -EINVAL, 36, 4, 0 },
	{ "larger than 32 MiB", -EFBIG, 36, 4, (uint32_t)(MiB(32) / 8) + 1 },
	{ "larger than 32 MiB", -EFBIG, 36, 4, UINT32_MAX },
	{ "L1 table at host offset 0x30001: not a multiple", -EINVAL, 40, 8, 3 * CLUSTER + 1 },
	{ "L1 table at host offset 0x30200: not a multiple", -EINVAL, 40, 8, 3 * CLUSTER + 512 },
	{ "L1 table at host offset 0: the header", -EINVAL, 40, 8, 0 },
	{ "L1 table at host offset 0x1000000, 16 bytes long: reaches beyond the end", -EINVAL, 40, 8,
	  FILE_LEN },
	{ "beyond what qcow2 can address", -EINVAL, 40, 8, 1ull << 56 },
	{ "beyond what qcow2 can address", -EINVAL, 40, 8, UINT64_MAX - CLUSTER + 1 },
	/* refcount table */
	{ "refcount table at host offset 0x10100: not a multiple", -EINVAL, 48, 8, CLUSTER + 256 },
	{ "refcount table at host offset 0: the header", -EINVAL, 48, 8, 0 },
	{ "refcount table at host offset 0x1000000", -EINVAL, 48, 8, FILE_LEN },
	{ "beyond what qcow2 can address", -EINVAL, 48, 8, UINT64_MAX - CLUSTER + 1 },
	{ "has no clusters", -EINVAL, 56, 4, 0 },
	{ "refcount table of 129 clusters is larger than 8 MiB", -EFBIG, 56, 4, 129 },
	{ "refcount table of 4294967295 clusters", -EFBIG, 56, 4, UINT32_MAX },
	/* snapshots */
	{ "65537 snapshots", -EFBIG, 60, 4, 65537 },
	{ "4294967295 snapshots", -EFBIG, 60, 4, UINT32_MAX },
	{ "snapshot table at host offset 0: the header", -EINVAL, 60, 4, 1 },
	/* version 3 */
	{ "refcount width 2^7", -EINVAL, 96, 4, 7 },
	{ "refcount width 2^4294967295", -EINVAL, 96, 4, UINT32_MAX },
	{ "header length 103", -EINVAL, 100, 4, 103 },
	{ "header length 0", -EINVAL, 100, 4, 0 },
	{ "header length 72", -EINVAL, 100, 4, 72 },
	{ "header length 108", -EINVAL, 100, 4, 108 },
	{ "header length 65544 is larger than a cluster", -EINVAL, 100, 4, CLUSTER + 8 },
	{ "header length 4294967288 is larger than a cluster", -EINVAL, 100, 4, UINT32_MAX - 7 },
	{ "encryption method 3", -ENOTSUP, 32, 4, 3 },
	{ "compression type 1 does not agree", -EINVAL, 104, 1, 1 },
	{ "compression type 2", -ENOTSUP, 104, 1, 2 },
	{ "compression type 0 does not agree", -EINVAL, 72, 8, QCOW2_INCOMPAT_COMPRESSION },
	/* backing file name: 11 bytes long in the image that is damaged */
	{ "lies in the header", -EINVAL, 8, 8, 1 },
	{ "lies in the header", -EINVAL, 8, 8, 111 },
	{ "not inside the first cluster", -EINVAL, 8, 8, CLUSTER - 10 },
	{ "not inside the first cluster", -EINVAL, 8, 8, CLUSTER + 1 },
	{ "not inside the first cluster", -EINVAL, 8, 8, UINT64_MAX },
	{ "not inside the first cluster", -EINVAL, 8, 8, UINT64_MAX - 10 },
	{ "longer than 1023", -EINVAL, 16, 4, 1024 },
	{ "longer than 1023", -EINVAL, 16, 4, UINT32_MAX },
};

static void every_damaged_field_is_named(void **state)
{
	struct qcow2_header h = plain(3), got, untouched;
	uint8_t *good;

	strcpy(h.backing_name, "backing.raw");
	good = built(&h);
	memset(&untouched, 0x5a, sizeof(untouched));
	for (size_t i = 0; i < ARRAY_LEN(damages); i++) {
		const struct damage *d = &damages[i];
		uint8_t *bad = malloc(CLUSTER);
		struct varve_error err;
		int ret;

		memcpy(bad, good, CLUSTER);
		put(bad + d->off, d->bytes, d->value);
		got = untouched;
		ret = parse(bad, CLUSTER, FILE_LEN, &got, &err);
		if (ret != d->code || !strstr(err.message, d->words))
			fail_msg("%u bytes at %u = 0x%llx: expected %d and '%s', got %d and '%s'", d->bytes,
				 d->off, (unsigned long long)d->value, d->code, d->words, ret, err.message);
		assert_memory_equal(&got, &untouched, sizeof(got));
		free(bad);
	}
	free(good);
}

static void clusters_of_extended_entries_are_16_kib_at_least(void **state)
{
	struct qcow2_header h = plain(3), got;
	struct varve_error err;
	uint8_t *cluster;

	h.cluster_bits = 13;
	h.disk_len = KiB(64);
	cluster = built(&h);
	put(cluster + 72, 8, QCOW2_INCOMPAT_EXTENDED_L2);
	assert_int_equal(parse(cluster, 8192, FILE_LEN, &got, &err), -EINVAL);
	assert_non_null(strstr(err.message, "extended L2"));
	free(cluster);
}

/* With entries of twice the length a table covers half as much. */
static void extended_entries_need_a_longer_l1(void **state)
{
	struct qcow2_header h = plain(3), got;
	uint8_t *cluster = built(&h);
	struct varve_error err;

	put(cluster + 72, 8, QCOW2_INCOMPAT_EXTENDED_L2);
	assert_int_equal(parse(cluster, CLUSTER, FILE_LEN, &got, &err), -EINVAL);
	put(cluster + 36, 4, 4);
	assert_int_equal(parse(cluster, CLUSTER, FILE_LEN, &got, &err), 0);
	free(cluster);
}

static void a_truncated_file_says_so(void **state)
{
	struct qcow2_header h = plain(3), got;
	struct varve_error err;
	uint8_t *cluster;

	strcpy(h.backing_name, "backing.raw");
	cluster = built(&h);
	for (size_t len = 0; len < 1024; len++) {
		int ret = parse(cluster, len, len, &got, &err);

		assert_int_equal(ret, -EINVAL);
		if (len >= 4 && !strstr(err.message, "truncated"))
			fail_msg("%zu bytes: %s", len, err.message);
	}
	/* The tables are cut off. */
	assert_int_equal(parse(cluster, CLUSTER, 3 * CLUSTER, &got, &err), -EINVAL);
	assert_non_null(strstr(err.message, "truncated"));
	/* The L1 table may be the last thing in the file, not padded to a cluster. */
	assert_int_equal(parse(cluster, CLUSTER, 3 * CLUSTER + 16, &got, &err), 0);
	assert_int_equal(parse(cluster, CLUSTER, 3 * CLUSTER + 15, &got, &err), -EINVAL);
	free(cluster);
}

/* ---- extensions ---- */

struct ext {
	uint32_t type, len;
	const char *data; /* NULL: len zeroes */
};

/* A version 3 header with these extensions, all as their lengths say; parsed. */
static int parse_exts(const struct ext *ext, unsigned nr, uint64_t incompatible, uint64_t autoclear,
		      struct qcow2_header *ret, struct varve_error *err)
{
	struct qcow2_header h = plain(3);
	uint8_t *cluster = built(&h);
	size_t pos = 112;
	int r;

	memset(cluster + pos, 0, CLUSTER - pos);
	put(cluster + 72, 8, incompatible);
	put(cluster + 88, 8, autoclear);
	for (unsigned i = 0; i < nr; i++) {
		put(cluster + pos, 4, ext[i].type);
		put(cluster + pos + 4, 4, ext[i].len);
		if (ext[i].data)
			memcpy(cluster + pos + 8, ext[i].data, ext[i].len);
		pos += 8 + align_up(ext[i].len, 8);
	}
	r = parse(cluster, CLUSTER, FILE_LEN, ret, err);
	free(cluster);
	return r;
}

static void expect_ext(const struct ext *ext, unsigned nr, uint64_t autoclear, int code, const char *words)
{
	struct qcow2_header h;
	struct varve_error err;
	int ret = parse_exts(ext, nr, 0, autoclear, &h, &err);

	if (ret != code || !strstr(err.message, words))
		fail_msg("expected %d and '%s', got %d and '%s'", code, words, ret, err.message);
}

static void extensions_are_bounded(void **state)
{
	static const char bitmaps[24] = { 0, 0, 0, 1,  0, 0, 0, 0, 0, 0, 0, 0,
					  0, 0, 0, 64, 0, 0, 0, 0, 0, 4, 0, 0 };
	char none[24], many[24], far[24], huge[24];
	static char name[4097];

	memset(name, 'n', sizeof(name));
	memcpy(none, bitmaps, 24);
	none[3] = 0;
	memcpy(many, bitmaps, 24);
	many[1] = 1;
	memcpy(far, bitmaps, 24);
	far[16] = 1;
	memcpy(huge, bitmaps, 24);
	huge[8] = 1;
#define EXT1(...) (const struct ext[]){ __VA_ARGS__ }, 1
	expect_ext(EXT1({ 0x12345678, 100, NULL }), 0, 0, "");
	expect_ext(EXT1({ 0x12345678, UINT32_MAX, NULL }), 0, -EINVAL, "reaches beyond the extension area");
	expect_ext(EXT1({ 0x12345678, CLUSTER - 112 - 7, NULL }), 0, -EINVAL,
		   "reaches beyond the extension area");
	expect_ext(EXT1({ 0x12345678, CLUSTER - 112 - 8, NULL }), 0, 0, "");
	expect_ext(EXT1({ QCOW2_EXT_BACKING_FORMAT, 15, "abcdefghijklmno" }), 0, 0, "");
	expect_ext(EXT1({ QCOW2_EXT_BACKING_FORMAT, 16, "abcdefghijklmnop" }), 0, -EINVAL, "longer than 15");
	expect_ext(EXT1({ QCOW2_EXT_BACKING_FORMAT, 5, "a\0b\0c" }), 0, -EINVAL, "NUL");
	expect_ext(EXT1({ QCOW2_EXT_DATA_FILE, 4095, name }), 0, 0, "");
	expect_ext(EXT1({ QCOW2_EXT_DATA_FILE, 4096, name }), 0, -EINVAL, "longer than 4095");
	expect_ext(EXT1({ QCOW2_EXT_BITMAPS, 24, bitmaps }), 1, 0, "");
	expect_ext(EXT1({ QCOW2_EXT_BITMAPS, 23, bitmaps }), 1, -EINVAL, "must have 24");
	expect_ext(EXT1({ QCOW2_EXT_BITMAPS, 24, none }), 1, -EINVAL, "0 bitmaps");
	expect_ext(EXT1({ QCOW2_EXT_BITMAPS, 24, many }), 1, -EINVAL, "65537 bitmaps");
	expect_ext(EXT1({ QCOW2_EXT_BITMAPS, 24, far }), 1, -EINVAL, "bitmap directory at host offset");
	expect_ext(EXT1({ QCOW2_EXT_BITMAPS, 24, huge }), 1, -EINVAL, "bitmap directory of");
	/* Without the autoclear bit it means nothing. */
	expect_ext(EXT1({ QCOW2_EXT_BITMAPS, 23, bitmaps }), 0, 0, "");
#undef EXT1
}

static void known_extensions_stand_there_once(void **state)
{
	static const struct ext twice[] = { { QCOW2_EXT_BACKING_FORMAT, 3, "raw" },
					    { QCOW2_EXT_BACKING_FORMAT, 3, "raw" } };
	static const struct ext others[] = { { 0xabcdef01, 3, "raw" }, { 0xabcdef01, 3, "raw" } };

	expect_ext(twice, 2, 0, -EINVAL, "twice");
	expect_ext(others, 2, 0, 0, "");
}

static void names_with_a_nul_inside_are_refused(void **state)
{
	struct qcow2_header h = plain(3), got;
	struct varve_error err;
	uint8_t *cluster;
	uint64_t off;

	strcpy(h.backing_name, "good.raw");
	cluster = built(&h);
	off = get(cluster + 8, 8);
	cluster[off + 4] = 0;
	assert_int_equal(parse(cluster, CLUSTER, FILE_LEN, &got, &err), -EINVAL);
	assert_non_null(strstr(err.message, "NUL"));
	free(cluster);
}

/* ---- what this version can do ---- */

static void expect_unusable(const struct qcow2_header *h, bool writable, int code, const char *words)
{
	struct varve_error err = { 0, "" };
	int ret = qcow2_header_usable(h, writable, false, &err);

	if (ret != code || !strstr(err.message, words))
		fail_msg("expected %d and '%s', got %d and '%s'", code, words, ret, err.message);
}

static void unknown_features_are_refused_by_name(void **state)
{
	static const char names[96] = "\0\x05wrong bit\0";
	char table[96];
	struct ext ext = { QCOW2_EXT_FEATURE_NAMES, 96, table };
	struct qcow2_header h;
	struct varve_error err;

	memcpy(table, names, sizeof(table));
	table[48] = 0;
	table[49] = 37;
	strcpy(table + 50, "time\ttravel");
	assert_int_equal(parse_exts(&ext, 1, 1ull << 37, 0, &h, &err), 0);
	expect_unusable(&h, false, -ENOTSUP, "feature 'time?travel' (incompatible bit 37)");
	assert_int_equal(parse_exts(&ext, 1, 1ull << 38, 0, &h, &err), 0);
	expect_unusable(&h, false, -ENOTSUP, "an unnamed feature (incompatible bit 38)");
	/* A name that fills its field has no NUL; the next entry must not run into it. */
	memset(table + 50, 'x', 46);
	assert_int_equal(parse_exts(&ext, 1, 1ull << 37, 0, &h, &err), 0);
	assert_int_equal(strlen(h.unknown_feature), 46);
	/* Compatible and autoclear bits are nobody's concern. */
	assert_int_equal(parse_exts(&ext, 1, 0, UINT64_MAX & ~1ull, &h, &err), 0);
	expect_unusable(&h, true, 0, "");
}

static void features_say_what_can_be_done(void **state)
{
	struct qcow2_header h = plain(3);

	expect_unusable(&h, true, 0, "");
	h.incompatible = QCOW2_INCOMPAT_DIRTY; /* its counts are made anew */
	expect_unusable(&h, false, 0, "");
	expect_unusable(&h, true, 0, "");
	h.incompatible = QCOW2_INCOMPAT_CORRUPT;
	expect_unusable(&h, false, 0, "");
	expect_unusable(&h, true, -EIO, "marked corrupt");
	h.incompatible = QCOW2_INCOMPAT_EXTENDED_L2;
	expect_unusable(&h, false, 0, "");
	expect_unusable(&h, true, 0, "");
	h.incompatible = QCOW2_INCOMPAT_DATA_FILE | QCOW2_INCOMPAT_EXTENDED_L2;
	expect_unusable(&h, false, 0, "");
	expect_unusable(&h, true, 0, "");
	h.incompatible = QCOW2_INCOMPAT_DATA_FILE;
	expect_unusable(&h, true, 0, "");
	h.nr_snapshots = 1;
	expect_unusable(&h, false, -EINVAL, "1 internal snapshots");
	h.nr_snapshots = 0;
	h.autoclear = QCOW2_AUTOCLEAR_RAW_DATA;
	expect_unusable(&h, true, 0, "");
	strcpy(h.backing_name, "base");
	expect_unusable(&h, false, -EINVAL, "data_file_raw");
	h.autoclear = 0;
	expect_unusable(&h, true, 0, "");
	h.backing_name[0] = 0;
	h.incompatible = QCOW2_INCOMPAT_COMPRESSION;
	expect_unusable(&h, true, 0, "");
	h.incompatible = 0;
	h.crypt_method = 1;
	expect_unusable(&h, false, -ENOTSUP, "AES");
	h.crypt_method = 2;
	expect_unusable(&h, false, -ENOTSUP, "LUKS");
}

/* Random damage all over the header: no crash, nothing read out of bounds (sanitizers watch), and what parses
 * is in bounds. */
static void any_bytes_are_survived(void **state)
{
	const char *env = getenv("VARVE_TEST_SEED");
	unsigned seed = env ? (unsigned)strtoul(env, NULL, 0) : 20260101;
	struct qcow2_header h = plain(3);
	unsigned parsed = 0;
	uint8_t *good;

	strcpy(h.backing_name, "backing.raw");
	strcpy(h.backing_format, "raw");
	good = built(&h);
	printf("# VARVE_TEST_SEED=%u\n", seed);
	srand(seed);
	for (unsigned i = 0; i < 20000; i++) {
		uint8_t bad[1024];
		struct qcow2_header got;
		struct varve_error err;

		memcpy(bad, good, sizeof(bad));
		for (unsigned k = 0; k < 1 + i % 4; k++)
			bad[rand() % 700] = (uint8_t)(rand() % 3 ? rand() : rand() % 2 ? 0xff : 0);
		if (parse(bad, 64 + (size_t)rand() % 961, FILE_LEN, &got, &err) == 0) {
			parsed++;
			assert_true(got.cluster_bits >= 9 && got.cluster_bits <= 21);
			assert_true((uint64_t)got.l1_entries * 8 <= MiB(32));
			assert_true(got.l1_off + got.l1_entries * 8ull <= FILE_LEN || !got.l1_entries);
			assert_true(strlen(got.backing_name) < sizeof(got.backing_name));
		} else {
			assert_true(*err.message);
		}
	}
	printf("# %u of 20000 parsed\n", parsed);
	free(good);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_built_is_parsed),
		cmocka_unit_test(the_smallest_cluster_holds_a_name),
		cmocka_unit_test(old_images_have_the_name_right_behind_the_header),
		cmocka_unit_test(a_name_padded_with_nul_is_the_name),
		cmocka_unit_test(every_damaged_field_is_named),
		cmocka_unit_test(clusters_of_extended_entries_are_16_kib_at_least),
		cmocka_unit_test(extended_entries_need_a_longer_l1),
		cmocka_unit_test(a_truncated_file_says_so),
		cmocka_unit_test(extensions_are_bounded),
		cmocka_unit_test(known_extensions_stand_there_once),
		cmocka_unit_test(names_with_a_nul_inside_are_refused),
		cmocka_unit_test(unknown_features_are_refused_by_name),
		cmocka_unit_test(features_say_what_can_be_done),
		cmocka_unit_test(any_bytes_are_survived),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
