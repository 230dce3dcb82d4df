/* SPDX-License-Identifier: MIT */
/*
 * served.c - see served.h
 */
#include "served.h"

#include <dirent.h>
#include <linux/virtio_config.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "block/graph.h"
#include "block/policy.h"

struct served served[SERVED_DISKS];
struct varve_vhost_user_blk_options served_opts;
struct queue *served_control, *served_queues[2];
uint64_t served_poll_ns;

static unsigned fds_before;
static char folder[] = "/tmp/vublk-XXXXXX";

/* ---- the log ---- */

static pthread_mutex_t log_lock = PTHREAD_MUTEX_INITIALIZER;
static char log_text[1 << 16];
static size_t log_len;

static void keep_line(void *user_data, enum varve_log_level level, const char *line)
{
	size_t len = strlen(line);

	(void)user_data;
	(void)level;
	pthread_mutex_lock(&log_lock);
	if (log_len + len + 2 < sizeof(log_text)) {
		memcpy(log_text + log_len, line, len);
		log_text[log_len + len] = '\n';
		log_len += len + 1;
		log_text[log_len] = 0;
	}
	pthread_mutex_unlock(&log_lock);
}

unsigned served_logged(const char *part)
{
	unsigned nr = 0;

	pthread_mutex_lock(&log_lock);
	for (const char *line = log_text; *line; line = strchr(line, '\n') + 1) {
		const char *found = strstr(line, part);

		nr += found && found < strchr(line, '\n');
	}
	pthread_mutex_unlock(&log_lock);
	return nr;
}

/* ---- the valve ---- */

struct valve {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool shut;
	unsigned nr_held;
	struct req_list held;
};

static int valve_open(struct fiber *f, struct node *n, struct opts *o, struct varve_error *err)
{
	struct valve *v = node_state(n);
	pthread_condattr_t attr;

	(void)f;
	(void)o;
	(void)err;
	pthread_mutex_init(&v->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC); /* somebody may set the clock */
	pthread_cond_init(&v->changed, &attr);
	pthread_condattr_destroy(&attr);
	TAILQ_INIT(&v->held);
	atomic_store(&n->len, node_len(n->file));
	return 0;
}

static void valve_close(struct fiber *f, struct node *n)
{
	struct valve *v = node_state(n);

	(void)f;
	assert(TAILQ_EMPTY(&v->held));
	pthread_cond_destroy(&v->changed);
	pthread_mutex_destroy(&v->lock);
}

static void valve_submit(struct node *n, struct req *r)
{
	struct valve *v = node_state(n);
	bool held;

	pthread_mutex_lock(&v->lock);
	held = v->shut;
	if (held) {
		TAILQ_INSERT_TAIL(&v->held, r, parked);
		v->nr_held++;
		pthread_cond_broadcast(&v->changed);
	}
	pthread_mutex_unlock(&v->lock);
	if (!held)
		req_forward(r, n->file, r->off, NULL);
}

static void let_go(struct msg *m)
{
	struct req *r = container_of(m, struct req, msg);

	req_forward(r, r->at->file, r->off, NULL);
}

static void let_fail(struct msg *m)
{
	req_done(container_of(m, struct req, msg), -ENOSPC);
}

static const struct driver driver_valve = {
	.name = "valve",
	.kind = DRIVER_FILTER,
	.state_len = sizeof(struct valve),
	.open = valve_open,
	.close = valve_close,
	.submit = valve_submit,
};

void served_shut(unsigned i)
{
	struct valve *v = node_state(served[i].top);

	pthread_mutex_lock(&v->lock);
	v->shut = true;
	pthread_mutex_unlock(&v->lock);
}

static void empty(unsigned i, bool shut, void (*run)(struct msg *m))
{
	struct valve *v = node_state(served[i].top);
	struct req *r;

	pthread_mutex_lock(&v->lock);
	v->shut = shut;
	v->nr_held = 0;
	while ((r = TAILQ_FIRST(&v->held))) {
		TAILQ_REMOVE(&v->held, r, parked);
		r->msg.run = run;
		queue_post(r->q, &r->msg);
	}
	pthread_mutex_unlock(&v->lock);
}

void served_open(unsigned i)
{
	empty(i, false, let_go);
}

void served_fail(unsigned i)
{
	empty(i, true, let_fail);
}

void served_wait_held(unsigned i, unsigned nr)
{
	struct valve *v = node_state(served[i].top);
	struct timespec end;
	int ret = 0;

	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_sec += SERVED_MS / 1000;
	pthread_mutex_lock(&v->lock);
	while (v->nr_held < nr && ret == 0)
		ret = pthread_cond_timedwait(&v->changed, &v->lock, &end);
	pthread_mutex_unlock(&v->lock);
	assert_int_equal(ret, 0);
}

/* ---- disks ---- */

static int open_disk(struct fiber *f, void *arg)
{
	struct served *s = arg;
	struct opts *o = opts_new(), *none = opts_new();
	struct node *memory;
	int ret;

	assert_non_null(o);
	assert_non_null(none);
	ret = opts_parse(o, "driver=memory,size=64M", NULL);
	if (ret == 0)
		ret = graph_open(f, o, NODE_WRITABLE, &memory, NULL);
	if (ret == 0)
		ret = graph_stack(f, &driver_valve, memory, none, NODE_WRITABLE, &s->top, NULL);
	opts_free(o);
	opts_free(none);
	return ret;
}

static int close_disk(struct fiber *f, void *arg)
{
	struct served *s = arg;

	return graph_close(f, s->top, NULL);
}

int served_start(unsigned i, struct varve_error *err)
{
	struct served *s = &served[i];

	served_opts.socket_path = s->path;
	return vublk_start(&s->vublk, s->top, &served_opts, served_control, served_queues, 2, err);
}

void served_stop(unsigned i)
{
	policy_failing_begin(served[i].top); /* what a test that failed has left waiting would hold us up */
	vublk_stop(served[i].vublk);
	policy_failing_end(served[i].top);
	served[i].vublk = NULL;
}

unsigned served_open_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned nr = 0;

	assert_non_null(d);
	while (readdir(d))
		nr++;
	closedir(d);
	return nr;
}

void served_wait_fds(unsigned nr)
{
	uint64_t deadline = vu_deadline_ns(SERVED_MS);
	unsigned now;

	/* The server closes its end of a connection some time after we did; nothing tells when. */
	while ((now = served_open_fds()) > nr) {
		if (!vu_ms_left(deadline))
			fail_msg("%u descriptors are open, %u were before", now, nr);
		usleep(1000);
	}
}

static struct queue *make_queue(const char *name, uint64_t poll_ns, bool timeless)
{
	struct queue_opts opts = { .name = name, .own_thread = true, .poll_ns = poll_ns, .virtual_time = timeless };
	struct queue *q;

	assert_int_equal(queue_new(&q, &opts, NULL), 0);
	return q;
}

static int pass(struct fiber *f, void *ns)
{
	(void)f;
	queue_advance(served_control, *(const uint64_t *)ns);
	return 0;
}

void served_pass(uint64_t ns)
{
	fiber_call(served_control, pass, &ns);
}

static int setup(bool timeless)
{
	struct varve_error err;

	fds_before = served_open_fds();
	log_len = 0;
	log_text[0] = 0;
	varve_set_log(keep_line, NULL);
	strcpy(folder + strlen(folder) - 6, "XXXXXX");
	assert_non_null(mkdtemp(folder));
	if (!served_poll_ns && getenv("VARVE_POLL_US"))
		served_poll_ns = strtoull(getenv("VARVE_POLL_US"), NULL, 0) * 1000;
	served_control = make_queue("control", 0, timeless);
	served_queues[0] = make_queue("queue0", served_poll_ns, false);
	served_queues[1] = make_queue("queue1", served_poll_ns, false);
	served_opts =
		(struct varve_vhost_user_blk_options){ .nr_queues = 4, .queue_size = 256, .writable = true };
	for (unsigned i = 0; i < SERVED_DISKS; i++) {
		snprintf(served[i].path, sizeof(served[i].path), "%s/%u", folder, i);
		assert_int_equal(fiber_call(served_queues[0], open_disk, &served[i]), 0);
		if (served_start(i, &err) < 0)
			fail_msg("%s", err.message);
	}
	return 0;
}

int served_setup(void **state)
{
	(void)state;
	return setup(false);
}

int served_setup_timeless(void **state)
{
	(void)state;
	return setup(true);
}

int served_teardown(void **state)
{
	int ret;

	(void)state;
	for (unsigned i = 0; i < SERVED_DISKS; i++) {
		served_open(i);
		served_stop(i);
		if (access(served[i].path, F_OK) == 0)
			return -1;
		fiber_call(served_queues[0], close_disk, &served[i]);
	}
	queue_free(served_queues[1]);
	queue_free(served_queues[0]);
	queue_free(served_control);
	ret = rmdir(folder);
	varve_set_log(NULL, NULL);
	if (served_open_fds() != fds_before) {
		print_error("%u descriptors are open, %u were before\n", served_open_fds(), fds_before);
		return -1;
	}
	return ret;
}

/* ---- front ends ---- */

bool served_packed(void)
{
	const char *ring = getenv("VARVE_RING");

	return ring && strcmp(ring, "packed") == 0;
}

struct vu_front_opts served_front_opts(unsigned i, unsigned nr_queues)
{
	struct vu_front_opts o = vu_front_defaults(served[i].path);

	o.nr_queues = nr_queues;
	o.timeout_ms = SERVED_MS;
	if (served_packed())
		o.features |= UINT64_C(1) << VIRTIO_F_RING_PACKED;
	return o;
}

void served_connect(struct vu_front *f, unsigned i, unsigned nr_queues)
{
	struct vu_front_opts o = served_front_opts(i, nr_queues);

	if (vu_front_open(f, &o) < 0)
		fail_msg("%s", f->err.text);
}

void served_io_works(struct vu_front *f, unsigned q)
{
	static uint64_t turn;
	uint8_t out[8192], in[8192];
	struct vu_blk b;

	turn++;
	for (unsigned i = 0; i < sizeof(out); i++)
		out[i] = (uint8_t)(turn + i / 512);
	if (vu_blk_open(&b, f, q, 1, sizeof(out)) < 0)
		fail_msg("queue %u: %s", q, b.err.text);
	b.timeout_ms = SERVED_MS;
	if (vu_blk_write(&b, q * MiB(1), out, sizeof(out)) < 0 || vu_blk_flush(&b) < 0 ||
	    vu_blk_read(&b, q * MiB(1), in, sizeof(in)) < 0)
		fail_msg("queue %u: %s", q, b.err.text);
	assert_memory_equal(out, in, sizeof(in));
	vu_blk_free(&b);
}

/* ---- conversation ---- */

void must(struct vu_front *f, int ret)
{
	if (ret < 0)
		fail_msg("%s", f->err.text);
}

void send_only(struct vu_front *f, uint32_t request, const void *payload, uint32_t len)
{
	assert_int_equal(vu_send(f->sock, request, VU_FLAG_VERSION | VU_FLAG_NEED_REPLY, payload, len, NULL,
				 0, vu_deadline_ns(SERVED_MS), &f->err),
			 0);
}

bool has_answered(struct vu_front *f)
{
	char c;

	return recv(f->sock, &c, 1, MSG_PEEK | MSG_DONTWAIT) > 0;
}

/* ---- asynchronous I/O ---- */

void offer_writes(struct load *l, struct vu_front *f, unsigned q, uint8_t first)
{
	if (vu_blk_open(&l->b, f, q, LOAD, 4096) < 0)
		fail_msg("%s", l->b.err.text);
	l->b.timeout_ms = SERVED_MS;
	l->off = MiB(8 + q);
	for (unsigned i = 0; i < LOAD; i++) {
		l->ios[i] = vu_blk_get(&l->b);
		vu_io_write(l->ios[i], l->off + i * 4096, 4096);
		memset(l->ios[i]->data, first + (int)i, 4096);
		assert_int_equal(vu_blk_submit(&l->b, l->ios[i]), 0);
	}
	assert_int_equal(vu_blk_kick(&l->b), 0);
}

unsigned reap_writes(struct load *l)
{
	struct vu_io *done[LOAD];
	int n = vu_blk_reap(&l->b, done, LOAD);

	assert_true(n >= 0);
	for (int i = 0; i < n; i++) {
		assert_int_equal(done[i]->ret, 0);
		vu_blk_put(&l->b, done[i]);
	}
	return (unsigned)n;
}

void wait_writes(struct load *l, unsigned nr)
{
	while (nr) {
		assert_int_equal(vu_blk_wait(&l->b, vu_deadline_ns(SERVED_MS)), 0);
		nr -= reap_writes(l);
	}
}

void check_writes(struct load *l, uint8_t first)
{
	uint8_t buf[4096];

	for (unsigned i = 0; i < LOAD; i++) {
		assert_int_equal(vu_blk_read(&l->b, l->off + i * 4096, buf, sizeof(buf)), 0);
		assert_int_equal(buf[0], (uint8_t)(first + i));
		assert_int_equal(buf[4095], (uint8_t)(first + i));
	}
}

void end_load(struct load *l)
{
	vu_blk_free(&l->b);
}
