/* SPDX-License-Identifier: MIT */
/*
 * conformance/places.c - mounts and loop devices for the tests
 *
 * Owns:    them, in a mount namespace of this process.
 * Assumes: BUILD_DIR (the build says which) is on a file system with O_DIRECT.
 * Never:   leaves a mount or a device behind, even when killed: they go away with the process.
 */
#include "../unit/proto/leaf.h"

#include "../lib/patience.h"
#include "places.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/mount.h>

struct place {
	const char *name, *mode; /* mode: of faultfs */
	const char *missing;
	char path[300];
	int loop_fd;
	struct faultfs faultfs;
};

static struct place places[GROUNDS] = {
	[ON_FILE] = { .name = "file" },
	[ON_LOOP] = { .name = "loop" },
	[ON_TMPFS] = { .name = "tmpfs" },
	[ON_SMALL_TMPFS] = { .name = "small-tmpfs" },
	[ON_STARVED_LOOP] = { .name = "starved-loop" },
	[ON_FAULTFS] = { .name = "faultfs", .mode = "async" },
	[ON_FAULTFS_SYNC] = { .name = "faultfs-sync", .mode = "sync" },
	[ON_FAULTFS_CACHED] = { .name = "faultfs-cached", .mode = "cached" },
};

const char *place_name(enum ground ground)
{
	return places[ground].name;
}

const char *place_missing(enum ground ground)
{
	return places[ground].missing;
}

struct faultfs *place_faultfs(enum ground ground)
{
	return places[ground].mode ? &places[ground].faultfs : NULL;
}

static void make_dir(char *path, size_t len, const char *name)
{
	snprintf(path, len, "%s/%s", leaf_dir(), name);
	assert_int_equal(mkdir(path, 0700), 0);
}

static void make_tmpfs(struct place *p, const char *options)
{
	char dir[280];

	make_dir(dir, sizeof(dir), p->name);
	if (mount("varve-test", dir, "tmpfs", 0, options) < 0)
		p->missing = "no tmpfs can be mounted here";
	snprintf(p->path, sizeof(p->path), "%s/disk", dir);
}

/* A device over a sparse file; it goes away by itself with its last user. */
static void make_loop(struct place *p, const char *file)
{
	struct loop_config config = { .block_size = 512, .info.lo_flags = LO_FLAGS_AUTOCLEAR };
	int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	int back = open(file, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	p->loop_fd = -1;
	if (back >= 0 && ftruncate(back, RIG_LEN) == 0)
		config.fd = (uint32_t)back;
	/* Another test may take the free number first: look again a few times. */
	for (int i = 0; control >= 0 && p->loop_fd < 0 && i < 10; i++) {
		int nr = ioctl(control, LOOP_CTL_GET_FREE);

		snprintf(p->path, sizeof(p->path), "/dev/loop%d", nr);
		p->loop_fd = nr < 0 ? -1 : open(p->path, O_RDWR | O_CLOEXEC);
		if (p->loop_fd >= 0 && ioctl(p->loop_fd, LOOP_CONFIGURE, &config) < 0) {
			close(p->loop_fd);
			p->loop_fd = -1;
		}
	}
	if (control >= 0)
		close(control);
	if (back >= 0)
		close(back);
	if (p->loop_fd < 0)
		p->missing = "no loop device can be made here";
}

static void make_mounts(void)
{
	const char *why = NULL;
	char dir[280], file[300];

	if (!faultfs_own_mounts()) {
		for (int g = ON_TMPFS; g < GROUNDS; g++)
			places[g].missing = "root is needed to mount";
		return;
	}
	make_tmpfs(&places[ON_TMPFS], "size=64m");
	make_tmpfs(&places[ON_SMALL_TMPFS], "size=1m");
	make_tmpfs(&places[ON_STARVED_LOOP], "size=1m");
	snprintf(file, sizeof(file), "%s", places[ON_STARVED_LOOP].path);
	if (!places[ON_STARVED_LOOP].missing)
		make_loop(&places[ON_STARVED_LOOP], file);
	for (int g = ON_FAULTFS; g < GROUNDS; g++) {
		make_dir(dir, sizeof(dir), places[g].name);
		if (!faultfs_start(&places[g].faultfs, dir, places[g].mode, &why))
			places[g].missing = why;
		snprintf(places[g].path, sizeof(places[g].path), "%s", places[g].faultfs.disk);
	}
}

int places_make(void **state)
{
	(void)state;
	setenv("TMPDIR", BUILD_DIR, 1);
	alarm(PROGRAM_S);
	make_mounts();
	snprintf(places[ON_FILE].path, sizeof(places[ON_FILE].path), "%s", leaf_path("disk"));
	make_loop(&places[ON_LOOP], leaf_path("back"));
	return 0;
}

int places_away(void **state)
{
	char command[300];

	for (int g = ON_FILE; g < GROUNDS; g++) {
		struct place *p = &places[g];

		if (p->loop_fd > 0)
			close(p->loop_fd);
		if (p->faultfs.pid > 0)
			faultfs_stop(&p->faultfs);
		snprintf(command, sizeof(command), "%s/%s", leaf_dir(), p->name);
		umount2(command, MNT_DETACH); /* those that are no mounts are none */
	}
	return leaf_remove_dir(state);
}

const char *place_disk(enum ground ground, uint64_t len)
{
	struct place *p = &places[ground];
	int fd;

	if (p->mode) {
		faultfs_tell(&p->faultfs, "resize %llu", (unsigned long long)len);
	} else if (p->loop_fd) {
		uint64_t range[2] = { 0, RIG_LEN };

		assert_int_equal(ioctl(p->loop_fd, BLKDISCARD, range), 0);
	} else {
		unlink(p->path);
		fd = open(p->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
		assert_true(fd >= 0);
		assert_int_equal(ftruncate(fd, (off_t)len), 0);
		close(fd);
	}
	return p->path;
}
