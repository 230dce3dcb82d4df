/* SPDX-License-Identifier: MIT */
/*
 * test_stopped.c - werror=stop as an embedder sees it: stopped, told, resumed, closed
 */
#include "api_test.h"

#include <pthread.h>
#include <sched.h>

static struct varve_error err;

/* Above a file whose first write finds the file system full; once: the next ones do not. */
static struct varve_image *open_failing(struct varve_queue *home, const char *policy, bool once)
{
	struct varve_open_options oo = { .flags = VARVE_OPEN_WRITABLE | VARVE_OPEN_IMAGE_OPTS, .home = home };
	struct varve_image *image;
	char name[512];

	make_image("disk", "raw", MIB, NULL);
	snprintf(name, sizeof(name),
		 "driver=raw,werror=%s,file.driver=fault,file.file.driver=file,file.file.filename=%s,"
		 "file.rule.0.event=write,file.rule.0.errno=ENOSPC,file.rule.0.once=%s",
		 policy, path_of("disk"), once ? "on" : "off");
	expect_ok(varve_image_open(&image, name, &oo, &err));
	return image;
}

static struct varve_queue *make_queue(void)
{
	struct varve_queue *queue;

	expect_ok(varve_queue_new(&queue, NULL, &err));
	return queue;
}

static void expect_stats(struct varve_image *image, const char *what)
{
	char *json;

	expect_ok(varve_image_stats(image, &json, &err));
	if (!strstr(json, what))
		fail_msg("%s is not in %s", what, json);
	free(json);
}

static bool is_stopped(struct varve_image *image)
{
	char *json;
	bool stopped;

	expect_ok(varve_image_stats(image, &json, &err));
	stopped = strstr(json, "\"state\":\"stopped\"");
	free(json);
	return stopped;
}

static uint8_t buf[4096];
static struct iovec iov = { buf, sizeof(buf) };

static void a_stopped_image_says_so_and_goes_on_when_resumed(void **state)
{
	struct varve_queue *queue = make_queue();
	struct varve_image *image = open_failing(queue, "enospc", true);
	struct varve_completion done[2];

	(void)state;
	expect_stats(image, "\"state\":\"running\"");
	assert_int_equal(varve_submit_writev(queue, image, &iov, 1, 0, 0, NULL), 0);
	assert_int_equal(varve_submit_flush(queue, image, NULL), 0);
	/* The flush may be on its way already when the write fails; the write is not answered. */
	for (int i = 0; i < 20; i++)
		assert_in_range(varve_queue_reap(queue, done, 1, 0), 0, 1);
	expect_stats(image, "\"state\":\"stopped\",\"errno\":28");
	expect_stats(image, "\"parked-bytes\":4096");
	assert_int_equal(varve_image_resume(image), -ENOSPC);
	assert_true(varve_queue_reap(queue, done, 2, PATIENCE_MS) >= 1);
	assert_int_equal(done[0].result, 0);
	expect_stats(image, "\"state\":\"running\"");
	assert_int_equal(varve_image_resume(image), 0);
	expect_ok(varve_image_close(image, &err));
	varve_queue_free(queue);
}

static void closing_a_stopped_image_fails_what_waits_and_says_what_is_at_stake(void **state)
{
	struct varve_queue *queue = make_queue();
	struct varve_image *image = open_failing(queue, "stop", false);
	struct varve_completion done;

	(void)state;
	assert_int_equal(varve_submit_writev(queue, image, &iov, 1, 0, 0, NULL), 0);
	for (int i = 0; i < 20; i++)
		assert_int_equal(varve_queue_reap(queue, &done, 1, 0), 0);
	assert_int_equal(varve_image_close(image, &err), -ENOSPC);
	assert_non_null(strstr(err.message, "stopped"));
	assert_non_null(strstr(err.message, "1 requests that waited, 4096 bytes"));
	assert_int_equal(varve_queue_reap(queue, &done, 1, PATIENCE_MS), 1);
	assert_int_equal(done.result, -ENOSPC);
	varve_queue_free(queue);
}

static void *write_and_wait(void *image)
{
	struct varve_error e;

	return (void *)(intptr_t)varve_image_write(image, 0, buf, sizeof(buf), 0, &e);
}

/* The writer holds the image's own queue: resuming must not need it. */
static void a_synchronous_write_is_resumed_by_another_thread(void **state)
{
	struct varve_image *image = open_failing(NULL, "stop", true);
	pthread_t thread;
	void *ret;

	(void)state;
	assert_int_equal(pthread_create(&thread, NULL, write_and_wait, image), 0);
	while (varve_image_resume(image) != -ENOSPC)
		sched_yield();
	pthread_join(thread, &ret);
	assert_int_equal((intptr_t)ret, 0);
	expect_ok(varve_image_close(image, &err));
}

/* For a program that ends, or has nobody who would resume: what fails is told, also to those who wait already. */
static void nobody_waits_while_waiting_is_off(void **state)
{
	struct varve_image *image = open_failing(NULL, "stop", false);
	struct varve_error e;
	pthread_t thread;
	void *ret;

	(void)state;
	varve_image_set_waiting(image, false);
	varve_image_set_waiting(image, false);
	assert_int_equal(varve_image_write(image, 0, buf, sizeof(buf), 0, &e), -ENOSPC);
	varve_image_set_waiting(image, true);
	assert_int_equal(pthread_create(&thread, NULL, write_and_wait, image), 0);
	/* It fails and waits, is sent again and waits again. */
	while (varve_image_resume(image) != -ENOSPC)
		sched_yield();
	varve_image_set_waiting(image, false);
	pthread_join(thread, &ret);
	assert_int_equal((intptr_t)ret, -ENOSPC);
	expect_ok(varve_image_close(image, &err));
}

/* It would have stopped the image for an error, and waited for one that is stopped. */
static void a_flush_that_is_only_tried_neither_stops_nor_waits(void **state)
{
	struct varve_open_options oo = { .flags = VARVE_OPEN_WRITABLE | VARVE_OPEN_IMAGE_OPTS };
	struct varve_queue_options qo = { .flags = VARVE_QUEUE_THREAD, .name = "home" };
	struct varve_queue *home;
	struct varve_image *image;
	struct varve_error e;
	pthread_t thread;
	char name[512];
	void *ret;

	(void)state;
	make_image("disk", "raw", MIB, NULL);
	snprintf(name, sizeof(name),
		 "driver=raw,werror=stop,file.driver=fault,file.file.driver=file,file.file.filename=%s,"
		 "file.rule.0.event=flush,file.rule.0.errno=EIO,file.rule.0.once=on",
		 path_of("disk"));
	expect_ok(varve_image_open(&image, name, &oo, &err));
	assert_int_equal(varve_image_try_flush(image, &e), -EIO);
	expect_stats(image, "\"state\":\"running\"");
	expect_ok(varve_image_close(image, &err));

	expect_ok(varve_queue_new(&home, &qo, &err));
	image = open_failing(home, "stop", true);
	assert_int_equal(pthread_create(&thread, NULL, write_and_wait, image), 0);
	while (!is_stopped(image))
		sched_yield();
	expect_ok(varve_image_try_flush(image, &err));
	assert_true(is_stopped(image));
	assert_int_equal(varve_image_resume(image), -ENOSPC);
	pthread_join(thread, &ret);
	assert_int_equal((intptr_t)ret, 0);
	expect_ok(varve_image_close(image, &err));
	varve_queue_free(home);
}

static void unknown_policies_are_refused(void **state)
{
	struct varve_open_options oo = { .flags = VARVE_OPEN_WRITABLE | VARVE_OPEN_IMAGE_OPTS };
	struct varve_image *image;
	char name[256];

	(void)state;
	make_image("disk", "raw", MIB, NULL);
	snprintf(name, sizeof(name), "driver=raw,werror=ignore,file.driver=file,file.filename=%s", path_of("disk"));
	assert_int_equal(varve_image_open(&image, name, &oo, &err), -EINVAL);
	assert_non_null(strstr(err.message, "'ignore' is not report, stop or enospc"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_stopped_image_says_so_and_goes_on_when_resumed),
		cmocka_unit_test(closing_a_stopped_image_fails_what_waits_and_says_what_is_at_stake),
		cmocka_unit_test(a_synchronous_write_is_resumed_by_another_thread),
		cmocka_unit_test(nobody_waits_while_waiting_is_off),
		cmocka_unit_test(a_flush_that_is_only_tried_neither_stops_nor_waits),
		cmocka_unit_test(unknown_policies_are_refused),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, dir_make, dir_remove);
}
