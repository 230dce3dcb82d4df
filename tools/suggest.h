/* SPDX-License-Identifier: MIT */
/*
 * tools/suggest.h - which known word somebody meant who wrote another
 */
#ifndef VARVE_TOOLS_SUGGEST_H
#define VARVE_TOOLS_SUGGEST_H

#include <stddef.h>

struct suggestion {
	const char *wrong; /* what was written, len bytes */
	size_t len;
	const char *best; /* NULL: nothing is near */
	unsigned distance;
};

void suggest_start(struct suggestion *s, const char *wrong, size_t len);
/* One of the words that there are; called for each. It must live as long as s. */
void suggest_word(struct suggestion *s, const char *word);
/* "; did you mean WORD?", or "" . */
const char *suggest_text(const struct suggestion *s, char buf[64]);

#endif
