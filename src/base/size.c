/* SPDX-License-Identifier: MIT */
/*
 * base/size.c - sizes as people write and read them
 *
 * Never:   uses floating point or the locale: "1.5G" means the same number of bytes everywhere.
 */
#include "base/opts.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/math.h"

static const char size_units[] = "KMGTPE";

/* Digits of a fraction that can matter: 10^19 is finer than one byte of an exabyte, and fits in 64 bits. */
#define SIZE_FRACTION_DIGITS 19

static int digit_of(char c, unsigned base)
{
	int d = 99;

	if (c >= '0' && c <= '9')
		d = c - '0';
	else if (c >= 'a' && c <= 'f')
		d = c - 'a' + 10;
	else if (c >= 'A' && c <= 'F')
		d = c - 'A' + 10;

	return d < (int)base ? d : -1;
}

/* Digits of base at *p into *ret. -EINVAL: not one digit. */
static int parse_digits(const char **p, unsigned base, uint64_t *ret)
{
	const char *s = *p;
	uint64_t x = 0;

	for (; digit_of(*s, base) >= 0; s++) {
		if (u64_mul(x, base, &x) || u64_add(x, (uint64_t)digit_of(*s, base), &x))
			return -ERANGE;
	}
	if (s == *p)
		return -EINVAL;
	*p = s;
	*ret = x;
	return 0;
}

/* The digits behind the point as num / den. */
static int parse_fraction(const char **p, uint64_t *ret_num, uint64_t *ret_den)
{
	const char *s = *p;
	uint64_t num = 0, den = 1;

	for (unsigned n = 0; *s >= '0' && *s <= '9'; s++) {
		if (n++ >= SIZE_FRACTION_DIGITS)
			continue;
		num = num * 10 + (uint64_t)(*s - '0');
		den *= 10;
	}
	if (s == *p)
		return -EINVAL;
	*p = s;
	*ret_num = num;
	*ret_den = den;
	return 0;
}

/* The suffix at *p, if any: *ret_shift is log2 of its unit. */
static void parse_suffix(const char **p, unsigned *ret_shift)
{
	char c = **p;

	*ret_shift = 0;
	if (c == 'b' || c == 'B') {
		++*p;
		return;
	}
	for (unsigned i = 0; size_units[i]; i++) {
		if (c == size_units[i] || c == size_units[i] + ('a' - 'A')) {
			*ret_shift = 10 * (i + 1);
			++*p;
			return;
		}
	}
}

/* whole + num / den units of 2^shift bytes, rounded to the nearest byte. */
static int size_compose(uint64_t whole, uint64_t num, uint64_t den, unsigned shift, uint64_t *ret)
{
	uint64_t bytes, part;

	if (num && !shift)
		return -EINVAL; /* part of a byte */
	if (u64_mul(whole, 1ull << shift, &bytes))
		return -ERANGE;
	part = (uint64_t)((((unsigned __int128)num << shift) + den / 2) / den);
	if (u64_add(bytes, part, &bytes))
		return -ERANGE;
	*ret = bytes;
	return 0;
}

int size_parse(const char *text, uint64_t *ret, const char **ret_end)
{
	uint64_t whole, num = 0, den = 1, bytes;
	unsigned shift = 0;
	const char *p = text;
	int r;

	if (p[0] == '0' && (p[1] == 'x' || p[1] == 'X') && digit_of(p[2], 16) >= 0) {
		p += 2; /* hexadecimal has no suffix: b and e are digits there */
		r = parse_digits(&p, 16, &bytes);
	} else {
		r = parse_digits(&p, 10, &whole);
		if (!r && *p == '.') {
			p++;
			r = parse_fraction(&p, &num, &den);
		}
		if (r < 0)
			return r;
		parse_suffix(&p, &shift);
		r = size_compose(whole, num, den, shift, &bytes);
	}
	if (r < 0)
		return r;
	if (!ret_end && *p)
		return -EINVAL;
	if (ret_end)
		*ret_end = p;
	*ret = bytes;
	return 0;
}

/* bytes / 2^shift in thousandths, hundredths ... (10^decimals), rounded half to even as printf() does. */
static uint64_t scale_round(uint64_t bytes, unsigned shift, unsigned decimals)
{
	unsigned __int128 x = bytes, half, rest;
	uint64_t q;

	for (unsigned i = 0; i < decimals; i++)
		x *= 10;
	q = (uint64_t)(x >> shift);
	rest = x - ((unsigned __int128)q << shift);
	half = shift ? (unsigned __int128)1 << (shift - 1) : 1;
	return q + (shift && (rest > half || (rest == half && (q & 1))));
}

/* Three significant digits, in the unit that keeps the number below 1000. */
char *size_format(char *buf, uint64_t bytes)
{
	unsigned unit = 0, decimals, n;
	uint64_t x, scale = 1;

	while (unit < sizeof(size_units) - 1 && scale_round(bytes, 10 * unit, 0) >= 1000)
		unit++;
	x = scale_round(bytes, 10 * unit, 3); /* thousandths: says how many digits stand before the point */
	decimals = x < 1000 ? 3 : x < 10000 ? 2 : x < 100000 ? 1 : 0;
	x = scale_round(bytes, 10 * unit, decimals);
	for (; decimals && x % 10 == 0; decimals--)
		x /= 10;
	for (unsigned i = 0; i < decimals; i++)
		scale *= 10;
	n = (unsigned)sprintf(buf, "%llu", (unsigned long long)(x / scale));
	if (decimals)
		n += (unsigned)sprintf(buf + n, ".%0*llu", (int)decimals, (unsigned long long)(x % scale));
	if (unit)
		sprintf(buf + n, " %ciB", size_units[unit - 1]);
	else
		sprintf(buf + n, " B");
	return buf;
}
