/* SPDX-License-Identifier: MIT */
/*
 * api/debug.c - break points of an image that stands on a node of driver blkdebug
 */
#include "api/api.h"
#include "block/event.h"

struct debug_args {
	struct node *top;
	enum debug_op op;
	const char *event, *tag;
	struct varve_error *err;
};

static int debug_fiber(struct fiber *f, void *arg)
{
	struct debug_args *a = arg;

	(void)f;
	return node_debug(a->top, a->op, a->event, a->tag, a->err);
}

static int debug(struct varve_image *image, enum debug_op op, const char *event, const char *tag,
		 struct varve_error *err)
{
	struct debug_args a = { .top = image->top, .op = op, .event = event, .tag = tag, .err = err };

	return api_call(image, debug_fiber, &a);
}

int varve_debug_break(struct varve_image *image, const char *event, const char *tag, struct varve_error *err)
{
	return debug(image, DEBUG_BREAK, event, tag, err);
}

int varve_debug_remove_break(struct varve_image *image, const char *tag, struct varve_error *err)
{
	return debug(image, DEBUG_REMOVE_BREAK, NULL, tag, err);
}

int varve_debug_resume(struct varve_image *image, const char *tag, struct varve_error *err)
{
	return debug(image, DEBUG_RESUME, NULL, tag, err);
}

int varve_debug_is_suspended(struct varve_image *image, const char *tag, struct varve_error *err)
{
	return debug(image, DEBUG_IS_SUSPENDED, NULL, tag, err);
}
