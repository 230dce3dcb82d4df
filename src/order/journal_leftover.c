/* SPDX-License-Identifier: MIT */
/*
 * order/journal_leftover.c - files of processes that were killed while they made a journal
 *
 * Until it has its name (journal_file.c), a journal is called as it will be, with ".PID" behind. Nobody looks for such a name, so what a
 * dead process has left of it would take its memory until the next boot.
 *
 * Whether its maker lives is not asked by its number, which may be another process's by now, or mean nothing here (namespaces): a
 * maker has a lock on the file from its second call on, and begins anew if the file is gone by then. Or later: a name that is looked at
 * may be that of its maker's next file when it is removed.
 *
 * Assumes: a directory that only we can write to; worker threads.
 * Never:   removes a file that somebody has a lock on, or one of another user.
 */
#include "order/journal.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define HEX "0123456789abcdef"
#define SUFFIX ".journal."

/* "0123456789abcdef-0123456789abcdef.journal.PID" */
static bool is_temporary(const char *name)
{
	const char *pid = name + 33 + strlen(SUFFIX);

	return strlen(name) > 33 + strlen(SUFFIX) && strspn(name, HEX) == 16 && name[16] == '-' && strspn(name + 17, HEX) == 16 &&
	       !strncmp(name + 33, SUFFIX, strlen(SUFFIX)) && strspn(pid, "0123456789") == strlen(pid);
}

/* With the lock: is it still the file of that name? */
static bool is_at(int dir_fd, const char *name, const struct stat *file)
{
	struct stat st;

	return fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && st.st_dev == file->st_dev && st.st_ino == file->st_ino;
}

static void look_at(int dir_fd, const char *name)
{
	int fd = openat(dir_fd, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	struct stat st;

	if (fd < 0)
		return;
	if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_uid == geteuid()) {
		/* One that has its name already, whose maker died, or is about to, before it removed this one: whoever uses it has the lock. */
		if (st.st_nlink > 1 || (flock(fd, LOCK_EX | LOCK_NB) == 0 && is_at(dir_fd, name, &st)))
			(void)unlinkat(dir_fd, name, 0); /* else the next one will */
	}
	close(fd);
}

void journal_sweep(const char *path)
{
	DIR *dir = opendir(path);
	const struct dirent *e;

	while (dir && (e = readdir(dir))) {
		if (is_temporary(e->d_name))
			look_at(dirfd(dir), e->d_name);
	}
	if (dir)
		closedir(dir);
}
