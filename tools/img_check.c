/* SPDX-License-Identifier: MIT */
/*
 * tools/img_check.c - `varve img check`
 *
 * Exit status: 0 clean, 1 the check itself failed, 2 corruptions, 3 leaks only, 63 the format has no check.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "img.h"

#define REPAIR_WORDS "leaks|all"

enum { ID_DRY_RUN = LONG_COMMAND };

static const struct option_row options[] = {
	OPT_FORMAT,
	OPT_IMAGE_OPTS,
	OPT_CACHE('T'),
	{ 'r', "repair", REPAIR_WORDS, "leaks: give lost space back; all: also counts that are wrong; then check again" },
	{ ID_DRY_RUN, "dry-run", NULL, "with -r: change nothing, list what would be repaired" },
	OPT_FORCE_SHARE,
	OPT_OUTPUT,
	OPT_OBJECT,
	OPT_QUIET,
	OPTION_END,
};

enum { CHECK_CLEAN = 0, CHECK_FAILED = 1, CHECK_CORRUPT = 2, CHECK_LEAKS = 3, CHECK_UNSUPPORTED = 63 };

struct check_args {
	struct open_args open;
	enum output output;
	bool quiet, dry_run;
	bool marked; /* corrupt, in its header: found by the last examination */
	enum { REPAIR_NONE, REPAIR_LEAKS, REPAIR_ALL } repair;
};

static void report(void *user_data, const char *line)
{
	const struct check_args *a = user_data;

	if (!a->quiet && a->output == OUTPUT_HUMAN) {
		fflush(stdout);
		fprintf(stderr, "%s\n", line);
	}
}

static uint64_t fixed(uint64_t before, uint64_t after)
{
	return before > after ? before - after : 0;
}

static void print_human(const struct check_args *a, const struct varve_check_result *r, const struct varve_check_result *before)
{
	if (fixed(before->leaks, r->leaks) || fixed(before->corruptions, r->corruptions))
		printf("Repaired:\n\n    %" PRIu64 " leaked clusters\n    %" PRIu64 " corruptions\n\n",
		       fixed(before->leaks, r->leaks), fixed(before->corruptions, r->corruptions));
	if (!r->corruptions && !r->leaks && !r->check_errors)
		printf("No errors were found on the image.\n");
	if (a->marked)
		printf("The image is marked corrupt, and is not opened for writing; %s\n",
		       r->corruptions || r->check_errors ? "-r all repairs it, if that can be done." : "-r leaks takes the mark away.");
	if (r->corruptions)
		printf("\n%" PRIu64 " errors were found on the image.\nData may be lost already, and writing to it may "
		       "damage more.\n",
		       r->corruptions);
	if (r->leaks)
		printf("\n%" PRIu64 " leaked clusters were found on the image.\nThey waste space; no data is in danger.\n",
		       r->leaks);
	if (r->check_errors)
		printf("\n%" PRIu64 " places could not be examined.\n", r->check_errors);
	if (r->total_clusters && r->allocated_clusters)
		printf("%" PRIu64 "/%" PRIu64 " = %0.2f%% allocated, %0.2f%% fragmented, %0.2f%% compressed clusters\n",
		       r->allocated_clusters, r->total_clusters,
		       100.0 * (double)r->allocated_clusters / (double)r->total_clusters,
		       100.0 * (double)r->fragmented_clusters / (double)r->allocated_clusters,
		       100.0 * (double)r->compressed_clusters / (double)r->allocated_clusters);
	if (r->image_end_offset)
		printf("Image end offset: %" PRIu64 "\n", r->image_end_offset);
}

static void set_count(json_t *o, const char *key, uint64_t count)
{
	if (count)
		json_object_set_new(o, key, json_integer((json_int_t)count));
}

static void print_json(const struct varve_check_result *r, const struct varve_check_result *before, const char *name,
		       const char *format)
{
	json_t *o = json_object(), *filename = json_string(name);

	set_count(o, "image-end-offset", r->image_end_offset);
	set_count(o, "total-clusters", r->total_clusters);
	set_count(o, "allocated-clusters", r->allocated_clusters);
	set_count(o, "fragmented-clusters", r->fragmented_clusters);
	set_count(o, "compressed-clusters", r->compressed_clusters);
	set_count(o, "corruptions", r->corruptions);
	set_count(o, "leaks", r->leaks);
	set_count(o, "corruptions-fixed", fixed(before->corruptions, r->corruptions));
	set_count(o, "leaks-fixed", fixed(before->leaks, r->leaks));
	json_object_set_new(o, "check-errors", json_integer((json_int_t)r->check_errors));
	/* A name that is no UTF-8 cannot stand in JSON. */
	json_object_set_new(o, "filename", filename ? filename : json_string("?"));
	json_object_set_new(o, "format", json_string(format));
	json_dumpf(o, stdout, JSON_INDENT(4));
	putchar('\n');
	json_decref(o);
}

static int status_of(const struct varve_check_result *r)
{
	if (r->check_errors)
		return CHECK_FAILED;
	if (r->corruptions)
		return CHECK_CORRUPT;
	return r->leaks ? CHECK_LEAKS : CHECK_CLEAN;
}

/* Whoever met damage while the image was in use has marked it. */
static bool is_marked(struct varve_image *image)
{
	json_t *info = image_info(image);
	bool ret = json_is_true(json_object_get(json_object_get(json_object_get(info, "format-specific"), "data"), "corrupt"));

	json_decref(info);
	return ret;
}

/* 0, or the exit status of a check that could not be made. */
static int examine(const char *name, struct check_args *a, struct varve_check_result *r, char format[32])
{
	struct varve_image *image = open_image(name, &a->open, VARVE_OPEN_NO_BACKING | VARVE_OPEN_CHECK, NULL);
	struct varve_error err;
	int ret;

	if (!image)
		return CHECK_FAILED;
	snprintf(format, 32, "%s", varve_image_format(image));
	ret = varve_image_check(image, r, report, progress_update, a, &err);
	if (ret < 0) {
		complain("%s", err.message);
		ret = ret == -ENOTSUP ? CHECK_UNSUPPORTED : CHECK_FAILED;
	}
	a->marked = !ret && is_marked(image);
	if (close_image(image) && !ret)
		ret = CHECK_FAILED;
	return ret;
}

/* The lines of the examination have listed them one by one. */
static void print_dry_run(const struct check_args *a, const struct varve_check_result *found)
{
	if (found->corruptions && a->repair == REPAIR_LEAKS)
		printf("-r leaks would repair nothing: there is more than leaks; -r all would try.\n\n");
	else
		printf("To be repaired:\n\n    %" PRIu64 " leaked clusters\n    %" PRIu64 " corruptions, unless no crash explains them\n%s\n",
		       found->leaks, found->corruptions, a->marked ? "    the mark of a corrupt image\n" : "");
}

/* 0, or the exit status: then nothing was changed. */
static int repair(const char *name, const struct check_args *a, const struct varve_check_result *found)
{
	struct open_args open = a->open;
	struct varve_image *image;

	if (found->corruptions && a->repair == REPAIR_LEAKS) {
		complain("%s: there is more than leaks: nothing was repaired; -r all does", name);
		return CHECK_CORRUPT;
	}
	open.force_share = false;
	image = open_image(name, &open, VARVE_OPEN_NO_BACKING | VARVE_OPEN_WRITABLE | VARVE_OPEN_BITMAPS | VARVE_OPEN_REPAIR, NULL);
	if (!image)
		return status_of(found);
	return close_image(image) ? CHECK_FAILED : 0;
}

static int check(const char *name, struct check_args *a)
{
	struct varve_check_result before, r;
	char format[32];
	int ret = examine(name, a, &r, format);

	if (ret)
		return ret;
	before = r;
	if (a->dry_run && !a->quiet && a->output == OUTPUT_HUMAN && (r.leaks || r.corruptions || a->marked))
		print_dry_run(a, &r);
	if (a->repair && !a->dry_run && (r.leaks || r.corruptions || a->marked)) {
		ret = repair(name, a, &r);
		if (ret)
			return ret;
		ret = examine(name, a, &r, format); /* a repair is one when the next check agrees */
		if (ret)
			return ret;
	}
	if (a->output == OUTPUT_JSON)
		print_json(&r, &before, name, format);
	else if (!a->quiet)
		print_human(a, &r, &before);
	return finish_stdout() ? CHECK_FAILED : status_of(&r);
}

static int img_check(int argc, char **argv)
{
	struct check_args a = { 0 };
	struct parse p;
	int id, what, ret = 0;

	parse_start(&p, &cmd_check, argc, argv);
	while (!ret && (id = parse_next(&p)) > 0) {
		switch (id) {
		case 'q':
			a.quiet = true;
			break;
		case ID_DRY_RUN:
			a.dry_run = true;
			break;
		case 'r':
			what = option_word(REPAIR_WORDS, p.value);
			if (what >= 0)
				a.repair = what ? REPAIR_ALL : REPAIR_LEAKS;
			else
				ret = complain_usage("check: -r '%s' is neither leaks nor all", p.value);
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
	if (a.dry_run && !a.repair)
		return complain_usage("check: --dry-run says what -r would do, but there is no -r");
	if (a.repair && a.open.force_share)
		return complain_usage("check: -r writes to the image, which -U does not allow");
	if (p.nr_args != 1)
		return complain_usage("check: one file name is needed");
	return check(p.args[0], &a);
}

const struct command cmd_check = {
	.name = "check",
	.run = img_check,
	.what = "examine the metadata of an image, and repair it",
	.args = "FILE",
	.options = options,
	.notes = "Exit status: 0 clean, 1 not checked, 2 corruptions, 3 leaks only, 63 the format has no check.\n",
};
