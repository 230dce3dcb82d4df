/* SPDX-License-Identifier: MIT */
/*
 * unit/proto/test_lock_peer.c - image locks between varve and QEMU's tools, in both directions
 *
 * Skipped where qemu-io is not installed.
 */
#include "leaf.h"

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>

extern char **environ;

struct peer {
	pid_t pid;
	int to, from;
};

/* Starts a program with pipes on stdin and stdout (with stderr). */
static bool peer_start(struct peer *p, const char *const *argv)
{
	posix_spawn_file_actions_t actions;
	int in[2], out[2], ret;

	assert_int_equal(pipe2(in, O_CLOEXEC), 0);
	assert_int_equal(pipe2(out, O_CLOEXEC), 0);
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, in[0], 0);
	posix_spawn_file_actions_adddup2(&actions, out[1], 1);
	posix_spawn_file_actions_adddup2(&actions, out[1], 2);
	ret = posix_spawnp(&p->pid, argv[0], &actions, NULL, (char *const *)argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	close(in[0]);
	close(out[1]);
	p->to = in[1];
	p->from = out[0];
	if (ret) {
		close(p->to);
		close(p->from);
	}
	return ret == 0;
}

/* Reads what the program says until it ends, or (until != NULL) until that was said. */
static void peer_listen(struct peer *p, const char *until, char *text, size_t max)
{
	size_t len = 0;

	text[0] = '\0';
	while (len + 1 < max) {
		ssize_t n = read(p->from, text + len, max - 1 - len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return;
		len += (size_t)n;
		text[len] = '\0';
		if (until && strstr(text, until))
			return;
	}
}

static int peer_end(struct peer *p)
{
	int status;

	close(p->to);
	close(p->from);
	while (waitpid(p->pid, &status, 0) < 0)
		assert_int_equal(errno, EINTR);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* Runs to the end. */
static int peer_run(const char *const *argv, char *text, size_t max)
{
	struct peer p;

	if (!peer_start(&p, argv))
		return -1;
	peer_listen(&p, NULL, text, max);
	return peer_end(&p);
}

static void make_image_or_skip(void)
{
	char text[1024];
	const char *const argv[] = { "qemu-img", "create", "-q", "-f", "qcow2", leaf_path("i.qcow2"), "1M", NULL };
	const char *const version[] = { "qemu-io", "--version", NULL };

	if (peer_run(version, text, sizeof(text)) != 0 || peer_run(argv, text, sizeof(text)) != 0)
		skip();
}

static void qemu_refuses(uint32_t our_flags, const char *const *argv, const char *words)
{
	char text[4096];
	struct leaf l;

	leaf_open(&l, &driver_file, leaf_file_opts("i.qcow2", ""), our_flags);
	assert_int_equal(peer_run(argv, text, sizeof(text)), 1);
	if (!strstr(text, words))
		fail_msg("it says '%s', not '%s'", text, words);
	leaf_close(&l);
}

static void qemu_accepts(uint32_t our_flags, const char *const *argv)
{
	char text[4096];
	struct leaf l;

	leaf_open(&l, &driver_file, leaf_file_opts("i.qcow2", ""), our_flags);
	if (peer_run(argv, text, sizeof(text)) != 0)
		fail_msg("it says '%s'", text);
	leaf_close(&l);
}

static void qemu_respects_our_locks(void **state)
{
	const char *path = leaf_path("i.qcow2");
	const char *const writer[] = { "qemu-io", "-f", "qcow2", "-c", "write 0 512", path, NULL };
	const char *const reader[] = { "qemu-img", "info", "-f", "qcow2", path, NULL };
	const char *const forced[] = { "qemu-img", "info", "-U", "-f", "qcow2", path, NULL };

	(void)state;
	make_image_or_skip();
	qemu_refuses(NODE_WRITABLE, writer, "Failed to get \"write\" lock");
	qemu_refuses(NODE_WRITABLE, reader, "Failed to get shared \"write\" lock");
	qemu_refuses(0, writer, "Failed to get \"write\" lock");
	qemu_accepts(0, reader);
	qemu_accepts(NODE_WRITABLE, forced);
	qemu_accepts(NODE_FORCE_SHARE, writer);
}

static void qemu_io_open(struct peer *p, bool read_only)
{
	const char *const writer[] = { "qemu-io", "-f", "qcow2", leaf_path("i.qcow2"), NULL };
	const char *const reader[] = { "qemu-io", "-r", "-f", "qcow2", leaf_path("i.qcow2"), NULL };
	char text[1024];

	assert_true(peer_start(p, read_only ? reader : writer));
	peer_listen(p, "qemu-io> ", text, sizeof(text)); /* the image is open when it prompts */
	if (!strstr(text, "qemu-io> "))
		fail_msg("it says '%s'", text);
}

static void we_respect_the_locks_of_qemu(void **state)
{
	struct peer p;
	struct leaf l;

	(void)state;
	make_image_or_skip();
	qemu_io_open(&p, false);
	leaf_expect_refused(&driver_file, leaf_file_opts("i.qcow2", ""), NODE_WRITABLE, -EAGAIN,
			    "Failed to get \"write\" lock");
	leaf_expect_refused(&driver_file, leaf_file_opts("i.qcow2", ""), 0, -EAGAIN,
			    "Failed to get shared \"write\" lock");
	leaf_open(&l, &driver_file, leaf_file_opts("i.qcow2", ""), NODE_FORCE_SHARE);
	leaf_close(&l);
	assert_int_equal(peer_end(&p), 0);

	qemu_io_open(&p, true);
	leaf_expect_refused(&driver_file, leaf_file_opts("i.qcow2", ""), NODE_WRITABLE, -EAGAIN,
			    "Failed to get \"write\" lock");
	leaf_open(&l, &driver_file, leaf_file_opts("i.qcow2", ""), 0);
	leaf_close(&l);
	assert_int_equal(peer_end(&p), 0);

	leaf_open(&l, &driver_file, leaf_file_opts("i.qcow2", ""), NODE_WRITABLE);
	leaf_close(&l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(qemu_respects_our_locks),
		cmocka_unit_test(we_respect_the_locks_of_qemu),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, leaf_remove_dir);
}
