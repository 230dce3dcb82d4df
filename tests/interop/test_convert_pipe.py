# SPDX-License-Identifier: MIT
"""Images that go into pipes, and contents that come out of them: `img convert SOURCE -`, `img convert - TARGET`

Never: leaves a program behind that waits for the other end.
"""

import os
import random
import signal
import subprocess
import threading
import time

import pytest

from tool import KIB, MIB, TIMEOUT, img, ok, qimg, qio, refused, varve_path

LEN = 5 * MIB + 7 * 512


def fill(path, seed, length):
    """Holes, zeroes, what can be compressed and what cannot, by turns."""
    rng = random.Random(seed)
    with open(path, "wb") as f:
        while f.tell() < length:
            n = min(length - f.tell(), rng.choice([512, 4 * KIB, 64 * KIB, 70000, 300 * KIB]))
            kind = rng.randrange(4)
            if kind == 0:
                f.seek(n, os.SEEK_CUR)
            else:
                f.write((bytes(n), (b"%d words " % rng.randrange(99) * n)[:n], rng.randbytes(n))[kind - 1])
        f.truncate(length)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill("src.raw", 1, LEN)
    return tmp_path


def through_pipe(*args, name="out"):
    """What varve img convert writes into a pipe, stored by somebody else."""
    with open(name, "wb") as f:
        p = subprocess.Popen([varve_path(), "img", "convert", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            while block := p.stdout.read(1 << 16):
                f.write(block)
            err = p.stderr.read()
            assert p.wait(TIMEOUT) == 0 and err == b"", err
        finally:
            p.kill()
            p.wait()
            p.stdout.close()
            p.stderr.close()


def same(source, image, source_fmt="raw", fmt="qcow2"):
    ok(qimg("compare", "-f", source_fmt, "-F", fmt, source, image))
    if fmt == "qcow2":
        ok(qimg("check", "-f", fmt, image)) # leaks are an error, too


def contents(*names):
    return b"".join(open(n, "rb").read() for n in names)


# ---- into a pipe ----

@pytest.mark.parametrize("target", ["-", "/dev/stdout"])
def test_raw_goes_into_a_pipe(here, target):
    fill("b.raw", 2, 70 * KIB + 512)
    ok(qimg("convert", "-c", "-O", "qcow2", "src.raw", "src.qcow2"))
    through_pipe("-O", "raw", "src.qcow2", "b.raw", target)
    assert contents("out") == contents("src.raw", "b.raw")
    through_pipe("-O", "raw", "-S", "0", "-m", "1", "src.qcow2", target)
    assert contents("out") == contents("src.raw")


@pytest.mark.parametrize("options", [
    [], ["-c"], ["-S", "0"], ["-S", "1M"], ["-m", "1"], ["-c", "-m", "16"], ["-o", "compat=0.10"], ["-o", "lazy_refcounts=on"],
    ["-c", "-o", "compression_type=zstd"], ["-c", "--compress-level", "ratio"],
    ["-o", "cluster_size=512"], ["-c", "-o", "cluster_size=512,refcount_bits=64"], ["-c", "-o", "cluster_size=2M"],
    ["-c", "-o", "refcount_bits=1,cluster_size=4k"], ["-c", "-o", "refcount_bits=2,cluster_size=1k"],
])
def test_qcow2_goes_into_a_pipe(here, options):
    through_pipe("-f", "raw", "-O", "qcow2", *options, "src.raw", "-")
    same("src.raw", "out")
    before = contents("out")
    through_pipe("-f", "raw", "-O", "qcow2", *options, "src.raw", "-")
    assert contents("out") == before
    # Nothing of it is padding: what a file gets that is written freely is hardly smaller.
    ok(img("convert", "-f", "raw", "-O", "qcow2", *options, "src.raw", "file"))
    assert len(before) <= os.stat("file").st_size * 1.05


def test_several_sources_of_odd_lengths(here):
    fill("b.raw", 2, 512)
    fill("c.raw", 3, 70 * KIB + 512)
    with open("none.raw", "wb"):
        pass
    through_pipe("-f", "raw", "-O", "qcow2", "b.raw", "none.raw", "src.raw", "c.raw", "-")
    with open("all.raw", "wb") as f:
        f.write(contents("b.raw", "src.raw", "c.raw"))
    same("all.raw", "out")


@pytest.mark.parametrize("length", [0, 512, 3 << 40])
def test_empty_and_enormous_disks(here, length):
    with open("sparse.raw", "wb") as f:
        f.truncate(length)
        if length > MIB:
            f.seek(length - 512)
            f.write(b"x" * 512)
    through_pipe("-f", "raw", "-O", "qcow2", "sparse.raw", "-")
    ok(qimg("check", "out"))
    assert ok(qimg("info", "--output=json", "out")).json["virtual-size"] == length
    assert os.stat("out").st_size < MIB
    if length > MIB:
        ok(qio("out", f"read -q -P 120 {length - 512} 512", f"read -q -P 0 {length - 513 * 512} 262144"))


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_over_a_backing_file(here, compat):
    ok(qimg("convert", "-O", "qcow2", "-o", "compat=" + compat, "src.raw", "base"))
    ok(qimg("create", "-q", "-f", "qcow2", "-o", "compat=" + compat, "-b", "base", "-F", "qcow2", "top", "8M"))
    ok(qio("top", "write -q -z 1M 300k", "write -q -P 7 2M 130k", "write -q -P 9 3M 2M", "write -q -z 6M 1M"))
    for options in ([], ["-c"]):
        through_pipe("-O", "qcow2", "-o", "compat=" + compat, *options, "-B", "base", "-F", "qcow2", "top", "-")
        same("top", "out", "qcow2")
        layers = ok(qimg("map", "--output=json", "out")).json
        assert any(e["depth"] == 1 for e in layers) # not all of it was copied


def test_a_snapshot_and_what_can_be_salvaged(here):
    ok(qimg("convert", "-c", "-O", "qcow2", "src.raw", "s.qcow2"))
    ok(qimg("snapshot", "-c", "before", "s.qcow2"))
    ok(qio("s.qcow2", "write -q -P 5 0 2M"))
    through_pipe("-l", "before", "-O", "qcow2", "s.qcow2", "-")
    same("src.raw", "out")
    with open("packs.raw", "wb") as f:
        f.write(b"".join(random.Random(i).randbytes(61) * 1075 for i in range(64))[:4 * MIB - 16 * KIB])
    ok(qimg("convert", "-c", "-f", "raw", "-O", "qcow2", "packs.raw", "bad.qcow2"))
    with open("bad.qcow2", "r+b") as f: # all of it is compressed data but the tables at its start
        f.seek(-3000, os.SEEK_END)
        f.write(b"\xff" * 1000)
    r = img("convert", "-O", "qcow2", "bad.qcow2", "/dev/null")
    assert r.rc == 1 and "bad.qcow2: read at offset" in r.err, str(r)
    r = img("convert", "--salvage", "-O", "qcow2", "bad.qcow2", "/dev/null")
    assert r.rc == 0 and "zeroes instead" in r.err, str(r)
    lines = r.err.splitlines()
    assert len(lines) == len(set(lines)) # told once, although it was read twice


@pytest.mark.parametrize("args,words", [
    (["-O", "qed"], ["qed", "pipe"]),
    (["-O", "vmdk"], ["vmdk"]),
    (["-O", "raw", "-n"], ["-n"]),
    (["-O", "qcow2", "-C"], ["-C"]),
    (["-O", "qcow2", "-p"], ["-p"]),
    (["-O", "qcow2", "-o", "preallocation=metadata"], ["preallocation"]),
    (["-O", "qcow2", "-o", "nothing=1"], ["nothing"]),
    (["-O", "raw", "-o", "nothing=1"], ["nothing"]),
    (["-O", "raw", "-c"], ["compress"]),
    (["-O", "raw", "-B", "src.raw", "-F", "raw"], ["backing"]),
    (["-O", "qcow2", "-B", "src.raw"], ["format of the backing file"]),
])
def test_what_cannot_go_into_a_pipe(here, args, words):
    r = img("convert", *args, "src.raw", "-")
    assert r.rc == 1 and r.out == "" and len(r.err.splitlines()) == 1, str(r)
    assert all(w in r.err for w in words), str(r)
    assert sorted(os.listdir()) == ["src.raw"]


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_a_reader_that_goes_away(here, fmt):
    with subprocess.Popen([varve_path(), "img", "convert", "-S", "0", "-O", fmt, "src.raw", "-"], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as p:
        p.stdout.buffer.read(1000)
        p.stdout.close()
        err = p.stderr.read()
        assert p.wait(TIMEOUT) == 1
    assert len(err.splitlines()) == 1 and "Broken pipe" in err, err


def test_a_named_pipe_and_progress(here):
    os.mkfifo("pipe")
    with open("out", "wb") as out, subprocess.Popen(["cat", "pipe"], stdout=out) as reader:
        try:
            r = img("convert", "-p", "-O", "qcow2", "src.raw", "pipe")
            assert r.rc == 0 and "(100.00/100%)" in r.out, str(r)
            assert reader.wait(TIMEOUT) == 0
        finally:
            reader.kill() # it would wait for somebody to open the pipe
    same("src.raw", "out")
    refused(img("convert", "-O", "qcow2", "src.raw", "/dev/full"), "/dev/full", "No space left")


# ---- out of a pipe ----

def from_pipe(*args, data, target="out", source="-"):
    with subprocess.Popen([varve_path(), "img", "convert", "-f", "raw", *args, source, target], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as p:
        try:
            out, err = p.communicate(data, TIMEOUT)
        finally:
            p.kill()
    assert p.returncode == 0 and out == b"" and err == b"", err


@pytest.mark.parametrize("options", [
    ["-O", "raw"], ["-O", "raw", "-S", "0"], ["-O", "qcow2"], ["-O", "qcow2", "-c"], ["-O", "qcow2", "-S", "0", "-m", "1"],
    ["-O", "qcow2", "-c", "-o", "cluster_size=2M,compression_type=zstd"], ["-O", "qcow2", "-o", "cluster_size=512"],
    ["-O", "qcow2", "-t", "none", "-W"], ["-O", "qcow2", "-o", "size=8M"], ["-O", "qed", "-o", "size=8M"],
    ["-O", "qcow2", "-o", "size=8M,preallocation=metadata"],
])
def test_contents_come_out_of_a_pipe(here, options):
    from_pipe(*options, data=contents("src.raw"), source="/dev/stdin" if "-c" in options else "-")
    same("src.raw", "out", "raw", options[1])
    length = ok(qimg("info", "--output=json", "-f", options[1], "out")).json["virtual-size"]
    assert length == (8 * MIB if "size=8M" in options[-1] else LEN)


@pytest.mark.parametrize("length", [0, 1, 511, 513, MIB, MIB + 1, 3 * MIB - 1])
def test_any_number_of_bytes(here, length):
    data = random.Random(length).randbytes(length)
    for fmt in ("raw", "qcow2"):
        for c in ([], ["-c"]) if fmt == "qcow2" else ([],):
            from_pipe("-O", fmt, *c, data=data)
            ok(qimg("convert", "-f", fmt, "-O", "raw", "out", "back"))
            assert contents("back") == data + bytes(-length % 512)
            ok(qimg("check", "out")) if fmt == "qcow2" else None


def test_into_what_exists(here):
    ok(qimg("create", "-q", "-f", "qcow2", "out", "8M"))
    ok(qio("out", "write -q -P 5 0 8M"))
    from_pipe("-n", "-O", "qcow2", data=contents("src.raw"))
    ok(qimg("convert", "-O", "raw", "out", "back"))
    assert contents("back") == contents("src.raw") + b"\x05" * (8 * MIB - LEN)
    ok(qimg("check", "out"))
    ok(qimg("create", "-q", "-f", "raw", "small", "1M"))
    with open("src.raw", "rb") as f:
        p = subprocess.run([varve_path(), "img", "convert", "-n", "-f", "raw", "-O", "raw", "-", "small"], stdin=f,
                           capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert p.returncode == 1 and "small" in p.stderr and len(p.stderr.splitlines()) == 1, p.stderr


def test_out_of_a_pipe_into_a_canonical_image(here):
    for options in ([], ["-c"]):
        files = []
        for m in ("1", "2", "16"):
            from_pipe("--canonical", "-m", m, "-O", "qcow2", *options, data=contents("src.raw"))
            files.append(contents("out"))
        assert files[0] == files[1] == files[2]


@pytest.mark.parametrize("args,words", [
    (["-", "out"], ["-f raw"]),
    (["-f", "qcow2", "-", "out"], ["qcow2", "forward"]),
    (["-f", "raw", "-", "src.raw", "out"], ["only one"]),
    (["-f", "raw", "src.raw", "-", "out"], ["only one"]),
    (["-f", "raw", "-l", "x", "-", "out"], ["-l"]),
    (["-f", "raw", "-p", "-", "out"], ["-p"]),
    (["-f", "raw", "-O", "qed", "-", "out"], ["-o size="]),
    (["-f", "raw", "-o", "preallocation=full", "-", "out"], ["-o size="]),
    (["-f", "raw", "-O", "qcow2", "-B", "src.raw", "-F", "raw", "-", "out"], ["-b"]),
    (["-f", "raw", "-", "-"], ["must be a file"]),
    (["-f", "raw", "-c", "-O", "raw", "-", "out"], []),
    (["-f", "raw", "-O", "qcow2", "-o", "size=1M", "-", "out"], ["has more than"]),
])
def test_what_cannot_come_out_of_a_pipe(here, args, words):
    r = img("convert", *args, input="x" * 2 * MIB)
    assert r.rc == 1 and r.out == "" and len(r.err.splitlines()) == 1, str(r)
    assert all(w in r.err for w in words), str(r)
    assert sorted(os.listdir()) == ["src.raw"]


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_ended_while_it_waits_for_more(here, sig):
    with subprocess.Popen([varve_path(), "img", "convert", "-f", "raw", "-O", "qcow2", "-S", "0", "-", "out"], stdin=subprocess.PIPE,
                          preexec_fn=lambda: signal.signal(sig, signal.SIG_DFL)) as p:
        timer = threading.Timer(TIMEOUT, p.kill)
        timer.start()
        try:
            p.stdin.write(bytes(3 * MIB))
            p.stdin.flush()
            while not (os.path.exists("out") and os.stat("out").st_size > MIB) and p.poll() is None:
                time.sleep(0.001)  # a file does not tell
            p.send_signal(sig)
            assert p.wait() == -sig
        finally:
            timer.cancel()
            p.kill()
    assert not os.path.exists("out")


def test_from_one_pipe_into_the_next(here):
    """qcow2 | raw | qcow2: nothing but pipes in between."""
    ok(qimg("convert", "-O", "qcow2", "-c", "src.raw", "s.qcow2"))
    with subprocess.Popen([varve_path(), "img", "convert", "-O", "raw", "s.qcow2", "-"], stdout=subprocess.PIPE) as a:
        p = subprocess.run([varve_path(), "img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-", "out"], stdin=a.stdout,
                           capture_output=True, timeout=TIMEOUT, check=False)
        assert a.wait(TIMEOUT) == 0 and p.returncode == 0 and p.stderr == b""
    same("src.raw", "out")


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_what_is_read_for_a_pipe_is_the_guests(here, fmt):
    """Rules for reads of data see it, as they see those of a conversion into a file."""
    ok(img("create", "-f", fmt, "s", "4M"))
    ok(qio("s", "write -P 5 0 4M", options=["-f", fmt]))
    with open("rules", "w", encoding="utf-8") as f:
        f.write('[inject-error]\nevent = "read_aio"\nerrno = "5"\n')
    for target in ("-", "out"):
        r = img("convert", "-f", fmt, "-O", "raw", "blkdebug:rules:s", target)
        assert r.rc == 1 and "read at offset" in r.err and "Input/output error" in r.err, str(r)
