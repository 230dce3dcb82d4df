/* SPDX-License-Identifier: MIT */
/*
 * tools/daemon_export.c - --export and --object iothread: which thread serves which disk where
 *
 * Owns:    the exports, their queues, and the iothreads.
 */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "complete.h"
#include "daemon.h"

/* What the parsers below take, for shells. */
const struct varve_option_info iothread_options[] = {
	{ "qom-type", "iothread", "the type; it may stand first, without its name", false },
	{ "id", "str", "what exports call it", false },
	{ NULL, NULL, NULL, false },
};
const struct varve_option_info export_options[] = {
	{ "type", "vhost-user-blk", "the type; it may stand first, without its name", false },
	{ "id", "str", "what it is called", false },
	{ "node-name", "a node", "the node that is given away", false },
	{ "addr.type", "unix|fd", "a socket that is made, or one that listens already", false },
	{ "addr.path", "file", "its name", false },
	{ "addr.str", "num", "its descriptor", false },
	{ "writable", "bool", "the machine may write (off)", false },
	{ "writethrough", "bool", "each write is stable when it completes (off)", false },
	{ "num-queues", "num", "virtqueues, each with a thread of its own (1)", false },
	{ "iothread", "an iothread", "that runs all of them instead", false },
	{ "fixed-iothread", "bool", "it stays, which it does anyway", false },
	{ "logical-block-size", "num", "512", false },
	{ NULL, NULL, NULL, false },
};

/* ---- iothreads ---- */

int iothread_add(struct daemon *d, const char *text)
{
	json_t *args = args_parse("--object", text, "qom-type");
	struct iothread *t = calloc(1, sizeof(*t)), *other;
	char *type = NULL;
	int failed = !args || !t || args_take_string("--object", args, "qom-type", &type);

	if (!failed && (!type || strcmp(type, "iothread") != 0)) {
		complain("--object: type '%s' is not part of this version; iothread is", type ? type : "");
		failed = 1;
	}
	failed = failed || args_take_string("--object", args, "id", &t->id) || args_check_id("--object", "id", t->id) ||
		 args_done("--object", args);
	TAILQ_FOREACH(other, &d->iothreads, link)
	{
		if (!failed && strcmp(other->id, t->id) == 0) {
			complain("--object: there is an object id=%s already", t->id);
			failed = 1;
		}
	}
	free(type);
	json_decref(args);
	if (failed) {
		free(t ? t->id : NULL);
		free(t);
		return 1;
	}
	TAILQ_INSERT_TAIL(&d->iothreads, t, link);
	return 0;
}

static struct varve_queue *new_queue(const char *name)
{
	struct varve_queue_options qo = { .flags = VARVE_QUEUE_THREAD, .name = name };
	struct varve_queue *queue;
	struct varve_error err;

	if (varve_queue_new(&queue, &qo, &err) < 0) {
		complain("%s", err.message);
		return NULL;
	}
	return queue;
}

static struct varve_queue *iothread_queue(struct daemon *d, const char *id)
{
	struct iothread *t;

	TAILQ_FOREACH(t, &d->iothreads, link)
	{
		if (strcmp(t->id, id) == 0)
			break;
	}
	if (!t) {
		complain("--export: iothread=%s: there is no object of that id", id);
		return NULL;
	}
	if (!t->queue)
		t->queue = new_queue(t->id);
	return t->queue;
}

/* ---- the options of an export ---- */

/* addr.type=fd: whoever started the program made the socket, and listens on it. */
static int parse_fd(struct block_export *e, json_t *addr)
{
	char *text = NULL;
	unsigned fd = 0;
	int failed = args_take_string("--export", addr, "str", &text);

	if (!failed && (!text || parse_unsigned(text, INT_MAX, &fd) < 0 || fd < 3)) {
		complain("--export: addr.str=%s: the number of a descriptor is needed, 3 or more (names are a monitor's)",
			 text ? text : "");
		failed = 1;
	}
	free(text);
	e->socket_fd = (int)fd;
	return failed;
}

static int parse_unix(struct block_export *e, json_t *addr)
{
	if (args_take_string("--export", addr, "path", &e->socket))
		return 1;
	if (!e->socket)
		complain("--export: addr.path is missing");
	return !e->socket;
}

static int parse_address(struct block_export *e, json_t *args)
{
	json_t *addr = json_object_get(args, "addr");
	char *type = NULL;
	int failed = args_take_string("--export", addr, "type", &type);

	if (failed)
		;
	else if (type && !strcmp(type, "fd"))
		failed = parse_fd(e, addr);
	else if (type && !strcmp(type, "unix"))
		failed = parse_unix(e, addr);
	else {
		complain("--export: addr.type=%s: only unix sockets (addr.type=unix, fd) are part of this version",
			 type ? type : "");
		failed = 1;
	}
	failed = failed || args_done("--export: addr", addr);
	json_object_del(args, "addr");
	free(type);
	return failed;
}

static int parse(struct block_export *e, json_t *args)
{
	unsigned block_len = 512;
	char *type = NULL;
	bool fixed = false;
	int failed = args_take_string("--export", args, "type", &type);

	if (!failed && (!type || strcmp(type, "vhost-user-blk") != 0)) {
		complain("--export: type '%s' is not part of this version; vhost-user-blk is", type ? type : "");
		failed = 1;
	}
	free(type);
	e->nr_queues = 1;
	failed = failed || args_take_string("--export", args, "id", &e->id) || args_check_id("--export", "id", e->id) ||
		 args_take_string("--export", args, "node-name", &e->node_name) ||
		 args_check_id("--export", "node-name", e->node_name) ||
		 args_take_string("--export", args, "iothread", &e->iothread) ||
		 args_take_bool("--export", args, "fixed-iothread", &fixed) || /* an iothread stays, here */
		 args_take_bool("--export", args, "writable", &e->writable) ||
		 args_take_bool("--export", args, "writethrough", &e->writethrough) ||
		 args_take_unsigned("--export", args, "num-queues", 1, DAEMON_QUEUES_MAX, &e->nr_queues) ||
		 args_take_unsigned("--export", args, "logical-block-size", 0, 1u << 30, &block_len) ||
		 parse_address(e, args) || args_done("--export", args);
	if (!failed && block_len != 512) {
		complain("--export: logical-block-size=%u: only 512 is part of this version", block_len);
		failed = 1;
	}
	return failed;
}

static void free_export(struct block_export *e)
{
	for (unsigned i = 0; i < DAEMON_QUEUES_MAX && !e->iothread; i++)
		varve_queue_free(e->queues[i]);
	free(e->id);
	free(e->node_name);
	free(e->socket);
	free(e->iothread);
	free(e);
}

int export_add(struct daemon *d, const char *text)
{
	json_t *args = args_parse("--export", text, "type");
	struct block_export *e = args ? calloc(1, sizeof(*e)) : NULL, *other;
	int failed = !e || parse(e, args);

	json_decref(args);
	TAILQ_FOREACH(other, &d->exports, link)
	{
		if (!failed && strcmp(other->id, e->id) == 0) {
			complain("--export: there is an export id=%s already", e->id);
			failed = 1;
		}
	}
	if (failed) {
		if (e)
			free_export(e);
		return 1;
	}
	TAILQ_INSERT_TAIL(&d->exports, e, link);
	return 0;
}

/* ---- start and stop ---- */

/* An iothread runs all queues of the export; without one, each has a thread of its own. */
static int make_queues(struct daemon *d, struct block_export *e)
{
	char name[24];

	e->nr_running = e->iothread ? 1 : e->nr_queues;
	if (e->iothread) {
		e->queues[0] = iothread_queue(d, e->iothread);
		return !e->queues[0];
	}
	for (unsigned i = 0; i < e->nr_queues; i++) {
		snprintf(name, sizeof(name), "%.8s-vq%u", e->id, i);
		e->queues[i] = new_queue(name);
		if (!e->queues[i])
			return 1;
	}
	return 0;
}

/* It is a property of the disk, which exports share. */
static bool wants_writethrough(const struct daemon *d, const char *node_name)
{
	const struct block_export *e;

	TAILQ_FOREACH(e, &d->exports, link)
	{
		if (e->writethrough && strcmp(e->node_name, node_name) == 0)
			return true;
	}
	return false;
}

static int prepare(struct daemon *d, struct block_export *e)
{
	e->options = (struct varve_vhost_user_blk_options){
		.socket_path = e->socket, .socket_fd = e->socket_fd, .nr_queues = e->nr_queues, .writable = e->writable, .serial = "vhost_user_blk"
	};
	e->node = node_by_name(d, e->node_name);
	if (!e->node) {
		complain("--export: node-name=%s: there is no node of that name", e->node_name);
		return 1;
	}
	if (make_queues(d, e))
		return 1;
	if (!e->node->home && node_prepare(d, e->node, e->queues[0], wants_writethrough(d, e->node_name)))
		return 1;
	lend_add(&e->node->lend, &e->served, &e->options);
	return 0;
}

int exports_prepare(struct daemon *d)
{
	struct block_export *e;

	TAILQ_FOREACH(e, &d->exports, link)
	{
		if (prepare(d, e))
			return 1;
	}
	return 0;
}

int exports_start(struct daemon *d)
{
	struct varve_error err;
	struct block_export *e;

	TAILQ_FOREACH(e, &d->exports, link)
	{
		if (varve_export_vhost_user_blk(&e->served.exp, e->node->lend.image, &e->options, d->control, e->queues,
						e->nr_running, &err) < 0) {
			complain("--export: id=%s: %s", e->id, err.message);
			return 1;
		}
	}
	return 0;
}

int exports_stop(struct daemon *d)
{
	struct varve_error err;
	struct block_export *e;
	int failed = 0;

	TAILQ_FOREACH(e, &d->exports, link)
	{
		if (varve_export_stop(e->served.exp, &err) < 0) {
			complain("--export: id=%s: %s", e->id, err.message);
			failed = 1;
		}
		e->served.exp = NULL;
	}
	return failed;
}

/* After the images: their home queues are here. */
void exports_free(struct daemon *d)
{
	struct block_export *e;
	struct iothread *t;

	while ((e = TAILQ_FIRST(&d->exports))) {
		TAILQ_REMOVE(&d->exports, e, link);
		free_export(e);
	}
	while ((t = TAILQ_FIRST(&d->iothreads))) {
		TAILQ_REMOVE(&d->iothreads, t, link);
		varve_queue_free(t->queue);
		free(t->id);
		free(t);
	}
}
