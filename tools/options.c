/* SPDX-License-Identifier: MIT */
/*
 * tools/options.c - see options.h
 */
#include "options.h"

#include <ctype.h>
#include <stdarg.h>
#include <string.h>

#include "common.h"
#include "suggest.h"

#define HELP_COLUMN_MAX 34

enum { ID_HELP = 'h', ID_ERRORS = -2 };

/* What every command has. */
static const struct option_row shared[] = {
	{ ID_HELP, "help", NULL, "show this" },
	{ ID_ERRORS, "errors", FORM_WORDS, "errors as text (default) or json" },
	OPTION_END,
};

int option_word(const char *words, const char *text)
{
	size_t len = strlen(text);

	for (int i = 0;; i++) {
		size_t this_len = strcspn(words, "|");

		if (this_len == len && memcmp(words, text, len) == 0)
			return i;
		words += this_len;
		if (!*words)
			return -1;
		words++;
	}
}

void parse_start(struct parse *p, const struct command *command, int argc, char **argv)
{
	if (command->run)
		complain_help_is(command->name);
	*p = (struct parse){ .command = command, .argv = argv, .argc = argc, .at = 1, .args = argv + 1 };
}

/* An error, told with the name of the command and where help is. */
static int wrong(struct parse *p, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static int wrong(struct parse *p, const char *fmt, ...)
{
	const char *name = p->command->name;
	char text[VARVE_ERROR_MAX];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (p->language)
		complain("%s: %s", name, text);
	else
		complain_usage("%s%s%s", name, *name ? ": " : "", text);
	p->status = 1;
	return -1;
}

/* What every command has; a word of the language has nothing. */
static const struct option_row *shared_of(const struct parse *p)
{
	return p->language ? &shared[ARRAY_LEN(shared) - 1] : shared;
}

/* ---- finding a row ---- */

static const struct option_row *by_letter(const struct option_row *rows, char letter)
{
	for (; rows->id; rows++) {
		if (rows->id == letter)
			return rows;
	}
	return NULL;
}

/* The exact name, or the only one that begins so. *ret_nr: how many do. */
static const struct option_row *by_name(const struct option_row *rows, const char *name, size_t len, unsigned *ret_nr)
{
	const struct option_row *found = NULL;

	for (; rows->id; rows++) {
		if (!rows->name || strncmp(rows->name, name, len) != 0)
			continue;
		if (!rows->name[len]) {
			*ret_nr = 1;
			return rows;
		}
		/* Two names of one option are no choice. */
		if (!found || found->id != rows->id)
			++*ret_nr;
		found = rows;
	}
	return found;
}

const struct option_row *option_by_letter(const struct command *c, char letter)
{
	const struct option_row *row = by_letter(c->options, letter);

	return row ? row : by_letter(shared, letter);
}

const struct option_row *option_by_name(const struct command *c, const char *name, size_t len)
{
	unsigned nr = 0, nr_shared = 0;
	const struct option_row *row = by_name(c->options, name, len, &nr), *other = by_name(shared, name, len, &nr_shared);

	if (other && (!row || !other->name[len])) {
		row = other;
		nr = nr_shared;
	}
	return nr == 1 ? row : NULL;
}

const struct option_row *options_of_all(void)
{
	return shared;
}

/* ---- one option ---- */

static int answer(struct parse *p, const struct option_row *row)
{
	if (row->id == ID_HELP) {
		command_help(p->command);
		p->status = finish_stdout();
		return -1;
	}
	if (row->id != ID_ERRORS)
		return row->id;
	if (parse_errors(p->value)) {
		p->status = 1;
		return -1;
	}
	return parse_next(p);
}

/* The value of an option in the next argument. */
static bool take_next(struct parse *p)
{
	if (p->at >= p->argc)
		return false;
	p->value = p->argv[p->at++];
	return true;
}

static int unknown(struct parse *p, const char *word, size_t len)
{
	struct suggestion s;
	char name[96];

	suggest_start(&s, word, len);
	for (const struct option_row *row = p->command->options; row->id; row++) {
		if (row->name)
			suggest_word(&s, row->name);
	}
	snprintf(name, sizeof(name), "unknown option '--%.*s'", (int)MIN(len, 60), word);
	if (s.best)
		return wrong(p, "%s; did you mean --%s?", name, s.best);
	return wrong(p, "%s", name);
}

static int long_option(struct parse *p, const char *word)
{
	const char *equals = strchr(word, '=');
	size_t len = equals ? (size_t)(equals - word) : strlen(word);
	const struct option_row *row, *other;
	unsigned nr = 0;

	row = by_name(p->command->options, word, len, &nr);
	if (!row || row->name[len]) {
		other = by_name(shared_of(p), word, len, &nr);
		if (other && (!row || !other->name[len]))
			row = other;
		if (other && !other->name[len])
			nr = 1;
	}
	if (!row)
		return unknown(p, word, len);
	if (nr > 1)
		return wrong(p, "ambiguous option '--%.*s'", (int)len, word);
	p->value = equals ? equals + 1 : NULL;
	if (!row->arg && equals)
		return wrong(p, "option '--%s' takes no value", row->name);
	if (row->arg && *row->arg != '=' && !equals && !take_next(p))
		return wrong(p, "option '--%s' needs a value (%s)", row->name, row->arg);
	return answer(p, row);
}

static int letter_option(struct parse *p)
{
	char letter = *p->letters++;
	const struct option_row *row = by_letter(p->command->options, letter);

	if (!row)
		row = by_letter(shared_of(p), letter);
	if (!row)
		return wrong(p, "unknown option '-%c'", letter);
	p->value = NULL;
	if (row->arg && *row->arg != '=') {
		if (*p->letters)
			p->value = p->letters;
		else if (!take_next(p))
			return wrong(p, "option '-%c' needs a value (%s)", letter, row->arg);
		p->letters = NULL;
	}
	if (p->letters && !*p->letters)
		p->letters = NULL;
	return answer(p, row);
}

int parse_next(struct parse *p)
{
	if (p->letters)
		return letter_option(p);
	while (p->at < p->argc) {
		char *word = p->argv[p->at++];

		if (p->ended || word[0] != '-' || !word[1] || (p->numbers && isdigit((unsigned char)word[1]))) {
			p->args[p->nr_args++] = word;
			continue;
		}
		if (strcmp(word, "--") == 0) {
			p->ended = true;
			continue;
		}
		if (word[1] == '-')
			return long_option(p, word + 2);
		p->letters = word + 1;
		return letter_option(p);
	}
	return 0;
}

/* ---- help ---- */

/* "-f, --format FORMAT" */
static void spelling(const struct option_row *row, char buf[128])
{
	bool letter = row->id > 0 && row->id < 256;
	bool with_equals = row->arg && *row->arg == '=';

	snprintf(buf, 128, "%c%c%s%s%s%s%s%s%s", letter ? '-' : ' ', letter ? row->id : ' ', letter && row->name ? "," : letter ? "" : " ",
		 row->name ? " --" : "", row->name ? row->name : "", with_equals ? "[" : "",
		 row->arg && !with_equals ? " " : "", row->arg ? row->arg : "", with_equals ? "]" : "");
}

static size_t widest(const struct option_row *rows, size_t width)
{
	char text[128];

	for (; rows->id; rows++) {
		spelling(rows, text);
		if (rows->what && strlen(text) > width && strlen(text) <= HELP_COLUMN_MAX)
			width = strlen(text);
	}
	return width;
}

static void print_rows(const struct option_row *rows, size_t width)
{
	char text[128];

	for (; rows->id; rows++) {
		if (!rows->what)
			continue;
		spelling(rows, text);
		printf("  %-*s  %s\n", (int)width, text, rows->what);
	}
}

void command_help(const struct command *c)
{
	size_t width = widest(shared, widest(c->options, 0));

	printf("Usage: %s%s%s [OPTION]... %s\n\n%c%s.\n\n", prog, *c->name ? " " : "", c->name, c->args,
	       toupper((unsigned char)c->what[0]), c->what + 1);
	print_rows(c->options, width);
	print_rows(shared, width);
	if (c->notes)
		printf("\n%s", c->notes);
}

void command_letters(const struct command *c)
{
	const struct option_row *row;
	bool any = false;

	for (row = c->options; row->id; row++) {
		if (!row->what || row->arg)
			continue;
		printf("%s%c", any ? "" : " [-", row->id);
		any = true;
	}
	printf("%s", any ? "]" : "");
	for (row = c->options; row->id; row++) {
		if (row->what && row->arg)
			printf(" [-%c %s]", row->id, row->arg);
	}
}

void command_rows(const struct command *c)
{
	print_rows(c->options, widest(c->options, 0));
}
