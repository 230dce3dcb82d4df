# SPDX-License-Identifier: MIT
"""test_cli - the grammar: names of tools, help, versions, order of options, what is refused by name"""

import os
import re
import signal
import subprocess

import pytest

from tool import img, io, ok, run, varve, varve_path


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk.qcow2"
    ok(img("create", "-q", "-f", "qcow2", path, "1M"))
    return path


def link(tmp_path, name):
    path = tmp_path / name
    path.symlink_to(varve_path())
    return path


def test_help_of_every_tool_and_command_is_on_stdout():
    for args in ([], ["img"], ["io"], ["serve"], *[["img", c] for c in
                 ("create", "info", "check", "map", "compare")]):
        for flag in ("-h", "--help"):
            r = ok(varve(*args, flag))
            assert r.out.startswith("Usage: varve"), str(r)


def test_version_under_our_own_name():
    for args in ([], ["img"], ["io"], ["serve"]):
        assert re.match(r"varve( \w+)? version \d+\.\d+\.\d+\n$", ok(varve(*args, "-V")).out)


def test_version_under_the_old_names_is_what_callers_parse(tmp_path):
    for name in ("qemu-img", "qemu-io"):
        first = ok(run(link(tmp_path, name), "--version")).out.splitlines()[0]
        assert re.search(rf"^{name} version ([0-9.]+) \(varve \d+\.\d+\.\d+\)$", first), first


def test_a_link_behaves_as_the_tool_it_is_named_after(tmp_path, disk):
    assert ok(run(link(tmp_path, "qemu-img"), "info", disk)).out == ok(img("info", disk)).out
    assert ok(run(link(tmp_path, "qemu-io"), "-c", "length", disk)).out == "1 MiB\n"
    r = run(link(tmp_path, "qemu-nbd"), disk)
    assert r.rc == 1 and "not part of this version" in r.err, str(r)


def test_errors_begin_with_the_name_in_use(tmp_path):
    assert run(link(tmp_path, "qemu-img"), "info", tmp_path / "none").err.startswith("qemu-img: ")
    assert img("info", tmp_path / "none").err.startswith("varve img: ")


def test_options_may_follow_the_file(disk):
    expected = ok(img("info", "--output=json", "-f", "qcow2", "-U", disk)).json
    assert ok(img("info", disk, "--force-share", "--output=json", "-f", "qcow2")).json == expected
    assert ok(img("info", disk, "--output", "json", "--", )).json == expected


def test_two_dashes_end_the_options(tmp_path):
    ok(img("create", "-q", "--", "-f", "64k", cwd=tmp_path))
    assert (tmp_path / "-f").stat().st_size == 65536


def test_options_of_another_version_are_refused_by_name(disk):
    for args in (["img", "-T", "x", "info", disk], ["io", "-T", "x", disk]):
        r = varve(*args)
        assert r.rc == 1 and "not part of this version" in r.err, str(r)


def test_unknown_words_are_errors_that_name_them(disk):
    for args, word in (([], "no tool"), (["frob"], "frob"), (["img"], "no command"), (["img", "frob"], "frob"),
                       (["img", "info", "-Z", disk], "-Z"), (["img", "info", "--frob", disk], "--frob"),
                       (["img", "info", "-f"], "-f"), (["img", "info"], "file name"),
                       (["img", "info", disk, disk], "file name"),
                       (["img", "info", "--output=xml", disk], "xml"),
                       (["img", "create", "-q", disk, "1M", "2M"], "2M"),
                       (["img", "create", "-q", disk, "1Z"], "1Z"),
                       (["img", "map", "-s", "x", disk], "x"), (["io", disk, disk], "too many")):
        r = varve(*args)
        assert r.rc == 1 and word in r.err and r.out == "", str(r)
    assert img("compare", disk).rc == 2


def test_success_is_silent_on_stderr(disk):
    for args in (["info", disk], ["check", disk], ["map", disk], ["compare", disk, disk]):
        ok(img(*args))
    ok(io(disk, "write 0 64k", "read 0 64k", "flush"))


def test_output_that_cannot_be_written_is_an_error(disk):
    with open("/dev/full", "w", encoding="ascii") as full:
        p = subprocess.run([varve_path(), "img", "info", str(disk)], stdout=full, stderr=subprocess.PIPE,
                           timeout=240, check=False)
    assert p.returncode == 1 and b"standard output" in p.stderr


def test_image_opts_and_json_names(tmp_path, disk):
    opts = f"driver=qcow2,file.driver=file,file.filename={disk}"
    assert ok(img("info", "--image-opts", opts, "--output=json")).json["virtual-size"] == 1 << 20
    name = 'json:{"driver": "qcow2", "file": {"driver": "file", "filename": "%s"}}' % disk
    assert ok(img("info", name, "--output=json")).json["virtual-size"] == 1 << 20
    r = img("info", "--image-opts", "-f", "qcow2", opts)
    assert r.rc == 1 and "driver=" in r.err, str(r)
    odd = tmp_path / "a,b.raw"
    odd.write_bytes(bytes(4096))
    opts = "driver=raw,file.filename=" + str(odd).replace(",", ",,")
    assert ok(img("info", "--image-opts", opts, "--output=json")).json["virtual-size"] == 4096


def test_every_cache_mode_and_engine_reads_and_writes(disk):
    for number, (cache, aio) in enumerate((c, a) for a in ("threads", "posix", "native", "io_uring")
                                          for c in ("writeback", "none", "writethrough", "directsync", "unsafe")):
        r = io(disk, f"write -P {number} 5000 70000", f"read -P {number} 5000 70000", "flush",
               options=("-t", cache, "-i", aio))
        if aio == "native" and cache not in ("none", "directsync"):
            assert r.rc == 1 and "cache.direct=on" in r.err
        else:
            ok(r)
    ok(img("check", disk))
    r = io(disk, options=("-t", "fast"))
    assert r.rc == 1 and "fast" in r.err
    r = io(disk, options=("-i", "carrier-pigeon"))
    assert r.rc == 1 and "carrier-pigeon" in r.err


def test_sigusr1_asks_how_far_a_long_command_is():
    # No zeroes that could be skipped: it would be done at once.
    endless = "driver=raw,file.driver=null-co,file.size=1P"
    p = subprocess.Popen([varve_path(), "img", "compare", "-p", "--image-opts", endless, endless],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert p.stdout.read(5) == b"    ("  # it runs, and catches the signal by now
        p.send_signal(signal.SIGUSR1)
        assert re.match(rb"    \(\d+\.\d\d/100%\)\n", p.stderr.readline())
    finally:
        p.kill()
        p.communicate(timeout=240)


def test_trace_points_are_in_the_library():
    """Where the build has them: named and with their arguments, for whoever wants to watch."""
    build = os.environ["VARVE_BUILD"]
    with open(os.path.join(build, "config.h")) as f:
        if "#define HAVE_SDT" not in f.read():
            pytest.skip("built without sys/sdt.h")
    notes = subprocess.run(["readelf", "-n", os.path.join(build, "libvarve.so.0")], capture_output=True, text=True,
                           timeout=240, check=True).stdout
    for name in ("order_put", "order_write_out_begin", "order_write", "order_sync", "order_write_out_end"):
        assert f"Name: {name}\n" in notes and "Provider: varve" in notes
