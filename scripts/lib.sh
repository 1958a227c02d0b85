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
