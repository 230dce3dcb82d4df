/* SPDX-License-Identifier: MIT */
/*
 * test_state_dir.c - a process is killed; what it had acknowledged is there, flushed or not
 *
 * A child writes blocks, eight in flight, and keeps its account in memory that outlives it: which content it has begun to
 * write, which one was acknowledged. It is killed at a random moment, again and again; each time the next one finds in
 * every block what was acknowledged last, or what was on its way.
 */
#include <fcntl.h>
#include <glob.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "../../lib/seed.h"
#include "api_test.h"
#include "order/journal.h" /* the state as a dying process leaves it */

#define DISK (32 * MIB)
#define BLOCK 4096u
#define NR (DISK / BLOCK)
#define DEPTH 8
#define ROUNDS 6 /* VARVE_KILLS=20 for more */

static struct varve_error err;

struct account {
	uint32_t begun[NR], acked[NR];
};

static struct account *account;
static char options[512];

/* Every word says which content of which block it is: a block that is torn or another's shows. */
static void fill(uint64_t *words, uint32_t block, uint32_t content)
{
	for (unsigned i = 0; i < BLOCK / 8; i++)
		words[i] = content ? (uint64_t)content << 32 | block : 0;
}

static struct varve_image *open_disk(struct varve_queue *home)
{
	struct varve_open_options oo = { .flags = VARVE_OPEN_WRITABLE | VARVE_OPEN_IMAGE_OPTS, .home = home };
	struct varve_image *image = NULL;

	expect_ok(varve_image_open(&image, options, &oo, &err));
	return image;
}

static void random_write(struct varve_queue *q, struct varve_image *image, uint64_t (*bufs)[BLOCK / 8], uint32_t *blocks,
			 unsigned slot)
{
	static struct iovec iovs[DEPTH];
	struct iovec *iov = &iovs[slot];
	uint32_t block;
	bool busy;

	do {
		/* Runs and leaps: new tables, the stock, mappings ahead, plain overwrites. */
		block = random() % 4 ? (blocks[slot] + DEPTH) % NR : (uint32_t)(random() % NR);
		busy = false;
		for (unsigned i = 0; i < DEPTH; i++)
			busy |= i != slot && blocks[i] == block;
		blocks[slot] = block;
	} while (busy);
	*iov = (struct iovec){ bufs[slot], BLOCK };
	account->begun[block]++;
	fill(bufs[slot], block, account->begun[block]);
	if (varve_submit_writev(q, image, iov, 1, (uint64_t)block * BLOCK, 0, (void *)(uintptr_t)slot) < 0)
		_exit(3);
}

/*
 * Never returns. Tells through the pipe how far it is: one byte for 32 writes. It dies by its own hand when so many are
 * acknowledged, and flushes nothing before (0: it waits to be killed, and flushes now and then).
 */
static void child(int tell, unsigned seed, unsigned last)
{
	static uint64_t bufs[DEPTH][BLOCK / 8] __attribute__((aligned(4096)));
	struct varve_completion done[DEPTH];
	uint32_t blocks[DEPTH];
	struct varve_queue *q;
	struct varve_image *image;
	unsigned nr = 0;

	srandom(seed);
	if (varve_queue_new(&q, NULL, &err) < 0)
		_exit(4);
	image = open_disk(q);
	for (unsigned i = 0; i < DEPTH; i++)
		blocks[i] = i;
	for (unsigned i = 0; i < DEPTH; i++)
		random_write(q, image, bufs, blocks, i);
	for (;;) {
		int got = varve_queue_reap(q, done, DEPTH, -1);

		for (int i = 0; i < got; i++) {
			unsigned slot = (unsigned)(uintptr_t)done[i].user_data;

			if (done[i].result < 0)
				_exit(5);
			if (slot == DEPTH) /* a flush */
				continue;
			account->acked[blocks[slot]] = account->begun[blocks[slot]];
			if (nr + 1 == last)
				kill(getpid(), SIGKILL);
			if (++nr % 32 == 0 && write(tell, "", 1) != 1)
				_exit(6);
			if (!last && nr % 400 == 0)
				(void)varve_submit_flush(q, image, (void *)(uintptr_t)DEPTH);
			random_write(q, image, bufs, blocks, slot);
		}
	}
}

static void expect_killed(pid_t pid)
{
	int status;

	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

/* Without a flush, however many there are and however busy the machine is: what it wrote is queued, and nothing else. */
static void run_to_the_death(unsigned nr_writes)
{
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0)
		child(open("/dev/null", O_WRONLY | O_CLOEXEC), 1, nr_writes);
	expect_killed(pid);
}

static void run_and_kill(unsigned seed, unsigned moments)
{
	int pipes[2];
	char byte;
	pid_t pid;

	assert_int_equal(pipe(pipes), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0)
		child(pipes[1], seed, 0);
	close(pipes[1]);
	for (unsigned i = 0; i < moments; i++)
		assert_int_equal(read(pipes[0], &byte, 1), 1);
	kill(pid, SIGKILL);
	expect_killed(pid);
	close(pipes[0]);
}

/* How many blocks are not what they must be. */
static unsigned count_lost(void)
{
	static uint64_t found[BLOCK / 8], wanted[BLOCK / 8];
	struct varve_image *image = open_disk(NULL);
	unsigned lost = 0;
	uint32_t content;

	for (uint32_t i = 0; i < NR; i++) {
		expect_ok(varve_image_read(image, (uint64_t)i * BLOCK, found, BLOCK, &err));
		content = (uint32_t)(found[0] >> 32);
		fill(wanted, i, content);
		if (content < account->acked[i] || content > account->begun[i] || memcmp(found, wanted, BLOCK) != 0) {
			if (lost++ < 8)
				printf("# block %u: found %#llx, acknowledged %u, begun %u\n", i,
				       (unsigned long long)found[0], account->acked[i], account->begun[i]);
		}
		account->begun[i] = account->acked[i] = content;
	}
	expect_ok(varve_image_close(image, &err));
	return lost;
}

static uint64_t leaks; /* of the image that was checked last, in clusters */

static void check(const char *format)
{
	struct varve_open_options oo = { .flags = VARVE_OPEN_CHECK, .format = format };
	struct varve_check_result result;
	struct varve_image *image;

	expect_ok(varve_image_open(&image, path_of("disk"), &oo, &err));
	expect_ok(varve_image_check(image, &result, NULL, NULL, NULL, &err));
	expect_ok(varve_image_close(image, &err));
	assert_int_equal(result.corruptions, 0);
	assert_int_equal(result.check_errors, 0);
	leaks = result.leaks;
}

static void begin(const char *format, const char *create, const char *more)
{
	unlink(path_of("disk"));
	memset(account, 0, sizeof(*account));
	make_image("disk", format, DISK, create);
	snprintf(options, sizeof(options), "driver=%s,file.filename=%s%s%s%s", format, path_of("disk"), more,
		 *more == ',' ? "" : ",state-dir=", *more == ',' ? "" : path_of("state"));
}

/* Not even what has been queued for long is written, so that it is queued when the process dies. */
static void begin_patiently(const char *create)
{
	begin("qcow2", create, "");
	strcat(options, ",metadata-write-out=0");
}

static void survives(const char *format, const char *create, const char *more)
{
	unsigned seed = (unsigned)seed_of_run(), rounds = getenv("VARVE_KILLS") ? (unsigned)atoi(getenv("VARVE_KILLS")) : ROUNDS;

	begin(format, create, more);
	for (unsigned round = 0; round < rounds; round++) {
		run_and_kill(seed + round, 1 + (seed + round * 7) % 23);
		/* Every other time the next one is killed, too, before anybody has looked. */
		if (round % 2)
			run_and_kill(seed + round + 1000, 1);
		assert_int_equal(count_lost(), 0);
		if (strcmp(format, "raw") != 0)
			check(format);
	}
	/* Nothing is left behind; raw does not even make the directory. */
	assert_int_equal(rmdir(path_of("state")), strcmp(format, "raw") ? 0 : -1);
}

static void qcow2_survives_kills(void **state)
{
	survives("qcow2", NULL, "");
}

static void qcow2_of_small_clusters_survives_kills(void **state)
{
	survives("qcow2", "cluster_size=4k", "");
}

/* Counts that were never written are made anew; the entries are what must not be lost. */
static void qcow2_with_lazy_refcounts_survives_kills(void **state)
{
	survives("qcow2", "lazy_refcounts=on", "");
}

/* The data is with the kernel, in a file of its own; what leads there is in the journal. */
static void qcow2_with_a_data_file_survives_kills(void **state)
{
	char create[256];

	snprintf(create, sizeof(create), "data_file=%s", path_of("data"));
	survives("qcow2", create, "");
	snprintf(create, sizeof(create), "extended_l2=on,cluster_size=64k,data_file=%s", path_of("data"));
	survives("qcow2", create, "");
}

static void qed_survives_kills(void **state)
{
	survives("qed", NULL, "");
}

static void raw_survives_kills(void **state)
{
	survives("raw", NULL, "");
}

/* That the tests above can see a loss. */
static void without_it_acknowledged_writes_are_lost(void **state)
{
	begin("qcow2", NULL, ",metadata-write-out=0");
	run_to_the_death(160);
	assert_true(count_lost() > 0);
}

/* Between the death and the next start, somebody else writes: what was queued must not go over that. */
static void an_image_that_was_changed_since_is_refused(void **state)
{
	struct varve_open_options oo = { .flags = VARVE_OPEN_WRITABLE, .format = "qcow2" };
	struct varve_image *image;

	begin_patiently(NULL);
	run_to_the_death(96);
	expect_ok(varve_image_open(&image, path_of("disk"), &oo, &err));
	expect_ok(varve_image_write(image, 0, "other", 5, 0, &err));
	expect_ok(varve_image_close(image, &err));
	oo.flags |= VARVE_OPEN_IMAGE_OPTS;
	oo.format = NULL;
	assert_int_equal(varve_image_open(&image, options, &oo, &err), -ESTALE);
	assert_non_null(strstr(err.message, "another program has changed the image"));
}

/* The process died when it knew that a sync had failed, and perhaps before the guest did. */
static void inherits_error(const char *create, size_t at)
{
	struct varve_image *image;
	uint64_t error = EIO;
	glob_t found;
	int fd;

	begin_patiently(create);
	run_to_the_death(96);
	assert_int_equal(glob(path_of("state/*.journal"), 0, NULL, &found), 0);
	fd = open(found.gl_pathv[found.gl_pathc - 1], O_RDWR | O_CLOEXEC);
	assert_int_equal(pwrite(fd, &error, sizeof(error), (off_t)at), sizeof(error));
	close(fd);
	globfree(&found);
	image = open_disk(NULL);
	expect_ok(varve_image_write(image, 0, "more", 4, 0, &err));
	assert_int_equal(varve_image_flush(image, &err), -EIO);
	assert_int_equal(varve_image_flush(image, &err), -EIO);
	assert_int_equal(varve_image_acknowledge_flush_error(image, NULL, &err), 1);
	expect_ok(varve_image_flush(image, &err));
	expect_ok(varve_image_close(image, &err));
}

static void a_failed_sync_is_inherited(void **state)
{
	char create[256];

	inherits_error(NULL, offsetof(struct journal_header, error));
	snprintf(create, sizeof(create), "data_file=%s", path_of("data"));
	inherits_error(create, offsetof(struct journal_header, data_error));
}

/* A child that is told of a sync that failed, and whose next flush is a guest's that finds no metadata queued. Then it dies. */
static int flush_and_die(const char *tree)
{
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		struct varve_open_options oo = { .flags = VARVE_OPEN_WRITABLE | VARVE_OPEN_IMAGE_OPTS };
		struct varve_image *image;

		if (varve_image_open(&image, tree, &oo, &err) < 0)
			_exit(2);
		_exit(varve_image_flush(image, &err) < 0 ? 1 : 0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

/* Each inherits it, dies, and leaves it to the next, whether it has written anything or not: until somebody says that he knows. */
static void an_inherited_error_is_left_to_the_next(void **state)
{
	struct varve_image *image;
	uint64_t error = EIO;
	char create[256];
	glob_t found;
	int fd;

	snprintf(create, sizeof(create), "data_file=%s", path_of("data"));
	begin_patiently(create);
	run_to_the_death(96);
	assert_int_equal(glob(path_of("state/*.journal"), 0, NULL, &found), 0);
	fd = open(found.gl_pathv[0], O_RDWR | O_CLOEXEC);
	assert_int_equal(pwrite(fd, &error, sizeof(error), (off_t)offsetof(struct journal_header, data_error)), sizeof(error));
	close(fd);
	globfree(&found);
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(flush_and_die(options), 1);
	image = open_disk(NULL);
	assert_int_equal(varve_image_acknowledge_flush_error(image, NULL, &err), 1);
	expect_ok(varve_image_flush(image, &err));
	expect_ok(varve_image_close(image, &err));
	assert_int_equal(flush_and_die(options), 0);
	image = open_disk(NULL);
	expect_ok(varve_image_close(image, &err));
}

/* ---- killed on the way from a dead process's journal to one's own ---- */

static int steps_left = -1; /* < 0: nobody counts */

/* The calls that change files of the state directory. A process is killed instead of making one of them. */
static void step(void)
{
	if (steps_left >= 0 && steps_left-- == 0)
		raise(SIGKILL);
}

int unlink(const char *path)
{
	step();
	return (int)syscall(SYS_unlink, path);
}

int link(const char *from, const char *to)
{
	step();
	return (int)syscall(SYS_link, from, to);
}

int rename(const char *from, const char *to)
{
	step();
	return (int)syscall(SYS_rename, from, to);
}

int flock(int fd, int how)
{
	step();
	return (int)syscall(SYS_flock, fd, how);
}

int ftruncate(int fd, off_t len)
{
	int ret;

	step();
	ret = (int)syscall(SYS_ftruncate, fd, len);
	step();
	return ret;
}

int fallocate(int fd, int mode, off_t off, off_t len)
{
	step();
	return (int)syscall(SYS_fallocate, fd, mode, off, len);
}

int munmap(void *map, size_t len)
{
	if (len == JOURNAL_LEN)
		step();
	return (int)syscall(SYS_munmap, map, len);
}

/* A child that opens the disk, and is killed at that step. False: it came to the end before. */
static bool open_and_be_killed(int at)
{
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		struct varve_open_options oo = { .flags = VARVE_OPEN_WRITABLE | VARVE_OPEN_IMAGE_OPTS };
		struct varve_image *image;

		steps_left = at;
		if (varve_image_open(&image, options, &oo, &err) < 0)
			_exit(1);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status) || WEXITSTATUS(status) == 0);
	return WIFSIGNALED(status);
}

static void keeps_the_error_at_every_step(const char *create, size_t where)
{
	struct varve_image *image;
	uint64_t error = EIO;
	glob_t found;
	int fd, at = 0;

	begin_patiently(create);
	run_to_the_death(96); /* with records, which are written out at the first step that is late enough */
	assert_int_equal(glob(path_of("state/*.journal"), 0, NULL, &found), 0);
	fd = open(found.gl_pathv[0], O_RDWR | O_CLOEXEC);
	assert_int_equal(pwrite(fd, &error, sizeof(error), (off_t)where), sizeof(error));
	close(fd);
	globfree(&found);
	while (open_and_be_killed(at))
		at++;
	printf("# killed at %d steps\n", at);
	/* Each of them left it to the next; and once more with somebody who asks after every kill. */
	assert_int_equal(flush_and_die(options), 1);
	assert_int_equal(glob(path_of("state/*.journal.*"), 0, NULL, &found), GLOB_NOMATCH); /* nor is anything else left of them */
	assert_true(at >= 10);
	for (int i = 0; i < at; i++) {
		open_and_be_killed(i);
		assert_int_equal(flush_and_die(options), 1);
	}
	image = open_disk(NULL);
	assert_int_equal(varve_image_acknowledge_flush_error(image, NULL, &err), 1);
	expect_ok(varve_image_flush(image, &err));
	expect_ok(varve_image_close(image, &err));
	assert_int_equal(count_lost(), 0);
	check("qcow2");
}

static void an_error_outlives_a_kill_at_every_step_of_the_next_opening(void **state)
{
	char create[256];

	keeps_the_error_at_every_step(NULL, offsetof(struct journal_header, error));
	snprintf(create, sizeof(create), "data_file=%s", path_of("data"));
	keeps_the_error_at_every_step(create, offsetof(struct journal_header, data_error));
}

/* ---- what was to be freed ---- */

int __real_order_put(struct fiber *f, struct order *o, uint64_t off, const void *bytes, size_t len, order_mark after, order_mark *ret_mark);
int __wrap_order_put(struct fiber *f, struct order *o, uint64_t off, const void *bytes, size_t len, order_mark after, order_mark *ret_mark);
void __real_order_todo_done(struct order *o, unsigned nr);
void __wrap_order_todo_done(struct order *o, unsigned nr);

int __wrap_order_put(struct fiber *f, struct order *o, uint64_t off, const void *bytes, size_t len, order_mark after, order_mark *ret_mark)
{
	step();
	return __real_order_put(f, o, off, bytes, len, after, ret_mark);
}

void __wrap_order_todo_done(struct order *o, unsigned nr)
{
	step();
	__real_order_todo_done(o, nr);
}

static void must_child(int ret, int status)
{
	if (ret < 0)
		_exit(status);
}

/* Fills the disk and discards all of it, several times. None of that is flushed, so nothing of it may be used again before it dies. */
static void discard_and_die(void)
{
	static uint8_t bytes[MIB];
	struct varve_image *image = open_disk(NULL);

	memset(bytes, 7, sizeof(bytes));
	for (unsigned round = 0; round < 3; round++) {
		for (uint64_t off = 0; off < DISK; off += sizeof(bytes))
			must_child(varve_image_write(image, off, bytes, sizeof(bytes), 0, &err), 2);
		for (uint64_t off = 0; off < DISK; off += 3 * (uint64_t)64 * 1024) /* in many parts, and not all */
			must_child(varve_image_discard(image, off, 2 * 64 * 1024, &err), 3);
	}
	kill(getpid(), SIGKILL);
}

static void space_that_was_given_up_is_not_leaked(void **state)
{
	uint64_t len = 0;
	struct stat st;

	begin_patiently(NULL);
	for (unsigned round = 0; round < 3; round++) {
		struct varve_image *image;
		pid_t pid = fork();

		assert_true(pid >= 0);
		if (pid == 0)
			discard_and_die();
		expect_killed(pid);
		image = open_disk(NULL);
		expect_ok(varve_image_close(image, &err));
		check("qcow2");
		assert_int_equal(leaks, 0);
		assert_int_equal(stat(path_of("disk"), &st), 0);
		assert_true(!len || (uint64_t)st.st_size <= len); /* used again by the next one */
		len = (uint64_t)st.st_size;
	}
}

/* The child of a disk whose clusters a snapshot shares: it overwrites some, and is killed when the references are given back. */
static void overwrite_and_die(int at)
{
	static uint8_t bytes[64 * 1024];
	struct varve_snapshot_options so = { .name = "s" };
	struct varve_image *image = open_disk(NULL);

	memset(bytes, 7, sizeof(bytes));
	for (unsigned i = 0; i < 8; i++)
		must_child(varve_image_write(image, i * sizeof(bytes), bytes, sizeof(bytes), 0, &err), 2);
	must_child(varve_snapshot_create(image, &so, NULL, &err), 3);
	memset(bytes, 8, sizeof(bytes));
	for (unsigned i = 0; i < 8; i += 2) /* no neighbours, which would be given back as one */
		must_child(varve_image_write(image, i * sizeof(bytes), bytes, sizeof(bytes), 0, &err), 4);
	steps_left = at;
	must_child(varve_image_flush(image, &err), 5);
	must_child(varve_image_flush(image, &err), 5);
	_exit(0);
}

/* A reference that is given back twice takes the snapshot's. */
static void a_reference_is_given_back_once_wherever_it_is_killed(void **state)
{
	int status = SIGKILL, at;

	for (at = 0; WIFSIGNALED(status); at++) {
		struct varve_image *image;
		pid_t pid;

		begin_patiently(NULL);
		pid = fork();
		assert_true(pid >= 0);
		if (pid == 0)
			overwrite_and_die(at);
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_true(WIFSIGNALED(status) || WEXITSTATUS(status) == 0);
		image = open_disk(NULL);
		expect_ok(varve_image_close(image, &err));
		check("qcow2");
		assert_in_range(leaks, 0, 1); /* the one that was begun */
	}
	assert_in_range(at, 9, 100); /* two steps for each of them */
}

/* ---- lengths ---- */

/* As cp does onto a file that is there: the same inode. */
static void put_in_place(const char *from, const char *to)
{
	char copy[256];
	static uint8_t buf[MIB];
	ssize_t n;
	int in, out;

	snprintf(copy, sizeof(copy), "%s", path_of(from));
	in = open(copy, O_RDONLY | O_CLOEXEC);
	out = open(path_of(to), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	assert_true(in >= 0 && out >= 0);
	while ((n = read(in, buf, sizeof(buf))) > 0)
		assert_int_equal(write(out, buf, (size_t)n), n);
	assert_int_equal(n, 0);
	close(in);
	close(out);
}

static void is_refused_as_older(void)
{
	struct varve_open_options oo = { .flags = VARVE_OPEN_WRITABLE | VARVE_OPEN_IMAGE_OPTS };
	struct varve_image *image;

	assert_int_equal(varve_image_open(&image, options, &oo, &err), -ESTALE);
	assert_non_null(strstr(err.message, "the image is older than its journal"));
	assert_non_null(strstr(err.message, "state file"));
}

static void an_older_copy_is_refused(const char *format, const char *file, const char *create)
{
	begin(format, create, "");
	strcat(options, ",metadata-write-out=0");
	run_to_the_death(16);
	put_in_place(file, "old"); /* with the mark: a server is at it */
	run_to_the_death(3000);
	put_in_place(file, "new");
	if (strcmp(file, "data") == 0) /* it has its length from the beginning; this is one of a time when the disk was smaller */
		assert_int_equal(truncate(path_of("old"), DISK / 2), 0);
	put_in_place("old", file);
	is_refused_as_older();
	is_refused_as_older(); /* and left as it is */
	put_in_place("new", file);
	assert_int_equal(count_lost(), 0);
	check(format);
}

static void an_older_copy_put_back_over_the_image_is_refused(void **state)
{
	char create[256];

	an_older_copy_is_refused("qcow2", "disk", NULL);
	an_older_copy_is_refused("qed", "disk", NULL);
	snprintf(create, sizeof(create), "data_file=%s", path_of("data"));
	an_older_copy_is_refused("qcow2", "data", create);
}

/* Writes and makes the disk shorter, and with it the data file; the queue is not empty when it is killed. */
static void shrink_and_die(int at)
{
	static uint64_t block[BLOCK / 8];
	struct varve_image *image = open_disk(NULL);

	fill(block, 1, 1);
	if (varve_image_write(image, BLOCK, block, BLOCK, 0, &err) < 0 || varve_image_write(image, DISK - BLOCK, block, BLOCK, 0, &err) < 0)
		_exit(2);
	steps_left = at;
	if (varve_image_resize(image, DISK / 2, VARVE_PREALLOC_OFF, VARVE_RESIZE_SHRINK, &err) < 0 ||
	    varve_image_write(image, 2 * BLOCK, block, BLOCK, 0, &err) < 0)
		_exit(3);
	_exit(0);
}

/* What becomes shorter by our own doing is not older, whenever the process is killed. */
static void who_makes_it_shorter_and_is_killed_is_not_refused(void **state)
{
	static uint64_t found[BLOCK / 8], wanted[BLOCK / 8];
	int status = SIGKILL, at;
	char create[256];

	fill(wanted, 1, 1);
	snprintf(create, sizeof(create), "data_file=%s", path_of("data"));
	for (at = 0; WIFSIGNALED(status); at++) {
		struct varve_image *image;
		pid_t pid;

		begin_patiently(create);
		pid = fork();
		assert_true(pid >= 0);
		if (pid == 0)
			shrink_and_die(at);
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_true(WIFSIGNALED(status) || WEXITSTATUS(status) == 0);
		image = open_disk(NULL);
		expect_ok(varve_image_read(image, BLOCK, found, BLOCK, &err));
		assert_memory_equal(found, wanted, BLOCK);
		expect_ok(varve_image_close(image, &err));
	}
	assert_in_range(at, 3, 100); /* before and after it was cut, and to the end */
}

/* In memory where that is possible: the kernel keeps it as well, and there are many syncs. */
static int quick_dir_make(void **state)
{
	snprintf(test_dir, sizeof(test_dir), "/dev/shm/varve-api-XXXXXX");
	return mkdtemp(test_dir) ? 0 : dir_make(state);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(qcow2_survives_kills),
		cmocka_unit_test(qcow2_of_small_clusters_survives_kills),
		cmocka_unit_test(qcow2_with_lazy_refcounts_survives_kills),
		cmocka_unit_test(qcow2_with_a_data_file_survives_kills),
		cmocka_unit_test(qed_survives_kills),
		cmocka_unit_test(raw_survives_kills),
		cmocka_unit_test(without_it_acknowledged_writes_are_lost),
		cmocka_unit_test(a_failed_sync_is_inherited),
		cmocka_unit_test(an_inherited_error_is_left_to_the_next),
		cmocka_unit_test(an_error_outlives_a_kill_at_every_step_of_the_next_opening),
		cmocka_unit_test(an_image_that_was_changed_since_is_refused),
		cmocka_unit_test(space_that_was_given_up_is_not_leaked),
		cmocka_unit_test(a_reference_is_given_back_once_wherever_it_is_killed),
		cmocka_unit_test(an_older_copy_put_back_over_the_image_is_refused),
		cmocka_unit_test(who_makes_it_shorter_and_is_killed_is_not_refused),
	};

	account = mmap(NULL, sizeof(*account), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, quick_dir_make, dir_remove);
}
