/* SPDX-License-Identifier: MIT */
/*
 * base/log.h - lines for the operator, through the function the embedder gave (varve_set_log())
 *
 * For what has no caller to return an error to: a broken ring, a lost client. Never for errors that are returned.
 */
#ifndef VARVE_BASE_LOG_H
#define VARVE_BASE_LOG_H

#include <varve/varve.h>

void log_line(enum varve_log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...) log_line(VARVE_LOG_ERROR, __VA_ARGS__)
#define log_warning(...) log_line(VARVE_LOG_WARNING, __VA_ARGS__)
#define log_info(...) log_line(VARVE_LOG_INFO, __VA_ARGS__)
#define log_debug(...) log_line(VARVE_LOG_DEBUG, __VA_ARGS__)

#endif
