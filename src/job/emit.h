/* SPDX-License-Identifier: MIT */
/*
 * job/emit.h - the contents of disks, one behind the other, as an image that is written forward only
 */
#ifndef VARVE_JOB_EMIT_H
#define VARVE_JOB_EMIT_H

#include "block/emit.h"
#include "job/convert.h"

struct emission {
	struct convert_options convert; /* but what is about a target: that is nowhere, reads as zeroes, and is written in order */
	const struct emit_driver *drv;
	struct emitter *emitter; /* opened, for a disk as long as the sources */
	/* The next bytes of the image; on a worker's thread, one call at a time. 0 or a negative errno. */
	int (*sink)(void *arg, const void *buf, size_t len);
	void *sink_arg;
};

/* On a fiber of the home queue. After an error a part has been written. */
int emit(struct fiber *f, const struct emission *o, struct varve_error *err);

#endif
