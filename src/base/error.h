/* SPDX-License-Identifier: MIT */
/*
 * base/error.h - one error, in words for a person
 *
 * struct varve_error is public (include/varve/varve.h). It is filled once, where the fault is found; callers
 * add where they were with varve_error_prefix(). Every function takes err == NULL (nobody wants the words).
 */
#ifndef VARVE_BASE_ERROR_H
#define VARVE_BASE_ERROR_H

#include <errno.h>
#include <varve/varve.h>

/* Sets the text and code; returns code (a negative errno), so that `return varve_error_set(...)` reads well. */
int varve_error_set(struct varve_error *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Like varve_error_set(), and appends ": " and the text of errno -code. */
int varve_error_errno(struct varve_error *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Puts the text in front of what is there; returns code unchanged. */
int varve_error_prefix(struct varve_error *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

#endif
