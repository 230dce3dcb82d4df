# SPDX-License-Identifier: MIT
"""test_snapshot - internal snapshots and states of machines, with varve and qemu-img taking turns

What one makes the other lists, reads, applies and deletes; both find the image without fault after every step. What fails
leaves the image as it was.
"""

import random
import signal
import subprocess
import xml.etree.ElementTree

import pytest

from seeds import seed
from test_full_disk import fill, small_file_system
from tool import KIB, MIB, img, info, io, ok, qimg, qio, refused, varve, varve_path


@pytest.fixture
def rng():
    return random.Random(seed())


def clean(path):
    r = ok(qimg("check", path))
    assert "No errors were found" in r.out, str(r)
    ok(img("check", path))


def save(path, name, data, *options):
    p = subprocess.run([varve_path(), "vmstate", "save", *options, path, name], input=data, capture_output=True,
                       timeout=240, check=False)
    return p.returncode, p.stderr.decode()


def load(path, name, *options):
    p = subprocess.run([varve_path(), "vmstate", "load", *options, path, name], capture_output=True, timeout=240,
                       check=False)
    assert p.returncode == 0, p.stderr
    return p.stdout


def snapshots(path):
    return {s["name"]: s for s in img("info", "--output=json", path).json.get("snapshots", [])}


def same_as(path, name, data, tmp_path):
    """The disk of a snapshot, read by both; None: the disk as it is."""
    (tmp_path / "want.raw").write_bytes(data)
    part = f"snapshot.name={name}," if name else ""
    ok(img("compare", "-q", "--image-opts", f"driver=qcow2,{part}file.filename={path}",
           f"driver=raw,file.filename={tmp_path}/want.raw"))
    ok(qimg("convert", *(["-l", f"snapshot.name={name}"] if name else []), "-f", "qcow2", "-O", "raw", path,
            tmp_path / "got.raw"))
    assert (tmp_path / "got.raw").read_bytes() == data


class Model:
    def __init__(self, path, rng, cluster, version2):
        self.path, self.rng, self.cluster = path, rng, cluster
        self.len = {512: 512 * KIB, 4096: 4 * MIB, 65536: 16 * MIB}[cluster]
        self.disk, self.kept, self.states = bytearray(self.len), {}, {}
        options = f"cluster_size={cluster}" + (",compat=0.10" if version2 else "")
        ok(img("create", "-q", "-f", "qcow2", "-o", options, path, str(self.len)))

    def tool(self, mine, theirs):
        return mine if self.rng.random() < .5 else theirs

    def write(self):
        commands = []
        for _ in range(self.rng.randint(1, 6)):
            n = self.rng.randint(1, 400) * 512
            at = self.rng.randrange(0, (self.len - n) // 512 + 1) * 512
            byte = self.rng.choice((0, self.rng.randint(1, 255)))
            if byte and self.cluster > 512 and self.rng.random() < .3:  # compressed: one cluster
                n, at = self.cluster, at - at % self.cluster
                self.disk[at:at + n] = bytes([byte]) * n
                commands.append(f"write -c -P {byte} {at} {n}")
                continue
            self.disk[at:at + n] = bytes([byte]) * n
            commands.append(f"write -P {byte} {at} {n}" if byte else
                            f"write -z {'-u' if self.rng.random() < .5 else ''} {at} {n}")
        # qemu-io refuses to compress a cluster that is there already.
        packs = any("-c" in c for c in commands)
        ok((io if packs else self.tool(io, qio))(self.path, *commands, options=("-f", "qcow2")))

    def create(self, step):
        name = f"n{step}"
        if self.rng.random() < .4:
            data = self.rng.randbytes(self.rng.randint(1, 3 * MIB))
            assert save(self.path, name, data) == (0, "")
            self.states[name] = data
        else:
            ok(self.tool(img, qimg)("snapshot", "-c", name, self.path))
        self.kept[name] = bytes(self.disk)

    def apply(self):
        name = self.rng.choice(sorted(self.kept))
        ok(self.tool(img, qimg)("snapshot", "-a", name, self.path))
        self.disk = bytearray(self.kept[name])

    def delete(self):
        name = self.rng.choice(sorted(self.kept))
        ok(self.tool(img, qimg)("snapshot", "-d", name, self.path))
        del self.kept[name]
        self.states.pop(name, None)

    def step(self, step):
        what = self.rng.choice("wwwccad")
        if what == "w":
            self.write()
        elif what == "c" or not self.kept:
            self.create(step)
        elif what == "a":
            self.apply()
        else:
            self.delete()

    def compare(self, tmp_path):
        clean(self.path)
        same_as(self.path, None, bytes(self.disk), tmp_path)
        assert set(snapshots(self.path)) == set(self.kept)
        for name, data in self.kept.items():
            same_as(self.path, name, data, tmp_path)
        for name, data in self.states.items():
            assert snapshots(self.path)[name]["vm-state-size"] == len(data)
            assert load(self.path, name) == data


@pytest.mark.parametrize("cluster,version2", [(512, False), (4096, False), (65536, False), (65536, True)])
def test_both_take_turns(tmp_path, rng, cluster, version2):
    model = Model(tmp_path / "disk", rng, cluster, version2)
    for step in range(9):
        model.step(step)
        clean(model.path)
    model.compare(tmp_path)


def test_list_is_that_of_qemu_img(tmp_path):
    disk = tmp_path / "disk"
    ok(img("create", "-q", "-f", "qcow2", disk, "4M"))
    assert ok(img("snapshot", "-l", disk)).out == ok(qimg("snapshot", "-l", disk)).out == ""
    ok(img("snapshot", "-c", "one", disk))
    assert save(disk, "a name that is longer than its column", bytes(3 * MIB)) == (0, "")
    listed = ok(qimg("snapshot", "-l", disk)).out
    assert "one" in listed
    for args in (("-l",), (), ("--list", "-U", "-f", "qcow2")):
        assert ok(img("snapshot", *args, disk)).out == listed


def test_a_snapshot_is_named_by_name_or_id(tmp_path):
    disk = tmp_path / "disk"
    ok(img("create", "-q", "-f", "qcow2", disk, "4M"))
    for name in ("one", "two", "3x"):
        ok(img("snapshot", "-c", name, disk))
    ok(img("snapshot", "-d", "2", disk))
    assert set(snapshots(disk)) == {"one", "3x"}
    refused(img("snapshot", "-d", "2", disk), "2", "none such")


@pytest.mark.parametrize("tool", [img, qimg])
def test_two_of_a_name(tmp_path, tool):
    """Ids differ. Both tools pick the same one: -a and convert -l an id or else a name, -d a name; of several the first."""
    disk, raw = tmp_path / "disk", tmp_path / "raw"
    ok(img("create", "-q", "-f", "qcow2", disk, "1M"))
    for n, name in enumerate(("twice", "twice", "1", "7", "twice"), 1):
        ok(io(disk, f"write -q -P {n} 0 64k"))
        ok(tool("snapshot", "-c", name, disk))
    clean(disk)

    def listed():
        return [(s["id"], s["name"]) for s in info(disk)["snapshots"]]

    assert listed() == [("1", "twice"), ("2", "twice"), ("3", "1"), ("4", "7"), ("5", "twice")]
    for what, n in (("twice", 1), ("2", 2), ("1", 1), ("7", 4), ("4", 4), ("5", 5)):
        ok(tool("convert", "-l", what, "-O", "raw", disk, raw))
        assert raw.read_bytes()[0] == n
        ok(tool("snapshot", "-a", what, disk))
        ok(io(disk, f"read -q -P {n} 0 64k"))
    for what, n in (("snapshot.name=twice", 1), ("snapshot.name=1", 3), ("snapshot.id=2,snapshot.name=twice", 2)):
        ok(tool("convert", "-l", what, "-O", "raw", disk, raw))
        assert raw.read_bytes()[0] == n
    ok(tool("snapshot", "-d", "1", disk))
    ok(tool("snapshot", "-d", "twice", disk))
    assert listed() == [("2", "twice"), ("4", "7"), ("5", "twice")]
    ok(tool("snapshot", "-d", "twice", disk))
    assert listed() == [("4", "7"), ("5", "twice")]
    clean(disk)


def test_what_cannot_be_done_is_refused(tmp_path):
    disk, raw = tmp_path / "disk", tmp_path / "raw"
    ok(img("create", "-q", "-f", "qcow2", disk, "4M"))
    ok(img("create", "-q", "-f", "raw", raw, "4M"))
    ok(img("snapshot", "-c", "one", disk))
    before = disk.read_bytes()
    refused(img("snapshot", "-d", "two", disk), disk, "two")
    refused(img("snapshot", "-a", "two", disk), disk, "two")
    refused(img("snapshot", "-c", "x" * 256, disk), disk, "255")
    refused(img("snapshot", "-c", "x", "-f", "raw", raw), raw, "raw", "snapshots")
    code, text = save(disk, "one", b"x")
    assert code == 1 and "already" in text
    code, text = save(disk, "new", b"x" * 100, "--expect", "101")
    assert code == 1 and "cut off" in text
    r = varve("vmstate", "load", disk, "one")
    assert r.rc == 1 and "no state" in r.err
    r = varve("vmstate", "load", disk, "two")
    assert r.rc == 1 and "two" in r.err
    assert set(snapshots(disk)) == {"one"}
    assert disk.stat().st_size >= len(before)
    clean(disk)


def test_a_full_disk_gives_the_space_back(tmp_path, rng):
    with small_file_system("tmpfs", tmp_path, 24 * MIB) as where:
        disk = where / "disk"
        ok(img("create", "-q", "-f", "qcow2", disk, "16M"))
        ok(io(disk, "write -P 1 0 4M"))
        fill(where, 3 * MIB)
        used = disk.stat().st_blocks
        for cache in ("writeback", "none"):
            code, text = save(disk, "much", rng.randbytes(8 * MIB), "-t", cache)
            if "direct" in text.lower() and cache == "none":
                continue  # this file system cannot
            assert code == 1 and "No space left on device" in text, text
            assert snapshots(disk) == {}
            clean(disk)
            assert disk.stat().st_blocks * 512 <= used * 512 + MIB
        ok(io(disk, "read -P 1 0 4M"))
        (where / "ballast").unlink()
        assert save(disk, "much", b"x" * (8 * MIB)) == (0, "")
        assert load(disk, "much") == b"x" * (8 * MIB)
        clean(disk)


def test_a_writer_that_dies_leaves_leaks_at_most(tmp_path, rng):
    disk = tmp_path / "disk"
    ok(img("create", "-q", "-f", "qcow2", disk, "16M"))
    ok(io(disk, "write -P 1 0 4M"))
    ok(img("snapshot", "-c", "before", disk))
    for now in ((), ("--now",)):
        p = subprocess.Popen([varve_path(), "vmstate", "save", *now, disk, "torn"], stdin=subprocess.PIPE)
        p.stdin.write(rng.randbytes(20 * MIB))
        p.stdin.flush()  # all but what the pipe holds has been taken
        p.send_signal(signal.SIGKILL)
        p.stdin.close()
        p.wait(240)
        assert set(snapshots(disk)) == {"before"}
        r = img("check", "--output=json", disk)
        assert r.rc in (0, 3) and not r.json.get("corruptions"), str(r)
        ok(io(disk, "read -P 1 0 4M", "write -P 1 0 64k"))
    assert img("check", "-q", "-r", "leaks", disk).rc == 0
    clean(disk)


def test_states_move_between_images_and_tools(tmp_path, rng):
    """What qemu-io puts into the area for states is what a snapshot of qemu-img has, and what varve reads back."""
    a = tmp_path / "a"
    ok(img("create", "-q", "-f", "qcow2", a, "5M"))
    ok(qio(a, "write -b -q -P 17 64k 1M"))
    ok(io(a, "read -b -q -P 17 64k 1M", "read -b -q -P 0 0 64k", "write -b -q -P 18 128k 64k", "write -b -q -P 19 3M 5"))
    ok(qio(a, "read -b -q -P 17 64k 64k", "read -b -q -P 18 128k 64k", "read -b -q -P 17 192k 512k"))
    clean(a)
    data = rng.randbytes(2 * MIB + 99)
    assert save(a, "s", data, "-t", "none") == (0, "")
    clean(a)
    ok(qimg("snapshot", "-a", "s", a))
    ok(io(a, f"read -b -q -P {data[0]} 0 1"))
    ok(img("snapshot", "-d", "s", a))
    clean(a)


def test_the_graph_shows_who_grew_out_of_whom(tmp_path):
    base, disk = tmp_path / "base", tmp_path / "disk"
    ok(img("create", "-q", "-f", "qcow2", base, "64M"))
    ok(io(base, "write -q 0 1M"))
    ok(img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", disk))
    for n in (1, 2, 3):
        ok(io(disk, f"write -q -P {n} {n}M 1M"))
        ok(img("snapshot", "-c", f"s{n}", disk))
    ok(img("snapshot", "-a", "s1", disk))
    ok(io(disk, "write -q -P 9 9M 1M"))
    ok(img("snapshot", "-c", "a<b>&c", disk))
    lines = ok(img("snapshot", "--graph", disk)).out.splitlines()
    depth = {line.lstrip("│├└─ ").split("  (")[0]: len(line) - len(line.lstrip("│├└─ ")) for line in lines}
    assert lines[0].startswith(f"{base}  (qcow2, 64 MiB")
    assert depth["1 s1"] < depth["2 s2"] < depth["3 s3"] and depth["4 a<b>&c"] == depth["2 s2"]
    assert [line for line in lines if "3 s3" in line][0].split("alone ")[1].startswith("1.06 MiB, shared 2 MiB")
    svg = ok(img("snapshot", "--graph=svg", disk)).out
    texts = [e.text for e in xml.etree.ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert "4 a<b>&c" in texts and texts.count("the disk now") == 2
    assert img("snapshot", "--graph=dot", disk).rc == 1


def test_a_backing_file_that_snapshots_need_stays(tmp_path):
    base, disk = tmp_path / "base", tmp_path / "disk"
    ok(img("create", "-q", "-f", "raw", base, "4M"))
    ok(io(base, "write -q -P 7 0 4M", options=("-f", "raw")))
    ok(img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", disk))
    ok(img("snapshot", "-c", "one", disk))
    refused(img("stream", "-q", disk), "snapshots", "backing file")
    ok(img("snapshot", "-d", "one", disk))
    ok(img("stream", "-q", disk))
    base.unlink()
    ok(io(disk, "read -q -P 7 0 4M"))
    clean(disk)


@pytest.mark.parametrize("version2", [False, True])
@pytest.mark.parametrize("maker", [img, qimg])
@pytest.mark.parametrize("keeper", [img, qimg])
def test_a_disk_of_no_bytes_has_snapshots(tmp_path, maker, keeper, version2):
    """Their L1 tables have no entries, and no place: nothing of the image is given back with them."""
    disk = tmp_path / "disk"
    ok(maker("create", "-q", "-f", "qcow2", "-o", f"compat={'0.10' if version2 else '1.1'}", disk, "0"))
    ok(maker("snapshot", "-c", "s", disk))
    clean(disk)
    ok(maker("snapshot", "-c", "t", disk))
    clean(disk)
    ok(keeper("snapshot", "-d", "s", disk))
    clean(disk)
    ok(keeper("snapshot", "-a", "t", disk))
    clean(disk)
    ok(keeper("snapshot", "-d", "t", disk))
    clean(disk)
    assert save(disk, "state", b"\7" * 100000) == (0, "")  # a state takes what the disk has not
    clean(disk)
    assert load(disk, "state") == b"\7" * 100000
    ok(keeper("snapshot", "-d", "state", disk))
    clean(disk)
