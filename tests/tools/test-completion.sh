#!/bin/bash
# SPDX-License-Identifier: MIT
# Completion in bash knows the options that the tools have, and no others. TAP on standard output.
# usage: test-completion.sh SOURCE_DIR UFFD_INFO UFFD_SERVE
set -eu
top=$1
export PATH=$(dirname "$2"):$(dirname "$3"):$PATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
. "$top/tests/tap.sh"
# What bash-completion would do when one presses tab.
compopt() { :; }

# complete_at TOOL WORDS...: what is offered for the last word
complete_at()
{
	COMP_WORDS=("$@")
	COMP_CWORD=$(($# - 1))
	COMPREPLY=()
	"_${1//-/_}" "$1"
	printf '%s\n' "${COMPREPLY[@]}"
}

same_options()
{
	diff <("$1" --help | grep -oE '(^|[ ,])--[a-z][a-z-]*' | tr -d ' ,' | sort -u) \
		<(complete_at "$1" --  | sort -u)
}

# offers WANTED TOOL WORDS...
offers()
{
	wanted=$1
	shift
	complete_at "$@" >"$work/offered"
	grep -qxF -e "$wanted" "$work/offered" || { cat "$work/offered"; return 1; }
}

for tool in uffd-info uffd-serve; do
	. "$top/tools/completion/$tool"
	try "$tool: the options of --help" same_options "$tool"
done
try "uffd-serve --on-error k" offers kill uffd-serve --on-error k
try "uffd-serve --memory FILE" offers "$top/README.md" uffd-serve --memory "$top/READ"
try "uffd-info --require open,mov" offers open,move uffd-info --require open,mov
try "uffd-info --require pag" offers pagemap-scan uffd-info --require pag
finish
