"""Writes the demo's data set: drawn cars in the format of Stanford Cars' updated release."""

import io
import tempfile
from pathlib import Path

import numpy as np
import scipy.io

from datamodules.demo_cars import CAR_MODELS
from datamodules.demo_drawing import draw_photo
from utils.errors import DataError
from utils.progress import progress_bar

MARKER = "DEMO.txt"
FIELDS = ("relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test")
MAT_HEADER_LENGTH = 116  # bytes of free text at the head of a MATLAB 5.0 file


def write_demo_data(folder: Path, *, seed: int = 0, training_photos: int = 40, validation_photos: int = 12) -> None:
    """Draws `car_ims/000001.jpg` … and writes `cars_annos.mat`, all of it or nothing; a finished set is left as it is.

    The same arguments give the same bytes with the same versions of NumPy, Pillow and SciPy.

    Args:
        folder: Where to; what already lies there is never overwritten.
        seed: 0 or larger.
        training_photos: Of each model.
        validation_photos: Of each model.

    Raises:
        DataError: If the folder holds something else than this very data set.
    """
    folder = folder.resolve()
    numbers = range(training_photos + validation_photos)
    rows = [(label, number) for label in range(len(CAR_MODELS)) for number in numbers]
    paths = [f"car_ims/{index:06d}.jpg" for index in range(1, len(rows) + 1)]
    description = (
        f"Drawn cars for trying things out, in the format of Stanford Cars: {len(CAR_MODELS)} models, {training_photos} "
        f"training and {validation_photos} validation photos of each, seed {seed}.\n"
    )
    if folder.exists() and not _is_empty(folder):
        _require_complete(folder, description, paths)
        return

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        draft = Path(temporary, folder.name)
        (draft / "car_ims").mkdir(parents=True)
        annotations = np.empty((1, len(rows)), dtype=[(field, object) for field in FIELDS])
        for index, (label, number) in enumerate(progress_bar(rows, description="drawing cars", unit=" photos")):
            photo, bounding_box = draw_photo(CAR_MODELS[label], np.random.default_rng((seed, label, number)))
            photo.save(draft / paths[index], quality=85)
            values = (*bounding_box, label + 1, int(number >= training_photos))
            annotations[0, index] = (paths[index], *(np.array([[v]], dtype=np.min_scalar_type(v)) for v in values))
        (draft / "cars_annos.mat").write_bytes(_mat_file(annotations))
        (draft / MARKER).write_text(description, encoding="utf-8")
        try:
            if folder.exists():
                folder.rmdir()  # Windows renames onto nothing that exists, be it empty
            draft.replace(folder)
        except OSError:
            if not folder.is_dir():
                raise
            _require_complete(folder, description, paths)  # another process has drawn them meanwhile


def _mat_file(annotations: np.ndarray) -> bytes:
    class_names = np.empty((1, len(CAR_MODELS)), dtype=object)
    class_names[0] = [model.name for model in CAR_MODELS]
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"annotations": annotations, "class_names": class_names}, do_compression=True)
    # SciPy puts the time of day into the free text, and no two files would be equal.
    return b"MATLAB 5.0 MAT-file, drawn cars".ljust(MAT_HEADER_LENGTH) + buffer.getvalue()[MAT_HEADER_LENGTH:]


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _require_complete(folder: Path, description: str, paths: list[str]) -> None:
    marker = folder / MARKER
    if not marker.is_file():
        raise DataError(f"{folder} holds something else than drawn cars (no {MARKER}). Choose another folder for them.")
    found = marker.read_text(encoding="utf-8")
    if found != description:
        raise DataError(
            f"{folder} holds other drawn cars than asked for. Delete it or choose another folder.\n"
            f"  asked for: {description.rstrip()}\n  there is:  {found.rstrip()}"
        )
    missing = [path for path in ("cars_annos.mat", *paths) if not (folder / path).is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} files of the drawn cars in {folder} are gone, the first is {missing[0]}. "
            "Delete the folder, and they are drawn again."
        )
