/* SPDX-License-Identifier: MIT */
/*
 * tools/img.h - the commands of `varve img`
 *
 * Each gets its own argc and argv (argv[0] is the command's name) and returns the exit status.
 */
#ifndef VARVE_TOOLS_IMG_H
#define VARVE_TOOLS_IMG_H

#include "common.h"

int img_bench(int argc, char **argv);
int img_create(int argc, char **argv);
int img_info(int argc, char **argv);
int img_check(int argc, char **argv);
int img_map(int argc, char **argv);
int img_compare(int argc, char **argv);
int img_snapshot(int argc, char **argv);
int img_stream(int argc, char **argv);

/* Values of long options that have no letter; one list, so that no two commands disagree. */
enum {
	LONG_OUTPUT = 256,
	LONG_IMAGE_OPTS,
	LONG_BACKING_CHAIN,
	LONG_OBJECT,
};

/* Prints the usage of a command to stdout. Returns the exit status. */
int img_help(const char *usage);

/* "Snapshot list:" and its lines, from the list of an ImageInfo object; nothing for an empty one. */
void img_print_snapshots(const json_t *list);

/* `snapshot --graph`: the chain of an image, bottom first, with the snapshots of each, as text or SVG. */
int img_snapshot_graph(const char *file, const struct open_args *open, bool svg);

/* The extent at off, joined with the neighbours behind it that differ in nothing but their place. */
int img_map_joined(struct varve_image *image, uint64_t off, uint64_t end, struct varve_extent *ret,
		   struct varve_error *err);

#endif
