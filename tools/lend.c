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
 * Owns:    which of the two images a disk has open.
 * Assumes: the main thread, but for demanded().
 * Never:   lets go of an image that could not be flushed: whoever had it next would miss what the guest was told is there.
 */
#include "lend.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/* Until the next attempt, while somebody else has the image, or ours cannot be flushed. */
#define RETRY_MS 100
#define RETRY_FLUSH_MS 5000

/* The control queue's thread. */
static void demanded(void *user_data, bool wanted)
{
	struct lend_export *e = user_data;
	uint64_t one = 1;

	atomic_store(&e->wanted, wanted);
	if (write(e->of->wake_fd, &one, sizeof(one)) < 0)
		return; /* it cannot: the counter is read by the main thread */
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
	l->image = image;
	close_image(old);
}

/* 1: somebody else has the image, or there is another trouble, of which one line was said. */
static int take(struct lend *l)
{
	struct varve_error err;
	struct varve_image *image = l->ops->open(l->disk, false, &err);

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
 * The machine runs, and is to hear of no error that its disk stops for (werror=stop): if that happens to a request in flight, nobody but
 * us can send it again, whose image it is. 1: it has, and all goes on.
 */
static int pause_running(struct lend *l)
{
	struct varve_error err;

	l->paused = true; /* lend_settle() resumes those that are */
	for (struct lend_export *e = l->exports; e; e = e->next) {
		if (varve_export_pause_unless_stopped(e->exp, &err) < 0)
			return 1;
	}
	return 0;
}

/* 1: not now. */
static int give(struct lend *l)
{
	struct varve_image *stand_in;
	struct varve_error err;
	bool failed;

	if (l->given && pause_running(l))
		return 1;
	/* Nobody would resume a disk that stops here for an error: the machine runs no more, or waits for us. */
	varve_image_set_waiting(l->image, false);
	pause_all(l);
	failed = varve_image_writable(l->image) && varve_image_flush(l->image, &err) < 0;
	varve_image_set_waiting(l->image, true);
	if (failed) {
		tell_trouble(l, "the image is not handed over", &err);
		return 1;
	}
	stand_in = l->ops->open(l->disk, true, &err);
	if (!stand_in) {
		if (*err.message)
			tell_trouble(l, "the image is not handed over", &err);
		return 1;
	}
	*l->trouble = 0;
	swap(l, stand_in);
	l->held = l->image != stand_in;
	if (!l->held && l->ops->changed)
		l->ops->changed(l->disk, false);
	return l->held;
}

int lend_settle(struct lend *l)
{
	bool want = wanted(l), resumes = want && l->held && l->paused && !l->stopped;

	if (want == l->held && !resumes)
		return -1;
	if (l->ops->busy && l->ops->busy(l->disk))
		return RETRY_FLUSH_MS;
	if (want && !l->held)
		return take(l) ? RETRY_MS : -1;
	if (!want && l->held)
		return give(l) ? RETRY_FLUSH_MS : -1;
	resume_all(l); /* it was wanted again before it could be given away */
	return -1;
}

int lend_give(struct lend *l)
{
	l->given = true;
	return l->held && give(l);
}

bool lend_is_stopped(const struct lend *l)
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
	return stopped;
}
