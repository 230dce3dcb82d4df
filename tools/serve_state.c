/* SPDX-License-Identifier: MIT */
/*
 * tools/serve_state.c - `varve serve`: the state of a machine on its way into a snapshot of its disk
 *
 *     SAVING ──end of the stream──▶ DONE
 *        └──error, or serve ends──▶ FAILED          there is a snapshot in DONE only
 *
 * The disk is kept as it is when the command is given; the guest goes on while a thread of ours reads the state, as fast or
 * slow as it comes.
 *
 * Owns:    the thread, the descriptor it reads, the writer.
 * Never:   waits for a stream that does not come when serve is to end.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "serve.h"

#define CHUNK (1u << 20)

struct serve_state {
	/* set at the start */
	pthread_t thread;
	struct varve_vmstate_writer *w; /* the thread's alone */
	int fd, end_fd;			/* end_fd: readable when it must end */
	char *name;
	uint8_t *buf;

	/* under lock */
	pthread_mutex_t lock;
	enum { SAVING, DONE, FAILED } state;
	uint64_t bytes;
	char error[VARVE_ERROR_MAX];
};

static void set_bytes(struct serve_state *st, uint64_t bytes)
{
	pthread_mutex_lock(&st->lock);
	st->bytes = bytes;
	pthread_mutex_unlock(&st->lock);
}

static void ended(struct serve_state *st, const char *error)
{
	pthread_mutex_lock(&st->lock);
	st->state = error ? FAILED : DONE;
	snprintf(st->error, sizeof(st->error), "%s", error ? error : "");
	pthread_mutex_unlock(&st->lock);
}

/* The next bytes; 0: the stream has ended. NULL, or what went wrong. */
static const char *next_bytes(struct serve_state *st, size_t *ret_len)
{
	struct pollfd p[2] = { { .fd = st->fd, .events = POLLIN }, { .fd = st->end_fd, .events = POLLIN } };
	ssize_t n;

	for (;;) {
		/* A FIFO that nobody has opened yet is waited for here: reading it would find its end. */
		if (poll(p, 2, -1) < 0 && errno != EINTR)
			return strerror(errno);
		if (p[1].revents)
			return "the server ended before the state did";
		if (!p[0].revents)
			continue;
		n = read(st->fd, st->buf, CHUNK);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			continue;
		if (n < 0)
			return strerror(errno);
		*ret_len = (size_t)n;
		return NULL;
	}
}

static void *save(void *arg)
{
	struct serve_state *st = arg;
	struct varve_error err;
	const char *why;
	size_t len = 1;

	for (;;) {
		why = next_bytes(st, &len);
		if (why || !len)
			break;
		if (varve_vmstate_write(st->w, st->buf, len, &err) < 0) {
			why = err.message;
			break;
		}
		set_bytes(st, varve_vmstate_write_position(st->w));
	}
	if (why)
		varve_vmstate_write_abort(st->w);
	else if (varve_vmstate_write_close(st->w, NULL, &err) < 0)
		why = err.message;
	ended(st, why);
	return NULL;
}

static void state_free(struct serve_state *st)
{
	if (!st)
		return;
	if (st->fd >= 0)
		close(st->fd);
	if (st->end_fd >= 0)
		close(st->end_fd);
	pthread_mutex_destroy(&st->lock);
	free(st->name);
	free(st->buf);
	free(st);
}

bool serve_state_busy(const struct serve_disk *d)
{
	struct serve_state *st = d->state;
	bool saving;

	if (!st)
		return false;
	pthread_mutex_lock(&st->lock);
	saving = st->state == SAVING;
	pthread_mutex_unlock(&st->lock);
	return saving;
}

static int failed(struct varve_error *err, int code, const char *what)
{
	err->code = code;
	snprintf(err->message, sizeof(err->message), "%.500s: %s", what, strerror(-code));
	return code;
}

static int prepare(struct serve_state *st, const char *name, const char *path, struct varve_error *err)
{
	st->name = strdup(name);
	st->buf = malloc(CHUNK);
	if (!st->name || !st->buf)
		return failed(err, -ENOMEM, name);
	st->fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (st->fd < 0)
		return failed(err, -errno, path);
	st->end_fd = eventfd(0, EFD_CLOEXEC);
	return st->end_fd < 0 ? failed(err, -errno, path) : 0;
}

int serve_state_start(struct serve_disk *d, const char *name, const char *path, struct varve_error *err)
{
	struct varve_snapshot_options so = { .name = name, .flags = VARVE_SNAPSHOT_NOW };
	struct serve_state *st;
	int ret;

	if (serve_state_busy(d))
		return failed(err, -EBUSY, "another state is on its way");
	serve_state_stop(d);
	st = calloc(1, sizeof(*st));
	if (!st)
		return failed(err, -ENOMEM, name);
	st->fd = st->end_fd = -1;
	pthread_mutex_init(&st->lock, NULL);
	ret = prepare(st, name, path, err);
	if (ret == 0)
		ret = varve_vmstate_write_open(&st->w, d->lend.image, &so, 0, err);
	if (ret < 0) {
		state_free(st);
		return ret;
	}
	ret = pthread_create(&st->thread, NULL, save, st);
	if (ret) {
		varve_vmstate_write_abort(st->w);
		state_free(st);
		return failed(err, -ret, "thread");
	}
	d->state = st;
	return 0;
}

json_t *serve_state_tell(struct serve_disk *d)
{
	static const char *const words[] = { "saving", "done", "failed" };
	struct serve_state *st = d->state;
	json_t *o;

	if (!st)
		return json_pack("{s:s}", "state", "none");
	pthread_mutex_lock(&st->lock);
	o = json_pack("{s:s, s:s, s:I}", "state", words[st->state], "name", st->name, "bytes", (json_int_t)st->bytes);
	if (st->state == FAILED)
		json_object_set_new(o, "error", json_string(st->error));
	pthread_mutex_unlock(&st->lock);
	return o;
}

void serve_state_stop(struct serve_disk *d)
{
	uint64_t one = 1;

	if (!d->state)
		return;
	if (write(d->state->end_fd, &one, sizeof(one)) < 0)
		complain("eventfd: %s", strerror(errno)); /* it cannot fail: the counter is 0 */
	pthread_join(d->state->thread, NULL);
	state_free(d->state);
	d->state = NULL;
}
