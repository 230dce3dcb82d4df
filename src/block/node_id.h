/* SPDX-License-Identifier: MIT */
/*
 * block/node_id.h - node-name: what the operator calls a layer of a disk
 *
 * Beside the file name, by which messages call it: copy-on-read-bottom takes either.
 */
#ifndef VARVE_BLOCK_NODE_ID_H
#define VARVE_BLOCK_NODE_ID_H

#include "block/node.h"

/* Takes option node-name. *ret: malloc'd, NULL if it is not given. */
int node_id_option(struct opts *o, char **ret, struct varve_error *err);

/* No two layers of the whole disk, backing images and data files included, have the same. */
int node_ids_differ(const struct node *top, struct varve_error *err);

/* Is it called that, by its node-name or its file name? */
bool node_is_called(const struct node *n, const char *name);

#endif
