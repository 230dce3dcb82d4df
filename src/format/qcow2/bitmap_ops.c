/* SPDX-License-Identifier: MIT */
/*
 * qcow2/bitmap_ops.c - persistent dirty bitmaps: listed, read, made, removed, changed
 *
 * Every change writes what is new beside what is there, and becomes visible with the directory (bitmap_dir_commit()).
 *
 * Assumes: fibers of the home queue; nobody writes to the disk (NODE_BITMAPS), so that no bitmap has to note it.
 */
#include "format/qcow2/bitmap_dir.h"

#include <stdlib.h>
#include <string.h>

#include "base/iov.h"

#define GRANULARITY_DEFAULT_MIN KiB(4)
#define GRANULARITY_DEFAULT_MAX KiB(64)

/* ---- list ---- */

int qcow2_bitmap_list(struct fiber *f, struct node *n, struct bitmap_info **ret_list, uint32_t *ret_nr,
		      struct varve_error *err)
{
	struct qcow2 *q = node_state(n);
	struct qcow2_bitmap *list = NULL;
	struct bitmap_info *out;
	uint32_t nr;
	int ret;

	fiber_lock(f, &q->snapshot_mutex);
	nr = bitmaps_valid(&q->h) ? q->h.nr_bitmaps : 0;
	ret = nr ? bitmaps_read(f, q->file, &q->h, &list, err) : 0;
	fiber_unlock(&q->snapshot_mutex);
	if (ret < 0)
		return ret;
	out = calloc(nr + 1ull, sizeof(*out));
	for (uint32_t i = 0; out && i < nr; i++) {
		out[i] = (struct bitmap_info){ .name = list[i].name,
					       .granularity = 1ull << list[i].granularity_bits,
					       .enabled = list[i].flags & BITMAP_AUTO,
					       .inconsistent = list[i].flags & BITMAP_IN_USE };
		list[i].name = NULL;
	}
	bitmaps_free(list, nr);
	if (!out)
		return varve_error_errno(err, -ENOMEM, "bitmaps");
	*ret_list = out;
	*ret_nr = nr;
	return 0;
}

static int no_such(const char *name, struct varve_error *err)
{
	return varve_error_set(err, -ENOENT, "bitmap '%.200s': the image has none of that name", name);
}

/* ---- read ---- */

int qcow2_bitmap_open(struct fiber *f, struct node *n, const char *name, struct bitmap_bits **ret, struct varve_error *err)
{
	struct qcow2 *q = node_state(n);
	struct qcow2_bits *h = NULL;
	struct bitmap_dir d;
	uint32_t i;
	int r = bitmap_dir_load(f, q, &d, err);

	if (r < 0)
		return r;
	i = bitmap_dir_find(&d, name);
	if (i == UINT32_MAX)
		r = no_such(name, err);
	else if (d.list[i].flags & BITMAP_IN_USE)
		r = varve_error_set(err, -EINVAL, "bitmap '%.200s': is inconsistent (somebody wrote and did not note it): it can only be removed",
				    name);
	else
		r = bits_open(f, q, &d.list[i], &h, err);
	bitmap_dir_free(&d);
	if (r == 0)
		*ret = &h->bits;
	return r;
}

int qcow2_bitmap_read(struct fiber *f, struct node *n, struct bitmap_bits *bits, uint64_t off, void *buf, size_t len)
{
	(void)n;
	return bits_read(f, container_of(bits, struct qcow2_bits, bits), off, buf, len);
}

void qcow2_bitmap_close(struct node *n, struct bitmap_bits *bits)
{
	(void)n;
	if (bits)
		bits_close(container_of(bits, struct qcow2_bits, bits));
}

/* ---- change ---- */

struct change {
	struct qcow2 *q;
	const struct bitmap_change *c;
	struct bitmap_dir dir;
	uint32_t i; /* in dir */
	struct varve_error *err;
};

static int failed(struct change *ch, int ret)
{
	return varve_error_errno(ch->err, ret, "bitmap '%.200s'", ch->c->name);
}

static int add(struct fiber *f, struct change *ch)
{
	const struct bitmap_change *c = ch->c;
	uint64_t granularity = c->granularity ? c->granularity :
						MIN(MAX(ch->q->cluster_len, GRANULARITY_DEFAULT_MIN), GRANULARITY_DEFAULT_MAX);
	struct qcow2_bitmap b = { .name = (char *)(uintptr_t)c->name, .type = 1, .flags = c->disabled ? 0 : BITMAP_AUTO };
	int ret;

	if (ch->i != UINT32_MAX)
		return varve_error_set(ch->err, -EEXIST, "bitmap '%.200s': the image has it already", c->name);
	if (!*c->name || strlen(c->name) > BITMAP_NAME_MAX)
		return varve_error_set(ch->err, -EINVAL, "a bitmap's name has 1 to %d bytes, not %zu", BITMAP_NAME_MAX, strlen(c->name));
	if (granularity < BITMAP_GRANULARITY_MIN || granularity > BITMAP_GRANULARITY_MAX || !is_pow2(granularity))
		return varve_error_set(ch->err, -EINVAL, "granularity %llu: must be a power of two, 512 to 2G",
				       (unsigned long long)granularity);
	if (ch->dir.nr == QCOW2_BITMAPS_MAX)
		return varve_error_set(ch->err, -EFBIG, "the image has %u bitmaps: no more are allowed", ch->dir.nr);
	if (!node_len(ch->q->node))
		return varve_error_set(ch->err, -EINVAL, "a disk of 0 bytes has no bitmaps");
	b.granularity_bits = (uint8_t)log2_u64(granularity);
	ret = bits_new_entries(ch->q, node_len(ch->q->node), b.granularity_bits, &b.table_entries, ch->err);
	if (ret < 0)
		return ret;
	ret = bitmap_dir_append(&ch->dir, &b);
	if (ret < 0)
		return failed(ch, ret);
	ret = bitmap_dir_fits(f, ch->q, &ch->dir, ch->err);
	if (ret < 0)
		return ret;
	ret = bits_put_table(f, ch->q, NULL, b.table_entries, &b.table_off);
	if (ret < 0)
		return failed(ch, ret);
	bitmap_dir_set(&ch->dir, ch->dir.nr - 1, b.table_off, b.flags);
	return bitmap_dir_commit(f, ch->q, &ch->dir, ch->err);
}

static int remove_it(struct fiber *f, struct change *ch)
{
	struct qcow2_bitmap old = ch->dir.list[ch->i];
	struct qcow2_bits *h = NULL;
	struct varve_error why;
	bool known = bits_open(f, ch->q, &old, &h, &why) == 0; /* if not: what it has is leaked, and check finds it */
	int ret;

	bitmap_dir_remove(&ch->dir, ch->i);
	ret = bitmap_dir_commit(f, ch->q, &ch->dir, ch->err);
	if (ret == 0 && known)
		bits_free_space(ch->q, &old, h, NULL);
	bits_close(h);
	return ret;
}

int qcow2_remove_bitmaps(struct fiber *f, struct qcow2 *q, struct varve_error *err)
{
	static const struct bitmap_change none = { .action = BITMAP_REMOVE, .name = "" };
	struct change ch = { .q = q, .c = &none, .err = err };
	int ret;

	fiber_lock(f, &q->snapshot_mutex);
	ret = bitmap_dir_load(f, q, &ch.dir, err);
	if (ret < 0)
		ret = qcow2_give_up_bitmaps(f, q, err); /* nobody can read them */
	while (ret == 0 && ch.dir.nr)
		ret = remove_it(f, &ch);
	bitmap_dir_free(&ch.dir);
	fiber_unlock(&q->snapshot_mutex);
	return ret;
}

static int clear(struct fiber *f, struct change *ch)
{
	struct qcow2_bitmap old = ch->dir.list[ch->i];
	struct qcow2_bits *h;
	uint64_t off;
	int ret = bits_open(f, ch->q, &old, &h, ch->err);

	if (ret < 0)
		return ret;
	ret = bits_put_table(f, ch->q, NULL, old.table_entries, &off);
	if (ret < 0) {
		failed(ch, ret);
	} else {
		bitmap_dir_set(&ch->dir, ch->i, off, old.flags);
		ret = bitmap_dir_commit(f, ch->q, &ch->dir, ch->err);
	}
	if (ret == 0)
		bits_free_space(ch->q, &old, h, NULL);
	bits_close(h);
	return ret;
}

static int set_enabled(struct fiber *f, struct change *ch, bool on)
{
	const struct qcow2_bitmap *b = &ch->dir.list[ch->i];
	uint32_t flags = on ? b->flags | BITMAP_AUTO : b->flags & ~BITMAP_AUTO;

	if (flags == b->flags)
		return 0;
	bitmap_dir_set(&ch->dir, ch->i, b->table_off, flags);
	return bitmap_dir_commit(f, ch->q, &ch->dir, ch->err);
}

/* ---- merge ---- */

struct merge {
	struct change *ch;
	struct qcow2_bits *old;
	struct bitmap_bits *source;
	uint64_t *entries;   /* of the new table */
	uint8_t *ours, *theirs; /* a cluster each */
};

/* The cluster of bits gets a place of its own, or none if it is empty. */
static int put_bits(struct fiber *f, struct merge *m, uint32_t i)
{
	struct qcow2 *q = m->ch->q;
	uint64_t off;
	int ret;

	if (buf_is_zero(m->ours, q->cluster_len)) {
		m->entries[i] = 0;
		return 0;
	}
	ret = bits_alloc(f, q, 1, &off);
	if (ret < 0)
		return ret;
	m->entries[i] = off; /* from here on freed by free_new() */
	return order_put(f, q->order, off, m->ours, q->cluster_len, ORDER_NONE, NULL);
}

static int merge_cluster(struct fiber *f, struct merge *m, uint32_t i)
{
	struct qcow2 *q = m->ch->q;
	uint64_t off = (uint64_t)i << q->cluster_bits;
	const struct bitmap_change *c = m->ch->c;
	int ret = bits_read_as(f, c->source, m->source, m->old->bits.granularity, off, m->theirs, q->cluster_len);

	m->entries[i] = m->old->table[i];
	if (ret < 0 || buf_is_zero(m->theirs, q->cluster_len))
		return ret;
	ret = bits_read(f, m->old, off, m->ours, q->cluster_len);
	if (ret < 0)
		return ret;
	for (size_t k = 0; k < q->cluster_len; k++)
		m->ours[k] |= m->theirs[k];
	return put_bits(f, m, i);
}

static void free_new(struct merge *m, uint32_t nr)
{
	struct qcow2 *q = m->ch->q;

	for (uint32_t i = 0; i < nr; i++) {
		if (m->entries[i] && m->entries[i] != m->old->table[i])
			alloc_free_metadata(q, m->entries[i], 1, order_all(q->order));
	}
}

static int merge_bits(struct fiber *f, struct merge *m)
{
	struct change *ch = m->ch;
	struct qcow2 *q = ch->q;
	struct qcow2_bitmap old = ch->dir.list[ch->i];
	uint64_t off;
	int ret = 0;

	m->entries = calloc(MAX(m->old->nr, 1), sizeof(*m->entries));
	m->ours = malloc(q->cluster_len);
	m->theirs = malloc(q->cluster_len);
	if (!m->entries || !m->ours || !m->theirs)
		return failed(ch, -ENOMEM);
	for (uint32_t i = 0; ret == 0 && i < m->old->nr; i++)
		ret = merge_cluster(f, m, i);
	if (ret == 0)
		ret = bits_put_table(f, q, m->entries, m->old->nr, &off);
	if (ret < 0) {
		free_new(m, m->old->nr);
		return failed(ch, ret);
	}
	bitmap_dir_set(&ch->dir, ch->i, off, old.flags);
	ret = bitmap_dir_commit(f, q, &ch->dir, ch->err);
	if (ret == 0)
		bits_free_space(q, &old, m->old, m->entries);
	return ret;
}

static int merge(struct fiber *f, struct change *ch)
{
	const struct bitmap_change *c = ch->c;
	struct merge m = { .ch = ch };
	int ret = bits_open(f, ch->q, &ch->dir.list[ch->i], &m.old, ch->err);

	if (ret == 0)
		ret = c->source->drv->bitmap_open(f, c->source, c->source_name, &m.source, ch->err);
	if (ret == 0 && m.source->disk_len != m.old->bits.disk_len)
		ret = varve_error_set(ch->err, -EINVAL, "bitmap '%.200s' is of a disk of %llu bytes, '%.200s' of one of %llu", c->name,
				      (unsigned long long)m.old->bits.disk_len, c->source_name,
				      (unsigned long long)m.source->disk_len);
	if (ret == 0)
		ret = merge_bits(f, &m);
	if (m.source)
		c->source->drv->bitmap_close(c->source, m.source);
	bits_close(m.old);
	free(m.entries);
	free(m.ours);
	free(m.theirs);
	return ret;
}

static int apply(struct fiber *f, struct change *ch)
{
	enum bitmap_action action = ch->c->action;
	int ret;

	if (action == BITMAP_ADD)
		return add(f, ch);
	if (ch->i == UINT32_MAX)
		return no_such(ch->c->name, ch->err);
	if (action == BITMAP_REMOVE)
		return remove_it(f, ch);
	if (ch->dir.list[ch->i].flags & BITMAP_IN_USE)
		return varve_error_set(ch->err, -EINVAL,
				       "bitmap '%.200s': is inconsistent (somebody wrote and did not note it): it can only be removed",
				       ch->c->name);
	ret = bitmap_dir_fits(f, ch->q, &ch->dir, ch->err);
	if (ret < 0)
		return ret;
	if (action == BITMAP_CLEAR)
		return clear(f, ch);
	return action == BITMAP_MERGE ? merge(f, ch) : set_enabled(f, ch, action == BITMAP_ENABLE);
}

int qcow2_bitmap_change(struct fiber *f, struct node *n, const struct bitmap_change *c, struct varve_error *err)
{
	struct qcow2 *q = node_state(n);
	struct change ch = { .q = q, .c = c, .err = err };
	int ret;

	if (!q->writable || !(n->flags & NODE_BITMAPS))
		return varve_error_set(err, -EACCES, "not opened for a change of its bitmaps");
	fiber_lock(f, &q->snapshot_mutex);
	ret = qcow2_whole(q, err);
	if (ret == 0)
		ret = bitmap_dir_load(f, q, &ch.dir, err);
	if (ret == 0) {
		ch.i = bitmap_dir_find(&ch.dir, c->name);
		ret = apply(f, &ch);
		bitmap_dir_free(&ch.dir);
	}
	fiber_unlock(&q->snapshot_mutex);
	return ret;
}
