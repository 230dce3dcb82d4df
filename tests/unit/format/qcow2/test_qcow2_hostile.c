/* SPDX-License-Identifier: MIT */
/*
 * unit/format/qcow2/test_qcow2_hostile.c - images that lie about what is free and what belongs to whom
 *
 * A guest that may write to metadata owns the host: it writes another backing file into the header. So no lie
 * may lead the guest's bytes there, and none may cost memory or time without end.
 */
#include "disk.h"

#define CLUSTER KiB(64)
#define MARK 0x5e

static uint64_t field(struct disk *d, unsigned off)
{
	return image_get(d->im, off, 8);
}

/* What must never hold the guest's bytes: header, L1, refcount table and its first block, the first L2 table.
 */
static unsigned places(struct disk *d, uint64_t *ret)
{
	uint64_t table = field(d, offsetof(struct qcow2_header_disk, refcount_table_off));

	ret[0] = 0;
	ret[1] = image_l1(d->im);
	ret[2] = table;
	ret[3] = field(d, (unsigned)table);
	ret[4] = field(d, (unsigned)image_l1(d->im)) & QCOW2_OFF_MASK;
	return 5;
}

/* No cluster of metadata begins with a guest's bytes. */
static void expect_untouched(struct disk *d)
{
	uint64_t place[5];
	unsigned nr = places(d, place);

	for (unsigned i = 0; i < nr; i++) {
		if (image_get(d->im, place[i] + 1024, 8) == 0x0101010101010101ull * MARK)
			fail_msg("the guest's bytes are at host offset 0x%llx", (unsigned long long)place[i]);
	}
	assert_int_equal(image_get(d->im, 0, 4), QCOW2_MAGIC);
}

static struct disk *with_data(void)
{
	struct disk *d = disk_made(MiB(4), "cluster_size=64k");

	assert_int_equal(disk_write(d, 0, 4 * CLUSTER, 0x11), 0);
	assert_int_equal(disk_close(d), 0);
	return d;
}

static void scribble(struct disk *d)
{
	for (uint64_t off = 0; off < MiB(4); off += CLUSTER) {
		(void)disk_write(d, off, CLUSTER, MARK); /* may fail: what matters is where the bytes are */
		if (off % MiB(1) == 0)
			(void)disk_flush(d);
	}
	(void)disk_flush(d);
}

static void metadata_counted_as_free_is_not_handed_out(void **state)
{
	for (unsigned i = 0; i < 5; i++) {
		struct disk *d = with_data();
		uint64_t place[5];

		places(d, place);
		image_set_refcount(d->im, place[i], 0);
		assert_int_equal(disk_open(d, NODE_WRITABLE), 0);
		assert_int_equal(disk_write(d, MiB(2), CLUSTER, MARK), -EIO);
		scribble(d);
		disk_close(d);
		expect_untouched(d);
		assert_int_equal(image_get(d->im, 72, 8), QCOW2_INCOMPAT_CORRUPT);
		assert_int_equal(disk_open(d, NODE_WRITABLE), -EIO);
		assert_int_equal(disk_open(d, 0), 0);
		disk_expect(d, 0, 4 * CLUSTER, 0x11);
		disk_free(d);
	}
}

static void all_counted_as_free_is_not_handed_out(void **state)
{
	struct disk *d = with_data();

	for (uint64_t off = 0; off < sim_len(d->im->sim); off += CLUSTER)
		image_set_refcount(d->im, off, 0);
	assert_int_equal(disk_open(d, NODE_WRITABLE), 0);
	scribble(d);
	disk_close(d);
	expect_untouched(d);
	disk_free(d);
}

static void entries_that_lead_into_metadata_are_refused(void **state)
{
	for (unsigned i = 0; i < 5; i++) {
		struct disk *d = with_data();
		uint64_t place[5];
		uint8_t buf[512];

		places(d, place);
		image_put(d->im, image_l2_entry(d->im, 9), 8, place[i] | QCOW2_COPIED);
		assert_int_equal(disk_open(d, NODE_WRITABLE), 0);
		if (place[i]) { /* host offset 0 is no place: the cluster is not there, and gets one of its
				   own */
			assert_int_equal(disk_read(d, 9 * CLUSTER, 512, buf), -EIO);
			assert_int_equal(disk_discard(d, 9 * CLUSTER, CLUSTER), 0);
		}
		scribble(d);
		if (place[i]) { /* and with that the image is marked corrupt */
			assert_int_equal(i % 2 ? disk_write(d, 9 * CLUSTER, CLUSTER, MARK) : disk_zero(d, 9 * CLUSTER, CLUSTER, true), -EIO);
			assert_int_equal(disk_write(d, 5 * CLUSTER, CLUSTER, MARK), -EIO);
			assert_int_equal(image_get(d->im, 72, 8), QCOW2_INCOMPAT_CORRUPT);
		}
		disk_close(d);
		expect_untouched(d);
		disk_free(d);
	}
}

/* A place that is not there yet, where an L2 table or a refcount block will be. */
static void entries_that_lead_into_future_metadata_are_refused(void **state)
{
	for (unsigned ahead = 0; ahead < 40; ahead++) {
		struct disk *d = disk_made(MiB(2), "cluster_size=512,refcount_bits=64");
		uint64_t end;

		assert_int_equal(disk_write(d, 0, 512, 0x11), 0);
		disk_close(d);
		end = align_up(sim_len(d->im->sim), 512);
		image_put(d->im, image_l2_entry(d->im, 1), 8, (end + ahead * 512) | QCOW2_COPIED);
		assert_int_equal(disk_open(d, NODE_WRITABLE), 0);
		/* Asked before the file grows, and after. */
		assert_int_equal(disk_write(d, 512, 512, MARK), -EIO);
		for (uint64_t off = KiB(32); off < MiB(1); off += KiB(32))
			assert_int_equal(disk_write(d, off, 512, 0x22), 0);
		assert_int_equal(disk_write(d, KiB(32), 1024, 0x33), 0);
		for (uint64_t off = KiB(64); off < MiB(1); off += KiB(32))
			disk_expect(d, off, 512, 0x22);
		assert_int_equal(disk_write(d, 512, 512, MARK), -EIO); /* if metadata is there by now: the last one */
		disk_close(d);
		disk_free(d);
	}
}

/* Free clusters below the end that the guest can reach already: tables must not be made there. */
static void tables_are_not_made_where_the_guest_can_write(void **state)
{
	struct disk *d = disk_made(MiB(2), "cluster_size=512");
	uint64_t hole;

	assert_int_equal(disk_write(d, 0, 512, 0x11), 0);
	disk_close(d);
	hole = image_grow(d->im, 30, 0);
	for (unsigned i = 0; i < 30; i++)
		image_put(d->im, image_l2_entry(d->im, 1 + i), 8, (hole + i * 512) | QCOW2_COPIED);
	assert_int_equal(disk_open(d, NODE_WRITABLE), 0);
	disk_expect(d, 0, 512, 0x11);
	for (uint64_t off = KiB(32); off < MiB(2); off += KiB(32))
		assert_int_equal(disk_write(d, off, 512, 0x22), 0);
	assert_int_equal(disk_flush(d), 0);
	/* The guest scribbles over all of it; every table must still be one. */
	assert_int_equal(disk_write(d, 512, 30 * 512, 0xff), 0);
	assert_int_equal(disk_close(d), 0);
	assert_int_equal(image_check(d->im, 0), 0);
	for (uint64_t off = 0; off < MiB(2); off += KiB(32)) {
		uint64_t entry = image_get(d->im, image_l1(d->im) + off / KiB(32) * 8, 8);

		assert_true(entry != 0);
		assert_true(image_get(d->im, entry & QCOW2_OFF_MASK, 8) != UINT64_MAX);
	}
	disk_free(d);
}

static void expect_refused(struct disk *d, const char *words)
{
	uint64_t writes = d->im->nr_writes;
	int ret = disk_open(d, NODE_WRITABLE);

	if (ret != -EIO || !strstr(d->err.message, words))
		fail_msg("expected '%s', got %d and '%s'", words, ret, d->err.message);
	assert_int_equal(d->im->nr_writes, writes);
	assert_int_equal(disk_open(d, 0), 0);
	disk_close(d);
}

static void tables_in_two_roles_are_refused_for_writing(void **state)
{
	struct disk *d = disk_made(MiB(1), "cluster_size=512");
	uint64_t place[5], l1;

	assert_int_equal(disk_write(d, 0, 512, 0x11), 0);
	disk_close(d);
	places(d, place);
	l1 = place[1];
	image_put(d->im, l1 + 8, 8, place[4] | QCOW2_COPIED); /* two L1 entries, one L2 table */
	expect_refused(d, "L1 entry 1");
	for (unsigned i = 1; i < 4; i++) {
		image_put(d->im, l1 + 8, 8, place[i] | QCOW2_COPIED);
		expect_refused(d, "L1 entry 1");
	}
	image_put(d->im, l1 + 8, 8, TiB(1) | QCOW2_COPIED);
	expect_refused(d, "L1 entry 1");
	image_put(d->im, l1 + 8, 8, 1);
	expect_refused(d, "L1 entry 1");
	image_put(d->im, l1 + 8, 8, 0);
	for (unsigned i = 1; i < 5; i++) { /* a second refcount block that is something else */
		image_put(d->im, place[2] + 8, 8, place[i]);
		/* L2 tables come last: then it is the L1 entry that finds the place taken. */
		expect_refused(d, i == 4 ? "L1 entry 0" : "refcount table entry 1");
	}
	image_put(d->im, place[2] + 8, 8, 7);
	expect_refused(d, "refcount table entry 1");
	image_put(d->im, place[2] + 8, 8, TiB(1));
	expect_refused(d, "refcount table entry 1");
	image_put(d->im, place[2] + 8, 8, 0);
	image_put(d->im, offsetof(struct qcow2_header_disk, refcount_table_off), 8, l1);
	expect_refused(d, "damaged");
	image_put(d->im, offsetof(struct qcow2_header_disk, refcount_table_off), 8, place[2]);
	disk_free_clean(d);
}

/* Snapshots' tables are nobody's space either. */
static void tables_of_snapshots_are_not_handed_out(void **state)
{
	struct disk *d = with_data();
	uint64_t l1_copy = image_grow(d->im, 1, 0), table = image_grow(d->im, 1, 0);

	image_put(d->im, l1_copy, 8, 0);
	image_put(d->im, table, 8, l1_copy);
	image_put(d->im, table + 8, 4, 1);
	image_put(d->im, table + 36, 4, 16);
	image_put(d->im, offsetof(struct qcow2_header_disk, snapshots_off), 8, table);
	image_put(d->im, offsetof(struct qcow2_header_disk, nr_snapshots), 4, 1);
	assert_int_equal(disk_open(d, NODE_WRITABLE), 0);
	assert_int_equal(disk_write(d, MiB(2), CLUSTER, MARK), -EIO);
	disk_close(d);
	assert_true(image_get(d->im, table + 1024, 8) != 0x0101010101010101ull * MARK);
	assert_true(image_get(d->im, l1_copy + 1024, 8) != 0x0101010101010101ull * MARK);
	disk_free(d);
}

/* A table entry that was lost: what it counted is not known to be free. */
static void a_lost_refcount_block_frees_nothing(void **state)
{
	struct disk *d = disk_made(MiB(1), "cluster_size=512,refcount_bits=64");
	uint64_t table;

	assert_int_equal(disk_write(d, 0, KiB(256), 0x11), 0);
	disk_close(d);
	table = field(d, offsetof(struct qcow2_header_disk, refcount_table_off));
	image_put(d->im, table + 3 * 8, 8, 0);
	assert_int_equal(disk_open(d, NODE_WRITABLE), 0);
	assert_int_equal(disk_write(d, KiB(512), KiB(256), MARK), 0);
	disk_expect(d, 0, KiB(256), 0x11);
	disk_close(d);
	assert_int_equal(disk_open(d, 0), 0);
	disk_expect(d, 0, KiB(256), 0x11);
	disk_expect(d, KiB(512), KiB(256), MARK);
	disk_free(d);
}

/* Random damage to metadata: the image may be refused or give errors; header and process live. */
static void any_damage_is_survived(void **state)
{
	const char *env = getenv("VARVE_TEST_SEED");
	unsigned seed = env ? (unsigned)strtoul(env, NULL, 0) : 20260102, opened = 0;

	printf("# VARVE_TEST_SEED=%u\n", seed);
	srand(seed);
	for (unsigned i = 0; i < 150; i++) {
		struct disk *d =
			disk_made(MiB(1), i % 2	     ? "cluster_size=512" :
					  i % 4 == 2 ? "cluster_size=16k,extended_l2=on" :
						       "cluster_size=4k,refcount_bits=8");
		uint64_t len, place[5];
		uint8_t header[112], after[112];

		assert_int_equal(disk_write(d, 0, KiB(64), 0x11), 0);
		disk_close(d);
		len = sim_len(d->im->sim);
		places(d, place);
		for (unsigned k = 0; k < 1 + i % 5; k++) {
			uint64_t off = place[1 + rand() % 4] + (uint64_t)(rand() % 64) * 8;

			image_put(d->im, off, 8,
				  rand() % 2 ? (uint64_t)rand() % (2 * len) / 512 * 512 | QCOW2_COPIED
					     : (uint64_t)rand() << rand() % 33);
		}
		sim_peek(d->im->sim, 0, header, sizeof(header));
		if (disk_open(d, NODE_WRITABLE) == 0) {
			opened++;
			for (unsigned k = 0; k < 40; k++) {
				uint64_t off = (uint64_t)(rand() % 256) * 4096,
					 n = 1 + (uint64_t)rand() % 8192;

				n = MIN(n, MiB(1) - off);
				(void)(k % 4 == 3 ? disk_discard(d, off, n) : disk_write(d, off, n, MARK));
			}
			disk_close(d);
			sim_peek(d->im->sim, 0, after, sizeof(after));
			/* Only where the refcount table and L1 lie may have changed, and the mark of a corrupt image. */
			memcpy(after + 36, header + 36, 24);
			header[79] |= after[79] & QCOW2_INCOMPAT_CORRUPT;
			assert_memory_equal(header, after, sizeof(header));
		}
		disk_free(d);
	}
	printf("# %u of 150 opened\n", opened);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(metadata_counted_as_free_is_not_handed_out),
		cmocka_unit_test(all_counted_as_free_is_not_handed_out),
		cmocka_unit_test(entries_that_lead_into_metadata_are_refused),
		cmocka_unit_test(entries_that_lead_into_future_metadata_are_refused),
		cmocka_unit_test(tables_are_not_made_where_the_guest_can_write),
		cmocka_unit_test(tables_in_two_roles_are_refused_for_writing),
		cmocka_unit_test(tables_of_snapshots_are_not_handed_out),
		cmocka_unit_test(a_lost_refcount_block_frees_nothing),
		cmocka_unit_test(any_damage_is_survived),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
