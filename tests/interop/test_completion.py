# SPDX-License-Identifier: MIT
"""test_completion - what is made of the option tables: help, completions, the page of the grammar; and the installed links"""

import json
import os
import pathlib
import re
import shutil

import pytest

from tool import img, ok, qimg, refused, run, varve, varve_path

TREE = pathlib.Path(__file__).resolve().parents[2]
COMMANDS = ok(varve("completion", "markdown")).out


def commands():
    return re.findall(r"^## (\w+)$", COMMANDS, re.M)


def complete(*words):
    """What bash offers for the last of these words."""
    script = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); '
    script += '[[ $1 == varve ]] && _varve || _varve_img; printf "%s\\n" "${COMPREPLY[@]}"'
    here = pathlib.Path(os.environ["VARVE_BUILD"]) / "tools" / "varve.bash"
    return ok(run("bash", "-c", script, "bash", here.resolve(), *words)).out.split()


def test_the_manual_says_what_every_option_means():
    """With the command, or among those that all have in common."""
    page = (TREE / "docs" / "man" / "varve-img.1.scd").read_text()
    common = page[page.index("# COMMON OPTIONS"):page.index("# SIGNALS")]
    sections = dict(s.split("\n", 1) for s in re.split(r"^## ", page, flags=re.M)[1:])
    missing, seen = [], 0
    for section in re.split(r"^## ", COMMANDS, flags=re.M)[1:]:
        name, rows = section.split("\n", 1)
        if name not in sections:
            assert name.startswith(("varve io", "Commands of", "Options of images")), name
            continue
        for letter, long in re.findall(r"^\| (?:`-(.)`)? ?\| (?:`--([a-z-]+)`)?", rows, flags=re.M):
            words = ([rf"\*-{re.escape(letter)}\*"] if letter else []) + ([rf"\*--{long}\*"] if long else [])
            seen += bool(words)
            if words and not any(re.search(w, sections[name] + common) for w in words):
                missing.append((name, letter, long))
    assert not missing and seen > 150, (seen, missing)


def test_the_manual_says_what_every_option_of_an_image_means():
    page = (TREE / "docs" / "man" / "varve.1.scd").read_text()
    keys = re.findall(r"^\| `([a-z0-9.-]+)` \|", COMMANDS[COMMANDS.index("## Options of images"):], re.M)
    missing = [k for k in keys if f"*{k}*" not in page and f"*{k.removeprefix('overlap-check.')}*" not in page]
    assert not missing and len(keys) > 25, (keys, missing)


def test_the_page_of_the_grammar_is_what_the_parser_reads():
    page = TREE / "docs" / "guide" / "grammar.md"
    assert page.read_text() == COMMANDS, f"run: varve completion markdown > {page}"


def test_the_commands_of_qemu_img_are_there():
    theirs = set(re.findall(r"^  (\w+) ", ok(qimg("--help")).out.split("Command syntax:")[1].split("Command parameters")[0], re.M))
    assert theirs <= set(commands())


def test_help_and_parser_agree():
    for command in commands():
        text = ok(img(command, "--help")).out
        section = COMMANDS.split(f"\n## {command}\n")[1].split("\n## ")[0]
        for letter, name, what in re.findall(r"^\| (?:`-(.)`)? ?\| (?:`--([\w-]+)`)? \|[^|]*\| (.*) \|$", section, re.M):
            # Without a word for people, help does not show it.
            assert not what or (not letter or re.search(rf"^  -{letter}", text, re.M)) and (not name or f"--{name}" in text), (command, letter, name)
            if name:
                r = img(command, f"--{name}", "--no-such-option")
                assert f"--{name}'" not in r.err or "unknown" not in r.err, str(r)


def test_names_may_be_shortened_and_must_be_clear(tmp_path):
    ok(img("create", "-q", tmp_path / "d", "1M"))
    assert ok(img("info", "--out=json", "--form", "raw", tmp_path / "d")).json["format"] == "raw"
    refused(img("create", "--backing", tmp_path / "d", tmp_path / "e"), "format")
    refused(img("create", "--back", "x", tmp_path / "e"), "ambiguous", "--back")
    refused(img("info", "--output"), "--output", "value")
    refused(img("info", "--backing-chain=3", tmp_path / "d"), "--backing-chain", "no value")


def test_errors_and_progress_as_json(tmp_path):
    r = img("info", "--errors=json", tmp_path / "none")
    assert r.rc == 1 and r.out == ""

    assert json.loads(r.err)["program"] == "varve img" and "none" in json.loads(r.err)["error"]
    refused(img("info", "--errors=xml", tmp_path / "none"), "xml")
    refused(img("commit", "--progress=xml", "a"), "xml")


@pytest.mark.parametrize("words,offered", [
    (["varve", "im"], ["img"]), (["varve", "img", "re"], ["rebase", "resize"]), (["qemu-img", "cr"], ["create"]),
    (["varve", "img", "resize", "--sh"], ["--shrink"]), (["qemu-img", "create", "-q", "--back"],
                                                        ["--backing", "--backing-format", "--backing-unsafe"])])
def test_bash_completes(words, offered):
    assert sorted(complete(*words)) == offered


def test_objects_are_checked(tmp_path):
    disk, secret = tmp_path / "d", tmp_path / "secret"
    ok(img("create", "-q", disk, "1M"))
    secret.write_text("abc")
    for text in (f"secret,id=a,file={secret}", "secret,id=a,data=x,,y,format=raw", '{"qom-type": "secret", "id": "a", "data": "eA==", "format": "base64"}'):
        ok(img("info", "--object", text, disk))
    for words, text in ((["id"], "secret,data=x"), (["data=", "file="], "secret,id=a"), (["none"], f"secret,id=a,file={tmp_path / 'none'}"),
                        (["colour"], "secret,id=a,data=x,colour=red"), (["iothread"], "iothread,id=a"), (["format"], "secret,id=a,data=x,format=z")):
        refused(img("info", "--object", text, disk), *words)
    refused(img("info", "--object", "secret,id=a,data=x", "--object", "secret,id=a,data=y", disk), "already")


def test_installed_with_the_links(tmp_path):
    build = pathlib.Path(os.environ["VARVE_BUILD"]).resolve()
    env = {"DESTDIR": str(tmp_path)}
    assert run("meson", "install", "-C", build, "--no-rebuild", "--quiet", env=env).rc == 0
    bindir = next(tmp_path.rglob("bin/varve")).parent
    ok(run(TREE / "scripts" / "install-compat", build, env=env))
    ok(run(TREE / "scripts" / "install-compat", build, env=env))  # again
    libdir = next(tmp_path.rglob("libvarve.so.0")).parent
    for name in ("qemu-img", "qemu-io"):
        assert (bindir / name).is_symlink()
        assert ok(run(bindir / name, "--version", env={"LD_LIBRARY_PATH": str(libdir)})).out.startswith(f"{name} version ")
    (bindir / "qemu-img").unlink()
    shutil.copy("/bin/true", bindir / "qemu-img")
    r = run(TREE / "scripts" / "install-compat", build, env=env)
    assert r.rc == 1 and "qemu-img" in r.err and "no link to varve" in r.err, str(r)
    assert not (bindir / "qemu-img").is_symlink()
    assert {p.name for p in tmp_path.rglob("*varve*") if p.is_file()} >= {"varve", "_varve", "varve.fish", "varve.bash"}
