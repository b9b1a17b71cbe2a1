"""Loads the teachers of a training: models of this project, whatever their architecture and image size."""

from collections.abc import Sequence

import torch

from assembly import view_of
from deployment.trained import load_trained
from losses.distillation import Teacher
from utils.errors import ConfigError
from utils.nearest import listed, nearest
from utils.runs.teachers import TeacherFile

MAX_NAMED = 3  # classes in a message


def load_teachers(files: Sequence[TeacherFile], class_names: Sequence[str]) -> list[Teacher]:
    """Loads teachers of the classes `class_names`, which each must know by these names; it may know more.

    Raises:
        ConfigError: A teacher lacks classes.
        RunError: A checkpoint is damaged.
    """
    teachers = []
    for file in files:
        trained = load_trained(file.path)
        known = trained.class_names
        if missing := [name for name in class_names if name not in known]:
            raise ConfigError(
                f"teacher: {file.path} lacks {len(missing)} of {len(class_names)} classes: "
                f"{listed([repr(name) for name in missing], MAX_NAMED)}.{nearest(missing[0], known)[:200]}"
            )
        classes = torch.tensor([known.index(name) for name in class_names])
        teachers.append(Teacher(trained.classifier.model, view_of(trained.config, trained.config.test_size), classes))
    return teachers
