/* SPDX-License-Identifier: MIT */
/*
 * tools/complete_image.c - names of snapshots and bitmaps, asked of the image that the command line names
 *
 * Never:   opens anything but a regular file or a block device: a name alone must not make a shell wait for a
 * pipe or a server.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "complete.h"
#include "img.h"

#define SECONDS_MAX 2 /* then the process is gone, and nothing is offered */

static struct varve_image *open_named(struct complete *c, const char *name)
{
	struct open_args args = { .format = c->image_opts ? NULL : c->format,
				  .image_opts = c->image_opts,
				  .force_share = true };
	struct varve_error err;
	struct stat st;

	if (!name || (!c->image_opts &&
		      (stat(img_local_path(name), &st) < 0 || !(S_ISREG(st.st_mode) || S_ISBLK(st.st_mode)))))
		return NULL;
	if (c->image_opts && strstr(name, "http"))
		return NULL; /* a web server */
	alarm(SECONDS_MAX);
	return try_open_image(name, &args, VARVE_OPEN_NO_BACKING | VARVE_OPEN_NO_IO, NULL, &err);
}

void complete_snapshots(struct complete *c, const char *prefix)
{
	struct varve_image *image = open_named(c, c->image);
	struct varve_snapshot_info *list;
	struct varve_error err;
	unsigned nr;

	if (!image)
		return;
	if (varve_snapshot_list(image, &list, &nr, &err) == 0) {
		for (unsigned i = 0; i < nr; i++)
			complete_offer(c, OFFER_WORD, prefix, list[i].name, "snapshot");
		varve_snapshot_list_free(list, nr);
	}
	(void)varve_image_close(image, &err); /* it was only read */
}

void complete_bitmaps(struct complete *c, const char *prefix)
{
	struct varve_image *image = open_named(c, c->backing ? c->backing : c->image);
	struct varve_bitmap_info *list;
	struct varve_error err;
	unsigned nr;

	if (!image)
		return;
	if (varve_bitmap_list(image, &list, &nr, &err) == 0) {
		for (unsigned i = 0; i < nr; i++)
			complete_offer(c, OFFER_WORD, prefix, list[i].name,
				       list[i].enabled ? "bitmap" : "bitmap, disabled");
		varve_bitmap_list_free(list, nr);
	}
	(void)varve_image_close(image, &err); /* it was only read */
}
