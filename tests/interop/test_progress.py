# SPDX-License-Identifier: MIT
"""test_progress - how far a long command is: SIGUSR1, -p, --progress=json; and what -q and --errors=json leave of its words

Each command is made slow by a limit on the image (throttling.bps-total), or by its own (-r).
"""

import json
import os
import re
import signal
import subprocess
import time

import pytest

from tool import MIB, TIMEOUT, img, io, ok, qimg, qio, refused, run, varve_path

SLOW = "throttling.bps-total=24M"


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ok(qimg("create", "-q", "-f", "raw", "base", "8M"))
    ok(qio("base", "write -P 5 0 8M", options=("-f", "raw")))
    ok(qimg("create", "-q", "-f", "raw", "new", "8M"))
    ok(qimg("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", "top"))
    ok(qio("top", "write -P 6 0 8M"))
    ok(qimg("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", "empty"))
    ok(qimg("create", "-q", "-f", "raw", "long", "20M"))
    ok(qio("long", "write -P 5 0 20M", options=("-f", "raw")))
    again("stream")
    return tmp_path


# Those that tell by -p, and that last for as long as their limit makes them.
COMMANDS = {
    "convert": ["convert", "-f", "raw", "-O", "raw", "-r", "24M", "base", "out"],
    "compare": ["compare", "--image-opts", f"driver=raw,file.filename=base,{SLOW}", f"driver=raw,file.filename=base,{SLOW}"],
    "commit": ["commit", "-d", "-r", "24M", "top"],
    "rebase": ["rebase", "--image-opts", "-b", "new", "-F", "raw", f"driver=qcow2,file.filename=empty,{SLOW}"],
    "stream": ["stream", "-r", "24M", "over"],  # eight pieces of 1 MiB are begun before the limit has something to count
}
# Those that answer the signal only.
QUIET = {
    "dd": ["dd", "--image-opts", f"if=driver=raw,file.filename=base,{SLOW}", "of=out", "bs=64k"],
    "bench": ["bench", "--image-opts", "-s", "64k", "-c", "200", f"driver=raw,file.filename=base,{SLOW}"],
}


def asked():
    """The first time it is asked before it has begun: a signal that is blocked waits for the new program."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    os.kill(os.getpid(), signal.SIGUSR1)


def start(*args):
    return subprocess.Popen([varve_path(), "img", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=asked)


def catches(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as f:
        caught = int(re.search(r"^SigCgt:\s*(\w+)$", f.read(), re.M).group(1), 16)
    return caught >> (signal.SIGUSR1 - 1) & 1


def ask_all_the_time(p):
    until = time.monotonic() + TIMEOUT
    while p.poll() is None and time.monotonic() < until:
        if catches(p.pid):  # before that it would end the process, as it does any
            p.send_signal(signal.SIGUSR1)
        time.sleep(0.03)
    out, err = p.communicate(timeout=TIMEOUT)
    return out, err


@pytest.mark.parametrize("command", [*COMMANDS, *QUIET])
def test_sigusr1_asks_how_far_it_is(images, command):
    p = start(*{**COMMANDS, **QUIET}[command])
    out, err = ask_all_the_time(p)
    lines = err.splitlines()
    assert p.returncode == 0 and lines, f"{p.returncode} {out}{err}"
    assert all(re.fullmatch(r" {4}\(\d{1,3}\.\d\d/100%\)", line) for line in lines), err
    told = [float(line.strip(" ()").split("/")[0]) for line in lines]
    assert told == sorted(told) and told[0] < 100 and "%" not in out


@pytest.mark.parametrize("command", COMMANDS)
def test_the_forms_of_progress(images, command):
    first, *rest = COMMANDS[command]
    rest = [{"24M": "1G"}.get(word, word.replace("total=24M", "total=1G")) for word in rest]
    text = ok(img(first, "-p", *rest))
    shown = re.findall(r" {4}\((\d+\.\d\d)/100%\)\r", text.out)
    assert shown and shown[-1] == "100.00" and "\r\n" in text.out, repr(text.out)
    again(first)
    lines = [json.loads(line) for line in ok(img(first, "--progress=json", *rest)).out.splitlines() if line.startswith("{")]
    assert lines and lines[-1] == {"progress": 100.00}
    again(first)
    assert ok(img(first, "-q", "-p", *rest)).out == ""
    r = img(first, "--progress=xml", *rest)
    assert r.rc == (2 if first == "compare" else 1) and r.err.count("\n") == 1 and "xml" in r.err, str(r)


def again(command):
    """What commit and stream moved away is there again."""
    if command == "stream":
        ok(qimg("create", "-q", "-f", "qcow2", "-b", "long", "-F", "raw", "over"))
    if command == "rebase":
        ok(qimg("rebase", "-u", "-b", "base", "-F", "raw", "empty"))


def test_others_take_the_options_too(images):
    for args in (["amend", "-p", "-o", "lazy_refcounts=on", "top"], ["amend", "--progress=json", "-o", "lazy_refcounts=off", "top"]):
        assert "100.00" in ok(img(*args)).out
    for args in (["check", "-q", "top"], ["create", "-q", "-f", "qcow2", "x", "1M"], ["resize", "-q", "x", "2M"], ["snapshot", "-q", "-c", "s", "x"],
                 ["amend", "-q", "-p", "-o", "compat=1.1", "top"], ["compare", "-q", "top", "top"]):
        assert ok(img(*args)).out == ""


def test_errors_as_json(images):
    for args in (["info", "none"], ["create", "-f", "x", "y", "1M"], ["check", "none"], ["map", "--bad"], ["convert", "none", "out"],
                 ["resize", "top", "x"], ["rebase", "-b", "none", "-F", "raw", "top"], ["commit", "base"], ["snapshot", "-d", "no", "top"]):
        r = img(args[0], "--errors=json", *args[1:])
        assert r.rc == 1 and r.err.count("\n") == 1 and r.out == "", str(r)
        told = json.loads(r.err)
        assert set(told) == {"program", "error"} and told["program"] == "varve img" and told["error"]


def test_options_and_names_in_any_order(images):
    want = ok(img("info", "-f", "qcow2", "--output=json", "top")).out
    for args in (["top", "-f", "qcow2", "--output", "json"], ["--output=json", "top", "-fqcow2"], ["--out=json", "--format", "qcow2", "--", "top"]):
        assert ok(img("info", *args)).out == want
    (images / "-odd").write_bytes(bytes(MIB))
    assert ok(img("info", "--output=json", "--", "-odd")).json["virtual-size"] == MIB
    ok(img("resize", "empty", "--shrink", "-1M"))
    ok(img("resize", "--", "empty", "+1M"))
    ok(img("resize", "empty", "-q", "+1M", "-f", "qcow2"))
    ok(io("empty", "read 0 64k"))


def test_errors_for_machines_wherever_the_option_stands(tmp_path):
    for line in (["info", "--output=foo", "x", "--errors=json"], ["info", "-z", "x", "--errors=json"], ["foo", "--errors=json"],
                 ["info", b"n\xff", "--errors=json"], ["info", b"n\xff", "--", "x", "--errors=json"]):
        r = run(varve_path(), "img", *line, cwd=tmp_path)
        if "--" in line:
            assert r.err.startswith("varve img: "), str(r)
            continue
        told = json.loads(r.err)
        assert r.rc == 1 and told["program"] == "varve img" and len(told["error"]) > 20, str(r)
        assert line[0] == "foo" or line[1] != b"n\xff" or told["error"].startswith("n?: "), str(r)
