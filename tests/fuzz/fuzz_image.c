/* SPDX-License-Identifier: MIT */
/*
 * fuzz/fuzz_image.c - any bytes as a qcow2, QED or raw image: described, examined, mapped, read, written, repaired, closed
 *
 * Input: one byte of choices, then the file. Nothing of it may crash, hang, read uninitialised memory or take more than its
 * bounds; what the calls return is of no interest here. The one promise that is held against it: an image that check finds
 * clean before the writes is clean after them.
 *
 * Assumes: the file is small. One queue serves all runs.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <varve/varve.h>

#define IO_LEN (128 * 1024)
#define EXTENTS 64
#define DISK_MAX (UINT64_C(1) << 40) /* longer ones are opened, but not examined: that takes as long as they are */
#define FILE_MAX (1 << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct varve_queue *queue;
static uint8_t buf[IO_LEN];

static int put_file(const uint8_t *data, size_t size)
{
	int fd = memfd_create("image", MFD_CLOEXEC);

	if (fd < 0 || write(fd, data, size) != (ssize_t)size)
		abort();
	return fd;
}

static struct varve_image *open_it(const char *spec, unsigned flags)
{
	struct varve_open_options oo = { .flags = flags | VARVE_OPEN_IMAGE_OPTS | VARVE_OPEN_NO_BACKING, .home = queue };
	struct varve_image *image;
	struct varve_error err;

	return varve_image_open(&image, spec, &oo, &err) < 0 ? NULL : image;
}

static void describe(const char *spec)
{
	struct varve_image *image = open_it(spec, VARVE_OPEN_NO_IO);
	char *json;

	if (!image)
		return;
	if (varve_image_info(image, &json, NULL) == 0)
		free(json);
	varve_image_close(image, NULL);
}

static void ignore_line(void *user_data, const char *line)
{
	(void)user_data;
	(void)line;
}

/* True: examined, and nothing wrong. */
static bool clean(struct varve_image *image)
{
	struct varve_check_result r;

	if (varve_image_length(image) > DISK_MAX)
		return false;
	return varve_image_check(image, &r, ignore_line, NULL, NULL, NULL) == 0 && !r.corruptions && !r.check_errors;
}

static void look(struct varve_image *image)
{
	uint64_t len = varve_image_length(image), off = 0;
	struct varve_extent e;

	for (unsigned i = 0; i < EXTENTS && off < len; i++) {
		if (varve_image_map(image, off, len - off, &e, NULL) < 0)
			break;
		off += e.length;
	}
	varve_image_read(image, 0, buf, len < IO_LEN ? len : IO_LEN, NULL);
	if (len > IO_LEN)
		varve_image_read(image, len - IO_LEN, buf, IO_LEN, NULL);
}

static void change(struct varve_image *image, uint64_t seed)
{
	uint64_t len = varve_image_length(image), off, n;

	for (unsigned i = 0; i < 8 && len; i++) {
		seed = seed * 6364136223846793005u + 1442695040888963407u;
		off = (seed >> 20) % len;
		n = seed % 7 * 1024 + 1;
		if (n > len - off)
			n = len - off;
		if (i % 4 == 3)
			varve_image_discard(image, off, n, NULL);
		else if (i % 4 == 2)
			varve_image_write_zeroes(image, off, n, 0, NULL);
		else
			varve_image_write(image, off, buf, n, 0, NULL);
	}
	varve_image_flush(image, NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char *const formats[] = { "qcow2", "qed", "raw", NULL };
	const char *format;
	struct varve_image *image;
	char spec[128];
	bool was_clean;
	int fd;

	if (size < 1 || size > FILE_MAX)
		return 0;
	if (!queue && varve_queue_new(&queue, NULL, NULL) < 0)
		abort();
	fd = put_file(data + 1, size - 1);
	format = formats[data[0] & 3];
	snprintf(spec, sizeof(spec), "%s%s%sfile.driver=memory,file.contents=/proc/self/fd/%d", format ? "driver=" : "",
		 format ? format : "", format ? "," : "", fd);

	describe(spec);
	image = open_it(spec, VARVE_OPEN_CHECK);
	if (image) {
		clean(image);
		varve_image_close(image, NULL);
	}
	image = open_it(spec, VARVE_OPEN_WRITABLE | (data[0] & 4 ? VARVE_OPEN_REPAIR : 0));
	if (!image) {
		image = open_it(spec, 0);
		if (image)
			look(image);
	} else {
		was_clean = clean(image);
		look(image);
		change(image, size * 31 + data[0]);
		if (was_clean && !clean(image)) {
			fprintf(stderr, "clean before the writes, and damaged by them\n");
			abort();
		}
	}
	if (image)
		varve_image_close(image, NULL);
	close(fd);
	return 0;
}
