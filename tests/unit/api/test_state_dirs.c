/* SPDX-License-Identifier: MIT */
/*
 * test_state_dirs.c - two servers of one image that keep their journals in different directories
 *
 * Each dies with writes in its journal. What the first one had queued must not go over what the second one has written since: both
 * have handed out the same clusters.
 *
 * Assumes: children die by their own hand, at a given call or when their writes are acknowledged.
 */
#include <fcntl.h>
#include <glob.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "api_test.h"
#include "order/order.h"

#define DISK (32 * MIB)
#define PART 65536u

static struct varve_error err;
static const char *format;
static bool unclean; /* the image says that it was not closed, and is repaired by who opens it: lazy refcounts, and QED */
static int steps_left = -1; /* < 0: nobody counts */

/* Calls that change the image or the state directory. A process is killed instead of making one of them. */
static void step(void)
{
	if (steps_left >= 0 && steps_left-- == 0)
		raise(SIGKILL);
}

int link(const char *from, const char *to)
{
	step();
	return (int)syscall(SYS_link, from, to);
}

int unlink(const char *path)
{
	step();
	return (int)syscall(SYS_unlink, path);
}

int ftruncate(int fd, off_t len)
{
	step();
	return (int)syscall(SYS_ftruncate, fd, len);
}

int flock(int fd, int how)
{
	step();
	return (int)syscall(SYS_flock, fd, how);
}

int __real_order_put(struct fiber *f, struct order *o, uint64_t off, const void *bytes, size_t len, order_mark after, order_mark *ret_mark);
int __wrap_order_put(struct fiber *f, struct order *o, uint64_t off, const void *bytes, size_t len, order_mark after, order_mark *ret_mark);

int __wrap_order_put(struct fiber *f, struct order *o, uint64_t off, const void *bytes, size_t len, order_mark after, order_mark *ret_mark)
{
	step();
	return __real_order_put(f, o, off, bytes, len, after, ret_mark);
}

int __real_node_write(struct fiber *f, struct node *n, uint64_t off, const void *buf, size_t len);
int __wrap_node_write(struct fiber *f, struct node *n, uint64_t off, const void *buf, size_t len);

int __wrap_node_write(struct fiber *f, struct node *n, uint64_t off, const void *buf, size_t len)
{
	step();
	return __real_node_write(f, n, off, buf, len);
}

/* Nothing is written out before it must be. state_dir NULL: without a journal. */
static int open_with(const char *state_dir, struct varve_image **ret)
{
	struct varve_open_options oo = { .flags = VARVE_OPEN_WRITABLE | VARVE_OPEN_IMAGE_OPTS };
	char options[1024], disk[256];
	int len;

	snprintf(disk, sizeof(disk), "%s", path_of("disk"));
	len = snprintf(options, sizeof(options), "driver=%s,file.filename=%s,metadata-write-out=0", format, disk);
	if (state_dir)
		snprintf(options + len, sizeof(options) - (size_t)len, ",state-dir=%s", path_of(state_dir));
	return varve_image_open(ret, options, &oo, &err);
}

/* A server that writes byte to 16 parts from first on, and dies; or dies at that step of its opening. False: it was not killed. */
static bool serve_and_die(const char *state_dir, unsigned first, uint8_t byte, int at)
{
	static uint8_t bytes[PART];
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		struct varve_image *image;

		memset(bytes, byte, sizeof(bytes));
		steps_left = at;
		if (open_with(state_dir, &image) < 0)
			_exit(2);
		if (at >= 0)
			_exit(0);
		for (unsigned i = first; i < first + 16; i++)
			if (varve_image_write(image, (uint64_t)i * PART, bytes, PART, 0, &err) < 0 ||
			    (unclean && i == first && varve_image_flush(image, &err) < 0)) /* on disk, too */
				_exit(3);
		raise(SIGKILL);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status) || (at >= 0 && WEXITSTATUS(status) == 0));
	return WIFSIGNALED(status);
}

static void refused(const char *state_dir, const char *why)
{
	struct varve_image *image;

	assert_int_equal(open_with(state_dir, &image), -ESTALE);
	if (!strstr(err.message, why))
		fail_msg("not \"%s\": %s", why, err.message);
	assert_non_null(strstr(err.message, "state file"));
	assert_null(strchr(err.message, '\n'));
}

/* 16 parts are there, and the image is sound. */
static void holds(struct varve_image *image, unsigned first, uint8_t byte)
{
	struct varve_open_options oo = { .flags = VARVE_OPEN_CHECK, .format = format };
	struct varve_check_result result;
	static uint8_t found[PART], wanted[PART];

	memset(wanted, byte, sizeof(wanted));
	for (unsigned i = first; i < first + 16; i++) {
		expect_ok(varve_image_read(image, (uint64_t)i * PART, found, PART, &err));
		assert_memory_equal(found, wanted, PART);
	}
	expect_ok(varve_image_close(image, &err));
	expect_ok(varve_image_open(&image, path_of("disk"), &oo, &err));
	expect_ok(varve_image_check(image, &result, NULL, NULL, NULL, &err));
	expect_ok(varve_image_close(image, &err));
	assert_int_equal(result.corruptions, 0);
}

static void begin(void)
{
	glob_t found;

	unlink(path_of("disk"));
	make_image("disk", format, DISK, unclean && strcmp(format, "qcow2") == 0 ? "lazy_refcounts=on" : NULL);
	if (glob(path_of("s?/*"), 0, NULL, &found) == 0)
		for (size_t i = 0; i < found.gl_pathc; i++)
			assert_int_equal(unlink(found.gl_pathv[i]), 0);
	globfree(&found);
}

static uint64_t sum_of_disk(void)
{
	int fd = open(path_of("disk"), O_RDONLY | O_CLOEXEC);
	uint64_t word, sum = 0;

	assert_true(fd >= 0);
	while (read(fd, &word, sizeof(word)) == sizeof(word))
		sum = (sum ^ word) * 0x9e3779b97f4a7c15ull + 1;
	close(fd);
	return sum;
}

static void the_older_journal_is_refused(void)
{
	struct varve_image *image;
	uint64_t sum;

	begin();
	serve_and_die("s1", 0, 1, -1);
	serve_and_die("s2", 8, 2, -1);
	sum = sum_of_disk();
	/* There is a mark, and it is not that of this journal. */
	refused("s1", "a server with another state directory has changed the image");
	refused("s1", "a server with another state directory has changed the image");
	assert_true(sum_of_disk() == sum);
	expect_ok(open_with("s2", &image));
	holds(image, 8, 2);
	refused("s1", "another program has changed the image"); /* closed in order: there is no mark */
}

static void the_older_journal_of_two_is_refused(void **state)
{
	format = "qcow2";
	the_older_journal_is_refused();
	format = "qed";
	the_older_journal_is_refused();
}

/* Of a QED image: what its header says of the journal that it has. */
static uint64_t mark_of_disk(void)
{
	int fd = open(path_of("disk"), O_RDONLY | O_CLOEXEC);
	uint64_t mark;

	assert_true(fd >= 0);
	assert_int_equal(pread(fd, &mark, sizeof(mark), 32), sizeof(mark));
	close(fd);
	return mark;
}

/* The first one's journal is used as long as the header has its mark, and refused from the moment on at which it has another, or none. */
static void is_used_or_refused_at_every_step(const char *second, unsigned used_min, unsigned refused_min)
{
	const bool is_repaired = unclean && !strcmp(format, "qed") && (!second || strcmp(second, "s1") != 0);
	unsigned nr_used = 0, nr_refused = 0;
	bool killed = true;

	for (int at = 0; killed; at++) {
		struct varve_image *image;
		uint64_t sum, mark;

		begin();
		serve_and_die("s1", 0, 1, -1);
		sum = is_repaired ? sum_of_disk() : 0;
		mark = is_repaired ? mark_of_disk() : 0;
		killed = serve_and_die(second, 0, 0, at);
		if (is_repaired && sum_of_disk() != sum)
			assert_true(mark_of_disk() != mark); /* not one byte before it */
		if (open_with("s1", &image) == 0) {
			assert_int_equal(nr_refused, 0);
			nr_used++;
			holds(image, 0, 1);
		} else {
			nr_refused++;
			/* Behind another server's mark, an image that has become shorter is taken for an older copy. */
			refused("s1", second && unclean ? "the image" : "has changed the image since");
		}
	}
	printf("# %s, %s: used %u times, refused %u times\n", format, second ? second : "no journal", nr_used, nr_refused);
	assert_true(nr_used >= used_min && nr_refused >= refused_min);
}

static void a_second_server_killed_on_its_way_leaves_no_doubt(void **state)
{
	format = "qcow2";
	is_used_or_refused_at_every_step("s2", 1, 4);
	format = "qed";
	is_used_or_refused_at_every_step("s2", 1, 4);
}

/* What repairs the image knows nothing of what the journal would add to it: it is not the image's from the moment on at which new counts stand. */
static void a_writer_killed_behind_its_repair_leaves_no_doubt(void **state)
{
	unclean = true;
	format = "qcow2";
	is_used_or_refused_at_every_step("s2", 3, 4);
	is_used_or_refused_at_every_step(NULL, 3, 1);
	is_used_or_refused_at_every_step("s1", 3, 0);
	format = "qed";
	is_used_or_refused_at_every_step("s1", 3, 0);
	is_used_or_refused_at_every_step("s2", 1, 4);
	is_used_or_refused_at_every_step(NULL, 1, 1);
}

static int closed_in_order(void **state)
{
	unclean = false;
	return 0;
}

/* Each finds what the one before it left, though the mark is another one each time. */
static void one_directory_is_enough_for_many_deaths(void **state)
{
	struct varve_image *image;

	for (unsigned i = 0; i < 2; i++) {
		format = i ? "qed" : "qcow2";
		begin();
		for (unsigned round = 0; round < 4; round++)
			serve_and_die("s1", round * 16, (uint8_t)(round + 1), -1);
		for (unsigned round = 0; round < 4; round++) {
			expect_ok(open_with("s1", &image));
			holds(image, round * 16, (uint8_t)(round + 1));
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_older_journal_of_two_is_refused),
		cmocka_unit_test(a_second_server_killed_on_its_way_leaves_no_doubt),
		cmocka_unit_test_teardown(a_writer_killed_behind_its_repair_leaves_no_doubt, closed_in_order),
		cmocka_unit_test(one_directory_is_enough_for_many_deaths),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, dir_make, dir_remove);
}
