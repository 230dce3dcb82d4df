/* SPDX-License-Identifier: MIT */
/*
 * tools/serve_command.c - what can be asked on the control socket of `varve serve`
 *
 *	{"command": "resize", "disk": "0", "size": "20G", "id": 7}
 *	{"return": {"length": 21474836480}, "id": 7}		or	{"error": "...", "id": 7}
 *
 * "disk" may be left out when there is one; "id", which may be anything, comes back. A command more is a function and a
 * line in the table at the end.
 *
 * Assumes: the main thread, or for commands that may wait a job's (serve_job.c): nothing else changes their disk meanwhile.
 */
#include "serve.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

struct call {
	struct serve *s;
	struct serve_disk *d; /* NULL: the command is about none */
	json_t *args;	      /* the whole object */
	char error[VARVE_ERROR_MAX + 64];
};

static json_t *fail(struct call *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static json_t *fail(struct call *c, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(c->error, sizeof(c->error), fmt, ap);
	va_end(ap);
	return NULL;
}

/* ---- commands: a new reference to what is returned, or fail() ---- */

static json_t *cmd_disks(struct call *c)
{
	json_t *list = json_array();

	for (unsigned i = 0; i < c->s->nr_disks; i++) {
		struct serve_disk *d = &c->s->disk[i];
		const char *format;
		uint64_t length;
		json_t *o;

		lend_tell(&d->lend, &format, &length);
		o = json_pack("{s:s, s:I, s:b, s:b, s:b, s:i}", "format", format, "length", (json_int_t)length, "read-only", d->read_only, "paused",
				      d->lend.stopped, "held", d->lend.held, "queues",
				      (int)d->export.nr_queues);

		/* Words of the command line, which may be no UTF-8. */
		json_object_set_new(o, "disk", json_string(d->name));
		json_object_set_new(o, "file", json_string(d->file));
		json_object_set_new(o, "socket", json_string(d->export.socket_path));
		json_array_append_new(list, o);
	}
	return list;
}

static json_t *parsed(struct call *c, int ret, char *text, const struct varve_error *err)
{
	json_t *o = ret < 0 ? NULL : json_loads(text, 0, NULL);

	free(text);
	return o ? o : fail(c, "%s", ret < 0 ? err->message : "the answer cannot be read");
}

static json_t *cmd_stats(struct call *c)
{
	struct varve_error err;
	json_t *exp, *image;
	char *text = NULL;
	int ret = varve_export_stats(c->d->served.exp, &text, &err);

	exp = parsed(c, ret, text, &err);
	text = NULL;
	ret = varve_image_stats(c->d->lend.image, &text, &err);
	image = parsed(c, ret, text, &err);
	if (exp && image)
		return json_pack("{s:o, s:o}", "export", exp, "image", image);
	json_decref(exp);
	json_decref(image);
	return NULL;
}

static json_t *cmd_pause(struct call *c)
{
	if (!c->d->lend.stopped)
		varve_export_pause(c->d->served.exp);
	c->d->lend.stopped = true;
	return json_object();
}

static json_t *cmd_resume(struct call *c)
{
	if (c->d->lend.stopped && c->d->lend.held) /* else when it has its image again (lend.c) */
		varve_export_resume(c->d->served.exp);
	c->d->lend.stopped = false;
	varve_image_resume(c->d->lend.image); /* if an error had stopped it (werror=stop) */
	return json_object();
}

static json_t *cmd_resize(struct call *c)
{
	const json_t *size = json_object_get(c->args, "size");
	const json_t *may_shrink = json_object_get(c->args, "shrink");
	bool shrink = json_is_true(may_shrink);
	struct varve_error err;
	uint64_t length;

	if (may_shrink && !json_is_boolean(may_shrink))
		return fail(c, "\"shrink\" must be true or false");
	if (json_is_integer(size) && json_integer_value(size) > 0)
		length = (uint64_t)json_integer_value(size);
	else if (!json_is_string(size) || parse_size(json_string_value(size), &length) < 0)
		return fail(c, "\"size\" must be a number of bytes, or a string as \"20G\"");
	if (length < varve_image_length(c->d->lend.image) && !shrink)
		return fail(c, "the disk has %llu bytes; to cut it shorter, say \"shrink\": true",
			    (unsigned long long)varve_image_length(c->d->lend.image));
	if (varve_image_resize(c->d->lend.image, length, VARVE_PREALLOC_OFF, shrink ? VARVE_RESIZE_SHRINK : 0, &err) < 0)
		return fail(c, "%s", err.message);
	return json_pack("{s:I}", "length", (json_int_t)varve_image_length(c->d->lend.image));
}

static json_t *cmd_flush(struct call *c)
{
	struct varve_error err;

	if (varve_image_writable(c->d->lend.image) && varve_image_flush(c->d->lend.image, &err) < 0)
		return fail(c, "%s", err.message);
	return json_object();
}

/* Without limits among the members: tells those in force. */
static json_t *cmd_throttle(struct call *c)
{
	const json_t *limits = json_object_get(c->args, "limits");
	struct varve_error err;
	char *text = NULL;
	int ret;

	if (limits && !json_is_string(limits))
		return fail(c, "\"limits\" must be a string, as \"iops-total=500,bps-total=10M\"");
	ret = limits ? lend_set_limits(&c->d->lend, json_string_value(limits), &err) : 0;
	if (ret == 0)
		ret = varve_image_limits(c->d->lend.image, &text, &err);
	return parsed(c, ret, text, &err);
}

/* ---- snapshots ---- */

/* A member that must be a string; NULL after fail(), or if it is not there and need not be. */
static const char *get_text(struct call *c, const char *key, bool needed)
{
	const json_t *value = json_object_get(c->args, key);

	if (json_is_string(value))
		return json_string_value(value);
	if (value || needed)
		fail(c, "\"%s\" must be a string", key);
	return NULL;
}

static json_t *cmd_snapshots(struct call *c)
{
	struct varve_snapshot_info *list;
	json_t *all = json_array();
	struct varve_error err;
	unsigned nr;

	if (varve_snapshot_list(c->d->lend.image, &list, &nr, &err) < 0) {
		json_decref(all);
		return fail(c, "%s", err.message);
	}
	for (unsigned i = 0; i < nr; i++) {
		json_t *o = json_pack("{s:I, s:I, s:I}", "vm-state-size", (json_int_t)list[i].state_length, "disk-length",
				      (json_int_t)list[i].disk_length, "date-sec", (json_int_t)list[i].date_s);

		/* Others may have chosen ids and names that are no UTF-8: those are null. */
		json_object_set_new(o, "id", json_string(list[i].id) ?: json_null());
		json_object_set_new(o, "name", json_string(list[i].name) ?: json_null());
		json_array_append_new(all, o);
	}
	varve_snapshot_list_free(list, nr);
	return all;
}

static json_t *cmd_snapshot_create(struct call *c)
{
	struct varve_snapshot_options so = { .name = get_text(c, "name", true) };
	const char *state = so.name ? get_text(c, "state", false) : NULL;
	struct varve_error err;
	json_t *o;
	char *id;

	if (*c->error)
		return NULL;
	if (state)
		return serve_state_start(c->d, so.name, state, &err) < 0 ? fail(c, "%s", err.message) :
									   serve_state_tell(c->d);
	if (varve_snapshot_create(c->d->lend.image, &so, &id, &err) < 0)
		return fail(c, "%s", err.message);
	o = json_pack("{s:s}", "id", id);
	free(id);
	return o;
}

static json_t *cmd_snapshot_state(struct call *c)
{
	return serve_state_tell(c->d);
}

static json_t *cmd_snapshot_delete(struct call *c)
{
	const char *name = get_text(c, "name", false), *id = *c->error ? NULL : get_text(c, "snapshot-id", false);
	struct varve_error err;

	if (*c->error)
		return NULL;
	if (!name && !id)
		return fail(c, "which snapshot? \"name\" or \"snapshot-id\" is needed");
	return varve_snapshot_delete(c->d->lend.image, id, name, &err) < 0 ? fail(c, "%s", err.message) : json_object();
}

static json_t *cmd_help(struct call *c);

/* ---- the table ---- */

static const struct command {
	const char *name;
	json_t *(*run)(struct call *c);
	bool about_disk;
	enum serve_kind kind;
	const char *args; /* names of members beside "command", "disk" and "id", each with a space behind it */
	const char *help;
} commands[] = {
	{ "help", cmd_help, false, SERVE_AT_ONCE, "", "what can be asked" },
	{ "disks", cmd_disks, false, SERVE_AT_ONCE, "", "the disks that are served" },
	{ "stats", cmd_stats, true, SERVE_LOOK, "", "requests, latencies, and what goes on inside" },
	{ "pause", cmd_pause, true, SERVE_JOB, "", "no request is taken from now on; returns when those in flight are done" },
	{ "resume", cmd_resume, true, SERVE_RESUME, "", "after pause, or after an error with werror=stop" },
	{ "resize", cmd_resize, true, SERVE_JOB, "size shrink ",
	  "another length (\"size\": bytes, or \"20G\"; less only with \"shrink\": true); the guest is told" },
	{ "throttle", cmd_throttle, true, SERVE_LOOK, "limits ",
	  "new limits (a string as for --throttle, \"\" for none), or without any, those in force" },

	{ "snapshots", cmd_snapshots, true, SERVE_JOB, "", "the internal snapshots of the disk" },
	{ "snapshot-create", cmd_snapshot_create, true, SERVE_JOB, "name state ",
	  "keeps the disk as it is now, while it is used; \"state\": a FIFO or file with the state of the machine" },
	{ "snapshot-state", cmd_snapshot_state, true, SERVE_JOB, "", "what the state of the last snapshot-create has come to" },
	{ "snapshot-delete", cmd_snapshot_delete, true, SERVE_JOB, "name snapshot-id ", "forgets a snapshot" },
	{ "flush", cmd_flush, true, SERVE_JOB, "", "everything acknowledged is on stable storage" },
};

static json_t *cmd_help(struct call *c)
{
	json_t *o = json_object();

	(void)c;
	for (unsigned i = 0; i < ARRAY_LEN(commands); i++)
		json_object_set_new(o, commands[i].name,
				    json_pack("{s:b, s:s, s:s}", "disk", commands[i].about_disk, "arguments",
					      commands[i].args, "help", commands[i].help));
	return o;
}

/* ---- one line ---- */

static bool find_disk(struct call *c)
{
	const char *name = json_string_value(json_object_get(c->args, "disk"));

	if (!json_object_get(c->args, "disk") && c->s->nr_disks == 1) {
		c->d = &c->s->disk[0];
		return true;
	}
	for (unsigned i = 0; name && i < c->s->nr_disks; i++) {
		if (!strcmp(c->s->disk[i].name, name))
			c->d = &c->s->disk[i];
	}
	if (!c->d && name)
		fail(c, "there is no disk \"%.200s\"", name);
	else if (!c->d)
		fail(c, "which disk? \"disk\" must be the name of one (a string)");
	return c->d != NULL;
}

/* A member that the command does not know is a mistake that should not go unnoticed. */
static bool check_members(struct call *c, const struct command *cmd)
{
	const char *key;
	json_t *value;

	json_object_foreach(c->args, key, value) {
		const char *at = strstr(cmd->args, key);
		size_t len = strlen(key);

		if (!strcmp(key, "command") || !strcmp(key, "id") || (cmd->about_disk && !strcmp(key, "disk")))
			continue;
		while (at && !((at == cmd->args || at[-1] == ' ') && at[len] == ' '))
			at = strstr(at + 1, key);
		if (at && len)
			continue;
		fail(c, "command \"%s\" does not take \"%.200s\"", cmd->name, key);
		return false;
	}
	return true;
}

/* The command of c->args, whose disk is c->d then. NULL after fail(). */
static const struct command *find_command(struct call *c)
{
	const char *name = json_string_value(json_object_get(c->args, "command"));

	if (!name) {
		fail(c, "a line is a JSON object with a member \"command\", a string; try {\"command\": \"help\"}");
		return NULL;
	}
	for (unsigned i = 0; i < ARRAY_LEN(commands); i++) {
		const struct command *cmd = &commands[i];

		if (strcmp(cmd->name, name) != 0)
			continue;
		return check_members(c, cmd) && (!cmd->about_disk || find_disk(c)) ? cmd : NULL;
	}
	fail(c, "there is no command \"%.200s\"; try \"help\"", name);
	return NULL;
}

enum serve_kind serve_command_kind(struct serve *s, const char *line, size_t len, struct serve_disk **ret_disk)
{
	struct call c = { .s = s, .args = json_loadb(line, len, JSON_REJECT_DUPLICATES, NULL) };
	const struct command *cmd = json_is_object(c.args) ? find_command(&c) : NULL;

	json_decref(c.args);
	*ret_disk = c.d;
	if (!cmd)
		return SERVE_AT_ONCE; /* to be answered with what is wrong */
	return cmd->kind;
}

/* Errors tell of files and words of others, which may be no UTF-8, or were cut in the middle of a letter. */
static json_t *error_text(char *text)
{
	json_t *o = json_string(text);

	for (char *c = text; !o && *c; c++)
		*c = *c & 0x80 ? '?' : *c;
	return o ? o : json_string(text);
}

char *serve_command(struct serve *s, const char *line, size_t len)
{
	struct call c = { .s = s };
	json_t *id, *value, *o = json_object();
	json_error_t where;
	char *text;

	c.args = json_loadb(line, len, JSON_REJECT_DUPLICATES, &where);
	if (json_is_object(c.args)) {
		const struct command *cmd = find_command(&c);

		value = cmd ? cmd->run(&c) : NULL;
	} else {
		value = c.args ? fail(&c, "a line is a JSON object") : fail(&c, "not JSON: %s", where.text);
	}
	if (value)
		json_object_set_new(o, "return", value);
	else
		json_object_set_new(o, "error", error_text(c.error));
	id = json_object_get(c.args, "id");
	if (id)
		json_object_set(o, "id", id);
	text = json_dumps(o, JSON_COMPACT);
	json_decref(o);
	json_decref(c.args);
	return text;
}
