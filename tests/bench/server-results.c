/* SPDX-License-Identifier: MIT */
/* The rows of all parts, as a table, as JSON and as a picture. */
#include "server-bench.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#define MOST_ROWS 128
#define MOST_NOTES 16

static struct result {
	struct row *row;
	size_t rounds;
} results[MOST_ROWS];
static size_t n_results;
static const char *measured = "server";
static int part;
static size_t part_rounds;
static struct {
	int part;
	char text[200];
} notes[MOST_NOTES];
static size_t n_notes;

void begin_part(int number, const char *title, size_t full, size_t least)
{
	part = number;
	rounds = part_rounds = quick ? least : full;
	fprintf(stderr, "measuring: %d, %s\n", number, title);
}

/* ---- Interleaving, for as long as there is time ------------------------------------------------- */

/* Of each comparison. What has not come to its end in PATIENCE_S never will. */
#define BUDGET_S 30
#define QUICK_BUDGET_S 8
#define LEAST_ROUNDS 3

static double run(const struct leg *leg)
{
	alarm(PATIENCE_S);
	return leg->run(leg->context);
}

void take_turns(struct leg *legs, size_t n)
{
	double end = now() + (quick ? QUICK_BUDGET_S : BUDGET_S) * 1e9;
	size_t r = 0;

	for (size_t i = 0; i < n; i++) {
		legs[i].ns = calloc(part_rounds, sizeof(double));
		if (!legs[i].ns)
			die("out of memory");
		run(&legs[i]); /* does not count */
	}
	while (r < part_rounds && (r < LEAST_ROUNDS || now() < end)) {
		for (size_t i = 0; i < n; i++) {
			struct leg *leg = &legs[(r + i) % n];

			leg->ns[r] = run(leg);
		}
		r++;
	}
	rounds = r;
}

void note(const char *format, ...)
{
	va_list ap;
	int len;

	if (n_notes == MOST_NOTES)
		die("more than %d notes", MOST_NOTES);
	notes[n_notes].part = part;
	va_start(ap, format);
	len = vsnprintf(notes[n_notes].text, sizeof(notes[n_notes].text), format, ap);
	va_end(ap);
	if (len < 0 || (size_t)len >= sizeof(notes[n_notes].text))
		die("a note that is too long: %s", notes[n_notes].text);
	n_notes++;
}

/* ---- Rows -------------------------------------------------------------------------------------- */

static struct row *add_row(const char *section, const char *name, const char *unit)
{
	struct row *row = report_row(section, "%s", name);

	row->unit = unit;
	results[n_results].row = row;
	results[n_results++].rounds = rounds;
	return row;
}

static void progress(const struct row *row)
{
	fprintf(stderr, "  %s: %.3f (%.3f .. %.3f)\n", row->name, row->value, row->low, row->high);
}

struct row *time_row(const char *section, const char *name, const char *unit, const double *base,
		     const double *ours)
{
	struct row *row = add_row(section, name, unit);

	report_ratio(row, base, ours, rounds);
	progress(row);
	return row;
}

struct row *speed_row(const char *section, const char *name, const char *unit, double work,
		      const double *base, const double *ours)
{
	struct row *row = add_row(section, name, unit);
	double ns;

	/* upside down, for more speed is less time */
	report_ratio(row, ours, base, rounds);
	ns = row->base;
	row->base = work / row->ours;
	row->ours = work / ns;
	progress(row);
	return row;
}

struct row *value_row(const char *section, const char *name, const char *unit, double base,
		      double ours)
{
	struct row *row = add_row(section, name, unit);

	row->base = base;
	row->ours = ours;
	row->value = row->low = row->high = ours / base;
	progress(row);
	return row;
}

struct row *missing_row(const char *section, const char *name, const char *why)
{
	struct row *row = add_row(section, name, "");

	snprintf(row->not_measured, sizeof(row->not_measured), "%s", why);
	return row;
}

/* ---- What ran ---------------------------------------------------------------------------------- */

static const char *asked_for(void)
{
	return engine == LIBUFFD_ENGINE_AUTO ? "auto" : libuffd_engine_name(engine);
}

/* What the servers had that were made with that; part 1 has one with poll beside it in any case. */
static const char *engines(void)
{
	static char names[32];

	names[0] = 0;
	for (uint32_t e = 1; libuffd_engine_name(e); e++) {
		if (!(engines_ran & UINT32_C(1) << e))
			continue;
		if (names[0])
			strcat(names, ", ");
		strcat(names, libuffd_engine_name(e));
	}
	return names[0] ? names : "none";
}

/* ---- Table ------------------------------------------------------------------------------------- */

static bool has_bar(const struct row *row)
{
	return row->kind != BAR_NONE && !row->not_measured[0];
}

static bool met(const struct row *row)
{
	return row->kind == BAR_AT_MOST ? row->value <= row->bar : row->value >= row->bar;
}

static void table_row(FILE *out, const struct result *r)
{
	const struct row *row = r->row;

	if (row->not_measured[0]) {
		fprintf(out, "  %-48s not measured: %s\n", row->name, row->not_measured);
		return;
	}
	fprintf(out, "  %-48s %9.4g %9.4g %-5s %3zu  %6.3f (%.3f .. %.3f)", row->name, row->base,
		row->ours, row->unit, r->rounds, row->value, row->low, row->high);
	if (row->kind != BAR_NONE)
		fprintf(out, "  %s %-4g %s", row->kind == BAR_AT_MOST ? "<=" : ">=", row->bar,
			met(row) ? "met" : "missed");
	fputc('\n', out);
}

void results_of(const char *what)
{
	measured = what;
}

void results_table(FILE *out)
{
	const char *section = "";
	struct utsname name;
	size_t bars = 0, reached = 0;

	uname(&name);
	fprintf(out, "libuffd %s benchmark: Linux %s %s, %ld CPUs, engine %s (asked for: %s)%s\n",
		measured, name.release, name.machine, sysconf(_SC_NPROCESSORS_ONLN), engines(),
		asked_for(), quick ? ", quick" : "");
	for (size_t i = 0; i < n_notes; i++)
		fprintf(out, "  part %d: %s\n", notes[i].part, notes[i].text);
	for (size_t i = 0; i < n_results; i++) {
		const struct row *row = results[i].row;

		if (strcmp(section, row->section)) {
			section = row->section;
			fprintf(out, "\n%-50s\n  %-48s %9s %9s %5s %3s  %s\n", section, "", "base",
				"server", "", "n", "ratio (least .. most)   bar");
		}
		table_row(out, &results[i]);
		bars += has_bar(row);
		reached += has_bar(row) && met(row);
	}
	fprintf(out, "\n%zu of %zu bars met\n", reached, bars);
}

/* ---- JSON -------------------------------------------------------------------------------------- */

/* No string here needs escaping: all are this directory's own, or the kernel's release. */
static void json_row(FILE *out, const struct result *r)
{
	const struct row *row = r->row;

	fprintf(out, "{\"section\": \"%s\", \"name\": \"%s\"", row->section, row->name);
	if (row->not_measured[0]) {
		fprintf(out, ", \"not_measured\": \"%s\"}", row->not_measured);
		return;
	}
	fprintf(out,
		", \"unit\": \"%s\", \"base\": %.3f, \"server\": %.3f, \"rounds\": %zu, "
		"\"ratio\": %.4f, \"least\": %.4f, \"most\": %.4f",
		row->unit, row->base, row->ours, r->rounds, row->value, row->low, row->high);
	if (has_bar(row))
		fprintf(out, ", \"%s\": %g, \"met\": %s",
			row->kind == BAR_AT_MOST ? "at_most" : "at_least", row->bar,
			met(row) ? "true" : "false");
	fputc('}', out);
}

void results_json(FILE *out)
{
	struct utsname name;

	uname(&name);
	fprintf(out,
		"{\n\"kernel\": \"%s\", \"machine\": \"%s\", \"cpus\": %ld,\n"
		"\"engine\": \"%s\", \"engine_asked_for\": \"%s\", \"quick\": %s,\n\"notes\": [\n",
		name.release, name.machine, sysconf(_SC_NPROCESSORS_ONLN), engines(), asked_for(),
		quick ? "true" : "false");
	for (size_t i = 0; i < n_notes; i++)
		fprintf(out, "{\"part\": %d, \"text\": \"%s\"}%s\n", notes[i].part, notes[i].text,
			i + 1 < n_notes ? "," : "");
	fputs("],\n\"rows\": [\n", out);
	for (size_t i = 0; i < n_results; i++) {
		json_row(out, &results[i]);
		fputs(i + 1 < n_results ? ",\n" : "\n", out);
	}
	fputs("]\n}\n", out);
}

/* ---- Picture ----------------------------------------------------------------------------------- */

#define LEFT 380       /* where the bars begin */
#define UNIT 240.0     /* as wide as what is to be reached, or as the base where nothing is */
#define MOST_UNITS 2.0 /* what is longer is cut off */
#define LINE 22
#define TOP 84
#define WIDTH (LEFT + (int)(UNIT * MOST_UNITS) + 140)

static double at(const struct row *row, double ratio)
{
	double units = has_bar(row) ? ratio / row->bar : ratio;

	return LEFT + UNIT * (units < MOST_UNITS ? units : MOST_UNITS);
}

static void svg_row(FILE *out, const struct row *row, int y)
{
	const char *colour = !has_bar(row) ? "#b0b0b0" : met(row) ? "#3a8f5c" : "#c0504d";
	int middle = y + LINE / 2 - 2;

	fprintf(out,
		"<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>\n"
		"<rect x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\" fill=\"%s\"/>\n",
		LEFT - 8, y + 13, row->name, LEFT, y, at(row, row->value) - LEFT, LINE - 5, colour);
	fprintf(out,
		"<path d=\"M%.1f %dH%.1fM%.1f %dv6M%.1f %dv6\" stroke=\"#222\" fill=\"none\"/>\n",
		at(row, row->low), middle, at(row, row->high), at(row, row->low), middle - 3,
		at(row, row->high), middle - 3);
	fprintf(out, "<text x=\"%.1f\" y=\"%d\">%.3g", LEFT + UNIT * MOST_UNITS + 10, y + 13,
		row->value);
	if (has_bar(row))
		fprintf(out, " %s %g", row->kind == BAR_AT_MOST ? "&#8804;" : "&#8805;", row->bar);
	fputs("</text>\n", out);
}

static void svg_missing(FILE *out, const struct row *row, int y)
{
	fprintf(out,
		"<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>\n"
		"<text x=\"%d\" y=\"%d\" fill=\"#666\">not measured: %s</text>\n",
		LEFT - 8, y + 13, row->name, LEFT + 4, y + 13, row->not_measured);
}

static int svg_rows(FILE *out)
{
	const char *section = "";
	int y = TOP;

	for (size_t i = 0; i < n_results; i++) {
		const struct row *row = results[i].row;

		if (strcmp(section, row->section)) {
			section = row->section;
			if (out)
				fprintf(out,
					"<text x=\"8\" y=\"%d\" font-weight=\"bold\">%s</text>\n",
					y + 20, section);
			y += LINE + 6;
		}
		if (out && row->not_measured[0])
			svg_missing(out, row, y);
		else if (out)
			svg_row(out, row, y);
		y += LINE;
	}
	return y;
}

/* Each ratio as a part of its bar: at most there, or at least, and how far the rounds were apart. */
void results_svg(FILE *out)
{
	int bottom = svg_rows(NULL);

	fprintf(out,
		"<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" "
		"font-family=\"sans-serif\" font-size=\"12\">\n"
		"<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n"
		"<text x=\"8\" y=\"22\" font-size=\"15\">libuffd %s, engine %s: ratios, each "
		"against its bar</text>\n"
		"<text x=\"8\" y=\"42\">&#8804;: the bar should end left of the line; "
		"&#8805;: it should reach it. Green: met, red: missed.</text>\n"
		"<text x=\"8\" y=\"60\">Grey: nothing is to be met, and the line is the base.</text>\n",
		WIDTH, bottom + 16, measured, engines());
	svg_rows(out);
	fprintf(out, "<path d=\"M%.1f %dV%d\" stroke=\"#222\" stroke-dasharray=\"4 3\"/>\n</svg>\n",
		LEFT + UNIT, TOP - 10, bottom + 4);
}
