#!/bin/sh
# SPDX-License-Identifier: MIT
# The public header by itself, strictly: as C11 and C++17, beside the kernel's header in both orders,
# with every compiler at hand, for 64 and 32 bits. TAP on standard output.
# usage: headers.sh INCLUDE_DIR BUILD_INCLUDE_DIR SOURCE_DIR
set -eu
inc=$1 build_inc=$2 src=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
n=0 failed=0

# try NAME COMMAND...: one line of TAP
try()
{
	name=$1
	shift
	n=$((n + 1))
	if "$@" >"$work/log" 2>&1; then
		echo "ok $n - $name"
	else
		echo "not ok $n - $name"
		sed 's/^/# /' "$work/log"
		failed=1
	fi
}

strict="-Wall -Wextra -Werror -pedantic-errors -Wshadow -Wundef -I$inc -I$build_inc"

# compile NAME COMPILER FLAGS...: build the layout program, and run it
build_and_run()
{
	"$@" -o "$work/layout" && "$work/layout"
}

for order in "" -DKERNEL_FIRST -DKERNEL_LAST; do
	for cc in gcc clang; do
		command -v "$cc" >/dev/null || continue
		try "C11 $cc $order" build_and_run "$cc" -std=c11 $strict $order "$src/layout.c"
		try "C11 -m32 $cc $order" build_and_run "$cc" -m32 -std=c11 $strict $order "$src/layout.c"
	done
	for cxx in g++ clang++; do
		command -v "$cxx" >/dev/null || continue
		try "C++17 $cxx $order" build_and_run "$cxx" -std=c++17 $strict $order -x c++ "$src/layout.c"
	done
done

# Nothing of the kernel's, and no type of a dependency's, leaks out of the header.
leaks()
{
	printf '#include <uffd/uffd.h>\n' | gcc -std=c11 -I"$inc" -I"$build_inc" -E -M - >"$work/deps"
	! grep -E 'linux/(userfaultfd|fs)\.h|liburing|json-c' "$work/deps"
}
try "no kernel header is included" leaks
echo "1..$n"
exit $failed
