/* SPDX-License-Identifier: MIT */
/*
 * block/graph.c - opening and closing whole disks
 *
 * Owns:    nothing after it returns: a graph belongs to whoever holds its top.
 * Assumes: a fiber of the queue that becomes the home of all nodes.
 * Never:   recurses along the backing chain (it may be long), opens one file twice in one chain (it would loop), or
 *          takes a name out of an image for anything but a file name or a known protocol ("json:" is refused there).
 */
#include "block/block.h"
#include "block/copy_on_read.h"
#include "block/data_file.h"
#include "block/event.h"
#include "block/graph.h"
#include "block/node_id.h"
#include "block/policy.h"
#include "block/throttle.h"
#include "block/wish.h"

#include <stdlib.h>
#include <string.h>

#define SYNC_ROUNDS 8
#define DEBUG_PREFIX "blkdebug:"

static int leaf_len_sync(struct node *n)
{
	if (n->drv->kind == DRIVER_FILTER && !node_len(n))
		atomic_store(&n->len, node_len(n->file));
	return 0;
}

static void close_node(struct fiber *f, struct node *n)
{
	if (n->drv->close)
		n->drv->close(f, n);
	node_free(n);
}

/*
 * An image that allocates makes its file longer, and what is a part of a file with a length of its own has somebody else behind its
 * end. Reading it is well, and so is writing to what is all in place (raw).
 */
static int check_room(const struct driver *drv, const struct node *file, uint32_t flags, const char *name, struct varve_error *err)
{
	if (drv->kind != DRIVER_FORMAT || !drv->alloc || !(flags & NODE_WRITABLE))
		return 0;
	for (; file && file->file; file = file->file) {
		if (file->fixed_len)
			return varve_error_set(err, -ENOTSUP,
					       "%s: a %s image in a part of a file (raw, size=%llu) cannot grow, and is only read; leave size out, or open it read-only",
					       name, drv->name, (unsigned long long)node_len(file));
	}
	return 0;
}

/* One node above `file` (which may be NULL for a leaf). On failure file stays the caller's. */
static int open_node(struct fiber *f, const struct driver *drv, const char *name, struct node *file, struct opts *o,
		     uint32_t flags, const char *aio, struct node **ret, struct varve_error *err)
{
	struct node *n;
	int r;

	if (file && file->level + 1 >= FIBER_LEVEL_JOB)
		return varve_error_set(err, -EINVAL, "%s: too many layers above one file", name);
	r = check_room(drv, file, flags, name, err);
	if (r < 0)
		return r;
	n = node_new(drv, name, file, flags, fiber_queue(f));
	if (!n)
		return varve_error_errno(err, -ENOMEM, "%s", name);
	n->aio = aio;
	r = node_id_option(o, &n->id, err);
	if (r == 0)
		r = drv->open(f, n, o, err);
	n->aio = NULL;
	if (r < 0) {
		struct node *data = n->data;

		varve_error_prefix(err, r, "%s: ", name);
		node_free(n);
		stack_close(f, data);
		return r;
	}
	leaf_len_sync(n);
	if (drv->event || (drv->kind == DRIVER_FILTER && file->flags & NODE_EVENTS))
		n->flags |= NODE_EVENTS;
	node_set_submit(n);
	r = node_attach(n, fiber_queue(f), err);
	if (r < 0) {
		struct node *data = n->data;

		close_node(f, n);
		stack_close(f, data);
		return r;
	}
	*ret = n;
	return 0;
}

void stack_close(struct fiber *f, struct node *n)
{
	while (n) {
		struct node *file = n->file, *data = n->data;

		close_node(f, n);
		stack_close(f, data); /* has no data file of its own */
		n = file;
	}
}

/* Flags that options of this node change; children inherit them. */
static int flags_from_opts(struct opts *o, uint32_t *flags, struct varve_error *err)
{
	static const struct { const char *key; uint32_t flag; bool inverted; } keys[] = {
		{ "cache.direct", NODE_DIRECT, false },
		{ "cache.no-flush", NODE_NO_FLUSH, false },
		{ "cache.writeback", NODE_WRITETHROUGH, true },
		{ "sync", NODE_SYNC, false },
		{ "force-share", NODE_FORCE_SHARE, false },
		{ "read-only", NODE_WRITABLE, true },
		{ "auto-read-only", NODE_AUTO_READ_ONLY, false },
	};
	const char *mode = opts_get(o, "cache");

	if (mode) { /* the single switches beside it are exceptions from it */
		uint32_t cache;
		int ret = cache_mode_parse(mode, &cache, err);

		if (ret < 0)
			return ret;
		*flags = (*flags & ~NODE_CACHE_FLAGS) | cache;
	}
	for (size_t i = 0; i < ARRAY_LEN(keys); i++) {
		bool on = !!(*flags & keys[i].flag) != keys[i].inverted;
		int ret = opts_get_bool(o, keys[i].key, &on, err);

		if (ret < 0)
			return ret;
		if (keys[i].flag == NODE_WRITABLE && !on && !(*flags & NODE_WRITABLE))
			continue; /* read-only=off does not make a read-only open writable */
		*flags = on != keys[i].inverted ? *flags | keys[i].flag : *flags & ~keys[i].flag;
	}
	/* Without locks others may change it under us; who reads only may want that. */
	if (opts_get(o, "force-share") && (*flags & NODE_FORCE_SHARE) && (*flags & NODE_WRITABLE))
		return varve_error_set(err, -EINVAL, "force-share=on is for images that are only read; open it read-only, or leave it out");
	if ((*flags & NODE_SYNC) && (*flags & NODE_NO_FLUSH))
		return varve_error_set(err, -EINVAL, "sync=on asks for writes that are stable at once, cache.no-flush=on "
						     "(cache=unsafe) for none; leave one out");
	return 0;
}

/* There is no file of that name: was one meant? */
static int not_a_file(const char *name, struct varve_error *err)
{
	size_t len;

	if (driver_names_unknown(name, &len))
		return varve_error_set(err, -ENOENT, "%.500s: there is no such file, and protocol '%.*s' is not known to this version",
				       name, (int)MIN(len, 100), name);
	return -ENOENT;
}

/* The leaf that a file name (or the options driver=LEAF,...) describes. */
static int open_leaf(struct fiber *f, const struct driver *drv, const char *filename, struct opts *o, uint32_t flags,
		     const char *aio, struct node **ret, struct varve_error *err)
{
	const char *rest = NULL;
	char name[NODE_NAME_MAX];
	int r;

	if (!filename)
		filename = opts_get(o, "filename");
	if (filename && strlen(filename) >= sizeof(name))
		return varve_error_set(err, -ENAMETOOLONG, "file name of %zu bytes, at most %zu are possible",
				       strlen(filename), sizeof(name) - 1);
	strcpy(name, filename ? filename : ""); /* setting an option may free what an earlier look at it gave */
	if (!drv && *name && (drv = driver_by_prefix(name, &rest))) {
		r = drv->parse_name ? drv->parse_name(rest, o, err) : *rest ? -EINVAL : 0;
		if (r < 0)
			return err && *err->message ? r : varve_error_set(err, r, "%s: nothing may follow %s", name,
									     drv->prefix);
	} else if (*name) {
		r = opts_set(o, "filename", name, err);
		if (r < 0)
			return r;
	}
	if (!drv)
		drv = driver_find("file");
	if (aio && drv->has_engine && !opts_get(o, "aio")) {
		r = opts_set(o, "aio", aio, err);
		if (r < 0)
			return r;
	}
	r = open_node(f, drv, *name ? name : drv->name, NULL, o, flags, aio, ret, err);
	if ((r == -EACCES || r == -EROFS || r == -EPERM) && (flags & NODE_WRITABLE) && (flags & NODE_AUTO_READ_ONLY))
		r = open_node(f, drv, *name ? name : drv->name, NULL, o, flags & ~NODE_WRITABLE, aio, ret, err);
	return r == -ENOENT && !rest ? not_a_file(name, err) : r;
}

/* What a file name alone means to open_stack(): an image, whose format is looked for, or only what keeps the bytes. */
enum want { WANT_IMAGE, WANT_LEAF };

static int open_stack(struct fiber *f, struct opts *o, enum want want, unsigned depth, uint32_t flags,
		      const char *aio, struct node **ret, struct varve_error *err);

static int probe_format(struct fiber *f, struct node *file, const struct driver **ret, struct varve_error *err)
{
	uint8_t head[PROBE_LEN] = { 0 };
	size_t len = MIN(sizeof(head), node_len(file));
	int r = node_read(f, file, 0, head, len);
	const char *foreign;

	if (r < 0)
		return varve_error_errno(err, r, "%s: cannot read the start of the file to find its format",
					 node_name(file));
	*ret = driver_probe(head, len);
	foreign = *ret == driver_find("raw") ? driver_probe_foreign(head, len) : NULL;
	if (foreign)
		return varve_error_set(err, -ENOTSUP, "%s: is an image of format '%s', which this version cannot read; "
						      "with format raw its bytes are taken as they are",
				       node_name(file), foreign);
	return 0;
}

/* Of a format or filter, aio is what the leaves below it take. *aio: what it inherits, if it does not say. */
static int aio_below(struct opts *o, const char **aio, struct varve_error *err)
{
	const char *name = opts_get(o, "aio");
	const struct aio_engine *engine;

	if (!name)
		return 0;
	/* Only its name is judged: whether it goes together with the cache mode, the leaf says. */
	engine = aio_engine_choose(name, true, err);
	if (!engine)
		return -EINVAL;
	*aio = engine->name; /* lives longer than the options */
	return 0;
}

/* What a format or filter stands on. No format below a format unless it is named. All of o must be used up. */
static int open_file_stack(struct fiber *f, struct opts *o, unsigned depth, uint32_t flags, const char *aio, struct node **ret,
			   struct varve_error *err)
{
	enum want want = opts_get(o, "driver") || opts_get(o, "format") ? WANT_IMAGE : WANT_LEAF;
	int r = open_stack(f, o, want, depth, flags, aio, ret, err);

	if (r == 0 && (r = opts_done(o, err)) < 0)
		stack_close(f, *ret);
	return r;
}

/* Zeroes are looked for at the door of a disk, once. */
static int only_of_the_disk(struct opts *sub, struct varve_error *err)
{
	const char *detect = opts_get(sub, "detect-zeroes");

	if (detect && strcmp(detect, "off") != 0)
		return varve_error_set(err, -EINVAL, "file.detect-zeroes=%.100s: zeroes are looked for in what the disk is given, not its file; say "
						     "detect-zeroes of the disk", detect);
	return 0;
}

/* The child that a format or filter stands on: file.* options, or the file name given to the format itself. */
static int open_child(struct fiber *f, const struct driver *drv, const char *filename, struct opts *o, unsigned depth,
		      uint32_t flags, const char *aio, struct node **ret, struct varve_error *err)
{
	struct opts *sub = opts_take_sub(o, "file");
	const char *locking = opts_get(o, "locking");
	const char *state_dir = drv && drv->kind == DRIVER_FILTER ? opts_get(o, "state-dir") : NULL;
	int r = 0;

	if (!sub && drv && drv->child_key)
		sub = opts_take_sub(o, drv->child_key);
	if (sub)
		r = only_of_the_disk(sub, err);
	if (!sub && !filename)
		return varve_error_set(err, -EINVAL, "neither a file name nor file.filename is given");
	if (!sub && !(sub = opts_new()))
		return varve_error_errno(err, -ENOMEM, "options");
	if (r == 0 && filename)
		r = opts_set(sub, "filename", filename, err);
	if (r == 0 && locking)
		r = opts_set(sub, "locking", locking, err);
	if (r == 0 && state_dir)
		r = opts_set(sub, "state-dir", state_dir, err);
	if (r == 0)
		r = open_file_stack(f, sub, depth + 1, flags, aio, ret, err);
	opts_free(sub);
	return r;
}

int graph_open_beside(struct fiber *f, const struct node *n, struct opts *o, uint32_t flags, struct node **ret,
		      struct varve_error *err)
{
	const char *aio = n->aio;
	int r = aio_below(o, &aio, err);

	return r < 0 ? r : open_file_stack(f, o, 1, flags, aio, ret, err);
}

/* "blkdebug:RULES:FILE", RULES may be empty: the same as options. */
static int debug_name(struct opts *o, const char *filename, struct varve_error *err)
{
	const char *rules = filename + strlen(DEBUG_PREFIX), *file = strchr(rules, ':');
	char *config = file ? strndup(rules, (size_t)(file - rules)) : NULL, *image = file ? strdup(file + 1) : NULL;
	int r;

	if (!file)
		r = varve_error_set(err, -EINVAL, "%s: blkdebug:RULES:FILE names a rule file (it may be empty) and an image",
				    filename);
	else if (!config || !image)
		r = varve_error_errno(err, -ENOMEM, "options");
	else
		r = opts_set(o, "config", config, err);
	if (r == 0)
		r = opts_set(o, "image.filename", image, err);
	if (r == 0)
		r = opts_set(o, "filename", "", err);
	(void)opts_get(o, "filename");
	free(config);
	free(image);
	return r;
}

static int json_name(struct opts *o, const char *filename, struct varve_error *err)
{
	return opts_parse_json(o, filename + strlen("json:"), err);
}

/*
 * One image without its backing chain: leaf, filters, format. Recursion goes along driver=...,file.driver=... only,
 * whose depth is bounded by FIBER_LEVEL_JOB. The options of this node that nobody asked for are left to the caller.
 */
static int open_stack(struct fiber *f, struct opts *o, enum want want, unsigned depth, uint32_t flags,
		      const char *aio, struct node **ret, struct varve_error *err)
{
	const char *filename, *driver_name, *format;
	char formats[DRIVER_FORMATS_MAX];
	const struct driver *drv = NULL;
	struct node *child;
	bool probed = false;
	int r;

	if (depth >= FIBER_LEVEL_JOB)
		return varve_error_set(err, -EINVAL, "too many layers above one file (file.file...): at most %d",
				       FIBER_LEVEL_JOB);
	filename = opts_get(o, "filename");
	if (filename && !*filename)
		filename = NULL;
	driver_name = opts_get(o, "driver");
	format = opts_get(o, "format");
	if (driver_name && format && strcmp(driver_name, format) != 0)
		return varve_error_set(err, -EINVAL, "it is described as driver '%.100s', and to be opened as format '%.100s': leave one out",
				       driver_name, format);
	if (!driver_name)
		driver_name = format;
	if (driver_name && !(drv = driver_find(driver_name)))
		return varve_error_set(err, -EINVAL, "%.500s%sdriver or format '%s' is not known to this version (formats: %s)",
				       filename ? filename : "", filename ? ": " : "", driver_name, driver_formats(formats));
	if (want == WANT_LEAF && !drv && filename && !strncmp(filename, DEBUG_PREFIX, strlen(DEBUG_PREFIX))) {
		r = debug_name(o, filename, err);
		if (r < 0)
			return r;
		drv = driver_find("blkdebug");
		filename = NULL;
		want = WANT_IMAGE;
	}
	r = flags_from_opts(o, &flags, err);
	if (r < 0)
		return r;
	if (want == WANT_LEAF || (drv && drv->kind == DRIVER_LEAF))
		return open_leaf(f, drv, filename, o, flags, aio, ret, err);
	r = aio_below(o, &aio, err);
	if (r == 0)
		r = open_child(f, drv, filename, o, depth, flags, aio, &child, err);
	if (r < 0)
		return r;
	if ((child->flags & NODE_AUTO_READ_ONLY) && !(child->flags & NODE_WRITABLE) && !(flags & (NODE_REPAIR | NODE_BITMAPS)))
		flags &= ~NODE_WRITABLE;
	if ((flags & NODE_WRITABLE) && !(child->flags & NODE_WRITABLE)) {
		stack_close(f, child);
		return varve_error_set(err, -EROFS, "file.read-only is on, but the image is to be opened for writing");
	}
	if (!drv) {
		r = probe_format(f, child, &drv, err);
		probed = r == 0 && drv == driver_find("raw") && (flags & NODE_WRITABLE);
	}
	if (r == 0)
		r = open_node(f, drv, node_name(child), child, o, probed ? flags | NODE_PROBED : flags, aio, ret, err);
	if (r < 0)
		stack_close(f, child);
	return r;
}

/* ---- backing chains ---- */

int backing_path(const char *image_name, const char *backing_name, char *buf, struct varve_error *err)
{
	const char *slash, *rest;
	size_t dir;

	if (!strncmp(backing_name, "json:", 5))
		return varve_error_set(err, -EPERM, "the backing file name in the image is a json: description; such "
						    "names are not followed, give the chain explicitly");
	if (!strncmp(backing_name, DEBUG_PREFIX, strlen(DEBUG_PREFIX)))
		return varve_error_set(err, -EPERM, "the backing file name in the image begins with %s; such names are not "
						    "followed, give the chain explicitly", DEBUG_PREFIX);
	if (!strncmp(image_name, "file:", 5))
		image_name += 5;
	slash = strrchr(image_name, '/');
	dir = backing_name[0] == '/' || driver_by_prefix(backing_name, &rest) || !slash
		      ? 0
		      : (size_t)(slash - image_name) + 1;
	if (dir + strlen(backing_name) >= NODE_NAME_MAX)
		return varve_error_set(err, -ENAMETOOLONG, "backing file name of %zu bytes is too long",
				       dir + strlen(backing_name));
	memcpy(buf, image_name, dir);
	strcpy(buf + dir, backing_name);
	return 0;
}

static int chain_has_loop(struct node *top, struct node *next, struct varve_error *err)
{
	for (struct node *n = top; n; n = n->backing) {
		const struct node *data;

		if (node_same_file(next, n))
			return varve_error_set(err, -ELOOP, "%s: the backing chain loops: it leads back to %s",
					       node_name(next), node_name(n));
		data = node_shared_data(next, n);
		if (data)
			return varve_error_set(err, -ELOOP, "%s: a data file can belong to one image of a chain, and be nothing else "
							    "in it", node_name(data));
	}
	return 0;
}

/*
 * A backing file that could not be opened because we hold it ourselves, for writing, further up in the chain: say so, rather
 * than that it is locked. Looked at without locks, on this path only.
 */
static int explain_loop(struct fiber *f, struct node *top, struct opts *o, int ret, struct varve_error *err)
{
	const char *filename = opts_get(o, "filename");
	struct node *leaf;

	if (!filename || graph_open_file(f, filename, NODE_FORCE_SHARE, &leaf, NULL) < 0)
		return ret;
	if (chain_has_loop(top, leaf, err) < 0)
		ret = -ELOOP;
	close_node(f, leaf);
	return ret;
}

bool opts_name_a_file(struct opts *o)
{
	return o && (opts_get(o, "filename") || opts_get(o, "file.filename") || opts_get(o, "file.driver"));
}

/* "backing": null says that there is none, whatever the image says. Names of other nodes are not known here. */
static int backing_refused(struct opts *o, bool *ret_refused, struct varve_error *err)
{
	const char *text = opts_get(o, "backing");

	*ret_refused = text != NULL;
	if (text && *text)
		return varve_error_set(err, -EINVAL, "backing=%.200s: a backing image is described by backing.* "
						     "options, not by a name", text);
	return 0;
}

/* The same by name, before the file is opened: a second open of a file that we hold for writing fails by its lock. */
static int chain_names_loop(struct node *top, struct opts *o, struct varve_error *err)
{
	const char *name = opts_get(o, "filename");

	for (struct node *n = top; n && name; n = n->backing) {
		if (!strcmp(node_name(n), name))
			return varve_error_set(err, -ELOOP, "%s: the backing chain loops: it leads back to this image", name);
	}
	return 0;
}

/* Options for the backing image of n: what the user gave, completed by what the image says. NULL: there is none. */
static int backing_opts(struct node *n, struct opts *given, struct opts **ret, struct varve_error *err)
{
	char path[NODE_NAME_MAX];
	int r = 0;

	*ret = given;
	if (given && !n->drv->load)
		return varve_error_set(err, -EINVAL, "option backing.*: an image of format %s has no backing image",
				       n->drv->name);
	if (!n->backing_name || opts_name_a_file(given))
		return 0;
	if (!given && !(*ret = opts_new()))
		return varve_error_errno(err, -ENOMEM, "options");
	r = backing_path(node_name(n), n->backing_name, path, err);
	if (r < 0)
		varve_error_prefix(err, r, "%s: ", node_name(n));
	if (r == 0)
		r = opts_set(*ret, "filename", path, err);
	if (r == 0 && n->backing_format && !opts_get(*ret, "driver") && !opts_get(*ret, "format"))
		r = opts_set(*ret, "driver", n->backing_format, err);
	return r;
}

/* A format in the file of another one would be read without its backing image: wrong bytes, not an error. */
static int no_backing_below(struct node *n, struct varve_error *err)
{
	for (n = n->file; n; n = n->file)
		if (n->backing_name)
			return varve_error_set(err, -ENOTSUP, "%s: a %s image with a backing file cannot be the file "
							      "of another format", node_name(n), n->drv->name);
	return 0;
}

/*
 * Opens the backing images of top, one after the other. `given`: backing.* of the options, or NULL; consumed. Each takes the
 * cache mode and the engine of the one above it where its own options do not say; it is never written.
 */
static int open_chain(struct fiber *f, struct node *top, struct opts *given, const char *aio, struct varve_error *err)
{
	int r = 0;

	for (struct node *n = top; r == 0; n = n->backing) {
		uint32_t flags = n->flags & ~(NODE_WRITABLE | NODE_REPAIR | NODE_PROBED | NODE_CHECK | NODE_WRITETHROUGH | NODE_SYNC |
				 NODE_BITMAPS | NODE_NOTES | NODE_UNMAPS);
		struct opts *o = NULL, *below = NULL;
		struct node *b = NULL;
		bool last = false;

		r = backing_opts(n, given, &o, err);
		given = NULL;
		if (!o)
			break;
		if (r == 0) {
			below = opts_take_sub(o, "backing");
			r = backing_refused(o, &last, err);
			if (r == 0)
				r = chain_names_loop(top, o, err);
			if (r == 0)
				r = aio_below(o, &aio, err);
			if (r == 0)
				r = open_stack(f, o, WANT_IMAGE, 0, flags, aio, &b, err);
			if (r < 0 && r != -ENOENT)
				r = explain_loop(f, top, o, r, err);
			if (r == 0)
				r = opts_done(o, err);
			if (r < 0)
				varve_error_prefix(err, r, "backing file of %s: ", node_name(n));
		}
		if (r == 0 && b->drv->kind != DRIVER_FORMAT)
			r = varve_error_set(err, -EINVAL, "backing file of %s: driver %s is no image format",
					    node_name(n), b->drv->name);
		if (r == 0)
			r = no_backing_below(b, err);
		if (r == 0)
			r = chain_has_loop(top, b, err);
		opts_free(o);
		given = below;
		if (r < 0) {
			stack_close(f, b);
			break;
		}
		n->backing = b;
		if (last)
			break;
	}
	opts_free(given);
	return r;
}

/* ---- the whole ---- */

/* Below the filters: the format (or leaf) that the disk is; the chain of backing images begins there. */
static struct node *below_filters(struct node *n)
{
	while (n->drv->kind == DRIVER_FILTER)
		n = n->file;
	return n;
}

static void close_all(struct fiber *f, struct node *top)
{
	while (top) {
		struct node *next = below_filters(top)->backing;

		stack_close(f, top);
		top = next;
	}
}

/* Chains of two or more backing images get their look-up table; level by level it would cost one look-up each. */
static int chain_finish(struct node *top, struct varve_error *err)
{
	if ((top->flags & NODE_NO_IO) || !top->backing || !top->backing->backing)
		return 0;
	top->chain = chain_cache_new(top);
	return top->chain ? 0 : varve_error_errno(err, -ENOMEM, "%s: table of the backing chain", node_name(top));
}

int graph_open(struct fiber *f, struct opts *o, uint32_t flags, struct node **ret_top, struct varve_error *err)
{
	return graph_open_aio(f, o, flags, NULL, ret_top, err);
}

int graph_open_aio(struct fiber *f, struct opts *o, uint32_t flags, const char *aio, struct node **ret_top,
		   struct varve_error *err)
{
	struct varve_error local = { 0 };
	struct opts *backing = NULL;
	struct node *top, *disk;
	bool no_backing, cor = false;
	enum werror werror = WERROR_REPORT;
	struct throttle_config limits;
	bool limited = false;
	uint32_t wish = 0;
	char *bottom = NULL;
	const char *filename = opts_get(o, "filename");
	int r;

	if (!err)
		err = &local;
	if (filename && !strncmp(filename, "json:", 5)) {
		char *text = strdup(filename);

		r = !text ? -ENOMEM : opts_set(o, "filename", "", err);
		if (r == 0)
			r = json_name(o, text, err);
		free(text);
		if (r < 0)
			return r;
	}
	backing = opts_take_sub(o, "backing");
	r = backing_refused(o, &no_backing, err);
	if (r == 0)
		r = cor_options(o, &cor, &bottom, err);
	if (r == 0)
		r = policy_options(o, &werror, err);
	if (r == 0)
		r = throttle_options(o, &limits, &limited, err);
	if (r == 0)
		r = wish_options(o, &wish, err);
	if (r == 0 && aio && !aio_engine_choose(aio, true, err))
		r = -EINVAL;
	if (r == 0)
		r = open_stack(f, o, WANT_IMAGE, 0, flags, aio, &top, err);
	if (r < 0) {
		opts_free(backing);
		free(bottom);
		return r;
	}
	disk = below_filters(top);
	top->wish = wish & WISH_NO_DISCARD && disk->flags & NODE_UNMAPS ? wish | WISH_UNMAP_STAYS : wish;
	if (disk->drv->kind == DRIVER_LEAF)
		(void)opts_get(o, "state-dir"); /* nothing is queued in a leaf */
	r = opts_done(o, err);
	if (r == 0 && backing && !disk->drv->load)
		r = varve_error_set(err, -EINVAL, "option backing.*: a disk of driver %s has no backing image",
				    disk->drv->name);
	if (r == 0 && !(top->flags & NODE_NO_BACKING))
		r = no_backing_below(disk, err);
	if (r == 0 && !(top->flags & NODE_NO_BACKING) && !no_backing && disk->drv->kind == DRIVER_FORMAT) {
		/* A leaf keeps option aio to itself; of a format it holds for the backing images as well. */
		r = aio_below(o, &aio, err);
		if (r == 0)
			r = open_chain(f, disk, backing, aio, err);
		else
			opts_free(backing);
		backing = NULL;
	}
	if (r == 0)
		r = node_ids_differ(top, err);
	if (r == 0)
		r = chain_finish(disk, err);
	if (r == 0 && cor && !(top->flags & NODE_NO_IO))
		r = cor_open(disk, bottom, err);
	if (r == 0)
		r = policy_open(top, werror, err);
	if (r == 0 && limited)
		r = throttle_set(top, &limits, err);
	free(bottom);
	opts_free(backing);
	if (r < 0) {
		close_all(f, top);
		return r;
	}
	*ret_top = top;
	return 0;
}

void graph_each_leaf(struct node *top, bool (*fn)(struct node *leaf, void *arg), void *arg)
{
	for (struct node *n = top; n; n = below_filters(n)->backing) {
		for (struct node *m = n; m; m = m->file) {
			if (m->data && !fn(node_leaf(m->data), arg))
				return;
			if (!m->file && !fn(m, arg))
				return;
		}
	}
}

int graph_open_file(struct fiber *f, const char *filename, uint32_t flags, struct node **ret_leaf,
		    struct varve_error *err)
{
	struct opts *o = opts_new();
	int r;

	if (!o)
		return varve_error_errno(err, -ENOMEM, "%s", filename);
	r = open_leaf(f, NULL, filename, o, flags, NULL, ret_leaf, err);
	if (r == 0 && (r = opts_done(o, err)) < 0)
		close_node(f, *ret_leaf);
	opts_free(o);
	return r;
}

int graph_stack(struct fiber *f, const struct driver *drv, struct node *file, struct opts *o, uint32_t flags,
		struct node **ret_top, struct varve_error *err)
{
	return open_node(f, drv, file ? node_name(file) : drv->name, file, o, flags, NULL, ret_top, err);
}

/*
 * The last flush. What it frees (space whose last reference is durably gone only now) changes metadata once more, so it is
 * repeated until nothing waits; two rounds do for qcow2, three when a table moved.
 */
static int node_sync_all(struct fiber *f, struct node *n)
{
	int ret;

	if (n->drv->kind != DRIVER_FORMAT || !n->drv->sync)
		return node_flush(f, n);
	for (unsigned i = 0; i < SYNC_ROUNDS; i++) {
		ret = n->drv->sync(f, n);
		if (ret < 0 || n->drv->clean(n))
			return ret;
	}
	return 0;
}

int graph_close(struct fiber *f, struct node *top, struct varve_error *err)
{
	int ret = 0;

	/* Nobody is left who could let go what a break point holds, or what would be held now. */
	(void)node_debug(top, DEBUG_RESUME, NULL, NULL, NULL);
	cor_stop(f, below_filters(top));
	if (top->flags & (NODE_WRITABLE | NODE_BITMAPS)) {
		ret = node_sync_all(f, top);
		if (ret < 0)
			varve_error_errno(err, ret, "%s: the last flush failed, data written before may be lost",
					  node_name(top));
		for (struct node *n = top; n && !top->unserved; n = n->file)
			n->accounted = true;
	}
	close_all(f, top);
	return ret;
}
