/* SPDX-License-Identifier: MIT */
/*
 * tools/common.c - messages, numbers, opening images
 */
#include "common.h"
#include "options.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const char *prog = "varve";

/* ---- messages ---- */

/* Names may come from an image, that is, from a stranger: no line breaks, nothing that a terminal obeys. */
static void print_harmless(FILE *to, const char *text)
{
	for (; *text; text++) {
		unsigned char c = (unsigned char)*text;

		if (c < 0x20 || c == 0x7f)
			fprintf(to, "\\x%02x", c);
		else
			fputc(c, to);
	}
}

void print_text(const char *text)
{
	print_harmless(stdout, text);
}

static bool errors_json;

int parse_errors(const char *form)
{
	if (option_word(FORM_WORDS, form) < 0)
		return complain_usage("--errors: '%s' is neither text nor json", form);
	errors_json = *form == 'j';
	return 0;
}

void expect_errors(int argc, char **argv)
{
	for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++)
		errors_json |= strcmp(argv[i], "--errors=json") == 0;
}

/* Changes text: a name that is no UTF-8 cannot stand in JSON. */
static void print_error_json(char *text)
{
	json_t *what = json_string(text), *o;

	if (!what) {
		for (char *c = text; *c; c++)
			*c = (unsigned char)*c < 0x80 ? *c : '?';
		what = json_string(text);
	}
	o = json_pack("{s:s, s:o}", "program", prog, "error", what ? what : json_string("?"));
	json_dumpf(o, stderr, JSON_COMPACT);
	fputc('\n', stderr);
	json_decref(o);
}

static void complain_v(const char *fmt, va_list ap)
{
	char text[2 * VARVE_ERROR_MAX];

	vsnprintf(text, sizeof(text), fmt, ap);
	/* What belongs before the message on a shared terminal or file comes before it. */
	fflush(stdout);
	if (errors_json) {
		print_error_json(text);
		return;
	}
	flockfile(stderr); /* lines of several threads */
	fprintf(stderr, "%s: ", prog);
	print_harmless(stderr, text);
	fputc('\n', stderr);
	funlockfile(stderr);
}

void complain(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	complain_v(fmt, ap);
	va_end(ap);
}

static const char *help_command = "";

void complain_help_is(const char *command)
{
	help_command = command;
}

bool log_tells_contents(enum varve_log_level level, const char *line)
{
	static const struct {
		enum varve_log_level level;
		const char *words;
	} telling[] = {
		{ VARVE_LOG_ERROR, ": the data file " },
		{ VARVE_LOG_WARNING, ": its server ended without closing it, " },
		/* Dirty bitmaps that are lost, for want of space or memory: the next backup must be a full one. */
		{ VARVE_LOG_WARNING, " could not be stored in its bitmaps, " },
		{ VARVE_LOG_WARNING, " becomes inconsistent, because writes are not noted there" },
		{ VARVE_LOG_WARNING, ": bitmaps are given up" },
	};

	for (size_t i = 0; i < ARRAY_LEN(telling); i++) {
		if (level == telling[i].level && strstr(line, telling[i].words))
			return true;
	}
	return false;
}

void complain_contents(const char *line)
{
	static char told[VARVE_ERROR_MAX];

	if (strncmp(told, line, sizeof(told) - 1) == 0)
		return;
	snprintf(told, sizeof(told), "%s", line);
	complain("warning: %s", line);
}

int complain_usage(const char *fmt, ...)
{
	char text[2 * VARVE_ERROR_MAX];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	complain("%s (help: %s%s%s --help)", text, prog, *help_command ? " " : "", help_command);
	return 1;
}

int complain_missing(const char *what)
{
	complain("%s is not part of this version (varve %s)", what, varve_version());
	return 1;
}

void print_version(const char *tool)
{
	if (strncmp(prog, "qemu-", 5) == 0)
		printf("%s version %s (varve %s)\n", prog, PEER_VERSION, varve_version());
	else
		printf("%s version %s\n", tool, varve_version());
}

int finish_stdout(void)
{
	if (fflush(stdout) == 0 && !ferror(stdout))
		return 0;
	complain("standard output: %s", strerror(errno));
	return 1;
}

void end_stdout(void)
{
	if (fflush(stdout) != 0 || ferror(stdout))
		complain("warning: standard output: %s; what was asked for is done", strerror(errno));
}

/* ---- numbers ---- */

static int suffix_shift(int c)
{
	static const char suffixes[] = "bkmgtpe";
	const char *at = c ? strchr(suffixes, tolower(c)) : NULL;

	return at ? (int)(at - suffixes) * 10 : -1;
}

/* Digits behind the point, as a fraction of 1 << shift. The point was read. */
static int parse_fraction(const char **text, double *ret)
{
	double scale = 0.1, sum = 0;
	const char *s = *text;

	if (!isdigit((unsigned char)*s))
		return -EINVAL;
	for (; isdigit((unsigned char)*s); s++, scale /= 10)
		sum += (*s - '0') * scale;
	*text = s;
	*ret = sum;
	return 0;
}

/* What strtoull() takes before the digits, but no minus. */
static const char *skip_plus(const char *text)
{
	while (isspace((unsigned char)*text))
		text++;
	return text + (*text == '+');
}

int parse_size(const char *given, uint64_t *ret)
{
	const char *text = skip_plus(given);
	bool hex = text[0] == '0' && (text[1] == 'x' || text[1] == 'X');
	double fraction = 0;
	uint64_t whole, part;
	char *end;
	const char *s;
	int shift;

	if (!isdigit((unsigned char)*text))
		return -EINVAL;
	errno = 0;
	whole = strtoull(text, &end, hex ? 16 : 10);
	if (errno)
		return -ERANGE;
	s = end;
	if (*s == '.' && !hex) {
		s++;
		if (parse_fraction(&s, &fraction) < 0)
			return -EINVAL;
	}
	shift = *s && !hex ? suffix_shift(*s) : 0;
	if (shift < 0 || (*s && s[1]) || (hex && *s))
		return -EINVAL;
	if (fraction > 0 && shift == 0)
		return -EINVAL; /* no half bytes */
	part = (uint64_t)(fraction * (double)(1ull << shift));
	if (whole > (UINT64_MAX >> shift) || __builtin_add_overflow(whole << shift, part, &whole))
		return -ERANGE;
	*ret = whole;
	return 0;
}

int parse_unsigned(const char *given, unsigned max, unsigned *ret)
{
	const char *text = skip_plus(given);
	unsigned long v;
	char *end;

	if (!isdigit((unsigned char)*text))
		return -EINVAL;
	errno = 0;
	v = strtoul(text, &end, text[0] == '0' && (text[1] | 32) == 'x' ? 16 : 10);
	if (*end)
		return -EINVAL;
	if (errno || v > max)
		return -ERANGE;
	*ret = (unsigned)v;
	return 0;
}

static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };

const char *size_text(char buf[32], uint64_t bytes)
{
	double v = (double)bytes;
	unsigned u = 0;

	/* Three digits must do: 1000 of a unit is written as a fraction of the next. */
	while (v >= 999.5 && u + 1 < ARRAY_LEN(units)) {
		v /= 1024;
		u++;
	}
	snprintf(buf, 32, "%.3g %s", v, units[u]);
	return buf;
}

const char *size_text_exact(char buf[32], double bytes)
{
	double v = bytes;
	unsigned u = 0;

	while (v >= 1024 && u + 1 < ARRAY_LEN(units)) {
		v /= 1024;
		u++;
	}
	if (v == floor(v))
		snprintf(buf, 32, "%.0f %s", v, u ? units[u] : "bytes");
	else
		snprintf(buf, 32, u ? "%.3f %s" : "%f %s", v, u ? units[u] : "bytes");
	return buf;
}

int parse_output(const char *text, enum output *ret)
{
	int i = option_word(OUTPUT_WORDS, text);

	if (i < 0)
		return complain_usage("--output: '%s' is neither human nor json", text);
	*ret = i ? OUTPUT_JSON : OUTPUT_HUMAN;
	return 0;
}

/* ---- images ---- */

/* A value among image options: its commas twice. */
static void put_value(FILE *out, const char *text)
{
	for (; *text; text++) {
		if (*text == ',')
			putc(',', out);
		putc(*text, out);
	}
}

char *open_spec(const char *name, const struct open_args *args)
{
	char *spec = NULL;
	size_t len;
	FILE *out;

	if (!args->image_opts && strncmp(name, "json:", 5) == 0) {
		complain("%s: options beside a json: name; write them into it", name);
		return NULL;
	}
	out = open_memstream(&spec, &len);
	if (!out) {
		complain("out of memory");
		return NULL;
	}
	if (args->image_opts) {
		fputs(name, out);
	} else {
		if (args->format)
			fprintf(out, "driver=%s,", args->format);
		fputs("file.filename=", out);
		put_value(out, name);
	}
	if (args->options)
		fprintf(out, ",%s", args->options);
	if (fclose(out) == 0)
		return spec;
	free(spec);
	complain("out of memory");
	return NULL;
}

const char *state_directory(const char *text)
{
	static char path[4096];
	const char *run = getenv("XDG_RUNTIME_DIR");

	if (strcmp(text, "auto") != 0)
		return text;
	if (geteuid() == 0)
		return "/run/varve";
	if (!run || !*run || strlen(run) > sizeof(path) - 16) {
		complain("--state-dir=auto: XDG_RUNTIME_DIR is not set; name a directory on a tmpfs");
		return NULL;
	}
	snprintf(path, sizeof(path), "%s/varve", run);
	return path;
}

void explain_zeroinit(const char *name, struct varve_error *err)
{
	if (strncmp(name, ZEROINIT, strlen(ZEROINIT)) == 0)
		snprintf(err->message, sizeof(err->message),
			 "%.500s: " ZEROINIT " says that the target of convert -n or dd -n reads as zeroes; no other file has it", name);
}

struct varve_image *try_open_image(const char *name, const struct open_args *args, unsigned flags,
				   struct varve_queue *home, struct varve_error *err)
{
	struct varve_open_options oo = {
		.flags = flags,
		.format = args->format,
		.cache = args->cache,
		.aio = args->aio,
		.state_dir = args->state_dir,
		.home = home,
	};
	struct varve_image *image = NULL;
	char *spec = NULL;

	if (args->options) {
		spec = open_spec(name, args);
		if (!spec) {
			err->code = -EINVAL;
			*err->message = 0; /* it was said */
			return NULL;
		}
		oo.format = NULL; /* it is in there */
	}
	if (args->image_opts || spec)
		oo.flags |= VARVE_OPEN_IMAGE_OPTS;
	if (args->force_share)
		oo.flags |= VARVE_OPEN_FORCE_SHARE;
	if (args->copy_on_read)
		oo.flags |= VARVE_OPEN_COPY_ON_READ;
	if (varve_image_open(&image, spec ? spec : name, &oo, err) < 0) {
		image = NULL;
		explain_zeroinit(name, err);
	}
	free(spec);
	return image;
}

struct varve_image *open_image(const char *name, const struct open_args *args, unsigned flags,
			       struct varve_queue *home)
{
	struct varve_error err;
	struct varve_image *image = try_open_image(name, args, flags, home, &err);

	if (!image && *err.message)
		complain("%s", err.message);
	return image;
}

int close_image(struct varve_image *image)
{
	struct varve_error err;

	if (varve_image_close(image, &err) < 0) {
		complain("%s", err.message);
		return 1;
	}
	return 0;
}

int close_image_after(struct varve_image *image, int failed)
{
	if (!failed)
		return close_image(image);
	(void)varve_image_close(image, NULL);
	return failed;
}

json_t *image_info(struct varve_image *image)
{
	struct varve_error err;
	json_t *info;
	char *text;

	if (varve_image_info(image, &text, &err) < 0) {
		complain("%s", err.message);
		return NULL;
	}
	info = json_loads(text, 0, NULL);
	free(text);
	if (!info)
		complain("the library's description of the image is not JSON: this is an error in varve");
	return info;
}

const char *info_str(const json_t *info, const char *key)
{
	return json_string_value(json_object_get(info, key));
}

int64_t info_int(const json_t *info, const char *key, int64_t fallback)
{
	const json_t *v = json_object_get(info, key);

	return json_is_integer(v) ? json_integer_value(v) : fallback;
}

static void print_value(const char *key, json_t *value, int indent);

void print_members(const json_t *object, int indent)
{
	const char *key;
	json_t *value;

	json_object_foreach((json_t *)(uintptr_t)object, key, value)
		print_value(key, value, indent);
}

/* One line, or a heading and its parts four columns further in. JSON's dashes are for machines. */
static void print_value(const char *key, json_t *value, int indent)
{
	size_t i;
	json_t *item;

	printf("%*s", indent, "");
	for (; *key; key++)
		putchar(*key == '-' ? ' ' : *key);
	switch (json_typeof(value)) {
	case JSON_STRING:
		printf(": ");
		print_text(json_string_value(value));
		putchar('\n');
		break;
	case JSON_INTEGER:
		printf(": %lld\n", (long long)json_integer_value(value));
		break;
	case JSON_TRUE:
	case JSON_FALSE:
		printf(": %s\n", json_is_true(value) ? "true" : "false");
		break;
	case JSON_REAL:
		printf(": %f\n", json_real_value(value));
		break;
	case JSON_NULL:
		printf(": none\n");
		break;
	case JSON_OBJECT:
		printf(":\n");
		print_members(value, indent + 4);
		break;
	case JSON_ARRAY:
		printf(":\n");
		json_array_foreach(value, i, item) {
			char number[24];

			snprintf(number, sizeof(number), "[%zu]", i);
			print_value(number, item, indent + 4);
		}
		break;
	}
}

void print_format_specific(const json_t *info, int indent)
{
	const json_t *data = json_object_get(json_object_get(info, "format-specific"), "data");

	if (!json_object_size(data))
		return;
	printf("%*sFormat specific information:\n", indent, "");
	print_members(data, indent + 4);
}
