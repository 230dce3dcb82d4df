/* SPDX-License-Identifier: MIT */
/*
 * tools/complete.c - which option or argument the last word of a command line is, and what it can be
 *
 * The words before it are read as the parser would read them, without its judgement: a line that is being
 * typed is not right yet.
 */
#include "complete.h"

#include <ctype.h>
#include <ctype.h>
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "img.h"
#include "io.h"

#define TEXT_MAX 8192 /* of what is offered; longer words are not completed */

void complete_offer(struct complete *c, enum offer_kind kind, const char *prefix, const char *text,
		    const char *what)
{
	char whole[TEXT_MAX];

	for (const char *s = text; *s; s++) {
		if ((unsigned char)*s < ' ' || *s == 0x7f)
			return; /* a shell could not say it back */
	}
	if (snprintf(whole, sizeof(whole), "%s%s", prefix, text) < (int)sizeof(whole))
		c->offer(c->arg, kind, whole, what);
}

/* ---- values ---- */

static void offer_words(struct complete *c, enum offer_kind kind, const char *prefix, const char *words)
{
	char word[64];

	for (;;) {
		size_t len = strcspn(words, "|");

		if (len < sizeof(word)) {
			memcpy(word, words, len);
			word[len] = '\0';
			complete_offer(c, kind, prefix, word, NULL);
		}
		if (!words[len])
			return;
		words += len + 1;
	}
}

/* new: those of which images can be made. all: layers and places for images, too. */
static void offer_drivers(struct complete *c, enum offer_kind kind, const char *prefix, bool new, bool all)
{
	const char *name;

	for (unsigned i = 0; (name = varve_driver_name(i)); i++) {
		bool is_format = strcmp(varve_driver_kind(name), "format") == 0;

		if ((all || is_format) && (!new || varve_driver_options(name)))
			complete_offer(c, kind, prefix, name, NULL);
	}
}

/* The part of the name behind the last slash is completed; the directory stays as it was typed. */
void complete_files(struct complete *c, const char *prefix, const char *typed)
{
	const char *slash = strrchr(typed, '/'), *home = getenv("HOME");
	size_t dir_len = slash ? (size_t)(slash - typed) + 1 : 0;
	bool tilde = strncmp(typed, "~/", 2) == 0 && home;
	char dir[4096], path[8192], text[8192];
	struct dirent *e;
	struct stat st;
	DIR *d;

	if (snprintf(dir, sizeof(dir), "%s%.*s", tilde ? home : "", (int)(dir_len - tilde), typed + tilde) >=
	    (int)sizeof(dir))
		return;
	d = opendir(*dir ? dir : ".");
	while (d && (e = readdir(d))) {
		bool is_dir;

		/* Others may name the file; a comma would have to be doubled, and nobody sees that it was. */
		if (strncmp(e->d_name, typed + dir_len, strlen(typed + dir_len)) != 0 ||
		    strchr(e->d_name, ','))
			continue;
		if (e->d_name[0] == '.' && typed[dir_len] != '.')
			continue;
		snprintf(path, sizeof(path), "%s%s", dir, e->d_name);
		is_dir = stat(path, &st) == 0 && S_ISDIR(st.st_mode);
		snprintf(text, sizeof(text), "%.*s%s%s", (int)dir_len, typed, e->d_name, is_dir ? "/" : "");
		complete_offer(c, OFFER_PART, prefix, text, NULL);
	}
	if (d)
		closedir(d);
}

void complete_value(struct complete *c, enum offer_kind kind, const char *prefix, const char *value,
		    const char *typed)
{
	if (strchr(value, '|') || strcmp(value, "secret") == 0 || strcmp(value, "iothread") == 0)
		offer_words(c, kind, prefix, value);
	else if (strcmp(value, "bool") == 0)
		offer_words(c, kind, prefix, "on|off");
	else if (strcmp(value, "file") == 0)
		complete_files(c, prefix, typed);
	else if (strcmp(value, "format") == 0)
		offer_drivers(c, kind, prefix, false, false);
	else if (strcmp(value, "driver") == 0)
		offer_drivers(c, kind, prefix, false, true);
}

/* What an image option of that name can be. */
static void offer_as_option(struct complete *c, const char *prefix, const char *key)
{
	for (const struct varve_option_info *o = varve_driver_open_options(NULL); o->name; o++) {
		if (strcmp(o->name, key) == 0)
			complete_value(c, OFFER_WORD, prefix, o->value, "");
	}
}

static void offer_command(struct complete *c, const char *prefix)
{
	const struct io_command *all[IO_COMMANDS_MAX];

	for (size_t i = 0, n = io_list(all); i < n; i++)
		complete_offer(c, OFFER_PART, prefix, all[i]->c.name, all[i]->c.what);
}

/* Names of files: the shell's own way where the word is nothing else. */
static void offer_files(struct complete *c, const char *prefix, const char *typed)
{
	if (*prefix)
		complete_files(c, prefix, typed);
	else
		complete_offer(c, OFFER_FILES, "", "", NULL);
}

static void offer_value(struct complete *c, const struct option_row *row, const char *prefix,
			const char *typed)
{
	const char *arg = row->arg + (*row->arg == '=');

	if (strcmp(arg, ARG_FORMAT) == 0 || strcmp(arg, ARG_NEW_FORMAT) == 0)
		offer_drivers(c, OFFER_WORD, prefix, strcmp(arg, ARG_NEW_FORMAT) == 0, false);
	else if (strcmp(arg, ARG_CACHE) == 0)
		offer_as_option(c, prefix, "cache");
	else if (strcmp(arg, ARG_ENGINE) == 0)
		offer_as_option(c, prefix, "aio");
	else if (strcmp(arg, ARG_DISCARD) == 0)
		offer_as_option(c, prefix, "discard");
	else if (strcmp(arg, ARG_FILE) == 0 || strcmp(arg, ARG_BASE) == 0 || strcmp(arg, ARG_DIR) == 0 ||
		 strcmp(arg, ARG_SOCKET) == 0)
		offer_files(c, prefix, typed);
	else if (strcmp(arg, ARG_SNAPSHOT) == 0)
		complete_snapshots(c, prefix);
	else if (strcmp(arg, ARG_BITMAP) == 0)
		complete_bitmaps(c, prefix);
	else if (strcmp(arg, ARG_CREATE) == 0)
		complete_creation(c, prefix, typed);
	else if (strcmp(arg, ARG_NODE) == 0)
		complete_image_options(c, prefix, typed, true);
	else if (strcmp(arg, ARG_EXPORT) == 0)
		complete_keys(c, prefix, typed, export_options, "type");
	else if (strcmp(arg, ARG_OBJECT) == 0)
		complete_keys(c, prefix, typed, c->command == &cmd_daemon ? iothread_options : secret_options,
			      "qom-type");
	else if (strcmp(arg, ARG_COMMAND) == 0)
		offer_command(c, prefix);
	else if (strchr(arg, '|'))
		complete_value(c, OFFER_WORD, prefix, arg, typed);
}

/* ---- options and arguments ---- */

static bool has_letter(const struct option_row *row)
{
	return row->id > 0 && row->id < 256;
}

/* A value in an argument of its own. */
static bool needs_value(const struct option_row *row)
{
	return row->arg && *row->arg != '=';
}

static void offer_rows(struct complete *c, const struct option_row *rows, bool letters)
{
	char text[64];

	for (; rows->id; rows++) {
		if (letters && has_letter(rows)) {
			snprintf(text, sizeof(text), "-%c", rows->id);
			complete_offer(c, OFFER_WORD, "", text, rows->what);
		}
		if (!rows->name)
			continue;
		snprintf(text, sizeof(text), "--%s", rows->name);
		complete_offer(c, OFFER_WORD, "", text, rows->what);
	}
}

/* What the words before it say that matters to the last. */
static void note(struct complete *c, const struct option_row *row, const char *value)
{
	if (row->arg && strcmp(row->arg, ARG_NEW_FORMAT) == 0)
		c->new_format = value;
	else if (row->id == 'f')
		c->format = value;
	else if (row->name && strcmp(row->name, "image-opts") == 0)
		c->image_opts = true;
	else if (row->name && strcmp(row->name, "source-file") == 0)
		c->backing = value;
}

/* The option whose value the next word is; NULL: it is none. */
static const struct option_row *read_option(struct complete *c, const char *word)
{
	const struct option_row *row;
	const char *equals;

	if (word[1] == '-') {
		equals = strchr(word, '=');
		row = option_by_name(c->command, word + 2,
				     equals ? (size_t)(equals - word) - 2 : strlen(word + 2));
		if (!row || (!equals && needs_value(row)))
			return row;
		note(c, row, equals ? equals + 1 : NULL);
		return NULL;
	}
	for (const char *letter = word + 1; *letter; letter++) {
		row = option_by_letter(c->command, *letter);
		if (!row || !needs_value(row)) {
			if (row)
				note(c, row, NULL);
			continue;
		}
		if (!letter[1])
			return row;
		note(c, row, letter + 1);
		break;
	}
	return NULL;
}

/* "--name=value", "-fvalue". False: the word is no option with its value. */
static bool complete_attached(struct complete *c, const char *word)
{
	const struct option_row *row = NULL;
	const char *at = strchr(word, '=');
	char prefix[256];

	if (word[1] == '-') {
		row = at ? option_by_name(c->command, word + 2, (size_t)(at - word) - 2) : NULL;
		at = at ? at + 1 : NULL;
	} else {
		for (at = word + 1; *at && !row; at++) {
			const struct option_row *r = option_by_letter(c->command, *at);

			row = r && needs_value(r) ? r : NULL;
		}
	}
	if (!row || !row->arg || (size_t)(at - word) >= sizeof(prefix))
		return false;
	snprintf(prefix, sizeof(prefix), "%.*s", (int)(at - word), word);
	offer_value(c, row, prefix, at);
	return true;
}

/* The word in the command's usage for the argument that comes next: "FILE", "[SIZE]", "SOURCE...|-". */
static void usage_word(const struct complete *c, char *buf, size_t size)
{
	const char *s = c->command->args;

	*buf = '\0';
	for (int i = 0; *s; i++) {
		size_t len = strcspn(s, " ");

		snprintf(buf, size, "%.*s", (int)len, s);
		if (i == c->nr_args || strstr(buf, "..."))
			return;
		s += len + (s[len] == ' ');
	}
	if (!strstr(buf, "...") && c->nr_args)
		*buf = '\0'; /* it is one too many */
}

static void complete_operand(struct complete *c, const char *typed)
{
	char word[64], prefix[64];
	const char *s = c->command->args;

	/* "[if=FILE] [bs=SIZE]": the usage is the list. */
	for (; *s; s += strcspn(s, " "), s += *s == ' ') {
		size_t len = strcspn(s + 1, "=");

		snprintf(prefix, sizeof(prefix), "%.*s=", (int)len, s + 1);
		snprintf(word, sizeof(word), "%.*s", (int)strcspn(s + len + 2, "]"), s + len + 2);
		if (strncmp(typed, prefix, strlen(prefix)) != 0)
			complete_offer(c, OFFER_PART, "", prefix, NULL);
		else if (strcmp(word, ARG_FILE) == 0)
			complete_files(c, prefix, typed + strlen(prefix));
	}
}

static void complete_argument(struct complete *c, const char *typed)
{
	char word[64];

	if (strstr(c->command->args, "[if=")) {
		complete_operand(c, typed);
		return;
	}
	usage_word(c, word, sizeof(word));
	if (strstr(word, "BITMAP"))
		complete_bitmaps(c, "");
	else if (strstr(word, "SNAPSHOT"))
		complete_snapshots(c, "");
	else if (!*word || strstr(word, "SIZE") || strcmp(word, "NAME") == 0 || strstr(word, "WORKLOAD"))
		return;
	else if (c->image_opts)
		complete_image_options(c, "", typed, false);
	else if (islower((unsigned char)*word))
		offer_words(c, OFFER_WORD, "", word);
	else
		complete_offer(c, OFFER_FILES, "", "", NULL);
}

/* The option whose value follows the last of the words; NULL: none. *ended: "--" was among them. */
static const struct option_row *read_words(struct complete *c, int nr, char **words, bool *ended)
{
	const struct option_row *pending = NULL;

	for (int i = 0; i < nr; i++) {
		if (pending) {
			note(c, pending, words[i]);
			pending = NULL;
		} else if (!*ended && strcmp(words[i], "--") == 0) {
			*ended = true;
		} else if (!*ended && c->command == &cmd_serve && strcmp(words[i], SERVE_NEXT_DISK) == 0) {
			c->nr_args = 0;
			c->image = NULL;
		} else if (!*ended && words[i][0] == '-' && words[i][1]) {
			pending = read_option(c, words[i]);
		} else {
			c->image = c->nr_args++ ? c->image : words[i];
		}
	}
	return pending;
}

/* An argument that looks like an option: "-1G" of resize. */
static bool is_argument(const struct complete *c, const char *word)
{
	return *word != '-' || (strstr(c->command->args, "[+|-]SIZE") && isdigit((unsigned char)word[1]));
}

static void complete_command(struct complete *c, const struct command *command, int from)
{
	const struct option_row *pending;
	char *last = c->words[c->nr - 1];
	bool ended = false, after = false;
	int nr_args;

	c->command = command;
	pending = read_words(c, c->nr - 1 - from, c->words + from, &ended);
	nr_args = c->nr_args;
	after = ended;
	(void)read_words(c, c->nr_after, c->after, &after);
	c->nr_args = nr_args;
	if (pending) {
		offer_value(c, pending, "", last);
	} else if (ended || is_argument(c, last)) {
		complete_argument(c, last);
	} else if (!complete_attached(c, last)) {
		offer_rows(c, command->options, last[1] != '-');
		offer_rows(c, options_of_all(), last[1] != '-');
		if (command == &cmd_serve)
			complete_offer(c, OFFER_WORD, "", SERVE_NEXT_DISK, "one disk more");
	}
}

static void complete_img(struct complete *c, int from)
{
	for (const struct command *const *cmd = img_commands; *cmd; cmd++) {
		if (from == c->nr - 1)
			complete_offer(c, OFFER_WORD, "", (*cmd)->name, (*cmd)->what);
		else if (strcmp(c->words[from], (*cmd)->name) == 0)
			complete_command(c, *cmd, from + 1);
	}
}

static void complete_vmstate(struct complete *c, int from)
{
	for (const struct command *cmd = cmd_vmstate; cmd->name; cmd++) {
		if (from == c->nr - 1)
			complete_offer(c, OFFER_WORD, "", cmd->name, cmd->what);
		else if (strcmp(c->words[from], cmd->name) == 0)
			complete_command(c, cmd, from + 1);
	}
}

static void complete_tool(struct complete *c, const char *tool, int from)
{
	if (strcmp(tool, "img") == 0)
		complete_img(c, from);
	else if (strcmp(tool, "io") == 0)
		complete_command(c, &cmd_io, from);
	else if (strcmp(tool, "daemon") == 0)
		complete_command(c, &cmd_daemon, from);
	else if (strcmp(tool, "serve") == 0)
		complete_command(c, &cmd_serve, from);
	else if (strcmp(tool, "vmstate") == 0)
		complete_vmstate(c, from);
	else if (strcmp(tool, "crashtest") == 0)
		complete_command(c, &cmd_crashtest, from);
	else if (strcmp(tool, "completion") == 0)
		complete_command(c, &cmd_completion, from);
	else
		complete_offer(c, OFFER_FILES, "", "", NULL);
}

void complete_words(offer_fn offer, void *arg, int nr, char **words, int nr_after)
{
	struct complete c = { .offer = offer,
			      .arg = arg,
			      .nr = nr,
			      .words = words,
			      .nr_after = nr_after,
			      .after = words + nr };
	const char *slash, *name, *what, *tool;

	if (nr < 2)
		return;
	slash = strrchr(words[0], '/');
	for (unsigned i = 0; (name = tool_name(i, true, &what)); i++) {
		if (*name && strcmp(slash ? slash + 1 : words[0], name) == 0) {
			complete_tool(&c, tool_name(i, false, &what), 1);
			return;
		}
	}
	for (unsigned i = 0; (tool = tool_name(i, false, &what)); i++) {
		if (nr == 2)
			complete_offer(&c, OFFER_WORD, "", tool, what);
		else if (strcmp(words[1], tool) == 0)
			complete_tool(&c, tool, 2);
	}
}
