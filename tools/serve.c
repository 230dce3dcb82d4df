/* SPDX-License-Identifier: MIT */
/*
 * tools/serve.c - `varve serve`: disks for virtual machines, over vhost-user-blk
 *
 * The main thread waits for a signal to stop, and answers on the control socket meanwhile. A control queue runs the sockets of
 * all disks; one queue with a thread of its own runs each virtqueue, the first of a disk is its image's home.
 *
 * Never:   prints on stdout unless asked to; exits before what was acknowledged is flushed.
 */
#include "descriptors.h"
#include "serve.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

/* Set before any thread of the library exists. */
static bool verbose;

static void log_to_stderr(void *user_data, enum varve_log_level level, const char *line)
{
	static const char *const names[] = { "error: ", "warning: ", "", "" };

	(void)user_data;
	if (level <= VARVE_LOG_WARNING || (verbose && level <= VARVE_LOG_INFO))
		complain("%s%s", names[level], line);
}

/* ---- starting and stopping ---- */

static int start_control(struct serve *s)
{
	struct varve_queue_options qo = { .flags = VARVE_QUEUE_THREAD, .name = "varve-control" };
	struct varve_error err;

	if (varve_queue_new(&s->control, &qo, &err) == 0)
		return 0;
	complain("%s", err.message);
	return 1;
}

/* Copies the list at `at` and returns where the next one is: the first again, after the last. */
static const char *next_list(const char *all, const char *at, char *buf, size_t size)
{
	size_t len = strcspn(at, ":");

	snprintf(buf, size, "%.*s", (int)len, at);
	return at[len] ? at + len + 1 : all;
}

static int start_queues(const struct serve *s, struct serve_disk *d)
{
	char name[24];
	struct varve_queue_options qo = { .flags = VARVE_QUEUE_THREAD | (d->poll_adaptive ? VARVE_QUEUE_ADAPTIVE : 0),
					  .name = name,
					  .poll_us = d->poll_us };
	char cpus[256];
	const char *list = d->cpus;
	struct varve_error err;

	for (unsigned i = 0; i < d->export.nr_queues; i++) {
		if (s->nr_disks == 1)
			snprintf(name, sizeof(name), "varve-vq%u", i);
		else
			snprintf(name, sizeof(name), "varve-%u-vq%u", (unsigned)(d - s->disk), i);
		if (d->cpus) {
			list = next_list(d->cpus, list, cpus, sizeof(cpus));
			qo.cpus = cpus;
		}
		if (varve_queue_new(&d->queues[i], &qo, &err) < 0) {
			complain("%s%s", d->cpus ? "--cpus: " : "", err.message);
			return 1;
		}
	}
	return 0;
}

/* An argument of QEMU's: commas in values are written twice, and the shell must not touch it. */
static void print_quoted(const char *value)
{
	for (; *value; value++) {
		if (*value == ',')
			fputs(",,", stdout);
		else if (*value == '\'')
			fputs("'\\''", stdout);
		else
			putchar(*value);
	}
}

/* One guest with all the disks. */
static int print_qemu_args(const struct serve *s)
{
	printf("-m 1G -object memory-backend-memfd,id=varve-mem,size=1G,share=on -machine memory-backend=varve-mem");
	for (unsigned i = 0; i < s->nr_disks; i++) {
		const struct varve_vhost_user_blk_options *o = &s->disk[i].export;

		printf(" -chardev 'socket,id=varve%u,path=", i);
		print_quoted(o->socket_path);
		printf("' -device vhost-user-blk-pci,chardev=varve%u,num-queues=%u", i, o->nr_queues);
	}
	putchar('\n');
	return finish_stdout();
}

/* ---- the image, and the stand-in for it while somebody else has it (lend.h) ---- */

static struct varve_image *open_disk(void *disk, bool stand_in, struct varve_error *err)
{
	struct serve_disk *d = disk;
	struct open_args args = d->open;

	if (!stand_in)
		return try_open_image(d->file, &args, d->read_only ? 0 : VARVE_OPEN_WRITABLE, d->queues[0], err);
	args.state_dir = NULL;
	args.copy_on_read = false;
	return try_open_image(d->file, &args, VARVE_OPEN_FORCE_SHARE | VARVE_OPEN_NO_IO | VARVE_OPEN_NO_BACKING, d->queues[0],
			      err);
}

static bool disk_is_busy(void *disk, bool patient)
{
	const struct serve_disk *d = disk;

	/* A look answers in a moment, or waits for a disk that is stuck, as whoever asks will. */
	return d->job || serve_state_busy(d) || (patient ? !serve_job_wait(d->look) : d->look != NULL);
}

static int start_stream(struct serve_disk *d)
{
	struct varve_error err;

	if (!d->stream_wanted || varve_stream_start(&d->stream, d->lend.image, &d->stream_options, &err) == 0)
		return 0;
	complain("%s", err.message);
	return 1;
}

static void disk_changed(void *disk, bool held)
{
	struct serve_disk *d = disk;

	if (held && !d->stream)
		start_stream(d); /* it went on without one after a message */
}

/* It goes on with the next one. */
static void leave_disk(void *disk)
{
	struct serve_disk *d = disk;

	varve_stream_free(d->stream);
	d->stream = NULL;
}

static const struct lend_ops disk_ops = {
	.open = open_disk,
	.busy = disk_is_busy,
	.leave = leave_disk,
	.changed = disk_changed,
};

static int prepare_disk(struct serve *s, struct serve_disk *d)
{
	d->lend.ops = &disk_ops;
	d->lend.disk = d;
	d->lend.name = d->file;
	d->lend.wake_fd = s->wake_fd;
	d->open.state_dir = s->state_dir;
	d->export.writable = !d->read_only;
	lend_add(&d->lend, &d->served, &d->export);
	return start_queues(s, d);
}

static int start_disk(struct serve *s, struct serve_disk *d)
{
	struct varve_error err;

	if (lend_open(&d->lend))
		return 1;
	if (varve_export_vhost_user_blk(&d->served.exp, d->lend.image, &d->export, s->control, d->queues,
					d->export.nr_queues, &err) < 0) {
		complain("%s", err.message);
		return 1;
	}
	return start_stream(d);
}

int serve_settle(struct serve *s)
{
	int timeout = -1;

	lend_woken(s->wake_fd);
	for (unsigned i = 0; i < s->nr_disks; i++)
		timeout = sooner(timeout, lend_settle(&s->disk[i].lend));
	return timeout;
}

/* ---- one server after the other (takeover.h) ---- */

static struct lend *next_disk(void *program, struct lend *l)
{
	struct serve *s = program;
	unsigned i = l ? (unsigned)((struct serve_disk *)l->disk - s->disk) + 1 : 0;

	return i < s->nr_disks ? &s->disk[i].lend : NULL;
}

static void end_jobs(struct serve *s)
{
	for (unsigned i = 0; i < SERVE_DISKS_MAX; i++)
		serve_jobs_end(&s->disk[i]);
	if (s->job_fd >= 0)
		close(s->job_fd);
	s->job_fd = -1;
}

/* The next one wants the name of the control socket for itself. */
static void leave(void *program)
{
	struct serve *s = program;

	serve_control_free(s->asked);
	s->asked = NULL;
	end_jobs(s); /* there are none */
}

static void back(void *program)
{
	struct serve *s = program;

	if (s->control_path)
		s->asked = serve_control_new(s); /* without it after a message */
}

static bool is_controlled(void *program)
{
	return ((struct serve *)program)->control_path != NULL;
}

static const struct takeover_ops takeover_ops = { .next = next_disk, .leave = leave, .back = back, .controlled = is_controlled };

static int start_all(struct serve *s)
{
	for (unsigned i = 0; i < s->nr_disks; i++) {
		if (start_disk(s, &s->disk[i]))
			return 1;
	}
	if (s->control_path && !(s->asked = serve_control_new(s)))
		return 1;
	if (descriptors_check(&takeover_ops, s))
		return 1;
	if (s->pidfile && !(s->answers = takeover_new(&takeover_ops, s, &s->held)))
		return 1;
	return s->pidfile && takeover_serving(&s->from, &s->held, s->pidfile, s->signal_fd);
}

static int start(struct serve *s)
{
	int ret = 0;

	s->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (s->wake_fd < 0) {
		complain("eventfd: %s", strerror(errno));
		return 1;
	}
	if (start_control(s))
		return 1;
	for (unsigned i = 0; i < s->nr_disks && !ret; i++)
		ret = prepare_disk(s, &s->disk[i]);
	if (ret == 0 && s->takeover)
		ret = takeover_ask(&s->from, s->pidfile, &takeover_ops, s, s->signal_fd);
	ret = ret || start_all(s);
	takeover_end(&s->from, &takeover_ops, s);
	return ret ? ret : s->print_args ? print_qemu_args(s) : 0;
}

/*
 * Takes down whatever was started. served: all of it was, else what a guest has lost is left to the next start. 1: data that was
 * acknowledged may be lost.
 */
static int stop_disk(struct serve_disk *d, bool served)
{
	struct varve_error err;
	int failed = 0;

	serve_jobs_end(d);
	lend_end(&d->lend);
	if (varve_export_stop(d->served.exp, &err) < 0) {
		complain("%s", err.message);
		failed = 1;
	}
	serve_state_stop(d);
	varve_stream_free(d->stream); /* what it has not copied yet, the next one will */
	if (!served && d->lend.image)
		varve_image_leave_flush_error(d->lend.image);
	if (close_image(d->lend.image))
		failed = 1;
	for (unsigned i = 0; i < d->export.nr_queues; i++)
		varve_queue_free(d->queues[i]);
	free(d->name);
	free(d->lend.limits);
	free(d->image_options);
	return failed;
}

struct stopping {
	pthread_t thread;
	struct serve_disk *disk;
	bool served, threaded;
	int failed;
};

static void *stop_main(void *arg)
{
	struct stopping *t = arg;

	t->failed = stop_disk(t->disk, t->served);
	return NULL;
}

/* All at once: one that is stuck must not keep the others' data from being flushed. */
static int stop_disks(struct serve *s, bool served)
{
	struct stopping all[SERVE_DISKS_MAX];
	int failed = 0;

	for (unsigned i = 0; i < SERVE_DISKS_MAX; i++) {
		struct stopping *t = &all[i];

		*t = (struct stopping){ .disk = &s->disk[i], .served = served };
		t->threaded = i < s->nr_disks && s->nr_disks > 1 && pthread_create(&t->thread, NULL, stop_main, t) == 0;
	}
	for (unsigned i = 0; i < SERVE_DISKS_MAX; i++) {
		if (!all[i].threaded)
			stop_main(&all[i]); /* also one whose options were not understood to the end */
	}
	for (unsigned i = 0; i < SERVE_DISKS_MAX; i++) {
		if (all[i].threaded)
			pthread_join(all[i].thread, NULL);
		failed |= all[i].failed;
	}
	return failed;
}

static int stop(struct serve *s, bool served)
{
	int failed;

	takeover_free(s->answers);
	serve_control_free(s->asked);
	failed = stop_disks(s, served);
	end_jobs(s);
	varve_queue_free(s->control);
	if (s->wake_fd >= 0)
		close(s->wake_fd);
	if (s->signal_fd >= 0)
		close(s->signal_fd);
	pidfile_remove(&s->held);
	return failed;
}

int serve_main(int argc, char **argv)
{
	static struct serve s;
	int ret;

	s.wake_fd = s.job_fd = s.signal_fd = -1;
	s.from = (struct takeover_from){ .fd = -1, .pidfd = -1, .pid_fd = -1 };
	ret = serve_parse(argc, argv, &s);
	if (ret) {
		stop(&s, false); /* names */
		return ret < 0 ? finish_stdout() : ret;
	}
	verbose = s.verbose;
	varve_set_log(log_to_stderr, NULL);
	descriptors_raise();
	ret = (s.signal_fd = takeover_signals()) < 0;
	if (ret == 0)
		ret = start(&s);
	if (ret == 0)
		serve_control_run(&s);
	return stop(&s, ret == 0) || ret;
}
