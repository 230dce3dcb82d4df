/* SPDX-License-Identifier: MIT */
/*
 * tools/daemon_nodes.c - --blockdev: nodes that refer to each other by name become disks
 *
 *     --blockdev driver=file,node-name=f,filename=a.qcow2 --blockdev driver=qcow2,node-name=d,file=f
 *
 * The library opens a disk from one description, so references are replaced by what they name. A node that is exported,
 * or that no other stands on, is opened; the others are parts of those.
 *
 * Owns:    the nodes and their images.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon.h"

#define OPTION "--blockdev"
#define DEPTH_MAX 300 /* references that lead to references */

static const char *const links[] = { "file", "backing" };
/* Members that hold a node in other programs' drivers, and are none of ours. */
static const char *const foreign_links[] = { "data-file", "image", "raw", "log" };

struct block_node *node_by_name(const struct daemon *d, const char *name)
{
	struct block_node *n;

	TAILQ_FOREACH(n, &d->nodes, link)
	{
		if (strcmp(n->name, name) == 0)
			return n;
	}
	return NULL;
}

static int add(struct daemon *d, json_t *options)
{
	struct block_node *n = calloc(1, sizeof(*n));

	if (!n || args_take_string(OPTION, options, "node-name", &n->name) ||
	    args_check_id(OPTION, "node-name", n->name)) {
		free(n ? n->name : NULL);
		free(n);
		return 1;
	}
	if (node_by_name(d, n->name)) {
		complain(OPTION ": there is a node-name=%s already", n->name);
		free(n->name);
		free(n);
		return 1;
	}
	n->options = json_incref(options);
	TAILQ_INSERT_TAIL(&d->nodes, n, link);
	return 0;
}

/* A node that is described inside of another may have a name, too: then it is as if it stood before it. */
static int add_inner(struct daemon *d, json_t *options, unsigned depth)
{
	if (depth > DEPTH_MAX) {
		complain(OPTION ": nested too deeply");
		return 1;
	}
	for (size_t i = 0; i < ARRAY_LEN(links); i++) {
		json_t *inner = json_object_get(options, links[i]), *name;

		if (!json_is_object(inner))
			continue;
		if (add_inner(d, inner, depth + 1))
			return 1;
		name = json_object_get(inner, "node-name");
		if (!name)
			continue;
		json_incref(name);
		json_incref(inner);
		if (add(d, inner) || json_object_set(options, links[i], name) < 0) {
			json_decref(name);
			json_decref(inner);
			return 1;
		}
		json_decref(name);
		json_decref(inner);
	}
	return 0;
}

int node_add(struct daemon *d, const char *text)
{
	json_t *options = args_parse(OPTION, text, "driver");
	int failed;

	if (!options)
		return 1;
	if (!json_is_string(json_object_get(options, "driver"))) {
		complain(OPTION ": 'driver' is missing");
		failed = 1;
	} else {
		failed = add_inner(d, options, 0) || add(d, options);
	}
	json_decref(options);
	return failed;
}

/* ---- references ---- */

static json_t *resolve(struct daemon *d, const struct block_node *of, const json_t *options, unsigned depth)
{
	json_t *copy = json_deep_copy(options);

	if (depth > DEPTH_MAX) {
		complain(OPTION ": node-name=%s: its references lead in a circle", of->name);
		json_decref(copy);
		return NULL;
	}
	for (size_t i = 0; copy && i < ARRAY_LEN(foreign_links); i++) {
		if (json_object_get(copy, foreign_links[i])) {
			complain(OPTION ": node-name=%s: '%s' is not part of this version", of->name, foreign_links[i]);
			json_decref(copy);
			return NULL;
		}
	}
	for (size_t i = 0; copy && i < ARRAY_LEN(links); i++) {
		json_t *at = json_object_get(copy, links[i]), *inner;
		struct block_node *n = NULL;

		if (!at || json_is_null(at) || (json_is_string(at) && !*json_string_value(at)))
			continue; /* backing=: none, whatever the image says */
		if (json_is_string(at)) {
			n = node_by_name(d, json_string_value(at));
			if (!n) {
				complain(OPTION ": node-name=%s: %s=%s: there is no node of that name", of->name, links[i],
					 json_string_value(at));
				json_decref(copy);
				return NULL;
			}
			n->is_child = true;
		}
		inner = resolve(d, n ? n : of, n ? n->options : at, depth + 1);
		if (!inner || json_object_set_new(copy, links[i], inner) < 0) {
			json_decref(copy);
			return NULL;
		}
	}
	return copy;
}

int nodes_resolve(struct daemon *d)
{
	struct block_node *n;

	TAILQ_FOREACH(n, &d->nodes, link)
	{
		json_t *whole = resolve(d, n, n->options, 0);

		if (!whole)
			return 1;
		json_decref(whole);
	}
	return 0;
}

/* ---- opening ---- */

/* What the tool decides, and the library does not know. *ret_auto: read-only if it cannot be written. */
static int prepare(struct block_node *n, json_t *options, bool writethrough, bool *ret_read_only, bool *ret_auto)
{
	int failed = args_take_bool(OPTION, options, "auto-read-only", ret_auto) ||
		     args_take_bool(OPTION, options, "read-only", ret_read_only);

	if (failed)
		return 1;
	for (json_t *o = json_object_get(options, "file"); json_is_object(o); o = json_object_get(o, "file")) {
		if (args_take_bool(OPTION, o, "auto-read-only", ret_auto))
			return 1;
	}
	/* As the tool whose grammar this is: discards are answered, and not done unless asked for. */
	if (!json_object_get(options, "discard"))
		json_object_set_new(options, "discard", json_string("ignore"));
	if (writethrough) {
		json_t *cache = json_object_get(options, "cache");

		if (!cache && json_object_set_new(options, "cache", json_object()) == 0)
			cache = json_object_get(options, "cache");
		if (!json_is_object(cache) || json_object_set_new(cache, "writeback", json_string("off")) < 0) {
			complain(OPTION ": node-name=%s: 'cache' must be a group of options", n->name);
			return 1;
		}
	}
	return 0;
}

/* For a stand-in, which is a header that is read: what is about writing is left out. */
static void forget_writing(json_t *options)
{
	json_object_del(options, "copy-on-read");
}

/* "json:{...}", malloc'd; NULL, after a message. */
static char *describe(struct block_node *n, bool stand_in, bool *ret_read_only, bool *ret_auto)
{
	json_t *options = resolve(n->of, n, n->options, 0);
	char *text, *name = NULL;

	if (!options || prepare(n, options, n->writethrough, ret_read_only, ret_auto)) {
		json_decref(options);
		return NULL;
	}
	if (stand_in)
		forget_writing(options);
	text = json_dumps(options, JSON_COMPACT);
	json_decref(options);
	if (text && (name = malloc(strlen(text) + sizeof("json:"))))
		sprintf(name, "json:%s", text);
	free(text);
	if (!name)
		complain("out of memory");
	return name;
}

static struct varve_image *open_node(void *disk, bool stand_in, struct varve_error *err)
{
	struct block_node *n = disk;
	struct varve_open_options oo = { .home = n->home, .state_dir = stand_in ? NULL : n->of->state_dir };
	bool read_only = false, automatic = false;
	char *name = describe(n, stand_in, &read_only, &automatic);
	struct varve_image *image = NULL;
	int ret;

	if (!name) {
		err->code = -EINVAL;
		*err->message = 0; /* it was told */
		return NULL;
	}
	oo.flags = stand_in  ? VARVE_OPEN_FORCE_SHARE | VARVE_OPEN_NO_IO | VARVE_OPEN_NO_BACKING :
		   read_only ? 0 :
			       VARVE_OPEN_WRITABLE;
	ret = varve_image_open(&image, name, &oo, err);
	/* A machine that is to write waits for an image that it can write. */
	if (ret < 0 && automatic && !n->lend.on_demand && oo.flags == VARVE_OPEN_WRITABLE && (ret == -EACCES || ret == -EROFS || ret == -EPERM)) {
		oo.flags = 0;
		ret = varve_image_open(&image, name, &oo, err);
	}
	if (ret < 0) {
		char whole[VARVE_ERROR_MAX];
		const char *words = whole;

		image = NULL;
		memcpy(whole, err->message, sizeof(whole));
		/* The whole description would come before the reason. */
		if (strncmp(words, name, strlen(name)) == 0 && strncmp(words + strlen(name), ": ", 2) == 0)
			words += strlen(name) + 2;
		/* What is cut off at the end is less than the description that was left out. */
		snprintf(err->message, sizeof(err->message), OPTION ": node-name=%s: %.*s", n->name,
			 (int)(sizeof(err->message) - 64), words);
	}
	free(name);
	return image;
}

static const struct lend_ops node_ops = { .open = open_node };

int node_prepare(struct daemon *d, struct block_node *n, struct varve_queue *home, bool writethrough)
{
	json_t *read_only = json_object_get(n->options, "read-only");
	bool fixed = false;

	if (read_only) {
		json_t *copy = json_pack("{s:O}", "read-only", read_only);
		int failed = args_take_bool(OPTION, copy, "read-only", &fixed);

		json_decref(copy);
		if (failed)
			return 1;
	}
	n->of = d;
	n->home = home;
	n->writethrough = writethrough;
	n->lend.ops = &node_ops;
	n->lend.disk = n;
	n->lend.name = n->name;
	n->lend.wake_fd = d->wake_fd;
	n->lend.on_demand = d->hand_over && !fixed; /* those who read share it */
	n->lend.own_limits = lend_names_limits(n->options);
	return 0;
}

struct lend *nodes_next(void *program, struct lend *l)
{
	struct daemon *d = program;
	struct block_node *n = l ? TAILQ_NEXT((struct block_node *)l->disk, link) : TAILQ_FIRST(&d->nodes);

	while (n && !n->home)
		n = TAILQ_NEXT(n, link);
	return n ? &n->lend : NULL;
}

int nodes_settle(struct daemon *d)
{
	int timeout = -1;

	lend_woken(d->wake_fd);
	for (struct lend *l = nodes_next(d, NULL); l; l = nodes_next(d, l))
		timeout = sooner(timeout, lend_settle(l));
	return timeout;
}

int nodes_prepare_rest(struct daemon *d)
{
	struct varve_queue_options qo = { .flags = VARVE_QUEUE_THREAD, .name = "varve-node" };
	struct varve_error err;
	struct block_node *n;

	TAILQ_FOREACH(n, &d->nodes, link)
	{
		if (n->home || n->is_child)
			continue;
		if (d->hand_over) {
			complain("--hand-over: node-name=%s: no export gives it to a machine that would want it", n->name);
			return 1;
		}
		if (varve_queue_new(&n->private_home, &qo, &err) < 0) {
			complain("%s", err.message);
			return 1;
		}
		if (node_prepare(d, n, n->private_home, false))
			return 1;
	}
	return 0;
}

int nodes_open(struct daemon *d)
{
	for (struct lend *l = nodes_next(d, NULL); l; l = nodes_next(d, l)) {
		if (lend_open(l))
			return 1;
	}
	return 0;
}

int nodes_close(struct daemon *d, bool served)
{
	struct block_node *n;
	int failed = 0;

	while ((n = TAILQ_FIRST(&d->nodes))) {
		TAILQ_REMOVE(&d->nodes, n, link);
		if (!served && n->lend.image)
			varve_image_leave_flush_error(n->lend.image);
		if (close_image(n->lend.image))
			failed = 1;
		varve_queue_free(n->private_home);
		free(n->lend.limits);
		json_decref(n->options);
		free(n->name);
		free(n);
	}
	return failed;
}
