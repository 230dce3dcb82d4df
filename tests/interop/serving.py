# SPDX-License-Identifier: MIT
"""serving - varve serve as a child process, for tests that let it meet trouble

Never: leaves the process behind.
"""

import json
import os
import pathlib
import signal
import subprocess
import time

from tool import TIMEOUT, varve_path


class Server:
    def __init__(self, disk, fmt, socket, pidfile, *options, under=()):
        self.socket, self.pidfile = socket, pathlib.Path(pidfile)
        argv = [*under, varve_path(), "serve", disk, "--vhost-user", socket, "-f", fmt, "--pidfile", pidfile, *options]
        self.process = subprocess.Popen(list(map(str, argv)), stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + TIMEOUT
        while not self.pidfile.exists():  # written when the socket listens
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                raise AssertionError(f"varve serve did not start: {self.process.communicate()[1]}")
            time.sleep(0.005)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        assert self.process.wait(TIMEOUT) == -signal.SIGKILL

    def stop(self):
        """As an operator does: (exit status, what it said on stderr)."""
        self.process.send_signal(signal.SIGTERM)
        err = self.process.communicate(timeout=TIMEOUT)[1]
        return self.process.returncode, err

    def load_argv(self, options):
        program = pathlib.Path(os.environ["VARVE_BUILD"]).absolute() / "tools/varve"
        return [program, "blkload", "--socket", self.socket, "--output", "json", "--timeout", str(TIMEOUT // 2), *map(str, options)]

    def start_load(self, *options):
        """blkload against it, as a process that is the caller's to end."""
        return subprocess.Popen(self.load_argv(options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def load(self, *options):
        """blkload against it: (exit status, its report as JSON, its stderr)."""
        done = subprocess.run(self.load_argv(options), capture_output=True, text=True, timeout=TIMEOUT)
        return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr
