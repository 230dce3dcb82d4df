/* SPDX-License-Identifier: MIT */
/*
 * tools/suggest.c - see suggest.h
 *
 * Near is what a slip of the fingers makes: a letter more, less or other, two that changed places; in long words two of these.
 */
#include "suggest.h"

#include <stdio.h>
#include <string.h>

#include "common.h"

#define WORD_MAX 40

void suggest_start(struct suggestion *s, const char *wrong, size_t len)
{
	*s = (struct suggestion){ .wrong = wrong, .len = len, .distance = len > 4 ? 3 : 2 };
}

/* Slips between two words, by the table of their beginnings, of which three rows are needed. */
static unsigned distance(const char *a, size_t a_len, const char *b, size_t b_len)
{
	unsigned rows[3][WORD_MAX + 1];

	for (size_t j = 0; j <= b_len; j++)
		rows[0][j] = (unsigned)j;
	for (size_t i = 1; i <= a_len; i++) {
		unsigned *now = rows[i % 3], *last = rows[(i + 2) % 3], *before = rows[(i + 1) % 3];

		now[0] = (unsigned)i;
		for (size_t j = 1; j <= b_len; j++) {
			now[j] = MIN(MIN(last[j], now[j - 1]) + 1, last[j - 1] + (a[i - 1] != b[j - 1]));
			if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
				now[j] = MIN(now[j], before[j - 2] + 1);
		}
	}
	return rows[a_len % 3][b_len];
}

void suggest_word(struct suggestion *s, const char *word)
{
	size_t len = strlen(word);
	unsigned d;

	if (len > WORD_MAX || s->len > WORD_MAX || s->len < 3)
		return;
	d = distance(s->wrong, s->len, word, len);
	if (d >= s->distance)
		return;
	s->distance = d;
	s->best = word;
}

const char *suggest_text(const struct suggestion *s, char buf[64])
{
	*buf = '\0';
	if (s->best)
		snprintf(buf, 64, "; did you mean %s?", s->best);
	return buf;
}
