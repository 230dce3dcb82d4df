/* SPDX-License-Identifier: MIT */
/*
 * tools/complete_list.c - completion inside "key=value,key=value": what a format is made with, what a disk is
 * opened with, objects, exports
 *
 * Assumes: a comma in a value is written twice, as the parsers of these lists have it.
 */
#include <stdlib.h>
#include <string.h>

#include "complete.h"
#include "img.h"

#define ITEMS_MAX 64
#define KEY_MAX 128

/* A list up to the cursor: whole items, and the one that is being typed. */
struct list {
	struct {
		const char *at;
		size_t key_len, len; /* key_len == len: without '=' */
	} item[ITEMS_MAX];
	unsigned nr;
	const char *first; /* the key whose value the first item is, if it has none; NULL: no key */
	const char *typed; /* the last item */
	char before[4096]; /* all of the word before it */
};

static size_t item_len(const char *s)
{
	size_t len = 0;

	while (s[len] && (s[len] != ',' || s[len + 1] == ','))
		len += s[len] == ',' ? 2 : 1;
	return len;
}

/* False: a list that nobody would type by hand. */
static bool split(struct list *l, const char *prefix, const char *typed)
{
	const char *s = typed;

	l->nr = 0;
	l->first = NULL;
	for (size_t len; s[len = item_len(s)]; s += len + 1) {
		if (l->nr == ITEMS_MAX)
			return false;
		l->item[l->nr].at = s;
		l->item[l->nr].len = len;
		l->item[l->nr++].key_len = MIN(strcspn(s, "="), len);
	}
	l->typed = s;
	return snprintf(l->before, sizeof(l->before), "%s%.*s", prefix, (int)(s - typed), typed) <
	       (int)sizeof(l->before);
}

static bool is_said(const struct list *l, const char *key)
{
	if (l->nr && l->first && l->item[0].key_len == l->item[0].len && strcmp(key, l->first) == 0)
		return true;
	for (unsigned i = 0; i < l->nr; i++) {
		if (l->item[i].key_len == strlen(key) && strncmp(l->item[i].at, key, l->item[i].key_len) == 0)
			return true;
	}
	return false;
}

/* The value of path + key, in the list. False: not said, or longer than any word. */
static bool said(const struct list *l, const char *path, const char *key, char buf[KEY_MAX])
{
	char whole[KEY_MAX];

	snprintf(whole, sizeof(whole), "%s%s", path, key);
	for (unsigned i = 0; i < l->nr; i++) {
		size_t key_len = l->item[i].key_len, len = l->item[i].len;

		if (key_len == len || key_len != strlen(whole) ||
		    strncmp(l->item[i].at, whole, key_len) != 0 || len - key_len > KEY_MAX)
			continue;
		snprintf(buf, KEY_MAX, "%.*s", (int)(len - key_len - 1), l->item[i].at + key_len + 1);
		return true;
	}
	return false;
}

/* Nodes and iothreads that other words of the command line make: KEY=NAME in the value of the option. */
static void offer_made(struct complete *c, const char *prefix, const char *option, const char *key)
{
	for (int i = 1; i < c->nr - 1; i++) {
		const char *word = c->words[i], *value = NULL, *at;
		size_t len = strlen(option);

		if (strcmp(word, option) == 0 && i + 1 < c->nr - 1)
			value = c->words[i + 1];
		else if (strncmp(word, option, len) == 0 && word[len] == '=')
			value = word + len + 1;
		for (at = value; at && (at = strstr(at, key)); at += strlen(key)) {
			char name[KEY_MAX];

			if (at > value && at[-1] != ',' && at[-1] != '.')
				continue;
			snprintf(name, sizeof(name), "%.*s", (int)strcspn(at + strlen(key), ","),
				 at + strlen(key));
			complete_offer(c, OFFER_PART, prefix, name, NULL);
		}
	}
}

static void offer_value(struct complete *c, const struct list *l, const struct varve_option_info *o,
			const char *path, bool nodes)
{
	const char *equals = strchr(l->typed, '=');
	char prefix[sizeof(l->before) + KEY_MAX];

	snprintf(prefix, sizeof(prefix), "%s%s%s=", l->before, path, o->name);
	if (strcmp(o->value, "a node") == 0 || (nodes && strcmp(o->value, "node") == 0))
		offer_made(c, prefix, "--blockdev", "node-name=");
	else if (strcmp(o->value, "an iothread") == 0)
		offer_made(c, prefix, "--object", "id=");
	else if (strcmp(o->value, "vhost-user-blk") == 0)
		complete_offer(c, OFFER_PART, prefix, o->value, NULL);
	else
		complete_value(c, OFFER_PART, prefix, o->value, equals + 1);
}

static bool has(const struct varve_option_info *o, const char *name)
{
	for (; o && o->name; o++) {
		if (strcmp(o->name, name) == 0)
			return true;
	}
	return false;
}

enum { NAMES_OF_NODES = 1, TO_AMEND = 2, OF_LEAF = 4 };

/* The keys of one table that begin with path, or the value of the one that is typed; not those of a table
 * that was offered before. */
static void offer_table(struct complete *c, const struct list *l, const struct varve_option_info *o,
			const char *path, unsigned flags, const struct varve_option_info *before)
{
	size_t key_len = strcspn(l->typed, "=");
	char text[KEY_MAX];

	for (; o && o->name; o++) {
		bool node = strcmp(o->value, "node") == 0;

		snprintf(text, sizeof(text), "%s%s", path, o->name);
		if (((flags & TO_AMEND) && !o->can_amend) || ((flags & OF_LEAF) && node) ||
		    has(before, o->name))
			continue;
		if (l->typed[key_len]) {
			if (strlen(text) == key_len && strncmp(text, l->typed, key_len) == 0)
				offer_value(c, l, o, path, flags & NAMES_OF_NODES);
			continue;
		}
		if (is_said(l, text))
			continue;
		if (node) {
			snprintf(text, sizeof(text), "%s%s.", path, o->name);
			complete_offer(c, OFFER_PART, l->before, text, o->what);
		}
		if (!node || (flags & NAMES_OF_NODES)) {
			snprintf(text, sizeof(text), "%s%s=", path, o->name);
			complete_offer(c, OFFER_PART, l->before, text, o->what);
		}
	}
}

void complete_keys(struct complete *c, const char *prefix, const char *typed,
		   const struct varve_option_info *keys, const char *first)
{
	struct list l;

	if (*typed == '{' || !split(&l, prefix, typed))
		return;
	l.first = first;
	/* The first word may be the value of `first`. */
	if (!l.nr && !strchr(l.typed, '=')) {
		for (const struct varve_option_info *o = keys; o->name; o++) {
			if (strcmp(o->name, first) == 0)
				complete_offer(c, OFFER_PART, l.before, o->value, o->what);
		}
	}
	offer_table(c, &l, keys, "", 0, NULL);
}

void complete_creation(struct complete *c, const char *prefix, const char *typed)
{
	bool amend = c->command == &cmd_amend;
	/* What is not said is what the command takes then; amend finds out, and only one format has something to change. */
	const char *usual = amend || c->command == &cmd_crashtest ? "qcow2" : "raw";
	const char *format = c->new_format ? c->new_format : amend && c->format ? c->format : usual;
	struct list l;

	if (!split(&l, prefix, typed))
		return;
	offer_table(c, &l, varve_driver_options(format), "", amend ? TO_AMEND : 0, NULL);
	if (!amend)
		offer_table(c, &l, varve_driver_options("file"), "", 0, NULL);
}

/* Is the key of a node, whose options are of their own? At every layer of the path there may be one of
 * another driver. */
static bool is_node(const char *driver, const char *name, size_t len)
{
	const struct varve_option_info *tables[] = { varve_driver_open_options(NULL),
						     varve_driver_open_options(driver) };

	for (unsigned t = 0; t < ARRAY_LEN(tables); t++) {
		for (const struct varve_option_info *o = tables[t]; o && o->name; o++) {
			if (strlen(o->name) == len && strncmp(o->name, name, len) == 0)
				return strcmp(o->value, "node") == 0;
		}
	}
	return false;
}

/* The driver of the layer at that path: as said, else what a layer of that name usually is. */
static void driver_of(const struct list *l, const char *path, bool nodes, char buf[KEY_MAX])
{
	size_t len = strlen(path);

	if (said(l, path, "driver", buf) || said(l, path, "format", buf))
		return;
	*buf = '\0';
	if (len >= 5 && strcmp(path + len - 5, "file.") == 0)
		strcpy(buf, "file");
	else if (!len && nodes && l->nr && l->item[0].key_len == l->item[0].len)
		snprintf(buf, KEY_MAX, "%.*s", (int)MIN(l->item[0].len, KEY_MAX - 1), l->item[0].at);
}

void complete_image_options(struct complete *c, const char *prefix, const char *typed, bool nodes)
{
	char path[KEY_MAX] = "", driver[KEY_MAX];
	const struct varve_option_info *own;
	const char *at, *dot, *kind;
	unsigned flags;
	struct list l;

	if (*typed == '{' || !split(&l, prefix, typed))
		return;
	l.first = nodes ? "driver" : NULL;
	driver_of(&l, path, nodes, driver);
	/* Down the path, as far as its names are those of layers. */
	for (at = l.typed;
	     (dot = strpbrk(at, ".=")) && *dot == '.' && is_node(driver, at, (size_t)(dot - at));
	     at = dot + 1) {
		if ((size_t)(dot - l.typed) + 2 > sizeof(path))
			return;
		snprintf(path, sizeof(path), "%.*s", (int)(dot - l.typed) + 1, l.typed);
		driver_of(&l, path, nodes, driver);
	}
	kind = *driver ? varve_driver_kind(driver) : NULL;
	flags = (nodes ? NAMES_OF_NODES : 0) | (kind && strcmp(kind, "file") == 0 ? OF_LEAF : 0);
	own = *driver ? varve_driver_open_options(driver) : NULL;
	if (nodes && !l.nr && !strchr(l.typed, '='))
		complete_value(c, OFFER_PART, l.before, "driver", "");
	offer_table(c, &l, own, path, flags, NULL);
	offer_table(c, &l, varve_driver_open_options(NULL), path, flags, own);
}
