/* SPDX-License-Identifier: MIT */
/*
 * unit/proto/test_queues.c - leaves under several queues at once, each with a thread of its own
 */
#include "leaf.h"

#include <pthread.h>

#define NR_QUEUES 3
#define NR_BLOCKS 400
#define BLOCK 4096

struct user {
	struct leaf *l;
	struct queue *q;
	unsigned nr;
	int result;
	pthread_t thread;
};

static int attach_fiber(struct fiber *f, void *arg)
{
	struct user *u = arg;

	return node_attach(u->l->n, fiber_queue(f), NULL);
}

static int detach_fiber(struct fiber *f, void *arg)
{
	struct user *u = arg;

	node_detach(f, u->l->n, u->q);
	return 0;
}

/* Every NR_QUEUES-th block is this queue's: it appends it, reads it back, and flushes now and then. */
static int work_fiber(struct fiber *f, void *arg)
{
	struct user *u = arg;
	uint8_t out[BLOCK], in[BLOCK];
	int ret = 0;

	for (unsigned i = u->nr; ret == 0 && i < NR_BLOCKS; i += NR_QUEUES) {
		memset(out, (int)(i % 255) + 1, sizeof(out));
		ret = node_write(f, u->l->n, (uint64_t)i * BLOCK, out, sizeof(out));
		if (ret == 0)
			ret = node_read(f, u->l->n, (uint64_t)i * BLOCK, in, sizeof(in));
		if (ret == 0 && memcmp(in, out, sizeof(in)))
			ret = -EBADMSG;
		if (ret == 0 && i % 40 < NR_QUEUES)
			ret = node_flush(f, u->l->n);
	}
	return ret;
}

static void *work_thread(void *arg)
{
	struct user *u = arg;

	u->result = fiber_call(u->q, work_fiber, u);
	return NULL;
}

static void many_queues_append(const struct driver *drv, const char *options)
{
	struct user users[NR_QUEUES];
	struct leaf l;

	leaf_open(&l, drv, options, NODE_WRITABLE);
	for (unsigned i = 0; i < NR_QUEUES; i++) {
		struct queue_opts opts = { .name = "user", .own_thread = true };

		users[i] = (struct user){ .l = &l, .nr = i };
		assert_int_equal(queue_new(&users[i].q, &opts, NULL), 0);
		assert_int_equal(fiber_call(users[i].q, attach_fiber, &users[i]), 0);
	}
	for (unsigned i = 0; i < NR_QUEUES; i++)
		assert_int_equal(pthread_create(&users[i].thread, NULL, work_thread, &users[i]), 0);
	for (unsigned i = 0; i < NR_QUEUES; i++) {
		pthread_join(users[i].thread, NULL);
		assert_int_equal(users[i].result, 0);
	}
	for (unsigned i = 0; i < NR_QUEUES; i++) {
		assert_int_equal(fiber_call(l.q, detach_fiber, &users[i]), 0);
		queue_free(users[i].q);
	}
	assert_int_equal(node_len(l.n), NR_BLOCKS * BLOCK);
	for (unsigned i = 0; i < NR_BLOCKS; i++)
		leaf_expect(&l, (uint64_t)i * BLOCK, BLOCK, (uint8_t)(i % 255 + 1));
	leaf_close(&l);
}

static void queues_append_to_a_file_with_threads(void **state)
{
	(void)state;
	leaf_make_file("a", 0, false);
	many_queues_append(&driver_file, leaf_file_opts("a", ",aio=threads"));
}

static void queues_append_to_a_file_with_the_best_engine(void **state)
{
	(void)state;
	leaf_make_file("a", 0, false);
	many_queues_append(&driver_file, leaf_file_opts("a", ""));
}

static void queues_append_to_memory(void **state)
{
	(void)state;
	many_queues_append(&driver_memory, "");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(queues_append_to_a_file_with_threads),
		cmocka_unit_test(queues_append_to_a_file_with_the_best_engine),
		cmocka_unit_test(queues_append_to_memory),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, leaf_remove_dir);
}
