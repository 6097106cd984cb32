"""The machine that the scripts run on: command line, files, TensorFlow, processes.

Nothing here knows about captions. Each script imports this first, so that it exits with
one line instead of a traceback if its Python lacks the packages.
"""
import importlib.util
import os
import sys

for _name in ("numpy", "tqdm"):
    if importlib.util.find_spec(_name) is None:
        print(f"{os.path.basename(sys.argv[0])}: {sys.executable} has no package "
              f"{_name}; run `make env` and use .venv/bin/python, or see "
              "docs/versions.md", file=sys.stderr)
        sys.exit(2)
