/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/memguard.c - see memguard.h
 *
 * The handler reads the table without a lock, while other threads may change entries of ranges that are none
 * of its business: an entry is empty (len 0) while it is being changed, and looked at twice. The entry that
 * matters to a fault cannot change meanwhile, because the faulting thread is using the range.
 */
#include "export/vhost-user-blk/memguard.h"

#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

struct guard {
	_Atomic uintptr_t start;
	_Atomic size_t len; /* 0: nothing here */
	_Atomic size_t unit;
	_Atomic(_Atomic bool *) lost;
};

static struct guard guards[MEMGUARD_MAX];

/* Under the lock. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned nr_guards;
static bool installed, kept_out;
static struct sigaction before; /* what our handler took the place of; written before ours can run */
static struct sigaction over;	/* what somebody had put over ours when we wanted to take it away */

/*
 * `before` is the same as `over`: it was put over ours and may lead to ours, and ours to it, round and round.
 * (Only then is passing_on looked at: a handler may leave by longjmp(), and never come back to clear it.)
 */
static bool may_circle;
static _Thread_local __attribute__((tls_model("initial-exec"))) bool passing_on;

/* ---- in the handler ---- */

static bool covers(const struct guard *g, uintptr_t addr)
{
	size_t len = atomic_load_explicit(&g->len, memory_order_acquire);
	uintptr_t start = atomic_load_explicit(&g->start, memory_order_acquire);

	return len && addr >= start && addr - start < len &&
	       atomic_load_explicit(&g->len, memory_order_acquire) == len;
}

bool memguard_fault(void *addr)
{
	int saved = errno;
	bool repaired = false;

	for (unsigned i = 0; i < MEMGUARD_MAX && !repaired; i++) {
		struct guard *g = &guards[i];
		uintptr_t page;
		size_t unit;

		if (!covers(g, (uintptr_t)addr))
			continue;
		unit = atomic_load_explicit(&g->unit, memory_order_relaxed);
		page = (uintptr_t)addr & ~(uintptr_t)(unit - 1);
		if (mmap((void *)page, unit, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == MAP_FAILED)
			break;
		atomic_store_explicit(atomic_load_explicit(&g->lost, memory_order_relaxed), true,
				      memory_order_relaxed);
		repaired = true;
	}
	errno = saved;
	return repaired;
}

/* As if we had never been here: the instruction is tried once more, and that ends the process. */
static void end_process(const siginfo_t *info)
{
	struct sigaction dfl = { .sa_handler = SIG_DFL };

	sigaction(SIGBUS, &dfl, NULL);
	if (info->si_code <= 0) /* sent by somebody: it would not come again by itself */
		raise(SIGBUS);
}

static void on_sigbus(int sig, siginfo_t *info, void *context)
{
	/* BUS_MCEERR_*: the machine's memory is failing, which is nobody's game; not ours to paper over. */
	if (info->si_code == BUS_ADRERR && memguard_fault(info->si_addr))
		return;
	if (may_circle && passing_on) {
		end_process(info);
		return;
	}
	passing_on = true;
	if (before.sa_flags & SA_SIGINFO)
		before.sa_sigaction(sig, info, context);
	else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN)
		before.sa_handler(sig);
	else
		end_process(info);
	passing_on = false;
}

/* ---- the table ---- */

static bool same_handler(const struct sigaction *a, const struct sigaction *b)
{
	if ((a->sa_flags ^ b->sa_flags) & SA_SIGINFO)
		return false;
	return a->sa_flags & SA_SIGINFO ? a->sa_sigaction == b->sa_sigaction : a->sa_handler == b->sa_handler;
}

static const struct sigaction ours = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_ONSTACK };

static int install(struct varve_error *err)
{
	if (installed || kept_out)
		return 0;
	/* First what was there: the handler may run as soon as it is installed. */
	if (sigaction(SIGBUS, NULL, &before) < 0)
		return varve_error_errno(err, -errno, "SIGBUS");
	may_circle = over.sa_handler && same_handler(&before, &over);
	if (sigaction(SIGBUS, &ours, NULL) < 0)
		return varve_error_errno(err, -errno, "cannot handle SIGBUS, which guest memory needs");
	installed = true;
	return 0;
}

/* Somebody's handler over ours stays, and so does, behind it, ours: theirs may lead to it. */
static void uninstall(void)
{
	struct sigaction now;

	if (!installed || sigaction(SIGBUS, NULL, &now) < 0)
		return;
	if (same_handler(&now, &ours))
		(void)sigaction(SIGBUS, &before, NULL); /* cannot fail: it was installed already */
	else
		over = now;
	installed = false;
}

int memguard_add(void *start, size_t len, size_t unit, _Atomic bool *lost, struct varve_error *err)
{
	int ret, slot = -1;

	pthread_mutex_lock(&lock);
	ret = install(err);
	for (int i = 0; ret == 0 && slot < 0 && i < MEMGUARD_MAX; i++) {
		if (!atomic_load_explicit(&guards[i].len, memory_order_relaxed))
			slot = i;
	}
	if (slot >= 0) {
		struct guard *g = &guards[slot];

		atomic_store_explicit(&g->start, (uintptr_t)start, memory_order_relaxed);
		atomic_store_explicit(&g->unit, unit, memory_order_relaxed);
		atomic_store_explicit(&g->lost, lost, memory_order_relaxed);
		atomic_store_explicit(&g->len, len, memory_order_release); /* pairs with covers() */
		nr_guards++;
	} else if (ret == 0) {
		ret = varve_error_set(err, -ENOSPC,
				      "this process has mapped %d regions of guest memory already",
				      MEMGUARD_MAX);
	}
	if (!nr_guards)
		uninstall();
	pthread_mutex_unlock(&lock);
	return slot >= 0 ? slot : ret;
}

void memguard_del(int slot)
{
	pthread_mutex_lock(&lock);
	atomic_store_explicit(&guards[slot].len, 0, memory_order_release);
	if (!--nr_guards)
		uninstall();
	pthread_mutex_unlock(&lock);
}

void memguard_keep_out(bool keep_out)
{
	pthread_mutex_lock(&lock);
	kept_out = keep_out;
	pthread_mutex_unlock(&lock);
}
