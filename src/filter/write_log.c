/* SPDX-License-Identifier: MIT */
/*
 * filter/write_log.c - records every change of a disk, so that any state a power cut could leave can be made
 * again
 *
 * The log has the format of the kernel's dm-log-writes (docs/spec/dm-log-writes.md), and replay tools for it
 * read it.
 *
 * Order of entries, with several queues too:
 *   write, zero, discard   stand where they completed: the entry is in the log before the completion is
 * reported flush                  stands where it was submitted: all that had completed by then is before it.
 * Until it has succeeded the entry is a mark; then it becomes a FLUSH. One that fails stays a mark. length of
 * the file     a mark, which stands where it was changed; lasting as a write is, from the next FLUSH on FUA
 * is a flag of its write, which is durable where it stands So after a cut at some place of the log, what
 * stands before the last FLUSH there is on the disk, and so are FUA writes before the place; each other write
 * that stands before it, or that was in flight there (it stands after it, if it was ever finished), may be
 * there or not, or in part. A failed write may be there as well: a mark names it.
 *
 * Owns:    the log file, from open to close, under a lock of its own (flock).
 * Assumes: the memory of a write does not change while it is in flight. What a guest scribbles is logged as
 * scribbled. Never:   reports as done what is not in the log: when the log cannot be written, the request
 * fails, and so does every change that follows.
 *
 * The log is written through the page cache by the thread that completes the request: this is a tool for
 * tests and diagnosis, no layer for disks that are in a hurry. It survives a crash of the process, not of the
 * machine.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/iov.h"
#include "base/opts.h"
#include "filter/filter.h"

#define LOG_SECTOR 512u
#define LOG_MAGIC 0x6a736677736872ull
#define LOG_VERSION 1ull
#define LOG_FLUSH (1ull << 0)
#define LOG_FUA (1ull << 1)
#define LOG_DISCARD (1ull << 2)
#define LOG_MARK (1ull << 3)

/* docs/spec/dm-log-writes, "Super block" */
struct log_super_disk {
	le64 magic;
	le64 version;
	le64 nr_entries;
	le32 sector_len;
};

/* docs/spec/dm-log-writes, "Entries": at the start of a sector; the text of a mark follows in the same sector
 */
struct log_entry_disk {
	le64 sector;	 /*  0 */
	le64 nr_sectors; /*  8 */
	le64 flags;	 /* 16 */
	le64 text_len;	 /* 24  marks only */
};
static_assert(sizeof(struct log_entry_disk) == 32, "see the spec");

struct write_log {
	/* set at open */
	int fd;

	/* under lock, any queue */
	pthread_mutex_t lock;
	uint64_t end; /* of the log: where the next entry goes */
	uint64_t nr_entries;
	int error; /* of the log file: nothing is recorded any more */
};

/* ---- the file ---- */

static int put_all(int fd, const void *bytes, size_t len, uint64_t off)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = pwrite(fd, (const char *)bytes + done, len - done, (off_t)(off + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		done += (size_t)n;
	}
	return 0;
}

static int put_data(int fd, const struct req *r, uint64_t off)
{
	int ret = 0;

	for (unsigned i = 0; ret == 0 && i < r->nr_iov; i++) {
		ret = put_all(fd, r->iov[i].iov_base, r->iov[i].iov_len, off);
		off += r->iov[i].iov_len;
	}
	return ret;
}

static int put_super(struct write_log *wl)
{
	struct log_super_disk super = {
		.magic = le64_put(LOG_MAGIC),
		.version = le64_put(LOG_VERSION),
		.nr_entries = le64_put(wl->nr_entries),
		.sector_len = le32_put(LOG_SECTOR),
	};

	return put_all(wl->fd, &super, sizeof(super), 0);
}

static int put_header(struct write_log *wl, uint64_t at, uint64_t off, uint64_t len, uint64_t flags,
		      const char *text)
{
	uint8_t sector[LOG_SECTOR] = { 0 };
	struct log_entry_disk entry = {
		.sector = le64_put(off / LOG_SECTOR),
		.nr_sectors = le64_put(len / LOG_SECTOR),
		.flags = le64_put(flags),
		.text_len = le64_put(text ? strlen(text) : 0),
	};

	memcpy(sector, &entry, sizeof(entry));
	if (text)
		memcpy(sector + sizeof(entry), text, strlen(text));
	return put_all(wl->fd, sector, sizeof(sector), at);
}

/*
 * One entry at the end. Data first, then its header, then the count that makes both part of the log: whoever
 * reads the log while it grows, or after the process died, finds whole entries only. data: r's; else zeroes,
 * which the file need not hold. *ret_at: where the entry stands.
 */
static int append(struct write_log *wl, uint64_t off, uint64_t len, uint64_t flags, const char *text,
		  const struct req *data, uint64_t *ret_at)
{
	uint64_t at, body = flags & LOG_DISCARD ? 0 : len;
	int ret;

	pthread_mutex_lock(&wl->lock);
	at = wl->end;
	ret = wl->error;
	if (ret == 0 && data)
		ret = put_data(wl->fd, data, at + LOG_SECTOR);
	else if (ret == 0 && body && ftruncate(wl->fd, (off_t)(at + LOG_SECTOR + body)) < 0)
		ret = -errno;
	if (ret == 0)
		ret = put_header(wl, at, off, len, flags, text);
	if (ret == 0) {
		wl->end = at + LOG_SECTOR + body;
		wl->nr_entries++;
		ret = put_super(wl);
	}
	wl->error = ret;
	pthread_mutex_unlock(&wl->lock);
	if (ret_at)
		*ret_at = at;
	return ret;
}

static int flush_succeeded(struct write_log *wl, uint64_t at)
{
	int ret;

	pthread_mutex_lock(&wl->lock);
	ret = wl->error;
	if (ret == 0)
		ret = wl->error = put_header(wl, at, 0, 0, LOG_FLUSH, NULL);
	pthread_mutex_unlock(&wl->lock);
	return ret;
}

/* ---- requests ---- */

static void change_done(struct req *r, int ret)
{
	static const char *const names[REQ_OPS] = { "read", "write", "flush", "discard", "zero" };
	struct node *n = r->at;
	struct write_log *wl = node_state(n);
	uint64_t flags = r->flags & REQ_FUA ? LOG_FUA : 0;
	int logged;

	if (ret < 0) {
		char text[80];

		snprintf(text, sizeof(text), "%s failed at %llu+%llu", names[r->op],
			 (unsigned long long)r->off, (unsigned long long)r->len);
		logged = append(wl, 0, 0, LOG_MARK, text, NULL, NULL);
	} else if (r->op == REQ_DISCARD) {
		logged = append(wl, r->off, r->len, LOG_DISCARD, NULL, NULL, NULL);
	} else {
		logged = append(wl, r->off, r->len, flags, NULL, r->op == REQ_WRITE ? r : NULL, NULL);
		filter_grown(n);
	}
	req_done(r, ret < 0 ? ret : logged);
}

static void flush_done(struct req *r, int ret)
{
	struct write_log *wl = node_state(r->at);

	if (ret == 0)
		ret = flush_succeeded(wl, req_state(r));
	req_done(r, ret);
}

/* Devices have no such thing, so the format has no entry for it: a mark says it. */
static int write_log_length_set(struct node *n, uint64_t len, bool at_least)
{
	char text[80];

	snprintf(text, sizeof(text), "%s %llu", at_least ? "length at least" : "length",
		 (unsigned long long)len);
	return append(node_state(n), 0, 0, LOG_MARK, text, NULL, NULL);
}

static void fail_run(struct msg *m)
{
	struct req *r = container_of(m, struct req, msg);

	req_done(r, (int)r->aio.res);
}

static void fail_later(struct req *r, int error)
{
	r->aio.res = error;
	r->msg.run = fail_run;
	queue_later(r->q, &r->msg);
}

static int log_error(struct write_log *wl)
{
	int ret;

	pthread_mutex_lock(&wl->lock);
	ret = wl->error;
	pthread_mutex_unlock(&wl->lock);
	return ret;
}

static void write_log_submit(struct node *n, struct req *r)
{
	struct write_log *wl = node_state(n);
	uint64_t at = 0;
	int ret = 0;

	r->flags &= ~REQ_ALIGNED; /* to our sectors; the file below may want more */
	if (r->op == REQ_READ) {
		req_forward(r, n->file, r->off, NULL);
		return;
	}
	ret = r->op == REQ_FLUSH ? append(wl, 0, 0, LOG_MARK, "flush not finished", NULL, &at)
				 : log_error(wl);
	if (ret < 0) {
		fail_later(r, ret);
		return;
	}
	if (r->op == REQ_FLUSH)
		req_set_state(r, at);
	req_forward(r, n->file, r->off, r->op == REQ_FLUSH ? flush_done : change_done);
}

/* ---- open and close ---- */

static const struct node *leaf_of(const struct node *n)
{
	while (n->file)
		n = n->file;
	return n;
}

static int log_start(struct write_log *wl, const struct node *leaf, const char *name, struct varve_error *err)
{
	struct stat st;
	int ret;

	if (fstat(wl->fd, &st) < 0)
		return varve_error_errno(err, -errno, "log: %s", name);
	if (!S_ISREG(st.st_mode))
		return varve_error_set(err, -EINVAL, "log: %s is not a regular file", name);
	if (leaf->file_id[0] == st.st_dev && leaf->file_id[1] == st.st_ino)
		return varve_error_set(err, -EINVAL,
				       "log: %s is the disk that is to be logged; name another file", name);
	if (flock(wl->fd, LOCK_EX | LOCK_NB) < 0)
		return varve_error_errno(err, -errno, "log: %s is in use", name);
	if (ftruncate(wl->fd, 0) < 0)
		return varve_error_errno(err, -errno, "log: %s", name);
	wl->end = LOG_SECTOR;
	ret = ftruncate(wl->fd, LOG_SECTOR) < 0 ? -errno : put_super(wl);
	return ret < 0 ? varve_error_errno(err, ret, "log: %s cannot be written", name) : 0;
}

static int write_log_open(struct fiber *f, struct node *n, struct opts *o, struct varve_error *err)
{
	struct write_log *wl = node_state(n);
	const char *name = opts_get(o, "log");
	int ret;

	(void)f;
	if (!name || !*name)
		return varve_error_set(err, -EINVAL,
				       "driver write-log: option 'log' is missing: the file to write to");
	if (!(n->flags & (NODE_WRITABLE | NODE_NO_IO | NODE_CHECK)))
		return varve_error_set(
			err, -EINVAL,
			"driver write-log: the disk is opened read-only; there is nothing to log");
	wl->fd = -1;
	if (n->flags & NODE_WRITABLE) { /* else somebody only looks: the log of who writes is left alone */
		wl->fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		if (wl->fd < 0)
			return varve_error_errno(err, -errno, "log: %s cannot be opened", name);
		ret = log_start(wl, leaf_of(n), name, err);
		if (ret < 0) {
			close(wl->fd);
			return ret;
		}
	}
	pthread_mutex_init(&wl->lock, NULL);
	n->align = LOG_SECTOR; /* the log knows whole sectors only, as a disk does */
	atomic_store_explicit(&n->len, node_len(n->file), memory_order_relaxed);
	return 0;
}

static void write_log_close(struct fiber *f, struct node *n)
{
	struct write_log *wl = node_state(n);

	(void)f;
	pthread_mutex_destroy(&wl->lock);
	if (wl->fd >= 0)
		(void)close(wl->fd); /* all was given to the kernel; errors of that were reported */
}

static const struct varve_option_info open_options[] = {
	{ "log", "file", "where every change is recorded, as dm-log-writes does", false },
	{ NULL, NULL, NULL, false },
};

const struct driver driver_write_log = {
	.name = "write-log",
	.kind = DRIVER_FILTER,
	.state_len = sizeof(struct write_log),
	.open_options = open_options,
	.open = write_log_open,
	.close = write_log_close,
	.submit = write_log_submit,
	.length_set = write_log_length_set,
};
