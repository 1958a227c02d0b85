#!/bin/sh
# SPDX-License-Identifier: MIT
# One bounded turn of a fuzzer: first every seed, then SECONDS of new inputs. TAP.
# usage: run.sh PROGRAM CORPUS SECONDS [LONGEST-INPUT]
set -eu
program=$1 corpus=$2 seconds=$3 longest=${4:-512}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
. "$(dirname "$0")/../tap.sh"

fuzzer=$(basename "$program")
try "$fuzzer: $(ls "$corpus" | wc -l) seeds" "$program" -artifact_prefix="$work/" "$corpus"/*
mkdir "$work/new"
try "$fuzzer: new inputs" "$program" -artifact_prefix="$work/" -max_total_time="$seconds" \
	-max_len="$longest" -timeout=10 "$work/new" "$corpus"
sed -n 's/^stat::number_of_executed_units/# runs/p; /^Done/s/^/# /p' "$work/log"
for f in "$work"/crash-* "$work"/timeout-* "$work"/leak-*; do
	[ ! -e "$f" ] || { echo "# $(basename "$f"), in base64:"; base64 "$f" | sed 's/^/# /'; }
done
finish
