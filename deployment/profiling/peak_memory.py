"""Prints how much memory one inference of an ONNX file takes: python -m deployment.profiling.peak_memory FILE.

A process of its own, for only its peak is the network's. It imports no torch, as a program that runs the file need not.
"""

import subprocess
import sys
from pathlib import Path

from utils.machine import PROJECT

STATUS = Path("/proc/self/status")


def peak_memory(onnx_path: Path) -> int | None:
    """Returns the bytes that one image on one thread takes at most, weights and onnxruntime's own included.

    Returns None where the operating system does not tell, which is anywhere but on Linux.
    """
    if not STATUS.exists():
        return None
    command = [sys.executable, "-m", "deployment.profiling.peak_memory", str(onnx_path.resolve())]
    return int(subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout)


def resident(field: str) -> int:
    """Returns VmRSS, the memory that this process holds now, or VmHWM, the most it ever held, in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])


def main(path: str) -> None:
    import numpy
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    before = resident("VmRSS")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    image = session.get_inputs()[0]
    session.run(None, {image.name: numpy.zeros((1, *image.shape[1:]), dtype=numpy.float32)})
    print(resident("VmHWM") - before)


if __name__ == "__main__":
    main(sys.argv[1])
