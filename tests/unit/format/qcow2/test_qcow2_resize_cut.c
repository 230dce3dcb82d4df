/* SPDX-License-Identifier: MIT */
/*
 * format/qcow2/test_qcow2_resize_cut.c - power cuts while the L1 table moves to a longer place
 *
 * A disk with data becomes longer, is written in its new part, and flushed. Before each operation that
 * reaches the file: all subsets of what is not stable, or many of them, some torn (disk.h). Each must open, pass
 * check, hold what was flushed before, and have one of the two lengths. Without the order between the table
 * and the header that leads to it some must not.
 */
#include "disk.h"

#define OLD_LEN KiB(256)
#define NEW_LEN MiB(8)

static bool holds(struct disk *d, uint64_t off, uint64_t len, uint8_t byte, bool or_zero)
{
	uint8_t *buf = malloc(len);
	bool ok = disk_read(d, off, len, buf) == 0;

	for (uint64_t i = 0; i < len && ok; i++)
		ok = buf[i] == byte || (or_zero && !buf[i]);
	free(buf);
	return ok;
}

/* NULL, or what is wrong with this state. */
static const char *judge(const struct cut *cut)
{
	struct disk *d = disk_of_cut(cut);
	const char *wrong = NULL;
	uint64_t len = 0;

	if (image_check(d->im, 0) < 0 || d->im->found.corruptions || d->im->found.check_errors)
		wrong = "check finds damage";
	if (!wrong && disk_open(d, NODE_WRITABLE) < 0)
		wrong = "it does not open";
	if (!wrong)
		len = node_len(d->n);
	if (!wrong && len != OLD_LEN && len != NEW_LEN)
		wrong = "the length is neither";
	if (!wrong && !holds(d, 0, OLD_LEN, 0x11, false))
		wrong = "what was flushed before is lost";
	if (!wrong && len == NEW_LEN &&
	    !(holds(d, OLD_LEN, KiB(64), 0x22, true) && holds(d, NEW_LEN - KiB(64), KiB(64), 0x22, true)))
		wrong = "the new part holds what nobody wrote";
	disk_free(d);
	return wrong;
}

/* How many states there were; *ret_wrong: of the first that is not as promised, NULL: all are. */
static unsigned run(const char *options, const char **ret_wrong)
{
	struct disk *d = disk_made(OLD_LEN, options);
	struct cuts c;

	*ret_wrong = NULL;
	assert_int_equal(disk_write(d, 0, OLD_LEN, 0x11), 0);
	assert_int_equal(disk_flush(d), 0);
	assert_int_equal(disk_flush(d), 0);
	cuts_begin(&c, d);
	assert_int_equal(disk_truncate(d, NEW_LEN), 0);
	assert_int_equal(disk_write(d, NEW_LEN - KiB(4), KiB(4), 0x22), 0);
	assert_int_equal(disk_write(d, OLD_LEN, KiB(4), 0x22), 0);
	assert_int_equal(disk_flush(d), 0);
	cuts_end(&c);
	for (unsigned i = 0; i < c.nr; i++) {
		const char *wrong = judge(&c.all[i]);

		*ret_wrong = *ret_wrong ? *ret_wrong : wrong;
	}
	cuts_free(&c);
	disk_free(d);
	return c.nr;
}

static const char *const images[] = { "cluster_size=512", "cluster_size=512,refcount_bits=64",
				      "cluster_size=512,compat=0.10" };

static void every_cut_while_the_disk_grows_leaves_one_length_or_the_other(void **state)
{
	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(images); i++) {
		const char *wrong;
		unsigned nr = run(images[i], &wrong);

		printf("# %s: %u states\n", images[i], nr);
		if (wrong)
			fail_msg("%s: %s", images[i], wrong);
		assert_true(nr >= 50);
	}
}

static void without_the_order_between_table_and_header_some_cut_is_fatal(void **state)
{
	const char *wrong;

	(void)state;
	setenv("VARVE_FORGET_ORDER", "l1-header", 1);
	(void)run(images[0], &wrong);
	unsetenv("VARVE_FORGET_ORDER");
	assert_non_null(wrong);
	printf("# %s\n", wrong);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_cut_while_the_disk_grows_leaves_one_length_or_the_other),
		cmocka_unit_test(without_the_order_between_table_and_header_some_cut_is_fatal),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
