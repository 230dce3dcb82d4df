# SPDX-License-Identifier: MIT
"""seeds - where tests that draw lots begin

A change is judged by what it does, not by luck: each test has a seed of its own, the same in every run.
VARVE_SEED=N begins at another one (a failure prints it), VARVE_SEED=new at one that nobody has tried: `make soak`.
"""

import os
import random
import zlib


def seed():
    """The seed of the test that runs now; printed, so that a failure shows it."""
    given = os.environ.get("VARVE_SEED")
    if given == "new":
        value = random.SystemRandom().randrange(1 << 32)
    elif given:
        value = int(given)
    else:
        value = zlib.crc32(os.environ["PYTEST_CURRENT_TEST"].split(" ")[0].split("::", 1)[1].encode())
    print(f"VARVE_SEED={value}")
    return value


def seeds(nr):
    """For tests of many seeds, which name the one that fails: the first nr ones, or that given alone."""
    given = os.environ.get("VARVE_SEED")
    if given and given != "new":
        return [int(given)]
    first = random.SystemRandom().randrange(1 << 40) if given else 1
    return range(first, first + int(os.environ.get("VARVE_SEEDS", nr)))
