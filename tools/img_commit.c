/* SPDX-License-Identifier: MIT */
/*
 * tools/img_commit.c - `varve img commit`: what an image holds goes into its backing file
 *
 * The images above the base are opened one by one, without their backing files, and the base for writing. While the copy
 * goes on, and after a power cut in it, everything that changes in the base is hidden by the images above, which hold the
 * same. Durable first: all of the base. Only then is the top emptied; the other way round, a cut would lose data.
 *
 * Snapshots of the top read from the base as well, and nothing hides its change from them: if one of them would read something
 * else, nothing is done. With -d they go with the top.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "img.h"
#include "stop.h"

#define PIECE_LEN ((uint64_t)8 << 20)
#define SLOW_PIECE_LEN ((uint64_t)256 << 10) /* with a limit of the rate */

static const struct option_row options[] = {
	OPT_FORMAT,
	OPT_IMAGE_OPTS,
	{ 'b', "base", ARG_BASE, "the image of the chain that takes the contents (the backing file of FILE); implies -d" },
	{ 'd', "drop", NULL, "FILE will not be used any more: do not empty it" },
	{ 'r', "rate-limit", "RATE", "bytes a second at most" },
	OPT_CACHE('t'),
	OPT_PROGRESS,
	OPT_OBJECT,
	OPT_QUIET,
	OPTION_END,
};

struct layer {
	struct varve_image *image;
	uint64_t len;
};

struct commit {
	struct open_args open;
	const char *base_name;
	bool drop, progress, quiet;
	uint64_t rate;

	struct varve_queue *queue; /* of all of them, so that the kernel may copy from one to the other */
	struct layer *layers;	   /* from the top down to the one above the base */
	size_t nr;
	struct varve_image *base;
	struct timespec began;
	uint64_t copied;
};

/* ---- which images ---- */

static bool same_file(const char *a, const char *b)
{
	struct stat x, y;

	return a && b && (strcmp(a, b) == 0 || (stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino));
}

/* Number of the base in the chain. 0, after a message: it has none. */
static size_t find_base(const json_t *chain, const char *wanted)
{
	const json_t *top = json_array_get(chain, 0);
	size_t i;
	json_t *info;

	if (json_array_size(chain) < 2) {
		complain("%s: has no backing file that its contents could go into", info_str(top, "filename"));
		return 0;
	}
	if (!wanted)
		return 1;
	json_array_foreach(chain, i, info) {
		const char *said = i ? info_str(json_array_get(chain, i - 1), "backing-filename") : NULL;

		if (i && (same_file(info_str(info, "filename"), wanted) || (said && strcmp(said, wanted) == 0)))
			return i;
	}
	complain("%s: '%s' is no image of its backing chain", info_str(top, "filename"), wanted);
	return 0;
}

static struct open_args args_of(const json_t *chain, size_t i, const struct commit *c)
{
	struct open_args a = c->open;

	if (i) {
		a.image_opts = false;
		a.format = info_str(json_array_get(chain, i - 1), "backing-filename-format");
	}
	return a;
}

static int open_layers(struct commit *c, const char *name, const json_t *chain, size_t base)
{
	struct open_args a = args_of(chain, base, c);

	c->layers = calloc(base, sizeof(c->layers[0]));
	if (!c->layers) {
		complain("out of memory");
		return 1;
	}
	for (c->nr = 0; c->nr < base; c->nr++) {
		struct open_args la = args_of(chain, c->nr, c);
		struct layer *l = &c->layers[c->nr];
		unsigned writable = c->nr == 0 && !c->drop ? VARVE_OPEN_WRITABLE : 0;

		l->image = open_image(c->nr ? info_str(json_array_get(chain, c->nr), "filename") : name, &la,
				      VARVE_OPEN_NO_BACKING | VARVE_OPEN_DATA_FILE | writable, c->queue);
		if (!l->image)
			return 1;
		l->len = varve_image_length(l->image);
	}
	c->base = open_image(info_str(json_array_get(chain, base), "filename"), &a, VARVE_OPEN_WRITABLE, c->queue);
	return c->base ? 0 : 1;
}

/* ---- copying ---- */

/* The first layer that says something about off, and for how long. NULL: none does. */
static int find_layer(struct commit *c, uint64_t off, struct varve_image **ret_image, struct varve_extent *e,
		      struct varve_error *err)
{
	uint64_t len = c->layers[0].len - off;

	*ret_image = NULL;
	for (size_t i = 0; i < c->nr; i++) {
		struct layer *l = &c->layers[i];
		int ret;

		if (off >= l->len) { /* a shorter image in the middle: nothing shows through it */
			*e = (struct varve_extent){ .start = off, .length = len, .zero = true };
			*ret_image = l->image;
			return 0;
		}
		ret = varve_image_map(l->image, off, MIN(len, l->len - off), e, err);
		if (ret < 0)
			return ret;
		len = e->length;
		if (e->present) {
			*ret_image = l->image;
			return 0;
		}
	}
	return 0;
}

/* In steps: a signal may have gone to another thread, and wakes nobody here. */
static void wait_for_rate(const struct commit *c)
{
	while (c->rate && !stop_asked()) {
		struct timespec now, pause = { 0 };
		double ahead;

		clock_gettime(CLOCK_MONOTONIC, &now);
		ahead = (double)c->copied / (double)c->rate -
			((double)(now.tv_sec - c->began.tv_sec) + (double)(now.tv_nsec - c->began.tv_nsec) / 1e9);
		if (ahead <= 0)
			return;
		pause.tv_nsec = (long)(MIN(ahead, 0.1) * 1e9);
		nanosleep(&pause, NULL);
	}
}

static int commit_piece(struct commit *c, uint64_t off, uint64_t *ret_len, struct varve_error *err)
{
	struct varve_image *from;
	struct varve_extent e;
	int ret = find_layer(c, off, &from, &e, err);

	if (ret < 0)
		return ret;
	if (from) /* what no layer has is passed over at once, however much it is */
		e.length = MIN(e.length, c->rate ? SLOW_PIECE_LEN : PIECE_LEN);
	*ret_len = e.length;
	if (!from)
		return 0;
	if (e.zero)
		return varve_image_write_zeroes(c->base, off, e.length, VARVE_REQ_MAY_UNMAP, err);
	c->copied += e.length;
	return varve_image_copy(c->base, off, from, off, e.length, 0, NULL, NULL, NULL, err);
}

static int copy_all(struct commit *c, struct varve_error *err)
{
	uint64_t len = c->layers[0].len, done;
	int ret = 0;

	if (varve_image_length(c->base) < len)
		ret = varve_image_resize(c->base, len, VARVE_PREALLOC_OFF, 0, err);
	clock_gettime(CLOCK_MONOTONIC, &c->began);
	progress_start(c->progress);
	for (uint64_t off = 0; ret >= 0 && off < len; off += done) {
		if (stop_asked())
			return -ECANCELED;
		ret = commit_piece(c, off, &done, err);
		if (ret >= 0) {
			progress_update(NULL, off + done, len);
			wait_for_rate(c);
		}
	}
	if (ret >= 0)
		ret = varve_image_flush(c->base, err);
	if (ret >= 0 && !c->drop)
		ret = varve_image_make_empty(c->layers[0].image, err);
	return ret;
}

/* What the snapshots of the top read from the base becomes what the top reads. */
static int check_snapshots(struct commit *c, const char *name, const json_t *chain)
{
	struct open_args open = c->open;
	struct varve_image *view;
	int ret;

	if (c->drop || !json_array_size(json_object_get(json_array_get(chain, 0), "snapshots")))
		return 0;
	open.force_share = true; /* this process has it open for writing, and has changed nothing yet */
	view = open_image(name, &open, 0, NULL);
	if (!view)
		return 1;
	ret = img_snapshots_keep(json_array_get(chain, 0), name, &c->open, view, c->layers[0].len,
				 "; delete it first, or say with -d that the image and its snapshots will not be used any more");
	return close_image_after(view, ret);
}

static int copy_and_tell(struct commit *c, const char *name)
{
	struct varve_error err;
	int ret;

	if (!c->drop && strcmp(varve_image_format(c->layers[0].image), "qed") == 0) {
		complain("a QED image cannot be emptied after the commit; -d says that it will not be used any more");
		return 1;
	}
	stop_image(c->base);
	ret = copy_all(c, &err);
	stop_image(NULL);
	if (ret == -ECANCELED && stop_asked())
		complain("commit: ended by %s: %s reads what it read, and the same command does the rest", stop_asked(), name);
	else if (ret < 0)
		complain("%s", err.message);
	if (ret < 0)
		return 1;
	progress_end();
	if (!c->quiet)
		printf("Image committed.\n");
	end_stdout();
	return 0;
}

static int run(struct commit *c, const char *name, const json_t *chain, size_t base)
{
	int ret = open_layers(c, name, chain, base);

	if (!ret)
		ret = check_snapshots(c, name, chain) || copy_and_tell(c, name);
	if (c->base)
		ret = close_image_after(c->base, ret);
	for (size_t i = 0; c->layers && i < base; i++) {
		if (c->layers[i].image)
			ret = close_image_after(c->layers[i].image, ret);
	}
	free(c->layers);
	return ret;
}

static int commit(const char *name, struct commit *c)
{
	json_t *chain = img_chain(name, &c->open, true);
	struct varve_error err;
	size_t base = chain ? find_base(chain, c->base_name) : 0;
	int ret = 1;

	if (base && varve_queue_new(&c->queue, NULL, &err) < 0) {
		complain("%s", err.message);
		base = 0;
	}
	if (base)
		ret = run(c, name, chain, base);
	varve_queue_free(c->queue);
	json_decref(chain);
	return ret;
}

static int take_option(struct commit *c, int id, const char *value)
{
	switch (id) {
	case 'b':
		c->base_name = value;
		c->drop = true;
		return 0;
	case 'd':
		c->drop = true;
		return 0;
	case 'r':
		if (parse_size(value, &c->rate) < 0)
			return complain_usage("commit: the rate '%s' is no size", value);
		return 0;
	case 'p':
		c->progress = true;
		return progress_form(value);
	case 'q':
		c->quiet = true;
		return 0;
	default:
		return open_option(&c->open, id, value);
	}
}

static int img_commit(int argc, char **argv)
{
	struct commit c = { 0 };
	struct parse p;
	int id, ret = 0;

	parse_start(&p, &cmd_commit, argc, argv);
	while (!ret && (id = parse_next(&p)) > 0)
		ret = take_option(&c, id, p.value);
	if (ret || id < 0)
		return ret ? ret : p.status;
	if (p.nr_args != 1)
		return complain_usage("commit: one file name is needed");
	if (c.quiet)
		c.progress = false;
	stop_watch();
	return commit(p.args[0], &c);
}

const struct command cmd_commit = {
	.name = "commit",
	.run = img_commit,
	.what = "move what an image holds into its backing file",
	.args = "FILE",
	.options = options,
	.notes = "Other images that have BASE, or an image between it and FILE, as their backing file read something else afterwards.\n",
};
