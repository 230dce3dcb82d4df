/* SPDX-License-Identifier: MIT */
/*
 * tools/img_snapshot_graph.c - `varve img snapshot --graph`: snapshots and backing files as a tree
 *
 * The backing file that stands lowest is the root; the image above it is one of its branches; what was kept in an image, and
 * the disk as it is now, are branches of what they grew out of.
 */
#include "img.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define CHAIN_MAX 200

struct item {
	char *label, *detail;
	int parent; /* index; -1: the root */
	bool now;   /* the disk as it is */
};

struct tree {
	struct item *items;
	unsigned nr;
};

static int add(struct tree *t, const char *label, const char *detail, int parent, bool now)
{
	struct item *more = realloc(t->items, (t->nr + 1) * sizeof(*more));

	if (!more)
		return -1;
	t->items = more;
	more[t->nr] = (struct item){ strdup(label), strdup(detail), parent, now };
	return more[t->nr].label && more[t->nr].detail ? (int)t->nr++ : (t->nr++, -1);
}

static void tree_free(struct tree *t)
{
	for (unsigned i = 0; i < t->nr; i++) {
		free(t->items[i].label);
		free(t->items[i].detail);
	}
	free(t->items);
}

/* ---- what there is ---- */

static void describe(const struct varve_snapshot_node *s, char *text, size_t len)
{
	char alone[32], shared[32], state[32], date[32] = "";
	time_t when = s->date_s;
	struct tm tm;
	int n;

	n = snprintf(text, len, "alone %s, shared %s", size_text(alone, s->alone), size_text(shared, s->shared));
	if (s->state_length)
		n += snprintf(text + n, len - (size_t)n, ", state %s", size_text(state, s->state_length));
	if (s->id && localtime_r(&when, &tm) && strftime(date, sizeof(date), "%Y-%m-%d %H:%M:%S", &tm))
		snprintf(text + n, len - (size_t)n, ", %s", date);
}

/* The snapshots of one image below its own item. *ret_now: the item of the disk as it is, which images above grow out of. */
static int add_snapshots(struct tree *t, struct varve_image *image, int file_item, int *ret_now)
{
	struct varve_snapshot_node *list;
	struct varve_error err;
	unsigned nr;
	int first = (int)t->nr, item = file_item;

	if (varve_snapshot_graph(image, &list, &nr, &err) < 0) {
		complain("%s", err.message);
		return -1;
	}
	for (unsigned i = 0; i < nr && item >= 0; i++) {
		char label[1200], detail[200];

		snprintf(label, sizeof(label), "%s%s%s", list[i].id ? list[i].id : "the disk now", list[i].id ? " " : "",
			 list[i].id ? list[i].name : "");
		describe(&list[i], detail, sizeof(detail));
		item = add(t, label, detail, list[i].parent < 0 ? file_item : first + list[i].parent, !list[i].id);
	}
	varve_snapshot_graph_free(list, nr);
	*ret_now = item;
	return item;
}

static bool is_qcow2(const json_t *info)
{
	const char *format = info_str(info, "format");

	return format && strcmp(format, "qcow2") == 0;
}

/* One image of the chain on top of `parent`; returns the item on which the next stands. */
static int add_image(struct tree *t, const char *file, const struct open_args *open, const json_t *info, int parent)
{
	int64_t on_disk = info_int(info, "actual-size", 0), len = info_int(info, "virtual-size", 0);
	char detail[200], a[32], b[32];
	struct varve_image *image;
	int item, now;

	snprintf(detail, sizeof(detail), "%s, %s, takes %s", info_str(info, "format"), size_text(a, (uint64_t)len),
		 size_text(b, (uint64_t)on_disk));
	item = now = add(t, file, detail, parent, !is_qcow2(info));
	if (item < 0 || !is_qcow2(info))
		return item;
	image = open_image(file, open, VARVE_OPEN_NO_BACKING, NULL);
	if (!image || add_snapshots(t, image, item, &now) < 0)
		now = -1;
	if (image && close_image(image))
		now = -1;
	return now;
}

/* From the named image down; the deepest is added first. */
static int add_chain(struct tree *t, const char *file, const struct open_args *open, unsigned depth)
{
	struct varve_image *image;
	json_t *info;
	const char *below;
	int item = -1;

	if (depth > CHAIN_MAX) {
		complain("%s: more than %d backing files", file, CHAIN_MAX);
		return -1;
	}
	image = open_image(file, open, VARVE_OPEN_NO_BACKING | VARVE_OPEN_NO_IO, NULL);
	info = image ? image_info(image) : NULL;
	if (image && close_image(image)) {
		json_decref(info);
		return -1;
	}
	if (!info)
		return -1;
	below = info_str(info, "full-backing-filename");
	if (below && strncmp(below, "json:", 5) == 0) {
		complain("%s: the image names its backing file by json:, which is not followed", file);
		json_decref(info);
		return -1;
	}
	if (below) {
		struct open_args oa = { .format = info_str(info, "backing-filename-format"), .force_share = open->force_share };

		item = add_chain(t, below, &oa, depth + 1);
	}
	if (!below || item >= 0)
		item = add_image(t, file, open, info, item);
	json_decref(info);
	return item;
}

/* ---- text ---- */

static bool last_child(const struct tree *t, unsigned i)
{
	for (unsigned k = i + 1; k < t->nr; k++) {
		if (t->items[k].parent == t->items[i].parent)
			return false;
	}
	return true;
}

static void print_edges(const struct tree *t, unsigned i)
{
	if (t->items[i].parent < 0)
		return;
	print_edges(t, (unsigned)t->items[i].parent);
	fputs(last_child(t, i) ? "    " : "│   ", stdout);
}

static void print_item(const struct tree *t, unsigned i)
{
	const struct item *it = &t->items[i];

	if (it->parent >= 0) {
		print_edges(t, (unsigned)it->parent);
		fputs(last_child(t, i) ? "└── " : "├── ", stdout);
	}
	print_text(it->label);
	printf("  (%s)\n", it->detail);
	for (unsigned k = i + 1; k < t->nr; k++) {
		if (t->items[k].parent == (int)i)
			print_item(t, k);
	}
}

/* ---- SVG ---- */

#define ROW 44
#define INDENT 36
#define BOX 34

static void print_xml(const char *text)
{
	for (; *text; text++) {
		switch (*text) {
		case '<':
			fputs("&lt;", stdout);
			break;
		case '>':
			fputs("&gt;", stdout);
			break;
		case '&':
			fputs("&amp;", stdout);
			break;
		default:
			/* What XML does not allow, and bytes that may be no UTF-8, in a name that anybody may have chosen. */
			putchar((unsigned char)*text < 0x20 || (unsigned char)*text >= 0x7f ? '?' : *text);
		}
	}
}

/* Rows are given from top to bottom as the text has them. *row: the next. */
static void svg_item(const struct tree *t, unsigned i, unsigned depth, unsigned *row, unsigned parent_row)
{
	const struct item *it = &t->items[i];
	unsigned mine = (*row)++, x = 10 + depth * INDENT, y = 10 + mine * ROW;

	if (it->parent >= 0)
		printf("<path d=\"M%u %u V%u H%u\" fill=\"none\" stroke=\"#888\"/>\n", x - INDENT / 2, 10 + parent_row * ROW + BOX,
		       y + BOX / 2, x);
	printf("<rect x=\"%u\" y=\"%u\" width=\"460\" height=\"%u\" rx=\"5\" fill=\"%s\" stroke=\"#888\"/>\n", x, y, BOX,
	       it->now ? "#d9f2d9" : "#eef2f8");
	printf("<text x=\"%u\" y=\"%u\" font-size=\"13\">", x + 8, y + 14);
	print_xml(it->label);
	printf("</text>\n<text x=\"%u\" y=\"%u\" font-size=\"11\" fill=\"#555\">", x + 8, y + 28);
	print_xml(it->detail);
	printf("</text>\n");
	for (unsigned k = i + 1; k < t->nr; k++) {
		if (t->items[k].parent == (int)i)
			svg_item(t, k, depth + 1, row, mine);
	}
}

static unsigned depth_of(const struct tree *t, unsigned i)
{
	unsigned depth = 0;

	for (; t->items[i].parent >= 0; i = (unsigned)t->items[i].parent)
		depth++;
	return depth;
}

static void print_svg(const struct tree *t)
{
	unsigned deepest = 0, row = 0;

	for (unsigned i = 0; i < t->nr; i++)
		deepest = MAX(deepest, depth_of(t, i));
	printf("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%u\" height=\"%u\" font-family=\"sans-serif\">\n",
	       490 + deepest * INDENT, 20 + t->nr * ROW);
	svg_item(t, 0, 0, &row, 0);
	printf("</svg>\n");
}

int img_snapshot_graph(const char *file, const struct open_args *open, bool svg)
{
	struct tree t = { 0 };
	int ret = add_chain(&t, file, open, 0) < 0;

	if (ret == 0 && svg)
		print_svg(&t);
	else if (ret == 0)
		print_item(&t, 0);
	tree_free(&t);
	return finish_stdout() || ret;
}
