/* SPDX-License-Identifier: MIT */
/*
 * tools/img_info.c - `varve img info`
 *
 * Never:   opens another file than the one named, except with --backing-chain.
 */
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "img.h"

static const char info_usage[] =
	"info [-f FORMAT | --image-opts] [--backing-chain] [--engine] [-U] [--output human|json] FILE\n\n"
	"  -f, --format FORMAT   do not guess the format\n"
	"      --image-opts      FILE is driver=...,file.filename=...\n"
	"      --backing-chain   also the backing file, its backing file, ...\n"
	"      --engine          also which AIO engine the file gets here\n"
	"  -U, --force-share     also while another process writes to the image\n"
	"      --output FORMAT   human (default) or json\n";

/* Images of one chain; a chain that is longer is taken for one without end. */
#define CHAIN_MAX 4096

enum { LONG_ENGINE = 1024 };

struct info_args {
	struct open_args open;
	bool chain, engine;
	enum output output;
};

/* ---- the human form ---- */

static void print_snapshot(const json_t *s)
{
	time_t when = (time_t)info_int(s, "date-sec", 0);
	uint64_t clock_s = (uint64_t)info_int(s, "vm-clock-sec", 0);
	int64_t icount = info_int(s, "icount", -1);
	const char *id = info_str(s, "id"), *name = info_str(s, "name");
	char date[32] = "", size[32];
	struct tm tm;

	if (localtime_r(&when, &tm))
		strftime(date, sizeof(date), "%Y-%m-%d %H:%M:%S", &tm);
	printf("%-9s %-16s %8s %s %02" PRIu64 ":%02u:%02u.%03u", id ? id : "", name ? name : "",
	       size_text(size, (uint64_t)info_int(s, "vm-state-size", 0)), date, clock_s / 3600,
	       (unsigned)(clock_s / 60 % 60), (unsigned)(clock_s % 60),
	       (unsigned)(info_int(s, "vm-clock-nsec", 0) / 1000000));
	if (icount >= 0)
		printf(" %10" PRId64 "\n", icount);
	else
		printf(" %10s\n", "");
}

void img_print_snapshots(const json_t *list)
{
	size_t i;
	json_t *s;

	if (!json_array_size(list))
		return;
	printf("Snapshot list:\n");
	printf("%-9s %-16s %8s %19s %12s %10s\n", "ID", "TAG", "VM SIZE", "DATE", "VM CLOCK", "ICOUNT");
	json_array_foreach(list, i, s)
		print_snapshot(s);
}

static void print_line(const char *what, const char *text)
{
	printf("%s: ", what);
	print_text(text ? text : "");
	putchar('\n');
}

static void print_human(const json_t *info)
{
	const char *backing = info_str(info, "backing-filename");
	const char *full = info_str(info, "full-backing-filename");
	int64_t actual = info_int(info, "actual-size", -1);
	uint64_t len = (uint64_t)info_int(info, "virtual-size", 0);
	char size[32];

	print_line("image", info_str(info, "filename"));
	print_line("file format", info_str(info, "format"));
	printf("virtual size: %s (%" PRIu64 " bytes)\n", size_text(size, len), len);
	printf("disk size: %s\n", actual < 0 ? "unavailable" : size_text(size, (uint64_t)actual));
	if (json_is_true(json_object_get(info, "encrypted")))
		printf("encrypted: yes\n");
	if (json_object_get(info, "cluster-size"))
		printf("cluster_size: %" PRId64 "\n", info_int(info, "cluster-size", 0));
	if (json_is_true(json_object_get(info, "dirty-flag")))
		printf("cleanly shut down: no\n");
	if (backing) {
		printf("backing file: ");
		print_text(backing);
		if (full && strcmp(full, backing) != 0) {
			printf(" (actual path: ");
			print_text(full);
			putchar(')');
		}
		putchar('\n');
		if (info_str(info, "backing-filename-format"))
			print_line("backing file format", info_str(info, "backing-filename-format"));
	}
	img_print_snapshots(json_object_get(info, "snapshots"));
	print_format_specific(info);
	if (info_str(info, "aio"))
		print_line("aio engine", info_str(info, "aio"));
}

/* ---- one image, or the chain ---- */

/* Without --engine the output is that of qemu-img, to the byte. */
static json_t *info_of(const char *name, const struct open_args *open, bool engine)
{
	struct varve_image *image = open_image(name, open, VARVE_OPEN_NO_BACKING | VARVE_OPEN_NO_IO, NULL);
	json_t *info;

	if (!image)
		return NULL;
	info = image_info(image);
	if (info && !engine)
		json_object_del(info, "aio");
	if (close_image(image)) {
		json_decref(info);
		return NULL;
	}
	return info;
}

/* True if the file called name is one of those in the list already. */
static bool chain_has(const json_t *list, const char *name)
{
	struct stat st, other;
	bool exists = stat(name, &st) == 0;
	size_t i;
	json_t *info;

	json_array_foreach(list, i, info) {
		const char *seen = info_str(info, "filename");

		if (!seen)
			continue;
		if (strcmp(seen, name) == 0)
			return true;
		if (exists && stat(seen, &other) == 0 && st.st_dev == other.st_dev && st.st_ino == other.st_ino)
			return true;
	}
	return false;
}

static json_t *info_backing(const json_t *above, const struct info_args *a)
{
	const char *path = info_str(above, "full-backing-filename");
	struct open_args open = {
		.format = info_str(above, "backing-filename-format"),
		.force_share = a->open.force_share,
	};

	/* A description of a whole disk, out of a stranger's image: who opens that opens anything. */
	if (strncmp(path, "json:", 5) == 0) {
		complain("%s: the image names its backing file by json:, which is not followed",
			 info_str(above, "filename"));
		return NULL;
	}
	return info_of(path, &open, a->engine);
}

/* The list of ImageInfo objects from the named image down; NULL, after a message. */
static json_t *info_chain(const char *name, const struct info_args *a)
{
	json_t *list = json_array(), *info = info_of(name, &a->open, a->engine);

	while (info) {
		const char *next = info_str(info, "full-backing-filename");

		json_array_append_new(list, info);
		if (!next || !a->chain)
			return list;
		if (chain_has(list, next) || json_array_size(list) == CHAIN_MAX) {
			complain("%s: its backing file %s leads back to an image above: the chain has no end",
				 info_str(info, "filename"), next);
			break;
		}
		info = info_backing(info, a);
	}
	json_decref(list);
	return NULL;
}

static int info_print(const char *name, const struct info_args *a)
{
	json_t *list = info_chain(name, a), *info;
	size_t i;

	if (!list)
		return 1;
	if (a->output == OUTPUT_JSON) {
		json_dumpf(a->chain ? list : json_array_get(list, 0), stdout, JSON_INDENT(4));
		putchar('\n');
	} else {
		json_array_foreach(list, i, info) {
			if (i)
				putchar('\n');
			print_human(info);
		}
	}
	json_decref(list);
	return finish_stdout();
}

int img_info(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "help", no_argument, NULL, 'h' },
		{ "format", required_argument, NULL, 'f' },
		{ "image-opts", no_argument, NULL, LONG_IMAGE_OPTS },
		{ "backing-chain", no_argument, NULL, LONG_BACKING_CHAIN },
		{ "engine", no_argument, NULL, LONG_ENGINE },
		{ "force-share", no_argument, NULL, 'U' },
		{ "output", required_argument, NULL, LONG_OUTPUT },
		{ "object", required_argument, NULL, LONG_OBJECT },
		{ NULL, 0, NULL, 0 },
	};
	struct info_args a = { 0 };
	int c;

	opterr = 0;
	while ((c = getopt_long(argc, argv, ":hf:U", longs, NULL)) != -1) {
		switch (c) {
		case 'h':
			return img_help(info_usage);
		case 'f':
			a.open.format = optarg;
			break;
		case LONG_IMAGE_OPTS:
			a.open.image_opts = true;
			break;
		case LONG_BACKING_CHAIN:
			a.chain = true;
			break;
		case LONG_ENGINE:
			a.engine = true;
			break;
		case 'U':
			a.open.force_share = true;
			break;
		case LONG_OUTPUT:
			if (parse_output(optarg, &a.output))
				return 1;
			break;
		case LONG_OBJECT:
			return complain_missing("--object");
		default:
			return complain_option(c, argv);
		}
	}
	if (argc - optind != 1)
		return complain_usage("info: one file name is needed");
	return info_print(argv[optind], &a);
}
