"""What tests know of processes and variables on every system."""

from __future__ import annotations

import re

LAUNCHER = "tests.launcher"  # the command line of a launcher
THREADS = "OMP|MKL|KMP|OPENBLAS|DNNL|ONEDNN|GOMP"
FOR_THREADS = re.compile(rf"({THREADS})_")  # variables
