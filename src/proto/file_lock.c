/* SPDX-License-Identifier: MIT */
/*
 * proto/file_lock.c - locks by which processes that use the same image learn of each other
 *
 * The bytes and their meaning are those of QEMU, so that both refuse an image that the other has open in a
 * way that does not go together: byte 100 + p is locked by whoever does p, byte 200 + p by whoever cannot
 * bear that others do p. All locks are shared ones; a byte that somebody else has locked is a byte on which
 * an exclusive lock would not be granted. The locks belong to the open file description, and end with it.
 *
 * Assumes: worker threads (file systems on a network may take their time).
 * Never:   keeps a lock after it has failed.
 */
#include "proto/file.h"

#include <fcntl.h>
#include <time.h>

#include "base/error.h"

#define LOCK_HELD 100
#define LOCK_UNSHARED 200

/*
 * How long others' locks are waited for: 300 ms, and 5 s when no process is found that has them. That is
 * looked at every 100 ms, for it is the larger work.
 */
#define LOCK_TRIES 30
#define LOCK_TRIES_NOBODY 500
#define LOCK_TRIES_LOOK 10
#define LOCK_PAUSE_NS 10000000

enum perm { PERM_CONSISTENT_READ, PERM_WRITE, PERM_WRITE_UNCHANGED, PERM_RESIZE, PERMS };

static const char *const perm_names[PERMS] = { "consistent read", "write", "write unchanged", "resize" };

#define BIT(p) (1u << (p))

/* What an open image does, and what others may not do meanwhile. Readers and one writer never mix. */
#define HELD_READER BIT(PERM_CONSISTENT_READ)
#define HELD_WRITER (BIT(PERM_CONSISTENT_READ) | BIT(PERM_WRITE) | BIT(PERM_RESIZE))
#define UNSHARED (BIT(PERM_WRITE) | BIT(PERM_RESIZE))

static int lock_byte(int fd, off_t off, short type)
{
	struct flock fl = { .l_type = type, .l_whence = SEEK_SET, .l_start = off, .l_len = 1 };

	while (fcntl(fd, F_OFD_SETLK, &fl) < 0) {
		if (errno != EINTR)
			return -errno;
	}
	return 0;
}

static int lock_bytes(int fd, off_t base, unsigned bits)
{
	int ret = 0;

	for (unsigned p = 0; !ret && p < PERMS; p++) {
		if (bits & BIT(p))
			ret = lock_byte(fd, base + (off_t)p, F_RDLCK);
	}
	return ret;
}

void file_unlock(int fd)
{
	struct flock fl = { .l_type = F_UNLCK, .l_whence = SEEK_SET, .l_start = LOCK_HELD, .l_len = 200 };

	(void)fcntl(fd, F_OFD_SETLK,
		    &fl); /* at worst the locks go with the descriptor, which is closed next */
}

/* 1 if another open file description has the byte locked. */
static int byte_is_locked(int fd, off_t off)
{
	struct flock fl = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = off, .l_len = 1 };

	while (fcntl(fd, F_OFD_GETLK, &fl) < 0) {
		if (errno != EINTR)
			return -errno;
	}
	return fl.l_type != F_UNLCK;
}

/*
 * The words are those that people and scripts look for; who it is comes behind them, and into *ret_found
 * whether anybody is (NULL: do not look; on a busy machine the search takes longer than the waiting).
 */
static int tell_conflict(int fd, const char *name, unsigned p, bool refused, bool *ret_found,
			 struct varve_error *err)
{
	char holder[128];
	bool known = ret_found &&
		     file_find_holder(fd, (refused ? LOCK_UNSHARED : LOCK_HELD) + p, holder, sizeof(holder));

	if (ret_found)
		*ret_found = known;
	return varve_error_set(err, -EAGAIN,
			       "Failed to get %s\"%s\" lock. Is another process using the image [%s]?%s%s%s",
			       refused ? "" : "shared ", perm_names[p], name, known ? " It is held by " : "",
			       known ? holder : "", known ? "." : "");
}

/* Our locks are in place: does anything that others have locked contradict them? */
static int lock_check(int fd, const char *name, unsigned held, bool *ret_found, struct varve_error *err)
{
	for (unsigned p = 0; p < PERMS; p++) {
		int refused = held & BIT(p) ? byte_is_locked(fd, LOCK_UNSHARED + (off_t)p) : 0;
		int used = UNSHARED & BIT(p) ? byte_is_locked(fd, LOCK_HELD + (off_t)p) : 0;

		if (refused < 0 || used < 0)
			return varve_error_errno(err, refused < 0 ? refused : used,
						 "cannot look at image locks");
		if (refused || used)
			return tell_conflict(fd, name, p, refused, ret_found, err);
	}
	return 0;
}

static int lock_once(int fd, const char *name, bool writable, enum file_locking locking, bool *ret_found,
		     struct varve_error *err)
{
	unsigned held = writable ? HELD_WRITER : HELD_READER;
	int ret;

	/* Lock first and look then: of two that start at once, both may be refused, but never both go on. */
	ret = lock_bytes(fd, LOCK_HELD, held);
	if (!ret)
		ret = lock_bytes(fd, LOCK_UNSHARED, UNSHARED);
	if (ret < 0) {
		file_unlock(fd);
		if (locking == FILE_LOCKING_AUTO && (ret == -EINVAL || ret == -EOPNOTSUPP || ret == -ENOSYS))
			return 0; /* no such locks here: nobody else can have one either */
		return varve_error_errno(err, ret, "cannot lock the image (locking=off opens it without)");
	}
	ret = lock_check(fd, name, held, ret_found, err);
	if (ret < 0)
		file_unlock(fd);
	return ret;
}

/*
 * A process that was killed may hold its locks a little longer than it lives: the kernel closes files that
 * are registered with its io_uring when the last request has ended and the ring is taken down. Whoever starts
 * it again must not be refused for that. On a busy machine, or with a slow disk, that takes its time; but
 * then no process has the file open, and there is nobody to be named either. (A process that we may not look
 * at, or one on another machine, is not found: who is refused for these is told a little later.)
 */
int file_lock(int fd, const char *name, bool writable, enum file_locking locking, struct varve_error *err)
{
	int ret;

	if (locking == FILE_LOCKING_OFF)
		return 0;
	for (unsigned i = 0;; i++) {
		bool look = i >= LOCK_TRIES && i % LOCK_TRIES_LOOK == 0, found = false;

		ret = lock_once(fd, name, writable, locking, look ? &found : NULL, err);
		if (ret != -EAGAIN || found || i == LOCK_TRIES_NOBODY)
			return ret;
		nanosleep(&(struct timespec){ .tv_nsec = LOCK_PAUSE_NS }, NULL);
	}
}
