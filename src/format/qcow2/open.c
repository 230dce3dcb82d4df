/* SPDX-License-Identifier: MIT */
/*
 * qcow2/open.c - an image from open to close, and the driver's table of calls
 *
 * Assumes: fibers of the home queue. With NODE_NO_IO (info) and NODE_CHECK (check) only the header is read:
 *          those look at the rest themselves, and expect damage.
 * Never:   changes an image that it then refuses. With NODE_BITMAPS, the marks in the header that every change clears stay until
 *          the first one: a command that is refused for what it finds in the image leaves it, and a dead server's journal, as it was. (With the
 *          dirty bit, opening is a change: counts are made anew.)
 */
#include "format/cache.h"
#include "format/qcow2/qcow2.h"
#include "format/qcow2/sites.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "format/qcow2/ahead.h"
#include "format/qcow2/bitmap_note.h"
#include "format/qcow2/driver.h"
#include "format/qcow2/emit.h"
#include "format/qcow2/measure.h"
#include "format/qcow2/lazy.h"
#include "format/qcow2/pack.h"
#include "format/qcow2/refcount.h"
#include "format/qcow2/settings.h"
#include "format/qcow2/snapshot.h"
#include "format/qcow2/stock.h"

static int qcow2_probe(const uint8_t *buf, size_t len)
{
	struct qcow2_header_disk d;

	if (len < QCOW2_V2_HEADER_LEN)
		return 0;
	memcpy(&d, buf, QCOW2_V2_HEADER_LEN);
	return be32_get(d.magic) == QCOW2_MAGIC && be32_get(d.version) >= 2 ? 100 : 0;
}

/* ---- reading ---- */

/* The first cluster, or what the file has of it: the smallest possible first, then as much as that says. */
static int read_header(struct fiber *f, struct qcow2 *q, struct varve_error *err)
{
	uint64_t file_len = node_len(q->leaf), len = MIN(file_len, 1ull << QCOW2_CLUSTER_BITS_MIN), rest = 0;
	uint8_t *buf = calloc(1, 1u << QCOW2_CLUSTER_BITS_MAX);
	struct qcow2_header_disk d;
	int ret;

	if (!buf)
		return varve_error_set(err, -ENOMEM, "header: out of memory");
	ret = node_read(f, q->file, 0, buf, len);
	memcpy(&d, buf, sizeof(d));
	if (ret == 0 && be32_get(d.magic) == QCOW2_MAGIC &&
	    be32_get(d.cluster_bits) > QCOW2_CLUSTER_BITS_MIN &&
	    be32_get(d.cluster_bits) <= QCOW2_CLUSTER_BITS_MAX)
		rest = MIN(file_len, 1ull << be32_get(d.cluster_bits)) - len;
	if (rest)
		ret = node_read(f, q->file, len, buf + len, rest);
	ret = ret < 0 ? varve_error_errno(err, ret, "cannot read the header")
		      : qcow2_header_parse(buf, len + rest, file_len, &q->h, err);
	free(buf);
	return ret;
}

static int read_l1(struct fiber *f, struct qcow2 *q, struct varve_error *err)
{
	size_t len = q->h.l1_entries * sizeof(q->l1[0]);
	int ret;

	q->l1 = malloc(MAX(len, sizeof(q->l1[0])));
	if (!q->l1)
		return varve_error_set(err, -ENOMEM, "L1 table of %zu bytes: out of memory", len);
	ret = node_read(f, q->file, q->h.l1_off, q->l1, len);
	if (ret < 0)
		return varve_error_errno(err, ret, "cannot read the L1 table at host offset 0x%llx",
					 (unsigned long long)q->h.l1_off);
	for (uint32_t i = 0; i < q->h.l1_entries; i++)
		q->l1[i] = be64_get(((be64 *)q->l1)[i]);
	return 0;
}

/* ---- open ---- */

/*
 * Autoclear bits stand for data that only holds as long as every writer keeps it up to date: those that we do
 * not know, and bitmaps in an image that gets another length. Durable first: the cleared bits. Only then: any
 * other write. The other way round, power lost in between would leave a changed image whose bitmaps say "not
 * changed".
 */
static int set_autoclear(struct fiber *f, struct qcow2 *q, uint64_t bits, struct varve_error *err)
{
	be64 disk = be64_put(bits);
	order_mark mark;
	int ret;

	if (q->h.version < 3 || q->h.autoclear == bits)
		return 0;
	ret = order_put(f, q->order, offsetof(struct qcow2_header_disk, autoclear), &disk, sizeof(disk),
			ORDER_NONE, &mark);
	if (ret == 0)
		ret = order_wait(f, q->order, mark);
	if (ret < 0)
		return varve_error_errno(err, ret, "cannot change the autoclear feature bits in the header");
	q->h.autoclear = bits;
	if (!(bits & QCOW2_AUTOCLEAR_BITMAPS))
		q->h.nr_bitmaps = 0;
	return 0;
}

int qcow2_give_up_bitmaps(struct fiber *f, struct qcow2 *q, struct varve_error *err)
{
	int ret;

	fiber_lock(f, &q->header_mutex);
	ret = set_autoclear(f, q, q->h.autoclear & ~QCOW2_AUTOCLEAR_BITMAPS, err);
	fiber_unlock(&q->header_mutex);
	return ret;
}

/* The bit of bitmaps that stays: they are all that will be changed, or they say themselves which of them are not to be trusted. */
static int keep_bitmaps(struct fiber *f, struct qcow2 *q, uint64_t *ret_bits, struct varve_error *err)
{
	bool valid = bitmaps_valid(&q->h);
	uint64_t first = q->h.bitmap_directory_off >> q->cluster_bits, nr = div_up(q->h.bitmap_directory_len, q->cluster_len);
	int ret = q->node->flags & NODE_BITMAPS ? !valid : bitmap_dir_mark_in_use(f, q, err);

	if (ret == 0)
		*ret_bits = QCOW2_AUTOCLEAR_BITMAPS;
	/* Given up, it is no more than what its clusters are counted as. */
	for (uint64_t i = 0; ret > 0 && valid && i < nr; i++)
		meta_remove(q, first + i);
	return MIN(ret, 0);
}

/*
 * Durable first: the mark that a journal belongs to the image. Only then: records in it. The other way round, records
 * would be found in an image without the mark, as if somebody else had changed it since. A dead process's journal goes by its mark, which
 * is replaced here: order_recover() has made durable what was in it.
 */
static int begin_changes(struct fiber *f, struct qcow2 *q, const char *state_dir, struct varve_error *err)
{
	uint64_t kept = 0, journal_mark;
	int ret;

	if (!state_dir && (q->h.autoclear & QCOW2_AUTOCLEAR_JOURNAL))
		order_tell_lost(q->node, NULL, true);
	ret = keep_bitmaps(f, q, &kept, err);

	if (ret < 0)
		return ret;
	if (q->raw_data) /* every write of ours keeps it true */
		kept |= QCOW2_AUTOCLEAR_RAW_DATA;
	if (!state_dir)
		return set_autoclear(f, q, kept, err);
	ret = order_new_mark(q->h.autoclear, &journal_mark, err);
	if (ret == 0)
		ret = set_autoclear(f, q, kept | journal_mark, err);
	if (ret == 0)
		ret = order_keep(f, q->order, state_dir, journal_mark, err);
	if (ret == 0) {
		stock_note(q);
		alloc_adopt(f, q);
	}
	return ret;
}

int qcow2_begin_changes(struct fiber *f, struct qcow2 *q, struct varve_error *err)
{
	int ret = 0;

	fiber_lock(f, &q->header_mutex); /* who comes second waits until the first one's are durable */
	if (!q->begun)
		ret = begin_changes(f, q, NULL, err);
	q->begun = ret == 0;
	fiber_unlock(&q->header_mutex);
	return ret;
}

/* The queue is empty, so the journal goes; then the mark, which alone says nothing. */
static void end_journal(struct fiber *f, struct qcow2 *q)
{
	order_keep_end(f, q->order);
	if (q->begun && q->h.autoclear & QCOW2_AUTOCLEAR_JOURNAL)
		(void)set_autoclear(f, q, q->h.autoclear & ~ORDER_MARK_BITS, NULL);
}

/* What knows of counts: q->order is there. */
static int counts_open(struct fiber *f, struct qcow2 *q, bool adopt, bool map_ahead, struct varve_error *err)
{
	int ret = refcount_open(f, q, q->refcount_cache_len, err);

	if (ret == 0)
		cache_cleaner_watch(q->cleaner, 1, q->refcounts->cache);

	if (ret == 0)
		ret = alloc_open(f, q, err);
	if (ret == 0 && adopt)
		stock_adopt(f, q);
	if (ret == 0)
		ret = meta_open(f, q, err);
	if (ret == 0 && map_ahead && ahead_open(q) < 0)
		ret = varve_error_set(err, -ENOMEM, "mappings ahead: out of memory");
	return ret;
}

static void counts_close(struct qcow2 *q)
{
	ahead_close(q);
	meta_close(q);
	alloc_close(q);
	lazy_close(q);
	cache_cleaner_watch(q->cleaner, 1, NULL);
	refcount_close(q);
}

/* The file that is synced wherever the image is. */
static struct node *synced_too(const struct qcow2 *q)
{
	return q->external && !site_off(q, SITE_DATA_SYNC) ? q->data : NULL;
}

static int open_writable(struct fiber *f, struct qcow2 *q, const struct settings *set,
			 struct varve_error *err)
{
	bool rebuild = (q->h.incompatible & QCOW2_INCOMPAT_DIRTY) || (q->node->flags & NODE_REPAIR);
	int ret;

	if (set->keeps_space == TOGGLE_ON && q->h.version < 3)
		return varve_error_set(err, -ENOTSUP, "option discard-no-unref: version 2 (compat=0.10) cannot say that a cluster with "
						      "a place reads as zeroes");
	q->keeps_space = set->keeps_space == TOGGLE_ON;
	q->discards = set->discards;
	q->guards_inactive = set->guards_inactive;
	q->refcount_cache_len = set->refcount_cache_len;
	if (rebuild && !set->state_dir && (q->h.autoclear & QCOW2_AUTOCLEAR_JOURNAL)) /* it goes with the old counts */
		order_tell_lost(q->node, NULL, true);
	ret = rebuild ? qcow2_rebuild_refcounts(f, q, err) : 0;
	if (ret < 0)
		return ret;
	if (rebuild) /* counted anew: what was to be freed is */
		q->left.nr_todo = 0;
	ret = order_new(&q->order, q->file, 0);
	if (ret < 0)
		return varve_error_errno(err, ret, "queue for metadata");
	order_set_age(q->order, set->write_out_ns);
	if (synced_too(q))
		order_sync_too(q->order, q->data);
	ret = lazy_open(q, set->lazy ? set->lazy == TOGGLE_ON : q->h.compatible & QCOW2_COMPAT_LAZY_REFCOUNTS, err);
	if (ret < 0)
		return ret;
	if (pack_open(q, set->level) < 0)
		return varve_error_set(err, -ENOMEM, "compressed clusters: out of memory");
	return counts_open(f, q, !rebuild, set->map_ahead != TOGGLE_OFF && !q->keeps_space, err); /* ahead: taken back as by a discard */
}

static int open_tables(struct fiber *f, struct qcow2 *q, const struct settings *set,
		       struct varve_error *err)
{
	/* Counts that are made anew are a change, and so is a repair. */
	bool later = (q->node->flags & NODE_BITMAPS) && !(q->node->flags & NODE_REPAIR) && !set->state_dir &&
		     !(q->h.incompatible & QCOW2_INCOMPAT_DIRTY);
	int ret = read_l1(f, q, err);

	if (ret < 0)
		return ret;
	q->cleaner = malloc(sizeof(*q->cleaner));
	if (!q->cleaner)
		return varve_error_set(err, -ENOMEM, "caches: out of memory");
	cache_cleaner_init(q->cleaner, q->node, set->clean_s * 1000000000);
	if (q->writable)
		ret = open_writable(f, q, set, err);
	if (ret < 0)
		return ret;
	ret = l2_open(q, set->l2_cache_len, (uint32_t)set->l2_piece_len);
	if (ret == 0)
		ret = unpack_open(q);
	if (ret < 0)
		return varve_error_errno(err, ret, "L2 cache");
	cache_cleaner_watch(q->cleaner, 0, q->l2);
	if (!q->writable || later)
		return 0;
	ret = begin_changes(f, q, set->state_dir, err);
	q->begun = ret == 0;
	return ret;
}

static int set_names(struct qcow2 *q, struct varve_error *err)
{
	struct node *n = q->node;

	if (!*q->h.backing_name)
		return 0;
	n->backing_name = strdup(q->h.backing_name);
	n->backing_format = *q->h.backing_format ? strdup(q->h.backing_format) : NULL;
	if (!n->backing_name || (*q->h.backing_format && !n->backing_format))
		return varve_error_set(err, -ENOMEM, "backing file name: out of memory");
	return 0;
}

static void set_geometry(struct qcow2 *q)
{
	q->cluster_bits = q->h.cluster_bits;
	q->cluster_len = 1u << q->cluster_bits;
	q->l2_entry_len = q->h.incompatible & QCOW2_INCOMPAT_EXTENDED_L2 ? 16 : 8;
	q->l2_entries = q->cluster_len / q->l2_entry_len;
	q->node->cluster_len = q->cluster_len;
	q->node->part_len = q->l2_entry_len == 16 ? q->cluster_len / QCOW2_SUBCLUSTERS : 0;
	atomic_store_explicit(&q->node->len, q->h.disk_len, memory_order_relaxed);
}

/* The disk as it was: its L1 table and length stand for those of the header. */
static int use_snapshot(struct fiber *f, struct qcow2 *q, const struct snapshot_pick *pick, struct varve_error *err)
{
	struct snapshot_pick first = { pick->id, pick->name, .first = true }; /* as other programs read an image with two of a name */
	struct snapshots all = { 0 };
	struct l1_copy l1 = { 0 };
	uint32_t i = 0;
	int ret;

	if (q->node->flags & (NODE_WRITABLE | NODE_CHECK))
		return varve_error_set(err, -EINVAL,
				       "a snapshot can be read only: it is neither opened for writing nor checked by itself");
	ret = snapshots_open(f, q, &all, err);
	if (ret == 0)
		ret = snapshots_find(&all, &first, &i, err);
	if (ret == 0)
		ret = tables_read_l1(f, q, &all.list[i], &l1, err);
	if (ret == 0) {
		q->h.l1_off = all.list[i].l1_off;
		q->h.l1_entries = all.list[i].l1_entries;
		q->h.disk_len = all.list[i].disk_len;
		atomic_store_explicit(&q->node->len, q->h.disk_len, memory_order_relaxed);
	}
	free(l1.entries);
	snapshots_close(&all);
	return ret;
}

static void free_all(struct fiber *f, struct qcow2 *q)
{
	bitmap_note_free(q);
	if (q->cleaner)
		cache_cleaner_end(f, q->cleaner);
	l2_close(q);
	unpack_close(q);
	if (q->order) {
		counts_close(q);
		pack_close(q);
		order_free(f, q->order);
	}
	free(q->left.todo);
	q->left = (struct order_left){ 0 };
	free(q->l1);
	free(q->cleaner);
	q->cleaner = NULL;
	q->l1 = NULL;
	q->order = NULL;
}

/*
 * What a process that died had queued is written out before anything but the header is looked at. The data file is opened before
 * that: what is written out leads there, and waits for its sync, too (order/recover.c). Its name in the header is the one of
 * then: who keeps a journal does not change it (amend.c).
 */
static int recover(struct fiber *f, struct qcow2 *q, struct opts *o, const char *state_dir, struct varve_error *err)
{
	int ret;

	if (q->h.version < 3)
		return varve_error_set(err, -ENOTSUP,
				       "option 'state-dir': an image of version 2 (compat=0.10) has no place for the mark that "
				       "a journal needs; upgrade the image (qemu-img amend -o compat=1.1) or leave it out");
	ret = qcow2_header_usable(&q->h, true, q->node->flags & NODE_REPAIR, err);
	if (ret == 0)
		ret = data_open(f, q, o, err);
	if (ret < 0)
		return ret;
	ret = order_recover(f, q->file, synced_too(q), state_dir, q->h.autoclear, &q->left, err);
	return ret > 0 ? read_header(f, q, err) : ret;
}

/* Who writes is told in begin_changes(); who shares the image with others may be reading what is being served. */
static bool reads_without_journal(const struct qcow2 *q)
{
	return !q->writable && !(q->node->flags & (NODE_NO_IO | NODE_FORCE_SHARE)) && (q->h.autoclear & QCOW2_AUTOCLEAR_JOURNAL);
}

static int qcow2_open(struct fiber *f, struct node *n, struct opts *o, struct varve_error *err)
{
	struct qcow2 *q = node_state(n);
	struct settings set;
	int ret = settings_get(o, &set, err);

	if (ret == 0)
		ret = sites_open(q, err);
	q->node = n;
	q->file = q->leaf = n->file;
	while (q->leaf->file)
		q->leaf = q->leaf->file;
	if (ret == 0)
		ret = read_header(f, q, err);
	q->unmapped = n->flags & (NODE_NO_IO | NODE_CHECK) ? -ENOTSUP : 0;
	q->writable = (n->flags & NODE_WRITABLE) && !q->unmapped;
	if (ret == 0 && q->writable && set.state_dir)
		ret = recover(f, q, o, set.state_dir, err);
	if (ret < 0) {
		free_all(f, q);
		return ret;
	}
	if (set.discard_request == TOGGLE_ON)
		n->flags |= NODE_UNMAPS;
	set_geometry(q);
	ret = settings_fit(q, &set, err);
	if (ret < 0) {
		free_all(f, q);
		return ret;
	}
	/* What check does not understand it cannot judge: unknown features are refused there too, damage is
	 * not. */
	if (!q->unmapped || ((n->flags & NODE_CHECK) && (q->h.incompatible & ~QCOW2_INCOMPAT_KNOWN)))
		ret = qcow2_header_usable(&q->h, q->writable, n->flags & NODE_REPAIR, err);
	if (ret == 0 && (set.snapshot.id || set.snapshot.name))
		ret = use_snapshot(f, q, &set.snapshot, err);
	if (ret == 0)
		ret = set_names(q, err);
	if (ret == 0)
		ret = data_open(f, q, o, err);
	if (ret == 0)
		data_tell(q);
	if (ret == 0 && !q->unmapped)
		ret = open_tables(f, q, &set, err);
	if (ret == 0) /* damage that was met on the way has been told of */
		ret = qcow2_whole(q, err);
	if (ret < 0)
		free_all(f, q);
	else if (reads_without_journal(q))
		order_tell_lost(n, NULL, false);
	return ret;
}

/* ---- sync, close ---- */

/*
 * The guest's flush. What it made durable lets space be freed; the lower counts go with the next flush, or on
 * close. That freeing fails is not the flush's failure: everything the guest wrote is stable, and the space
 * is leaked at worst. Of an image that has been marked corrupt it says as truly as ever whether what was acknowledged is stable.
 */
static int qcow2_sync(struct fiber *f, struct node *n)
{
	struct qcow2 *q = node_state(n);
	int ret;

	if (!q->order || site_off(q, SITE_FLUSH))
		return 0;
	ret = order_flush(f, q->order);
	if (ret == 0 && !q->unmapped)
		(void)alloc_settle(f, q);
	return ret;
}

static bool qcow2_clean(struct node *n)
{
	struct qcow2 *q = node_state(n);

	return !q->order || order_clean(q->order);
}

/*
 * What the guest was promised was synced before. Left are counts to be lowered: entries become durable, what they gave up is
 * freed, and that is written. Errors lose these: a leak, which check finds.
 */
static void counts_settle(struct fiber *f, struct qcow2 *q)
{
	ahead_take_back(f, q);
	stock_end(f, q);
	for (int i = 0; i < 3 && !(order_clean(q->order) && alloc_idle(q)); i++) {
		if (order_flush(f, q->order) < 0)
			break;
		(void)alloc_settle(f, q);
	}
	if (q->lazy && order_clean(q->order))
		(void)lazy_end(f, q); /* told; the dirty bit says what is to be done */
	if (order_clean(q->order)) {
		ahead_trim(f, q);
		stock_trim(f, q);
	}
}

static void qcow2_close(struct fiber *f, struct node *n)
{
	struct qcow2 *q = node_state(n);

	if (q->order) {
		/* Marked corrupt: all is left as it is. Bitmaps on disk say that nobody has kept them; counts are too high at worst. */
		if (!q->unmapped) {
			bitmap_note_end(f, q);
			counts_settle(f, q);
		}
		if (order_clean(q->order))
			end_journal(f, q);
	}
	free_all(f, q);
}

int qcow2_change_refcount_order(struct fiber *f, struct qcow2 *q, unsigned refcount_order, bool judge, struct varve_error *err)
{
	bool ahead = q->ahead;
	int ret, opened;

	counts_settle(f, q);
	pack_forget(q, 0, q->end_cluster);
	ret = order_flush(f, q->order);
	if (ret < 0)
		return varve_error_errno(err, ret, "what was written before is not durable");
	counts_close(q);
	ret = qcow2_recount(f, q, refcount_order, judge, err);
	opened = counts_open(f, q, false, ahead, ret < 0 ? NULL : err);
	if (opened == 0)
		return ret;
	/* What is on disk is whole; but we cannot go on with it. */
	counts_close(q);
	order_free(f, q->order);
	q->order = NULL;
	q->writable = false;
	q->unmapped = -ENOTSUP;
	return ret < 0 ? ret : opened;
}

/* Bytes of tables in memory, and how many there may be. */
static void add_cache(json_t *stats, const char *name, const struct cache *c)
{
	json_t *o = json_object();

	json_object_set_new(o, "bytes", json_integer((json_int_t)c->nr_pieces * c->piece_len));
	json_object_set_new(o, "bytes-max", json_integer((json_int_t)c->max * c->piece_len));
	json_object_set_new(o, "entry-bytes", json_integer(c->piece_len));
	json_object_set_new(stats, name, o);
}

static void qcow2_stats(struct node *n, void *json_stats)
{
	struct qcow2 *q = node_state(n);

	if (q->order)
		order_json_stats(q->order, json_stats);
	if (q->writable)
		json_object_set_new(json_stats, "corrupt", json_boolean(q->unmapped));
	if (q->l2)
		add_cache(json_stats, "l2-cache", q->l2);
	if (q->refcounts)
		add_cache(json_stats, "refcount-cache", q->refcounts->cache);
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
	.unpack = qcow2_unpack,
	.pack = qcow2_pack,
	.damage = qcow2_damage,
	.sync = qcow2_sync,
	.clean = qcow2_clean,
	.options = qcow2_options,
	.open_options = qcow2_open_options,
	.create = qcow2_create,
	.emit = &qcow2_emit,
	.measure = qcow2_measure,
	.reserved = qcow2_reserved,
	.check = qcow2_check,
	.set_backing = qcow2_set_backing,
	.amend = qcow2_amend,
	.info = qcow2_info,
	.stats = qcow2_stats,
	.snapshot_list = qcow2_snapshot_list,
	.snapshot_create = qcow2_snapshot_create,
	.snapshot_space = qcow2_snapshot_space,
	.snapshot_commit = qcow2_snapshot_commit,
	.snapshot_abort = qcow2_snapshot_abort,
	.snapshot_delete = qcow2_snapshot_delete,
	.snapshot_apply = qcow2_snapshot_apply,
	.snapshot_state_open = qcow2_snapshot_state_open,
	.snapshot_state_map = qcow2_snapshot_state_map,
	.snapshot_state_close = qcow2_snapshot_state_close,
	.snapshot_graph = qcow2_snapshot_graph,
	.state_area_read = qcow2_state_area_read,
	.state_area_write = qcow2_state_area_write,
	.note_write = bitmap_note_write,
	.bitmap_list = qcow2_bitmap_list,
	.bitmap_change = qcow2_bitmap_change,
	.bitmap_open = qcow2_bitmap_open,
	.bitmap_read = qcow2_bitmap_read,
	.bitmap_close = qcow2_bitmap_close,
};
