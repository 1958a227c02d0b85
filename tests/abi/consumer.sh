#!/bin/sh
# SPDX-License-Identifier: MIT
# Installed into a prefix, the libraries serve programs that know nothing but pkg-config; as a Meson
# subproject they serve another project. TAP on standard output.
# usage: consumer.sh SOURCE_DIR enabled|disabled     (the server's io_uring)
set -eu
top=$1 uring=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
. "$(dirname "$0")/../tap.sh"

# A build of its own, so that neither the sanitizers of this one nor its prefix matter.
install_it()
{
	meson setup "$work/build" "$top" --prefix "$work/prefix" --libdir lib -Dtests=disabled \
		-Dtools=disabled -Dexamples=false -Dbench=false -During="$uring" &&
		meson compile -C "$work/build" && meson install -C "$work/build"
}

# pc LIBRARY PKG_CONFIG_OPTIONS...
pc()
{
	_library=$1
	shift
	PKG_CONFIG_PATH=$work/prefix/lib/pkgconfig pkg-config "$@" "$_library"
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

cat >"$work/server-app.c" <<'EOF'
#include <stdio.h>
#include <uffd/server.h>

int main(void)
{
	struct libuffd_server *s = NULL;
	struct libuffd_source *zeros = NULL;
	int ret = libuffd_server_new(NULL, &s);

	if (!ret)
		ret = libuffd_source_zero(&zeros);
	libuffd_source_unref(zeros);
	printf("%s %d\n", libuffd_version(), ret);
	libuffd_server_free(s);
	return ret ? 1 : 0;
}
EOF

# shared LIBRARY PROGRAM; the same for the others
shared()
{
	cc -std=c11 -Wall -Wextra -Werror "$work/$2.c" $(pc "$1" --cflags --libs) -o "$work/$2-shared" &&
		LD_LIBRARY_PATH=$work/prefix/lib "$work/$2-shared" &&
		readelf -d "$work/$2-shared" | grep -qF "[$1.so.0]"
}

static()
{
	cc -std=c11 -static "$work/$2.c" $(pc "$1" --static --cflags --libs) -o "$work/$2-static" &&
		"$work/$2-static"
}

plus_plus()
{
	c++ -std=c++17 -Wall -Wextra -Werror -x c++ "$work/$2.c" -x none $(pc "$1" --cflags --libs) \
		-o "$work/$2-plus" && LD_LIBRARY_PATH=$work/prefix/lib "$work/$2-plus"
}

version_matches()
{
	test "$(pc "$1" --modversion) 0" = "$(LD_LIBRARY_PATH=$work/prefix/lib "$work/$2-shared")"
}

# Who asks for the server gets the core too, since he calls it himself; what the server is made of is for
# who links the archive.
names_libraries()
{
	private=
	[ "$uring" = disabled ] || private="-luring "
	set -- $(pc libuffd-server --libs-only-l)
	test "$*" = "-luffd-server -luffd" || { echo "it names $*"; return 1; }
	set -- $(pc libuffd-server --static --libs-only-l)
	test "$* " = "-luffd-server -luffd $private" || { echo "with --static it names $*"; return 1; }
	pc libuffd-server --static --libs | grep -q -e ' -pthread'
}

# The README's program, pasted: the first block of C in it, which is examples/first.c too.
readme()
{
	awk '/^```c$/ { on = 1; next } /^```$/ { if (on) exit } on' "$top/README.md" >"$work/first.c"
	tail -n +2 "$top/examples/first.c" | diff - "$work/first.c" &&
		cc "$work/first.c" $(pc libuffd --cflags --libs) -o "$work/first" &&
		LD_LIBRARY_PATH=$work/prefix/lib "$work/first" | tee "$work/out" &&
		grep -q '^page 0 was made for fault 4$' "$work/out"
}

# CMake, which asks pkg-config.
cmake_consumer()
{
	mkdir "$work/cmake"
	cp "$work/app.c" "$work/server-app.c" "$work/cmake"
	cat >"$work/cmake/CMakeLists.txt" <<-'EOF'
		cmake_minimum_required(VERSION 3.13)
		project(app C)
		find_package(PkgConfig REQUIRED)
		pkg_check_modules(UFFD REQUIRED IMPORTED_TARGET libuffd)
		pkg_check_modules(UFFD_SERVER REQUIRED IMPORTED_TARGET libuffd-server)
		add_executable(app app.c)
		target_link_libraries(app PkgConfig::UFFD)
		add_executable(server-app server-app.c)
		target_link_libraries(server-app PkgConfig::UFFD_SERVER)
	EOF
	PKG_CONFIG_PATH=$work/prefix/lib/pkgconfig cmake -S "$work/cmake" -B "$work/cmake/out" &&
		cmake --build "$work/cmake/out" && "$work/cmake/out/app" && "$work/cmake/out/server-app"
}

subproject()
{
	mkdir -p "$work/project/subprojects"
	ln -s "$top" "$work/project/subprojects/libuffd"
	cp "$top/libuffd.wrap" "$work/project/subprojects"
	cp "$work/app.c" "$work/server-app.c" "$work/project"
	# The README's lines, as they stand.
	awk '/^```meson$/ { on = 1; next } /^```$/ { on = 0 } on' "$top/README.md" >"$work/readme.meson"
	grep -q libuffd-server "$work/readme.meson" || return 1
	{
		echo "project('app', 'c', default_options: ['warning_level=2', 'werror=true'])"
		cat "$work/readme.meson"
		echo "executable('app', 'app.c', dependencies: uffd)"
		echo "executable('server-app', 'server-app.c', dependencies: server)"
	} >"$work/project/meson.build"
	meson setup "$work/project/build" "$work/project" --wrap-mode=forcefallback -Ddefault_library=static &&
		meson compile -C "$work/project/build" && "$work/project/build/app" &&
		"$work/project/build/server-app"
}

try "installs into a prefix" install_it
for use in "libuffd app" "libuffd-server server-app"; do
	library=${use% *} program=${use#* }
	try "$library: pkg-config --cflags --libs, shared, C11" shared "$library" "$program"
	try "$library: pkg-config --static" static "$library" "$program"
	try "$library: C++17" plus_plus "$library" "$program"
	try "$library: pkg-config's version is the library's" version_matches "$library" "$program"
done
try "pkg-config names what a program needs with the server" names_libraries
try "the README's program, pasted" readme
try "Meson subproject" subproject
try "CMake, with pkg_check_modules" cmake_consumer
finish
