/* SPDX-License-Identifier: MIT */
/*
 * qcow2/disk.h - qcow2 as it lies on disk (docs/spec/qcow2.md)
 */
#ifndef VARVE_QCOW2_DISK_H
#define VARVE_QCOW2_DISK_H

#include <assert.h>
#include <stddef.h>

#include "base/bytes.h"
#include "base/math.h"

#define QCOW2_MAGIC 0x514649fbu /* "QFI\xfb" */

/* Limits: what we accept; larger values are refused on open and on create alike. */
#define QCOW2_CLUSTER_BITS_MIN 9
#define QCOW2_CLUSTER_BITS_MAX 21
#define QCOW2_EXTENDED_CLUSTER_BITS_MIN 14
#define QCOW2_REFCOUNT_ORDER_MAX 6
#define QCOW2_L1_LEN_MAX MiB(32)
#define QCOW2_REFCOUNT_TABLE_LEN_MAX MiB(8)
#define QCOW2_SNAPSHOTS_MAX 65536
#define QCOW2_SNAPSHOT_TABLE_LEN_MAX MiB(64)
#define QCOW2_SNAPSHOT_EXTRA_MIN_V3 16
#define QCOW2_SNAPSHOT_EXTRA_MAX 1024
#define QCOW2_BITMAPS_MAX 65535
#define QCOW2_BITMAP_DIRECTORY_LEN_MAX (1024ull * 65535)
#define QCOW2_BACKING_NAME_MAX 1023
#define QCOW2_BACKING_FORMAT_MAX 15
#define QCOW2_DATA_FILE_NAME_MAX 4095
#define QCOW2_FEATURE_NAME_LEN 46
#define QCOW2_SUBCLUSTERS 32 /* of one cluster, with extended L2 entries */
#define QCOW2_HOST_OFF_MAX ((1ull << 56) - 1)

/* docs/spec/qcow2.md, "Header". Read through qcow2_header_parse(), which checks every field. */
struct qcow2_header_disk {
	be32 magic;			/*   0  "QFI\xfb" */
	be32 version;			/*   4  2 or 3 */
	be64 backing_name_off;		/*   8  0: no backing file */
	be32 backing_name_len;		/*  16  at most 1023, not NUL-terminated */
	be32 cluster_bits;		/*  20  9 .. 21 */
	be64 disk_len;			/*  24  bytes, as the guest sees it */
	be32 crypt_method;		/*  32  0 none, 1 AES, 2 LUKS */
	be32 l1_entries;		/*  36 */
	be64 l1_off;			/*  40 */
	be64 refcount_table_off;	/*  48 */
	be32 refcount_table_clusters;	/*  56 */
	be32 nr_snapshots;		/*  60 */
	be64 snapshots_off;		/*  64  end of version 2 at 72 */
	be64 incompatible;		/*  72 */
	be64 compatible;		/*  80 */
	be64 autoclear;			/*  88 */
	be32 refcount_order;		/*  96  0 .. 6 */
	be32 header_len;		/* 100  at least 104, multiple of 8 */
	uint8_t compression_type;	/* 104  0 deflate, 1 zstd */
	uint8_t pad[7];			/* 105 */
};
static_assert(offsetof(struct qcow2_header_disk, snapshots_off) == 64, "see the spec");
static_assert(offsetof(struct qcow2_header_disk, header_len) == 100, "see the spec");
static_assert(sizeof(struct qcow2_header_disk) == 112, "see the spec");

#define QCOW2_V2_HEADER_LEN 72
#define QCOW2_V3_HEADER_LEN_MIN 104

#define QCOW2_INCOMPAT_DIRTY (1ull << 0)
#define QCOW2_INCOMPAT_CORRUPT (1ull << 1)
#define QCOW2_INCOMPAT_DATA_FILE (1ull << 2)
#define QCOW2_INCOMPAT_COMPRESSION (1ull << 3)
#define QCOW2_INCOMPAT_EXTENDED_L2 (1ull << 4)
#define QCOW2_INCOMPAT_KNOWN (uint64_t)31 /* the five above */
#define QCOW2_COMPAT_LAZY_REFCOUNTS (1ull << 0)
#define QCOW2_AUTOCLEAR_BITMAPS (1ull << 0)
#define QCOW2_AUTOCLEAR_RAW_DATA (1ull << 1)
/*
 * Ours, of those that the specification reserves: a journal of queued metadata (order/journal.h) belongs to the image, and bits 48 to 62
 * say which one (ORDER_MARK_BITS). Every other program clears them before it writes, as it must clear what it does not know.
 */
#define QCOW2_AUTOCLEAR_JOURNAL (1ull << 63)

/* Header extension "bitmaps". */
struct qcow2_bitmaps_disk {
	be32 nr_bitmaps;
	be32 reserved;
	be64 directory_len;
	be64 directory_off;
};
static_assert(sizeof(struct qcow2_bitmaps_disk) == 24, "see the spec");

#define QCOW2_EXT_END 0u
#define QCOW2_EXT_BACKING_FORMAT 0xe2792acau
#define QCOW2_EXT_FEATURE_NAMES 0x6803f857u
#define QCOW2_EXT_BITMAPS 0x23852875u
#define QCOW2_EXT_LUKS 0x0537be77u
#define QCOW2_EXT_DATA_FILE 0x44415441u

/* L1 and L2 entries (host byte order) */
#define QCOW2_COPIED (1ull << 63)     /* refcount is exactly 1: may be written in place */
#define QCOW2_COMPRESSED (1ull << 62) /* L2 */
#define QCOW2_ZERO (1ull << 0)	      /* L2, version 3, not with extended entries */
#define QCOW2_OFF_MASK 0x00fffffffffffe00ull
#define QCOW2_L1_RESERVED 0x7f000000000001ffull
#define QCOW2_L2_RESERVED 0x3f000000000001feull

#endif
