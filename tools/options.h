/* SPDX-License-Identifier: MIT */
/*
 * tools/options.h - the options of a command, as one table
 *
 * The table is all there is: the parser, --help, the completions of shells and the page docs/guide/grammar.md are made of it,
 * so that they cannot disagree. Options and names may come in any order; "--" ends the options; a long name may be shortened as
 * long as one only is meant; "-fqcow2", "-f qcow2", "--format=qcow2" and "--format qcow2" are the same.
 */
#ifndef VARVE_TOOLS_OPTIONS_H
#define VARVE_TOOLS_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>

struct option_row {
	int id;		  /* the letter, or a number above 255 for an option without one */
	const char *name; /* NULL: a letter only */
	const char *arg;  /* NULL: takes no value; "=WORD": takes one after '=' only, or none */
	const char *what; /* one line for people; NULL: a synonym that help does not show */
};

/*
 * The word for the value, `arg`, says what it can be, too: with '|' in it the words themselves, else one of these. Shells complete
 * those; what is not among them (SIZE, COUNT, NAME) is for people only.
 */
#define ARG_FORMAT "FORMAT"	      /* of an image */
#define ARG_NEW_FORMAT "NEW_FORMAT"   /* of an image that is made */
#define ARG_CACHE "MODE"	      /* cache mode */
#define ARG_ENGINE "ENGINE"	      /* of asynchronous I/O */
#define ARG_DISCARD "DISCARD"	      /* image option discard */
#define ARG_FILE "FILE"
#define ARG_DIR "DIR"
#define ARG_BASE "BASE"		      /* a file of the chain */
#define ARG_SOCKET "SOCKET"
#define ARG_SNAPSHOT "SNAPSHOT"	      /* of the image that is named */
#define ARG_BITMAP "BITMAP"	      /* the same */
#define ARG_CREATE "KEY=VALUE,..."    /* of the format of what is made */
#define ARG_OBJECT "OBJECT"
#define ARG_COMMAND "COMMAND"	      /* of the language of `varve io` */
#define ARG_NODE "NODE"		      /* image options with a node-name */
#define ARG_EXPORT "EXPORT"
#define OUTPUT_WORDS "human|json"
#define FORM_WORDS "text|json"

#define OPTION_END { 0, 0, 0, 0 }

/* A tool's command; a tool without commands, whose name is ""; a word of the language of `varve io`. */
struct command {
	const char *name;
	int (*run)(int argc, char **argv);
	const char *what; /* one line for the list of commands */
	const char *args; /* "FILE [SIZE]" */
	const struct option_row *options;
	const char *notes; /* behind the options in --help; NULL: nothing */
};

struct parse {
	const struct command *command;
	char **argv; /* arguments that are no options move to its front */
	int argc, at;
	const char *letters; /* what is left of "-abc"; NULL: nothing */
	bool ended;	     /* "--" was seen */
	bool numbers;	     /* "-5G" is an argument, no option */
	bool language;	     /* of `varve io`: letters only, and nothing that every command of a tool has */

	const char *value; /* of the option that was answered last; NULL: it has none */
	char **args;
	int nr_args;
	int status; /* when parse_next() answered -1: the exit status */
};

/* Which of the words it is, from 0; -1: none. words: "human|json" */
int option_word(const char *words, const char *text);

/* Of the command's, or of those that every command has; NULL: none, or several begin so. */
const struct option_row *option_by_letter(const struct command *c, char letter);
const struct option_row *option_by_name(const struct command *c, const char *name, size_t len);
const struct option_row *options_of_all(void);

/* argv[0] is the command's name. */
void parse_start(struct parse *p, const struct command *command, int argc, char **argv);

/*
 * The id of the next option; 0: there are no more, p->args has the rest; -1: --help was shown, or an error was told:
 * return p->status. Every command has -h and --errors=json.
 */
int parse_next(struct parse *p);

/* --help of a command, on stdout. */
void command_help(const struct command *c);
/* "[-bq] [-P PATTERN]", for a command of the language; nothing if it has no options. */
void command_letters(const struct command *c);
/* Its options, a line for each. */
void command_rows(const struct command *c);

#endif
