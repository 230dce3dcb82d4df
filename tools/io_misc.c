/* SPDX-License-Identifier: MIT */
/*
 * tools/io_misc.c - map, alloc, length, info, sleep, help, quit, and ways to die
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

static int cmd_info(struct io *io, int argc, char **argv)
{
	json_t *info = image_info(io->image);
	char text[32];

	(void)argc;
	(void)argv;
	if (!info)
		return -1;
	printf("format name: %s\n", varve_image_format(io->image));
	if (json_object_get(info, "cluster-size"))
		printf("cluster size: %s\n", size_text_exact(text, (double)info_int(info, "cluster-size", 0)));
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
	printf("%s%s%s -- %s\n", c->name, *c->args ? " " : "", c->args, c->what);
}

static int cmd_help(struct io *io, int argc, char **argv)
{
	const struct io_command *c;

	(void)io;
	if (argc == 1) {
		io_each(print_command);
		return 0;
	}
	c = io_find(argv[1]);
	if (!c) {
		printf("no command %s\n", argv[1]);
		return -1;
	}
	print_command(c);
	return 0;
}

const struct io_command io_misc_commands[] = {
	{ "abort", NULL, cmd_abort, 0, 0, true, "", "ends the program as a crash would" },
	{ "alloc", "a", cmd_alloc, 1, 2, false, "off [len]", "how much of a range the image itself holds" },
	{ "help", "?", cmd_help, 0, 1, true, "[command]", "this list, or one line of it" },
	{ "info", "i", cmd_info, 0, 0, false, "", "what the open image is" },
	{ "length", "l", cmd_length, 0, 0, false, "", "the length of the open image" },
	{ "map", NULL, cmd_map, 0, 0, false, "", "which ranges the image itself holds" },
	{ "quit", "q", cmd_quit, 0, 0, true, "", "ends the program" },
	{ "sigraise", NULL, cmd_sigraise, 1, 1, true, "signal", "sends itself a signal" },
	{ "sleep", NULL, cmd_sleep, 1, 1, true, "ms", "waits, while asynchronous requests go on" },
	{ NULL, NULL, NULL, 0, 0, false, NULL, NULL },
};
