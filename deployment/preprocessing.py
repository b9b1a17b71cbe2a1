"""Puts the way from pixels to probabilities into an ONNX file: the steps of predict.py, pixel by pixel the same.

The resize is Pillow's, which ONNX's own Resize only comes near to: one axis after the other, each with weights of 22 binary
digits, summed as integers and rounded to 8 bits. The axis that is first follows the Pillow that is installed at the export.
https://github.com/python-pillow/Pillow/blob/main/src/libImaging/Resample.c
"""

# ruff: noqa: F821  names of axes look like names of types

from typing import Any

import numpy as np
import onnx
import onnx.inliner
from onnx import TensorProto, numpy_helper
from onnxscript import BOOL, FLOAT, INT32, INT64, UINT8, OnnxFunction, script
from onnxscript import opset18 as op
from PIL import __version__ as pillow_version

from deployment.formats import INPUT, OUTPUT, Metadata

PILLOW_13 = int(pillow_version.split(".")[0]) >= 13  # resizes the height of tall images first
UNIT, HALF_UNIT = 2**22, 2**21  # of the weights
GRAY = (19595, 38470, 7471)  # Pillow's weights, of 65,536
ZERO, HALF, ONE = (numpy_helper.from_array(np.float64(value)) for value in (0, 0.5, 1))
# A weight of 22 binary digits as three bytes: ONNX multiplies matrices of bytes exactly and fast.
PLACES = numpy_helper.from_array(np.array([[65536], [256], [1]], dtype=np.int32))


@script(default_opset=op)
def _resample(pixels, size):
    """Resizes the first axis of `pixels`, uint8 (length, N), to `size`, a float64."""
    zero, half, one = op.Constant(value=ZERO), op.Constant(value=HALF), op.Constant(value=ONE)
    length = op.Cast(op.Shape(pixels, end=1), to=TensorProto.DOUBLE)
    scale = length / size
    reach = op.Max(scale, one)
    center = op.Unsqueeze((op.Range(zero, size, one) + half) * scale, [1])  # (size, 1)
    first = op.Max(op.Floor(center - reach + half), zero)
    position = first + op.Range(zero, op.Squeeze(op.Ceil(reach) / half + one), one)  # (size, taps)
    weight = op.Max(one - op.Abs((position - center + half) * (one / reach)), zero)
    weight = op.Where(position < length, weight, zero)
    weight = op.Cast(weight / op.ReduceSum(weight, [1]) * UNIT + half, to=TensorProto.INT32)
    places = op.Constant(value=PLACES)
    weight_bytes = op.Cast(op.Mod(op.Unsqueeze(weight, [1]) / places, 256), to=TensorProto.UINT8)  # (size, 3, taps)
    neighbors = op.Gather(pixels, op.Cast(op.Min(position, length - one), to=TensorProto.INT32))  # (size, taps, N)
    total = op.ReduceSum(op.MatMulInteger(weight_bytes, neighbors) * places, [1], keepdims=0)
    return op.Cast((total + HALF_UNIT) / UNIT, to=TensorProto.UINT8)


@script(default_opset=op)
def _resample_width(rows, size):
    """Resizes the columns of pixels, uint8 (N, 3 length), to `size`."""
    count = op.Shape(rows, end=1)
    infer = op.Constant(value_ints=[-1])
    columns = op.Reshape(op.Transpose(rows, perm=[1, 0]), op.Concat(infer, count * 3, axis=0))  # (length, 3 N)
    resized = op.Reshape(_resample(columns, size), op.Concat(infer, count, axis=0))  # (3 size, N)
    return op.Transpose(resized, perm=[1, 0])


@script(default_opset=op)
def _resize(image, sides, vertical_first):
    """Resizes pixels, uint8 (H, W, 3), to `sides`, int64 (height, width)."""
    rows = op.Reshape(image, op.Constant(value_ints=[0, -1]))  # (H, 3 W)
    size = op.Cast(sides, to=TensorProto.DOUBLE)
    height, width = op.Split(size, num_outputs=2)
    excess = op.Cast(op.Shape(image, end=2), to=TensorProto.DOUBLE) - size
    excess_height, excess_width = op.Split(excess, num_outputs=2)
    if op.And(vertical_first, op.Greater(excess_height, op.Max(excess_width * 2.0, op.Constant(value=ZERO)))):
        small = _resample_width(_resample(rows, op.Squeeze(height)), op.Squeeze(width))
    else:
        small = _resample(_resample_width(rows, op.Squeeze(width)), op.Squeeze(height))
    return op.Reshape(small, op.Concat(sides, op.Constant(value_ints=[3]), axis=0))


@script(default_opset=op)
def _largest_within(outer, shape):
    """Returns what `datamodules.transforms.largest_within` does, as (height, width)."""
    swapped, two = op.Constant(value_ints=[1, 0]), op.Constant(value_ints=[2])
    divisor = op.Gather(shape, swapped)
    sides = (two * op.Gather(outer, swapped) * shape + divisor) / (two * divisor)
    return op.Min(op.Max(sides, op.Constant(value_ints=[1])), outer)


@script(default_opset=op)
def _squash(image: UINT8["H", "W", 3], size: INT64[2], vertical_first: BOOL[1]) -> UINT8["height", "width", 3]:
    fitted = _resize(image, size, vertical_first)
    return fitted


@script(default_opset=op)
def _crop(image: UINT8["H", "W", 3], size: INT64[2], vertical_first: BOOL[1]) -> UINT8["height", "width", 3]:
    whole = op.Shape(image, end=2)
    cut = _largest_within(whole, size)
    start = (whole - cut) / op.Constant(value_ints=[2])
    fitted = _resize(op.Slice(image, start, start + cut), size, vertical_first)
    return fitted


@script(default_opset=op)
def _pad(image: UINT8["H", "W", 3], size: INT64[2], vertical_first: BOOL[1]) -> UINT8["height", "width", 3]:
    inner = _largest_within(size, op.Shape(image, end=2))
    start, none = (size - inner) / op.Constant(value_ints=[2]), op.Constant(value_ints=[0])
    fitted = op.Pad(_resize(image, inner, vertical_first), op.Concat(start, none, size - inner - start, none, axis=0))
    return fitted


FIT = {"squash": _squash, "crop": _crop, "pad": _pad}


@script(default_opset=op)
def _normalize(
    fitted: UINT8["height", "width", 3],
    shape: INT64[4],
    channels: INT32["C", 3],
    mean: FLOAT[1, "C", 1, 1],
    std: FLOAT[1, "C", 1, 1],
) -> FLOAT[1, "C", "height", "width"]:
    pixels = op.Transpose(op.Reshape(fitted, op.Constant(value_ints=[-1, 3])), perm=[1, 0])  # (3, height · width)
    levels = (op.MatMul(channels, op.Cast(pixels, to=TensorProto.INT32)) + 32768) / 65536
    normalized = (op.Reshape(op.Cast(levels, to=TensorProto.FLOAT), shape) / 255.0 - mean) / std
    return normalized


@script(default_opset=op)
def _classify(logits: FLOAT[1, "classes"], temperature: FLOAT[()]) -> FLOAT["classes"]:
    probabilities = op.Softmax(op.Squeeze(logits, [0]) / temperature, axis=0)
    return probabilities


def add_preprocessing(model: onnx.ModelProto, metadata: Metadata) -> onnx.ModelProto:
    """Returns a model from `image`, uint8 (H, W, 3), RGB and upright, to `probabilities` (classes,).

    Args:
        model: From images (N, C, H, W) to logits (N, classes).
        metadata: Of `build_metadata`; its temperature divides the logits.
    """
    height, width = metadata["image_size"]
    gray, count = metadata["channels"] == ["gray"], len(metadata["channels"])
    fit = _bind(model, FIT[metadata["aspect"]], size=np.array([height, width]), vertical_first=np.array([PILLOW_13]))
    normalize = _bind(
        model, _normalize,
        shape=np.array([1, count, height, width]),
        channels=np.array([GRAY] if gray else 65536 * np.eye(3), dtype=np.int32),
        mean=np.float32(metadata["mean"] or [0] * count).reshape(1, -1, 1, 1),
        std=np.float32(metadata["std"] or [1] * count).reshape(1, -1, 1, 1),
    )  # fmt: skip
    after = _bind(model, _classify, temperature=np.float32(metadata["temperature"]))
    whole = onnx.compose.add_prefix(fit, "fit/", rename_inputs=False)
    for name, part, io_map in (
        ("normalize", normalize, ("fit/fitted", "normalize/fitted")),
        ("model", model, ("normalize/normalized", f"model/{INPUT}")),
        ("after", after, (f"model/{OUTPUT}", "after/logits")),
    ):
        part = onnx.compose.add_prefix(part, f"{name}/", rename_outputs=name != "after")
        whole = onnx.compose.merge_models(whole, part, io_map=[io_map])
    del whole.metadata_props[:]
    onnx.checker.check_model(whole)
    return whole


def _bind(like: onnx.ModelProto, function: OnnxFunction, **constants: Any) -> onnx.ModelProto:
    """Returns `function` as a model of the versions of `like`, with `constants` in place of inputs of the same names."""
    model = onnx.inliner.inline_local_functions(function.to_model_proto(ir_version=like.ir_version))
    del model.opset_import[:]
    model.opset_import.extend(like.opset_import)
    graph = model.graph
    inputs = [value for value in graph.input if value.name not in constants]
    del graph.input[:]
    graph.input.extend(inputs)
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())
    return model
