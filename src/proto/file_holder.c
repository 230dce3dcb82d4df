/* SPDX-License-Identifier: MIT */
/*
 * proto/file_holder.c - who has locked this byte of the file?
 *
 * The kernel does not tell the process of a lock that belongs to an open file description. /proc does: the
 * information about each open file lists its locks. Only that text is read; the files themselves are not
 * touched, for one may be on a server that does not answer.
 *
 * Which file it is the text says by numbers of the kernel's own: on btrfs and some overlays stat() gives
 * others. They are learnt from a lock of ours on the same file.
 *
 * Assumes: worker threads; the descriptor has a lock. Processes come and go meanwhile, and those of others
 * may be closed to us: what cannot be read is passed over.
 * Never:   works longer than HOLDER_NS, by a few file names.
 */
#include "proto/file.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Of this thread's own time: on a busy machine the clock says nothing about the work. */
#define HOLDER_NS 500000000ull
#define INFO_LEN 4096

/* As /proc names a file. */
struct file_name {
	unsigned major_nr, minor_nr;
	unsigned long long inode;
};

struct search {
	struct file_name file; /* ours */
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
static bool line_parse(const char *line, struct file_name *ret, unsigned long long *ret_first,
		       uint64_t *ret_last)
{
	char end[24];

	if (sscanf(line, "lock:%*s %*s %*s %*s %*s %x:%x:%llu %llu %23s", &ret->major_nr, &ret->minor_nr,
		   &ret->inode, ret_first, end) != 5)
		return false;
	*ret_last = strcmp(end, "EOF") ? strtoull(end, NULL, 10) : UINT64_MAX;
	return true;
}

static bool line_is_ours(const struct search *s, const char *line)
{
	struct file_name file;
	unsigned long long first;
	uint64_t last;

	return line_parse(line, &file, &first, &last) && file.inode == s->file.inode &&
	       file.major_nr == s->file.major_nr && file.minor_nr == s->file.minor_nr && first <= s->byte &&
	       s->byte <= last;
}

static const char *next_lock(const char *text)
{
	if (!strncmp(text, "lock:", 5))
		return text;
	text = strstr(text, "\nlock:");
	return text ? text + 1 : NULL;
}

static bool info_is_ours(const struct search *s, const char *text)
{
	for (const char *line = next_lock(text); line; line = next_lock(line + 1)) {
		if (line_is_ours(s, line))
			return true;
	}
	return false;
}

/* What our file is called, by a lock that we have on it. */
static bool find_name(int fd, struct file_name *ret)
{
	char path[40], text[INFO_LEN];
	unsigned long long first;
	const char *line;
	uint64_t last;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	line = read_text(AT_FDCWD, path, text, sizeof(text)) ? next_lock(text) : NULL;
	return line && line_parse(line, ret, &first, &last);
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
	struct search s = { .byte = byte, .until_ns = now_ns() + HOLDER_NS };
	DIR *proc = find_name(fd, &s.file) ? opendir("/proc") : NULL;
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
