"""Makes `import saefast` work from a bare checkout: nothing installed, as on a GPU machine without network.

Importing this module is enough (`import checkout`, or `pytest -p checkout` with benchmarks/ on PYTHONPATH). An install
maps the folder triton_kernels/ to `saefast.triton_kernels`; here the repository root becomes a second place in which
Python looks for submodules of `saefast`, which comes to the same. An installed saefast is left as it is.
"""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

if importlib.util.find_spec("saefast") is None:
    sys.path.insert(0, str(ROOT))

import saefast

if importlib.util.find_spec("saefast.triton_kernels") is None:
    saefast.__path__.append(str(ROOT))
