# SPDX-License-Identifier: MIT
"""guest - boot a real Linux guest on a served disk and hear what it found

Owns:    the processes it starts (QEMU, the back end), the socket folder, the files of a job.
Assumes: a kernel tree from scripts/get-kernel; QEMU 7.2 or later; no KVM is needed.
Never:   installs anything, leaves a process behind, or ends one that it did not start.
"""

import ctypes
import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

from unixsock import connections, listens

HERE = os.path.dirname(os.path.abspath(__file__))
SCRIPTS = os.path.join(HERE, "..", "..", "scripts")
INIT = os.path.join(HERE, "guest-init")

BOOT_TIMEOUT = 400  # seconds; a boot with its job takes 10 to 20 on an idle machine
STOP_TIMEOUT = 120
DATA_LEN = 4 << 20  # of the random bytes from which a job cuts what it writes

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class GuestError(Exception):
    """Something that the test needs is missing, or did not do what it was asked."""


def _die_with_parent():
    """Runs in the child: a test that is killed outright leaves nothing behind either."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _spawn(argv, **kw):
    try:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent, **kw)
    except FileNotFoundError:
        raise GuestError(f"{argv[0]} is missing: install it, or build varve and set VARVE_BUILD")


def run(*argv, timeout=300, ok=(0,)):
    """Run a program to its end; returns its standard output."""
    proc = _spawn(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        out, err = proc.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        proc.kill()
        proc.communicate()
        raise GuestError(f"no end after {timeout} s: {' '.join(argv)}")
    if proc.returncode not in ok:
        raise GuestError(f"exit status {proc.returncode}: {' '.join(argv)}\n"
                         f"{out.decode(errors='replace')}{err.decode(errors='replace')}")
    return out


def sha256_file(path):
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            h.update(block)
    return h.hexdigest()


class Kernel:
    """The kernel tree and the initramfs, made at first use and kept in the cache folder."""

    def __init__(self, cache):
        tree = run(os.path.join(SCRIPTS, "get-kernel"), cache, timeout=1200).decode().strip()
        images = [f for f in os.listdir(os.path.join(tree, "boot")) if f.startswith("vmlinuz-")]
        if len(images) != 1:
            raise GuestError(f"{tree}/boot: expected one vmlinuz-*, found {images}")
        self.image = os.path.join(tree, "boot", images[0])
        self.initramfs = os.path.join(cache, "initramfs.cpio")
        run(os.path.join(SCRIPTS, "make-initramfs"), tree, INIT, self.initramfs)


class Job:
    """What the guest finds in /job. All of it follows from the seed: the host can foretell it."""

    def __init__(self, name, seed, old=None):
        self.name = name
        self.rng = random.Random(seed)
        self.data = self.rng.randbytes(DATA_LEN)
        self.files = {}  # path -> (offset, length) in data
        self.victims = []
        self.ops = ([], [])
        self.old = old or {}  # path -> sha256, there before the job

    def add_files(self, count, folder="data"):
        """Small files, some of them odd in length or empty, and two large ones."""
        for i in range(count):
            length = self.rng.choice((0, 1, 511, 4096, self.rng.randrange(1, 200_000)))
            self.files[f"{folder}/f{i}"] = (self.rng.randrange(DATA_LEN - length), length)
        self.files[f"{folder}/large"] = (0, DATA_LEN)
        self.files[f"{folder}/tail"] = (DATA_LEN // 3, DATA_LEN - DATA_LEN // 3)
        self.victims = self.rng.sample(sorted(self.files), count // 3) + [f"{folder}/tail"]
        self.victims = sorted(set(self.victims))

    def content(self, path):
        off, length = self.files[path]
        return self.data[off:off + length]

    def sums(self):
        return {path: hashlib.sha256(self.content(path)).hexdigest() for path in self.files}

    def sums_left(self):
        """What is still there after the victims are deleted."""
        return {path: s for path, s in self.sums().items() if path not in self.victims}

    def write(self, folder):
        """Make the folder that becomes /job."""
        def listing(sums):
            return "".join(f"{s}  {path}\n" for path, s in sorted(sums.items()))

        text = {
            "files": "".join(f"{p} {o} {n}\n" for p, (o, n) in self.files.items()),
            "victims": "".join(f"{p}\n" for p in self.victims),
            "sums": listing(self.sums()),
            "sums.left": listing(self.sums_left()),
            "sums.old": listing(self.old),
            "ops.0": "".join(" ".join(map(str, op)) + "\n" for op in self.ops[0]),
            "ops.1": "".join(" ".join(map(str, op)) + "\n" for op in self.ops[1]),
        }
        os.makedirs(folder)
        for name, content in text.items():
            with open(os.path.join(folder, name), "w") as f:
                f.write(content)
        with open(os.path.join(folder, "data"), "wb") as f:
            f.write(self.data)


def _link(path):
    try:
        return os.readlink(path)
    except OSError:  # a descriptor that is closed meanwhile
        return None


def _text(path):
    try:
        with open(path) as f:
            return f.read()
    except OSError:
        return ""


class Backend:
    """Serves one disk on a vhost-user socket, from start() to stop()."""

    name = None

    def __init__(self, disk, fmt="qcow2", queues=1, read_only=False):
        self.disk, self.fmt, self.queues, self.read_only = disk, fmt, queues, read_only
        # A folder of its own, with a short name: a socket path has 107 bytes at most.
        self.folder = tempfile.mkdtemp(prefix="varve-guest-")
        self.socket = os.path.join(self.folder, "disk.sock")
        self.proc = None
        self.output = tempfile.TemporaryFile()

    def argv(self):
        raise NotImplementedError

    def __enter__(self):
        try:
            self.proc = _spawn(self.argv(), stdout=self.output, stderr=subprocess.STDOUT)
            self._wait_ready()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *exc):
        self._end()

    def _end(self):
        if self.proc and self.proc.poll() is None:
            self.proc.kill()
        if self.proc:
            self.proc.wait()
        self.output.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _listening(self):
        return listens(self.socket, self.proc.pid)

    def _wait_ready(self):
        end = time.monotonic() + STOP_TIMEOUT
        while not self._listening():
            if self.proc.poll() is not None:
                raise GuestError(f"{self.name} ended with status {self.proc.returncode} before "
                                 f"it served {self.disk}:\n{self._printed()}")
            if time.monotonic() > end:
                raise GuestError(f"{self.name} does not listen on {self.socket} "
                                 f"after {STOP_TIMEOUT} s")
            time.sleep(0.01)  # the only sign is the socket itself

    def alive(self):
        return self.proc.poll() is None

    def stop(self):
        """Ask it to end; returns (exit status, what it printed)."""
        self.proc.send_signal(signal.SIGTERM)
        try:
            self.proc.wait(timeout=STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise GuestError(f"{self.name} still runs {STOP_TIMEOUT} s after SIGTERM")
        return self.proc.returncode, self._printed()

    def _printed(self):
        self.output.seek(0)
        return self.output.read().decode(errors="replace")


class VarveBackend(Backend):
    name = "varve serve"

    def argv(self):
        ro = ["--read-only"] if self.read_only else []
        return [varve_path(), "serve", self.disk, "-f", self.fmt, "--vhost-user", self.socket,
                "--num-queues", str(self.queues)] + ro

    def kill_and_restart(self):
        self.proc.kill()
        self.proc.wait()
        self.proc = _spawn(self.argv(), stdout=self.output, stderr=subprocess.STDOUT)
        self._wait_ready()


class ControlledBackend(VarveBackend):
    """Somebody watches over it through the control socket, which needs no guest to agree."""

    limits = None  # from the beginning: what is set later may come too late

    def __init__(self, *args):
        super().__init__(*args)
        self.control = os.path.join(self.folder, "control")

    def argv(self):
        return super().argv() + ["--control", self.control] + (["--throttle", self.limits] if self.limits else [])

    def _listening(self):
        return super()._listening() and listens(self.control, self.proc.pid)

    def ask(self, command, **args):
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(STOP_TIMEOUT)
            s.connect(self.control)
            s.sendall(json.dumps({"command": command, **args}).encode() + b"\n")
            answer = json.loads(s.makefile("rb").readline())
        if "error" in answer:
            raise GuestError(f"control socket: {command}: {answer['error']}")
        return answer["return"]

    def writes_by_queue(self):
        return [q["write"]["requests"] for q in self.ask("stats")["export"]["queues"]]

    def writes(self):
        return sum(self.writes_by_queue())


class SlowBackend(ControlledBackend):
    """So slow that what a guest has to write lasts until somebody has seen it write."""

    limits = "iops-write=50"


class LentBackend(ControlledBackend):
    """Has the image only while its machine runs: two of them serve one disk, one after the other."""

    def argv(self):
        return super().argv() + ["--hand-over"]

    def held(self):
        return self.ask("disks")[0]["held"]

    def locks(self):
        """Locks on the image, of any kind, that the process has."""
        folder = f"/proc/{self.proc.pid}"
        of_disk = [n for n in os.listdir(f"{folder}/fd") if _link(f"{folder}/fd/{n}") == os.path.realpath(self.disk)]
        return sum(_text(f"{folder}/fdinfo/{n}").count("lock:") for n in of_disk)


class SlowLentBackend(LentBackend):
    """The guest writes as long as it is served by this one: all that is tried meanwhile takes less than its work does."""

    limits = "iops-write=3"


class CopyOnReadBackend(VarveBackend):
    def argv(self):
        return super().argv() + ["--copy-on-read"]


class StreamBackend(VarveBackend):
    def argv(self):
        # What the guest reads before the stream comes by is kept as well: else it would be fetched twice.
        return super().argv() + ["--stream", "--copy-on-read"]


class KilledBackend(ControlledBackend):
    """Is killed while the guest is at work, and started again; what it had queued is in its state directory.

    So slow that the guest is at work until it has been killed often enough: then the limit goes.
    """

    limits = "iops-write=20"

    def argv(self):
        return super().argv() + ["--state-dir", os.path.join(self.folder, "state")]


class FollowedBackend(KilledBackend):
    """Nobody kills it: another process takes over, by turns a `varve daemon` and a `varve serve`."""

    def __init__(self, *args):
        super().__init__(*args)
        self.daemon, self.begun, self.statuses = False, 0, []

    def argv(self):
        common = ["--state-dir", os.path.join(self.folder, "state"), "--pidfile", os.path.join(self.folder, "pid"), "--takeover"]
        if not self.daemon:
            return super().argv() + common[2:]
        return [varve_path(), "daemon", "--blockdev", f"driver={self.fmt},node-name=disk,file.driver=file,file.filename={self.disk},"
                f"discard=unmap,throttling.{self.limits}", "--export", "vhost-user-blk,id=e,node-name=disk,addr.type=unix,"
                f"addr.path={self.socket},writable=on,num-queues={self.queues}", *common]

    def _listening(self):
        # The socket listens all the time: who writes its number there serves, and the one before has ended.
        try:
            with open(os.path.join(self.folder, "pid")) as f:
                return f.read() == f"{self.proc.pid}\n"
        except FileNotFoundError:
            return False

    def writes(self):
        if not self.daemon:
            return super().writes()
        return int(connections(self.socket, self.proc.pid) == 1 and os.stat(self.disk).st_mtime_ns > self.begun)

    def follow(self):
        """The next one serves."""
        old, self.daemon = self.proc, not self.daemon
        try:
            self.proc = _spawn(self.argv(), stdout=self.output, stderr=subprocess.STDOUT)
            self._wait_ready()
            self.statuses.append(old.wait(timeout=STOP_TIMEOUT))
            self.begun = os.stat(self.disk).st_mtime_ns
        finally:
            if old.poll() is None:
                old.kill()
            old.wait()

    kill_and_restart = follow  # what KilledGuest does to its back end


class QsdBackend(Backend):
    """Another implementation in varve's place: what fails here as well is the test's own fault."""
    name = "qemu-storage-daemon"

    def argv(self):
        ro = "on" if self.read_only else "off"
        rw = "off" if self.read_only else "on"
        return ["qemu-storage-daemon", "--blockdev",
                f"driver=file,node-name=file,filename={self.disk},discard=unmap,read-only={ro}",
                "--blockdev",
                f"driver={self.fmt},node-name=disk,file=file,discard=unmap,read-only={ro}",
                "--export", f"type=vhost-user-blk,id=e,node-name=disk,addr.type=unix,"
                f"addr.path={self.socket},writable={rw},num-queues={self.queues}"]


class PlainDisk:
    """No back end at all: QEMU opens the image itself. The reference for what a guest sees."""

    def __init__(self, disk, fmt="qcow2", queues=1, read_only=False):
        self.disk, self.fmt, self.queues, self.read_only = disk, fmt, queues, read_only

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass

    def alive(self):
        return True

    def stop(self):
        return 0, ""


def varve_path():
    build = os.environ.get("VARVE_BUILD")
    if not build:
        raise GuestError("VARVE_BUILD is not set: it names the build folder that holds tools/varve")
    return os.path.join(build, "tools", "varve")


class Outcome:
    """How a boot ended: the verdict line, the facts, and the whole console for the report."""

    def __init__(self, console, status, seconds):
        self.console, self.status, self.seconds = console, status, seconds
        verdicts = re.findall(r"^GUEST-RESULT: (.*)$", console, re.M)
        self.verdict = verdicts[-1] if verdicts else "none"
        self.facts = dict(re.findall(r"^GUEST-FACT: ([^=\n]+)=(.*)$", console, re.M))

    def require_pass(self):
        if self.verdict != "PASS" or self.status != 0:
            raise AssertionError(f"verdict of the guest: {self.verdict}; QEMU ended with "
                                 f"{self.status} after {self.seconds:.0f} s; its console:\n"
                                 f"{self.console}")


class Guest:
    """One boot. The disk is a Backend that has been entered, or a PlainDisk."""

    def __init__(self, kernel, job, disk, folder, cpus=1, memory="256M", packed=False):
        self.kernel, self.job, self.disk = kernel, job, disk
        self.folder, self.cpus, self.memory, self.packed = folder, cpus, memory, packed

    def _initrd(self):
        """The initramfs with the job's files after it: the kernel unpacks archives in a row."""
        root = tempfile.mkdtemp(prefix="job-", dir=self.folder)
        self.job.write(os.path.join(root, "job"))
        names = sorted(os.listdir(os.path.join(root, "job")))
        listing = "job\n" + "".join(f"job/{name}\n" for name in names)
        extra = subprocess.run(["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"], cwd=root,
                               input=listing.encode(), stdout=subprocess.PIPE, check=True).stdout
        path = os.path.join(root, "initrd")
        with open(self.kernel.initramfs, "rb") as base, open(path, "wb") as f:
            f.write(base.read())
            f.write(extra)
        return path

    def _disk_argv(self):
        disk = self.disk
        if isinstance(disk, PlainDisk):
            ro = "on" if disk.read_only else "off"
            return ["-blockdev", f"driver=file,node-name=file,filename={disk.disk},discard=unmap,"
                    f"read-only={ro}", "-blockdev",
                    f"driver={disk.fmt},node-name=disk,file=file,discard=unmap,read-only={ro}",
                    "-device", f"virtio-blk-pci,drive=disk,num-queues={disk.queues}"]
        reconnect = ",reconnect=1" if isinstance(disk, KilledBackend) else ""
        packed = ",packed=on" if self.packed else ""
        return ["-chardev", f"socket,id=disk,path={disk.socket}{reconnect}",
                "-device", f"vhost-user-blk-pci,chardev=disk,num-queues={disk.queues}{packed}"]

    def argv(self, initrd):
        return ["qemu-system-x86_64", "-machine", "q35,memory-backend=mem",
                "-accel", "tcg,thread=multi", "-smp", str(self.cpus), "-m", self.memory,
                "-object", f"memory-backend-memfd,id=mem,size={self.memory},share=on",
                "-nodefaults", "-no-user-config", "-no-reboot", "-nographic", "-serial", "stdio",
                "-kernel", self.kernel.image, "-initrd", initrd,
                "-append", "console=ttyS0 quiet panic=-1 mitigations=off nosoftlockup "
                f"varve.job={self.job.name}",
                *self._disk_argv()]

    def _console(self, proc, deadline):
        """All that QEMU prints until it ends; it is ended if it takes too long or lost its disk."""
        while True:
            try:
                return proc.communicate(timeout=1)[0]
            except subprocess.TimeoutExpired:
                pass
            why = None
            if not self.disk.alive():
                why = "the back end has died"  # QEMU would wait for it to come back
            elif time.monotonic() > deadline:
                why = "out of time"
            if why:
                proc.kill()
                return proc.communicate()[0] + f"\n(QEMU killed: {why})\n".encode()

    def run(self, timeout=BOOT_TIMEOUT):
        initrd = self._initrd()
        start = time.monotonic()
        proc = _spawn(self.argv(initrd), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            out = self._console(proc, start + timeout)
        except BaseException:
            proc.kill()
            proc.wait()
            raise
        finally:
            os.unlink(initrd)
        console = re.sub(r"\x1b(\[[?0-9;]*[A-Za-z]|c)|\r", "", out.decode(errors="replace"))
        return Outcome(console, proc.returncode, time.monotonic() - start)


class KilledGuest(Guest):
    """A guest whose back end (KilledBackend) is killed `kills` times, from one line of its console to another."""

    def __init__(self, *args, first, last, kills, rng, **kw):
        super().__init__(*args, **kw)
        self.first, self.last, self.kills, self.rng = first, last, kills, rng
        self.killed = 0

    def _console(self, proc, deadline):
        output, over = bytearray(), threading.Event()
        begun = threading.Event()

        def read():
            while block := proc.stdout.read1(4096):
                output.extend(block)
                if self.first.encode() in output:
                    begun.set()
                if self.last.encode() in output:
                    over.set()
            begun.set()
            over.set()

        reader = threading.Thread(target=read)
        reader.start()
        try:
            begun.wait(deadline - time.monotonic())
            while self.killed < self.kills and not over.is_set() and time.monotonic() < deadline:
                if self.disk.writes() == 0:  # QEMU looks for a back end that went away once a second
                    over.wait(0.02)
                elif not over.wait(self.rng.random()):
                    self.disk.kill_and_restart()
                    self.killed += 1
            if not over.is_set():
                self.disk.ask("throttle", limits="")
            proc.wait(max(1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            output.extend(b"\n(QEMU killed: out of time)\n")
        finally:
            if proc.poll() is None:
                proc.kill()
            reader.join()
            proc.wait()
        return bytes(output)


class PulledGuest(Guest):
    """A guest whose QEMU is killed when so many of its writes are done, from a line of its console on: its plug is pulled.

    Its disk is so slow that its work lasts. What does not count writes (others than varve) is given seconds.
    """

    BOTH = 10  # requests on each queue: no operation is that many

    def __init__(self, *args, first, writes, seconds, **kw):
        super().__init__(*args, **kw)
        self.first, self.writes, self.seconds = first, writes, seconds

    def _pull(self, proc, deadline):
        if isinstance(self.disk, ControlledBackend):
            while proc.poll() is None and time.monotonic() < deadline:
                done = self.disk.writes_by_queue()
                if sum(done) >= self.writes and min(done) >= self.BOTH:
                    break
                time.sleep(0.02)  # a control socket answers; it does not tell
        else:
            time.sleep(self.seconds)
        proc.kill()

    def _console(self, proc, deadline):
        output = bytearray()
        timer = threading.Timer(deadline - time.monotonic(), proc.kill)
        timer.start()
        puller = None
        try:
            while block := proc.stdout.read1(4096):
                output.extend(block)
                if self.first.encode() in output and not puller:
                    puller = threading.Thread(target=self._pull, args=(proc, deadline))
                    puller.start()
        finally:
            timer.cancel()
            proc.kill()
            if puller:
                puller.join()
            proc.wait()
        return bytes(output)


class Qmp:
    """A machine's monitor; events that come before they are waited for are kept."""

    def __init__(self, path, deadline):
        self.socket, self.events = socket.socket(socket.AF_UNIX), []
        while True:
            try:
                self.socket.connect(path)
                break
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > deadline:
                    raise GuestError(f"QEMU does not listen on {path}")
                time.sleep(0.01)  # the only sign is the socket itself
        self.socket.settimeout(max(1, deadline - time.monotonic()))
        self.lines = self.socket.makefile("rb")
        self.lines.readline()  # greeting
        self("qmp_capabilities")

    def _next(self):
        line = self.lines.readline()
        if not line:
            raise GuestError("QEMU closed its monitor")
        return json.loads(line)

    def __call__(self, command, **args):
        self.socket.sendall(json.dumps({"execute": command, "arguments": args}).encode() + b"\n")
        while True:
            answer = self._next()
            if "event" in answer:
                self.events.append(answer)
            elif "error" in answer:
                raise GuestError(f"QMP: {command}: {answer['error']['desc']}")
            else:
                return answer["return"]

    def wait(self, event, *of):
        """Until such an event with one of these states comes; the state."""
        while True:
            for e in self.events:
                if e["event"] == event and e.get("data", {}).get("status") in of:
                    return e["data"]["status"]
            self.events.append(self._next())

    def close(self):
        self.lines.close()
        self.socket.close()


class MigratedGuest(Guest):
    """A guest that moves, while it is at work, to another QEMU whose disk another back end serves.

    It moves when its console shows the line `first`, from self.disk to `to`; before that it is stopped for a moment, and moves
    that fail are tried, after each of which it has to go on writing where it is. Until it has moved, its disk is so slow (SlowLentBackend)
    that its work lasts. What it prints is taken from both.
    """

    def __init__(self, *args, to, first, **kw):
        super().__init__(*args, **kw)
        self.to, self.first = to, first
        self.facts = {}

    def _machine(self, initrd, name, disk, *more):
        old, self.disk = self.disk, disk
        argv = self.argv(initrd)
        self.disk = old
        log = open(os.path.join(self.folder, f"console.{name}"), "w+b")
        qmp = os.path.join(disk.folder, "qmp")
        proc = _spawn([*argv, "-qmp", f"unix:{qmp},server=on,wait=off", *more], stdout=log, stderr=subprocess.STDOUT)
        return proc, log, qmp

    @staticmethod
    def _read(log):
        log.seek(0)
        return log.read()

    def _wait_line(self, proc, log, deadline):
        while self.first.encode() not in self._read(log):
            if proc.poll() is not None or time.monotonic() > deadline:
                raise GuestError(f"the guest never came to '{self.first}':\n{self._read(log).decode(errors='replace')}")
            time.sleep(0.05)  # a file has no way to tell

    @staticmethod
    def _until(what, deadline, why):
        while not what():
            if time.monotonic() > deadline:
                raise GuestError(f"out of time: {why}")
            time.sleep(0.02)  # control sockets answer; they do not tell

    def _begin(self, source, target, bandwidth=1 << 30):
        path = os.path.join(self.to.folder, "migration")
        for q in (source, target):
            q("migrate-set-capabilities", capabilities=[{"capability": c, "state": True} for c in ("events", "pause-before-switchover")])
        source("migrate-set-parameters", **{"max-bandwidth": bandwidth, "downtime-limit": 2000})
        target("migrate-incoming", uri=f"unix:{path}")
        source.events.clear()
        source("migrate", uri=f"unix:{path}")

    def _wait_given(self, deadline):
        """The machine is stopped: the source has flushed and closed the image, and nobody has it."""
        self._until(lambda: not self.disk.held(), deadline, "the source does not let go of the image of a stopped machine")
        assert self.disk.locks() == 0 and self.to.locks() == 0

    # Ways to fail: each is given both monitors, the process of the target, and the time by which it has to be over.

    def cancelled_while_memory_moves(self, source, target, _proc, _deadline):
        self._begin(source, target, bandwidth=4 << 20)
        source.wait("MIGRATION", "active")
        source("migrate_cancel")
        source.wait("MIGRATION", "cancelled")

    def target_killed_while_memory_moves(self, source, target, proc, _deadline):
        self._begin(source, target, bandwidth=4 << 20)
        source.wait("MIGRATION", "active")
        proc.kill()
        source.wait("MIGRATION", "failed")

    def target_killed_when_the_machine_is_stopped(self, source, target, proc, deadline):
        self._begin(source, target)
        source.wait("MIGRATION", "pre-switchover")
        self._wait_given(deadline)
        proc.kill()
        proc.wait()
        source("migrate-continue", state="pre-switchover")
        source.wait("MIGRATION", "failed")

    def server_killed_and_cancelled_when_the_machine_is_stopped(self, source, target, _proc, deadline):
        self._begin(source, target)
        source.wait("MIGRATION", "pre-switchover")
        self._wait_given(deadline)
        self.to.kill_and_restart()
        source("migrate_cancel")
        source.wait("MIGRATION", "cancelled")

    FAILURES = (cancelled_while_memory_moves, target_killed_while_memory_moves, target_killed_when_the_machine_is_stopped,
                server_killed_and_cancelled_when_the_machine_is_stopped)

    def _fail(self, failure, source, target, proc, deadline):
        """A move that fails: the guest goes on where it is, and the target's server has nothing."""
        failure(self, source, target, proc, deadline)
        proc.kill()
        proc.wait()
        name = failure.__name__
        before = self.disk.writes()
        self._until(lambda: self.disk.held() and self.disk.writes() > before, deadline, f"{name}: the source does not go on")
        self._until(lambda: not self.to.ask("stats")["export"]["connected"], deadline, f"{name}: the target is still connected")
        assert source("query-status")["running"], name
        assert not self.to.held() and self.to.locks() == 0, f"{name}: the target's server has the image"

    def _move(self, source, target, deadline):
        """Migrates; returns when the machine runs at the target."""
        self._begin(source, target)
        source.wait("MIGRATION", "pre-switchover", "failed")
        self._wait_given(deadline)
        source("migrate-continue", state="pre-switchover")
        status = source.wait("MIGRATION", "completed", "failed")
        self.facts = source("query-migrate")
        if status == "failed":
            raise GuestError(f"migration failed: {self.facts}")
        target.wait("MIGRATION", "completed")

    def _target(self, initrd, deadline, started):
        proc, log, path = self._machine(initrd, f"target{len(started)}", self.to, "-incoming", "defer")
        started.append((proc, log))
        return proc, Qmp(path, deadline)

    def _play(self, initrd, deadline, started):
        """Ends when the guest has."""
        proc, log, path = self._machine(initrd, "source", self.disk)
        started.append((proc, log))
        source = Qmp(path, deadline)
        self._wait_line(proc, log, deadline)
        self._until(lambda: self.disk.writes() > 0, deadline, "the guest does not write")
        source("stop")
        source("cont")
        for failure in self.FAILURES:
            failed, target = self._target(initrd, deadline, started)
            self._fail(failure, source, target, failed, deadline)
            target.close()
            os.unlink(os.path.join(self.to.folder, "qmp"))
        self.writes = [self.disk.writes()]
        arrived, target = self._target(initrd, deadline, started)
        self._move(source, target, deadline)
        source("quit")
        proc.wait(max(1, deadline - time.monotonic()))
        arrived.wait(max(1, deadline - time.monotonic()))
        for q in (source, target):
            q.close()

    def run(self, timeout=BOOT_TIMEOUT):
        initrd = self._initrd()
        start = time.monotonic()
        started = []
        try:
            self._play(initrd, start + timeout, started)
        except subprocess.TimeoutExpired:
            started[-1][1].write(b"\n(QEMU killed: out of time)\n")
        finally:
            for proc, _ in started:
                if proc.poll() is None:
                    proc.kill()
                proc.wait()
            out = b"".join(self._read(log) for _, log in started)
            for _, log in started:
                log.close()
            os.unlink(initrd)
        console = re.sub(r"\x1b(\[[?0-9;]*[A-Za-z]|c)|\r", "", out.decode(errors="replace"))
        return Outcome(console, started[-1][0].returncode, time.monotonic() - start)


def qemu_check(disk):
    """qemu-img's findings on an image, as a dict; absent counts are zero."""
    out = json.loads(run("qemu-img", "check", "-f", "qcow2", "--output=json", disk, ok=(0, 2, 3)))
    return {k: out.get(k, 0) for k in ("check-errors", "corruptions", "leaks")}
