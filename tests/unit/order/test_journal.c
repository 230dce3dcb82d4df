/* SPDX-License-Identifier: MIT */
/*
 * tests/unit/order/test_journal.c - what was put is found again, whole or not at all
 *
 * The memory of a journal as a process that died at any moment would leave it, without processes.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/error.h"
#include "order/journal.h"

struct put {
	uint64_t section, off;
	size_t len;
	uint8_t fill;
};

static struct journal_owner owner;

static struct journal *fresh(void)
{
	struct journal *j = calloc(1, sizeof(*j));
	void *map = calloc(1, JOURNAL_LEN);

	assert_non_null(j);
	assert_non_null(map);
	owner.file_id[1] = 4711;
	journal_format(j, map, 0x1234567, &owner);
	return j;
}

static void done(struct journal *j)
{
	free(j->h);
	free(j);
}

static void put(struct journal *j, uint64_t section, uint64_t off, size_t len, uint8_t fill)
{
	uint8_t *bytes = malloc(len);

	assert_non_null(bytes);
	memset(bytes, fill, len);
	assert_int_equal(journal_reserve(j, len), 0);
	journal_put(j, section, off, bytes, len);
	free(bytes);
}

/* Records are compared with the puts, which may have been taken apart at sectors. */
struct expect {
	const struct put *puts;
	unsigned nr, at;
	size_t done; /* of puts[at] */
	bool wrong;
};

static int compare(void *arg, uint64_t section, uint64_t off, const void *bytes, size_t len)
{
	struct expect *e = arg;
	const struct put *p = &e->puts[e->at];
	const uint8_t *b = bytes;

	if (e->at == e->nr || section != p->section || off != p->off + e->done || len > p->len - e->done ||
	    (e->done + len < p->len && (off + len) % 512)) {
		e->wrong = true;
		return -EINVAL;
	}
	for (size_t i = 0; i < len; i++)
		e->wrong |= b[i] != p->fill;
	e->done += len;
	if (e->done == p->len) {
		e->at++;
		e->done = 0;
	}
	return 0;
}

static void expect_exactly(const void *map, const struct put *puts, unsigned nr)
{
	struct expect e = { .puts = puts, .nr = nr };
	const char *fault = "";

	assert_null(journal_header_fault(map, JOURNAL_LEN));
	assert_int_equal(journal_replay(map, compare, &e, &fault), 0);
	assert_false(e.wrong);
	assert_int_equal(e.at, nr);
	assert_int_equal(e.done, 0);
}

static int ignore(void *arg, uint64_t section, uint64_t off, const void *bytes, size_t len)
{
	(void)arg;
	(void)section;
	(void)off;
	(void)bytes;
	(void)len;
	return 0;
}

static bool is_refused(const void *map)
{
	const char *fault = NULL;

	if (journal_header_fault(map, JOURNAL_LEN))
		return true;
	return journal_replay(map, ignore, NULL, &fault) == -EUCLEAN && fault;
}

static void puts_come_back_in_their_order(void **state)
{
	struct journal *j = fresh();
	struct put puts[400];
	unsigned seed = getenv("VARVE_SEED") ? (unsigned)atoi(getenv("VARVE_SEED")) : 1;

	printf("# seed %u\n", seed);
	srandom(seed);
	for (unsigned i = 0; i < 400; i++) {
		size_t len = random() % 8 ? 1 + (size_t)random() % 700 : 1 + (size_t)random() % 700000;

		puts[i] = (struct put){ 1 + i / 50, (uint64_t)random() * 3, len, (uint8_t)i };
		put(j, puts[i].section, puts[i].off, len, puts[i].fill);
	}
	expect_exactly(j->h, puts, 400);
	done(j);
}

static void what_is_durable_does_not_come_back(void **state)
{
	struct journal *j = fresh();
	struct put left = { 2, 4096, 8, 'b' };

	put(j, 1, 0, 8, 'a');
	put(j, 2, 4096, 8, 'b');
	put(j, 1, 512, 8, 'c');
	journal_retire(j, 1);
	expect_exactly(j->h, &left, 1);
	journal_retire(j, 2);
	expect_exactly(j->h, NULL, 0);
	assert_int_equal(journal_used(j), 0);
	done(j);
}

/* Killed in the middle of a put: any of its bytes are there, but its number is not. */
static void a_put_torn_at_any_byte_did_not_happen(void **state)
{
	struct journal *j = fresh();
	struct put first = { 1, 65536, 100, 'x' };
	uint8_t *before = malloc(JOURNAL_FIRST + KiB(4)), *after = malloc(JOURNAL_FIRST + KiB(4)), *map;
	size_t at, end;

	assert_non_null(before);
	assert_non_null(after);
	/* A segment that was used before, by records with numbers that do not matter any more. */
	for (unsigned i = 0; i < 60; i++)
		put(j, 1, i * 512, 16, 'o');
	journal_retire(j, 1);
	first.section = 2;
	put(j, first.section, first.off, first.len, first.fill);
	map = (uint8_t *)j->h;
	at = JOURNAL_FIRST + j->pos;
	memcpy(before, map, JOURNAL_FIRST + KiB(4));
	put(j, 3, 131072, 333, 'y');
	end = JOURNAL_FIRST + j->pos;
	memcpy(after, map, JOURNAL_FIRST + KiB(4));
	for (size_t cut = at + 8; cut <= end; cut++) {
		memcpy(map, before, JOURNAL_FIRST + KiB(4));
		memcpy(map + at + 8, after + at + 8, cut - at - 8);
		expect_exactly(map, &first, 1);
		/* and in any other order: only the end of it */
		memcpy(map, before, JOURNAL_FIRST + KiB(4));
		memcpy(map + cut, after + cut, end - cut);
		expect_exactly(map, &first, 1);
	}
	/* Its number is there, but has not been counted yet: it happened. */
	memcpy(map, before, JOURNAL_FIRST + KiB(4));
	memcpy(map + at, after + at, end - at);
	{
		struct put both[] = { first, { 3, 131072, 333, 'y' } };

		expect_exactly(map, both, 2);
	}
	free(before);
	free(after);
	done(j);
}

/* No kill flips a byte of what was complete. */
static void any_wrong_byte_is_refused(void **state)
{
	struct journal *j = fresh();
	uint8_t *map = (uint8_t *)j->h;
	size_t changing = offsetof(struct journal_header, next_seq);

	put(j, 1, 0, 64, 'a');
	put(j, 2, 5000, 300, 'b');
	for (size_t i = 0; i < JOURNAL_FIRST + j->pos; i++) {
		if (i == changing)
			i = KiB(4); /* the table; what changes in the header may be anything */
		if (i == KiB(4) + sizeof(struct journal_segment))
			i = JOURNAL_FIRST;
		if (i >= JOURNAL_FIRST + 40 + 64 + 40 + 300)
			break; /* padding */
		map[i] ^= 0x5a;
		if (!is_refused(map))
			fail_msg("byte %zu", i);
		map[i] ^= 0x5a;
	}
	assert_false(is_refused(map));
	done(j);
}

static void missing_records_are_refused(void **state)
{
	struct journal *j = fresh();

	for (unsigned i = 0; i < 3; i++)
		put(j, 1, i * KiB(512), KiB(200), 'a');
	assert_false(is_refused(j->h));
	memset((uint8_t *)j->h + JOURNAL_FIRST, 0, 40); /* the first record of a full segment */
	assert_true(is_refused(j->h));
	done(j);
}

/* What a guest has written into a table looks like the number of the next record. */
static void old_bytes_are_not_taken_for_records(void **state)
{
	struct journal *j = fresh();
	uint64_t words[64];

	for (unsigned round = 0; round < 200; round++) {
		struct put one = { 2 * round + 2, 0, 8, 1 };

		for (unsigned i = 0; i < 64; i++)
			words[i] = j->next_seq + 2;
		assert_int_equal(journal_reserve(j, sizeof(words)), 0);
		journal_put(j, 2 * round + 1, 512, words, sizeof(words));
		journal_retire(j, 2 * round + 1);
		put(j, one.section, 0, 8, 1);
		expect_exactly(j->h, &one, 1);
		journal_retire(j, one.section);
	}
	done(j);
}

static void a_full_journal_says_so_and_recovers(void **state)
{
	struct journal *j = fresh();
	unsigned nr = 0;

	while (journal_reserve(j, KiB(64)) == 0) {
		put(j, 1 + nr / 100, nr * KiB(64), KiB(64), 'f');
		nr++;
	}
	assert_in_range(nr, 1500, 2048);
	assert_false(is_refused(j->h));
	assert_int_equal(journal_reserve(j, KiB(64)), -ENOSPC);
	journal_retire(j, 1 + nr / 100);
	assert_int_equal(journal_reserve(j, KiB(64)), 0);
	done(j);
}

/* ---- the file ---- */

static char dir[] = "/tmp/varve-journal-XXXXXX";

static int make_dir(void **state)
{
	return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
	return rmdir(dir);
}

static struct journal_search search(struct varve_error *err)
{
	struct journal_search s = { .dir = dir, .owner = owner, .err = err };

	return s;
}

/* As a process leaves it that dies with one put. */
/* ---- things to be done ---- */

/* Are these, and no others, found in this order? Ends with b 0. */
static void expect_todo(const void *map, const struct order_todo *wanted)
{
	struct order_todo found;

	for (size_t i = 0; i < journal_nr_todo(map); i++) {
		if (!journal_todo_read(map, i, &found))
			continue;
		assert_true(wanted->b && found.a == wanted->a && found.b == wanted->b);
		wanted++;
	}
	assert_int_equal(wanted->b, 0);
}

static void what_is_to_be_done_is_there_until_it_is_begun(void **state)
{
	struct journal *j = fresh();
	unsigned first = journal_todo_add(j, 10, 1), second = journal_todo_add(j, 20, 2);

	assert_true(first && second && first != second);
	expect_todo(j->h, (struct order_todo[]){ { 10, 1 }, { 20, 2 }, { 0, 0 } });
	journal_todo_change(j, first, 10, 5);
	put(j, 3, 0, 8, 1);
	journal_retire(j, 3); /* unlike records */
	expect_todo(j->h, (struct order_todo[]){ { 10, 5 }, { 20, 2 }, { 0, 0 } });
	journal_todo_done(j, first);
	expect_todo(j->h, (struct order_todo[]){ { 20, 2 }, { 0, 0 } });
	assert_int_equal(journal_todo_add(j, 30, 3), first);
	expect_todo(j->h, (struct order_todo[]){ { 30, 3 }, { 20, 2 }, { 0, 0 } });
	assert_false(journal_settle(j->h));
	expect_todo(j->h, (struct order_todo[]){ { 0, 0 } });
	done(j);
}

/* What is wrong is left out: not doing it costs space, doing another thing would cost data. */
static void a_thing_with_a_wrong_byte_is_not_done(void **state)
{
	struct journal *j = fresh();
	uint8_t *bytes = (uint8_t *)j->h + JOURNAL_TODO;

	journal_todo_add(j, 10, 1);
	for (size_t i = 0; i < offsetof(struct journal_todo, unused); i++) {
		bytes[i] ^= 4;
		expect_todo(j->h, (struct order_todo[]){ { 0, 0 } });
		bytes[i] ^= 4;
	}
	expect_todo(j->h, (struct order_todo[]){ { 10, 1 }, { 0, 0 } });
	memcpy(bytes + sizeof(struct journal_todo), bytes, sizeof(struct journal_todo)); /* nor one in another's place */
	atomic_store(&j->h->nr_todo, UINT64_MAX);
	expect_todo(j->h, (struct order_todo[]){ { 10, 1 }, { 0, 0 } });
	done(j);
}

static void more_than_there_is_room_for_is_not_kept(void **state)
{
	struct journal *j = fresh();

	for (unsigned i = 0; i < JOURNAL_TODO_MAX; i++)
		assert_int_equal(journal_todo_add(j, i, 1), i + 1);
	assert_int_equal(journal_todo_add(j, 1, 1), 0);
	journal_todo_done(j, 4712);
	assert_int_equal(journal_todo_add(j, 1, 1), 4712);
	assert_int_equal(journal_todo_add(j, 1, 1), 0);
	done(j);
}

static void leave_one(const struct journal_owner *o)
{
	struct varve_error err;
	struct journal_search s = search(&err);
	struct journal j;

	s.owner = *o;
	assert_int_equal(journal_create(&s, &j), 0);
	put(&j, 1, 0, 16, 'z');
	journal_unmap(j.h, j.fd, j.path, false);
}

static void drop(void)
{
	struct varve_error err;
	struct journal_search s = search(&err);

	assert_int_equal(journal_find(&s), 0);
	journal_unmap(s.map, s.fd, s.path, true);
}

static char *path_of(void)
{
	static char path[512];

	snprintf(path, sizeof(path), "%s/%016llx-%016llx.journal", dir, (unsigned long long)owner.file_id[0],
		 (unsigned long long)owner.file_id[1]);
	return path;
}

static void what_was_left_is_found(void **state)
{
	struct put left = { 1, 0, 16, 'z' };
	struct varve_error err;
	struct journal_search s = search(&err);

	leave_one(&owner);
	assert_int_equal(journal_find(&s), 0);
	assert_non_null(s.map);
	expect_exactly(s.map, &left, 1);
	journal_unmap(s.map, s.fd, s.path, true);
	assert_int_equal(journal_find(&s), 0);
	assert_null(s.map);
}

static void one_of_an_earlier_boot_is_removed(void **state)
{
	struct journal_owner before = owner;
	struct varve_error err;
	struct journal_search s = search(&err);

	before.boot_id[3] ^= 1;
	leave_one(&before);
	assert_int_equal(journal_find(&s), 0);
	assert_null(s.map);
	assert_int_equal(access(path_of(), F_OK), -1);
}

static void expect_refused(const char *words)
{
	struct varve_error err;
	struct journal_search s = search(&err);

	assert_int_equal(journal_find(&s), -EUCLEAN);
	if (!strstr(err.message, words))
		fail_msg("'%s' says nothing of '%s'", err.message, words);
	assert_null(s.map);
	assert_int_equal(unlink(path_of()), 0);
}

static void one_of_another_file_is_refused(void **state)
{
	struct journal_owner other = owner;

	other.file_birth = 99;
	leave_one(&other);
	expect_refused("new file");
	leave_one(&owner);
	owner.file_id[1]++; /* under the name of another */
	{
		char old[512];

		owner.file_id[1]--;
		snprintf(old, sizeof(old), "%s", path_of());
		owner.file_id[1]++;
		assert_int_equal(rename(old, path_of()), 0);
	}
	expect_refused("another image");
	owner.file_id[1]--;
}

/* What is queued leads to one data file; with another one, without one, or with one where there was none it leads nowhere. */
static void one_of_another_data_file_is_refused(void **state)
{
	struct journal_owner plain = owner;

	owner.data_id[0] = 5;
	owner.data_id[1] = 6;
	owner.data_birth = 7;
	strcpy(owner.data_name, "here.raw");
	for (unsigned i = 0; i < 4; i++) {
		struct journal_owner other = owner;

		strcpy(other.data_name, "there.raw");
		other.data_id[0] += i == 0;
		other.data_id[1] += i == 1;
		other.data_birth += i == 2;
		if (i == 3)
			other = plain;
		leave_one(&other);
		expect_refused(i == 3 ? "here.raw" : "there.raw");
	}
	leave_one(&owner);
	{
		struct varve_error err;
		struct journal_search s = search(&err);

		assert_int_equal(journal_find(&s), 0);
		assert_non_null(s.map);
		journal_unmap(s.map, s.fd, s.path, true);
	}
	owner = plain;
}

static void a_file_cut_short_or_overwritten_is_refused(void **state)
{
	int fd;

	leave_one(&owner);
	assert_int_equal(truncate(path_of(), 5000), 0);
	expect_refused("length");
	leave_one(&owner);
	fd = open(path_of(), O_WRONLY);
	assert_int_equal(pwrite(fd, "rubbish!", 8, 0), 8);
	expect_refused("does not begin");
	assert_int_equal(pwrite(fd, "VARVEJNL", 8, 0), 8);
	close(fd);
	leave_one(&owner);
	fd = open(path_of(), O_WRONLY);
	assert_int_equal(pwrite(fd, "?", 1, 60), 1);
	close(fd);
	expect_refused("checksum");
}

/* Whoever can write to it decides what is written into the image. */
static void a_file_that_others_may_have_written_is_refused(void **state)
{
	char other[600];

	for (mode_t mode = 0620; mode; mode = mode == 0620 ? 0602 : mode == 0602 ? 0666 : 0) {
		leave_one(&owner);
		assert_int_equal(chmod(path_of(), mode), 0);
		expect_refused("others may write to it");
	}
	if (geteuid() == 0) {
		leave_one(&owner);
		assert_int_equal(chown(path_of(), 65534, 65534), 0);
		expect_refused("not a file of the user");
	}
	assert_int_equal(mkfifo(path_of(), 0600), 0);
	expect_refused("not a file of the user");

	/* A link leads to where others may write. */
	leave_one(&owner);
	snprintf(other, sizeof(other), "%s.other", path_of());
	assert_int_equal(rename(path_of(), other), 0);
	assert_int_equal(symlink(other, path_of()), 0);
	{
		struct varve_error err;
		struct journal_search s = search(&err);
		struct journal j;

		assert_int_equal(journal_find(&s), -ELOOP);
		assert_int_equal(journal_create(&s, &j), -ELOOP);
	}
	assert_int_equal(unlink(path_of()), 0);
	assert_int_equal(unlink(other), 0);
}

static void two_cannot_use_it(void **state)
{
	struct varve_error err;
	struct journal_search a = search(&err), b = search(&err);
	struct journal j, k;

	assert_int_equal(journal_create(&a, &j), 0);
	assert_true(journal_create(&b, &k) < 0);
	assert_non_null(strstr(err.message, "in use"));
	journal_unmap(j.h, j.fd, j.path, false);
	drop();
}

static void one_takes_the_place_of_another_only_if_that_holds_nothing_but_errors(void **state)
{
	struct varve_error err;
	struct journal_search a = search(&err), b = search(&err);
	struct journal j, k;

	assert_int_equal(journal_create(&a, &j), 0);
	put(&j, 1, 0, 16, 'z');
	atomic_store(&j.h->error, EIO);
	atomic_store(&j.h->data_error, ENOSPC);
	atomic_store(&j.h->notes[0], 4711);
	journal_unmap(j.h, j.fd, j.path, false);
	assert_int_equal(journal_create(&b, &k), -EEXIST);

	assert_int_equal(journal_find(&b), 0);
	assert_true(journal_settle(b.map));
	journal_unmap(b.map, b.fd, b.path, false);
	assert_int_equal(journal_create(&b, &k), 0);
	assert_int_equal(atomic_load(&k.h->error), EIO);
	assert_int_equal(atomic_load(&k.h->data_error), ENOSPC);
	assert_int_equal(atomic_load(&k.h->notes[0]), 0);
	expect_exactly(k.h, NULL, 0);
	put(&k, 1, 0, 16, 'y'); /* it is one as any other */
	expect_exactly(k.h, &(struct put){ 1, 0, 16, 'y' }, 1);
	journal_unmap(k.h, k.fd, k.path, false);
	drop();
}

static char *in_dir(const char *name)
{
	static char path[512];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	return path;
}

#define LEFT "0000000000000000-0000000000001267.journal."

static int leave_file(const char *name)
{
	int fd = open(in_dir(name), O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	return fd;
}

/* A process that is killed while it makes a journal leaves a file that nobody would look for. */
static void what_a_killed_maker_has_left_is_removed_by_the_next_and_nothing_else(void **state)
{
	static const char *const others[] = { LEFT, LEFT "12x", LEFT "-1", "x" LEFT "1", "0-0.journal.1", "notes.journal.1",
					      "0000000000000000-0000000000001267.journa1.1", "0000000000000000_0000000000001267.journal.1" };
	struct varve_error err;
	struct journal_search s = search(&err);
	struct journal j;
	char own[64], linked[512];
	int living;

	(void)state;
	for (unsigned i = 0; i < sizeof(others) / sizeof(others[0]); i++)
		close(leave_file(others[i]));
	snprintf(own, sizeof(own), LEFT "%ld", (long)getpid());
	close(leave_file(own)); /* of one that had our number */
	close(leave_file(LEFT "99999999"));
	close(leave_file(LEFT "1")); /* that number is somebody else's now */
	living = leave_file(LEFT "2"); /* and that one, of whatever number, lives */
	assert_int_equal(flock(living, LOCK_EX | LOCK_NB), 0);
	assert_int_equal(mkdir(in_dir(LEFT "3"), 0700), 0);
	assert_int_equal(symlink("x", in_dir(LEFT "4")), 0);
	assert_int_equal(journal_create(&s, &j), 0);
	assert_int_equal(access(in_dir(own), F_OK), -1);
	assert_int_equal(access(in_dir(LEFT "99999999"), F_OK), -1);
	assert_int_equal(access(in_dir(LEFT "1"), F_OK), -1);
	assert_int_equal(unlink(in_dir(LEFT "2")), 0);
	assert_int_equal(rmdir(in_dir(LEFT "3")), 0);
	assert_int_equal(unlink(in_dir(LEFT "4")), 0);
	for (unsigned i = 0; i < sizeof(others) / sizeof(others[0]); i++)
		assert_int_equal(unlink(in_dir(others[i])), 0);
	close(living);

	/* A second name of one that is in use, whose maker was killed before it could remove it. */
	snprintf(linked, sizeof(linked), "%s", in_dir(LEFT "5"));
	assert_int_equal(link(j.path, linked), 0);
	journal_sweep(dir);
	assert_int_equal(access(linked, F_OK), -1);
	assert_int_equal(access(j.path, F_OK), 0);
	journal_unmap(j.h, j.fd, j.path, false);
	drop();
}

static void *sweep_on(void *over)
{
	while (!atomic_load((_Atomic bool *)over))
		journal_sweep(dir);
	return NULL;
}

static bool sweeps_late;

/* Both are the C library's; here a sweep may come between the lock and the name. */
int link(const char *from, const char *to)
{
	if (sweeps_late)
		unlink(from);
	sweeps_late = false;
	return (int)syscall(SYS_linkat, AT_FDCWD, from, AT_FDCWD, to, 0);
}

int rename(const char *from, const char *to)
{
	if (sweeps_late)
		unlink(from);
	sweeps_late = false;
	return (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}

/* Who sweeps has seen the one before under that name, which had two, and is slow to remove it. */
static void a_maker_whose_file_is_swept_away_late_begins_anew(void **state)
{
	struct varve_error err;
	struct journal j, k;
	struct stat st;

	(void)state;
	for (unsigned inherits = 0; inherits < 2; inherits++) {
		struct journal_search s = search(&err);

		sweeps_late = true;
		if (journal_create(&s, inherits ? &k : &j) < 0)
			fail_msg("%s", err.message);
		assert_false(sweeps_late);
		assert_int_equal(fstat(inherits ? k.fd : j.fd, &st), 0);
		assert_int_equal(st.st_nlink, 1);
		if (!inherits) { /* the next one takes its name */
			put(&j, 1, 0, 16, 'z');
			atomic_store(&j.h->error, EIO);
			journal_settle(j.h);
			journal_unmap(j.h, j.fd, j.path, false);
		}
	}
	assert_int_equal(atomic_load(&k.h->error), EIO);
	journal_unmap(k.h, k.fd, k.path, true);
}

/* Between its first two calls a maker has no lock yet. */
static void a_maker_whose_file_is_swept_away_begins_anew(void **state)
{
	_Atomic bool over = false;
	pthread_t thread;

	(void)state;
	assert_int_equal(pthread_create(&thread, NULL, sweep_on, &over), 0);
	for (unsigned i = 0; i < 300; i++) {
		struct varve_error err;
		struct journal_search s = search(&err);
		struct journal j;
		struct stat st;

		if (journal_create(&s, &j) < 0)
			fail_msg("%s", err.message);
		assert_int_equal(fstat(j.fd, &st), 0);
		assert_int_equal(st.st_nlink, 1);
		journal_unmap(j.h, j.fd, j.path, true);
	}
	atomic_store(&over, true);
	pthread_join(thread, NULL);
}

static void a_directory_of_others_is_refused(void **state)
{
	struct varve_error err;
	struct journal_search s = search(&err);

	assert_int_equal(chmod(dir, 0777), 0);
	assert_int_equal(journal_find(&s), -EPERM);
	assert_int_equal(chmod(dir, 0700), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(puts_come_back_in_their_order),
		cmocka_unit_test(what_is_durable_does_not_come_back),
		cmocka_unit_test(a_put_torn_at_any_byte_did_not_happen),
		cmocka_unit_test(any_wrong_byte_is_refused),
		cmocka_unit_test(missing_records_are_refused),
		cmocka_unit_test(old_bytes_are_not_taken_for_records),
		cmocka_unit_test(a_full_journal_says_so_and_recovers),
		cmocka_unit_test(what_is_to_be_done_is_there_until_it_is_begun),
		cmocka_unit_test(a_thing_with_a_wrong_byte_is_not_done),
		cmocka_unit_test(more_than_there_is_room_for_is_not_kept),
		cmocka_unit_test(what_was_left_is_found),
		cmocka_unit_test(one_of_an_earlier_boot_is_removed),
		cmocka_unit_test(one_of_another_file_is_refused),
		cmocka_unit_test(one_of_another_data_file_is_refused),
		cmocka_unit_test(a_file_cut_short_or_overwritten_is_refused),
		cmocka_unit_test(a_file_that_others_may_have_written_is_refused),
		cmocka_unit_test(two_cannot_use_it),
		cmocka_unit_test(one_takes_the_place_of_another_only_if_that_holds_nothing_but_errors),
		cmocka_unit_test(what_a_killed_maker_has_left_is_removed_by_the_next_and_nothing_else),
		cmocka_unit_test(a_maker_whose_file_is_swept_away_late_begins_anew),
		cmocka_unit_test(a_maker_whose_file_is_swept_away_begins_anew),
		cmocka_unit_test(a_directory_of_others_is_refused),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
