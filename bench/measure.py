# SPDX-License-Identifier: MIT
"""measure - programs under measurement: what they cost the processor, what they ask of the kernel

Owns:    every process it starts; close_all() ends those that are left.
Assumes: Linux's /proc.
Never:   lets a program run without a limit of time.
"""
import ctypes
import dataclasses
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time

LIMIT = 120     # seconds for any one program
TICK = os.sysconf("SC_CLK_TCK")
STRACE = shutil.which("strace")
PR_SET_PDEATHSIG = 1
SO_ACCEPTCON = 1 << 16

_children = []


class Failed(Exception):
    """A program did not do what was asked; one line."""


@dataclasses.dataclass
class Cpu:
    user_ns: float
    sys_ns: float

    def __sub__(self, other):
        return Cpu(max(0, self.user_ns - other.user_ns), max(0, self.sys_ns - other.sys_ns))


def _die_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _spawn(argv, **kw):
    child = subprocess.Popen(argv, stdin=kw.pop("stdin", subprocess.DEVNULL), preexec_fn=_die_with_parent, **kw)
    _children.append(child)
    return child


def close_all():
    for child in _children:
        if child.poll() is None:
            child.kill()
            child.wait()
    _children.clear()


def short(argv):
    """A command in an error message: its name and the first words."""
    text = shlex.join([os.path.basename(argv[0]), *argv[1:]])
    return text if len(text) <= 120 else text[:117] + "..."


def _in_memory(name):
    """A file for what a program says: in memory, so that it is heard on a full disk, too."""
    return os.fdopen(os.memfd_create(name), "w+b")


def _ending(status, late, limit):
    if late:
        return f"was stopped after {limit} seconds"
    return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


def _last_words(err, out):
    """The last line of what it said on stderr, or else on stdout."""
    for f in (err, out):
        f.seek(0)
        lines = f.read().decode(errors="replace").strip().splitlines()
        if lines:
            return lines[-1]
    return "it said nothing"


def run(argv, limit=LIMIT):
    """Runs a program to its end. (its output, the CPU time of it and of its own children)"""
    argv = [os.fspath(a) for a in argv]
    with _in_memory("out") as out, _in_memory("err") as err:
        child = _spawn(argv, stdout=out, stderr=err)
        late = []

        def stop():
            late.append(True)
            child.kill()
        watchdog = threading.Timer(limit, stop)
        watchdog.start()
        try:
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        finally:
            watchdog.cancel()
        _children.remove(child)
        if child.returncode:
            raise Failed(f"'{short(argv)}' {_ending(child.returncode, late, limit)}: {_last_words(err, out)}")
        out.seek(0)
        return out.read().decode(errors="replace"), Cpu(usage.ru_utime * 1e9, usage.ru_stime * 1e9)


def count_syscalls(argv):
    """Runs a program under strace: (its output, the number of its system calls)"""
    with tempfile.NamedTemporaryFile("r") as table:
        out, _ = run([STRACE, "-f", "-qq", "-c", "-o", table.name, *argv])
        return out, _total_calls(table.read())


def count_calls(argv, names):
    """Runs a program under strace: (its output, how often it made each of the system calls named)"""
    with tempfile.NamedTemporaryFile("r") as table:
        out, _ = run([STRACE, "-f", "-qq", "-c", "-e", "trace=" + ",".join(names), "-o", table.name, *argv])
        found = re.findall(r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", table.read(), re.M)
        return out, {name: int(calls) for calls, name in found if name != "total"}


def _total_calls(table):
    m = re.search(r"^100\.00\s+[\d.]+\s+\d+\s+(\d+)\s.*total$", table, re.M)
    if not m:
        raise Failed("strace wrote no table that can be understood")
    return int(m[1])


def socket_directory():
    """For sockets alone: their paths have 107 bytes, and the files may be anywhere."""
    return tempfile.TemporaryDirectory(prefix="varve-")


class Server:
    """A program that listens on a unix socket until it is told to stop."""

    def __init__(self, argv, sock):
        self.argv = [os.fspath(a) for a in argv]
        self.errors = tempfile.TemporaryFile()
        self.child = _spawn(self.argv, stdout=subprocess.DEVNULL, stderr=self.errors)
        until = time.monotonic() + LIMIT
        while not self._listens(sock):
            if self.child.poll() is not None or time.monotonic() > until:
                self.errors.seek(0)
                said = self.errors.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
                self.stop()
                raise Failed(f"'{short(self.argv)}' does not listen: {said[-1]}")
            time.sleep(0.01)

    @staticmethod
    def _listens(sock):
        # Connecting would tell, too, but the server takes one front end at a time.
        with open("/proc/net/unix") as f:
            return any(line.rstrip("\n").endswith(" " + sock) and int(line.split()[3], 16) & SO_ACCEPTCON
                       for line in f if sock in line)

    def cpu(self):
        """Until now, with all threads that it had, the kernel's workers for io_uring among them."""
        with open(f"/proc/{self.child.pid}/stat") as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return Cpu(int(fields[11]) * 1e9 / TICK, int(fields[12]) * 1e9 / TICK)

    def count_syscalls(self, load):
        """(what load() returns, the number of system calls of the server meanwhile)"""
        with tempfile.NamedTemporaryFile("r") as table:
            tracer = _spawn([STRACE, "-f", "-c", "-o", table.name, "-p", str(self.child.pid)],
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            try:
                ready, _, _ = select.select([tracer.stderr], [], [], 10)
                said = os.read(tracer.stderr.fileno(), 4096).decode(errors="replace") if ready else ""
                if "attached" not in said:
                    raise Failed(f"strace cannot attach: {said.strip() or 'it says nothing'}")
                result = load()
                tracer.send_signal(signal.SIGINT)
                tracer.wait(timeout=LIMIT)
            finally:
                if tracer.poll() is None:
                    tracer.kill()
                    tracer.wait()
                tracer.stderr.close()
                _children.remove(tracer)
            return result, _total_calls(table.read())

    def stop(self):
        if self.child.poll() is None:
            self.child.terminate()
            try:
                self.child.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
        self.errors.close()
        if self.child in _children:
            _children.remove(self.child)
