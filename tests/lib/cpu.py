# SPDX-License-Identifier: MIT
"""cpu - limits of processor time, for work that must be bounded on whatever machine it is done

A limit in seconds says something about one machine. Here it is for one on which a loop of Python takes REFERENCE seconds; a slower
one is given more. Twice that: others use the same caches and cores.
"""

import math
import resource
import time

REFERENCE = 0.008


def _loop():
    began = time.process_time()
    sum(i * i for i in range(300000))
    return time.process_time() - began


def limit(seconds):
    """For preexec_fn: the process is ended when it has had so much."""
    most = math.ceil(2 * seconds * max(1, min(_loop() for _ in range(5)) / REFERENCE))
    return lambda: resource.setrlimit(resource.RLIMIT_CPU, (most, most))
