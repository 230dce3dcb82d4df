/* SPDX-License-Identifier: MIT */
/*
 * api/create.c - new images
 *
 * Everything that can be known to be wrong is found before the target is touched: options, length, the backing
 * chain. Then the target is made (or, if it exists, locked), and the format's driver, which checks its own options
 * first and empties the file only then, writes the image.
 *
 * Owns:    the file it made, until create has succeeded: on failure it is removed again.
 * Never:   removes a file that was there before.
 */
#include "api/api.h"
#include "block/data_file.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SECTOR_LEN 512
#define LINKS_MAX 40 /* as the kernel */

/* A file that is written. */
struct target {
	const char *name; /* for messages */
	const char *path; /* of the local file; NULL: the target is no local file */
	char *followed;	  /* its memory, if it is where links lead */
	bool is_new;	  /* made by us */
	bool exists;
	uint64_t file_id[2]; /* exists: which file it is, in the form of struct node */
};

struct create {
	/* what was asked for */
	const char *name;
	const struct driver *drv;
	struct opts *opts;
	uint64_t len; /* UINT64_MAX until it is known */
	unsigned flags;
	varve_progress_fn progress;
	void *user_data;
	struct varve_error *err;

	struct target image;
	struct target data; /* where the image's data goes; name "": with the rest */
	char data_name[NODE_NAME_MAX];
};

/* ---- before the target is touched ---- */

/* The path of a local file, or of a device; other protocols have nothing that could be made here. */
static const char *create_path(const char *name, bool *ret_is_device)
{
	const char *rest = name;
	const struct driver *leaf = driver_by_prefix(name, &rest);

	*ret_is_device = leaf && strcmp(leaf->name, "host_device") == 0;
	if (leaf && strcmp(leaf->name, "file") != 0 && !*ret_is_device)
		return NULL;
	return rest;
}

/* In the form of struct node. */
static void file_identity(const struct stat *st, uint64_t ret_id[2])
{
	ret_id[0] = S_ISBLK(st->st_mode) ? UINT64_MAX : st->st_dev;
	ret_id[1] = S_ISBLK(st->st_mode) ? st->st_rdev : st->st_ino;
}

/* device: one that is not there cannot be made. */
static int look_at(struct target *t, bool device, struct varve_error *err)
{
	struct stat st;

	if (stat(t->path, &st) < 0)
		return errno == ENOENT && !device ? 0 : varve_error_errno(err, -errno, "%s", t->name);
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return varve_error_set(err, -EINVAL, "%s: neither a regular file nor a block device", t->name);
	t->exists = true;
	file_identity(&st, t->file_id);
	return 0;
}

static int create_look(struct create *c)
{
	struct target *t = &c->image;
	bool is_device;
	size_t len;
	int ret;

	if (strncmp(c->name, "json:", 5) == 0)
		return varve_error_set(c->err, -EINVAL, "%.200s: an image is created by its file name, not by json:",
				       c->name);
	t->name = c->name;
	t->path = create_path(c->name, &is_device);
	if (!t->path)
		return 0;
	if (*t->path == '\0')
		return varve_error_set(c->err, -EINVAL, "'%s' names no file", c->name);
	ret = look_at(t, is_device, c->err);
	/* No file is made by mistake; a name that begins with ./ is one whatever follows. */
	if (ret == 0 && !t->exists && t->path == c->name && driver_names_unknown(c->name, &len))
		return varve_error_set(c->err, -EINVAL, "%.500s: protocol '%.*s' is not known to this version", c->name,
				       (int)MIN(len, 100), c->name);
	return ret;
}

static bool are_one(const struct target *a, const struct target *b)
{
	return a->exists && b->exists && a->file_id[0] == b->file_id[0] && a->file_id[1] == b->file_id[1];
}

static int refuse_same(struct create *c)
{
	return varve_error_set(c->err, -EINVAL, "%s: an image cannot be its own data file", c->name);
}

static bool has_option(const struct driver *drv, const char *name)
{
	for (const struct varve_option_info *o = drv->options; o && o->name; o++) {
		if (!strcmp(o->name, name))
			return true;
	}
	return false;
}

/* The name that the image will have for its data is looked up as it will be then: beside the image, and as nothing but a file. */
static int create_look_at_data(struct create *c)
{
	/* Asked for where it is known only: elsewhere it stays one that nobody has used up. */
	const char *name = has_option(c->drv, "data_file") ? opts_get(c->opts, "data_file") : NULL;
	struct target *t = &c->data;
	int ret;

	if (!name || !*name)
		return 0;
	if (!c->image.path)
		return varve_error_set(c->err, -EINVAL, "%s: only an image in a local file can name a data file", c->name);
	ret = data_file_path(c->name, name, c->data_name, c->err);
	if (ret < 0)
		return varve_error_prefix(c->err, ret, "%s: ", c->name);
	t->name = t->path = c->data_name;
	ret = look_at(t, false, c->err);
	return ret == 0 && are_one(&c->image, t) ? refuse_same(c) : ret;
}

static bool is_file(const struct node *n, const uint64_t file_id[2])
{
	while (n->file)
		n = n->file;
	return n->file_id[0] == file_id[0] && n->file_id[1] == file_id[1];
}

/* The layer of the chain whose file, or data file, it is, or NULL. */
static const struct node *chain_find(const struct node *top, const uint64_t file_id[2])
{
	for (const struct node *n = top; n; n = n->backing) {
		for (const struct node *m = n; m; m = m->file) {
			if ((!m->file && is_file(m, file_id)) || (m->data && is_file(m->data, file_id)))
				return n;
		}
	}
	return NULL;
}

/* The target must not be a layer of its own backing chain: it would be overwritten, and then back itself. */
static int create_check_chain(struct create *c, struct node *n)
{
	const struct target *const targets[] = { &c->image, &c->data };

	for (unsigned i = 0; i < ARRAY_LEN(targets); i++) {
		const struct node *layer = targets[i]->exists ? chain_find(n, targets[i]->file_id) : NULL;

		if (layer)
			return varve_error_set(c->err, -EINVAL, "%s: the new %s would be part of its own backing chain (%s)",
					       targets[i]->name, i ? "data file" : "image", layer->name);
	}
	return 0;
}

bool varve_image_stands_on(const struct varve_image *image, const char *filename)
{
	bool is_device;
	const char *path = image && filename ? create_path(filename, &is_device) : NULL;
	uint64_t file_id[2];
	struct stat st;

	if (!path || stat(path, &st) < 0)
		return false;
	file_identity(&st, file_id);
	return chain_find(image->top, file_id) != NULL;
}

/* The graph's options for the backing file as the new image will name it. */
static int create_backing_opts(struct create *c, const char *backing, const char *format, struct opts *o)
{
	char path[NODE_NAME_MAX];
	int ret;

	ret = backing_path(c->name, backing, path, c->err);
	if (ret == 0)
		ret = opts_set(o, "filename", path, c->err);
	if (ret == 0)
		ret = opts_set(o, "format", format, c->err);
	return ret;
}

/*
 * Opens the backing chain, takes its length, closes it again. Somebody may be writing to it: a snapshot of a machine that runs begins with
 * an overlay of the disk that it has.
 */
static int create_backing_open(struct fiber *f, struct create *c, const char *backing, const char *format)
{
	struct node *top = NULL;
	struct opts *o = opts_new();
	int ret;

	if (!o)
		return varve_error_errno(c->err, -ENOMEM, "%s", c->name);
	ret = create_backing_opts(c, backing, format, o);
	if (ret == 0)
		ret = graph_open(f, o, NODE_FORCE_SHARE, &top, c->err);
	opts_free(o);
	if (ret < 0)
		return varve_error_prefix(c->err, ret, "%s: backing file: ", c->name);
	ret = create_check_chain(c, top);
	if (ret == 0 && c->len == UINT64_MAX)
		c->len = node_len(top);
	(void)graph_close(f, top, NULL); /* opened read-only: nothing of ours can be lost */
	return ret;
}

/* ---- a backing file that is not to be opened (-u) ---- */

/* Which local file a description would open; false: none that can be known. */
static bool json_file(const char *text, char *path)
{
	struct opts *o = opts_new(), *sub;
	const char *name = NULL, *local = NULL;
	bool is_device;

	if (o && opts_parse_json(o, text, NULL) < 0) {
		opts_free(o);
		o = NULL;
	}
	while (o && !(name = opts_get(o, "filename"))) { /* each round takes a level of the description away */
		sub = opts_take_sub(o, "file");
		opts_free(o);
		o = sub;
	}
	if (name && strlen(name) < NODE_NAME_MAX && (local = create_path(name, &is_device)))
		strcpy(path, local);
	opts_free(o);
	return local;
}

/* The local file that an image of that name would find as its backing file. */
static bool backing_file(const char *image, const char *backing, char *path)
{
	char name[NODE_NAME_MAX];
	const char *local;
	bool is_device;

	if (!strncmp(backing, "json:", 5))
		return json_file(backing + 5, path);
	if (backing_path(image, backing, name, NULL) < 0 || !(local = create_path(name, &is_device)))
		return false;
	strcpy(path, local);
	return true;
}

bool api_is_own_backing(const struct node *disk, const char *backing)
{
	char path[NODE_NAME_MAX];
	uint64_t file_id[2];
	struct stat st;

	if (!backing_file(node_name(disk), backing, path) || stat(path, &st) < 0)
		return false;
	file_identity(&st, file_id);
	return is_file(disk, file_id);
}

/* Not opened, but looked at: a file is not to be read below itself. Asked again when a file was made, which may have that name. */
static int create_check_itself(const struct create *c)
{
	const char *backing = opts_get(c->opts, "backing_file");
	const struct target *const targets[] = { &c->image, &c->data };
	char path[NODE_NAME_MAX];
	struct stat below, st;

	if (!backing || !*backing || !(c->flags & VARVE_CREATE_NO_BACKING_CHECK))
		return 0;
	if (!backing_file(c->name, backing, path) || stat(path, &below) < 0)
		return 0;
	for (unsigned i = 0; i < ARRAY_LEN(targets); i++) {
		uint64_t id[2], below_id[2];

		if (!targets[i]->path || stat(targets[i]->path, &st) < 0)
			continue;
		file_identity(&st, id);
		file_identity(&below, below_id);
		if (id[0] == below_id[0] && id[1] == below_id[1])
			return varve_error_set(c->err, -EINVAL, "%s: the new %s would be its own backing file", targets[i]->name,
					       i ? "data file" : "image");
	}
	return 0;
}

static bool has_bytes(const struct target *t)
{
	struct stat st;

	return t->path && stat(t->path, &st) == 0 && (S_ISBLK(st.st_mode) || st.st_size);
}

/*
 * Bytes would be overwritten: if the chain can be looked through, they must not be what it needs. That it cannot be opened is no
 * error here.
 */
static int create_look_through(struct fiber *f, struct create *c, const char *backing, const char *format)
{
	struct node *top = NULL;
	char path[NODE_NAME_MAX];
	struct opts *o;
	int ret = 0;

	if ((!has_bytes(&c->image) && !has_bytes(&c->data)) || !backing_file(c->name, backing, path))
		return 0;
	o = opts_new();
	if (!o)
		return varve_error_errno(c->err, -ENOMEM, "%s", c->name);
	if (opts_set(o, "driver", format, NULL) == 0 && opts_set(o, "file.driver", "file", NULL) == 0 &&
	    opts_set(o, "file.filename", path, NULL) == 0 && graph_open(f, o, NODE_NO_IO | NODE_FORCE_SHARE, &top, NULL) == 0) {
		ret = create_check_chain(c, top);
		(void)graph_close(f, top, NULL);
	}
	opts_free(o);
	return ret;
}

static int create_backing(struct fiber *f, struct create *c)
{
	const char *backing = opts_get(c->opts, "backing_file");
	const char *format = opts_get(c->opts, "backing_fmt");

	if (!backing && format)
		return varve_error_set(c->err, -EINVAL, "%s: a backing format is given, but no backing file", c->name);
	if (!backing)
		return 0;
	if (!*backing)
		return varve_error_set(c->err, -EINVAL, "%s: the name of the backing file is empty; leave the option out for an image without one",
				       c->name);
	if (!c->drv->alloc)
		return varve_error_set(c->err, -EINVAL, "%s: images of format %s cannot have a backing file", c->name,
				       c->drv->name);
	if (!format)
		return varve_error_set(c->err, -EINVAL,
				       "%s: the format of the backing file %s is not given; say it (-F), it is never guessed",
				       c->name, backing);
	if (!driver_find(format))
		return varve_error_set(c->err, -EINVAL, "%s: unknown backing format '%s'", c->name, format);
	if (c->flags & VARVE_CREATE_NO_BACKING_CHECK) {
		int ret = create_check_itself(c);

		return ret < 0 ? ret : create_look_through(f, c, backing, format);
	}
	return create_backing_open(f, c, backing, format);
}

static int create_len(struct create *c)
{
	uint64_t size = UINT64_MAX;
	int ret = opts_get_size(c->opts, "size", &size, c->err);

	if (ret < 0)
		return varve_error_prefix(c->err, ret, "%s: ", c->name);
	if (c->len == UINT64_MAX)
		c->len = size;
	return 0;
}

static int create_round(struct create *c)
{
	if (c->len == UINT64_MAX)
		return varve_error_set(c->err, -EINVAL, "%s: a new image needs a size", c->name);
	if (c->len > VARVE_LEN_MAX - SECTOR_LEN)
		return varve_error_set(c->err, -EFBIG, "%s: a size of %llu bytes is too large (at most 8 EiB)", c->name,
				       (unsigned long long)c->len);
	c->len = align_up(c->len, SECTOR_LEN);
	return 0;
}

/* ---- the target ---- */

/* A link that leads nowhere yet: what it names is made, and not more than one of them is followed at a time. */
static int follow_links(struct target *t)
{
	for (unsigned i = 0; i < LINKS_MAX; i++) {
		char target[PATH_MAX];
		ssize_t len = readlink(t->path, target, sizeof(target) - 1);
		const char *slash = strrchr(t->path, '/');
		char *path;

		if (len < 0) /* no link */
			return 0;
		target[len] = '\0';
		if (asprintf(&path, "%.*s%s", target[0] != '/' && slash ? (int)(slash + 1 - t->path) : 0, t->path, target) < 0)
			return -ENOMEM;
		free(t->followed);
		t->path = t->followed = path;
	}
	return -ELOOP;
}

static int create_file(struct target *t, struct varve_error *err)
{
	int fd, ret;

	if (!t->path || t->exists)
		return 0;
	ret = follow_links(t);
	if (ret < 0)
		return varve_error_errno(err, ret, "%s: cannot be created", t->name);
	fd = open(t->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
	if (fd < 0)
		return varve_error_errno(err, -errno, "%s: cannot be created", t->name);
	close(fd);
	t->is_new = true;
	return 0;
}

/* The image's file is there by now: was it looked for under two names? */
static int create_data_file(struct create *c)
{
	int ret;

	if (!c->data.path)
		return 0;
	ret = look_at(&c->image, false, c->err);
	if (ret == 0)
		ret = look_at(&c->data, false, c->err);
	if (ret == 0 && are_one(&c->image, &c->data))
		ret = refuse_same(c);
	if (ret == 0)
		ret = create_file(&c->data, c->err);
	if (ret == -ENOENT && *opts_get(c->opts, "data_file") != '/')
		ret = varve_error_set(c->err, ret, "%s: cannot be created: no such folder (the name begins in the image's, not in the current one)",
				      c->data.name);
	return ret < 0 ? varve_error_prefix(c->err, ret, "%s: data file: ", c->name) : 0;
}

static void target_end(struct target *t, bool failed)
{
	if (failed && t->is_new)
		unlink(t->path);
	free(t->followed);
}

/* As the image will name it: a path, whatever it looks like. */
static int open_data(struct fiber *f, struct create *c, struct node **ret_leaf)
{
	char name[NODE_NAME_MAX + sizeof("file:")];
	int ret;

	snprintf(name, sizeof(name), "%s%s", strchr(c->data.name, ':') ? "file:" : "", c->data.name);
	ret = graph_open_file(f, name, NODE_WRITABLE, ret_leaf, c->err);
	return ret < 0 ? varve_error_prefix(c->err, ret, "data file: ") : 0;
}

static int create_write(struct fiber *f, struct create *c)
{
	struct node *leaf;
	int ret, closed;

	ret = graph_open_file(f, c->name, NODE_WRITABLE, &leaf, c->err);
	if (ret < 0)
		return ret;
	ret = c->data.path ? open_data(f, c, &leaf->data) : 0;
	if (ret == 0)
		ret = leaf->drv->hint ? leaf->drv->hint(leaf, c->opts, c->err) : 0;
	if (ret == 0)
		ret = c->drv->create(f, leaf, c->len, c->opts, c->progress, c->user_data, c->err);
	if (ret < 0)
		varve_error_prefix(c->err, ret, "%s: ", c->name);
	closed = graph_close(f, leaf, ret < 0 ? NULL : c->err);
	return ret < 0 ? ret : closed;
}

static int create_fiber(struct fiber *f, void *arg)
{
	struct create *c = arg;
	int ret;

	ret = create_look(c);
	if (ret == 0)
		ret = create_len(c);
	if (ret == 0)
		ret = create_look_at_data(c);
	if (ret == 0)
		ret = create_backing(f, c);
	if (ret == 0)
		ret = create_round(c);
	if (ret == 0)
		ret = create_file(&c->image, c->err);
	if (ret == 0)
		ret = create_data_file(c);
	if (ret == 0)
		ret = create_check_itself(c);
	if (ret == 0)
		ret = create_write(f, c);
	target_end(&c->data, ret < 0);
	target_end(&c->image, ret < 0);
	return ret;
}

int varve_image_create(const char *name, const char *format, uint64_t len, const char *options, unsigned flags,
		       varve_progress_fn progress, void *user_data, struct varve_error *err)
{
	struct create c = {
		.name = name,
		.len = len,
		.flags = flags,
		.progress = progress,
		.user_data = user_data,
		.err = err,
	};
	struct varve_queue *queue = NULL;
	char formats[DRIVER_FORMATS_MAX];
	int ret;

	if (!name || !*name || !format)
		return varve_error_set(err, -EINVAL, "a new image needs a name and a format");
	if (flags & ~VARVE_CREATE_NO_BACKING_CHECK)
		return varve_error_set(err, -EINVAL, "%s: unknown create flags 0x%x", name, flags);
	c.drv = driver_find(format);
	if (!c.drv || c.drv->kind != DRIVER_FORMAT)
		return varve_error_set(err, -EINVAL, "%s: format '%s' is not known to this version (%s)", name, format,
				       driver_formats(formats));
	if (!c.drv->create)
		return varve_error_set(err, -ENOTSUP, "%s: images of format %s can be read, not created", name, format);
	c.opts = opts_new();
	if (!c.opts)
		return varve_error_errno(err, -ENOMEM, "%s", name);
	ret = options ? opts_parse(c.opts, options, err) : 0;
	if (ret < 0)
		varve_error_prefix(err, ret, "%s: options: ", name);
	if (ret == 0)
		ret = api_private_queue(&queue, err);
	if (ret == 0)
		ret = fiber_call(queue->q, create_fiber, &c);
	varve_queue_free(queue);
	opts_free(c.opts);
	return ret;
}

const char *varve_driver_name(unsigned number)
{
	const struct driver *drv = driver_at(number);

	return drv ? drv->name : NULL;
}

const struct varve_option_info *varve_driver_options(const char *driver)
{
	const struct driver *drv = driver ? driver_find(driver) : NULL;

	return drv ? drv->options : NULL;
}

const struct varve_option_info *varve_driver_open_options(const char *driver)
{
	const struct driver *drv = driver ? driver_find(driver) : NULL;

	if (!driver)
		return disk_options;
	return drv ? drv->open_options : NULL;
}

const char *varve_driver_kind(const char *driver)
{
	static const char *const kinds[] = { [DRIVER_LEAF] = "file", [DRIVER_FILTER] = "filter", [DRIVER_FORMAT] = "format" };
	const struct driver *drv = driver_find(driver);

	return drv ? kinds[drv->kind] : NULL;
}
