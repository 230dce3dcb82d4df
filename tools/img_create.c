/* SPDX-License-Identifier: MIT */
/*
 * tools/img_create.c - `varve img create`
 */
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "img.h"

static const char create_usage[] =
	"create [-f FORMAT] [-o OPTIONS]... [-b FILE -F FORMAT] [-u] [-q] FILE [SIZE]\n\n"
	"  -f, --format FORMAT          of the new image: raw (default), qcow2\n"
	"  -o, --options KEY=VALUE,...  options of the format; varve-img(1) lists them; may be repeated\n"
	"  -b, --backing FILE           what the new image does not hold is read from FILE\n"
	"  -B, -F, --backing-format F   its format: needed with -b, never guessed\n"
	"  -u, --backing-unsafe         do not open the backing file; SIZE is needed then\n"
	"  -q, --quiet                  print nothing\n";

/* Options of all -o, joined by commas. NULL: out of memory. */
static char *append(char *list, const char *key, const char *value, bool escape)
{
	size_t len = (list ? strlen(list) : 0) + strlen(key) + 2 * strlen(value) + 3;
	char *out = malloc(len), *p = out;

	if (out) {
		p += sprintf(p, "%s%s%s%s", list ? list : "", list ? "," : "", key, *key ? "=" : "");
		for (; *value; value++) {
			if (escape && *value == ',')
				*p++ = ',';
			*p++ = *value;
		}
		*p = '\0';
	}
	free(list);
	return out;
}

struct create_args {
	const char *format, *backing, *backing_format;
	char *options;
	unsigned flags;
	bool quiet;
};

/* 0, 1 (failed, told), or -1: help was asked for. */
static int parse(int argc, char **argv, struct create_args *a)
{
	static const struct option longs[] = {
		{ "help", no_argument, NULL, 'h' },
		{ "quiet", no_argument, NULL, 'q' },
		{ "format", required_argument, NULL, 'f' },
		{ "options", required_argument, NULL, 'o' },
		{ "backing", required_argument, NULL, 'b' },
		{ "backing-format", required_argument, NULL, 'B' },
		{ "backing-unsafe", no_argument, NULL, 'u' },
		{ "object", required_argument, NULL, LONG_OBJECT },
		{ NULL, 0, NULL, 0 },
	};
	int c;

	opterr = 0;
	while ((c = getopt_long(argc, argv, ":hqf:o:b:B:F:u", longs, NULL)) != -1) {
		switch (c) {
		case 'h':
			return -1;
		case 'q':
			a->quiet = true;
			break;
		case 'f':
			a->format = optarg;
			break;
		case 'o':
			if (strcmp(optarg, "help") == 0 || strcmp(optarg, "?") == 0)
				return complain_missing("-o help (the options are in varve-img(1))");
			a->options = append(a->options, "", optarg, false);
			if (!a->options)
				return 1;
			break;
		case 'b':
			a->backing = optarg;
			break;
		case 'B':
		case 'F':
			a->backing_format = optarg;
			break;
		case 'u':
			a->flags |= VARVE_CREATE_NO_BACKING_CHECK;
			break;
		case LONG_OBJECT:
			return complain_missing("--object");
		default:
			return complain_option(c, argv);
		}
	}
	if (a->backing)
		a->options = append(a->options, "backing_file", a->backing, true);
	if (a->backing_format)
		a->options = append(a->options, "backing_fmt", a->backing_format, true);
	return 0;
}

/* What was made, with the options as they were given. */
static void announce(const char *name, const struct create_args *a)
{
	struct open_args oa = { .format = a->format };
	struct varve_image *image;

	image = open_image(name, &oa, VARVE_OPEN_NO_BACKING | VARVE_OPEN_NO_IO, NULL);
	if (!image)
		return;
	printf("Formatting '");
	print_text(name);
	printf("', fmt=%s size=%llu", a->format, (unsigned long long)varve_image_length(image));
	if (a->options) {
		putchar(' ');
		print_text(a->options);
	}
	putchar('\n');
	varve_image_close(image, NULL);
}

static int create(const char *name, uint64_t len, const struct create_args *a)
{
	struct varve_error err;

	if (varve_image_create(name, a->format, len, a->options, a->flags, progress_update, NULL, &err) < 0) {
		complain("%s", err.message);
		return 1;
	}
	if (!a->quiet)
		announce(name, a);
	return finish_stdout();
}

int img_create(int argc, char **argv)
{
	struct create_args a = { .format = "raw" };
	uint64_t len = UINT64_MAX;
	int ret = parse(argc, argv, &a);

	if (ret < 0)
		ret = img_help(create_usage);
	else if (ret == 0 && optind >= argc)
		ret = complain_usage("create: no file name given");
	else if (ret == 0 && argc - optind > 2)
		ret = complain_usage("create: '%s' is one argument too many", argv[optind + 2]);
	else if (ret == 0 && argc - optind == 2 && parse_size(argv[optind + 1], &len) < 0)
		ret = complain_usage("create: '%s' is no size (bytes, or with k, M, G, T, P, E)", argv[optind + 1]);
	else if (ret == 0)
		ret = create(argv[optind], len, &a);
	free(a.options);
	return ret;
}
