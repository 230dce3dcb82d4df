/* SPDX-License-Identifier: MIT */
/*
 * tools/img_convert.c - `varve img convert`: what is asked for
 *
 * Never: touches a file before everything that can be known to be wrong is known not to be.
 */
#include "img_convert.h"

#include <stdlib.h>
#include <string.h>

#define PARALLEL_MAX 16
#define SPARSE_MAX (1ull << 30)

enum {
	LONG_TARGET_IMAGE_OPTS = LONG_COMMAND,
	LONG_BITMAPS,
	LONG_SKIP_BROKEN,
	LONG_SALVAGE,
	LONG_IS_ZERO,
	LONG_CANONICAL,
	LONG_LEVEL,
};

#define LEVEL_WORDS "fast|ratio"

static const struct option_row options[] = {
	{ 'f', "source-format", ARG_FORMAT, "of the sources: not guessed then" },
	{ LONG_IMAGE_OPTS, "image-opts", NULL, "SOURCE is driver=...,file.filename=..." },
	{ 'T', "source-cache", ARG_CACHE, "writeback (default), none, writethrough, directsync, unsafe" },
	{ 'l', "snapshot", ARG_SNAPSHOT, "of the source: name, id, or snapshot.name=NAME, snapshot.id=ID" },
	{ LONG_BITMAPS, "bitmaps", NULL, "dirty bitmaps go along" },
	{ LONG_SKIP_BROKEN, "skip-broken-bitmaps", NULL, "but those that are inconsistent" },
	{ LONG_SALVAGE, "salvage", NULL, "what cannot be read becomes zeroes, and is told" },
	OPT_FORCE_SHARE,
	{ 'O', "target-format", ARG_NEW_FORMAT, "of the new image: raw (default), qcow2, qed; raw and qcow2 also into a pipe" },
	{ 'o', "target-format-options", ARG_CREATE, "options of the new image, as for create; may be repeated" },
	{ 'b', "backing", ARG_FILE, "the target is made above FILE, and gets only what the source's first image holds" },
	{ 'B', NULL, ARG_FILE, "the same as -b" },
	{ 'F', "backing-format", ARG_FORMAT, "of FILE: needed with -b, never guessed" },
	{ 'n', "no-create", NULL, "TARGET exists" },
	{ LONG_IS_ZERO, "target-is-zero", NULL, "with -n: all of it reads as zeroes (also: zeroinit:TARGET)" },
	{ LONG_TARGET_IMAGE_OPTS, "target-image-opts", NULL, "with -n: TARGET is driver=...,file.filename=..." },
	{ 't', "target-cache", ARG_CACHE, "unsafe (default): nothing waits for the disk; none, writeback, ..." },
	{ 'c', "compress", NULL, "compress clusters" },
	{ LONG_LEVEL, "compress-level", LEVEL_WORDS, "with -c: fast (default), or ratio: smaller and slower" },
	{ 'S', "sparse-size", "SIZE", "zeroes of that many bytes and more are left out (4k); 0: all is written" },
	{ 'm', "parallel", "COUNT", "pieces under way at once, 1 .. 16 (3 between cached files, else 8)" },
	{ 'W', "oob-writes", NULL, "writes need not come in order" },
	{ LONG_CANONICAL, "canonical", NULL, "the same contents give the same file, bit for bit" },
	{ 'C', "copy-range-offloading", NULL, "the kernel copies where it can; zeroes in the data stay data" },
	{ 'r', "rate-limit", "RATE", "bytes of data in a second at most; 0: as fast as it goes" },
	OPT_OBJECT,
	OPT_PROGRESS,
	OPT_QUIET,
	OPTION_END,
};

struct parsing {
	struct convert_args *a;
	const char *backing, *backing_format;
	bool has_options, has_sparse, zeroinit;
};

/* Adds to the options of the new image. 0, or 1 after a message. */
static int options_add(struct convert_args *a, const char *key, const char *value)
{
	a->options = options_append(a->options, key, value, *key);
	if (!a->options)
		complain("convert: out of memory");
	return a->options ? 0 : 1;
}

/* Is the key among the options? Keys begin behind a comma that stands alone. */
static const char *options_find(const char *list, const char *key)
{
	const char *found = NULL;
	size_t len = strlen(key);

	for (const char *s = list; s && *s;) {
		if (strncmp(s, key, len) == 0 && s[len] == '=')
			found = s + len + 1;
		while (*s && (*s != ',' || s[1] == ','))
			s += *s == ',' ? 2 : 1;
		s += *s == ',';
	}
	return found;
}

bool options_have(const char *list, const char *key)
{
	return options_find(list, key);
}

char *options_value(const char *list, const char *key)
{
	const char *s = options_find(list, key);
	char *value = s ? strdup(s) : NULL, *to = value;

	for (; value && *s && (*s != ',' || s[1] == ','); s++) {
		s += *s == ','; /* two of them are one of the value's */
		*to++ = *s;
	}
	if (value)
		*to = 0;
	return value;
}

static bool preallocates(const char *list)
{
	char *value = options_value(list, "preallocation");
	bool ret = value && strcmp(value, "off") != 0;

	free(value);
	return ret;
}

int img_data_path(const char *list, const char *target, char **ret_path)
{
	char *name = list ? options_value(list, "data_file") : NULL;
	const char *slash = strrchr(target, '/');
	int dir = name && name[0] != '/' && slash ? (int)(slash + 1 - target) : 0;

	*ret_path = NULL;
	if (name && *name && asprintf(ret_path, "%.*s%s", dir, target, name) < 0) {
		complain("out of memory");
		*ret_path = NULL;
		free(name);
		return 1;
	}
	free(name);
	return 0;
}

static int take_number(struct parsing *ps, int c, const char *value)
{
	struct varve_convert_options *v = &ps->a->convert;

	switch (c) {
	case 'S':
		ps->has_sparse = true;
		if (parse_size(value, &v->sparse) < 0 || v->sparse > SPARSE_MAX || v->sparse % 512)
			return complain_usage("convert: -S '%s' is no multiple of 512 from 0 to 1G", value);
		if (!v->sparse)
			v->flags |= VARVE_CONVERT_ALL_DATA;
		else
			v->flags &= ~VARVE_CONVERT_ALL_DATA;
		return 0;
	case 'r':
		if (parse_size(value, &v->rate) < 0)
			return complain_usage("convert: the rate '%s' is no size", value);
		return 0;
	default:
		if (parse_unsigned(value, PARALLEL_MAX, &v->parallel) < 0 || !v->parallel)
			return complain_usage("convert: -m '%s' is no number from 1 to %d", value, PARALLEL_MAX);
		return 0;
	}
}

static int take_switch(struct parsing *ps, int c)
{
	struct convert_args *a = ps->a;

	switch (c) {
	case 'c':
		a->convert.flags |= VARVE_CONVERT_COMPRESS;
		return 0;
	case 'W':
		a->convert.flags |= VARVE_CONVERT_OUT_OF_ORDER;
		return 0;
	case 'C':
		a->convert.flags |= VARVE_CONVERT_OFFLOAD;
		return 0;
	case LONG_BITMAPS:
		a->bitmaps = true;
		return 0;
	case LONG_SKIP_BROKEN:
		a->skip_broken_bitmaps = true;
		return 0;
	case LONG_SALVAGE:
		a->convert.flags |= VARVE_CONVERT_SALVAGE;
		return 0;
	case LONG_CANONICAL:
		a->convert.flags |= VARVE_CONVERT_CANONICAL;
		return 0;
	case LONG_IMAGE_OPTS:
		a->source.image_opts = true;
		return 0;
	case LONG_TARGET_IMAGE_OPTS:
		a->target.image_opts = true;
		return 0;
	case LONG_IS_ZERO:
		a->target_is_zero = true;
		return 0;
	case 'n':
		a->no_create = true;
		return 0;
	case 'U':
		a->source.force_share = true;
		return 0;
	default:
		a->quiet = true;
		return 0;
	}
}

static int take_value(struct parsing *ps, int c, const char *value)
{
	struct convert_args *a = ps->a;

	switch (c) {
	case 'f':
		a->source.format = value;
		return 0;
	case 'T':
		a->source.cache = value;
		return 0;
	case 'l':
		a->snapshot = value;
		return 0;
	case 'O':
		a->target.format = value;
		return 0;
	case 't':
		a->target.cache = value;
		return 0;
	case 'o':
		ps->has_options = true;
		return options_take("convert", &a->options, value);
	case 'b':
	case 'B':
		ps->backing = value;
		return 0;
	case 'F':
		ps->backing_format = value;
		return 0;
	case LONG_LEVEL:
		if (option_word(LEVEL_WORDS, value) < 0)
			return complain_usage("convert: --compress-level '%s' is not fast or ratio", value);
		a->target.options = option_word(LEVEL_WORDS, value) ? "compress-level=ratio" : "compress-level=fast";
		return 0;
	default:
		return take_number(ps, c, value);
	}
}

static int take(struct parsing *ps, int id, const char *value)
{
	switch (id) {
	case LONG_OBJECT:
		return object_add(value);
	case 'p':
		ps->a->progress = true;
		return progress_form(value);
	default:
		return value ? take_value(ps, id, value) : take_switch(ps, id);
	}
}

static int check_target(const struct parsing *ps)
{
	const struct convert_args *a = ps->a;

	if (a->no_create && ps->has_options)
		return complain_usage("convert: -o is about a new image, but -n says that there is none");
	if (ps->zeroinit && !a->no_create)
		return complain_usage("convert: " ZEROINIT " is about a target that exists; -n is needed with it");
	if (a->target_is_zero && !a->no_create)
		return complain_usage("convert: --target-is-zero is about an image that exists; -n is needed with it");
	if (a->target.image_opts && !a->no_create)
		return complain_usage("convert: --target-image-opts is about an image that exists; -n is needed with it");
	if (a->target.image_opts && a->target.format)
		return complain_usage("convert: --target-image-opts has the format as driver=; -O beside it is one too many");
	if (a->has_backing && a->target_is_zero)
		return complain_usage("convert: a target with a backing file does not read as zeroes");
	if (a->has_backing && a->nr_sources > 1)
		return complain_usage("convert: a target of several sources cannot have a backing file: no image holds what they share");
	if (ps->backing_format && !a->has_backing)
		return complain_usage("convert: -F is the format of a backing file, and there is none (-b)");
	return 0;
}

/* Can images of that format hold compressed clusters? What compresses has a level for it. An unknown format: create tells. */
static bool format_packs(const char *format)
{
	const struct varve_option_info *o = varve_driver_open_options(format);

	for (; o && o->name; o++) {
		if (strcmp(o->name, "compress-level") == 0)
			return true;
	}
	return !varve_driver_options(format);
}

static int check_ways(const struct parsing *ps)
{
	const struct convert_args *a = ps->a;
	unsigned flags = a->convert.flags;

	if ((flags & VARVE_CONVERT_OFFLOAD) && ps->has_sparse)
		return complain_usage("convert: -C copies without a look at the bytes: -S cannot be honoured with it");
	if ((flags & VARVE_CONVERT_OFFLOAD) && (flags & (VARVE_CONVERT_COMPRESS | VARVE_CONVERT_SALVAGE)))
		return complain_usage("convert: -C copies without a look at the bytes: -c and --salvage exclude it");
	if ((flags & VARVE_CONVERT_CANONICAL) && (flags & VARVE_CONVERT_OUT_OF_ORDER))
		return complain_usage("convert: --canonical writes in order: -W contradicts it");
	if ((flags & VARVE_CONVERT_COMPRESS) && preallocates(a->options))
		return complain_usage("convert: space that is preallocated is not compressed: -c and preallocation exclude each other");
	if ((flags & VARVE_CONVERT_COMPRESS) && options_have(a->options, "data_file"))
		return complain_usage("convert: what is in a data file is not compressed: -c and data_file exclude each other");
	if ((flags & VARVE_CONVERT_COMPRESS) && !a->target.image_opts && !format_packs(a->target.format))
		return complain_usage("convert: -c: %s images have no compressed clusters", a->target.format);
	if (a->target.options && !(flags & VARVE_CONVERT_COMPRESS))
		return complain_usage("convert: --compress-level is about -c, which is missing");
	if (a->snapshot && a->nr_sources > 1)
		return complain_usage("convert: -l is about one source, but there are %u", a->nr_sources);
	return 0;
}

/* What belongs together is put together, and what does not is refused. */
static int settle(struct parsing *ps, int nr_names, char **names)
{
	struct convert_args *a = ps->a;
	int ret = 0;

	if (nr_names < 2)
		return complain_usage("convert: a source and a target are needed");
	a->names = names;
	a->nr_sources = (unsigned)nr_names - 1;
	ps->zeroinit = !a->target.image_opts && img_take_zeroinit((const char **)&names[a->nr_sources]);
	a->target_is_zero |= ps->zeroinit;
	a->has_backing = ps->backing || options_have(a->options, "backing_file");
	if (!a->target.format && !a->target.image_opts)
		a->target.format = "raw";
	ret = check_target(ps);
	if (ret == 0)
		ret = check_ways(ps);
	if (ret == 0 && ps->backing && !a->no_create)
		ret = options_add(a, "backing_file", ps->backing);
	if (ret == 0 && ps->backing_format && !a->no_create)
		ret = options_add(a, "backing_fmt", ps->backing_format);
	if (!a->target.cache)
		a->target.cache = "unsafe";
	for (unsigned i = 0; ret == 0 && !a->source.image_opts && i < a->nr_sources; i++) {
		if (!a->source_is_pipe && convert_from_pipe(names[i])) {
			a->source_is_pipe = true;
			ret = convert_stdin_check(a);
		}
	}
	if (ret == 0 && !a->target.image_opts && convert_is_pipe(names[a->nr_sources]))
		ret = convert_pipe_check(a);
	return ret ? ret : convert_bitmaps_check(a);
}

static int img_convert(int argc, char **argv)
{
	struct convert_args a = { 0 };
	struct parsing ps = { .a = &a };
	struct parse p;
	int id, ret = 0;

	parse_start(&p, &cmd_convert, argc, argv);
	while (!ret && (id = parse_next(&p)) > 0)
		ret = take(&ps, id, p.value);
	if (!ret && id < 0) {
		free(a.options);
		return p.status;
	}
	if (!ret && options_ask_help(a.options)) {
		ret = options_help("convert", a.target.format ? a.target.format : "raw", false);
		free(a.options);
		return ret;
	}
	if (!ret)
		ret = settle(&ps, p.nr_args, p.args);
	if (!ret)
		ret = convert_run(&a);
	free(a.options);
	return ret;
}

const struct command cmd_convert = {
	.name = "convert",
	.run = img_convert,
	.what = "copy the contents of images into a new one",
	.args = "SOURCE...|- TARGET|-",
	.options = options,
	.notes = "What the sources read, with their backing files, one behind the other. A file that could not be made whole is removed.\n\n"
		 "  varve img convert -p -f raw -O qcow2 disk.raw disk.qcow2         a raw disk becomes qcow2\n"
		 "  varve img convert -c -O qcow2 -o compression_type=zstd a.qcow2 b.qcow2   smaller, to be kept\n"
		 "  varve img convert -l before -O raw disk.qcow2 old.raw            what a snapshot holds\n",
};
