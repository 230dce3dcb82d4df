/* SPDX-License-Identifier: MIT */
/*
 * promise.c - the program: writes through vhost-user-blk and keeps a log of what the disk has promised
 *
 * usage: promise SOCKET LOG SEED FIRST_ROUND
 *
 * Rounds without end, until the back end goes away: a flush for the round before, together with the writes of
 * this one. The log is a text file; each line is written before what it speaks of can be relied upon by
 * anybody else: w ROUND SECTOR COUNT    about to be written (its sectors hold ROUND and their own number) z
 * ROUND SECTOR COUNT    about to be zeroed f ROUND                 flushed: all of this round and of those
 * before is promised
 *
 * Exit status 0: the back end went away. 1: it answered wrongly, or failed a request.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "patience.h"
#include "vu_blk.h"

#define DEPTH 16
#define LEN_MAX 65536u

struct sector {
	uint64_t words[VU_SECTOR / 8]; /* round and number by turns */
};

static int fail(const char *what, const char *why)
{
	fprintf(stderr, "promise: %s: %s\n", what, why);
	return 1;
}

static void fill(uint8_t *data, uint64_t round, uint64_t first, uint64_t nr)
{
	for (uint64_t s = 0; s < nr; s++) {
		struct sector sector;

		for (unsigned i = 0; i < VU_SECTOR / 8; i += 2) {
			sector.words[i] = round;
			sector.words[i + 1] = first + s;
		}
		memcpy(data + s * VU_SECTOR, &sector, sizeof(sector));
	}
}

/* Prepares one write or zeroing and its line of the log. */
static size_t one_write(struct vu_io *io, uint64_t round, uint64_t disk_sectors, uint64_t *rng, char *line,
			size_t room)
{
	uint64_t nr = 1 + vu_random_below(rng, LEN_MAX / VU_SECTOR), first;
	bool zero = vu_random_below(rng, 10) == 0;

	if (vu_random_below(rng, 2))
		nr = 8;
	first = vu_random_below(rng, disk_sectors - nr);
	if (nr == 8)
		first -= first % 8;
	if (zero) {
		struct vu_range range = { first * VU_SECTOR, nr * VU_SECTOR, vu_random_below(rng, 2) };

		vu_io_write_zeroes(io, &range, 1);
	} else {
		vu_io_write(io, first * VU_SECTOR, (uint32_t)(nr * VU_SECTOR));
		fill(io->data, round, first, nr);
	}
	return (size_t)snprintf(line, room, "%c %llu %llu %llu\n", zero ? 'z' : 'w',
				(unsigned long long)round, (unsigned long long)first, (unsigned long long)nr);
}

/* One round. 1: the back end is gone. */
static int one_round(struct vu_blk *b, int log, uint64_t round, uint64_t disk_sectors, uint64_t *rng)
{
	struct vu_io *ios[DEPTH + 1], *done[DEPTH + 1];
	char lines[64 * (DEPTH + 1)];
	size_t len = 0;
	unsigned nr = 0, left;

	ios[nr] = vu_blk_get(b);
	vu_io_flush(ios[nr++]);
	while (nr <= DEPTH) {
		ios[nr] = vu_blk_get(b);
		len += one_write(ios[nr++], round, disk_sectors, rng, lines + len, sizeof(lines) - len);
	}
	if (write(log, lines, len) != (ssize_t)len)
		return fail("log", strerror(errno));
	for (unsigned i = 0; i < nr; i++) {
		if (vu_blk_submit(b, ios[i]) < 0)
			return fail("submit", b->err.text);
	}
	if (vu_blk_kick(b) < 0)
		return -1;
	for (left = nr; left;) {
		int n = vu_blk_wait(b, vu_deadline_ns(PATIENCE_MS));

		if (n >= 0)
			n = vu_blk_reap(b, done, DEPTH + 1);
		if (n < 0)
			return n == -ETIMEDOUT ? fail("wait", "no answer for two minutes") : -1;
		for (int i = 0; i < n; i++) {
			if (done[i]->ret < 0)
				return fail("a request failed", strerror(-done[i]->ret));
			if (done[i] == ios[0]) {
				len = (size_t)snprintf(lines, sizeof(lines), "f %llu\n",
						       (unsigned long long)round - 1);
				if (write(log, lines, len) != (ssize_t)len)
					return fail("log", strerror(errno));
			}
			vu_blk_put(b, done[i]);
		}
		left -= (unsigned)n;
	}
	return 0;
}

int main(int argc, char **argv)
{
	struct vu_front_opts opts;
	struct vu_blk_limits limits;
	struct vu_front f;
	struct vu_blk b;
	uint64_t rng, round;
	int log, ret = 0;

	if (argc != 5) {
		fputs("usage: promise SOCKET LOG SEED FIRST_ROUND\n", stderr);
		return 2;
	}
	rng = strtoull(argv[3], NULL, 0);
	round = strtoull(argv[4], NULL, 0);
	log = open(argv[2], O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (log < 0)
		return fail(argv[2], strerror(errno));
	opts = vu_front_defaults(argv[1]);
	opts.mem_len = vu_blk_mem_len(DEPTH + 1, LEN_MAX);
	opts.timeout_ms = PATIENCE_MS;
	if (vu_front_open(&f, &opts) < 0)
		return fail("connect", f.err.text);
	if (vu_blk_open(&b, &f, 0, DEPTH + 1, LEN_MAX) < 0)
		return fail("queue", b.err.text);
	vu_blk_limits(&f, &limits);
	while (!ret)
		ret = one_round(&b, log, round++, limits.capacity / VU_SECTOR, &rng);
	vu_blk_free(&b);
	vu_front_close(&f);
	return ret < 0 ? 0 : 1;
}
