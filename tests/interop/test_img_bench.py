# SPDX-License-Identifier: MIT
"""test_img_bench - img bench: the known lines and errors, beside qemu-img's; what it writes, flushes and counts"""

import json
import re
import shutil
import subprocess

import pytest

from tool import KIB, MIB, img, ok, qimg, qio, varve_path

SENDING = re.compile(r"Sending (\d+) (read|write) requests, (\d+) bytes each, (\d+) in parallel "
                     r"\(starting at offset (\d+), step size (\d+)\)")
COMPLETED = re.compile(r"Run completed in (\d+\.\d{3}) seconds\.$")


@pytest.fixture(name="disk", params=["raw", "qcow2"])
def make_disk(tmp_path, request):
    path = str(tmp_path / f"disk.{request.param}")
    ok(qimg("create", "-q", "-f", request.param, path, "4M"))
    ok(qio(path, "write -q -P 1 0 4M", options=("-f", request.param)))
    return path, request.param


@pytest.mark.parametrize("options", [
    ["-c", "100"], ["-c", "100", "-d", "7", "-s", "512"], ["-c", "50", "-S", "64k", "-o", "1M"],
    ["-c", "64", "-w", "--pattern", "0x5a"], ["-c", "64", "-w", "-d", "4", "--flush-interval", "8"],
    ["-c", "64", "-w", "-d", "4", "--flush-interval", "8", "--no-drain"], ["-c", "5", "-d", "200"], ["-c", "0"], ["-c", "0", "-w", "-t", "none"],
    ["-c", "20", "-t", "none", "-n"], ["-c", "20", "-i", "threads"], ["-U", "-c", "5"],
])
def test_lines_are_the_peers(disk, options):
    path, fmt = disk
    ours, theirs = (tool("bench", "-f", fmt, *options, path) for tool in (img, qimg))
    ok(ours)
    ok(theirs)
    a, b = ours.out.splitlines(), theirs.out.splitlines()
    assert len(a) == len(b) and a[:-1] == b[:-1], f"{ours}\n{theirs}"
    assert SENDING.match(a[0]) and COMPLETED.match(a[-1])


def test_writes_what_and_where_it_says_and_goes_round_at_the_end(disk):
    path, fmt = disk
    # 16 places of 64k in 1 MiB steps: after the fourth it goes on at the start, 0 bytes further.
    ok(img("bench", "-q", "-f", fmt, "-w", "-c", "8", "-s", "64k", "-S", "1M", "--pattern", "7", path))
    reads = [f"read -q -P {7 if off % MIB == 0 else 1} {off} 64k" for off in range(0, 4 * MIB, 64 * KIB)]
    ok(qio(path, *reads, options=("-f", fmt)))
    if fmt == "qcow2":
        ok(qimg("check", "-q", path))


def test_random_places_follow_from_the_seed(disk):
    path, fmt = disk
    copy = path + ".copy"
    shutil.copy(path, copy)
    for p, seed in ((path, "5"), (copy, "5")):
        ok(img("bench", "-q", "-f", fmt, "-w", "-c", "40", "-d", "1", f"--random={seed}", "--pattern", "9", p))
    ok(qimg("compare", "-q", "-f", fmt, "-F", fmt, path, copy))
    ok(img("bench", "-q", "-f", fmt, "-w", "-c", "40", "-d", "1", "--random=6", "--pattern", "9", copy))
    assert qimg("compare", "-q", "-f", fmt, "-F", fmt, path, copy).rc == 1


def test_json_has_it_all(disk):
    path, fmt = disk
    r = img("bench", "-f", fmt, "-w", "-c", "200", "-d", "8", "--flush-interval", "50", "--output=json", path)
    ok(r)
    j = r.json
    assert (j["requests"], j["flushes"], j["operation"], j["depth"], j["format"]) == (200, 4, "write", 8, fmt)
    assert j["iops"] > 0 and j["seconds"] > 0 and j["mib-per-second"] > 0
    lat = j["latency-us"]
    assert 0 < lat["min"] <= lat["p50"] <= lat["p90"] <= lat["p99"] <= lat["p99.9"] <= lat["max"]
    assert lat["min"] <= lat["mean"] <= lat["max"]
    assert j["flush-latency-us"]["min"] > 0
    assert j["user-us-per-request"] >= 0 and "requests" in j["statistics"]


def test_flushes_are_syncs(tmp_path):
    path = str(tmp_path / "disk.raw")
    ok(qimg("create", "-q", "-f", "raw", path, "1M"))
    p = subprocess.run(["strace", "-f", "-c", "-e", "trace=fdatasync,fsync", "-o", tmp_path / "calls", varve_path(), "img", "bench",
                        "-q", "-f", "raw", "-i", "threads", "-w", "-c", "64", "-d", "4", "--flush-interval", "16", path],
                       capture_output=True, text=True, timeout=240, check=False)
    assert p.returncode == 0, p.stderr
    calls = re.search(r"(\d+)\s+fdatasync", (tmp_path / "calls").read_text())
    assert int(calls[1]) in (4, 5)  # the last, at close, has nothing to add


def test_duration_ends_it(disk):
    path, fmt = disk
    r = img("bench", "-f", fmt, "--duration", "1", "--latency", path)
    ok(r)
    assert r.out.splitlines()[0].startswith("Sending read requests") and "p99.9" in r.out


@pytest.mark.parametrize("options, says, peer_fails", [
    (["-c", "-1"], "-c '-1'", True), (["-c", "x"], "-c 'x'", True), (["-d", "0"], "-d '0'", False),
    (["-s", "0"], "-s '0'", False), (["-d", "8", "-w", "--flush-interval", "4"], "smaller than the depth", True),
    (["--flush-interval", "64"], "needs -w", True), (["--pattern", "300"], "no byte", True),
    (["-t", "soon"], "soon", True), (["-i", "magic"], "magic", True), (["-n"], "native", True),
    (["-d", "4000", "-s", "1M"], "1 GiB", False), (["-s", "8M"], "larger than the image", True),
    (["-o", "5M"], "beyond the image", True), (["-U", "-w"], "-U", False), (["-c", "1", "a", "b"], "one file name", True),
    (["--random=x"], "seed", False), (["--duration", "0"], "--duration", False),
])
def test_bad_options_are_one_line_and_change_nothing(tmp_path, options, says, peer_fails):
    path = str(tmp_path / "disk.raw")
    ok(qimg("create", "-q", "-f", "raw", path, "4M"))
    r = img("bench", "-f", "raw", *options, path)
    assert r.rc == 1 and says in r.err, str(r)
    assert r.err.count("\n") <= 2 and "Run completed" not in r.out
    if peer_fails:
        assert qimg("bench", "-f", "raw", *options, path).rc == 1


def test_an_empty_image_has_nothing_to_measure(tmp_path):
    path = str(tmp_path / "empty.raw")
    ok(qimg("create", "-q", "-f", "raw", path, "0"))
    r = img("bench", "-f", "raw", path)
    assert r.rc == 1 and "empty" in r.err


@pytest.fixture(name="small")
def make_small(tmp_path):
    path = tmp_path / "small"
    path.write_bytes(b"\0" * 64 * KIB)
    return path


def bench(path, *args):
    return img("bench", "-f", "raw", *args, path)


def test_a_request_across_the_end_is_named(small):
    r = bench(small, "-d", "1", "-s", "4k", "-S", "6000", "-c", "100")
    assert r.rc == 1 and "crosses the end" in r.err and len(r.err.splitlines()) == 1, str(r)
    assert "Run completed" not in r.out


def test_writes_are_drained_before_a_flush(tmp_path, small):
    log = tmp_path / "calls"
    p = subprocess.run(["strace", "-f", "-e", "trace=pwrite64,pwritev,pwritev2,fdatasync", "-o", log, varve_path(), "img", "bench",
                        "-f", "raw", "-i", "threads", "-w", "-d", "3", "-c", "9", "--flush-interval=4", small],
                       capture_output=True, text=True, timeout=240, check=False)
    assert p.returncode == 0, p.stderr
    kinds, running = "", 0
    for line in log.read_text().splitlines():
        if "fdatasync(" in line:
            assert running == 0, line
            kinds += "F"
        elif re.search(r"pwrite\w*\(", line):
            kinds += "W"
            running += line.endswith("<unfinished ...>")
        elif re.search(r"\.\.\. pwrite\w* resumed>", line):
            running -= 1
    assert kinds.startswith("WFWWWWFWWWWF"), kinds


def test_flushes_come_as_often_as_asked(small):
    for count, interval, more in ((7, 3, ()), (6, 3, ()), (9, 4, ("--no-drain",))):
        r = ok(bench(small, "-w", "-d", "2", "-c", str(count), f"--flush-interval={interval}", "--output=json", *more)).json
        assert r["flushes"] == (count - 1) // interval + 1 and r["drain"] == (not more), r


@pytest.mark.parametrize("args, expected", [
    (("-c", "5", "-s", "16k"), [0, 16, 32, 48]), (("-c", "3", "-s", "16k", "-o", "48k"), [0, 16, 48]),
    (("-c", "4", "-s", "4k", "-S", "60k"), [0, 52, 56, 60]), (("-c", "2", "-s", "4k", "-S", "80k"), [0, 16]),
])
@pytest.mark.parametrize("depth", ["1", "64"])
def test_offsets_go_round_at_the_end(small, args, expected, depth):
    size = int(args[args.index("-s") + 1][:-1]) * KIB
    ok(bench(small, "-w", "--pattern=65", "-d", depth, *args))
    want = bytearray(64 * KIB)
    for off in expected:
        want[off * KIB:off * KIB + size] = b"A" * size
    assert small.read_bytes() == want


def test_random_offsets_repeat_with_their_seed_and_stay_inside(tmp_path):
    def written(*args):
        disk = tmp_path / "disk"
        disk.write_bytes(b"\0" * 64 * KIB)
        ok(bench(disk, "-q", "-w", "--pattern=1", "-s", "4k", *args))
        return disk.read_bytes()
    assert written("-c", "6", "--random=7") == written("-c", "6", "--random=7") != written("-c", "6", "--random=8")
    # Of 14 places, 2000 requests leave none out: (13/14)^2000 is less than 1e-64.
    assert written("-c", "2000", "--random", "-o", "8k") == b"\0" * 8 * KIB + b"\1" * 56 * KIB


def test_json_is_complete(small):
    r = ok(bench(small, "-w", "-c", "500", "-d", "4", "--flush-interval=100", "-t", "writeback", "--random=3", "--output=json")).json
    assert r["operation"] == "write" and r["format"] == "raw" and r["virtual-size"] == 64 * KIB
    assert (r["count"], r["depth"], r["buffer-size"], r["step-size"], r["offset"]) == (500, 4, 4096, 4096, 0)
    assert r["random-seed"] == 3 and r["duration"] is None and r["aio"] is None and r["cache"] == "writeback"
    assert r["requests"] == 500 and r["flushes"] == 5 and r["seconds"] > 0
    assert abs(r["iops"] * r["seconds"] / 500 - 1) < 1e-6
    assert abs(r["mib-per-second"] * MIB / (r["iops"] * 4096) - 1) < 1e-6
    for latency in (r["latency-us"], r["flush-latency-us"]):
        values = [latency[k] for k in ("min", "p50", "p90", "p99", "p99.9", "max")]
        assert values == sorted(values) and values[0] <= latency["mean"] <= values[-1], latency
    assert r["user-us-per-request"] >= 0 and r["system-us-per-request"] >= 0
    assert r["statistics"]["requests"]["hot"] + r["statistics"]["requests"]["cold"] >= 500


def test_extra_lines_only_when_asked(small):
    assert ok(bench(small, "-q", "-c", "5")).out == ""
    lines = ok(bench(small, "-c", "5", "--latency")).out.splitlines()
    assert len(lines) == 3 and re.match(r"Latency in microseconds: min [\d.]+, mean [\d.]+, p50 .*, max [\d.]+$", lines[2])
    assert "--flush-interval" in ok(img("bench", "--help")).out
