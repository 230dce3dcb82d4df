/* SPDX-License-Identifier: MIT */
/*
 * tools/unfinished.h - the file that a command is making: a signal that ends the command takes it along
 *
 * SIGINT, SIGTERM and SIGHUP end the process at once, after they have removed the file (or emptied one that
 * existed), so that nobody takes a half-made one for an image. Signals that whoever started us ignores stay
 * ignored.
 */
#ifndef VARVE_TOOLS_UNFINISHED_H
#define VARVE_TOOLS_UNFINISHED_H

#include <stdbool.h>

/* From now on. */
void unfinished_watch(void);
/* This one, which lives until it is named no more (NULL). existed: it is emptied instead, and stays (it may
 * be a link, /dev/stdout even). */
void unfinished_file(const char *path, bool existed);
/* Its data file, which nobody else has while it is made; NULL: there is none, or it existed before. */
void unfinished_data_file(const char *path);
/* Removes (or empties) what is named now. -1: see errno; 0 also when there is nothing. */
int unfinished_give_up(void);

#endif
