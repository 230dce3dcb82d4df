/* SPDX-License-Identifier: MIT */
/*
 * tools/img_rebase.c - `varve img rebase`: an image gets another backing file
 *
 * Safe: what the image reads differently through the new chain is copied into it first. Then the header changes, durably and
 * at once, after everything copied is durable. A power cut before that leaves the old backing file, and clusters of the image's
 * own that hold what it had anyway. With -u only the header changes. Nothing can be copied into snapshots of the image: if one
 * of them would read something else, nothing is done.
 *
 * Never:   writes what is the same in both chains.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "img.h"
#include "stop.h"

#define PIECE_LEN ((size_t)2 << 20)

static const struct option_row options[] = {
	OPT_FORMAT,
	OPT_IMAGE_OPTS,
	{ 'b', "backing", ARG_FILE, "the new backing file, as the image will name it; \"\": none" },
	{ 'B', "backing-format", ARG_FORMAT, "of the new backing file: needed with -b, never guessed" },
	{ 'F', NULL, ARG_FORMAT, "the same as -B" },
	{ 'u', "backing-unsafe", NULL, "only change the header; what the image reads may become something else" },
	{ 'c', "compress", NULL, "compress what is copied" },
	OPT_CACHE('t'),
	{ 'T', "backing-cache", ARG_CACHE, "of the new backing file" },
	{ 'U', "force-share", NULL, "also while another process writes to the new backing file" },
	OPT_PROGRESS,
	OPT_OBJECT,
	OPT_QUIET,
	OPTION_END,
};

struct rebase {
	struct open_args open;
	struct open_args backing_open;
	const char *backing; /* NULL: not given; "": none */
	bool unsafe, progress, quiet;
	bool has_backing; /* until now */
	unsigned write_flags;

	struct varve_image *image, *backing_image; /* NULL: none */
	uint64_t len, backing_len, unit;
	uint8_t *old_bytes, *new_bytes;
};

/* What the new chain has at off. Behind its end there are zeroes. */
static int map_new(struct rebase *r, uint64_t off, uint64_t len, struct varve_extent *e, struct varve_error *err)
{
	*e = (struct varve_extent){ .start = off, .length = len, .zero = true };
	if (!r->backing_image || off >= r->backing_len)
		return 0;
	return varve_image_map(r->backing_image, off, MIN(len, r->backing_len - off), e, err);
}

/* [off, off + len) as the old chain has it: of the image, which holds nothing of its own there. */
static int read_old(struct rebase *r, bool zero, uint64_t off, size_t len, struct varve_error *err)
{
	if (zero)
		memset(r->old_bytes, 0, len);
	return zero ? 0 : varve_image_read(r->image, off, r->old_bytes, len, err);
}

static int read_new(struct rebase *r, bool zero, uint64_t off, size_t len, struct varve_error *err)
{
	size_t inside = zero || !r->backing_image || off >= r->backing_len ? 0 : (size_t)MIN(len, r->backing_len - off);

	memset(r->new_bytes + inside, 0, len - inside);
	return inside ? varve_image_read(r->backing_image, off, r->new_bytes, inside, err) : 0;
}

static bool all_zero(const uint8_t *buf, size_t len)
{
	return !len || (!buf[0] && memcmp(buf, buf + 1, len - 1) == 0);
}

/* Units that differ are written, neighbours in one go. */
static int write_differences(struct rebase *r, uint64_t off, size_t len, struct varve_error *err)
{
	size_t at = 0, end;
	int ret = 0;

	while (ret >= 0 && at < len) {
		size_t step = MIN(len - at, r->unit);

		if (memcmp(r->old_bytes + at, r->new_bytes + at, step) == 0) {
			at += step;
			continue;
		}
		for (end = at + step; end < len; end += step) {
			step = MIN(len - end, r->unit);
			if (memcmp(r->old_bytes + end, r->new_bytes + end, step) == 0)
				break;
		}
		/* Without a backing file, zeroes need no entry of their own, and get none: bytes do. */
		if (r->has_backing && all_zero(r->old_bytes + at, end - at))
			ret = varve_image_write_zeroes(r->image, off + at, end - at, VARVE_REQ_MAY_UNMAP, err);
		else
			ret = varve_image_write(r->image, off + at, r->old_bytes + at, end - at, r->write_flags, err);
		at = end;
	}
	return ret;
}

/*
 * What lies at off, the start of a cluster of the image. *ret_len: how much is done, whole clusters. Only whole clusters are
 * written: a part that reads as zeroes already, through the old chain, would not get space of its own.
 */
static int rebase_piece(struct rebase *r, uint64_t off, uint64_t *ret_len, struct varve_error *err)
{
	struct varve_extent old, new;
	uint64_t rest = r->len - off, unit = MIN(r->unit, rest), len;
	bool alike = true; /* all over the piece, each chain answers in one way */
	int ret = varve_image_map(r->image, off, rest, &old, err);

	if (ret < 0)
		return ret;
	*ret_len = old.length;
	if (old.present && old.depth == 0)
		return 0; /* the image's own: whole clusters */
	ret = map_new(r, off, old.length, &new, err);
	if (ret < 0)
		return ret;
	len = MIN(old.length, new.length);
	if (len < unit) {
		alike = false;
		len = unit;
	} else if (len < rest) {
		len -= len % unit;
	}
	*ret_len = len;
	if (alike && img_same_place(&old, &new))
		return 0;
	*ret_len = len = MIN(len, MAX(PIECE_LEN, r->unit));
	ret = read_old(r, alike && old.zero, off, len, err);
	if (ret >= 0)
		ret = read_new(r, alike && new.zero, off, len, err);
	return ret < 0 ? ret : write_differences(r, off, len, err);
}

static int copy_differences(struct rebase *r)
{
	struct varve_error err;
	uint64_t done;

	progress_start(r->progress);
	for (uint64_t off = 0; off < r->len; off += done) {
		if (stop_asked()) {
			complain("rebase: ended by %s: the image keeps its backing file, and what was copied until then", stop_asked());
			return 1;
		}
		if (rebase_piece(r, off, &done, &err) < 0) {
			complain("%s", err.message);
			return 1;
		}
		progress_update(NULL, off + done, r->len);
	}
	progress_end();
	return 0;
}

/* The new name as seen from the directory of the image. malloc'd; NULL: out of memory. */
static char *backing_path(const char *image, const char *backing)
{
	const char *slash = strncmp(image, "file:", 5) == 0 ? strrchr(image += 5, '/') : strrchr(image, '/');
	size_t dir = slash && backing[0] != '/' && !strchr(backing, ':') ? (size_t)(slash - image) + 1 : 0;
	char *path = malloc(dir + strlen(backing) + 1);

	if (path) {
		memcpy(path, image, dir);
		strcpy(path + dir, backing);
	}
	return path;
}

static int open_new(struct rebase *r, const char *image_name)
{
	char *path;

	if (!*r->backing)
		return 0;
	if (strncmp(r->backing, "json:", 5) == 0) {
		complain("rebase: a json: name is not followed out of an image, which then could not be opened; name the file, or say -u");
		return 1;
	}
	path = backing_path(image_name, r->backing);
	if (!path) {
		complain("out of memory");
		return 1;
	}
	r->backing_image = open_image(path, &r->backing_open, 0, NULL);
	free(path);
	if (!r->backing_image)
		return 1;
	if (varve_image_stands_on(r->backing_image, image_name)) { /* locks would refuse it, but not say why, nor with -U */
		complain("rebase: %s: its new backing file %s reads from it: the chain would have no end", image_name, r->backing);
		return 1;
	}
	r->backing_len = varve_image_length(r->backing_image);
	return 0;
}

static int copy(struct rebase *r, const json_t *info)
{
	int ret = 1;

	r->has_backing = info_str(info, "backing-filename");
	r->unit = (uint64_t)info_int(info, "cluster-size", 65536);
	r->len = varve_image_length(r->image);
	r->old_bytes = malloc(MAX(PIECE_LEN, r->unit));
	r->new_bytes = malloc(MAX(PIECE_LEN, r->unit));
	if (r->old_bytes && r->new_bytes)
		ret = copy_differences(r);
	else
		complain("out of memory");
	free(r->old_bytes);
	free(r->new_bytes);
	return ret;
}

static int rebase_image(struct rebase *r, const json_t *info)
{
	struct varve_error err;

	if (!r->unsafe && copy(r, info))
		return 1;
	if (varve_image_set_backing(r->image, r->backing, r->backing_open.format, &err) < 0) {
		complain("%s", err.message);
		return 1;
	}
	return 0;
}

static int open_and_rebase(const char *name, struct rebase *r, const json_t *info)
{
	unsigned flags = VARVE_OPEN_WRITABLE | (r->unsafe ? VARVE_OPEN_NO_BACKING | VARVE_OPEN_BITMAPS : 0);
	int ret;

	r->image = open_image(name, &r->open, flags, NULL);
	if (!r->image)
		return 1;
	ret = rebase_image(r, info);
	ret = close_image_after(r->image, ret);
	if (ret == 0)
		end_stdout();
	return ret;
}

/* What can be found wrong is, before the image is opened for writing: that alone may change its header. */
static int rebase(const char *name, struct rebase *r)
{
	json_t *list = img_chain(name, &r->open, false);
	const json_t *info = json_array_get(list, 0);
	int ret = !list;

	if (!ret && !r->unsafe)
		ret = open_new(r, info_str(info, "filename")) ||
		      img_snapshots_keep(info, name, &r->open, r->backing_image, UINT64_MAX,
					 "; delete it first (-u would make it read something else)");
	if (!ret)
		ret = open_and_rebase(name, r, info);
	if (r->backing_image)
		ret = close_image_after(r->backing_image, ret);
	json_decref(list);
	return ret;
}

/* Where there is no new backing file, what is said of it is still to be something that there is. */
static int check_unused(const struct rebase *r)
{
	struct open_args none = { .image_opts = true, .cache = r->backing_open.cache };
	const char *format = r->backing_open.format, *name = NULL;
	struct varve_image *empty;

	for (unsigned i = 0; format && (name = varve_driver_name(i)) && strcmp(name, format) != 0; i++)
		;
	if (format && !name)
		return complain_usage("rebase: backing format '%s' is not known to this version", format);
	if (!none.cache)
		return 0;
	empty = open_image("driver=null-co,size=512", &none, 0, NULL); /* whose mode nothing depends on */
	return empty ? close_image(empty) : 1;
}

static int take_option(struct rebase *r, int id, const char *value)
{
	switch (id) {
	case 'b':
		r->backing = value;
		return 0;
	case 'B':
	case 'F':
		r->backing_open.format = value;
		return 0;
	case 'u':
		r->unsafe = true;
		return 0;
	case 'c':
		r->write_flags = VARVE_REQ_COMPRESS;
		return 0;
	case 'T':
		r->backing_open.cache = value;
		return 0;
	case 'U':
		r->backing_open.force_share = true;
		return 0;
	case 'p':
		r->progress = true;
		return progress_form(value);
	case 'q':
		r->quiet = true;
		return 0;
	default:
		return open_option(&r->open, id, value);
	}
}

static int img_rebase(int argc, char **argv)
{
	struct rebase r = { 0 };
	struct parse p;
	int id, ret = 0;

	parse_start(&p, &cmd_rebase, argc, argv);
	while (!ret && (id = parse_next(&p)) > 0)
		ret = take_option(&r, id, p.value);
	if (ret || id < 0)
		return ret ? ret : p.status;
	if (p.nr_args != 1)
		return complain_usage("rebase: one file name is needed");
	if (!r.backing && !r.unsafe)
		return complain_usage("rebase: -b is needed: the new backing file, or \"\" for none");
	/* As callers know it from qemu-img: -u alone means none, and a format beside none means nothing. */
	if (!r.backing)
		r.backing = "";
	if (!*r.backing && check_unused(&r))
		return 1;
	if (!*r.backing)
		r.backing_open.format = NULL;
	if (*r.backing && !r.backing_open.format)
		return complain_usage("rebase: the format of the new backing file %s is not given (-F); it is never guessed", r.backing);
	if (r.unsafe && r.write_flags)
		return complain_usage("rebase: -c compresses what is copied, but with -u nothing is");
	if (r.quiet)
		r.progress = false;
	stop_watch();
	return rebase(p.args[0], &r);
}

const struct command cmd_rebase = {
	.name = "rebase",
	.run = img_rebase,
	.what = "give an image another backing file",
	.args = "FILE",
	.options = options,
	.notes = "Without -u, what the image reads stays what it was: differences are copied into it first.\n",
};
