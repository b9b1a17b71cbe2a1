"""Puts the way from pixels to probabilities into an ONNX file.

The resize is Pillow's: first the width, then the height, each rounded to 8 bits, with weights of the image alone at its
edges. At most a quarter percent of the values then differ, by 1 of 255; in one pass 15 % do, and by up to 15 at the edges.
"""

import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from deployment.evaluation.evaluation import load_split
from deployment.export import build_metadata, export
from deployment.formats import FORMATS, INPUT, OUTPUT, Metadata
from deployment.trained import TrainedModel

OPSET = 18  # the first whose Resize has antialiasing
GRAY = np.array([19595, 38470, 7471], dtype=np.float32)  # PIL's weights, of 65,536
COMPARED_IMAGES = 500  # on which an 8-bit model has to agree with the trained one


def write_model(trained: TrainedModel, output: Path, *, int8: bool, data: Path | None) -> dict[str, Any]:
    """Writes the app's model and returns the content of its `model.json`.

    Args:
        trained: The model.
        output: The ONNX file to write.
        int8: Whether weights and activations have 8 bits.
        data: The data set that an 8-bit model is calibrated on and compared on, instead of the training's.

    Raises:
        RunError: The 8-bit model disagrees with the trained one.
    """
    metadata = build_metadata(trained)
    calibration = trained.calibration
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder, "draft.onnx")
        if int8:
            _, splits = load_split(trained, data, "valid")
            export(trained, "onnx-int8", splits, draft, num_images=COMPARED_IMAGES)
        else:
            network = copy.deepcopy(trained.classifier.model).float().eval()
            example = torch.zeros(1, len(metadata["channels"]), *metadata["image_size"])
            FORMATS["onnx"].write(network, [example], metadata, draft)
        onnx.save(
            add_preprocessing(onnx.load(draft), metadata, calibration.temperature if calibration else 1.0), output
        )
    accuracy = trained.metrics.get("valid_acc")
    return {
        "class_names": list(trained.class_names),
        "threshold": calibration.threshold if calibration else None,
        "score": calibration.score if calibration else "probability",
        "about": f"{trained.config.architecture}, {len(trained.class_names)} car models"
        + (f", {accuracy:.1%} right on validation photos" if accuracy is not None else ""),
    }


def add_preprocessing(model: onnx.ModelProto, metadata: Metadata, temperature: float) -> onnx.ModelProto:
    """Returns a model from `image`, uint8 (H, W, 3), RGB and upright, to `probabilities` (classes,).

    Args:
        model: From images (N, C, H, W) to logits (N, classes).
        metadata: Of `build_metadata`.
        temperature: By which the logits are divided.
    """
    height, width = metadata["image_size"]
    gray = metadata["channels"] == ["gray"]
    constants: dict[str, Any] = {
        "size": np.array([1, 3, height, width], dtype=np.int64),
        "one_three": np.array([1, 3], dtype=np.int64),
        "width": np.array([width], dtype=np.int64),
        "batch_axis": np.array([0], dtype=np.int64),
        "half": np.float32(0.5),
        "full": np.float32(255),
        "temperature": np.float32(temperature),
    }
    resize = {"mode": "linear", "antialias": 1, "exclude_outside": 1}
    nodes = [
        helper.make_node("Transpose", ["image"], ["planes"], perm=[2, 0, 1]),
        helper.make_node("Unsqueeze", ["planes", "batch_axis"], ["one"]),
        helper.make_node("Cast", ["one"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Shape", ["levels"], ["height"], start=2, end=3),
        helper.make_node("Concat", ["one_three", "height", "width"], ["narrow_size"], axis=0),
        helper.make_node("Resize", ["levels", "", "", "narrow_size"], ["narrow"], **resize),
        helper.make_node("Add", ["narrow", "half"], ["narrow_raised"]),
        helper.make_node("Floor", ["narrow_raised"], ["narrow_rounded"]),
        helper.make_node("Resize", ["narrow_rounded", "", "", "size"], ["resized"], **resize),
        helper.make_node("Add", ["resized", "half"], ["resized_raised"]),
        helper.make_node("Floor", ["resized_raised"], ["rounded"]),
    ]
    last = "rounded"
    if gray:
        constants |= {"weights": GRAY.reshape(1, 3, 1, 1) / 65536}
        constants["channel_axis"] = np.array([1], dtype=np.int64)
        nodes += [
            helper.make_node("Mul", [last, "weights"], ["weighted"]),
            helper.make_node("ReduceSum", ["weighted", "channel_axis"], ["sum"], keepdims=1),
            helper.make_node("Add", ["sum", "half"], ["raised"]),
            helper.make_node("Floor", ["raised"], ["gray"]),
        ]
        last = "gray"
    nodes.append(helper.make_node("Div", [last, "full"], ["scaled"]))
    last = "scaled"
    if metadata["mean"]:
        constants |= {name: np.array(metadata[name], dtype=np.float32).reshape(1, -1, 1, 1) for name in ("mean", "std")}
        nodes += [
            helper.make_node("Sub", [last, "mean"], ["centered"]),
            helper.make_node("Div", ["centered", "std"], ["normalized"]),
        ]
        last = "normalized"
    before = helper.make_graph(
        nodes,
        "preprocessing",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["H", "W", 3])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, [1, 1 if gray else 3, height, width])],
        [
            numpy_helper.from_array(np.asarray(value), name)
            for name, value in constants.items()
            if name != "temperature"
        ],
    )
    after = helper.make_graph(
        [
            helper.make_node("Div", ["logits", "temperature"], ["tempered"]),
            helper.make_node("Squeeze", ["tempered"], ["row"]),
            helper.make_node("Softmax", ["row"], ["probabilities"], axis=0),
        ],
        "probabilities",
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, len(metadata["class_names"])])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [len(metadata["class_names"])])],
        [numpy_helper.from_array(np.asarray(constants["temperature"]), "temperature")],
    )
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    graphs = [
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=model.ir_version)
        for graph in (before, after)
    ]
    whole = onnx.compose.merge_models(
        onnx.compose.add_prefix(graphs[0], "before/", rename_inputs=False),
        onnx.compose.add_prefix(model, "model/"),
        io_map=[(f"before/{last}", f"model/{INPUT}")],
    )
    whole = onnx.compose.merge_models(
        whole,
        onnx.compose.add_prefix(graphs[1], "after/", rename_outputs=False),
        io_map=[(f"model/{OUTPUT}", "after/logits")],
    )
    del whole.metadata_props[:]
    onnx.checker.check_model(whole)
    return whole
