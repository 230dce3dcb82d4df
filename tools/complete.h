/* SPDX-License-Identifier: MIT */
/*
 * tools/complete.h - what may stand at a place of a command line, for shells
 *
 *   complete.c        which option or argument the last word is
 *   complete_list.c   "key=value,...": creation options, image options, objects, exports
 *   complete_image.c  names of snapshots and bitmaps, asked of the image
 *   complete_line.c   a line as bash has it: quotes, and what of a word bash replaces
 *   completion.c      the scripts that make shells ask
 *
 * All of it comes from the tables of the parsers. Nothing is said on stderr: somebody is typing.
 */
#ifndef VARVE_TOOLS_COMPLETE_H
#define VARVE_TOOLS_COMPLETE_H

#include "common.h"
#include "options.h"

extern const struct command cmd_serve, cmd_daemon, cmd_completion, cmd_crashtest;
extern const struct command cmd_vmstate[]; /* the last has no name */
#define SERVE_NEXT_DISK "--and"

/* daemon_export.c: keys of --export, and of --object there. */
extern const struct varve_option_info export_options[], iothread_options[];

enum offer_kind {
	OFFER_WORD,  /* a blank follows */
	OFFER_PART,  /* more of the same word follows */
	OFFER_FILES, /* names of files, which the shell finds; no text */
};

/* text: the whole word. what: for people, or NULL. Words that do not begin as the one that is completed are
 * offered, too. */
typedef void (*offer_fn)(void *arg, enum offer_kind kind, const char *text, const char *what);

struct complete {
	offer_fn offer;
	void *arg;
	int nr; /* words; the last is the one under the cursor, up to it */
	char **words;
	int nr_after; /* behind the cursor */
	char **after;

	/* what those before it said */
	const struct command *command;
	const char *format, *new_format, *cache, *backing; /* NULL: not said */
	bool image_opts;
	int nr_args;
	const char *image; /* the first argument, perhaps behind the cursor; NULL: none */
};

/* complete.c: words[0] is the program; nr up to the cursor, nr_after more. */
void complete_words(offer_fn offer, void *arg, int nr, char **words, int nr_after);
/* prefix: what stands before in the same word; may be "". */
void complete_offer(struct complete *c, enum offer_kind kind, const char *prefix, const char *text,
		    const char *what);
/* "a|b|c"; "bool", "file", "format", ...: what struct varve_option_info says of a value. typed: so far. */
void complete_value(struct complete *c, enum offer_kind kind, const char *prefix, const char *value,
		    const char *typed);
/* Files that begin so, for places where the shell cannot know that one is meant. */
void complete_files(struct complete *c, const char *prefix, const char *typed);

/* complete_list.c: typed is the list up to the cursor, prefix what stands before it in the word. */
void complete_creation(struct complete *c, const char *prefix, const char *typed);
void complete_image_options(struct complete *c, const char *prefix, const char *typed, bool nodes);
void complete_keys(struct complete *c, const char *prefix, const char *typed,
		   const struct varve_option_info *keys, const char *first);

/* complete_image.c: of c->image. */
void complete_snapshots(struct complete *c, const char *prefix);
void complete_bitmaps(struct complete *c, const char *prefix);

/* complete_line.c: prints what bash wants to know of a line up to the cursor, and the rest of it. The exit
 * status. */
int complete_line(const char *line, const char *rest, const char *breaks);

#endif
