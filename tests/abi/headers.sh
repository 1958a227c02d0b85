#!/bin/sh
# SPDX-License-Identifier: MIT
# The public headers by themselves, strictly: as C11 and C++17, beside the kernel's header in both orders,
# with every compiler at hand, for 64 and 32 bits. TAP on standard output.
# usage: headers.sh INCLUDE_DIR BUILD_INCLUDE_DIR SOURCE_DIR
set -eu
inc=$1 build_inc=$2 src=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
. "$(dirname "$0")/../tap.sh"
. "$(dirname "$0")/../../scripts/lib.sh"

strict="-Wall -Wextra -Werror -pedantic-errors -Wshadow -Wundef -I$inc -I$build_inc"

# layout STANDARD COMPILER FLAGS...: build the layout program, and run it
layout()
{
	standard=$1 compiler=$2
	shift 2
	if ! command -v "$compiler" >/dev/null; then
		skip "$standard $compiler $*" "$compiler is not installed"
		return
	fi
	try "$standard $compiler $*" build_and_run "$compiler" -std="$standard" $strict "$@"
}

build_and_run()
{
	"$@" -o "$work/layout" && "$work/layout"
}

gcc32=$(compiler_32) clang32="clang -m32"
[ "$gcc32" = "gcc -m32" ] || clang32="clang --target=i686-linux-gnu"

# layout32 STANDARD COMPILER FLAGS...: what it looks like is asserted at compile time too, where no such program runs
layout32()
{
	if ! $runs32 && command -v "$2" >/dev/null; then
		shift
		try "c11 $* (compiled)" "$@" -std=c11 $strict -o "$work/layout"
		skip "c11 $* (run)" "this machine runs no 32-bit programs"
	else
		layout "$@"
	fi
}
runs32=true
runs_32_bit "$work" || runs32=false

cd "$src"
for order in -DALONE -DKERNEL_FIRST -DKERNEL_LAST; do
	layout c11 gcc $order layout.c
	layout32 c11 $gcc32 $order layout.c
	layout c11 clang $order layout.c
	layout32 c11 $clang32 $order layout.c
	for cxx in g++ clang++; do
		layout c++17 $cxx $order -x c++ layout.c
	done
done

# Nothing of the kernel's, and no type of a dependency's, leaks out of a header.
leaks()
{
	printf '#include <uffd/%s>\n' "$1" | gcc -std=c11 -I"$inc" -I"$build_inc" -E -M - >"$work/deps" &&
		! grep -E 'linux/(userfaultfd|fs)\.h|liburing|json-c' "$work/deps"
}
for header in uffd.h server.h snapshot.h watch.h workingset.h; do
	try "$header includes no kernel header, and nothing of a dependency's" leaks "$header"
done
finish
