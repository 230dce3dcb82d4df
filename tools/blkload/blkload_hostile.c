/* SPDX-License-Identifier: MIT */
/*
 * blkload_hostile.c - `varve blkload --hostile`: what becomes of a back end whose guest lies to it
 *
 * Owns:    its own connections: one for each lie.
 * Assumes: a back end may break the queue, end the connection, or take no notice; what it must do is serve the next one.
 * Never:   writes to the disk.
 */
#include "blkload.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <stdio.h>
#include <string.h>

#include "vu_lies.h"
#include "vu_raw.h"

static int connect_front(struct vu_front *f, const struct load_options *o)
{
	struct vu_front_opts fo = vu_front_defaults(o->socket);

	fo.timeout_ms = o->timeout_ms;
	return vu_front_open(f, &fo);
}

/* An honest guest, on a connection of its own. False, with the reason in f->err. */
static bool still_serves(struct vu_front *f, const struct load_options *o)
{
	uint8_t sector[VU_SECTOR];
	struct vu_blk b;
	bool ok;

	if (connect_front(f, o) < 0)
		return false;
	ok = vu_blk_open(&b, f, 0, 1, sizeof(sector)) == 0;
	b.timeout_ms = o->timeout_ms;
	if (ok)
		ok = vu_blk_read(&b, 0, sector, sizeof(sector)) == 0;
	if (!ok)
		f->err = b.err;
	vu_blk_free(&b);
	return ok;
}

static const char *tell(const struct vu_lie *lie, struct vu_front *f, unsigned notice_ms)
{
	struct vu_liar liar;

	if (!vu_liar_init(&liar, f, 0))
		return "no memory for it";
	lie->tell(&liar);
	if (vu_raw_kick(liar.ring) < 0)
		return "the queue cannot be kicked";
	switch (vu_raw_wait_broken(f, 0, notice_ms)) {
	case VU_RAW_ERR_SIGNALLED:
		return "the queue is broken";
	case VU_RAW_CLOSED:
		return "the connection is closed";
	default:
		return "no notice is taken";
	}
}

int blkload_hostile(const struct load_options *o)
{
	unsigned nr_unnoticed = 0;
	struct vu_front f;
	bool ok = still_serves(&f, o);

	for (unsigned i = 0; ok && i < vu_nr_lies; i++) {
		const char *end;

		vu_front_close(&f);
		ok = connect_front(&f, o) == 0;
		if (!ok)
			break;
		end = tell(&vu_lies[i], &f, o->notice_ms);
		vu_front_close(&f);
		ok = still_serves(&f, o);
		nr_unnoticed += strncmp(end, "no notice", 9) == 0;
		printf("%-45s %s%s\n", vu_lies[i].name, end, ok ? "" : ", and nobody is served any more");
	}
	if (!ok)
		fprintf(stderr, PROG ": %s\n", f.err.text);
	else
		printf("%u lies, %u of which no notice was taken; the back end goes on\n", vu_nr_lies, nr_unnoticed);
	vu_front_close(&f);
	if (fflush(stdout) != 0) {
		fprintf(stderr, PROG ": cannot write the result: %s\n", strerror(errno));
		return 1;
	}
	return ok ? 0 : 1;
}
