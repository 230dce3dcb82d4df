/* SPDX-License-Identifier: MIT */
/*
 * tools/io.h - `varve io`: commands that read and write one open image
 *
 *   io.c        options, the loop over commands, opening
 *   io_open.c   open, close, reopen
 *   io_rw.c     read, write and their vectored forms; discard, flush
 *   io_aio.c    the same asynchronously, through a queue
 *   io_misc.c   map, alloc, length, truncate, info, sleep, ...
 *   io_debug.c  break points; zones
 *   io_buf.c    patterns, dumps, the lines that report a result
 */
#ifndef VARVE_TOOLS_IO_H
#define VARVE_TOOLS_IO_H

#include <sys/uio.h>

#include "common.h"
#include "options.h"

/* How an image is opened. The strings are malloc'd, or NULL. */
struct io_how {
	char *name, *format, *cache, *aio;
	char *options; /* image options beside the name */
	bool read_only, snapshot, image_opts, force_share, copy_on_read;
};

struct io {
	struct varve_queue *queue; /* home of the image; run by this thread */
	struct varve_image *image; /* NULL: none open */
	struct io_how how;	   /* of the image */
	unsigned pending;	   /* asynchronous requests */
	bool quit;
};

#define IO_COMMANDS_MAX 64

struct io_command {
	struct command c; /* its name, what it does, its options and arguments; no run() */
	const char *alt;  /* the short name; NULL: none */
	/* 0, or -1 after a message on stdout. argv[0] is the command's name. */
	int (*run)(struct io *io, int argc, char **argv);
	int min_args, max_args; /* options and their values count; max < 0: any number */
	bool no_image;		/* works without an open image */
};

/* All commands, by file; the last has no name. */
extern const struct io_command io_rw_commands[], io_aio_commands[], io_misc_commands[], io_open_commands[],
	io_debug_commands[];
/* For commands without options. */
extern const struct option_row io_no_options[];
/* The options of the tool. */
extern const struct command cmd_io;

const struct io_command *io_find(const char *name);
/* Calls fn for every command, by name. */
void io_each(void (*fn)(const struct io_command *c));
/* The same as an array; how many. */
size_t io_list(const struct io_command *ret[IO_COMMANDS_MAX]);

/* The options of the command argv[0], as parse_next() answers them. */
void io_parse(struct parse *p, int argc, char **argv);

/* A command used wrongly: prints how it is used. Returns -1. */
int io_usage(const char *name);

/* ---- io_open.c ---- */

/* Opens what `how` says, which is taken over in any case. */
int io_open(struct io *io, struct io_how *how);
/* Waits for what is under way. 0 if none is open. */
int io_close(struct io *io);
void io_how_free(struct io_how *how);
/* A string of it; further options, comma and all; what -d says. -1 after a message. */
int io_set(char **var, const char *text);
int io_add_options(char **var, const char *text);
int io_set_discard(char **options, const char *mode);

/* ---- io_buf.c ---- */

/* Addresses of buffers from now on are no multiples of anything useful. */
void io_buf_misalign(void);

/* Bytes read or written at most by one command that needs a buffer. */
#define IO_LEN_MAX 2147483136ull

/* Memory that suits O_DIRECT; NULL after a message. */
void *io_buf(size_t len, int fill);
void io_buf_free(void *buf);

/* Numbers of a command; -1 after a message. */
int io_size(const char *text, uint64_t *ret);
int io_pattern(const char *text, int *ret);

/* What -r of a command does. */
#define REGISTER_WHAT "register the buffer with the engine, if it can (io_uring)"

/* One buffer in pieces, as many as there are lengths in argv[0 .. argc); -1 after a message. */
struct io_vector {
	uint8_t *buf;
	size_t len;
	struct iovec *iov;
	int nr_iov;
	struct varve_queue *registered; /* with its engine, -r; NULL: not */
};

int io_vector(struct io_vector *ret, int argc, char **argv, int fill);
/* The buffer is made known to the queue until it is freed. -1, after a message, with the vector freed. */
int io_vector_register(struct io_vector *v, struct varve_queue *queue);
void io_vector_free(struct io_vector *v);

void io_dump(const uint8_t *buf, uint64_t off, size_t len);
/* -1 and a line if buf is not all `pattern`. off: as reported. */
int io_verify(const uint8_t *buf, size_t len, int pattern, uint64_t off);

uint64_t io_now_ns(void);

/* How a command's result is told. */
struct io_report {
	const char *what; /* "read", "wrote", "discard" */
	bool quiet, machine;
	uint64_t off, len;
	uint64_t start_ns;
};

void io_report(const struct io_report *r);

/* "read failed: Input/output error". Returns -1. */
int io_failed(const char *name, int error);

/* A line on stderr: what the library says, behind the command's name (NULL: it says that, too). Returns -1. */
int io_complain(const char *name, const struct varve_error *err);

/* 0, or the error that a request beyond the end gets. */
int io_check_range(const struct io *io, uint64_t off, uint64_t len);

/* ---- io_aio.c ---- */

/* Reports what has completed; with `all`, waits for every request. */
void io_aio_reap(struct io *io, bool all);
/* Runs the queue for so long. */
void io_aio_sleep(struct io *io, uint64_t ms);

#endif
