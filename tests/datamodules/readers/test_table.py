"""CSV and TSV tables in the forms that people and programs write."""

from pathlib import Path

import pytest

from datamodules import BoundingBox, clip_boxes, read_data
from tests.support.data_sets import write_images, write_updated_release
from utils.errors import ConfigError, DataError

NAMES = ("images/1.jpg", "images/2.jpg", "images/3.jpg")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path, *NAMES)
    return tmp_path


def write(folder: Path, *lines: str, name: str = "labels.csv", encoding: str = "utf-8") -> None:
    (folder / name).write_text("\n".join(lines) + "\n", encoding=encoding)


def rows(folder: Path, split: str = "train", **options) -> list[tuple]:
    data = read_data(folder, **options)
    records = getattr(data, split)
    return [
        (each.path.relative_to(folder).as_posix(), data.class_names[each.label], each.bounding_box) for each in records
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("header", [("path", "class"), ("File Name", "Label"), ("image_path", "class_name")])
def test_delimiters_and_headers_are_recognized(folder: Path, delimiter: str, header: tuple[str, str]) -> None:
    name = "labels.tsv" if delimiter == "\t" else "labels.csv"
    quoted = "VW, Golf" if delimiter != "," else '"VW, Golf"'
    lines = [f"images/2.jpg{delimiter}{quoted}", f'"images/1.jpg"{delimiter} Kia ', ""]
    write(folder, delimiter.join(header), *lines, name=name)
    assert rows(folder) == [("images/2.jpg", "VW, Golf", None), ("images/1.jpg", "Kia", None)]
    assert read_data(folder).class_names == ("Kia", "VW, Golf")
    assert read_data(folder / name) == read_data(folder)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252"])
def test_encodings_and_byte_order_marks(folder: Path, encoding: str) -> None:
    write(folder, "path,class", "images/1.jpg,Citroën", "images/2.jpg,Škoda" if "8" in encoding else "images/2.jpg,Ä",
          encoding=encoding)  # fmt: skip
    assert rows(folder)[0] == ("images/1.jpg", "Citroën", None)


def test_a_split_column_and_columns_given_by_name(folder: Path) -> None:
    write(folder, "nr,where,what,part", "1,images/1.jpg,b,train", "2,images/2.jpg,a,Val", "3,images/3.jpg,b,testing")
    params = {"path": "where", "label": "what", "split": "part"}
    data = read_data(folder, table_params=params)
    splits = (data.train, data.valid, data.test)
    assert [[record.path.name for record in split] for split in splits] == [["1.jpg"], ["2.jpg"], ["3.jpg"]]
    assert [record.label for record in data.records] == [1, 0, 1]
    write(folder, "path,class", "images/1.jpg,other", name="other.csv")
    assert read_data(folder, table_params=params).records == data.records
    (folder / "other.csv").unlink()
    with pytest.raises(
        ConfigError, match=r"^table_params\.label: .*labels\.csv has no column 'wat'\. Did you mean 'what'\?"
    ):
        read_data(folder, table_params={**params, "label": "wat"})
    with pytest.raises(
        DataError, match=r"labels\.csv has the columns nr, where, what, part: name those of paths and classes"
    ):
        read_data(folder, kind="auto")


def test_tables_named_by_split_and_images_named_without_their_folder(folder: Path) -> None:
    (folder / "empty.csv").touch()
    write(folder, "filename,label", "1.jpg,10", "2.jpg,9", name="train_labels.csv")
    write(folder, "filename,label", "3.jpg,10", name="valid.csv")
    write(folder, "id,name", "9,Kia", name="classes.csv")
    assert rows(folder) == [("images/1.jpg", "10", None), ("images/2.jpg", "9", None)]
    assert rows(folder, "valid") == [("images/3.jpg", "10", None)]
    assert read_data(folder).class_names == ("9", "10")  # numbers by their value
    write(folder, "filename,label", "3.jpg,10", name="more.csv")
    with pytest.raises(
        DataError, match=r"several tables: more\.csv, train_labels\.csv, valid\.csv; more\.csv has no split"
    ):
        read_data(folder)


@pytest.mark.parametrize(
    ("header", "box", "params"),
    [
        ("x1,y1,x2,y2", "2,3,12,8", {}),
        ("xmin,ymin,xmax,ymax", "2.0,3.0,12.0,8.0", {}),
        ("Roi.X1,Roi.Y1,Roi.X2,Roi.Y2", "2,3,12,8", {}),
        ("x,y,w,h", "2,3,10,5", {}),
        ("width,height,bbox_x,bbox_y,bbox_width,bbox_height", "20,10,2,3,10,5", {}),  # with the size of the image
        ("x1,y1,x2,y2", "0.1,0.3,0.6,0.8", {}),  # of 20×10 pixels
        ("x,y,w,h", "0.1,0.3,0.5,0.5", {}),
        ("bbox", '"[2, 3, 12, 8]"', {"box_format": "xyxy"}),
        ("bbox", '"[2, 3, 10, 5]"', {"box_format": "xywh"}),
        ("a,b,c,d", "2,3,12,8", {"box": ["a", "b", "c", "d"], "box_format": "xyxy"}),
    ],
)
def test_boxes_of_every_convention(folder: Path, header: str, box: str, params: dict) -> None:
    write(folder, f"path,class,{header}", f"images/1.jpg,a,{box}", f"images/2.jpg,b{header.count(',') * ','},")
    assert rows(folder, table_params=params) == [
        ("images/1.jpg", "a", BoundingBox(2, 3, 12, 8)),
        ("images/2.jpg", "b", None),
    ]


def test_boxes_that_may_be_corners_or_sizes_are_an_error_and_sizes_recognized(folder: Path) -> None:
    write(folder, "path,class,bbox", 'images/1.jpg,a,"2 3 12 8"', 'images/2.jpg,b,"0 0 5 5"')
    with pytest.raises(
        ConfigError, match=r"such as \[2\.0, 3\.0, 12\.0, 8\.0\], may be corners or sizes; set table_params"
    ):
        read_data(folder)
    write(folder, "path,class,bbox", 'images/1.jpg,a,"2 3 12 8"', 'images/2.jpg,b,"9 8 5 1"')
    assert rows(folder)[1] == ("images/2.jpg", "b", BoundingBox(9, 8, 14, 9))


def test_problems_are_listed_with_file_and_line(folder: Path) -> None:
    header = "path,class,split,x1,y1,x2,y2"
    write(
        folder, header, "images/1.jpg,a,train,0,0,5,5", "images/4.jpg,a,train,,,,", "../x.jpg,a,train,,,,",
        "/etc/passwd,a,train,,,,", "images/2.jpg,,train,,,,", "images/2.jpg,b,trian,,,,", "images/3.jpg,b,train,1,2,x,4",
        "images/1.jpg,b,test,,,,",
    )  # fmt: skip
    with pytest.raises(DataError) as error:
        read_data(folder)
    assert str(error.value).splitlines() == [
        f"7 problems in {folder}:",
        f"  labels.csv, line 3: images/4.jpg is not in {folder}",
        f"  labels.csv, line 4: ../x.jpg lies outside of {folder}",
        f"  labels.csv, line 5: /etc/passwd lies outside of {folder}",
        "  labels.csv, line 6: class is empty",
        "  labels.csv, line 7: split is 'trian', expected train, valid or test",
        "  labels.csv, line 8: the box is ['1', '2', 'x', '4'], expected four numbers",
        f"  labels.csv, line 9: {folder / 'images/1.jpg'} is the image of labels.csv, line 2 too",
    ]
    write(folder, "path,class,x1,y1,x2,y2", "images/1.jpg,a,5,0,5,5")
    with pytest.raises(DataError, match=r"labels\.csv, line 2: its box \[5\.0, 0\.0, 5\.0, 5\.0\] is empty as xyxy"):
        read_data(folder)


def test_tables_of_one_name_in_two_folders_are_told_apart(folder: Path) -> None:
    for name in ("one", "two"):
        (folder / name).mkdir()
        write(folder, "path,class", "../images/1.jpg,a", f"../images/2.jpg,{name}", name=f"{name}/train.csv")
    with pytest.raises(DataError) as error:
        read_data(folder)
    again = [f"  two/train.csv, line {line}: " for line in (2, 3)]
    assert [line.startswith(start) for line, start in zip(str(error.value).splitlines()[1:], again, strict=True)]
    assert str(error.value).endswith("is the image of one/train.csv, line 3 too")


def test_tables_that_write_boxes_in_two_ways_are_an_error(folder: Path) -> None:
    write(folder, "path,class,x1,y1,x2,y2", "images/1.jpg,a,1,1,9,9", name="train.csv")
    write(folder, "path,class,x,y,width,height", "images/2.jpg,b,1,1,8,8", name="val.csv")
    with pytest.raises(DataError, match=r"its tables write boxes in different ways; set table_params\.box_format"):
        read_data(folder)


def test_paths_of_windows_and_absolute_paths_inside_the_folder(folder: Path) -> None:
    write(folder, "path,class", "images\\1.jpg,a", f"{folder}/images/2.jpg,b", "./images/../images/3.jpg,b")
    assert [row[0] for row in rows(folder)] == list(NAMES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"labels\.csv is empty \(0 bytes\)"),
        (b"<html>", r"labels\.csv is a web page, not a data file"),
        (b"path,class\nimages/1.jpg,\0" + b'"' + b"x" * 200_000, r"labels\.csv, line \d: not a line of a table"),
        ("path,class\nimages/1.jpg,a\n".encode("utf-16-le"), "is not in"),
        (b"\n \n", r"labels\.csv is empty"),
    ],
)
def test_what_is_no_table_is_named(folder: Path, content: bytes, message: str) -> None:
    (folder / "labels.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_data(folder)


def test_tables_of_something_else_beside_class_folders_are_no_obstacle(tmp_path: Path) -> None:
    write_images(tmp_path, "a/1.jpg", "b/1.jpg")
    write(tmp_path, "width,height", "20,10", name="sizes.csv")
    (tmp_path / "empty.csv").touch()
    assert read_data(tmp_path).kind == "class_folders"


def test_a_table_without_its_images_names_the_way_to_the_class_folders(tmp_path: Path) -> None:
    write_images(tmp_path, "a/1.jpg", "b/1.jpg")
    write(tmp_path, "path,class", "images/a/1.jpg,a", "images/b/1.jpg,b")
    with pytest.raises(DataError, match=r"^2 problems in .* set dataset: class_folders, which ignores tables\):\n"):
        read_data(tmp_path)
    assert read_data(tmp_path, kind="class_folders").class_names == ("a", "b")


def test_a_table_without_a_header_row_is_named(folder: Path) -> None:
    write(folder, "images/1.jpg,a", "images/2.jpg,b")
    with pytest.raises(DataError, match=r"has no header row: its first line names an image, images/1\.jpg, a;"):
        read_data(folder)


def test_more_values_than_columns_are_an_error_unless_they_are_empty(folder: Path) -> None:
    write(folder, "path,class", "images/1.jpg,a,,", "images/2.jpg,VW, Golf")
    with pytest.raises(DataError, match=r"^1 problem in .*\n  labels\.csv, line 3: 'Golf' has no column; quote"):
        read_data(folder)


@pytest.mark.parametrize(("wide", "level"), [(1, "INFO"), (2, "WARNING")])
def test_boxes_of_which_most_are_clipped_are_a_warning(folder: Path, caplog, wide: int, level: str) -> None:
    boxes = ["5,5,900,700"] * wide + ["5,5,9,9"] * (3 - wide)
    write(folder, "path,class,x1,y1,x2,y2", *(f"{name},a,{box}" for name, box in zip(NAMES, boxes, strict=True)))
    with caplog.at_level("INFO"):
        clip_boxes(read_data(folder))
    (record,) = (record for record in caplog.records if "extended beyond" in record.getMessage())
    assert record.levelname == level and ("table_params.box_format" in record.getMessage()) == (wide == 2)


def test_a_missing_first_image_does_not_hide_where_the_others_are(folder: Path) -> None:
    write(folder, "filename,label", "9.jpg,a", "1.jpg,a", "2.jpg,b")
    with pytest.raises(DataError, match=rf"^1 problem in .*:\n  labels\.csv, line 2: 9\.jpg is not in {folder}$"):
        read_data(folder)


def test_of_two_folders_with_the_same_names_a_table_has_the_one_of_its_split(tmp_path: Path) -> None:
    write_images(tmp_path, "test/1.jpg", "test/2.jpg", "train/1.jpg", "train/2.jpg")
    write(tmp_path, "path,class", "1.jpg,a", "2.jpg,b", name="train.csv")
    assert [path for path, *_ in rows(tmp_path)] == ["train/1.jpg", "train/2.jpg"]
    write(tmp_path, "path,class,split", "1.jpg,a,train", "2.jpg,b,train", "1.jpg,b,test", name="train.csv")
    assert [path for path, *_ in rows(tmp_path)] == ["train/1.jpg", "train/2.jpg"]
    assert [path for path, *_ in rows(tmp_path, "valid")] == ["test/1.jpg"]
    (tmp_path / "train").rename(tmp_path / "zoo")
    (tmp_path / "test").rename(tmp_path / "more")
    write(tmp_path, "path,class", "1.jpg,a", "2.jpg,b", name="train.csv")
    with pytest.raises(DataError, match=r"1\.jpg is in more/, zoo/; write the folder into the table's paths"):
        read_data(tmp_path)


def test_a_table_beside_a_release_is_read_where_it_is_named(tmp_path: Path) -> None:
    photos = write_updated_release(tmp_path)
    write(tmp_path, "path,class", f"{photos[0].name},my car", name="mine.csv")
    assert read_data(tmp_path).kind == "stanford_cars"
    assert read_data(tmp_path / "mine.csv").class_names == ("my car",)


def test_blank_lines_before_the_header_are_skipped(folder: Path) -> None:
    write(folder, "", "path;class", "images/1.jpg;a, b")
    assert rows(folder) == [("images/1.jpg", "a, b", None)]
