/* SPDX-License-Identifier: MIT */
/*
 * block/node_id.c - node-name: what the operator calls a layer of a disk
 */
#include "block/node_id.h"

#include <stdlib.h>
#include <string.h>

#define ID_MAX 31

static bool is_letter(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static bool is_id(const char *text)
{
	const char *c = text;

	if (!is_letter(*c))
		return false;
	while (is_letter(*c) || (*c >= '0' && *c <= '9') || *c == '-' || *c == '.' || *c == '_')
		c++;
	return !*c && c - text <= ID_MAX;
}

int node_id_option(struct opts *o, char **ret, struct varve_error *err)
{
	const char *id = o ? opts_get(o, "node-name") : NULL;

	*ret = NULL;
	if (!id)
		return 0;
	if (!is_id(id))
		return varve_error_set(err, -EINVAL, "option 'node-name': '%.100s' is not a letter with up to %d letters, digits, '-', '.' and "
						     "'_' behind it", id, ID_MAX - 1);
	*ret = strdup(id);
	return *ret ? 0 : varve_error_errno(err, -ENOMEM, "options");
}

static const struct node *next_image(const struct node *n)
{
	while (n->drv->kind == DRIVER_FILTER)
		n = n->file;
	return n->backing;
}

/* The layer with that id, `but` excepted. A data file has no data file of its own. */
static const struct node *find(const struct node *top, const char *id, const struct node *but)
{
	for (const struct node *n = top; n; n = next_image(n)) {
		for (const struct node *m = n; m; m = m->file) {
			if (m != but && m->id && !strcmp(m->id, id))
				return m;
			for (const struct node *d = m->data; d; d = d->file) {
				if (d != but && d->id && !strcmp(d->id, id))
					return d;
			}
		}
	}
	return NULL;
}

static int is_only(const struct node *top, const struct node *n, struct varve_error *err)
{
	if (!n->id || !find(top, n->id, n))
		return 0;
	return varve_error_set(err, -EINVAL, "option 'node-name': two layers of the disk are called '%s'", n->id);
}

int node_ids_differ(const struct node *top, struct varve_error *err)
{
	int ret = 0;

	for (const struct node *n = top; n && ret == 0; n = next_image(n)) {
		for (const struct node *m = n; m && ret == 0; m = m->file) {
			ret = is_only(top, m, err);
			for (const struct node *d = m->data; d && ret == 0; d = d->file)
				ret = is_only(top, d, err);
		}
	}
	return ret;
}

bool node_is_called(const struct node *n, const char *name)
{
	return !strcmp(node_name(n), name) || (n->id && !strcmp(n->id, name));
}
