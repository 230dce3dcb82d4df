/* SPDX-License-Identifier: MIT */
/*
 * faultfs.c - the program: serves the file system of faultfs.h over the kernel's FUSE protocol
 *
 * usage: faultfs DIRECTORY async|sync|cached      (orders on standard input, answers on standard output)
 *
 * Owns:    the file's bytes, the rules, the requests that are held.
 * Assumes: <linux/fuse.h> as the protocol; root. One thread: requests are answered in the order in which they
 * come, but for those that are held. Never:   outlives the end of its standard input.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fuse.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "faultfs.h"

#ifndef FOPEN_PARALLEL_DIRECT_WRITES
#define FOPEN_PARALLEL_DIRECT_WRITES (1 << 6)
#endif

#define WRITE_MAX (1u << 20) /* bytes in one request */
#define REQUEST_MAX (WRITE_MAX + 65536)
#define RULES_MAX 16

enum { INO_ROOT = FUSE_ROOT_ID, INO_DISK, INO_STABLE };

enum op { OP_READ, OP_WRITE, OP_FSYNC, OP_FALLOCATE, OPS };
static const char *const op_names[OPS] = { "read", "write", "fsync", "fallocate" };

enum action { ACT_ERROR, ACT_SHORT, ACT_HOLD, ACT_LOSE, ACTIONS };
static const char *const action_names[ACTIONS] = { "error", "short", "hold", "lose" };

struct rule {
	enum op op;
	enum action action;
	long skip, times, arg;
	bool for_ever;
	uint64_t off, len;
};

struct request {
	struct request *next;
	union {
		struct fuse_in_header in;
		uint8_t bytes[1];
	};
};

static struct {
	int fuse_fd;
	bool cached, async;
	uint8_t *now, *stable; /* FAULTFS_LEN_MAX each */
	uint64_t len, stable_len;
	uint64_t dirty_from, dirty_to; /* what may differ */
	struct rule rules[RULES_MAX];
	unsigned nr_rules;
	long counts[OPS];
	struct request *held, **held_tail;
	long nr_held, wait_held; /* wait_held: an order waits for so many; 0: none */
} fs = { .held_tail = &fs.held };

/* ---- answers ---- */

static void answer(const struct request *r, int error, const void *data, size_t len)
{
	struct fuse_out_header out = { .len = (uint32_t)(sizeof(out) + len),
				       .error = -error,
				       .unique = r->in.unique };
	struct iovec iov[2] = { { &out, sizeof(out) }, { (void *)data, len } };

	/* ENOENT: the caller was interrupted and does not wait any more. */
	if (writev(fs.fuse_fd, iov, len ? 2 : 1) < 0 && errno != ENOENT) {
		perror("faultfs: cannot answer");
		exit(1);
	}
}

static void fill_attr(uint64_t ino, struct fuse_attr *a)
{
	memset(a, 0, sizeof(*a));
	a->ino = ino;
	a->mode = ino == INO_ROOT ? S_IFDIR | 0755 : S_IFREG | 0644;
	a->nlink = 1;
	a->size = ino == INO_DISK ? fs.len : ino == INO_STABLE ? fs.stable_len : 0;
	a->blocks = a->size / 512;
	a->blksize = 4096;
}

static void answer_attr(const struct request *r, uint64_t ino)
{
	struct fuse_attr_out out = { 0 };

	fill_attr(ino, &out.attr);
	answer(r, 0, &out, sizeof(out));
}

/* ---- the file ---- */

static void dirty(uint64_t off, uint64_t end)
{
	if (off < fs.dirty_from)
		fs.dirty_from = off;
	if (end > fs.dirty_to)
		fs.dirty_to = end;
}

static void all_clean(void)
{
	fs.dirty_from = UINT64_MAX;
	fs.dirty_to = 0;
}

static void sync_file(void)
{
	if (fs.dirty_from < fs.dirty_to)
		memcpy(fs.stable + fs.dirty_from, fs.now + fs.dirty_from, fs.dirty_to - fs.dirty_from);
	fs.stable_len = fs.len;
	all_clean();
}

static void lose_power(void)
{
	if (fs.dirty_from < fs.dirty_to)
		memcpy(fs.now + fs.dirty_from, fs.stable + fs.dirty_from, fs.dirty_to - fs.dirty_from);
	fs.len = fs.stable_len;
	all_clean();
}

static void set_len(uint64_t len)
{
	if (len < fs.len) {
		memset(fs.now + len, 0, fs.len - len);
		dirty(len, fs.len);
	}
	fs.len = len;
}

/* ---- the four operations with rules; most: bytes to transfer ---- */

static void do_read(const struct request *r, uint64_t most)
{
	const struct fuse_read_in *in = (const void *)(r->bytes + sizeof(r->in));
	const uint8_t *bytes = r->in.nodeid == INO_STABLE ? fs.stable : fs.now;
	uint64_t end = r->in.nodeid == INO_STABLE ? fs.stable_len : fs.len, len = in->size;

	if (in->offset >= end)
		len = 0;
	else if (len > end - in->offset)
		len = end - in->offset;
	len = most < len ? most : len;
	answer(r, 0, bytes + in->offset, len);
}

static void do_write(const struct request *r, uint64_t most)
{
	const struct fuse_write_in *in = (const void *)(r->bytes + sizeof(r->in));
	uint64_t len = most < in->size ? most : in->size, end = in->offset + len;
	struct fuse_write_out out = { .size = (uint32_t)len };

	if (in->offset > FAULTFS_LEN_MAX || in->size > FAULTFS_LEN_MAX - in->offset) {
		answer(r, EFBIG, NULL, 0);
		return;
	}
	memcpy(fs.now + in->offset, in + 1, len);
	if (end > fs.len)
		fs.len = end;
	if (in->flags & O_DSYNC) {
		memcpy(fs.stable + in->offset, in + 1, len);
		if (end > fs.stable_len)
			fs.stable_len = end;
	} else {
		dirty(in->offset, end);
	}
	answer(r, 0, &out, sizeof(out));
}

static void do_fallocate(const struct request *r)
{
	const struct fuse_fallocate_in *in = (const void *)(r->bytes + sizeof(r->in));
	uint64_t end = in->offset + in->length, stop;

	if (in->offset > FAULTFS_LEN_MAX || in->length > FAULTFS_LEN_MAX - in->offset) {
		answer(r, EFBIG, NULL, 0);
		return;
	}
	if (!(in->mode & FALLOC_FL_KEEP_SIZE) && end > fs.len)
		set_len(end);
	stop = end < fs.len ? end : fs.len;
	if (in->mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE) && in->offset < stop) {
		memset(fs.now + in->offset, 0, stop - in->offset);
		dirty(in->offset, stop);
	}
	answer(r, 0, NULL, 0);
}

static void perform(const struct request *r, enum op op, uint64_t most)
{
	switch (op) {
	case OP_READ:
		do_read(r, most);
		break;
	case OP_WRITE:
		do_write(r, most);
		break;
	case OP_FSYNC:
		sync_file();
		answer(r, 0, NULL, 0);
		break;
	case OP_FALLOCATE:
		do_fallocate(r);
		break;
	case OPS:
		break;
	}
}

/* ---- rules ---- */

static void range_of(const struct request *r, enum op op, uint64_t *off, uint64_t *len)
{
	const void *in = r->bytes + sizeof(r->in);

	*off = op == OP_READ	    ? ((const struct fuse_read_in *)in)->offset
	       : op == OP_WRITE	    ? ((const struct fuse_write_in *)in)->offset
	       : op == OP_FALLOCATE ? ((const struct fuse_fallocate_in *)in)->offset
				    : 0;
	*len = op == OP_READ	    ? ((const struct fuse_read_in *)in)->size
	       : op == OP_WRITE	    ? ((const struct fuse_write_in *)in)->size
	       : op == OP_FALLOCATE ? ((const struct fuse_fallocate_in *)in)->length
				    : UINT64_MAX;
}

/* Every rule that fits counts the request; the first whose turn it is decides. */
static const struct rule *find_rule(const struct request *r, enum op op)
{
	const struct rule *found = NULL;
	uint64_t off, len;

	range_of(r, op, &off, &len);
	for (unsigned i = 0; i < fs.nr_rules; i++) {
		struct rule *rule = &fs.rules[i];

		if (rule->op != op || (rule->off >= off && rule->off - off >= len) ||
		    (off > rule->off && off - rule->off >= rule->len))
			continue;
		if (rule->skip) {
			rule->skip--;
		} else if (rule->for_ever || rule->times) {
			if (!found)
				found = rule;
			if (rule->times)
				rule->times--;
		}
	}
	return found;
}

static void wake_order(void)
{
	if (fs.wait_held && fs.nr_held >= fs.wait_held) {
		printf("%ld\n", fs.nr_held);
		fs.wait_held = 0;
	}
}

static void hold(const struct request *r)
{
	struct request *copy = malloc(sizeof(*copy) + r->in.len);

	if (!copy)
		abort();
	memcpy(copy->bytes, r->bytes, r->in.len);
	copy->next = NULL;
	*fs.held_tail = copy;
	fs.held_tail = &copy->next;
	fs.nr_held++;
	wake_order();
}

static void ruled(const struct request *r, enum op op)
{
	const struct rule *rule;

	if (r->in.nodeid == INO_STABLE) {
		if (op == OP_READ)
			perform(r, op, UINT64_MAX);
		else
			answer(r, op == OP_FSYNC ? 0 : EROFS, NULL, 0);
		return;
	}
	fs.counts[op]++;
	rule = find_rule(r, op);
	if (!rule) {
		perform(r, op, UINT64_MAX);
		return;
	}
	switch (rule->action) {
	case ACT_LOSE:
		lose_power();
		/* fall through */
	case ACT_ERROR:
		answer(r, (int)rule->arg, NULL, 0);
		break;
	case ACT_SHORT:
		perform(r, op, (uint64_t)rule->arg);
		break;
	case ACT_HOLD:
		hold(r);
		break;
	case ACTIONS:
		break;
	}
}

static enum op op_of(const struct request *r)
{
	const struct fuse_in_header *in = &r->in;

	return in->opcode == FUSE_READ	  ? OP_READ
	       : in->opcode == FUSE_WRITE ? OP_WRITE
	       : in->opcode == FUSE_FSYNC ? OP_FSYNC
					  : OP_FALLOCATE;
}

/* error 0: they are done. */
static long release(int error)
{
	long n = fs.nr_held;

	while (fs.held) {
		struct request *r = fs.held;

		fs.held = r->next;
		if (error)
			answer(r, error, NULL, 0);
		else
			perform(r, op_of(r), UINT64_MAX);
		free(r);
	}
	fs.held_tail = &fs.held;
	fs.nr_held = 0;
	return n;
}

/* ---- the rest of the protocol ---- */

static void init(const struct request *r)
{
	struct fuse_init_out out = {
		.major = FUSE_KERNEL_VERSION,
		.minor = FUSE_KERNEL_MINOR_VERSION,
		.flags = FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_MAX_PAGES |
			 (fs.async ? FUSE_ASYNC_DIO : 0) | (fs.cached ? FUSE_WRITEBACK_CACHE : 0),
		.max_background = 1024,
		.congestion_threshold = 1024,
		.max_write = WRITE_MAX,
		.max_pages = WRITE_MAX / 4096,
		.time_gran = 1,
	};

	answer(r, 0, &out, sizeof(out));
}

static void lookup(const struct request *r)
{
	const char *name = (const char *)(r->bytes + sizeof(r->in));
	struct fuse_entry_out out = { 0 };

	out.nodeid = !strcmp(name, "disk") ? INO_DISK : !strcmp(name, "stable") ? INO_STABLE : 0;
	if (!out.nodeid) {
		answer(r, ENOENT, NULL, 0);
		return;
	}
	fill_attr(out.nodeid, &out.attr);
	answer(r, 0, &out, sizeof(out));
}

static void setattr(const struct request *r)
{
	const struct fuse_setattr_in *in = (const void *)(r->bytes + sizeof(r->in));

	if (in->valid & FATTR_SIZE && in->size > FAULTFS_LEN_MAX) {
		answer(r, EFBIG, NULL, 0);
		return;
	}
	if (in->valid & FATTR_SIZE && r->in.nodeid == INO_DISK)
		set_len(in->size);
	answer_attr(r, r->in.nodeid);
}

static void open_file(const struct request *r)
{
	/* What is stable changes behind the kernel's back, so its pages are not to be kept. */
	bool direct = !fs.cached || r->in.nodeid == INO_STABLE;
	struct fuse_open_out out = { .open_flags = direct ? FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES
							  : FOPEN_KEEP_CACHE };

	answer(r, 0, &out, sizeof(out));
}

static void handle(const struct request *r)
{
	struct fuse_statfs_out st = {
		.st = { .bsize = 4096, .frsize = 4096, .blocks = 1 << 20, .namelen = 64 }
	};

	switch (r->in.opcode) {
	case FUSE_INIT:
		init(r);
		break;
	case FUSE_LOOKUP:
		lookup(r);
		break;
	case FUSE_GETATTR:
		answer_attr(r, r->in.nodeid);
		break;
	case FUSE_SETATTR:
		setattr(r);
		break;
	case FUSE_OPEN:
		open_file(r);
		break;
	case FUSE_READ:
	case FUSE_WRITE:
	case FUSE_FSYNC:
	case FUSE_FALLOCATE:
		ruled(r, op_of(r));
		break;
	case FUSE_FLUSH:
	case FUSE_RELEASE:
		answer(r, 0, NULL, 0);
		break;
	case FUSE_STATFS:
		answer(r, 0, &st, sizeof(st));
		break;
	case FUSE_FORGET: /* these want no answer */
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		break;
	default:
		answer(r, ENOSYS, NULL, 0);
	}
}

/* ---- orders ---- */

static int find_name(const char *name, const char *const *names, int n)
{
	for (int i = 0; i < n; i++) {
		if (!strcmp(name, names[i]))
			return i;
	}
	return -1;
}

static long add_rule(const char *line)
{
	struct rule rule = { .len = UINT64_MAX };
	char op[16], action[16];
	int op_nr, action_nr;

	if (sscanf(line, "rule %15s %ld %ld %15s %ld %lu %lu", op, &rule.skip, &rule.times, action, &rule.arg,
		   &rule.off, &rule.len) < 5 ||
	    fs.nr_rules == RULES_MAX)
		return -1;
	op_nr = find_name(op, op_names, OPS);
	action_nr = find_name(action, action_names, ACTIONS);
	if (op_nr < 0 || action_nr < 0)
		return -1;
	rule.op = (enum op)op_nr;
	rule.action = (enum action)action_nr;
	rule.for_ever = !rule.times;
	fs.rules[fs.nr_rules++] = rule;
	return 0;
}

static long resize(uint64_t len)
{
	if (len > FAULTFS_LEN_MAX)
		return -1;
	memset(fs.now, 0, fs.len);
	memset(fs.stable, 0, fs.stable_len);
	fs.len = fs.stable_len = len;
	all_clean();
	memset(fs.counts, 0, sizeof(fs.counts));
	fs.nr_rules = 0;
	return 0;
}

static void order(const char *line)
{
	long result = 0;
	char name[16];
	int op, error;

	if (!strncmp(line, "rule ", 5)) {
		result = add_rule(line);
	} else if (!strcmp(line, "clear")) {
		fs.nr_rules = 0;
	} else if (!strcmp(line, "release")) {
		result = release(0);
	} else if (sscanf(line, "fail %d", &error) == 1 && error > 0) {
		result = release(error);
	} else if (!strcmp(line, "cut")) {
		lose_power();
	} else if (sscanf(line, "held %ld", &fs.wait_held) == 1) {
		wake_order(); /* answers, now or later */
		return;
	} else if (sscanf(line, "count %15s", name) == 1) {
		op = find_name(name, op_names, OPS);
		result = op < 0 ? -1 : fs.counts[op];
	} else if (!strncmp(line, "resize ", 7)) {
		result = resize(strtoul(line + 7, NULL, 10));
	} else {
		result = -1;
	}
	printf("%ld\n", result);
}

/* ---- the program ---- */

static void serve(struct request *r)
{
	static char lines[4096];
	static size_t nr_chars;
	struct pollfd fds[2] = { { .fd = 0, .events = POLLIN }, { .fd = fs.fuse_fd, .events = POLLIN } };

	for (;;) {
		ssize_t n;
		char *end;

		if (poll(fds, 2, -1) < 0 && errno != EINTR)
			return;
		if (fds[1].revents) {
			n = read(fs.fuse_fd, r->bytes, REQUEST_MAX);
			if (n >= (ssize_t)sizeof(r->in))
				handle(r);
			else if (n < 0 && errno == ENODEV)
				return; /* unmounted */
		}
		if (!fds[0].revents)
			continue;
		n = read(0, lines + nr_chars, sizeof(lines) - 1 - nr_chars);
		if (n <= 0)
			return;
		nr_chars += (size_t)n;
		lines[nr_chars] = 0;
		while ((end = strchr(lines, '\n'))) {
			*end = 0;
			order(lines);
			nr_chars -= (size_t)(end + 1 - lines);
			memmove(lines, end + 1, nr_chars + 1);
		}
	}
}

static uint8_t *map_bytes(void)
{
	uint8_t *p = mmap(NULL, FAULTFS_LEN_MAX, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

int main(int argc, char **argv)
{
	struct request *r = malloc(sizeof(*r) + REQUEST_MAX);
	static const char *const modes[] = { "async", "sync", "cached" };
	char options[128];

	if (argc != 3 || find_name(argv[2], modes, 3) < 0) {
		fputs("usage: faultfs DIRECTORY async|sync|cached\n", stderr);
		return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	fs.async = !strcmp(argv[2], "async");
	fs.cached = !strcmp(argv[2], "cached");
	fs.now = map_bytes();
	fs.stable = map_bytes();
	all_clean();
	fs.fuse_fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	snprintf(options, sizeof(options),
		 "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,max_read=%u", fs.fuse_fd, WRITE_MAX);
	if (!r || !fs.now || !fs.stable || fs.fuse_fd < 0 ||
	    mount("faultfs", argv[1], "fuse", MS_NOSUID | MS_NODEV, options) < 0) {
		perror("faultfs: cannot mount");
		return 1;
	}
	puts("0"); /* ready */
	serve(r);
	umount2(argv[1], MNT_DETACH);
	free(r);
	return 0;
}
