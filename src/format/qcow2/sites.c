/* SPDX-License-Identifier: MIT */
/*
 * qcow2/sites.c - which orders a test wants forgotten
 */
#include "format/qcow2/sites.h"

#include <stdlib.h>
#include <string.h>

int sites_open(struct qcow2 *q, struct varve_error *err)
{
	static const char *const names[SITES] = SITE_NAMES;
	const char *text = getenv("VARVE_FORGET_ORDER");

	while (text && *text) {
		size_t len = strcspn(text, ",");
		unsigned i = 0;

		while (i < SITES && (strlen(names[i]) != len || memcmp(names[i], text, len) != 0))
			i++;
		if (i == SITES)
			return varve_error_set(err, -EINVAL, "VARVE_FORGET_ORDER: no order is called '%.*s'",
					       (int)MIN(len, 80u), text);
		q->sites_off |= 1u << i;
		text += len + (text[len] == ',');
	}
	return 0;
}
