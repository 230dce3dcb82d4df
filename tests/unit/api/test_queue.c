/* SPDX-License-Identifier: MIT */
/*
 * test_queue.c - asynchronous requests: submitting, the limit of a queue, completions, several queues
 */
#include "api_test.h"

#include <jansson.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>

static struct varve_error err;

static struct varve_queue *make_queue(unsigned depth, unsigned flags)
{
	struct varve_queue_options qo = { .depth = depth, .flags = flags };
	struct varve_queue *queue;

	expect_ok(varve_queue_new(&queue, &qo, &err));
	return queue;
}

/* Reaps until `want` completions have come; each must be a success. Their user data is added up. */
static uintptr_t reap_all(struct varve_queue *queue, int want)
{
	struct varve_completion done[8];
	uintptr_t sum = 0;

	while (want > 0) {
		int n = varve_queue_reap(queue, done, 8, PATIENCE_MS);

		assert_in_range(n, 1, 8);
		for (int i = 0; i < n; i++) {
			assert_int_equal(done[i].result, 0);
			sum += (uintptr_t)done[i].user_data;
		}
		want -= n;
	}
	assert_int_equal(want, 0);
	return sum;
}

static void requests_complete_with_their_user_data(void **state)
{
	struct varve_queue *queue = make_queue(0, 0);
	struct varve_image *image;
	uint8_t out[8192], in[8192];
	struct iovec w[2] = { { out, 5000 }, { out + 5000, 3192 } }, r = { in, 8192 };

	(void)state;
	make_image("disk", "qcow2", MIB, NULL);
	image = open_image("disk", VARVE_OPEN_WRITABLE, queue);
	memset(out, 7, sizeof(out));
	assert_int_equal(varve_submit_writev(queue, image, w, 2, 1000, VARVE_REQ_FUA, (void *)1), 0);
	assert_int_equal(reap_all(queue, 1), 1);
	assert_int_equal(varve_submit_readv(queue, image, &r, 1, 1000, (void *)2), 0);
	assert_int_equal(varve_submit_flush(queue, image, (void *)4), 0);
	assert_int_equal(varve_submit_discard(queue, image, 65536, 65536, (void *)8), 0);
	assert_int_equal(varve_submit_write_zeroes(queue, image, 131072, 1, VARVE_REQ_MAY_UNMAP, (void *)16), 0);
	assert_int_equal(varve_submit_readv(queue, image, &r, 0, 0, (void *)32), 0);
	assert_int_equal(reap_all(queue, 5), 2 + 4 + 8 + 16 + 32);
	assert_memory_equal(in, out, sizeof(in));
	assert_int_equal(varve_queue_reap(queue, &(struct varve_completion){ 0 }, 1, 0), 0);
	expect_ok(varve_image_close(image, &err));
	varve_queue_free(queue);
}

/* depth bounds what is in flight together with what is done and not yet reaped. */
static void a_full_queue_says_eagain(void **state)
{
	struct varve_queue *queue = make_queue(4, 0);
	struct varve_image *image;
	uint8_t buf[4][512];
	struct iovec iov[4];

	(void)state;
	make_image("disk", "raw", MIB, NULL);
	image = open_image("disk", 0, queue);
	for (int round = 0; round < 3; round++) {
		for (unsigned i = 0; i < 4; i++) {
			iov[i] = (struct iovec){ buf[i], 512 };
			assert_int_equal(varve_submit_readv(queue, image, &iov[i], 1, i * 512, (void *)1), 0);
		}
		assert_int_equal(varve_submit_readv(queue, image, &iov[0], 1, 0, NULL), -EAGAIN);
		assert_int_equal(varve_submit_flush(queue, image, NULL), -EAGAIN);
		assert_int_equal(reap_all(queue, 4), 4);
	}
	expect_ok(varve_image_close(image, &err));
	varve_queue_free(queue);
}

static uint64_t stat_of(struct varve_image *image, const char *key)
{
	json_t *stats;
	uint64_t n;
	char *text;

	expect_ok(varve_image_stats(image, &text, &err));
	stats = json_loads(text, 0, NULL);
	free(text);
	n = (uint64_t)json_integer_value(json_object_get(json_object_get(stats, "home"), key));
	json_decref(stats);
	return n;
}

/* What was made known is used registered, by synchronous calls too, until it is taken back as often as it was made known. */
static void memory_that_was_made_known_is_used_registered(void **state)
{
	struct varve_queue *queue = make_queue(0, 0), *threaded = make_queue(0, VARVE_QUEUE_THREAD);
	struct varve_open_options oo = { .aio = "io_uring", .home = queue };
	struct varve_image *image;
	uint8_t *buf = aligned_alloc(4096, 65536);
	struct iovec iov = { buf + 512, 1024 };

	(void)state;
	make_image("disk", "raw", MIB, NULL);
	if (varve_image_open(&image, path_of("disk"), &oo, &err) < 0) {
		assert_non_null(strstr(err.message, "io_uring"));
		varve_queue_free(queue);
		varve_queue_free(threaded);
		free(buf);
		leave_out(err.message);
	}
	assert_int_equal(varve_queue_add_memory(queue, buf, 0, &err), -EINVAL);
	assert_int_equal(varve_queue_add_memory(NULL, buf, 4096, &err), -EINVAL);
	expect_ok(varve_queue_add_memory(threaded, buf, 65536, &err));
	varve_queue_remove_memory(threaded, buf, 65536);
	expect_ok(varve_image_read(image, 0, buf, 65536, &err));
	assert_int_equal(stat_of(image, "aio-registered"), 0);

	expect_ok(varve_queue_add_memory(queue, buf, 65536, &err));
	expect_ok(varve_image_read(image, 0, buf, 65536, &err));
	assert_int_equal(varve_submit_readv(queue, image, &iov, 1, 4096, (void *)1), 0);
	assert_int_equal(reap_all(queue, 1), 1);
	assert_int_equal(stat_of(image, "aio-registered"), 2);

	expect_ok(varve_queue_add_memory(queue, buf, 65536, &err));
	varve_queue_remove_memory(queue, buf, 65536);
	expect_ok(varve_image_read(image, 0, buf, 65536, &err));
	varve_queue_remove_memory(queue, buf, 65536);
	varve_queue_remove_memory(queue, buf, 65536); /* once too often is nothing */
	expect_ok(varve_image_read(image, 0, buf, 65536, &err));
	assert_int_equal(stat_of(image, "aio-registered"), 3);
	expect_ok(varve_image_close(image, &err));
	varve_queue_free(threaded);
	varve_queue_free(queue);
	free(buf);
}

/* The caller promises to stay on one thread; it can do all but poll. */
static void a_queue_of_one_thread_runs_requests_and_has_no_descriptor(void **state)
{
	struct varve_queue *queue = make_queue(0, VARVE_QUEUE_ONE_THREAD);
	struct varve_queue_options both = { .flags = VARVE_QUEUE_ONE_THREAD | VARVE_QUEUE_THREAD };
	struct varve_queue *none = NULL;
	struct varve_image *image;
	uint8_t buf[512];
	struct iovec iov = { buf, 512 };

	(void)state;
	make_image("disk", "raw", MIB, NULL);
	image = open_image("disk", 0, queue);
	for (unsigned i = 0; i < 100; i++) {
		assert_int_equal(varve_submit_readv(queue, image, &iov, 1, 0, (void *)1), 0);
		assert_int_equal(reap_all(queue, 1), 1);
	}
	assert_int_equal(varve_queue_fd(queue), -EINVAL);
	expect_ok(varve_image_close(image, &err));
	varve_queue_free(queue);
	assert_int_equal(varve_queue_new(&none, &both, &err), -EINVAL);
	assert_null(none);
}

static void wrong_requests_are_refused_at_once(void **state)
{
	struct varve_queue *queue = make_queue(0, 0), *other = make_queue(0, 0);
	struct varve_queue *threaded = make_queue(0, VARVE_QUEUE_THREAD);
	struct varve_completion c;
	struct varve_image *image;
	uint8_t buf[512];
	struct iovec iov = { buf, 512 }, huge[2] = { { buf, SIZE_MAX }, { buf, 512 } };

	(void)state;
	make_image("disk", "qcow2", MIB, NULL);
	image = open_image("disk", 0, queue);
	assert_int_equal(varve_submit_readv(queue, image, &iov, 1, MIB, NULL), -EINVAL);
	assert_int_equal(varve_submit_readv(queue, image, &iov, -1, 0, NULL), -EINVAL);
	assert_int_equal(varve_submit_readv(queue, image, NULL, 1, 0, NULL), -EINVAL);
	assert_int_equal(varve_submit_readv(queue, image, huge, 2, 0, NULL), -EINVAL);
	assert_int_equal(varve_submit_writev(queue, image, &iov, 1, 0, 0, NULL), -EACCES);
	assert_int_equal(varve_submit_discard(queue, image, 0, 512, NULL), -EACCES);
	assert_int_equal(varve_submit_readv(other, image, &iov, 1, 0, NULL), -EINVAL); /* not attached */
	assert_int_equal(varve_submit_readv(threaded, image, &iov, 1, 0, NULL), -EINVAL);
	assert_int_equal(varve_queue_reap(threaded, &c, 1, 0), -EINVAL);
	assert_int_equal(varve_queue_fd(threaded), -EINVAL);
	assert_int_equal(varve_queue_reap(queue, &c, 0, 0), -EINVAL);
	assert_int_equal(varve_queue_reap(queue, &c, 1, 0), 0);
	expect_ok(varve_image_close(image, &err));
	varve_queue_free(threaded);
	varve_queue_free(other);
	varve_queue_free(queue);
}

static void wrong_queue_options_are_refused(void **state)
{
	struct varve_queue_options deep = { .depth = 4097 }, odd = { .flags = 1u << 7 };
	struct varve_queue *queue;

	(void)state;
	assert_int_equal(varve_queue_new(&queue, &deep, &err), -EINVAL);
	assert_non_null(strstr(err.message, "4097"));
	assert_int_equal(varve_queue_new(&queue, &odd, &err), -EINVAL);
}

/* The descriptor wakes a foreign event loop for every completion, also when fewer were taken than were there. */
static void the_descriptor_is_readable_when_there_is_something_to_reap(void **state)
{
	struct varve_queue *queue = make_queue(16, 0);
	struct pollfd p = { varve_queue_fd(queue), POLLIN, 0 };
	struct varve_completion done;
	struct varve_image *image;
	uint8_t buf[16][512];
	struct iovec iov[16];
	int left = 16, n;

	(void)state;
	make_image("disk", "raw", MIB, NULL);
	image = open_image("disk", 0, queue);
	for (unsigned i = 0; i < 16; i++) {
		iov[i] = (struct iovec){ buf[i], 512 };
		assert_int_equal(varve_submit_readv(queue, image, &iov[i], 1, i * 512, NULL), 0);
	}
	while (left) {
		n = varve_queue_reap(queue, &done, 1, 0);
		assert_in_range(n, 0, 1);
		left -= n;
		if (left && n == 0)
			assert_int_equal(poll(&p, 1, PATIENCE_MS), 1);
		else if (left)
			poll(&p, 1, PATIENCE_MS);
	}
	assert_int_equal(varve_queue_reap(queue, &done, 1, 0), 0);
	expect_ok(varve_image_close(image, &err));
	varve_queue_free(queue);
}

/* A synchronous call runs the queue; what completes meanwhile is kept, and announced. */
static void synchronous_calls_lose_no_completions(void **state)
{
	struct varve_queue *queue = make_queue(0, 0);
	struct pollfd p = { varve_queue_fd(queue), POLLIN, 0 };
	struct varve_image *image;
	uint8_t buf[512], other[65536] = { 1 };
	struct iovec iov = { buf, 512 };

	(void)state;
	make_image("disk", "qcow2", MIB, NULL);
	image = open_image("disk", VARVE_OPEN_WRITABLE, queue);
	assert_int_equal(varve_submit_readv(queue, image, &iov, 1, 0, (void *)1), 0);
	expect_ok(varve_image_write(image, 65536, other, sizeof(other), 0, &err));
	expect_ok(varve_image_flush(image, &err));
	assert_int_equal(poll(&p, 1, PATIENCE_MS), 1);
	assert_int_equal(reap_all(queue, 1), 1);
	expect_ok(varve_image_close(image, &err));
	varve_queue_free(queue);
}

/* Nothing is lost, and nothing is touched later, when an image is closed over requests in flight. */
static void close_finishes_what_is_in_flight(void **state)
{
	struct varve_queue *queue = make_queue(0, 0);
	struct varve_image *image;
	uint8_t buf[8][65536];
	struct iovec iov[8];

	(void)state;
	memset(buf, 9, sizeof(buf));
	make_image("disk", "qcow2", MIB, NULL);
	image = open_image("disk", VARVE_OPEN_WRITABLE, queue);
	for (unsigned i = 0; i < 8; i++) {
		iov[i] = (struct iovec){ buf[i], sizeof(buf[i]) };
		assert_int_equal(varve_submit_writev(queue, image, &iov[i], 1, i * sizeof(buf[i]), 0, (void *)1), 0);
	}
	expect_ok(varve_image_close(image, &err));
	assert_int_equal(reap_all(queue, 8), 8);
	image = open_image("disk", 0, queue);
	expect_ok(varve_image_read(image, 7 * sizeof(buf[0]), buf[0], sizeof(buf[0]), &err));
	assert_int_equal(buf[0][0], 9);
	expect_ok(varve_image_close(image, &err));
	varve_queue_free(queue);
}

static void a_short_wait_ends_without_completions(void **state)
{
	struct varve_queue *queue = make_queue(0, 0);
	struct varve_completion done;

	(void)state;
	assert_int_equal(varve_queue_reap(queue, &done, 1, 1), 0);
	varve_queue_free(queue);
}

struct worker {
	struct varve_image *image;
	unsigned number;
	atomic_bool ok;
};

/* A further queue, run by a thread of its own, writes its own part and reads it back. */
static void *work(void *arg)
{
	struct worker *w = arg;
	struct varve_queue *queue = make_queue(8, 0);
	struct varve_error e;
	struct varve_completion done;
	uint8_t buf[4096];
	struct iovec iov = { buf, sizeof(buf) };
	bool ok = varve_image_attach(w->image, queue, &e) == 0;

	for (unsigned i = 0; ok && i < 100; i++) {
		uint64_t off = (i * 4 + w->number) * sizeof(buf);

		memset(buf, (int)(w->number + i + 1), sizeof(buf));
		ok = varve_submit_writev(queue, w->image, &iov, 1, off, 0, NULL) == 0 &&
		     varve_queue_reap(queue, &done, 1, -1) == 1 && done.result == 0;
		memset(buf, 0, sizeof(buf));
		ok = ok && varve_submit_readv(queue, w->image, &iov, 1, off, NULL) == 0 &&
		     varve_queue_reap(queue, &done, 1, -1) == 1 && done.result == 0 &&
		     buf[17] == (uint8_t)(w->number + i + 1);
	}
	varve_image_detach(w->image, queue);
	varve_queue_free(queue);
	atomic_store(&w->ok, ok);
	return NULL;
}

static void several_queues_share_an_image(void **state)
{
	struct varve_queue *home = make_queue(0, VARVE_QUEUE_THREAD);
	struct varve_check_result result;
	struct varve_image *image;
	struct worker w[4];
	pthread_t t[4];

	(void)state;
	make_image("disk", "qcow2", 4 * MIB, "cluster_size=4k");
	image = open_image("disk", VARVE_OPEN_WRITABLE, home);
	for (unsigned i = 0; i < 4; i++) {
		w[i].image = image;
		w[i].number = i;
		atomic_init(&w[i].ok, false);
		assert_int_equal(pthread_create(&t[i], NULL, work, &w[i]), 0);
	}
	for (unsigned i = 0; i < 4; i++) {
		pthread_join(t[i], NULL);
		assert_true(atomic_load(&w[i].ok));
	}
	expect_ok(varve_image_close(image, &err));
	varve_queue_free(home);
	image = open_image("disk", VARVE_OPEN_CHECK, NULL);
	expect_ok(varve_image_check(image, &result, NULL, NULL, NULL, &err));
	assert_int_equal(result.corruptions + result.leaks, 0);
	expect_ok(varve_image_close(image, &err));
}

static void attaching_has_rules(void **state)
{
	struct varve_queue *home = make_queue(0, VARVE_QUEUE_THREAD), *queue = make_queue(0, 0);
	struct varve_image *image, *alone;

	(void)state;
	make_image("disk", "qcow2", MIB, NULL);
	image = open_image("disk", 0, home);
	alone = open_image("disk", 0, NULL);
	expect_ok(varve_image_attach(image, queue, &err));
	assert_int_equal(varve_image_attach(image, queue, &err), -EEXIST);
	assert_int_equal(varve_image_attach(alone, queue, &err), -EINVAL);
	assert_int_equal(varve_image_close(image, &err), -EBUSY); /* and is still open */
	varve_image_detach(image, queue);
	varve_image_detach(image, queue);
	expect_ok(varve_image_close(image, &err));
	expect_ok(varve_image_close(alone, &err));
	varve_queue_free(queue);
	varve_queue_free(home);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(requests_complete_with_their_user_data, dir_make, dir_remove),
		cmocka_unit_test_setup_teardown(a_full_queue_says_eagain, dir_make, dir_remove),
		cmocka_unit_test_setup_teardown(a_queue_of_one_thread_runs_requests_and_has_no_descriptor, dir_make,
						dir_remove),
		cmocka_unit_test_setup_teardown(memory_that_was_made_known_is_used_registered, dir_make, dir_remove),
		cmocka_unit_test_setup_teardown(wrong_requests_are_refused_at_once, dir_make, dir_remove),
		cmocka_unit_test(wrong_queue_options_are_refused),
		cmocka_unit_test_setup_teardown(the_descriptor_is_readable_when_there_is_something_to_reap, dir_make,
						dir_remove),
		cmocka_unit_test_setup_teardown(synchronous_calls_lose_no_completions, dir_make, dir_remove),
		cmocka_unit_test_setup_teardown(close_finishes_what_is_in_flight, dir_make, dir_remove),
		cmocka_unit_test(a_short_wait_ends_without_completions),
		cmocka_unit_test_setup_teardown(several_queues_share_an_image, dir_make, dir_remove),
		cmocka_unit_test_setup_teardown(attaching_has_rules, dir_make, dir_remove),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
