# SPDX-License-Identifier: MIT
"""seeds - where tests that draw lots begin

A change is judged by what it does, not by luck: each test has a seed of its own, the same in every run.
VARVE_SEED=N begins at another one (a failure prints it), VARVE_SEED=new at one that nobody has tried: `make soak`.
"""

import concurrent.futures
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


def each_seed(one_seed, folder, nr):
    """one_seed(seed, its own folder) for each of seeds(nr), several at once. What fails is told with its seed and its files."""
    def attempt(value):
        own = os.path.join(str(folder), str(value))
        try:
            one_seed(value, own)
        except Exception as e:  # whatever it is, the seed must be told
            return f"VARVE_SEED={value}  (files are in {own})\n{e}"
        return None

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        failed = [f for f in pool.map(attempt, seeds(nr)) if f]
    assert not failed, f"{len(failed)} seeds failed\n" + "\n\n".join(failed[:3])


def seeds(nr):
    """For tests of many seeds, which name the one that fails: the first nr ones, or that given alone."""
    given = os.environ.get("VARVE_SEED")
    if given and given != "new":
        return [int(given)]
    first = random.SystemRandom().randrange(1 << 40) if given else 1
    return range(first, first + int(os.environ.get("VARVE_SEEDS", nr)))
