# SPDX-License-Identifier: MIT
"""test_img_convert - what convert writes holds what it read, whichever way, and nothing half done stays

Contents are judged by qemu-img, so is consistency.
"""

import os
import random
import re
import signal
import subprocess
import threading
import time

import pytest

import seeds
from tool import KIB, MIB, TIMEOUT, img, ok, qimg, qio, refused, varve_path

LEN = 6 * MIB + 33 * 512


def fill(path, seed, length=LEN):
    """Data that compresses, data that does not, zeroes that are written, holes; runs of all lengths."""
    rng = random.Random(seed)
    with open(path, "wb") as f:
        f.truncate(length)
        pos = 0
        while pos < length:
            run = min(rng.choice([512, 4 * KIB, 40 * KIB, 300 * KIB]) * rng.randrange(1, 4), length - pos)
            kind = rng.randrange(4)
            f.seek(pos)
            if kind == 0:
                f.write(rng.randbytes(run))
            elif kind == 1:
                f.write((rng.randbytes(61) * (run // 61 + 1))[:run])
            elif kind == 2:
                f.write(bytes(run))
            pos += run


def same(a, b, fmt="qcow2", source_fmt="raw"):
    ok(qimg("compare", "-q", "-f", source_fmt, "-F", fmt, a, b))
    if fmt == "qcow2":
        ok(qimg("check", "-q", "-f", fmt, b))
        ok(img("check", "-q", "-f", fmt, b))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill("src.raw", 1)
    return tmp_path


@pytest.mark.parametrize("args", [
    "-O raw", "-O qcow2", "-O qcow2 -c", "-O qcow2 -c -o compression_type=zstd", "-O qcow2 -c --compress-level=ratio",
    "-O qcow2 -o cluster_size=512", "-O qcow2 -c -o cluster_size=4k", "-O qcow2 -c -o cluster_size=2M",
    "-O qcow2 -o compat=0.10", "-O qcow2 -o preallocation=metadata", "-O raw -o preallocation=falloc", "-O raw -S 0",
    "-O qcow2 -S 0", "-O qcow2 -S 64k", "-O raw -C", "-O qcow2 -C", "-O qcow2 -W -m 16", "-O qcow2 -m 1",
    "-O raw -t none -T none", "-O qcow2 -t none -T none", "-O qcow2 -c -t none", "-O qcow2 -t writethrough", "-O qed",
    "-O qcow2 -c --canonical", "-O raw --salvage"])
def test_every_way_gives_the_same_contents(here, args):
    args = args.split()
    r = ok(img("convert", "-f", "raw", *args, "src.raw", "out"))
    assert r.out == ""
    same("src.raw", "out", args[1])
    # And back, by both.
    ok(img("convert", "-f", args[1], "-O", "raw", "out", "back.raw"))
    assert open("back.raw", "rb").read() == open("src.raw", "rb").read()


def test_what_is_zero_takes_no_space(here):
    with open("zero.raw", "wb") as f:
        f.write(bytes(8 * MIB))
    for args in (["-O", "raw"], ["-O", "qcow2"], ["-O", "qcow2", "-c"]):
        ok(img("convert", *args, "zero.raw", "out"))
        assert os.stat("out").st_blocks * 512 <= MIB, args
    ok(img("convert", "-O", "raw", "-S", "0", "zero.raw", "out"))
    assert os.stat("out").st_blocks * 512 >= 8 * MIB


@pytest.mark.parametrize("target", ["out", "-"])
def test_space_that_was_only_reserved_is_not_read(here, target):
    """A terabyte in place, of which the file holds two clusters: who read all of it would need minutes."""
    ok(img("create", "-f", "qcow2", "-o", "preallocation=metadata,cluster_size=2M", "pre", "1T"))
    ok(qio("pre", "write -P 7 300G 64k", "write -P 8 1000G 1M"))
    with open("out", "wb") as out:
        began = os.times()
        subprocess.run([varve_path(), "img", "convert", "-f", "qcow2", "-O", "qcow2", "pre", target], stdout=out, check=True,
                       timeout=TIMEOUT)
        used = os.times()
    assert used.children_user + used.children_system - began.children_user - began.children_system < 20
    ok(qio("out", "read -P 0 0 1M", "read -P 7 300G 64k", "read -P 0 500G 1M", "read -P 8 1000G 1M", "read -P 0 1001G 1M"))
    assert os.stat("out").st_blocks * 512 < 64 * MIB


def test_compressed_is_about_as_small_as_the_peers(here):
    for kind in ("zlib", "zstd"):
        ok(img("convert", "-c", "-O", "qcow2", "-o", f"compression_type={kind}", "src.raw", "ours"))
        ok(qimg("convert", "-c", "-O", "qcow2", "-o", f"compression_type={kind}", "src.raw", "theirs"))
        assert os.stat("ours").st_size <= os.stat("theirs").st_size * 1.08 + 256 * KIB


def test_a_chain_becomes_one_image(here):
    ok(qimg("create", "-q", "-f", "qcow2", "-b", "src.raw", "-F", "raw", "middle.qcow2"))
    ok(qio("middle.qcow2", "write -q -P 7 100k 200k", "write -q -z 1M 1M"))
    ok(qimg("create", "-q", "-f", "qcow2", "-b", "middle.qcow2", "-F", "qcow2", "-o", "cluster_size=4k", "top.qcow2"))
    ok(qio("top.qcow2", "write -q -P 9 3M 5000"))
    for args in ([], ["-c"]):
        ok(img("convert", "-O", "qcow2", *args, "top.qcow2", "out"))
        same("top.qcow2", "out", source_fmt="qcow2")
        assert "backing-filename" not in img("info", "--output=json", "out").json


@pytest.mark.parametrize("how", [["-B", "src.raw"], ["-o", "backing_file=src.raw"], ["-b", "src.raw", "-c"]])
def test_over_a_backing_file_only_the_difference_is_written(here, how):
    ok(qimg("create", "-q", "-f", "qcow2", "-b", "src.raw", "-F", "raw", "top.qcow2"))
    ok(qio("top.qcow2", "write -q -P 7 100k 200k", "write -q -z 1M 1M", "write -q -P 3 5M 3k"))
    ok(img("convert", "-f", "qcow2", "-O", "qcow2", *how, "-F", "raw", "top.qcow2", "out"))
    same("top.qcow2", "out", source_fmt="qcow2")
    assert img("info", "--output=json", "out").json["backing-filename"] == "src.raw"
    assert os.stat("out").st_size < 2 * MIB


@pytest.mark.parametrize("how", [[], ["-c"], ["-S", "0"], ["-C"], ["-W", "-m", "16"]], ids=lambda how: " ".join(how) or "plain")
@pytest.mark.parametrize("length", [0, MIB, MIB + 33 * 512])
def test_over_a_shorter_backing_file_nothing_is_lost(here, how, length):
    """What the source reads from its own backing file, behind the end of the new one, is in no other place."""
    ok(qimg("create", "-q", "-f", "qcow2", "-b", "src.raw", "-F", "raw", "top.qcow2"))
    ok(qio("top.qcow2", "write -q -P 7 100k 200k", "write -q -z 2M 1M"))
    with open("src.raw", "rb") as f, open("short.raw", "wb") as g:
        g.write(f.read(length))
    ok(img("convert", "-f", "qcow2", "-O", "qcow2", *how, "-B", "short.raw", "-F", "raw", "top.qcow2", "out"))
    same("top.qcow2", "out", source_fmt="qcow2")


def test_sources_follow_each_other(here):
    fill("b.raw", 2, 70 * KIB + 512)
    fill("c.raw", 3, 2 * MIB)
    ok(qimg("convert", "-O", "qcow2", "b.raw", "b.qcow2"))
    for args in (["raw"], ["qcow2"], ["qcow2", "-c"], ["qcow2", "-S", "0"]):
        ok(img("convert", "-O", *args, "src.raw", "b.qcow2", "c.raw", "out"))
        ok(qimg("convert", "-O", "raw", "out", "back.raw"))
        assert open("back.raw", "rb").read() == b"".join(open(p, "rb").read() for p in ("src.raw", "b.raw", "c.raw"))


def test_canonical_is_the_same_bit_for_bit(here):
    for args in ([], ["-c"], ["-o", "cluster_size=4k"]):
        files = []
        for m in ("1", "3", "16"):
            ok(img("convert", "--canonical", "-O", "qcow2", *args, "-m", m, "src.raw", "out"))
            files.append(open("out", "rb").read())
        assert files[0] == files[1] == files[2]


def test_into_an_image_that_exists(here):
    ok(qimg("create", "-q", "-f", "qcow2", "out", "8M"))
    ok(qio("out", "write -q -P 5 0 8M"))
    ok(img("convert", "-n", "-f", "raw", "-O", "qcow2", "src.raw", "out"))
    ok(qimg("convert", "-O", "raw", "out", "back.raw"))
    assert open("back.raw", "rb").read() == open("src.raw", "rb").read() + b"\x05" * (8 * MIB - LEN)
    # Zeroes are not written where there are said to be some.
    ok(qimg("create", "-q", "-f", "qcow2", "out2", "8M"))
    ok(img("convert", "-n", "--target-is-zero", "-f", "raw", "-O", "qcow2", "src.raw", "out2"))
    ok(qimg("compare", "-f", "raw", "-F", "qcow2", "src.raw", "out2"))
    ok(img("convert", "-n", "--target-image-opts", "src.raw", "driver=qcow2,file.filename=out"))
    refused(img("convert", "-n", "-O", "raw", "src.raw", "none"), "none")
    assert not os.path.exists("none")
    ok(qimg("create", "-q", "-f", "raw", "small", "1M"))
    refused(img("convert", "-n", "-O", "raw", "src.raw", "small"), "do not fit")


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_zeroinit_is_target_is_zero(here, fmt):
    """What is not zero arrives; where the source is zero the target keeps what it had, as nobody has looked."""
    kept = {}
    for target, args in (("out", ["--target-is-zero", "out"]), ("out2", ["zeroinit:out2"]), ("out3", ["zeroinit:" + os.path.abspath("out3")])):
        ok(qimg("create", "-q", "-f", fmt, target, "8M"))
        ok(qio(target, "write -q -P 5 0 8M", options=["-f", fmt]))
        ok(img("convert", "-p", "-n", "-f", "raw", "-O", fmt, "src.raw", *args))
        ok(qimg("convert", "-f", fmt, "-O", "raw", target, "back.raw"))
        kept[target] = open("back.raw", "rb").read()
    source = open("src.raw", "rb").read()
    assert kept["out"] == kept["out2"] == kept["out3"] != source
    differ = int.from_bytes(kept["out"][:LEN], "big") ^ int.from_bytes(source, "big")
    assert set(differ.to_bytes(LEN, "big")) == {0, 5}
    ok(img("dd", "-n", "-f", "raw", "-O", fmt, "if=src.raw", "of=zeroinit:out", "bs=64k"))


def test_zeroinit_of_a_device(here):
    with open("disk", "wb") as f:
        f.truncate(8 * MIB)
    p = subprocess.run(["losetup", "--find", "--show", "disk"], capture_output=True, text=True, check=False, timeout=TIMEOUT)
    if p.returncode:
        pytest.skip("no loop device: " + p.stderr.strip())
    device = p.stdout.strip()
    try:
        ok(img("convert", "-p", "-n", "-f", "raw", "-O", "raw", "src.raw", "zeroinit:" + device))
        subprocess.run(["blockdev", "--flushbufs", device], check=True, timeout=TIMEOUT)
        assert open("disk", "rb").read() == open("src.raw", "rb").read() + bytes(8 * MIB - LEN)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True, timeout=TIMEOUT)


def test_zeroinit_belongs_to_a_target_that_exists(here):
    for args in (["convert", "zeroinit:src.raw", "out"], ["convert", "-l", "x", "zeroinit:src.raw", "out"], ["info", "zeroinit:src.raw"],
                 ["create", "zeroinit:out", "1M"], ["convert", "src.raw", "zeroinit:out"], ["dd", "if=zeroinit:src.raw", "of=out"],
                 ["dd", "if=src.raw", "of=zeroinit:out"]):
        refused(img(*args), "zeroinit:", "-n")
        assert sorted(os.listdir()) == ["src.raw"]
    refused(img("convert", "-n", "src.raw", "zeroinit:none"), "none: ")
    ok(qimg("create", "-q", "-f", "qcow2", "-b", "src.raw", "-F", "raw", "out"))
    refused(img("convert", "-n", "-O", "qcow2", "-B", "src.raw", "-F", "raw", "src.raw", "zeroinit:out"), "backing file")


def test_a_snapshot_is_read(here):
    ok(qimg("convert", "-O", "qcow2", "src.raw", "s.qcow2"))
    ok(qimg("snapshot", "-c", "before", "s.qcow2"))
    ok(qio("s.qcow2", "write -q -P 5 0 2M"))
    for snapshot in ("before", "1", "snapshot.name=before", "snapshot.id=1"):
        ok(img("convert", "-l", snapshot, "-O", "raw", "s.qcow2", "out"))
        assert open("out", "rb").read() == open("src.raw", "rb").read()
    refused(img("convert", "-l", "none", "-O", "raw", "s.qcow2", "out2"), "none")
    assert not os.path.exists("out2")


# ---- as others call it ----

@pytest.mark.parametrize("line", [
    "convert -t none -O raw -f qcow2 src.qcow2 out",
    "convert -t writeback -O qcow2 -f qcow2 -c src.qcow2 out",
    "convert -O qcow2 src.qcow2 out",
    "convert -O raw -t none -S 0 -f qcow2 src.qcow2 out",
    "convert -p -t none -T none -f qcow2 -O qcow2 -o compat=1.1,preallocation=metadata src.qcow2 out",
    "convert -p -t none -T none -f qcow2 -O raw -W src.qcow2 out",
    "convert -t writeback -p -O raw -o preallocation=falloc src.qcow2 out",
    "convert -t none -p -O raw -o preallocation=full src.qcow2 out",
    "convert -t none -p -O raw -S 0 src.qcow2 out",
    "convert -p -f qcow2 -O raw -t writeback -T none -W src.qcow2 out",
    "convert -c -O qcow2 src.qcow2 out",
    "convert src.qcow2 out -O raw -f qcow2",
])
def test_lines_of_other_programs(here, line):
    ok(qimg("convert", "-O", "qcow2", "src.raw", "src.qcow2"))
    words = line.split()
    ours = ok(img(*words))
    fmt = words[words.index("-O") + 1]
    same("src.raw", "out", fmt)
    os.unlink("out")
    theirs = ok(qimg(*words))
    assert bool(ours.out) == bool(theirs.out)
    if "-p" in words:
        shown = [re.fullmatch(r"\s*\((\d?\d\.\d\d|100\.00)/100%\)\s*", s) for s in ours.out.split("\r")]
        assert all(shown[:-1]) and shown[-2].group(1) == "100.00" and ours.out.endswith("\n")


def test_progress_is_told_when_asked_for(here):
    def asked():
        """Before it has begun: a signal that is blocked waits for the new program."""
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        os.kill(os.getpid(), signal.SIGUSR1)

    with subprocess.Popen([varve_path(), "img", "convert", "-O", "raw", "src.raw", "out"], stderr=subprocess.PIPE, text=True,
                          preexec_fn=asked) as p:
        timer = threading.Timer(TIMEOUT, p.kill)
        timer.start()
        try:
            assert re.fullmatch(r"    \(\d+\.\d\d/100%\)\n", p.stderr.readline())
            assert p.wait() == 0
        finally:
            timer.cancel()
            p.kill()


def test_a_rate_is_kept(here):
    began = time.monotonic()
    ok(img("convert", "-r", "3M", "-S", "0", "-O", "raw", "src.raw", "out"))
    assert time.monotonic() - began > 1
    same("src.raw", "out", "raw")


# ---- what goes wrong ----

@pytest.mark.parametrize("args,words", [
    (["src.raw"], ["source and a target"]),
    (["-O", "nonsense", "src.raw", "out"], ["nonsense"]),
    (["-f", "nonsense", "src.raw", "out"], ["nonsense"]),
    (["none", "out"], ["none"]),
    (["-S", "100", "src.raw", "out"], ["-S"]),
    (["-S", "x", "src.raw", "out"], ["-S"]),
    (["-m", "17", "src.raw", "out"], ["-m"]),
    (["-m", "0", "src.raw", "out"], ["-m"]),
    (["-r", "x", "src.raw", "out"], ["rate"]),
    (["-n", "-o", "size=1M", "src.raw", "out"], ["-o"]),
    (["--target-is-zero", "src.raw", "out"], ["-n"]),
    (["--target-image-opts", "src.raw", "driver=raw,file.filename=out"], ["-n"]),
    (["-C", "-S", "4k", "src.raw", "out"], ["-C"]),
    (["-C", "-c", "-O", "qcow2", "src.raw", "out"], ["-C"]),
    (["-c", "-O", "raw", "src.raw", "out"], ["compress"]),
    (["-c", "-O", "qcow2", "-o", "preallocation=full", "src.raw", "out"], ["preallocation"]),
    (["-F", "raw", "-O", "qcow2", "src.raw", "out"], ["-F"]),
    (["-B", "src.raw", "-O", "qcow2", "src.raw", "out"], ["format of the backing file"]),
    (["-B", "src.raw", "-F", "raw", "-O", "qcow2", "src.raw", "src.raw", "out"], ["several sources"]),
    (["-O", "qcow2", "-o", "cluster_size=3", "src.raw", "out"], ["cluster_size"]),
    (["-O", "qcow2", "-o", "nothing=3", "src.raw", "out"], ["nothing"]),
    (["-t", "never", "src.raw", "out"], ["never"]),
    (["--bitmaps", "-f", "raw", "-O", "qcow2", "src.raw", "out"], ["--bitmaps", "raw"]),
    (["--canonical", "-W", "src.raw", "out"], ["-W"]),
    (["--no-such", "src.raw", "out"], ["--no-such"]),
    (["-l", "x", "-f", "raw", "src.raw", "out"], []),
])
def test_what_cannot_be_changes_nothing(here, args, words):
    r = img("convert", *args)
    assert r.rc == 1 and r.out == "", str(r)
    lines = r.err.splitlines()
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("Help: ")), str(r)
    for word in words:
        assert word in lines[0], str(r)
    assert sorted(os.listdir()) == ["src.raw"]


def test_the_source_is_not_overwritten(here):
    before = open("src.raw", "rb").read()
    assert img("convert", "-f", "raw", "-O", "qcow2", "src.raw", "src.raw").rc == 1
    assert open("src.raw", "rb").read() == before


@pytest.mark.parametrize("least", [0, 512 * KIB], ids=["at-once", "half-way"])
@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_ended_nothing_is_left(here, sig, least):
    # Who runs the tests in the background may have SIGINT ignored, and children inherit that.
    with subprocess.Popen([varve_path(), "img", "convert", "-r", "1M", "-O", "qcow2", *40 * ["src.raw"], "out"],
                          preexec_fn=lambda: signal.signal(sig, signal.SIG_DFL)) as p:
        timer = threading.Timer(TIMEOUT, p.kill)
        timer.start()
        try:
            while not (os.path.exists("out") and os.stat("out").st_size >= least) and p.poll() is None:
                time.sleep(0.001)  # a file does not tell
            p.send_signal(sig)
            assert p.wait() == -sig
        finally:
            timer.cancel()
            p.kill()
    assert not os.path.exists("out")


def test_unreadable_data_is_an_error_or_salvaged(here):
    want = b"".join(random.Random(i).randbytes(61) * 1075 for i in range(64))[:4 * MIB - 16 * KIB]
    with open("src.raw", "wb") as f:
        f.write(want)
    ok(qimg("convert", "-c", "-O", "qcow2", "src.raw", "bad.qcow2"))
    with open("bad.qcow2", "r+b") as f: # all of it is compressed data but the tables at its start
        f.seek(0, os.SEEK_END)
        f.seek(f.tell() - 3000)
        f.write(b"\xff" * 1000) # a block of a type that there is not
    r = img("convert", "-O", "raw", "bad.qcow2", "out")
    assert r.rc == 1 and "bad.qcow2" in r.err and "read" in r.err, str(r)
    assert not os.path.exists("out")
    r = img("convert", "--salvage", "-O", "raw", "bad.qcow2", "out")
    assert r.rc == 0 and "zeroes instead" in r.err, str(r)
    with open("out", "rb") as f:
        got = f.read()
    assert len(want) == len(got)
    lost = [i for i in range(0, len(want), 64 * KIB) if want[i:i + 64 * KIB] != got[i:i + 64 * KIB]]
    assert 1 <= len(lost) <= 16
    assert all(not any(got[i:i + 64 * KIB]) for i in lost[1:-1])


@pytest.mark.parametrize("bad", [[4101], [4096], [4103, 4104], [0]])
def test_no_more_than_the_sectors_that_cannot_be_read_is_given_up(here, bad):
    with open("src", "wb") as f:
        f.write(random.Random(7).randbytes(4 * MIB))
    rules = ",".join(f"file.inject-error.{i}.event=read_aio,file.inject-error.{i}.sector={n}" for i, n in enumerate(bad))
    r = img("convert", "--image-opts", "--salvage", "-O", "raw",
            f"driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename=src,{rules}", "out")
    with open("src", "rb") as s, open("out", "rb") as o:
        want, got = s.read(), o.read()
    assert r.rc == 0 and r.err.count("zeroes instead") == len({n // 8 for n in bad}), str(r)
    assert [n for n in range(len(want) // 512) if want[n * 512:n * 512 + 512] != got[n * 512:n * 512 + 512]] == bad


def test_an_overwritten_target_is_emptied_when_it_fails(here):
    fill("old", 5, MIB)
    ok(qimg("convert", "-c", "-O", "qcow2", "src.raw", "bad.qcow2"))
    with open("bad.qcow2", "r+b") as f:
        f.seek(0, os.SEEK_END)
        f.truncate(f.tell() // 2)
    os.symlink("old", "link")
    assert img("convert", "-O", "raw", "bad.qcow2", "link").rc == 1
    assert os.path.islink("link") and os.stat("old").st_size == 0


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_ended_an_overwritten_target_is_empty(here, fmt):
    """Whatever was being written then: what comes behind the end of the emptied file would make it long again."""
    with open("big.raw", "wb") as f:
        f.write(random.Random(3).randbytes(MIB) * 512)
    for n in range(8):
        with open("out", "w", encoding="ascii") as f:
            f.write("old" * 1000)
        with subprocess.Popen([varve_path(), "img", "convert", "-f", "raw", "-O", fmt, "big.raw", "big.raw", "out"], stderr=subprocess.PIPE,
                              preexec_fn=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL)) as p:
            timer = threading.Timer(TIMEOUT, p.kill)
            timer.start()
            try:
                while os.stat("out").st_blocks < 2048 * (4 + n) and p.poll() is None:
                    pass
                p.send_signal(signal.SIGTERM)
                rc, err = p.wait(), p.stderr.read().decode()
            finally:
                timer.cancel()
                p.kill()
        assert os.stat("out").st_size == 0 and rc == -signal.SIGTERM, (rc, err)
        assert err == "varve img: convert: ended by SIGTERM: out is left empty\n"


# ---- at random ----

def random_line(rng):
    fmt = rng.choice(["raw", "qcow2", "qcow2", "qed"])
    args = ["-O", fmt]
    options = []
    if fmt == "qcow2":
        options.append("cluster_size=" + rng.choice(["512", "4k", "64k", "2M"]))
        if rng.random() < 0.3:
            options.append("compat=" + rng.choice(["0.10", "1.1"]))
        if rng.random() < 0.5:
            args.append("-c")
            if "compat=0.10" not in options and rng.random() < 0.5:
                options.append("compression_type=zstd")
        elif rng.random() < 0.3:
            options.append("preallocation=" + rng.choice(["off", "metadata", "falloc", "full"]))
    if options:
        args += ["-o", ",".join(options)]
    for choices in (["-W"], ["-S", "0"], ["-S", "32k"], ["-m", str(rng.randrange(1, 17))],
                    ["-t", rng.choice(["none", "writeback", "directsync", "unsafe"])], ["-T", rng.choice(["none", "writeback"])]):
        if rng.random() < 0.3:
            args += choices
    return args, fmt


def test_options_at_random(here):
    seed = seeds.seed()
    rng = random.Random(seed)
    fill("src.raw", seed)
    source, source_fmt = "src.raw", "raw"
    for i in range(int(os.environ.get("VARVE_SEEDS", 12))):
        args, fmt = random_line(rng)
        print("convert", *args)
        out = f"out{i % 2}"
        if source == out:
            out = f"out{(i + 1) % 2}"
        ok(img("convert", "-f", source_fmt, *args, source, out))
        same("src.raw", out, fmt)
        if rng.random() < 0.5:
            source, source_fmt = out, fmt


@pytest.mark.parametrize("word, words", [
    ("nobody", ["none of its 1 snapshots is 'nobody'"]), ("", ["none of its 1 snapshots is ''"]), ("snapshot.foo=1", ["'snapshot.foo=1'"]),
    ("snapshot.name=nobody", ["snapshot 'nobody'"]), ("snapshot.id=7", ["with id '7'"]), ("snapshot.id=1,snapshot.name=b", ["'1'", "'b'"])])
@pytest.mark.parametrize("command", [["convert", "-O", "raw", "s,1.qcow2", "out"], ["measure", "-O", "raw", "s,1.qcow2"],
                                     ["dd", "if=s,1.qcow2", "of=out"]])
def test_a_wrong_snapshot_is_told_of_file_and_snapshot(here, command, word, words):
    """In the caller's words: the options that are made of them are nobody's business."""
    ok(qimg("create", "-q", "-f", "qcow2", "s,1.qcow2", "1M"))
    ok(qimg("snapshot", "-c", "one", "s,1.qcow2"))
    line = refused(img(*command, "-l", word), "varve img: s,1.qcow2: ", *words)
    assert "filename=" not in line and ",," not in line, line
    ok(qimg("create", "-q", "-f", "raw", "s,1.qcow2", "1M"))
    assert "no snapshots" in refused(img(*command, "-l", word), "varve img: s,1.qcow2: ", "raw")
    os.unlink("s,1.qcow2")
    refused(img(*command, "-l", word), "varve img: s,1.qcow2: cannot open")
    assert not os.path.exists("out")
