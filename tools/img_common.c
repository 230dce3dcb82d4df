/* SPDX-License-Identifier: MIT */
/*
 * tools/img_common.c - what several commands of `varve img` do in the same way
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "img.h"

int open_option(struct open_args *a, int id, const char *value)
{
	switch (id) {
	case 'f':
		a->format = value;
		return 0;
	case 't':
	case 'T':
		a->cache = value;
		return 0;
	case 'U':
		a->force_share = true;
		return 0;
	case LONG_IMAGE_OPTS:
		a->image_opts = true;
		return 0;
	case LONG_OBJECT:
		return object_add(value);
	default:
		complain("option %d is in a table, but nobody reads it: this is an error in varve", id);
		return 1;
	}
}

char *options_append(char *list, const char *key, const char *value, bool escape)
{
	size_t len = (list ? strlen(list) : 0) + strlen(key) + 2 * strlen(value) + 3;
	char *out = malloc(len), *p = out;

	if (!out) { /* nothing was opened yet; and an image without the options asked for would be wrong */
		complain("out of memory for the options");
		exit(1);
	}
	p += sprintf(p, "%s%s%s%s", list ? list : "", list ? "," : "", key, *key ? "=" : "");
	for (; *value; value++) {
		if (escape && *value == ',')
			*p++ = ',';
		*p++ = *value;
	}
	*p = '\0';
	free(list);
	return out;
}

int options_take(const char *command, char **list, const char *value)
{
	if (!*value)
		return complain_usage("%s: -o '' has no option in it", command);
	*list = options_append(*list, "", value, false);
	return *list ? 0 : 1;
}

bool img_take_zeroinit(const char **name)
{
	if (strncmp(*name, ZEROINIT, strlen(ZEROINIT)) != 0)
		return false;
	*name += strlen(ZEROINIT);
	return true;
}

/* snapshot.name=NAME, snapshot.id=ID, or both. */
static bool is_key(const char *word)
{
	return strncmp(word, "snapshot.name=", 14) == 0 || strncmp(word, "snapshot.id=", 12) == 0;
}

/* The key under which a snapshot is known by that word; "": it has one. NULL, after a message: it is none of the image's. */
static const char *snapshot_key(const char *name, const struct open_args *args, const char *word)
{
	struct varve_image *image = open_image(name, args, VARVE_OPEN_NO_BACKING | VARVE_OPEN_NO_IO, NULL);
	struct varve_snapshot_info *list = NULL;
	const char *key = is_key(word) ? "" : NULL;
	struct varve_error err;
	unsigned nr = 0;

	if (!image)
		return NULL;
	if (varve_snapshot_list(image, &list, &nr, &err) < 0) {
		complain("%s", err.message);
		key = NULL;
	} else if (!nr) {
		complain("%s: the image (format %s) has no snapshots, so there is no '%s'", name, varve_image_format(image), word);
		key = NULL;
	} else {
		for (unsigned i = 0; i < nr && !is_key(word); i++) {
			if (strcmp(list[i].id, word) == 0)
				key = "snapshot.id";
			else if (!key && strcmp(list[i].name, word) == 0)
				key = "snapshot.name";
		}
		if (!key)
			complain("%s: none of its %u snapshots is '%s'; %s snapshot -l lists them", name, nr, word, prog);
	}
	varve_snapshot_list_free(list, nr);
	return close_image(image) ? NULL : key;
}

/* The image as a list of options, with the snapshot among them. NULL, after a message. */
static char *snapshot_options(const char *name, const struct open_args *args, const char *snapshot)
{
	const char *key = snapshot_key(name, args, snapshot);
	char *list;

	if (!key)
		return NULL;
	list = options_append(NULL, args->image_opts ? "" : "filename", name, !args->image_opts);
	if (list && args->format)
		list = options_append(list, "format", args->format, true);
	if (list)
		list = options_append(list, key, snapshot, *key);
	if (!list)
		complain("out of memory");
	return list;
}

struct varve_image *img_open_snapshot(const char *name, const struct open_args *args, const char *snapshot, unsigned flags,
				      struct varve_queue *home)
{
	struct open_args with = *args;
	struct varve_image *image;
	struct varve_error err;
	const char *said;
	char *list;

	if (!snapshot)
		return open_image(name, args, flags, home);
	list = snapshot_options(name, args, snapshot);
	if (!list)
		return NULL;
	with.image_opts = true;
	with.format = NULL;
	image = try_open_image(list, &with, flags, home, &err);
	if (!image && *err.message) { /* without the list, which is ours */
		said = strncmp(err.message, list, strlen(list)) == 0 ? err.message + strlen(list) : err.message;
		complain("%s", strncmp(said, ": ", 2) == 0 ? said + 2 : said);
	}
	free(list);
	return image;
}

const char *img_local_path(const char *name)
{
	static const char *const prefixes[] = { "file:", "host_device:" };

	for (unsigned i = 0; i < ARRAY_LEN(prefixes); i++) {
		if (strncmp(name, prefixes[i], strlen(prefixes[i])) == 0)
			return name + strlen(prefixes[i]);
	}
	return name;
}

int img_check_stdin(const char *command, const char *target)
{
	int flags = fcntl(STDIN_FILENO, F_GETFL);
	struct stat in, out;

	if (flags < 0 || (flags & O_ACCMODE) == O_WRONLY || fstat(STDIN_FILENO, &in) < 0) {
		complain("%s: standard input: %s", command, strerror(EBADF));
		return 1;
	}
	if (S_ISDIR(in.st_mode)) {
		complain("%s: standard input: %s", command, strerror(EISDIR));
		return 1;
	}
	if (target && (S_ISREG(in.st_mode) || S_ISBLK(in.st_mode)) && stat(img_local_path(target), &out) == 0 &&
	    (S_ISBLK(in.st_mode) ? S_ISBLK(out.st_mode) && in.st_rdev == out.st_rdev
				 : in.st_dev == out.st_dev && in.st_ino == out.st_ino)) {
		complain("%s: %s is what standard input is read from: a new image there would destroy it", command, target);
		return 1;
	}
	return 0;
}

int img_remove_made(const char *name)
{
	char *path = realpath(img_local_path(name), NULL);
	int ret = path ? unlink(path) : -1;

	free(path);
	return ret;
}

bool img_would_overwrite(struct varve_image *const *sources, unsigned nr, const char *target)
{
	for (unsigned i = 0; i < nr; i++) {
		if (varve_image_stands_on(sources[i], target)) {
			complain("%s: is what is read from, or a backing file of it: a new image there would destroy it", target);
			return true;
		}
	}
	return false;
}
