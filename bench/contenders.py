# SPDX-License-Identifier: MIT
"""contenders - the programs that bench/run compares, each behind the same four calls

    open()          what must be running before it can be measured
    measure(s)      one round of about s seconds: a Sample
    syscalls(n)     system calls for one request, in a round of n requests of its own
    close()

Assumes: fio and the QEMU tools write the words of the versions in Debian 12; what is not understood is an error.
Never:   gives one contender less than the best engine of another: all that can use io_uring do.
"""
import dataclasses
import json
import os
import re

import measure

DEPTH, BLOCK = 32, 4096
STEP = 7919 * BLOCK     # an odd number of blocks: visits all of a disk of 2^n blocks, never two neighbours in a row


@dataclasses.dataclass
class Sample:
    iops: float
    cpu_user_ns: float          # for one request
    cpu_sys_ns: float
    p50_ns: float = None        # None: the program does not tell
    p99_ns: float = None


class Contender:
    """name: for the table. against: the name of varve's row that this peer stands beside; None: it is varve's."""

    def __init__(self, name, against=None):
        self.name, self.against = name, against

    def open(self):
        pass

    def close(self):
        pass


class Program(Contender):
    """A program that is started for each round. Its start and end are measured once and taken off."""
    idle = None

    def measure(self, seconds):
        if self.idle is None:
            _, self.idle = measure.run(self.argv_ops(1))
        out, cpu = measure.run(self.argv_seconds(seconds))
        sample, ops = self.parse(out)
        cpu = cpu - self.idle
        return dataclasses.replace(sample, cpu_user_ns=cpu.user_ns / ops, cpu_sys_ns=cpu.sys_ns / ops)

    def syscalls(self, ops):
        _, few = measure.count_syscalls(self.argv_ops(1))
        _, many = measure.count_syscalls(self.argv_ops(ops))
        return max(0, many - few) / (ops - 1)


class LibBench(Program):
    def __init__(self, name, program, image, fmt, *, write, stride=False, cache="none"):
        super().__init__(name)
        mode = "write" if write else "read"
        self.argv = [program, "--format", fmt, "--cache", cache, "--depth", DEPTH, "--block-size", BLOCK,
                     *(["--rw", mode, "--step", STEP] if stride else ["--rw", "rand" + mode]), image]

    def argv_seconds(self, seconds):
        return [str(a) for a in (*self.argv, "--runtime", seconds)]

    def argv_ops(self, ops):
        return [str(a) for a in (*self.argv, "--ops", ops)]

    @staticmethod
    def parse(out):
        r = json.loads(out)
        return Sample(r["iops"], 0, 0, r["latency_p50_ns"], r["latency_p99_ns"]), r["requests"]


class Fio(Program):
    def __init__(self, name, program, image, against, *, write, batch=False, cache="none"):
        super().__init__(name, against)
        self.argv = [program, "--name=bench", f"--filename={image}", f"--rw={'randwrite' if write else 'randread'}",
                     f"--bs={BLOCK}", f"--iodepth={DEPTH}", "--ioengine=io_uring", f"--direct={int(cache == 'none')}",
                     "--norandommap", "--randrepeat=0", "--thread=1", "--invalidate=0", "--output-format=json",
                     "--lat_percentiles=1", "--clat_percentiles=0",  # from the program's decision to its notice, as ours
                     *([f"--iodepth_batch_submit={DEPTH}", "--iodepth_batch_complete_min=1",
                        f"--iodepth_batch_complete_max={DEPTH}"] if batch else [])]

    def argv_seconds(self, seconds):
        return [*self.argv, "--time_based", f"--runtime={int(seconds * 1000)}ms"]

    def argv_ops(self, ops):
        return [*self.argv, f"--number_ios={ops}"]

    @staticmethod
    def parse(out):
        job = json.loads(out[out.index("{"):])["jobs"][0]
        r = job["read"] if job["read"]["total_ios"] else job["write"]
        wait = r["lat_ns"].get("percentile", {})
        return Sample(r["iops"], 0, 0, wait.get("50.000000"), wait.get("99.000000")), r["total_ios"]


class QemuImg(Program):
    """qemu-img bench knows a number of requests only, so it is found out how many make the time."""
    rate = None

    def __init__(self, name, program, image, fmt, against, *, write, cache="none"):
        super().__init__(name, against)
        self.argv = [program, "bench", "-f", fmt, "-d", str(DEPTH), "-s", str(BLOCK), "-S", str(STEP), "-i", "io_uring",
                     "-t", cache, *(["-w"] if write else []), image]

    def argv_ops(self, ops):
        return [*self.argv[:-1], "-c", str(ops), self.argv[-1]]

    def argv_seconds(self, seconds):
        if self.rate is None:
            self.rate = self.parse(measure.run(self.argv_ops(2000))[0])[0].iops
        return self.argv_ops(max(1000, int(self.rate * seconds)))

    def parse(self, out):
        sent = re.search(r"Sending (\d+) (?:read|write) requests", out)
        took = re.search(r"Run completed in ([\d.]+) seconds", out)
        if not sent or not took:
            raise measure.Failed(f"qemu-img bench said something new: {out[:200]!r}")
        ops, seconds = int(sent[1]), max(float(took[1]), 0.001)
        self.rate = ops / seconds
        return Sample(self.rate, 0, 0), ops


class Served(Contender):
    """A vhost-user-blk server, loaded by blkload. CPU time and system calls are the server's alone."""
    server = rate = None

    def __init__(self, name, blkload, sock, against=None, *, write):
        super().__init__(name, against)
        self.sock = sock
        self.load = [*blkload, "--socket", sock, "--rw", "randwrite" if write else "randread", "--block-size", BLOCK,
                     "--depth", DEPTH, "--queues", 1, "--output", "json"]

    def open(self):
        self.server = measure.Server(self.argv_server(), self.sock)
        self.rate = self.blkload(5000)["total"]["iops"]     # and the tables are looked up

    def blkload(self, ops):
        return json.loads(measure.run([str(a) for a in (*self.load, "--ops", ops)])[0])

    def measure(self, seconds):
        before = self.server.cpu()
        r = self.blkload(max(1000, int(self.rate * seconds)))
        self.rate = r["total"]["iops"]
        cpu, total = self.server.cpu() - before, r["total"]
        if r["errors"]:
            raise measure.Failed(f"{self.name}: {r['errors']} requests failed")
        return Sample(total["iops"], cpu.user_ns / total["requests"], cpu.sys_ns / total["requests"],
                      total["latency_p50_ns"], total["latency_p99_ns"])

    def syscalls(self, ops):
        r, calls = self.server.count_syscalls(lambda: self.blkload(ops))
        return calls / r["total"]["requests"]

    def close(self):
        if self.server:
            self.server.stop()
            self.server = None
        if os.path.exists(self.sock):
            os.unlink(self.sock)    # a server that was killed leaves it


class Varve(Served):
    def __init__(self, name, varve, disk, blkload, sock, *, write):
        super().__init__(name, blkload, sock, write=write)
        self.disk = [varve, "serve", *disk, "--vhost-user", sock, *([] if write else ["--read-only"])]

    def argv_server(self):
        return self.disk


class Qsd(Served):
    """blockdevs: of which the last has the node name "top"."""

    def __init__(self, name, qsd, blockdevs, blkload, sock, against, *, write, iothread):
        super().__init__(name, blkload, sock, against, write=write)
        self.argv = [qsd, *(["--object", "iothread,id=io"] if iothread else []),
                     *(word for b in blockdevs for word in ("--blockdev", b)),
                     "--export", f"type=vhost-user-blk,id=e,node-name=top,addr.type=unix,addr.path={sock},"
                     f"writable={'on' if write else 'off'},num-queues=1{',iothread=io' if iothread else ''}"]

    def argv_server(self):
        return self.argv


def qsd_chain(layers):
    """The nodes of a backing chain, the bottom first, each file with io_uring like the top one."""
    nodes = []
    for i, path in enumerate(layers):
        name = "top" if i == len(layers) - 1 else f"layer{i}"
        backing = f",backing=layer{i - 1}" if i else ""
        path = os.fspath(path).replace(",", ",,")
        nodes += [f"driver=file,node-name=file{i},filename={path},aio=io_uring,read-only=on",
                  f"driver=qcow2,node-name={name},file=file{i},read-only=on{backing}"]
    return nodes
