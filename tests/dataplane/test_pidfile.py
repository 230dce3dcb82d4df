# SPDX-License-Identifier: MIT
"""test_pidfile.py - --pidfile and --takeover with files that are not what they should be; arguments of varve daemon that nobody knows"""
import fcntl
import os
import stat
import subprocess
import sys
import time

import pytest
from test_vublk import SECONDS, VARVE, varve


def serve(folder, *options):
    if not (folder / "d").exists():
        varve("img", "create", "-q", "-f", "qcow2", folder / "d", "16M")
    return subprocess.run([VARVE, "serve", "d", "-f", "qcow2", "--vhost-user", "s", "--pidfile", "pid", *options], cwd=folder,
                          capture_output=True, text=True, timeout=SECONDS)


@pytest.mark.parametrize("options", [[], ["--takeover"]])
def test_a_pipe_is_no_pidfile_and_stays(tmp_path, options):
    os.mkfifo(tmp_path / "pid")
    done = serve(tmp_path, *options)
    assert done.returncode == 1 and "--pidfile pid: exists and is no regular file" in done.stderr, done.stderr
    assert stat.S_ISFIFO(os.stat(tmp_path / "pid").st_mode) and not (tmp_path / "s").exists()


def test_a_process_that_does_not_hold_the_pidfile_is_left_alone(tmp_path):
    """The lock is ours, the number in it that of somebody who has nothing to do with it."""
    with subprocess.Popen(["sleep", "1000"]) as victim:
        try:
            (tmp_path / "pid").write_text(f"{victim.pid}\n")
            with open(tmp_path / "pid", "r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                done = serve(tmp_path, "--takeover")
                assert done.returncode == 1, done.stderr
                assert f"it is locked, but not by process {victim.pid}, whose number it holds" in done.stderr
                assert victim.poll() is None and (tmp_path / "pid").read_text() == f"{victim.pid}\n"
        finally:
            victim.kill()


# Locks the file of that name, and ends: but for a thread that is left until its input ends. What the process had open is not to be seen any
# more then, and its lock is still there. So it is for a moment with every process of several threads that is killed.
ENDING = """
import ctypes, fcntl, os, sys, threading
file = open(sys.argv[1], "r+")
fcntl.flock(file, fcntl.LOCK_EX)
file.write(f"{os.getpid()}\\n")
file.flush()
def last():
    os.read(0, 1)
    os._exit(0)
threading.Thread(target=last).start()
print("locked", flush=True)
ctypes.CDLL(None).syscall(%d, 0)
""" % {"x86_64": 60}.get(os.uname().machine, 93)  # exit, of this thread


def descriptors(pid):
    try:
        return [os.readlink(f"/proc/{pid}/fd/{n}") for n in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return []


def wait(what):
    deadline = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.002)  # /proc does not tell


@pytest.mark.parametrize("ended", [False, True])
def test_a_process_that_is_ending_is_waited_for(tmp_path, ended):
    """It was killed when another one was told to take over, and has the lock for a moment yet: that is no reason to serve nobody."""
    varve("img", "create", "-q", "-f", "qcow2", tmp_path / "d", "16M")
    (tmp_path / "pid").touch()
    with subprocess.Popen([sys.executable, "-c", ENDING, tmp_path / "pid"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as old:
        new = None
        try:
            assert old.stdout.readline() == b"locked\n"
            wait(lambda: not descriptors(old.pid))
            new = subprocess.Popen([VARVE, "serve", "d", "-f", "qcow2", "--vhost-user", "s", "--pidfile", "pid", "--takeover"], cwd=tmp_path,
                                   stderr=subprocess.PIPE, text=True)
            # It can be told to end meanwhile.
            wait(lambda: new.poll() is not None or any("pidfd" in link for link in descriptors(new.pid)))
            assert new.poll() is None, new.stderr.read()
            if ended:
                new.terminate()
                assert new.wait(SECONDS) == 1 and (tmp_path / "pid").read_text() == f"{old.pid}\n"
                return
            old.stdin.close()
            wait(lambda: new.poll() is not None or (tmp_path / "pid").read_text() == f"{new.pid}\n")
            new.terminate()
            assert new.wait(SECONDS) == 0 and new.stderr.read() == ""
        finally:
            if new:
                new.kill()
                new.communicate()
            old.kill()


NODE = '{"driver": "qcow2", "node-name": "n", "file": {"driver": "file", "filename": "d"}%s}'


@pytest.mark.parametrize("option, value, why", [
    ("--blockdev", NODE % ', "bogus": []', "option 'bogus' is an empty list"),
    ("--blockdev", NODE % ', "bogus": {}', "option 'bogus' is an empty group"),
    ("--blockdev", NODE.replace('"d"', '["d"]') % "", "option 'filename' is no list"),
    ("--blockdev", "[1]", "--blockdev: a JSON object is needed"),
    ("--export", "[1]", "--export: a JSON object is needed"),
    ("--export", "vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=s,num-queues=0", "'num-queues' must be a number from 1 to 64"),
    ("--export", "vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=s,num-queues=65", "'num-queues' must be a number from 1 to 64"),
    ("--export", '{"type": "vhost-user-blk", "id": "e", "node-name": "n", "bogus": [], "addr": {"type": "unix", "path": "s"}}',
     "parameter 'bogus' is not known"),
])
def test_what_an_argument_cannot_mean_is_said(tmp_path, option, value, why):
    varve("img", "create", "-q", "-f", "qcow2", tmp_path / "d", "16M")
    done = subprocess.run([VARVE, "daemon", option, value], cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 1 and why in done.stderr and done.stderr.count("\n") == 1, done.stderr
