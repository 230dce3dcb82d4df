/* SPDX-License-Identifier: MIT */
/*
 * qcow2/bitmap_bits.c - the bits of one persistent dirty bitmap
 *
 * Owns:    the table of a bitmap that is open.
 * Assumes: fibers of the home queue.
 * Never:   follows a table entry that it did not check, or keeps more of the bits than what is asked for.
 */
#include "format/qcow2/bitmap_dir.h"

#include <stdlib.h>
#include <string.h>

#include "base/iov.h"

#define TABLE_RESERVED 0xff000000000001feull
#define ALL_ONES (1ull << 0)
#define EXTRA_COMPATIBLE (1u << 2)
#define TABLE_LEN_MAX MiB(32) /* of a bitmap that we work on */
#define BITS_LEN_MAX MiB(512) /* of one that we make: the peer has them in memory, and takes no more */

static int table_entries(const struct qcow2 *q, uint64_t disk_len, unsigned granularity_bits, uint64_t bytes_max, uint32_t *ret,
			 struct varve_error *err)
{
	uint64_t bytes = div_up(div_up(disk_len, 1ull << granularity_bits), 8), nr = div_up(bytes, q->cluster_len);

	if (nr * 8 > TABLE_LEN_MAX || bytes > bytes_max)
		return varve_error_set(err, -EFBIG, "granularity %llu: a bitmap of %llu bytes, for a disk of %llu, is too large; at most %llu "
						    "are possible", 1ull << granularity_bits, (unsigned long long)bytes,
				       (unsigned long long)disk_len,
				       (unsigned long long)MIN(bytes_max, (TABLE_LEN_MAX / 8) << q->cluster_bits));
	*ret = (uint32_t)nr;
	return 0;
}

int bits_new_entries(const struct qcow2 *q, uint64_t disk_len, unsigned granularity_bits, uint32_t *ret, struct varve_error *err)
{
	return table_entries(q, disk_len, granularity_bits, BITS_LEN_MAX, ret, err);
}

/* ---- reading ---- */

static int read_file(struct fiber *f, const struct qcow2 *q, uint64_t off, void *buf, size_t len)
{
	return q->order ? order_read(f, q->order, off, buf, len) : node_read(f, q->file, off, buf, len);
}

static int check_bitmap(const struct qcow2 *q, const struct qcow2_bitmap *b, struct varve_error *err)
{
	uint32_t entries;
	int ret;

	if (b->type != 1 || (b->flags & ~(BITMAP_IN_USE | BITMAP_AUTO | EXTRA_COMPATIBLE)) ||
	    (b->extra_len && !(b->flags & EXTRA_COMPATIBLE)))
		return varve_error_set(err, -ENOTSUP, "bitmap '%s': of type %u, flags 0x%x, with %u bytes of extra data: unknown",
				       b->name, b->type, b->flags, b->extra_len);
	if (b->granularity_bits < 9 || b->granularity_bits > 31)
		return varve_error_set(err, -ENOTSUP, "bitmap '%s': a granularity of 2^%u is not 512 .. 2G", b->name,
				       b->granularity_bits);
	ret = table_entries(q, node_len(q->node), b->granularity_bits, UINT64_MAX, &entries, err);
	if (ret == 0 && entries != b->table_entries)
		ret = varve_error_set(err, -EINVAL, "bitmap '%s': a table of %u entries, a disk of this length needs %u", b->name,
				      b->table_entries, entries);
	return ret;
}

static int read_table(struct fiber *f, struct qcow2_bits *h, const struct qcow2_bitmap *b, struct varve_error *err)
{
	int64_t file_len = node_file_len(f, h->q->file);
	uint64_t len = (uint64_t)b->table_entries * 8, end;
	int ret;

	if (file_len < 0)
		return varve_error_errno(err, (int)file_len, "the file's length");
	if (!is_aligned(b->table_off, h->q->cluster_len) || u64_add(b->table_off, len, &end) || end > (uint64_t)file_len)
		return varve_error_set(err, -EINVAL, "bitmap '%s': its table at host offset 0x%llx is not inside the file", b->name,
				       (unsigned long long)b->table_off);
	ret = read_file(f, h->q, b->table_off, h->table, len);
	if (ret < 0)
		return varve_error_errno(err, ret, "table of bitmap '%s'", b->name);
	for (uint32_t i = 0; i < h->nr; i++) {
		be64 disk;
		uint64_t off;

		memcpy(&disk, &h->table[i], sizeof(disk));
		h->table[i] = be64_get(disk);
		off = h->table[i] & QCOW2_OFF_MASK;
		if ((h->table[i] & TABLE_RESERVED) || (off && (h->table[i] & ALL_ONES)) || !is_aligned(off, h->q->cluster_len) ||
		    (off && off + h->q->cluster_len > (uint64_t)file_len))
			return varve_error_set(err, -EINVAL, "bitmap '%s', entry %u: 0x%llx leads nowhere", b->name, i,
					       (unsigned long long)h->table[i]);
	}
	return 0;
}

int bits_open(struct fiber *f, struct qcow2 *q, const struct qcow2_bitmap *b, struct qcow2_bits **ret, struct varve_error *err)
{
	struct qcow2_bits *h;
	int r = check_bitmap(q, b, err);

	if (r < 0)
		return r;
	h = calloc(1, sizeof(*h));
	if (h)
		h->table = malloc(MAX((size_t)b->table_entries * 8, 8));
	if (!h || !h->table) {
		bits_close(h);
		return varve_error_errno(err, -ENOMEM, "bitmap '%s'", b->name);
	}
	h->q = q;
	h->nr = b->table_entries;
	h->bits.granularity = 1ull << b->granularity_bits;
	h->bits.disk_len = node_len(q->node);
	h->bits.nr_bits = div_up(h->bits.disk_len, h->bits.granularity);
	h->nr_bytes = div_up(h->bits.nr_bits, 8);
	r = read_table(f, h, b, err);
	if (r < 0) {
		bits_close(h);
		return r;
	}
	*ret = h;
	return 0;
}

/*
 * What has changed leaves its place, which is free then. Where tables or counts of the image are, nothing may ever be freed, whatever
 * a damaged or hostile bitmap says.
 */
int bits_check_places(const struct qcow2_bits *h, const struct qcow2_bitmap *disk, struct varve_error *err)
{
	const struct qcow2 *q = h->q;
	uint64_t table = disk->table_off >> q->cluster_bits, nr = MAX(div_up(h->nr * 8ull, q->cluster_len), 1);

	for (uint64_t i = 0; i < nr; i++) {
		if (meta_holds(q, table + i))
			return varve_error_set(err, -EINVAL, "its table at host offset 0x%llx lies over metadata",
					       (unsigned long long)disk->table_off);
	}
	for (uint32_t i = 0; i < h->nr; i++) {
		uint64_t cluster = (h->table[i] & QCOW2_OFF_MASK) >> q->cluster_bits;

		if (cluster && meta_holds(q, cluster))
			return varve_error_set(err, -EINVAL, "entry %u of its table leads to metadata at host offset 0x%llx", i,
					       (unsigned long long)cluster << q->cluster_bits);
	}
	return 0;
}

void bits_close(struct qcow2_bits *h)
{
	if (!h)
		return;
	free(h->table);
	free(h);
}

int bits_read(struct fiber *f, const struct qcow2_bits *h, uint64_t off, uint8_t *buf, size_t len)
{
	int ret = 0;

	for (size_t pos = 0, step; ret == 0 && pos < len; pos += step) {
		uint64_t at = off + pos, entry, in_cluster = at & (h->q->cluster_len - 1);

		step = (size_t)MIN(len - pos, h->q->cluster_len - in_cluster);
		entry = at < h->nr_bytes ? h->table[at >> h->q->cluster_bits] : 0;
		if (entry & QCOW2_OFF_MASK)
			ret = read_file(f, h->q, (entry & QCOW2_OFF_MASK) + in_cluster, buf + pos, step);
		else
			memset(buf + pos, entry & ALL_ONES ? 0xff : 0, step);
	}
	/* What stands behind the last bit means nothing. */
	for (uint64_t bit = h->bits.nr_bits; ret == 0 && bit / 8 < off + len && bit / 8 < h->nr_bytes; bit++) {
		if (bit / 8 >= off)
			buf[bit / 8 - off] &= (uint8_t) ~(1u << bit % 8);
	}
	return ret;
}

int bits_read_cluster(struct fiber *f, const struct qcow2_bits *h, uint32_t i, uint8_t *buf)
{
	uint64_t entry = h->table[i];

	if (entry & QCOW2_OFF_MASK)
		return read_file(f, h->q, entry & QCOW2_OFF_MASK, buf, h->q->cluster_len);
	memset(buf, entry & ALL_ONES ? 0xff : 0, h->q->cluster_len);
	return 0;
}

/* Is a bit set that speaks of a byte in [start, end) of the disk? have: bytes of the bitmap from bit `first` on. */
static bool any_set(const uint8_t *have, uint64_t first, const struct bitmap_bits *bits, uint64_t start, uint64_t end)
{
	for (uint64_t i = start / bits->granularity; i < bits->nr_bits && i * bits->granularity < end; i++) {
		if (have[(i - first) / 8] >> (i - first) % 8 & 1)
			return true;
	}
	return false;
}

/* A chunk of bits of another granularity at a time. */
#define CHUNK_BITS (KiB(4) * 8)

int bits_read_as(struct fiber *f, struct node *source, struct bitmap_bits *bits, uint64_t granularity, uint64_t off, uint8_t *buf,
		 size_t len)
{
	uint8_t *have;
	int ret = 0;

	if (bits->granularity == granularity)
		return source->drv->bitmap_read(f, source, bits, off, buf, len);
	have = malloc(CHUNK_BITS / 8);
	if (!have)
		return -ENOMEM;
	memset(buf, 0, len);
	for (uint64_t start = off * 8 * granularity, end; ret == 0 && start < MIN((off + len) * 8 * granularity, bits->disk_len);
	     start = end) {
		uint64_t first = align_down(start / bits->granularity, 8);

		end = MIN(MIN((off + len) * 8 * granularity, bits->disk_len), (first + CHUNK_BITS) * bits->granularity);
		ret = source->drv->bitmap_read(f, source, bits, first / 8, have, CHUNK_BITS / 8);
		if (ret < 0 || buf_is_zero(have, CHUNK_BITS / 8))
			continue;
		for (uint64_t i = start / granularity; i * granularity < end; i++) {
			if (any_set(have, first, bits, MAX(start, i * granularity), MIN(end, (i + 1) * granularity)))
				buf[i / 8 - off] |= (uint8_t)(1u << i % 8);
		}
	}
	free(have);
	return ret;
}

/* ---- writing ---- */

int bits_alloc(struct fiber *f, struct qcow2 *q, uint64_t nr, uint64_t *ret_off)
{
	order_mark mark;
	bool zero;
	int ret = qcow2_begin_changes(f, q, NULL);

	if (ret == 0)
		ret = alloc_metadata(f, q, nr, ret_off, &zero, &mark);

	for (uint64_t i = 0; ret == 0 && i < nr; i++)
		meta_remove(q, (*ret_off >> q->cluster_bits) + i);
	return ret;
}

int bits_put_table(struct fiber *f, struct qcow2 *q, const uint64_t *entries, uint32_t nr, uint64_t *ret_off)
{
	uint64_t clusters = MAX(div_up((uint64_t)nr * 8, q->cluster_len), 1);
	be64 *table = calloc(clusters, q->cluster_len);
	int ret;

	if (!table)
		return -ENOMEM;
	for (uint32_t i = 0; entries && i < nr; i++)
		table[i] = be64_put(entries[i]);
	ret = bits_alloc(f, q, clusters, ret_off);
	if (ret == 0) {
		ret = order_put(f, q->order, *ret_off, table, clusters << q->cluster_bits, ORDER_NONE, NULL);
		if (ret < 0) {
			alloc_free_metadata(q, *ret_off, clusters, order_all(q->order));
			*ret_off = 0; /* nobody is to free it again */
		}
	}
	free(table);
	return ret;
}

void bits_free_space(struct qcow2 *q, const struct qcow2_bitmap *b, const struct qcow2_bits *h, const uint64_t *kept)
{
	order_mark gone = order_all(q->order);

	for (uint32_t i = 0; i < h->nr; i++) {
		uint64_t off = h->table[i] & QCOW2_OFF_MASK;

		if (off && !(kept && kept[i] == h->table[i]))
			alloc_free_metadata(q, off, 1, gone);
	}
	alloc_free_metadata(q, b->table_off, MAX(div_up((uint64_t)b->table_entries * 8, q->cluster_len), 1), gone);
}
