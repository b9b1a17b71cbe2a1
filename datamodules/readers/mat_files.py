"""Reads .mat files with scipy, in a child process: some damaged files crash scipy with a segmentation fault."""

import functools
import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VARIABLES = ("annotations", "class_names")
MAX_SECONDS = 120  # for the files of a release; the published ones take two


@dataclass(frozen=True)
class _MatFile:
    """A file that equals any other with the same content."""

    path: Path = field(compare=False)
    digest: str


def read_mat_files(*paths: Path) -> list[dict[str, Any]]:
    """Returns the annotations and class names that each file holds, in plain Python values.

    A struct array becomes a dict of lists, one a field; a cell array becomes a list. Numbers become int or float at once:
    the files store 8 and 16 bits, whose differences would wrap around.

    Raises:
        DataError: A file cannot be read, is damaged or of another format.
    """
    from datamodules.readers.archives import check_download  # not in the child, which starts faster without

    for path in paths:
        check_download(path)
    return _read(*(_MatFile(path, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths))


@functools.lru_cache(maxsize=16)  # a child takes 0.3 s to start
def _read(*files: _MatFile) -> list[dict[str, Any]]:
    from utils.errors import DataError

    paths = [file.path for file in files]
    command = [sys.executable, "-P", __file__, *map(str, paths)]
    try:
        child = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=MAX_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise DataError(f"{paths[0].parent}: the .mat files were not read within {MAX_SECONDS} s") from error
    results = [json.loads(line) for line in child.stdout.splitlines()]
    if child.returncode:
        reason = child.stderr.strip().rpartition("\n")[2] or f"scipy crashed with signal {-child.returncode}"
        path = paths[len(results)]
        raise DataError(f"{path} is not a MATLAB 5 file, damaged or cut short ({reason:.200}); download it again")
    return results


def _print_variables(paths: list[str]) -> None:
    """Prints the variables of each file as a line of JSON."""
    import numpy as np
    from scipy.io import loadmat

    def plain(values: Any) -> list:
        return [np.asarray(value).tolist() for value in values]

    for path in paths:
        variables = {}
        for name, value in loadmat(path, squeeze_me=True, variable_names=VARIABLES).items():
            if name in VARIABLES:
                array = np.atleast_1d(value)
                columns = {field: plain(array[field]) for field in array.dtype.names or ()}
                variables[name] = columns or plain(array)
        print(json.dumps(variables, default=str), flush=True)


if __name__ == "__main__":
    _print_variables(sys.argv[1:])
