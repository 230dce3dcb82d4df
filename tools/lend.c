/* SPDX-License-Identifier: MIT */
/*
 * tools/lend.c - the image is ours only while the machine runs (--hand-over), or until another process has it (--takeover)
 *
 *	      the front end starts a queue, and nobody else has the image
 *	LENT ─────────────────────────────────────────────────────────────▶ HELD
 *	  ▲                                                                   │
 *	  └─── the front end has stopped its queues, or is gone; all flushed ─┘
 *
 * So two servers can serve one image, one after the other, while its machine moves from one host to another: the monitor
 * there wants to see the disk before the one here has let go of it. The lock of the image says whose it is.
 *
 * In LENT all exports of the image are paused over a stand-in: its header, read without a lock, for its length. What front ends
 * offer waits. Opening the image anew in HELD reads all that the other server has written.
 *
 * Whatever may wait for the disk (opening, flushing, closing an image; requests in flight) is a job, on a thread of its own, one at a
 * time for each disk: a disk that is stuck in the kernel keeps the main thread from nothing. Only the main thread starts jobs, and
 * sees their ends, in lend_settle(); an end wakes it.
 *
 * Owns:    which of the two images a disk has open, and the jobs.
 * Assumes: the main thread, but for demanded(), and what jobs do.
 * Never:   lets go of an image that could not be flushed: whoever had it next would miss what the guest was told is there.
 */
#include "lend.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

/* Until the next attempt, while somebody else has the image, or ours cannot be flushed. */
#define RETRY_MS 100
#define RETRY_FLUSH_MS 5000

/* lend->image of all of them, while it becomes another one. */
static pthread_mutex_t images_lock = PTHREAD_MUTEX_INITIALIZER;

struct lend_job {
	pthread_t thread;
	struct lend *l;
	int (*run)(struct lend *l, char why[VARVE_ERROR_MAX]);
	int retry_ms;
	int result; /* of run; like why set before done is */
	char why[VARVE_ERROR_MAX];
	_Atomic bool done;
};

static int64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static void wake(const struct lend *l)
{
	uint64_t one = 1;

	if (write(l->wake_fd, &one, sizeof(one)) < 0)
		return; /* it cannot: the counter is read by the main thread */
}

/* The control queue's thread. */
static void demanded(void *user_data, bool wanted)
{
	struct lend_export *e = user_data;

	atomic_store(&e->wanted, wanted);
	wake(e->of);
}

void lend_woken(int wake_fd)
{
	uint64_t count;

	if (wake_fd >= 0 && read(wake_fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
		complain("eventfd: %s", strerror(errno));
}

/* The name of the file that the image's data is in. */
static const char *bottom_name(const json_t *info)
{
	const char *name = info_str(info, "filename");
	size_t i;
	json_t *child;

	json_array_foreach(json_object_get(info, "children"), i, child) {
		if (!strcmp(info_str(child, "name") ? info_str(child, "name") : "", "file"))
			return bottom_name(json_object_get(child, "info"));
	}
	return name ? name : "";
}

/* The same text for the same file, whatever its name; what is no local file has nothing but its name. */
static void identify(const char *name, char *buf, size_t size)
{
	const char *path = strncmp(name, "file:", 5) == 0 ? name + 5 : name;
	struct stat st;

	if (stat(path, &st) < 0)
		snprintf(buf, size, "%s", name);
	else if (S_ISBLK(st.st_mode))
		snprintf(buf, size, "device %u:%u", major(st.st_rdev), minor(st.st_rdev));
	else
		snprintf(buf, size, "inode %llu of %u:%u", (unsigned long long)st.st_ino, major(st.st_dev), minor(st.st_dev));
}

/* What is behind a name may be another file later: it is looked at when the image is opened. */
static void note_file(struct lend *l, struct varve_image *image)
{
	json_t *info = image_info(image);

	snprintf(l->file, sizeof(l->file), "%s", bottom_name(info));
	identify(l->file, l->id, sizeof(l->id));
	json_decref(info);
}

static int open_as(struct lend *l, bool stand_in)
{
	struct varve_error err;

	l->image = l->ops->open(l->disk, stand_in, &err);
	if (!l->image && *err.message)
		complain("%s", err.message);
	if (l->image)
		note_file(l, l->image);
	return !l->image;
}

int lend_peek(struct lend *l)
{
	return open_as(l, true);
}

void lend_unpeek(struct lend *l)
{
	close_image(l->image);
	l->image = NULL;
}

int lend_open(struct lend *l)
{
	struct varve_error err;

	open_as(l, l->on_demand);
	l->held = l->image && !l->on_demand;
	l->paused = l->on_demand || l->stopped;
	if (!l->image)
		return 1;
	if (lend_apply_limits(l, &err) == 0)
		return 0;
	complain("%s: what the process before has set: %s", l->name, err.message);
	return 1;
}

void lend_add(struct lend *l, struct lend_export *e, struct varve_vhost_user_blk_options *o)
{
	e->of = l;
	e->options = o;
	e->next = l->exports;
	l->exports = e;
	if (!l->on_demand)
		return;
	o->paused = true;
	/* Monitors do not bring the guest's choice: after a move it would take for stable what is not. */
	o->fixed_cache = true;
	o->demand = demanded;
	o->user_data = e;
}

/* Once, until it is another one. */
static void tell_trouble(struct lend *l, const char *what, const struct varve_error *err)
{
	if (strcmp(l->trouble, err->message) == 0)
		return;
	snprintf(l->trouble, sizeof(l->trouble), "%s", err->message);
	complain("warning: %s: %s: %s", l->name, what, err->message);
}

static bool wanted(const struct lend *l)
{
	if (l->given || !l->on_demand)
		return !l->given;
	for (struct lend_export *e = l->exports; e; e = e->next) {
		if (atomic_load(&e->wanted))
			return true;
	}
	return false;
}

static void pause_all(struct lend *l)
{
	l->paused = true;
	for (struct lend_export *e = l->exports; e; e = e->next)
		varve_export_pause(e->exp);
}

static void resume_all(struct lend *l)
{
	if (l->stopped)
		return;
	for (struct lend_export *e = l->exports; e; e = e->next)
		varve_export_resume(e->exp);
	l->paused = false;
}

/*
 * Puts another image in place of the one that is open, which is closed: for all exports, or for none, as l->image tells then. They
 * are paused.
 */
static void swap(struct lend *l, struct varve_image *image)
{
	struct varve_image *old = l->image;
	struct lend_export *e;
	struct varve_error err;

	for (e = l->exports; e; e = e->next) {
		if (varve_export_set_image(e->exp, image, &err) < 0)
			break;
	}
	if (e) {
		complain("%s: %s", l->name, err.message);
		for (struct lend_export *back = l->exports; back != e; back = back->next) {
			if (varve_export_set_image(back->exp, old, &err) < 0)
				complain("%s: %s", l->name, err.message);
		}
		varve_image_leave_flush_error(image);
		close_image(image);
		return;
	}
	pthread_mutex_lock(&images_lock);
	l->image = image;
	pthread_mutex_unlock(&images_lock);
	close_image(old);
}

void lend_tell(struct lend *l, const char **ret_format, uint64_t *ret_length)
{
	pthread_mutex_lock(&images_lock);
	*ret_format = varve_image_format(l->image);
	*ret_length = varve_image_length(l->image);
	pthread_mutex_unlock(&images_lock);
}

/* ---- jobs ---- */

/* 1: somebody else has the image, or there is another trouble, of which one line was said. */
static int take(struct lend *l, char why[VARVE_ERROR_MAX])
{
	struct varve_error err;
	struct varve_image *image = l->ops->open(l->disk, false, &err);

	(void)why;
	if (!image) {
		tell_trouble(l, "the guest waits until the image can be had", &err);
		return 1;
	}
	swap(l, image);
	if (l->image != image)
		return 1;
	note_file(l, image);
	if (*l->trouble)
		complain("warning: %s: the guest goes on", l->name);
	*l->trouble = 0;
	l->held = true;
	if (lend_apply_limits(l, &err) < 0)
		complain("%s", err.message);
	if (l->ops->changed)
		l->ops->changed(l->disk, true);
	resume_all(l);
	return 0;
}

/*
 * What was in flight is done, and nothing more is taken. The image is let go of when all is flushed, and only if it is still to be: whoever
 * asked for it may have lost his patience while we waited for the disk. 1: not now, and why, if there is a reason.
 *
 * One owner, whatever the moment: the image is closed (and its lock is gone) when swap() is over, that is before this job is done;
 * another process is told to open it after it has been seen to be done (takeover_answer.c), and nobody here opens it again but
 * a job that begins after that process was given up, or is gone. Is it not wanted any more just when it was closed, the next job takes
 * it again.
 */
static int let_go(struct lend *l, char why[VARVE_ERROR_MAX])
{
	struct varve_image *stand_in;
	struct varve_error err;
	bool failed;

	/* Nobody would resume a disk that stops here for an error: the machine runs no more, or waits for us. */
	varve_image_set_waiting(l->image, false);
	pause_all(l);
	failed = varve_image_writable(l->image) && varve_image_flush(l->image, &err) < 0;
	varve_image_set_waiting(l->image, true);
	if (wanted(l))
		return 1;
	stand_in = failed ? NULL : l->ops->open(l->disk, true, &err);
	if (!stand_in) {
		if (*err.message)
			tell_trouble(l, "the image is not handed over", &err);
		snprintf(why, VARVE_ERROR_MAX, "%s cannot be closed: %.*s", l->name, VARVE_ERROR_MAX / 2, err.message);
		return 1;
	}
	*l->trouble = 0;
	swap(l, stand_in);
	l->held = l->image != stand_in;
	if (l->held)
		snprintf(why, VARVE_ERROR_MAX, "%s: its exports cannot let go of the image", l->name);
	if (!l->held && l->ops->changed)
		l->ops->changed(l->disk, false);
	return l->held;
}

/* An error has stopped the image (werror=stop), and what waits would fail if it were given away. */
static bool is_stopped(const struct lend *l, char why[VARVE_ERROR_MAX])
{
	struct varve_error err;
	json_t *stats;
	bool stopped;
	char *text;

	if (varve_image_stats(l->image, &text, &err) < 0)
		return false;
	stats = json_loads(text, 0, NULL);
	free(text);
	stopped = json_integer_value(json_object_get(json_object_get(stats, "errors"), "errno")) != 0;
	json_decref(stats);
	if (stopped)
		snprintf(why, VARVE_ERROR_MAX, "%s: an error has stopped it; ask again when it has been resumed", l->name);
	return stopped;
}

/*
 * The machine runs, and is to hear of no error that its disk stops for (werror=stop): if that happens to a request in flight, nobody but
 * us can send it again, whose image it is. 1: it has, or they do not end, and all goes on.
 */
static int let_go_running(struct lend *l, char why[VARVE_ERROR_MAX])
{
	struct varve_error err;

	if (is_stopped(l, why))
		return 1;
	if (l->ops->leave)
		l->ops->leave(l->disk);
	l->paused = true; /* lend_settle() resumes those that are */
	for (struct lend_export *e = l->exports; e; e = e->next) {
		if (varve_export_pause_unless_stopped(e->exp, &err) < 0) {
			/* While we waited for those of another export, perhaps. */
			if (!is_stopped(l, why))
				snprintf(why, VARVE_ERROR_MAX, "%.*s; ask again later", VARVE_ERROR_MAX - 20, err.message);
			return 1;
		}
	}
	return let_go(l, why);
}

/* It was wanted again before it could be given away. */
static int go_on(struct lend *l, char why[VARVE_ERROR_MAX])
{
	(void)why;
	resume_all(l);
	if (l->ops->changed)
		l->ops->changed(l->disk, true);
	return 0;
}

/*
 * What is not stable yet takes the longest to become so, and meanwhile the guest may go on. Its errors stop nothing, and are no less the
 * guest's: the file keeps them for its next flush, too.
 */
static int probe(struct lend *l, char why[VARVE_ERROR_MAX])
{
	struct varve_error err;

	if (is_stopped(l, why))
		return 1;
	if (!varve_image_writable(l->image) || varve_image_try_flush(l->image, &err) == 0)
		return 0;
	tell_trouble(l, "the image is not handed over", &err);
	snprintf(why, VARVE_ERROR_MAX, "%s cannot be closed: %.*s", l->name, VARVE_ERROR_MAX / 2, err.message);
	return 1;
}

static void *job_main(void *arg)
{
	struct lend_job *j = arg;
	const struct lend *l = j->l;

	j->result = j->run(j->l, j->why);
	atomic_store(&j->done, true); /* pairs with the loads in lend_result() and join() */
	wake(l);
	return NULL;
}

static bool start(struct lend *l, int (*run)(struct lend *, char *), int retry_ms)
{
	struct lend_job *j = calloc(1, sizeof(*j));
	struct varve_error err;
	int error = j ? 0 : ENOMEM;

	l->retry_want = wanted(l);
	if (j) {
		j->l = l;
		j->run = run;
		j->retry_ms = retry_ms;
		l->job = j;
		error = pthread_create(&j->thread, NULL, job_main, j);
	}
	if (!error)
		return true;
	l->job = NULL;
	free(j);
	l->retry_at_ms = now_ms() + RETRY_FLUSH_MS;
	snprintf(err.message, sizeof(err.message), "%s", strerror(error));
	tell_trouble(l, "no thread for its image", &err);
	return false;
}

/* Somebody has asked for it who is told what it came to. */
static bool is_for_another(const struct lend_job *j)
{
	return j->run == probe || j->run == let_go_running;
}

static void join(struct lend *l)
{
	struct lend_job *j = l->job;

	l->job = NULL;
	pthread_join(j->thread, NULL);
	if (is_for_another(j)) {
		l->failed = j->result != 0;
		memcpy(l->why, j->why, sizeof(l->why));
	}
	l->retry_at_ms = j->result && j->retry_ms >= 0 ? now_ms() + j->retry_ms : 0;
	free(j);
}

static bool is_under_way(const struct lend *l)
{
	return l->job && !atomic_load(&l->job->done);
}

bool lend_moves(const struct lend *l)
{
	return l->job && l->job->run != probe;
}

void lend_end(struct lend *l)
{
	if (l->job)
		join(l);
}

int lend_settle(struct lend *l)
{
	bool want, resumes;
	int64_t left;

	if (is_under_way(l))
		return -1;
	if (l->job)
		join(l);
	want = wanted(l);
	resumes = want && l->held && l->paused && !l->stopped;
	if (want == l->held && !resumes)
		return -1;
	/* We are called for every reason that there is, the attempts of other disks among them. */
	left = l->retry_at_ms - now_ms();
	if (left > 0 && want == l->retry_want && !resumes)
		return (int)left;
	if (l->ops->busy && l->ops->busy(l->disk, false))
		return RETRY_FLUSH_MS;
	if (want && !l->held)
		return start(l, take, RETRY_MS) ? -1 : RETRY_FLUSH_MS;
	if (!want && l->held)
		return start(l, let_go, RETRY_FLUSH_MS) ? -1 : RETRY_FLUSH_MS;
	return start(l, go_on, RETRY_FLUSH_MS) ? -1 : RETRY_FLUSH_MS;
}

/* On a thread of its own, unless the image is not here. */
static bool do_for_another(struct lend *l, int (*run)(struct lend *, char *))
{
	if (is_under_way(l))
		return false;
	lend_end(l);
	l->failed = false;
	return !l->held || start(l, run, -1);
}

bool lend_probe(struct lend *l)
{
	return do_for_another(l, probe);
}

bool lend_give(struct lend *l)
{
	l->given = true;
	return do_for_another(l, let_go_running);
}

enum lend_result lend_result(const struct lend *l, const char **ret_why)
{
	const struct lend_job *j;

	if (is_under_way(l))
		return LEND_UNDER_WAY;
	j = l->job && is_for_another(l->job) ? l->job : NULL;
	*ret_why = j ? j->why : l->why;
	return (j ? j->result != 0 : l->failed) ? LEND_FAILED : LEND_DONE;
}
