/* SPDX-License-Identifier: MIT */
/*
 * base/opts.c - option lists: parsing, looking up, refusing what nobody asked for
 *
 * Owns:    keys and values of one list, and which of them were asked for.
 * Assumes: text may come from an image or a peer: bounded in bytes, keys and depth before anything recurses.
 * Never:   changes a list when a parse fails half-way.
 */
#include "base/opts.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/math.h"

#define OPTS_KEY_MAX 255
#define OPTS_JSON_DEPTH 32

struct opt {
	char *key, *value;
	bool used;
};

struct opts {
	unsigned n;
	struct opt v[OPTS_MAX];
};

struct opts *opts_new(void)
{
	return calloc(1, sizeof(struct opts));
}

static void opts_clear(struct opts *o)
{
	for (unsigned i = 0; i < o->n; i++) {
		free(o->v[i].key);
		free(o->v[i].value);
	}
	o->n = 0;
}

void opts_free(struct opts *o)
{
	if (!o)
		return;
	opts_clear(o);
	free(o);
}

static struct opt *opts_find(struct opts *o, const char *key)
{
	for (unsigned i = 0; i < o->n; i++) {
		if (!strcmp(o->v[i].key, key))
			return &o->v[i];
	}
	return NULL;
}

/* Letters, digits, '-', '_'; dots only between parts. */
static bool key_is_valid(const char *key, size_t len)
{
	bool part = false;

	if (!len || len > OPTS_KEY_MAX)
		return false;
	for (size_t i = 0; i < len; i++) {
		char c = key[i];

		if (c == '.') {
			if (!part)
				return false;
			part = false;
			continue;
		}
		part = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
		       c == '-' || c == '_';
		if (!part)
			return false;
	}
	return part;
}

/* Takes over value, also on failure. */
static int opts_put(struct opts *o, const char *key, size_t key_len, char *value, struct varve_error *err)
{
	char name[OPTS_KEY_MAX + 1];
	struct opt *opt;

	if (!value)
		return varve_error_set(err, -ENOMEM, "out of memory for options");
	if (!key_is_valid(key, key_len)) {
		free(value);
		return varve_error_set(err, -EINVAL, "'%.*s' is not the name of an option",
				       (int)MIN(key_len, 64u), key);
	}
	memcpy(name, key, key_len);
	name[key_len] = '\0';
	opt = opts_find(o, name);
	if (!opt) {
		if (o->n == OPTS_MAX) {
			free(value);
			return varve_error_set(err, -E2BIG, "more than %d options, at '%s'", OPTS_MAX, name);
		}
		opt = &o->v[o->n];
		opt->key = strdup(name);
		if (!opt->key) {
			free(value);
			return varve_error_set(err, -ENOMEM, "out of memory for options");
		}
		opt->value = NULL;
		o->n++;
	}
	opt->used = false;
	/* Set to what it is: a caller may have passed on the very string that opts_get() gave. It stays valid. */
	if (opt->value && !strcmp(opt->value, value)) {
		free(value);
		return 0;
	}
	free(opt->value);
	opt->value = value;
	return 0;
}

int opts_set(struct opts *o, const char *key, const char *value, struct varve_error *err)
{
	return opts_put(o, key, strlen(key), strdup(value), err);
}

/* All of from into o, or nothing: counted before the first is moved. from is empty afterwards. */
static int opts_merge(struct opts *o, struct opts *from, struct varve_error *err)
{
	unsigned nr_new = 0;

	for (unsigned i = 0; i < from->n; i++)
		nr_new += !opts_find(o, from->v[i].key);
	if (o->n + nr_new > OPTS_MAX)
		return varve_error_set(err, -E2BIG, "%u options, the limit is %d", o->n + nr_new, OPTS_MAX);
	for (unsigned i = 0; i < from->n; i++) {
		struct opt *have = opts_find(o, from->v[i].key);

		if (have) {
			free(have->key);
			free(have->value);
		} else {
			have = &o->v[o->n++];
		}
		*have = from->v[i];
	}
	from->n = 0;
	return 0;
}

/* Runs parse() into a fresh list and merges that, so that a failure leaves o as it was. */
static int opts_parse_into(struct opts *o, const char *text, struct varve_error *err,
			   int (*parse)(struct opts *o, const char *text, size_t len,
					struct varve_error *err))
{
	size_t len = strnlen(text, OPTS_TEXT_MAX + 1);
	struct opts *fresh;
	int ret;

	if (len > OPTS_TEXT_MAX)
		return varve_error_set(err, -E2BIG, "options longer than %d bytes", OPTS_TEXT_MAX);
	fresh = opts_new();
	if (!fresh)
		return varve_error_set(err, -ENOMEM, "out of memory for options");
	ret = parse(fresh, text, len, err);
	if (!ret)
		ret = opts_merge(o, fresh, err);
	opts_free(fresh);
	return ret;
}

/* ---- k=v,k2=v2 ---- */

/* The value at *p up to a comma that is not doubled; *p is set behind it. malloc'd, NULL without memory. */
static char *take_value(const char **p)
{
	const char *s = *p;
	char *value = malloc(strlen(s) + 1), *to = value;

	if (!value)
		return NULL;
	for (; *s && (*s != ',' || s[1] == ','); s++) {
		if (*s == ',')
			s++;
		*to++ = *s;
	}
	*to = '\0';
	*p = s;
	return value;
}

static int parse_pairs(struct opts *o, const char *text, size_t len, struct varve_error *err)
{
	const char *p = text;
	int ret;

	if (!len)
		return 0;
	for (;;) {
		size_t key_len = strcspn(p, "=,");
		const char *key = p;
		char *value;

		p += key_len;
		if (!key_len)
			return varve_error_set(err, -EINVAL, "option without a name at byte %zu of '%.200s'",
					       (size_t)(key - text), text);
		if (*p == '=') {
			p++;
			value = take_value(&p);
		} else {
			value = strdup("on");
		}
		ret = opts_put(o, key, key_len, value, err);
		if (ret < 0 || !*p)
			return ret;
		p++;
	}
}

int opts_parse(struct opts *o, const char *text, struct varve_error *err)
{
	return opts_parse_into(o, text, err, parse_pairs);
}

/* ---- JSON ---- */

/*
 * How deep brackets nest outside of strings. The JSON library recurses once per level, and we may be on the
 * small stack of a fiber with text that an image chose.
 */
static unsigned json_depth(const char *text)
{
	unsigned depth = 0, deepest = 0;
	bool in_string = false;

	for (const char *p = text; *p; p++) {
		if (in_string) {
			if (*p == '\\' && p[1])
				p++;
			else if (*p == '"')
				in_string = false;
		} else if (*p == '"') {
			in_string = true;
		} else if (*p == '{' || *p == '[') {
			deepest = MAX(deepest, ++depth);
		} else if ((*p == '}' || *p == ']') && depth) {
			depth--;
		}
	}
	return deepest;
}

/* A JSON scalar as the text that the same option would have after "key=". null is the empty value. */
static int json_scalar(const char *key, const json_t *v, char **ret_value, struct varve_error *err)
{
	char number[32];

	switch (json_typeof(v)) {
	case JSON_STRING:
		*ret_value = strdup(json_string_value(v));
		return 0;
	case JSON_INTEGER:
		snprintf(number, sizeof(number), "%lld", (long long)json_integer_value(v));
		*ret_value = strdup(number);
		return 0;
	case JSON_TRUE:
		*ret_value = strdup("on");
		return 0;
	case JSON_FALSE:
		*ret_value = strdup("off");
		return 0;
	case JSON_NULL:
		*ret_value = strdup("");
		return 0;
	default:
		return varve_error_set(
			err, -EINVAL,
			"option '%s': a fractional JSON number is not a value; write it as a string", key);
	}
}

/* key holds the dotted name so far, key_len bytes of it. Recurses at most OPTS_JSON_DEPTH deep. */
static int json_walk(struct opts *o, char *key, size_t key_len, json_t *v, struct varve_error *err);

static int json_walk_part(struct opts *o, char *key, size_t key_len, const char *part, json_t *v,
			  struct varve_error *err)
{
	size_t part_len = strlen(part);

	if (key_len + 1 + part_len > OPTS_KEY_MAX)
		return varve_error_set(err, -EINVAL,
				       "the name of an option in JSON is longer than %d bytes: '%.64s...'",
				       OPTS_KEY_MAX, key_len ? key : part);
	if (key_len)
		key[key_len++] = '.';
	memcpy(key + key_len, part, part_len + 1);
	return json_walk(o, key, key_len + part_len, v, err);
}

static int json_walk(struct opts *o, char *key, size_t key_len, json_t *v, struct varve_error *err)
{
	const char *name;
	char *value = NULL, index[24];
	json_t *child;
	size_t i;
	int ret = 0;

	/* It has no keys by which somebody would notice that it is not known. */
	if (key_len && (json_is_object(v) || json_is_array(v)) && !json_object_size(v) && !json_array_size(v))
		return varve_error_set(err, -EINVAL, "option '%.*s' is an empty %s; leave it out", (int)key_len, key,
				       json_is_array(v) ? "list" : "group");
	if (json_is_object(v)) {
		json_object_foreach(v, name, child)
		{
			ret = json_walk_part(o, key, key_len, name, child, err);
			if (ret < 0)
				return ret;
		}
		return 0;
	}
	if (json_is_array(v)) {
		json_array_foreach(v, i, child)
		{
			snprintf(index, sizeof(index), "%zu", i);
			ret = json_walk_part(o, key, key_len, index, child, err);
			if (ret < 0)
				return ret;
		}
		return 0;
	}
	key[key_len] = '\0';
	ret = json_scalar(key, v, &value, err);
	if (ret < 0)
		return ret;
	if (opts_find(o, key)) { /* {"a.b": 1, "a": {"b": 2}}: which one was meant? */
		free(value);
		return varve_error_set(err, -EINVAL, "option '%s' is given twice in JSON", key);
	}
	return opts_put(o, key, key_len, value, err);
}

static int parse_json(struct opts *o, const char *text, size_t len, struct varve_error *err)
{
	char key[OPTS_KEY_MAX + 1] = "";
	json_error_t why;
	json_t *root;
	int ret;

	if (json_depth(text) > OPTS_JSON_DEPTH)
		return varve_error_set(err, -EINVAL, "JSON nested deeper than %d levels", OPTS_JSON_DEPTH);
	root = json_loadb(text, len, JSON_REJECT_DUPLICATES, &why);
	if (!root)
		return varve_error_set(err, -EINVAL, "not valid JSON at line %d, column %d: %s", why.line,
				       why.column, why.text);
	if (json_is_object(root))
		ret = json_walk(o, key, 0, root, err);
	else
		ret = varve_error_set(err, -EINVAL, "JSON options must be an object: {...}");
	json_decref(root);
	return ret;
}

int opts_parse_json(struct opts *o, const char *text, struct varve_error *err)
{
	return opts_parse_into(o, text, err, parse_json);
}

/* ---- looking up ---- */

const char *opts_get(struct opts *o, const char *key)
{
	struct opt *opt = opts_find(o, key);

	if (!opt)
		return NULL;
	opt->used = true;
	return opt->value;
}

int opts_get_bool(struct opts *o, const char *key, bool *ret, struct varve_error *err)
{
	static const char *const yes[] = { "on", "true", "yes" }, *const no[] = { "off", "false", "no" };
	const char *value = opts_get(o, key);

	if (!value)
		return 0;
	for (unsigned i = 0; i < ARRAY_LEN(yes); i++) {
		if (!strcmp(value, yes[i]) || !strcmp(value, no[i])) {
			*ret = !strcmp(value, yes[i]);
			return 0;
		}
	}
	return varve_error_set(err, -EINVAL, "option '%s': '%.200s' is neither on nor off", key, value);
}

int opts_get_size(struct opts *o, const char *key, uint64_t *ret, struct varve_error *err)
{
	const char *value = opts_get(o, key);
	int r;

	if (!value)
		return 0;
	r = size_parse(value, ret, NULL);
	if (r == -ERANGE)
		return varve_error_set(err, r, "option '%s': size '%.200s' is too large", key, value);
	if (r < 0)
		return varve_error_set(err, r,
				       "option '%s': '%.200s' is not a size; write it like 64k, 1.5G or 512",
				       key, value);
	return 0;
}

int opts_get_u64(struct opts *o, const char *key, uint64_t *ret, struct varve_error *err)
{
	const char *value = opts_get(o, key);
	uint64_t x = 0;

	if (!value)
		return 0;
	for (const char *p = value; *p || p == value; p++) {
		if (*p < '0' || *p > '9')
			return varve_error_set(err, -EINVAL, "option '%s': '%.200s' is not a whole number",
					       key, value);
		if (u64_mul(x, 10, &x) || u64_add(x, (uint64_t)(*p - '0'), &x))
			return varve_error_set(err, -ERANGE, "option '%s': number '%.200s' is too large", key,
					       value);
	}
	*ret = x;
	return 0;
}

struct opts *opts_take_sub(struct opts *o, const char *prefix)
{
	size_t len = strlen(prefix);
	struct opts *sub = NULL;
	unsigned kept = 0;

	for (unsigned i = 0; i < o->n; i++) {
		struct opt opt = o->v[i];

		if (strncmp(opt.key, prefix, len) || opt.key[len] != '.') {
			o->v[kept++] = opt;
			continue;
		}
		if (!sub)
			sub = opts_new();
		if (!sub) { /* no memory: the key stays, and opts_done() will refuse it */
			o->v[kept++] = opt;
			continue;
		}
		memmove(opt.key, opt.key + len + 1, strlen(opt.key + len + 1) + 1);
		sub->v[sub->n++] = opt;
	}
	o->n = kept;
	return sub;
}

int opts_done(struct opts *o, struct varve_error *err)
{
	for (unsigned i = 0; i < o->n; i++) {
		if (!o->v[i].used)
			return varve_error_set(err, -EINVAL, "option '%s' is not known here", o->v[i].key);
	}
	return 0;
}
