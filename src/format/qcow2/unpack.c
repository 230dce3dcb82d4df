/* SPDX-License-Identifier: MIT */
/*
 * qcow2/unpack.c - reading compressed clusters
 *
 * Small reads of one cluster would unpack it again and again, so the last few are kept. Whole clusters that go to one
 * piece of memory are unpacked right there.
 *
 * Owns:    the kept clusters: at most KEPT_LEN bytes, and at least KEPT_MIN clusters.
 * Assumes: the guest's cluster is locked by whoever reads it; one that is freed is forgotten (unpack_forget()).
 * Never:   trusts the length in the entry: it is at most twice a cluster by its width, and is cut at the end of the file.
 */
#include "block/event.h"
#include "format/qcow2/pack.h"

#include <stdlib.h>
#include <unistd.h>

#include "base/iov.h"

#define JOBS_MAX 16
#define KEPT_LEN MiB(2)
#define KEPT_MIN 2
#define KEPT_MAX 16

enum kept_state { KEPT_EMPTY, KEPT_LOADING, KEPT_READY };

struct kept {
	enum kept_state state;
	bool stale;	/* forgotten while it was being loaded */
	uint64_t entry; /* where it came from */
	uint64_t used;
	void *bytes;
};

struct unpacker {
	unsigned nr, max_jobs; /* set at open */
	unsigned nr_jobs;
	struct waitlist job_done;
	uint64_t clock;
	struct kept kept[KEPT_MAX];
	struct waitlist loaded;
};

int unpack_open(struct qcow2 *q)
{
	struct unpacker *u = calloc(1, sizeof(*u));

	if (!u)
		return -ENOMEM;
	u->nr = (unsigned)MIN(MAX(KEPT_LEN >> q->cluster_bits, KEPT_MIN), KEPT_MAX);
	u->max_jobs = (unsigned)MIN(MAX(sysconf(_SC_NPROCESSORS_ONLN), 1), JOBS_MAX);
	q->unpacker = u;
	return 0;
}

void unpack_close(struct qcow2 *q)
{
	for (unsigned i = 0; q->unpacker && i < q->unpacker->nr; i++)
		free(q->unpacker->kept[i].bytes);
	free(q->unpacker);
	q->unpacker = NULL;
}

void unpack_forget(struct qcow2 *q, uint64_t host_off, uint64_t nr)
{
	struct unpacker *u = q->unpacker;
	uint64_t end = host_off + (nr << q->cluster_bits);

	for (unsigned i = 0; u && i < u->nr; i++) {
		struct kept *k = &u->kept[i];
		struct packed_place p = packed_place_of(q->cluster_bits, k->entry);

		if (p.off >= end || p.off + p.len <= host_off)
			continue;
		if (k->state == KEPT_READY)
			k->state = KEPT_EMPTY;
		else if (k->state == KEPT_LOADING)
			k->stale = true;
	}
}

/* ---- from the file ---- */

struct unpack_work {
	enum codec codec;
	const void *in;
	size_t in_len;
	void *out;
	size_t out_len;
};

static int unpack_run(void *arg)
{
	struct unpack_work *w = arg;

	return codec_unpack(w->codec, w->in, w->in_len, w->out, w->out_len);
}

/* As many at once as there are processors: more would only push each other aside. */
static int unpack(struct fiber *f, struct unpacker *u, struct unpack_work *w)
{
	int ret;

	while (u->nr_jobs >= u->max_jobs)
		waitlist_wait(f, &u->job_done);
	u->nr_jobs++;
	ret = fiber_work(f, unpack_run, w);
	u->nr_jobs--;
	waitlist_wake_one(&u->job_done);
	return ret;
}

static int load(struct fiber *f, struct qcow2 *q, uint64_t off, uint64_t entry, void *out)
{
	struct packed_place p = packed_place_of(q->cluster_bits, entry);
	struct unpack_work w = { .codec = packed_codec(q), .out = out, .out_len = q->cluster_len };
	uint64_t end = node_len(q->leaf);
	void *in;
	int ret;

	if (!codec_available(w.codec))
		return -ENOTSUP;
	if (p.off >= end)
		return qcow2_damaged(q, "guest offset 0x%llx: compressed bytes at host offset 0x%llx lie behind the end of "
				     "the file", (unsigned long long)off, (unsigned long long)p.off);
	w.in_len = (size_t)MIN(p.len, end - p.off);
	if (posix_memalign(&in, 4096, align_up(w.in_len, 4096)))
		return -ENOMEM;
	w.in = in;
	node_event(f, q->file, EVENT_READ_COMPRESSED);
	ret = node_read(f, q->file, p.off, in, w.in_len);
	if (ret == 0) {
		ret = unpack(f, q->unpacker, &w);
		if (ret == -EIO)
			ret = qcow2_damaged(q, "guest offset 0x%llx: compressed bytes at host offset 0x%llx (0x%llx of them) "
					    "do not make a cluster", (unsigned long long)off, (unsigned long long)p.off,
					    (unsigned long long)w.in_len);
	}
	free(in);
	return ret;
}

/* ---- kept clusters ---- */

static struct kept *find(struct unpacker *u, uint64_t entry)
{
	for (unsigned i = 0; i < u->nr; i++) {
		if (u->kept[i].state != KEPT_EMPTY && u->kept[i].entry == entry && !u->kept[i].stale)
			return &u->kept[i];
	}
	return NULL;
}

/* The one that was not needed for longest; NULL: all are being loaded. */
static struct kept *oldest(struct unpacker *u)
{
	struct kept *best = NULL;

	for (unsigned i = 0; i < u->nr; i++) {
		struct kept *k = &u->kept[i];

		if (k->state != KEPT_LOADING && (!best || k->state == KEPT_EMPTY || k->used < best->used))
			best = k;
		if (best && best->state == KEPT_EMPTY)
			break;
	}
	return best;
}

static int load_kept(struct fiber *f, struct qcow2 *q, uint64_t off, uint64_t entry, struct kept *k)
{
	int ret = 0;

	if (!k->bytes && posix_memalign(&k->bytes, 4096, q->cluster_len)) {
		k->bytes = NULL;
		return -ENOMEM;
	}
	k->state = KEPT_LOADING;
	k->entry = entry;
	k->stale = false;
	ret = load(f, q, off, entry, k->bytes);
	k->state = ret == 0 ? KEPT_READY : KEPT_EMPTY;
	waitlist_wake_all(&q->unpacker->loaded);
	return ret;
}

/* The memory for a whole cluster, if it is one piece. */
static void *one_piece(const struct qcow2 *q, uint64_t off, uint64_t len, const struct iovec *iov, unsigned nr_iov,
		       uint64_t pos)
{
	struct iovec piece;
	size_t got;

	if (len != q->cluster_len || off & (q->cluster_len - 1))
		return NULL;
	return iov_slice(&piece, 1, iov, nr_iov, pos, len, &got) == 1 && got == len ? piece.iov_base : NULL;
}

int qcow2_unpack(struct fiber *f, struct node *n, uint64_t off, uint64_t len, uint64_t entry, const struct iovec *iov,
		 unsigned nr_iov, uint64_t pos)
{
	struct qcow2 *q = node_state(n);
	uint64_t in_cluster = off & (q->cluster_len - 1);
	void *whole = one_piece(q, off, len, iov, nr_iov, pos);
	struct kept *k;
	int ret;

	for (;;) {
		k = find(q->unpacker, entry);
		if (k && k->state == KEPT_READY)
			break;
		if (!k && whole)
			return load(f, q, off, entry, whole);
		if (!k && (k = oldest(q->unpacker))) {
			ret = load_kept(f, q, off, entry, k);
			if (ret < 0)
				return ret;
			break;
		}
		waitlist_wait(f, &q->unpacker->loaded); /* for this very cluster, or for a place */
	}
	k->used = ++q->unpacker->clock;
	iov_from_buf(iov, nr_iov, pos, (const uint8_t *)k->bytes + in_cluster, len);
	if (k->stale)
		k->state = KEPT_EMPTY;
	return 0;
}
