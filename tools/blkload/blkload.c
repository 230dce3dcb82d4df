/* SPDX-License-Identifier: MIT */
/*
 * blkload.c - the program: load on a vhost-user-blk back end, measured and, on request, verified
 *
 * Owns:    the options and the judgement (exit status 0, or 1 after any error or mismatch).
 * Assumes: nothing of the back end but what it offers in the negotiation.
 * Never:   starts a request that the device did not say it takes.
 */
#include "blkload.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <linux/virtio_config.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define MAX_BLOCK	(4u << 20)
#define READBACK_LEN	(64u << 10)
#define PROGRESS_MS	250
#define RANDOM_SEGS	16u	/* the most that VU_LAYOUT_RANDOM makes of a request */
#define LARGEST_QUEUE	1024u	/* chosen without being asked; not every back end takes more */

static const char usage[] =
	"usage: " PROG " --socket PATH [option ...]\n"
	"Put load on a vhost-user-blk back end; one thread for each queue.\n"
	"\n"
	"what to do\n"
	"  --rw MODE                read, write, randread, randwrite or randrw (randread)\n"
	"  --block-size BYTES       of a read or write (4k)\n"
	"  --read-percent P         reads among the reads and writes of randrw (50)\n"
	"  --flush-every N          flush a queue after every N writes (0: only at the end)\n"
	"  --discard-percent P      discards among all requests (0)\n"
	"  --write-zeroes-percent P write-zeroes among all requests (0)\n"
	"  --offset BYTES           where on the disk the range under test begins (0)\n"
	"  --size BYTES             how long that range is (to the end of the disk)\n"
	"  --runtime SECONDS        for how long (10, unless --ops is given)\n"
	"  --ops N                  how many requests, flushes not counted\n"
	"  --verify                 judge every read, and read back all writes at the end\n"
	"  --seed N                 of offsets and contents (drawn from the clock)\n"
	"  --hostile                no load: put into the rings what no guest may, see what becomes of it, and\n"
	"                           whether the next guest is served; nothing is written\n"
	"how to do it\n"
	"  --queues N               virtqueues (1)\n"
	"  --depth D                requests in flight on each queue (32)\n"
	"  --queue-size N           descriptors of each ring, a power of two (from the depth)\n"
	"  --indirect MODE          on, off, mixed, or tail: direct header, indirect rest (on)\n"
	"  --event-idx on|off       take VIRTIO_RING_F_EVENT_IDX when offered (on)\n"
	"  --packed on|off          packed rings instead of split ones (off)\n"
	"  --in-order on|off        have requests completed in order, and see that they are (off)\n"
	"  --inflight on|off        let the back end record what is in flight, when it can (on)\n"
	"  --reconnect SECONDS      look that long for a back end that is not there (yet, or any more), and go on (0)\n"
	"  --poll                   poll the used ring instead of waiting for calls\n"
	"  --regions N              pieces that guest memory is divided into, 1 to 8 (1)\n"
	"  --layout MODE            segments of a request: plain, merged or random (plain)\n"
	"  --segment-size BYTES     longest data segment of the plain layout (0: no limit)\n"
	"  --timeout SECONDS        the longest that the back end may finish nothing (30), or not notice a lie (2)\n"
	"what to tell\n"
	"  --progress               a live line on stderr\n"
	"  --output human|json      the result on stdout (human)\n"
	"\n"
	"Sizes take the suffixes k, M, G and T (powers of 1024). Exit status: 0 if all went well,\n"
	"1 after any error, wrong byte or interruption.\n";

/* ---- options --------------------------------------------------------------------------------- */

static void __attribute__((noreturn, format(printf, 1, 2))) die(const char *fmt, ...)
{
	va_list ap;

	fputs(PROG ": ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	exit(1);
}

/* A whole number from min to max, with a size suffix when sized. */
static uint64_t number(const char *option, const char *text, uint64_t min, uint64_t max, bool sized)
{
	static const char suffixes[] = "kMGT";
	unsigned long long v;
	unsigned shift = 0;
	const char *s;
	char *end;

	errno = 0;
	v = strtoull(text, &end, 0);
	if (sized && *end) {
		s = strchr(suffixes, *end == 'K' ? 'k' : *end);
		if (s && !end[1]) {
			shift = 10 * (unsigned)(s - suffixes + 1);
			end++;
		}
	}
	if (errno || end == text || *end || text[0] == '-')
		die("--%s: \"%s\" is not a %s", option, text, sized ? "size" : "number");
	if (v > UINT64_MAX >> shift || (v << shift) < min || (v << shift) > max)
		die("--%s: %s is not within %" PRIu64 " .. %" PRIu64, option, text, min, max);
	return v << shift;
}

struct choice {
	const char *name;
	int value;
};

static int choose(const char *option, const char *text, const struct choice *c)
{
	const struct choice *i;
	char names[128] = "";

	for (i = c; i->name; i++) {
		if (!strcmp(i->name, text))
			return i->value;
		strncat(names, i == c ? "" : ", ", sizeof(names) - strlen(names) - 1);
		strncat(names, i->name, sizeof(names) - strlen(names) - 1);
	}
	die("--%s: \"%s\" is none of %s", option, text, names);
}

static const struct choice rw_modes[] = {
	{ "read", LOAD_READ }, { "write", LOAD_WRITE }, { "randread", LOAD_RANDREAD },
	{ "randwrite", LOAD_RANDWRITE }, { "randrw", LOAD_RANDRW }, { NULL, 0 },
};
#define INDIRECT_OFF (-1)
static const struct choice indirect_modes[] = {
	{ "on", VU_INDIRECT }, { "off", INDIRECT_OFF }, { "mixed", VU_INDIRECT_MIXED },
	{ "tail", VU_INDIRECT_TAIL }, { NULL, 0 },
};
static const struct choice layouts[] = {
	{ "plain", VU_LAYOUT_PLAIN }, { "merged", VU_LAYOUT_MERGED },
	{ "random", VU_LAYOUT_RANDOM }, { NULL, 0 },
};
static const struct choice on_off[] = { { "on", 1 }, { "off", 0 }, { NULL, 0 } };
static const struct choice outputs[] = { { "human", 0 }, { "json", 1 }, { NULL, 0 } };

enum {
	O_SOCKET = 256, O_QUEUES, O_DEPTH, O_BLOCK, O_RW, O_OFFSET, O_SIZE, O_RUNTIME, O_OPS,
	O_SEED, O_READS, O_VERIFY, O_FLUSH, O_DISCARD, O_ZEROES, O_PROGRESS, O_OUTPUT, O_INDIRECT,
	O_EVENT_IDX, O_POLL, O_QUEUE_SIZE, O_REGIONS, O_SEGMENT, O_LAYOUT, O_TIMEOUT, O_HELP,
	O_PACKED, O_IN_ORDER, O_INFLIGHT, O_RECONNECT, O_HOSTILE,
};

static const struct option long_options[] = {
	{ "socket", 1, NULL, O_SOCKET }, { "queues", 1, NULL, O_QUEUES },
	{ "depth", 1, NULL, O_DEPTH }, { "block-size", 1, NULL, O_BLOCK },
	{ "rw", 1, NULL, O_RW }, { "offset", 1, NULL, O_OFFSET }, { "size", 1, NULL, O_SIZE },
	{ "runtime", 1, NULL, O_RUNTIME }, { "ops", 1, NULL, O_OPS }, { "seed", 1, NULL, O_SEED },
	{ "read-percent", 1, NULL, O_READS }, { "verify", 0, NULL, O_VERIFY },
	{ "flush-every", 1, NULL, O_FLUSH }, { "discard-percent", 1, NULL, O_DISCARD },
	{ "write-zeroes-percent", 1, NULL, O_ZEROES }, { "progress", 0, NULL, O_PROGRESS },
	{ "output", 1, NULL, O_OUTPUT }, { "indirect", 1, NULL, O_INDIRECT },
	{ "event-idx", 1, NULL, O_EVENT_IDX }, { "poll", 0, NULL, O_POLL },
	{ "queue-size", 1, NULL, O_QUEUE_SIZE }, { "regions", 1, NULL, O_REGIONS },
	{ "segment-size", 1, NULL, O_SEGMENT }, { "layout", 1, NULL, O_LAYOUT },
	{ "packed", 1, NULL, O_PACKED }, { "in-order", 1, NULL, O_IN_ORDER },
	{ "inflight", 1, NULL, O_INFLIGHT }, { "reconnect", 1, NULL, O_RECONNECT },
	{ "hostile", 0, NULL, O_HOSTILE }, { "timeout", 1, NULL, O_TIMEOUT }, { "help", 0, NULL, O_HELP }, { NULL, 0, NULL, 0 },
};

static void set_indirect(struct load_options *o, int mode)
{
	o->use_indirect = mode != INDIRECT_OFF;
	o->indirect = o->use_indirect ? (enum vu_indirect)mode : VU_DIRECT;
}

static void set_option(struct load_options *o, int opt, const char *name, const char *arg)
{
	switch (opt) {
	case O_SOCKET:	o->socket = arg; break;
	case O_QUEUES:	o->nr_queues = (unsigned)number(name, arg, 1, VU_MAX_QUEUES, false); break;
	case O_DEPTH:	o->depth = (unsigned)number(name, arg, 1, 4096, false); break;
	case O_BLOCK:
		o->block_len = (uint32_t)number(name, arg, VU_SECTOR, MAX_BLOCK, true);
		break;
	case O_OFFSET:	o->range_off = number(name, arg, 0, INT64_MAX, true); break;
	case O_SIZE:	o->range_len = number(name, arg, VU_SECTOR, INT64_MAX, true); break;
	case O_RUNTIME:	o->runtime_ns = number(name, arg, 1, 1000000, false) * 1000000000u; break;
	case O_OPS:	o->nr_ops = number(name, arg, 1, INT64_MAX, true); break;
	case O_SEED:	o->seed = number(name, arg, 0, UINT64_MAX, false); break;
	case O_READS:	o->read_percent = (unsigned)number(name, arg, 0, 100, false); break;
	case O_VERIFY:	o->verify = true; break;
	case O_FLUSH:	o->flush_every = number(name, arg, 0, INT64_MAX, false); break;
	case O_DISCARD:	o->discard_percent = (unsigned)number(name, arg, 0, 100, false); break;
	case O_ZEROES:	o->zeroes_percent = (unsigned)number(name, arg, 0, 100, false); break;
	case O_PROGRESS: o->progress = true; break;
	case O_OUTPUT:	o->json = choose(name, arg, outputs); break;
	case O_INDIRECT: set_indirect(o, choose(name, arg, indirect_modes)); break;
	case O_EVENT_IDX: o->event_idx = choose(name, arg, on_off); break;
	case O_PACKED:	o->packed = choose(name, arg, on_off); break;
	case O_IN_ORDER: o->in_order = choose(name, arg, on_off); break;
	case O_INFLIGHT: o->inflight = choose(name, arg, on_off); break;
	case O_RECONNECT:
		o->reconnect_ns = number(name, arg, 0, 1000000, false) * 1000000000u;
		break;
	case O_HOSTILE:	o->hostile = true; break;
	case O_POLL:	o->spin = true; break;
	case O_QUEUE_SIZE: o->queue_len = (unsigned)number(name, arg, 2, 32768, false); break;
	case O_REGIONS:
		o->nr_regions = (unsigned)number(name, arg, 1, VU_MAX_REGIONS, false);
		break;
	case O_SEGMENT:	o->seg_len = (uint32_t)number(name, arg, 0, MAX_BLOCK, true); break;
	case O_LAYOUT:	o->layout = (enum vu_layout)choose(name, arg, layouts); break;
	case O_TIMEOUT:
		o->timeout_ms = o->notice_ms = (unsigned)number(name, arg, 1, 100000, false) * 1000;
		break;
	case O_RW:
		o->rw = (enum load_rw)choose(name, arg, rw_modes);
		o->rw_name = arg;
		break;
	case O_HELP:
		fputs(usage, stdout);
		exit(0);
	}
}

static void parse(struct load_options *o, int argc, char **argv)
{
	int opt, which;

	*o = (struct load_options){
		.nr_queues = 1, .depth = 32, .block_len = 4096, .rw = LOAD_RANDREAD,
		.rw_name = "randread", .read_percent = 50, .event_idx = true, .use_indirect = true,
		.inflight = true,
		.indirect = VU_INDIRECT, .nr_regions = 1, .timeout_ms = 30000, .notice_ms = 2000,
		.seed = vu_now_ns() ^ (uint64_t)getpid() << 40,
	};
	while ((opt = getopt_long(argc, argv, "h", long_options, &which)) != -1) {
		if (opt == 'h')
			opt = O_HELP;
		if (opt == '?')
			die("\"" PROG " --help\" lists the options");
		set_option(o, opt, opt == O_HELP ? "help" : long_options[which].name, optarg);
	}
	if (optind < argc)
		die("unexpected argument \"%s\"", argv[optind]);
	if (!o->socket)
		die("--socket PATH is missing");
	if (o->hostile && (o->packed || o->verify || o->runtime_ns || o->nr_ops))
		die("--hostile is about split rings and puts no load on them");
	if (!o->runtime_ns && !o->nr_ops)
		o->runtime_ns = UINT64_C(10000000000);
	if (o->block_len % VU_SECTOR || o->range_off % VU_SECTOR || o->range_len % VU_SECTOR)
		die("--block-size, --offset and --size must be multiples of %u bytes", VU_SECTOR);
	if (o->discard_percent + o->zeroes_percent > 100)
		die("--discard-percent and --write-zeroes-percent are %u together, more than 100",
		    o->discard_percent + o->zeroes_percent);
	if ((o->rw == LOAD_READ || o->rw == LOAD_RANDREAD) &&
	    (o->discard_percent || o->zeroes_percent || o->flush_every))
		die("--rw %s changes nothing: --discard-percent, --write-zeroes-percent and"
		    " --flush-every need a mode that writes",
		    o->rw_name);
	if (o->queue_len & (o->queue_len - 1))
		die("--queue-size: %u is not a power of two", o->queue_len);
	if (o->layout != VU_LAYOUT_PLAIN && o->seg_len)
		die("--segment-size belongs to --layout plain");
}

/* ---- setting up ------------------------------------------------------------------------------ */

/* How many descriptors a request may need, and from that the rings. */
static void size_queues(struct load *l, struct vu_front_opts *fo)
{
	struct load_options *o = &l->o;
	uint32_t pieces = o->seg_len ? (l->buf_len + o->seg_len - 1) / o->seg_len : 1;
	unsigned segs = o->layout == VU_LAYOUT_RANDOM ? RANDOM_SEGS : pieces + 2, len = 128;

	if (segs > VU_IO_MAX_SEGS)
		die("--segment-size %" PRIu32 ": %" PRIu32 "-byte requests would have %" PRIu32
		    " data segments, at most %u can be made",
		    o->seg_len, l->buf_len, pieces, VU_IO_MAX_SEGS - 2);
	l->descs_per_io = o->indirect == VU_DIRECT || o->indirect == VU_INDIRECT_MIXED ? segs : 2;
	while (len < LARGEST_QUEUE && len < o->depth * l->descs_per_io)
		len *= 2;
	if (o->queue_len)
		len = o->queue_len;
	if (len < l->descs_per_io)
		die("--queue-size %u: one request may take %u descriptors", len, l->descs_per_io);
	fo->queue_len = (uint16_t)len;
	fo->table_len = o->use_indirect ? (uint16_t)segs : 0;
}

static void connect_device(struct load *l)
{
	struct load_options *o = &l->o;
	struct vu_front_opts fo = vu_front_defaults(o->socket);

	l->buf_len = o->verify && o->block_len < READBACK_LEN ?
			     READBACK_LEN / o->block_len * o->block_len : o->block_len;
	size_queues(l, &fo);
	fo.nr_queues = o->nr_queues;
	fo.nr_regions = o->nr_regions;
	fo.mem_len = o->nr_queues * vu_blk_mem_len(o->depth, l->buf_len);
	fo.timeout_ms = o->timeout_ms;
	fo.indirect = o->indirect;
	fo.spin = o->spin;
	if (!o->event_idx)
		fo.features &= ~(UINT64_C(1) << VIRTIO_RING_F_EVENT_IDX);
	if (o->packed)
		fo.features |= UINT64_C(1) << VIRTIO_F_RING_PACKED;
	if (o->in_order)
		fo.features |= UINT64_C(1) << VIRTIO_F_IN_ORDER;
	if (o->inflight)
		fo.protocol_features |= UINT64_C(1) << VU_PROTOCOL_F_INFLIGHT_SHMFD;
	if (!o->use_indirect)
		fo.features &= ~(UINT64_C(1) << VIRTIO_RING_F_INDIRECT_DESC);
	if (load_link_open(l, &fo) < 0) {
		if (l->front.sock < 0)	/* the text begins with the path */
			die("%s", l->front.err.text);
		die("%s: %s", o->socket, l->front.err.text);
	}
	if (!vu_has(l->front.protocol_features, VU_PROTOCOL_F_CONFIG))
		die("%s: the back end offers no device configuration"
		    " (VHOST_USER_PROTOCOL_F_CONFIG)", o->socket);
	if (o->packed && !l->front.ring[0].packed)
		die("%s: the back end offers no packed rings; use --packed off", o->socket);
	if (o->in_order && !l->front.ring[0].in_order)
		die("%s: the back end does not offer to keep the order; use --in-order off", o->socket);
	if (o->use_indirect && l->front.ring[0].indirect == VU_DIRECT)
		die("%s: the back end offers no indirect descriptors; use --indirect off",
		    o->socket);
	vu_blk_limits(&l->front, &l->limits);
}

/* The device's features and limits against what was asked for. */
static void check_limits(const struct load *l)
{
	const struct load_options *o = &l->o;
	const struct vu_blk_limits *d = &l->limits;
	bool writes = o->rw != LOAD_READ && o->rw != LOAD_RANDREAD;
	uint32_t longest = o->layout == VU_LAYOUT_PLAIN && o->seg_len ? o->seg_len : l->buf_len;
	uint32_t pieces = o->layout == VU_LAYOUT_RANDOM ? RANDOM_SEGS / 4 :
							  (l->buf_len + longest - 1) / longest;

	if (writes && d->read_only)
		die("%s: the disk is read-only; use --rw read or randread", o->socket);
	if (o->flush_every && !d->has_flush)
		die("%s: the device has no flush; leave out --flush-every", o->socket);
	if (o->discard_percent && (!d->has_discard || d->max_discard_len < o->block_len))
		die("%s: the device takes discards of at most %" PRIu64
		    " bytes; leave out --discard-percent or lower --block-size",
		    o->socket, d->max_discard_len);
	if (o->zeroes_percent && (!d->has_write_zeroes || d->max_zeroes_len < o->block_len))
		die("%s: the device takes write-zeroes of at most %" PRIu64
		    " bytes; leave out --write-zeroes-percent or lower --block-size",
		    o->socket, d->max_zeroes_len);
	if (o->block_len % d->block_len || o->range_off % d->block_len)
		die("%s: the device has blocks of %" PRIu32
		    " bytes; --block-size and --offset must be multiples of that",
		    o->socket, d->block_len);
	if (longest + (o->layout != VU_LAYOUT_PLAIN) * 16 > d->max_seg_len)
		die("%s: the device takes segments of at most %" PRIu32
		    " bytes; use --segment-size %" PRIu32,
		    o->socket, d->max_seg_len, d->max_seg_len / VU_SECTOR * VU_SECTOR);
	if (pieces > d->max_segs)
		die("%s: the device takes at most %" PRIu32
		    " data segments, this would need %" PRIu32
		    "; raise --segment-size or use --layout plain",
		    o->socket, d->max_segs, pieces);
}

/* Settle the range under test and divide it among the workers. */
static void divide(struct load *l)
{
	struct load_options *o = &l->o;
	uint64_t nr_blocks, each;
	unsigned q;

	if (o->range_off >= l->limits.capacity)
		die("--offset %" PRIu64 ": the disk ends at %" PRIu64 " bytes", o->range_off,
		    l->limits.capacity);
	if (!o->range_len)
		o->range_len = l->limits.capacity - o->range_off;
	if (o->range_len > l->limits.capacity - o->range_off)
		die("--size %" PRIu64 " from offset %" PRIu64 " on: the disk ends at %" PRIu64
		    " bytes",
		    o->range_len, o->range_off, l->limits.capacity);
	nr_blocks = o->range_len / o->block_len;
	if (nr_blocks < o->nr_queues)
		die("%" PRIu64 " blocks of %" PRIu32 " bytes are too few for %u queues", nr_blocks,
		    o->block_len, o->nr_queues);
	each = nr_blocks / o->nr_queues;
	for (q = 0; q < o->nr_queues; q++) {
		struct load_worker *w = &l->worker[q];

		w->load = l;
		w->q = q;
		w->first_block = q * each;
		w->nr_blocks = q + 1 < o->nr_queues ? each : nr_blocks - q * each;
		w->max_ops = UINT64_MAX;
		if (o->nr_ops)
			w->max_ops = o->nr_ops / o->nr_queues + (q < o->nr_ops % o->nr_queues);
	}
}

static void prepare(struct load *l)
{
	struct vu_err err;
	unsigned q;

	l->worker = calloc(l->o.nr_queues, sizeof(*l->worker));
	l->done_fd = eventfd(0, EFD_CLOEXEC);
	if (!l->worker || l->done_fd < 0 || pthread_mutex_init(&l->say_lock, NULL) || load_link_init(l) < 0)
		die("no resources for %u workers: %s", l->o.nr_queues, strerror(errno));
	connect_device(l);
	check_limits(l);
	divide(l);
	if (l->o.verify && model_init(&l->model, l->o.seed, l->o.range_off / VU_SECTOR,
				      l->o.range_len / VU_SECTOR, &err) < 0)
		die("%s", err.text);
	for (q = 0; q < l->o.nr_queues; q++)
		if (load_worker_prepare(&l->worker[q], &err) < 0)
			die("%s", err.text);
}

/* ---- running --------------------------------------------------------------------------------- */

static struct load the_load;

static void on_signal(int signo)
{
	(void)signo;
	__atomic_store_n(&the_load.interrupted, true, __ATOMIC_RELAXED);
	__atomic_store_n(&the_load.stop, true, __ATOMIC_RELAXED);
}

static void on_time_over(int signo)
{
	(void)signo;
	__atomic_store_n(&the_load.time_over, true, __ATOMIC_RELAXED);
}

static void run(struct load *l)
{
	struct sigaction sa = { .sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND };
	uint64_t begin = vu_now_ns(), count;
	unsigned q;
	int ret;

	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGTERM, &sa, NULL);
	l->nr_live = l->o.nr_queues;
	for (q = 0; q < l->o.nr_queues; q++) {
		ret = pthread_create(&l->worker[q].thread, NULL, load_worker_main, &l->worker[q]);
		if (ret) {
			vu_fail(&l->worker[q].fatal, -ret,
				"cannot start the thread of queue %u: %s", q, strerror(ret));
			load_say(l, "%s", l->worker[q].fatal.text);
			__atomic_store_n(&l->stop, true, __ATOMIC_RELAXED);
			load_worker_ended(&l->worker[q]);
			continue;
		}
		l->worker[q].started = true;
	}
	while (load_link_mend(l) > 0) {
		struct pollfd p = { .fd = l->done_fd, .events = POLLIN };

		if (poll(&p, 1, l->o.progress ? PROGRESS_MS : -1) > 0 &&
		    read(l->done_fd, &count, sizeof(count)) < 0)
			abort();	/* it was readable, and only we read it */
		if (l->o.progress)
			load_progress(l, begin);
	}
	for (q = 0; q < l->o.nr_queues; q++)
		if (l->worker[q].started)
			pthread_join(l->worker[q].thread, NULL);
	if (l->o.progress)
		load_progress_end(l);
}

/* Take the queues back and see whether the device has counted as we have. */
static void stop_queues(struct load *l)
{
	uint32_t base;
	uint64_t count;
	unsigned q;

	for (q = 0; q < l->o.nr_queues; q++) {
		struct vu_ring *r = &l->front.ring[q];

		if (vu_front_stop_queue(&l->front, q, &base) < 0) {
			load_say(l, "cannot stop queue %u: %s", q, l->front.err.text);
			l->nr_session_errors++;
			return;
		}
		if (base != vu_ring_end(r)) {
			load_say(l, "queue %u stopped at index 0x%x, but we stand at 0x%x", q, base,
				 vu_ring_end(r));
			l->nr_session_errors++;
		}
		if (read(r->err_fd, &count, sizeof(count)) == sizeof(count)) {
			load_say(l, "queue %u: the device signalled an error", q);
			l->nr_session_errors++;
		}
	}
}

int blkload_main(int argc, char **argv)
{
	struct load *l = &the_load;
	struct sigaction over = { .sa_handler = on_time_over, .sa_flags = SA_RESTART };
	bool ok;
	unsigned q;

	/* Before anybody can see that we are there: it would end us. */
	sigaction(SIGUSR1, &over, NULL);
	argv[0] = (char *)PROG;	/* getopt begins its complaints with it */
	parse(&l->o, argc, argv);
	if (l->o.hostile)
		return blkload_hostile(&l->o);
	prepare(l);
	run(l);
	for (q = 0; q < l->o.nr_queues; q++)
		l->nr_session_errors += l->worker[q].fatal.text[0] != '\0';
	if (l->nr_session_errors == 0)	/* else the device still owes answers: it may not stop */
		stop_queues(l);
	ok = l->nr_session_errors == 0;
	for (q = 0; q < l->o.nr_queues; q++)
		ok &= l->worker[q].nr_errors == 0 && l->worker[q].nr_mismatches == 0;
	if (l->interrupted) {
		load_say(l, "interrupted%s",
			 l->o.verify ? "; what was written is not all verified" : "");
		ok = false;
	}
	load_report(l);

	for (q = 0; q < l->o.nr_queues; q++)
		load_worker_free(&l->worker[q]);
	model_free(&l->model);
	vu_front_close(&l->front);
	close(l->done_fd);
	free(l->worker);
	if (fflush(stdout) != 0) {
		load_say(l, "cannot write the result: %s", strerror(errno));
		ok = false;
	}
	return ok ? 0 : 1;
}
