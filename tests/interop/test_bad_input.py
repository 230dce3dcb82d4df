# SPDX-License-Identifier: MIT
"""test_bad_input - files, sockets and disks that are not as they should be

Each gives one line on stderr that names the file and what is wrong, exit status 1, and changes nothing on disk.
"""

import contextlib
import hashlib
import os
import socket
import struct
import subprocess

import pytest

from tool import GIB, MIB, TIMEOUT, img, io, ok, qimg, refused, run, varve, varve_path


def state(folder):
    """Name, kind and content of everything below folder."""
    found = {}
    for root, folders, files in os.walk(folder):
        for name in folders:
            found[os.path.join(root, name)] = "folder"
        for name in files:
            path = os.path.join(root, name)
            st = os.lstat(path)
            if os.path.isfile(path) and not os.path.islink(path) and os.access(path, os.R_OK) and st.st_size < GIB:
                with open(path, "rb") as f:
                    found[path] = hashlib.sha256(f.read()).hexdigest()
            else:
                found[path] = (st.st_mode, st.st_size)
    return found


@contextlib.contextmanager
def unchanged(folder):
    before = state(folder)
    yield
    assert state(folder) == before


def everywhere(path, folder, *words, options=("-f", "qcow2"), check=True):
    """
    Every command that opens an image refuses this one in the same way. compare has its own exit status; check looks at
    the one image alone and takes damage for what it is there to find, so it may say something else.
    """
    with unchanged(folder):
        if check:
            refused(img("check", *options, path), path, *words)
        for r in (img("map", *options, path), io(path, options=options),
                  io(path, "read 0 512", options=("-r", *options)),
                  varve("serve", path, *options, "--vhost-user", os.path.join(folder, "sock"))):
            refused(r, path, *words)
        r = img("compare", *options, path, path)
        assert r.rc == 2 and len(r.err.splitlines()) == 1, str(r)


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk.qcow2"
    ok(img("create", "-q", "-f", "qcow2", path, "8M"))
    ok(io(path, "write 0 1M", "write 3M 64k"))
    return path


def patch(path, offset, data):
    with open(path, "r+b") as f:
        f.seek(offset)
        f.write(data)


# ---- files that are no image, or half of one ----

@pytest.mark.parametrize("length", [0, 3, 71, 100])
def test_truncated_header(tmp_path, disk, length):
    os.truncate(disk, length)
    everywhere(disk, tmp_path)
    refused(img("info", "-f", "qcow2", disk), disk)


def test_truncated_tables(tmp_path, disk):
    os.truncate(disk, 65536)  # the header's cluster alone
    everywhere(disk, tmp_path)


def test_truncated_data_is_an_error_not_zeroes(tmp_path, disk):
    os.truncate(disk, os.stat(disk).st_size - 65536)
    with unchanged(tmp_path):
        r = io(disk, "read 3M 64k", options=("-r",))
        assert r.rc == 1 and "read failed" in r.out, str(r)
        assert img("compare", disk, disk).rc in (3, 4)
        assert img("check", disk).rc in (1, 2)


@pytest.mark.parametrize("content", [b"", b"\x7fELF" + bytes(5000), b"KDMV" + bytes(600), b"conectix" + bytes(504),
                                     b"QED\0" + bytes(4096), b"vhdxfile" + bytes(65536)],
                         ids=["empty", "elf", "vmdk", "vpc", "qed", "vhdx"])
def test_foreign_files_are_not_qcow2(tmp_path, content):
    path = tmp_path / "foreign"
    path.write_bytes(content)
    everywhere(path, tmp_path)
    refused(img("info", "-f", "qcow2", path), path)


def test_unknown_format_name(tmp_path, disk):
    everywhere(disk, tmp_path, "'qcow3'", options=("-f", "qcow3"))


def test_features_of_others_are_named(tmp_path):
    for method in (1, 2):  # AES, LUKS
        path = tmp_path / f"crypt{method}"
        ok(img("create", "-q", "-f", "qcow2", path, "1M"))
        patch(path, 32, struct.pack(">I", method))
        everywhere(path, tmp_path, "encryption", check=False)
        if method == 1:  # the other has a header of its own, which is not there
            ok(img("info", path))


def test_what_can_be_read_but_not_written_is_named(tmp_path, disk):
    patch(disk, 72, struct.pack(">Q", 2))  # marked corrupt
    with unchanged(tmp_path):
        ok(img("map", disk))
        refused(io(disk), disk, "corrupt")
        refused(varve("serve", disk, "--vhost-user", tmp_path / "sock"), disk, "corrupt")


def test_unknown_incompatible_feature(tmp_path, disk):
    patch(disk, 72, struct.pack(">Q", 1 << 60))
    everywhere(disk, tmp_path, "60")


def test_version_of_the_future(tmp_path, disk):
    patch(disk, 4, struct.pack(">I", 4))
    everywhere(disk, tmp_path, "4")


# ---- too large ----

@pytest.mark.parametrize("offset, value, fmt", [
    (20, 31, ">I"), (20, 8, ">I"), (20, 22, ">I"),      # cluster_bits
    (24, 1 << 63, ">Q"), (24, (1 << 64) - 512, ">Q"),   # disk length
    (36, 1 << 30, ">I"), (36, 0, ">I"),                 # L1 entries
    (40, 1 << 62, ">Q"), (40, 12345, ">Q"),             # L1 place
    (48, 1 << 62, ">Q"), (48, 77, ">Q"),                # refcount table place
    (56, 1 << 31, ">I"), (56, 0, ">I"),                 # refcount table length
    (60, 1 << 31, ">I"), (64, 1 << 63, ">Q"),           # snapshots: number, place
    (96, 7, ">I"), (100, 1 << 30, ">I"), (100, 24, ">I"),  # refcount order, header length
    (8, 1 << 40, ">Q"), (32, 7, ">I")])                 # backing name place, encryption method
def test_header_fields_out_of_bounds(tmp_path, disk, offset, value, fmt):
    patch(disk, offset, struct.pack(fmt, value))
    if offset == 8:
        patch(disk, 16, struct.pack(">I", 2000))
    if offset == 64:
        patch(disk, 60, struct.pack(">I", 1))
    with unchanged(tmp_path):
        refused(io(disk, options=("-f", "qcow2")), disk)


@pytest.mark.parametrize("fmt, size", [("qcow2", "8E"), ("raw", "8E"), ("qcow2", "7E"), ("qcow2", "16E"),
                                       ("qcow2", "99999999999999999999")])
def test_too_large_to_create(tmp_path, fmt, size):
    with unchanged(tmp_path):
        r = img("create", "-q", "-f", fmt, tmp_path / "d", size)
        assert r.rc == 1 and r.out == "" and (str(tmp_path / "d") in r.err or size in r.err), str(r)


def test_too_large_for_the_clusters(tmp_path):
    with unchanged(tmp_path):
        refused(img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", tmp_path / "d", "1T"), tmp_path / "d")


# ---- chains ----

def rebase(path, name):
    ok(qimg("rebase", "-u", "-b", name, "-F", "qcow2", path))


def test_an_image_that_backs_itself(tmp_path, disk):
    rebase(disk, "disk.qcow2")
    everywhere(disk, tmp_path, "chain", check=False)
    with unchanged(tmp_path):
        refused(img("info", "--backing-chain", disk), disk, "chain")
    ok(img("info", disk))


def test_a_ring_of_images(tmp_path):
    for n in range(3):
        ok(qimg("create", "-q", "-f", "qcow2", "-u", "-b", f"d{(n + 1) % 3}", "-F", "qcow2", tmp_path / f"d{n}", "1M"))
    everywhere(tmp_path / "d0", tmp_path, "chain", check=False)
    with unchanged(tmp_path):
        refused(img("info", "--backing-chain", tmp_path / "d1"), "chain")


def test_a_ring_under_different_names(tmp_path, disk):
    (tmp_path / "link").symlink_to(disk)
    rebase(disk, "link")
    everywhere(disk, tmp_path, check=False)


def test_a_missing_backing_file(tmp_path):
    top = tmp_path / "top"
    ok(img("create", "-q", "-u", "-f", "qcow2", "-b", "gone.raw", "-F", "raw", top, "1M"))
    with unchanged(tmp_path):
        for r in (img("map", top), io(top), varve("serve", top, "--vhost-user", tmp_path / "sock")):
            refused(r, "gone.raw", "No such file")


def test_create_over_its_own_backing_file(tmp_path, disk):
    with unchanged(tmp_path):
        refused(img("create", "-q", "-f", "qcow2", "-b", disk, "-F", "qcow2", disk), disk, "chain")
    os.symlink(disk, tmp_path / "link")
    with unchanged(tmp_path):
        refused(img("create", "-q", "-f", "qcow2", "-b", tmp_path / "link", "-F", "qcow2", disk), disk, "chain")


# ---- wrong options leave no file behind, and an existing one as it was ----

BAD_CREATES = [
    (["-f", "frob"], "frob"), (["-f", "qcow2", "-o", "frob=1"], "frob"), (["-f", "raw", "-o", "frob=1"], "frob"),
    (["-f", "qcow2", "-o", "cluster_size=3k"], "cluster"), (["-f", "qcow2", "-o", "cluster_size=4M"], "cluster"),
    (["-f", "qcow2", "-o", "refcount_bits=7"], "refcount"),
    (["-f", "qcow2", "-o", "compat=0.10,refcount_bits=1"], "refcount"),
    (["-f", "qcow2", "-o", "compat=7"], "compat"), (["-f", "qcow2", "-o", "preallocation=some"], "some"),
    (["-f", "raw", "-o", "preallocation=metadata"], "metadata"),
    (["-f", "qcow2", "-b", "none.raw", "-F", "raw"], "none.raw"),
    (["-f", "qcow2", "-b", "there.raw"], "format"), (["-f", "qcow2", "-F", "raw"], "backing"),
    (["-f", "qcow2", "-b", "there.raw", "-F", "frob"], "frob"),
    (["-f", "qcow2", "-b", "there.raw", "-F", "qcow2"], "there.raw"),
    (["-f", "raw", "-b", "there.raw", "-F", "raw"], "backing"),
    (["-f", "qcow2", "-o", "cluster_size=1x"], "1x"),
]


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("args, word", BAD_CREATES)
def test_create_with_wrong_options(tmp_path, args, word, existing):
    (tmp_path / "there.raw").write_bytes(bytes(MIB))
    if existing:
        (tmp_path / "d").write_bytes(b"precious" * 1000)
    with unchanged(tmp_path):
        refused(img("create", "-q", *args, "d", "1M", cwd=tmp_path), "d", word)


def test_create_without_a_size(tmp_path):
    with unchanged(tmp_path):
        for fmt in ("raw", "qcow2"):
            refused(img("create", "-q", "-f", fmt, tmp_path / "d"), tmp_path / "d", "size")
        refused(img("create", "-q", "-u", "-f", "qcow2", "-b", "b", "-F", "raw", tmp_path / "d"), "size")


# ---- places ----

def test_no_such_file_or_folder(tmp_path):
    everywhere(tmp_path / "none", tmp_path, "No such file")
    with unchanged(tmp_path):
        refused(img("create", "-q", tmp_path / "no" / "d", "1M"), tmp_path / "no" / "d", "No such file")


def test_things_that_hold_no_image(tmp_path):
    folder, fifo, sock = tmp_path / "folder", tmp_path / "fifo", tmp_path / "s"
    folder.mkdir()
    os.mkfifo(fifo)
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(sock))
        for path in (folder, fifo, sock, "/dev/zero"):
            with unchanged(tmp_path):
                refused(io(path), path)
                refused(img("info", path), path)
                refused(img("create", "-q", path, "1M"), path)


def test_unreadable(tmp_path, disk):
    disk.chmod(0)
    if os.access(disk, os.R_OK):  # root may read everything: become somebody else
        tmp_path.chmod(0o755)
        for parent in list(tmp_path.parents)[:3]:
            if parent != parent.parent and str(parent) != "/tmp":
                parent.chmod(parent.stat().st_mode | 0o011)
        r = run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", varve_path(), "img", "info", disk)
    else:
        r = img("info", disk)
    disk.chmod(0o644)
    if "setpriv" in r.err or r.rc == 127:
        pytest.skip(f"cannot become another user here: {r.err}")
    refused(r, disk, "Permission denied")


def test_a_file_that_cannot_be_written(tmp_path, disk):
    with contextlib.ExitStack() as stack:
        mount = tmp_path / "mnt"
        mount.mkdir()
        if run("mount", "--bind", "-o", "ro", tmp_path, mount).rc != 0:
            pytest.skip("mounting is not possible here")
        stack.callback(run, "umount", mount)
        run("mount", "-o", "remount,ro,bind", mount)
        there = mount / "disk.qcow2"
        refused(io(there), there, "Read-only file system")
        ok(io(there, "read 0 64k", options=("-r",)))
        refused(img("create", "-q", mount / "new", "1M"), mount / "new", "Read-only file system")
    assert disk.exists()


# ---- locks ----

@contextlib.contextmanager
def held(*command):
    """A process that has an image open until the block ends."""
    p = subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        p.stdin.write("length\n")
        p.stdin.flush()
        assert p.stdout.readline(), "did not open"
        yield
    finally:
        p.stdin.close()
        p.wait(timeout=TIMEOUT)
        p.stdout.close()


@pytest.mark.parametrize("holder", ["qemu-io", "varve"])
def test_locked_by_a_writer(tmp_path, disk, holder):
    command = ["qemu-io"] if holder == "qemu-io" else [varve_path(), "io"]
    with held(*command, "-f", "qcow2", disk):
        everywhere(disk, tmp_path, "lock")
        with unchanged(tmp_path):
            refused(img("info", disk), disk, "lock")
            refused(img("create", "-q", "-f", "qcow2", disk, "1M"), disk, "lock")
        ok(img("info", "-U", disk))
        ok(img("check", "-U", disk))
        assert qimg("info", disk).rc == 1  # the peer sees our lock, too
    ok(io(disk, "write 0 512"))


@pytest.mark.parametrize("holder", ["qemu-io", "varve"])
def test_readers_share_and_keep_writers_out(tmp_path, disk, holder):
    command = ["qemu-io"] if holder == "qemu-io" else [varve_path(), "io"]
    with held(*command, "-r", "-f", "qcow2", disk), unchanged(tmp_path):
        ok(io(disk, "read 0 512", options=("-r",)))
        ok(img("info", disk))
        refused(io(disk), disk, "lock")
        refused(img("create", "-q", disk, "1M"), disk, "lock")


def test_a_backing_file_in_use_by_a_writer(tmp_path, disk):
    ok(img("create", "-q", "-f", "qcow2", "-b", disk, "-F", "qcow2", tmp_path / "top"))
    with held(varve_path(), "io", disk), unchanged(tmp_path):
        refused(io(tmp_path / "top"), disk, "lock")
    with held(varve_path(), "io", tmp_path / "top"), unchanged(tmp_path):
        refused(io(disk), disk, "lock")


# ---- sockets ----

def test_socket_path_that_exists(tmp_path, disk):
    path = tmp_path / "file"
    path.write_text("mine")
    with unchanged(tmp_path):
        refused(varve("serve", disk, "--vhost-user", path), path, "exist")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(tmp_path / "alive"))
        s.listen()
        with unchanged(tmp_path):
            refused(varve("serve", disk, "--vhost-user", tmp_path / "alive"), tmp_path / "alive")


def test_socket_path_that_is_too_long(tmp_path, disk):
    path = str(tmp_path / ("x" * 120))
    with unchanged(tmp_path):
        refused(varve("serve", disk, "--vhost-user", path), path, "107 bytes")


def test_socket_in_a_folder_that_is_missing(tmp_path, disk):
    with unchanged(tmp_path):
        refused(varve("serve", disk, "--vhost-user", tmp_path / "no" / "sock"), tmp_path / "no" / "sock")


# ---- no space left ----

@pytest.fixture
def small(tmp_path):
    """A file system of 2 MiB."""
    mount = tmp_path / "small"
    mount.mkdir()
    if run("mount", "-t", "tmpfs", "-o", "size=2m", "varve-test", mount).rc != 0:
        pytest.skip("mounting is not possible here")
    yield mount
    assert run("umount", mount).rc == 0


def test_no_space_to_create(small):
    for args in (["-f", "raw", "-o", "preallocation=full"], ["-f", "raw", "-o", "preallocation=falloc"],
                 ["-f", "qcow2", "-o", "preallocation=full"], ["-f", "qcow2", "-o", "preallocation=falloc"]):
        refused(img("create", "-q", *args, small / "d", "64M"), small / "d", "No space left")
        assert not (small / "d").exists()


def test_no_space_to_write(small):
    disk = small / "d"
    ok(img("create", "-q", "-f", "qcow2", disk, "64M"))
    r = io(disk, "write -q 0 64k", "flush", "write -q 1M 32M", "flush")
    assert r.rc == 1 and "write failed: No space left on device" in r.out, str(r)
    ok(io(disk, "read -P 0xcd 0 64k"))
    assert img("check", disk).rc in (0, 3)
    assert qimg("check", disk).rc in (0, 3)
