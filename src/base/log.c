/* SPDX-License-Identifier: MIT */
/*
 * base/log.c - the one log sink of the process
 *
 * Owns:    the sink, set once before threads exist.
 */
#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>

static void (*log_fn)(void *user_data, enum varve_log_level level, const char *line);
static void *log_user_data;

void varve_set_log(void (*fn)(void *user_data, enum varve_log_level level, const char *line), void *user_data)
{
	log_fn = fn;
	log_user_data = user_data;
}

void log_line(enum varve_log_level level, const char *fmt, ...)
{
	char line[VARVE_ERROR_MAX];
	va_list ap;

	if (!log_fn)
		return;
	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	log_fn(log_user_data, level, line);
}
