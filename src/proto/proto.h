/* SPDX-License-Identifier: MIT */
/*
 * proto/proto.h - the leaves: where bytes are kept
 *
 * The driver list (block/drivers.c) and tests need this file; nobody else knows a leaf by name.
 */
#ifndef VARVE_PROTO_PROTO_H
#define VARVE_PROTO_PROTO_H

#include "aio/sim.h"
#include "block/node.h"

extern const struct driver driver_file;	       /* regular files and block devices */
extern const struct driver driver_host_device; /* the same, block devices only */
extern const struct driver driver_null;	       /* null-co: keeps nothing */
extern const struct driver driver_http, driver_https; /* only where the build has libcurl */
extern const struct driver driver_memory;      /* keeps it while it is open */

/*
 * For tests: a leaf that runs the request path of driver_file over a simulated file, so that completion
 * order, short transfers, failures and power cuts can be chosen. *af was filled by sim_file_new(); it is
 * copied, s stays the caller's and must outlive the node. On the fiber of the home queue. flags NODE_*.
 */
int sim_node_new(struct fiber *f, struct sim_file *s, const struct aio_file *af, uint32_t flags,
		 struct node **ret_leaf, struct varve_error *err);

#endif
