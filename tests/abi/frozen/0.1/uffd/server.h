/* SPDX-License-Identifier: MIT */
#ifndef LIBUFFD_SERVER_H
#define LIBUFFD_SERVER_H
#include <uffd/uffd.h>
#ifdef __cplusplus
extern "C" {
#endif
struct libuffd_server;
struct libuffd_source;
#define LIBUFFD_NOTICE_FORK 1
#define LIBUFFD_NOTICE_GONE 2
#define LIBUFFD_NOTICE_COMPLETE 3
#define LIBUFFD_NOTICE_ERROR 4
#define LIBUFFD_NOTICE_UNKNOWN 5
#define LIBUFFD_NOTICE_FAILED 6
#define LIBUFFD_DONE_POISONED 1
#define LIBUFFD_DONE_WAITS 2
struct libuffd_notice {
	uint32_t type;
	int32_t error;
	uint64_t space;
	uint64_t region;
	uint64_t address, len;
	uint64_t other;
	uint32_t done;
	uint32_t reserved0;
	uint64_t reserved[1];
};
#define LIBUFFD_ENGINE_AUTO 0
#define LIBUFFD_ENGINE_URING 1
#define LIBUFFD_ENGINE_POLL 2
#define LIBUFFD_PLACE_DEFAULT 0
#define LIBUFFD_PLACE_SPREAD 1
struct libuffd_server_opts {
	uint32_t size;
	uint32_t flags;
	uint32_t engine;
	uint32_t threads;
	uint32_t placement;
	uint32_t depth;
	uint32_t workers;
	uint32_t reserved;
	union {
		void (*notice)(void *ctx, const struct libuffd_notice *notice);
		uint64_t notice_space;
	};
	union {
		void *ctx;
		uint64_t ctx_space;
	};
};
#define LIBUFFD_SERVER_OPTS_INIT { sizeof(struct libuffd_server_opts), 0, 0, 0, 0, 0, 0, 0, \
	{ NULL }, { NULL } }
LIBUFFD_EXPORT int libuffd_server_new(const struct libuffd_server_opts *opts,
				      struct libuffd_server **out);
LIBUFFD_EXPORT void libuffd_server_free(struct libuffd_server *s);
LIBUFFD_EXPORT int libuffd_server_engine(const struct libuffd_server *s);
LIBUFFD_EXPORT const char *libuffd_engine_name(uint32_t engine);
#define LIBUFFD_SPACE_POISON (1u << 0)
struct libuffd_space_opts {
	uint32_t size;
	uint32_t flags;
	int32_t pidfd;
	uint32_t unknown;
};
#define LIBUFFD_SPACE_OPTS_INIT { sizeof(struct libuffd_space_opts), 0, -1, 0 }
LIBUFFD_EXPORT int libuffd_server_attach(struct libuffd_server *s, struct libuffd *u,
					 const struct libuffd_space_opts *opts, uint64_t *space);
LIBUFFD_EXPORT int libuffd_server_detach(struct libuffd_server *s, uint64_t space,
					 struct libuffd **child);
#define LIBUFFD_ON_ERROR_POISON 0
#define LIBUFFD_ON_ERROR_FAIL 1
#define LIBUFFD_REGION_REGISTER (1u << 0)
#define LIBUFFD_REGION_WP (1u << 1)
#define LIBUFFD_REGION_GROWS (1u << 2)
#define LIBUFFD_REGION_UNREGISTER (1u << 3)
#define LIBUFFD_REGION_STATE (1u << 4)
struct libuffd_region {
	uint32_t size;
	uint32_t flags;
	uint64_t space;
	uint64_t start, len;
	uint64_t page_size;
	uint64_t modes;
	uint64_t offset;
	union {
		struct libuffd_source
			*source;
		uint64_t source_space;
	};
	union {
		void *alias;
		uint64_t alias_space;
	};
	union {
		int (*written)(void *ctx, uint64_t space, uint64_t region, uint64_t address,
			       uint64_t len);
		uint64_t written_space;
	};
	union {
		void *ctx;
		uint64_t ctx_space;
	};
	uint64_t
		key;
	uint32_t on_error;
	uint32_t retries;
	uint64_t
		retry_ns;
	uint64_t window;
	uint64_t ahead;
	int32_t state_fd;
	uint32_t reserved;
	uint64_t state_offset;
};
#define LIBUFFD_REGION_INIT { sizeof(struct libuffd_region), 0, 0, 0, 0, 0, 0, 0, { NULL }, { NULL }, \
	{ NULL }, { NULL }, 0, 0, 0, 0, 0, 0, 0, 0, 0 }
LIBUFFD_EXPORT int libuffd_server_add_region(struct libuffd_server *s,
					     const struct libuffd_region *r, uint64_t *region);
LIBUFFD_EXPORT int libuffd_server_remove_region(struct libuffd_server *s, uint64_t region);
LIBUFFD_EXPORT int libuffd_server_allow(struct libuffd_server *s, uint64_t space, uint64_t address,
					uint64_t len);
LIBUFFD_EXPORT int libuffd_server_step(struct libuffd_server *s, int64_t timeout_ns);
LIBUFFD_EXPORT int libuffd_server_fd(const struct libuffd_server *s);
LIBUFFD_EXPORT int libuffd_server_run(struct libuffd_server *s);
LIBUFFD_EXPORT int libuffd_server_start(struct libuffd_server *s);
LIBUFFD_EXPORT void libuffd_server_stop(struct libuffd_server *s);
LIBUFFD_EXPORT int libuffd_server_drain(struct libuffd_server *s, int64_t timeout_ns);
LIBUFFD_EXPORT int libuffd_server_prefetch(struct libuffd_server *s, uint64_t region,
					   uint64_t offset, uint64_t len);
struct libuffd_fill_opts {
	uint32_t size;
	uint32_t flags;
	uint32_t depth;
	uint32_t reserved;
	uint64_t chunk;
	uint64_t rate;
};
#define LIBUFFD_FILL_OPTS_INIT { sizeof(struct libuffd_fill_opts), 0, 0, 0, 0, 0 }
LIBUFFD_EXPORT int libuffd_server_fill(struct libuffd_server *s, uint64_t region,
				       const struct libuffd_fill_opts *opts);
LIBUFFD_EXPORT int libuffd_server_record(struct libuffd_server *s);
LIBUFFD_EXPORT int libuffd_server_record_end(struct libuffd_server *s, int fd);
LIBUFFD_EXPORT int libuffd_server_replay(struct libuffd_server *s, int fd);
LIBUFFD_EXPORT struct libuffd_source *libuffd_source_ref(struct libuffd_source *src);
LIBUFFD_EXPORT void libuffd_source_unref(struct libuffd_source *src);
LIBUFFD_EXPORT int libuffd_source_memory(const void *addr, uint64_t len,
					 struct libuffd_source **out);
LIBUFFD_EXPORT int libuffd_source_zero(struct libuffd_source **out);
LIBUFFD_EXPORT int libuffd_source_file(int fd, struct libuffd_source **out);
LIBUFFD_EXPORT int libuffd_source_chain(struct libuffd_source *const *sources, size_t n,
					struct libuffd_source **out);
struct libuffd_request {
	uint64_t id;
	uint64_t offset;
	uint64_t len;
	union {
		void *buffer;
		uint64_t buffer_space;
	};
	uint64_t space, region;
	uint64_t address;
	uint64_t reserved;
};
LIBUFFD_EXPORT int libuffd_source_custom(void (*fetch)(void *ctx,
						       const struct libuffd_request *req),
					 void *ctx, uint64_t len, struct libuffd_source **out);
#define LIBUFFD_FETCHED_BYTES 0
#define LIBUFFD_FETCHED_ZERO 1
#define LIBUFFD_FETCHED_POISON 2
LIBUFFD_EXPORT int libuffd_source_complete(struct libuffd_source *src, uint64_t id, int result,
					   uint64_t len);
LIBUFFD_EXPORT int libuffd_server_sigbus(const struct libuffd_server *s, uint64_t address,
					 int code);
#define LIBUFFD_LATENCY_BUCKETS \
	32
struct libuffd_stats {
	uint32_t size;
	uint32_t reserved;
	uint64_t faults_missing, faults_minor, faults_wp;
	uint64_t faults_unknown;
	uint64_t duplicates;
	uint64_t bytes;
	uint64_t installed;
	uint64_t zeros;
	uint64_t present;
	uint64_t deferred;
	uint64_t retries;
	uint64_t failed;
	uint64_t refetched;
	uint64_t removed_in_flight;
	uint64_t removed, unmapped;
	uint64_t remaps, forks;
	uint64_t fetches;
	uint64_t prefetched;
	uint64_t prefetch_hits;
	uint64_t in_flight, queued;
	uint64_t waiting;
	uint64_t pages, pages_present;
	uint64_t latency_ns, latency_max_ns;
	uint64_t latency[LIBUFFD_LATENCY_BUCKETS];
	uint64_t prefetch_wasted;
};
#define LIBUFFD_STATS_INIT { sizeof(struct libuffd_stats), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, \
	0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, { 0 }, 0 }
LIBUFFD_EXPORT int libuffd_server_stats(const struct libuffd_server *s, uint64_t region,
					struct libuffd_stats *stats);
#ifdef __cplusplus
}
#endif
#endif
