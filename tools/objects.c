/* SPDX-License-Identifier: MIT */
/*
 * tools/objects.c - --object: things that other options name by their id
 *
 * Secrets are the only kind that disk images have a use for here: secret,id=ID,data=TEXT or file=NAME, [format=raw|base64]. They
 * are checked as far as that goes without an image; the library refuses images that need one (encryption) by name.
 *
 * Owns:    the ids that are taken.
 * Never:   prints a secret, or keeps one.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include "options.h"

#define SECRET_MAX ((size_t)16 << 20)
#define OBJECTS_MAX 64
#define KEYS_MAX 16

struct key {
	char *name, *value;
};

struct object {
	char *text; /* the names and values lie here */
	struct key keys[KEYS_MAX];
	unsigned nr_keys;
};

#define SECRET_FORMAT_WORDS "raw|base64"

const struct varve_option_info secret_options[] = {
	{ "qom-type", "secret", "the type; it may stand first, without its name", false },
	{ "id", "str", "what other options call it", false },
	{ "data", "str", "the secret itself", false },
	{ "file", "file", "the file that holds it", false },
	{ "format", SECRET_FORMAT_WORDS, "how it is written down (raw)", false },
	{ NULL, NULL, NULL, false },
};

static char *ids[OBJECTS_MAX];
static unsigned nr_ids;

static const char *get(const struct object *o, const char *name)
{
	for (unsigned i = 0; i < o->nr_keys; i++) {
		if (strcmp(o->keys[i].name, name) == 0)
			return o->keys[i].value;
	}
	return NULL;
}

static int add_key(struct object *o, char *name, char *value)
{
	if (o->nr_keys == KEYS_MAX)
		return complain_usage("--object: more than %d keys", KEYS_MAX);
	o->keys[o->nr_keys++] = (struct key){ name, value };
	return 0;
}

/* Cuts the next element off: up to a comma, where ",," stands for one in a value. NULL: there is none. */
static char *next_element(char **text)
{
	char *begin = *text, *from = begin, *to = begin;

	if (!begin)
		return NULL;
	*text = NULL;
	for (; *from; from++, to++) {
		if (*from == ',' && from[1] == ',') {
			from++;
		} else if (*from == ',') {
			*text = from + 1;
			break;
		}
		*to = *from;
	}
	*to = '\0';
	return begin;
}

static int split(struct object *o)
{
	char *rest = o->text, *element, *equals;
	int ret = 0;

	while (!ret && (element = next_element(&rest))) {
		equals = strchr(element, '=');
		if (equals) {
			*equals = '\0';
			ret = add_key(o, element, equals + 1);
		} else {
			/* The first word alone is the type. */
			ret = o->nr_keys ? complain_usage("--object: '%s' has no value", element) :
					   add_key(o, (char *)(uintptr_t)"qom-type", element);
		}
	}
	return ret;
}

static int split_json(struct object *o, const char *text, json_t **ret_json)
{
	json_error_t err;
	json_t *json = json_loads(text, 0, &err), *value;
	const char *name;
	int ret = 0;

	if (!json_is_object(json)) {
		json_decref(json);
		return complain_usage("--object: not a JSON object: %s", json ? "another type" : err.text);
	}
	json_object_foreach(json, name, value) {
		if (!json_is_string(value))
			ret = complain_usage("--object: the value of '%s' is no string", name);
		else
			ret = add_key(o, (char *)(uintptr_t)name, (char *)(uintptr_t)json_string_value(value));
		if (ret)
			break;
	}
	*ret_json = json;
	return ret;
}

/* A file with a secret can be read, and is no larger than one. */
static int look_at_file(const char *id, const char *name)
{
	FILE *file = fopen(name, "rbe");
	size_t len = 0, got;
	char buf[4096];
	int error;

	if (!file) {
		complain("--object secret,id=%s: file %s: %s", id, name, strerror(errno));
		return 1;
	}
	while (len <= SECRET_MAX && (got = fread(buf, 1, sizeof(buf), file)) > 0)
		len += got;
	error = ferror(file) ? errno : 0;
	fclose(file);
	explicit_bzero(buf, sizeof(buf));
	if (error || len > SECRET_MAX) {
		complain("--object secret,id=%s: file %s: %s", id, name, error ? strerror(error) : "longer than 16 MiB");
		return 1;
	}
	return 0;
}

static int check_secret(const struct object *o, const char *id)
{
	const char *format = get(o, "format");

	for (unsigned i = 0; i < o->nr_keys; i++) {
		const struct varve_option_info *known = secret_options;

		while (known->name && strcmp(o->keys[i].name, known->name) != 0)
			known++;
		if (!known->name)
			return complain_usage("--object secret,id=%s: unknown key '%s'", id, o->keys[i].name);
	}
	if (!get(o, "data") == !get(o, "file"))
		return complain_usage("--object secret,id=%s: give either data= or file=", id);
	if (format && option_word(SECRET_FORMAT_WORDS, format) < 0)
		return complain_usage("--object secret,id=%s: format '%s' is neither raw nor base64", id, format);
	return get(o, "file") ? look_at_file(id, get(o, "file")) : 0;
}

static int check(const struct object *o)
{
	const char *type = get(o, "qom-type"), *id = get(o, "id");

	if (!type)
		return complain_usage("--object: no type is given");
	if (!id || !*id)
		return complain_usage("--object %s: no id is given", type);
	for (unsigned i = 0; i < nr_ids; i++) {
		if (strcmp(ids[i], id) == 0)
			return complain_usage("--object %s: there is an object with id '%s' already", type, id);
	}
	if (nr_ids == OBJECTS_MAX)
		return complain_usage("--object: more than %d objects", OBJECTS_MAX);
	if (strcmp(type, "secret") != 0) {
		complain("--object %s: objects of this type have no use for disk images here; secret has", type);
		return 1;
	}
	return check_secret(o, id);
}

int object_add(const char *text)
{
	struct object o = { .text = strdup(text) };
	json_t *json = NULL;
	int ret;

	if (!o.text) {
		complain("out of memory");
		return 1;
	}
	ret = *text == '{' ? split_json(&o, text, &json) : split(&o);
	if (!ret)
		ret = check(&o);
	if (!ret)
		ids[nr_ids++] = strdup(get(&o, "id"));
	json_decref(json);
	explicit_bzero(o.text, strlen(o.text));
	free(o.text);
	return ret;
}
