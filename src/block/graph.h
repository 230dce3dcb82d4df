/* SPDX-License-Identifier: MIT */
/*
 * block/graph.h - opening and closing whole disks: names, options, probing, backing chains
 */
#ifndef VARVE_BLOCK_GRAPH_H
#define VARVE_BLOCK_GRAPH_H

#include "block/node.h"

/*
 * Opens the disk that o describes and returns its top node:
 *   "filename" (with protocol prefix or json:) or "driver" + "file.*" + "backing.*"; "format" is the same as
 *   driver for a file name; flags NODE_*. All of o must be used up, else -EINVAL names the key.
 * On a fiber of the queue that becomes home. Consumes nothing on failure.
 */
int graph_open(struct fiber *f, struct opts *o, uint32_t flags, struct node **ret_top, struct varve_error *err);

/*
 * The same with an engine for every leaf that has one, backing files included, where the options name no other
 * (NULL: each leaf takes the best for it). Leaves without engines do not mind.
 */
int graph_open_aio(struct fiber *f, struct opts *o, uint32_t flags, const char *aio, struct node **ret_top,
		   struct varve_error *err);

/* The leaf at the end of all files, data files and backing files of top, one after the other; false from fn ends the walk. */
void graph_each_leaf(struct node *top, bool (*fn)(struct node *leaf, void *arg), void *arg);

/* cache_mode.c: NODE_CACHE_FLAGS of a name ("none"), and the name (or the switches) of flags. */
/* Of option locking; its parser knows the order. */
#define LOCKING_WORDS "auto|on|off"
/* In an order that cache_mode.c knows. */
#define CACHE_MODE_WORDS "writeback|none|off|writethrough|directsync|unsafe"
int cache_mode_parse(const char *name, uint32_t *ret_flags, struct varve_error *err);
const char *cache_mode_name(uint32_t flags);

/* Only the protocol layer of a file name, for create: the caller formats it. */
int graph_open_file(struct fiber *f, const char *filename, uint32_t flags, struct node **ret_leaf,
		    struct varve_error *err);

/* Syncs and closes the whole graph. Returns the first error: acknowledged data may not be stable then. */
int graph_close(struct fiber *f, struct node *top, struct varve_error *err);

/*
 * The disk under top keeps of its backing chain only base and what is below it (NULL: nothing): first in its header, durably,
 * then in memory; the other images are closed. No request is on its way meanwhile.
 */
int graph_cut_backing(struct fiber *f, struct node *top, struct node *base, struct varve_error *err);

/* Builds a node above (or without) existing ones, for tests and filters: takes over file. */
int graph_stack(struct fiber *f, const struct driver *drv, struct node *file, struct opts *o, uint32_t flags,
		struct node **ret_top, struct varve_error *err);

/* The file name of a backing file as seen from the directory of the image that names it. buf of NODE_NAME_MAX. */
int backing_path(const char *image_name, const char *backing_name, char *buf, struct varve_error *err);

/*
 * The stretch at off as the top sees it, resolved down the chain: DATA names the leaf-side node, *ret_depth counts
 * layers from the top (0), *ret_present says whether a layer of the chain holds it. Loads what it needs. What has a place where
 * its file is a hole is ZERO (EXTENT_ALLOCATED, and EXTENT_MAPPED where the format's tables say data).
 */
int graph_map(struct fiber *f, struct node *top, uint64_t off, uint64_t len, struct extent *ret_extent,
	      unsigned *ret_depth, bool *ret_present);

/* A stretch of a file that is no hole. All zeroes: nothing is known. */
struct file_data {
	const struct node *file;
	uint64_t off, end;
};

/*
 * The same. *known is kept from call to call, so that a file is asked once for each of its own stretches; nobody writes to it
 * meanwhile.
 */
int graph_map_file(struct fiber *f, struct node *top, uint64_t off, uint64_t len, struct file_data *known, struct extent *ret_extent,
		   unsigned *ret_depth, bool *ret_present);

#endif
