/* SPDX-License-Identifier: MIT */
/*
 * conformance/rig.c - settings, rigs, requests in flight, and the list of tests that comes of it
 *
 * Owns:    the rig that is open now, so that a test that fails leaves nothing to the next.
 * Assumes: one rig at a time.
 */
#include "rig.h"

#include <fcntl.h>

/* ---- settings ---- */

static const char *const cache_names[CACHES] = { "writeback", "none", "writethrough", "directsync",
						 "unsafe" };
static const uint32_t cache_flags[CACHES] = {
	[NONE] = NODE_DIRECT,
	[WRITETHROUGH] = NODE_WRITETHROUGH,
	[DIRECTSYNC] = NODE_DIRECT | NODE_WRITETHROUGH,
	[UNSAFE] = NODE_NO_FLUSH,
};
/* All that users may name. */
static const char *const engines[] = { "io_uring", "native", "posix", "threads" };

const char *rig_cache_name(enum cache cache)
{
	return cache_names[cache];
}

uint32_t rig_flags(const struct setting *s)
{
	return NODE_WRITABLE | cache_flags[s->cache];
}

/* Linux AIO would silently block on a cached file, and refuses it (test_choice.c). */
static bool engine_takes(const struct setting *s)
{
#ifdef __SANITIZE_THREAD__
	/* The C library makes threads for it from inside, which ThreadSanitizer does not see, and cannot
	 * survive. */
	if (!strcmp(s->engine, "posix"))
		return false;
#endif
	return strcmp(s->engine, "native") || cache_flags[s->cache] & NODE_DIRECT;
}

/* ---- a rig ---- */

/* What a test that failed left open; where it stood is gone with its stack. */
static struct {
	bool open;
	struct leaf l;
	int fd;
	struct faultfs *fs;
} live;

static int abandon(void **state)
{
	(void)state;
	if (!live.open)
		return 0;
	live.open = false;
	close(live.fd);
	if (live.fs) {
		faultfs_tell(live.fs, "clear");
		faultfs_tell(live.fs, "release");
	}
	/* Calls are on the heap, and those that matter have no end to wait for. */
	while (queue_stats(live.l.q)->aio_submitted != queue_stats(live.l.q)->aio_completed)
		queue_turn(live.l.q, -1);
	if (live.l.n)
		leaf_close_node(&live.l);
	queue_free(live.l.q);
	return 0;
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
	rig->fs = place_faultfs(s->ground);
	rig->path = place_disk(s->ground, len);
	rig->fd = open(rig->path, O_RDWR | O_CLOEXEC);
	assert_true(rig->fd >= 0);
	rig_reopen(rig);
}

void rig_reopen(struct rig *rig)
{
	leaf_open(&rig->l, &driver_file, rig_options(rig), rig_flags(rig->s));
	live.open = true;
	live.l = rig->l;
	live.fd = rig->fd;
	live.fs = rig->fs;
}

void rig_close_node(struct rig *rig, int result)
{
	int ret;

	live.open = false;
	ret = leaf_close(&rig->l);
	if (ret != result) {
		close(rig->fd);
		fail_msg("closing: %d (%s), not %d", ret, rig->l.err.message, result);
	}
}

void rig_close(struct rig *rig)
{
	rig_close_node(rig, 0);
	close(rig->fd);
}

void rig_peek(const struct rig *rig, uint64_t off, void *buf, size_t len)
{
	size_t pos = 0;

	while (pos < len) {
		ssize_t n = pread(rig->fd, (char *)buf + pos, len - pos, (off_t)(off + pos));

		if (n <= 0)
			fail_msg("the other descriptor reads %zd at %llu", n,
				 (unsigned long long)(off + pos));
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

void call_startv(struct rig *rig, struct call *c, enum req_op op, uint64_t off, const struct iovec *iov,
		 unsigned nr_iov, uint64_t len, uint32_t flags)
{
	c->ret = 1;
	c->endings = 0;
	req_init(&c->r, rig->l.q, op, off, len, iov, nr_iov, flags, call_done);
	node_submit(rig->l.n, &c->r);
}

void call_start(struct rig *rig, struct call *c, enum req_op op, uint64_t off, void *buf, size_t len,
		uint32_t flags)
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

	while (len) {
		size_t part = MIN(len, sizeof(x));

		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		memcpy(p, &x, part);
		p += part;
		len -= part;
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
	struct setting s;
	const struct rig_case *c;
	char name[160];
};

/* Not a failure of ours: io_uring may be forbidden, or not built in, or have no memory that it may lock. */
bool rig_engine_missing(const char *engine)
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
	return ret == -ENOSYS || ret == -EPERM || (ret == -ENOMEM && strstr(err.message, "RLIMIT_MEMLOCK"));
}

static void run_one(void **state)
{
	struct rig_test *t = *state;
	const char *why = place_missing(t->s.ground);

	if (why)
		print_message("# %s\n", why);
	if (why || rig_engine_missing(t->s.engine))
		skip();
	t->c->run(&t->s);
}

static bool takes_part(const struct rig_case *c, const struct setting *s)
{
	return engine_takes(s) && (!c->without || strcmp(c->without, s->engine)) &&
	       c->caches & 1u << s->cache && c->grounds & 1u << s->ground;
}

int rig_run(const char *group, const struct rig_case *cases, unsigned nr_cases)
{
	const unsigned nr_settings = ARRAY_LEN(engines) * CACHES * GROUNDS;
	struct rig_test *texts = calloc(nr_settings * nr_cases, sizeof(*texts));
	struct CMUnitTest *tests = calloc(nr_settings * nr_cases, sizeof(*tests));
	unsigned nr = 0;
	int failed;

	if (!texts || !tests)
		return 1;
	for (unsigned i = 0; i < nr_settings * nr_cases; i++) {
		const unsigned n = i / nr_cases;
		struct rig_test *t = &texts[nr];

		t->c = &cases[i % nr_cases];
		t->s = (struct setting){ engines[n / GROUNDS / CACHES], (enum cache)(n / GROUNDS % CACHES),
					 (enum ground)(n % GROUNDS) };
		if (!takes_part(t->c, &t->s))
			continue;
		snprintf(t->name, sizeof(t->name), "%s %s %s: %s", t->s.engine, cache_names[t->s.cache],
			 place_name(t->s.ground), t->c->name);
		tests[nr++] = (struct CMUnitTest){ t->name, run_one, NULL, abandon, t };
	}
	cmocka_set_message_output(CM_OUTPUT_TAP);
	if (getenv("VARVE_TEST"))
		cmocka_set_test_filter(getenv("VARVE_TEST"));
	printf("# seed %u (VARVE_SEED)\n", rig_seed());
	failed = _cmocka_run_group_tests(group, tests, nr, places_make, places_away);
	free(texts);
	free(tests);
	return failed;
}
