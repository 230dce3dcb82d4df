/* SPDX-License-Identifier: MIT */
/*
 * qcow2/check_bitmaps.c - examination of persistent dirty bitmaps
 *
 * Owns:    the reading of the bitmap directory and of bitmap tables as an examiner reads them.
 * Assumes: check.c read the directory once.
 * Never:   reads the bitmaps themselves, or more table bytes than the file has.
 */
#include <string.h>

#include "format/qcow2/bitmaps.h"
#include "format/qcow2/check.h"

#define TABLE_RESERVED 0xff000000000001feull
#define TABLE_ALL_ONES (1ull << 0)
#define REMOVE_IT "others refuse the image until it is removed (img bitmap --remove)"

static unsigned long long ull(uint64_t x)
{
	return x;
}

static int table_entry(struct checker *k, const struct qcow2_bitmap *b, uint32_t i, uint64_t entry)
{
	uint64_t off = entry & QCOW2_OFF_MASK;

	if (k->first && ((entry & TABLE_RESERVED) || (off && (entry & TABLE_ALL_ONES))))
		check_corruption(k, "bitmap '%s', entry %u: 0x%llx has reserved bits set", b->name, i,
				 ull(entry));
	if (off == 0)
		return 0;
	if (!is_aligned(off, k->q->cluster_len) || !check_inside(k, off, k->q->cluster_len)) {
		if (k->first)
			check_corruption(
				k, "bitmap '%s', entry %u: host offset 0x%llx is not a cluster of the file",
				b->name, i, ull(off));
		return 0;
	}
	return check_count(k, off, k->q->cluster_len, 1, REF_METADATA);
}

static int bitmap_table(struct fiber *f, struct checker *k, const struct qcow2_bitmap *b)
{
	int err = check_count(k, b->table_off, (uint64_t)b->table_entries * 8, 1, REF_METADATA);

	for (uint32_t i = 0; i < b->table_entries && err == 0;) {
		uint32_t nr = MIN(b->table_entries - i, (uint32_t)(CHECK_CHUNK / 8));

		err = check_read(f, k, b->table_off + (uint64_t)i * 8, k->chunk, nr * 8);
		if (err < 0) {
			if (k->first)
				check_unread(k, "table of bitmap '%s' at host offset 0x%llx: %s", b->name,
					     ull(b->table_off), strerror(-err));
			return 0;
		}
		for (uint32_t j = 0; j < nr && err == 0; j++, i++)
			err = table_entry(k, b, i, be64_get(k->chunk[j]));
	}
	return err;
}

/*
 * What makes others refuse the whole image. Bits are no data of the guest, but only whoever uses them knows whether they can be done
 * without: `img bitmap --remove` takes them away.
 */
static void check_entry(struct checker *k, const struct qcow2_bitmap *b)
{
	const uint64_t disk_len = k->q->h.disk_len, bits = (uint64_t)b->table_entries * k->q->cluster_len * 8;

	if (!k->first)
		return;
	if (b->type != 1)
		check_corruption(k, "bitmap '%s': its type %u is unknown; " REMOVE_IT, b->name, b->type);
	if (b->granularity_bits < 9 || b->granularity_bits > 31)
		check_corruption(k, "bitmap '%s': a granularity of 2^%u bytes is not 512 .. 2G; " REMOVE_IT, b->name, b->granularity_bits);
	else if (!(b->flags & BITMAP_IN_USE) && div_up(disk_len, 1ull << b->granularity_bits) > bits)
		check_corruption(k, "bitmap '%s': a table of %u entries is too short for the disk; " REMOVE_IT, b->name, b->table_entries);
}

/* False, reported once: the table cannot be where the directory says. */
static bool table_plausible(struct checker *k, const struct qcow2_bitmap *b)
{
	if (b->table_entries <= BITMAP_TABLE_ENTRIES_MAX && is_aligned(b->table_off, k->q->cluster_len) &&
	    check_inside(k, b->table_off, (uint64_t)b->table_entries * 8))
		return true;
	if (k->first)
		check_corruption(
			k,
			"bitmap '%s': its table of %u entries at host offset 0x%llx is not inside the file",
			b->name, b->table_entries, ull(b->table_off));
	return false;
}

int check_bitmaps(struct fiber *f, struct checker *k)
{
	uint64_t read = 0;
	int err;

	if (!k->bitmaps_known)
		return 0;
	err = check_count(k, k->q->h.bitmap_directory_off, k->q->h.bitmap_directory_len, 1, REF_METADATA);
	for (uint32_t i = 0; i < k->q->h.nr_bitmaps && err == 0; i++) {
		const struct qcow2_bitmap *b = &k->bitmaps[i];

		check_entry(k, b);
		if (!table_plausible(k, b))
			continue;
		/*
		 * Tables that together are longer than the file lie over each other; that must not cost
		 * time without end.
		 */
		read += (uint64_t)b->table_entries * 8;
		if (read > k->file_len) {
			if (k->first)
				check_corruption(k, "bitmap '%s': its table overlaps tables of other bitmaps",
						 b->name);
			break;
		}
		err = bitmap_table(f, k, b);
	}
	return err;
}
