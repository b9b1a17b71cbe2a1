"""Parquet files as the Hugging Face hub stores them."""

import builtins
import io
import json
import pickle
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from datamodules import BoundingBox, clip_boxes, read_data
from datamodules.images import read_image
from utils.errors import ConfigError, DataError

NAMES = ["VW Golf", "Audi A4", "Kia Rio"]  # as ClassLabel has them, not sorted


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), (number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write(
    path: Path, labels: list, *, start: int = 0, names: list[str] | None = NAMES, rows: int = 2, **columns: list
) -> None:
    images = [{"bytes": png(start + index), "path": f"{start + index:05d}.png"} for index in range(len(labels))]
    table = pa.table({"image": images, "label": labels, **columns})
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows)


def reds(records) -> list[int]:
    return [read_image(record.path).getpixel((0, 0))[0] for record in records]


@pytest.mark.parametrize("layout", ["data/{}-0000{}-of-00002.parquet", "default/{}/000{}.parquet", "{}{}.parquet"])
def test_shards_of_splits_with_the_class_names_of_the_schema(tmp_path: Path, layout: str) -> None:
    write(tmp_path / layout.format("train", 0), [2, 0, 0])
    write(tmp_path / layout.format("train", 1), [1], start=3)
    write(tmp_path / layout.format("test", 0), [0, 2], start=10)
    data = read_data(tmp_path)
    assert (data.class_names, data.kind, data.valid_from) == (tuple(NAMES), "parquet", "test")
    assert [record.label for record in data.train] == [2, 0, 0, 1] and [record.label for record in data.valid] == [0, 2]
    assert reds(data.train) == [0, 1, 2, 3] and reds(data.valid) == [10, 11]
    assert [record.path.name for record in data.train] == [f"0000{number}.png" for number in range(4)]
    assert clip_boxes(data) == data
    assert read_data(tmp_path) == data


def test_records_are_read_in_any_order_after_pickling_and_by_workers(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [number % 3 for number in range(9)])
    records = read_data(tmp_path).train
    assert reds(pickle.loads(pickle.dumps(records))[::-1]) == list(range(8, -1, -1))

    class Images(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(records)

        def __getitem__(self, index: int) -> int:
            return reds([records[index]])[0]

    assert torch.cat(list(DataLoader(Images(), num_workers=2))).tolist() == list(range(9))


def test_text_labels_split_and_box_columns(tmp_path: Path) -> None:
    write(tmp_path / "cars.parquet", ["b", "a", "b"], names=None, split=["train", "train", "test"],
          bbox=[[1, 2, 9, 8], None, [0, 0, 20, 30]])  # fmt: skip
    data = read_data(tmp_path, table_params={"box_format": "xyxy"})
    assert data.class_names == ("a", "b")
    assert [record.bounding_box for record in data.records] == [
        BoundingBox(1, 2, 9, 8),
        None,
        BoundingBox(0, 0, 20, 30),
    ]
    assert clip_boxes(data).valid[0].bounding_box == BoundingBox(0, 0, 20, 10)


def test_columns_of_bytes_and_of_paths_beside_the_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"img": [png(5), png(6)], "label": ["a", "b"]}), tmp_path / "a.parquet")
    assert reds(read_data(tmp_path / "a.parquet").train) == [5, 6]
    (tmp_path / "images").mkdir()
    (tmp_path / "images/7.png").write_bytes(png(7))
    structs = pa.array(
        [{"bytes": None, "path": "images/7.png"}], pa.struct({"bytes": pa.binary(), "path": pa.string()})
    )
    for images in (structs, ["images/7.png"]):
        pq.write_table(pa.table({"image": images, "label": ["a"]}), tmp_path / "b.parquet")
        assert [record.path for record in read_data(tmp_path / "b.parquet").train] == [tmp_path / "images/7.png"]
    pq.write_table(pa.table({"image": ["../7.png", "8.png"], "label": ["a", "b"]}), tmp_path / "b.parquet")
    with pytest.raises(
        DataError, match=r"2 problems(.|\n)*row 1: ../7.png lies outside of(.|\n)*row 2: 8.png is not in"
    ):
        read_data(tmp_path / "b.parquet")


def test_wrong_rows_and_columns_are_named(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [0, -1, 3, None])
    with pytest.raises(DataError) as error:
        read_data(tmp_path)
    assert str(error.value).splitlines() == [
        f"3 problems in {tmp_path}:",
        "  train.parquet, row 2: label is -1, expected 0 … 2",
        "  train.parquet, row 3: label is 3, expected 0 … 2",
        "  train.parquet, row 4: label is empty",
    ]
    pq.write_table(pa.table({"photo": [png(1)], "brand": ["a"]}), tmp_path / "train.parquet")
    with pytest.raises(
        DataError, match=r"expected an image column .* and a class column; found photo, brand\. Name them by"
    ):
        read_data(tmp_path)
    assert reds(read_data(tmp_path, table_params={"label": "brand"}).train) == [1]


def test_files_cut_short_or_damaged_are_named(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    write(path, [0, 1, 2, 0])
    data, whole = read_data(tmp_path), path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"train\.parquet is damaged or cut short \(.*\); download it again"):
        read_data(tmp_path)
    damaged = bytearray(whole)
    damaged[4:400] = np.random.default_rng(0).bytes(396)
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"train\.parquet is damaged or was replaced"):
        read_image(data.train[0].path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0")
    with pytest.raises(DataError, match="is a Git LFS pointer"):
        read_data(tmp_path)


def test_without_pyarrow_the_error_names_it(tmp_path: Path, monkeypatch) -> None:
    write(tmp_path / "train.parquet", [0, 1])
    original = builtins.__import__

    def without(name: str, *args, **options):
        if name.partition(".")[0] == "pyarrow":
            raise ImportError(name)
        return original(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"reading Parquet files needs pyarrow; run pip install pyarrow"):
        read_data(tmp_path)


def test_class_names_may_be_written_in_parts(tmp_path: Path) -> None:
    decomposed = [unicodedata.normalize("NFD", name) for name in ("Citroën C3", "Škoda Fabia")]
    write(tmp_path / "train.parquet", [1, 0], names=decomposed)
    data = read_data(tmp_path)
    assert data.class_names == ("Citroën C3", "Škoda Fabia") and [record.label for record in data.train] == [1, 0]
