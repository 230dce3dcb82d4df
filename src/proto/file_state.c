/* SPDX-License-Identifier: MIT */
/*
 * proto/file_state.c - what an open file says of itself, and what the operator may tell it
 */
#include "proto/file.h"

#include <jansson.h>
#include <string.h>

#include "base/log.h"
#include "block/graph.h"

void file_stats(struct node *n, void *json_stats)
{
	struct file *fl = node_state(n);
	int error = fl->doubt ? doubt_error(fl->doubt) : 0;
	uint64_t bytes = fl->doubt ? doubt_bytes(fl->doubt) : 0;

	/* A member that could not be made is missing; the others are still true. */
	json_object_set_new(json_stats, "aio", json_string(fl->af.engine->name));
	json_object_set_new(json_stats, "cache", json_string(cache_mode_name(n->flags)));
	json_object_set_new(json_stats, "direct", json_boolean(fl->af.direct));
	json_object_set_new(json_stats, "sync", json_boolean(fl->sync));
	json_object_set_new(json_stats, "writable", json_boolean(fl->writable));
	json_object_set_new(json_stats, "flush-error",
			    error ? json_string(strerrorname_np(-error)) : json_null());
	json_object_set_new(json_stats, "bytes-in-doubt", json_integer((json_int_t)bytes));
}

int file_acknowledge(struct node *n, uint64_t *bytes)
{
	struct file *fl = node_state(n);
	uint64_t doubt = 0;
	int error = fl->doubt ? doubt_acknowledge(fl->doubt, &doubt) : 0;

	if (!error)
		return 0;
	log_warning("%s: a flush error (%s) is acknowledged; up to %llu bytes written before may not be on "
		    "the disk",
		    node_name(n), strerror(-error), (unsigned long long)doubt);
	*bytes += doubt;
	return error;
}

void file_publish_error(struct node *n, _Atomic uint64_t *where)
{
	struct file *fl = node_state(n);

	if (fl->doubt)
		doubt_publish(fl->doubt, where);
}

void file_inherit_error(struct node *n, int error)
{
	struct file *fl = node_state(n);

	uint64_t bytes;

	if (fl->doubt && !error)
		(void)doubt_acknowledge(fl->doubt, &bytes);
	else if (fl->doubt)
		(void)doubt_sync_failed(fl->doubt, error); /* tells what to do, in the log */
}
