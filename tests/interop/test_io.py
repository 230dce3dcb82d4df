# SPDX-License-Identifier: MIT
"""test_io - varve io prints what qemu-io prints, and does what it says"""

import os
import re

import pytest

from tool import KIB, MIB, img, io, ok, qimg, qio, run, timeless, varve, varve_path


@pytest.fixture(params=["qcow2", "raw"])
def disks(request, tmp_path):
    """Two fresh images of one format, one for each implementation."""
    paths = tmp_path / "ours", tmp_path / "theirs"
    for p in paths:
        ok(img("create", "-q", "-f", request.param, p, "4M"))
    return request.param, *paths


SCRIPT = [
    "write 0 64k", "read 0 64k", "read -P 0xcd 0 64k", "read -P 1 0 64k", "read -v 65500 40",
    "read -P 0xcd -s 100 -l 200 0 512", "read -P 0 -l 10 64k 512", "w -P 7 1000 3000", "r -P 7 1000 3000",
    "writev -P 9 1M 512 1k 2k", "readv -P 9 1M 512 1k 2k", "readv -v 1M 16 20", "write -f -P 3 2M 4k",
    "write -z 3M 64k", "write -z -u 0 64k", "discard 1M 64k", "flush", "length", "read -q 0 512",
    "write -q 0 512", "discard -q 128k 64k", "read 4M 512", "write 4M 1", "read 4095k 2k", "discard 4M 64k",
    "aio_write -P 5 100k 4k", "aio_flush", "aio_read -P 5 100k 4k", "aio_flush", "aio_read -P 6 100k 4k",
    "aio_flush", "aio_write -z 100k 4k", "aio_flush", "aio_read -q 0 512", "aio_flush", "bad", "read", "read 0",
    "alloc", "read -P 300 0 512", "read 0 0", "write 1 1", "read 1 1",
]


def test_results_read_as_those_of_qemu_io(disks):
    fmt, ours, theirs = disks
    a = io(ours, *SCRIPT, options=("-f", fmt))
    b = qio(theirs, *SCRIPT, options=("-f", fmt))
    assert timeless(a.out) == timeless(b.out)
    assert a.err == b.err
    assert a.rc == b.rc == 1
    ok(img("compare", "-f", fmt, "-F", fmt, ours, theirs))


# One command each, on a new image: results equal, errors in our own words but with the same exit status.
ONE_BY_ONE = [
    "truncate 8M", "t 1M", "truncate -m off 8M", "truncate -m falloc 8M", "truncate -m full 8M", "truncate -m bad 8M",
    "truncate -m falloc 1M", "truncate -x 8M", "truncate", "truncate x", "write -n 0 64k", "write -z -n 0 64k", "write -nz 100 64k",
    "write -z -u -n 0 64k", "write -zf 0 64k", "write -c 100 64k", "write -c 0 1k", "write -c -P 3 0 128k", "write -cf 0 64k",
    "write -bz 0 64k", "write -bc 0 64k", "write -cb -P 7 1M 512", "write -cz 0 64k", "write -czu 1M 64k", "write -czn 64k 64k",
    "write -czf 0 64k", "write -bf 0 64k", "write -b 0 64k", "write -b -P 7 1M 512", "write -u 0 64k", "write -p 0 64k",
    "write -p -b 0 64k", "write -P 1 -z 0 64k", "write -s /nonexist 0 64k", "write -s /dev/null 0 64k", "write -q 0 64k",
    "write -C -q 0 64k", "write 0 3G", "write 0 -1", "write -1 512", "write 0 x", "write x 1", "write 8M 1", "write -z 8M 1",
    "write 0 1 2", "write -Q 0 1", "write -P x 0 1", "write -P", "read -p 0 512", "read -b 0 512", "read -P 0 -s 600 0 512",
    "read -P 0 -l 600 0 512", "read -P 0 -s 300 -l 300 0 512", "read -s 1 0 512", "read -l 1 0 512", "read -P", "read 0 512 1",
    "readv 0 512 512", "readv -C 0 512", "readv 0", "readv -v 0 16 16", "writev 0 512 512", "writev -f 0 512", "writev -P 3 -q 0 512",
    "aio_read 0 512", "aio_read -C 0 512", "aio_read -v 0 32", "aio_read -i 0 512", "aio_read 8M 512", "aio_write 0 512 1k",
    "aio_write -i 0 512", "aio_write -z 0 512 512", "aio_write -u 0 512", "aio_write -zu 0 64k", "aio_write -C -f 0 512",
    "aio_write 8M 512", "aio_write -z 8M 512", "aio_write -n 0 512", "aio_flush x", "flush", "f", "flush x", "length", "l", "length x",
    "info", "i", "discard 0 64k", "discard -C 0 64k", "discard -C 0", "discard -x 0 1", "discard 0 8M", "d -q 0 64k", "alloc", "alloc 0 8M",
    "alloc 1 1", "alloc x", "a 0", "map", "map x", "break", "break x", "break write_aio A", "remove_break A", "resume A", "wait_break",
    "sleep", "sleep x", "sleep 1", "sigraise", "sigraise x", "sigraise 0", "abort x", "help x", "q", "quit x", "open", "open x", "close",
    "close x", "reopen -x", "reopen -r -w", "reopen -r", "reopen x", "reopen -o bad=1", "reopen -c bad", "reopen -c none", "file",
    "drive", "zone_report 0 1", "nope", "",
]


def numberless(text):
    """timeless(), and -C without the time and what follows from it."""
    return re.sub(r"^(\d+,\d+),[\d:.,]+$", r"\1", timeless(text), flags=re.M)


def test_each_command_line_in_both(disks):
    fmt, ours, theirs = disks
    ok(qio(ours, "write -q -P 9 1M 64k", options=("-f", fmt)))
    image = ours.read_bytes()
    for line in ONE_BY_ONE:
        for path in (ours, theirs):
            path.write_bytes(image)
        a, b = io(ours, line, options=("-f", fmt)), qio(theirs, line, options=("-f", fmt))
        assert a.rc == b.rc, f"{a}\n{b}"
        if b.rc == 0:
            assert numberless(a.out) == numberless(b.out) and a.err == "", f"{a}\n{b}"
        elif b.err.startswith("bad argument count") or " failed: " in b.out:
            assert (a.out, a.err) == (b.out, b.err), f"{a}\n{b}"
        else:
            # One line, beside the one that says how the command is used.
            lines = (a.out + a.err).splitlines()
            assert 1 <= len([x for x in lines if not x.startswith("usage: ")]) + (len(lines) == 1) <= 2, f"{a}\n{b}"
        if ours.read_bytes() != image or theirs.read_bytes() != image:
            same_disk(fmt, ours, theirs)


def same_disk(fmt, ours, theirs):
    ok(qimg("compare", "-f", fmt, "-F", fmt, ours, theirs))
    if fmt != "raw":
        ok(qimg("check", ours))


@pytest.mark.parametrize("commands", [
    ["write -q -P 9 0 256k", "write -zn 100 200", "read -q -P 9 0 256k"], ["write -q -P 9 0 256k", "write -zn 100 128k"],
    ["write -q -P 9 0 256k", "write -zn 64k 64k", "write -znu 128k 64k"], ["write -zn 1M 100", "write -zn 3M 1M"],
])
def test_zeroes_without_fallback(disks, commands):
    fmt, ours, theirs = disks
    a, b = io(ours, *commands, options=("-f", fmt)), qio(theirs, *commands, options=("-f", fmt))
    assert (timeless(a.out), a.err, a.rc) == (timeless(b.out), b.err, b.rc), f"{a}\n{b}"
    same_disk(fmt, ours, theirs)


def test_zeroes_that_version_2_cannot_say(tmp_path):
    ok(img("create", "-q", tmp_path / "base", "1M"))
    ok(img("create", "-q", "-f", "qcow2", "-o", "compat=0.10", "-b", "base", "-F", "raw", tmp_path / "top"))
    r = io(tmp_path / "top", "write -zn 0 64k", "write -z 0 64k")
    assert r.rc == 1 and r.out.startswith("write failed: Operation not supported\nwrote 65536/65536"), str(r)


def test_what_was_written_is_stable_when_the_next_command_runs(tmp_path):
    """Killed between two commands; only -t writeback may lose the mapping."""
    disk = tmp_path / "disk"
    ok(img("create", "-q", "-f", "qcow2", disk, "4M"))
    r = io(disk, "write -q -P 5 1M 64k", "sigraise 9")
    assert r.rc == -9
    ok(qio(disk, "read -q -P 5 1M 64k", options=("-r", "-U")))  # the kernel may not have let go of the lock yet


def test_help_names_every_command():
    listed = [line.split()[0] for line in ok(varve("io", "-c", "help")).out.splitlines() if " -- " in line]
    theirs = [line.split()[0] for line in ok(run("qemu-io", "-c", "help")).out.splitlines() if " -- " in line]
    assert set(theirs) <= set(listed) and listed == sorted(listed)
    for name in listed:
        text = ok(varve("io", "-c", f"help {name}")).out
        assert text.startswith(name) and " -- " in text.splitlines()[0], text
    for letters, name in (("abCqv", "read"), ("bcCfnquz", "write"), ("Ciqv", "aio_read"), ("Cfiquz", "aio_write"), ("Cq", "discard")):
        text = ok(varve("io", "-c", f"help {name}")).out
        assert all(re.search(rf"^  -{letter}\b", text, re.M) for letter in letters.replace("a", "")), text


def test_map_and_alloc(tmp_path):
    disk = tmp_path / "disk"
    ok(img("create", "-q", "-f", "qcow2", disk, "4M"))
    commands = ["map", "write -q 64k 64k", "write -q 1M 64k", "write -q -z 1M 64k", "map", "alloc 0 4M", "alloc 64k", "alloc 0",
                "alloc 100k 100k", "alloc 5M", "alloc 3M 3M"]
    ours = ok(io(disk, *commands)).out
    ok(img("create", "-q", "-f", "qcow2", disk, "4M"))
    assert ours == ok(qio(disk, *commands)).out


def test_map_of_an_overlay_shows_only_its_own(tmp_path):
    ok(img("create", "-q", "-f", "raw", tmp_path / "base", "1M"))
    ok(img("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", tmp_path / "top"))
    ok(io(tmp_path / "top", "write -q 128k 64k"))
    assert ok(io(tmp_path / "top", "map")).out == ok(qio(tmp_path / "top", "map")).out


def test_machine_readable_results(tmp_path):
    disk = tmp_path / "disk"
    ok(img("create", "-q", "-f", "qcow2", disk, "4M"))
    for command in ("write -C 0 64k", "read -C 0 64k", "discard -C 0 64k"):
        fields = ok(io(disk, command)).out.strip().split(",")
        assert fields[:2] == ["65536", "1"] and fields[2].startswith("0:00:0"), fields
        assert float(fields[3]) > 0 and float(fields[4]) > 0


def test_commands_from_standard_input(tmp_path):
    disk = tmp_path / "disk"
    ok(img("create", "-q", "-f", "qcow2", disk, "4M"))
    r = varve("io", disk, input="write -P 1 0 4k\n\nread -P 1 0 4k\nquit\nread -P 9 0 4k\n")
    assert r.rc == 0 and r.err == "", str(r)
    assert r.out.count("varve io> ") == 4
    assert varve("io", disk, input="read -P 9 0 4k\nlength").rc == 1


def test_write_from_a_file(tmp_path):
    disk, source = tmp_path / "disk", tmp_path / "source"
    source.write_bytes(b"0123456789")
    ok(img("create", "-q", disk, "64k"))
    ok(io(disk, f"write -s {source} 100 25", options=("-f", "raw")))
    assert disk.read_bytes()[100:125] == b"0123456789012345678901234"
    r = io(disk, f"write -s {tmp_path}/none 0 512", options=("-f", "raw"))
    assert r.rc == 1 and r.out == "" and r.err.startswith("varve io: ") and "none: No such file" in r.err


def test_many_asynchronous_requests_at_once(tmp_path):
    disk = tmp_path / "disk"
    ok(img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", disk, "4M"))
    writes = [f"aio_write -q -P {n % 256} {n * 4}k 4k" for n in range(1000)]
    ok(io(disk, *writes, "aio_flush", *[f"aio_read -P {n % 256} {n * 4}k 4k" for n in range(1000)], "aio_flush"))
    for n in range(0, 1000, 37):
        ok(io(disk, f"read -P {n % 256} {n * 4}k 4k"))
    ok(img("check", disk))


def test_asynchronous_requests_are_finished_at_the_end(tmp_path):
    disk = tmp_path / "disk"
    ok(img("create", "-q", "-f", "qcow2", disk, "4M"))
    r = ok(io(disk, "aio_write -P 1 0 1M", "aio_write -P 2 1M 1M"))
    assert r.out.count("wrote 1048576/1048576") == 2
    ok(io(disk, "read -P 1 0 1M", "read -P 2 1M 1M"))


def test_open_close_and_open_again(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    for path, size in ((a, "1M"), (b, "2M")):
        ok(img("create", "-q", "-f", "qcow2", path, size))
    r = ok(varve("io", "-c", f"open {a}", "-c", "length", "-c", "close", "-c", f"open -r {b}", "-c", "length"))
    assert r.out == "1 MiB\n2 MiB\n"
    assert varve("io", "-c", "length").rc == 1
    assert varve("io", "-c", f"open {a}", "-c", f"open {b}").rc == 1
    assert varve("io", "-c", f"open -r {a}", "-c", "write 0 512").rc == 1


def test_read_only_means_that_nothing_changes(tmp_path):
    disk = tmp_path / "disk"
    ok(img("create", "-q", "-f", "qcow2", disk, "1M"))
    before = disk.read_bytes()
    r = io(disk, "read 0 64k", "write 0 512", "discard 0 64k", "write -z 0 64k", options=("-r",))
    assert r.rc == 1 and r.out.count("failed") == 3, str(r)
    assert disk.read_bytes() == before


def test_a_probed_raw_image_does_not_become_another_format(tmp_path):
    """CVE-2008-2004 and its many children: what is raw today must not be probed as qcow2 tomorrow."""
    disk, header = tmp_path / "disk", tmp_path / "header"
    ok(img("create", "-q", disk, "1M"))
    ok(img("create", "-q", "-f", "qcow2", header, "1M"))
    assert io(disk, f"write -s {header} 0 512").rc == 1
    assert ok(img("info", "--output=json", disk)).json["format"] == "raw"
    ok(io(disk, "write -P 1 0 512", f"write -s {header} 512 512"))
    ok(io(disk, f"write -s {header} 0 512", options=("-f", "raw")))


def test_sizes_of_commands(tmp_path):
    disk = tmp_path / "disk"
    ok(img("create", "-q", "-f", "qcow2", disk, "4G"))
    r = io(disk, "read 0 3G", "read 0 -5", "read 0x1000 0x200", "read 1.5k 512", "write -z 0 4G", "discard 0 4G")
    assert "cannot exceed" in r.out and "at offset 4096" in r.out and "at offset 1536" in r.out
    assert r.out.count(f"{4 << 30}/{4 << 30} bytes at offset 0") == 2, str(r)
    assert KIB and MIB


# ---- options of a disk ----

def blocks(path):
    return os.stat(path).st_blocks * 512


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_detect_zeroes_makes_holes(tmp_path, fmt):
    disk = tmp_path / "disk"
    ok(img("create", "-q", "-f", fmt, disk, "4M"))
    ok(io(disk, "write -q -P 7 0 4M", "flush", options=("-f", fmt)))
    full = blocks(disk)
    spec = f"driver={fmt},file.filename={disk}"
    ok(io(f"{spec},detect-zeroes=unmap", "write -q -P 0 0 2M", "write -q -P 8 2M 64k", options=("--image-opts",)))
    assert blocks(disk) <= full - MIB
    ok(io(f"{spec}", "read -q -P 0 0 2M", "read -q -P 8 2M 64k", "read -q -P 7 2112k 1984k", options=("--image-opts",)))


@pytest.mark.parametrize("keys", ["discard=ignore", "file.discard=ignore", "discard=off,file.discard=unmap"])
def test_discard_ignore_keeps_the_space(tmp_path, keys):
    disk = tmp_path / "disk"
    ok(img("create", "-q", "-f", "raw", disk, "4M"))
    ok(io(disk, "write -q -P 7 0 4M", "flush", options=("-f", "raw")))
    full = blocks(disk)
    ok(io(f"driver=raw,file.filename={disk},{keys}", "discard -q 0 2M", "read -q -P 7 0 2M", "write -qzu 2M 2M",
          "read -q -P 0 2M 2M", options=("--image-opts",)))
    assert blocks(disk) >= full
    ok(io(f"driver=raw,file.filename={disk},discard=unmap", "discard -q 0 2M", options=("--image-opts",)))
    assert blocks(disk) < full


# ---- open, reopen, a disk of its own ----

def test_snapshot_changes_nothing(tmp_path, monkeypatch):
    disk, folder = tmp_path / "a,b.qcow2", tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    ok(img("create", "-q", "-f", "qcow2", disk, "4M"))
    ok(io(disk, "write -q -P 1 0 1M"))
    before = disk.read_bytes()
    for name, options in ((disk, ("-s",)), (f"driver=qcow2,file.filename={str(disk).replace(',', ',,')}", ("-s", "--image-opts"))):
        r = io(name, "read -q -P 1 0 1M", "write -q -P 2 512k 1M", "flush", "read -q -P 1 0 512k", "read -q -P 2 512k 1M",
               "read -q -P 0 1536k 1M", "close", options=options)
        ok(r)
        assert r.out == "" and disk.read_bytes() == before and not list(folder.iterdir()), str(r)


def test_open_takes_options(tmp_path):
    disk = tmp_path / "disk"
    ok(img("create", "-q", "-f", "qcow2", disk, "1M"))
    r = varve("io", "-c", f"open -o driver=raw {disk}", "-c", "read -v 0 4", "-c", "close",
              "-c", f"open -o driver=qcow2,file.filename={disk}", "-c", "read -P 0 0 4")
    assert r.rc == 0 and "51 46 49 fb" in r.out and "erification" not in r.out, str(r)
    r = varve("io", "-c", f"open -o colour=red {disk}", "-c", "read 0 512")
    assert r.rc == 1 and "colour" in r.err, str(r)


def test_reopen(disks):
    fmt, disk, _ = disks
    r = io(disk, "write -q -P 1 0 64k", "reopen -r", "write -P 2 0 64k", "reopen -w -c none", "read -q -P 1 0 64k",
           "write -q -P 3 0 64k", "reopen -o colour=red", "read -q -P 3 0 64k", options=("-f", fmt))
    assert r.rc == 1 and r.out.count("failed") == 1 and "colour" in r.err and "erification" not in r.out, str(r)
    assert io(disk, "reopen -r -w", options=("-f", fmt)).rc == 1


def test_misaligned_memory(disks):
    fmt, disk, _ = disks
    ok(io(disk, "write -q -P 5 0 64k", "read -q -P 5 512 32k", "aio_write -q -P 6 64k 4k 512", "aio_flush",
          "read -q -P 6 64k 4608", options=("-f", fmt, "-m", "-t", "none")))


def test_invalid_requests_go_nowhere(disks):
    fmt, disk, _ = disks
    r = io(disk, "aio_write -i -P 9 0 64k", "aio_read -i 0 4k", "aio_flush", "read -q -P 0 0 64k", options=("-f", fmt))
    assert r.rc == 0 and r.out == "injecting invalid write request\ninjecting invalid read request\n", str(r)


def test_registered_buffers_are_registered(tmp_path):
    """Each command with -r shows its buffer to the kernel, of the length of the request, and takes it back; the others do not."""
    path = tmp_path / "disk"
    ok(img("create", "-q", "-f", "raw", path, "4M"))
    if io(path, "read 0 512", options=("-i", "io_uring", "-f", "raw")).rc:
        pytest.skip("no io_uring here")
    commands = ["write -q -P 1 0 12k", "write -qr -P 7 4k 16k", "writev -qr -P 8 64k 3k 5k", "aio_write -qr -P 9 1M 20k", "aio_flush",
                "read -qr -P 1 0 4k", "readv -qr -P 8 64k 1k 3k", "aio_read -qr -P 9 1M 20k", "aio_flush", "read -q -P 7 4k 24k",
                "read -qr 0 0"]
    r = run("strace", "-f", "-o", tmp_path / "calls", "-e", "trace=io_uring_register", varve_path(), "io", "-f", "raw", "-i", "io_uring",
            *[a for c in commands for a in ("-c", c)], path)
    assert r.rc == 1 and r.out == "Pattern verification failed at offset 4096, 24576 bytes\n", str(r)
    calls = re.findall(r"BUFFERS_UPDATE.*iov_base=(\w+), iov_len=(\d+)", (tmp_path / "calls").read_text())
    assert [int(length) for base, length in calls if base != "NULL"] == [16 * KIB, 8 * KIB, 20 * KIB, 4 * KIB, 4 * KIB, 20 * KIB]
    assert len([base for base, length in calls if base == "NULL"]) == 6
    for command in ("write -rz 0 4k", "aio_write -rz 0 4k"):
        r = io(path, command)
        assert "exclude each other" in r.out, str(r)
    # Other engines do without.
    ok(io(path, "write -qr -P 3 0 4k", "read -qr -P 3 0 4k", options=("-i", "threads", "-f", "raw")))


@pytest.mark.parametrize("cache", ["writethrough", "directsync"])
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_what_is_made_stable_may_be_of_any_length(tmp_path, fmt, cache):
    """What is longer than the kernel takes at once is cut for it, and the sync behind it has no length."""
    disk = tmp_path / "disk"
    ok(img("create", "-q", "-f", fmt, disk, "8T"))
    ok(io(disk, "write -q -P 1 7T 64k", "aio_write -q -z 7T 1200M", "aio_flush", "read -q -P 0 7T 64k", "write -q -z -u 7T 3000M", "discard -q 7T 1900M",
          "aio_write -q -z -u 0 1500M", "aio_flush", options=("-f", fmt, "-t", cache)))
