/* SPDX-License-Identifier: MIT */
/*
 * order/journal_file.c - the file of a journal: where it is, whose it is, and that only one uses it
 *
 * Its name is made of the image's device and inode, so that it is found again under whatever name the image is opened. It
 * gets this name when its header is complete. Whoever uses it holds a lock (flock) on it, which the kernel gives up when
 * the process is gone.
 *
 * Owns:    the file from its making to its removal.
 * Assumes: worker threads. A directory that only we can write to.
 * Never:   believes a file of another user, another boot or another image.
 */
#include "order/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"

#define LOCK_TRIES 40 /* a process that was killed may need a moment to be gone */
#define LOCK_PAUSE_NS 50000000
#define PATH_LEN 4200

static int read_boot_id(uint8_t id[16])
{
	char text[64] = "";
	int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	unsigned at = 0;

	if (fd >= 0)
		close(fd);
	if (n <= 0)
		return -EIO;
	for (const char *c = text; *c && at < 32; c++) {
		const char *digits = "0123456789abcdef", *d = strchr(digits, *c);

		if (!d)
			continue;
		id[at / 2] = (uint8_t)(id[at / 2] << 4 | (d - digits));
		at++;
	}
	return at == 32 ? 0 : -EIO;
}

static const struct node *local_leaf(const struct node *n, const char *what, struct varve_error *err)
{
	while (n->file)
		n = n->file;
	if (n->file_id[0] || n->file_id[1])
		return n;
	varve_error_set(err, -ENOTSUP, "option 'state-dir': %s is not in a local file or device (driver %s); leave it out", what,
			n->drv->name);
	return NULL;
}

int journal_owner_init(struct journal_owner *o, const struct node *file, const struct node *data, struct varve_error *err)
{
	memset(o, 0, sizeof(*o));
	file = local_leaf(file, "the image", err);
	if (file && data && !(data = local_leaf(data, "the data of the image", err)))
		file = NULL;
	if (!file)
		return -ENOTSUP;
	memcpy(o->file_id, file->file_id, sizeof(o->file_id));
	o->file_birth = file->file_birth;
	o->pid = (uint64_t)getpid();
	snprintf(o->name, sizeof(o->name), "%s", node_name(file));
	if (data) {
		memcpy(o->data_id, data->file_id, sizeof(o->data_id));
		o->data_birth = data->file_birth;
		snprintf(o->data_name, sizeof(o->data_name), "%s", node_name(data));
	}
	if (read_boot_id(o->boot_id) < 0)
		return varve_error_set(err, -ENOTSUP,
				       "option 'state-dir': /proc/sys/kernel/random/boot_id cannot be read");
	return 0;
}

/* ---- directory and name ---- */

static int make_path(struct journal_search *s)
{
	char path[PATH_LEN];
	int n = snprintf(path, sizeof(path), "%s/%016llx-%016llx.journal", s->dir,
			 (unsigned long long)s->owner.file_id[0], (unsigned long long)s->owner.file_id[1]);

	if (n < 0 || (size_t)n >= sizeof(path) - 32)
		return varve_error_set(s->err, -ENAMETOOLONG, "state directory: its name is too long");
	s->path = strdup(path);
	return s->path ? 0 : varve_error_errno(s->err, -ENOMEM, "state directory");
}

static int check_dir(const struct journal_search *s)
{
	struct stat st;

	if (mkdir(s->dir, 0700) < 0 && errno != EEXIST)
		return varve_error_errno(s->err, -errno, "state directory %s: cannot make it", s->dir);
	if (stat(s->dir, &st) < 0)
		return varve_error_errno(s->err, -errno, "state directory %s", s->dir);
	if (!S_ISDIR(st.st_mode))
		return varve_error_set(s->err, -ENOTDIR, "state directory %s is no directory", s->dir);
	if ((st.st_uid != geteuid() && st.st_uid != 0) || (st.st_mode & 022))
		return varve_error_set(s->err, -EPERM,
				       "state directory %s can be written to by others; it must belong to the user of this process, mode 0700",
				       s->dir);
	return 0;
}

/* ---- finding ---- */

static int lock(int fd)
{
	for (unsigned i = 0;; i++) {
		if (flock(fd, LOCK_EX | LOCK_NB) == 0)
			return 0;
		if ((errno != EWOULDBLOCK && errno != EINTR) || i == LOCK_TRIES)
			return -errno;
		nanosleep(&(struct timespec){ .tv_nsec = LOCK_PAUSE_NS }, NULL);
	}
}

/* 0 with fd -1: there is none. */
static int open_locked(struct journal_search *s, struct stat *st)
{
	for (;;) {
		int ret;

		s->fd = open(s->path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
		if (s->fd < 0)
			return errno == ENOENT ? 0 : varve_error_errno(s->err, -errno, "state file %s", s->path);
		ret = lock(s->fd);
		if (ret == 0 && fstat(s->fd, st) < 0)
			ret = -errno;
		if (ret == 0 && st->st_nlink)
			return 0;
		close(s->fd);
		s->fd = -1;
		if (ret < 0)
			return varve_error_errno(s->err, ret,
						 "state file %s is in use by another process that serves this image", s->path);
		/* Its last user has removed it while we waited for the lock. */
	}
}

static int refuse(const struct journal_search *s, const char *why)
{
	return varve_error_set(s->err, -EUCLEAN,
			       "state file %s: %s; what it holds cannot be trusted. Remove it to open the image as it is on disk",
			       s->path, why);
}

/*
 * What was queued leads to bytes of that data file and of no other: of another one, entries would say that something is there which
 * nobody has written. Only a name is told here; what the image itself is called is known.
 */
static int check_data(const struct journal_search *s, const struct journal_owner *o)
{
	if (!memcmp(o->data_id, s->owner.data_id, sizeof(o->data_id)) && o->data_birth == s->owner.data_birth)
		return 0;
	return varve_error_set(s->err, -EUCLEAN,
			       "state file %s belongs to the image with the data file '%.500s', and not with '%.500s' as it is now. Give "
			       "that one (data-file.filename=), or remove the state file to open the image as it is on disk",
			       s->path, o->data_name, s->owner.data_name);
}

/* 1: of an earlier boot. */
static int check_owner(const struct journal_search *s)
{
	const struct journal_header *h = s->map;
	const struct journal_owner *o = &h->owner;

	if (memcmp(o->boot_id, s->owner.boot_id, sizeof(o->boot_id)) != 0)
		return 1;
	if (o->file_id[0] != s->owner.file_id[0] || o->file_id[1] != s->owner.file_id[1])
		return refuse(s, "it belongs to another image (the file was renamed or copied)");
	if (o->file_birth != s->owner.file_birth)
		return refuse(s, "it belongs to an image that was there before; this one is a new file");
	return check_data(s, o);
}

/*
 * What is going to be read has memory: a hole in it (a copy that left zeroes out, damage) takes memory when it is touched, and
 * on a file system that is full that is a SIGBUS.
 */
static int fill_holes(const struct journal_search *s, off_t at, off_t len)
{
	return fallocate(s->fd, 0, at, len) < 0 ? varve_error_errno(s->err, -errno, "state file %s", s->path) : 0;
}

static int fill_segments(const struct journal_search *s)
{
	off_t todo = (off_t)(journal_nr_todo(s->map) * sizeof(struct journal_todo));
	int ret = todo ? fill_holes(s, (off_t)JOURNAL_TODO, todo) : 0;

	for (unsigned i = 0; i < JOURNAL_SEGMENTS && ret == 0; i++) {
		if (journal_segment_used(s->map, i))
			ret = fill_holes(s, (off_t)(JOURNAL_FIRST + i * JOURNAL_SEGMENT_LEN), (off_t)JOURNAL_SEGMENT_LEN);
	}
	return ret;
}

static int look(struct journal_search *s, const struct stat *st)
{
	const char *fault;
	int ret;

	if (!S_ISREG(st->st_mode) || st->st_uid != geteuid())
		return refuse(s, "it is not a file of the user of this process");
	if (st->st_mode & 022)
		return refuse(s, "others may write to it");
	if ((uint64_t)st->st_size != JOURNAL_LEN)
		return refuse(s, journal_header_fault(NULL, (size_t)st->st_size));
	ret = fill_holes(s, 0, (off_t)JOURNAL_FIRST);
	if (ret < 0)
		return ret;
	s->map = mmap(NULL, JOURNAL_LEN, PROT_READ | PROT_WRITE, MAP_SHARED, s->fd, 0);
	if (s->map == MAP_FAILED) {
		s->map = NULL;
		return varve_error_errno(s->err, -errno, "state file %s", s->path);
	}
	fault = journal_header_fault(s->map, JOURNAL_LEN);
	if (fault)
		return refuse(s, fault);
	ret = check_owner(s);
	if (ret <= 0)
		return ret < 0 ? ret : fill_segments(s);
	/* A power cut ends with a reboot: what was not flushed is void then, as with any disk. */
	log_warning("state file %s is of an earlier boot and was removed", s->path);
	journal_unmap(s->map, s->fd, s->path, true);
	s->map = NULL;
	s->fd = -1;
	s->path = NULL;
	s->outdated = true;
	return 0;
}

int journal_find(struct journal_search *s)
{
	struct stat st;
	int ret;

	s->map = NULL;
	s->fd = -1;
	s->path = NULL;
	ret = check_dir(s);
	if (ret == 0)
		ret = make_path(s);
	if (ret == 0)
		ret = open_locked(s, &st);
	if (ret == 0 && s->fd >= 0)
		ret = look(s, &st);
	if (ret < 0 || s->fd < 0) {
		journal_unmap(s->map, s->fd, s->path, false);
		s->map = NULL;
	}
	return ret;
}

/* ---- making ---- */

static int fill(struct journal_search *s, const char *temporary, struct journal *j)
{
	uint64_t key;

	if (ftruncate(s->fd, (off_t)JOURNAL_LEN) < 0 ||
	    fallocate(s->fd, 0, 0, (off_t)(JOURNAL_FIRST + JOURNAL_AT_FIRST * JOURNAL_SEGMENT_LEN)) < 0 ||
	    getrandom(&key, sizeof(key), 0) != sizeof(key))
		return varve_error_errno(s->err, -errno, "state file %s: cannot make it", temporary);
	s->map = mmap(NULL, JOURNAL_LEN, PROT_READ | PROT_WRITE, MAP_SHARED, s->fd, 0);
	if (s->map == MAP_FAILED) {
		s->map = NULL;
		return varve_error_errno(s->err, -errno, "state file %s: cannot make it", temporary);
	}
	journal_format(j, s->map, key, &s->owner);
	j->reserved[0] = (1u << JOURNAL_AT_FIRST) - 1;
	j->nr_reserved = JOURNAL_AT_FIRST;
	return 0;
}

/*
 * Gives the new one its name: that of an old one that is kept for its errors (journal_settle()), which the new one has then. Whoever
 * is killed here leaves one of the two, and never none. old->map NULL: there is no old one. -ENOENT: the new one has been removed.
 */
static int put_in_place(const struct journal_search *s, const char *temporary, const struct journal_search *old)
{
	struct journal_header *h = s->map;
	const struct journal_header *from = old->map;
	int ret;

	if (from) {
		atomic_store_explicit(&h->error, atomic_load_explicit(&from->error, memory_order_acquire), memory_order_release);
		atomic_store_explicit(&h->data_error, atomic_load_explicit(&from->data_error, memory_order_acquire),
				      memory_order_release);
		ret = rename(temporary, s->path);
	} else {
		/* Not over one that another process has made meanwhile: it would go on with one that nobody finds. */
		ret = link(temporary, s->path);
		if (ret == 0)
			unlink(temporary);
	}
	if (ret < 0 && errno == ENOENT)
		return -ENOENT; /* make() says what that means */
	return ret < 0 ? varve_error_errno(s->err, -errno, "state file %s: cannot make it", s->path) : 0;
}

/* Another process may have taken it for a dead one's before it was locked, and removed it (journal_leftover.c). */
static int make_locked(struct journal_search *s, const char *temporary)
{
	struct stat st;

	for (;;) {
		int ret;

		s->fd = open(temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
		if (s->fd < 0)
			return varve_error_errno(s->err, -errno, "state file %s: cannot make it", temporary);
		ret = lock(s->fd);
		if (ret == 0 && fstat(s->fd, &st) < 0)
			ret = -errno;
		if (ret < 0)
			return varve_error_errno(s->err, ret, "state file %s: cannot lock it", temporary);
		if (st.st_nlink)
			return 0;
		close(s->fd);
		s->fd = -1;
	}
}

/*
 * Removed it may be with its lock, too: who sweeps has seen an older one of ours under this name, whose second name it was, and removes
 * it only now. Where the directory is gone, none can be made again, and that is the end.
 */
static int make(struct journal_search *s, const char *temporary, struct journal *j, const struct journal_search *old)
{
	for (;;) {
		int ret = make_locked(s, temporary);

		if (s->fd < 0)
			return ret;
		if (ret == 0)
			ret = fill(s, temporary, j);
		if (ret == 0)
			ret = put_in_place(s, temporary, old);
		if (ret == 0)
			return 0;
		unlink(temporary);
		if (ret != -ENOENT)
			return ret;
		journal_unmap(s->map, s->fd, NULL, false);
		s->map = NULL;
		s->fd = -1;
	}
}

static int any_record(void *arg, uint64_t section, uint64_t off, const void *bytes, size_t len)
{
	(void)arg;
	(void)section;
	(void)off;
	(void)bytes;
	(void)len;
	return -EEXIST;
}

/* One that is kept for its errors only may be replaced. Locked: nobody else uses it, or does the same. */
static int find_old(struct journal_search *old)
{
	const char *fault;
	int ret = journal_find(old);

	if (ret < 0 || !old->map)
		return ret;
	ret = journal_replay(old->map, any_record, NULL, &fault);
	if (ret == 0)
		return 0;
	ret = varve_error_set(old->err, -EEXIST, "state file %s: another process has made it meanwhile", old->path);
	journal_unmap(old->map, old->fd, old->path, false);
	return ret;
}

int journal_create(struct journal_search *s, struct journal *j)
{
	struct journal_search old = { .dir = s->dir, .owner = s->owner, .err = s->err };
	char temporary[PATH_LEN];
	int ret;

	s->map = NULL;
	s->fd = -1;
	s->path = NULL;
	ret = check_dir(s);
	if (ret == 0)
		ret = find_old(&old);
	if (ret < 0)
		return ret;
	ret = make_path(s);
	if (ret == 0) {
		snprintf(temporary, sizeof(temporary), "%s.%ld", s->path, (long)getpid());
		journal_sweep(s->dir);
		ret = make(s, temporary, j, &old);
	}
	if (old.map)
		journal_unmap(old.map, old.fd, old.path, false);
	if (ret < 0) {
		journal_unmap(s->map, s->fd, s->path, false);
		return ret;
	}
	j->fd = s->fd;
	j->path = s->path;
	return 0;
}

/* ---- using, ending ---- */

int journal_todo_memory(const struct journal *j)
{
	off_t step = (off_t)(JOURNAL_TODO_STEP * sizeof(struct journal_todo)), at = (off_t)JOURNAL_TODO;

	at += (off_t)(j->todo_memory * sizeof(struct journal_todo));
	return j->fd >= 0 && fallocate(j->fd, 0, at, step) < 0 ? -errno : 0;
}

int journal_segment_memory(const struct journal *j, unsigned i, bool give_back)
{
	off_t at = (off_t)(JOURNAL_FIRST + i * JOURNAL_SEGMENT_LEN);
	int how = give_back ? FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE : 0;

	if (j->fd < 0)
		return 0;
	/* Without memory behind it, a store would end the process with SIGBUS when the file system is full. */
	return fallocate(j->fd, how, at, (off_t)JOURNAL_SEGMENT_LEN) < 0 ? -errno : 0;
}

void journal_unmap(void *map, int fd, char *path, bool remove)
{
	if (remove && path)
		(void)unlink(path); /* it would be found, and found to hold nothing */
	if (map)
		munmap(map, JOURNAL_LEN);
	if (fd >= 0)
		close(fd); /* and with it the lock */
	free(path);
}
