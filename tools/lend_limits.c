/* SPDX-License-Identifier: MIT */
/*
 * tools/lend_limits.c - what somebody has set while a disk was served, and holds for whoever serves it next
 *
 * Limits and a pause belong to the disk that an operator sees: an image that is opened anew gets them again, and so does another
 * process that takes over (takeover.h). What the next one's options say of limits is newer, and counts instead.
 *
 * Owns:    lend->limits.
 * Assumes: the main thread, or that of a command, whose end lend_ops.busy() tells of before an image comes or goes.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lend.h"

/* Those in force, as they are set: "iops-total=500,...", malloc'd. However they were written, that is a few hundred bytes. */
static char *limits_text(struct varve_image *image, struct varve_error *err)
{
	const char *key, *comma = "";
	char *json = NULL, *text = NULL;
	json_t *o = NULL, *value;
	size_t size;
	FILE *f;

	if (varve_image_limits(image, &json, err) < 0)
		return NULL;
	f = open_memstream(&text, &size);
	o = json_loads(json, 0, NULL);
	free(json);
	json_object_foreach(o, key, value) {
		if (f)
			fprintf(f, "%s%s=%lld", comma, key, (long long)json_integer_value(value));
		comma = ",";
	}
	json_decref(o);
	if (f && fclose(f) == 0)
		return text;
	free(text);
	err->code = -ENOMEM;
	snprintf(err->message, sizeof(err->message), "limits: %s", strerror(ENOMEM));
	return NULL;
}

int lend_set_limits(struct lend *l, const char *limits, struct varve_error *err)
{
	int ret = varve_image_set_limits(l->image, limits, err);
	char *text = ret < 0 ? NULL : limits_text(l->image, err);

	if (!text)
		return ret < 0 ? ret : err->code;
	free(l->limits);
	l->limits = text;
	return 0;
}

int lend_apply_limits(struct lend *l, struct varve_error *err)
{
	return l->limits ? varve_image_set_limits(l->image, l->limits, err) : 0;
}

bool lend_names_limits(const json_t *options)
{
	const char *key;
	json_t *value;

	json_object_foreach((json_t *)options, key, value) {
		if (!strncmp(key, "throttling", 10) && (!key[10] || key[10] == '.'))
			return true;
	}
	return false;
}

json_t *lend_settings(const struct lend *l)
{
	json_t *o = json_pack("{s:b}", "paused", l->stopped);

	if (l->limits)
		json_object_set_new(o, "limits", json_string(l->limits));
	return o;
}

int lend_inherit(struct lend *l, const json_t *settings)
{
	const json_t *limits = json_object_get(settings, "limits");

	if (!settings)
		return 0; /* from one that did not tell them yet */
	if (!json_is_object(settings) || (limits && !json_is_string(limits)))
		return 1;
	if (json_is_true(json_object_get(settings, "paused"))) {
		l->stopped = true;
		for (struct lend_export *e = l->exports; e; e = e->next)
			e->options->paused = true;
	}
	if (!limits || l->own_limits)
		return 0;
	free(l->limits);
	l->limits = strdup(json_string_value(limits));
	return !l->limits;
}
