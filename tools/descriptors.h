/* SPDX-License-Identifier: MIT */
/*
 * tools/descriptors.h - enough file descriptors for all disks of a server, and for their front ends
 */
#ifndef VARVE_TOOLS_DESCRIPTORS_H
#define VARVE_TOOLS_DESCRIPTORS_H

#include "takeover.h"

/* As many as the process may have without asking anybody: the soft limit becomes the hard one. */
void descriptors_raise(void);

/*
 * All is started. Are there enough for every front end that can come? 0, or 1 after a message: better not to begin than to
 * serve some of the disks.
 */
int descriptors_check(const struct takeover_ops *ops, void *program);

#endif
