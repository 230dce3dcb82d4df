/* SPDX-License-Identifier: MIT */
/*
 * job/emit.h - the contents of disks, one behind the other, as an image that is written forward only
 */
#ifndef VARVE_JOB_EMIT_H
#define VARVE_JOB_EMIT_H

#include "block/emit.h"
#include "job/convert.h"

struct emission {
	struct convert_source *sources; /* of one home queue */
	unsigned nr_sources;
	const struct emit_driver *drv;
	struct emitter *emitter; /* opened, for a disk as long as the sources */
	unsigned parallel;	 /* pieces under way at once; 0: what suits */
	uint64_t sparse;	 /* runs of zeroes of that length are left out; 0: none are, and no holes */
	uint64_t rate;		 /* bytes a second at most, as an average; 0: no limit */
	bool over_backing;	 /* what a source's first image does not hold is left out */
	bool compress, salvage;
	/* The next bytes of the image; on a worker's thread, one call at a time. 0 or a negative errno. */
	int (*sink)(void *arg, const void *buf, size_t len);
	void *sink_arg;
	varve_report_fn report; /* salvage: what could not be read */
	varve_progress_fn progress;
	void *user_data;
};

/* On a fiber of the home queue. After an error a part has been written. */
int emit(struct fiber *f, const struct emission *o, struct varve_error *err);

#endif
