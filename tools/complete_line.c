/* SPDX-License-Identifier: MIT */
/*
 * tools/complete_line.c - completion for bash, which gives the line as it was typed and takes back parts of
 * words
 *
 * Bash cuts words at "=", ":" and others (COMP_WORDBREAKS), too, and replaces only what is behind the last of
 * them, or behind the quote that is open. So the line is read here, up to the cursor: quotes as the shell
 * reads them, without expanding anything.
 *
 *     first line   files: the shell's own completion of names; nospace: more of the word follows; space: it
 * is whole other lines  what takes the place of the part that bash replaces, quoted as that part is
 */
#include <stdlib.h>
#include <string.h>

#include "complete.h"

#define WORDS_MAX 1024
#define OFFERS_MAX 4096

struct line {
	char *text; /* all words, without their quotes, each ended by NUL */
	char *words[WORDS_MAX + 1];
	int nr, nr_after;
	size_t kept; /* bytes of the last word that bash leaves alone */
	char quote;  /* that is open: '"', '\'' or 0 */

	/* what was offered */
	char *offer[OFFERS_MAX];
	unsigned nr_offers;
	enum offer_kind kind; /* of the last */
	bool files;
};

/* *to: where words go, and where the next one may. False: more words than anybody types. */
static bool read_line(struct line *l, const char *s, const char *breaks, char **ret_to)
{
	char *to = *ret_to, *word = NULL;

	for (; *s; s++) {
		if (!l->quote && (*s == ' ' || *s == '\t' || *s == '\n')) {
			if (word) {
				*to++ = '\0';
				if (l->nr == WORDS_MAX - 1)
					return false;
				l->words[l->nr++] = word;
			}
			word = NULL;
			continue;
		}
		if (!word) {
			word = to;
			l->kept = 0;
		}
		if (l->quote && *s == l->quote) {
			l->quote = 0;
		} else if (!l->quote && (*s == '"' || *s == '\'')) {
			l->quote = *s;
			l->kept = (size_t)(to - word);
		} else if (*s == '\\' && s[1] && (!l->quote || (l->quote == '"' && strchr("\\\"$`", s[1])))) {
			*to++ = *++s;
		} else {
			*to++ = *s;
			if (!l->quote && strchr(breaks, *s))
				l->kept = (size_t)(to - word);
		}
	}
	*to = '\0';
	if (!word)
		l->kept = 0;
	l->words[l->nr++] = word ? word : to;
	*ret_to = to + 1;
	return true;
}

/* The words behind that of the cursor. */
static void read_rest(struct line *l, const char *rest, char *to)
{
	struct line *after = calloc(1, sizeof(*after));

	rest += strcspn(rest, " \t\n");
	if (after && read_line(after, rest, "", &to)) {
		for (int i = 0; i < after->nr && l->nr + l->nr_after < WORDS_MAX; i++)
			l->words[l->nr + l->nr_after++] = after->words[i];
	}
	free(after);
}

static void take(void *arg, enum offer_kind kind, const char *text, const char *what)
{
	struct line *l = arg;
	const char *typed = l->words[l->nr - 1];

	(void)what;
	if (kind == OFFER_FILES) {
		l->files = true;
		return;
	}
	if (strncmp(text, typed, strlen(typed)) != 0 || l->nr_offers == OFFERS_MAX)
		return;
	l->kind = kind;
	l->offer[l->nr_offers] = strdup(text + l->kept);
	l->nr_offers += l->offer[l->nr_offers] != NULL;
}

static bool is_plain(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
	       strchr("%+,-./:=@_", c) || (unsigned char)c >= 0x80;
}

static void print_quoted(const char *s, char quote)
{
	for (; *s; s++) {
		if (quote == '\'' && *s == '\'') {
			fputs("'\\''", stdout);
			continue;
		}
		if ((quote == '"' && strchr("\\\"$`", *s)) || (!quote && !is_plain(*s)))
			putchar('\\');
		putchar(*s);
	}
	putchar('\n');
}

int complete_line(const char *line, const char *rest, const char *breaks)
{
	struct line *l = calloc(1, sizeof(*l));
	bool whole;
	char *to;

	if (!l || !(l->text = malloc(strlen(line) + strlen(rest) + 8))) {
		free(l);
		return 1;
	}
	to = l->text;
	if (read_line(l, line, breaks, &to)) {
		read_rest(l, rest, to);
		complete_words(take, l, l->nr, l->words, l->nr_after);
	}
	whole = l->nr_offers != 1 || l->kind == OFFER_WORD;
	puts(l->files ? "files" : whole ? "space" : "nospace");
	for (unsigned i = 0; i < l->nr_offers; i++) {
		print_quoted(l->offer[i], l->quote);
		free(l->offer[i]);
	}
	free(l->text);
	free(l);
	return finish_stdout();
}
