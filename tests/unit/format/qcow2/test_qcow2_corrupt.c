/* SPDX-License-Identifier: MIT */
/*
 * format/qcow2/test_qcow2_corrupt.c - damage that is met while the disk is in use: told, or the image is marked
 *
 * Each disk has four clusters of 0x11, of which number 1 is damaged before it is opened.
 */
#include "block/snapshot.h"
#include "disk.h"

#define CLUSTER KiB(64)
#define MARK_AT offsetof(struct qcow2_header_disk, incompatible)

enum damage { UNALIGNED, UNALIGNED_ZERO, IN_L1, IN_L2, PACKED_IN_L2, RESERVED, BEHIND_END, UNCOUNTED };

static void damage(struct disk *d, enum damage what)
{
	uint64_t at = image_l2_entry(d->im, image_get(d->im, MARK_AT, 8) & QCOW2_INCOMPAT_EXTENDED_L2 ? 2 : 1), entry = image_get(d->im, at, 8), host_off = entry & QCOW2_OFF_MASK;

	switch (what) {
	case UNALIGNED:
		entry += 512;
		break;
	case UNALIGNED_ZERO:
		entry += 512 | QCOW2_ZERO;
		break;
	case IN_L1:
		entry = image_l1(d->im) | QCOW2_COPIED;
		break;
	case IN_L2:
		entry = align_down(at, CLUSTER) | QCOW2_COPIED;
		break;
	case PACKED_IN_L2:
		entry = align_down(at, CLUSTER) | QCOW2_COMPRESSED;
		break;
	case RESERVED:
		entry |= 1ull << 61;
		break;
	case BEHIND_END:
		entry = MiB(512) | QCOW2_COPIED;
		break;
	case UNCOUNTED: /* there is no damage in the entry */
		image_set_refcount(d->im, image_l1(d->im), 0);
		return;
	}
	assert_int_not_equal(host_off, 0);
	image_put(d->im, at, 8, entry); /* of an extended entry: its place */
}

static struct disk *damaged(enum damage what, const char *options)
{
	struct disk *d = disk_made(MiB(4), options);

	assert_int_equal(disk_write(d, 0, 4 * CLUSTER, 0x11), 0);
	assert_int_equal(disk_close(d), 0);
	damage(d, what);
	return d;
}

static bool is_marked(struct disk *d)
{
	return image_get(d->im, MARK_AT, 8) & QCOW2_INCOMPAT_CORRUPT;
}

/* ---- what marks ---- */

static int reads(struct disk *d)
{
	uint8_t buf[512];

	return disk_read(d, CLUSTER, sizeof(buf), buf);
}

static int writes(struct disk *d)
{
	return disk_write(d, CLUSTER + 512, 512, 0x22);
}

static int zeroes(struct disk *d)
{
	return disk_zero(d, CLUSTER, CLUSTER, false);
}

static int discards(struct disk *d)
{
	return disk_discard(d, CLUSTER, CLUSTER);
}

static int allocates(struct disk *d)
{
	return disk_write(d, MiB(2), CLUSTER, 0x22);
}

static const struct {
	const char *name;
	int (*fn)(struct disk *d);
} ops[] = { { "read", reads }, { "write", writes }, { "zero", zeroes }, { "discard", discards }, { "allocate", allocates } };

/* What each answers: f fails and marks, e fails, - succeeds. */
static const char *const answers[] = {
	[UNALIGNED] = "fff--", [UNALIGNED_ZERO] = "fff--", [IN_L1] = "eff--",	  [IN_L2] = "eff--",
	[PACKED_IN_L2] = "eff--", [RESERVED] = "eee--",	     [BEHIND_END] = "eee--", [UNCOUNTED] = "----f",
};

/* The other clusters are read and written on, as long as nothing marks. */
static void expect_goes_on(struct disk *d, bool on)
{
	uint8_t buf[512];

	assert_int_equal(disk_read(d, 2 * CLUSTER, sizeof(buf), buf), on ? 0 : -EIO);
	assert_int_equal(disk_write(d, 3 * CLUSTER, 512, 0x33), on ? 0 : -EIO);
	assert_int_equal(disk_discard(d, 3 * CLUSTER, CLUSTER), on ? 0 : -EIO);
	assert_int_equal(disk_zero(d, 2 * CLUSTER, 512, false), on ? 0 : -EIO);
	assert_int_equal(disk_flush(d), 0); /* what was acknowledged is stable in either case */
}

static void what_proves_damage_marks_the_image(void **state)
{
	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(answers) * ARRAY_LEN(ops); i++) {
		enum damage what = i / ARRAY_LEN(ops);
		char want = answers[what][i % ARRAY_LEN(ops)];
		struct disk *d = damaged(what, "cluster_size=64k");

		assert_int_equal(disk_open(d, NODE_WRITABLE), 0);
		printf("# damage %u, %s\n", what, ops[i % ARRAY_LEN(ops)].name);
		assert_int_equal(ops[i % ARRAY_LEN(ops)].fn(d), want == '-' ? 0 : -EIO);
		assert_int_equal(is_marked(d), want == 'f');
		expect_goes_on(d, want != 'f');
		assert_int_equal(disk_close(d), 0);
		assert_int_equal(is_marked(d), want == 'f');
		assert_int_equal(disk_open(d, NODE_WRITABLE), want == 'f' ? -EIO : 0);
		disk_free(d);
	}
}

/* Version 2 has no place for a mark; what is open for reading is not changed. */
static void what_cannot_be_marked_is_refused_all_the_same(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 3; i++) {
		struct disk *d = damaged(UNALIGNED, i < 2 ? "cluster_size=64k,compat=0.10" : "cluster_size=64k");
		uint64_t len = sim_len(d->im->sim);
		uint8_t *before = malloc(len), *after = malloc(len), buf[512];

		sim_peek(d->im->sim, 0, before, len);
		assert_int_equal(disk_open(d, i < 2 ? NODE_WRITABLE : 0), 0);
		assert_int_equal(i == 0 ? writes(d) : reads(d), -EIO);
		assert_int_equal(disk_read(d, 2 * CLUSTER, sizeof(buf), buf), i < 2 ? -EIO : 0);
		assert_int_equal(disk_close(d), 0);
		assert_int_equal(sim_len(d->im->sim), len);
		sim_peek(d->im->sim, 0, after, len);
		assert_memory_equal(before, after, len);
		disk_reopen(d);
		disk_expect(d, 2 * CLUSTER, CLUSTER, 0x11);
		free(before);
		free(after);
		disk_free(d);
	}
}

/* ---- after it ---- */

static int changes_of_the_operator(struct fiber *f, struct disk *d)
{
	struct snapshot_pick pick = { .name = "s" };
	struct snapshot_want want = { .name = "t" };
	struct snapshot_draft *draft;
	struct varve_error err;
	struct opts *o = opts_new();

	assert_int_equal(node_truncate(f, d->n, MiB(8), PREALLOC_OFF, &err), -EIO);
	assert_non_null(strstr(err.message, "damaged while in use"));
	assert_int_equal(d->n->drv->snapshot_create(f, d->n, &want, &draft, &err), -EIO);
	assert_int_equal(d->n->drv->snapshot_delete(f, d->n, &pick, &err), -EIO);
	assert_int_equal(d->n->drv->snapshot_apply(f, d->n, &pick, &err), -EIO);
	assert_int_equal(d->n->drv->set_backing(f, d->n, "base", "raw", false, &err), -EIO);
	assert_int_equal(opts_set(o, "lazy_refcounts", "on", &err), 0);
	assert_int_equal(d->n->drv->amend(f, d->n, o, NULL, NULL, &err), -EIO);
	assert_int_equal(d->n->drv->state_area_write(f, d->n, 0, "state", 5), -EIO);
	opts_free(o);
	return 0;
}

static void once_marked_nothing_is_changed(void **state)
{
	static const char *const images[] = { "cluster_size=64k", "cluster_size=64k,lazy_refcounts=on", "cluster_size=64k,extended_l2=on" };

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(images); i++) {
		struct disk *d = damaged(UNALIGNED, images[i]);
		uint8_t *before, *after;
		uint64_t len;

		assert_int_equal(disk_open(d, NODE_WRITABLE), 0);
		assert_int_equal(disk_write(d, MiB(2), CLUSTER, 0x22), 0);
		assert_int_equal(reads(d), -EIO);
		len = sim_len(d->im->sim);
		before = malloc(len);
		after = malloc(len);
		sim_peek(d->im->sim, 0, before, len);
		expect_goes_on(d, false);
		assert_int_equal(disk_call(d, changes_of_the_operator), 0);
		assert_int_equal(disk_close(d), 0);
		assert_int_equal(sim_len(d->im->sim), len);
		sim_peek(d->im->sim, 0, after, len);
		assert_memory_equal(before, after, len);
		assert_int_equal(disk_open(d, 0), 0);
		disk_expect(d, MiB(2), CLUSTER, 0x22);
		disk_expect(d, 2 * CLUSTER, CLUSTER, 0x11);
		free(before);
		free(after);
		disk_free(d);
	}
}

/* Several at once: one of them marks, all fail. */
static void requests_in_flight_fail_together(void **state)
{
	struct disk *d = damaged(UNALIGNED, "cluster_size=64k");
	struct disk_op at_once[] = {
		{ .op = REQ_WRITE, .off = CLUSTER, .len = 512, .byte = 2 },
		{ .op = REQ_WRITE, .off = CLUSTER + 1024, .len = 512, .byte = 2 },
		{ .op = REQ_READ, .off = CLUSTER + 2048, .len = 512 },
		{ .op = REQ_ZERO, .off = CLUSTER, .len = CLUSTER },
	};

	(void)state;
	assert_int_equal(disk_open(d, NODE_WRITABLE), 0);
	disk_run(d, at_once, ARRAY_LEN(at_once));
	for (unsigned i = 0; i < ARRAY_LEN(at_once); i++)
		assert_int_equal(at_once[i].ret, -EIO);
	assert_true(is_marked(d));
	disk_free(d);
}

static void a_mark_that_cannot_be_written_refuses_all_the_same(void **state)
{
	struct disk *d = damaged(UNALIGNED, "cluster_size=64k");

	(void)state;
	assert_int_equal(disk_open(d, NODE_WRITABLE), 0);
	disk_expect(d, 0, 512, 0x11);
	d->im->fail_nr = sim_nr_ops(d->im->sim) + 1; /* the table is in memory; the entry is read once more */
	assert_int_equal(writes(d), -EIO);
	assert_false(is_marked(d));
	d->im->fail_nr = UINT64_MAX;
	assert_int_equal(disk_write(d, 2 * CLUSTER, 512, 2), -EIO);
	assert_int_equal(disk_flush(d), 0); /* the file takes it again, so the mark, too */
	assert_true(is_marked(d));
	disk_free(d);
}

/* ---- power cuts ---- */

/* With the mark or without: the one damage that was there before, and what was flushed. */
static bool judge(const struct cut *cut, uint64_t corruptions)
{
	struct disk *d = disk_of_cut(cut);
	uint64_t incompatible = image_get(d->im, MARK_AT, 8);

	assert_int_equal(incompatible & ~(uint64_t)QCOW2_INCOMPAT_CORRUPT, 0);
	assert_int_equal(image_check(d->im, 0), 0);
	assert_int_equal(d->im->found.corruptions, corruptions);
	assert_int_equal(disk_open(d, 0), 0);
	disk_expect(d, 0, CLUSTER, 0x11);
	disk_expect(d, 2 * CLUSTER, 2 * CLUSTER, 0x11);
	disk_free(d);
	return incompatible & QCOW2_INCOMPAT_CORRUPT;
}

static void a_cut_leaves_the_mark_or_what_was_there(void **state)
{
	struct disk *d = damaged(UNALIGNED, "cluster_size=64k");
	unsigned nr_marked = 0;
	uint64_t corruptions;
	struct cuts c;

	(void)state;
	assert_int_equal(image_check(d->im, 0), 0);
	corruptions = d->im->found.corruptions;
	assert_int_equal(disk_open(d, NODE_WRITABLE), 0);
	assert_int_equal(disk_write(d, MiB(1), 3 * CLUSTER, 0x22), 0);
	cuts_begin(&c, d);
	assert_int_equal(writes(d), -EIO);
	cuts_end(&c);
	for (unsigned i = 0; i < c.nr; i++)
		nr_marked += judge(&c.all[i], corruptions);
	printf("# %u states, %u with the mark\n", c.nr, nr_marked);
	assert_in_range(nr_marked, 1, c.nr - 1);
	/* When the request has been answered: the mark is there, and what was acknowledged, whatever the cut takes. */
	cuts_add(&c, 0, 0);
	assert_true(judge(&c.all[c.nr - 1], corruptions));
	disk_close(d);
	disk_free(d);
	d = disk_of_cut(&c.all[c.nr - 1]);
	assert_int_equal(disk_open(d, 0), 0);
	disk_expect(d, MiB(1), 3 * CLUSTER, 0x22);
	disk_free(d);
	cuts_free(&c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_proves_damage_marks_the_image),
		cmocka_unit_test(what_cannot_be_marked_is_refused_all_the_same),
		cmocka_unit_test(once_marked_nothing_is_changed),
		cmocka_unit_test(requests_in_flight_fail_together),
		cmocka_unit_test(a_mark_that_cannot_be_written_refuses_all_the_same),
		cmocka_unit_test(a_cut_leaves_the_mark_or_what_was_there),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
