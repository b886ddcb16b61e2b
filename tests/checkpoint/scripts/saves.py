"""``saves.py FOLDER``: be a run that takes the path over, saves a checkpoint and prunes; says what it has committed."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.checkpoint.writing import save
from tlaunch.checkpoint.catalog import Keep, committed, prune
from tlaunch.checkpoint.files import LocalFiles
from tlaunch.checkpoint.generations import clean, take_generation
from tlaunch.checkpoint.layout import Address

files = LocalFiles(sys.argv[1])
generation = take_generation(files, {})
clean(files, generation)
address = Address(generation, max((old.step for old in committed(files)), default=0) + 10)
if save(files, address):
    # One write, which is whole or not there.
    sys.stdout.write(f"{address.step}\n")
    sys.stdout.flush()
prune(files, Keep(last=2))
