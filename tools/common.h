/* SPDX-License-Identifier: MIT */
/*
 * tools/common.h - what the commands of varve share
 *
 *   main.c         which tool is meant: varve img, varve io, varve serve, or the name of a link
 *   common.c       messages, numbers, opening images
 *   options.h      the options of a command as a table: parser, help, completions, grammar
 *   objects.c      --object
 *   completion.c   that table for shells and the manual
 *   complete.h     what may stand at a place of a command line
 *   stop.h         signals that end a command
 *   suggest.h      which word was meant
 *   progress.c     how far a long operation is: -p, SIGUSR1
 *   img.h          the commands of `varve img`, one file each
 *   io.h           `varve io`
 *   serve.c        `varve serve`
 *   daemon.h       `varve daemon`
 *   pidfile.h      --pidfile and --takeover of both
 *   crashtest.h    `varve crashtest`
 *   blkload/       `varve blkload`, which knows nothing of varve, nor of this file
 *   vmstate.c      `varve vmstate`
 *
 * Only the public interface of libvarve is used here: the tools prove that it is enough.
 */
#ifndef VARVE_TOOLS_COMMON_H
#define VARVE_TOOLS_COMMON_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <varve/varve.h>

/* The release of QEMU's tools whose grammar the commands follow; told by -V under their names. */
#define PEER_VERSION "7.2.0"

/* What error messages begin with: "varve img", "qemu-img", ... */
extern const char *prog;

/* One line on stderr: "prog: text", or {"program": prog, "error": text}. */
void complain(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* The command whose help that is, from now on; "": the tool's. It must live on. */
void complain_help_is(const char *command);
/* The same, and where help is found. Returns 1, the exit status. */
int complain_usage(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* --errors=text|json: from now on errors are said in that form. 0, or 1 after a message. */
int parse_errors(const char *form);
/* Before anything else can be wrong with the line: --errors=json holds for all of it, wherever it stands. */
void expect_errors(int argc, char **argv);
/*
 * For log sinks of commands: of what the library says in passing, does this change what a disk holds? They say that as a warning, and
 * fail nothing.
 */
bool log_tells_contents(enum varve_log_level level, const char *line);
/* Says it; once for each line, however often the command opens the image. */
void complain_contents(const char *line);
/* An option that is known but not part of this version. Returns 1. */
int complain_missing(const char *what);

/* For what getopt_long() answered ('?' or ':') with opterr == 0 and ":" first in its list. Returns 1. */
int complain_option(int c, char **argv);

/* To stdout, with control characters made visible. */
void print_text(const char *text);

/* Says which version this is; under the name of one of QEMU's tools in the form that callers of it parse. */
void print_version(const char *tool);

/* stdout could take everything that was written to it: 0, else a message and 1. */
int finish_stdout(void);
/* After a command whose result is the changed image, not the line about it: only a warning, since who tries again would change it twice. */
void end_stdout(void);

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

/* ---- numbers ---- */

/* "64k", "1.5G", "0x200": powers of 1024; a space or a plus before it is as good as none. 0, or -EINVAL for what is no size, -ERANGE for what is too large. */
int parse_size(const char *given, uint64_t *ret);
int parse_unsigned(const char *given, unsigned max, unsigned *ret);

/* Three significant digits: "1.32 MiB". For what people read in `info`. */
const char *size_text(char buf[32], uint64_t bytes);
/* Three decimals, none for whole numbers: "1.500 KiB". For what `io` reports. */
const char *size_text_exact(char buf[32], double bytes);

/* ---- opening images ---- */

/* Before the name of a target that exists and reads as zeroes. What is read, or made, has no such prefix. */
#define ZEROINIT "zeroinit:"
/* After a failure: if the name has it, *err says where it belongs. */
void explain_zeroinit(const char *name, struct varve_error *err);

/* What the options -f, --image-opts, -U, -C, -t/-T and -i of a command say. */
struct open_args {
	const char *format;
	bool image_opts;
	bool force_share;
	bool copy_on_read;
	const char *cache;
	const char *aio;
	const char *state_dir;
	const char *options; /* "key=value,...": image options beside the name; NULL: none */
};

/*
 * The image options that mean what name and args say: "driver=qcow2,file.filename=a,,b,discard=ignore". malloc'd; NULL, after
 * a message (a json: name has its options inside).
 */
char *open_spec(const char *name, const struct open_args *args);

/*
 * --state-dir: the directory itself, or for "auto" the usual one: /run/varve, or varve in $XDG_RUNTIME_DIR for users.
 * NULL, after a message. Lives as long as the process.
 */
const char *state_directory(const char *text);

/* NULL, after a message. flags: VARVE_OPEN_* beside what args says. */
/* The same without the message, which is in *err. */
struct varve_image *try_open_image(const char *name, const struct open_args *args, unsigned flags,
				   struct varve_queue *home, struct varve_error *err);
struct varve_image *open_image(const char *name, const struct open_args *args, unsigned flags,
			       struct varve_queue *home);
/* Closes; a message and 1 if acknowledged data may be lost. */
int close_image(struct varve_image *image);
/*
 * The same at the end of a command whose status is `failed` until now: if it is not 0, the cause was told, and what else fails for it
 * is no news. The new status.
 */
int close_image_after(struct varve_image *image, int failed);

/* ImageInfo of an open image as a JSON object; NULL, after a message. */
json_t *image_info(struct varve_image *image);

/* The lines "    key: value" of a format-specific part, indented by so much; those of any object. */
void print_format_specific(const json_t *image_info, int indent);
void print_members(const json_t *object, int indent);

/* Strings of an ImageInfo object; NULL if absent. */
const char *info_str(const json_t *image_info, const char *key);
/* Integers; fallback if absent. */
int64_t info_int(const json_t *image_info, const char *key, int64_t fallback);

/*
 * --object TYPE,id=ID,...: an object that other options name. Secrets are checked. 0, or 1 after
 * a message.
 */
int object_add(const char *text);
/* Keys of the objects that it takes: secrets. */
extern const struct varve_option_info secret_options[];

enum output { OUTPUT_HUMAN, OUTPUT_JSON };

/* --output=human|json. */
int parse_output(const char *text, enum output *ret);

/* ---- progress ---- */

/* The value of --progress: NULL or "text", "json". 0, or 1 after a message. */
int progress_form(const char *form);
/* From now on SIGUSR1 asks for a line on stderr. show: a line on stdout is kept up to date. */
void progress_start(bool show);
/* A varve_progress_fn. */
void progress_update(void *user_data, uint64_t done, uint64_t total);
void progress_end(void);

/* ---- the tools: main() of each; argv[0] is the tool's own ---- */

int img_main(int argc, char **argv);
int io_main(int argc, char **argv);
int serve_main(int argc, char **argv);
int daemon_main(int argc, char **argv);
int crashtest_main(int argc, char **argv);
/* Their names, for `varve WORD` (link false) or as links; NULL: there are no more. */
const char *tool_name(unsigned number, bool link, const char **ret_what);
int completion_main(int argc, char **argv);
int blkload_main(int argc, char **argv);
int vmstate_main(int argc, char **argv);

#endif
