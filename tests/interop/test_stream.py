# SPDX-License-Identifier: MIT
"""test_stream - after a stream the image reads the same, and needs less below it"""

import json
import os
import random
import signal
import subprocess
import time

import pytest

from seeds import seed
from tool import MIB, TIMEOUT, img, io, ok, qimg, qio, varve_path, when_unlocked

LEN = 5 * MIB + 512 * 33


def chain(folder, rng, fmt):
    """base.raw <- middle.qcow2 <- top: names as users give them, relative to the folder."""
    ok(qimg("create", "-q", "-f", "raw", "base.raw", str(LEN)))
    for path, backing, args in (("middle.qcow2", "base.raw", ["-F", "raw"]), ("top", "middle.qcow2", ["-F", "qcow2"])):
        options = rng.choice(["cluster_size=64k", "cluster_size=4k"])
        ok(img("create", "-q", "-f", "qcow2" if path != "top" else fmt, "-o", options, "-b", backing, *args, path))
    for path in ("base.raw", "middle.qcow2", "top"):
        commands = []
        for _ in range(12):
            off = rng.randrange(LEN // 512) * 512
            n = min(rng.randrange(1, 900) * 512, LEN - off)
            commands.append(rng.choice([f"write -q -P {rng.randrange(1, 256)} {off} {n}", f"write -q -z {off} {n}"]))
        ok(io(path, *commands, options=("-f", "raw" if path == "base.raw" else "qcow2" if path != "top" else fmt)))
    ok(qimg("convert", "-f", fmt, "-O", "raw", "top", "want.raw"))


def backing(path):
    return json.loads(img("info", "--output=json", path).out).get("backing-filename")


@pytest.mark.parametrize("fmt", ["qcow2", "qed"])
@pytest.mark.parametrize("base", [None, "base.raw", "middle.qcow2"])
def test_the_image_reads_the_same_afterwards(tmp_path, monkeypatch, fmt, base):
    monkeypatch.chdir(tmp_path)
    chain(tmp_path, random.Random(seed()), fmt)
    ok(img("stream", "-q", *(["-b", base] if base else []), "top"))
    assert backing("top") == base
    for gone in ("base.raw", "middle.qcow2"):
        if base is None or (base == "base.raw" and gone == "middle.qcow2"):
            os.unlink(gone)
    ok(qimg("compare", "-f", fmt, "-F", "raw", "top", "want.raw"))
    ok(img("compare", "-f", fmt, "-F", "raw", "top", "want.raw"))
    ok(qimg("check", "-q", "-f", fmt, "top"))
    ok(img("check", "-q", "-f", fmt, "top"))


def test_a_base_in_another_folder_is_named_so_that_it_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.makedirs("a/b")
    ok(qimg("create", "-q", "-f", "raw", "a/base.raw", "1M"))
    ok(qio("a/base.raw", "write -q -P 3 0 1M", options=("-f", "raw")))
    ok(qimg("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "a/middle.qcow2"))
    ok(qimg("create", "-q", "-f", "qcow2", "-b", "../middle.qcow2", "-F", "qcow2", "a/b/top.qcow2"))
    ok(img("stream", "-q", "-b", "a/b/../base.raw", "a/b/top.qcow2"))
    ok(qio("a/b/top.qcow2", "read -q -P 3 0 1M"))
    assert os.path.basename(backing("a/b/top.qcow2")) == "base.raw"


def test_interrupted_it_goes_on_next_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ok(qimg("create", "-q", "-f", "raw", "base.raw", "24M"))
    ok(qio("base.raw", "write -q -P 5 0 24M", options=("-f", "raw")))
    ok(img("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "top"))
    # So slow that all but the pieces that are begun at once would take a minute. Who runs the tests in the background may have the
    # signal ignored, and children inherit that.
    p = subprocess.Popen([varve_path(), "img", "stream", "-r", "256k", "-p", "top"], stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    wait_for(lambda: os.path.getsize("top") >= 3 * MIB)
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=TIMEOUT)
    assert p.returncode == -signal.SIGINT and "ended by SIGINT" in err and err.count("\n") == 1
    assert backing("top") == "base.raw"
    ok(qimg("check", "-q", "top"))
    ok(qimg("compare", "-F", "raw", "top", "base.raw"))
    part = os.path.getsize("top")
    assert part < 20 * MIB
    ok(img("stream", "-q", "top"))
    assert backing("top") is None
    ok(qimg("compare", "-F", "raw", "top", "base.raw"))


def test_killed_at_any_moment_nothing_is_wrong(tmp_path, monkeypatch):
    """The link goes when everything it stood for is in the image, and not before."""
    monkeypatch.chdir(tmp_path)
    rng = random.Random(seed())
    for fmt in ("qcow2", "qed"):
        for _ in range(6):
            for name in ("base.raw", "middle.qcow2", "top"):
                if os.path.exists(name):
                    os.unlink(name)
            chain(tmp_path, rng, fmt)
            p = subprocess.Popen([varve_path(), "img", "stream", "-q", "top"])
            time.sleep(rng.random() * 0.03)
            p.kill()
            p.wait()
            when_unlocked("top")
            check = img("check", "-q", "-f", fmt, "top")
            assert check.rc in (0, 3), str(check)
            ok(qimg("compare", "-f", fmt, "-F", "raw", "top", "want.raw"))


@pytest.mark.parametrize("args, says", [
    (["-b", "nothing", "top"], "'nothing' is not the name of an image in its backing chain"),
    (["base.raw"], "raw image has no backing file"), (["-r", "x", "top"], "'x' is no size"), ([], "one file name"),
])
def test_refusals(tmp_path, monkeypatch, args, says):
    monkeypatch.chdir(tmp_path)
    chain(tmp_path, random.Random(1), "qcow2")
    before = [open(p, "rb").read() for p in ("base.raw", "top")]
    done = img("stream", *args)
    assert done.rc == 1 and says in done.err and done.err.count("\n") <= 2, str(done)
    assert before == [open(p, "rb").read() for p in ("base.raw", "top")]


def test_snapshots_keep_the_backing_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chain(tmp_path, random.Random(1), "qcow2")
    ok(qimg("snapshot", "-c", "one", "top"))
    before = open("top", "rb").read()
    for args in ([], ["-b", "base.raw"]):
        done = img("stream", *args, "top")
        assert done.rc == 1 and "1 internal snapshots" in done.err and done.err.count("\n") == 1, str(done)
        assert open("top", "rb").read() == before
    ok(img("stream", "-q", "-b", "middle.qcow2", "top"))  # which stays the backing file
    assert backing("top") == "middle.qcow2"
    ok(qimg("snapshot", "-d", "one", "top"))
    ok(img("stream", "-q", "top"))
    assert backing("top") is None


def test_without_a_backing_file_there_is_nothing_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ok(img("create", "-q", "-f", "qcow2", "alone", "1M"))
    ok(img("stream", "-q", "alone"))


def serve(tmp_path, *options):
    p = subprocess.Popen([varve_path(), "serve", "top", "--vhost-user", str(tmp_path / "s"), *options],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + TIMEOUT
    while not os.path.exists(tmp_path / "s") and p.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    return p


def stop(p):
    p.send_signal(signal.SIGTERM)
    out, err = p.communicate(timeout=TIMEOUT)
    assert (p.returncode, out, err) == (0, "", ""), (p.returncode, out, err)


def wait_for(what):
    until = time.monotonic() + TIMEOUT
    while not what():
        assert time.monotonic() < until, "it does not happen"
        time.sleep(0.02)


def allocated():
    extents = json.loads(img("map", "-U", "--output=json", "top").out)
    return sum(e["length"] for e in extents if e["depth"] == 0 and e["present"])


@pytest.mark.parametrize("options, linked", [(["--prefetch"], True), (["--stream"], False)])
def test_a_served_disk_fills_itself_in_the_background(tmp_path, monkeypatch, options, linked):
    monkeypatch.chdir(tmp_path)
    ok(qimg("create", "-q", "-f", "raw", "base.raw", "6M"))
    ok(qio("base.raw", "write -q -P 5 0 6M", options=("-f", "raw")))
    ok(img("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "top"))
    p = serve(tmp_path, *options)
    try:
        wait_for(lambda: os.stat("top").st_blocks * 512 >= 6 * MIB)
        if not linked:
            wait_for(lambda: json.loads(img("info", "-U", "--output=json", "top").out).get("backing-filename") is None)
    finally:
        stop(p)
    assert allocated() == 6 * MIB
    assert backing("top") == ("base.raw" if linked else None)
    ok(qimg("check", "-q", "top"))
    ok(qimg("compare", "-F", "raw", "top", "base.raw"))


def test_prefetch_and_stream_exclude_each_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ok(img("create", "-q", "-f", "qcow2", "top", "1M"))
    p = serve(tmp_path, "--prefetch", "--stream")
    _, err = p.communicate(timeout=TIMEOUT)
    assert p.returncode == 1 and "exclude each other" in err
