/* SPDX-License-Identifier: MIT */
/*
 * qcow2/open.c - an image from open to close, and the driver's table of calls
 *
 * Assumes: fibers of the home queue. With NODE_NO_IO (info) and NODE_CHECK (check) only the header is read: those look at
 *          the rest themselves and expect damage.
 */
#include "format/qcow2/qcow2.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "format/qcow2/driver.h"

static int qcow2_probe(const uint8_t *buf, size_t len)
{
	const struct qcow2_header_disk *d = (const void *)buf;

	if (len < QCOW2_V2_HEADER_LEN || be32_get(d->magic) != QCOW2_MAGIC)
		return 0;
	return be32_get(d->version) >= 2 ? 100 : 0;
}

/* The first cluster, or what the file has of it: at first as much as the smallest, then as its header says. */
static int header_read(struct fiber *f, struct node *n, struct qcow2_header *h, struct varve_error *err)
{
	uint64_t file_len = node_len(n->file);
	uint64_t len = MIN(file_len, 1ull << QCOW2_CLUSTER_BITS_MIN), want;
	uint8_t *buf = calloc(1, 1 << QCOW2_CLUSTER_BITS_MAX);
	uint32_t bits;
	int r;

	if (!buf)
		return varve_error_errno(err, -ENOMEM, "header");
	r = node_read(f, n->file, 0, buf, len);
	if (r < 0) {
		varve_error_errno(err, r, "the header cannot be read");
	} else {
		bits = be32_get(((struct qcow2_header_disk *)buf)->cluster_bits);
		if (len >= QCOW2_V2_HEADER_LEN && bits > QCOW2_CLUSTER_BITS_MIN && bits <= QCOW2_CLUSTER_BITS_MAX) {
			want = MIN(file_len, 1ull << bits);
			r = node_read(f, n->file, len, buf + len, want - len);
			len = want;
		}
		r = r < 0 ? varve_error_errno(err, r, "the header cannot be read") :
			    qcow2_header_parse(buf, len, file_len, h, err);
	}
	free(buf);
	return r;
}

static int l1_read(struct fiber *f, struct qcow2 *q, struct varve_error *err)
{
	size_t len = q->h.l1_entries * sizeof(uint64_t);
	int r;

	q->l1 = malloc(len ? len : 1);
	if (!q->l1)
		return varve_error_errno(err, -ENOMEM, "L1 table");
	r = node_read(f, q->file, q->h.l1_off, q->l1, len);
	if (r < 0)
		return varve_error_errno(err, r, "the L1 table at offset %llu cannot be read",
					 (unsigned long long)q->h.l1_off);
	for (uint32_t i = 0; i < q->h.l1_entries; i++)
		q->l1[i] = be64_get(((be64 *)q->l1)[i]);
	return 0;
}

/*
 * Autoclear bits that we do not keep true (unknown ones, and bitmaps, which we do not update) are cleared before anything
 * else is written, and durably: a program that knows them must not trust what they stand for any more. A cut before the
 * sync leaves the image as it was.
 */
static int autoclear(struct fiber *f, struct qcow2 *q, struct varve_error *err)
{
	be64 none = be64_put(0);
	order_mark mark;
	int r;

	if (q->h.version < 3 || !q->h.autoclear)
		return 0;
	r = order_put(f, q->order, offsetof(struct qcow2_header_disk, autoclear), &none, sizeof(none), ORDER_NONE, &mark);
	if (r == 0)
		r = order_wait(f, q->order, mark);
	if (r < 0)
		return varve_error_errno(err, r, "the autoclear bits in the header cannot be cleared");
	q->h.autoclear = 0;
	return 0;
}

static int names_set(struct node *n, const struct qcow2_header *h, struct varve_error *err)
{
	if (!*h->backing_name)
		return 0;
	n->backing_name = strdup(h->backing_name);
	n->backing_format = *h->backing_format ? strdup(h->backing_format) : NULL;
	if (!n->backing_name || (*h->backing_format && !n->backing_format))
		return varve_error_errno(err, -ENOMEM, "backing file name");
	return 0;
}

static void qcow2_close(struct fiber *f, struct node *n)
{
	struct qcow2 *q = node_state(n);

	l2_close(q);
	alloc_close(q);
	refcount_close(q);
	if (q->order)
		order_free(q->order);
	free(q->l1);
}

static int tables_open(struct fiber *f, struct qcow2 *q, struct varve_error *err)
{
	int r = l1_read(f, q, err);

	if (r < 0)
		return r;
	r = l2_open(q);
	if (r == 0)
		r = order_new(&q->order, q->file, 0);
	if (r < 0)
		return varve_error_errno(err, r, "tables");
	if (!q->writable)
		return 0;
	q->end_cluster = div_up(node_len(q->file), q->cluster_len);
	q->zero_from = node_len(q->file);
	r = alloc_open(q);
	if (r < 0)
		return varve_error_errno(err, r, "allocator");
	r = refcount_open(f, q, err);
	return r < 0 ? r : autoclear(f, q, err);
}

static int qcow2_open(struct fiber *f, struct node *n, struct opts *o, struct varve_error *err)
{
	struct qcow2 *q = node_state(n);
	int r;

	q->node = n;
	q->file = n->file;
	q->l2_cache_len = MiB(32);
	r = o ? opts_get_size(o, "l2-cache-size", &q->l2_cache_len, err) : 0;
	if (r == 0 && (q->l2_cache_len < KiB(64) || q->l2_cache_len > GiB(4)))
		r = varve_error_set(err, -EINVAL, "l2-cache-size must be from 64 KiB to 4 GiB");
	if (r == 0)
		r = header_read(f, n, &q->h, err);
	if (r < 0)
		return r;
	q->cluster_bits = q->h.cluster_bits;
	q->cluster_len = 1u << q->cluster_bits;
	q->l2_entry_len = q->h.incompatible & QCOW2_INCOMPAT_EXTENDED_L2 ? 16 : 8;
	q->l2_entries = q->cluster_len / q->l2_entry_len;
	q->writable = (n->flags & NODE_WRITABLE) && !(n->flags & NODE_CHECK);
	n->cluster_len = q->cluster_len;
	atomic_store(&n->len, q->h.disk_len);
	/* What check does not understand it cannot judge: features are refused there too, damage is not. */
	if (!(n->flags & NODE_NO_IO) && (!(n->flags & NODE_CHECK) || q->h.incompatible & ~QCOW2_INCOMPAT_KNOWN))
		r = qcow2_header_usable(&q->h, q->writable, err);
	if (r == 0)
		r = names_set(n, &q->h, err);
	if (r == 0 && !(n->flags & (NODE_NO_IO | NODE_CHECK)))
		r = tables_open(f, q, err);
	if (r < 0)
		qcow2_close(f, n);
	return r;
}

/*
 * The guest's flush. Frees whose entry is durable by now are done afterwards: their refcounts go with the next flush; a cut
 * before that leaks their clusters.
 */
static int qcow2_sync(struct fiber *f, struct node *n)
{
	struct qcow2 *q = node_state(n);
	int r = order_flush(f, q->order);

	if (r == 0)
		alloc_settle(f, q);
	return r;
}

static bool qcow2_clean(struct node *n)
{
	struct qcow2 *q = node_state(n);

	return order_clean(q->order);
}

static void qcow2_stats(struct node *n, void *json_stats)
{
	struct qcow2 *q = node_state(n);
	struct order_stats s;

	if (!q->order)
		return;
	order_stats(q->order, &s);
	json_object_set_new(json_stats, "order",
			    json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "puts", (json_int_t)s.puts,
				      "merges", (json_int_t)s.merges, "barriers-asked", (json_int_t)s.barriers_asked,
				      "sections", (json_int_t)s.sections, "syncs", (json_int_t)s.syncs, "writes",
				      (json_int_t)s.writes, "bytes", (json_int_t)s.bytes, "errors", (json_int_t)s.errors,
				      "queued-bytes", (json_int_t)s.queued_bytes, "queued-sections",
				      (json_int_t)s.queued_sections));
}

const struct driver driver_qcow2 = {
	.name = "qcow2",
	.kind = DRIVER_FORMAT,
	.state_len = sizeof(struct qcow2),
	.probe = qcow2_probe,
	.open = qcow2_open,
	.close = qcow2_close,
	.truncate = qcow2_truncate,
	.map = l2_map,
	.load = l2_load,
	.alloc = l2_alloc,
	.link = l2_link,
	.unalloc = l2_unalloc,
	.unlink = l2_unlink,
	.sync = qcow2_sync,
	.clean = qcow2_clean,
	.create = qcow2_create,
	.check = qcow2_check,
	.info = qcow2_info,
	.stats = qcow2_stats,
};
