/* SPDX-License-Identifier: MIT */
/*
 * tools/progress.c - how far a long operation is
 *
 * With -p a line on stdout is rewritten in place; without it SIGUSR1 asks for one line on stderr, also one that came
 * before we were ready for it: programs that take signals in a thread have it blocked, and their children inherit that.
 * Both have the form that callers parse: "    (42.00/100%)". With --progress=json it is a line {"progress": 42.00} each time.
 */
#include "common.h"
#include "options.h"

#include <errno.h>
#include <signal.h>
#include <string.h>

static volatile sig_atomic_t asked;
static bool shown, as_json;
static double percent, percent_shown;

static void on_sigusr1(int sig)
{
	(void)sig;
	asked = 1;
}

int progress_form(const char *form)
{
	if (form && option_word(FORM_WORDS, form) < 0)
		return complain_usage("--progress: '%s' is neither text nor json", form);
	as_json = form && *form == 'j';
	return 0;
}

void progress_start(bool show)
{
	struct sigaction sa = { .sa_handler = on_sigusr1, .sa_flags = SA_RESTART };
	sigset_t usr1;

	shown = show;
	percent = 0;
	percent_shown = -1;
	sigemptyset(&sa.sa_mask);
	sigaction(SIGUSR1, &sa, NULL);
	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	pthread_sigmask(SIG_UNBLOCK, &usr1, NULL);
}

/* A signal that comes while nobody reads what we say is no fault of the output: the line is lost, and nothing else. */
static void flush_line(void)
{
	if ((fflush(stdout) != 0 || ferror(stdout)) && errno == EINTR)
		clearerr(stdout);
}

void progress_update(void *user_data, uint64_t done, uint64_t total)
{
	(void)user_data;
	percent = total ? 100.0 * (double)done / (double)total : 100.0;
	if (percent > 100)
		percent = 100;
	/* Hundredths are what one sees. */
	if (shown && (percent - percent_shown >= 0.01 || percent_shown < 0)) {
		printf(as_json ? "{\"progress\": %.2f}\n" : "    (%3.2f/100%%)\r", percent);
		flush_line();
		percent_shown = percent;
	}
	if (asked) {
		asked = 0;
		fprintf(stderr, "    (%3.2f/100%%)\n", percent);
	}
}

void progress_end(void)
{
	if (!shown)
		return;
	progress_update(NULL, 1, 1);
	if (!as_json)
		putchar('\n');
	fflush(stdout);
	shown = false;
}
