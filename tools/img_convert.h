/* SPDX-License-Identifier: MIT */
/*
 * tools/img_convert.h - what the files of `varve img convert` share
 *
 *   img_convert.c      options, and which of them go together
 *   img_convert_run.c  opens the sources, makes the target, converts; what failed half way is removed
 */
#ifndef VARVE_TOOLS_IMG_CONVERT_H
#define VARVE_TOOLS_IMG_CONVERT_H

#include "img.h"

struct convert_args {
	struct open_args source, target; /* target.format: of the new image, too */
	const char *snapshot;
	char *options; /* all -o, and the backing file; NULL: none */
	bool has_backing;
	bool no_create, target_is_zero;
	struct varve_convert_options convert;
	bool progress, quiet;
	char **names; /* the sources, and at last the target */
	unsigned nr_sources;
};

/* The exit status. */
int convert_run(const struct convert_args *a);

#endif
