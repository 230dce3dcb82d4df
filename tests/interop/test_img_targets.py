# SPDX-License-Identifier: MIT
"""test_img_targets - where convert and dd put what they read: on devices that held something, and never on the source itself

Loop devices need root; without it those tests are skipped.
"""

import os
import subprocess

import pytest

from tool import KIB, MIB, img, ok, qio, refused


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open("src.raw", "wb") as f:
        f.truncate(2 * MIB)
        f.write(b"\x05" * 64 * KIB)
    return tmp_path


@pytest.fixture
def device(here):
    """A block device full of other bytes."""
    (here / "disk").write_bytes(b"\x77" * 3 * MIB)
    p = subprocess.run(["losetup", "-f", "--show", "disk"], capture_output=True, text=True, check=False)
    if p.returncode:
        pytest.skip("a loop device cannot be made here")
    yield p.stdout.strip()
    subprocess.run(["losetup", "-d", p.stdout.strip()], check=True)


@pytest.mark.parametrize("name", ["{}", "file:{}", "host_device:{}"])
@pytest.mark.parametrize("args", [["convert", "-O", "raw", "src.raw"], ["convert", "-S", "64k", "-O", "raw", "src.raw"],
                                  ["dd", "bs=64k", "if=src.raw"]])
def test_zeroes_reach_a_device_that_held_something(here, device, name, args):
    target = name.format(device)
    ok(img(*args, f"of={target}" if args[0] == "dd" else target))
    with open(device, "rb") as f:
        assert f.read(2 * MIB) == (here / "src.raw").read_bytes()
        assert f.read() == b"\x77" * MIB


def test_a_device_is_not_made_shorter(here, device):
    """Saying that it was, while it keeps its length, would be a lie."""
    refused(img("resize", "-f", "raw", "--shrink", device, "1M"), device, "shorter")
    ok(img("resize", "-q", "-f", "raw", device, "3M"))
    refused(img("resize", "-f", "raw", device, "4M"), device, "needed")


@pytest.mark.parametrize("name", ["src.raw", "file:src.raw", "link", "other", "./src.raw"])
@pytest.mark.parametrize("args", [["convert", "-U", "-O", "qcow2", "src.raw"], ["convert", "-U", "-O", "raw", "top"],
                                  ["convert", "-U", "-O", "raw", "small", "top"], ["dd", "-U", "-O", "raw", "if=top"]])
def test_forced_sharing_does_not_destroy_what_is_read(here, name, args):
    """Without locks nothing else refuses it: the file would be emptied before it is read."""
    os.symlink("src.raw", "link")
    os.link("src.raw", "other")
    (here / "small").write_bytes(b"s" * 512)
    ok(img("create", "-q", "-f", "qcow2", "-b", "src.raw", "-F", "raw", "top"))
    before = (here / "src.raw").read_bytes()
    refused(img(*args, f"of={name}" if args[0] == "dd" else name), name, "read from")
    assert (here / "src.raw").read_bytes() == before


def test_a_file_with_its_protocol_named_is_removed_after_an_error(here):
    ok(img("create", "-q", "-f", "qcow2", "bad", "1M"))
    ok(qio("bad", "write -q -P 1 0 1M"))
    os.truncate("bad", 5 * 64 * KIB + 4 * KIB)
    refused(img("convert", "-O", "raw", "bad", "file:out"), "bad")
    refused(img("dd", "if=bad", "of=file:out"), "bad")
    assert not os.path.exists("out")


@pytest.mark.parametrize("args", [["convert", "-O", "raw", "bad"], ["convert", "-O", "qcow2", "bad"], ["dd", "if=bad"]])
def test_after_an_error_a_link_stays_and_what_it_led_to_goes(here, args):
    ok(img("create", "-q", "-f", "qcow2", "bad", "1M"))
    ok(qio("bad", "write -q -P 1 0 1M"))
    os.truncate("bad", 5 * 64 * KIB + 4 * KIB)
    os.mkdir("sub")
    os.symlink("sub/new", "link")
    refused(img(*args, "of=link" if args[0] == "dd" else "link"), "bad")
    assert os.readlink("link") == "sub/new" and os.listdir("sub") == []
