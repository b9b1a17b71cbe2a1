"""Where Stanford Cars can be had today, and what a failed download leaves in its place."""

import re
from pathlib import Path

from utils.errors import DataError

HEAD_LENGTH = 1024  # bytes; a web page and a Git LFS pointer show themselves earlier

WHERE_TO_GET = """\
The official links (ai.stanford.edu) are dead and answer with web pages. Copies are kept on
  - Kaggle: data sets named stanford-cars-dataset (photos, often nested as cars_train/cars_train) and cars-devkit;
  - the thread https://github.com/pytorch/vision/issues/7545, whose comments lead to car_devkit.tgz and
    cars_test_annos_withlabels.mat, and to the folder that torchvision expects;
  - Hugging Face: data sets named stanford_cars, if they hold the files below and not Parquet;
  - the Internet Archive (web.archive.org), in its snapshots of the official pages.
One of the two releases is enough, as archives or extracted:
  - updated release: car_ims.tgz, cars_annos.mat
  - original release: cars_train.tgz, cars_test.tgz, car_devkit.tgz, cars_test_annos_withlabels.mat"""


def check_download(path: Path) -> bytes:
    """Returns the first bytes of a file, unless they are those of a failed download.

    Raises:
        DataError: The file cannot be read, is empty, a web page or a Git LFS pointer.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_LENGTH)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if not head:
        raise DataError(f"{path} is empty (0 bytes): the download failed.\n{WHERE_TO_GET}")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        title = re.search(rb"<title>\s*(.*?)\s*</title>", head, re.IGNORECASE | re.DOTALL)
        named = f' with the title "{title[1].decode(errors="replace")}"' if title else ""
        wanted = "annotations" if path.suffix == ".mat" else "an archive"
        raise DataError(f"{path} is a web page{named}, not {wanted}: its link is dead.\n{WHERE_TO_GET}")
    if text.startswith(b"version https://git-lfs"):
        raise DataError(f"{path} is a Git LFS pointer, not the file: run `git lfs pull` in the copy it is from")
    return head
