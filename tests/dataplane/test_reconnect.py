# SPDX-License-Identifier: MIT
"""test_reconnect.py - the server is killed in the middle of verified writes, again and again; the front end finds the next
one, which finishes what the dead one owed. On a raw disk, because what is acknowledged there is in the kernel's hands.
"""
import json
import os
import random
import signal
import subprocess
import time

import pytest

import seeds
from test_vublk import SECONDS, VARVE, Server, make_disk

WRITTEN = 1 << 20  # of a disk that was empty
KILLS = int(os.environ.get("VARVE_KILLS", 5))


def start(server):
    process = subprocess.Popen(list(map(str, server.argv)), stdout=server.log, stderr=server.log)
    server.process = process
    return process


@pytest.mark.parametrize("rings", [["--packed=off"], ["--packed=on"], ["--packed=off", "--event-idx=off", "--indirect=off"],
                                   ["--packed=on", "--inflight=off"]], ids=" ".join)
def test_a_killed_server_loses_no_request(tmp_path, rings):
    seed = seeds.seed()
    rng = random.Random(seed)
    disk, fmt = make_disk(tmp_path, "raw")
    with Server(tmp_path, disk, "-f", fmt, "--num-queues", 2) as s:
        load = subprocess.Popen(
            list(map(str, [VARVE, "blkload", "--socket", s.socket, "--output", "json", "--rw", "randrw", "--verify",
                           "--queues", 2, "--depth", 32, "--flush-every", 50, "--discard-percent", 2, "--runtime",
                           100000, "--reconnect", SECONDS, "--timeout", SECONDS // 2, "--seed", seed, *rings])),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            # Requests have been done: from here on the front end looks for the next server.
            deadline = time.monotonic() + SECONDS
            while os.stat(disk).st_blocks * 512 < WRITTEN:
                assert load.poll() is None and time.monotonic() < deadline, load.communicate()
                time.sleep(0.005)
            for _ in range(KILLS):
                # The moment of the kill is drawn, not waited for.
                time.sleep(rng.uniform(0.02, 0.2))
                s.process.kill()
                s.process.wait(SECONDS)
                start(s)
            load.send_signal(signal.SIGUSR1)
            out, err = load.communicate(timeout=SECONDS)
        finally:
            load.kill()
        assert load.returncode == 0, f"{err}\n{out}\nserver: {s.text()}"
        result = json.loads(out)
        assert result["reconnects"] >= 1 and result["errors"] == 0 and result["mismatched_sectors"] == 0
        assert result["inflight"] == ("--inflight=off" not in rings)
        assert result["packed"] == ("--packed=on" in rings)
        assert result["verified_sectors"] > 0
