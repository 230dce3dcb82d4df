/* SPDX-License-Identifier: MIT */
/*
 * qcow2/bitmaps.c - the directory of persistent dirty bitmaps (read)
 *
 * Owns:    the shape of the directory: every length in it is bounded before it is used.
 * Assumes: qcow2_header_parse() read the extension.
 * Never:   reads a bitmap, or follows where its table lies.
 */
#include <stdlib.h>
#include <string.h>

#include "format/qcow2/bitmaps.h"
#include "format/qcow2/packed.h"

#define NAME_MAX_LEN 1023u
#define EXTRA_MAX_LEN 1024u /* nothing is defined to be there */

bool bitmaps_valid(const struct qcow2_header *h)
{
	return h->nr_bitmaps && (h->autoclear & QCOW2_AUTOCLEAR_BITMAPS);
}

static int read_entry(struct fiber *f, struct packed *p, uint32_t nr, struct qcow2_bitmap *b)
{
	struct bitmap_disk d;
	uint32_t extra_len, name_len;
	const uint8_t *bytes;
	int ret;

	b->at = p->pos - p->start;
	ret = packed_take(f, p, nr, sizeof(d), &bytes);
	if (ret < 0)
		return ret;
	memcpy(&d, bytes, sizeof(d));
	extra_len = be32_get(d.extra_len);
	name_len = be16_get(d.name_len);
	if (extra_len > EXTRA_MAX_LEN)
		return varve_error_set(p->err, -EFBIG,
				       "%s: entry %u has %u bytes of extra data, at most %u are allowed",
				       p->what, nr, extra_len, EXTRA_MAX_LEN);
	if (name_len == 0 || name_len > NAME_MAX_LEN)
		return varve_error_set(p->err, -EINVAL,
				       "%s: entry %u has a name of %u bytes, 1 to %u are allowed", p->what,
				       nr, name_len, NAME_MAX_LEN);
	if (d.granularity_bits > 63)
		return varve_error_set(p->err, -EINVAL, "%s: entry %u has a granularity of 2^%u", p->what, nr,
				       d.granularity_bits);
	ret = packed_take(f, p, nr, (size_t)extra_len + name_len, &bytes);
	if (ret < 0)
		return ret;
	b->table_off = be64_get(d.table_off);
	b->table_entries = be32_get(d.table_entries);
	b->flags = be32_get(d.flags);
	b->type = d.type;
	b->extra_len = extra_len;
	b->entry_len = (uint32_t)align_up(sizeof(d) + (uint64_t)extra_len + name_len, 8);
	b->granularity_bits = d.granularity_bits;
	b->name = packed_string(bytes + extra_len, name_len);
	if (!b->name)
		return varve_error_set(p->err, -ENOMEM, "%s: out of memory", p->what);
	packed_align(p);
	return 0;
}

int bitmaps_read(struct fiber *f, struct node *file, const struct qcow2_header *h,
		 struct qcow2_bitmap **ret_list, struct varve_error *err)
{
	struct qcow2_bitmap *list;
	struct packed p;
	int ret;

	if (h->nr_bitmaps > QCOW2_BITMAPS_MAX)
		return varve_error_set(err, -EFBIG, "%u bitmaps: at most %d are allowed", h->nr_bitmaps,
				       QCOW2_BITMAPS_MAX);
	list = calloc((size_t)h->nr_bitmaps + 1, sizeof(*list));
	if (!list)
		return varve_error_set(err, -ENOMEM, "bitmap directory: out of memory");
	ret = packed_open(f, &p, file, "bitmap directory", h->bitmap_directory_off, h->bitmap_directory_len,
			  QCOW2_BITMAP_DIRECTORY_LEN_MAX, err);
	for (uint32_t i = 0; ret == 0 && i < h->nr_bitmaps; i++)
		ret = read_entry(f, &p, i, &list[i]);
	packed_close(&p);
	if (ret < 0) {
		bitmaps_free(list, h->nr_bitmaps);
		return ret;
	}
	*ret_list = list;
	return 0;
}

void bitmaps_free(struct qcow2_bitmap *list, uint32_t nr)
{
	if (!list)
		return;
	for (uint32_t i = 0; i < nr; i++)
		free(list[i].name);
	free(list);
}
