/* SPDX-License-Identifier: MIT */
/*
 * tools/img_info.c - `varve img info`
 *
 * Never:   opens another file than the one named, except with --backing-chain.
 */
#include <inttypes.h>
#include <string.h>
#include <time.h>

#include "img.h"

enum { LONG_ENGINE = LONG_COMMAND, LONG_LIMITS };

static const struct option_row options[] = {
	OPT_FORMAT,
	OPT_IMAGE_OPTS,
	{ LONG_BACKING_CHAIN, "backing-chain", NULL, "also the backing file, its backing file, ..." },
	{ LONG_ENGINE, "engine", NULL, "also which AIO engine the file gets here" },
	{ LONG_LIMITS, "limits", NULL, "also how requests to it should be aligned" },
	OPT_CACHE('t'),
	OPT_FORCE_SHARE,
	OPT_OUTPUT,
	OPT_OBJECT,
	OPTION_END,
};

struct info_args {
	struct open_args open;
	bool chain, engine, limits;
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

static void print_limits(const json_t *info, int indent)
{
	json_t *limits = json_object_get(info, "limits");

	if (!limits)
		return;
	printf("%*sLimits:\n", indent, "");
	print_members(limits, indent + 4);
}

/* Everything below it in the graph: "/file" is the image's file, "/file/file" what is below that. */
static void print_children(const json_t *info, const char *above)
{
	size_t i;
	json_t *child;

	json_array_foreach(json_object_get(info, "children"), i, child) {
		const json_t *node = json_object_get(child, "info");
		uint64_t len = (uint64_t)info_int(node, "virtual-size", 0);
		int64_t actual = info_int(node, "actual-size", -1);
		char path[64], size[32];

		snprintf(path, sizeof(path), "%s/%s", above, info_str(child, "name"));
		printf("Child node '%s':\n    filename: ", path);
		print_text(info_str(node, "filename"));
		printf("\n    protocol type: %s\n    file length: %s (%" PRIu64 " bytes)\n", info_str(node, "format"), size_text(size, len),
		       len);
		printf("    disk size: %s\n", actual < 0 ? "unavailable" : size_text(size, (uint64_t)actual));
		print_limits(node, 4);
		print_format_specific(node, 4);
		print_children(node, path);
	}
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
	print_limits(info, 0);
	print_format_specific(info, 0);
	if (info_str(info, "aio"))
		print_line("aio engine", info_str(info, "aio"));
	print_children(info, "");
}

static void remove_limits(json_t *info)
{
	size_t i;
	json_t *child;

	json_object_del(info, "limits");
	json_array_foreach(json_object_get(info, "children"), i, child)
		remove_limits(json_object_get(child, "info"));
}

static int info_print(const char *name, const struct info_args *a)
{
	json_t *list = img_chain(name, &a->open, a->chain), *info;
	size_t i;

	if (!list)
		return 1;
	/* What was not asked for: the output is that of qemu-img then. */
	json_array_foreach(list, i, info) {
		if (!a->engine)
			json_object_del(info, "aio");
		if (!a->limits)
			remove_limits(info);
	}
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

static int img_info(int argc, char **argv)
{
	struct info_args a = { 0 };
	struct parse p;
	int id, ret = 0;

	parse_start(&p, &cmd_info, argc, argv);
	while (!ret && (id = parse_next(&p)) > 0) {
		switch (id) {
		case LONG_BACKING_CHAIN:
			a.chain = true;
			break;
		case LONG_ENGINE:
			a.engine = true;
			break;
		case LONG_LIMITS:
			a.limits = true;
			break;
		case LONG_OUTPUT:
			ret = parse_output(p.value, &a.output);
			break;
		default:
			ret = open_option(&a.open, id, p.value);
		}
	}
	if (ret || id < 0)
		return ret ? ret : p.status;
	if (p.nr_args != 1)
		return complain_usage("info: one file name is needed");
	return info_print(p.args[0], &a);
}

const struct command cmd_info = {
	.name = "info",
	.run = img_info,
	.what = "what an image is",
	.args = "FILE",
	.options = options,
};
