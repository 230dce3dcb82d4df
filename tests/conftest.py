# SPDX-License-Identifier: MIT
"""conftest - what the tests of several folders share lies in lib/, and what they need to run both tools in interop/"""

import pathlib
import sys

for folder in ("interop", "lib"):
    sys.path.insert(0, str(pathlib.Path(__file__).parent / folder))
