/* SPDX-License-Identifier: MIT */
/*
 * tools/img_snapshot.c - `varve img snapshot`: internal snapshots are listed, made, applied, deleted
 */
#include "img.h"

#include <getopt.h>
#include <string.h>

static const char snapshot_usage[] =
	"snapshot [-l | -a SNAPSHOT | -c NAME | -d SNAPSHOT | --graph[=svg]] [-f FORMAT | --image-opts] [-U] [-q] FILE\n\n"
	"  -l, --list            list the snapshots of FILE (also without any of these)\n"
	"  -a, --apply SNAPSHOT  the disk becomes what it was; SNAPSHOT is a name or an id\n"
	"  -c, --create NAME     keep the disk as it is now\n"
	"  -d, --delete SNAPSHOT forget that snapshot\n"
	"      --graph[=svg]     show which snapshot grew out of which, and what each holds alone and shares\n"
	"  -f, --format FORMAT   do not guess the format\n"
	"      --image-opts      FILE is driver=...,file.filename=...\n"
	"  -U, --force-share     list even while another process writes to FILE\n"
	"  -q, --quiet           print nothing but errors\n";

struct snapshot_args {
	struct open_args open;
	char action; /* l, a, c, d; 0: none was given */
	const char *what;
	bool quiet, graph, svg;
};

enum { LONG_GRAPH = 0x1000 };

static int list(struct varve_image *image)
{
	json_t *info = image_info(image);

	if (!info)
		return 1;
	img_print_snapshots(json_object_get(info, "snapshots"));
	json_decref(info);
	return finish_stdout();
}

/* A name, or else an id. One that is the name of one and the id of another is refused. */
static int pick(struct varve_image *image, const char *what, const char **ret_id, const char **ret_name)
{
	struct varve_snapshot_info *all;
	bool is_id = false, is_name = false;
	struct varve_error err;
	unsigned nr, at_id = 0, at_name = 0;

	if (varve_snapshot_list(image, &all, &nr, &err) < 0) {
		complain("%s", err.message);
		return 1;
	}
	for (unsigned i = 0; i < nr; i++) {
		if (strcmp(all[i].id, what) == 0) {
			is_id = true;
			at_id = i;
		}
		if (strcmp(all[i].name, what) == 0) {
			is_name = true;
			at_name = i;
		}
	}
	varve_snapshot_list_free(all, nr);
	if (is_id && is_name && at_id != at_name) {
		complain("'%s' is the name of one snapshot and the id of another; use the other one's name", what);
		return 1;
	}
	*ret_name = is_name || !is_id ? what : NULL;
	*ret_id = *ret_name ? NULL : what;
	return 0;
}

static int change(struct varve_image *image, const struct snapshot_args *a)
{
	struct varve_snapshot_options so = { .name = a->what };
	const char *id = NULL, *name = NULL;
	struct varve_error err;
	int ret;

	if (a->action != 'c' && pick(image, a->what, &id, &name))
		return 1;
	switch (a->action) {
	case 'c':
		ret = varve_snapshot_create(image, &so, NULL, &err);
		break;
	case 'a':
		ret = varve_snapshot_apply(image, id, name, &err);
		break;
	default:
		ret = varve_snapshot_delete(image, id, name, &err);
	}
	if (ret < 0)
		complain("%s", err.message);
	return ret < 0;
}

static int run(const char *file, const struct snapshot_args *a)
{
	bool changes = a->action && a->action != 'l';
	struct varve_image *image;
	int ret;

	if (a->graph)
		return img_snapshot_graph(file, &a->open, a->svg);
	image = open_image(file, &a->open, changes ? VARVE_OPEN_WRITABLE : VARVE_OPEN_NO_BACKING | VARVE_OPEN_NO_IO, NULL);
	if (!image)
		return 1;
	ret = changes ? change(image, a) : list(image);
	return close_image(image) || ret;
}

int img_snapshot(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "help", no_argument, NULL, 'h' },
		{ "list", no_argument, NULL, 'l' },
		{ "apply", required_argument, NULL, 'a' },
		{ "create", required_argument, NULL, 'c' },
		{ "delete", required_argument, NULL, 'd' },
		{ "graph", optional_argument, NULL, LONG_GRAPH },
		{ "format", required_argument, NULL, 'f' },
		{ "image-opts", no_argument, NULL, LONG_IMAGE_OPTS },
		{ "force-share", no_argument, NULL, 'U' },
		{ "quiet", no_argument, NULL, 'q' },
		{ "object", required_argument, NULL, LONG_OBJECT },
		{ NULL, 0, NULL, 0 },
	};
	struct snapshot_args a = { 0 };
	int c;

	opterr = 0;
	while ((c = getopt_long(argc, argv, ":hla:c:d:f:Uq", longs, NULL)) != -1) {
		switch (c) {
		case 'h':
			return img_help(snapshot_usage);
		case 'l':
		case 'a':
		case 'c':
		case 'd':
			if (a.action)
				return complain_usage("snapshot: only one of -l, -a, -c, -d can be done at once");
			a.action = (char)c;
			a.what = optarg;
			break;
		case LONG_GRAPH:
			if (optarg && strcmp(optarg, "svg") != 0 && strcmp(optarg, "text") != 0)
				return complain_usage("snapshot: --graph is text or svg, not '%s'", optarg);
			a.graph = true;
			a.svg = optarg && strcmp(optarg, "svg") == 0;
			break;
		case 'f':
			a.open.format = optarg;
			break;
		case LONG_IMAGE_OPTS:
			a.open.image_opts = true;
			break;
		case 'U':
			a.open.force_share = true;
			break;
		case 'q':
			a.quiet = true;
			break;
		case LONG_OBJECT:
			return complain_missing("--object");
		default:
			return complain_option(c, argv);
		}
	}
	if (argc - optind != 1)
		return complain_usage("snapshot: one file name is needed");
	if (a.graph && a.action)
		return complain_usage("snapshot: --graph shows; it does not go with -l, -a, -c, -d");
	if (a.open.force_share && a.action && a.action != 'l')
		return complain_usage("snapshot: -U is for listing: an image that another process writes to is not changed");
	return run(argv[optind], &a);
}
