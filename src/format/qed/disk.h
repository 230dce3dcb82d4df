/* SPDX-License-Identifier: MIT */
/*
 * qed/disk.h - the structures of a QED file, and their limits (docs/spec/qed.md)
 */
#ifndef VARVE_QED_DISK_H
#define VARVE_QED_DISK_H

#include <assert.h>
#include <stddef.h>

#include "base/bytes.h"

#define QED_MAGIC 0x00444551u /* "QED\0" */

#define QED_CLUSTER_LEN_MIN (1u << 12)
#define QED_CLUSTER_LEN_MAX (1u << 26)
#define QED_CLUSTER_LEN_DEFAULT (1u << 16)
#define QED_TABLE_CLUSTERS_MAX 16u
#define QED_TABLE_CLUSTERS_DEFAULT 4u
#define QED_BACKING_NAME_MAX 1023u

/* docs/spec/qed.md, "Header". Read through qed_header_parse(), which checks every field. */
/*
 * Ours, an autoclear bit that the specification does not define: a journal of queued metadata (order/journal.h) belongs
 * to the image, and bits 48 to 62 say which one (ORDER_MARK_BITS). Every other program clears them before it writes, as it must clear
 * what it does not know.
 */
#define QED_AUTOCLEAR_JOURNAL (1ull << 63)

struct qed_header_disk {
	le32 magic;
	le32 cluster_len;      /*  4  power of two, 4 KiB .. 64 MiB */
	le32 table_clusters;   /*  8  of an L1 or L2 table: power of two, 1 .. 16 */
	le32 header_clusters;  /* 12  header and what belongs to it */
	le64 features;	       /* 16  unknown bit: do not open */
	le64 compat_features;  /* 24  unknown bits: ignore */
	le64 autoclear_features; /* 32  unknown bits: clear before writing */
	le64 l1_off;	       /* 40 */
	le64 disk_len;	       /* 48  bytes, as the guest sees it; whole sectors */
	le32 backing_name_off; /* 56  from the start of the file, within header_clusters */
	le32 backing_name_len; /* 60  not NUL-terminated */
};
static_assert(sizeof(struct qed_header_disk) == 64, "see the spec");
static_assert(offsetof(struct qed_header_disk, features) == 16, "see the spec");
static_assert(offsetof(struct qed_header_disk, disk_len) == 48, "see the spec");

#define QED_F_BACKING_FILE 0x01ull
#define QED_F_NEED_CHECK 0x02ull
#define QED_F_BACKING_FORMAT_NO_PROBE 0x04ull
#define QED_F_KNOWN (QED_F_BACKING_FILE | QED_F_NEED_CHECK | QED_F_BACKING_FORMAT_NO_PROBE)

/* An entry of an L2 table that is no place: nothing here, and zeroes. */
#define QED_ABSENT 0ull
#define QED_ZERO 1ull

#endif
