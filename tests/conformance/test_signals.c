/* SPDX-License-Identifier: MIT */
/*
 * conformance/test_signals.c - every engine inside a program that uses signals itself
 *
 * Asynchronous I/O has a history of taking signals for its own: SIGIO, SIGUSR2, real-time signals. A library
 * may not. This program has a handler for every signal there is; it expects those that it sends itself and no
 * others.
 */
#include "rig.h"

#include <fcntl.h>
#include <signal.h>
#include <time.h>

#define BLOCK 4096

static volatile sig_atomic_t seen[_NSIG], of_aio;
static struct sigaction before[_NSIG];

static void count(int sig, siginfo_t *info, void *context)
{
	(void)context;
	seen[sig]++;
	of_aio += info->si_code == SI_ASYNCIO;
}

/* Those that mean a crash, cannot be caught, belong to the C library, or to the limit of time for this test.
 */
static bool left_alone(int sig)
{
	return sig == SIGKILL || sig == SIGSTOP || sig == SIGSEGV || sig == SIGBUS || sig == SIGILL ||
	       sig == SIGFPE || sig == SIGABRT || sig == SIGTRAP || sig == SIGALRM ||
	       (sig > 31 && sig < SIGRTMIN);
}

/* Without SA_RESTART: whatever can be interrupted is. */
static void handle_all(void)
{
	struct sigaction sa = { .sa_sigaction = count, .sa_flags = SA_SIGINFO };

	of_aio = 0;
	for (int sig = 1; sig < _NSIG; sig++) {
		seen[sig] = 0;
		if (!left_alone(sig))
			assert_int_equal(sigaction(sig, &sa, &before[sig]), 0);
	}
}

/* Puts back what was there; the handlers must still be ours. */
static void handle_none(void)
{
	for (int sig = 1; sig < _NSIG; sig++) {
		struct sigaction sa;

		if (left_alone(sig))
			continue;
		assert_int_equal(sigaction(sig, &before[sig], &sa), 0);
		if (sa.sa_sigaction != count || sa.sa_flags & SA_RESTART)
			fail_msg("the handler of signal %d (%s) was changed", sig, strsignal(sig));
	}
}

static void expect_only(int usr2, int io)
{
	assert_int_equal(of_aio, 0);
	for (int sig = 1; sig < _NSIG; sig++) {
		int want = sig == SIGUSR2 ? usr2 : sig == SIGIO ? io : 0;

		if (seen[sig] != want)
			fail_msg("signal %d (%s) came %d times, not %d", sig, strsignal(sig), (int)seen[sig],
				 want);
	}
}

/* A pipe that raises SIGIO when it becomes readable. */
static void make_sigio_pipe(int pipe_fds[2])
{
	assert_int_equal(pipe2(pipe_fds, O_CLOEXEC | O_NONBLOCK), 0);
	assert_int_equal(fcntl(pipe_fds[0], F_SETOWN, getpid()), 0);
	assert_int_equal(fcntl(pipe_fds[0], F_SETFL, O_NONBLOCK | O_ASYNC), 0);
}

static void batch(struct rig *rig, struct call *calls, unsigned nr, uint8_t *buf, unsigned round)
{
	for (unsigned i = 0; i < nr; i++) {
		static const enum req_op ops[] = { REQ_WRITE, REQ_READ,	   REQ_WRITE,
						   REQ_FLUSH, REQ_DISCARD, REQ_ZERO };
		enum req_op op = ops[(i + round) % ARRAY_LEN(ops)];
		uint64_t off = (i + nr * (round % 16)) * BLOCK;

		call_start(rig, &calls[i], op, off,
			   op == REQ_READ || op == REQ_WRITE ? buf + i * BLOCK : NULL, BLOCK,
			   i % 5 ? 0 : REQ_FUA);
	}
	calls_finish(rig->l.q, calls, nr);
	for (unsigned i = 0; i < nr; i++)
		assert_int_equal(calls[i].ret, 0);
}

static void only_its_own_signals_reach_the_program(const struct setting *s)
{
	enum { NR = 32, ROUNDS = 8 };
	struct call *calls = calloc(NR, sizeof(*calls));
	uint8_t *buf = rig_memory(NR * BLOCK);
	int pipe_fds[2], nr_raised = 0;
	sigset_t mask, mask_after, pending;
	struct rig rig;
	char c;

	memset(buf, 1, NR * BLOCK);
	handle_all();
	make_sigio_pipe(pipe_fds);
	assert_int_equal(sigprocmask(SIG_SETMASK, NULL, &mask), 0);
	rig_open(&rig, s, RIG_LEN);
	for (unsigned round = 0; round < ROUNDS; round++) {
		batch(&rig, calls, NR, buf, round);
		raise(SIGUSR2);
		assert_int_equal(write(pipe_fds[1], "x", 1), 1);
		nr_raised++;
		while (seen[SIGIO] < nr_raised) /* as good as always there already */
			nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
		assert_int_equal(read(pipe_fds[0], &c, 1), 1);
	}
	rig_close(&rig);
	assert_int_equal(sigprocmask(SIG_SETMASK, NULL, &mask_after), 0);
	assert_int_equal(sigpending(&pending), 0);
	expect_only(nr_raised, nr_raised);
	for (int sig = 1; sig < _NSIG; sig++) {
		assert_int_equal(sigismember(&mask, sig), sigismember(&mask_after, sig));
		assert_true(sigismember(&pending, sig) <= 0);
	}
	handle_none();
	close(pipe_fds[0]);
	close(pipe_fds[1]);
	free(calls);
	free(buf);
}

/* A timer interrupts the program thousands of times a second; requests neither fail nor get lost. */
static void signals_do_not_disturb_requests(const struct setting *s)
{
	enum { NR = 32, ROUNDS = 20, SIGNALS = 50 };
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR2 };
	struct itimerspec every = { .it_value.tv_nsec = 200000, .it_interval.tv_nsec = 200000 };
	struct call *calls = calloc(NR, sizeof(*calls));
	uint8_t *buf = rig_memory(NR * BLOCK), *back = rig_memory(NR * BLOCK);
	struct rig rig;
	timer_t timer;

	handle_all();
	rig_open(&rig, s, RIG_LEN);
	assert_int_equal(timer_create(CLOCK_MONOTONIC, &event, &timer), 0);
	assert_int_equal(timer_settime(timer, 0, &every, NULL), 0);
	for (unsigned round = 0; round < ROUNDS || seen[SIGUSR2] < SIGNALS; round++) {
		fill_random(buf, NR * BLOCK, round);
		for (unsigned i = 0; i < NR; i++)
			call_start(&rig, &calls[i], REQ_WRITE, i * BLOCK, buf + i * BLOCK, BLOCK,
				   i % 16 ? 0 : REQ_FUA);
		calls_finish(rig.l.q, calls, NR);
		for (unsigned i = 0; i < NR; i++)
			assert_int_equal(calls[i].ret, 0);
		for (unsigned i = 0; i < NR; i++)
			call_start(&rig, &calls[i], REQ_READ, i * BLOCK, back + i * BLOCK, BLOCK, 0);
		calls_finish(rig.l.q, calls, NR);
		for (unsigned i = 0; i < NR; i++)
			assert_int_equal(calls[i].ret, 0);
		assert_memory_equal(back, buf, NR * BLOCK);
	}
	timer_delete(timer);
	rig_close(&rig);
	handle_none();
	free(calls);
	free(buf);
	free(back);
}

int main(void)
{
	static const struct rig_case cases[] = {
		{ "only its own signals reach the program", only_its_own_signals_reach_the_program,
		  BOTH_CACHES, 1u << ON_FILE | 1u << ON_LOOP, NULL },
		{ "signals do not disturb requests", signals_do_not_disturb_requests, BOTH_CACHES,
		  1u << ON_FILE, NULL },
	};

	return rig_run("signals", cases, ARRAY_LEN(cases));
}
