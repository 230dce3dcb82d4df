/* SPDX-License-Identifier: MIT */
/*
 * tools/img_snapshot.c - `varve img snapshot`: internal snapshots are listed, made, applied, deleted
 */
#include "img.h"

#include <string.h>
#include <sys/stat.h>

#define GRAPH_WORDS "text|svg"

enum { LONG_GRAPH = LONG_COMMAND };

static const struct option_row options[] = {
	{ 'l', "list", NULL, "list the snapshots of FILE (also without any of these)" },
	{ 'a', "apply", ARG_SNAPSHOT, "the disk becomes what it was; SNAPSHOT is a name or an id" },
	{ 'c', "create", "NAME", "keep the disk as it is now" },
	{ 'd', "delete", ARG_SNAPSHOT, "forget that snapshot" },
	{ LONG_GRAPH, "graph", "=" GRAPH_WORDS, "which snapshot grew out of which, and what each holds alone and shares: text or svg" },
	OPT_FORMAT,
	OPT_IMAGE_OPTS,
	{ 'U', "force-share", NULL, "list even while another process writes to FILE" },
	OPT_OBJECT,
	OPT_QUIET,
	OPTION_END,
};

struct snapshot_args {
	struct open_args open;
	char action; /* l, a, c, d; 0: none was given */
	const char *what;
	bool quiet, graph, svg;
};

static int list(struct varve_image *image)
{
	json_t *info = image_info(image);

	if (!info)
		return 1;
	img_print_snapshots(json_object_get(info, "snapshots"));
	json_decref(info);
	return finish_stdout();
}

/*
 * As qemu-img picks: -a an id or else a name, -d a name or else an id (which qemu-img would not take), of several of a name the
 * first. NULL: there is none.
 */
static const struct varve_snapshot_info *pick(const struct varve_snapshot_info *all, unsigned nr, const char *what, bool id_first)
{
	const struct varve_snapshot_info *at_id = NULL, *at_name = NULL;

	for (unsigned i = nr; i-- > 0;) {
		if (strcmp(all[i].id, what) == 0)
			at_id = &all[i];
		if (strcmp(all[i].name, what) == 0)
			at_name = &all[i];
	}
	return at_id && (id_first || !at_name) ? at_id : at_name;
}

static int apply_or_delete(struct varve_image *image, const struct snapshot_args *a)
{
	bool apply = a->action == 'a';
	const struct varve_snapshot_info *s;
	struct varve_snapshot_info *all;
	struct varve_error err;
	unsigned nr;
	int ret;

	if (varve_snapshot_list(image, &all, &nr, &err) < 0) {
		complain("%s", err.message);
		return 1;
	}
	s = pick(all, nr, a->what, apply);
	ret = (apply ? varve_snapshot_apply : varve_snapshot_delete)(image, s ? s->id : NULL, s ? s->name : a->what, &err);
	if (ret < 0)
		complain("%s", err.message);
	varve_snapshot_list_free(all, nr);
	return ret < 0;
}

static int change(struct varve_image *image, const struct snapshot_args *a)
{
	struct varve_snapshot_options so = { .name = a->what, .flags = VARVE_SNAPSHOT_REPEAT };
	struct varve_error err;

	if (a->action != 'c')
		return apply_or_delete(image, a);
	if (varve_snapshot_create(image, &so, NULL, &err) == 0)
		return 0;
	complain("%s", err.message);
	return 1;
}

/*
 * Going back changes the disk, and what is opened for that loses marks at once (bits of others; a dead server's journal): a look first.
 * Only at files: a server may take one client, and no second.
 */
static int must_have(const char *file, const struct snapshot_args *a)
{
	struct varve_snapshot_info *all;
	struct varve_image *image;
	struct varve_error err;
	struct stat st;
	unsigned nr;
	int ret;

	if (stat(img_local_path(file), &st) < 0)
		return 0;
	image = open_image(file, &a->open, VARVE_OPEN_NO_BACKING | VARVE_OPEN_NO_IO, NULL);
	if (!image)
		return 1;
	if (varve_snapshot_list(image, &all, &nr, &err) < 0) {
		complain("%s", err.message);
		return close_image_after(image, 1);
	}
	ret = !pick(all, nr, a->what, true);
	if (ret)
		complain("%s: snapshot '%s': the image has none such", file, a->what);
	varve_snapshot_list_free(all, nr);
	return close_image_after(image, ret);
}

static int run(const char *file, const struct snapshot_args *a)
{
	bool changes = a->action && a->action != 'l';
	unsigned flags = !changes ? VARVE_OPEN_NO_BACKING | VARVE_OPEN_NO_IO :
			 a->action == 'a' ? VARVE_OPEN_WRITABLE : VARVE_OPEN_WRITABLE | VARVE_OPEN_BITMAPS;
	struct varve_image *image;
	int ret;

	if (a->graph)
		return img_snapshot_graph(file, &a->open, a->svg);
	if (a->action == 'a' && must_have(file, a))
		return 1;
	image = open_image(file, &a->open, flags, NULL);
	if (!image)
		return 1;
	ret = changes ? change(image, a) : list(image);
	return close_image_after(image, ret);
}

static int img_snapshot(int argc, char **argv)
{
	struct snapshot_args a = { 0 };
	struct parse p;
	int id, ret = 0;

	parse_start(&p, &cmd_snapshot, argc, argv);
	while (!ret && (id = parse_next(&p)) > 0) {
		switch (id) {
		case 'l':
		case 'a':
		case 'c':
		case 'd':
			if (a.action)
				ret = complain_usage("snapshot: only one of -l, -a, -c, -d can be done at once");
			a.action = (char)id;
			a.what = p.value;
			break;
		case LONG_GRAPH:
			if (p.value && option_word(GRAPH_WORDS, p.value) < 0)
				ret = complain_usage("snapshot: --graph is text or svg, not '%s'", p.value);
			a.graph = true;
			a.svg = p.value && option_word(GRAPH_WORDS, p.value) == 1;
			break;
		case 'q':
			a.quiet = true;
			break;
		default:
			ret = open_option(&a.open, id, p.value);
		}
	}
	if (ret || id < 0)
		return ret ? ret : p.status;
	if (p.nr_args != 1)
		return complain_usage("snapshot: one file name is needed");
	if (a.graph && a.action)
		return complain_usage("snapshot: --graph shows; it does not go with -l, -a, -c, -d");
	if (a.open.force_share && a.action && a.action != 'l')
		return complain_usage("snapshot: -U is for listing: an image that another process writes to is not changed");
	return run(p.args[0], &a);
}

const struct command cmd_snapshot = {
	.name = "snapshot",
	.run = img_snapshot,
	.what = "keep, list, apply or delete the disk as it was",
	.args = "FILE",
	.options = options,
};
