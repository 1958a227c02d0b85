/* SPDX-License-Identifier: MIT */
/*
 * Figures, in three forms. The keys of the JSON, and the names for Prometheus, are stable: later versions only add.
 *
 *   format       1
 *   version      of libuffd
 *   uptime_s     since the server began
 *   engine       "uring" or "poll"
 *   memory       { name, bytes }
 *   draining     true once it was told to end
 *   vms          { ever, served, complete, failed, refused }: machines that ever came, and those that are there
 *   handshakes_refused  ever
 *   total        the figures of all machines, gone ones too: see below
 *   machines     array of { id, pid, state, regions, seconds, errors, unknown } and the figures of each
 *
 * Figures: pages and pages_present (now; of what is served), faults, installed (pages), zeros, present, bytes, deferred,
 * failed, refetched, removed, prefetched, prefetch_hits, prefetch_wasted, fetches, in_flight, latency_ns { count, sum,
 * max, p50, p99 }. Latencies are from when a fault was read until its thread was woken.
 */
#include "serve.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <json.h>

static const struct figure {
	const char *name;
	size_t at;
	bool gauge;
	const char *help;
} figures[] = {
#define FIGURE(name, field, gauge, help)                                 \
	{                                                                \
		name, offsetof(struct libuffd_stats, field), gauge, help \
	}
	FIGURE("pages", pages, true, "Pages of the memory that is served"),
	FIGURE("pages_present", pages_present, true, "Of these, those that need nobody any more"),
	FIGURE("faults", faults_missing, false, "Faults that were told"),
	FIGURE("installed", installed, false, "Pages installed"),
	FIGURE("zeros", zeros, false, "Pages of zeros, of those installed"),
	FIGURE("present", present, false, "Pages that were there already"),
	FIGURE("bytes", bytes, false, "Bytes installed"),
	FIGURE("deferred", deferred, false, "Answers put off since the layout was changing"),
	FIGURE("failed", failed, false, "Pages that could not be had"),
	FIGURE("refetched", refetched, false, "Attempts after a failure of the source"),
	FIGURE("removed", removed, false, "Pages that the machine gave back"),
	FIGURE("prefetched", prefetched, false, "Pages that nobody had waited for"),
	FIGURE("prefetch_hits", prefetch_hits, false, "Faults on pages that were on their way"),
	FIGURE("prefetch_wasted", prefetch_wasted, false, "Pages fetched for nobody in vain"),
	FIGURE("fetches", fetches, false, "Reads of the source"),
	FIGURE("in_flight", in_flight, true, "Reads under way"),
};

#define FIGURES (sizeof(figures) / sizeof(*figures))

static uint64_t value(const struct libuffd_stats *s, const struct figure *f)
{
	uint64_t v;

	memcpy(&v, (const char *)s + f->at, sizeof(v));
	return v;
}

/* ---- Sums ----------------------------------------------------------------------------------- */

static void add(struct libuffd_stats *sum, const struct libuffd_stats *s)
{
	for (size_t i = 0; i < FIGURES; i++) {
		uint64_t v = value(sum, &figures[i]) + value(s, &figures[i]);

		memcpy((char *)sum + figures[i].at, &v, sizeof(v));
	}
	sum->latency_ns += s->latency_ns;
	if (sum->latency_max_ns < s->latency_max_ns)
		sum->latency_max_ns = s->latency_max_ns;
	for (size_t i = 0; i < LIBUFFD_LATENCY_BUCKETS; i++)
		sum->latency[i] += s->latency[i];
}

void stats_vm(const struct serve *sv, const struct vm *vm, struct libuffd_stats *sum)
{
	struct libuffd_stats all = LIBUFFD_STATS_INIT;

	if (!vm->space)
		return;
	for (size_t i = 0; i < vm->regions; i++) {
		struct libuffd_stats s = LIBUFFD_STATS_INIT;

		if (vm->region[i].complete)
			s = vm->region[i].last;
		else if (libuffd_server_stats(sv->server, vm->region[i].id, &s) < 0)
			return;
		/* Not in the moment between its end and the news of that. */
		if (!s.pages)
			return;
		add(&all, &s);
	}
	*sum = all;
}

/* The server's own, which has what machines did that are gone; but what is complete is none of its own any more. */
struct libuffd_stats stats_all(const struct serve *sv)
{
	struct libuffd_stats s = LIBUFFD_STATS_INIT;

	libuffd_server_stats(sv->server, 0, &s);
	s.pages = s.pages_present = 0;
	for (const struct vm *vm = sv->vms; vm; vm = vm->next) {
		struct libuffd_stats its = vm->last;

		stats_vm(sv, vm, &its);
		s.pages += its.pages;
		s.pages_present += its.pages_present;
	}
	return s;
}

static uint64_t faults_of(const uint64_t *latency)
{
	uint64_t n = 0;

	for (size_t i = 0; i < LIBUFFD_LATENCY_BUCKETS; i++)
		n += latency[i];
	return n;
}

/* Bucket i ends below 2^(i+8) ns. The last has no end, and says twice what the one before it does. */
static uint64_t quantile(const uint64_t *latency, unsigned int percent)
{
	uint64_t n = faults_of(latency), seen = 0;
	unsigned int i = 0;

	if (!n)
		return 0;
	for (; i < LIBUFFD_LATENCY_BUCKETS - 1; i++) {
		seen += latency[i];
		if (seen >= n - n * (100 - percent) / 100)
			break;
	}
	return UINT64_C(1) << (i + 8);
}

uint64_t stats_p99(const uint64_t *latency)
{
	return quantile(latency, 99);
}

/* ---- JSON ----------------------------------------------------------------------------------- */

static void put_number(struct json_object *o, const char *key, uint64_t v)
{
	json_object_object_add(o, key, json_object_new_uint64(v));
}

static void put_text(struct json_object *o, const char *key, const char *v)
{
	json_object_object_add(o, key, json_object_new_string(v));
}

static void put_seconds(struct json_object *o, const char *key, uint64_t since)
{
	uint64_t ms = (now_ns() - since) / 1000000;
	char text[40];

	snprintf(text, sizeof(text), "%" PRIu64 ".%03" PRIu64, ms / 1000, ms % 1000);
	json_object_object_add(o, key, json_object_new_double_s((double)ms / 1e3, text));
}

static void put_figures(struct json_object *o, const struct libuffd_stats *s)
{
	struct json_object *latency = json_object_new_object();

	for (size_t i = 0; i < FIGURES; i++)
		put_number(o, figures[i].name, value(s, &figures[i]));
	put_number(latency, "count", faults_of(s->latency));
	put_number(latency, "sum", s->latency_ns);
	put_number(latency, "max", s->latency_max_ns);
	put_number(latency, "p50", quantile(s->latency, 50));
	put_number(latency, "p99", quantile(s->latency, 99));
	json_object_object_add(o, "latency_ns", latency);
}

static struct json_object *machine(const struct serve *sv, const struct vm *vm)
{
	struct json_object *o = json_object_new_object();
	struct libuffd_stats s = vm->last;

	stats_vm(sv, vm, &s);
	put_number(o, "id", vm->id);
	json_object_object_add(o, "pid", json_object_new_int(vm->peer.pid));
	put_text(o, "state", vm_state_name(vm->state));
	put_number(o, "regions", vm->regions);
	put_seconds(o, "seconds", vm->began);
	put_number(o, "errors", vm->errors);
	put_number(o, "unknown", vm->unknown);
	put_figures(o, &s);
	return o;
}

static struct json_object *everything(const struct serve *sv)
{
	struct json_object *o = json_object_new_object(), *memory = json_object_new_object(),
			   *vms = json_object_new_object(), *total = json_object_new_object(),
			   *machines = json_object_new_array();
	struct libuffd_stats s = stats_all(sv);

	put_number(o, "format", 1);
	put_text(o, "version", libuffd_version());
	put_seconds(o, "uptime_s", sv->began);
	put_text(o, "engine", libuffd_engine_name((uint32_t)libuffd_server_engine(sv->server)));
	put_text(memory, "name", sv->memory.name);
	put_number(memory, "bytes", sv->memory.len);
	json_object_object_add(o, "memory", memory);
	json_object_object_add(o, "draining", json_object_new_boolean(sv->draining));
	put_number(vms, "ever", sv->vms_ever);
	for (unsigned int i = 0; i < VM_STATES; i++)
		put_number(vms, vm_state_name(i), vm_count(sv, i));
	json_object_object_add(o, "vms", vms);
	put_number(o, "handshakes_refused", sv->refused_ever);
	put_figures(total, &s);
	json_object_object_add(o, "total", total);
	for (const struct vm *vm = sv->vms; vm; vm = vm->next)
		json_object_array_add(machines, machine(sv, vm));
	json_object_object_add(o, "machines", machines);
	return o;
}

static void write_json(const struct serve *sv, FILE *f)
{
	struct json_object *o = everything(sv);

	fprintf(f, "%s\n", json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN));
	json_object_put(o);
}

/* ---- Prometheus, text format 0.0.4 ---------------------------------------------------------- */

static void head(FILE *f, const char *name, const char *type, const char *help)
{
	fprintf(f, "# HELP uffd_serve_%s %s.\n# TYPE uffd_serve_%s %s\n", name, help, name, type);
}

static void one(FILE *f, const char *name, const char *type, const char *help, uint64_t v)
{
	head(f, name, type, help);
	fprintf(f, "uffd_serve_%s %" PRIu64 "\n", name, v);
}

static void histogram(FILE *f, const struct libuffd_stats *s)
{
	const char *name = "fault_latency_seconds";
	uint64_t seen = 0;

	head(f, name, "histogram", "From when a fault was read until its thread was woken");
	for (unsigned int i = 0; i < LIBUFFD_LATENCY_BUCKETS - 1; i++) {
		seen += s->latency[i];
		fprintf(f, "uffd_serve_%s_bucket{le=\"%.9g\"} %" PRIu64 "\n", name,
			(double)(UINT64_C(1) << (i + 8)) / 1e9, seen);
	}
	seen += s->latency[LIBUFFD_LATENCY_BUCKETS - 1];
	fprintf(f, "uffd_serve_%s_bucket{le=\"+Inf\"} %" PRIu64 "\n", name, seen);
	fprintf(f, "uffd_serve_%s_sum %.9f\n", name, (double)s->latency_ns / 1e9);
	fprintf(f, "uffd_serve_%s_count %" PRIu64 "\n", name, seen);
}

static void of_each(const struct serve *sv, FILE *f, const char *name, const char *type,
		    const char *help, uint64_t (*get)(const struct serve *, const struct vm *))
{
	if (!sv->vms)
		return;
	head(f, name, type, help);
	for (const struct vm *vm = sv->vms; vm; vm = vm->next)
		fprintf(f, "uffd_serve_%s{vm=\"%" PRIu64 "\",pid=\"%d\"} %" PRIu64 "\n", name,
			vm->id, (int)vm->peer.pid, get(sv, vm));
}

static struct libuffd_stats now_of(const struct serve *sv, const struct vm *vm)
{
	struct libuffd_stats s = vm->last;

	stats_vm(sv, vm, &s);
	return s;
}

static uint64_t pages_of(const struct serve *sv, const struct vm *vm)
{
	return now_of(sv, vm).pages;
}

static uint64_t present_of(const struct serve *sv, const struct vm *vm)
{
	return now_of(sv, vm).pages_present;
}

static uint64_t faults_of_vm(const struct serve *sv, const struct vm *vm)
{
	return now_of(sv, vm).faults_missing;
}

static void write_prometheus(const struct serve *sv, FILE *f)
{
	struct libuffd_stats s = stats_all(sv);
	char name[64];

	head(f, "vms", "gauge", "Virtual machines by state");
	for (unsigned int i = 0; i < VM_STATES; i++)
		fprintf(f, "uffd_serve_vms{state=\"%s\"} %zu\n", vm_state_name(i), vm_count(sv, i));
	one(f, "vms_ever_total", "counter", "Virtual machines that ever came", sv->vms_ever);
	one(f, "vms_failed_total", "counter", "Virtual machines that could not be served on",
	    sv->failed_ever);
	one(f, "handshakes_refused_total", "counter", "Connections that were refused",
	    sv->refused_ever);
	for (size_t i = 0; i < FIGURES; i++) {
		snprintf(name, sizeof(name), "%s%s", figures[i].name,
			 figures[i].gauge ? "" : "_total");
		one(f, name, figures[i].gauge ? "gauge" : "counter", figures[i].help,
		    value(&s, &figures[i]));
	}
	histogram(f, &s);
	of_each(sv, f, "vm_pages", "gauge", "Pages of one machine", pages_of);
	of_each(sv, f, "vm_pages_present", "gauge", "Of these, those that need nobody any more",
		present_of);
	of_each(sv, f, "vm_faults_total", "counter", "Faults of one machine", faults_of_vm);
}

/* ---- Text ----------------------------------------------------------------------------------- */

static void write_line(FILE *f, const char *what, const struct libuffd_stats *s)
{
	fprintf(f,
		"%s: %" PRIu64 " of %" PRIu64 " pages, %.1f MiB installed, %" PRIu64
		" faults, p50 below %.1f us, p99 below %.1f us, max %.1f us, %" PRIu64 " failed\n",
		what, s->pages_present, s->pages, (double)s->bytes / 1048576, s->faults_missing,
		(double)quantile(s->latency, 50) / 1e3, (double)quantile(s->latency, 99) / 1e3,
		(double)s->latency_max_ns / 1e3, s->failed);
}

static void write_plain(const struct serve *sv, FILE *f)
{
	struct libuffd_stats s = stats_all(sv);
	char what[96];

	fprintf(f,
		"uffd-serve %s, engine %s, %.1f s: %" PRIu64 " machines came, %zu served, "
		"%zu complete, %zu failed, %" PRIu64 " refused\n",
		libuffd_version(), libuffd_engine_name((uint32_t)libuffd_server_engine(sv->server)),
		(double)(now_ns() - sv->began) / 1e9, sv->vms_ever, vm_count(sv, VM_SERVED),
		vm_count(sv, VM_COMPLETE), vm_count(sv, VM_FAILED), sv->refused_ever);
	write_line(f, "all", &s);
	for (const struct vm *vm = sv->vms; vm; vm = vm->next) {
		s = now_of(sv, vm);
		snprintf(what, sizeof(what), "vm %" PRIu64 ", %s, %s", vm->id, vm->peer.name,
			 vm_state_name(vm->state));
		write_line(f, what, &s);
	}
}

char *stats_text(const struct serve *sv, enum stats_form form)
{
	static void (*const write[])(const struct serve *, FILE *) = {
		[STATS_TEXT] = write_plain,
		[STATS_JSON] = write_json,
		[STATS_PROMETHEUS] = write_prometheus,
	};
	char *text = NULL;
	size_t len;
	FILE *f = open_memstream(&text, &len);

	if (!f)
		return NULL;
	write[form](sv, f);
	if (fclose(f) == 0)
		return text;
	free(text);
	return NULL;
}
