# SPDX-License-Identifier: MIT
"""slowserver - starts and asks the slow web server of slowserver.c

Never:   lets it live longer than its `with` block.
"""
import subprocess

import measure


class Server:
    def __init__(self, program, path, latency):
        self.argv = [program, path, str(round(latency * 1000))]

    def __enter__(self):
        self.process = subprocess.Popen(self.argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        if not line:
            raise measure.Failed("slowserver does not start")
        self.url = f"http://127.0.0.1:{int(line)}/base.raw"
        return self

    def __exit__(self, *exc):
        self.process.stdin.close()
        self.process.wait(20)

    @property
    def bytes(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())
