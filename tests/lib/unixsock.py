# SPDX-License-Identifier: MIT
"""unixsock - who listens on a named socket, and who is connected to it, as the kernel tells it

The name of a socket is there a moment before somebody listens on it, and that of a process that was killed a moment longer than it.
So what counts is a descriptor of the process that is asked about. Connecting, to find out, would be a first front end.

Assumes: the processes run in our network namespace, and may be looked at by us.
"""

import os

ACCEPTS = 0x10000  # __SO_ACCEPTCON
CONNECTED = 3


def _sockets(pid):
    """Inodes of the sockets that a process has open."""
    found = set()
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)
    except OSError:  # it has ended; what waits for its parent has files no more
        return found
    for name in names:
        try:
            link = os.readlink(f"{folder}/{name}")
        except OSError:  # closed meanwhile, or the process has ended meanwhile
            continue
        if link.startswith("socket:["):
            found.add(link[8:-1])
    return found


def _rows(path, pid):
    """(flags, state) of each socket of that name which the process has."""
    own = _sockets(pid)
    with open("/proc/net/unix", encoding="utf-8", errors="replace") as f:
        rows = [line.split() for line in f.readlines()[1:]]
    return [(int(r[3], 16), int(r[5], 16)) for r in rows if len(r) == 8 and r[7] == os.fspath(path) and r[6] in own]


def listens(path, pid):
    return any(flags & ACCEPTS for flags, _ in _rows(path, pid))


def connections(path, pid):
    """How many have been accepted and are still open."""
    return sum(state == CONNECTED and not flags & ACCEPTS for flags, state in _rows(path, pid))
