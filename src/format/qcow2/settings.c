/* SPDX-License-Identifier: MIT */
/*
 * qcow2/settings.c - the options of an image that is opened
 *
 * Owns:    their names, and what of them goes together.
 * Never:   keeps what is not understood for later: an option is good before the image is touched, or the open fails.
 */
#include "format/qcow2/settings.h"

#include <string.h>

#include "base/words.h"
#include "format/cache.h"

#define L2_CACHE_LEN_DEFAULT MiB(32)
#define L2_PIECE_LEN_MIN 512
#define CLEAN_S_DEFAULT 600
#define REFCOUNT_CLUSTERS_MIN 4 /* of cache-size, before the L2 tables get any */

/* ---- the table ---- */

#define OVERLAP_WORDS "none|constant|cached|all"
#define LEVEL_WORDS "fast|ratio"

enum kind { KIND_TOGGLE, KIND_SIZE, KIND_NUMBER, KIND_TEXT, KIND_ELSEWHERE };

/* Name, its value for people, how it is parsed, field of struct settings, one line for people. */
#define SETTINGS(X) \
	X("cache-size", "size", KIND_SIZE, cache_len, \
	  "memory for L2 tables and refcounts together: as much as the disk needs for the first, the rest for the second") \
	X("l2-cache-size", "size", KIND_SIZE, l2_cache_len, "memory for L2 tables (32M)") \
	X("l2-cache-entry-size", "size", KIND_SIZE, l2_piece_len, \
	  "how much of an L2 table is read, kept and dropped at once: a power of two from 512 to the cluster size (4k)") \
	X("refcount-cache-size", "size", KIND_SIZE, refcount_cache_len, "memory for refcounts (4M)") \
	X("cache-clean-interval", "num", KIND_NUMBER, clean_s, \
	  "seconds after which tables that nobody used leave memory (600; 0: never)") \
	X("metadata-write-out", "num", KIND_ELSEWHERE, write_out_ns, \
	  "seconds after which queued metadata is written without a flush (5; 0: never)") \
	X("map-ahead", "bool", KIND_TOGGLE, map_ahead, "a sequential writer finds clusters linked ahead (on)") \
	X("discard-no-unref", "bool", KIND_TOGGLE, keeps_space, \
	  "what is discarded keeps its place in the file, and gives its blocks back (off)") \
	X("pass-discard-request", "bool", KIND_TOGGLE, discard_request, \
	  "space that the guest discards goes back to the file system (on)") \
	X("pass-discard-snapshot", "bool", KIND_TOGGLE, discard_snapshot, \
	  "so does what becomes free when a snapshot is deleted or applied (on)") \
	X("pass-discard-other", "bool", KIND_TOGGLE, discard_other, \
	  "so does what becomes free in other ways: clusters that were written elsewhere, tables (off)") \
	X("overlap-check", OVERLAP_WORDS, KIND_TEXT, overlap_name, \
	  "none, constant, cached or all: of which metadata places are compared before data is written there; as much as cached always (cached)") \
	X("overlap-check.template", OVERLAP_WORDS, KIND_TEXT, overlap_template, "the same, beside single places") \
	X("overlap-check.main-header", "bool", KIND_TOGGLE, overlap[OVERLAP_MAIN_HEADER], "checked anyway") \
	X("overlap-check.active-l1", "bool", KIND_TOGGLE, overlap[OVERLAP_ACTIVE_L1], "checked anyway") \
	X("overlap-check.active-l2", "bool", KIND_TOGGLE, overlap[OVERLAP_ACTIVE_L2], "checked anyway") \
	X("overlap-check.refcount-table", "bool", KIND_TOGGLE, overlap[OVERLAP_REFCOUNT_TABLE], "checked anyway") \
	X("overlap-check.refcount-block", "bool", KIND_TOGGLE, overlap[OVERLAP_REFCOUNT_BLOCK], "checked anyway") \
	X("overlap-check.snapshot-table", "bool", KIND_TOGGLE, overlap[OVERLAP_SNAPSHOT_TABLE], "checked anyway") \
	X("overlap-check.inactive-l1", "bool", KIND_TOGGLE, overlap[OVERLAP_INACTIVE_L1], "checked anyway") \
	X("overlap-check.inactive-l2", "bool", KIND_TOGGLE, overlap[OVERLAP_INACTIVE_L2], "L2 tables of snapshots (off; all: on)") \
	X("overlap-check.bitmap-directory", "bool", KIND_TOGGLE, overlap[OVERLAP_BITMAP_DIRECTORY], "checked anyway") \
	X("lazy-refcounts", "bool", KIND_TOGGLE, lazy, "counts are written when the image is closed (as the image says)") \
	X("compress-level", LEVEL_WORDS, KIND_TEXT, level_name, "fast or ratio, for compressed clusters that are written (fast)") \
	X("state-dir", "file", KIND_TEXT, state_dir, "directory in which queued metadata outlives the process") \
	X("snapshot.id", "str", KIND_TEXT, snapshot.id, "read this internal snapshot, named by its id") \
	X("snapshot.name", "str", KIND_TEXT, snapshot.name, "read this internal snapshot, named by its name")

#define INFO(name, value, kind, field, what) { name, value, what, false },
const struct varve_option_info qcow2_open_options[] = { SETTINGS(INFO){ NULL, NULL, NULL, false } };

#define PLACE(name, value, kind, field, what) { kind, offsetof(struct settings, field) },
static const struct {
	enum kind kind;
	size_t at;
} places[] = { SETTINGS(PLACE) };

static_assert(ARRAY_LEN(places) + 1 == ARRAY_LEN(qcow2_open_options), "both are made of SETTINGS");

/* ---- parsed ---- */

static int get_toggle(struct opts *o, const char *key, enum toggle *ret, struct varve_error *err)
{
	bool on = false;
	int r = opts_get_bool(o, key, &on, err);

	if (r == 0 && opts_get(o, key))
		*ret = on ? TOGGLE_ON : TOGGLE_OFF;
	return r;
}

static int get_one(struct opts *o, unsigned i, struct settings *ret, struct varve_error *err)
{
	const char *key = qcow2_open_options[i].name;
	void *field = (uint8_t *)ret + places[i].at;
	const char *text;

	switch (places[i].kind) {
	case KIND_TOGGLE:
		return get_toggle(o, key, field, err);
	case KIND_SIZE:
		return opts_get_size(o, key, field, err);
	case KIND_NUMBER:
		return opts_get_u64(o, key, field, err);
	case KIND_TEXT:
		text = opts_get(o, key);
		if (text)
			memcpy(field, &text, sizeof(text));
		return 0;
	case KIND_ELSEWHERE:
		break;
	}
	return 0;
}

/*
 * What is asked for less than what is done always is granted. Guest data cannot get to where metadata is: every place is compared
 * when it is handed out, and every entry when it is read (meta.c).
 */
static int get_overlap(struct settings *set, struct varve_error *err)
{
	const char *name = set->overlap_template ? set->overlap_template : set->overlap_name;
	int i = name ? words_find(OVERLAP_WORDS, name) : 0;

	if (set->overlap_template && set->overlap_name && strcmp(set->overlap_template, set->overlap_name) != 0)
		return varve_error_set(err, -EINVAL, "options 'overlap-check' and 'overlap-check.template': '%.100s' and '%.100s' are not the same",
				       set->overlap_name, set->overlap_template);
	if (i < 0)
		return varve_error_set(err, -EINVAL, "option '%s': '%.200s' is none of none, constant, cached, all",
				       set->overlap_template ? "overlap-check.template" : "overlap-check", name);
	set->guards_inactive = name && i == 3;
	if (set->overlap[OVERLAP_INACTIVE_L2])
		set->guards_inactive = set->overlap[OVERLAP_INACTIVE_L2] == TOGGLE_ON;
	return 0;
}

static int get_level(struct settings *set, struct varve_error *err)
{
	const char *value = set->level_name;
	int i = value ? words_find(LEVEL_WORDS, value) : 0;

	set->level = i == 1 ? CODEC_RATIO : CODEC_FAST;
	if (i < 0)
		return varve_error_set(err, -EINVAL, "option 'compress-level': '%.200s' is not fast or ratio", value);
	return 0;
}

/* What can be judged without knowing the image. */
static int check_numbers(const struct settings *set, struct varve_error *err)
{
	uint64_t all = set->cache_len, l2 = set->l2_cache_len, counts = set->refcount_cache_len;

	if (all != NOT_GIVEN && l2 != NOT_GIVEN && counts != NOT_GIVEN)
		return varve_error_set(err, -EINVAL, "options 'cache-size', 'l2-cache-size' and 'refcount-cache-size': two of them say "
						     "what the third is; leave one out");
	if (all != NOT_GIVEN && ((l2 != NOT_GIVEN && l2 > all) || (counts != NOT_GIVEN && counts > all)))
		return varve_error_set(err, -EINVAL, "option '%s': %llu is more than cache-size=%llu, of which it is a part",
				       l2 != NOT_GIVEN ? "l2-cache-size" : "refcount-cache-size",
				       (unsigned long long)(l2 != NOT_GIVEN ? l2 : counts), (unsigned long long)all);
	if (set->clean_s > UINT32_MAX)
		return varve_error_set(err, -EINVAL, "option 'cache-clean-interval': %llu is not from 0 (never) to %u seconds",
				       (unsigned long long)set->clean_s, UINT32_MAX);
	return 0;
}

/* A shorter disk gives its space back whatever is asked for: there it is all that is asked for. */
static uint32_t discards_of(const struct settings *set)
{
	return 1u << FREED_CUT | (set->discard_request != TOGGLE_OFF) << FREED_REQUEST |
	       (set->discard_snapshot != TOGGLE_OFF) << FREED_SNAPSHOT | (set->discard_other == TOGGLE_ON) << FREED_OTHER;
}

int settings_get(struct opts *o, struct settings *ret, struct varve_error *err)
{
	int r = 0;

	*ret = (struct settings){ .cache_len = NOT_GIVEN,
				  .l2_cache_len = NOT_GIVEN,
				  .l2_piece_len = NOT_GIVEN,
				  .refcount_cache_len = NOT_GIVEN,
				  .clean_s = CLEAN_S_DEFAULT,
				  .write_out_ns = ORDER_AGE_DEFAULT_NS };
	for (unsigned i = 0; o && r == 0 && i < ARRAY_LEN(places); i++)
		r = get_one(o, i, ret, err);
	if (r == 0)
		r = check_numbers(ret, err);
	if (r == 0)
		r = get_level(ret, err);
	if (r == 0)
		r = get_overlap(ret, err);
	ret->discards = discards_of(ret);
	return r < 0 || !o ? r : order_get_age(o, &ret->write_out_ns, err);
}

/* ---- fitted to the image ---- */

static int fit_piece(const struct qcow2 *q, struct settings *set, struct varve_error *err)
{
	uint64_t len = set->l2_piece_len;

	if (len == NOT_GIVEN)
		set->l2_piece_len = MIN((uint64_t)PIECE_LEN, (uint64_t)q->cluster_len);
	else if (len < L2_PIECE_LEN_MIN || len > q->cluster_len || (len & (len - 1)))
		return varve_error_set(err, -EINVAL, "option 'l2-cache-entry-size': %llu is no power of two from %d to the cluster size, %u",
				       (unsigned long long)len, L2_PIECE_LEN_MIN, q->cluster_len);
	return 0;
}

/* What all L2 tables of the disk take. */
static uint64_t all_tables_len(const struct qcow2 *q)
{
	return align_up(div_up(q->h.disk_len, q->cluster_len) * q->l2_entry_len, q->cluster_len);
}

int settings_fit(const struct qcow2 *q, struct settings *set, struct varve_error *err)
{
	uint64_t all = set->cache_len, least = (uint64_t)REFCOUNT_CLUSTERS_MIN << q->cluster_bits;
	uint64_t *l2 = &set->l2_cache_len, *counts = &set->refcount_cache_len;
	int ret = fit_piece(q, set, err);

	if (ret < 0)
		return ret;
	if (all != NOT_GIVEN && *l2 != NOT_GIVEN) {
		*counts = all - *l2;
	} else if (all != NOT_GIVEN && *counts != NOT_GIVEN) {
		*l2 = all - *counts;
	} else if (all != NOT_GIVEN) {
		*counts = MIN(all, least);
		*l2 = MIN(all - *counts, all_tables_len(q));
		*counts = all - *l2;
	}
	if (*l2 == NOT_GIVEN)
		*l2 = L2_CACHE_LEN_DEFAULT;
	if (*counts == NOT_GIVEN)
		*counts = REFCOUNT_CACHE_LEN_DEFAULT;
	if (*counts >> q->cluster_bits > INT32_MAX)
		return varve_error_set(err, -EINVAL, "option 'refcount-cache-size': %llu is more than %d clusters of %u bytes",
				       (unsigned long long)*counts, INT32_MAX, q->cluster_len);
	return 0;
}
