# SPDX-License-Identifier: MIT
"""What a guest boots: a kernel out of its package, and an initramfs with the test programs."""
import glob
import os
import re
import shlex
import shutil
import stat

from packages import Problem, command

TOP = os.path.realpath(os.path.join(os.path.dirname(__file__), "..", "..", ".."))
BUILD = os.path.join(TOP, "build-vm")
HOME_SUITE = "bookworm"  # where busybox and the libraries of the guests come from
SUITES = ("kernel", "server", "serve")  # directories of tests whose programs guests run

# Where each kind of program finds its libraries on this machine; {sysroot} is unpacked packages.
LIBRARIES = {
    "x86_64": ["/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64"],
    "i386": ["/usr/i686-linux-gnu/lib", "/usr/lib/i386-linux-gnu", "/usr/lib32", "/lib32"],
    "arm64": ["/usr/aarch64-linux-gnu/lib", "{sysroot}/usr/lib/aarch64-linux-gnu"],
}
READELF = {"x86_64": "readelf", "i386": "readelf", "arm64": "aarch64-linux-gnu-readelf"}

PASSWD = "root::0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/tmp:/bin/sh\n" \
         "tester:x:1000:1000:tester:/tmp:/bin/sh\n"
GROUP = "root:x:0:\nnogroup:x:65534:\ntester:x:1000:\nuffd:x:1001:tester\n"


def build_programs(arch, archive):
    """Compile the tests for an architecture; the build directory."""
    args = [os.path.join(TOP, "tests", "vm", "build"), arch]
    if arch == "arm64":
        args.append(sysroot(archive))
    log = command(args, f"building the tests for {arch}")
    with open(os.path.join(BUILD, arch + ".log"), "w", encoding="utf-8") as f:
        f.write(log)
    return os.path.join(BUILD, arch)


def sysroot(archive):
    """Libraries for arm64, unpacked: installing them would make arm64 an architecture of this machine."""
    into = os.path.join(BUILD, "arm64-sysroot")
    packages = [archive.latest([HOME_SUITE], name, "arm64")
                for name in ("libcmocka0", "libcmocka-dev", "liburing2", "liburing-dev", "libjson-c5", "libjson-c-dev")]
    want = " ".join(p.sha256 for p in packages)
    if read_or_none(os.path.join(into, "made-of")) != want:
        shutil.rmtree(into, ignore_errors=True)
        for package in packages:
            archive.unpack(package, into)
        write(os.path.join(into, "made-of"), want)
    return into


def program_paths(build):
    """The test programs by name."""
    return {os.path.basename(path)[len("test-"):]: path
            for suite in SUITES for path in glob.glob(os.path.join(build, "tests", suite, "test-*"))
            if os.access(path, os.X_OK) and os.path.isfile(path)}


def programs_of(build):
    """Their names, in the order in which they run."""
    # Last the one that has the hardware lose pages: the kernel goes on counting such a huge page as free.
    return sorted(program_paths(build), key=lambda name: (name == "facts", name))


# ---- The part that all guests of one architecture share


def make_base(arch, build, archive, tree):
    """Lay out the root of a guest below tree."""
    apt_arch = "arm64" if arch == "arm64" else "amd64"
    for part in ("bin", "dev", "proc", "sys", "tests", "lib", "etc", "run", "tmp"):
        os.makedirs(os.path.join(tree, part), exist_ok=True)
    busybox = os.path.join(tree, "busybox.unpacked")
    archive.unpack(archive.latest([HOME_SUITE], "busybox-static", apt_arch), busybox)
    found = glob.glob(busybox + "/bin/busybox") + glob.glob(busybox + "/usr/bin/busybox")
    shutil.copy2(found[0], os.path.join(tree, "bin", "busybox"))
    shutil.rmtree(busybox)
    shutil.copy2(os.path.join(TOP, "tests", "vm", "init"), os.path.join(tree, "init"))
    write(os.path.join(tree, "etc", "passwd"), PASSWD)
    write(os.path.join(tree, "etc", "group"), GROUP)
    # The page server lies where its tests look for it: beside them.
    binaries = [*program_paths(build).values(), os.path.join(build, "tests", "vm", "offers"),
                os.path.join(build, "tools", "serve", "uffd-serve")]
    for path in binaries:
        shutil.copy2(path, os.path.join(tree, "tests"))
    keeper = os.path.join(build, "tests", "vm", "ring")
    shutil.copy2(keeper, tree)
    binaries.append(keeper)
    if arch == "x86_64":
        binaries += add_nbdkit(tree)
    add_libraries(arch, build, binaries, tree)


def add_nbdkit(tree):
    """This machine's NBD server, and of its plugins and filters what the tests want; what has to be linked for it."""
    config = dict(line.split("=", 1) for line in command(["nbdkit", "--dump-config"], "an NBD server for the guests").split())
    wanted = {"plugin": ["file"], "filter": ["blocksize-policy", "delay", "error", "log", "multi-conn", "noextents"]}
    parts = [config["binary"]] + [os.path.join(config[kind + "dir"], f"nbdkit-{name}-{kind}.so")
                                  for kind, names in wanted.items() for name in names]
    for path in parts:
        to = tree + path if path.endswith(".so") else os.path.join(tree, "bin", "nbdkit")
        os.makedirs(os.path.dirname(to), exist_ok=True)
        shutil.copy2(path, to)
    return parts


# What the tests of tests/tools are given, by name.
TOOLS = {"microvm": ["tools/uffd-info", "tests/tools/without-userfaultfd", "examples/microvm", "tools/serve/uffd-serve"]}


def add_tools(tools, build, tree):
    """Tests in Python and what they test, as in a source tree that was built; the interpreter is this machine's."""
    for name in set(tools) - set(TOOLS):
        raise Problem(f"{name} is no test that a guest can be given: see TOOLS in image.py")
    binaries = add_python(tree)
    for source in ["README.md", *glob.glob(os.path.join("tests", "tools", "*.py"), root_dir=TOP)]:
        to = os.path.join(tree, "tools", source)
        os.makedirs(os.path.dirname(to), exist_ok=True)
        shutil.copy2(os.path.join(TOP, source), to)
    for name in tools:
        for program in TOOLS[name]:
            to = os.path.join(tree, "tools", "build", program)
            os.makedirs(os.path.dirname(to), exist_ok=True)
            shutil.copy2(os.path.join(build, program), to)
            binaries.append(to)
        add_script(os.path.join(tree, "tests", "test-" + name), f"exec python3 /tools/tests/tools/test-{name}.py "
                   + " ".join("/tools/build/" + program for program in TOOLS[name]))
    # Which libraries a program has, they ask in this way.
    add_script(os.path.join(tree, "bin", "ldd"), "exec /lib64/ld-linux-x86-64.so.2 --list \"$1\"")
    add_libraries("x86_64", build, binaries, tree)


def add_script(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    write(path, f"#!/bin/sh\n{text}\n")
    os.chmod(path, 0o755)


def add_python(tree):
    """Debian's interpreter and most of its library; what has to be linked for it."""
    where = command(["/usr/bin/python3", "-c", "import os, sys, sysconfig; "
                     "print(os.path.realpath(sys.executable), sysconfig.get_path('stdlib'))"], "an interpreter for the guests")
    interpreter, library = where.split()
    os.makedirs(os.path.join(tree, "bin"))
    shutil.copy2(interpreter, os.path.join(tree, "bin", "python3"))
    unwanted = shutil.ignore_patterns("test", "idlelib", "lib2to3", "config-*", "dist-packages", "pydoc_data", "tkinter",
                                      "ensurepip", "__pycache__")
    shutil.copytree(library, tree + library, ignore=unwanted, ignore_dangling_symlinks=True)
    return [interpreter, *glob.glob(os.path.join(tree + library, "lib-dynload", "*.so"))]


def add_libraries(arch, build, binaries, tree):
    """What the programs are linked with, and what that is linked with, and the loader."""
    where = [os.path.join(build, "src", part) for part in ("core", "server")] + [
        d.format(sysroot=os.path.join(BUILD, "arm64-sysroot")) for d in LIBRARIES[arch]]
    todo, done = list(binaries), set()
    while todo:
        text = command([READELF[arch], "-W", "-d", "-l", todo.pop()], "libraries of the tests")
        loader = re.search(r"interpreter: (\S+?)\]", text)
        names = re.findall(r"\(NEEDED\).*\[(.+)\]", text)
        for name in set(names + ([loader[1]] if loader else [])) - done:
            done.add(name)
            base = os.path.basename(name)
            path = next((os.path.join(d, base) for d in where if os.path.exists(os.path.join(d, base))), None)
            if not path:
                raise Problem(f"{base} for {arch} is not on this machine; run scripts/bootstrap check")
            to = name if name.startswith("/") else "/lib/" + base
            os.makedirs(os.path.dirname(tree + to), exist_ok=True)
            shutil.copy(path, tree + to)
            todo.append(path)


def pack(tree, into):
    """A cpio archive of a directory. Root owns it all, and others may look: some tests are others."""
    for directory, _, names in os.walk(tree):
        os.chmod(directory, 0o755)
        for name in names:
            path = os.path.join(directory, name)
            if not os.path.islink(path):
                os.chmod(path, os.stat(path).st_mode | stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
    command(["sh", "-c", "find . -mindepth 0 | LC_ALL=C sort | cpio -o -H newc --quiet -R 0:0 >" + shlex.quote(into)],
            f"packing {into} (is the disk full?)", cwd=tree)


# ---- The part of one guest


def unpack_kernel(guest, archive, tree):
    """The kernel's image, its modules below tree, and the package it came from."""
    package = archive.latest(guest.suites, guest.package, guest.apt_arch)
    archive.unpack(package, tree)
    flavour = package.name.split("-", 2)[2]  # of linux-image-6.1.0-50-cloud-amd64
    modules = archive.beside(package, "linux-modules-" + flavour)
    if guest.modules and modules:
        archive.unpack(modules, tree)
    images = [p for p in glob.glob(tree + "/boot/vmlinuz*") +
              glob.glob(tree + "/usr/lib/modules/*/vmlinuz") if os.path.isfile(p)]
    if len(images) != 1:
        raise Problem(f"{package.name} has {len(images)} kernel images where one was expected")
    return images[0], package


def add_modules(guest, kernel_tree, tree):
    """The modules that the guest loads, and what they depend on, in order."""
    base = kernel_tree if os.path.isdir(kernel_tree + "/lib/modules") else kernel_tree + "/usr"
    versions = os.listdir(os.path.join(base, "lib", "modules"))
    command(["depmod", "-b", base, versions[0]], f"modules of {guest.name}")
    os.makedirs(os.path.join(tree, "modules"))
    order = []
    for module in guest.modules:
        text = command(["modprobe", "-d", base, "-S", versions[0], "--show-depends", module],
                       f"module {module} of {guest.name}")
        for path in re.findall(r"^insmod (\S+)", text, re.M):
            name = re.sub(r"\.ko(\.[a-z]+)?$", ".ko", os.path.basename(path))
            if name in order:
                continue
            order.append(name)
            to = os.path.join(tree, "modules", name)
            if path.endswith(".ko"):
                shutil.copy(path, to)
            else:
                tool = {".xz": "xz", ".zst": "zstd", ".gz": "gzip"}[os.path.splitext(path)[1]]
                command(["sh", "-c", f"{tool} -dc {shlex.quote(path)} >{shlex.quote(to)}"], path)
    write(os.path.join(tree, "modules", "order"), "\n".join(order) + "\n")


def make_initrd(guest, base, build, settings, kernel_tree, work):
    """The shared archive and one with what is this guest's own, in one file."""
    tree = os.path.join(work, "own")
    os.makedirs(tree)
    conf = "".join(f"{key}={shlex.quote(str(value))}\n" for key, value in settings.items())
    write(os.path.join(tree, "guest.conf"), conf)
    if guest.setup:
        write(os.path.join(tree, "guest.setup"), guest.setup)
    if guest.tools:
        add_tools(guest.tools, build, tree)
    if guest.modules and kernel_tree:
        add_modules(guest, kernel_tree, tree)
    own, initrd = os.path.join(work, "own.cpio"), os.path.join(work, "initrd")
    pack(tree, own)
    with open(initrd, "wb") as out:
        for part in (base, own):
            with open(part, "rb") as f:
                shutil.copyfileobj(f, out)
    return initrd


def write(path, text):
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)


def read_or_none(path):
    try:
        with open(path, encoding="utf-8") as f:
            return f.read()
    except FileNotFoundError:
        return None
