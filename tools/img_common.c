/* SPDX-License-Identifier: MIT */
/*
 * tools/img_common.c - what several commands of `varve img` do in the same way
 */
#include "img.h"

int open_option(struct open_args *a, int id, const char *value)
{
	switch (id) {
	case 'f':
		a->format = value;
		return 0;
	case 't':
	case 'T':
		a->cache = value;
		return 0;
	case 'U':
		a->force_share = true;
		return 0;
	case LONG_IMAGE_OPTS:
		a->image_opts = true;
		return 0;
	case LONG_OBJECT:
		return object_add(value);
	default:
		complain("option %d is in a table, but nobody reads it: this is an error in varve", id);
		return 1;
	}
}
