# SPDX-License-Identifier: MIT
"""conftest - what the tests of several folders share lies in lib/, and what they need to run both tools in interop/"""

import os
import pathlib
import sys

for folder in ("interop", "lib"):
    sys.path.insert(0, str(pathlib.Path(__file__).parent / folder))

# Where one of these is set, pytest tells every line in which two values differ that should not. For the contents of two disks
# that takes hours, also where a test expects an assertion to fail.
for name in ("CI", "BUILD_NUMBER"):
    os.environ.pop(name, None)
