/* SPDX-License-Identifier: MIT */
/*
 * tools/img_chain.c - what an image and its backing files are, without opening them for I/O
 *
 * Never:   follows a json: name out of an image, or a chain without end.
 */
#include <string.h>
#include <sys/stat.h>

#include "img.h"

/* Images of one chain; a chain that is longer is taken for one without end. */
#define CHAIN_MAX 4096

static json_t *info_of(const char *name, const struct open_args *open)
{
	struct varve_image *image = open_image(name, open, VARVE_OPEN_NO_BACKING | VARVE_OPEN_NO_IO, NULL);
	json_t *info;

	if (!image)
		return NULL;
	info = image_info(image);
	if (close_image(image)) {
		json_decref(info);
		return NULL;
	}
	return info;
}

/* True if the file called name is one of those in the list already. */
static bool chain_has(const json_t *list, const char *name)
{
	struct stat st, other;
	bool exists = stat(name, &st) == 0;
	size_t i;
	json_t *info;

	json_array_foreach(list, i, info) {
		const char *seen = info_str(info, "filename");

		if (!seen)
			continue;
		if (strcmp(seen, name) == 0)
			return true;
		if (exists && stat(seen, &other) == 0 && st.st_dev == other.st_dev && st.st_ino == other.st_ino)
			return true;
	}
	return false;
}

static json_t *info_backing(const json_t *above, const struct open_args *open_top)
{
	const char *path = info_str(above, "full-backing-filename");
	struct open_args open = {
		.format = info_str(above, "backing-filename-format"),
		.force_share = open_top->force_share,
		.cache = open_top->cache,
	};

	/* A description of a whole disk, out of a stranger's image: who opens that opens anything. */
	if (strncmp(path, "json:", 5) == 0) {
		complain("%s: the image names its backing file by json:, which is not followed",
			 info_str(above, "filename"));
		return NULL;
	}
	return info_of(path, &open);
}

json_t *img_chain(const char *name, const struct open_args *open, bool whole)
{
	json_t *list = json_array(), *info = info_of(name, open);

	while (info) {
		const char *next = info_str(info, "full-backing-filename");

		json_array_append_new(list, info);
		if (!next || !whole)
			return list;
		if (chain_has(list, next) || json_array_size(list) == CHAIN_MAX) {
			complain("%s: its backing file %s leads back to an image above: the chain has no end",
				 info_str(info, "filename"), next);
			break;
		}
		info = info_backing(info, open);
	}
	json_decref(list);
	return NULL;
}
