/* SPDX-License-Identifier: MIT */
#include "report.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#define MAX_ROWS 128
#define MAX_COUNTS 128

static struct row rows[MAX_ROWS];
static size_t n_rows;

struct row *report_row(const char *section, const char *name, ...)
{
	struct row *row = &rows[n_rows];
	va_list ap;

	if (n_rows == MAX_ROWS) {
		fprintf(stderr, "%s: more than %d rows\n", program_invocation_short_name, MAX_ROWS);
		exit(1);
	}
	n_rows++;
	row->section = section;
	va_start(ap, name);
	vsnprintf(row->name, sizeof(row->name), name, ap);
	va_end(ap);
	return row;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double median(double *v, size_t n)
{
	qsort(v, n, sizeof(*v), compare);
	return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

static double median_of(const double *v, size_t n)
{
	double *copy = malloc(n * sizeof(*copy));
	double m;

	if (!copy)
		abort();
	memcpy(copy, v, n * sizeof(*copy));
	m = median(copy, n);
	free(copy);
	return m;
}

void report_ratio(struct row *row, const double *base, const double *ours, size_t rounds)
{
	double *ratio = malloc(rounds * sizeof(*ratio));

	if (!ratio)
		abort();
	for (size_t r = 0; r < rounds; r++)
		ratio[r] = ours[r] / base[r];
	row->value = median(ratio, rounds);
	row->low = ratio[0];
	row->high = ratio[rounds - 1];
	row->base = median_of(base, rounds);
	row->ours = median_of(ours, rounds);
	free(ratio);
}

/* ---- Instructions -------------------------------------------------------------------------- */

struct count {
	char name[48];
	double instructions;
};

static const struct {
	const char *prefix, *section;
	enum bar_kind kind;
	double bar;
} families[] = {
	{ "lib_", "Instructions per typed call", BAR_AT_MOST, 40 },
	{ "resolve_", "Instructions per libuffd_resolve()", BAR_AT_MOST, 80 },
	{ "other_", "Instructions per other call", BAR_NONE, 0 },
};

static const struct count *find_raw(const struct count *counts, size_t n, const char *operation)
{
	for (size_t i = 0; i < n; i++)
		if (!strncmp(counts[i].name, "raw_", 4) && !strcmp(counts[i].name + 4, operation))
			return &counts[i];
	return NULL;
}

static int add_family(size_t family, const struct count *counts, size_t n)
{
	const char *prefix = families[family].prefix;

	for (size_t i = 0; i < n; i++) {
		const char *operation = counts[i].name + strlen(prefix);
		const struct count *raw;
		struct row *row;

		if (strncmp(counts[i].name, prefix, strlen(prefix)))
			continue;
		raw = find_raw(counts, n, operation);
		if (!raw)
			return -1;
		row = report_row(families[family].section, "%s", operation);
		row->unit = "instr";
		row->base = raw->instructions;
		row->ours = counts[i].instructions;
		row->value = row->ours - row->base;
		row->difference = true;
		row->kind = families[family].kind;
		row->bar = families[family].bar;
	}
	return 0;
}

int report_instructions(const char *path)
{
	struct count counts[MAX_COUNTS];
	size_t n = 0;
	FILE *in = fopen(path, "r");

	if (!in)
		return -1;
	while (n < MAX_COUNTS &&
	       fscanf(in, "%47s %lf", counts[n].name, &counts[n].instructions) == 2)
		n++;
	fclose(in);
	if (!n)
		return -1;
	for (size_t f = 0; f < sizeof(families) / sizeof(families[0]); f++)
		if (add_family(f, counts, n))
			return -1;
	return 0;
}

/* ---- Output -------------------------------------------------------------------------------- */

static bool met(const struct row *row)
{
	return row->kind == BAR_AT_MOST ? row->value <= row->bar : row->value >= row->bar;
}

static void table_row(FILE *out, const struct row *row)
{
	char value[64], bar[32] = "";

	if (row->not_measured[0]) {
		fprintf(out, "  %-42s not measured: %s\n", row->name, row->not_measured);
		return;
	}
	if (row->difference)
		snprintf(value, sizeof(value), "%+7.1f", row->value);
	else
		snprintf(value, sizeof(value), "%7.3f  (%.3f .. %.3f)", row->value, row->low,
			 row->high);
	if (row->kind != BAR_NONE)
		snprintf(bar, sizeof(bar), row->difference ? "%s %.0f" : "%s %.2f",
			 row->kind == BAR_AT_MOST ? "<=" : ">=", row->bar);
	fprintf(out, "  %-42s %10.1f %10.1f %-6s %-27s %-8s %s\n", row->name, row->base, row->ours,
		row->unit, value, bar,
		row->kind == BAR_NONE ? ""
		: met(row)	      ? "met"
				      : "missed");
}

void report_table(FILE *out, size_t rounds)
{
	const char *section = "";
	struct utsname name;
	size_t bars = 0, reached = 0;

	uname(&name);
	fprintf(out, "libuffd core benchmark: Linux %s %s, %zu rounds\n", name.release,
		name.machine, rounds);
	for (size_t i = 0; i < n_rows; i++) {
		if (strcmp(section, rows[i].section)) {
			section = rows[i].section;
			fprintf(out, "\n%-44s %10s %10s %-6s %-27s %s\n", section, "base",
				"libuffd", "",
				rows[i].difference ? "more" : "ratio  (least .. most)", "bar");
		}
		table_row(out, &rows[i]);
		if (rows[i].kind != BAR_NONE && !rows[i].not_measured[0]) {
			bars++;
			reached += met(&rows[i]);
		}
	}
	fprintf(out, "\n%zu of %zu bars met\n", reached, bars);
}

static void json_row(FILE *out, const struct row *row)
{
	fprintf(out, "{\"section\": \"%s\", \"name\": \"%s\"", row->section, row->name);
	if (row->not_measured[0]) {
		fprintf(out, ", \"not_measured\": \"%s\"}", row->not_measured);
		return;
	}
	fprintf(out, ", \"unit\": \"%s\", \"base\": %.3f, \"libuffd\": %.3f", row->unit, row->base,
		row->ours);
	if (row->difference)
		fprintf(out, ", \"difference\": %.3f", row->value);
	else
		fprintf(out, ", \"ratio\": %.4f, \"least\": %.4f, \"most\": %.4f", row->value,
			row->low, row->high);
	if (row->kind != BAR_NONE)
		fprintf(out, ", \"%s\": %g, \"met\": %s",
			row->kind == BAR_AT_MOST ? "at_most" : "at_least", row->bar,
			met(row) ? "true" : "false");
	fputc('}', out);
}

/* No string here needs escaping: all are this directory's own, or the kernel's release. */
void report_json(FILE *out, size_t rounds)
{
	struct utsname name;

	uname(&name);
	fprintf(out,
		"{\n\"kernel\": \"%s\", \"machine\": \"%s\", \"cpus\": %ld, \"rounds\": %zu,\n"
		"\"rows\": [\n",
		name.release, name.machine, sysconf(_SC_NPROCESSORS_ONLN), rounds);
	for (size_t i = 0; i < n_rows; i++) {
		json_row(out, &rows[i]);
		fputs(i + 1 < n_rows ? ",\n" : "\n", out);
	}
	fputs("]\n}\n", out);
}
