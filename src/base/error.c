/* SPDX-License-Identifier: MIT */
/*
 * base/error.c - filling and prefixing of errors
 *
 * Never:   allocates; a text that is too long is cut at the end. Lets a control character through.
 */
#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* File names and values in a text are a stranger's: they must not forge lines or move a terminal's cursor. */
static void one_line(char *text)
{
	for (; *text; text++) {
		if ((unsigned char)*text < 0x20 || *text == 0x7f)
			*text = '?';
	}
}

int varve_error_set(struct varve_error *err, int code, const char *fmt, ...)
{
	va_list ap;

	if (!err)
		return code;
	err->code = code;
	va_start(ap, fmt);
	vsnprintf(err->message, sizeof(err->message), fmt, ap);
	va_end(ap);
	one_line(err->message);
	return code;
}

int varve_error_errno(struct varve_error *err, int code, const char *fmt, ...)
{
	va_list ap;
	char reason[128];
	size_t n;

	if (!err)
		return code;
	err->code = code;
	va_start(ap, fmt);
	vsnprintf(err->message, sizeof(err->message), fmt, ap);
	va_end(ap);
	one_line(err->message);
	n = strlen(err->message);
	snprintf(err->message + n, sizeof(err->message) - n, ": %s",
		 strerror_r(-code, reason, sizeof(reason)));
	return code;
}

int varve_error_prefix(struct varve_error *err, int code, const char *fmt, ...)
{
	char head[sizeof(err->message)];
	va_list ap;
	size_t n, keep;

	if (!err)
		return code;
	va_start(ap, fmt);
	vsnprintf(head, sizeof(head), fmt, ap);
	va_end(ap);
	one_line(head);
	n = strlen(head);
	keep = strlen(err->message);
	if (keep > sizeof(err->message) - 1 - n)
		keep = sizeof(err->message) - 1 - n;
	memmove(err->message + n, err->message, keep);
	memcpy(err->message, head, n);
	err->message[n + keep] = '\0';
	return code;
}
