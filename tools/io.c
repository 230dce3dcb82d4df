/* SPDX-License-Identifier: MIT */
/*
 * tools/io.c - `varve io`: options, the loop over commands
 *
 * Exit status: 0, or 1 if a command failed.
 */
#include "io.h"

#include <stdlib.h>
#include <string.h>

enum { OPT_IMAGE_OPTS = 256, OPT_OBJECT };

static const struct option_row options[] = {
	{ 'c', "cmd", ARG_COMMAND, "run COMMAND; may be repeated; without -c commands are read from standard input" },
	{ 'f', "format", ARG_FORMAT, "do not guess the format" },
	{ OPT_IMAGE_OPTS, "image-opts", NULL, "FILE is driver=...,file.filename=..." },
	{ 'r', "read-only", NULL, "do not open for writing" },
	{ 's', "snapshot", NULL, "keep what is written in a temporary image, which is gone at the end" },
	{ 'd', "discard", ARG_DISCARD, "unmap (default), or ignore: discards are not done" },
	{ 'm', "misalign", NULL, "use buffers at addresses that suit nobody" },
	{ 'n', "nocache", NULL, "the same as -t none" },
	{ 't', "cache", ARG_CACHE, "writethrough (default), writeback, none, directsync, unsafe" },
	{ 'C', "copy-on-read", NULL, "keep in FILE what is read from its backing file" },
	{ 'k', "native-aio", NULL, "the same as -i native" },
	{ 'i', "aio", ARG_ENGINE, "io_uring, native, posix or threads" },
	{ 'U', "force-share", NULL, "also while another process writes to the image (needs -r)" },
	{ OPT_OBJECT, "object", ARG_OBJECT, "what other options name by its id: secret,id=ID,file=FILE" },
	{ 'T', "trace", "SPEC", NULL },
	{ 'V', "version", NULL, "show which version this is" },
	OPTION_END,
};

const struct command cmd_io = { "", NULL, "reads and writes a disk image by hand or script", "[FILE]", options,
				"The command help lists the commands.\n" };

const struct option_row io_no_options[] = { OPTION_END };

#define LINE_WORDS_MAX 1100 /* a command's name, and as many lengths as a vector has */

/* ---- commands ---- */

static const struct io_command *const tables[] = { io_rw_commands, io_aio_commands, io_misc_commands,
						   io_open_commands, io_debug_commands };

const struct io_command *io_find(const char *name)
{
	for (size_t t = 0; t < ARRAY_LEN(tables); t++) {
		for (const struct io_command *c = tables[t]; c->c.name; c++) {
			if (strcmp(name, c->c.name) == 0 || (c->alt && strcmp(name, c->alt) == 0))
				return c;
		}
	}
	return NULL;
}

static int by_name(const void *a, const void *b)
{
	const struct io_command *const *x = a, *const *y = b;

	return strcmp((*x)->c.name, (*y)->c.name);
}

size_t io_list(const struct io_command *ret[IO_COMMANDS_MAX])
{
	size_t n = 0;

	for (size_t t = 0; t < ARRAY_LEN(tables); t++) {
		for (const struct io_command *c = tables[t]; c->c.name && n < IO_COMMANDS_MAX; c++)
			ret[n++] = c;
	}
	qsort(ret, n, sizeof(ret[0]), by_name);
	return n;
}

void io_each(void (*fn)(const struct io_command *c))
{
	const struct io_command *all[IO_COMMANDS_MAX];

	for (size_t i = 0, n = io_list(all); i < n; i++)
		fn(all[i]);
}

void io_parse(struct parse *p, int argc, char **argv)
{
	parse_start(p, &io_find(argv[0])->c, argc, argv);
	p->language = true;
}

int io_usage(const char *name)
{
	const struct io_command *c = io_find(name);

	printf("usage: %s", c->c.name);
	command_letters(&c->c);
	printf("%s%s\n", *c->c.args ? " " : "", c->c.args);
	return -1;
}

static int wrong_count(const struct io_command *c, int nr)
{
	fprintf(stderr, "bad argument count %d to %s, expected ", nr, c->c.name);
	if (c->max_args < 0)
		fprintf(stderr, "at least %d arguments\n", c->min_args);
	else if (c->min_args == c->max_args)
		fprintf(stderr, "%d arguments\n", c->min_args);
	else
		fprintf(stderr, "between %d and %d arguments\n", c->min_args, c->max_args);
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
	if (!c) {
		fprintf(stderr, "command \"%s\" not found\n", words[0]);
		return -1;
	}
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
	const char **commands;
	int nr_commands;
};

static int set_option(struct io_args *a, int id, const char *value)
{
	switch (id) {
	case 'c':
		a->commands[a->nr_commands++] = value;
		return 0;
	case 'd':
		return io_set_discard(&a->how.options, value);
	case 'f':
		return io_set(&a->how.format, value);
	case 'r':
		a->how.read_only = true;
		return 0;
	case 'n':
		return io_set(&a->how.cache, "none");
	case 't':
		return io_set(&a->how.cache, value);
	case 'k':
		return io_set(&a->how.aio, "native");
	case 'i':
		return io_set(&a->how.aio, value);
	case 'U':
		a->how.force_share = true;
		return 0;
	case OPT_IMAGE_OPTS:
		a->how.image_opts = true;
		return 0;
	case OPT_OBJECT:
		return object_add(value);
	case 's':
		a->how.snapshot = true;
		return 0;
	case 'C':
		a->how.copy_on_read = true;
		return 0;
	case 'm':
		a->misalign = true;
		return 0;
	default: /* 'T' */
		return complain_missing("--trace");
	}
}

/* 0; 1, told; -1: done, the exit status is *ret_status. */
static int parse(int argc, char **argv, struct io_args *a, int *ret_status)
{
	struct parse p;
	int id;

	parse_start(&p, &cmd_io, argc, argv);
	while ((id = parse_next(&p)) > 0) {
		if (id == 'V') {
			print_version("varve io");
			*ret_status = finish_stdout();
			return -1;
		}
		if (set_option(a, id, p.value))
			return 1;
	}
	if (id < 0) {
		*ret_status = p.status;
		return -1;
	}
	if (p.nr_args > 1)
		return complain_usage("'%s' is one argument too many", p.args[1]);
	return p.nr_args && io_set(&a->how.name, p.args[0]) < 0 ? 1 : 0;
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
		char *line = strdup(a->commands[i]); /* it is cut into words */

		if (!line)
			complain("out of memory");
		if (!line || run_line(io, line) < 0)
			failed = 1;
		free(line);
	}
	if (!a->nr_commands)
		failed = run_input(io);
	if (io_close(io) < 0)
		failed = 1;
	return finish_stdout() || failed;
}

/* What the library found out and an errno cannot say: damage, a server that lies. What stops at a break point is a result. */
static void take_log(void *user_data, enum varve_log_level level, const char *line)
{
	(void)user_data;
	if (level == VARVE_LOG_ERROR)
		complain("%s", line);
	else if (log_tells_contents(level, line))
		complain_contents(line);
	else if (level == VARVE_LOG_INFO && strncmp(line, "blkdebug: ", 10) == 0)
		printf("%s\n", line);
}

int io_main(int argc, char **argv)
{
	struct io_args a = { 0 };
	struct io io = { 0 };
	struct varve_error err;
	int ret, status = 0;

	a.commands = calloc((size_t)argc + 1, sizeof(*a.commands));
	if (!a.commands) {
		complain("out of memory");
		return 1;
	}
	varve_set_log(take_log, NULL);
	ret = parse(argc, argv, &a, &status);
	if (ret < 0) {
		ret = status;
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
