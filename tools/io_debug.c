/* SPDX-License-Identifier: MIT */
/*
 * tools/io_debug.c - break points of an image on driver blkdebug; the commands for zones
 */
#include "io.h"

#define WAIT_TURN_MS 1

static int cmd_break(struct io *io, int argc, char **argv)
{
	struct varve_error err;

	(void)argc;
	return varve_debug_break(io->image, argv[1], argv[2], &err) < 0 ? io_complain("break", &err) : 0;
}

static int cmd_remove_break(struct io *io, int argc, char **argv)
{
	struct varve_error err;

	(void)argc;
	return varve_debug_remove_break(io->image, argv[1], &err) < 0 ? io_complain("remove_break", &err) : 0;
}

static int cmd_resume(struct io *io, int argc, char **argv)
{
	struct varve_error err;

	(void)argc;
	return varve_debug_resume(io->image, argv[1], &err) < 0 ? io_complain("resume", &err) : 0;
}

/* Requests go on until one stops under the tag; when there are none left, none will. */
static int cmd_wait_break(struct io *io, int argc, char **argv)
{
	struct varve_error err;
	int ret;

	(void)argc;
	while ((ret = varve_debug_is_suspended(io->image, argv[1], &err)) == 0 && io->pending)
		io_aio_sleep(io, WAIT_TURN_MS);
	if (ret < 0)
		return io_complain("wait_break", &err);
	if (ret == 0) {
		complain("wait_break: no request is under way that could stop at '%s'", argv[1]);
		return -1;
	}
	return 0;
}

static int cmd_zone(struct io *io, int argc, char **argv)
{
	(void)argc;
	complain("%s: an image of format %s has no zones; zoned devices are used as they are, by no command here", argv[0],
		 varve_image_format(io->image));
	return -1;
}

#define NAMED(name, what, args) { name, NULL, what, args, io_no_options, NULL }
#define ZONE(name, args) { NAMED(name, "is for zoned devices, and always fails", args), NULL, cmd_zone, 1, -1, false }

const struct io_command io_debug_commands[] = {
	{ NAMED("break", "the next request that meets the event stops there, and is called tag", "event tag"), NULL, cmd_break,
	  2, 2, false },
	{ NAMED("remove_break", "the break point is gone; what it stopped goes on", "tag"), NULL, cmd_remove_break, 1, 1, false },
	{ NAMED("resume", "what has stopped under the tag goes on", "tag"), NULL, cmd_resume, 1, 1, false },
	{ NAMED("wait_break", "waits until a request has stopped under the tag", "tag"), NULL, cmd_wait_break, 1, 1, false },
	ZONE("zone_append", "off len [len..]"),
	ZONE("zone_close", "off len"),
	ZONE("zone_finish", "off len"),
	ZONE("zone_open", "off len"),
	ZONE("zone_report", "off nr"),
	ZONE("zone_reset", "off len"),
	{ { NULL, NULL, NULL, NULL, NULL, NULL }, NULL, NULL, 0, 0, false },
};
