/* SPDX-License-Identifier: MIT */
/*
 * unit/api/test_stream.c - the stream calls: while the image is used, paused, cancelled, together with copy-on-read
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include <varve/varve.h>

#include "../../lib/patience.h"

#define LEN (16u << 20)
#define PIECE 4096u

struct place {
	char dir[64], base[96], top[96];
};

static uint8_t base_byte(uint64_t i)
{
	return (uint8_t)(1 + (i >> 12) % 250);
}

/* A base full of base_byte(), and an overlay of the format above it. */
static void place_make(struct place *p, const char *format)
{
	struct varve_open_options oo = { .flags = VARVE_OPEN_WRITABLE, .format = "raw" };
	struct varve_image *image;
	uint8_t *bytes = malloc(LEN);
	char options[200];

	snprintf(p->dir, sizeof(p->dir), "/tmp/varve-unit-XXXXXX");
	assert_non_null(mkdtemp(p->dir));
	snprintf(p->base, sizeof(p->base), "%s/base", p->dir);
	snprintf(p->top, sizeof(p->top), "%s/top", p->dir);
	assert_int_equal(varve_image_create(p->base, "raw", LEN, NULL, 0, NULL, NULL, NULL), 0);
	assert_int_equal(varve_image_open(&image, p->base, &oo, NULL), 0);
	for (uint64_t i = 0; i < LEN; i++)
		bytes[i] = base_byte(i);
	assert_int_equal(varve_image_write(image, 0, bytes, LEN, 0, NULL), 0);
	assert_int_equal(varve_image_close(image, NULL), 0);
	snprintf(options, sizeof(options), "backing_file=%s,backing_fmt=raw", p->base);
	assert_int_equal(varve_image_create(p->top, format, UINT64_MAX, options, 0, NULL, NULL, NULL), 0);
	free(bytes);
}

static void place_remove(struct place *p)
{
	unlink(p->base);
	unlink(p->top);
	rmdir(p->dir);
}

/* ---- a user of the disk on another queue ---- */

struct user {
	struct varve_image *image;
	struct varve_queue *queue;
	_Atomic bool stop;
	uint8_t *written; /* for each piece: what was written; 0: nothing */
	char why[200];
};

static int one(struct user *u, bool write, uint64_t off, uint8_t *buf)
{
	struct iovec iov = { buf, PIECE };
	struct varve_completion c;
	int ret = write ? varve_submit_writev(u->queue, u->image, &iov, 1, off, 0, NULL)
			: varve_submit_readv(u->queue, u->image, &iov, 1, off, NULL);

	while (ret == 0 && varve_queue_reap(u->queue, &c, 1, 1000) == 0)
		;
	return ret < 0 ? ret : c.result;
}

static void *use(void *arg)
{
	struct user *u = arg;
	uint64_t random = 88172645463325252u;
	uint8_t *buf = malloc(PIECE);

	for (unsigned n = 0; !u->stop && !*u->why; n++) {
		uint64_t piece;
		uint8_t want;
		int ret;

		random ^= random << 13;
		random ^= random >> 7;
		random ^= random << 17;
		piece = random % (LEN / PIECE);
		if (n % 3 == 0) {
			u->written[piece] = 251 + n % 4;
			memset(buf, u->written[piece], PIECE);
		}
		ret = one(u, n % 3 == 0, piece * PIECE, buf);
		want = u->written[piece] ? u->written[piece] : base_byte(piece * PIECE);
		if (ret < 0 || buf[0] != want || buf[PIECE - 1] != want)
			snprintf(u->why, sizeof(u->why), "request %u, piece %llu: %d, 0x%02x, not 0x%02x", n,
				 (unsigned long long)piece, ret, buf[0], want);
	}
	free(buf);
	return NULL;
}

static void the_image_is_used_while_it_is_filled(const char *format, unsigned open_flags)
{
	struct varve_queue_options home_options = { .flags = VARVE_QUEUE_THREAD };
	struct varve_open_options oo = { .flags = VARVE_OPEN_WRITABLE | open_flags };
	struct user u = { .written = calloc(LEN / PIECE, 1) };
	struct varve_stream_status st;
	struct varve_stream *stream;
	struct varve_error err = { 0, "" };
	struct place p;
	pthread_t thread;
	uint8_t *bytes = malloc(LEN);

	place_make(&p, format);
	assert_int_equal(varve_queue_new(&oo.home, &home_options, NULL), 0);
	assert_int_equal(varve_queue_new(&u.queue, NULL, NULL), 0);
	assert_int_equal(varve_image_open(&u.image, p.top, &oo, NULL), 0);
	assert_int_equal(varve_image_attach(u.image, u.queue, NULL), 0);
	assert_int_equal(pthread_create(&thread, NULL, use, &u), 0);
	assert_int_equal(varve_stream_start(&stream, u.image, NULL, &err), 0);
	assert_int_equal(varve_stream_start(&stream, u.image, NULL, &err), -EBUSY);
	if (varve_stream_wait(stream, PATIENCE_MS, &err) < 0)
		fail_msg("%s", err.message);
	varve_stream_status(stream, &st);
	assert_int_equal(st.state, VARVE_STREAM_ENDED);
	assert_int_equal(st.done, st.total);
	assert_int_equal(st.total, LEN);
	varve_stream_free(stream);
	usleep(1000); /* a few requests more, without the base */
	u.stop = true;
	pthread_join(thread, NULL);
	if (*u.why)
		fail_msg("%s", u.why);
	varve_image_detach(u.image, u.queue);
	assert_int_equal(varve_image_close(u.image, NULL), 0);
	varve_queue_free(u.queue);
	varve_queue_free(oo.home);

	unlink(p.base); /* nobody needs it */
	oo = (struct varve_open_options){ 0 };
	assert_int_equal(varve_image_open(&u.image, p.top, &oo, NULL), 0);
	assert_int_equal(varve_image_read(u.image, 0, bytes, LEN, NULL), 0);
	for (uint64_t i = 0; i < LEN; i++) {
		uint8_t want = u.written[i / PIECE] ? u.written[i / PIECE] : base_byte(i);

		if (bytes[i] != want)
			fail_msg("byte %llu is 0x%02x, not 0x%02x", (unsigned long long)i, bytes[i], want);
	}
	varve_image_close(u.image, NULL);
	place_remove(&p);
	free(u.written);
	free(bytes);
}

static void qcow2_is_used_while_it_is_filled(void **state)
{
	(void)state;
	the_image_is_used_while_it_is_filled("qcow2", 0);
}

static void qed_is_used_while_it_is_filled(void **state)
{
	(void)state;
	the_image_is_used_while_it_is_filled("qed", 0);
}

static void copy_on_read_and_a_stream_work_together(void **state)
{
	(void)state;
	the_image_is_used_while_it_is_filled("qcow2", VARVE_OPEN_COPY_ON_READ);
}

/* ---- control ---- */

static void it_can_be_paused_resumed_and_cancelled(void **state)
{
	struct varve_queue_options home_options = { .flags = VARVE_QUEUE_THREAD };
	struct varve_open_options oo = { .flags = VARVE_OPEN_WRITABLE };
	struct varve_stream_options so = { .speed = 1 << 20, .parallel = 1 };
	struct varve_stream_status a, b;
	struct varve_stream *stream;
	struct varve_image *image;
	struct varve_error err;
	struct place p;
	char *json;

	(void)state;
	place_make(&p, "qcow2");
	assert_int_equal(varve_queue_new(&oo.home, &home_options, NULL), 0);
	assert_int_equal(varve_image_open(&image, p.top, &oo, NULL), 0);
	assert_int_equal(varve_stream_start(&stream, image, &so, &err), 0);
	assert_int_equal(varve_stream_wait(stream, 10, &err), -EAGAIN);
	assert_int_equal(varve_image_close(image, &err), -EBUSY); /* the stream holds it */
	varve_stream_pause(stream);
	varve_stream_status(stream, &a);
	assert_int_equal(a.state, VARVE_STREAM_PAUSED);
	varve_stream_set_speed(stream, 0); /* without a limit, but paused: at most the piece under way */
	assert_int_equal(varve_stream_wait(stream, 50, &err), -EAGAIN);
	varve_stream_status(stream, &b);
	assert_true(b.done <= a.done + (1 << 20));
	varve_stream_set_speed(stream, 1 << 20);
	varve_stream_resume(stream);
	varve_stream_cancel(stream);
	assert_int_equal(varve_stream_wait(stream, PATIENCE_MS, &err), -ECANCELED);
	varve_stream_status(stream, &b);
	assert_int_equal(b.result, -ECANCELED);
	assert_true(b.done < LEN);
	varve_stream_free(stream);
	assert_int_equal(varve_image_info(image, &json, NULL), 0);
	assert_non_null(strstr(json, "backing-filename"));
	free(json);
	so.speed = 0;
	so.flags = VARVE_STREAM_KEEP_LINK | VARVE_STREAM_IDLE;
	assert_int_equal(varve_stream_start(&stream, image, &so, &err), 0);
	assert_int_equal(varve_stream_wait(stream, PATIENCE_MS, &err), 0);
	varve_stream_free(stream);
	assert_int_equal(varve_image_info(image, &json, NULL), 0);
	assert_non_null(strstr(json, "backing-filename"));
	free(json);
	assert_int_equal(varve_image_close(image, NULL), 0);
	varve_queue_free(oo.home);
	place_remove(&p);
}

static bool has_backing(struct varve_image *image)
{
	char *json;
	bool has;

	assert_int_equal(varve_image_info(image, &json, NULL), 0);
	has = strstr(json, "backing-filename");
	free(json);
	return has;
}

/* One made while the stream runs reads from the backing file what had not been copied yet. */
static void a_snapshot_made_meanwhile_keeps_the_backing_file(void **state)
{
	struct varve_queue_options home_options = { .flags = VARVE_QUEUE_THREAD };
	struct varve_open_options oo = { .flags = VARVE_OPEN_WRITABLE };
	struct varve_stream_options so = { .speed = 1 << 20, .parallel = 1 };
	struct varve_snapshot_options name = { .name = "meanwhile" };
	struct varve_stream *stream;
	struct varve_image *image;
	struct varve_error err;
	struct place p;

	(void)state;
	place_make(&p, "qcow2");
	assert_int_equal(varve_queue_new(&oo.home, &home_options, NULL), 0);
	assert_int_equal(varve_image_open(&image, p.top, &oo, NULL), 0);
	assert_int_equal(varve_stream_start(&stream, image, &so, &err), 0);
	assert_int_equal(varve_snapshot_create(image, &name, NULL, &err), 0);
	varve_stream_set_speed(stream, 0);
	assert_int_equal(varve_stream_wait(stream, PATIENCE_MS, &err), -ENOTSUP);
	assert_non_null(strstr(err.message, "1 internal snapshots"));
	varve_stream_free(stream);
	assert_true(has_backing(image));
	assert_int_equal(varve_stream_start(&stream, image, &so, &err), -ENOTSUP); /* the next finds it at once */
	assert_int_equal(varve_snapshot_delete(image, NULL, "meanwhile", &err), 0);
	so.speed = 0;
	assert_int_equal(varve_stream_start(&stream, image, &so, &err), 0);
	assert_int_equal(varve_stream_wait(stream, PATIENCE_MS, &err), 0);
	varve_stream_free(stream);
	assert_false(has_backing(image));
	assert_int_equal(varve_image_close(image, NULL), 0);
	varve_queue_free(oo.home);
	place_remove(&p);
}

static void it_is_refused_where_it_cannot_work(void **state)
{
	struct varve_open_options oo = { 0 };
	struct varve_stream_options so = { .flags = 1u << 31 };
	struct varve_stream *stream;
	struct varve_image *image;
	struct varve_error err;
	struct place p;

	(void)state;
	place_make(&p, "qcow2");
	assert_int_equal(varve_image_open(&image, p.top, &oo, NULL), 0);
	assert_int_equal(varve_stream_start(&stream, image, NULL, &err), -EROFS);
	assert_int_equal(varve_stream_start(&stream, image, &so, &err), -EINVAL);
	varve_image_close(image, NULL);
	oo.flags = VARVE_OPEN_WRITABLE | VARVE_OPEN_NO_BACKING;
	assert_int_equal(varve_image_open(&image, p.top, &oo, NULL), 0);
	assert_int_equal(varve_stream_start(&stream, image, NULL, &err), -EINVAL);
	so = (struct varve_stream_options){ .parallel = 33 };
	varve_image_close(image, NULL);
	oo.flags = VARVE_OPEN_WRITABLE;
	assert_int_equal(varve_image_open(&image, p.top, &oo, NULL), 0);
	assert_int_equal(varve_stream_start(&stream, image, &so, &err), -EINVAL);
	so = (struct varve_stream_options){ .base = "nobody" };
	assert_int_equal(varve_stream_start(&stream, image, &so, &err), -ENOENT);
	varve_stream_free(NULL);
	varve_image_close(image, NULL);
	place_remove(&p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(qcow2_is_used_while_it_is_filled),
		cmocka_unit_test(qed_is_used_while_it_is_filled),
		cmocka_unit_test(copy_on_read_and_a_stream_work_together),
		cmocka_unit_test(it_can_be_paused_resumed_and_cancelled),
		cmocka_unit_test(a_snapshot_made_meanwhile_keeps_the_backing_file),
		cmocka_unit_test(it_is_refused_where_it_cannot_work),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
