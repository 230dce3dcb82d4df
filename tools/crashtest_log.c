/* SPDX-License-Identifier: MIT */
/*
 * tools/crashtest_log.c - the write log of varve crashtest: entries, cuts, the states that each cut allows
 *
 * A state is named by its number: number, seed and log give the same state again. Numbers go round the
 * flushes of the log, so that any number of states looks at all of it.
 */
#include "crashtest.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static uint64_t le64_at(const uint8_t *b)
{
	uint64_t v = 0;

	for (unsigned i = 8; i--;)
		v = v << 8 | b[i];
	return v;
}

/* Marks of the write log that change the file's length; other marks say nothing to us. */
static void mark_read(struct ct_entry *e, const uint8_t *header)
{
	uint64_t len = le64_at(header + 24);
	unsigned long long n;
	char text[64] = "";

	memcpy(text, header + 32, MIN(len, sizeof(text) - 1));
	e->len = 0;
	if (sscanf(text, "length at least %llu", &n) == 1)
		e->resize = CT_LEN_AT_LEAST;
	else if (sscanf(text, "length %llu", &n) == 1)
		e->resize = CT_LEN;
	else
		return;
	e->off = n;
}

static int entry_read(struct ct_log *l, struct ct_entry *e, uint64_t *pos)
{
	const uint8_t *at = (const uint8_t *)l->map + *pos;
	uint64_t sectors;

	if (*pos > l->map_len || l->map_len - *pos < CT_SECTOR)
		return -1;
	sectors = le64_at(at + 8);
	e->flags = le64_at(at + 16);
	*pos += CT_SECTOR;
	if (sectors > l->map_len / CT_SECTOR && !(e->flags & CT_DISCARD_FLAG))
		return -1;
	e->off = le64_at(at) * CT_SECTOR;
	e->len = sectors * CT_SECTOR;
	e->data = NULL;
	if (e->flags & CT_MARK) {
		mark_read(e, at);
	} else if (e->len && !(e->flags & CT_DISCARD_FLAG)) {
		if (l->map_len - *pos < e->len)
			return -1;
		e->data = at + CT_SECTOR;
		*pos += e->len;
	}
	e->log_end = *pos;
	return 0;
}

int ct_log_read(struct ct_log *l, const char *name)
{
	int fd = open(name, O_RDONLY | O_CLOEXEC);
	uint64_t pos = CT_SECTOR, nr;
	struct stat st;

	*l = (struct ct_log){ .map = MAP_FAILED };
	if (fd < 0 || fstat(fd, &st) < 0 || st.st_size < (off_t)CT_SECTOR) {
		complain("%s: cannot be read, or is no log", name);
		if (fd >= 0)
			close(fd);
		return 1;
	}
	l->map_len = (size_t)st.st_size;
	l->map = mmap(NULL, l->map_len, PROT_READ, MAP_PRIVATE, fd, 0);
	close(fd);
	if (l->map == MAP_FAILED)
		return complain("%s: %s", name, strerror(errno)), 1;
	nr = le64_at((const uint8_t *)l->map + 16);
	if (le64_at(l->map) != 0x6a736677736872ull || nr > l->map_len / CT_SECTOR)
		return complain("%s: is no write log", name), 1;
	l->entries = calloc(nr + 1, sizeof(*l->entries));
	l->flushes = calloc(nr + 1, sizeof(*l->flushes));
	if (!l->entries || !l->flushes)
		return complain("out of memory"), 1;
	for (; l->nr < nr; l->nr++) {
		if (entry_read(l, &l->entries[l->nr], &pos) < 0)
			return complain("%s: entry %u is cut off", name, l->nr), 1;
		if (l->entries[l->nr].flags & CT_FLUSH)
			l->flushes[l->nr_flushes++] = l->nr;
	}
	l->flushes[l->nr_flushes++] = l->nr;
	return 0;
}

void ct_log_free(struct ct_log *l)
{
	if (l->map && l->map != MAP_FAILED)
		munmap(l->map, l->map_len);
	free(l->entries);
	free(l->flushes);
}

/* Small sets of unstable writes are tried whole: every subset. */
#define ALL_SUBSETS 6

static unsigned changes(const struct ct_log *l, unsigned first, unsigned cut)
{
	unsigned nr = 0;

	for (unsigned i = first; i < cut; i++)
		nr += ct_changes(&l->entries[i]) && !(l->entries[i].flags & CT_FUA);
	return nr;
}

/* How many of each hundred writes are kept; the extremes find what a single lost or early write does. */
static unsigned keep_percent(uint64_t *rng)
{
	static const unsigned percents[] = { 4, 15, 50, 50, 85, 96 };

	return percents[ct_random(rng) % ARRAY_LEN(percents)];
}

static void keep_some(const struct ct_log *l, struct ct_state *s, uint64_t *rng)
{
	unsigned percent = keep_percent(rng), torn = ct_random(rng) % 3 ? 0 : 40, nr = s->cut - s->first;
	/* Now and then all but one, or one alone. */
	unsigned mode = (unsigned)(ct_random(rng) % 4), one = nr ? (unsigned)(ct_random(rng) % nr) : 0;

	for (unsigned i = 0; i < nr; i++) {
		const struct ct_entry *e = &l->entries[s->first + i];
		bool keep = mode == 0 ? i != one : mode == 1 ? i == one : ct_random(rng) % 100 < percent;

		s->keep[i] = keep;
		if (keep && e->data && e->len > CT_SECTOR && ct_random(rng) % 100 < torn)
			s->keep[i] = 2;
		if (e->flags & CT_FUA)
			s->keep[i] = 1;
	}
}

void ct_state_choose(const struct ct_log *l, uint64_t seed, uint64_t nr, struct ct_state *s)
{
	uint64_t round = nr / l->nr_flushes, rng = seed ^ nr * 0xd6e8feb86659fd93ull;
	unsigned f = (unsigned)(nr % l->nr_flushes), n;

	s->nr = nr;
	s->first = f ? l->flushes[f - 1] : 0;
	s->cut = l->flushes[f];
	s->torn_seed = ct_random(&rng);
	n = changes(l, s->first, s->cut);
	if (n <= ALL_SUBSETS && round < 1ull << n) {
		for (unsigned i = s->first, bit = 0; i < s->cut; i++) {
			bool choice = ct_changes(&l->entries[i]) && !(l->entries[i].flags & CT_FUA);

			s->keep[i - s->first] = choice ? round >> bit++ & 1 : 1;
		}
		return;
	}
	if (s->cut > s->first && ct_random(&rng) % 2) /* between two flushes */
		s->cut = s->first + 1 + (unsigned)(ct_random(&rng) % (s->cut - s->first));
	keep_some(l, s, &rng);
}

bool ct_torn_keeps(const struct ct_state *s, unsigned entry, uint64_t sector)
{
	uint64_t rng = s->torn_seed + entry * 1000003ull + sector;

	return ct_random(&rng) & 1;
}
