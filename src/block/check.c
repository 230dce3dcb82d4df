/* SPDX-License-Identifier: MIT */
/*
 * block/check.c - the lines that a check reports
 */
#include "block/node.h"

#include <stdarg.h>
#include <stdio.h>

void check_report(struct check *c, const char *fmt, ...)
{
	char line[VARVE_ERROR_MAX];
	va_list ap;

	if (!c->report || c->nr_reported > CHECK_REPORT_MAX)
		return;
	if (c->nr_reported++ == CHECK_REPORT_MAX) {
		c->report(c->user_data, "more was found; it is counted, and not listed");
		return;
	}
	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	c->report(c->user_data, line);
}
