/* SPDX-License-Identifier: MIT */
/*
 * unit/filter/test_write_log.c - the write log: what stands in it, where, and what happens when it cannot be
 * written
 */
#include "../proto/leaf.h"

#include "base/bytes.h"
#include "filter/filter.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <signal.h>

#define SECTOR 512u

struct entry {
	uint64_t sector, nr, flags;
	char text[64];
	uint8_t first; /* byte of the data */
};

static int log_try(struct leaf *l, const char *options)
{
	struct leaf m;
	int ret;

	leaf_open(&m, &driver_memory, "size=64k", NODE_WRITABLE);
	l->q = m.q;
	ret = leaf_try(l, &driver_write_log, m.n, options, NODE_WRITABLE);
	if (ret < 0)
		leaf_close(&m);
	return ret;
}

static void log_open(struct leaf *l, const char *name)
{
	char options[4200];

	snprintf(options, sizeof(options), "log=%s", leaf_path(name));
	if (log_try(l, options) < 0)
		fail_msg("'%s': %s", options, l->err.message);
}

static uint64_t number(const uint8_t *b)
{
	le64 v;

	memcpy(&v, b, 8);
	return le64_get(v);
}

/* Reads the log as its specification says; returns the number of entries. */
static unsigned log_read(const char *name, struct entry *entries, unsigned max)
{
	uint8_t s[SECTOR];
	uint64_t nr, at = SECTOR;
	int fd = open(leaf_path(name), O_RDONLY);

	assert_true(fd >= 0);
	assert_int_equal(pread(fd, s, SECTOR, 0), SECTOR);
	assert_true(number(s) == 0x6a736677736872ull);
	assert_int_equal(number(s + 8), 1);
	nr = number(s + 16);
	assert_int_equal(s[24] | s[25] << 8 | s[26] << 16, SECTOR);
	assert_true(nr <= max);
	for (uint64_t i = 0; i < nr; i++) {
		struct entry *e = &entries[i];

		assert_int_equal(pread(fd, s, SECTOR, (off_t)at), SECTOR);
		*e = (struct entry){ number(s), number(s + 8), number(s + 16), "", 0 };
		assert_true(number(s + 24) < sizeof(e->text));
		memcpy(e->text, s + 32, number(s + 24));
		at += SECTOR;
		if (e->flags & 4 || !e->nr)
			continue;
		assert_int_equal(pread(fd, &e->first, 1, (off_t)at), 1);
		at += e->nr * SECTOR;
	}
	assert_int_equal(lseek(fd, 0, SEEK_END), at);
	close(fd);
	return (unsigned)nr;
}

static void write_fill(struct leaf *l, uint64_t off, size_t len, uint8_t byte, uint32_t flags)
{
	uint8_t buf[4096];

	memset(buf, byte, len);
	assert_int_equal(leaf_write(l, off, buf, len, flags), 0);
}

static void each_change_is_logged_in_its_order(void **state)
{
	struct entry e[16];
	struct leaf l;

	(void)state;
	log_open(&l, "order");
	write_fill(&l, 1024, 1024, 0x11, 0);
	assert_int_equal(leaf_flush(&l), 0);
	write_fill(&l, 0, 512, 0x22, REQ_FUA);
	assert_int_equal(leaf_zero(&l, 4096, 4096, 0), 0);
	assert_int_equal(leaf_discard(&l, 8192, 512), 0);
	assert_int_equal(leaf_close(&l), 0);
	assert_int_equal(log_read("order", e, 16), 6); /* the last is the flush of close */
	assert_true(e[0].sector == 2 && e[0].nr == 2 && e[0].flags == 0 && e[0].first == 0x11);
	assert_true(e[1].nr == 0 && e[1].flags == 1);
	assert_true(e[2].sector == 0 && e[2].nr == 1 && e[2].flags == 2 && e[2].first == 0x22);
	assert_true(e[3].sector == 8 && e[3].nr == 8 && e[3].flags == 0 && e[3].first == 0);
	assert_true(e[4].sector == 16 && e[4].nr == 1 && e[4].flags == 4);
}

/* The disk that is logged has sectors: a part of one is read, changed and written as a whole. */
static void part_of_a_sector_is_logged_as_the_whole(void **state)
{
	struct entry e[16];
	struct leaf l;

	(void)state;
	log_open(&l, "part");
	write_fill(&l, 512, 1024, 0x33, 0);
	write_fill(&l, 1000, 100, 0x44, 0);
	leaf_expect(&l, 512, 488, 0x33);
	leaf_expect(&l, 1000, 100, 0x44);
	leaf_expect(&l, 1100, 436, 0x33);
	assert_int_equal(leaf_close(&l), 0);
	assert_int_equal(log_read("part", e, 16), 3);
	assert_true(e[1].sector == 1 && e[1].nr == 2 && e[1].first == 0x33);
}

static void a_failed_flush_stays_a_mark(void **state)
{
	static const char *const rules =
		"rule.0.event=flush,rule.0.once=on,rule.1.event=write,rule.1.once=on";
	char options[4200], buf[512] = { 0 };
	struct entry e[16];
	struct leaf m, l;

	(void)state;
	leaf_open(&m, &driver_memory, "size=64k", NODE_WRITABLE);
	l.q = m.q;
	assert_int_equal(leaf_try(&l, &driver_fault, m.n, rules, NODE_WRITABLE), 0);
	snprintf(options, sizeof(options), "log=%s", leaf_path("failed"));
	assert_int_equal(leaf_try(&l, &driver_write_log, l.n, options, NODE_WRITABLE), 0);
	assert_int_equal(leaf_flush(&l), -EIO);
	assert_int_equal(leaf_write(&l, 1024, buf, 512, 0), -EIO);
	assert_int_equal(leaf_flush(&l), 0);
	assert_int_equal(leaf_close(&l), 0);
	assert_int_equal(log_read("failed", e, 16), 4);
	assert_int_equal(e[0].flags, 8);
	assert_string_equal(e[0].text, "flush not finished");
	assert_int_equal(e[1].flags, 8);
	assert_string_equal(e[1].text, "write failed at 1024+512");
	assert_int_equal(e[2].flags, 1);
}

/* A change that is on the disk but not in the log would make every answer drawn from the log wrong. */
static void what_cannot_be_logged_fails(void **state)
{
	struct rlimit old, small;
	struct leaf l;
	char buf[4096] = { 1 };

	(void)state;
	log_open(&l, "full");
	signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
	small = (struct rlimit){ .rlim_cur = 2048, .rlim_max = old.rlim_max };
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
	assert_int_equal(leaf_write(&l, 0, buf, 4096, 0), -EFBIG);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
	assert_int_equal(leaf_write(&l, 0, buf, 512, 0), -EFBIG);
	assert_int_equal(leaf_flush(&l), -EFBIG);
	leaf_expect(&l, 8192, 512, 0);
	leaf_close(&l); /* its flush fails, as it must */
}

static void bad_options_are_named(void **state)
{
	char options[4200];
	struct leaf l;

	(void)state;
	assert_int_equal(log_try(&l, ""), -EINVAL);
	assert_non_null(strstr(l.err.message, "'log'"));
	assert_int_equal(log_try(&l, "log=/nonexistent/log"), -ENOENT);
	assert_non_null(strstr(l.err.message, "/nonexistent/log"));
	snprintf(options, sizeof(options), "log=%s", leaf_dir());
	assert_int_equal(log_try(&l, options), -EISDIR);
	assert_int_equal(log_try(&l, "log=/dev/null"), -EINVAL);
	assert_non_null(strstr(l.err.message, "regular"));
}

static void a_log_has_one_writer(void **state)
{
	char options[4200];
	struct leaf l, other;

	(void)state;
	log_open(&l, "busy");
	snprintf(options, sizeof(options), "log=%s", leaf_path("busy"));
	assert_int_equal(log_try(&other, options), -EAGAIN);
	assert_non_null(strstr(other.err.message, "in use"));
	leaf_close(&l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_change_is_logged_in_its_order),
		cmocka_unit_test(part_of_a_sector_is_logged_as_the_whole),
		cmocka_unit_test(a_failed_flush_stays_a_mark),
		cmocka_unit_test(what_cannot_be_logged_fails),
		cmocka_unit_test(bad_options_are_named),
		cmocka_unit_test(a_log_has_one_writer),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, leaf_remove_dir);
}
