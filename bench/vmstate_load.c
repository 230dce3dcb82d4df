/* SPDX-License-Identifier: MIT */
/*
 * bench/vmstate_load.c - a state written in the records of a migration stream (8 bytes, 4096 bytes, ...), or read back
 *
 *     vmstate_load write IMAGE NAME BYTES CACHE AIO DEPTH copy|ref
 *     vmstate_load read IMAGE NAME BYTES CACHE AIO DEPTH
 *
 * Prints one JSON object: seconds from opening to closing the stream, and the peak of resident memory. The records are made
 * of memory that is touched before the clock starts.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <varve/varve.h>

#define PAGE 4096u
#define PAGES 256u

static void die(const struct varve_error *err)
{
	fprintf(stderr, "vmstate_load: %s\n", err->message);
	exit(1);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static double write_state(struct varve_image *image, const char *name, uint64_t bytes, unsigned depth, int ref)
{
	struct varve_snapshot_options so = { .name = name };
	uint8_t *pages = aligned_alloc(PAGE, PAGES * PAGE), head[8] = "header";
	struct varve_vmstate_writer *w;
	struct varve_error err;
	double start;
	int ret = 0;

	if (!pages)
		exit(1);
	for (unsigned i = 0; i < PAGES * PAGE; i++)
		pages[i] = (uint8_t)(i * 2654435761u >> 11);
	start = now();
	if (varve_vmstate_write_open(&w, image, &so, depth, &err) < 0)
		die(&err);
	for (uint64_t i = 0; i < bytes / (PAGE + sizeof(head)) && ret >= 0; i++) {
		uint8_t *page = pages + i % PAGES * PAGE;

		ret = varve_vmstate_write(w, head, sizeof(head), &err);
		if (ret >= 0)
			ret = ref ? varve_vmstate_write_ref(w, page, PAGE, false, &err) :
				    varve_vmstate_write(w, page, PAGE, &err);
	}
	if (ret < 0 || varve_vmstate_write_close(w, NULL, &err) < 0)
		die(&err);
	free(pages);
	return now() - start;
}

static double read_state(struct varve_image *image, const char *name, uint64_t bytes, unsigned depth)
{
	struct varve_vmstate_reader *r;
	const void *buf;
	struct varve_error err;
	uint64_t pos = 0;
	double start;
	int64_t n;

	start = now();
	if (varve_vmstate_read_open(&r, image, NULL, name, depth, NULL, &err) < 0)
		die(&err);
	while ((n = varve_vmstate_read_ref(r, pos, &buf, &err)) > 0)
		pos += (uint64_t)n;
	if (n < 0)
		die(&err);
	varve_vmstate_read_close(r);
	if (pos < bytes / (PAGE + 8) * (PAGE + 8)) {
		fprintf(stderr, "vmstate_load: the state has %llu bytes only\n", (unsigned long long)pos);
		exit(1);
	}
	return now() - start;
}

int main(int argc, char **argv)
{
	struct varve_open_options oo = { 0 };
	struct varve_image *image;
	struct varve_error err;
	struct rusage usage;
	double seconds;
	int writes = argc > 1 && strcmp(argv[1], "write") == 0;

	if (argc != (writes ? 9 : 8)) {
		fprintf(stderr, "usage: vmstate_load write|read IMAGE NAME BYTES CACHE AIO DEPTH [copy|ref]\n");
		return 1;
	}
	oo.flags = writes ? VARVE_OPEN_WRITABLE : 0;
	oo.cache = argv[5];
	oo.aio = argv[6];
	if (varve_image_open(&image, argv[2], &oo, &err) < 0)
		die(&err);
	if (writes)
		seconds = write_state(image, argv[3], strtoull(argv[4], NULL, 0), (unsigned)atoi(argv[7]),
				      strcmp(argv[8], "ref") == 0);
	else
		seconds = read_state(image, argv[3], strtoull(argv[4], NULL, 0), (unsigned)atoi(argv[7]));
	if (varve_image_close(image, &err) < 0)
		die(&err);
	getrusage(RUSAGE_SELF, &usage);
	printf("{\"seconds\": %.6f, \"max_rss_kib\": %ld}\n", seconds, usage.ru_maxrss);
	return 0;
}
