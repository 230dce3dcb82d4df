/* SPDX-License-Identifier: MIT */
/*
 * unit/format/qcow2/test_qcow2_create.c - new images: what may be asked for, and what then lies in the file
 */
#include "image.h"

static void every_combination_is_clean(void **state)
{
	static const char *const preallocations[] = { "off", "metadata", "falloc", "full" };
	static const unsigned cluster_bits[] = { 9, 10, 12, 16, 21 };
	char options[128];

	(void)state;
	for (unsigned c = 0; c < ARRAY_LEN(cluster_bits); c++) {
		for (unsigned bits = 1; bits <= 64; bits *= 2) {
			for (unsigned p = 0; p < ARRAY_LEN(preallocations); p++) {
				uint64_t len = (3ull << cluster_bits[c]) + 512;
				struct image *im;

				snprintf(options, sizeof(options), "cluster_size=%u,refcount_bits=%u,preallocation=%s",
					 1u << cluster_bits[c], bits, preallocations[p]);
				im = image_made(len, options);
				expect_found(im, 0, 0, 0);
				assert_int_equal(im->found.allocated_clusters, p ? 4 : 0);
				assert_int_equal(im->found.total_clusters, 4);
				assert_int_equal(im->found.image_end_offset, sim_len(im->sim));
				image_free(im);
			}
		}
	}
}

/* With 512-byte clusters and wide counts the refcount structures themselves need many clusters. */
static void refcount_structures_count_themselves(void **state)
{
	struct image *im = image_made(MiB(4), "cluster_size=512,refcount_bits=64,preallocation=metadata");

	(void)state;
	expect_found(im, 0, 0, 0);
	assert_int_equal(im->found.allocated_clusters, MiB(4) / 512);
	assert_true(image_get(im, offsetof(struct qcow2_header_disk, refcount_table_clusters), 4) > 1);
	image_free(im);
}

static void version_2_has_a_short_header(void **state)
{
	struct image *im = image_made(MiB(10), "compat=0.10");

	(void)state;
	assert_int_equal(image_get(im, 0, 4), QCOW2_MAGIC);
	assert_int_equal(image_get(im, 4, 4), 2);
	assert_int_equal(image_get(im, 24, 8), MiB(10));
	expect_found(im, 0, 0, 0);
	image_free(im);
}

static void features_are_set_in_the_header(void **state)
{
	struct image *im = image_made(MiB(1), "lazy_refcounts=on,compression_type=zstd,refcount_bits=8");

	(void)state;
	assert_int_equal(image_get(im, offsetof(struct qcow2_header_disk, compatible), 8), QCOW2_COMPAT_LAZY_REFCOUNTS);
	assert_int_equal(image_get(im, offsetof(struct qcow2_header_disk, incompatible), 8), QCOW2_INCOMPAT_COMPRESSION);
	assert_int_equal(image_get(im, offsetof(struct qcow2_header_disk, compression_type), 1), 1);
	assert_int_equal(image_get(im, offsetof(struct qcow2_header_disk, refcount_order), 4), 3);
	image_free(im);
}

static void the_backing_file_is_named(void **state)
{
	struct image *im = image_made(MiB(1), "backing_file=base image.raw,backing_fmt=raw,cluster_size=512");
	uint64_t off = image_get(im, 8, 8), len = image_get(im, 16, 4);
	char name[32] = "";

	(void)state;
	assert_int_equal(len, strlen("base image.raw"));
	sim_peek(im->sim, off, name, len);
	assert_string_equal(name, "base image.raw");
	assert_true(off + len <= 512);
	image_free(im);
}

static void lengths_are_rounded_up_to_sectors(void **state)
{
	struct image *im = image_made(1, "");

	(void)state;
	assert_int_equal(image_get(im, 24, 8), 512);
	image_free(im);
	im = image_made(0, "");
	assert_int_equal(image_get(im, 24, 8), 0);
	expect_found(im, 0, 0, 0);
	image_free(im);
}

static void refused(uint64_t len, const char *options, const char *says)
{
	struct image *im = image_new();

	if (image_create(im, len, options) >= 0)
		fail_msg("'%s' was accepted", options);
	if (!strstr(im->err.message, says))
		fail_msg("'%s': '%s' does not say '%s'", options, im->err.message, says);
	assert_int_equal(im->nr_writes, 0);
	assert_int_equal(sim_len(im->sim), 0);
	image_free(im);
}

static void what_cannot_be_is_refused_before_anything_is_written(void **state)
{
	char long_name[1200] = "backing_fmt=raw,backing_file=";

	(void)state;
	refused(MiB(1), "cluster_size=256", "cluster_size");
	refused(MiB(1), "cluster_size=4M", "cluster_size");
	refused(MiB(1), "cluster_size=65535", "cluster_size");
	refused(MiB(1), "cluster_size=x", "cluster_size");
	refused(MiB(1), "compat=3", "compat");
	refused(MiB(1), "refcount_bits=0", "refcount_bits");
	refused(MiB(1), "refcount_bits=24", "refcount_bits");
	refused(MiB(1), "refcount_bits=128", "refcount_bits");
	refused(MiB(1), "compat=0.10,refcount_bits=8", "compat=1.1");
	refused(MiB(1), "compat=v2,lazy_refcounts=on", "compat=1.1");
	refused(MiB(1), "compat=v2,compression_type=zstd", "compat=1.1");
	refused(MiB(1), "compression_type=lz4", "compression_type");
	refused(MiB(1), "preallocation=yes", "preallocation");
	refused(MiB(1), "preallocation=metadata,backing_file=b,backing_fmt=raw", "backing_file");
	refused(MiB(1), "backing_fmt=raw", "backing_file");
	refused(MiB(1), "backing_file=b,backing_fmt=a-very-long-format", "backing_fmt");
	refused(MiB(1), "extended_l2=on,cluster_size=8k", "cluster_size");
	refused(MiB(1), "extended_l2=on,compat=0.10", "compat=1.1");
	refused(MiB(1), "extended_l2=maybe", "extended_l2");
	refused(MiB(1), "data_file=d", "data_file");
	refused(MiB(1), "encryption=on", "encryption");
	refused(MiB(1), "encrypt.format=luks", "encrypt.format");
	refused(MiB(1), "colour=red", "colour");
	refused(GiB(129), "cluster_size=512", "cluster_size");
	refused(GiB(100), "cluster_size=512,refcount_bits=64,preallocation=metadata", "cluster_size");
	refused(UINT64_MAX - 5, "", "disk");
	memset(long_name + strlen(long_name), 'a', 1024);
	refused(MiB(1), long_name, "backing_file");
	/* Fits the format, but not the first cluster. */
	long_name[strlen("backing_fmt=raw,backing_file=") + 600] = 0;
	memcpy(long_name + strlen(long_name), ",cluster_size=512", 18);
	refused(MiB(1), long_name, "");
}

/* ---- half images ---- */

static bool looks_like_qcow2(const uint8_t *disk, uint64_t len)
{
	return len >= 4 && !memcmp(disk, "QFI\xfb", 4);
}

struct keep {
	unsigned seed;
	uint64_t all; /* 0 nothing, 1 everything, beyond: by seed */
};

static bool keep_some(void *arg, unsigned i)
{
	struct keep *k = arg;

	(void)i;
	return k->all >= 2 ? rand_r(&k->seed) & 4096 : k->all;
}

/* Whatever a power cut leaves either does not claim to be an image, or is a whole one. */
static void expect_no_half_image(struct image *im, unsigned seed)
{
	for (uint64_t all = 0; all < 8; all++) {
		struct keep k = { (seed * 8 + (unsigned)all) * 2654435761u, all };
		uint64_t len;
		uint8_t *disk = sim_power_cut(im->sim, keep_some, &k, all & 1 ? k.seed : 0, &len);

		if (looks_like_qcow2(disk, len)) {
			struct image *left = image_of(disk, len);

			expect_found(left, 0, 0, 0);
			image_free(left);
		}
		free(disk);
	}
}

static const char *const half_options[] = {
	"cluster_size=512,preallocation=metadata",
	"cluster_size=4096,backing_file=base,backing_fmt=raw",
	"cluster_size=65536,preallocation=full,refcount_bits=1",
};

static void an_interrupted_create_leaves_no_half_image(void **state)
{
	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(half_options); i++) {
		bool done = false;

		for (uint64_t nr = 0; !done; nr++) {
			struct image *im = image_new();

			im->fail_nr = nr;
			done = image_create(im, KiB(200), half_options[i]) == 0;
			im->fail_nr = UINT64_MAX;
			assert_true(done || im->err.code == -EIO);
			expect_no_half_image(im, (unsigned)nr + 1);
			image_free(im);
			assert_true(nr < 200);
		}
	}
}

/* A device that holds an old image: its header goes before anything else does. */
static void an_old_image_never_stands_above_new_tables(void **state)
{
	struct image *old = image_made(KiB(300), "cluster_size=512,preallocation=full");
	bool done = false;

	(void)state;
	for (uint64_t nr = 0; !done; nr++) {
		struct image *im = image_copy(old);

		im->fail_nr = nr;
		done = image_create_on_device(im, KiB(200), 12, PREALLOC_METADATA) == 0;
		im->fail_nr = UINT64_MAX;
		expect_no_half_image(im, (unsigned)nr + 1);
		if (done)
			expect_found(im, 0, 0, 0);
		image_free(im);
		assert_true(nr < 400);
	}
	image_free(old);
}

/* What a device held before must not be read through preallocated clusters. */
static void preallocated_clusters_of_a_used_device_read_as_zeroes(void **state)
{
	(void)state;
	for (enum prealloc p = PREALLOC_METADATA; p <= PREALLOC_FULL; p++) {
		struct image *im = image_new();
		uint8_t *rubbish = malloc(MiB(2));

		memset(rubbish, 0xaa, MiB(2));
		assert_int_equal(sim_truncate(im->sim, MiB(2)), 0);
		sim_poke(im->sim, 0, rubbish, MiB(2));
		free(rubbish);
		assert_int_equal(image_create_on_device(im, MiB(1), 16, p), 0);
		assert_int_equal(sim_len(im->sim), MiB(2));
		expect_found(im, 0, 0, 0);
		for (unsigned c = 0; c < 16; c++) {
			uint64_t host_off = image_get(im, image_l2_entry(im, c), 8) & QCOW2_OFF_MASK;

			for (unsigned pos = 0; pos < KiB(64); pos += 8)
				assert_int_equal(image_get(im, host_off + pos, 8), 0);
		}
		image_free(im);
	}
}

static void progress_ends_at_its_total(void **state)
{
	struct image *im = image_made(MiB(8), "preallocation=full");

	(void)state;
	assert_true(im->progress_calls >= 1);
	image_free(im);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_combination_is_clean),
		cmocka_unit_test(refcount_structures_count_themselves),
		cmocka_unit_test(version_2_has_a_short_header),
		cmocka_unit_test(features_are_set_in_the_header),
		cmocka_unit_test(the_backing_file_is_named),
		cmocka_unit_test(lengths_are_rounded_up_to_sectors),
		cmocka_unit_test(what_cannot_be_is_refused_before_anything_is_written),
		cmocka_unit_test(an_interrupted_create_leaves_no_half_image),
		cmocka_unit_test(an_old_image_never_stands_above_new_tables),
		cmocka_unit_test(preallocated_clusters_of_a_used_device_read_as_zeroes),
		cmocka_unit_test(progress_ends_at_its_total),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
