/* SPDX-License-Identifier: MIT */
/*
 * unit/block/test_chain.c - reading through chains of backing images: the right bytes, at the cost of one look-up
 */
#include "fake.h"

#define LEN KiB(256)
#define DEPTH_MAX 64

struct chain {
	struct rnd rnd;
	unsigned depth;
	struct image img[DEPTH_MAX + 1]; /* 0: the top */
	uint8_t want[LEN];
};

/* A layer whose clusters are absent, zero, or data; a shorter one ends the chain for what is behind its end. */
static void layer_fill(struct chain *c, struct image *img, uint64_t cluster, uint64_t len)
{
	uint8_t *bytes = malloc(cluster);

	for (uint64_t i = 0; i < div_up(len, cluster); i++) {
		uint64_t what = rnd_below(&c->rnd, 8), part = MIN(cluster, len - i * cluster);

		if (what == 0) {
			fake_set(img->l.n, i, EXTENT_ZERO, 0, false);
			memset(c->want + i * cluster, 0, part);
		} else if (what == 1) {
			for (uint64_t k = 0; k < cluster; k++)
				bytes[k] = (uint8_t)rnd_below(&c->rnd, 256);
			memcpy(c->want + i * cluster, bytes, part);
			assert_int_equal(leaf_write(&(struct leaf){ .q = img->l.q, .n = img->memory }, i * cluster,
						    bytes, cluster, 0),
					 0);
			fake_set(img->l.n, i, EXTENT_DATA, i * cluster, true);
			if (rnd_below(&c->rnd, 2))
				fake_forget(img->l.n, i);
		}
	}
	memset(c->want + len, 0, LEN - len);
	fake_of(img->l.n)->next_host = LEN;
	free(bytes);
}

/* cluster 0: sizes differ from layer to layer; else all have it. From the bottom up. */
static struct chain *chain_open(unsigned depth, uint64_t cluster, uint64_t seed)
{
	struct chain *c = calloc(1, sizeof(*c));
	struct queue *q = leaf_queue();

	c->depth = depth;
	rnd_start(&c->rnd, seed);
	for (unsigned i = depth + 1; i-- > 0;) {
		uint64_t cl = cluster ? cluster : 512ull << rnd_below(&c->rnd, 8);
		uint64_t len = LEN;

		if (i && rnd_below(&c->rnd, 6) == 0)
			len = cluster ? cluster * (1 + rnd_below(&c->rnd, LEN / cluster)) :
					512 * (1 + rnd_below(&c->rnd, LEN / 512));
		image_open(&c->img[i], q, cl, len, i ? 0 : NODE_WRITABLE);
		if (i < depth)
			image_chain(&c->img[i], &c->img[i + 1]);
		layer_fill(c, &c->img[i], cl, len);
	}
	return c;
}

static void chain_close(struct chain *c)
{
	image_close(&c->img[0]);
	free(c);
}

static void chain_check(struct chain *c, uint64_t off, uint64_t len)
{
	static uint8_t buf[LEN];

	memset(buf, 0x5c, len);
	assert_int_equal(io_now(&c->img[0], REQ_READ, off, buf, len, 0), 0);
	if (memcmp(buf, c->want + off, len))
		fail_msg("seed %llu, depth %u: wrong bytes in [%llu, +%llu)", (unsigned long long)c->rnd.seed, c->depth,
			 (unsigned long long)off, (unsigned long long)len);
}

static unsigned lower_maps(struct chain *c)
{
	unsigned nr = 0;

	for (unsigned i = 1; i <= c->depth; i++)
		nr += atomic_load(&fake_of(c->img[i].l.n)->nr_map);
	return nr;
}

static void every_depth_reads_the_same_bytes(void **state)
{
	static const unsigned depths[] = { 1, 2, 4, 9, 64 };

	(void)state;
	for (unsigned d = 0; d < ARRAY_LEN(depths); d++) {
		for (uint64_t seed = 1; seed <= (depths[d] > 9 ? 2u : 12u); seed++) {
			struct chain *c = chain_open(depths[d], 0, seed);

			for (unsigned i = 0; i < 300; i++) {
				uint64_t grain = i & 1 ? 512 : 1;
				uint64_t off = rnd_below(&c->rnd, LEN / grain) * grain;

				chain_check(c, off, 1 + rnd_below(&c->rnd, LEN - off));
				off = rnd_below(&c->rnd, LEN - 4096);
				chain_check(c, off, 1 + rnd_below(&c->rnd, 4096));
			}
			chain_check(c, 0, LEN);
			chain_close(c);
		}
	}
}

static void a_range_that_was_looked_up_asks_no_lower_layer_again(void **state)
{
	static const unsigned depths[] = { 2, 4, 64 };

	(void)state;
	for (unsigned d = 0; d < ARRAY_LEN(depths); d++) {
		struct chain *c = chain_open(depths[d], KiB(4), 7);
		unsigned before;

		for (uint64_t off = 0; off < LEN; off += KiB(4))
			chain_check(c, off, KiB(4));
		before = lower_maps(c);
		assert_true(before > 0);
		for (uint64_t off = 0; off < LEN; off += 512)
			chain_check(c, off, 512);
		for (uint64_t off = 0; off < LEN; off += KiB(4))
			chain_check(c, off, KiB(4));
		assert_int_equal(lower_maps(c), before);
		chain_close(c);
	}
}

/* A granule in several pieces (clusters of 512 bytes): the piece that is asked for again is remembered. */
static void the_second_extent_of_a_granule_is_remembered_too(void **state)
{
	struct chain *c = chain_open(4, 512, 3);
	unsigned before;

	(void)state;
	for (uint64_t off = 512; off < LEN; off += KiB(4)) {
		chain_check(c, off, 512); /* loads, perhaps */
		chain_check(c, off, 512);
		before = lower_maps(c);
		chain_check(c, off, 512);
		chain_check(c, off + 100, 300);
		assert_int_equal(lower_maps(c), before);
	}
	chain_close(c);
}

/* What the top gets after a range was remembered wins over what is remembered. */
static void a_write_to_the_top_is_seen_at_once(void **state)
{
	struct chain *c = chain_open(4, KiB(4), 5);
	uint8_t buf[KiB(4)];

	(void)state;
	chain_check(c, 0, LEN);
	for (unsigned i = 0; i < 200; i++) {
		uint64_t off = rnd_below(&c->rnd, LEN - sizeof(buf)), len = 1 + rnd_below(&c->rnd, sizeof(buf));

		memset(buf, (int)i, len);
		memset(c->want + off, (int)i, len);
		assert_int_equal(io_now(&c->img[0], REQ_WRITE, off, buf, len, 0), 0);
		chain_check(c, off, len);
	}
	chain_check(c, 0, LEN);
	chain_close(c);
}

static int chain_reader(struct worker *w)
{
	struct chain *c = w->arg;
	uint8_t *buf = malloc(LEN);
	struct rnd rnd;
	int ret = 0;

	rnd_start(&rnd, 100 + w->nr);
	for (unsigned i = 0; ret == 0 && i < 2000; i++) {
		uint64_t off = rnd_below(&rnd, LEN), len = 1 + rnd_below(&rnd, MIN(LEN - off, KiB(16)));
		struct io io;

		io_start(&io, w->n, w->q, REQ_READ, off, buf, len, 0);
		ret = io_wait(&io);
		if (ret == 0 && memcmp(buf, c->want + off, len)) {
			snprintf(w->why, sizeof(w->why), "wrong bytes in [%llu, +%llu)", (unsigned long long)off,
				 (unsigned long long)len);
			ret = -EIO;
		}
	}
	free(buf);
	return ret;
}

static void several_queues_fill_the_table_at_the_same_time(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= 4; seed++) {
		struct chain *c = chain_open(6, seed & 1 ? 0 : KiB(4), seed);
		struct worker w[3] = { { .fn = chain_reader, .arg = c }, { .fn = chain_reader, .arg = c },
				       { .fn = chain_reader, .arg = c } };

		workers_run(&c->img[0].l, w, 3, NULL, NULL);
		chain_close(c);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_depth_reads_the_same_bytes),
		cmocka_unit_test(a_range_that_was_looked_up_asks_no_lower_layer_again),
		cmocka_unit_test(the_second_extent_of_a_granule_is_remembered_too),
		cmocka_unit_test(a_write_to_the_top_is_seen_at_once),
		cmocka_unit_test(several_queues_fill_the_table_at_the_same_time),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
