/* SPDX-License-Identifier: MIT */
/*
 * tools/img_convert_run.c - `varve img convert`: doing it
 *
 * Owns:    the queue that all images share, the images, and the target's file until it is whole: what is not is removed, so
 *          that nobody takes it for an image. (A target that existed and was overwritten is emptied. A device stays.)
 */
#include "img_convert.h"
#include "stop.h"
#include "unfinished.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct conversion {
	const struct convert_args *a;
	struct varve_queue *queue;
	struct varve_image **sources;
	unsigned nr_open;
	struct varve_image *target;
	struct bitmaps *bitmaps;
	uint64_t len;
	bool is_device;
	bool existed;	 /* the target's file, before */
	bool unfinished; /* it is ours to remove or to empty */
	char *made_path; /* where links lead, for the links themselves were there before */
	char *data_path; /* of the new image's data file; NULL: it has none */
};

/* ---- opening ---- */

/* Said before the locks do, in their way. */
static int check_same_file(const struct convert_args *a)
{
	const char *target = a->names[a->nr_sources];
	struct stat s, t;

	if (a->target.image_opts || a->source.image_opts || stat(target, &t) < 0 || !S_ISREG(t.st_mode))
		return 0;
	for (unsigned i = 0; i < a->nr_sources; i++) {
		if (stat(a->names[i], &s) == 0 && s.st_dev == t.st_dev && s.st_ino == t.st_ino) {
			complain("convert: %s is the source as well as the target", target);
			return 1;
		}
	}
	return 0;
}

static int open_sources(struct conversion *c)
{
	const struct convert_args *a = c->a;

	for (; c->nr_open < a->nr_sources; c->nr_open++) {
		struct varve_image *image =
			img_open_snapshot(a->names[c->nr_open], &a->source, a->snapshot, 0, c->queue);

		if (!image)
			return 1;
		c->sources[c->nr_open] = image;
		if (__builtin_add_overflow(c->len, varve_image_length(image), &c->len)) {
			complain("convert: the sources are too long together: one image has at most 8 EiB");
			c->nr_open++;
			return 1;
		}
	}
	return 0;
}

/* The target is as long as the sources. As for qemu-img, -o size= says nothing, unless they come out of a pipe; but it is a size. */
static int check_size(const struct conversion *c)
{
	char *text = c->a->options ? options_value(c->a->options, "size") : NULL;
	uint64_t len;
	int ret = 0;

	if (text && parse_size(text, &len) < 0) {
		complain("convert: -o size=%s is no size", text);
		ret = 1;
	}
	free(text);
	return ret;
}

/* ---- the target ---- */

/* 1: a message was given. */
static int look_at_data_file(struct conversion *c, const char *target)
{
	struct stat st;

	if (img_data_path(c->a->options, target, &c->data_path))
		return 1;
	if (!c->data_path)
		return 0;
	if (img_would_overwrite(c->sources, c->nr_open, c->data_path))
		return 1;
	if (stat(c->data_path, &st) < 0)
		unfinished_data_file(c->data_path);
	return 0;
}

/* What stands there is emptied next: that it can be opened in the way asked for shows before. */
static int try_existing(const struct conversion *c)
{
	struct open_args oa = { .format = "raw", .cache = c->a->target.cache };
	struct varve_image *image = open_image(c->a->names[c->a->nr_sources], &oa, VARVE_OPEN_WRITABLE, c->queue);

	return image ? close_image(image) : 1;
}

/* -n: what is too short is left as it is. Only files: a server may take one client, and no second. */
static int look_at_target(const struct conversion *c, const char *name)
{
	struct varve_image *image;
	struct stat st;
	uint64_t len;

	if (stat(img_local_path(name), &st) < 0)
		return 0;
	image = open_image(name, &c->a->target, VARVE_OPEN_NO_BACKING | VARVE_OPEN_NO_IO, c->queue);
	if (!image)
		return 1;
	len = varve_image_length(image);
	if (c->len > len)
		complain("convert: %s: %" PRIu64 " bytes do not fit the image of %" PRIu64 " bytes", name, c->len, len);
	return close_image_after(image, c->len > len);
}

static int make_target(struct conversion *c)
{
	const struct convert_args *a = c->a;
	const char *name = a->names[a->nr_sources], *path = img_local_path(name);
	struct varve_error err;
	struct stat st, link;

	c->existed = stat(path, &st) == 0;
	c->is_device = c->existed && S_ISBLK(st.st_mode);
	if (a->no_create)
		return look_at_target(c, name);
	if (img_would_overwrite(c->sources, c->nr_open, name) || look_at_data_file(c, path))
		return 1;
	if (c->existed && (S_ISREG(st.st_mode) || S_ISBLK(st.st_mode)) && try_existing(c))
		return 1;
	/* A new file is ours from its first moment on; one that existed only when it is known that nobody else uses it. */
	if (!c->existed && lstat(path, &link) < 0)
		unfinished_file(path, false);
	if (varve_image_create(name, a->target.format, c->len, a->options, 0, NULL, NULL, &err) < 0) {
		unfinished_file(NULL, false); /* the library removed what it made */
		unfinished_data_file(NULL);
		complain("%s", err.message);
		return 1;
	}
	if (stat(path, &st) == 0 && S_ISREG(st.st_mode)) {
		c->made_path = c->existed ? NULL : realpath(path, NULL);
		unfinished_file(c->made_path ? c->made_path : path, c->existed);
		c->unfinished = true;
	}
	/* A file that is removed takes along what is being written to it; one that is emptied becomes long again by that. */
	if (c->unfinished && c->existed)
		stop_watch();
	return 0;
}

static int open_target(struct conversion *c)
{
	const struct convert_args *a = c->a;
	const char *name = a->names[a->nr_sources];

	c->target = open_image(name, &a->target, VARVE_OPEN_WRITABLE, c->queue);
	return c->target ? 0 : 1;
}

/* ---- doing it ---- */

void convert_report(void *user_data, const char *line)
{
	const struct convert_args *a = user_data;

	if (!a->quiet)
		complain("convert: warning: %s", line);
}

void convert_ended(const struct convert_args *a)
{
	complain("convert: ended by %s: %s %s", stop_asked(), a->names[a->nr_sources],
		 a->no_create ? "has a part of the contents" : "is left empty");
}

static void progress(void *user_data, uint64_t done, uint64_t total)
{
	(void)user_data;
	progress_update(NULL, done, total);
}

/* A new image holds nothing yet, unless it is no more than a device. */
static bool reads_zero(const struct conversion *c)
{
	const struct convert_args *a = c->a;

	if (options_have(a->options, "data_file_raw")) /* which may be a device, and then holds what it held */
		return a->target_is_zero;
	return a->target_is_zero || (!a->no_create && !(c->is_device && strcmp(a->target.format, "raw") == 0));
}

static int copy(struct conversion *c)
{
	const struct convert_args *a = c->a;
	struct varve_convert_options o = a->convert;
	struct varve_error err;
	int ret;

	if (a->has_backing)
		o.flags |= VARVE_CONVERT_OVER_BACKING;
	else if (reads_zero(c))
		o.flags |= VARVE_CONVERT_TARGET_IS_ZERO;
	o.report = convert_report;
	progress_start(a->progress && !a->quiet);
	if (a->no_create || c->existed)
		stop_image(c->target);
	ret = varve_convert(c->target, c->sources, c->nr_open, &o, progress, (void *)(uintptr_t)a, &err);
	stop_image(NULL);
	if (ret == -ECANCELED && stop_asked())
		convert_ended(a);
	else if (ret < 0)
		complain("convert: %s", err.message);
	return ret < 0;
}

static int finish(struct conversion *c, int ret)
{
	if (c->target)
		ret = close_image_after(c->target, ret);
	while (c->nr_open)
		ret = close_image_after(c->sources[--c->nr_open], ret);
	varve_queue_free(c->queue);
	free(c->sources);
	convert_bitmaps_free(c->bitmaps);
	if (ret && c->unfinished && unfinished_give_up() < 0)
		complain("%s: is not complete, and cannot be %s: %s", c->made_path ? c->made_path : c->a->names[c->a->nr_sources],
			 c->existed ? "emptied" : "removed", strerror(errno));
	unfinished_file(NULL, false);
	unfinished_data_file(NULL);
	free(c->made_path);
	free(c->data_path);
	if (ret == 0) {
		progress_end();
		end_stdout();
	}
	return ret ? 1 : 0;
}

static int convert_to_file(struct conversion *c)
{
	const struct convert_args *a = c->a;
	int ret;

	/* Out of a pipe: it becomes longer later, unless it has a length of its own. */
	if (a->source_is_pipe && options_have(a->options, "size"))
		c->len = UINT64_MAX;
	ret = a->bitmaps ? convert_bitmaps_begin(a, c->sources[0], &c->bitmaps) : 0;
	if (ret == 0)
		ret = make_target(c);
	if (ret == 0)
		ret = open_target(c);
	if (ret == 0 && c->bitmaps && a->no_create)
		ret = convert_bitmaps_fit(a, c->bitmaps, c->sources[0], c->target);
	if (ret == 0)
		ret = a->source_is_pipe ? convert_stdin(a, c->target, c->queue, reads_zero(c)) : copy(c);
	if (ret == 0 && c->bitmaps) {
		ret = close_image(c->target);
		c->target = NULL;
		if (ret == 0)
			ret = convert_bitmaps(a, c->bitmaps, c->sources[0], c->queue);
	}
	return ret;
}

int convert_run(const struct convert_args *a)
{
	const char *target = a->names[a->nr_sources];
	struct conversion c = { .a = a, .sources = calloc(a->nr_sources, sizeof(*c.sources)) };
	struct varve_error err;
	int ret;

	if (!c.sources) {
		complain("convert: out of memory");
		return 1;
	}
	if (varve_queue_new(&c.queue, NULL, &err) < 0) {
		complain("convert: %s", err.message);
		free(c.sources);
		return 1;
	}
	if (a->no_create)
		stop_watch(); /* what is there is not ours to remove: it is closed */
	else
		unfinished_watch();
	ret = a->source_is_pipe ? 0 : check_same_file(a) || open_sources(&c) || check_size(&c);
	if (ret == 0 && !a->target.image_opts && convert_is_pipe(target))
		ret = convert_pipe(a, c.sources);
	else if (ret == 0)
		ret = convert_to_file(&c);
	return finish(&c, ret);
}
