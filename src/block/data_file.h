/* SPDX-License-Identifier: MIT */
/*
 * block/data_file.h - the guest's data of an image in a file of its own
 */
#ifndef VARVE_BLOCK_DATA_FILE_H
#define VARVE_BLOCK_DATA_FILE_H

#include "block/node.h"

/* The leaf at the bottom. */
static inline struct node *node_leaf(struct node *n)
{
	while (n->file)
		n = n->file;
	return n;
}

/*
 * For a format's open(): n->data becomes the file that the options data-file.* of o describe, or else `name`, which stands in the
 * image ("": no name). That is the name of a local file whatever it looks like, and means one in the directory of the image if it
 * does not begin with a slash. Opened as the image is: for writing, with its cache mode and engine. With NODE_NO_DATA nothing is
 * opened: n->data answers every read and write with an error. A data file that came with n->file is taken as it is. The graph closes
 * n->data after the format, and when the format's open() fails.
 */
int node_open_data(struct fiber *f, struct node *n, const char *name, struct opts *o, struct varve_error *err);

/* The options data-file.*, when nothing of them is used. */
void node_skip_data(struct opts *o);

/* Where that name leads from an image of that name. buf of NODE_NAME_MAX. */
int data_file_path(const char *image_name, const char *name, char *buf, struct varve_error *err);

#endif
