# SPDX-License-Identifier: MIT
"""test_ended - commands that change images, ended by signals: at a safe point, with nothing leaked and nothing lost

The moment is chosen by what the command has done: it says how far it is, and goes no further until that has been read; or its file
is looked at until it has grown so far, while its calls are slow.
"""

import contextlib
import fcntl
import os
import random
import shutil
import signal
import subprocess
import threading
import time

import pytest

from tool import KIB, MIB, TIMEOUT, img, info, io, ok, qimg, qio, varve_path

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


def default_signals():
    """Who runs the tests in the background may have some ignored, and children inherit that."""
    for s in SIGNALS:
        signal.signal(s, signal.SIG_DFL)


@contextlib.contextmanager
def running(*args, before=(), preexec_fn=default_signals, **kw):
    """The command; killed at the end, whatever happens."""
    with subprocess.Popen([*before, varve_path(), "img", *map(str, args)], stderr=subprocess.PIPE, preexec_fn=preexec_fn, **kw) as p:
        timer = threading.Timer(TIMEOUT, p.kill)
        timer.start()
        try:
            yield p
        finally:
            timer.cancel()
            p.kill()


@contextlib.contextmanager
def telling(*args, **kw):
    """The command, which tells how far it is into a pipe that has room for one line: when a line has been read it is no further than
    where it says the next but one. Whether that is the end depends on the length of what it works on, and not on how fast we are."""
    out, into = os.pipe2(os.O_DIRECT)  # that is: no two writes share a page
    with open(out, "rb") as lines, open(into, "wb") as told:
        fcntl.fcntl(told, fcntl.F_SETPIPE_SZ, 4096)  # one page
        with running(*args, "-p", "--progress=json", stdout=told, **kw) as p:
            told.close()
            p.stdout = lines
            yield p


def percent(p, least):
    """Reads what -p --progress=json prints until it is that far. False: the command ended before."""
    for line in p.stdout:
        if float(line.split(b":")[1].strip(b" }\n")) >= least:
            return True
    return False


def said(p):
    """Without what strace says of itself (running(before=)): a signal in the middle of a delay puzzles it, and changes nothing."""
    return "".join(line for line in p.stderr.read().decode().splitlines(True) if not line.startswith("strace: "))


def ended(p, sig, *words):
    """By the signal, after one line that says so."""
    if p.stdout:
        p.stdout.read()
    err = said(p)
    assert p.wait() == -sig, err
    assert err.count("\n") == 1 and f"ended by {sig.name}" in err and all(w in err for w in words), err


def sound(path, fmt="qcow2"):
    """Clean, which lost space is not."""
    if fmt == "qcow2":
        ok(qimg("check", "-q", "-f", fmt, path))
        ok(img("check", "-q", "-f", fmt, path))


def same(a, b, fmt="qcow2"):
    ok(qimg("compare", "-q", "-f", fmt, "-F", "raw", a, b))


LEN = 8 * MIB


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """base.qcow2 under top.qcow2; want.raw is what top reads, base.raw what base does."""
    path = tmp_path_factory.mktemp("images")
    rng = random.Random(8)
    with open(path / "base.raw", "wb") as f:
        f.truncate(LEN)
        for off in range(0, LEN, 256 * KIB):
            f.seek(off)
            f.write(rng.randbytes(100 * KIB))
    ok(qimg("convert", "-O", "qcow2", path / "base.raw", path / "base.qcow2"))
    ok(qimg("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", path / "top.qcow2"))
    ok(io(path / "top.qcow2", *[f"write -q -P {n + 1} {n * 512 + 32}k 200k" for n in range(16)], "write -q -z 3M 200k"))
    ok(qimg("convert", "-O", "raw", path / "top.qcow2", path / "want.raw"))
    return path


@pytest.fixture
def here(images, tmp_path, monkeypatch):
    for name in os.listdir(images):
        shutil.copy(images / name, tmp_path)
    monkeypatch.chdir(tmp_path)


# ---- each command, many moments ----

@pytest.mark.parametrize("sig, least", [(SIGNALS[0], 0), (SIGNALS[0], 10), (SIGNALS[1], 35), (SIGNALS[2], 60), (SIGNALS[0], 90)])
def test_commit(here, sig, least):
    with telling("commit", "-r", "16M", "top.qcow2") as p:
        assert percent(p, least)
        p.send_signal(sig)
        ended(p, sig, "commit", "top.qcow2")
    sound("base.qcow2")
    sound("top.qcow2")
    same("top.qcow2", "want.raw")
    ok(img("commit", "-q", "top.qcow2"))
    same("base.qcow2", "want.raw")
    sound("top.qcow2")


@pytest.mark.parametrize("least", [0, 70])
def test_commit_of_several_layers(here, least):
    ok(qimg("create", "-q", "-f", "qcow2", "-b", "top.qcow2", "-F", "qcow2", "over.qcow2"))
    ok(io("over.qcow2", "write -q -P 77 1M 3M"))
    ok(qimg("convert", "-O", "raw", "over.qcow2", "want.raw"))
    with telling("commit", "-r", "16M", "-b", "base.qcow2", "over.qcow2") as p:
        assert percent(p, least)
        p.send_signal(signal.SIGTERM)
        ended(p, signal.SIGTERM)
    for path in ("base.qcow2", "top.qcow2", "over.qcow2"):
        sound(path)
    same("over.qcow2", "want.raw")


@pytest.mark.parametrize("args, least", [([], 0), ([], 60), (["-c"], 10), (["-c"], 50)])
def test_convert_into_an_image_that_exists(here, args, least):
    """It tells so much every tenth of a second. (-r would let it make up for the time that it waits for us; a limit of the image does not.)"""
    ok(qimg("create", "-q", "-f", "qcow2", "out.qcow2", "66M"))
    ok(io("out.qcow2", "write -q -P 9 65M 1M"))
    slow = "driver=qcow2,file.filename=out.qcow2,throttling.bps-write=12M"
    with telling("convert", "-n", "-m", "2", *args, "--target-image-opts", *8 * ["top.qcow2"], slow) as p:
        assert percent(p, least)
        p.send_signal(signal.SIGTERM)
        ended(p, signal.SIGTERM, "convert", "out.qcow2")
    sound("out.qcow2")
    ok(qio("out.qcow2", "read -q -P 9 65M 1M"))


def test_convert_out_of_a_pipe(here):
    ok(qimg("create", "-q", "-f", "qcow2", "out.qcow2", "10M"))
    with running("convert", "-n", "-f", "raw", "-O", "qcow2", "-", "out.qcow2", stdin=subprocess.PIPE) as p:
        p.stdin.write(b"x" * 3 * MIB)
        p.stdin.flush()
        while os.path.getsize("out.qcow2") < MIB and p.poll() is None:
            time.sleep(0.001)  # a file does not tell
        p.send_signal(signal.SIGTERM)
        ended(p, signal.SIGTERM, "out.qcow2")
        p.stdin.close()
    sound("out.qcow2")


@pytest.mark.parametrize("least", [0, 28])
def test_stream(here, least):
    """Pieces that are under way, up to eight of 1 MiB, are finished. The others come one a second, whether or not somebody reads."""
    ok(qimg("resize", "-q", "base.qcow2", "32M"))
    ok(io("base.qcow2", "write -q -P 5 8M 24M"))
    ok(qimg("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2"))
    ok(io("top.qcow2", "write -q -P 6 4M 1M"))
    ok(qimg("convert", "-O", "raw", "top.qcow2", "want.raw"))
    with telling("stream", "-r", "1M", "top.qcow2") as p:
        assert percent(p, least)
        p.send_signal(signal.SIGTERM)
        ended(p, signal.SIGTERM, "stream")
    sound("top.qcow2")
    same("top.qcow2", "want.raw")
    assert info("top.qcow2")["backing-filename"] == "base.qcow2"
    ok(img("stream", "-q", "top.qcow2"))
    same("top.qcow2", "want.raw")


@contextlib.contextmanager
def held(path, limits):
    """What goes through the image is slow."""
    yield f"driver=qcow2,file.driver=file,file.filename={path},throttling.{limits}"


@pytest.mark.parametrize("least", [0, 30, 80])
def test_rebase(here, least):
    ok(qimg("create", "-q", "-f", "qcow2", "empty.qcow2", str(LEN)))
    ok(qio("empty.qcow2", "write -q -P 200 0 8M"))
    with held("top.qcow2", "bps-total=16M") as name:
        with telling("rebase", "--image-opts", "-b", "empty.qcow2", "-F", "qcow2", name) as p:
            assert percent(p, least)
            p.send_signal(signal.SIGTERM)
            ended(p, signal.SIGTERM, "rebase")
    sound("top.qcow2")
    same("top.qcow2", "want.raw")
    assert info("top.qcow2")["backing-filename"] == "base.qcow2"


def slowed(call, ms):
    """What goes before a command whose calls of this kind are to take so long each."""
    return ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "--seccomp-bpf", "-e", f"trace={call}", "-e", f"inject={call}:delay_enter={ms}000"]


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
@pytest.mark.parametrize("grown", [2 * MIB, 40 * MIB])
def test_resize(here, fmt, grown):
    """A disk that is to be longer by more than there is time for, MiB by MiB, slowly."""
    ok(qimg("convert", "-O", fmt, "want.raw", "disk"))
    before, taken = os.path.getsize("disk"), os.stat("disk").st_blocks * 512
    with running("resize", "--image-opts", "--preallocation=full", f"driver={fmt},file.filename=disk,aio=threads", "+8G",
                 before=slowed("pwritev2", 20)) as p:
        while os.path.getsize("disk") < before + grown and p.poll() is None:
            time.sleep(0.001)  # a file does not tell
        p.send_signal(signal.SIGINT)
        ended(p, signal.SIGINT, "resize", "disk")
    assert info("disk", fmt)["virtual-size"] == LEN
    assert os.stat("disk").st_blocks * 512 < taken + MIB
    sound("disk", fmt)
    same("disk", "want.raw", fmt)


@pytest.mark.parametrize("grown", [0, 2 * MIB, 6 * MIB])
def test_amend(here, grown):
    """Down to version 2, which has no entry that says zeroes: over a backing file they get space, 64 tables, so slowly that it takes
    half a minute."""
    ok(qimg("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "-o", "cluster_size=4k", "disk", "128M"))
    ok(io("disk", "write -q -z 0 128M"))
    before = os.path.getsize("disk")
    with running("amend", "--image-opts", "-o", "compat=0.10", "driver=qcow2,file.filename=disk,aio=threads",
                 before=slowed("fallocate", 500)) as p:
        while os.path.getsize("disk") <= before + grown and p.poll() is None:
            time.sleep(0.001)  # a file does not tell
        p.send_signal(signal.SIGTERM)
        ended(p, signal.SIGTERM, "amend", "disk")
    sound("disk")
    assert info("disk")["format-specific"]["data"]["compat"] == "1.1"
    ok(qio("disk", "read -q -P 0 0 16M"))
    ok(img("amend", "-o", "compat=0.10", "disk"))
    sound("disk")


@pytest.mark.parametrize("exists", [False, True])
def test_dd(here, exists):
    out = ["of=out.qcow2"]
    if exists:
        ok(qimg("create", "-q", "-f", "qcow2", "out.qcow2", "10M"))
        out.append("-n")
    with running("dd", "-O", "qcow2", "isize=10M", *out, stdin=subprocess.PIPE) as p:
        p.stdin.write(b"x" * 3 * MIB)
        p.stdin.flush()
        while not (os.path.exists("out.qcow2") and os.path.getsize("out.qcow2") >= MIB) and p.poll() is None:
            time.sleep(0.001)  # a file does not tell
        p.send_signal(signal.SIGTERM)
        ended(p, signal.SIGTERM)
        p.stdin.close()
    assert os.path.exists("out.qcow2") == exists
    if exists:
        sound("out.qcow2")


# A MiB each: what is made would take half a minute, and nobody's disk is full before the signal comes.
SLOW_WRITES, LONG = slowed("io_uring_enter,pwritev2", 30), "1G"


@pytest.mark.parametrize("fmt, options", [("qcow2", ()), ("raw", ()), ("qcow2", ("-o", "data_file=data"))])
def test_create(here, fmt, options):
    """What it was making goes with it: an image that looks whole, or fills the disk, helps nobody."""
    grows = "data" if options else "disk"
    with running("create", "-q", "-f", fmt, "-o", "preallocation=full", *options, "disk", LONG, before=SLOW_WRITES) as p:
        while not (os.path.exists(grows) and os.path.getsize(grows) > MIB) and p.poll() is None:
            time.sleep(0.001)  # a file does not tell
        p.send_signal(signal.SIGTERM)
        assert p.wait() == -signal.SIGTERM
        assert said(p) == ""
    assert not os.path.exists("disk") and not os.path.exists("data")


def test_create_over_a_file_that_exists(here):
    """It stays, and what half an image is in it is none."""
    with open("disk", "wb") as f:
        f.write(b"x" * 100)
    with running("create", "-q", "-f", "qcow2", "-o", "preallocation=full", "disk", LONG, before=SLOW_WRITES) as p:
        while os.path.getsize("disk") <= MIB and p.poll() is None:
            time.sleep(0.001)  # a file does not tell
        p.send_signal(signal.SIGINT)
        assert p.wait() == -signal.SIGINT
    assert info("disk")["format"] == "raw"
    os.unlink("disk")


@pytest.mark.parametrize("fmt", ["qcow2", "qed"])
def test_check_that_repairs(here, fmt):
    """Ended at any moment it leaves what it found, or what it made of it; the next one does the rest."""
    ok(img("create", "-q", "-f", fmt, *(["-o", "lazy_refcounts=on,cluster_size=512"] if fmt == "qcow2" else []), "disk", "64M"))
    with subprocess.Popen([varve_path(), "io", "-f", fmt, "-t", "unsafe", "-c", "write -q -P 3 0 4M", "-c", "flush", "-c", "sigraise 9",
                           "disk"]) as p:
        p.wait(TIMEOUT)
    states = set()
    shutil.copy("disk", "damaged")
    for n in range(6):
        shutil.copy("damaged", "disk")
        with running("check", "-q", "-r", "all", "-f", fmt, "disk") as p:
            with contextlib.suppress(subprocess.TimeoutExpired):
                p.wait(n / 500)  # any moment will do
            p.send_signal(signal.SIGTERM)
            p.wait()
            assert said(p) == ""
        states.add(p.returncode)
        ok(img("check", "-q", "-r", "all", "-f", fmt, "disk"))
        ok(io("disk", "read -q -P 3 0 4M", options=("-r", "-f", fmt)))
        if fmt == "qcow2":
            sound("disk")
    assert states <= {0, -signal.SIGTERM}


# ---- the second one ----

def test_the_second_signal_ends_it_at_once(here):
    """Both are there before the command can do anything about the first."""
    with running("dd", "-n", "-O", "qcow2", "of=top.qcow2", "isize=8M", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as p:
        p.stdin.write(b"x" * 3 * MIB)
        p.stdin.flush()
        os.kill(p.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, p.pid, os.WSTOPPED | os.WNOWAIT)
        for _ in range(2):  # both are there when it goes on; the handler of the first has made way for the other
            os.kill(p.pid, signal.SIGTERM)
            os.kill(p.pid, signal.SIGINT)
        os.kill(p.pid, signal.SIGCONT)
        assert p.wait() in (-signal.SIGTERM, -signal.SIGINT)
        assert said(p) == ""
        p.stdin.close()


def test_a_signal_that_is_ignored_stays_ignored(here):
    with telling("commit", "-r", "16M", "top.qcow2", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as p:
        assert percent(p, 20)
        p.send_signal(signal.SIGHUP)
        p.stdout.read()
        assert p.wait(TIMEOUT) == 0
    same("base.qcow2", "want.raw")
