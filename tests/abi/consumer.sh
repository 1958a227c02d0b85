#!/bin/sh
# SPDX-License-Identifier: MIT
# Installed into a prefix, the library serves a program that knows nothing but pkg-config; as a Meson
# subproject it serves another project. TAP on standard output.
# usage: consumer.sh BUILD_DIR SOURCE_DIR
set -eu
build=$1 top=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
. "$(dirname "$0")/../tap.sh"

# A build of its own, so that neither the sanitizers of this one nor its prefix matter.
install_it()
{
	meson setup "$work/build" "$top" --prefix "$work/prefix" --libdir lib -Dtests=disabled \
		-Dtools=disabled -Dexamples=false -Dbench=false &&
		meson compile -C "$work/build" && meson install -C "$work/build"
}

pc()
{
	PKG_CONFIG_PATH=$work/prefix/lib/pkgconfig pkg-config "$@" libuffd
}

cat >"$work/app.c" <<'EOF'
#include <stdio.h>
#include <uffd/uffd.h>

int main(void)
{
	struct libuffd_caps caps = LIBUFFD_CAPS_INIT;
	int ret = libuffd_probe(&caps);

	printf("%s %d\n", libuffd_version(), ret);
	return ret;
}
EOF

shared()
{
	cc -std=c11 -Wall -Wextra -Werror "$work/app.c" $(pc --cflags --libs) -o "$work/shared" &&
		LD_LIBRARY_PATH=$work/prefix/lib "$work/shared" &&
		readelf -d "$work/shared" | grep -q 'libuffd\.so\.0'
}

static()
{
	cc -std=c11 -static "$work/app.c" $(pc --static --cflags --libs) -o "$work/static" &&
		"$work/static"
}

plus_plus()
{
	c++ -std=c++17 -Wall -Wextra -Werror -x c++ "$work/app.c" -x none $(pc --cflags --libs) \
		-o "$work/plus" && LD_LIBRARY_PATH=$work/prefix/lib "$work/plus"
}

version_matches()
{
	test "$(pc --modversion) 0" = "$(LD_LIBRARY_PATH=$work/prefix/lib "$work/shared")"
}

# The README's program, pasted: the first block of C in it, which is examples/first.c too.
readme()
{
	awk '/^```c$/ { on = 1; next } /^```$/ { if (on) exit } on' "$top/README.md" >"$work/first.c"
	tail -n +2 "$top/examples/first.c" | diff - "$work/first.c" &&
		cc "$work/first.c" $(pc --cflags --libs) -o "$work/first" &&
		LD_LIBRARY_PATH=$work/prefix/lib "$work/first" | tee "$work/out" &&
		grep -q '^page 0 was made for fault 4$' "$work/out"
}

subproject()
{
	mkdir -p "$work/project/subprojects"
	ln -s "$top" "$work/project/subprojects/libuffd"
	cp "$work/app.c" "$work/project/app.c"
	cat >"$work/project/meson.build" <<-'EOF'
		project('app', 'c', default_options: ['warning_level=2', 'werror=true'])
		uffd = dependency('libuffd', fallback: 'libuffd', default_options: ['default_library=static'])
		executable('app', 'app.c', dependencies: uffd)
	EOF
	meson setup "$work/project/build" "$work/project" --wrap-mode=forcefallback &&
		meson compile -C "$work/project/build" && "$work/project/build/app"
}

try "installs into a prefix" install_it
try "pkg-config --cflags --libs, shared, C11" shared
try "pkg-config --static" static
try "C++17" plus_plus
try "pkg-config's version is the library's" version_matches
try "the README's program, pasted" readme
try "Meson subproject" subproject
finish
