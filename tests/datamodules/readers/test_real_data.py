"""Real data in every layout gives the same records: of Stanford Cars those of its .mat, of a person's photos one another's."""

import csv
import json
import shutil
import tarfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules import DataSplits, read_data
from datamodules.readers.mat_files import read_mat_files
from datamodules.readers.stanford_cars import parse_class_names, parse_rows
from tests.support.data_sets import BOX_FIELDS, SHARED, UPDATED_FIELDS, write_images, write_mat
from utils.errors import DataError

STANFORD, OWN = SHARED / "stanford_cars_224", SHARED / "own_photos"
needs_own = pytest.mark.skipif(not OWN.is_dir(), reason=f"the photos of a person's own are not in {OWN}")

Rows = list[tuple[str, str, int, bytes, tuple | None]]  # split, class name, label, content of the file, box


def rows_of(data: DataSplits) -> Rows:
    return [
        (split, data.class_names[record.label], record.label, record.path.read_bytes(), record.bounding_box)
        for split in ("train", "valid", "test")
        for record in getattr(data, split)
    ]


def extract(archive: Path, folder: Path, *, count: int | None = None, every: int = 1) -> list[Path]:
    """Extracts every so many of the first files of an archive, and returns their paths below the folder."""
    with tarfile.open(archive) as tar:
        chosen = list(islice((info for info in tar if info.isfile()), 0, count, every))
        tar.extractall(folder, chosen, filter="data")
    return [Path(info.name) for info in chosen]


@pytest.fixture(
    scope="module", params=[pytest.param(400, id="some"), pytest.param(None, marks=pytest.mark.slow, id="all")]
)
def stanford(request, tmp_path_factory) -> tuple[Path, DataSplits]:
    """A folder with the .mat of some images of Stanford Cars, and what is read of it."""
    if not STANFORD.is_dir():
        pytest.skip(f"the crops of Stanford Cars are not in {STANFORD}")
    folder = tmp_path_factory.mktemp("stanford")
    names = {path.as_posix() for path in extract(STANFORD / "car_ims.tgz", folder, count=request.param)}
    [variables] = read_mat_files(STANFORD / "cars_annos.mat")
    class_names = parse_class_names(STANFORD, variables)
    rows = [row for row in parse_rows(STANFORD, variables, "updated") if row.name in names]
    mat = [
        dict(
            zip(UPDATED_FIELDS, (row.name, box.x1 + 1, box.y1 + 1, box.x2, box.y2, row.class_id, row.test), strict=True)
        )
        for row in rows
        for box in [row.bounding_box]
    ]
    write_mat(folder / "cars_annos.mat", mat, UPDATED_FIELDS, class_names=class_names)
    data = read_data(folder)
    assert data.kind == "stanford_cars" and len(data.records) == len(names)
    return folder, data


def write_class_folders(data: DataSplits, folder: Path) -> None:
    """Writes Kaggle's layout, in which no folder name holds a slash."""
    for split, records in (("train", data.train), ("test", data.valid)):
        for record in records:
            path = (
                folder
                / "car_data/car_data"
                / split
                / data.class_names[record.label].replace("/", "-")
                / record.path.name
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(record.path, path)


def write_kaggle(data: DataSplits, folder: Path) -> None:
    write_class_folders(data, folder)
    for name, records in (("anno_train.csv", data.train), ("anno_test.csv", data.valid)):
        with (folder / name).open("w", newline="") as file:
            for record in records:
                x1, y1, x2, y2 = record.bounding_box
                csv.writer(file).writerow([record.path.name, x1 + 1, y1 + 1, x2, y2, record.label + 1])
    (folder / "names.csv").write_text("\n".join(data.class_names))


def write_table(data: DataSplits, folder: Path) -> None:
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "class", "split", "x1", "y1", "x2", "y2"])
        for split, records in (("train", data.train), ("test", data.valid)):
            for record in records:
                path = Path("images") / record.path.parent.name / record.path.name
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(record.path, folder / path)
                writer.writerow([path, data.class_names[record.label], split, *(record.bounding_box or [""] * 4)])


def write_parquet(data: DataSplits, folder: Path) -> None:
    features = {"image": {"_type": "Image"}, "label": {"names": data.class_names, "_type": "ClassLabel"}}
    schema = {"huggingface": json.dumps({"info": {"features": features}})}
    for split, records in (("train", data.train), ("test", data.valid)):
        if records:
            boxes = {
                field: [record.bounding_box and record.bounding_box[edge] for record in records]
                for edge, field in enumerate(BOX_FIELDS)
                if records[0].bounding_box is not None
            }
            images = [{"bytes": record.path.read_bytes(), "path": record.path.name} for record in records]
            table = pa.table({"image": images, "label": [record.label for record in records], **boxes})
            path = folder / f"data/{split}-00000-of-00001.parquet"
            path.parent.mkdir(exist_ok=True)
            pq.write_table(table.replace_schema_metadata(schema), path, row_group_size=100)


@pytest.mark.parametrize(("write", "kind"), [(write_kaggle, "stanford_cars"), (write_parquet, "parquet")])
def test_stanford_cars_row_for_row(stanford, tmp_path: Path, write: Callable, kind: str) -> None:
    write(stanford[1], tmp_path)
    data = read_data(tmp_path)
    assert (data.kind, data.class_names) == (kind, stanford[1].class_names)
    assert rows_of(data) == rows_of(stanford[1])


def test_stanford_cars_in_class_folders_and_a_table_has_the_same_classes(stanford, tmp_path: Path) -> None:
    """They know no order of the classes and, the folders, no boxes."""
    (tmp_path / "folders").mkdir()
    (tmp_path / "table").mkdir()
    write_class_folders(stanford[1], tmp_path / "folders")
    write_table(stanford[1], tmp_path / "table")
    folders, table = read_data(tmp_path / "folders"), read_data(tmp_path / "table")
    assert (folders.kind, table.kind) == ("class_folders", "table")
    expected = sorted((split, name.replace("/", "-"), content) for split, name, _, content, _ in rows_of(stanford[1]))
    assert sorted((split, name, content) for split, name, _, content, _ in rows_of(folders)) == expected
    expected = [(split, name, content, box) for split, name, _, content, box in rows_of(stanford[1])]
    assert [(split, name, content, box) for split, name, _, content, box in rows_of(table)] == expected


@needs_own
@pytest.mark.parametrize("every", [pytest.param(20, id="some"), pytest.param(1, marks=pytest.mark.slow, id="all")])
def test_own_photos_in_every_layout(tmp_path: Path, every: int) -> None:
    paths = extract(OWN / "car_photos.tgz", tmp_path / "folders", every=every)
    data = read_data(tmp_path / "folders")
    assert (data.kind, len(data.train), len(data.class_names), data.valid) == ("class_folders", len(paths), 7, ())
    for write, kind in ((write_table, "table"), (write_parquet, "parquet"), (write_class_folders, "class_folders")):
        folder = tmp_path / write.__name__
        folder.mkdir()
        write(data, folder)
        other = read_data(folder)
        assert (other.kind, other.class_names) == (kind, data.class_names)
        assert rows_of(other) == rows_of(data)


def test_kaggles_tables_that_contradict_the_folders_are_listed(tmp_path: Path) -> None:
    write_images(
        tmp_path, "car_data/train/Kia Rio/1.jpg", "car_data/train/VW Golf/2.jpg", "car_data/test/VW Golf/1.jpg"
    )
    (tmp_path / "names.csv").write_text("VW Golf\nKia Rio\n")
    (tmp_path / "anno_train.csv").write_text("1.jpg,1,1,20,10,1\n\n3.jpg,1,1,20,10,1\n2.jpg,1,1,20,10,3\n2.jpg,a\n")
    (tmp_path / "anno_test.csv").write_text("1.jpg,1,1,20,10,1\n")
    with pytest.raises(DataError) as error:
        read_data(tmp_path)
    assert str(error.value).splitlines() == [
        f"4 problems in the data set in {tmp_path}:",
        "  row 4 of anno_train.csv: ['2.jpg', 'a'], expected a name, the box and the class",
        "  2.jpg (row 3 of anno_train.csv): class 3, expected 1 … 2",
        "  1.jpg (row 1 of anno_train.csv): its class is 'VW Golf', but it lies in the folder 'Kia Rio'",
        "  3.jpg (row 2 of anno_train.csv): not in the class folders of the train split",
    ]
    (tmp_path / "anno_train.csv").write_text("x" * 200_000)
    with pytest.raises(DataError, match=r"anno_train\.csv cannot be read: field larger than field limit"):
        read_data(tmp_path)
