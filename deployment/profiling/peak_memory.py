"""Prints the peak memory of one ONNX inference, in bytes: python -m deployment.profiling.peak_memory FILE.

It runs in a new process, whose peak is the model's alone, and does not import torch, as programs that run the file do not.
"""

import subprocess
import sys
from pathlib import Path

from utils.machine import PROJECT

STATUS = Path("/proc/self/status")


def peak_memory(onnx_path: Path) -> int | None:
    """Returns the peak memory of one image on one thread, in bytes, with weights and onnxruntime itself; Linux only."""
    if not STATUS.exists():
        return None
    command = [sys.executable, "-m", "deployment.profiling.peak_memory", str(onnx_path.resolve())]
    return int(subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout)


def resident(field: str) -> int:
    """Returns the current (VmRSS) or the peak (VmHWM) resident memory of this process, in bytes."""
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
