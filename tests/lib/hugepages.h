/* SPDX-License-Identifier: MIT */
/*
 * hugepages.h - some of the machine's memory as huge pages, for as long as a test needs them
 *
 * Owns:    nothing; what was reserved is given back by whoever reserved it.
 * Assumes: root, or pages that somebody has reserved already; else there are none, and the test is skipped.
 * Never:   takes away pages that others have reserved: only the difference is taken and given back.
 */
#ifndef TESTS_HUGEPAGES_H
#define TESTS_HUGEPAGES_H

#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

/* Tests run at the same time: the number is read and written under a lock. */
static inline bool hugepages_change(int by)
{
	bool done;
	int fd = open("/proc/sys/vm/nr_hugepages", O_RDWR | O_CLOEXEC);
	char text[32] = "";
	long before = -1, after = -1;

	if (fd < 0)
		return false;
	if (flock(fd, LOCK_EX) == 0 && pread(fd, text, sizeof(text) - 1, 0) > 0) {
		before = strtol(text, NULL, 10);
		snprintf(text, sizeof(text), "%ld", before + by > 0 ? before + by : 0);
		if (pwrite(fd, text, strlen(text), 0) > 0) {
			memset(text, 0, sizeof(text));
			if (pread(fd, text, sizeof(text) - 1, 0) > 0)
				after = strtol(text, NULL, 10);
		}
	}
	done = before >= 0 && after == before + by;
	if (!done && by > 0 && after > before) { /* some of them only: none is of use */
		snprintf(text, sizeof(text), "%ld", before);
		(void)!pwrite(fd, text, strlen(text), 0);
	}
	close(fd);
	return done;
}

/* nr pages more than there are. False: the machine does not give them; nothing is to be given back then. */
static inline bool hugepages_take(int nr)
{
	return hugepages_change(nr);
}

static inline void hugepages_give_back(int nr)
{
	(void)hugepages_change(-nr); /* what is still in use goes back when its last user is gone */
}

#endif
