# SPDX-License-Identifier: MIT
"""faultfs - the file system of tests/lib/faultfs.h, for tests of whole programs

Assumes: root. One file, "disk", in memory; orders as faultfs.h lists them.
Never:   leaves the mount or its process behind.
"""

import os
import pathlib
import subprocess

import pytest


class Faultfs:
    def __init__(self, directory, mode="async"):
        self.dir = pathlib.Path(directory)
        self.disk, self.stable = self.dir / "disk", self.dir / "stable"
        self.mode = mode

    def __enter__(self):
        if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
            pytest.skip("faultfs needs root and the kernel's FUSE")
        self.dir.mkdir()
        program = pathlib.Path(os.environ["VARVE_BUILD"]).absolute() / "tests/lib/faultfs"
        self.process = subprocess.Popen([program, self.dir, self.mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, bufsize=1)
        if self.process.stdout.readline() != "0\n":
            pytest.skip("faultfs cannot be mounted here")
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        try:
            self.process.wait(240)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()

    def tell(self, order):
        self.process.stdin.write(order + "\n")
        answer = int(self.process.stdout.readline())
        assert answer >= 0, order
        return answer

    def put(self, path):
        """The disk is a copy of that file, all of it stable."""
        data = pathlib.Path(path).read_bytes()
        self.tell(f"resize {len(data)}")
        with open(self.disk, "r+b") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
