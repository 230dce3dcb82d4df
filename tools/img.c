/* SPDX-License-Identifier: MIT */
/*
 * tools/img.c - `varve img`: finds the command and hands over
 */
#include "img.h"

#include <string.h>

#include "stop.h"
#include "suggest.h"

const struct command *const img_commands[] = {
	&cmd_amend,
	&cmd_bench,
	&cmd_bitmap,
	&cmd_check,
	&cmd_commit,
	&cmd_compare,
	&cmd_convert,
	&cmd_create,
	&cmd_dd,
	&cmd_info,
	&cmd_map,
	&cmd_measure,
	&cmd_rebase,
	&cmd_resize,
	&cmd_snapshot,
	&cmd_stream,
	NULL,
};

static void usage(void)
{
	printf("Usage: %s COMMAND [OPTION]... FILE...\n\n", prog);
	for (const struct command *const *c = img_commands; *c; c++)
		printf("  %-8s  %s\n", (*c)->name, (*c)->what);
	printf("\n%s COMMAND --help shows the options of a command. A SIZE is bytes, or has a suffix k M G T P E\n"
	       "(powers of 1024). FILE is a path, or with --image-opts a list driver=...,file.filename=...\n",
	       prog);
	/* In this form scripts look for it. */
	printf("\nSupported formats:");
	for (unsigned i = 0; varve_driver_name(i); i++)
		printf(" %s", varve_driver_name(i));
	putchar('\n');
}

/* Besides: what explains why a command fails that has not done anything wrong, and what has become of the image. */
static void take_log(void *user_data, enum varve_log_level level, const char *line)
{
	(void)user_data;
	if (log_tells_contents(level, line))
		complain_contents(line);
	else if (level == VARVE_LOG_ERROR && strstr(line, ": the image is damaged: ") && strstr(line, "nothing of it is read or written"))
		complain("%s", line);
}

int img_main(int argc, char **argv)
{
	struct suggestion s;
	char text[64];

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
	varve_set_log(take_log, NULL);
	progress_start(false); /* SIGUSR1 must never end a command */
	for (const struct command *const *c = img_commands; *c; c++) {
		if (strcmp(argv[1], (*c)->name) == 0)
			return stop_status((*c)->run(argc - 1, argv + 1));
	}
	suggest_start(&s, argv[1], strlen(argv[1]));
	for (const struct command *const *c = img_commands; *c; c++)
		suggest_word(&s, (*c)->name);
	return complain_usage("no command '%s'%s", argv[1], suggest_text(&s, text));
}
