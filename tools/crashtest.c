/* SPDX-License-Identifier: MIT */
/*
 * tools/crashtest.c - varve crashtest: options and the report
 *
 * An image is made, a seeded workload runs on it while every change of its file is logged, and then the
 * states that a power cut could have left are tried one after the other: each must open, pass check, hold
 * what was promised, and take new writes.
 */
#include "complete.h"
#include "crashtest.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LEAKS_WORDS "allow|fail"

enum { OPT_STATE = 256, OPT_LEAKS, OPT_DIR, OPT_OUTPUT, OPT_IMAGE };

static const struct option_row options[] = {
	{ 'f', "format", ARG_NEW_FORMAT, "of the image (qcow2)" },
	{ 'o', "options", ARG_CREATE, "of the image, as for varve img create -o" },
	{ 's', "size", "SIZE", "of the virtual disk (2M)" },
	{ OPT_IMAGE, "image", ARG_FILE, "start from a copy of FILE" },
	{ 't', "cache", ARG_CACHE, "writeback, writethrough, none, directsync (writeback)" },
	{ 'n', "states", "N", "states to try (1000)" },
	{ OPT_STATE, "state", "NUMBER", "try only this one" },
	{ OPT_LEAKS, "leaks", LEAKS_WORDS, "leaked space after a cut (allow)" },
	{ OPT_DIR, "dir", ARG_DIR, "keep all files there (default: a new one in TMPDIR, or /dev/shm)" },
	{ OPT_OUTPUT, "output", OUTPUT_WORDS, "how the result is told" },
	{ 'p', "progress", NULL, "show how far it is" },
	{ 'q', "quiet", NULL, "nothing unless it fails" },
	OPTION_END,
};

const struct command cmd_crashtest = {
	.name = "",
	.what = "runs a workload on an image, then tries the states that a power cut could leave",
	.args = "[WORKLOAD]",
	.options = options,
	.notes = "WORKLOAD: ops=200,depth=4,flush=8,zero=5,discard=5,fua=0,compress=0,seq=30,unaligned=20,maxlen=64k,seed=1\n"
		 "  flush: after so many requests, 0 never; zero, discard, fua, compress, seq, unaligned: of 100 requests\n\n"
		 "Exit status: 0 all states are as promised, 1 one is not (its image is kept), or an error.\n",
};

static int parse_number(const char *what, const char *text, uint64_t min, uint64_t max, uint64_t *ret)
{
	uint64_t v = 0;

	if (parse_size(text, &v) < 0 || v < min || v > max)
		return complain_usage("%s: '%s' is not a number from %llu to %llu", what, text,
				      (unsigned long long)min, (unsigned long long)max);
	*ret = v;
	return 0;
}

/* ---- the workload's words ---- */

static int parse_word(struct ct_options *o, const char *word)
{
	const struct {
		const char *name;
		unsigned *to;
		uint64_t *to64;
		uint64_t min, max;
	} words[] = {
		{ "ops", &o->ops, NULL, 1, CT_OPS_MAX },
		{ "depth", &o->depth, NULL, 1, CT_DEPTH_MAX },
		{ "flush", &o->flush, NULL, 0, CT_OPS_MAX },
		{ "zero", &o->zero, NULL, 0, 100 },
		{ "discard", &o->discard, NULL, 0, 100 },
		{ "fua", &o->fua, NULL, 0, 100 },
		{ "compress", &o->compress, NULL, 0, 100 },
		{ "seq", &o->seq, NULL, 0, 100 },
		{ "unaligned", &o->unaligned, NULL, 0, 100 },
		{ "maxlen", NULL, &o->maxlen, CT_SECTOR, 16 << 20 },
		{ "seed", NULL, &o->seed, 0, UINT64_MAX },
	};
	const char *eq = strchr(word, '=');
	uint64_t v = 0;

	for (size_t i = 0; eq && i < ARRAY_LEN(words); i++) {
		if (strncmp(word, words[i].name, (size_t)(eq - word)) != 0 || words[i].name[eq - word])
			continue;
		if (parse_number(words[i].name, eq + 1, words[i].min, words[i].max, &v))
			return 1;
		if (words[i].to)
			*words[i].to = (unsigned)v;
		else
			*words[i].to64 = v;
		return 0;
	}
	return complain_usage(
		"workload: '%s' is none of ops=, depth=, flush=, zero=, discard=, fua=, compress=, seq=, unaligned=, "
		"maxlen=, seed=",
		word);
}

static int parse_workload(struct ct_options *o, const char *text)
{
	char *copy = strdup(text), *save = NULL;
	int ret = !copy;

	for (char *w = copy ? strtok_r(copy, ",", &save) : NULL; w && !ret; w = strtok_r(NULL, ",", &save))
		ret = parse_word(o, w);
	free(copy);
	if (!ret && o->zero + o->discard > 100)
		ret = complain_usage("workload: zero and discard are more than 100 together");
	return ret;
}

static int parse_option(struct ct_options *o, int c, const char *value)
{
	uint64_t v = 0;

	switch (c) {
	case 'f':
		o->format = value;
		return 0;
	case 'o':
		o->create = value;
		return 0;
	case 's':
		return parse_number("--size", value, CT_SECTOR, CT_IMAGE_MAX, &o->len);
	case OPT_IMAGE:
		o->image = value;
		return 0;
	case 't':
		o->cache = value;
		return 0;
	case 'n':
		return parse_number("--states", value, 1, UINT32_MAX, &o->states);
	case OPT_STATE:
		if (parse_number("--state", value, 0, UINT32_MAX, &v))
			return 1;
		o->only = (int64_t)v;
		return 0;
	case OPT_LEAKS:
		o->leaks_fail = option_word(LEAKS_WORDS, value) == 1;
		if (option_word(LEAKS_WORDS, value) < 0)
			return complain_usage("--leaks: '%s' is neither allow nor fail", value);
		return 0;
	case OPT_DIR:
		o->dir = value;
		return 0;
	case OPT_OUTPUT:
		return parse_output(value, &o->output);
	case 'p':
		o->progress = true;
		return 0;
	default:
		o->quiet = true;
		return 0;
	}
}

/* ---- trying ---- */

struct crashtest {
	struct ct_options o;
	char dir[3000];
	bool own_dir;
	struct ct_work work;
	struct ct_log log;
	struct ct_lab *lab;
	struct ct_result result;
	struct ct_state state; /* of the failure */
	double seconds;
};

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* Flush by flush, so that the durable part only grows; the numbers are those of going round. 0, 1, -1 as
 * ct_lab_try(). */
static int try_all(struct crashtest *c)
{
	uint64_t nf = c->log.nr_flushes;
	int ret = 0;

	if (c->o.only >= 0) {
		ct_state_choose(&c->log, c->o.seed, (uint64_t)c->o.only, &c->state);
		return ct_lab_try(c->lab, &c->state, &c->result);
	}
	for (uint64_t f = 0; f < nf && ret == 0; f++) {
		for (uint64_t nr = f; nr < c->o.states && ret == 0; nr += nf) {
			ct_state_choose(&c->log, c->o.seed, nr, &c->state);
			ret = ct_lab_try(c->lab, &c->state, &c->result);
			progress_update(NULL, c->result.states, c->o.states);
		}
	}
	return ret;
}

static int run_once(struct crashtest *c)
{
	char name[4096];
	double begin;
	int ret;

	snprintf(name, sizeof(name), "%s/log", c->dir);
	if (ct_work_run(&c->work, &c->o, c->dir) || ct_log_read(&c->log, name))
		return -1;
	c->state.keep = calloc(c->log.nr + 1, 1);
	if (!c->state.keep || ct_lab_new(&c->lab, &c->work, &c->log, c->dir))
		return -1;
	begin = now();
	ret = try_all(c);
	c->seconds = now() - begin;
	return ret;
}

/* ---- the report ---- */

static void print_command(const struct crashtest *c)
{
	const struct ct_options *o = &c->o;

	if (o->depth > 1)
		printf("timing:   it took more than one request at a time; the same command may find another "
		       "state\n");
	printf("again:    varve crashtest -f %s", o->format);
	if (o->create)
		printf(" -o %s", o->create);
	if (o->image)
		printf(" --image %s", o->image);
	if (o->cache)
		printf(" -t %s", o->cache);
	if (o->leaks_fail)
		printf(" --leaks fail");
	printf(" -s %llu -n %llu "
	       "ops=%u,depth=%u,flush=%u,zero=%u,discard=%u,fua=%u,compress=%u,seq=%u,unaligned=%u,maxlen=%llu,seed=%"
	       "llu\n",
	       (unsigned long long)o->len, (unsigned long long)MAX(o->states, c->state.nr + 1), o->ops,
	       o->depth, o->flush, o->zero, o->discard, o->fua, o->compress, o->seq, o->unaligned,
	       (unsigned long long)o->maxlen, (unsigned long long)o->seed);
}

static void print_state(const struct crashtest *c)
{
	const struct ct_state *s = &c->state;
	unsigned shown = 0;

	printf("state:    number %llu: power is cut at entry %u of the log, the last flush is entry %u\n",
	       (unsigned long long)s->nr, s->cut, s->first ? s->first : 0);
	for (unsigned i = s->first; i < s->cut; i++) {
		const struct ct_entry *e = &c->log.entries[i];

		if (!ct_changes(e) || !s->keep[i - s->first])
			continue;
		if (++shown > 40) {
			printf("          ...\n");
			break;
		}
		printf("  kept    entry %u: %s 0x%llx+%llu%s%s\n", i,
		       e->resize ? "length"
		       : e->data ? "write"
				 : "discard",
		       (unsigned long long)e->off, (unsigned long long)e->len,
		       e->flags & CT_FUA ? " FUA" : "", s->keep[i - s->first] == 2 ? " torn" : "");
	}
}

static void print_json(const struct crashtest *c, int ret)
{
	json_t *o = json_object();

	json_object_set_new(o, "states", json_integer((json_int_t)c->result.states));
	json_object_set_new(o, "failed", json_boolean(ret != 0));
	json_object_set_new(o, "entries", json_integer(c->log.nr));
	json_object_set_new(o, "flushes", json_integer(c->log.nr_flushes ? c->log.nr_flushes - 1 : 0));
	json_object_set_new(o, "leaky-checks", json_integer((json_int_t)c->result.leaky));
	json_object_set_new(o, "most-leaks", json_integer((json_int_t)c->result.max_leaks));
	json_object_set_new(o, "seconds", json_real(c->seconds));
	if (ret) {
		json_object_set_new(o, "state", json_integer((json_int_t)c->state.nr));
		json_object_set_new(o, "cut", json_integer(c->state.cut));
		json_object_set_new(o, "why", json_string(c->result.why));
	}
	json_dumpf(o, stdout, JSON_INDENT(4));
	putchar('\n');
	json_decref(o);
}

static void report(struct crashtest *c, int ret)
{
	if (c->o.output == OUTPUT_JSON) {
		print_json(c, ret);
		return;
	}
	if (!c->o.quiet || ret)
		printf("%llu states tried in %.1f s (%.0f a second): %u log entries, %u flushes; %llu checks "
		       "found leaks, at "
		       "most %llu\n",
		       (unsigned long long)c->result.states, c->seconds,
		       c->seconds > 0 ? (double)c->result.states / c->seconds : 0.0, c->log.nr,
		       c->log.nr_flushes - 1, (unsigned long long)c->result.leaky,
		       (unsigned long long)c->result.max_leaks);
	if (!ret)
		return;
	printf("FAILED:   %s\n", c->result.why);
	print_state(c);
	print_command(c);
	printf("files:    %s (base, log, failed: the image as the cut left it)\n", c->dir);
}

/* ---- the directory ---- */

/* A new one, where TMPDIR says, else in memory: a run writes images all the time. */
static int dir_new(struct crashtest *c)
{
	const char *tmp = getenv("TMPDIR");

	if (!tmp || !*tmp)
		tmp = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
	if (strchr(tmp, ',') || snprintf(c->dir, sizeof(c->dir), "%s/varve-crashtest-XXXXXX", tmp) >= (int)sizeof(c->dir)) {
		complain("TMPDIR: %s cannot hold the files of a run: the name has a comma, or is too long", tmp);
		return 1;
	}
	if (!mkdtemp(c->dir)) {
		complain("%s: %s", c->dir, strerror(errno));
		return 1;
	}
	c->own_dir = true;
	return 0;
}

static int dir_make(struct crashtest *c)
{
	if (c->o.create && strstr(c->o.create, "data_file="))
		return complain_usage("-o data_file: one file is logged and cut, and that image would have two");
	if (!c->o.dir)
		return dir_new(c);
	if (strpbrk(c->o.dir, ","))
		return complain_usage("--dir: a name with a comma is not possible here");
	if (strlen(c->o.dir) >= sizeof(c->dir))
		return complain_usage("--dir: a name of %zu bytes is too long", strlen(c->o.dir));
	strcpy(c->dir, c->o.dir);
	return 0;
}

static void dir_remove(struct crashtest *c)
{
	static const char *const names[] = { "base", "run", "log", "state" };
	char path[4096];

	for (size_t i = 0; c->own_dir && i < ARRAY_LEN(names); i++) {
		snprintf(path, sizeof(path), "%s/%s", c->dir, names[i]);
		unlink(path);
	}
	if (c->own_dir)
		rmdir(c->dir);
}

/* c and all it holds; on success its files, too. */
static void end(struct crashtest *c, bool keep_files)
{
	ct_lab_free(c->lab);
	ct_log_free(&c->log);
	ct_work_free(&c->work);
	free(c->state.keep);
	if (!keep_files)
		dir_remove(c);
	free(c);
}

/* *c: a run that failed. One whose workload is smaller, in a directory of its own; fails it too, it takes the
 * place. */
static bool smaller_fails(struct crashtest **c, unsigned ops, unsigned depth)
{
	struct crashtest *next = calloc(1, sizeof(*next));
	bool failed;

	if (!next)
		return false;
	next->o = (*c)->o;
	next->o.ops = ops;
	next->o.depth = depth;
	failed = !dir_make(next) && run_once(next) == 1;
	if (failed) {
		struct crashtest *larger = *c;

		*c = next;
		next = larger;
	}
	end(next, false);
	return failed;
}

/* One request at a time: then timing plays no part. Then fewer requests, as long as a state fails. */
static void shrink_workload(struct crashtest **c)
{
	double stop = now() + 30;

	if ((*c)->o.only >= 0 || (*c)->o.dir) /* this one is wanted */
		return;
	if ((*c)->o.depth > 1)
		(void)smaller_fails(c, (*c)->o.ops, 1);
	for (unsigned part = (*c)->o.ops / 2; part && now() < stop; part /= 2) {
		while ((*c)->o.ops > part && now() < stop &&
		       smaller_fails(c, (*c)->o.ops - part, (*c)->o.depth))
			;
	}
}

static int crashtest(const struct ct_options *o)
{
	struct crashtest *c = calloc(1, sizeof(*c));
	char name[4096];
	int ret;

	if (!c)
		return complain("out of memory"), 1;
	c->o = *o;
	if (dir_make(c)) {
		free(c);
		return 1;
	}
	progress_start(o->progress);
	ret = run_once(c);
	progress_end();
	if (ret == 1) {
		shrink_workload(&c);
		ct_shrink_state(c->lab, &c->log, &c->state, &c->result);
		snprintf(name, sizeof(name), "%s/failed", c->dir);
		(void)ct_lab_keep(c->lab, &c->state, name); /* it has said why not */
	}
	if (ret >= 0)
		report(c, ret);
	end(c, ret == 1);
	return finish_stdout() || ret != 0;
}

int crashtest_main(int argc, char **argv)
{
	struct ct_options o = { .format = "qcow2",
				.len = 2 << 20,
				.ops = 200,
				.depth = 4,
				.flush = 8,
				.zero = 5,
				.discard = 5,
				.seq = 30,
				.unaligned = 20,
				.maxlen = 65536,
				.seed = 1,
				.states = 1000,
				.only = -1 };
	struct parse p;
	int id;

	parse_start(&p, &cmd_crashtest, argc, argv);
	while ((id = parse_next(&p)) > 0) {
		if (parse_option(&o, id, p.value))
			return 1;
	}
	if (id < 0)
		return p.status;
	if (p.nr_args > 1)
		return complain_usage("one workload at most; '%s' is too much", p.args[1]);
	if (p.nr_args && parse_workload(&o, p.args[0]))
		return 1;
	return crashtest(&o);
}
