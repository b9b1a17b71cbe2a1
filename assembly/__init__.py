"""Builds data, model and trainer from a configuration: the one place that knows all parts."""

from assembly.checks import check_buildable
from assembly.data import augmentation_path, build_data, build_pipelines, image_shape, load_annotations
from assembly.model import build_classifier, build_mixing, build_targets, view_of
from assembly.pretrained import load_pretrained_weights, resolve_pretrained
from assembly.run import build_callbacks, build_record, read_best, read_branch
from assembly.trainer import build_trainer, precision

__all__ = [
    "augmentation_path",
    "build_callbacks",
    "build_classifier",
    "build_data",
    "build_mixing",
    "build_pipelines",
    "build_record",
    "build_targets",
    "build_trainer",
    "check_buildable",
    "image_shape",
    "load_annotations",
    "load_pretrained_weights",
    "precision",
    "read_best",
    "read_branch",
    "resolve_pretrained",
    "view_of",
]
