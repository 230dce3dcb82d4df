/* SPDX-License-Identifier: MIT */
/*
 * job/stream.c - see stream.h
 *
 * Owns:    the job; its fibers, which take pieces of the disk one after the other.
 * Assumes: nobody else changes the backing chain meanwhile (one such job for a disk).
 * Never:   removes the link to the backing image before everything copied is durable (the format's set_backing() sees
 *          to that), or after an error.
 */
#include "job/stream.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "block/graph.h"
#include "block/snapshot.h"

#define PIECE_LEN MiB(1)
#define PARALLEL_DEFAULT 8
#define PARALLEL_MAX 32
#define BIG_CLUSTER MiB(4)    /* of such clusters one at a time */
#define IDLE_NS 50000000ull   /* how long the guest must not have fetched anything */
#define SLEEP_NS 20000000ull  /* between looks at a limit */
#define LOOK_NS 1000000ull    /* between looks at the end, for who waits a limited time */

struct fetcher {
	struct fiber_job job;
	struct stream_job *j;
};

struct stream_job {
	/* set at start */
	struct node *top, *disk, *base;
	unsigned bottom;
	bool keep_zeroes, keep_link, idle;
	unsigned nr_fetchers;

	/* home queue */
	enum stream_state state;
	bool cancelled;
	uint64_t speed, speed_since_ns, speed_copied;
	uint64_t next, total, done;
	struct cor_stats stats;
	unsigned nr_running;
	struct varve_error err;
	int error;
	struct waitlist changed; /* state, or a fetcher that ended */
	struct fetcher fetchers[PARALLEL_MAX];
	struct fiber_job finish;
};

static uint64_t copied(const struct stream_job *j)
{
	return j->stats.copied_bytes + j->stats.zero_bytes;
}

static bool stopping(const struct stream_job *j)
{
	return j->cancelled || j->error < 0;
}

static void sleep_for(struct fiber *f, uint64_t ns)
{
	fiber_sleep_until(f, queue_now(fiber_queue(f)) + ns);
}

/* Must the next piece wait for the speed limit, or for the guest? */
static bool too_early(const struct stream_job *j)
{
	uint64_t now = queue_now(j->disk->home), ns = now - j->speed_since_ns;

	if (j->idle && now < cor_last_read(j->disk) + IDLE_NS)
		return true;
	/* copied / speed > time, without overflow for any speed a user can type */
	return j->speed && (double)(copied(j) - j->speed_copied) / (double)j->speed > (double)ns / 1e9;
}

static void wait_for_turn(struct fiber *f, struct stream_job *j)
{
	while (!stopping(j)) {
		if (j->state == STREAM_PAUSED)
			waitlist_wait(f, &j->changed);
		else if (too_early(j))
			sleep_for(f, SLEEP_NS);
		else
			return;
	}
}

static void fetch_pieces(struct fiber *f, struct stream_job *j)
{
	uint64_t piece = MAX(PIECE_LEN, (uint64_t)j->disk->cluster_len);

	for (;;) {
		uint64_t off, len;
		int ret;

		wait_for_turn(f, j);
		if (stopping(j) || j->next >= j->total)
			return;
		off = j->next;
		len = MIN(piece, j->total - off);
		j->next += len;
		ret = cor_populate(f, j->disk, off, len, j->bottom, j->keep_zeroes, &j->stats);
		if (ret < 0 && !j->error)
			j->error = varve_error_errno(&j->err, ret, "%s: guest offsets 0x%llx to 0x%llx could not be copied",
						     node_name(j->disk), (unsigned long long)off,
						     (unsigned long long)(off + len));
		j->done += len;
	}
}

/* On a fiber above the disk's: taking out the link waits for requests, which wait for fibers of the disk. */
static void finish_run(struct fiber *f, struct fiber_job *job)
{
	struct stream_job *j = container_of(job, struct stream_job, finish);
	int ret;

	if (!stopping(j) && !j->keep_link) {
		j->state = STREAM_FINISHING;
		ret = graph_cut_backing(f, j->top, j->base, &j->err);
		if (ret < 0)
			j->error = ret;
	}
	if (!j->error && j->cancelled && j->next < j->total)
		j->error = varve_error_set(&j->err, -ECANCELED, "%s: cancelled", node_name(j->disk));
	j->state = STREAM_ENDED;
	if (j->error < 0 && j->error != -ECANCELED)
		log_warning("%s: streaming ended: %s", node_name(j->disk), j->err.message);
	waitlist_wake_all(&j->changed);
}

static void fetcher_run(struct fiber *f, struct fiber_job *job)
{
	struct stream_job *j = container_of(job, struct fetcher, job)->j;

	fetch_pieces(f, j);
	if (--j->nr_running == 0)
		fiber_start(j->disk->home, &j->finish, FIBER_LEVEL_JOB);
}

/* Snapshots read from the backing files, too, and nothing is copied for them. Found now rather than at the end. */
static int refuse_snapshots(struct fiber *f, struct node *disk, struct varve_error *err)
{
	struct snapshot_info *list;
	uint32_t nr;
	int ret = disk->drv->snapshot_list ? disk->drv->snapshot_list(f, disk, &list, &nr, err) : 0;

	if (ret < 0 || !disk->drv->snapshot_list)
		return ret;
	snapshot_infos_free(list, nr);
	return nr ? varve_error_set(err, -ENOTSUP,
				    "%s: the image has %u internal snapshots, which read from the backing files too: they stay until "
				    "the snapshots are deleted",
				    node_name(disk), nr)
		  : 0;
}

int stream_start(struct fiber *f, struct node *top, const struct stream_options *o, struct stream_job **ret_job,
		 struct varve_error *err)
{
	struct node *disk = top;
	struct stream_job *j;
	int depth = INT_MAX, ret;

	while (disk->drv->kind == DRIVER_FILTER)
		disk = disk->file;
	if (!(disk->flags & NODE_WRITABLE))
		return varve_error_set(err, -EROFS, "%s: the image must be open for writing", node_name(disk));
	if (!disk->drv->alloc || !disk->drv->set_backing)
		return varve_error_set(err, -ENOTSUP, "%s: a %s image has no backing file that could be copied into it",
				       node_name(disk), disk->drv->name);
	if (disk->backing_name && !disk->backing)
		return varve_error_set(err, -EINVAL, "%s: opened without its backing file", node_name(disk));
	if (o->parallel > PARALLEL_MAX)
		return varve_error_set(err, -EINVAL, "%u pieces at once are too many, at most %u", o->parallel, PARALLEL_MAX);
	j = calloc(1, sizeof(*j));
	if (!j)
		return varve_error_errno(err, -ENOMEM, "%s", node_name(disk));
	j->top = top;
	j->disk = disk;
	if (o->base) {
		depth = cor_depth_of(disk, o->base, err);
		if (depth < 0) {
			free(j);
			return depth;
		}
		j->base = disk;
		for (int i = 0; i < depth; i++)
			j->base = j->base->backing;
		depth--; /* the base itself stays what it is */
	}
	ret = o->keep_link || j->base == disk->backing ? 0 : refuse_snapshots(f, disk, err);
	if (ret < 0) {
		free(j);
		return ret;
	}
	j->bottom = (unsigned)depth;
	cor_keep(disk, j->bottom);
	j->keep_zeroes = j->base != NULL;
	j->keep_link = o->keep_link;
	j->idle = o->idle;
	j->speed = o->speed;
	j->speed_since_ns = queue_now(disk->home);
	j->total = disk->backing ? node_len(disk) : 0;
	j->nr_fetchers = disk->cluster_len > BIG_CLUSTER ? 1 : o->parallel ? o->parallel : o->idle ? 2 : PARALLEL_DEFAULT;
	j->nr_running = j->nr_fetchers;
	j->finish.run = finish_run;
	for (unsigned i = 0; i < j->nr_fetchers; i++) {
		j->fetchers[i] = (struct fetcher){ .job.run = fetcher_run, .j = j };
		fiber_start(disk->home, &j->fetchers[i].job, disk->level);
	}
	*ret_job = j;
	return 0;
}

void stream_pause(struct stream_job *j)
{
	if (j->state == STREAM_RUNNING)
		j->state = STREAM_PAUSED;
}

void stream_resume(struct stream_job *j)
{
	if (j->state != STREAM_PAUSED)
		return;
	j->state = STREAM_RUNNING;
	stream_set_speed(j, j->speed); /* the pause counts for nothing */
	waitlist_wake_all(&j->changed);
}

void stream_set_speed(struct stream_job *j, uint64_t speed)
{
	j->speed = speed;
	j->speed_since_ns = queue_now(j->disk->home);
	j->speed_copied = copied(j);
}

void stream_cancel(struct stream_job *j)
{
	j->cancelled = true;
	waitlist_wake_all(&j->changed);
}

void stream_get_status(const struct stream_job *j, struct stream_status *ret)
{
	*ret = (struct stream_status){ .state = j->state,
				       .done = j->done,
				       .total = j->total,
				       .copied = copied(j),
				       .error = j->error,
				       .message = j->error < 0 ? j->err.message : "" };
}

void stream_wait(struct fiber *f, struct stream_job *j, uint64_t until_ns)
{
	while (j->state != STREAM_ENDED) {
		if (!until_ns)
			waitlist_wait(f, &j->changed);
		else if (queue_now(j->disk->home) >= until_ns)
			return;
		else
			sleep_for(f, MIN(LOOK_NS, until_ns - queue_now(j->disk->home)));
	}
}

void stream_free(struct fiber *f, struct stream_job *j)
{
	if (!j)
		return;
	stream_cancel(j);
	stream_wait(f, j, 0);
	free(j);
}
