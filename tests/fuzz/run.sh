#!/bin/sh
# SPDX-License-Identifier: MIT
# One bounded turn of a fuzzer: first every seed, then SECONDS of new inputs. TAP.
# usage: run.sh PROGRAM CORPUS SECONDS
set -eu
program=$1 corpus=$2 seconds=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

try()
{
	if "$@" >"$work/log" 2>&1; then
		echo "ok $n - $name"
	else
		echo "not ok $n - $name"
		tail -n 40 "$work/log" | sed 's/^/# /'
		failed=1
	fi
}

n=1 name="$(basename "$program"): $(ls "$corpus" | wc -l) seeds"
try "$program" -artifact_prefix="$work/" "$corpus"/*
mkdir "$work/new"
n=2 name="$(basename "$program"): new inputs"
try "$program" -artifact_prefix="$work/" -max_total_time="$seconds" -max_len=512 -timeout=10 \
	"$work/new" "$corpus"
sed -n 's/^stat::number_of_executed_units/# runs/p; /^Done/s/^/# /p' "$work/log"
for f in "$work"/crash-* "$work"/timeout-* "$work"/leak-*; do
	[ ! -e "$f" ] || { echo "# $(basename "$f"), in base64:"; base64 "$f" | sed 's/^/# /'; }
done
echo "1..2"
exit $failed
