/* SPDX-License-Identifier: MIT */
/*
 * filter/blkdebug_rules.c - see blkdebug.h
 *
 * A rule file has sections, and rules are the sections:
 *
 *     [inject-error]
 *     event = "l2_update"
 *     errno = "28"
 *     once = "on"
 *
 *     [set-state]
 *     event = "l2_load"
 *     state = "1"
 *     new_state = "2"
 *
 * Never:   takes a rule that could not match: an event that does not occur here, an errno that is none.
 */
#include "filter/blkdebug.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/opts.h"
#include "base/words.h"

/* ---- one rule ---- */

static int parse_event(struct opts *o, enum event *ret, struct varve_error *err)
{
	const char *text = opts_get(o, "event");

	if (!text)
		return varve_error_set(err, -EINVAL, "option 'event' is missing");
	*ret = event_by_name(text);
	if (*ret == EVENT_UNNAMED)
		return varve_error_set(err, -EINVAL, "option 'event': there is no event '%.100s'", text);
	if (!event_occurs(*ret))
		return varve_error_set(
			err, -EINVAL,
			"option 'event': %.100s never occurs in this engine, the rule could not "
			"match",
			text);
	return 0;
}

static int parse_state(struct opts *o, const char *key, unsigned *ret, struct varve_error *err)
{
	uint64_t number = *ret;
	int r = opts_get_u64(o, key, &number, err);

	if (r == 0 && number > INT32_MAX)
		return varve_error_set(err, -EINVAL, "option '%s': %llu is too large for a state", key,
				       (unsigned long long)number);
	*ret = (unsigned)number;
	return r;
}

static int parse_errno(struct opts *o, int *ret, struct varve_error *err)
{
	uint64_t number = EIO;
	int r = opts_get_u64(o, "errno", &number, err);

	if (r == 0 && (number < 1 || number > 4095))
		return varve_error_set(err, -EINVAL,
				       "option 'errno': %llu is not from 1 to 4095 (5 is EIO, 28 ENOSPC)",
				       (unsigned long long)number);
	*ret = -(int)number;
	return r;
}

static int parse_sector(struct opts *o, int64_t *ret, struct varve_error *err)
{
	const char *text = opts_get(o, "sector");
	uint64_t number = 0;
	int r;

	*ret = -1;
	if (!text || !strcmp(text, "-1"))
		return 0;
	r = opts_get_u64(o, "sector", &number, err);
	if (r == 0 && number > VARVE_LEN_MAX / 512)
		return varve_error_set(err, -EINVAL, "option 'sector': %.40s lies behind the end of any file",
				       text);
	*ret = (int64_t)number;
	return r;
}

static int parse_iotype(struct opts *o, unsigned *ret, struct varve_error *err)
{
	const char *text = opts_get(o, "iotype");
	int i = text ? words_find(BLKDEBUG_IOTYPE_WORDS, text) : 0;

	*ret = text ? 1u << MAX(i, 0) : (1u << REQ_OPS) - 1;
	if (i >= 0)
		return 0;
	if (!strcmp(text, "block-status"))
		return varve_error_set(err, -ENOTSUP,
				       "option 'iotype': block-status is asked of the file itself here, it "
				       "cannot be made to fail");
	return varve_error_set(
		err, -EINVAL, "option 'iotype': '%.40s' is none of read, write, write-zeroes, discard, flush",
		text);
}

static int parse_inject(struct opts *o, struct blkdebug_rule *rule, struct varve_error *err)
{
	int r = parse_errno(o, &rule->error, err);

	if (r == 0)
		r = parse_sector(o, &rule->sector, err);
	if (r == 0)
		r = parse_iotype(o, &rule->ops, err);
	if (r == 0)
		r = opts_get_bool(o, "once", &rule->once, err);
	if (r == 0)
		r = opts_get_bool(o, "immediately", &rule->immediately, err);
	return r;
}

static int parse_rule(struct blkdebug_rules *rules, struct opts *o, bool sets_state, struct varve_error *err)
{
	struct blkdebug_rule rule = { .sets_state = sets_state };
	int r;

	if (rules->nr == BLKDEBUG_RULES_MAX)
		return varve_error_set(err, -EINVAL, "more than %d rules", BLKDEBUG_RULES_MAX);
	r = parse_event(o, &rule.event, err);
	if (r == 0)
		r = parse_state(o, "state", &rule.state, err);
	if (r == 0)
		r = sets_state ? parse_state(o, "new_state", &rule.new_state, err)
			       : parse_inject(o, &rule, err);
	if (r == 0 && sets_state && !rule.new_state)
		r = varve_error_set(err, -EINVAL, "option 'new_state' is missing, or 0");
	if (r == 0)
		r = opts_done(o, err);
	if (r == 0)
		rules->rule[rules->nr++] = rule;
	return r;
}

/* ---- rules among the options: inject-error.0.event=..., set-state.0.event=... ---- */

static int parse_list(struct blkdebug_rules *rules, struct opts *o, const char *key, bool sets_state,
		      struct varve_error *err)
{
	struct opts *list = opts_take_sub(o, key), *one = NULL;
	char number[12];
	int r = 0;

	if (!list)
		return 0;
	for (unsigned i = 0; r == 0; i++) {
		snprintf(number, sizeof(number), "%u", i);
		one = opts_take_sub(list, number);
		if (!one)
			break;
		r = parse_rule(rules, one, sets_state, err);
		opts_free(one);
		if (r < 0)
			varve_error_prefix(err, r, "%s.%u: ", key, i);
	}
	if (r == 0 && (r = opts_done(list, err)) < 0)
		varve_error_prefix(err, r, "%s (rules are numbered from 0, without gaps): ", key);
	opts_free(list);
	return r;
}

/* ---- rule files ---- */

struct section {
	struct opts *o; /* NULL: none has begun */
	bool sets_state;
	unsigned line; /* where it begins */
};

static int section_end(struct blkdebug_rules *rules, struct section *s, struct varve_error *err)
{
	int r = 0;

	if (s->o && (r = parse_rule(rules, s->o, s->sets_state, err)) < 0)
		varve_error_prefix(err, r, "section of line %u: ", s->line);
	opts_free(s->o);
	s->o = NULL;
	return r;
}

/* "[inject-error]", and an id in quotes that means nothing. */
static int section_begin(struct section *s, const char *line, unsigned nr, struct varve_error *err)
{
	static const char *const names[] = { "inject-error", "set-state" };
	char name[32], rest[128] = "";
	size_t len;
	unsigned i = 0;

	if (sscanf(line, "[%31[a-z-]%127[^\n]", name, rest) != 2)
		i = ARRAY_LEN(names);
	while (i < ARRAY_LEN(names) && strcmp(name, names[i]))
		i++;
	len = strlen(rest);
	if (strcmp(rest, "]") && (len < 4 || rest[0] != ' ' || strcmp(rest + len - 2, "\"]")))
		i = ARRAY_LEN(names);
	if (i == ARRAY_LEN(names))
		return varve_error_set(err, -EINVAL, "line %u: '%.60s' is neither [inject-error] nor [set-state]", nr,
				       line);
	s->sets_state = i == 1;
	s->line = nr;
	s->o = opts_new();
	return s->o ? 0 : varve_error_errno(err, -ENOMEM, "options");
}

/* key = "value" */
static int section_value(struct section *s, const char *line, unsigned nr, struct varve_error *err)
{
	char key[32], value[128], end = 0;
	int r;

	if (!s->o)
		return varve_error_set(err, -EINVAL, "line %u: a value before the first section", nr);
	if (sscanf(line, "%31[a-z_] = \"%127[^\"]%c", key, value, &end) != 3 || end != '"' ||
	    strrchr(line, '"')[1])
		return varve_error_set(err, -EINVAL, "line %u: '%.60s' is not of the form key = \"value\"",
				       nr, line);
	r = opts_set(s->o, key, value, err);
	return r < 0 ? varve_error_prefix(err, r, "line %u: ", nr) : 0;
}

static int parse_line(struct blkdebug_rules *rules, struct section *s, char *line, unsigned nr,
		      struct varve_error *err)
{
	int r;

	line += strspn(line, " \t");
	for (size_t len = strlen(line); len && strchr(" \t\r\n", line[len - 1]); len--)
		line[len - 1] = '\0';
	if (!*line || *line == '#')
		return 0;
	if (*line != '[')
		return section_value(s, line, nr, err);
	r = section_end(rules, s, err);
	return r < 0 ? r : section_begin(s, line, nr, err);
}

static int parse_file(struct blkdebug_rules *rules, const char *path, struct varve_error *err)
{
	FILE *in = fopen(path, "re");
	struct section s = { 0 };
	char *line = NULL;
	size_t size = 0, total = 0;
	int r = 0;

	if (!in)
		return varve_error_errno(err, -errno, "rule file %s", path);
	for (unsigned nr = 1; r == 0; nr++) {
		ssize_t len = getline(&line, &size, in);

		if (len < 0)
			break;
		total += (size_t)len;
		if (total > BLKDEBUG_FILE_MAX || strlen(line) != (size_t)len)
			r = varve_error_set(err, -EINVAL, "line %u: no text of at most %llu bytes", nr,
					    (unsigned long long)BLKDEBUG_FILE_MAX);
		else
			r = parse_line(rules, &s, line, nr, err);
	}
	if (r == 0 && ferror(in))
		r = varve_error_errno(err, -EIO, "cannot be read");
	if (r == 0)
		r = section_end(rules, &s, err);
	opts_free(s.o);
	free(line);
	fclose(in);
	return r < 0 ? varve_error_prefix(err, r, "rule file %s: ", path) : 0;
}

/* ---- the whole ---- */

int blkdebug_rules_open(struct blkdebug_rules *rules, struct opts *o, struct varve_error *err)
{
	const char *config = opts_get(o, "config");
	int r = 0;

	*rules = (struct blkdebug_rules){ .state = 1 };
	rules->rule = calloc(BLKDEBUG_RULES_MAX, sizeof(*rules->rule));
	if (!rules->rule)
		return varve_error_errno(err, -ENOMEM, "rules");
	if (config && *config)
		r = parse_file(rules, config, err);
	if (r == 0)
		r = parse_list(rules, o, "inject-error", false, err);
	if (r == 0)
		r = parse_list(rules, o, "set-state", true, err);
	return r;
}

void blkdebug_rules_free(struct blkdebug_rules *rules)
{
	free(rules->rule);
	rules->rule = NULL;
}

/* ---- what they do ---- */

void blkdebug_rules_event(struct blkdebug_rules *rules, enum event event)
{
	unsigned state = rules->state;
	bool injects = false;

	for (unsigned i = 0; i < rules->nr; i++) {
		const struct blkdebug_rule *rule = &rules->rule[i];

		if (rule->event != event || rule->gone || (rule->state && rule->state != state))
			continue;
		if (rule->sets_state) {
			rules->state = rule->new_state;
			continue;
		}
		if (!injects)
			rules->nr_active = 0;
		injects = true;
		rules->active[rules->nr_active++] = (unsigned short)i;
	}
}

static bool fits(const struct blkdebug_rule *rule, const struct req *r)
{
	uint64_t at;

	if (!(rule->ops & 1u << r->op))
		return false;
	if (rule->sector < 0)
		return true;
	at = (uint64_t)rule->sector * 512;
	return r->op != REQ_FLUSH && at >= r->off && at < r->off + r->len;
}

int blkdebug_rules_judge(struct blkdebug_rules *rules, const struct req *r, bool *ret_immediately)
{
	for (unsigned i = 0; i < rules->nr_active; i++) {
		struct blkdebug_rule *rule = &rules->rule[rules->active[i]];

		if (!fits(rule, r))
			continue;
		*ret_immediately = rule->immediately;
		if (rule->once) {
			rule->gone = true;
			memmove(&rules->active[i], &rules->active[i + 1],
				(rules->nr_active - i - 1) * sizeof(rules->active[0]));
			rules->nr_active--;
		}
		return rule->error;
	}
	return 0;
}
