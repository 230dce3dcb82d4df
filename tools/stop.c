/* SPDX-License-Identifier: MIT */
/*
 * tools/stop.c - see stop.h
 *
 * Owns:    what the handler of the signals touches.
 * Never:   does anything in the handler but to note the signal, and what varve_image_cancel() allows there.
 */
#include "stop.h"

#include <signal.h>
#include <stddef.h>

#include "common.h"

static const struct {
	int number;
	const char *name;
} signals[] = { { SIGINT, "SIGINT" }, { SIGTERM, "SIGTERM" }, { SIGHUP, "SIGHUP" } };

static volatile sig_atomic_t asked; /* number of the signal */
static struct varve_image *volatile under_way;

static void handle(void (*handler)(int number))
{
	struct sigaction sa = { .sa_handler = handler }, now;

	sigemptyset(&sa.sa_mask);
	for (size_t i = 0; i < ARRAY_LEN(signals); i++)
		sigaddset(&sa.sa_mask, signals[i].number);
	for (size_t i = 0; i < ARRAY_LEN(signals); i++) {
		if (sigaction(signals[i].number, NULL, &now) == 0 && now.sa_handler != SIG_IGN)
			sigaction(signals[i].number, &sa, NULL);
	}
}

static void on_signal(int number)
{
	struct varve_image *image = under_way;

	asked = number;
	handle(SIG_DFL); /* the second one */
	if (image)
		varve_image_cancel(image);
}

void stop_watch(void)
{
	handle(on_signal);
}

const char *stop_asked(void)
{
	for (size_t i = 0; asked && i < ARRAY_LEN(signals); i++) {
		if (signals[i].number == asked)
			return signals[i].name;
	}
	return NULL;
}

void stop_image(struct varve_image *image)
{
	under_way = image;
	if (image && asked) /* it came before */
		varve_image_cancel(image);
}

int stop_status(int status)
{
	if (!status || !asked)
		return status;
	fflush(stdout);
	raise(asked); /* which does what it does by default: see on_signal() */
	return status;
}
