/* SPDX-License-Identifier: MIT */
/*
 * create-and-write.c - makes a qcow2 image of 64 MiB, writes into it, reads it back
 *
 * cc create-and-write.c $(pkg-config --cflags --libs varve) && ./a.out disk.qcow2
 */
#include <stdio.h>
#include <string.h>
#include <varve/varve.h>

static int fail(const struct varve_error *err)
{
	fprintf(stderr, "create-and-write: %s\n", err->message);
	return 1;
}

int main(int argc, char **argv)
{
	struct varve_open_options opts = { .flags = VARVE_OPEN_WRITABLE, .format = "qcow2" };
	char out[] = "hello, disk", in[sizeof(out)];
	struct varve_image *image;
	struct varve_error err;

	if (argc != 2) {
		fprintf(stderr, "usage: create-and-write FILE\n");
		return 1;
	}
	if (varve_image_create(argv[1], "qcow2", 64 << 20, "cluster_size=64k", 0, NULL, NULL, &err) < 0)
		return fail(&err);
	if (varve_image_open(&image, argv[1], &opts, &err) < 0)
		return fail(&err);

	/* Any offset and length will do; the library sees to alignment, allocation and copy-on-write. */
	if (varve_image_write(image, 1000000, out, sizeof(out), 0, &err) < 0 ||
	    varve_image_flush(image, &err) < 0 || /* from here on it survives a power cut */
	    varve_image_read(image, 1000000, in, sizeof(in), &err) < 0) {
		varve_image_close(image, NULL);
		return fail(&err);
	}
	if (varve_image_close(image, &err) < 0)
		return fail(&err);
	printf("%s\n", memcmp(in, out, sizeof(in)) ? "read back something else" : in);
	return 0;
}
