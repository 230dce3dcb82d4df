/* SPDX-License-Identifier: MIT */
/*
 * block/backing.c - a disk loses the upper part of its backing chain, or all of it, while it is in use
 *
 * Assumes: a fiber of the home queue; everything that the disk needs from the images that go is its own already.
 * Never:   changes the chain in memory before the image's header says so durably, or while a request or another change is on its way.
 */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "block/block.h"
#include "block/copy_on_read.h"
#include "block/graph.h"

static size_t dir_len(const char *name)
{
	const char *slash = strrchr(name, '/');

	return slash ? (size_t)(slash - name) : 0;
}

/*
 * How disk's header is to name base, which `parent` names now: as he does if that means the same from where disk lies,
 * else by its absolute path. malloc'd.
 */
static char *name_for(const struct node *disk, const struct node *parent, const struct node *base)
{
	const char *said = parent->backing_name, *rest;
	size_t len = dir_len(node_name(disk));
	char path[PATH_MAX];

	if (said && (said[0] == '/' || driver_by_prefix(said, &rest)))
		return strdup(said);
	if (said && len == dir_len(node_name(parent)) && !strncmp(node_name(disk), node_name(parent), len))
		return strdup(said);
	return strdup(realpath(node_name(base), path) ? path : node_name(base));
}

static int change_header(struct fiber *f, struct node *disk, const struct node *base, struct varve_error *err)
{
	const struct node *parent = disk;
	char *name = NULL, *format = NULL;
	int ret;

	if (!disk->drv->set_backing)
		return varve_error_set(err, -ENOTSUP, "%s: the backing file of a %s image cannot be changed",
				       node_name(disk), disk->drv->name);
	while (base && parent->backing != base)
		parent = parent->backing;
	if (base) {
		name = name_for(disk, parent, base);
		format = strdup(base->drv->name);
		if (!name || !format)
			ret = varve_error_errno(err, -ENOMEM, "%s: name of the backing file", node_name(disk));
		else
			ret = disk->drv->set_backing(f, disk, name, format, false, err);
	} else {
		ret = disk->drv->set_backing(f, disk, NULL, NULL, false, err);
	}
	if (ret < 0) {
		varve_error_prefix(err, ret, "%s: ", node_name(disk));
		free(name);
		free(format);
		return ret;
	}
	free(disk->backing_name);
	free(disk->backing_format);
	disk->backing_name = name;
	disk->backing_format = format;
	return 0;
}

int graph_cut_backing(struct fiber *f, struct node *top, struct node *base, struct varve_error *err)
{
	struct node *disk = top, *old;
	int ret;

	while (disk->drv->kind == DRIVER_FILTER)
		disk = disk->file;
	node_change_begin(f, top);
	cor_stop(f, disk);
	old = disk->backing;
	ret = change_header(f, disk, base, err);
	if (ret == 0) {
		chain_cache_free(disk->chain);
		disk->chain = NULL;
		disk->backing = base;
		/* Only a faster look-up: without it the chain is walked. */
		if (base && base->backing)
			disk->chain = chain_cache_new(disk);
	}
	node_change_end(top);
	while (ret == 0 && old != base) {
		struct node *next = old->backing;

		stack_close(f, old);
		old = next;
	}
	cor_resume(disk);
	return ret;
}
