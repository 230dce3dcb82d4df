/* SPDX-License-Identifier: MIT */
/*
 * base/words.c - see words.h
 */
#include "base/words.h"

#include <string.h>

int words_find(const char *words, const char *word)
{
	size_t len = strlen(word);

	for (int i = 0;; i++) {
		size_t this_len = strcspn(words, "|");

		if (this_len == len && memcmp(words, word, len) == 0)
			return i;
		words += this_len;
		if (!*words)
			return -1;
		words++;
	}
}
