/* SPDX-License-Identifier: MIT */
/*
 * conformance/test_cancel.c - closing and detaching with requests in flight, through the public API
 *
 * The disk holds the requests until the call that must wait for them is under way: nothing is sent to the
 * kernel before it, so what arrives at the disk is a sign that it has begun.
 */
#include "rig.h"

#include <fcntl.h>
#include <pthread.h>

#define BLOCK 4096
#define NR_HELD 4
#define NR 40

struct flight {
	struct faultfs *fs;
	struct varve_queue *home, *q; /* q submits; it may be the home */
	struct varve_image *image;
	struct iovec iov[NR];
	unsigned endings[NR];
	uint8_t *bytes, *back;
	pthread_t releaser;
};

static void *release(void *arg)
{
	struct faultfs *fs = arg;

	faultfs_tell(fs, "held %d", NR_HELD);
	faultfs_tell(fs, "clear");
	faultfs_tell(fs, "release");
	return NULL;
}

static struct varve_queue *new_queue(unsigned flags)
{
	struct varve_queue_options opts = { .flags = flags };
	struct varve_queue *q = NULL;

	assert_int_equal(varve_queue_new(&q, &opts, NULL), 0);
	return q;
}

/* An image with requests submitted on fl->q, of which the disk will hold the first. */
static void begin(struct flight *fl, const struct setting *s, bool second_queue)
{
	const char *path = place_disk(s->ground, RIG_LEN);
	struct varve_open_options opts = { .flags = VARVE_OPEN_WRITABLE,
					   .format = "raw",
					   .cache = rig_cache_name(s->cache),
					   .aio = s->engine };
	struct varve_error err;
	int fd = open(path, O_RDWR | O_CLOEXEC);

	*fl = (struct flight){ .fs = place_faultfs(s->ground),
			       .bytes = rig_memory(MiB(1)),
			       .back = rig_memory(MiB(1)) };
	fill_random(fl->bytes, MiB(1), 1);
	assert_int_equal(pwrite(fd, fl->bytes, MiB(1), 0), MiB(1));
	close(fd);
	fl->home = new_queue(second_queue ? VARVE_QUEUE_THREAD : 0);
	fl->q = second_queue ? new_queue(0) : fl->home;
	opts.home = fl->home;
	if (varve_image_open(&fl->image, path, &opts, &err) < 0)
		fail_msg("%s", err.message);
	if (second_queue)
		assert_int_equal(varve_image_attach(fl->image, fl->q, NULL), 0);
	faultfs_tell(fl->fs, "rule read 0 0 hold 0");
	for (unsigned i = 0; i < NR; i++) {
		void *tag = (void *)(uintptr_t)i;

		fl->iov[i] = (struct iovec){ fl->back + i * BLOCK, BLOCK };
		if (i % 8 == 7)
			assert_int_equal(varve_submit_flush(fl->q, fl->image, tag), 0);
		else
			assert_int_equal(varve_submit_readv(fl->q, fl->image, &fl->iov[i], 1, i * BLOCK, tag),
					 0);
	}
	assert_int_equal(pthread_create(&fl->releaser, NULL, release, fl->fs), 0);
}

/* Every request has ended, once, well; its completion can still be collected. */
static void collect(struct flight *fl)
{
	struct varve_completion done[16];
	unsigned nr = 0;
	int n;

	pthread_join(fl->releaser, NULL);
	while ((n = varve_queue_reap(fl->q, done, 16, 0)) > 0) {
		for (int i = 0; i < n; i++) {
			assert_int_equal(done[i].result, 0);
			fl->endings[(uintptr_t)done[i].user_data]++;
		}
		nr += (unsigned)n;
	}
	assert_int_equal(nr, NR);
	for (unsigned i = 0; i < NR; i++) {
		assert_int_equal(fl->endings[i], 1);
		if (i % 8 != 7)
			assert_memory_equal(fl->back + i * BLOCK, fl->bytes + i * BLOCK, BLOCK);
	}
	free(fl->bytes);
	free(fl->back);
}

static void closing_finishes_what_is_in_flight(const struct setting *s)
{
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	struct flight fl;
	int fd;

	begin(&fl, s, false);
	assert_int_equal(varve_image_close(fl.image, NULL), 0);
	fd = open(fl.fs->disk, O_RDWR | O_CLOEXEC);
	assert_int_equal(fcntl(fd, F_OFD_SETLK, &lock), 0); /* nothing keeps the file open */
	close(fd);
	collect(&fl);
	varve_queue_free(fl.q);
}

static void detaching_finishes_what_is_in_flight(const struct setting *s)
{
	struct flight fl;

	begin(&fl, s, true);
	varve_image_detach(fl.image, fl.q);
	collect(&fl);
	varve_queue_free(fl.q);
	assert_int_equal(varve_image_flush(fl.image, NULL), 0);
	assert_int_equal(varve_image_close(fl.image, NULL), 0);
	varve_queue_free(fl.home);
}

int main(void)
{
	static const struct rig_case cases[] = {
		{ "closing finishes what is in flight", closing_finishes_what_is_in_flight, BOTH_CACHES,
		  1u << ON_FAULTFS, NULL },
		{ "detaching finishes what is in flight", detaching_finishes_what_is_in_flight, BOTH_CACHES,
		  1u << ON_FAULTFS, NULL },
	};

	return rig_run("cancel", cases, ARRAY_LEN(cases));
}
