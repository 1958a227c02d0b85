#!/bin/sh
# SPDX-License-Identifier: MIT
# What the compiler and the linker can do against mistakes is in what is installed. TAP on standard output.
# usage: hardening.sh FILE...     (libraries and programs)
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
. "$(dirname "$0")/../tap.sh"

# All that is looked up at run time is looked up at the start, and cannot be written to after that.
full_relro()
{
	readelf -lW "$1" | grep -q GNU_RELRO && readelf -dW "$1" | grep -q -w -e BIND_NOW -e NOW
}

no_executable_stack()
{
	readelf -lW "$1" | grep GNU_STACK | grep -qv E
}

# Nor does any part of it let itself be written to and executed.
no_writable_code()
{
	! readelf -lW "$1" | grep -w LOAD | grep -q 'RWE'
}

position_independent()
{
	readelf -hW "$1" | grep -q 'Type: *DYN'
}

# uses FILE PATTERN
uses()
{
	nm -D --undefined-only "$1" | grep -q "$2"
}

for file; do
	of=$(basename "$file")
	try "$of: full RELRO" full_relro "$file"
	try "$of: the stack is not executable" no_executable_stack "$file"
	try "$of: nothing is writable and executable" no_writable_code "$file"
	try "$of: position independent" position_independent "$file"
	try "$of: stack protector" uses "$file" ' __stack_chk_fail'
	try "$of: _FORTIFY_SOURCE" uses "$file" ' __[a-z]*_chk\(@\|$\)'
done
finish
