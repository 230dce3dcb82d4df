/* SPDX-License-Identifier: MIT */
/*
 * unit/block/test_hot_path.c - a mapped request costs no allocation, no lock, no context switch
 *
 * The linker leads the library's calls of malloc() and the like to the counters here (--wrap, see meson.build). What libc
 * does inside of its own calls is not seen; the kernel's count of voluntary switches is.
 */
#include "fake.h"

#include <sys/mman.h>
#include <sys/resource.h>

#include "aio/engine.h"

/* ---- counters of this thread ---- */

static _Thread_local bool counting;
static _Thread_local unsigned nr_allocs, nr_locks;

void *__real_malloc(size_t len);
void *__real_calloc(size_t nr, size_t len);
void *__real_realloc(void *p, size_t len);
void __real_free(void *p);
int __real_posix_memalign(void **ret, size_t align, size_t len);
void *__real_aligned_alloc(size_t align, size_t len);
void *__real_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off);
int __real_pthread_mutex_lock(pthread_mutex_t *m);
int __real_pthread_mutex_trylock(pthread_mutex_t *m);
int __real_pthread_cond_wait(pthread_cond_t *c, pthread_mutex_t *m);
int __real_pthread_cond_timedwait(pthread_cond_t *c, pthread_mutex_t *m, const struct timespec *t);
int __real_pthread_cond_signal(pthread_cond_t *c);
int __real_pthread_cond_broadcast(pthread_cond_t *c);

/* ret name(params): counts, then calls the real one. */
#define WRAP(ret, name, counter, params, args)                                                                    \
	ret __wrap_##name params;                                                                                 \
	ret __wrap_##name params                                                                                  \
	{                                                                                                         \
		counter += counting;                                                                              \
		return __real_##name args;                                                                        \
	}

WRAP(void *, malloc, nr_allocs, (size_t len), (len))
WRAP(void *, calloc, nr_allocs, (size_t nr, size_t len), (nr, len))
WRAP(void *, realloc, nr_allocs, (void *p, size_t len), (p, len))
WRAP(void, free, nr_allocs, (void *p), (p))
WRAP(int, posix_memalign, nr_allocs, (void **ret, size_t align, size_t len), (ret, align, len))
WRAP(void *, aligned_alloc, nr_allocs, (size_t align, size_t len), (align, len))
WRAP(void *, mmap, nr_allocs, (void *addr, size_t len, int prot, int flags, int fd, off_t off),
     (addr, len, prot, flags, fd, off))
WRAP(int, pthread_mutex_lock, nr_locks, (pthread_mutex_t *m), (m))
WRAP(int, pthread_mutex_trylock, nr_locks, (pthread_mutex_t *m), (m))
WRAP(int, pthread_cond_wait, nr_locks, (pthread_cond_t *c, pthread_mutex_t *m), (c, m))
WRAP(int, pthread_cond_timedwait, nr_locks, (pthread_cond_t *c, pthread_mutex_t *m, const struct timespec *t), (c, m, t))
WRAP(int, pthread_cond_signal, nr_locks, (pthread_cond_t *c), (c))
WRAP(int, pthread_cond_broadcast, nr_locks, (pthread_cond_t *c), (c))

struct cost {
	uint64_t allocs, locks, fibers, fiber_switches, cold, split, hot, waits, turns;
	uint64_t voluntary; /* context switches that the thread asked for */
};

static void cost_now(const struct leaf *l, struct cost *c)
{
	const struct queue_stats *qs = queue_stats(l->q);
	const struct node_slot *s = node_slot(l->n, l->q);
	struct rusage ru;

	getrusage(RUSAGE_THREAD, &ru);
	*c = (struct cost){ nr_allocs,	    nr_locks,	 qs->fibers_started, qs->fiber_switches, s->nr_cold,
			    s->nr_split,    s->nr_hot,	 qs->waits,	     qs->turns,		 (uint64_t)ru.ru_nvcsw };
}

/* ---- requests ---- */

#define NR_REQUESTS 10000
#define DEPTH 32
#define DISK_LEN MiB(16)
#define IO_LEN 4096

/*
 * What the kernel may sleep by itself, for a page that it took away, or a lock of its own that another thread holds. One sleep
 * for each request, turn or wait would be a hundred times as many.
 */
#define SLEEPS_OF_THE_KERNEL (NR_REQUESTS / 100)

struct load {
	struct leaf *l;
	struct rnd rnd;
	enum req_op op;
	uint64_t started, ended, failed;
	struct load_io {
		struct req r;
		struct iovec iov;
		struct load *load;
		uint8_t *buf;
	} io[DEPTH];
};

static void load_done(struct req *r, int ret)
{
	struct load_io *io = container_of(r, struct load_io, r);

	io->load->ended++;
	io->load->failed += ret < 0;
	io->load = NULL; /* free to be used again */
}

static void load_start(struct load *ld, struct load_io *io)
{
	uint64_t off = rnd_below(&ld->rnd, DISK_LEN / IO_LEN) * IO_LEN;

	ld->started++;
	io->load = ld;
	io->iov = (struct iovec){ io->buf, IO_LEN };
	req_init(&io->r, ld->l->q, ld->op, off, IO_LEN, &io->iov, 1, 0, load_done);
	node_submit(ld->l->n, &io->r);
}

/* depth requests in flight: all that have come back are replaced together, so they share one submit. */
static void load_run(struct load *ld, unsigned depth, uint64_t nr)
{
	ld->started = ld->ended = ld->failed = 0;
	while (ld->ended < nr) {
		for (unsigned i = 0; i < depth && ld->started < nr; i++)
			if (!ld->io[i].load)
				load_start(ld, &ld->io[i]);
		if (ld->ended < ld->started)
			queue_turn(ld->l->q, -1);
	}
}

/* Warms the caches, then counts what NR_REQUESTS cost. */
static struct cost load_cost(struct leaf *l, enum req_op op, unsigned depth)
{
	struct load *ld = calloc(1, sizeof(*ld));
	uint8_t *memory = aligned_alloc(4096, DEPTH * IO_LEN);
	struct cost before, after;

	memset(memory, 0x77, DEPTH * IO_LEN);
	*ld = (struct load){ .l = l, .op = op };
	rnd_start(&ld->rnd, 1);
	for (unsigned i = 0; i < DEPTH; i++)
		ld->io[i].buf = memory + i * IO_LEN;
	load_run(ld, depth, NR_REQUESTS);
	assert_int_equal(ld->failed, 0);
	cost_now(l, &before);
	counting = true;
	load_run(ld, depth, NR_REQUESTS);
	counting = false;
	cost_now(l, &after);
	assert_int_equal(ld->failed, 0);
	free(memory);
	free(ld);
	for (unsigned i = 0; i < sizeof(after) / sizeof(uint64_t); i++)
		((uint64_t *)&after)[i] -= ((uint64_t *)&before)[i];
	return after;
}

static void expect_nothing_spent(const struct cost *c)
{
	assert_int_equal(c->hot, NR_REQUESTS);
	assert_int_equal(c->cold, 0);
	assert_int_equal(c->split, 0);
	assert_int_equal(c->allocs, 0);
	assert_int_equal(c->locks, 0);
	assert_int_equal(c->fibers, 0);
	assert_int_equal(c->fiber_switches, 0);
}

/* ---- disks ---- */

struct premade {
	struct leaf *l;
	const char *preallocation;
};

static int prealloc_fiber(struct fiber *f, void *arg)
{
	struct premade *p = arg;
	struct opts *o = opts_new();
	int ret = opts_set(o, "preallocation", p->preallocation, &p->l->err);

	if (ret == 0)
		ret = driver_find("qcow2")->create(f, p->l->n, DISK_LEN, o, NULL, NULL, &p->l->err);
	opts_free(o);
	return ret;
}

/* The leaf l becomes the file of a format. */
static void format_open(struct leaf *l, const char *format)
{
	struct premade p = { l, "metadata" };

	if (!strcmp(format, "qcow2") && fiber_call(l->q, prealloc_fiber, &p) < 0)
		fail_msg("create: %s", l->err.message);
	if (leaf_try(l, driver_find(format), l->n, "", NODE_WRITABLE) < 0)
		fail_msg("%s: %s", format, l->err.message);
	assert_int_equal(node_len(l->n), DISK_LEN);
	leaf_fill(l, 0, DISK_LEN, 0x42); /* every page is there, every table loaded */
}

static void memory_costs_nothing(const char *format)
{
	struct leaf l;

	leaf_open(&l, &driver_memory, "size=16M", NODE_WRITABLE);
	format_open(&l, format);
	for (enum req_op op = REQ_READ; op <= REQ_WRITE; op++) {
		struct cost c = load_cost(&l, op, 1);

		expect_nothing_spent(&c);
		assert_true(c.voluntary < SLEEPS_OF_THE_KERNEL);
		assert_int_equal(c.turns, 0);
	}
	leaf_close(&l);
}

static void raw_over_memory_costs_nothing(void **state)
{
	(void)state;
	memory_costs_nothing("raw");
}

static void qcow2_over_memory_costs_nothing(void **state)
{
	(void)state;
	memory_costs_nothing("qcow2");
}

static void file_costs_only_the_waits(const char *format)
{
	struct varve_error err = { 0, "" };
	struct leaf l = { .q = leaf_queue() };
	const struct aio_engine *engine = aio_engine_choose("io_uring", false, &err);
	bool works = engine && aio_attach(l.q, engine, &err) == 0;

	queue_free(l.q);
	if (!works) {
		print_message("# no io_uring here: %s\n", err.message);
		skip();
	}
	leaf_make_file("disk", DISK_LEN, false);
	leaf_open(&l, &driver_file, leaf_file_opts("disk", ",aio=io_uring"), NODE_WRITABLE);
	format_open(&l, format);
	for (enum req_op op = REQ_READ; op <= REQ_WRITE; op++) {
		struct cost c = load_cost(&l, op, DEPTH);

		expect_nothing_spent(&c);
		print_message("# %s %s: %llu turns, %llu waits, %llu voluntary switches\n", format,
			      op == REQ_READ ? "read" : "write", (unsigned long long)c.turns,
			      (unsigned long long)c.waits, (unsigned long long)c.voluntary);
		/* The thread sleeps only where the loop waits for the kernel, never between. */
		assert_true(c.voluntary < c.waits + SLEEPS_OF_THE_KERNEL);
	}
	leaf_close(&l);
}

static void raw_over_io_uring_costs_only_the_waits(void **state)
{
	(void)state;
	file_costs_only_the_waits("raw");
}

static void qcow2_over_io_uring_costs_only_the_waits(void **state)
{
	(void)state;
	file_costs_only_the_waits("qcow2");
}

/* The counters count: a leaf that does all of it is found out. */
static void spend_submit(struct node *n, struct req *r)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	void *volatile p = malloc(16);

	free(p);
	pthread_mutex_lock(&lock);
	pthread_mutex_unlock(&lock);
	driver_memory.submit(n, r);
}

static void a_spendthrift_is_found_out(void **state)
{
	static struct driver spend;
	struct cost c;
	struct leaf l;

	(void)state;
	spend = driver_memory;
	spend.submit = spend_submit;
	leaf_open(&l, &driver_memory, "size=16M", NODE_WRITABLE);
	l.n->drv = &spend;
	node_set_submit(l.n);
	format_open(&l, "raw");
	c = load_cost(&l, REQ_READ, 1);
	assert_int_equal(c.allocs, 2 * NR_REQUESTS);
	assert_int_equal(c.locks, NR_REQUESTS);
	leaf_close(&l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(raw_over_memory_costs_nothing),
		cmocka_unit_test(qcow2_over_memory_costs_nothing),
		cmocka_unit_test(raw_over_io_uring_costs_only_the_waits),
		cmocka_unit_test(qcow2_over_io_uring_costs_only_the_waits),
		cmocka_unit_test(a_spendthrift_is_found_out),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, leaf_remove_dir);
}
