/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/strange.c - see strange.h
 */
#include "export/vhost-user-blk/strange.h"

#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAJOR_OF_MEMORY 1 /* /dev/null, /dev/zero, ... */
#define STACK_LEN 65536

struct strange_debt {
	_Atomic unsigned users; /* the owner, and each thread */
};

struct strange_debt *strange_debt_new(void)
{
	struct strange_debt *d = malloc(sizeof(*d));

	if (d)
		atomic_init(&d->users, 1);
	return d;
}

void strange_debt_free(struct strange_debt *d)
{
	if (d && atomic_fetch_sub(&d->users, 1) == 1)
		free(d);
}

bool strange_debt_is_open(const struct strange_debt *d)
{
	return atomic_load(&d->users) > 1;
}

/*
 * Is the mount with this number of a file system that asks another program or machine? Unknown ones are: they belong to a name
 * space that is not ours, where anybody may mount what he likes.
 */
static bool mount_may_wait(uint64_t id)
{
	static const char *const others[] = { "fuse", "nfs", "cifs", "smb", "9p", "ceph", "afs", "virtiofs" };
	FILE *f = fopen("/proc/self/mountinfo", "re");
	char *line = NULL;
	size_t room = 0;
	bool wait = true;

	while (f && getline(&line, &room, f) > 0) {
		const char *type = strstr(line, " - ");

		if (strtoull(line, NULL, 10) != id || !type)
			continue;
		wait = false;
		for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++)
			wait |= strncmp(type + 3, others[i], strlen(others[i])) == 0;
		break;
	}
	free(line);
	if (f)
		fclose(f);
	return wait;
}

/* Memory knows seals; a device has a number, and its file system does not ask anybody. */
static bool file_is_strange(int fd, const struct statx *sx)
{
	if (fcntl(fd, F_GET_SEALS) >= 0 || sx->stx_dev_major)
		return false;
	return !(sx->stx_mask & STATX_MNT_ID) || mount_may_wait(sx->stx_mnt_id);
}

static bool socket_is_strange(int fd)
{
	socklen_t len = sizeof(int);
	int domain = -1;

	return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) < 0 || domain != AF_UNIX;
}

bool fd_is_strange(int fd)
{
	struct statx sx;

	/* From what the kernel knows already: nobody is asked. */
	if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE | STATX_MNT_ID, &sx) < 0)
		return true;
	switch (sx.stx_mode & S_IFMT) {
	case 0: /* eventfds, and others that are no files */
	case S_IFIFO:
		return false;
	case S_IFREG:
		return file_is_strange(fd, &sx);
	case S_IFSOCK:
		return socket_is_strange(fd);
	case S_IFCHR:
		return sx.stx_rdev_major != MAJOR_OF_MEMORY;
	default:
		return true;
	}
}

/* ---- closing ---- */

struct closing {
	int fd;
	struct strange_debt *debt;
};

static void *close_it(void *arg)
{
	struct closing *c = arg;

	close(c->fd);
	strange_debt_free(c->debt);
	free(c);
	return NULL;
}

static int start_thread(struct closing *c)
{
	sigset_t all, old;
	pthread_attr_t attr;
	pthread_t thread;
	int ret;

	if (pthread_attr_init(&attr) != 0)
		return -1;
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attr, STACK_LEN > PTHREAD_STACK_MIN ? STACK_LEN : (size_t)PTHREAD_STACK_MIN);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	ret = pthread_create(&thread, &attr, close_it, c);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	return ret;
}

void fd_close_strange(int fd, struct strange_debt *d)
{
	struct closing *c = malloc(sizeof(*c));

	if (c) {
		*c = (struct closing){ fd, d };
		if (d)
			atomic_fetch_add(&d->users, 1);
		if (start_thread(c) == 0)
			return;
		if (d)
			atomic_fetch_sub(&d->users, 1);
	}
	free(c);
	close(fd); /* no memory for another way */
}
