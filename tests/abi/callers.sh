#!/bin/sh
# SPDX-License-Identifier: MIT
# Programs and libraries of different times. TAP on standard output.
# usage: callers.sh SOURCE_DIR BUILD_DIR
set -eu
top=$1 build=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
. "$(dirname "$0")/../tap.sh"

# compile PROGRAM HEADERS LIBRARIES OPTIONS...: LIBRARIES is a build directory
compile()
{
	_program=$1 _headers=$2 _libraries=$3
	shift 3
	cc -std=c11 -Wall -Wextra -Werror -I "$_headers" -I "$build/include" "$@" "$top/tests/abi/caller.c" \
		-L "$_libraries/src/server" -luffd-server -L "$_libraries/src/core" -luffd -pthread \
		-o "$work/$_program"
}

# with LIBRARIES PROGRAM
with()
{
	LD_LIBRARY_PATH=$1/src/core:$1/src/server "$work/$2"
}

refused()
{
	! with "$@" >"$work/said" || { echo "it was not refused"; return 1; }
	grep -x "open: $(python3 -c 'import os; print(os.strerror(7))')" "$work/said" || {
		cat "$work/said"
		return 1
	}
}

# What was built against the headers of a release runs with the libraries of today.
of_a_release()
{
	compile "of-$1" "$top/tests/abi/frozen/$1" "$build" && with "$build" "of-$1"
}

# A library of tomorrow: two structs of options have one field more.
make_newer()
{
	mkdir "$work/newer"
	(cd "$top" && tar cf - meson.build meson_options.txt libuffd.pc.in include src) |
		tar xf - -C "$work/newer"
	cd "$work/newer"
	sed -i -e '/^struct libuffd_open_opts {/,/^};/ s/^};/\tuint64_t newer;\n};/' \
		-e 's/\(LIBUFFD_OPEN_OPTS_INIT {.*{ NULL }\) }/\1, 0 }/' include/uffd/uffd.h
	sed -i -e '/^struct libuffd_server_opts {/,/^};/ s/^};/\tuint64_t newer;\n};/' \
		-e '/define LIBUFFD_SERVER_OPTS_INIT/,/}$/ s/{ NULL }, { NULL } }/{ NULL }, { NULL }, 0 }/' \
		include/uffd/server.h
	# The first release's size stays what it was; only that it is today's is not true any more.
	sed -i '/_Static_assert(sizeof(struct libuffd_\(open\|server\)_opts) == OPTS_LEAST/d' src/*/*.c
	meson setup out -Dtests=disabled -Dtools=disabled -Dexamples=false -Dman=false -Dbench=false \
		-Ddefault_library=shared && ninja -C out
}

for frozen in "$top/tests/abi/frozen/"*/; do
	version=$(basename "$frozen")
	try "a program of $version runs with this library" of_a_release "$version"
done
try "a newer library can be made" make_newer
newer=$work/newer
try "a program of today" compile today "$top/include" "$build"
try "runs with today's library" with "$build" today
try "and with the newer one: what it does not say is zero" with "$newer/out" today
try "a newer program, which does not use what is new" \
	compile tomorrow-0 "$newer/include" "$newer/out" -DNEWER=0
try "runs with its own library" with "$newer/out" tomorrow-0
try "and with today's" with "$build" tomorrow-0
try "a newer program that uses it" compile tomorrow-1 "$newer/include" "$newer/out" -DNEWER=1
try "runs with its own library, too" with "$newer/out" tomorrow-1
try "and is told by today's that it asks too much" refused "$build" tomorrow-1
finish
