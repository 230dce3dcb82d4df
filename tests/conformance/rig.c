/* SPDX-License-Identifier: MIT */
/*
 * conformance/rig.c - places to put disks on, rigs, requests in flight
 *
 * Owns:    the mounts and the loop device, in a mount namespace of this process.
 * Assumes: BUILD_DIR is a folder on a file system with O_DIRECT (the build says which).
 * Never:   leaves a mount or a device behind, even when killed: they go away with the process.
 */
#include "rig.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/mount.h>

#define TIMEOUT_S 200 /* for one test program, far beyond what it takes */

struct faultfs rig_faultfs;

static struct {
	const char *why_not[GROUNDS]; /* NULL: it is there */
	char tmpfs[300];
	char loop[32];
	int loop_fd;
} places = { .loop_fd = -1 };

static const char *const ground_names[GROUNDS] = { "file", "loop", "tmpfs", "faultfs" };

const char *rig_ground_name(enum ground ground)
{
	return ground_names[ground];
}

/* ---- places ---- */

static void make_loop(void)
{
	struct loop_config config = { .block_size = 512, .info.lo_flags = LO_FLAGS_AUTOCLEAR };
	int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);

	leaf_make_file("back", RIG_LEN, false);
	config.fd = (uint32_t)open(leaf_path("back"), O_RDWR | O_CLOEXEC);
	/* Another test may take the free number first: look again a few times. */
	for (int i = 0; control >= 0 && places.loop_fd < 0 && i < 10; i++) {
		int nr = ioctl(control, LOOP_CTL_GET_FREE);

		snprintf(places.loop, sizeof(places.loop), "/dev/loop%d", nr);
		places.loop_fd = nr < 0 ? -1 : open(places.loop, O_RDWR | O_CLOEXEC);
		if (places.loop_fd >= 0 && ioctl(places.loop_fd, LOOP_CONFIGURE, &config) < 0) {
			close(places.loop_fd);
			places.loop_fd = -1;
		}
	}
	if (control >= 0)
		close(control);
	close((int)config.fd);
	if (places.loop_fd < 0)
		places.why_not[ON_LOOP] = "no loop device can be made here";
}

static void make_mounts(void)
{
	char dir[300];

	if (!faultfs_own_mounts()) {
		places.why_not[ON_TMPFS] = places.why_not[ON_FAULTFS] = "root is needed to mount";
		return;
	}
	snprintf(places.tmpfs, sizeof(places.tmpfs), "%s/tmpfs", leaf_dir());
	mkdir(places.tmpfs, 0700);
	if (mount("varve-test", places.tmpfs, "tmpfs", 0, "size=64m") < 0)
		places.why_not[ON_TMPFS] = "no tmpfs can be mounted here";
	snprintf(dir, sizeof(dir), "%s/faultfs", leaf_dir());
	mkdir(dir, 0700);
	faultfs_start(&rig_faultfs, dir, false, &places.why_not[ON_FAULTFS]);
	if (rig_faultfs.pid > 0)
		places.why_not[ON_FAULTFS] = NULL;
}

int rig_places(void **state)
{
	(void)state;
	alarm(TIMEOUT_S);
	make_mounts();
	make_loop();
	return 0;
}

int rig_places_away(void **state)
{
	if (places.loop_fd >= 0)
		close(places.loop_fd);
	if (rig_faultfs.pid > 0)
		faultfs_stop(&rig_faultfs);
	if (places.tmpfs[0])
		umount2(places.tmpfs, MNT_DETACH);
	return leaf_remove_dir(state);
}

/* Not a failure of ours: io_uring may be forbidden, or not built in. */
static bool engine_missing(const char *engine)
{
	struct varve_error err = { 0, "" };
	const struct aio_engine *e = aio_engine_choose(engine, true, &err);
	struct queue *q;
	int ret;

	assert_non_null(e);
	q = leaf_queue();
	ret = aio_attach(q, e, &err);
	queue_free(q);
	if (ret < 0)
		print_message("# %s\n", err.message);
	return ret == -ENOSYS || ret == -EPERM;
}

void rig_need(const struct setting *s)
{
	if (places.why_not[s->ground]) {
		print_message("# %s\n", places.why_not[s->ground]);
		skip();
	}
	if (engine_missing(s->engine))
		skip();
}

/* ---- settings ---- */

uint32_t rig_flags(const char *cache)
{
	static const struct {
		const char *name;
		uint32_t flags;
	} modes[] = {
		{ "writeback", 0 },
		{ "none", NODE_DIRECT },
		{ "writethrough", NODE_WRITETHROUGH },
		{ "directsync", NODE_DIRECT | NODE_WRITETHROUGH },
		{ "unsafe", NODE_NO_FLUSH },
	};

	for (unsigned i = 0; i < ARRAY_LEN(modes); i++) {
		if (!strcmp(cache, modes[i].name))
			return NODE_WRITABLE | modes[i].flags;
	}
	fail_msg("no cache mode %s", cache);
	return 0;
}

bool rig_engine_takes(const struct setting *s)
{
	return strcmp(s->engine, "native") || rig_flags(s->cache) & NODE_DIRECT;
}

/* ---- a rig ---- */

static const char *make_disk(const struct setting *s, uint64_t len)
{
	static char path[320];
	int fd;

	if (s->ground == ON_LOOP) {
		uint64_t range[2] = { 0, RIG_LEN };

		assert_int_equal(ioctl(places.loop_fd, BLKZEROOUT, range), 0);
		return places.loop;
	}
	if (s->ground == ON_FAULTFS) {
		faultfs_tell(&rig_faultfs, "resize %llu", (unsigned long long)len);
		return rig_faultfs.disk;
	}
	if (s->ground == ON_TMPFS)
		snprintf(path, sizeof(path), "%s/disk", places.tmpfs);
	else
		snprintf(path, sizeof(path), "%s", leaf_path("disk"));
	unlink(path);
	fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)len), 0);
	close(fd);
	return path;
}

const char *rig_options(const struct rig *rig)
{
	static char text[512];

	snprintf(text, sizeof(text), "filename=%s,aio=%s", rig->path, rig->s->engine);
	return text;
}

void rig_open(struct rig *rig, const struct setting *s, uint64_t len)
{
	rig->s = s;
	rig->path = make_disk(s, len);
	rig->fd = open(rig->path, O_RDWR | O_CLOEXEC);
	assert_true(rig->fd >= 0);
	leaf_open(&rig->l, &driver_file, rig_options(rig), rig_flags(s->cache));
}

void rig_close_node(struct rig *rig)
{
	assert_int_equal(leaf_close(&rig->l), 0);
}

void rig_close(struct rig *rig)
{
	rig_close_node(rig);
	close(rig->fd);
}

void rig_peek(const struct rig *rig, uint64_t off, void *buf, size_t len)
{
	size_t pos = 0;

	while (pos < len) {
		ssize_t n = pread(rig->fd, (char *)buf + pos, len - pos, (off_t)(off + pos));

		if (n <= 0)
			fail_msg("the other descriptor reads %zd at %llu", n, (unsigned long long)(off + pos));
		pos += (size_t)n;
	}
}

void rig_peek_expect(const struct rig *rig, uint64_t off, const void *bytes, size_t len)
{
	uint8_t *buf = rig_memory(len);
	const uint8_t *want = bytes;

	rig_peek(rig, off, buf, len);
	for (size_t i = 0; i < len; i++) {
		if (buf[i] != want[i])
			fail_msg("another descriptor sees 0x%02x at %llu, not 0x%02x (%zu of %zu)", buf[i],
				 (unsigned long long)(off + i), want[i], i, len);
	}
	free(buf);
}

uint64_t rig_peek_len(const struct rig *rig)
{
	off_t len = lseek(rig->fd, 0, SEEK_END);

	assert_true(len >= 0);
	return (uint64_t)len;
}

/* ---- requests in flight ---- */

static void call_done(struct req *r, int ret)
{
	struct call *c = container_of(r, struct call, r);

	c->ret = ret;
	c->endings++;
}

void call_startv(struct rig *rig, struct call *c, enum req_op op, uint64_t off, const struct iovec *iov, unsigned nr_iov,
		 uint64_t len, uint32_t flags)
{
	c->ret = 1;
	c->endings = 0;
	req_init(&c->r, rig->l.q, op, off, len, iov, nr_iov, flags, call_done);
	node_submit(rig->l.n, &c->r);
}

void call_start(struct rig *rig, struct call *c, enum req_op op, uint64_t off, void *buf, size_t len, uint32_t flags)
{
	c->iov = (struct iovec){ buf, len };
	call_startv(rig, c, op, off, buf ? &c->iov : NULL, buf ? 1 : 0, len, flags);
}

void calls_finish(struct queue *q, struct call *calls, unsigned nr)
{
	for (unsigned i = 0; i < nr; i++) {
		while (!calls[i].endings)
			queue_turn(q, -1);
	}
	queue_turn(q, 0);
	for (unsigned i = 0; i < nr; i++)
		assert_int_equal(calls[i].endings, 1);
}

int rig_do(struct rig *rig, enum req_op op, uint64_t off, void *buf, size_t len, uint32_t flags)
{
	struct call c;

	call_start(rig, &c, op, off, buf, len, flags);
	calls_finish(rig->l.q, &c, 1);
	return c.ret;
}

/* ---- bytes ---- */

uint32_t rig_seed(void)
{
	const char *text = getenv("VARVE_SEED");

	return text ? (uint32_t)strtoul(text, NULL, 0) : 20080929;
}

void fill_random(void *buf, size_t len, uint32_t seed)
{
	uint8_t *p = buf;
	uint64_t x = seed * 0x9e3779b97f4a7c15ull + 1;

	for (size_t i = 0; i < len; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		p[i] = (uint8_t)(x >> 32);
	}
}

void *rig_memory(size_t len)
{
	void *p = NULL;

	assert_int_equal(posix_memalign(&p, 4096, len ? len : 1), 0);
	return p;
}

/* ---- running ---- */

struct rig_test {
	const struct rig_case *c;
	const struct setting *s;
	char name[160];
};

static void run_one(void **state)
{
	struct rig_test *t = *state;

	rig_need(t->s);
	t->c->run(t->s);
}

int rig_run(const char *group, const struct rig_case *cases, unsigned nr_cases, const struct setting *settings,
	    unsigned nr_settings)
{
	unsigned nr = nr_cases * nr_settings;
	struct rig_test *texts = calloc(nr, sizeof(*texts));
	struct CMUnitTest *tests = calloc(nr, sizeof(*tests));
	int failed;

	if (!texts || !tests)
		return 1;
	setenv("TMPDIR", BUILD_DIR, 1);
	for (unsigned i = 0; i < nr; i++) {
		struct rig_test *t = &texts[i];

		t->s = &settings[i / nr_cases];
		t->c = &cases[i % nr_cases];
		snprintf(t->name, sizeof(t->name), "%s %s %s: %s", t->s->engine, t->s->cache, ground_names[t->s->ground],
			 t->c->name);
		tests[i] = (struct CMUnitTest){ t->name, run_one, NULL, NULL, t };
	}
	cmocka_set_message_output(CM_OUTPUT_TAP);
	printf("# seed %u (VARVE_SEED)\n", rig_seed());
	failed = _cmocka_run_group_tests(group, tests, nr, rig_places, rig_places_away);
	free(texts);
	free(tests);
	return failed;
}
