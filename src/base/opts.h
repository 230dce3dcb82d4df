/* SPDX-License-Identifier: MIT */
/*
 * base/opts.h - options as an ordered list of dotted keys and string values
 *
 * Sources: "k=v,k2=v2" (a comma in a value is written ",,"; a key without "=" means "on") and JSON objects,
 * whose nesting becomes dots: {"file": {"filename": "x"}} is file.filename=x.
 * Getters mark a key as used; opts_done() refuses what nobody asked for, by name.
 */
#ifndef VARVE_BASE_OPTS_H
#define VARVE_BASE_OPTS_H

#include <stdbool.h>
#include <stdint.h>
#include <varve/varve.h>

struct opts;

#define OPTS_MAX 256	      /* keys in one list */
#define OPTS_TEXT_MAX 65536   /* bytes of text in one parse */

struct opts *opts_new(void);
void opts_free(struct opts *o);

/* Both add to what is there; a later value of a key replaces the earlier one. */
int opts_parse(struct opts *o, const char *text, struct varve_error *err);
int opts_parse_json(struct opts *o, const char *text, struct varve_error *err);
int opts_set(struct opts *o, const char *key, const char *value, struct varve_error *err);

/* NULL if absent. The string lives as long as the list and is not changed by later calls except opts_set(). */
const char *opts_get(struct opts *o, const char *key);

/* Absent: *ret keeps its value. Malformed: -EINVAL and a text that names key and value. */
int opts_get_bool(struct opts *o, const char *key, bool *ret, struct varve_error *err); /* on/off/true/false/yes/no */
int opts_get_size(struct opts *o, const char *key, uint64_t *ret, struct varve_error *err); /* 64k, 1.5G, ... */
int opts_get_u64(struct opts *o, const char *key, uint64_t *ret, struct varve_error *err);

/* Moves all keys "prefix.x" into a new list as "x". NULL when there is none. */
struct opts *opts_take_sub(struct opts *o, const char *prefix);

/* -EINVAL naming the first key that no getter asked for. */
int opts_done(struct opts *o, struct varve_error *err);

/*
 * A size as people write it: digits, optional fraction, optional suffix b k K M G T P E (powers of 1024).
 * *ret_end, when not NULL, is set behind what was read; otherwise rubbish behind is an error.
 */
int size_parse(const char *text, uint64_t *ret, const char **ret_end);

/* "1.5 GiB"; buf of at least 32 bytes. Returns buf. */
char *size_format(char *buf, uint64_t bytes);

#endif
