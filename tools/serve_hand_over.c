/* SPDX-License-Identifier: MIT */
/*
 * tools/serve_hand_over.c - `varve serve --hand-over`: the image is ours only while the machine runs
 *
 *	      the front end starts a queue, and nobody else has the image
 *	LENT ─────────────────────────────────────────────────────────────▶ HELD
 *	  ▲                                                                   │
 *	  └─── the front end has stopped its queues, or is gone; all flushed ─┘
 *
 * So two servers can serve one image, one after the other, while its machine moves from one host to another: the monitor
 * there wants to see the disk before the one here has let go of it. The lock of the image says whose it is.
 *
 * In LENT the export is paused over a stand-in: the image's header, read without a lock, for its length. What the front end
 * offers waits. Opening the image anew in HELD reads all that the other server has written.
 *
 * Owns:    which of the two images a disk has open.
 * Assumes: the main thread, but for demanded().
 * Never:   lets go of an image that could not be flushed: whoever had it next would miss what the guest was told is there.
 */
#include "serve.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* Until the next attempt, while somebody else has the image, or ours cannot be flushed. */
#define RETRY_MS 100
#define RETRY_FLUSH_MS 5000

/* The control queue's thread. */
static void demanded(void *user_data, bool wanted)
{
	struct serve_disk *d = user_data;
	uint64_t one = 1;

	atomic_store(&d->wanted, wanted);
	if (write(d->wake_fd, &one, sizeof(one)) < 0)
		return; /* it cannot: the counter is read by the main thread */
}

static struct varve_image *open_stand_in(const struct serve_disk *d)
{
	struct open_args args = d->open;

	args.state_dir = NULL;
	args.copy_on_read = false;
	return open_image(d->file, &args, VARVE_OPEN_FORCE_SHARE | VARVE_OPEN_NO_IO | VARVE_OPEN_NO_BACKING, d->queues[0]);
}

struct varve_image *serve_lent(struct serve *s, struct serve_disk *d)
{
	if (s->wake_fd < 0)
		s->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (s->wake_fd < 0) {
		complain("eventfd: %s", strerror(errno));
		return NULL;
	}
	d->wake_fd = s->wake_fd;
	d->export.paused = true;
	/* Monitors do not bring the guest's choice: after a move it would take for stable what is not. */
	d->export.fixed_cache = true;
	d->export.demand = demanded;
	d->export.user_data = d;
	return open_stand_in(d);
}

/* Once, until it is another one. */
static void tell_trouble(struct serve_disk *d, const char *what, const struct varve_error *err)
{
	if (strcmp(d->trouble, err->message) == 0)
		return;
	snprintf(d->trouble, sizeof(d->trouble), "%s", err->message);
	complain("warning: %s: %s: %s", d->file, what, err->message);
}

/* Puts another image in place of the one that is open, which is closed; d->image tells if it could be. */
static void swap(struct serve_disk *d, struct varve_image *image)
{
	struct varve_image *old = d->image;
	struct varve_error err;

	if (varve_export_set_image(d->exp, image, &err) < 0) {
		complain("%s", err.message);
		close_image(image);
		return;
	}
	d->image = image;
	if (d->limits && varve_image_set_limits(image, d->limits, &err) < 0)
		complain("%s", err.message);
	close_image(old);
}

/* 1: somebody else has the image, or there is another trouble, of which one line was said. */
static int take(struct serve_disk *d)
{
	struct varve_error err;
	struct varve_image *image = try_open_image(d->file, &d->open, VARVE_OPEN_WRITABLE, d->queues[0], &err);

	if (!image) {
		tell_trouble(d, "the guest waits until the image can be had", &err);
		return 1;
	}
	swap(d, image);
	if (d->image != image)
		return 1;
	if (*d->trouble)
		complain("warning: %s: the guest goes on", d->file);
	*d->trouble = 0;
	d->held = true;
	if (!d->paused)
		varve_export_resume(d->exp);
	return 0;
}

/* 1: not now. */
static int give(struct serve_disk *d)
{
	struct varve_image *stand_in;
	struct varve_error err;
	bool failed;

	if (serve_state_busy(d)) /* of this very machine: it is stopped for that */
		return 1;
	varve_export_pause(d->exp);
	/* The machine runs no more: nobody would resume a disk that stops here for an error (werror=stop). */
	varve_image_set_waiting(d->image, false);
	failed = varve_image_flush(d->image, &err) < 0;
	varve_image_set_waiting(d->image, true);
	if (failed) {
		tell_trouble(d, "the image is not handed over", &err);
		return 1;
	}
	stand_in = open_stand_in(d);
	if (!stand_in)
		return 1;
	*d->trouble = 0;
	swap(d, stand_in);
	d->held = d->image != stand_in;
	return d->held;
}

static int settle(struct serve_disk *d)
{
	bool wanted = atomic_load(&d->wanted);

	if (d->job)
		return -1; /* its end is heard of */
	if (wanted && !d->held)
		return take(d) ? RETRY_MS : -1;
	if (!wanted && d->held)
		return give(d) ? RETRY_FLUSH_MS : -1;
	/* It was wanted again before it could be given away. */
	if (wanted && !d->paused)
		varve_export_resume(d->exp);
	return -1;
}

int serve_hand_over(struct serve *s)
{
	int timeout = -1;
	uint64_t count;

	if (s->wake_fd < 0)
		return -1;
	if (read(s->wake_fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
		complain("eventfd: %s", strerror(errno));
	for (unsigned i = 0; i < s->nr_disks; i++) {
		struct serve_disk *d = &s->disk[i];
		int wait = d->hand_over ? settle(d) : -1;

		if (wait >= 0)
			timeout = timeout < 0 ? wait : MIN(timeout, wait);
	}
	return timeout;
}
