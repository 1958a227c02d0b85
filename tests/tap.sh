# SPDX-License-Identifier: MIT
# TAP from a shell script. Sourced; $work is a directory for the log, which the script removes.

n=0 failed=0

# try NAME COMMAND...: one line of TAP, and what the command said if it failed
try()
{
	name=$1
	shift
	n=$((n + 1))
	if "$@" >"$work/log" 2>&1; then
		echo "ok $n - $name"
	else
		echo "not ok $n - $name"
		tail -n 40 "$work/log" | sed 's/^/# /'
		failed=1
	fi
}

# skip NAME WHY
skip()
{
	n=$((n + 1))
	echo "ok $n - $1 # SKIP $2"
}

# The plan, and the exit status.
finish()
{
	echo "1..$n"
	exit $failed
}
