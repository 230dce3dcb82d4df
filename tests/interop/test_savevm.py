# SPDX-License-Identifier: MIT
"""test_savevm - a machine of QEMU is saved and loaded, its state going through varve on the way

The guest is one boot sector: it counts, writes each number to its disk, reads it back, and says it on the serial line. A
state that comes back with another disk, or damaged, is a count that jumps or a disk that disagrees.

Assumes: qemu-system-x86_64 (no KVM is needed), as and ld.
"""

import os
import re
import shutil
import socket
import subprocess
import tempfile
import time

import pytest

from test_snapshot import clean, load, save, snapshots
from tool import MIB, img, io, ok, qimg, run

pytestmark = pytest.mark.skipif(os.environ.get("VARVE_SKIP_GUEST") == "1", reason="VARVE_SKIP_GUEST=1 is set")

LIMIT = 240  # seconds for anything that a guest does

# At 0x7e00 the sector that is written, the count at its start; at 0x8000 what is read back.
GUEST = """
	.code16
	.globl _start
_start:	cli
	xor %ax, %ax
	mov %ax, %ds
	mov %ax, %es
	mov %ax, %ss
	mov $0x7c00, %sp
	mov %dl, drive
	movw $0, 0x7e00
	sti
next:	incw 0x7e00
	mov $0x0301, %ax
	mov $0x7e00, %bx
	call disk
	movw $0, 0x8000
	mov $0x0201, %ax
	mov $0x8000, %bx
	call disk
	mov $'=', %al
	mov 0x7e00, %cx
	cmp %cx, 0x8000
	je 1f
	mov $'!', %al
1:	call say
	mov $4, %si
2:	rol $4, %cx
	mov %cl, %al
	and $15, %al
	add $'0', %al
	cmp $'9', %al
	jbe 3f
	add $39, %al
3:	call say
	dec %si
	jnz 2b
	mov $'\\n', %al
	call say
	mov $4, %si
4:	hlt
	dec %si
	jnz 4b
	jmp next
disk:	mov $2, %cx
	xor %dh, %dh
	mov drive, %dl
	int $0x13
	ret
say:	mov $0x3f8, %dx
	out %al, %dx
	ret
drive:	.byte 0
	.org 510
	.word 0xaa55
"""


class Machine:
    def __init__(self, folder, disk, *args, begun=""):
        """begun: the part of a line that the guest of the state which is loaded has said before."""
        self.begun = begun
        self.serial = folder / f"serial{time.monotonic_ns()}"
        self.short = tempfile.mkdtemp(prefix="varve-vm-")  # names of sockets are short
        self.monitor_path = os.path.join(self.short, "m")
        self.p = subprocess.Popen(
            ["qemu-system-x86_64", "-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none",
             "-drive", f"file={disk},format=qcow2,if=ide", "-serial", f"file:{self.serial}",
             "-monitor", f"unix:{self.monitor_path},server=on,wait=off", *args],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.monitor = None
        try:
            self.wait(self.connect)
            self.answer()
        except BaseException:
            self.__exit__()
            raise

    def connect(self):
        """The name is there a moment before somebody listens."""
        self.monitor = self.monitor or socket.socket(socket.AF_UNIX)
        self.monitor.settimeout(LIMIT)
        try:
            self.monitor.connect(self.monitor_path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.monitor:
            self.monitor.close()
        self.p.kill()
        self.p.communicate()
        shutil.rmtree(self.short)

    def wait(self, done):
        end = time.monotonic() + LIMIT
        while not done():
            assert self.p.poll() is None, self.p.stdout.read().decode()
            assert time.monotonic() < end, "the guest does not come on"
            time.sleep(.02)

    def answer(self):
        text = b""
        while not text.endswith(b"(qemu) "):
            part = self.monitor.recv(65536)
            assert part, text
            text += part
        return re.sub(r"\x1b\[[0-9;]*[A-Za-z]|.\x08", "", text.decode())

    def hmp(self, command):
        self.monitor.sendall(command.encode() + b"\n")
        text = self.answer()
        assert "rror" not in text, text
        return text

    def text(self):
        return self.begun + (self.serial.read_text() if self.serial.exists() else "")

    def said(self):
        """The counts that were told so far; all of them with a disk that agreed."""
        lines = self.text().splitlines(keepends=True)
        counts = []
        for line in lines:
            assert not line.startswith("!"), f"the disk holds something else: {line}"
            if re.fullmatch(r"=[0-9a-f]{4}\n", line):
                counts.append(int(line[1:], 16))
        return counts

    def run_on(self, n=3):
        """n counts more; all of them."""
        before = len(self.said())
        self.wait(lambda: len(self.said()) >= before + n)
        counts = self.said()
        assert counts == list(range(counts[0], counts[0] + len(counts))), counts
        return counts

    def stop(self):
        """The last count, and what was said of the next one: any moment may be in the middle of a line."""
        self.hmp("stop")
        return self.said()[-1], self.text().rpartition("\n")[2]

    def quit(self):
        self.monitor.sendall(b"quit\n")
        self.p.wait(LIMIT)


def make_disk(folder):
    (folder / "guest.s").write_text(GUEST)
    ok(run("as", "--32", "-o", folder / "guest.o", folder / "guest.s"))
    ok(run("ld", "-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o", folder / "sector", folder / "guest.o"))
    assert (folder / "sector").stat().st_size == 512
    disk = folder / "disk"
    ok(img("create", "-q", "-f", "qcow2", disk, str(16 * MIB)))
    ok(io(disk, f"write -q -s {folder}/sector 0 512"))
    return disk


def test_a_state_goes_through_varve_and_back(tmp_path):
    disk = make_disk(tmp_path)
    with Machine(tmp_path, disk) as vm:
        vm.run_on()
        count, begun = vm.stop()
        vm.hmp("savevm one")
        vm.hmp("cont")
        vm.run_on()
        vm.quit()
    clean(disk)

    # What QEMU has saved is listed, read, and saved again under another name, beside the disk of that moment.
    assert snapshots(disk)["one"]["vm-state-size"] > MIB // 4
    state = load(disk, "one")
    assert len(state) == snapshots(disk)["one"]["vm-state-size"]
    ok(img("snapshot", "-a", "one", disk))
    assert save(disk, "two", state) == (0, "")
    ok(img("snapshot", "-d", "one", disk))
    clean(disk)

    # QEMU goes on from that one, and saves again: the other way round.
    with Machine(tmp_path, disk, "-loadvm", "two", begun=begun) as vm:
        assert vm.run_on()[0] in (count, count + 1)
        later, _ = vm.stop()
        vm.hmp("savevm three")
        vm.quit()
    clean(disk)
    assert load(disk, "two", "-t", "none") == state
    third = load(disk, "three")
    ok(img("snapshot", "-a", "three", disk))
    assert save(disk, "four", third, "-t", "none") == (0, "")
    for name in ("two", "three"):
        ok(img("snapshot", "-d", name, disk))
    clean(disk)
    with Machine(tmp_path, disk) as vm:  # from the start, then by the monitor
        vm.run_on(1)
        vm.hmp("loadvm four")
        vm.wait(lambda: vm.said()[-1] > later)
        # The next one, if neither line was cut by the state: what is made of two is no count.
        assert min(n for n in vm.said() if n > later) <= later + 2
        vm.quit()
    ok(qimg("snapshot", "-d", "four", disk))
    clean(disk)
