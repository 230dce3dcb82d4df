/* SPDX-License-Identifier: MIT */
/*
 * tools/daemon_args.c - an argument of `varve daemon` as an object, in either of its two forms
 *
 *     driver=qcow2,node-name=disk,file.driver=file,file.filename=a,,b.qcow2
 *     {"driver": "qcow2", "node-name": "disk", "file": {"driver": "file", "filename": "a,b.qcow2"}}
 *
 * Never:   prints anything but the reason why an argument is refused.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon.h"

/* Up to the next single comma; two stand for one. *text goes behind it. malloc'd. */
static char *take_part(const char **text)
{
	char *part = malloc(strlen(*text) + 1), *to = part;
	const char *c = *text;

	for (; part && *c; c++) {
		if (*c == ',' && c[1] != ',')
			break;
		c += *c == ',';
		*to++ = *c;
	}
	if (part)
		*to = '\0';
	*text = *c ? c + 1 : c;
	return part;
}

/* "file.filename" is a member of a member. */
static int set_dotted(const char *option, json_t *object, char *key, const char *value)
{
	char *dot;

	for (; (dot = strchr(key, '.')); key = dot + 1) {
		json_t *inner;

		*dot = '\0';
		inner = json_object_get(object, key);
		if (!inner && json_object_set_new(object, key, json_object()) == 0)
			inner = json_object_get(object, key);
		if (!json_is_object(inner)) {
			complain("%s: '%s' is given as a name and as a group of options", option, key);
			return 1;
		}
		object = inner;
	}
	if (!*key || json_is_object(json_object_get(object, key)) ||
	    json_object_set_new(object, key, json_string(value)) < 0) {
		complain("%s: '%s=%s' cannot be understood", option, key, value);
		return 1;
	}
	return 0;
}

static int parse_part(const char *option, json_t *object, char *part, const char *first)
{
	char key[64], *equals = strchr(part, '=');

	if (!equals && first) {
		snprintf(key, sizeof(key), "%s", first);
		return set_dotted(option, object, key, part);
	}
	if (!equals) {
		complain("%s: '%s' is no key=value", option, part);
		return 1;
	}
	*equals = '\0';
	return set_dotted(option, object, part, equals + 1);
}

static json_t *parse_keys(const char *option, const char *text, const char *first)
{
	json_t *object = json_object();
	int failed = object == NULL;

	for (; *text && !failed; first = NULL) {
		char *part = take_part(&text);

		failed = !part || parse_part(option, object, part, first);
		free(part);
	}
	if (failed) {
		json_decref(object);
		return NULL;
	}
	return object;
}

json_t *args_parse(const char *option, const char *text, const char *first)
{
	json_error_t error;
	json_t *object;

	if (*text != '{' && *text != '[')
		return parse_keys(option, text, first);
	object = json_loads(text, JSON_REJECT_DUPLICATES, &error);
	if (!json_is_object(object)) {
		complain("%s: %s%s", option, object ? "a JSON object is needed: {...}" : "not JSON: ", object ? "" : error.text);
		json_decref(object);
		return NULL;
	}
	return object;
}

int args_take_string(const char *option, json_t *args, const char *key, char **ret)
{
	json_t *value = json_object_get(args, key);

	if (!value)
		return 0;
	if (!json_is_string(value) || !(*ret = strdup(json_string_value(value)))) {
		complain("%s: '%s' must be a string", option, key);
		return 1;
	}
	json_object_del(args, key);
	return 0;
}

int args_take_bool(const char *option, json_t *args, const char *key, bool *ret)
{
	static const struct {
		const char *word;
		bool value;
	} words[] = { { "on", true }, { "off", false }, { "yes", true }, { "no", false }, { "true", true }, { "false", false } };
	json_t *value = json_object_get(args, key);
	bool known = json_is_boolean(value);

	if (!value)
		return 0;
	if (known)
		*ret = json_is_true(value);
	for (size_t i = 0; i < ARRAY_LEN(words) && json_is_string(value) && !known; i++) {
		known = strcmp(json_string_value(value), words[i].word) == 0;
		if (known)
			*ret = words[i].value;
	}
	if (!known) {
		complain("%s: '%s' must be on or off", option, key);
		return 1;
	}
	json_object_del(args, key);
	return 0;
}

int args_take_unsigned(const char *option, json_t *args, const char *key, unsigned min, unsigned max, unsigned *ret)
{
	json_t *value = json_object_get(args, key);
	unsigned found = 0;
	bool known = false;

	if (!value)
		return 0;
	if (json_is_integer(value) && json_integer_value(value) >= (json_int_t)min && json_integer_value(value) <= (json_int_t)max) {
		found = (unsigned)json_integer_value(value);
		known = true;
	} else if (json_is_string(value)) {
		known = parse_unsigned(json_string_value(value), max, &found) == 0 && found >= min;
	}
	if (!known) {
		complain("%s: '%s' must be a number from %u to %u", option, key, min, max);
		return 1;
	}
	*ret = found;
	json_object_del(args, key);
	return 0;
}

int args_done(const char *option, const json_t *args)
{
	const char *key;
	json_t *value;

	json_object_foreach((json_t *)args, key, value)
	{
		complain("%s: parameter '%s' is not known to this version", option, key);
		return 1;
	}
	return 0;
}

int args_check_id(const char *option, const char *what, const char *id)
{
	size_t len = id ? strlen(id) : 0;

	if (!len) {
		complain("%s: '%s' is missing", option, what);
		return 1;
	}
	if (len > DAEMON_ID_MAX || strspn(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._") != len) {
		complain("%s: %s='%s' is no name of at most %d letters, digits, '-', '.' and '_'", option, what, id,
			 DAEMON_ID_MAX);
		return 1;
	}
	return 0;
}
