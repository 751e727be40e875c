from __future__ import annotations

from pathlib import Path

import pytest

from calibration.errors import ImageSetError
from calibration.images.listing import list_folder
from tests.calibration.images.folders import flat, save, with_csv

HEAD = "file,class_index\n"


def test_hidden_files_and_other_kinds_are_not_images(tmp_path: Path) -> None:
    flat(tmp_path, 2)
    for name in (".hidden.png", "notes.txt", "._00.png"):
        (tmp_path / name).write_text("x")
    save(tmp_path / "__MACOSX" / "junk.png", 0)
    (tmp_path / "raw").mkdir()
    assert list_folder(tmp_path).names == ("00.png", "01.png")


def test_suffixes_are_read_in_any_case(tmp_path: Path) -> None:
    save(tmp_path / "A.PNG", 0)
    assert list_folder(tmp_path).names == ("A.PNG",)


def test_empty_class_keeps_its_index(tmp_path: Path) -> None:
    save(tmp_path / "a" / "0.png", 0)
    save(tmp_path / "c" / "0.png", 0)
    (tmp_path / "b").mkdir()
    listing = list_folder(tmp_path)
    assert (listing.class_names, listing.labels) == (("a", "b", "c"), (0, 2))


@pytest.mark.parametrize("name", [None, "notes.txt", "folder/notes.txt"])
def test_folder_without_images_is_refused(tmp_path: Path, name: str | None) -> None:
    if name:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("hello")
    with pytest.raises(
        ImageSetError, match=r"holds no images: pass a folder with files of the kinds .*\.jpg"
    ):
        list_folder(tmp_path)


def test_loose_images_beside_class_folders_are_refused(tmp_path: Path) -> None:
    save(flat(tmp_path) / "cat" / "0.png", 0)
    with pytest.raises(ImageSetError, match=r"holds loose images \(00\.png\) beside folders of images"):
        list_folder(tmp_path)


def test_images_folder_without_labels_csv_is_no_class(tmp_path: Path) -> None:
    flat(tmp_path / "images")
    with pytest.raises(ImageSetError, match=r"has images/ but no labels.csv: add one .* or pass .*images"):
        list_folder(tmp_path)


def test_csv_of_a_spreadsheet_is_read(tmp_path: Path) -> None:
    text = '\ufeffclass_index,file,author\r\n3,00.png,"A, B"\r\n 4 ,01.png,\r\n3,00.png,"A, B"\r\n'
    listing = list_folder(with_csv(tmp_path, text))
    assert (listing.names, listing.labels, listing.class_names) == (("00.png", "01.png"), (3, 4), None)
    assert listing.root == tmp_path / "images"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEAD + "00.png,1\nabsent.png,2\n", r"line 3 names 'absent\.png', which is not in .*images"),
        ("file,kind\n00.png,1\n", "lacks the column class_index: its first line must be file,class_index"),
        ("a,b\n", "lacks the column class_index and file"),
        ("", "lacks the column"),
        (HEAD, "lists no images"),
        (
            HEAD + "00.png,1\n01.png,cat\n",
            "line 2 has class_index '1': write the number .* or its name in every",
        ),
        (HEAD + "00.png,1.5\n", "class_index '1.5'"),
        (HEAD + "00.png,-1\n", "class_index '-1'"),
        (HEAD + "00.png,1000000\n", "class_index '1000000'"),
        (HEAD + "00.png," + "9" * 5000 + "\n", "class_index '999"),
        (HEAD + "00.png,\u00b2\n", "class_index"),
        (HEAD + "00.png\n", "line 2 is incomplete"),
        (HEAD + ",3\n", "line 2 is incomplete"),
        (HEAD + "../labels.csv,3\n", "files must lie inside"),
        (HEAD + "/etc/hostname,3\n", "files must lie inside"),
        (HEAD + "00.png,1\n00.png,2\n", r"line 3 gives '00\.png' class 2, an earlier line 1"),
        (
            "file,class_index,name\n00.png,1,cat\n01.png,1,dog\n",
            "line 3 calls class 1 'dog', an earlier line 'cat'",
        ),
        (HEAD.encode() + b"00.png,1\ncaf\xe9.png,2\n", "not a UTF-8 table of comma-separated values"),
        (HEAD.encode("utf-16"), "not a UTF-8 table"),
        (HEAD + '"' + "x" * 200_000 + '",1\n', "not a UTF-8 table of comma-separated values .*field larger"),
    ],
)
def test_csv_that_is_wrong_is_refused_with_its_place(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(ImageSetError, match=words):
        list_folder(with_csv(tmp_path, text))


def test_folder_that_cannot_be_listed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", deny)
    with pytest.raises(ImageSetError, match=r"cannot be read .Permission denied.: check its permissions"):
        list_folder(tmp_path)
