/* SPDX-License-Identifier: MIT */
/*
 * tools/img.h - the commands of `varve img`
 *
 * Each gets its own argc and argv (argv[0] is the command's name) and returns the exit status.
 */
#ifndef VARVE_TOOLS_IMG_H
#define VARVE_TOOLS_IMG_H

#include "common.h"
#include "options.h"

extern const struct command cmd_amend, cmd_bench, cmd_bitmap, cmd_check, cmd_commit, cmd_compare, cmd_convert, cmd_create, cmd_dd,
	cmd_info, cmd_map,
	cmd_measure, cmd_rebase, cmd_resize, cmd_snapshot, cmd_stream;

/* All of them, by name; NULL ends the list. */
extern const struct command *const img_commands[];

/* Values of long options that have no letter; one list, so that no two commands disagree. */
enum {
	LONG_OUTPUT = 256,
	LONG_IMAGE_OPTS,
	LONG_BACKING_CHAIN,
	LONG_OBJECT,
	LONG_COMMAND = 512, /* from here on each command has its own */
};

/* Rows that many commands share; open_option() understands those that say how an image is opened. */
#define OPT_FORMAT { 'f', "format", ARG_FORMAT, "of the image: not guessed then" }
#define OPT_IMAGE_OPTS { LONG_IMAGE_OPTS, "image-opts", NULL, "FILE is driver=...,file.filename=..." }
#define OPT_OBJECT { LONG_OBJECT, "object", ARG_OBJECT, "what other options name by its id: secret,id=ID,file=FILE" }
#define OPT_FORCE_SHARE { 'U', "force-share", NULL, "also while another process writes to the image" }
#define OPT_CACHE(letter) { letter, "cache", ARG_CACHE, "writeback (default), none, writethrough, directsync, unsafe" }
#define OPT_QUIET { 'q', "quiet", NULL, "print nothing but errors" }
#define OPT_PROGRESS { 'p', "progress", "=" FORM_WORDS, "show how far it is; json: as lines of JSON" }
#define OPT_OUTPUT { LONG_OUTPUT, "output", OUTPUT_WORDS, "human (default) or json" }

/* 'f', 't' and 'T', 'U', --image-opts, --object. 0, or 1 after a message. */
int open_option(struct open_args *a, int id, const char *value);

/* "Snapshot list:" and its lines, from the list of an ImageInfo object; nothing for an empty one. */
void img_print_snapshots(const json_t *list);

/*
 * ImageInfo objects from the named image down (whole), or of that image alone: a JSON array; NULL, after a message. Opens one file
 * after the other, and none for I/O.
 */
json_t *img_chain(const char *name, const struct open_args *open, bool whole);

/*
 * Adds "key=value" (key "": value is a list already) to a list of options, which may be NULL; escape: a comma in the value is one.
 * The new list; NULL: out of memory. The old one is gone.
 */
char *options_append(char *list, const char *key, const char *value, bool escape);

/* One -o as it was given, behind those in *list. 0, or 1 after a message. */
int options_take(const char *command, char **list, const char *value);

/* `-o help` or `-o ?`, perhaps among other options: somebody asks which there are. options_help() tells: the exit status. */
bool options_ask_help(const char *list);
int options_help(const char *command, const char *format, bool amend);

/*
 * An image, or (snapshot: its name, its id, or snapshot.name=..., snapshot.id=...; NULL: none) what an internal snapshot of it
 * holds. NULL, after a message.
 */
struct varve_image *img_open_snapshot(const char *name, const struct open_args *args, const char *snapshot, unsigned flags,
				      struct varve_queue *home);
/* The path in the name of a local file or device, as stat() wants it. */
const char *img_local_path(const char *name);
/*
 * Standard input can be read, and target (NULL: none) is not the file that it comes from. 0, or 1 after a message: asked before
 * anything is written.
 */
int img_check_stdin(const char *command, const char *target);
/* Removes a file that was made under that name: where a link leads, not the link, which was there before. */
int img_remove_made(const char *name);
/* True, after a message: a new image of that name would take the place of what the sources are read from. */
bool img_would_overwrite(struct varve_image *const *sources, unsigned nr, const char *target);
/*
 * The image is to read `other` (NULL: nothing) below itself, up to limit. 0: its snapshots, which do so too, read what they read
 * now; else 1, after a message that ends with advice. info: the image's ImageInfo. It may be open for writing by this process,
 * if nothing waits to be written.
 */
int img_snapshots_keep(const json_t *info, const char *name, const struct open_args *args, struct varve_image *other,
		       uint64_t limit, const char *advice);
/* Do both show the same bytes at the same place of the same file, or both zeroes? */
bool img_same_place(const struct varve_extent *a, const struct varve_extent *b);
/* `snapshot --graph`: the chain of an image, bottom first, with the snapshots of each, as text or SVG. */
int img_snapshot_graph(const char *file, const struct open_args *open, bool svg);

/*
 * Takes "zeroinit:" off the name of a target that exists, and answers whether it was there: all of the target reads as zeroes
 * (the way in which Proxmox VE says --target-is-zero).
 */
bool img_take_zeroinit(const char **name);

/* The extent at off, joined with the neighbours behind it that differ in nothing but their place. */
int img_map_joined(struct varve_image *image, uint64_t off, uint64_t end, struct varve_extent *ret,
		   struct varve_error *err);

#endif
