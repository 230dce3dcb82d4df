/* SPDX-License-Identifier: MIT */
/*
 * tools/io.c - `varve io`: options, the loop over commands
 *
 * Exit status: 0, or 1 if a command failed.
 */
#include "io.h"

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

static const char io_help[] =
	"[-c COMMAND]... [-f FORMAT | --image-opts] [-rsmCU] [-n | -t CACHE] [-k | -i AIO] [-d DISCARD] [FILE]\n\n"
	"  -c, --cmd COMMAND     run COMMAND; without -c commands are read from standard input\n"
	"  -f, --format FORMAT   do not guess the format\n"
	"      --image-opts      FILE is driver=...,file.filename=...\n"
	"  -r, --read-only       do not open for writing\n"
	"  -s, --snapshot        keep what is written in a temporary image, which is gone at the end\n"
	"  -d, --discard MODE    unmap (default), or ignore: discards are not done\n"
	"  -k, --native-aio      the same as -i native\n"
	"  -m, --misalign        use buffers at addresses that suit nobody\n"
	"  -n, --nocache         the same as -t none\n"
	"  -C, --copy-on-read    keep in FILE what is read from its backing file\n"
	"  -t, --cache CACHE     writeback (default), none, writethrough, directsync, unsafe\n"
	"  -i, --aio AIO         io_uring, native, posix or threads\n"
	"  -U, --force-share     also while another process writes to the image (needs -r)\n"
	"The command help lists the commands.\n";

#define LINE_WORDS_MAX 1100 /* a command's name, and as many lengths as a vector has */

/* ---- commands ---- */

static const struct io_command *const tables[] = { io_rw_commands, io_aio_commands, io_misc_commands,
						   io_open_commands };

/* Commands of the grammar that this version does not have. */
static const char *const missing[] = { "break",	   "remove_break", "resume",	 "truncate",
				       "wait_break", "zone_append", "zone_close", "zone_finish", "zone_open",
				       "zone_report", "zone_reset" };

const struct io_command *io_find(const char *name)
{
	for (size_t t = 0; t < ARRAY_LEN(tables); t++) {
		for (const struct io_command *c = tables[t]; c->name; c++) {
			if (strcmp(name, c->name) == 0 || (c->alt && strcmp(name, c->alt) == 0))
				return c;
		}
	}
	return NULL;
}

static int by_name(const void *a, const void *b)
{
	const struct io_command *const *x = a, *const *y = b;

	return strcmp((*x)->name, (*y)->name);
}

void io_each(void (*fn)(const struct io_command *c))
{
	const struct io_command *all[64];
	size_t n = 0;

	for (size_t t = 0; t < ARRAY_LEN(tables); t++) {
		for (const struct io_command *c = tables[t]; c->name && n < ARRAY_LEN(all); c++)
			all[n++] = c;
	}
	qsort(all, n, sizeof(all[0]), by_name);
	for (size_t i = 0; i < n; i++)
		fn(all[i]);
}

int io_usage(const char *name)
{
	const struct io_command *c = io_find(name);

	printf("usage: %s %s\n", c->name, c->args);
	return -1;
}

static int wrong_count(const struct io_command *c, int nr)
{
	if (c->max_args < 0)
		fprintf(stderr, "bad argument count %d to %s, expected at least %d arguments\n", nr, c->name, c->min_args);
	else if (c->min_args == c->max_args)
		fprintf(stderr, "bad argument count %d to %s, expected %d arguments\n", nr, c->name, c->min_args);
	else
		fprintf(stderr, "bad argument count %d to %s, expected between %d and %d arguments\n", nr, c->name,
			c->min_args, c->max_args);
	return -1;
}

static int no_command(const char *name)
{
	for (size_t i = 0; i < ARRAY_LEN(missing); i++) {
		if (strcmp(name, missing[i]) == 0) {
			fprintf(stderr, "command \"%s\" is not part of this version\n", name);
			return -1;
		}
	}
	fprintf(stderr, "command \"%s\" not found\n", name);
	return -1;
}

/* Runs one line. The line is cut into words in place. */
static int run_line(struct io *io, char *line)
{
	char *words[LINE_WORDS_MAX + 1], *save = NULL;
	const struct io_command *c;
	int n = 0, ret;

	for (char *w = strtok_r(line, " \t\r\n", &save); w; w = strtok_r(NULL, " \t\r\n", &save)) {
		if (n == LINE_WORDS_MAX) {
			printf("more than %d words in one command\n", LINE_WORDS_MAX);
			return -1;
		}
		words[n++] = w;
	}
	words[n] = NULL;
	if (n == 0)
		return 0;
	c = io_find(words[0]);
	if (!c)
		return no_command(words[0]);
	if (!c->no_image && !io->image) {
		fprintf(stderr, "no file open, try 'help open'\n");
		return -1;
	}
	if (n - 1 < c->min_args || (c->max_args >= 0 && n - 1 > c->max_args))
		return wrong_count(c, n - 1);
	ret = c->run(io, n, words);
	io_aio_reap(io, false);
	fflush(stdout);
	return ret;
}

/* ---- the program ---- */

struct io_args {
	struct io_how how;
	bool misalign;
	char **commands;
	int nr_commands;
};

/* 0, 1 (failed, told), -1: done (help, version). */
static int parse(int argc, char **argv, struct io_args *a)
{
	enum { IMAGE_OPTS = 256, OBJECT };
	static const struct option longs[] = {
		{ "help", no_argument, NULL, 'h' },
		{ "version", no_argument, NULL, 'V' },
		{ "cmd", required_argument, NULL, 'c' },
		{ "format", required_argument, NULL, 'f' },
		{ "read-only", no_argument, NULL, 'r' },
		{ "snapshot", no_argument, NULL, 's' },
		{ "nocache", no_argument, NULL, 'n' },
		{ "copy-on-read", no_argument, NULL, 'C' },
		{ "misalign", no_argument, NULL, 'm' },
		{ "native-aio", no_argument, NULL, 'k' },
		{ "aio", required_argument, NULL, 'i' },
		{ "cache", required_argument, NULL, 't' },
		{ "discard", required_argument, NULL, 'd' },
		{ "trace", required_argument, NULL, 'T' },
		{ "force-share", no_argument, NULL, 'U' },
		{ "image-opts", no_argument, NULL, IMAGE_OPTS },
		{ "object", required_argument, NULL, OBJECT },
		{ NULL, 0, NULL, 0 },
	};
	int c, ret = 0;

	opterr = 0;
	while (ret == 0 && (c = getopt_long(argc, argv, ":hVc:d:f:rsnCmki:t:T:U", longs, NULL)) != -1) {
		switch (c) {
		case 'h':
			printf("Usage: %s %s", prog, io_help);
			return -1;
		case 'V':
			print_version("varve io");
			return -1;
		case 'c':
			a->commands[a->nr_commands++] = optarg;
			break;
		case 'd':
			ret = io_set_discard(&a->how.options, optarg);
			break;
		case 'f':
			ret = io_set(&a->how.format, optarg);
			break;
		case 'r':
			a->how.read_only = true;
			break;
		case 'n':
			ret = io_set(&a->how.cache, "none");
			break;
		case 't':
			ret = io_set(&a->how.cache, optarg);
			break;
		case 'i':
			ret = io_set(&a->how.aio, optarg);
			break;
		case 'U':
			a->how.force_share = true;
			break;
		case IMAGE_OPTS:
			a->how.image_opts = true;
			break;
		case 's':
			a->how.snapshot = true;
			break;
		case 'C':
			a->how.copy_on_read = true;
			break;
		case 'm':
			a->misalign = true;
			break;
		case 'k':
			ret = io_set(&a->how.aio, "native");
			break;
		case 'T':
			return complain_missing("--trace");
		case OBJECT:
			return complain_missing("--object");
		default:
			return complain_option(c, argv);
		}
	}
	if (ret < 0)
		return 1;
	if (argc - optind > 1)
		return complain_usage("'%s' is one argument too many", argv[optind + 1]);
	if (optind < argc && io_set(&a->how.name, argv[optind]) < 0)
		return 1;
	return 0;
}

static int run_input(struct io *io)
{
	char *line = NULL;
	size_t size = 0;
	int failed = 0;

	while (!io->quit) {
		printf("%s> ", prog);
		fflush(stdout);
		if (getline(&line, &size, stdin) < 0)
			break;
		if (run_line(io, line) < 0)
			failed = 1;
	}
	free(line);
	return failed;
}

static int run(struct io *io, struct io_args *a)
{
	int failed = 0;

	if (a->misalign)
		io_buf_misalign();
	if (a->how.name && io_open(io, &a->how) < 0)
		return 1;
	for (int i = 0; i < a->nr_commands && !io->quit; i++) {
		if (run_line(io, a->commands[i]) < 0)
			failed = 1;
	}
	if (!a->nr_commands)
		failed = run_input(io);
	if (io_close(io) < 0)
		failed = 1;
	return finish_stdout() || failed;
}

/* What the library found out and an errno cannot say: damage, a server that lies. */
static void log_errors(void *user_data, enum varve_log_level level, const char *line)
{
	(void)user_data;
	if (level == VARVE_LOG_ERROR)
		complain("%s", line);
}

int io_main(int argc, char **argv)
{
	struct io_args a = { 0 };
	struct io io = { 0 };
	struct varve_error err;
	int ret;

	a.commands = calloc((size_t)argc + 1, sizeof(*a.commands));
	if (!a.commands) {
		complain("out of memory");
		return 1;
	}
	varve_set_log(log_errors, NULL);
	ret = parse(argc, argv, &a);
	if (ret < 0) {
		ret = finish_stdout();
	} else if (ret == 0 && varve_queue_new(&io.queue, NULL, &err) < 0) {
		complain("%s", err.message);
		ret = 1;
	} else if (ret == 0) {
		ret = run(&io, &a);
		varve_queue_free(io.queue);
	}
	io_how_free(&a.how);
	io_how_free(&io.how);
	free(a.commands);
	return ret;
}
