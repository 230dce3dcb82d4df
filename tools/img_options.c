/* SPDX-License-Identifier: MIT */
/*
 * tools/img_options.c - `-o help`: which options a format has
 *
 * The list is the library's own, made where the options are read.
 */
#include <string.h>

#include "img.h"

bool options_ask_help(const char *list)
{
	while (list && *list) {
		size_t len = 0;

		/* ",," is a comma inside of a value */
		while (list[len] && (list[len] != ',' || list[len + 1] == ','))
			len += list[len] == ',' ? 2 : 1;
		if ((len == 4 && strncmp(list, "help", 4) == 0) || (len == 1 && *list == '?'))
			return true;
		list += len + (list[len] == ',');
	}
	return false;
}

/* The four that this list has always told of. */
static const char *type_name(const char *value)
{
	if (strcmp(value, "bool") == 0)
		return "bool (on/off)";
	return strcmp(value, "size") == 0 || strcmp(value, "num") == 0 ? value : "str";
}

static void print_options(const struct varve_option_info *o, bool amend)
{
	char name[64];

	for (; o && o->name; o++) {
		if (amend && !o->can_amend)
			continue;
		snprintf(name, sizeof(name), "%s=<%s>", o->name, type_name(o->value));
		printf("  %-22s - %s\n", name, o->what);
	}
}

static bool can_amend(const struct varve_option_info *o)
{
	for (; o->name; o++) {
		if (o->can_amend)
			return true;
	}
	return false;
}

int options_help(const char *command, const char *format, bool amend)
{
	const struct varve_option_info *o = varve_driver_options(format), *file = varve_driver_options("file");

	/* "file" is where images are, no format of theirs. */
	if (!o || o == file) {
		complain("%s: unknown format '%s'", command, format);
		return 1;
	}
	if (amend && !can_amend(o)) {
		complain("%s: the options of a %s image cannot be changed", command, format);
		return 1;
	}
	printf(amend ? "Options of %s that can be changed:\n" : "Supported %s options:\n", format);
	print_options(o, amend);
	if (!amend) {
		printf("\nOf the file that holds it:\n");
		print_options(file, false);
	}
	return finish_stdout();
}
