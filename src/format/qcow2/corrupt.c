/* SPDX-License-Identifier: MIT */
/*
 * qcow2/corrupt.c - an image that cannot be true, found out while it is in use
 *
 *     met ──▶ told, the request fails                          what one entry or one count says: the rest goes on
 *      └────▶ marked corrupt, told; from now on all fails      what shows that somebody else writes here, or that writing goes wrong
 *
 * docs/guide/damage.md has the table of what is which.
 *
 * Owns:    the step from an image in use to one that is marked (q->unmapped), and the lines about damage.
 * Assumes: fibers of the home queue, but for qcow2_damaged(), which waits for nothing.
 * Never:   marks what is open read-only, or of version 2, which has no place for the mark.
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "format/cache.h"
#include "format/qcow2/pack.h"
#include "format/qcow2/qcow2.h"
#include "format/qcow2/subcluster.h"

#define TOLD_MAX 16 /* lines about damage for one open image */
#define TEXT_MAX 256

static int tell(struct qcow2 *q, const char *text)
{
	if (q->nr_told++ < TOLD_MAX)
		log_error("%s: the image is damaged: %s%s", node_name(q->node), text,
			  q->nr_told == TOLD_MAX ? " (there may be more; no further lines about this image)" : "");
	return -EIO;
}

int qcow2_damaged(struct qcow2 *q, const char *fmt, ...)
{
	char text[TEXT_MAX];
	va_list args;

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	return tell(q, text);
}

/* ---- the mark ---- */

/*
 * The mark needs nothing durable before it: whatever part of the queue is on disk, the image is as damaged as it is. It goes into
 * the section that is written first, so that nothing but the rest of that section can be on disk without it. Power lost
 * before: the image is as after any cut, without the mark; the next writer that meets the damage marks it.
 *
 * What is queued is written out too. It was made before the damage was met, at places that meta.c knows to be ours, and it is
 * what makes acknowledged writes readable. Dropped, they would be lost for certain, and nothing would be won: where an
 * allocation went wrong before anybody noticed, the data has been written already. Space that queued counts give back is
 * given to nobody, as long as the mark stands.
 */
static int write_mark(struct fiber *f, struct qcow2 *q)
{
	be64 disk;
	int err;

	q->h.incompatible |= QCOW2_INCOMPAT_CORRUPT;
	disk = be64_put(q->h.incompatible);
	err = order_put(f, q->order, offsetof(struct qcow2_header_disk, incompatible), &disk, sizeof(disk), ORDER_NONE, NULL);
	return err < 0 ? err : order_flush(f, q->order);
}

int qcow2_corrupt(struct fiber *f, struct qcow2 *q, const char *fmt, ...)
{
	char text[TEXT_MAX];
	va_list args;
	int err;

	if (q->unmapped)
		return -EIO;
	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	if (!q->writable || !q->order)
		return tell(q, text);
	/* From here on no other request is looked at, whatever we wait for. */
	atomic_store_explicit(&q->unmapped, -EIO, memory_order_relaxed);
	if (q->h.version < 3) {
		log_error("%s: the image is damaged: %s; nothing of it is read or written until it is opened again (version 2, compat=0.10, "
			  "has no place for a mark): repair it (qemu-img check -r all)", node_name(q->node), text);
		return -EIO;
	}
	err = write_mark(f, q);
	if (err < 0)
		log_error("%s: the image is damaged: %s; nothing of it is read or written any more, but it could not be marked corrupt "
			  "(%s): repair it (qemu-img check -r all) before it is used again", node_name(q->node), text, strerror(-err));
	else
		log_error("%s: the image is damaged: %s; it has been marked corrupt, and nothing of it is read or written any more: "
			  "repair it (qemu-img check -r all)", node_name(q->node), text);
	return -EIO;
}

int qcow2_whole(const struct qcow2 *q, struct varve_error *err)
{
	if (!(q->writable && q->unmapped))
		return 0;
	return varve_error_set(err, -EIO, "the image has been found damaged while in use, and nothing of it is changed any more; repair it "
					  "(qemu-img check -r all)");
}

/* ---- entries that requests meet ---- */

struct fault {
	const char *what;	/* NULL: none */
	bool on_read, on_write; /* whoever meets it so marks the image */
};

static bool holds_any(const struct qcow2 *q, uint64_t host_off, uint64_t len)
{
	uint64_t first = host_off >> q->cluster_bits, end = (host_off + len - 1) >> q->cluster_bits;

	for (uint64_t cluster = first; q->meta && cluster <= end; cluster++) {
		if (meta_holds(q, cluster))
			return true;
	}
	return false;
}

bool packed_in_metadata(const struct qcow2 *q, uint64_t entry)
{
	struct packed_place p = packed_place_of(q->cluster_bits, entry);

	return holds_any(q, p.off, p.len);
}

static struct fault fault_of(const struct qcow2 *q, const struct wide_entry *e, uint64_t guest_off)
{
	const uint64_t host_off = e->place & QCOW2_OFF_MASK;
	const struct fault both = { .on_read = true, .on_write = true };
	struct fault ret = { 0 };

	if (q->external && (ret.what = data_entry_fault(e->place, guest_off))) {
		ret.on_read = ret.on_write = !(e->place & QCOW2_COMPRESSED);
	} else if (e->place & QCOW2_COMPRESSED) {
		if (packed_in_metadata(q, e->place))
			ret = (struct fault){ .what = "leads to compressed bytes where metadata is", .on_write = true };
	} else if ((e->place & QCOW2_L2_RESERVED) || (is_wide(q) && (e->place & QCOW2_ZERO))) {
		ret.what = "has reserved bits set";
	} else if (!is_wide(q) && (e->place & QCOW2_ZERO) && q->h.version < 3) {
		ret = both;
		ret.what = "is a cluster of zeroes, which version 2 does not have";
	} else if (!is_aligned(host_off, q->cluster_len)) {
		ret = both;
		ret.what = "leads to where no cluster begins";
	} else if (is_wide(q) && (e->data & e->zero)) {
		ret = both;
		ret.what = "says of a subcluster both that it has data and that it reads as zeroes";
	} else if (is_wide(q) && e->data && !host_off && !at_zero(q, e->place)) {
		ret = both;
		ret.what = "says that there is data, and not where";
	} else if (!q->external && host_off && q->meta && holds_any(q, host_off, 1)) {
		ret = (struct fault){ .what = "leads to where metadata is", .on_write = true };
	} else if (!q->external && host_off >= (q->writable ? q->end_cluster << q->cluster_bits : node_len(q->leaf))) {
		ret.what = "leads behind the end of the image";
	}
	return ret;
}

/* As it is on disk: in memory, guard_entries() has put something else into its place. */
static int read_entry(struct fiber *f, struct qcow2 *q, uint64_t guest_off, struct wide_entry *ret)
{
	uint64_t index = guest_off >> q->cluster_bits, at;
	be64 words[2] = { 0 };
	uint64_t l1 = q->l1[index >> q->l2_bits];
	int err;

	*ret = (struct wide_entry){ 0 };
	if (!(l1 & QCOW2_OFF_MASK))
		return 0;
	at = (l1 & QCOW2_OFF_MASK) + (index & (q->l2_entries - 1)) * q->l2_entry_len;
	err = q->order ? order_read(f, q->order, at, words, q->l2_entry_len) : node_read(f, q->file, at, words, q->l2_entry_len);
	if (err == 0)
		*ret = wide_of(be64_get(words[0]), is_wide(q) ? be64_get(words[1]) : 0);
	return err;
}

int qcow2_met(struct fiber *f, struct qcow2 *q, uint64_t off, uint64_t len, bool write)
{
	for (uint64_t at = align_down(off, q->cluster_len); !q->unmapped && at < off + len; at += q->cluster_len) {
		struct wide_entry e;
		struct fault fault;
		int err;

		if (at >> q->cluster_bits >> q->l2_bits >= q->h.l1_entries)
			break;
		err = read_entry(f, q, at, &e);
		if (err < 0)
			return err;
		fault = fault_of(q, &e, at);
		if (!fault.what)
			continue;
		if (write ? fault.on_write : fault.on_read)
			return qcow2_corrupt(f, q, "guest offset 0x%llx: L2 entry 0x%llx %s", (unsigned long long)at,
					     (unsigned long long)e.place, fault.what);
		return qcow2_damaged(q, "guest offset 0x%llx: L2 entry 0x%llx %s; it cannot be read or written", (unsigned long long)at,
				     (unsigned long long)e.place, fault.what);
	}
	return -EIO;
}

int qcow2_damage(struct fiber *f, struct node *n, uint64_t off, uint64_t len, bool write)
{
	return qcow2_met(f, node_state(n), off, len, write);
}
