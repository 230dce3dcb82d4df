/* SPDX-License-Identifier: MIT */
/*
 * tools/io_misc.c - map, alloc, length, truncate, info, sleep, help, quit, and ways to die
 */
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "io.h"

#define SECTOR_LEN 512

/* Whether the image itself, not a backing file, holds what is at off; *ret_end: how far that is so. */
static int own_extent(struct io *io, uint64_t off, uint64_t end, bool *ret_own, uint64_t *ret_end)
{
	struct varve_extent e;
	struct varve_error err;
	bool first = true, own;

	*ret_end = off;
	while (*ret_end < end) {
		int ret = varve_image_map(io->image, *ret_end, end - *ret_end, &e, &err);

		if (ret < 0)
			return io_failed("map", ret);
		own = e.present && e.depth == 0;
		if (!first && own != *ret_own)
			break;
		first = false;
		*ret_own = own;
		*ret_end += e.length;
	}
	return 0;
}

static int cmd_alloc(struct io *io, int argc, char **argv)
{
	uint64_t off, len = SECTOR_LEN, disk_len = varve_image_length(io->image), sum = 0, at, next;
	char where[32];
	bool own;

	if (io_size(argv[1], &off) < 0 || (argc == 3 && io_size(argv[2], &len) < 0))
		return -1;
	if (off > disk_len)
		len = 0;
	else if (len > disk_len - off)
		len = disk_len - off;
	for (at = off; at < off + len; at = next) {
		if (own_extent(io, at, off + len, &own, &next) < 0)
			return -1;
		if (own)
			sum += next - at;
	}
	printf("%llu/%llu bytes allocated at offset %s\n", (unsigned long long)sum, (unsigned long long)len,
	       size_text_exact(where, (double)off));
	return 0;
}

static int cmd_map(struct io *io, int argc, char **argv)
{
	uint64_t end = varve_image_length(io->image), at, next;
	char amount[32], where[32];
	bool own;

	(void)argc;
	(void)argv;
	for (at = 0; at < end; at = next) {
		if (own_extent(io, at, end, &own, &next) < 0)
			return -1;
		printf("%s (0x%llx) bytes %s allocated at offset %s (0x%llx)\n",
		       size_text_exact(amount, (double)(next - at)), (unsigned long long)(next - at),
		       own ? "   " : "not", size_text_exact(where, (double)at), (unsigned long long)at);
	}
	return 0;
}

static int cmd_length(struct io *io, int argc, char **argv)
{
	char text[32];

	(void)argc;
	(void)argv;
	printf("%s\n", size_text_exact(text, (double)varve_image_length(io->image)));
	return 0;
}

static const struct option_row truncate_rows[] = {
	{ 'm', NULL, "prealloc", "what becomes of new space: off (default), metadata, falloc, full" },
	OPTION_END,
};

static int truncate_mode(const char *text, enum varve_prealloc *ret)
{
	static const char *const names[] = { [VARVE_PREALLOC_OFF] = "off",
					     [VARVE_PREALLOC_METADATA] = "metadata",
					     [VARVE_PREALLOC_FALLOC] = "falloc",
					     [VARVE_PREALLOC_FULL] = "full" };

	for (unsigned i = 0; i < ARRAY_LEN(names); i++) {
		if (strcmp(text, names[i]) == 0) {
			*ret = (enum varve_prealloc)i;
			return 0;
		}
	}
	complain("truncate: preallocation '%s' is none of off, metadata, falloc, full", text);
	return -1;
}

static int cmd_truncate(struct io *io, int argc, char **argv)
{
	enum varve_prealloc prealloc = VARVE_PREALLOC_OFF;
	struct varve_error err;
	struct parse p;
	uint64_t len;
	int id;

	io_parse(&p, argc, argv);
	while ((id = parse_next(&p)) > 0) {
		if (truncate_mode(p.value, &prealloc) < 0)
			return -1;
	}
	if (id < 0 || p.nr_args != 1)
		return io_usage(argv[0]);
	if (io_size(p.args[0], &len) < 0)
		return -1;
	if (len % SECTOR_LEN && strcmp(varve_image_format(io->image), "raw") != 0) {
		complain("truncate: %llu is no multiple of %d bytes, as a disk of format %s needs", (unsigned long long)len,
			 SECTOR_LEN, varve_image_format(io->image));
		return -1;
	}
	if (varve_image_resize(io->image, len, prealloc, VARVE_RESIZE_SHRINK, &err) < 0)
		return io_complain("truncate", &err);
	return 0;
}

/* Where the area for the state of a machine begins (-b of read and write), as an offset of the disk: behind the last L2 table. */
static uint64_t state_offset(struct io *io, const json_t *info)
{
	uint64_t cluster = (uint64_t)info_int(info, "cluster-size", 0), table;
	const json_t *data = json_object_get(json_object_get(info, "format-specific"), "data");

	if (!cluster || strcmp(varve_image_format(io->image), "qcow2") != 0)
		return 0;
	table = cluster / (json_is_true(json_object_get(data, "extended-l2")) ? 16 : 8) * cluster;
	return (varve_image_length(io->image) + table - 1) / table * table;
}

static int cmd_info(struct io *io, int argc, char **argv)
{
	json_t *info = image_info(io->image);
	char text[32];

	(void)argc;
	(void)argv;
	if (!info)
		return -1;
	printf("format name: %s\n", varve_image_format(io->image));
	printf("cluster size: %s\n", size_text_exact(text, (double)info_int(info, "cluster-size", 0)));
	printf("vm state offset: %s\n", size_text_exact(text, (double)state_offset(io, info)));
	print_format_specific(info, 0);
	json_decref(info);
	return 0;
}

static int cmd_sleep(struct io *io, int argc, char **argv)
{
	unsigned ms;

	(void)argc;
	if (parse_unsigned(argv[1], 1u << 30, &ms) < 0) {
		printf("%s is no number of milliseconds\n", argv[1]);
		return -1;
	}
	io_aio_sleep(io, ms);
	return 0;
}

static int cmd_abort(struct io *io, int argc, char **argv)
{
	(void)io;
	(void)argc;
	(void)argv;
	abort();
}

static int cmd_sigraise(struct io *io, int argc, char **argv)
{
	unsigned sig;

	(void)io;
	(void)argc;
	if (parse_unsigned(argv[1], (unsigned)SIGRTMAX, &sig) < 0) {
		printf("%s is no number of a signal\n", argv[1]);
		return -1;
	}
	fflush(stdout);
	raise((int)sig);
	return 0;
}

static int cmd_quit(struct io *io, int argc, char **argv)
{
	(void)argc;
	(void)argv;
	io->quit = true;
	return 0;
}

static void print_command(const struct io_command *c)
{
	printf("%s", c->c.name);
	command_letters(&c->c);
	printf("%s%s -- %s\n", *c->c.args ? " " : "", c->c.args, c->c.what);
}

static int cmd_help(struct io *io, int argc, char **argv)
{
	const struct io_command *c;

	(void)io;
	if (argc == 1) {
		io_each(print_command);
		printf("\n'help COMMAND' shows the options of a command. Sizes and offsets are bytes, or have a suffix k M G T P E.\n");
		return 0;
	}
	c = io_find(argv[1]);
	if (!c) {
		printf("command %s not found\n", argv[1]);
		return -1;
	}
	print_command(c);
	command_rows(&c->c);
	if (c->alt)
		printf("Also: %s\n", c->alt);
	if (c->c.notes)
		printf("%s", c->c.notes);
	return 0;
}

#define NAMED(name, what, args) { name, NULL, what, args, io_no_options, NULL }

const struct io_command io_misc_commands[] = {
	{ NAMED("abort", "ends the program as a crash would", ""), NULL, cmd_abort, 0, 0, true },
	{ NAMED("alloc", "how much of a range the image itself holds", "off [len]"), "a", cmd_alloc, 1, 2, false },
	{ NAMED("help", "this list, or what there is to know of one command", "[command]"), "?", cmd_help, 0, 1, true },
	{ NAMED("info", "what the open image is", ""), "i", cmd_info, 0, 0, false },
	{ NAMED("length", "the length of the open image", ""), "l", cmd_length, 0, 0, false },
	{ NAMED("map", "which ranges the image itself holds", ""), NULL, cmd_map, 0, 0, false },
	{ NAMED("quit", "ends the program", ""), "q", cmd_quit, 0, -1, true },
	{ NAMED("sigraise", "sends itself a signal", "signal"), NULL, cmd_sigraise, 1, 1, true },
	{ NAMED("sleep", "waits, while asynchronous requests go on", "ms"), NULL, cmd_sleep, 1, 1, true },
	{ { "truncate", NULL, "gives the open image another length; what is cut off is gone", "len", truncate_rows, NULL }, "t",
	  cmd_truncate, 1, 3, false },
	{ { NULL, NULL, NULL, NULL, NULL, NULL }, NULL, NULL, 0, 0, false },
};
