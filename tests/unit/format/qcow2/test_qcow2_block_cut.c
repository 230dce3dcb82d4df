/* SPDX-License-Identifier: MIT */
/*
 * unit/format/qcow2/test_qcow2_block_cut.c - power cuts while new refcount blocks come into being
 *
 * With clusters of 512 bytes and counts of 64 bits a block counts 64 clusters, so a handful of writes needs a new one:
 * its bytes, its entry in the refcount table, and the L2 entries that rely on both are written by one flush.
 */
#include "image.h"

#include "block/graph.h"
#include "format/qcow2/driver.h"

#define CUTS_MAX 4096u

struct run {
	struct image *im;
	unsigned nr_writes;   /* of one cluster each, before the flush */
	uint64_t stop;	      /* operation of the flush that fails first */
	unsigned nr_unstable; /* writes that the cut may keep or drop */
	uint8_t *disks[CUTS_MAX];
	uint64_t lens[CUTS_MAX];
	unsigned nr_disks;
};

static bool keep_bit(void *arg, unsigned i)
{
	return *(uint64_t *)arg >> i & 1;
}

static int run_fiber(struct fiber *f, void *arg)
{
	struct run *r = arg;
	struct node *leaf, *top;
	struct opts *o = opts_new();
	uint8_t buf[512];
	int ret;

	assert_int_equal(sim_node_new(f, r->im->sim, &r->im->af, NODE_WRITABLE, &leaf, &r->im->err), 0);
	assert_int_equal(graph_stack(f, &driver_qcow2, leaf, o, NODE_WRITABLE, &top, &r->im->err), 0);
	opts_free(o);
	memset(buf, 7, sizeof(buf));
	for (unsigned i = 0; i < r->nr_writes; i++)
		assert_int_equal(node_write(f, top, i * 512ull, buf, sizeof(buf)), 0);
	r->im->fail_nr = sim_nr_ops(r->im->sim) + r->stop;
	ret = node_flush(f, top);
	r->nr_unstable = sim_nr_unstable(r->im->sim);
	for (uint64_t bits = 0; r->nr_unstable <= 10 && bits < 1ull << r->nr_unstable; bits++, r->nr_disks++) {
		uint64_t kept = bits;

		r->disks[r->nr_disks] = sim_power_cut(r->im->sim, keep_bit, &kept, 0, &r->lens[r->nr_disks]);
	}
	r->im->fail_nr = UINT64_MAX;
	graph_close(f, top, NULL); /* after an error it may well fail */
	return ret;
}

/* Leaks are allowed after a cut, corruptions are not. */
static void expect_survivor(const struct run *r, unsigned i)
{
	struct image *left = image_of(r->disks[i], r->lens[i]);

	assert_int_equal(image_check(left, 0), 0);
	if (left->found.corruptions)
		fail_msg("%u writes, cut at operation %llu, kept %x of %u: %s", r->nr_writes, (unsigned long long)r->stop, i,
			 r->nr_unstable, left->lines);
	image_free(left);
}

static void cut_everywhere(unsigned nr_writes)
{
	bool flushed = false;

	for (uint64_t stop = 0; !flushed; stop++) {
		struct run *r = calloc(1, sizeof(*r));

		r->im = image_made(KiB(128), "cluster_size=512,refcount_bits=64");
		r->nr_writes = nr_writes;
		r->stop = stop;
		flushed = fiber_call(r->im->q, run_fiber, r) == 0;
		image_free(r->im);
		for (unsigned i = 0; i < r->nr_disks; i++) {
			expect_survivor(r, i);
			free(r->disks[i]);
		}
		free(r);
		assert_true(stop < 40);
	}
}

/* Nothing points at a cluster whose count could not be found after the cut. */
static void entries_wait_for_the_refcount_table(void **state)
{
	(void)state;
	for (unsigned nr = 54; nr < 72; nr++)
		cut_everywhere(nr);
	for (unsigned nr = 118; nr < 134; nr++)
		cut_everywhere(nr);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(entries_wait_for_the_refcount_table),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
