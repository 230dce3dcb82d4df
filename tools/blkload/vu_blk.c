/* SPDX-License-Identifier: MIT */
/*
 * vu_blk.c - block requests over one virtqueue
 *
 * Owns:    the request pool.
 * Assumes: the layout of the virtio block device, little-endian.
 * Never:   allocates after vu_blk_open().
 *
 * Where a request lies in guest memory. Header and status usually stand together in a cache line
 * of their own ("meta"). The merged layout puts the header into the last 16 bytes of the page
 * before the data and the status right behind the data, so that one segment spans both.
 *
 *	meta:  | header 16 | status 1 |
 *	page:  |          header 16 | data .......................... | status 1 |
 */
#include "vu_blk.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <linux/virtio_config.h>
#include <stdlib.h>
#include <string.h>

#define PAGE		4096u
#define META_LEN	64u
#define HDR_LEN		((uint32_t)sizeof(struct virtio_blk_outhdr))
#define RANDOM_CUTS	4u	/* pieces that the random layout makes of one segment, at most */

static uint64_t slot_len(uint32_t buf_len)
{
	return 2 * (uint64_t)PAGE + ((uint64_t)buf_len + PAGE - 1) / PAGE * PAGE;
}

uint64_t vu_blk_mem_len(unsigned depth, uint32_t buf_len)
{
	/* One slot more per region: the end of each may be too short for a whole one. */
	return (depth + (uint64_t)VU_MAX_REGIONS) * (slot_len(buf_len) + META_LEN + PAGE);
}

int vu_blk_open(struct vu_blk *b, struct vu_front *f, unsigned q, unsigned depth,
		uint32_t buf_len)
{
	unsigned i;

	memset(b, 0, sizeof(*b));
	if (q >= f->opts.nr_queues || depth == 0 || buf_len == 0)
		return vu_fail(&b->err, -EINVAL, "queue %u of %u, depth %u, buffers of %u bytes", q,
			       f->opts.nr_queues, depth, buf_len);
	b->front = f;
	b->ring = &f->ring[q];
	b->depth = depth;
	b->buf_len = (buf_len + PAGE - 1) / PAGE * PAGE;
	b->timeout_ms = 10000;
	b->layout_seed = q;
	b->ios = calloc(depth, sizeof(*b->ios));
	b->pool = calloc(depth, sizeof(*b->pool));
	if (!b->ios || !b->pool)
		return vu_fail(&b->err, -ENOMEM, "no memory for %u requests", depth);

	for (i = 0; i < depth; i++) {
		struct vu_io *io = &b->ios[i];
		uint64_t page_addr;
		uint8_t *page;

		io->meta = vu_mem_alloc(&f->mem, META_LEN, META_LEN, &io->meta_addr);
		page = vu_mem_alloc(&f->mem, slot_len(b->buf_len), PAGE, &page_addr);
		if (!io->meta || !page)
			return vu_fail(&b->err, -ENOMEM,
				       "guest memory is too small for %u requests of %u bytes",
				       depth, b->buf_len);
		io->blk = b;
		io->slot = i;
		io->data = page + PAGE;
		io->data_addr = page_addr + PAGE;
		vu_blk_put(b, io);
	}
	return 0;
}

void vu_blk_free(struct vu_blk *b)
{
	free(b->ios);
	free(b->pool);
	b->ios = NULL;
	b->pool = NULL;
	b->nr_pool = 0;
}

struct vu_io *vu_blk_get(struct vu_blk *b)
{
	return b->nr_pool > 0 ? b->pool[--b->nr_pool] : NULL;
}

void vu_blk_put(struct vu_blk *b, struct vu_io *io)
{
	assert(io->blk == b && b->nr_pool < b->depth);
	b->pool[b->nr_pool++] = io;
}

static void add_seg(struct vu_io *io, uint64_t addr, uint32_t len, bool dev_writes)
{
	assert(io->nr_segs < VU_IO_MAX_SEGS);
	io->segs[io->nr_segs++] = (struct vu_seg){ addr, len, dev_writes };
}

static void lay_out_plain(struct vu_io *io, bool dev_writes, uint32_t most)
{
	uint32_t done, n;

	add_seg(io, io->meta_addr, HDR_LEN, false);
	for (done = 0; done < io->data_len; done += n) {
		n = io->data_len - done;
		if (most > 0 && n > most)
			n = most;
		add_seg(io, io->data_addr + done, n, dev_writes);
	}
	add_seg(io, io->meta_addr + HDR_LEN, 1, true);
}

static void lay_out_merged(struct vu_io *io, bool dev_writes)
{
	uint64_t hdr = io->data_addr - HDR_LEN, status = io->data_addr + io->data_len;

	if (dev_writes) {
		add_seg(io, hdr, HDR_LEN, false);
		add_seg(io, io->data_addr, io->data_len + 1, true);
	} else {
		add_seg(io, hdr, HDR_LEN + io->data_len, false);
		add_seg(io, status, 1, true);
	}
}

/* Cut every segment at random places: half of the time at whole sectors, else anywhere. */
static void cut_randomly(struct vu_io *io)
{
	uint64_t *seed = &io->blk->layout_seed;
	struct vu_seg whole[4];
	unsigned nr = io->nr_segs, i;

	assert(nr <= 4);
	memcpy(whole, io->segs, nr * sizeof(whole[0]));
	io->nr_segs = 0;
	for (i = 0; i < nr; i++) {
		unsigned cuts = (unsigned)vu_random_below(seed, RANDOM_CUTS);
		uint32_t unit = vu_random(seed) & 1 ? VU_SECTOR : 1;
		uint64_t addr = whole[i].guest_addr;
		uint32_t left = whole[i].len;

		for (; cuts > 0 && left > unit; cuts--) {
			uint32_t most = (left - 1) / unit;
			uint32_t n = unit * (1 + (uint32_t)vu_random_below(seed, most));

			add_seg(io, addr, n, whole[i].dev_writes);
			addr += n;
			left -= n;
		}
		add_seg(io, addr, left, whole[i].dev_writes);
	}
}

void vu_io_any(struct vu_io *io, uint32_t type, uint64_t sector, uint32_t data_len,
	       bool dev_writes)
{
	struct vu_blk *b = io->blk;
	bool random = b->layout == VU_LAYOUT_RANDOM;
	bool merged = random ? vu_random(&b->layout_seed) & 1 : b->layout == VU_LAYOUT_MERGED;

	assert(data_len <= b->buf_len);
	io->data_len = data_len;
	io->nr_segs = 0;
	if (merged) {
		io->hdr = (struct virtio_blk_outhdr *)(io->data - HDR_LEN);
		io->status = io->data + data_len;
		lay_out_merged(io, dev_writes);
	} else {
		io->hdr = (struct virtio_blk_outhdr *)io->meta;
		io->status = io->meta + HDR_LEN;
		lay_out_plain(io, dev_writes, random ? 0 : b->seg_len);
	}
	if (random)
		cut_randomly(io);

	io->hdr->type = htole32(type);
	io->hdr->ioprio = 0;
	io->hdr->sector = htole64(sector);
}

void vu_io_read(struct vu_io *io, uint64_t off, uint32_t len)
{
	vu_io_any(io, VIRTIO_BLK_T_IN, off / VU_SECTOR, len, true);
}

void vu_io_write(struct vu_io *io, uint64_t off, uint32_t len)
{
	vu_io_any(io, VIRTIO_BLK_T_OUT, off / VU_SECTOR, len, false);
}

void vu_io_flush(struct vu_io *io)
{
	vu_io_any(io, VIRTIO_BLK_T_FLUSH, 0, 0, false);
}

void vu_io_get_id(struct vu_io *io)
{
	vu_io_any(io, VIRTIO_BLK_T_GET_ID, 0, VIRTIO_BLK_ID_BYTES, true);
}

static void io_ranges(struct vu_io *io, uint32_t type, const struct vu_range *ranges, unsigned nr)
{
	struct virtio_blk_discard_write_zeroes *d = (void *)io->data;
	unsigned i;

	assert(nr <= io->blk->buf_len / sizeof(*d));
	for (i = 0; i < nr; i++) {
		uint32_t flags = ranges[i].unmap ? VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP : 0;

		d[i].sector = htole64(ranges[i].off / VU_SECTOR);
		d[i].num_sectors = htole32((uint32_t)(ranges[i].len / VU_SECTOR));
		d[i].flags = htole32(flags);
	}
	vu_io_any(io, type, 0, nr * (uint32_t)sizeof(*d), false);
}

void vu_io_discard(struct vu_io *io, const struct vu_range *ranges, unsigned nr)
{
	io_ranges(io, VIRTIO_BLK_T_DISCARD, ranges, nr);
}

void vu_io_write_zeroes(struct vu_io *io, const struct vu_range *ranges, unsigned nr)
{
	io_ranges(io, VIRTIO_BLK_T_WRITE_ZEROES, ranges, nr);
}

int vu_blk_submit(struct vu_blk *b, struct vu_io *io)
{
	int ret;

	*io->status = VU_NO_STATUS;
	ret = vu_ring_add(b->ring, io->segs, io->nr_segs, io);
	if (ret < 0)
		b->err = b->ring->err;
	return ret;
}

int vu_blk_kick(struct vu_blk *b)
{
	int ret = vu_ring_kick(b->ring);

	if (ret < 0)
		b->err = b->ring->err;
	return ret;
}

int vu_blk_wait(struct vu_blk *b, uint64_t deadline_ns)
{
	int ret = vu_ring_wait(b->ring, deadline_ns);

	if (ret < 0)
		b->err = b->ring->err;
	return ret;
}

static int status_to_errno(uint8_t status)
{
	switch (status) {
	case VIRTIO_BLK_S_OK:
		return 0;
	case VIRTIO_BLK_S_IOERR:
		return -EIO;
	case VIRTIO_BLK_S_UNSUPP:
		return -ENOTSUP;
	default:
		return -EPROTO;
	}
}

int vu_blk_reap(struct vu_blk *b, struct vu_io **done, unsigned max)
{
	struct vu_done d[64];
	int n, i;

	n = vu_ring_reap(b->ring, d, max < 64 ? max : 64);
	if (n < 0) {
		b->err = b->ring->err;
		return n;
	}
	for (i = 0; i < n; i++) {
		struct vu_io *io = d[i].cookie;

		io->dev_status = *io->status;
		io->ret = status_to_errno(io->dev_status);
		io->written = d[i].written;
		done[i] = io;
	}
	return n;
}

int vu_blk_run(struct vu_blk *b, struct vu_io *io)
{
	uint64_t deadline = vu_deadline_ns(b->timeout_ms);
	uint32_t type = le32toh(io->hdr->type);
	uint64_t sector = le64toh(io->hdr->sector);
	struct vu_io *done;
	int n;

	if (b->ring->nr_chains > 0)
		return vu_fail(&b->err, -EBUSY,
			       "a synchronous request while %u asynchronous ones are in flight",
			       b->ring->nr_chains);
	n = vu_blk_submit(b, io);
	if (n == 0)
		n = vu_blk_kick(b);
	while (n == 0) {
		n = vu_blk_wait(b, deadline);
		if (n == 0)
			n = vu_blk_reap(b, &done, 1);
	}
	if (n < 0)
		return n;
	if (io->ret < 0)
		return vu_fail(&b->err, io->ret,
			       "request type %" PRIu32 " at sector %" PRIu64
			       ", %" PRIu32 " bytes: the device answered with status %u",
			       type, sector, io->data_len, io->dev_status);
	return 0;
}

/* A request for a synchronous call. */
static struct vu_io *take(struct vu_blk *b)
{
	struct vu_io *io = vu_blk_get(b);

	if (!io)
		vu_fail(&b->err, -EBUSY, "all %u requests are in use", b->depth);
	return io;
}

/* Run a prepared request and put it back. */
static int run_and_put(struct vu_blk *b, struct vu_io *io)
{
	int ret = vu_blk_run(b, io);

	/* A request that the device still holds must not be used again. */
	if (b->ring->nr_chains == 0)
		vu_blk_put(b, io);
	return ret;
}

int vu_blk_read(struct vu_blk *b, uint64_t off, void *buf, size_t len)
{
	size_t done;
	uint32_t n;

	for (done = 0; done < len; done += n) {
		struct vu_io *io = take(b);
		int ret;

		if (!io)
			return -EBUSY;
		n = len - done < b->buf_len ? (uint32_t)(len - done) : b->buf_len;
		vu_io_read(io, off + done, n);
		ret = run_and_put(b, io);
		if (ret < 0)
			return ret;
		memcpy((char *)buf + done, io->data, n);
	}
	return 0;
}

int vu_blk_write(struct vu_blk *b, uint64_t off, const void *buf, size_t len)
{
	size_t done;
	uint32_t n;

	for (done = 0; done < len; done += n) {
		struct vu_io *io = take(b);
		int ret;

		if (!io)
			return -EBUSY;
		n = len - done < b->buf_len ? (uint32_t)(len - done) : b->buf_len;
		memcpy(io->data, (const char *)buf + done, n);
		vu_io_write(io, off + done, n);
		ret = run_and_put(b, io);
		if (ret < 0)
			return ret;
	}
	return 0;
}

int vu_blk_flush(struct vu_blk *b)
{
	struct vu_io *io = take(b);

	if (!io)
		return -EBUSY;
	vu_io_flush(io);
	return run_and_put(b, io);
}

int vu_blk_get_id(struct vu_blk *b, char id[VIRTIO_BLK_ID_BYTES + 1])
{
	struct vu_io *io = take(b);
	int ret;

	if (!io)
		return -EBUSY;
	memset(io->data, 0, VIRTIO_BLK_ID_BYTES);
	vu_io_get_id(io);
	ret = run_and_put(b, io);
	if (ret < 0)
		return ret;
	memcpy(id, io->data, VIRTIO_BLK_ID_BYTES);
	id[VIRTIO_BLK_ID_BYTES] = '\0';
	return 0;
}

int vu_blk_discard(struct vu_blk *b, uint64_t off, uint64_t len)
{
	struct vu_range range = { off, len, false };
	struct vu_io *io = take(b);

	if (!io)
		return -EBUSY;
	vu_io_discard(io, &range, 1);
	return run_and_put(b, io);
}

int vu_blk_write_zeroes(struct vu_blk *b, uint64_t off, uint64_t len, bool unmap)
{
	struct vu_range range = { off, len, unmap };
	struct vu_io *io = take(b);

	if (!io)
		return -EBUSY;
	vu_io_write_zeroes(io, &range, 1);
	return run_and_put(b, io);
}

void vu_blk_limits(const struct vu_front *f, struct vu_blk_limits *ret_limits)
{
	struct vu_blk_limits *l = ret_limits;
	struct virtio_blk_config c;

	memset(&c, 0, sizeof(c));
	memcpy(&c, f->config, sizeof(f->config));
	memset(l, 0, sizeof(*l));
	l->capacity = le64toh(c.capacity) * VU_SECTOR;
	l->block_len = vu_has(f->features, VIRTIO_BLK_F_BLK_SIZE) ? le32toh(c.blk_size) : VU_SECTOR;
	l->max_seg_len = UINT32_MAX;
	if (vu_has(f->features, VIRTIO_BLK_F_SIZE_MAX) && c.size_max)
		l->max_seg_len = le32toh(c.size_max);
	l->max_segs = vu_has(f->features, VIRTIO_BLK_F_SEG_MAX) ? le32toh(c.seg_max) : UINT32_MAX;
	l->nr_queues = vu_has(f->features, VIRTIO_BLK_F_MQ) ? le16toh(c.num_queues) : 1;
	l->read_only = vu_has(f->features, VIRTIO_BLK_F_RO);
	l->has_flush = vu_has(f->features, VIRTIO_BLK_F_FLUSH);
	l->has_discard = vu_has(f->features, VIRTIO_BLK_F_DISCARD);
	l->has_write_zeroes = vu_has(f->features, VIRTIO_BLK_F_WRITE_ZEROES);
	if (l->has_discard) {
		l->max_discard_len = (uint64_t)le32toh(c.max_discard_sectors) * VU_SECTOR;
		l->max_discard_ranges = le32toh(c.max_discard_seg);
		l->discard_align = (uint64_t)le32toh(c.discard_sector_alignment) * VU_SECTOR;
	}
	if (l->has_write_zeroes) {
		l->max_zeroes_len = (uint64_t)le32toh(c.max_write_zeroes_sectors) * VU_SECTOR;
		l->max_zeroes_ranges = le32toh(c.max_write_zeroes_seg);
		l->may_unmap = c.write_zeroes_may_unmap;
	}
}
