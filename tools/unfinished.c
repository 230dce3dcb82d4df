/* SPDX-License-Identifier: MIT */
/*
 * tools/unfinished.c - see unfinished.h
 *
 * Owns:    what the handler of the signals touches.
 * Never:   does anything in the handler that is not allowed there.
 */
#include "unfinished.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <unistd.h>

#include "common.h"

static const char *volatile file;
static const char *volatile data_file;
static volatile sig_atomic_t file_existed;

int unfinished_give_up(void)
{
	if (data_file)
		unlink(data_file);
	if (!file)
		return 0;
	return file_existed ? truncate(file, 0) : unlink(file);
}

static void on_end(int sig)
{
	if (unfinished_give_up() < 0 && errno != ENOENT)
		(void)!write(STDERR_FILENO, "the target is not complete\n", 27);
	signal(sig, SIG_DFL);
	raise(sig);
}

void unfinished_watch(void)
{
	static const int signals[] = { SIGINT, SIGTERM, SIGHUP };
	struct sigaction sa = { .sa_handler = on_end }, now;

	sigemptyset(&sa.sa_mask);
	for (size_t i = 0; i < ARRAY_LEN(signals); i++) {
		if (sigaction(signals[i], NULL, &now) == 0 && now.sa_handler != SIG_IGN)
			sigaction(signals[i], &sa, NULL);
	}
}

void unfinished_file(const char *path, bool existed)
{
	file = NULL; /* never with the other's mark */
	file_existed = existed;
	file = path;
}

void unfinished_data_file(const char *path)
{
	data_file = path;
}
