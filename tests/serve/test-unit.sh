#!/bin/sh
# SPDX-License-Identifier: MIT
# The units that are shipped, as systemd sees them.
# usage: test-unit.sh UFFD-SERVE SERVICE SOCKET
set -eu
program=$(realpath "$1") service=$2 socket=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
. "$(dirname "$0")/../tap.sh"

# With the program that was built in place of the one that is to be installed.
sed "s|^ExecStart=[^ ]*|ExecStart=$program|" "$service" >"$work/uffd-serve@.service"
cp "$socket" "$work/uffd-serve@.socket"

verified()
{
	out=$(SYSTEMD_UNIT_PATH="$work:" systemd-analyze verify "$work/$1" 2>&1) || { echo "$out"; return 1; }
	# A key that it does not know is a warning alone.
	! echo "$out" | grep -F "$work"
}

# Each option that the unit gives is one that the program takes.
understood()
{
	options=$(sed -n 's/^ExecStart=[^ ]* //p' "$service" | sed 's/\$OPTIONS//; s/\${MEMORY}/\/dev\/null/')
	out=$("$program" $options 2>&1) && return 1
	echo "$out"
	echo "$out" | grep -q 'neither a file nor a block device'
}

for unit in uffd-serve@test.service uffd-serve@test.socket; do
	cp "$work/uffd-serve@.${unit##*.}" "$work/$unit"
done
for unit in uffd-serve@test.service uffd-serve@test.socket; do
	if command -v systemd-analyze >/dev/null; then
		try "$unit is a unit" verified "$unit"
	else
		skip "$unit is a unit" "needs systemd: systemd-analyze is not here"
	fi
done
try "its options are the program's" understood
finish
