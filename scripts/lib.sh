# SPDX-License-Identifier: MIT
# What the scripts share. Sourced, with $top set to the root of the tree.

say()
{
	printf '== %s\n' "$*"
}

die()
{
	printf '%s: %s\n' "$(basename "$0")" "$*" >&2
	exit 1
}

# A build directory for these options: kept as long as they are the same, made anew otherwise.
# configure DIR MESON_OPTIONS...
configure()
{
	_dir=$1
	shift
	_options="${CC:-cc} $* $(cat "$top"/tests/cross/* | cksum)"
	if [ -f "$_dir/build.ninja" ] && [ "$(cat "$_dir/options" 2>/dev/null)" = "$_options" ]; then
		return 0 # ninja sees for itself what has changed
	fi
	rm -rf "$_dir"
	meson setup "$_dir" "$top" "$@" && printf '%s\n' "$_options" >"$_dir/options"
}

# How scripts/coverage and scripts/check build and test what counts its lines. Without optimization, so that every line is
# there; atomic, since gcov's sums do not add up if threads lose counts; without the examples, which the tests have another
# user run, who may not write the counts.
coverage_options="-Db_coverage=true -Dc_args=-fprofile-update=atomic -Doptimization=0 -Dexamples=false -Dman=false -Dbench=false"
coverage_suites="unit kernel tools"

# Earlier runs count as well, unless they are forgotten.
# forget_counts BUILD_DIR
forget_counts()
{
	find "$1" -name '*.gcda' -delete
}

# The compiler of 32-bit programs: one of two ways to them is installed, since they exclude each other.
compiler_32()
{
	if command -v i686-linux-gnu-gcc >/dev/null; then
		echo i686-linux-gnu-gcc
	else
		echo "gcc -m32"
	fi
}

# Whether the kernel runs what it makes: not if the shell says 126, "no such program". What cannot be built is not for here to judge.
# runs_32_bit SCRATCH_DIR
runs_32_bit()
{
	echo 'int main(void) { return 0; }' >"$1/runs.c"
	$(compiler_32) "$1/runs.c" -o "$1/runs" 2>/dev/null || return 0
	"$1/runs" 2>/dev/null && return 0
	[ $? != 126 ]
}
