/* SPDX-License-Identifier: MIT */
/*
 * block/data_file.c - the guest's data of an image in a file of its own
 *
 * A format whose tables lead into another file opens that one here. Its name mostly comes out of an image that a stranger made:
 * whoever could have it read as a protocol or a description (json:) would have us read, or write, whatever the description says.
 *
 * Owns:    what a name in an image means.
 * Assumes: a fiber of the home queue; the format's open() is under way, and has changed nothing yet.
 * Never:   takes a name out of an image for anything but a local file's, lets a format stand between an image and its data, or lets
 *          the image be its own data file.
 */
#include "block/data_file.h"

#include <string.h>

#include "block/block.h"
#include "block/graph.h"

/* ---- which file is it? ---- */

static const struct node *leaf_of(const struct node *n)
{
	while (n->file)
		n = n->file;
	return n;
}

bool node_same_file(const struct node *a, const struct node *b)
{
	a = leaf_of(a);
	b = leaf_of(b);
	return (a->file_id[0] || a->file_id[1]) && a->file_id[0] == b->file_id[0] && a->file_id[1] == b->file_id[1];
}

/* The data file of an image, which may stand under filters. */
static const struct node *data_of(const struct node *n)
{
	while (n && !n->data)
		n = n->file;
	return n ? n->data : NULL;
}

const struct node *node_shared_data(const struct node *a, const struct node *b)
{
	const struct node *a_data = data_of(a), *b_data = data_of(b);

	if (a_data && (node_same_file(a_data, b) || (b_data && node_same_file(a_data, b_data))))
		return a_data;
	return b_data && node_same_file(b_data, a) ? b_data : NULL;
}

/* ---- names ---- */

int data_file_path(const char *image_name, const char *name, char *buf, struct varve_error *err)
{
	const char *slash;
	size_t dir;

	if (!strncmp(image_name, "file:", 5))
		image_name += 5;
	slash = strrchr(image_name, '/');
	dir = name[0] == '/' || !slash ? 0 : (size_t)(slash - image_name) + 1;
	if (dir + strlen(name) >= NODE_NAME_MAX)
		return varve_error_set(err, -ENAMETOOLONG, "data file name of %zu bytes is too long", dir + strlen(name));
	memcpy(buf, image_name, dir);
	strcpy(buf + dir, name);
	return 0;
}

/* What the options leave open is as the image says. */
static int complete(const struct node *n, const char *name, struct opts *o, struct varve_error *err)
{
	const struct node *leaf = leaf_of(n->file);
	char path[NODE_NAME_MAX];
	int r;

	if (opts_name_a_file(o) || opts_get(o, "driver"))
		return 0;
	if (!*name)
		return varve_error_set(err, -EINVAL, "the header says that the data is in another file, and not in which; give it with "
						     "data-file.filename=FILE (--image-opts)");
	if (!leaf->file_id[0] && !leaf->file_id[1])
		return varve_error_set(err, -EPERM, "the header names the data file '%.200s'; in an image that is no local file such "
						    "names are not followed, give it with data-file.filename=FILE (--image-opts)",
				       name);
	r = data_file_path(node_name(leaf), name, path, err);
	if (r == 0)
		r = opts_set(o, "driver", "file", err);
	return r == 0 ? opts_set(o, "filename", path, err) : r;
}

/* ---- opening ---- */

/* Nothing is opened: whoever wants the data is told so. */
static void absent_submit(struct node *n, struct req *r)
{
	req_done(r, r->op == REQ_FLUSH ? 0 : -ENOMEDIUM);
}

static int absent_open(struct fiber *f, struct node *n, struct opts *o, struct varve_error *err)
{
	n->fixed_len = true;
	atomic_store_explicit(&n->len, VARVE_LEN_MAX, memory_order_relaxed);
	return 0;
}

static const struct driver driver_absent = {
	.name = "data file that was not opened",
	.kind = DRIVER_LEAF,
	.open = absent_open,
	.submit = absent_submit,
};

void node_skip_data(struct opts *o)
{
	opts_free(opts_take_sub(o, "data-file"));
}

/*
 * A data file that could not be opened for writing may be the image itself, which we hold: say so, rather than that it is locked.
 * Looked at without locks, on this path only.
 */
static int explain(struct fiber *f, const struct node *n, struct opts *o, int ret, struct varve_error *err)
{
	const char *filename = opts_get(o, "filename");
	struct opts *look = opts_new();
	struct node *leaf;

	if (look && filename && opts_set(look, "driver", "file", NULL) == 0 && opts_set(look, "filename", filename, NULL) == 0 &&
	    graph_open_beside(f, n, look, NODE_FORCE_SHARE, &leaf, NULL) == 0) {
		if (node_same_file(leaf, n->file))
			ret = varve_error_set(err, -ELOOP, "is the image itself");
		stack_close(f, leaf);
	}
	opts_free(look);
	return ret;
}

/*
 * Other tools take a name without a slash at its beginning from the folder that they run in. Taking it from there when it is not
 * beside the image would make an image mean another file in each folder: the user is told, and says which one is meant.
 */
static int explain_missing(struct fiber *f, const struct node *n, const char *name, struct opts *o, struct varve_error *err)
{
	const char *wanted = opts_get(o, "filename");
	struct opts *look = opts_new();
	struct node *leaf;
	int ret = -ENOENT;

	if (look && wanted && *name && strcmp(wanted, name) != 0 && opts_set(look, "driver", "file", NULL) == 0 &&
	    opts_set(look, "filename", name, NULL) == 0 && graph_open_beside(f, n, look, NODE_FORCE_SHARE, &leaf, NULL) == 0) {
		ret = varve_error_set(err, ret, "%.300s is not there; a file of that name is in the current folder, where QEMU's tools look: "
						"if it is meant, give it with data-file.filename=FILE (--image-opts)", wanted);
		stack_close(f, leaf);
	}
	opts_free(look);
	return ret;
}

static int examine(const struct node *n, const struct node *data, struct varve_error *err)
{
	for (const struct node *d = data; d; d = d->file) {
		if (d->drv->kind == DRIVER_FORMAT)
			return varve_error_set(err, -EINVAL, "driver %s: a data file holds the bytes of the disk and nothing else; leave the "
							     "format out", d->drv->name);
	}
	if (node_same_file(data, n->file))
		return varve_error_set(err, -ELOOP, "is the image itself");
	if ((n->flags & NODE_WRITABLE) && !(data->flags & NODE_WRITABLE))
		return varve_error_set(err, -EROFS, "is to be read only, but the image is to be opened for writing");
	if (data->level + 1 >= FIBER_LEVEL_JOB)
		return varve_error_set(err, -EINVAL, "too many layers above one file");
	return 0;
}

static int adopt(struct node *n, struct node *data, struct varve_error *err)
{
	int r = examine(n, data, err);

	if (r == 0)
		n->level = MAX(n->level, data->level + 1);
	return r;
}

static int open_it(struct fiber *f, struct node *n, const char *name, struct opts *o, struct varve_error *err)
{
	const uint32_t inherited = NODE_WRITABLE | NODE_FORCE_SHARE | NODE_CACHE_FLAGS | NODE_FORCE_COLD | NODE_SYNC;
	struct node *data;
	int r = complete(n, name, o, err);

	if (r < 0)
		return r;
	r = graph_open_beside(f, n, o, n->flags & inherited, &data, err);
	if (r < 0)
		return r == -ENOENT ? explain_missing(f, n, name, o, err) : explain(f, n, o, r, err);
	n->data = data; /* on failure, who opens n closes it */
	return adopt(n, data, err);
}

int node_open_data(struct fiber *f, struct node *n, const char *name, struct opts *o, struct varve_error *err)
{
	const char *reference = o ? opts_get(o, "data-file") : NULL;
	struct opts *sub;
	int r;

	if (reference && *reference)
		return varve_error_set(err, -EINVAL, "data-file=%.200s: a data file is described by data-file.* options, not by a name",
				       reference);
	if (n->flags & NODE_NO_DATA) {
		if (o)
			node_skip_data(o);
		return graph_stack(f, &driver_absent, NULL, NULL, n->flags, &n->data, err);
	}
	if (n->file->data) {
		n->data = n->file->data;
		n->file->data = NULL;
		return adopt(n, n->data, err);
	}
	sub = o ? opts_take_sub(o, "data-file") : NULL;
	if (!sub && !(sub = opts_new()))
		return varve_error_errno(err, -ENOMEM, "options");
	r = open_it(f, n, name, sub, err);
	if (r < 0)
		varve_error_prefix(err, r, *name ? "data file '%.500s': " : "data file%s: ", name);
	opts_free(sub);
	return r;
}
