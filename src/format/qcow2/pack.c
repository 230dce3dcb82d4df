/* SPDX-License-Identifier: MIT */
/*
 * qcow2/pack.c - writing compressed clusters
 *
 * The bytes of one compressed cluster follow those of the one before, so that a host cluster holds several. Each of them
 * counts one reference for every host cluster that it touches.
 *
 * Durable first: the compressed bytes, and the counts; only then the L2 entry. Power lost in between leaves counts too
 * high, a leak; the other way round, the entry would lead to bytes that are not there, or into a cluster that the next
 * allocation hands out. The order is that of every other cluster (l2.c).
 *
 * The host cluster that is being filled is ours only as long as somebody's reference holds it: when one in it is given
 * back, filling goes on elsewhere (pack_forget()).
 *
 * Owns:    where the next bytes go; how many clusters are being compressed at once.
 * Assumes: fibers of the home queue; the guest's cluster is locked.
 */
#include "block/event.h"
#include "format/qcow2/pack.h"
#include "format/qcow2/subcluster.h"

#include <stdlib.h>
#include <unistd.h>

#define JOBS_MAX 16

struct packer {
	/* set at open */
	enum codec_level level;
	unsigned max_jobs;

	/* home queue */
	uint64_t next; /* host offset of the next byte; 0: a new host cluster is needed */
	unsigned nr_jobs;
	struct fiber_mutex placing;
	struct waitlist job_done;
};

int pack_open(struct qcow2 *q, enum codec_level level)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);

	q->packer = calloc(1, sizeof(*q->packer));
	if (!q->packer)
		return -ENOMEM;
	q->packer->level = level;
	q->packer->max_jobs = (unsigned)MIN(MAX(cpus, 1), JOBS_MAX);
	return 0;
}

void pack_close(struct qcow2 *q)
{
	free(q->packer);
	q->packer = NULL;
}

void pack_forget(struct qcow2 *q, uint64_t host_off, uint64_t nr)
{
	struct packer *pk = q->packer;

	if (pk && pk->next && (pk->next - 1) >> q->cluster_bits >= host_off >> q->cluster_bits &&
	    (pk->next - 1) >> q->cluster_bits < (host_off >> q->cluster_bits) + nr)
		pk->next = 0;
}

/* ---- compressing ---- */

struct pack_work {
	enum codec codec;
	enum codec_level level;
	const void *in;
	size_t in_len;
	void *out;
	size_t out_len;
};

static int pack_run(void *arg)
{
	struct pack_work *w = arg;

	return codec_pack(w->codec, w->level, w->in, w->in_len, w->out, w->out_len, &w->out_len);
}

/* As many at once as there are processors: more would only wait for each other. */
static int compress(struct fiber *f, struct qcow2 *q, struct pack_work *w)
{
	struct packer *pk = q->packer;
	int ret;

	while (pk->nr_jobs >= pk->max_jobs)
		waitlist_wait(f, &pk->job_done);
	pk->nr_jobs++;
	ret = fiber_work(f, pack_run, w);
	pk->nr_jobs--;
	waitlist_wake_one(&pk->job_done);
	return ret;
}

/* ---- a place ---- */

/*
 * One more reference to the host cluster that is being filled; 1: it cannot take one. Was it given back while we counted,
 * then it may have become somebody else's meanwhile; with our reference gone again it is as it should be.
 */
static int share_cluster(struct fiber *f, struct qcow2 *q, uint64_t host_off)
{
	int ret = alloc_share(f, q, host_off);

	if (ret == -ERANGE)
		return 1;
	if (ret == 0 && !q->packer->next) {
		alloc_undo(f, q, host_off, 1);
		return 1;
	}
	return ret;
}

/* A new host cluster; the file is as long as it is. */
static int new_cluster(struct fiber *f, struct qcow2 *q, uint64_t *ret_host_off)
{
	order_mark mark;
	uint64_t nr;
	bool fresh;
	int ret = alloc_clusters(f, q, 1, ret_host_off, &nr, &fresh, &mark);

	if (ret < 0)
		return ret;
	if (*ret_host_off + q->cluster_len > node_len(q->leaf) && !q->leaf->fixed_len)
		ret = node_extend(f, q->file, *ret_host_off + q->cluster_len);
	if (ret < 0)
		alloc_undo(f, q, *ret_host_off, 1);
	return ret;
}

static int place_new(struct fiber *f, struct qcow2 *q, uint64_t len, uint64_t *ret_off)
{
	int ret = new_cluster(f, q, ret_off);

	if (ret == 0)
		q->packer->next = *ret_off + len;
	return ret;
}

/* Behind what is there; into the following host cluster, too, if that is free to have. 1: it does not work out. */
static int place_behind(struct fiber *f, struct qcow2 *q, uint64_t len, uint64_t *ret_off)
{
	struct packer *pk = q->packer;
	uint64_t off = pk->next, room = align_up(off, q->cluster_len) - off, more;
	int ret;

	if (!room)
		return 1; /* full to the last byte */
	ret = share_cluster(f, q, off);
	if (ret != 0)
		return ret;
	if (len > room) {
		ret = new_cluster(f, q, &more);
		if (ret < 0 || more != off + room || pk->next != off) {
			/* It lies elsewhere: the bytes begin there, and the room stays unused. */
			alloc_undo(f, q, off, 1);
			if (ret < 0)
				return ret;
			off = more;
		}
	}
	pk->next = off + len;
	*ret_off = off;
	return 0;
}

static int place(struct fiber *f, struct qcow2 *q, uint64_t len, uint64_t *ret_off)
{
	struct packer *pk = q->packer;
	int ret = 1;

	fiber_lock(f, &pk->placing);
	node_event(f, q->file, EVENT_CLUSTER_ALLOC_BYTES);
	if (pk->next)
		ret = place_behind(f, q, len, ret_off);
	if (ret == 1)
		ret = place_new(f, q, len, ret_off);
	if (ret < 0)
		pk->next = 0;
	fiber_unlock(&pk->placing);
	return ret;
}

/* The references of place() go: nothing leads there. */
static void give_up_place(struct fiber *f, struct qcow2 *q, uint64_t off, uint64_t len)
{
	uint64_t first = align_down(off, q->cluster_len);
	uint64_t nr = (align_up(off + len, q->cluster_len) - first) >> q->cluster_bits;

	pack_forget(q, first, nr);
	alloc_undo(f, q, first, nr);
}

/* ---- entry ---- */

static int store(struct fiber *f, struct qcow2 *q, uint64_t guest_off, const void *bytes, size_t len)
{
	unsigned bits = 62 - (q->cluster_bits - 8);
	uint64_t off, sectors;
	int ret = place(f, q, len, &off);

	if (ret < 0)
		return ret;
	sectors = (off + len - 1) / 512 - off / 512;
	node_event(f, q->file, EVENT_WRITE_COMPRESSED);
	ret = (off + len) >> bits ? -EFBIG : node_write(f, q->file, off, bytes, len);
	if (ret == 0)
		ret = l2_link_packed(f, q, guest_off, QCOW2_COMPRESSED | sectors << bits | off);
	if (ret < 0)
		give_up_place(f, q, off, len);
	return ret;
}

int qcow2_pack(struct fiber *f, struct node *n, uint64_t off, const void *bytes)
{
	struct qcow2 *q = node_state(n);
	struct pack_work w = { .codec = packed_codec(q), .in = bytes, .in_len = q->cluster_len,
			       .out_len = q->cluster_len - 1 };
	int ret;

	if (q->unmapped)
		return q->unmapped;
	if (!codec_available(w.codec) || q->external)
		return -ENOTSUP;
	q->packing = true;
	w.level = q->packer->level;
	ret = is_wide(q) ? sub_keeps_place(f, q, off) : 0; /* map() tells only of the subcluster that was asked for */
	if (ret != 0)
		return ret;
	if (posix_memalign(&w.out, 4096, q->cluster_len))
		return -ENOMEM;
	ret = compress(f, q, &w);
	if (ret == 0)
		ret = store(f, q, off, w.out, w.out_len);
	else if (ret == -ENOSPC)
		ret = 1; /* as it is, it is smaller */
	free(w.out);
	return ret;
}
