/* SPDX-License-Identifier: MIT */
/*
 * tools/vmstate.c - `varve vmstate`: the state of a virtual machine goes from standard input into a snapshot, or back out
 *
 * The stream is what the machine's monitor makes of itself (a migration stream, for QEMU); here it is bytes.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "complete.h"

#define CHUNK (1u << 20)

struct args {
	struct open_args open;
	unsigned depth;
	bool now, progress, expects;
	uint64_t expect;
	struct timespec told;
};

enum { LONG_OPTS = 256, LONG_NOW, LONG_EXPECT };

#define ROWS_OF_BOTH \
	{ 'f', "format", ARG_FORMAT, "do not guess the format" }, \
	{ LONG_OPTS, "image-opts", NULL, "IMAGE is driver=...,file.filename=..." }, \
	{ 't', "cache", ARG_CACHE, "writeback (default), none, writethrough, directsync, unsafe" }, \
	{ 'i', "aio", ARG_ENGINE, "io_uring, native, posix or threads; the best one when not given" }, \
	{ 'd', "depth", "N", "buffers of 1 MiB on their way to or from the disk, 2 .. 8 (4)" }, \
	{ 'p', "progress", NULL, "show on stderr how far it is" }

static const struct option_row save_rows[] = {
	ROWS_OF_BOTH,
	{ LONG_NOW, "now", NULL, "the disk as it is now, not when the stream ends" },
	{ LONG_EXPECT, "expect", "SIZE", "a stream of another length is cut off, and makes no snapshot" },
	OPTION_END,
};
static const struct option_row load_rows[] = { ROWS_OF_BOTH, OPTION_END };

const struct command cmd_vmstate[] = {
	{
		.name = "save",
		.what = "make a snapshot with what standard input gives as the state of the virtual machine",
		.args = "IMAGE NAME",
		.options = save_rows,
		.notes = "The snapshot is there when all of the state has arrived, or not at all.\n",
	},
	{
		.name = "load",
		.what = "write the state of a snapshot, named by name or id, to standard output",
		.args = "IMAGE SNAPSHOT",
		.options = load_rows,
	},
	{ .name = NULL },
};

/* At most ten lines a second, over each other. total 0: not known. */
static void tell(struct args *a, uint64_t done, uint64_t total, bool last)
{
	struct timespec now;
	char text[32];

	if (!a->progress)
		return;
	clock_gettime(CLOCK_MONOTONIC, &now);
	if (!last && (now.tv_sec - a->told.tv_sec) * 1000 + (now.tv_nsec - a->told.tv_nsec) / 1000000 < 100)
		return;
	a->told = now;
	if (total)
		fprintf(stderr, "    (%3.2f/100%%)\r", 100.0 * (double)done / (double)total);
	else
		fprintf(stderr, "    %-16s\r", size_text(text, done));
	if (last)
		fputc('\n', stderr);
}

static uint64_t stdin_len(void)
{
	struct stat st;

	return fstat(STDIN_FILENO, &st) == 0 && S_ISREG(st.st_mode) && st.st_size > 0 ? (uint64_t)st.st_size : 0;
}

/* Standard input to its end. */
static int pump_in(struct varve_vmstate_writer *w, struct args *a, uint8_t *buf)
{
	uint64_t total = a->expects ? a->expect : stdin_len();
	struct varve_error err;

	for (;;) {
		ssize_t n = read(STDIN_FILENO, buf, CHUNK);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			complain("standard input: %s", strerror(errno));
			return 1;
		}
		if (n == 0)
			break;
		if (varve_vmstate_write(w, buf, (size_t)n, &err) < 0) {
			complain("%s", err.message);
			return 1;
		}
		tell(a, varve_vmstate_write_position(w), total, false);
	}
	if (a->expects && varve_vmstate_write_position(w) != a->expect) {
		complain("the stream has %llu bytes, not %llu: cut off? No snapshot is made",
			 (unsigned long long)varve_vmstate_write_position(w), (unsigned long long)a->expect);
		return 1;
	}
	tell(a, varve_vmstate_write_position(w), total, true);
	return 0;
}

static int save(struct varve_image *image, const char *name, struct args *a, uint8_t *buf)
{
	struct varve_snapshot_options so = { .name = name, .flags = a->now ? VARVE_SNAPSHOT_NOW : 0 };
	struct varve_vmstate_writer *w;
	struct varve_error err;

	if (varve_vmstate_write_open(&w, image, &so, a->depth, &err) < 0) {
		complain("%s", err.message);
		return 1;
	}
	if (pump_in(w, a, buf)) {
		varve_vmstate_write_abort(w);
		return 1;
	}
	if (varve_vmstate_write_close(w, NULL, &err) < 0) {
		complain("%s", err.message);
		return 1;
	}
	return 0;
}

static int write_out(const void *bytes, size_t len)
{
	const uint8_t *buf = bytes;

	while (len) {
		ssize_t n = write(STDOUT_FILENO, buf, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			complain("standard output: %s", strerror(errno));
			return 1;
		}
		buf += n;
		len -= (size_t)n;
	}
	return 0;
}

static int pump_out(struct varve_vmstate_reader *r, uint64_t total, struct args *a)
{
	struct varve_error err;
	const void *buf;
	int64_t n;

	for (uint64_t pos = 0; pos < total; pos += (uint64_t)n) {
		n = varve_vmstate_read_ref(r, pos, &buf, &err);
		if (n < 0) {
			complain("%s", err.message);
			return 1;
		}
		if (write_out(buf, (size_t)n))
			return 1;
		tell(a, pos + (uint64_t)n, total, false);
	}
	tell(a, total, total, true);
	return 0;
}

/* By name, or else by id. */
static int load(struct varve_image *image, const char *what, struct args *a)
{
	struct varve_vmstate_reader *r;
	struct varve_error err, by_id;
	uint64_t total;
	int ret = varve_vmstate_read_open(&r, image, NULL, what, a->depth, &total, &err);

	if (ret == -ENOENT)
		ret = varve_vmstate_read_open(&r, image, what, NULL, a->depth, &total, &by_id);
	if (ret < 0) {
		complain("%s", ret == -ENOENT ? err.message : ret == err.code ? err.message : by_id.message);
		return 1;
	}
	ret = pump_out(r, total, a);
	varve_vmstate_read_close(r);
	return ret;
}

static void take_log(void *user_data, enum varve_log_level level, const char *line)
{
	(void)user_data;
	if (log_tells_contents(level, line))
		complain_contents(line);
}

static int run(bool saves, const char *file, const char *name, struct args *a)
{
	uint8_t *buf = aligned_alloc(4096, CHUNK);
	struct varve_image *image = NULL;
	int ret = 1;

	varve_set_log(take_log, NULL);
	if (buf)
		image = open_image(file, &a->open, saves ? VARVE_OPEN_WRITABLE : VARVE_OPEN_NO_BACKING, NULL);
	else
		complain("out of memory");
	if (image) {
		ret = saves ? save(image, name, a, buf) : load(image, name, a);
		ret = close_image_after(image, ret);
	}
	free(buf);
	return ret;
}

static int parse_options(struct parse *p, struct args *a)
{
	int c;

	while ((c = parse_next(p)) > 0) {
		switch (c) {
		case 'f':
			a->open.format = p->value;
			break;
		case LONG_OPTS:
			a->open.image_opts = true;
			break;
		case 't':
			a->open.cache = p->value;
			break;
		case 'i':
			a->open.aio = p->value;
			break;
		case 'd':
			if (parse_unsigned(p->value, VARVE_VMSTATE_DEPTH_MAX, &a->depth) < 0 || a->depth < 2)
				return complain_usage("--depth: '%s' is not 2 .. %d", p->value, VARVE_VMSTATE_DEPTH_MAX);
			break;
		case LONG_NOW:
			a->now = true;
			break;
		case LONG_EXPECT:
			if (parse_size(p->value, &a->expect) < 0)
				return complain_usage("--expect: '%s' is no size", p->value);
			a->expects = true;
			break;
		default: /* 'p' */
			a->progress = true;
			break;
		}
	}
	if (c < 0)
		return p->status ? p->status : -1;
	return 0;
}

static int usage(void)
{
	printf("Usage: %s save [OPTION]... IMAGE NAME < STATE\n       %s load [OPTION]... IMAGE SNAPSHOT > STATE\n\n", prog, prog);
	for (const struct command *c = cmd_vmstate; c->name; c++)
		printf("  %-6s  %s\n", c->name, c->what);
	printf("\n%s COMMAND --help shows the options of a command.\n", prog);
	return finish_stdout();
}

int vmstate_main(int argc, char **argv)
{
	const struct command *command = cmd_vmstate;
	struct args a = { 0 };
	struct parse p;
	int ret;

	if (argc >= 2 && (strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "--help") == 0))
		return usage();
	while (argc >= 2 && command->name && strcmp(argv[1], command->name) != 0)
		command++;
	if (argc < 2 || !command->name)
		return complain_usage("say save or load");
	complain_help_is(command->name);
	parse_start(&p, command, argc - 1, argv + 1);
	ret = parse_options(&p, &a);
	if (ret)
		return ret < 0 ? 0 : ret;
	if (p.nr_args != 2)
		return complain_usage("%s: an image and the name of a snapshot are needed", command->name);
	return run(command == cmd_vmstate, p.args[0], p.args[1], &a);
}
