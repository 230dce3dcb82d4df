# SPDX-License-Identifier: MIT
"""tool - runs varve and, beside it, the QEMU tools, for the tests of this folder

Assumes: VARVE_BUILD names the build folder; qemu-img and qemu-io are installed.
Never:   lets a program run without a limit of time, or leaves one behind.
"""

import dataclasses
import json
import os
import re
import subprocess
import time

TIMEOUT = 240  # of what hangs: a machine may be ten times slower than this one
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def varve_path():
    build = os.environ.get("VARVE_BUILD")
    if not build:
        raise RuntimeError("set VARVE_BUILD to the build folder")
    path = os.path.join(os.path.abspath(build), "tools", "varve")
    if not os.access(path, os.X_OK):
        raise RuntimeError(f"{path} is missing: build first")
    return path


def sanitized():
    """True if varve was built with a sanitizer, whose shadow memory takes terabytes of addresses."""
    with open(varve_path(), "rb") as f:
        return re.search(rb"__(asan|tsan)_init", f.read()) is not None


@dataclasses.dataclass
class Result:
    args: list
    rc: int
    out: str
    err: str

    def __str__(self):
        return f"$ {' '.join(self.args)}\nexit {self.rc}\n{self.out}{self.err}"

    @property
    def json(self):
        return json.loads(self.out)


def run(*args, input=None, cwd=None, env=None, check=False):
    """Runs a program; its output as text. check: it must succeed, and say nothing on stderr."""
    args = [os.fspath(a) for a in args]
    full_env = {**os.environ, "LC_ALL": "C", **(env or {})}
    p = subprocess.run(args, input=input and os.fsencode(input), capture_output=True, timeout=TIMEOUT, cwd=cwd,
                       env=full_env, check=False)
    r = Result(args, p.returncode, os.fsdecode(p.stdout), os.fsdecode(p.stderr))
    if check:
        assert r.rc == 0 and r.err == "", str(r)
    return r


def varve(*args, **kw):
    return run(varve_path(), *args, **kw)


def img(*args, **kw):
    return varve("img", *args, **kw)


def io(path, *commands, options=(), **kw):
    """varve io with -c for each command."""
    return varve("io", *options, path, *[a for c in commands for a in ("-c", c)], **kw)


def qimg(*args, **kw):
    return run("qemu-img", *args, **kw)


def when_unlocked(path):
    """What the kernel still does for a process that was killed holds its locks: a moment, but QEMU's tools do not wait."""
    end = time.monotonic() + TIMEOUT
    while qimg("info", path).rc:
        assert time.monotonic() < end, f"{path} stays locked"
    return path


def qio(path, *commands, options=(), **kw):
    return run("qemu-io", *options, path, *[a for c in commands for a in ("-c", c)], **kw)


def ok(result):
    assert result.rc == 0 and result.err == "", str(result)
    return result


def info(path, fmt=None):
    """What varve says of an image."""
    return ok(img("info", "--output=json", *(["-f", fmt] if fmt else []), path)).json


def childless(told):
    """A description (object, list or text of `info`) without the layers below, which qemu-img tells from 8.0 on only."""
    if isinstance(told, str):
        return re.sub(r"^Child node .*\n(?:    .*\n)*", "", told, flags=re.M)
    if isinstance(told, list):
        return [childless(t) for t in told]
    return {k: v for k, v in told.items() if k != "children"}


def timeless(text):
    """qemu-io's output without the parts that depend on the clock."""
    return re.sub(r"(ops;) .*", r"\1 TIME", text)


def refused(result, *words):
    """Exit 1, nothing on stdout, one line on stderr that contains each of the words."""
    assert result.rc == 1, str(result)
    lines = result.err.splitlines()
    assert len(lines) == 1, str(result)
    assert re.match(r"(varve (img|io|serve)|qemu-img|qemu-io): ", lines[0]), str(result)
    for word in words:
        assert str(word) in lines[0], f"{word!r} is missing\n{result}"
    assert result.out == "", str(result)
    return lines[0]
