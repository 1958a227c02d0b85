/* SPDX-License-Identifier: MIT */
/* Rows of a benchmark's result: collected, then printed as one table and as JSON. */
#ifndef TESTS_BENCH_REPORT_H
#define TESTS_BENCH_REPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

enum bar_kind { BAR_NONE, BAR_AT_MOST, BAR_AT_LEAST };

struct row {
	const char *section;
	char name[64];
	const char *unit;  /* of base and ours */
	double base, ours; /* medians */
	double value;	   /* the median of the rounds' ratios; or a difference */
	double low, high;  /* the least and the greatest ratio of a round */
	bool difference;   /* value = ours - base, exact: no spread */
	enum bar_kind kind;
	double bar;
	char not_measured[96]; /* the reason, or empty */
};

/* A new row at the end, zeroed but for section and name. */
struct row *report_row(const char *section, const char *name, ...)
	__attribute__((format(printf, 2, 3)));

/* Fill base, ours and the ratio ours / base from the samples of @rounds interleaved rounds. */
void report_ratio(struct row *row, const double *base, const double *ours, size_t rounds);

/* The instruction counts that `run` took: one "FUNCTION COUNT" per line. 0, or -1. */
int report_instructions(const char *path);

void report_table(FILE *out, size_t rounds);
void report_json(FILE *out, size_t rounds);

#endif
