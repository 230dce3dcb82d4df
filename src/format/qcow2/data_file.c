/* SPDX-License-Identifier: MIT */
/*
 * qcow2/data_file.c - images whose data is in another file (docs/spec/qcow2.md, "External data file")
 *
 *     image:      header | L1, L2 | refcounts, of those only
 *     data file:  the cluster that the guest sees at an offset is at the same offset
 *
 * So nothing is allocated for data: an entry says whether a cluster is there, not where. Space of the data file is never given to
 * another cluster, and what an entry no longer leads to needs no order with anything that comes after it.
 *
 * Owns:    what entries of such an image may say.
 * Assumes: fibers of the home queue.
 * Never:   opens a data file for info or check, or believes an entry that leads elsewhere than its own place.
 */
#include "format/qcow2/qcow2.h"

#include "base/log.h"
#include "block/data_file.h"

/* ---- open ---- */

/*
 * Other programs read zeroes behind the end of a data file, so we do; but it may have been cut, and then data has become zeroes:
 * that is not passed over in silence.
 */
static void tell_short(const struct qcow2 *q)
{
	uint64_t len = node_len(q->data_leaf);

	if (len < q->h.disk_len)
		log_warning("%s: the data file %s has %llu bytes, the disk %llu: it may have been cut off; what lies behind its end "
			    "%s",
			    node_name(q->node), node_name(q->data_leaf), (unsigned long long)len, (unsigned long long)q->h.disk_len,
			    q->data_leaf->fixed_len ? "cannot be read" : "reads as zeroes");
}

int data_open(struct fiber *f, struct qcow2 *q, struct opts *o, struct varve_error *err)
{
	int ret;

	q->data = q->file;
	q->data_leaf = q->leaf;
	q->external = q->h.incompatible & QCOW2_INCOMPAT_DATA_FILE;
	q->raw_data = q->external && (q->h.autoclear & QCOW2_AUTOCLEAR_RAW_DATA);
	if (!q->external)
		return 0;
	if (q->unmapped) {
		if (o)
			node_skip_data(o);
		return 0;
	}
	ret = node_open_data(f, q->node, q->h.data_file, o, err);
	if (ret < 0)
		return ret;
	q->data = q->node->data;
	q->data_leaf = node_leaf(q->data);
	tell_short(q);
	return 0;
}

/* ---- entries ---- */

/* NULL: there is nothing wrong. */
static const char *what_is_wrong(uint64_t entry, uint64_t guest_off)
{
	if (entry & QCOW2_COMPRESSED)
		return "is compressed, in an image with an external data file";
	if (((entry & QCOW2_OFF_MASK) || (entry & QCOW2_COPIED)) && (entry & QCOW2_OFF_MASK) != guest_off)
		return "leads to another place of the external data file";
	return NULL;
}

void data_guard_entries(struct qcow2 *q, uint32_t table, uint32_t nr, be64 *words)
{
	unsigned per_piece = 1u << q->l2_piece_bits, step = q->l2_entry_len / 8;

	for (unsigned i = 0; i < per_piece; i++) {
		uint64_t guest_off = (((uint64_t)table << q->l2_bits) + (uint64_t)nr * per_piece + i) << q->cluster_bits;
		const char *wrong = what_is_wrong(be64_get(words[i * step]), guest_off);

		if (!wrong)
			continue;
		(void)qcow2_damaged(q, "guest offset 0x%llx %s (entry 0x%llx); it cannot be read or written",
				    (unsigned long long)guest_off, wrong, (unsigned long long)be64_get(words[i * step]));
		words[i * step] = be64_put(QCOW2_L2_RESERVED);
	}
}
