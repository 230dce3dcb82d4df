/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/config.c - what the device says of itself
 *
 * Owns:    nothing.
 * Assumes: the disk's length may grow; it is looked up each time.
 * Never:   offers what blk.c does not do.
 */
#include <string.h>

#include "export/vhost-user-blk/blk.h"

/*
 * Data segments of a request: with header and status they fill a ring of 128, the usual size, so that a
 * driver without indirect descriptors gets along too.
 */
#define SEG_MAX 126u

/* docs/spec/virtio-blk.md, "Configuration". */
struct blk_config_space {
	le64 capacity;			/*  0  sectors of 512 bytes */
	le32 size_max;			/*  8  not offered */
	le32 seg_max;			/* 12 */
	uint8_t geometry[4];		/* 16  not offered */
	le32 blk_size;			/* 20  bytes */
	uint8_t physical_block_exp;	/* 24  blocks of blk_size in a physical one, as a power of two */
	uint8_t alignment_offset;	/* 25 */
	le16 min_io_size;		/* 26  blocks */
	le32 opt_io_size;		/* 28  blocks; 0: not said */
	uint8_t writeback;		/* 32 */
	uint8_t unused0;		/* 33 */
	le16 num_queues;		/* 34 */
	le32 max_discard_sectors;	/* 36 */
	le32 max_discard_seg;		/* 40 */
	le32 discard_sector_alignment;	/* 44 */
	le32 max_write_zeroes_sectors;	/* 48 */
	le32 max_write_zeroes_seg;	/* 52 */
	uint8_t write_zeroes_may_unmap; /* 56 */
	uint8_t unused1[3];
};

static_assert(sizeof(struct blk_config_space) == 60, "see the spec");
static_assert(offsetof(struct blk_config_space, num_queues) == 34, "see the spec");
static_assert(offsetof(struct blk_config_space, writeback) == BLK_CONFIG_WRITEBACK, "see the spec");

#define BIT(n) (UINT64_C(1) << (n))

uint64_t blk_features(const struct blk_disk *disk)
{
	uint64_t features = BIT(BLK_F_SEG_MAX) | BIT(BLK_F_BLK_SIZE) | BIT(BLK_F_FLUSH) |
			    BIT(BLK_F_TOPOLOGY) | BIT(BLK_F_MQ) | BIT(BLK_F_INDIRECT_DESC) |
			    BIT(BLK_F_EVENT_IDX) | BIT(BLK_F_VERSION_1) | BIT(BLK_F_RING_PACKED) |
			    BIT(UMSG_F_PROTOCOL_FEATURES) | BIT(UMSG_F_LOG_ALL);

	if (disk->writable)
		features |= BIT(BLK_F_DISCARD) | BIT(BLK_F_WRITE_ZEROES) | (disk->fixed_cache ? 0 : BIT(BLK_F_CONFIG_WCE));
	else
		features |= BIT(BLK_F_RO);
	if (disk->in_order)
		features |= BIT(BLK_F_IN_ORDER);
	return features;
}

/* The strictest alignment that a leaf below the disk has: the physical block. */
static uint32_t physical_len(const struct node *n)
{
	uint32_t align = BLK_SECTOR_LEN;

	for (; n; n = n->file)
		align = MAX(align, n->align);
	return align;
}

void blk_config(const struct blk_disk *disk, unsigned nr_rings, unsigned num_max, bool writeback,
		uint8_t space[UMSG_CONFIG_MAX])
{
	uint32_t physical = physical_len(disk->top) / BLK_SECTOR_LEN;
	uint32_t unit = map_unit(disk->top) / BLK_SECTOR_LEN; /* 0: without a mapping */
	unsigned seg_max = num_max > 2 ? MIN(num_max - 2, SEG_MAX) : 1;
	struct blk_config_space c = {
		.capacity = le64_put(node_len(disk->top) / BLK_SECTOR_LEN),
		.seg_max = le32_put(seg_max),
		.blk_size = le32_put(BLK_SECTOR_LEN),
		.physical_block_exp = (uint8_t)log2_u64(physical),
		.min_io_size = le16_put((uint16_t)MIN(physical, UINT16_MAX)),
		.opt_io_size = le32_put(unit),
		.writeback = writeback,
		.num_queues = le16_put((uint16_t)nr_rings),
	};

	if (disk->writable) {
		c.max_discard_sectors = le32_put(BLK_RANGE_SECTORS_MAX);
		c.max_discard_seg = le32_put(BLK_RANGES_MAX);
		c.discard_sector_alignment = le32_put(MAX(physical, unit));
		c.max_write_zeroes_sectors = le32_put(BLK_RANGE_SECTORS_MAX);
		c.max_write_zeroes_seg = le32_put(BLK_RANGES_MAX);
		c.write_zeroes_may_unmap = 1;
	}
	memset(space, 0, UMSG_CONFIG_MAX);
	memcpy(space, &c, sizeof(c));
}
