/* SPDX-License-Identifier: MIT */
/*
 * tools/img.c - `varve img`: finds the command and hands over
 */
#include "img.h"

#include <string.h>

static const struct command {
	const char *name;
	int (*run)(int argc, char **argv);
	const char *what;
} commands[] = {
	{ "bench", img_bench, "measure how fast an image is" },
	{ "check", img_check, "examine the metadata of an image" },
	{ "compare", img_compare, "say whether two images hold the same data" },
	{ "create", img_create, "make a new image" },
	{ "info", img_info, "what an image is" },
	{ "map", img_map, "where the data of an image lies" },
	{ "snapshot", img_snapshot, "keep, list, apply or delete the disk as it was" },
	{ "stream", img_stream, "copy what an image reads from its backing files into it" },
};

/* Commands of the grammar that this version does not have. */
static const char *const missing[] = { "amend", "bitmap", "commit", "convert", "dd",
				       "measure", "rebase", "resize" };

static void usage(void)
{
	printf("Usage: %s COMMAND [OPTION]... FILE...\n\n", prog);
	for (size_t i = 0; i < ARRAY_LEN(commands); i++)
		printf("  %-8s %s\n", commands[i].name, commands[i].what);
	printf("\n%s COMMAND --help shows the options of a command. A SIZE is bytes, or has a suffix k M G T P E\n"
	       "(powers of 1024). FILE is a path, or with --image-opts a list driver=...,file.filename=...\n",
	       prog);
}

int img_help(const char *text)
{
	printf("Usage: %s %s", prog, text);
	return finish_stdout();
}

int img_main(int argc, char **argv)
{
	char what[64];

	if (argc < 2)
		return complain_usage("no command given");
	if (strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "help") == 0) {
		usage();
		return finish_stdout();
	}
	if (strcmp(argv[1], "-V") == 0 || strcmp(argv[1], "--version") == 0) {
		print_version("varve img");
		return finish_stdout();
	}
	if (strcmp(argv[1], "-T") == 0 || strncmp(argv[1], "--trace", 7) == 0)
		return complain_missing("tracing (-T, --trace)");
	progress_start(false); /* SIGUSR1 must never end a command */
	for (size_t i = 0; i < ARRAY_LEN(commands); i++) {
		if (strcmp(argv[1], commands[i].name) == 0)
			return commands[i].run(argc - 1, argv + 1);
	}
	for (size_t i = 0; i < ARRAY_LEN(missing); i++) {
		if (strcmp(argv[1], missing[i]) == 0) {
			snprintf(what, sizeof(what), "the command %s", missing[i]);
			return complain_missing(what);
		}
	}
	return complain_usage("no command '%s'", argv[1]);
}
