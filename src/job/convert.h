/* SPDX-License-Identifier: MIT */
/*
 * job/convert.h - the contents of disks, one behind the other, into another disk
 */
#ifndef VARVE_JOB_CONVERT_H
#define VARVE_JOB_CONVERT_H

#include "job/source.h"

#define CONVERT_PARALLEL_MAX 16
#define CONVERT_SOURCES_MAX 1024

struct convert_options {
	struct convert_source *sources; /* of the same home queue as the target */
	unsigned nr_sources;
	struct node *target;
	unsigned parallel; /* pieces under way at once, 1 .. CONVERT_PARALLEL_MAX; 0: what suits the files */
	uint64_t sparse;   /* runs of zeroes of that length are not written as data; 0: all is written, holes too */
	uint64_t rate;	   /* bytes a second at most, as an average; 0: no limit */
	bool reads_zero;   /* the target reads as zeroes everywhere: they need not be written */
	bool over_backing; /* what a source's first image does not hold is left to the target's backing image */
	bool compress, in_order, one_by_one, offload, salvage;
	varve_report_fn report; /* salvage: what could not be read */
	varve_progress_fn progress;
	void *user_data;
};

/*
 * On a fiber of the home queue. The target is long enough. After an error a part of the target is written. Stable after a
 * flush.
 */
int convert(struct fiber *f, const struct convert_options *o, struct varve_error *err);

#endif
