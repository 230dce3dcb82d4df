/* SPDX-License-Identifier: MIT */
/*
 * tools/img_convert.h - what the files of `varve img convert` share
 *
 *   img_convert.c      options, and which of them go together
 *   img_convert_bitmaps.c  dirty bitmaps
 *   img_convert_pipe.c into a pipe
 *   img_convert_stdin.c  out of a pipe
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
	bool no_create, target_is_zero, source_is_pipe;
	bool bitmaps, skip_broken_bitmaps;
	struct varve_convert_options convert;
	bool progress, quiet;
	char **names; /* the sources, and at last the target */
	unsigned nr_sources;
};

/* The exit status. */
int convert_run(const struct convert_args *a);
/* The line that says how a signal left the target. */
void convert_ended(const struct convert_args *a);

/* Does the target take bytes in one direction only ("-": standard output)? */
bool convert_is_pipe(const char *name);
/* Can what is asked for go into one? 0, or 1 after a message. */
int convert_pipe_check(const struct convert_args *a);
/* Is the key among the options KEY=VALUE,...? */
bool options_have(const char *list, const char *key);
/* Its value, malloc'd; the last one counts. NULL: it is not there, or there is no memory. */
char *options_value(const char *list, const char *key);

/* Where a new image at target would have the data file that is among its options; NULL: it has none. 1: a message was given. */
int img_data_path(const char *list, const char *target, char **ret_path);

struct bitmaps;
int convert_bitmaps_check(const struct convert_args *a);
int convert_bitmaps_begin(const struct convert_args *a, struct varve_image *source, struct bitmaps **ret);
/* A target that exists can take them: known before its contents are overwritten. 0, or 1 after a message. */
int convert_bitmaps_fit(const struct convert_args *a, const struct bitmaps *b, struct varve_image *source, struct varve_image *target);
/* The target is whole, and closed. 0, or 1 after a message. */
int convert_bitmaps(const struct convert_args *a, const struct bitmaps *b, struct varve_image *source, struct varve_queue *queue);
void convert_bitmaps_free(struct bitmaps *b);

/* Does the source give bytes in one direction only ("-": standard input)? */
bool convert_from_pipe(const char *name);
int convert_stdin_check(const struct convert_args *a);
/* All that comes out of it goes into target, which is made as long as that. 0, or 1 after a message. */
int convert_stdin(const struct convert_args *a, struct varve_image *target, struct varve_queue *queue, bool reads_zero);

/* The whole image. 0, or 1 after a message. */
int convert_pipe(const struct convert_args *a, struct varve_image *const *sources);
/* A varve_report_fn; user_data: the arguments. */
void convert_report(void *user_data, const char *line);

#endif
