/* SPDX-License-Identifier: MIT */
/*
 * api/info.c - ImageInfo and statistics as JSON
 *
 * Assumes: every driver adds what only it knows: a format its "format-specific" part, a leaf the "actual-size".
 * Never:   opens another file than the image's own.
 */
#include "api/api.h"
#include "block/copy_on_read.h"
#include "block/policy.h"

#include <jansson.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

/*
 * A JSON string of bytes that may not be UTF-8: file names are in the file system's encoding, and names inside an
 * image are a stranger's. Each byte that is no part of a valid sequence becomes U+FFFD.
 */
static json_t *json_bytes(const char *bytes)
{
	json_t *s = json_string(bytes);
	size_t n = strlen(bytes), used = 0;
	char *fixed;

	if (s)
		return s;
	fixed = malloc(n * 3 + 1);
	if (!fixed)
		return NULL;
	while (*bytes) {
		size_t take = 4;
		json_t *one = NULL;

		/* The longest valid sequence here is at most four bytes: let the JSON library judge. */
		take = strnlen(bytes, take);
		for (; take && !one; take--) {
			one = json_stringn(bytes, take);
			if (one)
				break;
		}
		if (one) {
			memcpy(fixed + used, bytes, take);
			used += take;
			bytes += take;
			json_decref(one);
		} else {
			memcpy(fixed + used, "\xef\xbf\xbd", 3);
			used += 3;
			bytes++;
		}
	}
	s = json_stringn(fixed, used);
	free(fixed);
	return s;
}

static int json_to_text(json_t *o, char **ret_json, const char *name, struct varve_error *err)
{
	char *text = json_dumps(o, JSON_COMPACT);

	json_decref(o);
	if (!text)
		return varve_error_errno(err, -ENOMEM, "%s: information", name);
	*ret_json = text;
	return 0;
}

/* ---- ImageInfo ---- */

struct info_args {
	struct node *top;
	json_t *o;
	struct varve_error *err;
};

static void info_backing(struct node *n, json_t *o)
{
	char path[NODE_NAME_MAX];

	if (!n->backing_name)
		return;
	json_object_set_new(o, "backing-filename", json_bytes(n->backing_name));
	/* A name that cannot be placed is shown as it is: that nobody could open it is not info's to judge. */
	if (backing_path(n->name, n->backing_name, path, NULL) == 0)
		json_object_set_new(o, "full-backing-filename", json_bytes(path));
	else
		json_object_set_new(o, "full-backing-filename", json_bytes(n->backing_name));
	if (n->backing_format)
		json_object_set_new(o, "backing-filename-format", json_bytes(n->backing_format));
}

/*
 * How requests should look so that they are not changed on their way (BlockLimitsInfo): any bytes go, but what is not aligned
 * costs a read. What a layer does not say is what the one below does.
 */
static json_t *info_limits(const struct node *n)
{
	const struct node *leaf = n;
	json_t *o = json_object();

	while (leaf->file)
		leaf = leaf->file;
	json_object_set_new(o, "request-alignment", json_integer(n->cluster_len ? 1 : leaf->align));
	if (n->cluster_len) {
		json_object_set_new(o, "discard-alignment", json_integer(map_unit(n)));
		json_object_set_new(o, "write-zeroes-alignment", json_integer(map_unit(n)));
	}
	json_object_set_new(o, "max-iov", json_integer(IOV_MAX));
	json_object_set_new(o, "min-mem-alignment", json_integer(MAX(leaf->mem_align, 1)));
	json_object_set_new(o, "opt-mem-alignment", json_integer(MAX(leaf->mem_align, 4096)));
	return o;
}

/* Without the prefix that says that it is a path. */
static const char *path_of(const char *name)
{
	static const char *const prefixes[] = { "file:", "host_device:" };

	for (unsigned i = 0; i < ARRAY_LEN(prefixes); i++) {
		if (strncmp(name, prefixes[i], strlen(prefixes[i])) == 0)
			return name + strlen(prefixes[i]);
	}
	return name;
}

static json_t *describe(struct node *n)
{
	json_t *o = json_object();

	if (n->drv->describe)
		n->drv->describe(n, o);
	json_object_set_new(o, "driver", json_bytes(n->drv->name));
	if (n->file)
		json_object_set_new(o, n->drv->child_key ? n->drv->child_key : "file", describe(n->file));
	else
		json_object_set_new(o, "filename", json_bytes(path_of(n->name)));
	return o;
}

/*
 * By which the same disk can be opened again: the path of its file, or a description if options have made another disk of it.
 * Of the layers below that may be, too; but relative names in an image are relative to a path.
 */
static json_t *full_name(struct node *n)
{
	json_t *own = json_object(), *o = NULL, *name;
	char *text;

	if (n->drv->describe)
		n->drv->describe(n, own);
	if (json_object_size(own))
		o = describe(n);
	text = o ? json_dumps(o, 0) : NULL;
	name = text ? json_sprintf("json:%s", text) : json_bytes(path_of(n->name));
	free(text);
	json_decref(o);
	json_decref(own);
	return name;
}

/* What every layer has, and what the drivers from it down say: the place on disk is told by the last. */
static int info_node(struct fiber *f, struct node *n, json_t *o, struct varve_error *err)
{
	int ret = 0;

	json_object_set_new(o, "filename", full_name(n));
	json_object_set_new(o, "format", json_bytes(n->drv->name));
	/* Lengths of disks are whole sectors; that of a file is told in them, too. */
	json_object_set_new(o, "virtual-size", json_integer((json_int_t)align_up(node_len(n), 512)));
	if (n->cluster_len)
		json_object_set_new(o, "cluster-size", json_integer(n->cluster_len));
	info_backing(n, o);
	json_object_set_new(o, "limits", info_limits(n));
	for (; n && ret == 0; n = n->file)
		ret = n->drv->info ? n->drv->info(f, n, o, err) : 0;
	if (!json_object_get(o, "dirty-flag"))
		json_object_set_new(o, "dirty-flag", json_false());
	return ret;
}

/* "children": the layer below, and in it the one below that. Layers are few (FIBER_LEVEL_JOB). */
static int info_children(struct fiber *f, struct node *n, json_t *o, struct varve_error *err)
{
	json_t *list = json_array(), *child;
	int ret;

	json_object_set_new(o, "children", list);
	if (!n->file)
		return 0;
	child = json_object();
	json_array_append_new(list, json_pack("{s:s, s:o}", "name", "file", "info", child));
	ret = info_node(f, n->file, child, err);
	json_object_del(child, "aio"); /* told once, of the image */
	if (ret == 0 && n->data && !(n->flags & NODE_NO_DATA)) {
		json_t *data = json_object();

		json_array_append_new(list, json_pack("{s:s, s:o}", "name", "data-file", "info", data));
		ret = info_node(f, n->data, data, err);
		json_object_del(data, "aio");
	}
	return ret < 0 ? ret : info_children(f, n->file, child, err);
}

static int info_fiber(struct fiber *f, void *arg)
{
	struct info_args *a = arg;
	int ret = info_node(f, a->top, a->o, a->err);

	return ret < 0 ? ret : info_children(f, a->top, a->o, a->err);
}

int varve_image_info(struct varve_image *image, char **ret_json, struct varve_error *err)
{
	struct info_args a = { .top = image->top, .o = json_object(), .err = err };
	int ret;

	if (!a.o)
		return varve_error_errno(err, -ENOMEM, "%s: information", node_name(image->top));
	ret = api_call(image, info_fiber, &a);
	if (ret < 0) {
		json_decref(a.o);
		return ret;
	}
	return json_to_text(a.o, ret_json, node_name(image->top), err);
}

/* ---- statistics ---- */

struct stats_sum {
	uint64_t hot, cold, split;
	uint64_t flushes, flush_rounds; /* of the top's own file */
	struct queue_stats home;
};

struct stats_args {
	struct node *top;
	struct queue *q;
	struct stats_sum *sum;
	json_t *o, *files; /* the home queue's turn: the drivers' own counters, and those of each leaf */
};

static void add_copy_on_read(const struct node *n, json_t *o)
{
	struct cor_stats s;

	while (n && !n->cor)
		n = n->file;
	if (!n)
		return;
	cor_get_stats(n, &s);
	json_object_set_new(o, "copy-on-read",
			    json_pack("{s:I, s:I, s:I, s:I, s:I}", "copies", (json_int_t)s.copies, "copied-bytes",
				      (json_int_t)s.copied_bytes, "zero-bytes", (json_int_t)s.zero_bytes, "failures",
				      (json_int_t)s.failures, "ahead-bytes", (json_int_t)s.ahead_bytes));
}

static bool stats_leaf(struct node *leaf, void *arg)
{
	json_t *o = json_object();

	json_object_set_new(o, "filename", json_bytes(node_name(leaf)));
	json_object_set_new(o, "driver", json_string(leaf->drv->name));
	if (leaf->drv->stats)
		leaf->drv->stats(leaf, o);
	json_array_append_new(arg, o);
	return true;
}

/* On the queue whose counters are read. */
static int stats_fiber(struct fiber *f, void *arg)
{
	struct stats_args *a = arg;
	const struct node_slot *s = atomic_load(&a->top->slots[queue_id(a->q)]);
	const struct node_slot *file = a->top->file ? atomic_load(&a->top->file->slots[queue_id(a->q)]) : NULL;

	if (s) {
		a->sum->hot += s->nr_hot;
		a->sum->cold += s->nr_cold;
		a->sum->split += s->nr_split;
	}
	if (file) {
		a->sum->flushes += file->flushes.nr_flushes;
		a->sum->flush_rounds += file->flushes.nr_rounds;
	}
	if (a->q != a->top->home)
		return 0;
	a->sum->home = *queue_stats(a->q);
	add_copy_on_read(a->top, a->o);
	for (struct node *n = a->top; n->file; n = n->file) {
		if (n->drv->stats)
			n->drv->stats(n, a->o);
	}
	graph_each_leaf(a->top, stats_leaf, a->files);
	return 0;
}

/*
 * The counters belong to the threads of their queues, so each queue with a thread is asked on it. The queue of
 * another thread of the embedder cannot be: its requests are missing from the sum, and "queues" says how many
 * queues are in it.
 */
static unsigned stats_collect(struct varve_image *image, struct stats_sum *sum, json_t *o)
{
	struct stats_args a = { .top = image->top, .q = image->home->q, .sum = sum, .o = o, .files = json_array() };
	unsigned nr = 1;

	api_call(image, stats_fiber, &a);
	json_object_set_new(o, "files", a.files);
	for (unsigned i = 0; i < QUEUE_MAX; i++) {
		struct node_slot *s = atomic_load(&image->top->slots[i]);

		if (!s || s->q == image->home->q || !queue_has_thread(s->q))
			continue;
		a.q = s->q;
		fiber_call(a.q, stats_fiber, &a);
		nr++;
	}
	return nr;
}

static void add_policy(const struct node *n, json_t *o)
{
	struct policy_state s;

	if (!policy_get_state(n, &s))
		return;
	json_object_set_new(o, "errors",
			    json_pack("{s:s, s:s, s:i, s:s, s:I, s:I}", "werror", werror_name(s.werror), "state",
				      s.error ? "stopped" : "running", "errno", -s.error, "reason",
				      s.error ? strerror(-s.error) : "", "parked-requests",
				      (json_int_t)s.nr_parked, "parked-bytes", (json_int_t)s.parked_bytes));
}

static json_t *count(uint64_t n)
{
	return json_integer((json_int_t)n);
}

int varve_image_stats(struct varve_image *image, char **ret_json, struct varve_error *err)
{
	json_t *o = json_object(), *requests = json_object(), *home = json_object();
	struct stats_sum sum = { 0 };
	const struct queue_stats *h = &sum.home;

	/* A member that could not be made is missing; the whole is still true. */
	json_object_set_new(o, "queues", count(stats_collect(image, &sum, o)));
	json_object_set_new(requests, "hot", count(sum.hot));
	json_object_set_new(requests, "cold", count(sum.cold));
	json_object_set_new(requests, "split", count(sum.split));
	json_object_set_new(requests, "flushes", count(sum.flushes));
	json_object_set_new(requests, "flush-rounds", count(sum.flush_rounds));
	json_object_set_new(o, "requests", requests);
	json_object_set_new(home, "turns", count(h->turns));
	json_object_set_new(home, "waits", count(h->waits));
	json_object_set_new(home, "syscalls", count(h->syscalls));
	json_object_set_new(home, "messages", count(h->msgs));
	json_object_set_new(home, "fibers-started", count(h->fibers_started));
	json_object_set_new(home, "fibers-parked", count(h->fibers_parked));
	json_object_set_new(home, "fiber-switches", count(h->fiber_switches));
	json_object_set_new(home, "aio-submitted", count(h->aio_submitted));
	json_object_set_new(home, "aio-completed", count(h->aio_completed));
	json_object_set_new(home, "aio-registered", count(h->aio_registered));
	json_object_set_new(o, "home", home);
	add_policy(image->top, o);
	return json_to_text(o, ret_json, node_name(image->top), err);
}
