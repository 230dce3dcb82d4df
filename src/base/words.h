/* SPDX-License-Identifier: MIT */
/*
 * base/words.h - the words that an option can be, as one text: "off|metadata|falloc|full"
 *
 * The same text is what parses the option and what tells people and shells about it (struct
 * varve_option_info).
 */
#ifndef VARVE_BASE_WORDS_H
#define VARVE_BASE_WORDS_H

/* Which of them it is, from 0; -1: none. */
int words_find(const char *words, const char *word);

#endif
