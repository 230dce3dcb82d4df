# SPDX-License-Identifier: MIT
"""test_engines - which AIO engine a user gets, is told of, or is refused: on this machine, and where calls are forbidden"""
import os
import pathlib
import re
import time

import pytest

from serving import Server
from tool import MIB, TIMEOUT, childless, img, io, ok, qimg, refused, run, varve_path

DENIALS = ["EPERM", "ENOSYS"]


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(b"\x5a" * MIB)
    return path


def denied(error, calls, *args):
    deny = pathlib.Path(os.environ["VARVE_BUILD"]).absolute() / "tests/lib/deny"
    return run(deny, error, calls, varve_path(), *args)


def engine_of(result):
    return re.search(r"^aio engine: (.*)$", ok(result).out, re.M)[1]


def options(disk, **more):
    return ",".join(["driver=raw", f"file.filename={disk}"] + [f"{k.replace('_', '.')}={v}" for k, v in more.items()])


def uring_works(disk):
    return img("info", "--engine", "--image-opts", options(disk, aio="io_uring")).rc == 0 and \
        engine_of(img("info", "--engine", disk)) == "io_uring"


# ---- told ----

@pytest.mark.parametrize("engine, cache", [("io_uring", "none"), ("native", "none"), ("posix", "writeback"),
                                           ("threads", "writeback"), ("io_uring+sqpoll", "writeback"),
                                           ("io_uring+pinned", "none")])
def test_info_tells_the_engine_that_was_asked_for(disk, engine, cache):
    if engine.startswith("io_uring") and not uring_works(disk):
        pytest.skip("no io_uring here")
    args = ["--image-opts", options(disk, aio=engine, cache=cache)]
    assert engine_of(img("info", "--engine", *args)) == engine
    assert ok(img("info", "--engine", "--output=json", *args)).json["aio"] == engine


def test_info_tells_the_engine_of_each_image_of_a_chain(tmp_path, disk):
    top = tmp_path / "top"
    ok(img("create", "-q", "-f", "qcow2", "-b", disk, "-F", "raw", top))
    images = ok(img("info", "--engine", "--backing-chain", "--output=json", top)).json
    assert len(images) == 2 and all(i["aio"] for i in images)


def test_without_the_option_info_says_what_qemu_img_says(disk):
    assert childless(ok(img("info", "-f", "raw", disk)).out) == ok(qimg("info", "-f", "raw", disk)).out
    assert "aio" not in ok(img("info", "-f", "raw", "--output=json", disk)).json


# ---- forbidden ----

@pytest.mark.parametrize("error", DENIALS)
def test_without_io_uring_another_engine_is_taken(disk, error):
    assert engine_of(denied(error, "io_uring_setup", "img", "info", "--engine", disk)) == "threads"
    assert engine_of(denied(error, "io_uring_setup", "img", "info", "--engine", "--image-opts",
                            options(disk, cache="none"))) == "native"
    assert engine_of(denied(error, "io_uring_setup,io_setup", "img", "info", "--engine", "--image-opts",
                            options(disk, cache="none"))) == "threads"
    r = ok(denied(error, "io_uring_setup", "io", "-f", "raw", "-c", "write -P 7 4k 4k", "-c", "read -P 7 4k 4k", str(disk)))
    assert "verification failed" not in r.out


@pytest.mark.parametrize("error, words", [("EPERM", ("forbidden", "aio=threads")), ("ENOSYS", ("no io_uring", "aio=threads"))])
@pytest.mark.parametrize("engine", ["io_uring", "io_uring+sqpoll", "io_uring+pinned"])
def test_io_uring_asked_for_and_not_there_is_an_error(disk, error, words, engine):
    refused(denied(error, "io_uring_setup", "img", "bench", "-f", "raw", "-i", engine, "-c", "1", disk), *words)
    refused(denied(error, "io_uring_setup", "img", "info", "--image-opts", options(disk, aio=engine)), *words)


@pytest.mark.parametrize("error", DENIALS)
def test_native_asked_for_and_not_there_is_an_error(disk, error):
    refused(denied(error, "io_setup", "img", "bench", "-f", "raw", "-t", "none", "-i", "native", "-c", "1", disk),
            "Linux AIO")


@pytest.mark.parametrize("error, word", [("EPERM", "not permitted"), ("ENOSYS", "not implemented")])
def test_the_log_says_why_it_is_not_io_uring(tmp_path, disk, error, word):
    deny = pathlib.Path(os.environ["VARVE_BUILD"]).absolute() / "tests/lib/deny"
    with Server(disk, "raw", tmp_path / "sock", tmp_path / "pid", "-v", under=[deny, error, "io_uring_setup"]) as s:
        rc, report, err = s.load("--rw", "randrw", "--verify", "--seed", 1, "--ops", 500)
        assert rc == 0 and report["mismatched_sectors"] == 0, err
        rc, err = s.stop()
    assert rc == 0
    assert re.search(rf"io_uring cannot be used here \(.*{word}\): aio=threads is taken", err), err
    assert re.search(r"opened for writing, aio=threads", err), err


# ---- refused ----

def test_polling_is_refused_where_it_makes_no_sense(disk):
    refused(img("bench", "-f", "raw", "-i", "io_uring+iopoll", "-c", "1", disk), "io_uring+iopoll", "cache.direct=on")
    # A file system in memory, or the disk of a virtual machine: nothing to poll. Where there is, it shall work.
    r = img("bench", "-f", "raw", "-t", "none", "-i", "io_uring+iopoll", "-c", "100", disk)
    if r.rc:
        refused(r, "queue/io_poll", "use aio=io_uring")


def test_an_unknown_mode_is_refused_with_the_list(disk):
    refused(img("bench", "-f", "raw", "-i", "io_uring+fast", "-c", "1", disk), "'io_uring+fast'", "io_uring+sqpoll",
            "threads")


# ---- modes at work ----

def pinned_kib(pid):
    return int(re.search(r"VmPin:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text())[1])


@pytest.mark.parametrize("engine, pinned", [("io_uring", False), ("io_uring+pinned", True),
                                            ("io_uring+sqpoll+pinned", True)])
def test_memory_of_a_guest_is_registered_on_demand_and_let_go(tmp_path, disk, engine, pinned):
    """VmPin: pages that the kernel holds for the process. blkload says on stderr, once a second, how far it is."""
    if not uring_works(disk):
        pytest.skip("no io_uring here")
    with Server(disk, "raw", tmp_path / "sock", tmp_path / "pid", "-i", engine) as s:
        load = s.start_load("--rw", "randrw", "--verify", "--seed", 1, "--runtime", 100000, "--progress")
        try:
            assert load.stderr.read(1)  # under way
            deadline = time.monotonic() + TIMEOUT
            while pinned and pinned_kib(s.process.pid) == 0:  # on demand, that is, with its first request
                assert load.poll() is None and time.monotonic() < deadline
                time.sleep(0.01)
            assert (pinned_kib(s.process.pid) > 0) == pinned
        finally:
            load.terminate()
            out, err = load.communicate(timeout=240)
        rc, report, err = s.load("--rw", "randrw", "--verify", "--seed", 2, "--ops", 2000, "--regions", 4, "--layout", "random")
        assert rc == 0 and report["mismatched_sectors"] == 0, err
        assert s.stop() == (0, "")


def test_modes_of_io_uring_read_and_write_what_they_should(disk):
    if not uring_works(disk):
        pytest.skip("no io_uring here")
    for engine in ("io_uring+sqpoll", "io_uring+pinned", "io_uring+sqpoll+pinned"):
        for cache in ("writeback", "none"):
            r = ok(io(disk, "write -P 9 12k 64k", "read -P 9 12k 64k", "write -P 8 513 700", "read -P 8 513 700", "flush",
                      options=["-f", "raw", "-i", engine, "-t", cache]))
            assert "verification failed" not in r.out
