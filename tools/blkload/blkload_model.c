/* SPDX-License-Identifier: MIT */
/*
 * blkload_model.c - what the disk must hold
 *
 * Owns:    the generation map.
 * Assumes: see blkload_model.h.
 * Never:   allocates after model_init().
 */
#include "blkload_model.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#define SECTOR	512u
#define WORDS	(SECTOR / 8)
#define MAGIC	UINT64_C(0x6b6c626576726176)	/* the bytes "varveblk" */

/* The words of a sector, little-endian. */
enum { W_MAGIC, W_SEED, W_SECTOR, W_GEN, W_BODY };

int model_init(struct model *m, uint64_t seed, uint64_t first_sector, uint64_t nr_sectors,
	       struct vu_err *err)
{
	void *p;

	memset(m, 0, sizeof(*m));
	if (nr_sectors > (UINT64_C(1) << 40) / SECTOR)
		return vu_fail(err, -EFBIG,
			       "%" PRIu64 " sectors are too many to verify: --size is at most 1T",
			       nr_sectors);
	p = mmap(NULL, nr_sectors * sizeof(*m->gen), PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return vu_fail(err, -errno, "no memory to keep track of %" PRIu64 " sectors: %s",
			       nr_sectors, strerror(errno));
	m->seed = seed;
	m->first_sector = first_sector;
	m->nr_sectors = nr_sectors;
	m->gen = p;
	return 0;
}

void model_free(struct model *m)
{
	if (m->gen)
		munmap(m->gen, m->nr_sectors * sizeof(*m->gen));
	m->gen = NULL;
}

static uint32_t *entry(const struct model *m, uint64_t sector, uint64_t nr)
{
	assert(sector >= m->first_sector && sector - m->first_sector < m->nr_sectors &&
	       nr <= m->nr_sectors - (sector - m->first_sector));
	return m->gen + (sector - m->first_sector);
}

void model_set(struct model *m, uint64_t sector, uint64_t nr, uint32_t gen)
{
	uint32_t *e = entry(m, sector, nr);
	uint64_t i;

	for (i = 0; i < nr; i++)
		e[i] = gen;
}

bool model_known(const struct model *m, uint64_t sector, uint64_t nr)
{
	const uint32_t *e = entry(m, sector, nr);
	uint64_t i;

	for (i = 0; i < nr; i++)
		if (e[i] != MODEL_UNKNOWN)
			return true;
	return false;
}

/* The content of one sector. The body depends on every bit of the head. */
static void make_sector(uint64_t seed, uint64_t sector, uint64_t gen, uint64_t w[WORDS])
{
	uint64_t state = seed;
	unsigned i;

	state = vu_random(&state) ^ sector;
	state = vu_random(&state) ^ gen;
	w[W_MAGIC] = htole64(MAGIC);
	w[W_SEED] = htole64(seed);
	w[W_SECTOR] = htole64(sector);
	w[W_GEN] = htole64(gen);
	for (i = W_BODY; i < WORDS; i++)
		w[i] = htole64(vu_random(&state));
}

void model_fill(const struct model *m, uint64_t sector, uint64_t nr, uint32_t gen, uint8_t *buf)
{
	uint64_t w[WORDS];
	uint64_t i;

	for (i = 0; i < nr; i++) {
		make_sector(m->seed, sector + i, gen, w);
		memcpy(buf + i * SECTOR, w, SECTOR);
	}
}

static bool all_zero(const uint64_t w[WORDS])
{
	uint64_t any = 0;
	unsigned i;

	for (i = 0; i < WORDS; i++)
		any |= w[i];
	return any == 0;
}

/* Say what a sector's bytes are. */
static void describe(const uint64_t found[WORDS], char *text, size_t len)
{
	const uint8_t *b = (const uint8_t *)found;
	uint64_t whole[WORDS];
	unsigned i;

	if (all_zero(found)) {
		snprintf(text, len, "zeroes");
		return;
	}
	if (le64toh(found[W_MAGIC]) != MAGIC) {
		snprintf(text, len, "foreign bytes %02x %02x %02x %02x %02x %02x %02x %02x ...",
			 b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]);
		return;
	}
	make_sector(le64toh(found[W_SEED]), le64toh(found[W_SECTOR]), le64toh(found[W_GEN]), whole);
	for (i = 0; i < SECTOR && b[i] == ((uint8_t *)whole)[i]; i++)
		;
	snprintf(text, len, "generation %" PRIu64 " of sector %" PRIu64 " (seed %" PRIu64 ")%s",
		 le64toh(found[W_GEN]), le64toh(found[W_SECTOR]), le64toh(found[W_SEED]),
		 i < SECTOR ? ", torn" : "");
	if (i < SECTOR) {
		size_t used = strlen(text);

		snprintf(text + used, len - used, " at byte %u", i);
	}
}

/* Nothing is known of this sector, but does it hold what we wrote to another one? */
static bool is_strayed(const struct model *m, uint64_t sector, const uint64_t found[WORDS])
{
	uint64_t whole[WORDS];

	if (le64toh(found[W_MAGIC]) != MAGIC || le64toh(found[W_SEED]) != m->seed ||
	    le64toh(found[W_SECTOR]) == sector)
		return false;
	make_sector(m->seed, le64toh(found[W_SECTOR]), le64toh(found[W_GEN]), whole);
	return memcmp(found, whole, SECTOR) == 0;
}

unsigned model_check(const struct model *m, uint64_t sector, uint64_t nr, const uint8_t *buf,
		     struct vu_err *ret_first)
{
	const uint32_t *gen = entry(m, sector, nr);
	uint64_t found[WORDS], want[WORDS];
	char expected[64], text[160];
	unsigned wrong = 0;
	uint64_t i;

	for (i = 0; i < nr; i++) {
		memcpy(found, buf + i * SECTOR, SECTOR);
		if (gen[i] == MODEL_UNKNOWN) {
			if (!is_strayed(m, sector + i, found))
				continue;
			snprintf(expected, sizeof(expected), "nothing of this run");
		} else if (gen[i] == MODEL_ZEROES) {
			if (all_zero(found))
				continue;
			snprintf(expected, sizeof(expected), "zeroes");
		} else {
			make_sector(m->seed, sector + i, gen[i], want);
			if (memcmp(found, want, SECTOR) == 0)
				continue;
			snprintf(expected, sizeof(expected), "generation %" PRIu32, gen[i]);
		}
		if (wrong++ == 0) {
			describe(found, text, sizeof(text));
			vu_fail(ret_first, 0, "sector %" PRIu64 ": expected %s, found %s",
				sector + i, expected, text);
		}
	}
	return wrong;
}
