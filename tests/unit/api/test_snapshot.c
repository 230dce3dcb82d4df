/* SPDX-License-Identifier: MIT */
/*
 * unit/api/test_snapshot.c - snapshots and states by the public interface, while the disk is in use too
 */
#include "api_test.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>

#define BLOCK 4096u
#define BLOCKS 256u /* of each writer */
#define WRITERS 2u

/* ---- writers whose order can be seen: the kth write puts k into block k % BLOCKS, one after the other ---- */

struct writer {
	pthread_t thread;
	struct varve_image *image;
	struct varve_queue *queue;
	uint64_t first; /* bytes */
	_Atomic bool stop;
	_Atomic uint64_t done;
	_Atomic int error;
};

static void *write_on(void *arg)
{
	struct writer *w = arg;
	uint64_t *buf = aligned_alloc(4096, BLOCK);

	for (uint64_t k = 1; !atomic_load(&w->stop) && w->error == 0; k++) {
		struct iovec iov = { buf, BLOCK };
		struct varve_completion c = { 0 };
		int nr = 0;

		for (unsigned i = 0; i < BLOCK / 8; i++)
			buf[i] = k;
		w->error = varve_submit_writev(w->queue, w->image, &iov, 1, w->first + k % BLOCKS * BLOCK, 0, NULL);
		while (w->error == 0 && nr == 0)
			nr = varve_queue_reap(w->queue, &c, 1, 1000);
		if (w->error == 0 && nr == 1)
			w->error = c.result < 0 ? (int)c.result : 0;
		atomic_store(&w->done, k);
	}
	free(buf);
	return NULL;
}

/* What is read is the disk between two writes of each writer. */
static void expect_moment(struct varve_image *image, const struct writer *w)
{
	uint64_t *buf = malloc(BLOCKS * BLOCK), most = 0;
	struct varve_error err;

	expect_ok(varve_image_read(image, w->first, buf, BLOCKS * BLOCK, &err));
	for (unsigned i = 0; i < BLOCKS; i++)
		most = buf[i * (BLOCK / 8)] > most ? buf[i * (BLOCK / 8)] : most;
	for (uint64_t i = 0; i < BLOCKS; i++) {
		uint64_t want = most < i || (i == 0 && most < BLOCKS) ? 0 : most - (most - i) % BLOCKS;

		for (unsigned k = 0; k < BLOCK / 8; k++) {
			if (buf[i * (BLOCK / 8) + k] != want)
				fail_msg("block %llu holds %llu, not %llu, of %llu", (unsigned long long)i,
					 (unsigned long long)buf[i * (BLOCK / 8) + k], (unsigned long long)want,
					 (unsigned long long)most);
		}
	}
	free(buf);
}

static void expect_clean(const char *name)
{
	struct varve_image *image = open_image(name, VARVE_OPEN_CHECK, NULL);
	struct varve_check_result result;
	struct varve_error err;

	expect_ok(varve_image_check(image, &result, NULL, NULL, NULL, &err));
	assert_int_equal(result.corruptions, 0);
	assert_int_equal(result.leaks, 0);
	expect_ok(varve_image_close(image, &err));
}

static struct varve_image *open_snapshot(const char *name, const char *snapshot)
{
	struct varve_open_options oo = { .flags = VARVE_OPEN_IMAGE_OPTS };
	struct varve_image *image;
	struct varve_error err;
	char text[PATH_MAX + 100];

	snprintf(text, sizeof(text), "driver=qcow2,snapshot.name=%s,file.filename=%s", snapshot, path_of(name));
	expect_ok(varve_image_open(&image, text, &oo, &err));
	return image;
}

static void wait_progress(struct writer *w, uint64_t more)
{
	uint64_t until = atomic_load(&w->done) + more;

	while (atomic_load(&w->done) < until && !w->error)
		usleep(100);
}

static void snapshots_of_a_disk_in_use_are_moments(void **state)
{
	struct varve_queue_options qo = { .flags = VARVE_QUEUE_THREAD };
	struct writer w[WRITERS] = { 0 };
	struct varve_vmstate_writer *vw;
	struct varve_queue *home;
	struct varve_image *image;
	struct varve_error err;
	char name[16];

	(void)state;
	make_image("busy", "qcow2", 64 * MIB, "cluster_size=16k");
	expect_ok(varve_queue_new(&home, &qo, &err));
	image = open_image("busy", VARVE_OPEN_WRITABLE, home);
	for (unsigned i = 0; i < WRITERS; i++) {
		expect_ok(varve_queue_new(&w[i].queue, NULL, &err));
		w[i].image = image;
		w[i].first = i * 16 * MIB;
		expect_ok(varve_image_attach(image, w[i].queue, &err));
		assert_int_equal(pthread_create(&w[i].thread, NULL, write_on, &w[i]), 0);
	}
	for (unsigned i = 0; i < 8; i++) {
		struct varve_snapshot_options so = { .name = name };

		wait_progress(&w[i % WRITERS], 100);
		snprintf(name, sizeof(name), "s%u", i);
		if (i % 2) { /* of now; the state takes its time */
			so.flags = VARVE_SNAPSHOT_NOW;
			expect_ok(varve_vmstate_write_open(&vw, image, &so, 0, &err));
			wait_progress(&w[0], 100);
			for (unsigned k = 0; k < 300; k++)
				expect_ok(varve_vmstate_write(vw, name, sizeof(name), &err));
			expect_ok(varve_vmstate_write_close(vw, NULL, &err));
		} else {
			expect_ok(varve_snapshot_create(image, &so, NULL, &err));
		}
		if (i == 5)
			expect_ok(varve_snapshot_delete(image, NULL, "s2", &err));
		assert_int_equal(varve_snapshot_apply(image, NULL, "s0", &err), -EBUSY);
	}
	wait_progress(&w[0], 100);
	for (unsigned i = 0; i < WRITERS; i++) {
		atomic_store(&w[i].stop, true);
		pthread_join(w[i].thread, NULL);
		assert_int_equal(w[i].error, 0);
		expect_moment(image, &w[i]);
		varve_image_detach(image, w[i].queue);
		varve_queue_free(w[i].queue);
	}
	expect_ok(varve_image_close(image, &err));
	varve_queue_free(home);
	expect_clean("busy");
	for (unsigned i = 0; i < 8; i++) {
		struct varve_image *s;

		if (i == 2)
			continue;
		snprintf(name, sizeof(name), "s%u", i);
		s = open_snapshot("busy", name);
		for (unsigned k = 0; k < WRITERS; k++)
			expect_moment(s, &w[k]);
		expect_ok(varve_image_close(s, &err));
	}
	image = open_image("busy", VARVE_OPEN_WRITABLE, NULL);
	for (unsigned i = 0; i < 8; i++) {
		snprintf(name, sizeof(name), "s%u", i);
		if (i != 2)
			expect_ok(varve_snapshot_delete(image, NULL, name, &err));
	}
	expect_ok(varve_image_close(image, &err));
	expect_clean("busy");
}

static void lists_tell_what_was_asked_for(void **state)
{
	struct varve_snapshot_options so = { .name = "first", .date_s = 1000, .date_ns = 7, .vm_clock_ns = 99 };
	struct varve_snapshot_info *list;
	struct varve_image *image;
	struct varve_error err;
	unsigned nr;
	char *id;

	(void)state;
	make_image("list", "qcow2", MIB, NULL);
	image = open_image("list", VARVE_OPEN_WRITABLE, NULL);
	expect_ok(varve_snapshot_list(image, &list, &nr, &err));
	assert_int_equal(nr, 0);
	varve_snapshot_list_free(list, nr);
	expect_ok(varve_snapshot_create(image, &so, &id, &err));
	assert_string_equal(id, "1");
	free(id);
	so = (struct varve_snapshot_options){ .name = "second", .id = "77", .icount = 5 };
	expect_ok(varve_snapshot_create(image, &so, NULL, &err));
	so = (struct varve_snapshot_options){ .name = "third" };
	expect_ok(varve_snapshot_create(image, &so, &id, &err));
	assert_string_equal(id, "78");
	free(id);
	assert_int_equal(varve_snapshot_create(image, &so, NULL, &err), -EEXIST);
	so.flags = VARVE_SNAPSHOT_REPEAT;
	expect_ok(varve_snapshot_create(image, &so, &id, &err));
	assert_string_equal(id, "79");
	free(id);
	assert_int_equal(varve_snapshot_delete(image, NULL, "third", &err), -EEXIST);
	expect_ok(varve_snapshot_delete(image, "79", "third", &err));
	expect_ok(varve_snapshot_list(image, &list, &nr, &err));
	assert_int_equal(nr, 3);
	assert_string_equal(list[0].name, "first");
	assert_int_equal(list[0].date_s, 1000);
	assert_int_equal(list[0].date_ns, 7);
	assert_int_equal(list[0].vm_clock_ns, 99);
	assert_true(list[0].icount == UINT64_MAX);
	assert_int_equal(list[0].disk_length, MIB);
	assert_int_equal(list[1].icount, 5);
	assert_true(list[2].date_s > 1600000000);
	varve_snapshot_list_free(list, nr);
	expect_ok(varve_image_close(image, &err));
}

static void formats_without_snapshots_say_so(void **state)
{
	struct varve_snapshot_options so = { .name = "x" };
	struct varve_vmstate_writer *w;
	struct varve_vmstate_reader *r;
	struct varve_snapshot_info *list;
	struct varve_image *image;
	struct varve_error err;
	unsigned nr = 7;

	(void)state;
	make_image("none", "raw", MIB, NULL);
	image = open_image("none", VARVE_OPEN_WRITABLE, NULL);
	expect_ok(varve_snapshot_list(image, &list, &nr, &err));
	assert_int_equal(nr, 0);
	assert_int_equal(varve_snapshot_create(image, &so, NULL, &err), -ENOTSUP);
	assert_non_null(strstr(err.message, "raw"));
	assert_int_equal(varve_snapshot_apply(image, NULL, "x", &err), -ENOTSUP);
	assert_int_equal(varve_snapshot_delete(image, NULL, "x", &err), -ENOTSUP);
	assert_int_equal(varve_vmstate_write_open(&w, image, &so, 0, &err), -ENOTSUP);
	assert_int_equal(varve_vmstate_read_open(&r, image, NULL, "x", 0, NULL, &err), -ENOTSUP);
	assert_int_equal(varve_state_area_read(image, 0, &nr, 1, &err), -ENOTSUP);
	expect_ok(varve_image_close(image, &err));
}

/* ---- states ---- */

static uint8_t stream_byte(uint64_t pos)
{
	return (uint8_t)(pos * 2654435761u >> 13);
}

struct released {
	uint8_t *next; /* where the next one is expected */
	uint64_t bytes;
	bool out_of_order;
};

static void on_released(void *user_data, void *buf, size_t length)
{
	struct released *r = user_data;

	r->out_of_order |= buf != r->next;
	r->next = (uint8_t *)buf + length;
	r->bytes += length;
}

static void expect_stream(struct varve_image *image, const char *name, uint64_t len)
{
	struct varve_vmstate_reader *r;
	struct varve_error err;
	uint8_t buf[5000];
	uint64_t got, pos = 0;
	int64_t n;

	expect_ok(varve_vmstate_read_open(&r, image, NULL, name, 2, &got, &err));
	assert_int_equal(got, len);
	while ((n = varve_vmstate_read(r, pos, buf, sizeof(buf), &err)) > 0) {
		for (int64_t i = 0; i < n; i++) {
			if (buf[i] != stream_byte(pos + (uint64_t)i))
				fail_msg("byte %llu", (unsigned long long)(pos + (uint64_t)i));
		}
		pos += (uint64_t)n;
	}
	assert_int_equal(n, 0);
	assert_int_equal(pos, len);
	/* At any place, back and forth. */
	for (unsigned i = 0; i < 200; i++) {
		pos = (uint64_t)i * 7919 * 4099 % len;
		n = varve_vmstate_read(r, pos, buf, 100, &err);
		assert_true(n > 0);
		for (int64_t k = 0; k < n; k++)
			assert_int_equal(buf[k], stream_byte(pos + (uint64_t)k));
	}
	varve_vmstate_read_close(r);
}

static void write_stream(struct varve_image *image, const char *name, uint8_t *all, uint64_t len, bool ref)
{
	struct varve_snapshot_options so = { .name = name };
	struct released rel = { .next = all };
	struct varve_vmstate_writer *w;
	struct varve_error err;
	uint64_t pos = 0;

	for (uint64_t i = 0; i < len; i++)
		all[i] = stream_byte(i);
	expect_ok(varve_vmstate_write_open(&w, image, &so, 3, &err));
	varve_vmstate_write_released(w, on_released, &rel);
	for (unsigned i = 0; pos < len; i++) { /* a small head, a page, a head, a page, ... */
		uint64_t part = i % 2 ? 4096 : 8;

		part = part < len - pos ? part : len - pos;
		if (ref)
			expect_ok(varve_vmstate_write_ref(w, all + pos, part, i % 3 == 0, &err));
		else
			expect_ok(varve_vmstate_write(w, all + pos, part, &err));
		pos += part;
		assert_int_equal(varve_vmstate_write_position(w), pos);
	}
	expect_ok(varve_vmstate_write_close(w, NULL, &err));
	assert_false(rel.out_of_order);
	if (ref)
		assert_true(rel.bytes == len || rel.bytes == 0); /* 0: this file wants copies */
}

static void states_come_back_as_they_went(void **state)
{
	static const uint64_t lens[] = { 1, 4096, MIB - 1, MIB, MIB + 1, 9 * MIB + 12345 };
	static const char *const caches[] = { "writeback", "none" };
	uint8_t *all = mmap(NULL, 10 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct varve_error err;

	(void)state;
	make_image("states", "qcow2", 8 * MIB, "cluster_size=64k");
	for (unsigned c = 0; c < 2; c++) {
		struct varve_open_options oo = { .flags = VARVE_OPEN_WRITABLE, .cache = caches[c] };
		struct varve_image *image;
		char name[16];

		expect_ok(varve_image_open(&image, path_of("states"), &oo, &err));
		for (unsigned i = 0; i < 6; i++) {
			for (unsigned ref = 0; ref < 2; ref++) {
				snprintf(name, sizeof(name), "%u-%u-%u", c, i, ref);
				write_stream(image, name, all, lens[i], ref);
				expect_stream(image, name, lens[i]);
			}
		}
		expect_ok(varve_image_close(image, &err));
	}
	munmap(all, 10 * MIB);
	expect_clean("states");
}

/* Whatever the size of clusters is beside that of the buffers. */
static void states_fit_clusters_of_any_size(void **state)
{
	static const char *const options[] = { "cluster_size=512", "cluster_size=2M", "cluster_size=4k,compat=0.10" };
	uint8_t *all = malloc(6 * MIB);
	struct varve_error err;

	(void)state;
	for (unsigned i = 0; i < 3; i++) {
		struct varve_image *image;
		char name[16];

		snprintf(name, sizeof(name), "size%u", i);
		make_image(name, "qcow2", MIB, options[i]);
		image = open_image(name, VARVE_OPEN_WRITABLE, NULL);
		write_stream(image, "s", all, 5 * MIB + 77, false);
		write_stream(image, "t", all, 3 * MIB, true);
		expect_ok(varve_snapshot_delete(image, NULL, "s", &err));
		expect_stream(image, "t", 3 * MIB);
		/* Into the holes that the first has left. */
		write_stream(image, "u", all, 5 * MIB, false);
		expect_stream(image, "u", 5 * MIB);
		expect_ok(varve_image_close(image, &err));
		expect_clean(name);
	}
	free(all);
}

static void an_aborted_stream_leaves_nothing(void **state)
{
	struct varve_snapshot_options so = { .name = "x", .flags = VARVE_SNAPSHOT_NOW };
	struct varve_snapshot_info *list;
	struct varve_vmstate_writer *w;
	struct varve_image *image;
	struct varve_error err;
	unsigned nr;

	(void)state;
	make_image("abort", "qcow2", MIB, NULL);
	image = open_image("abort", VARVE_OPEN_WRITABLE, NULL);
	expect_ok(varve_image_write(image, 0, "abc", 3, 0, &err));
	expect_ok(varve_vmstate_write_open(&w, image, &so, 2, &err));
	for (unsigned i = 0; i < 5000; i++)
		expect_ok(varve_vmstate_write(w, test_dir, sizeof(test_dir), &err));
	assert_int_equal(varve_image_close(image, &err), -EBUSY);
	varve_vmstate_write_abort(w);
	expect_ok(varve_snapshot_list(image, &list, &nr, &err));
	assert_int_equal(nr, 0);
	varve_snapshot_list_free(list, nr);
	expect_ok(varve_image_close(image, &err));
	expect_clean("abort");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(snapshots_of_a_disk_in_use_are_moments),
		cmocka_unit_test(lists_tell_what_was_asked_for),
		cmocka_unit_test(formats_without_snapshots_say_so),
		cmocka_unit_test(states_come_back_as_they_went),
		cmocka_unit_test(states_fit_clusters_of_any_size),
		cmocka_unit_test(an_aborted_stream_leaves_nothing),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, dir_make, dir_remove);
}
