/* SPDX-License-Identifier: MIT */
/*
 * unit/block/test_align.c - leaves that want aligned requests get no others, and no byte is lost on the way
 */
#include "base/iov.h"
#include "fake.h"

#define LEN KiB(128)

/* A memory leaf that looks at each request, and answers in a later turn as a device would. */
static struct driver driver_strict;
static _Atomic unsigned strict_bad;

static void strict_later(struct msg *m)
{
	struct req *r = container_of(m, struct req, msg);

	driver_memory.submit(r->at, r);
}

static void strict_submit(struct node *n, struct req *r)
{
	if (r->op != REQ_FLUSH && !is_aligned(r->off | r->len, n->align))
		strict_bad++;
	if (r->iov && !iov_is_aligned(r->iov, r->nr_iov, n->mem_align))
		strict_bad++;
	r->msg.run = strict_later;
	queue_later(r->q, &r->msg);
}

static void strict_open(struct leaf *l, uint32_t align, uint32_t mem_align)
{
	driver_strict = driver_memory;
	driver_strict.submit = strict_submit;
	strict_bad = 0;
	l->q = leaf_queue();
	assert_int_equal(leaf_try(l, &driver_memory, NULL, "size=128k", NODE_WRITABLE), 0);
	l->n->drv = &driver_strict;
	l->n->align = align;
	l->n->mem_align = mem_align;
	node_set_submit(l->n);
}

static void unaligned_requests_agree_with_a_model(void **state)
{
	static const uint32_t aligns[][2] = { { 512, 512 }, { 4096, 512 }, { 4096, 4096 }, { 512, 4 }, { 512, 1 } };
	static uint8_t want[LEN], room[LEN + 8192];

	(void)state;
	for (unsigned a = 0; a < ARRAY_LEN(aligns); a++) {
		struct leaf l;
		struct rnd rnd;

		strict_open(&l, aligns[a][0], aligns[a][1]);
		memset(want, 0, LEN);
		rnd_start(&rnd, a + 1);
		for (unsigned i = 0; i < 1500; i++) {
			uint64_t grain = 1ull << rnd_below(&rnd, 14), off = rnd_below(&rnd, LEN / grain) * grain;
			uint64_t len = 1 + rnd_below(&rnd, MIN(LEN - off, 3 * grain)), what = rnd_below(&rnd, 8);
			uint8_t *buf = room + rnd_below(&rnd, 2) * rnd_below(&rnd, 4096);
			bool failed = false;

			if (grain > 1)
				len = MIN(align_up(len, grain), LEN - off);
			if (what < 3) {
				memset(buf, (int)i, len);
				memset(want + off, (int)i, len);
				failed = leaf_write(&l, off, buf, len, what ? 0 : REQ_FUA) != 0;
			} else if (what < 6) {
				failed = leaf_read(&l, off, buf, len) != 0 || memcmp(buf, want + off, len);
			} else if (what == 6) {
				memset(want + off, 0, len);
				failed = leaf_zero(&l, off, len, 0) != 0;
			} else {
				/* The leaf zeroes what it discards: only whole blocks may have gone. */
				uint64_t from = align_up(off, aligns[a][0]);
				uint64_t to = align_down(off + len, aligns[a][0]);

				failed = leaf_discard(&l, off, len) != 0;
				if (from < to)
					memset(want + from, 0, to - from);
			}
			if (failed)
				fail_msg("align %u/%u, seed %u, step %u: [%llu, +%llu)", aligns[a][0], aligns[a][1],
					 a + 1, i, (unsigned long long)off, (unsigned long long)len);
		}
		assert_int_equal(strict_bad, 0);
		leaf_close(&l);
	}
}

static void a_long_unaligned_request_goes_in_several_buffers(void **state)
{
	uint8_t *buf = malloc(MiB(3)), *back = malloc(MiB(3));
	struct leaf l;

	(void)state;
	strict_open(&l, 4096, 512);
	atomic_store(&l.n->len, MiB(4));
	for (uint64_t i = 0; i < MiB(3); i++)
		buf[i] = leaf_pattern(i);
	assert_int_equal(leaf_write(&l, 1001, buf, MiB(3) - 1, 0), 0);
	assert_int_equal(leaf_read(&l, 1001, back, MiB(3) - 1), 0);
	assert_memory_equal(buf, back, MiB(3) - 1);
	leaf_expect(&l, 0, 1001, 0);
	leaf_expect(&l, 1000 + MiB(3), 4096, 0);
	assert_int_equal(strict_bad, 0);
	leaf_close(&l);
	free(buf);
	free(back);
}

/* ---- several queues ---- */

#define PART 700 /* part k of the disk belongs to worker k % 3 */
#define PARTS (LEN / 2 / PART)
#define ROUNDS 12

/*
 * In the first half the workers write neighbouring parts that share blocks. In the second half worker 2 writes whole blocks,
 * the others the first bytes of these blocks.
 */
static int align_writer(struct worker *w)
{
	static uint8_t bufs[3][4096] __attribute__((aligned(4096)));
	uint8_t *buf = bufs[w->nr];
	int ret = 0;

	for (unsigned round = 1; ret == 0 && round <= ROUNDS; round++) {
		memset(buf, (int)(round * 16 + w->nr), 4096);
		for (uint64_t k = w->nr; ret == 0 && k < PARTS; k += 3) {
			uint64_t block = LEN / 2 + k % (LEN / 2 / 4096) * 4096;
			struct io io;

			io_start(&io, w->n, w->q, REQ_WRITE, k * PART, buf, PART, 0);
			ret = io_wait(&io);
			if (ret < 0)
				break;
			io_start(&io, w->n, w->q, REQ_WRITE, block + w->nr % 2 * 100, buf, w->nr == 2 ? 4096 : 100, 0);
			ret = io_wait(&io);
		}
	}
	return ret;
}

static void writers_on_several_queues_lose_no_byte(void **state)
{
	static uint8_t all[LEN];
	struct worker w[3] = { { .fn = align_writer }, { .fn = align_writer }, { .fn = align_writer } };
	struct leaf l;

	(void)state;
	strict_open(&l, 4096, 512);
	workers_run(&l, w, 3, NULL, NULL);
	assert_int_equal(strict_bad, 0);
	assert_int_equal(atomic_load(&l.n->serialising), 0);
	assert_int_equal(leaf_read(&l, 0, all, LEN), 0);
	for (uint64_t i = 0; i < PARTS * PART; i++)
		if (all[i] != ROUNDS * 16 + i / PART % 3)
			fail_msg("byte %llu is 0x%02x", (unsigned long long)i, all[i]);
	for (uint64_t i = LEN / 2; i < LEN; i++)
		if (i % 4096 >= 200 && all[i] != ROUNDS * 16 + 2)
			fail_msg("byte %llu of a whole block is 0x%02x", (unsigned long long)i, all[i]);
	leaf_close(&l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(unaligned_requests_agree_with_a_model),
		cmocka_unit_test(a_long_unaligned_request_goes_in_several_buffers),
		cmocka_unit_test(writers_on_several_queues_lose_no_byte),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
