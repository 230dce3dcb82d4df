# SPDX-License-Identifier: MIT
"""test_img_options - which options there are (-o help), what a new file's space shall be like, the layers that info shows"""

import contextlib
import os
import re

import pytest

from tool import MIB, img, io, ok, qimg, refused, run

VALUES = {"backing_file": None, "backing_fmt": None, "cluster_size": "64k", "compat": "1.1", "compression_type": "zstd",
          "data_file": "data.raw", "data_file_raw": "off",
          "lazy_refcounts": "on", "preallocation": "off", "refcount_bits": "16", "size": "1M", "table_size": "4",
          "extended_l2": "on", "extent_size_hint": "0", "nocow": "on"}


def names(result):
    return set(re.findall(r"^  (\w+)=<", ok(result).out, re.M))


@pytest.mark.parametrize("fmt", ["raw", "qcow2", "qed"])
def test_options_that_are_listed_are_understood(tmp_path, fmt):
    listed = names(img("create", "-f", fmt, "-o", "help"))
    for name in listed:
        if VALUES[name]:
            ok(img("create", "-q", "-f", fmt, "-o", f"{name}={VALUES[name]}", tmp_path / "d", *([] if name == "size" else ["1M"])))
    for name in set(VALUES) - listed - {"backing_file", "backing_fmt"}:
        refused(img("create", "-q", "-f", fmt, "-o", f"{name}={VALUES[name]}", tmp_path / "d", "1M"), name)
    theirs = names(qimg("create", "-f", fmt, "-o", "help", tmp_path / "d"))
    # Of a QED image the peer lists what its file would take, and the image then does without.
    missing = {"qcow2": {"encryption"}, "qed": {"preallocation"}, "raw": set()}[fmt]
    assert listed == {n for n in theirs if not n.startswith("encrypt.")} - missing


def test_help_is_asked_for_in_many_ways(tmp_path):
    disk = tmp_path / "d"
    ok(img("create", "-q", "-f", "qcow2", disk, "1M"))
    listed = names(img("create", "-f", "qcow2", "-o", "help"))
    for args in (["create", "-o", "?", "-f", "qcow2"], ["create", "-f", "qcow2", "-o", "compat=1.1,help", tmp_path / "none", "1M"],
                 ["create", "-o", "size=1,,2", "-o", "help", "-f", "qcow2"], ["convert", "-O", "qcow2", "-o", "help"],
                 ["convert", "-O", "qcow2", "-o", "help", disk, tmp_path / "none"], ["measure", "-O", "qcow2", "-o", "help"]):
        assert names(img(*args)) == listed
    assert not (tmp_path / "none").exists()
    can = {"compat", "data_file", "data_file_raw", "lazy_refcounts", "refcount_bits", "size"}
    before = disk.read_bytes()
    for args in (["-f", "qcow2"], [disk], ["-f", "qcow2", disk]):
        assert names(img("amend", "-o", "help", *args)) == can <= names(qimg("amend", "-o", "help", *args))
    assert disk.read_bytes() == before
    for args in (["create", "-f", "frob"], ["create", "-f", "file"], ["amend", "-f", "raw"], ["amend", "-f", "qed"], ["amend"],
                 ["amend", tmp_path / "none"]):
        refused(img(*args, "-o", "help"))


# ---- where the file's space comes from ----

@contextlib.contextmanager
def mounted(tmp_path, make, *args):
    back, at = tmp_path / "back", tmp_path / "at"
    at.mkdir()
    with open(back, "wb") as f:
        f.truncate(320 * MIB)
    if run("sh", "-c", f'command -v "{make}"').rc or run(make, "-q", *args, back).rc or run("mount", "-o", "loop", back, at).rc:
        pytest.skip(f"{make}, mount and loop devices are needed")
    try:
        yield at
    finally:
        ok(run("umount", at))


def test_extent_size_hint_on_xfs(tmp_path):
    with mounted(tmp_path, "mkfs.xfs") as at:
        for fmt in ("raw", "qcow2", "qed"):
            disk = at / f"d.{fmt}"
            disk.write_bytes(b"x" * MIB)  # emptied, and only then given its hint
            ok(img("create", "-q", "-f", fmt, "-o", "extent_size_hint=2M", disk, "8M"))
            assert f"[{2 * MIB}]" in ok(run("xfs_io", "-c", "extsize", disk)).out
            child = ok(img("info", "-f", fmt, "--output=json", disk)).json["children"][0]["info"]
            assert child["format-specific"] == {"type": "file", "data": {"extent-size-hint": 2 * MIB}}
            assert re.search(r"^Child node '/file':(\n    .*)*\n        extent size hint: 2097152$", ok(img("info", disk)).out, re.M)
            ok(img("create", "-q", "-f", fmt, "-o", "extent_size_hint=0", disk, "8M"))
            assert "[0]" in ok(run("xfs_io", "-c", "extsize", disk)).out
        refused(img("create", "-q", "-o", "extent_size_hint=1000", at / "new", "1M"), at / "new", "extent_size_hint=1000")
        assert not (at / "new").exists()


def test_nocow_on_btrfs(tmp_path):
    with mounted(tmp_path, "mkfs.btrfs") as at:
        ok(img("create", "-q", "-f", "qcow2", "-o", "nocow=on", at / "d", "8M"))
        ok(img("create", "-q", "-f", "qcow2", "-o", "nocow=off", at / "e", "8M"))
        flags = [ok(run("lsattr", at / name)).out.split()[0] for name in "de"]
        assert "C" in flags[0] and "C" not in flags[1]
        ok(io(at / "d", "write 0 1M", "flush", "read 0 1M"))


def test_a_file_system_that_knows_no_such_thing_ignores_it(tmp_path):
    for tool in (img, qimg):
        ok(tool("create", "-q", "-f", "raw", "-o", "nocow=on,extent_size_hint=1M", tmp_path / "d", "8M"))
    for option, word in (("nocow=maybe", "maybe"), ("extent_size_hint=4G", "4G"), ("extent_size_hint=x", "x")):
        refused(img("create", "-q", "-f", "raw", "-o", option, tmp_path / "new", "8M"), word)
        assert not (tmp_path / "new").exists()
        assert qimg("create", "-q", "-f", "raw", "-o", option, tmp_path / "new", "8M").rc == 1


# ---- info ----

def test_info_shows_the_layers_below(tmp_path):
    disk = tmp_path / "d"
    ok(img("create", "-q", "-f", "qcow2", disk, "8M"))
    told = ok(img("info", "--output=json", disk)).json
    assert "limits" not in told and "aio" not in told
    child, = told["children"]
    assert child["name"] == "file"
    below = child["info"]
    size = disk.stat().st_size
    assert below == {"filename": str(disk), "format": "file", "virtual-size": -(-size // 512) * 512, "dirty-flag": False,
                     "actual-size": disk.stat().st_blocks * 512, "format-specific": {"type": "file", "data": {}}, "children": []}
    text = ok(img("info", disk)).out
    assert re.search(rf"^Child node '/file':\n    filename: {disk}\n    protocol type: file\n    file length: .* \(\d+ bytes\)\n"
                     r"    disk size: .*$", text, re.M)
    spec = f"driver=qcow2,file.driver=fault,file.file.filename={disk}"
    assert ok(img("info", "--image-opts", "--output=json", spec)).json["children"][0]["info"]["children"] == told["children"]
    assert "\nChild node '/file/file':\n    filename: " in ok(img("info", "--image-opts", spec)).out


def test_info_tells_limits_and_the_cache_mode_decides(tmp_path):
    disk = tmp_path / "d"
    ok(img("create", "-q", "-f", "qcow2", "-o", "cluster_size=128k", disk, "8M"))
    limits = ok(img("info", "--limits", "--output=json", disk)).json
    assert limits["limits"]["request-alignment"] == 1 and limits["limits"]["discard-alignment"] == 128 << 10
    assert limits["children"][0]["info"]["limits"]["request-alignment"] == 1
    direct = img("info", "--limits", "-t", "none", "--output=json", disk)
    if "O_DIRECT" not in direct.err:
        align = ok(direct).json["children"][0]["info"]["limits"]["request-alignment"]
        assert align >= 512 and align & (align - 1) == 0
        assert ok(img("info", "--limits", "-f", "raw", "--cache=none", "--output=json", disk)).json["limits"]["request-alignment"] == align
    assert re.search(r"^Limits:\n    request alignment: 1$", ok(img("info", "--limits", disk)).out, re.M)
    refused(img("info", "-t", "some", disk), "some")


@pytest.mark.parametrize("args, says", [
    (["covnert", "a", "b"], "no command 'covnert'; did you mean convert? (help: varve img --help)"),
    (["xyzzy"], "no command 'xyzzy' (help: varve img --help)"),
    (["info", "--outptu=json", "x"], "info: unknown option '--outptu'; did you mean --output? (help: varve img info --help)"),
    (["info", "--backing-chian", "x"], "unknown option '--backing-chian'; did you mean --backing-chain?"),
    (["info", "--nonsense", "x"], "unknown option '--nonsense' (help"),
    (["create", "x", "-1G"], "create: '-1G' is no size"),
    (["create", "-f", "qcow22", "x", "1G"], "x: format 'qcow22' is not known to this version (qcow2, qed, raw)"),
    (["info", "-f", "qcow22", "x"], "x: driver or format 'qcow22' is not known to this version (formats: qcow2, qed, raw)"),
    (["convert", "-O", "qcow2", "disk", "link"], "convert: link is the source as well as the target"),
])
def test_slips(tmp_path, monkeypatch, args, says):
    monkeypatch.chdir(tmp_path)
    ok(img("create", "-q", "-f", "qcow2", "disk", "1M"))
    os.symlink("disk", "link")
    before = (tmp_path / "disk").read_bytes()
    assert says in refused(img(*args))
    assert sorted(os.listdir()) == ["disk", "link"] and (tmp_path / "disk").read_bytes() == before


def test_help_lists_the_formats_as_scripts_look_for_them():
    words = re.search(r"^Supported formats: (.*)$", ok(img("--help")).out, re.M)[1].split()
    assert {"raw", "qcow2", "qed", "file"} <= set(words)
    for fmt in ("raw", "qcow2", "qed"):
        ok(img("create", "-f", fmt, "-o", "help"))


def test_a_json_name_and_the_format_that_it_names(tmp_path):
    """They say the same twice: -f, -O and -F may stand beside it. What contradicts is refused; nothing is changed."""
    disk, copy = tmp_path / "disk.raw", tmp_path / "copy.raw"
    disk.write_bytes(b"y" * 65536)
    copy.write_bytes(bytes(65536))
    name = 'json:{"driver": "raw", "file": {"driver": "file", "filename": "%s"}}'
    assert ok(img("info", "--output=json", "-f", "raw", name % disk)).json["virtual-size"] == 65536
    ok(img("convert", "-n", "-f", "raw", "-O", "raw", name % disk, name % copy))
    assert copy.read_bytes() == disk.read_bytes()
    r = img("info", "-f", "qcow2", name % disk)
    assert r.rc == 1 and "'raw'" in r.err and "'qcow2'" in r.err and len(r.err.splitlines()) == 1
    top = tmp_path / "top.qcow2"
    ok(img("create", "-q", "-f", "qcow2", "-b", disk, "-F", "raw", top))
    before = top.read_bytes()
    r = img("rebase", "-b", name % copy, "-F", "raw", top)
    assert r.rc == 1 and "json:" in r.err and len(r.err.splitlines()) == 1
    assert top.read_bytes() == before


def test_a_size_that_is_given_twice(tmp_path):
    """Which one is meant nobody can tell."""
    r = img("create", "-f", "qcow2", "-o", "size=2M", tmp_path / "disk", "1M")
    assert r.rc == 1 and "size" in r.err and "1M" in r.err and len(r.err.splitlines()) == 1
    assert not os.path.exists(tmp_path / "disk")
    ok(img("create", "-q", "-f", "qcow2", "-o", "size=2M", tmp_path / "disk"))
