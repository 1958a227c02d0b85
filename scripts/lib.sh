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
