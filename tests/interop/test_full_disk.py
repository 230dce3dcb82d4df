# SPDX-License-Identifier: MIT
"""test_full_disk - a file system that is full in the middle of writes

It is said as what it is (No space left on device, exit status 1), nothing that a flush acknowledged is lost, the image
stays consistent, and when space is freed everything goes on. On a tmpfs, and on ext4 in a loop device, whose delayed
allocation finds out late.
"""

import contextlib
import os
import pathlib
import subprocess

import pytest

from faultfs import Faultfs
from serving import Server
from tool import KIB, MIB, img, io, ok, qimg, run, varve_path

FULL = "No space left on device"


@contextlib.contextmanager
def small_file_system(kind, tmp_path, size):
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    where = tmp_path / "small"
    where.mkdir()
    if kind == "tmpfs":
        r = run("mount", "-t", "tmpfs", "-o", f"size={size}", "varve-test", where)
    else:
        back = tmp_path / "back"
        with open(back, "wb") as f:
            f.truncate(size)
        ok(run("mkfs.ext4", "-q", "-O", "^has_journal", "-m", "0", back))
        r = run("mount", "-o", "loop", back, where)
    if r.rc != 0:
        pytest.skip(f"{kind} cannot be mounted here: {r.err.strip()}")
    try:
        yield where
    finally:
        ok(run("umount", where))


def consistent(fmt, path):
    if fmt == "raw":
        return
    r = img("check", "--output=json", "-f", fmt, path)
    assert r.rc in (0, 3) and not r.json.get("corruptions") and not r.json["check-errors"], str(r)
    assert qimg("check", "-f", fmt, path).rc in (0, 3)


def free_space(where):
    st = os.statvfs(where)
    return st.f_bavail * st.f_frsize


def fill(where, leave):
    """A file that takes all space but leave bytes."""
    with open(where / "ballast", "wb") as f:
        left = free_space(where) - leave
        if left > 0:
            os.posix_fallocate(f.fileno(), 0, left)


class Session:
    """varve io, one command after the other; what it answered to each."""

    def __init__(self, path, fmt, cache):
        self.p = subprocess.Popen([varve_path(), "io", "-f", fmt, "-t", cache, path], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1)

    def __call__(self, command):
        self.p.stdin.write(f"{command}\nlength\n")
        lines = []
        while True:
            line = self.p.stdout.readline()
            assert line, lines
            if line.rstrip().endswith(("KiB", "MiB")) and "bytes" not in line and "ops" not in line:
                return "".join(lines).replace("varve io> ", "")
            lines.append(line)

    def end(self):
        rest, _ = self.p.communicate(timeout=240)
        return self.p.returncode, rest.replace("varve io> ", "").strip()


FORMATS = [("raw", ""), ("qcow2", ""), ("qcow2", "cluster_size=512"), ("qed", "cluster_size=4k")]


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
@pytest.mark.parametrize("cache", ["none", "writeback"])
@pytest.mark.parametrize("fmt, options", FORMATS)
def test_a_disk_that_fills_up_says_so_and_goes_on_after(tmp_path, fmt, options, cache, kind):
    with small_file_system(kind, tmp_path, 8 * MIB) as where:
        disk = where / "disk"
        fill(where, 3 * MIB)
        ok(img("create", "-q", "-f", fmt, *(["-o", options] if options else []), disk, "16M"))
        io_ = Session(disk, fmt, cache)
        try:
            full, flushed, said = None, [], []
            for n in range(100):
                answer = io_(f"write -q -P {n + 1} {n * 64}k 64k")
                if not answer:
                    answer = io_("flush")
                if answer:
                    assert FULL in answer, answer
                    said.append(answer)
                    full = n
                    break
                flushed.append(n)
            assert full and len(flushed) >= 8, said
            # What was acknowledged is there, also for others, also what has its space already can be written.
            for n in flushed:
                assert not io_(f"read -q -P {n + 1} {n * 64}k 64k")
            assert not io_(f"write -q -P 200 0 64k")
            # Space: everything goes on, in the same program.
            os.unlink(where / "ballast")
            assert not io_(f"write -q -P {full + 1} {full * 64}k 64k")
            assert not io_("flush")
        finally:
            code, rest = io_.end()
        assert code == 1 and rest == "", (code, rest)  # a command failed
        consistent(fmt, disk)
        ok(io(disk, "read -P 200 0 64k", *[f"read -P {n + 1} {n * 64}k 64k" for n in range(1, full + 1)],
              options=("-f", fmt)))


@pytest.mark.parametrize("fmt, options", FORMATS)
def test_every_amount_of_space_leaves_a_consistent_image(tmp_path, fmt, options):
    """Nothing, one block, two, ...: whichever write it is that finds no space, data or metadata."""
    with small_file_system("tmpfs", tmp_path, 4 * MIB) as where:
        for left in range(0, 4 if fmt == "raw" else 24):
            disk = where / "disk"
            ok(img("create", "-q", "-f", fmt, *(["-o", options] if options else []), disk, "16M"))
            ok(io(disk, "write -q -P 1 0 64k", "flush", options=("-f", fmt)))
            fill(where, left * 4 * KIB)
            r = io(disk, "write -q -P 2 1M 32k", "flush", "write -q -P 3 3M 32k", "flush", "read -P 1 0 64k",
                   options=("-f", fmt))
            kept = [n for n in (2, 3) if io_says(disk, fmt, n)]
            if r.rc == 0:
                assert kept == [2, 3] and FULL not in r.out + r.err, str(r)
            else:
                assert r.rc == 1 and FULL in r.out + r.err and all(FULL in line for line in r.err.splitlines()), str(r)
            consistent(fmt, disk)
            os.unlink(where / "ballast")
            ok(io(disk, "read -P 1 0 64k", "write -q -P 2 1M 32k", "write -q -P 3 3M 32k", options=("-f", fmt)))
            assert io_says(disk, fmt, 2) and io_says(disk, fmt, 3)
            consistent(fmt, disk)
            os.unlink(disk)


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
@pytest.mark.parametrize("make", [img, qimg])
@pytest.mark.parametrize("fmt, options", FORMATS[1:])
def test_what_is_written_survives_a_later_write_that_finds_no_space(tmp_path, fmt, options, make, kind):
    """The tables have their space before anything is answered that needs them: data cannot take it, and the flush cannot fail."""
    with small_file_system(kind, tmp_path, 8 * MIB) as where:
        disk = where / "disk"
        ok(make("create", "-q", "-f", fmt, *(["-o", options] if options else []), disk, "40M"))
        r = io(disk, "write -q -P 1 0 5M", "write -q -P 2 5M 6M", "flush", options=("-f", fmt, "-t", "writeback"))
        assert r.rc == 1 and r.err.count(FULL) + r.out.count(FULL) == 1, str(r)
        report = qimg("check", "--output=json", "-f", fmt, disk)
        # QED counts nothing: what a write that failed had taken is behind the others until a repair.
        assert (report.rc == 0 or fmt == "qed") and not report.json.get("corruptions"), str(report)
        ok(io(disk, "read -P 1 0 5M", options=("-f", fmt)))


@pytest.mark.parametrize("fmt, options", FORMATS[1:])
def test_trying_again_on_a_full_disk_takes_nothing(tmp_path, fmt, options):
    """A guest tries again for as long as it runs, also where a new table is needed first."""
    with small_file_system("tmpfs", tmp_path, 2 * MIB) as where:
        disk = where / "disk"
        ok(img("create", "-q", "-f", fmt, *(["-o", options] if options else []), disk, "1G"))
        fill(where, 0)
        lengths = []
        for n in (1, 200):
            r = io(disk, *["write -q 700M 4k"] * n, f"sleep {n}", options=("-f", fmt, "-t", "writeback"))
            assert r.rc == 1 and (r.out + r.err).count(FULL) >= n, str(r)
            lengths.append(disk.stat().st_size)
        assert lengths[1] <= lengths[0] + 64 * KIB, lengths


@pytest.mark.parametrize("how", [[], ["-W", "-m", "16"], ["-c"]])
def test_a_conversion_that_finds_no_space_leaves_no_clusters_behind(tmp_path, how):
    source = tmp_path / "source"
    source.write_bytes(os.urandom(12 * MIB))
    with small_file_system("tmpfs", tmp_path, 8 * MIB) as where:
        disk = where / "disk"
        ok(qimg("create", "-q", "-f", "qcow2", disk, "12M"))
        r = img("convert", "-n", *how, "-O", "qcow2", source, disk)
        assert r.rc == 1 and r.err.count("\n") == 1 and FULL in r.err, str(r)
        assert qimg("check", "-f", "qcow2", disk).rc == 0


def io_says(disk, fmt, n):
    return io(disk, f"read -P {n} {2 * n - 3}M 32k", options=("-f", fmt, "-r")).rc == 0


@pytest.mark.parametrize("fmt, options", [("raw", "preallocation=full"), ("qcow2", "preallocation=full"),
                                          ("raw", "preallocation=falloc"), ("qcow2", "preallocation=falloc")])
def test_an_image_that_cannot_have_its_space_is_not_made(tmp_path, fmt, options):
    with small_file_system("tmpfs", tmp_path, 2 * MIB) as where:
        r = img("create", "-q", "-f", fmt, "-o", options, where / "disk", "8M")
        assert r.rc == 1 and r.out == "" and len(r.err.splitlines()) == 1 and FULL in r.err, str(r)
        assert r.err.count(str(where / "disk")) == 1, str(r)
        assert os.listdir(where) == []
        assert free_space(where) == 2 * MIB


def test_a_flush_that_fails_is_the_exit_status(tmp_path):
    """The last flush is made by closing: that it fails must not go unseen."""
    with Faultfs(tmp_path / "faultfs") as fs:
        fs.tell(f"resize {MIB}")
        fs.tell("rule fsync 0 1 lose 5")
        r = io(fs.disk, "write -q 0 64k", options=("-f", "raw", "-t", "writeback"))
        assert r.rc == 1 and r.err, str(r)
        assert all("Input/output error" in line and str(fs.disk) in line for line in r.err.splitlines()), str(r)
        fs.tell("rule fsync 0 1 lose 5")
        r = io(fs.disk, "write -q 0 64k", "flush", "flush", options=("-f", "raw", "-t", "writeback"))
        assert r.rc == 1 and r.out == "" and r.err.count("flush: Input/output error") == 2, str(r)
        assert pathlib.Path(fs.disk).read_bytes() == bytes(MIB)  # what was lost was not said to be there
        ok(io(fs.disk, "write -q -P 1 0 64k", "flush", "read -P 1 0 64k", options=("-f", "raw")))


LOAD = ["--rw", "randwrite", "--verify", "--ops", 400, "--flush-every", 20, "--depth", 8, "--block-size", "16k"]


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_a_guest_is_told_and_the_server_goes_on(tmp_path, fmt):
    with small_file_system("tmpfs", tmp_path, 8 * MIB) as where:
        disk = where / "disk"
        ok(img("create", "-q", "-f", fmt, disk, "6M"))
        fill(where, 512 * KIB)
        with Server(disk, fmt, tmp_path / "s.sock", tmp_path / "pid") as server:
            code, report, err = server.load(*LOAD)
            assert code == 1 and report["errors"] > 0 and server.process.poll() is None, err
            os.unlink(where / "ballast")
            code, report, err = server.load(*LOAD)
            assert code == 0 and report["errors"] == 0, err
            assert server.stop() == (0, "")
        consistent(fmt, disk)


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_a_guest_is_told_of_a_failed_flush_and_so_is_the_operator(tmp_path, fmt):
    image = tmp_path / "image"
    ok(img("create", "-q", "-f", fmt, image, "6M"))
    with Faultfs(tmp_path / "faultfs") as fs:
        fs.put(image)
        with Server(fs.disk, fmt, tmp_path / "s.sock", tmp_path / "pid") as server:
            assert server.load(*LOAD)[0] == 0
            fs.tell("rule fsync 0 0 error 5")
            code, report, err = server.load(*LOAD)
            assert code == 1 and report["errors"] > 0 and server.process.poll() is None, err
            code, err = server.stop()
            assert code == 1 and err, (code, err)
            assert all("Input/output error" in line and str(fs.disk) in line for line in err.splitlines()), err
        fs.tell("clear")
        consistent(fmt, fs.disk)


@pytest.mark.parametrize("args", [["-O", "raw"], ["-O", "qcow2"], ["-O", "qcow2", "-c"]])
def test_a_conversion_that_does_not_fit_leaves_nothing(tmp_path, args):
    source = tmp_path / "source"
    source.write_bytes(os.urandom(12 * MIB))
    with small_file_system("tmpfs", tmp_path, 8 * MIB) as where:
        r = img("convert", "-f", "raw", *args, source, where / "out")
        assert r.rc == 1 and FULL in r.err and len(r.err.splitlines()) == 1, str(r)
        assert list(where.iterdir()) == []


CHANGES = [["snapshot", "-c", "new"], ["snapshot", "-a", "old"], ["bitmap", "--merge", "full"],
           ["resize", "+64M"], ["rebase", "-f", "qcow2", "-b", "base", "-F", "raw"], ["amend", "-o", "refcount_bits=64"]]


@pytest.mark.parametrize("command", CHANGES, ids=" ".join)
def test_one_cause_is_one_line(tmp_path, command):
    """What fails because of it (the last flush, when the image is closed) is no news."""
    disk = tmp_path / "disk"
    ok(img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", disk, "64M"))
    for name in ("full", "to"):
        ok(img("bitmap", "--add", "-g", "512", disk, name))
    ok(io(disk, "write -P 1 0 2M"))
    ok(img("snapshot", "-c", "old", disk))
    ok(io(disk, "write -P 2 1M 2M"))
    if command[0] == "rebase":  # it copies nothing into snapshots, and says so
        ok(img("snapshot", "-d", "old", disk))
    with small_file_system("tmpfs", tmp_path, 16 * MIB) as where:
        with open(where / "base", "wb") as f:
            f.truncate(64 * MIB)
            f.seek(8 * MIB)
            f.write(b"\3" * 128 * KIB)
        failed = 0
        for leave in range(0, 80 * KIB, 8 * KIB):
            (where / "disk").write_bytes(disk.read_bytes())
            fill(where, leave)
            target = ["disk", "to"] if command[0] == "bitmap" else ["disk", command[1]] if command[0] == "resize" else ["disk"]
            args = command[:1] if command[0] == "resize" else command
            r = img(*args, *target, cwd=where)
            errors = [line for line in r.err.splitlines() if "could not be stored in its bitmaps" not in line]  # another loss
            assert r.rc == 0 or (len(errors) == 1 and FULL in r.err), str(r)
            failed += r.rc != 0
            (where / "ballast").unlink()
        assert failed, "it always fitted"


@pytest.mark.parametrize("bitmaps", [0, 2])
def test_a_disk_that_cannot_get_shorter_has_lost_nothing(tmp_path, bitmaps):
    """Tables that a snapshot shares are copied, and bitmaps: for whichever of it there is no space, nothing has gone by then."""
    disk, new = tmp_path / "disk", 32 * MIB - 512
    ok(img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", disk, "64M"))
    for n in range(bitmaps):
        ok(img("bitmap", "--add", disk, f"b{n}"))
    writes = [(1, 0), (4, 32 * MIB - 4 * KIB), (2, 40 * MIB), (3, 50 * MIB), (5, 63 * MIB)]
    ok(io(disk, *[f"write -q -P {n} {off} 4k" for n, off in writes]))
    ok(img("snapshot", "-c", "s", disk))
    ok(io(disk, "write -q -P 2 40M 4k", "write -q -P 5 63M 4k"))  # these tables are the disk's own already
    with small_file_system("tmpfs", tmp_path, 16 * MIB) as where:
        image, failed, fitted = where / "disk", 0, 0
        for pages in range(24):
            image.write_bytes(b"")
            ok(run("cp", "--sparse=always", disk, image))
            fill(where, pages * 4 * KIB)
            r = img("resize", "-q", "--shrink", image, str(new))
            (where / "ballast").unlink()
            length = img("info", "--output=json", image).json["virtual-size"]
            consistent("qcow2", image)
            if r.rc == 0:
                assert length == new
                fitted += 1
            else:
                assert FULL in r.err and length == 64 * MIB, str(r)
                ok(io(image, *[f"read -P {n} {off} {4 * KIB - 512}" for n, off in writes], options=("-r",)))
                failed += 1
                for n in range(bitmaps):  # they cannot be stored on a full disk, and nobody relies on them any more
                    ok(img("bitmap", "--remove", image, f"b{n}"))
                ok(img("resize", "-q", "--shrink", image, str(new)))
            ok(img("resize", "-q", image, "64M"))
            ok(io(image, "read -P 1 0 4k", f"read -P 4 {32 * MIB - 4 * KIB} {4 * KIB - 512}", f"read -P 0 {new} {64 * MIB - new}",
                  options=("-r",)))
            consistent("qcow2", image)
        assert failed and fitted, (failed, fitted)


def test_a_warning_beside_an_error_is_left_out(tmp_path):
    (tmp_path / "s").write_bytes(b"\5" * MIB)
    r = img("dd", "if=s", "of=t", "skip=100000", "osize=7E", cwd=tmp_path)
    assert r.rc == 1 and len(r.err.splitlines()) == 1 and "too large" in r.err, str(r)
    r = img("dd", "if=s", "of=t", "skip=100000", cwd=tmp_path)
    assert r.rc == 0 and len(r.err.splitlines()) == 1 and "beyond the end" in r.err, str(r)


@pytest.mark.parametrize("command", ["io", "convert"])
def test_bitmaps_that_cannot_be_stored_are_told_of(tmp_path, command):
    """Whoever makes the next incremental backup finds them inconsistent; who had no room for them is told at once."""
    with small_file_system("tmpfs", tmp_path, 16 * MIB) as where:
        disk, other = where / "disk", where / "other"
        ok(qimg("create", "-q", "-f", "raw", where / "base", "3M"))
        ok(qimg("create", "-q", "-f", "raw", other, "3M"))
        ok(img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "-b", where / "base", "-F", "raw", disk))
        ok(io(disk, "write -q -P 5 0 3M"))
        ok(img("bitmap", "--add", "-g", "512", disk, "b0"))
        ok(io(other, "write -q -P 9 0 3M", options=("-f", "raw")))
        fill(where, 0)
        r = {"io": lambda: io(disk, "write -q -P 9 0 2M"),
             "convert": lambda: img("convert", "-n", "-f", "raw", "-O", "qcow2", other, disk)}[command]()
        assert r.rc == 0 and r.err.count("\n") == 1 and "could not be stored in its bitmaps" in r.err and "o space left" in r.err, str(r)
        (told,) = ok(qimg("info", "--output=json", disk)).json["format-specific"]["data"]["bitmaps"]
        assert "in-use" in told["flags"]
        consistent("qcow2", disk)
