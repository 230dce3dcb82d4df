/* SPDX-License-Identifier: MIT */
/*
 * tools/main.c - which tool is meant
 *
 * `varve img ...`, `varve io ...`, `varve serve ...` and others; a link named qemu-img or qemu-io behaves as that tool.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common.h"

static const struct tool {
	const char *word; /* varve WORD */
	const char *link; /* name of a link that means it; NULL: none */
	const char *prog;
	int (*run)(int argc, char **argv);
	const char *what;
} tools[] = {
	{ "img", "qemu-img", "varve img", img_main, "create, inspect, check and compare disk images" },
	{ "io", "qemu-io", "varve io", io_main, "read and write an image by hand or script" },
	{ "crashtest", NULL, "varve crashtest", crashtest_main, "try what a power cut could leave of an image" },
	{ "blkload", NULL, "varve blkload", blkload_main, "put load on a vhost-user-blk server, and verify it" },
	{ "daemon", "qemu-storage-daemon", "varve daemon", daemon_main, "several disks for virtual machines, node by node" },
	{ "completion", NULL, "varve completion", completion_main, "what shells need to complete varve img and varve io" },
	{ "serve", NULL, "varve serve", serve_main, "give an image to virtual machines (vhost-user-blk)" },
	{ "vmstate", NULL, "varve vmstate", vmstate_main, "states of virtual machines into and out of snapshots" },
};

/* Names of QEMU's tools that have no counterpart here yet: said so, instead of acting as something else. */
static const char *const foreign[] = { "qemu-nbd" };

static const char *base_name(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

const char *tool_name(unsigned number, bool link, const char **ret_what)
{
	if (number >= ARRAY_LEN(tools))
		return NULL;
	*ret_what = tools[number].what;
	return !link ? tools[number].word : tools[number].link ? tools[number].link : "";
}

static void usage(void)
{
	printf("Usage: varve TOOL [ARGUMENT]...\n"
	       "Disk images, and disks for virtual machines made of them.\n\n");
	for (size_t i = 0; i < ARRAY_LEN(tools); i++)
		printf("  varve %-9s %s\n", tools[i].word, tools[i].what);
	printf("\nvarve TOOL --help says more; varve --version which version this is.\n");
}

static int run_varve(int argc, char **argv)
{
	if (argc < 2)
		return complain_usage("no tool named");
	for (size_t i = 0; i < ARRAY_LEN(tools); i++) {
		if (strcmp(argv[1], tools[i].word) != 0)
			continue;
		prog = tools[i].prog;
		return tools[i].run(argc - 1, argv + 1);
	}
	if (strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "help") == 0) {
		usage();
		return finish_stdout();
	}
	if (strcmp(argv[1], "-V") == 0 || strcmp(argv[1], "--version") == 0) {
		print_version("varve");
		return finish_stdout();
	}
	return complain_usage("no tool '%s'", argv[1]);
}

/*
 * A standard stream that whoever started us has closed would be the number of the next file opened: an image, and what is said
 * would go into it. What takes the place cannot be used either: reading and writing it fail, as they would.
 */
static bool occupy_streams(void)
{
	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
		if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) != fd)
			return false;
	}
	return true;
}

int main(int argc, char **argv)
{
	const char *name = argc ? base_name(argv[0]) : "varve";

	if (!occupy_streams()) {
		complain("a standard stream is closed, and /dev/null cannot be opened in its place");
		return 1;
	}
	expect_errors(argc, argv);
	/* A reader that goes away is an error of write(), not a reason to die half-way through a change. */
	signal(SIGPIPE, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN); /* a write beyond the limit is an error then, after which files are tidied up */
	for (size_t i = 0; i < ARRAY_LEN(tools); i++) {
		if (tools[i].link && strcmp(name, tools[i].link) == 0) {
			prog = tools[i].link;
			return tools[i].run(argc, argv);
		}
	}
	for (size_t i = 0; i < ARRAY_LEN(foreign); i++) {
		if (strcmp(name, foreign[i]) == 0) {
			prog = foreign[i];
			return complain_missing(foreign[i]);
		}
	}
	return run_varve(argc, argv);
}
