/* SPDX-License-Identifier: MIT */
/*
 * unit/format/qcow2/test_qcow2_packed.c - compressed clusters: written densely, read, overwritten, given back
 */
#include "disk.h"

#include <string.h>

#define CLUSTER KiB(64)

static uint64_t seed;

static uint32_t rnd(uint32_t below)
{
	seed = seed * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(seed >> 33) % below;
}

static int pack(struct disk *d, uint64_t off, uint64_t len, uint8_t byte)
{
	struct disk_op op = { .op = REQ_WRITE, .flags = REQ_COMPRESS, .off = off, .len = len, .byte = byte };

	disk_run(d, &op, 1);
	return op.ret;
}

static bool is_packed(struct disk *d, uint64_t off)
{
	return disk_map(d, off, 1).kind == EXTENT_PACKED;
}

static void clusters_share_a_host_cluster(void **state)
{
	struct disk *d = disk_made(MiB(4), "cluster_size=64k");
	uint64_t end;

	(void)state;
	for (unsigned i = 0; i < 64; i++)
		assert_int_equal(pack(d, i * CLUSTER, CLUSTER, (uint8_t)i), 0);
	disk_reopen(d);
	end = node_len(d->n->file);
	for (unsigned i = 0; i < 64; i++) {
		assert_true(is_packed(d, i * CLUSTER));
		disk_expect(d, i * CLUSTER, CLUSTER, (uint8_t)i);
		disk_expect(d, i * CLUSTER + 1000, 77, (uint8_t)i);
	}
	assert_true(end <= 8 * CLUSTER); /* header, tables, one for all of the data */
	disk_free_clean(d);
}

static void parts_and_clusters_with_space_are_written_plainly(void **state)
{
	struct disk *d = disk_made(MiB(1) + 1024, "cluster_size=64k");

	(void)state;
	assert_int_equal(pack(d, 100 * 512, CLUSTER, 1), 0); /* a part of two */
	assert_false(is_packed(d, 0));
	assert_int_equal(disk_write(d, 4 * CLUSTER, CLUSTER, 2), 0);
	assert_int_equal(pack(d, 3 * CLUSTER, 3 * CLUSTER, 3), 0);
	assert_true(is_packed(d, 3 * CLUSTER));
	assert_false(is_packed(d, 4 * CLUSTER));
	assert_true(is_packed(d, 5 * CLUSTER));
	disk_expect(d, 3 * CLUSTER, 3 * CLUSTER, 3);
	assert_int_equal(pack(d, MiB(1), 1024, 4), 0); /* all that there is of the last one */
	assert_true(is_packed(d, MiB(1)));
	disk_expect(d, MiB(1), 1024, 4);
	disk_reopen(d);
	disk_expect(d, 3 * CLUSTER, 3 * CLUSTER, 3);
	disk_expect(d, MiB(1), 1024, 4);
	disk_free_clean(d);
}

static void overwriting_moves_a_cluster_and_gives_its_bytes_back(void **state)
{
	struct disk *d = disk_made(MiB(1), "cluster_size=64k");

	(void)state;
	for (unsigned round = 0; round < 4; round++) {
		for (unsigned i = 0; i < 8; i++)
			assert_int_equal(pack(d, i * CLUSTER, CLUSTER, (uint8_t)(round * 16 + i)), 0);
		for (unsigned i = 0; i < 8; i++)
			assert_true(is_packed(d, i * CLUSTER));
		/* All references to the host cluster that is being filled go; filling must not go on there. */
		for (unsigned i = 0; i < 8; i++) {
			assert_int_equal(disk_write(d, i * CLUSTER + 512, 512, 0xff), 0);
			disk_expect(d, i * CLUSTER, 512, (uint8_t)(round * 16 + i));
			disk_expect(d, i * CLUSTER + 512, 512, 0xff);
			disk_expect(d, i * CLUSTER + 1024, CLUSTER - 1024, (uint8_t)(round * 16 + i));
		}
		assert_int_equal(disk_flush(d), 0);
		assert_int_equal(disk_flush(d), 0);
		assert_int_equal(disk_discard(d, 0, 8 * CLUSTER), 0);
		assert_int_equal(disk_flush(d), 0);
	}
	disk_free_clean(d);
}

static void many_at_once(void **state)
{
	struct disk *d = disk_made(MiB(8), "cluster_size=64k");
	struct disk_op ops[40];

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(ops); i++)
		ops[i] = (struct disk_op){ .op = REQ_WRITE, .flags = REQ_COMPRESS, .off = i * 3 * CLUSTER, .len = 3 * CLUSTER,
					   .byte = (uint8_t)(i + 1) };
	disk_run(d, ops, ARRAY_LEN(ops));
	for (unsigned i = 0; i < ARRAY_LEN(ops); i++) {
		assert_int_equal(ops[i].ret, 0);
		disk_expect(d, i * 3 * CLUSTER, 3 * CLUSTER, (uint8_t)(i + 1));
	}
	disk_free_clean(d);
}

/* Each cluster holds one byte over and over; what it is must be what the disk says, whatever happened to it. */
static void random_changes_agree_with_a_model(void **state)
{
	static const struct { const char *options; uint32_t cluster; } kinds[] = {
		{ "cluster_size=512", 512 }, { "cluster_size=4k,refcount_bits=1", 4096 },
		{ "cluster_size=4k,refcount_bits=2", 4096 }, { "cluster_size=4k,compression_type=zstd", 4096 },
		{ "cluster_size=64k,compat=0.10", 65536 },
	};

	(void)state;
	for (unsigned k = 0; k < ARRAY_LEN(kinds); k++) {
		uint32_t cl = kinds[k].cluster;
		struct disk *d = disk_made(48ull * cl, kinds[k].options);
		uint8_t model[48] = { 0 };

		seed = 77 + k;
		for (unsigned i = 0; i < 600; i++) {
			unsigned at = rnd(48), what = rnd(16), want = 1 + rnd(5), nr = MIN(want, 48 - at);
			uint8_t byte = (uint8_t)(1 + rnd(255));

			if (what < 7)
				assert_int_equal(pack(d, (uint64_t)at * cl, (uint64_t)nr * cl, byte), 0);
			else if (what < 10)
				assert_int_equal(disk_write(d, (uint64_t)at * cl, (uint64_t)nr * cl, byte), 0);
			else if (what < 12)
				assert_int_equal(disk_zero(d, (uint64_t)at * cl, (uint64_t)nr * cl, what & 1), byte = 0);
			else if (what < 13)
				disk_reopen(d);
			else if (what < 14)
				assert_int_equal(disk_flush(d), 0);
			if (what < 12)
				memset(model + at, byte, nr);
			at = rnd(48);
			disk_expect(d, (uint64_t)at * cl, cl, model[at]);
		}
		disk_reopen(d);
		for (unsigned i = 0; i < 48; i++)
			disk_expect(d, (uint64_t)i * cl, cl, model[i]);
		disk_free_clean(d);
	}
}

static void damaged_bytes_are_an_error(void **state)
{
	struct disk *d = disk_made(MiB(1), "cluster_size=64k");
	uint8_t byte = 0xff, buf[512];
	struct extent e;

	(void)state;
	assert_int_equal(pack(d, 0, CLUSTER, 1), 0);
	e = disk_map(d, 0, CLUSTER);
	disk_close(d);
	sim_poke(d->im->sim, e.host_off & ((1ull << 54) - 1), &byte, 1);
	assert_int_equal(disk_open(d, 0), 0);
	assert_int_equal(disk_read(d, 100, sizeof(buf), buf), -EIO);
	disk_free(d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(clusters_share_a_host_cluster),
		cmocka_unit_test(parts_and_clusters_with_space_are_written_plainly),
		cmocka_unit_test(overwriting_moves_a_cluster_and_gives_its_bytes_back),
		cmocka_unit_test(many_at_once),
		cmocka_unit_test(random_changes_agree_with_a_model),
		cmocka_unit_test(damaged_bytes_are_an_error),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
