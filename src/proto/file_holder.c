/* SPDX-License-Identifier: MIT */
/*
 * proto/file_holder.c - who has locked this byte of the file?
 *
 * The kernel does not tell the process of a lock that belongs to an open file description. /proc does: the
 * information about each open file lists its locks. Only that text is read; the files themselves are not
 * touched, for one may be on a server that does not answer.
 *
 * Assumes: worker threads. Processes come and go meanwhile, and those of others may be closed to us: what
 * cannot be read is passed over.
 * Never:   works longer than HOLDER_NS, by a few file names.
 */
#include "proto/file.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

/* Of this thread's own time: on a busy machine the clock says nothing about the work. */
#define HOLDER_NS 500000000ull
#define INFO_LEN 4096

struct search {
	struct stat st; /* of our file */
	int fd;
	uint64_t byte, until_ns;
};

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* *ret: the text of a file in /proc, as far as it fits; false: none. */
static bool read_text(int dir, const char *name, char *buf, size_t size)
{
	int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return false;
	n = read(fd, buf, size - 1);
	close(fd);
	if (n <= 0)
		return false;
	buf[n] = '\0';
	return true;
}

/* One line "lock:<tab>1: OFDLCK ADVISORY READ 123 fd:01:4711 100 100"; the last number may be EOF. */
static bool line_is_ours(const struct search *s, const char *line)
{
	unsigned long long inode, first, last = UINT64_MAX;
	unsigned major_nr, minor_nr;
	char end[24];

	if (sscanf(line, "lock:%*s %*s %*s %*s %*s %x:%x:%llu %llu %23s", &major_nr, &minor_nr, &inode,
		   &first, end) != 5)
		return false;
	if (strcmp(end, "EOF") != 0)
		last = strtoull(end, NULL, 10);
	return inode == s->st.st_ino && makedev(major_nr, minor_nr) == s->st.st_dev && first <= s->byte &&
	       s->byte <= last;
}

static bool info_is_ours(const struct search *s, const char *text)
{
	for (const char *line = text; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (!strncmp(line, "lock:", 5) && line_is_ours(s, line))
			return true;
	}
	return false;
}

/* Does the process (its directory in /proc) hold it through a descriptor? skip_fd: our own, with our own
 * locks. */
static bool process_holds(const struct search *s, int process, int skip_fd)
{
	int fd = openat(process, "fdinfo", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	char text[INFO_LEN];
	const struct dirent *e;
	bool found = false;

	if (!dir) {
		if (fd >= 0)
			close(fd);
		return false;
	}
	while (!found && now_ns() < s->until_ns && (e = readdir(dir))) {
		if (!isdigit((unsigned char)e->d_name[0]) || atoi(e->d_name) == skip_fd)
			continue;
		found = read_text(fd, e->d_name, text, sizeof(text)) && info_is_ours(s, text);
	}
	closedir(dir);
	return found;
}

/* A name that another user chose goes into our message: letters only. */
static void describe(int process, long pid, char *buf, size_t size)
{
	char command[64] = "";

	if (read_text(process, "comm", command, sizeof(command)))
		command[strcspn(command, "\n")] = '\0';
	for (char *c = command; *c; c++) {
		if (!isprint((unsigned char)*c))
			*c = '?';
	}
	if (pid == getpid())
		snprintf(buf, size, "this process, %ld", pid);
	else
		snprintf(buf, size, "process %ld%s%s%s", pid, *command ? " (" : "", command,
			 *command ? ")" : "");
}

bool file_find_holder(int fd, uint64_t byte, char *buf, size_t size)
{
	struct search s = { .fd = fd, .byte = byte, .until_ns = now_ns() + HOLDER_NS };
	DIR *proc = fstat(fd, &s.st) < 0 ? NULL : opendir("/proc");
	const struct dirent *e;
	bool found = false;

	if (!proc)
		return false;
	while (!found && now_ns() < s.until_ns && (e = readdir(proc))) {
		long pid = strtol(e->d_name, NULL, 10);
		int process =
			pid > 0 ? openat(dirfd(proc), e->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;

		if (process < 0)
			continue;
		found = process_holds(&s, process, pid == getpid() ? fd : -1);
		if (found)
			describe(process, pid, buf, size);
		close(process);
	}
	closedir(proc);
	return found;
}
