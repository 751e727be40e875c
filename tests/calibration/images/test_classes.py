"""The class of an image in a folder: by name, by number, or by the order of the folders."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from calibration.errors import ImageSetError
from calibration.images import open_image_set
from calibration.images.listing import image_files, list_folder
from tests.calibration.images.folders import flat, save, with_csv


def classes(root: Path, *names: str) -> Path:
    """One image in each folder."""
    for index, name in enumerate(names):
        save(root / name / f"{index}.png", index)
    return root


def labels(root: Path, known: tuple[str, ...] | None = None) -> dict[str, int]:
    """Folder to class."""
    listing = list_folder(root, known)
    assert listing.labels is not None
    return {str(Path(name).parent): label for name, label in zip(listing.names, listing.labels, strict=True)}


def test_numbered_folders_are_class_numbers(tmp_path: Path) -> None:
    root = classes(tmp_path, *(str(index) for index in range(12)))
    assert labels(root) == {
        str(index): index for index in range(12)
    }  # in the order of names, 10 comes before 2
    listing = list_folder(root)
    assert listing.class_names == tuple(str(index) for index in range(12))
    assert not listing.by_folder


def test_numbers_may_be_padded_and_leave_classes_out(tmp_path: Path) -> None:
    assert labels(classes(tmp_path, "000", "010", "207")) == {"000": 0, "010": 10, "207": 207}
    images = open_image_set(tmp_path)
    assert images.labels_fit(1000)
    assert not images.labels_fit(200)


def test_two_folders_of_one_number_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageSetError, match="two folders of one class number"):
        list_folder(classes(tmp_path, "1", "01"))


def test_folders_are_found_by_the_names_of_the_classes(tmp_path: Path) -> None:
    root = classes(tmp_path, "bird", "dog")
    assert labels(root) == {"bird": 0, "dog": 1}
    assert labels(root, ("dog", "bird")) == {"dog": 0, "bird": 1}
    assert labels(root, ("cat", "dog", "bird")) == {"dog": 1, "bird": 2}
    assert labels(root, ("a", "b")) == {"bird": 0, "dog": 1}, "no name is known, so the order of names holds"
    assert not list_folder(root, ("dog", "bird")).by_folder


def test_numbers_can_be_names(tmp_path: Path) -> None:
    assert labels(classes(tmp_path, "2020", "2021"), ("2021", "2020")) == {"2020": 1, "2021": 0}


def test_one_letter_in_two_codes_is_one_name(tmp_path: Path) -> None:
    root = classes(tmp_path, "Vo\u0308gel", "Katzen")  # as macOS writes it
    assert labels(root, ("V\u00f6gel", "Katzen")) == {"Vo\u0308gel": 0, "Katzen": 1}


def test_folders_that_are_no_class_are_named(tmp_path: Path) -> None:
    root = classes(tmp_path, "bird", "dog", "fish", "frog", "toad", "newt")
    with pytest.raises(
        ImageSetError,
        match=r"not classes of the network \('fish', 'frog', 'newt' and 1 more\), while others are",
    ):
        list_folder(root, ("dog", "bird"))


def test_a_name_of_two_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageSetError, match="'crane' is the name of several classes"):
        list_folder(classes(tmp_path, "crane", "dog"), ("crane", "dog", "crane"))


@pytest.mark.parametrize("splits", [("train", "val"), ("Training", "Test"), ("train",)])
def test_a_folder_of_splits_is_refused_with_the_one_to_pass(tmp_path: Path, splits: tuple[str, ...]) -> None:
    for split in splits:
        classes(tmp_path / split, "cat", "dog")
    with pytest.raises(ImageSetError, match=rf"each with folders of classes .*such as .*{min(splits)}"):
        list_folder(tmp_path)


def test_splits_of_any_name_are_known_by_the_classes_in_them(tmp_path: Path) -> None:
    for split in ("first", "second"):
        classes(tmp_path / split, "cat", "dog")
    assert labels(tmp_path) == {"first/cat": 0, "first/dog": 0, "second/cat": 1, "second/dog": 1}
    with pytest.raises(ImageSetError, match="holds the folders first, second, each with folders of classes"):
        list_folder(tmp_path, ("dog", "cat"))


def test_classes_may_be_called_like_splits(tmp_path: Path) -> None:
    assert labels(classes(tmp_path, "test", "train")) == {"test": 0, "train": 1}


def test_linked_folders_are_read_at_every_depth(tmp_path: Path) -> None:
    classes(tmp_path / "store", "cat", "dog")
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "part").symlink_to(tmp_path / "store" / name)
    (tmp_path / "set/elk").symlink_to(tmp_path / "store/dog")
    assert list_folder(tmp_path / "set").names == ("cat/part/0.png", "dog/part/1.png", "elk/1.png")


def test_links_in_circles_end(tmp_path: Path) -> None:
    root = classes(tmp_path / "set", "cat", "dog")
    (root / "cat" / "again").symlink_to(root)
    (root / "dog" / "self").symlink_to(root / "dog")
    names = list_folder(root).names
    assert set(names) >= {"cat/0.png", "dog/1.png"}
    assert len(names) <= 4


def test_hidden_folders_are_not_read(tmp_path: Path) -> None:
    save(classes(tmp_path, "cat", "dog") / "cat" / ".thumbnails" / "0.png", 0)
    assert list_folder(tmp_path).names == ("cat/0.png", "dog/1.png")


@pytest.mark.parametrize(
    "text",
    [
        "file, class_index\n00.png, 3\n01.png, 4\n",
        "file;class_index\n00.png;3\n01.png;4\n",
        "\ufefffile\tclass_index\r\n00.png\t3\r\n01.png\t4\r\n",
        ' "file" ; class_index \n00.png;3\n01.png ; 4\n'.replace('"', ""),
    ],
)
def test_tables_of_spreadsheets_are_read(tmp_path: Path, text: str) -> None:
    listing = list_folder(with_csv(tmp_path, text))
    assert (listing.names, listing.labels) == (("00.png", "01.png"), (3, 4))


def test_a_table_may_name_classes_and_write_the_folder(tmp_path: Path) -> None:
    with_csv(tmp_path, "file,class_index\nimages/00.png,dog\n01.png,cat\n")
    listing = list_folder(tmp_path, ("cat", "dog"))
    assert (listing.names, listing.labels) == (("00.png", "01.png"), (1, 0))
    with pytest.raises(
        ImageSetError, match="line 3 has class_index 'cat', which is not a class of the network"
    ):
        list_folder(tmp_path, ("tabby", "dog"))
    with pytest.raises(
        ImageSetError, match="line 2 has class_index 'dog', which is the name of several classes"
    ):
        list_folder(tmp_path, ("cat", "dog", "dog"))


def test_names_that_are_not_the_networks_are_classes_in_their_order(tmp_path: Path) -> None:
    with_csv(tmp_path, "file,class_index\n00.png,dog\n01.png,cat\n")
    for known in (None, ("a", "b")):
        listing = list_folder(tmp_path, known)
        assert (listing.labels, listing.class_names, listing.by_folder) == ((1, 0), ("cat", "dog"), True)


@pytest.mark.parametrize(
    "text",
    [
        "file_name,label\n00.png,3\n01.png,4\n",
        "filename,target\n00.png,3\n01.png,4\n",
        "image,class\n00.png,3.0\n01.png,4.0\n",
        "label,path\n3,00.png\n4,01.png\n",
        "file,label,class_index\n00.png,cat,3\n01.png,dog,4\n",
    ],
)
def test_usual_names_of_columns_are_known(tmp_path: Path, text: str) -> None:
    assert list_folder(with_csv(tmp_path, text)).labels == (3, 4)


def test_a_table_may_lie_beside_the_images(tmp_path: Path) -> None:
    """Hugging Face's image folders have a metadata.csv; without a column of classes it says nothing about them."""
    flat(tmp_path, 2)
    (tmp_path / "metadata.csv").write_text("file_name,text\n00.png,a dog\n01.png,a cat\n")
    assert list_folder(tmp_path).labels is None
    for name, head in (("metadata.csv", "file_name,label"), ("labels.csv", "file,class_index")):
        (tmp_path / name).write_text(f"{head}\n00.png,1\n01.png,0\n")
        listing = list_folder(tmp_path)
        assert (listing.root, listing.names, listing.labels) == (tmp_path, ("00.png", "01.png"), (1, 0))


def test_a_table_that_numbers_the_classes_otherwise_is_refused(tmp_path: Path) -> None:
    with_csv(tmp_path, "file,class_index,name\n00.png,0,cat\n01.png,1,dog\n")
    assert list_folder(tmp_path, ("cat", "dog")).labels == (0, 1)
    assert list_folder(tmp_path, ("tabby cat", "dog")).labels == (0, 1), (
        "another spelling is not another class"
    )
    with pytest.raises(ImageSetError, match="line 2 calls class 0 'cat', which is class 1 of the network"):
        list_folder(tmp_path, ("dog", "cat"))


@pytest.mark.parametrize(
    ("numbers", "classes", "found"),
    [
        ((1, 2, 3), 3, "run from 1 to 3 and never are 0, while classes count from 0 to 2: .* subtract 1"),
        ((1, 3), 3, "run from 1 to 3"),
        ((1, 2), 3, "run from 1 to 2"),
        ((1, 1), 3, None),
        ((0, 1, 2), 3, None),
        ((2, 3), 3, None),
        ((1, 5), 3, None),
        ((1,), 1, None),
        ((1, 1), 2, None),
        ((1, 2), 2, "run from 1 to 2"),
    ],
)
def test_labels_that_count_from_one_are_named(
    tmp_path: Path, numbers: tuple[int, ...], classes: int, found: str | None
) -> None:
    flat(tmp_path / "images", len(numbers))
    rows = "".join(f"{index:02d}.png,{label}\n" for index, label in enumerate(numbers))
    (tmp_path / "labels.csv").write_text(f"file,class_index\n{rows}")
    sentence = open_image_set(tmp_path).labels_from_one(classes)
    if found is None:
        assert sentence is None
    else:
        assert sentence is not None
        assert re.search(found, sentence)


def test_image_files_of_other_kinds_are_said(tmp_path: Path) -> None:
    classes(tmp_path, "cat", "dog")
    for name in ("a.heic", "b.HEIC", "notes.txt"):
        (tmp_path / "cat" / name).write_text("x")
    (note,) = open_image_set(tmp_path).notes
    assert note.startswith("2 image files of kinds that are not read of ")
    assert note.endswith("were left out: a.heic, b.HEIC")


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageSetError, match=r"pipe\.png cannot be read \(it is not a regular file\)"):
        image_files([tmp_path / "pipe.png"])
