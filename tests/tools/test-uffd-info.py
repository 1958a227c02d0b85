# SPDX-License-Identifier: MIT
"""uffd-info: what it prints, and whether that is so. Arguments: uffd-info, helper, uffd.h."""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import platform
import re
import shutil
import signal
import stat
import struct
import sys

import common
from common import Skip, check, equal, read, run

INFO, WITHOUT, HEADER = [os.path.abspath(a) for a in sys.argv[1:4]]
SYSCTL = "/proc/sys/vm/unprivileged_userfaultfd"
DEVICE = "/dev/userfaultfd"
WAY_NAMES = {"syscall": "userfaultfd(2)", "device": DEVICE, "user-mode": "user mode only"}

copies = common.Copies(INFO, WITHOUT)


def human(*args):
    result = run([INFO, *args])
    equal(result.returncode, 0, result.stderr)
    equal(result.stderr, "")
    return result.stdout


def as_json(result):
    equal(result.returncode, 0, result.stderr)
    return json.loads(result.stdout)


def facts():
    return as_json(run([INFO, "--json"]))


def section(text, title):
    """The lines below a title, down to the next empty line."""
    found = re.search(r"^%s.*\n((?:.+\n)*)" % re.escape(title), text, re.MULTILINE)
    check(found, "no section", title)
    return found.group(1).splitlines()


def feature_rows(text):
    """{name: (since, here, purpose)} of the table."""
    row = re.compile(r"^  (\S+) +(\S+) +(yes|no|denied|unknown) +(\S.*)$")
    return {m.group(1): m.groups()[1:] for m in map(row.match, section(text, "FEATURES")) if m}


def header_bits(prefix):
    """{"wp-async": (15, comment)} of the header's definitions."""
    text = read(HEADER)
    line = re.compile(r"^#define LIBUFFD_%s_(\w+) \(UINT64_C\(1\) << (\d+)\)\s*(/\*.*)?$" % prefix,
                      re.MULTILINE)
    bits = {m.group(1).lower().replace("_", "-"): (int(m.group(2)), m.group(3) or "")
            for m in line.finditer(text)}
    check(bits, "nothing found in the header for", prefix)
    return bits


@contextlib.contextmanager
def sysctl_is(value):
    """Run with vm.unprivileged_userfaultfd at a value, and put it back."""
    try:
        before = read(SYSCTL)
        with open(SYSCTL, "w", encoding="ascii") as f:
            f.write(value)
    except OSError as error:
        raise Skip("cannot set the sysctl: %s" % error) from error
    try:
        yield
    finally:
        with open(SYSCTL, "w", encoding="ascii") as f:
            f.write(before)


@contextlib.contextmanager
def device_is(mode):
    """Run with other permissions on the device, and put them back."""
    try:
        before = stat.S_IMODE(os.stat(DEVICE).st_mode)
        os.chmod(DEVICE, mode)
    except OSError as error:
        raise Skip("cannot change the device: %s" % error) from error
    try:
        yield
    finally:
        os.chmod(DEVICE, before)


def needs_no_filter():
    if facts()["facts"]["seccomp"] != "none":
        raise Skip("a seccomp filter is in place already")


def under_filter(error, *args):
    result = run([WITHOUT, error, INFO, *args])
    if result.returncode == common.NO_FILTER_HERE:
        raise Skip("no seccomp filter can be installed: %s" % result.stderr.strip())
    return result


def nobody_under_filter(error, *args):
    result = copies.as_nobody([copies.path(INFO), *args], [copies.path(WITHOUT), error])
    if result.returncode == common.NO_FILTER_HERE:
        raise Skip("no seccomp filter can be installed: %s" % result.stderr.strip())
    return result


# ---- What it prints ----------------------------------------------------------------------------


def the_table_has_a_row_for_every_feature_of_the_header():
    rows = feature_rows(human())
    for name, (_, comment) in header_bits("FEATURE").items():
        check(name in rows, name, "has no row")
        since, _, purpose = rows[name]
        check(re.search(r"\b%s\b" % re.escape(since), comment), name, since, "header:", comment)
        check("newer than" not in purpose, name, purpose)


def the_json_has_every_feature_of_the_header():
    features = facts()["features"]
    for name, (bit, _) in header_bits("FEATURE").items():
        check(name in features, name)
        equal(features[name]["bit"], bit, name)
        check(features[name]["since"] and features[name]["purpose"], name)


def every_page_category_of_the_header_is_explained():
    scan = facts()["pagemap_scan"]
    text = "\n".join(section(human(), "PAGEMAP_SCAN"))
    if not scan["available"]:
        check(scan["errno"] and not scan["categories"], scan)
        raise Skip("this kernel has no PAGEMAP_SCAN")
    for name in header_bits("PAGE"):
        here = "yes" if name in scan["categories"] else "no"
        check(re.search(r"^  %s +%s +\S" % (re.escape(name), here), text, re.MULTILINE), name)


def human_and_json_tell_the_same_of_features():
    rows, features = feature_rows(human()), facts()["features"]
    equal(sorted(rows), sorted(features))
    for name, feature in features.items():
        equal(rows[name], (feature["since"] or "?", feature["here"],
                           feature["purpose"] or "newer than this uffd-info"), name)


def human_and_json_tell_the_same_of_the_ways_in():
    lines, ways = "\n".join(section(human(), "WAYS TO OPEN")), facts()["ways"]
    equal(sorted(ways), sorted(WAY_NAMES))
    for key, way in ways.items():
        pattern = r"^  %s +%s" % (re.escape(WAY_NAMES[key]),
                                  "open" if way["open"] else "refused " + way["errno"])
        check(re.search(pattern, lines, re.MULTILINE), key, way)


def human_and_json_tell_the_same_of_memory():
    lines, memory = section(human(), "MEMORY"), facts()["memory"]
    rows, kind = {}, None
    titles = {"anonymous": "anonymous", "shared (memfd, tmpfs)": "shared",
              "huge pages (hugetlb)": "hugetlb", "mapped files": "file"}
    for line in lines:
        found = re.match(r"^  (.{24})(missing|wp|minor|rwp) +(\S.*)$", line)
        if found:
            kind = titles.get(found.group(1).strip(), kind)
            rows[kind, found.group(2)] = found.group(3).split(", ")
    for key, kind in memory.items():
        for mode, ioctls in (kind["modes"] or {}).items():
            check((key, mode) in rows, key, mode)
            if key != "file":
                equal(rows.pop((key, mode)), ioctls, key)
            else:
                rows.pop((key, mode))
    equal(rows, {})


def the_output_fits_100_columns_and_has_no_tabs():
    outputs = [human(), human("--help")]
    if os.getuid() == 0:
        outputs += [copies.as_nobody([copies.path(INFO)]).stdout,
                    nobody_under_filter("EPERM").stdout]
    for text in outputs:
        check(text.endswith("\n"), "no newline at the end")
        for line in text.splitlines():
            check(len(line) <= 100 and "\t" not in line and line == line.rstrip(), repr(line))


def help_tells_the_exit_statuses_and_every_option():
    text = human("--help")
    for word in ("--json", "--require", "--quiet", "--version", "Exit status", "  0  ", "  1  ",
                 "  2  ", "  3  "):
        check(word in text, word)


def help_tells_every_key_of_the_json():
    text = human("--help")
    for key, value in facts().items():
        check(re.search(r"\b%s\b" % key, text), key)
        inner = [value] if key in ("facts", "pagemap_scan") else []
        inner += list(value.values()) if key in ("ways", "features", "memory") else []
        for part in inner:
            for name in part:
                check(re.search(r"\b%s\b" % name, text), key, name)


def version_is_told():
    check(re.match(r"^uffd-info \d+\.\d+\.\d+\n$", human("--version")), human("--version"))


# ---- Whether it is so --------------------------------------------------------------------------


def the_facts_are_those_of_the_machine():
    told = facts()
    equal(told["format"], 1)
    equal(told["kernel"], os.uname().release)
    equal(told["machine"], os.uname().machine)
    equal(told["page_size"], os.sysconf("SC_PAGESIZE"))
    status = read("/proc/self/status")
    effective = int(re.search(r"CapEff:\s*(\w+)", status).group(1), 16)
    equal(told["facts"]["cap_sys_ptrace"], bool(effective >> 19 & 1))
    seccomp = re.search(r"Seccomp:\s*(\d)", status)
    equal(told["facts"]["seccomp"],
          {"0": "none", "1": "strict", "2": "filter"}[seccomp.group(1)] if seccomp else None)
    sysctl = int(read(SYSCTL)) if os.path.exists(SYSCTL) else None
    equal(told["facts"]["sysctl"], sysctl)


def the_device_is_described_as_it_is():
    device = facts()["facts"]["device"]
    if not os.path.exists(DEVICE):
        equal(device, None)
        raise Skip("there is no /dev/userfaultfd here")
    st = os.stat(DEVICE)
    equal((int(device["mode"], 8), device["uid"], device["gid"]),
          (stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid))
    check(stat.filemode(st.st_mode)[1:] + ", owner " in human(), "the mode is not told")


def kernel_features():
    """Asked of the kernel with a raw system call: (error of userfaultfd(2), mask)."""
    numbers = {"x86_64": 323, "aarch64": 282, "riscv64": 282, "i686": 374}
    if platform.machine() not in numbers:
        raise Skip("the system call's number is not known here")
    number = numbers[platform.machine()]
    if struct.calcsize("P") == 4 and platform.machine() == "x86_64":
        number = 374
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(number, os.O_CLOEXEC)
    if fd < 0:
        return ctypes.get_errno(), 0
    api = bytearray(struct.pack("=QQQ", 0xAA, 0, 0))
    fcntl.ioctl(fd, 0xC018AA3F, api)  # UFFDIO_API
    os.close(fd)
    return 0, struct.unpack("=QQQ", api)[1]


def the_features_are_those_that_the_kernel_tells():
    told = facts()
    error, mask = kernel_features()
    equal(told["ways"]["syscall"]["open"], error == 0)
    if error:
        equal(told["ways"]["syscall"]["errno"], errno.errorcode[error])
        raise Skip("userfaultfd(2) is refused here: %s" % os.strerror(error))
    have = sum(1 << f["bit"] for f in told["features"].values() if f["here"] in ("yes", "denied"))
    equal(hex(have), hex(mask))


def anonymous_memory_can_always_be_served():
    told = facts()
    if not told["user_mode"]:
        equal(told["memory"]["anonymous"]["modes"], None)
        raise Skip("every way in is refused here")
    modes = told["memory"]["anonymous"]["modes"]
    for ioctl in ("wake", "copy", "zeropage"):
        check(ioctl in modes["missing"], modes)
    check("move" not in told["memory"]["shared"]["modes"]["missing"], told["memory"])


# ---- --require ---------------------------------------------------------------------------------


def require_agrees_with_the_table_for_every_feature():
    for name, feature in facts()["features"].items():
        if name.startswith("bit-"):
            continue
        result = run([INFO, "--require", name])
        equal(result.stdout, "", name)
        if feature["here"] == "yes":
            equal((result.returncode, result.stderr), (0, ""), name)
        else:
            equal(result.returncode, 1, name)
            check(name + ":" in result.stderr and feature["since"] in result.stderr, result.stderr)


def require_knows_open_user_mode_and_pagemap_scan():
    told = facts()
    for word, there in (("open", told["open"]), ("user-mode", told["user_mode"]),
                        ("pagemap-scan", told["pagemap_scan"]["available"])):
        result = run([INFO, "--require", word])
        equal(result.returncode, 0 if there else 1, word)
        check(there or word + ":" in result.stderr, word, result.stderr)


def require_takes_other_spellings():
    wanted = run([INFO, "--require", "wp-async"]).returncode
    check(wanted in (0, 1), wanted)
    for name in ("WP_ASYNC", "wp_async", "UFFD_FEATURE_WP_ASYNC", "uffd-feature-wp-async",
                 "LIBUFFD_FEATURE_WP_ASYNC", "Wp-Async"):
        equal(run([INFO, "--require", name]).returncode, wanted, name)


def require_tells_all_that_is_missing_and_only_that():
    features = facts()["features"]
    names = [n for n in features if not n.startswith("bit-")]
    missing = [n for n in names if features[n]["here"] != "yes"]
    if not missing:
        raise Skip("this kernel has everything")
    result = run([INFO, "--require", ",".join(names)])
    equal(result.returncode, 1)
    equal(re.findall(r"^uffd-info: ([\w-]+):", result.stderr, re.MULTILINE), missing)
    twice = run([INFO, "--require", names[0], "--require", missing[0]])
    equal(twice.returncode, 1)
    quiet = run([INFO, "--quiet", "--require", ",".join(names)])
    equal((quiet.returncode, quiet.stdout, quiet.stderr), (1, "", ""))


def require_and_json_go_together():
    told = facts()
    result = run([INFO, "--json", "--require", "open"])
    equal(result.returncode, 0 if told["open"] else 1)
    equal(json.loads(result.stdout)["features"], told["features"])


def unknown_names_are_status_2_and_the_known_ones_are_listed():
    for names in ("nonsense", "move,nonsense", "", "move,", ",move", "move,,open", "mov", "moves"):
        result = run([INFO, "--require", names])
        equal((result.returncode, result.stdout), (2, ""), names)
        for known in list(header_bits("FEATURE")) + ["open", "user-mode", "pagemap-scan"]:
            check(re.search(r"\b%s\b" % known, result.stderr), names, known)


def wrong_usage_is_status_2():
    for args in (["--nonsense"], ["file"], ["--require"], ["--quiet"], ["--json", "x"], ["-x"]):
        result = run([INFO, *args])
        equal((result.returncode, result.stdout), (2, ""), args)
        check("--help" in result.stderr, args, result.stderr)


# ---- Output that gets lost ---------------------------------------------------------------------


def closed_standard_output_is_status_3():
    for args in ([], ["--json"], ["--help"], ["--version"]):
        result = run([INFO, *args], stdout=None, preexec_fn=lambda: os.close(1))
        equal(result.returncode, 3, args)
        check("output" in result.stderr, args, result.stderr)


def all_descriptors_closed_is_survived():
    def close_all():
        for fd in (0, 1, 2):
            os.close(fd)

    result = run([INFO], stdin=None, stdout=None, stderr=None, preexec_fn=close_all)
    equal(result.returncode, 3)
    result = run([INFO, "--require", "user-mode"], stdin=None, stdout=None, stderr=None,
                 preexec_fn=close_all)
    equal(result.returncode, 0 if facts()["user_mode"] else 1)


def a_full_disk_is_status_3():
    with open("/dev/full", "w", encoding="ascii") as full:
        for args in ([], ["--json"]):
            equal(run([INFO, *args], stdout=full).returncode, 3, args)


def a_broken_pipe_is_no_success():
    for ignore in (False, True):
        reader, writer = os.pipe()
        os.close(reader)
        action = signal.SIG_IGN if ignore else signal.SIG_DFL
        result = run([INFO], stdout=writer, restore_signals=False,
                     preexec_fn=lambda a=action: signal.signal(signal.SIGPIPE, a))
        os.close(writer)
        equal(result.returncode, 3 if ignore else -signal.SIGPIPE)


def require_needs_no_standard_output():
    there = facts()["user_mode"]
    result = run([INFO, "--require", "user-mode"], stdout=None, preexec_fn=lambda: os.close(1))
    equal(result.returncode, 0 if there else 1)


# ---- Refusals and cures ------------------------------------------------------------------------


def cure_names(told, way):
    return [c["name"] for c in told["ways"][way]["cures"]]


def a_user_without_rights_sees_the_refusals_and_their_cures():
    needs_no_filter()
    with contextlib.ExitStack() as stack:
        stack.enter_context(sysctl_is("0"))
        if os.path.exists(DEVICE):
            stack.enter_context(device_is(0o600))
        told = as_json(copies.as_nobody([copies.path(INFO), "--json"]))
        text = copies.as_nobody([copies.path(INFO)]).stdout
        refused = copies.as_nobody([copies.path(INFO), "--require", "open"])
        fork = copies.as_nobody([copies.path(INFO), "--require", "event-fork"])
    equal(told["open"], False)
    equal(told["facts"]["cap_sys_ptrace"], False)
    equal(told["ways"]["syscall"]["errno"], "EPERM")
    equal(cure_names(told, "syscall"), ["sysctl", "capability"])
    if os.path.exists(DEVICE):
        equal(told["ways"]["device"]["errno"], "EACCES")
        equal(cure_names(told, "device"), ["device-mode"])
    equal(refused.returncode, 1)
    for words in (text.replace("\n", " "), refused.stderr):
        check("vm.unprivileged_userfaultfd" in words and "CAP_SYS_PTRACE" in words, words)
    check("sysctl -w vm.unprivileged_userfaultfd=1" in text, text)
    equal(fork.returncode, 1)
    if told["user_mode"]:
        equal(told["features"]["event-fork"]["here"], "denied")
        check(text.startswith("userfaultfd works here for faults in user mode only"), text)
        check("denied" in fork.stderr and "CAP_SYS_PTRACE" in fork.stderr, fork.stderr)


def the_cure_by_sysctl_cures():
    needs_no_filter()
    with sysctl_is("1"):
        told = as_json(copies.as_nobody([copies.path(INFO), "--json"]))
        status = copies.as_nobody([copies.path(INFO), "--require", "open"]).returncode
    check(told["ways"]["syscall"]["open"] and told["open"], told["ways"])
    equal(told["ways"]["syscall"]["cures"], [])
    equal(status, 0)


def the_cure_by_capability_cures():
    needs_no_filter()
    setpriv = shutil.which("setpriv")
    if os.getuid() != 0 or not setpriv:
        raise Skip("needs root and setpriv")
    user = ["--reuid", "65534", "--regid", "65534", "--clear-groups"]
    with sysctl_is("0"):
        told = as_json(run([setpriv, *user, "--inh-caps=+sys_ptrace", "--ambient-caps=+sys_ptrace",
                            copies.path(INFO), "--json"], env=copies.env, cwd="/"))
    equal(told["facts"]["cap_sys_ptrace"], True)
    check(told["ways"]["syscall"]["open"], told["ways"])


def the_cure_by_permission_cures():
    if os.getuid() != 0:
        raise Skip("needs root")
    with device_is(0o666):
        told = as_json(copies.as_nobody([copies.path(INFO), "--json"]))
        text = copies.as_nobody([copies.path(INFO)]).stdout
    check(told["ways"]["device"]["open"] and told["open"], told["ways"])
    check(text.startswith("userfaultfd works here, for every fault."), text)


def a_seccomp_filter_is_told_with_its_cure():
    needs_no_filter()
    for error in ("EPERM", "ENOSYS"):
        told = as_json(under_filter(error, "--json"))
        equal(told["facts"]["seccomp"], "filter")
        equal(told["ways"]["syscall"]["errno"], error)
        equal(told["ways"]["user-mode"]["errno"], error)
        if told["facts"]["cap_sys_ptrace"]:
            check("seccomp" in cure_names(told, "syscall"), error, told["ways"])
        check("seccomp" in cure_names(told, "user-mode"), error, told["ways"])
        text = under_filter(error).stdout
        check("allow userfaultfd(2) in the seccomp filter" in " ".join(text.split()), text)


def when_nothing_is_open_that_comes_first_with_the_cure():
    needs_no_filter()
    with contextlib.ExitStack() as stack:
        if os.path.exists(DEVICE) and os.getuid() == 0:
            stack.enter_context(device_is(0o600))
        for error in ("EPERM", "ENOSYS"):
            told = as_json(nobody_under_filter(error, "--json"))
            text = nobody_under_filter(error).stdout
            equal((told["open"], told["user_mode"]), (False, False))
            for feature in told["features"].values():
                equal(feature["here"], "unknown")
            for kind in told["memory"].values():
                equal(kind["modes"], None)
            check(text.startswith("userfaultfd cannot be used here"), text)
            first = " ".join(text[:text.index("\nLinux ")].split())
            check("seccomp" in first, first)
            result = nobody_under_filter(error, "--require", "move,user-mode,open")
            equal(result.returncode, 1)
            equal(re.findall(r"^uffd-info: ([\w-]+):", result.stderr, re.MULTILINE),
                  ["move", "user-mode", "open"])
            check("unknown" in result.stderr and "seccomp" in result.stderr, result.stderr)


TESTS = [
    the_table_has_a_row_for_every_feature_of_the_header,
    the_json_has_every_feature_of_the_header,
    every_page_category_of_the_header_is_explained,
    human_and_json_tell_the_same_of_features,
    human_and_json_tell_the_same_of_the_ways_in,
    human_and_json_tell_the_same_of_memory,
    the_output_fits_100_columns_and_has_no_tabs,
    help_tells_the_exit_statuses_and_every_option,
    help_tells_every_key_of_the_json,
    version_is_told,
    the_facts_are_those_of_the_machine,
    the_device_is_described_as_it_is,
    the_features_are_those_that_the_kernel_tells,
    anonymous_memory_can_always_be_served,
    require_agrees_with_the_table_for_every_feature,
    require_knows_open_user_mode_and_pagemap_scan,
    require_takes_other_spellings,
    require_tells_all_that_is_missing_and_only_that,
    require_and_json_go_together,
    unknown_names_are_status_2_and_the_known_ones_are_listed,
    wrong_usage_is_status_2,
    closed_standard_output_is_status_3,
    all_descriptors_closed_is_survived,
    a_full_disk_is_status_3,
    a_broken_pipe_is_no_success,
    require_needs_no_standard_output,
    a_user_without_rights_sees_the_refusals_and_their_cures,
    the_cure_by_sysctl_cures,
    the_cure_by_capability_cures,
    the_cure_by_permission_cures,
    a_seccomp_filter_is_told_with_its_cure,
    when_nothing_is_open_that_comes_first_with_the_cure,
]

if __name__ == "__main__":
    try:
        STATUS = common.main(TESTS)
    finally:
        copies.remove()
    sys.exit(STATUS)
