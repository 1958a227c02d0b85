/* SPDX-License-Identifier: MIT */
#include "nbd-uri.h"

#include <fcntl.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#define EXPORT_MAX 4096 /* the protocol's */
#define PORT "10809"
#define TCP "nbd://"
#define UNIX "nbd+unix://"

static bool begins(const char *text, const char *with)
{
	return strncmp(text, with, strlen(with)) == 0;
}

/* Any scheme of this protocol's, also those that are refused: no file is meant by them. */
bool nbd_is_uri(const char *name)
{
	return begins(name, TCP) || begins(name, UNIX) || begins(name, "nbds://") ||
	       begins(name, "nbds+unix://") || begins(name, "nbd+vsock://") ||
	       begins(name, "nbds+vsock://");
}

/* ---- Text -------------------------------------------------------------------------------------- */

static int hex(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

/* The text of @len bytes with its %XX undone; free() it. NULL: not well formed, or out of memory. */
static char *plain(const char *text, size_t len)
{
	char *out = malloc(len + 1);
	size_t n = 0;

	for (size_t i = 0; out && i < len; i++) {
		int high = -1, low = -1;

		if (text[i] != '%') {
			out[n++] = text[i];
			continue;
		}
		if (i + 2 < len) {
			high = hex(text[i + 1]);
			low = hex(text[i + 2]);
		}
		/* A byte of 0 would end it early, as another name. */
		if (high < 0 || low < 0 || !(high | low)) {
			free(out);
			return NULL;
		}
		out[n++] = (char)(high << 4 | low);
		i += 2;
	}
	if (out)
		out[n] = '\0';
	return out;
}

static int bad_uri(struct why *why, const char *uri, const char *what)
{
	return refuse(why, -EINVAL, "%s: %s", uri, what);
}

static int take_export(struct nbd_place *place, const char *path, size_t len, const char *uri,
		       struct why *why)
{
	/* The slash belongs to the URI. */
	place->export = plain(path + (len > 0), len - (len > 0));
	if (!place->export)
		return bad_uri(why, uri, "the export's name is not well formed");
	if (strlen(place->export) > EXPORT_MAX)
		return bad_uri(why, uri, "the export's name is too long");
	return 0;
}

/* ---- A socket of a name ------------------------------------------------------------------------- */

/*
 * By way of its directory: that can be opened now and be walked through later, from within a jail and as
 * often as the server is started anew, and no path is too long for a socket's address.
 */
static int take_socket(struct nbd_place *place, char *path, const char *uri, struct why *why)
{
	struct sockaddr_un *un;
	char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;

	place->address = calloc(1, sizeof(*place->address));
	if (!place->address)
		return refuse(why, -ENOMEM, "out of memory");
	place->n = 1;
	if (slash == path)
		place->dir = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	else if (slash)
		*slash = '\0', place->dir = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	else
		place->dir = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (place->dir < 0)
		return refuse(why, -errno, "%s: %s", uri, strerror(errno));
	un = (struct sockaddr_un *)(void *)&place->address->to;
	un->sun_family = AF_UNIX;
	if (snprintf(un->sun_path, sizeof(un->sun_path), "/proc/self/fd/%d/%s", place->dir, name) >=
	    (int)sizeof(un->sun_path))
		return bad_uri(why, uri, "the socket's name is too long");
	place->address->len = sizeof(*un);
	return 0;
}

static int find_unix(const char *uri, struct nbd_place *place, struct why *why)
{
	const char *path = uri + strlen(UNIX), *query = strchr(path, '?');
	char *socket;
	int ret;

	if (!query || !begins(query, "?socket=") || strchr(query, '&'))
		return bad_uri(why, uri, "nbd+unix:///EXPORT?socket=PATH is wanted");
	if (path != query && *path != '/')
		return bad_uri(why, uri, "a socket has no host: nbd+unix:///EXPORT?socket=PATH");
	ret = take_export(place, path, (size_t)(query - path), uri, why);
	if (ret)
		return ret;
	query += strlen("?socket=");
	socket = plain(query, strlen(query));
	if (!socket || !*socket)
		ret = bad_uri(why, uri, "the socket's name is not well formed");
	else
		ret = take_socket(place, socket, uri, why);
	free(socket);
	return ret;
}

/* ---- A host and a port -------------------------------------------------------------------------- */

static int look_up(struct nbd_place *place, const char *host, const char *port, const char *uri,
		   struct why *why)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *found;
	size_t n = 0;
	int ret = getaddrinfo(*host ? host : "localhost", *port ? port : PORT, &hints, &found);

	if (ret)
		return refuse(why, -ENXIO, "%s: %s", uri,
			      ret == EAI_SYSTEM ? strerror(errno) : gai_strerror(ret));
	for (struct addrinfo *a = found; a; a = a->ai_next)
		n++;
	place->address = calloc(n, sizeof(*place->address));
	for (struct addrinfo *a = found; a && place->address; a = a->ai_next) {
		struct nbd_address *to = &place->address[place->n++];

		memcpy(&to->to, a->ai_addr, a->ai_addrlen);
		to->len = a->ai_addrlen;
	}
	freeaddrinfo(found);
	return place->address ? 0 : refuse(why, -ENOMEM, "out of memory");
}

/* getaddrinfo() takes any number for one, and cuts it off. */
static bool is_port(const char *text)
{
	size_t len = strspn(text, "0123456789");

	return !text[len] && len && len <= 5 && atoi(text) > 0 && atoi(text) < 65536;
}

static int find_tcp(const char *uri, struct nbd_place *place, struct why *why)
{
	const char *start = uri + strlen(TCP);
	size_t len = strcspn(start, "/?#");
	char *host, *port, *close;
	int ret;

	if (start[len] == '?' || strpbrk(start + len, "?#") || memchr(start, '@', len))
		return bad_uri(why, uri, "nbd://HOST:PORT/EXPORT is wanted");
	ret = take_export(place, start + len, strlen(start + len), uri, why);
	if (ret)
		return ret;
	host = plain(start, len);
	if (!host)
		return bad_uri(why, uri, "the host's name is not well formed");
	/* An address of IPv6 has colons of its own, and brackets around it. */
	close = *host == '[' ? strchr(host, ']') : NULL;
	port = strchr(close ? close : host, ':');
	if (*host == '[' && (!close || (close[1] && close[1] != ':'))) {
		ret = bad_uri(why, uri, "the address is not well formed");
	} else {
		if (port)
			*port++ = '\0';
		if (close)
			*close = '\0';
		if (port && *port && !is_port(port))
			ret = bad_uri(why, uri, "the port is not well formed");
		else
			ret = look_up(place, host + (close != NULL), port ? port : "", uri, why);
	}
	free(host);
	return ret;
}

/* ---- Either ------------------------------------------------------------------------------------- */

int nbd_find(const char *uri, struct nbd_place *place, struct why *why)
{
	int ret;

	*place = (struct nbd_place){ .dir = -1 };
	if (begins(uri, TCP))
		ret = find_tcp(uri, place, why);
	else if (begins(uri, UNIX))
		ret = find_unix(uri, place, why);
	else
		ret = refuse(why, -EOPNOTSUPP, "%s: only nbd:// and nbd+unix:// can be served",
			     uri);
	if (ret)
		nbd_forget(place);
	return ret;
}

void nbd_forget(struct nbd_place *place)
{
	free(place->export);
	free(place->address);
	if (place->dir >= 0)
		close(place->dir);
	*place = (struct nbd_place){ .dir = -1 };
}
