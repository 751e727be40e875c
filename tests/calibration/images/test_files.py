from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calibration.errors import ImageSetError
from calibration.images.files import decode, open_image
from calibration.preprocess import CIFAR, IMAGENET
from tests.calibration.images.folders import picture, png_header, save


def damaged(path: Path, kind: str) -> Path:
    save(path, 0)
    data = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "text": b"hello",
            "half": data[: len(data) // 2],
            "header only": data[:20],
            "noise inside": data[:200] + bytes(400) + data[600:],
        }[kind]
    )
    return path


def refusal(path: Path) -> str:
    try:
        open_image(path)
    except ImageSetError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", ["empty", "text", "half", "header only", "noise inside"])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".gif", ".tif"])
def test_damaged_file_is_named_or_read_but_never_a_traceback(tmp_path: Path, suffix: str, kind: str) -> None:
    said = refusal(damaged(tmp_path / f"x{suffix}", kind))
    if said or kind != "noise inside":  # which some formats have no checksum to notice
        assert f"x{suffix} cannot be read (" in said
        assert "remove it, or pass --skip-unreadable" in said


@pytest.mark.parametrize("kind", ["empty", "text"])
def test_file_of_other_contents_is_said_to_be_no_image(tmp_path: Path, kind: str) -> None:
    with pytest.raises(
        ImageSetError,
        match="it is not an image in a format that is read: JPEG, PNG",
    ):
        open_image(damaged(tmp_path / "x.png", kind))


@pytest.mark.parametrize("side", [8_000, 12_000, 30_000])
def test_decompression_bomb_is_a_sentence_and_not_a_warning(tmp_path: Path, side: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(side, side))
    with pytest.raises(
        ImageSetError, match=r"bomb\.png cannot be read \(it has too many pixels to decode for a file"
    ):
        open_image(path)


def test_large_image_below_the_limit_does_not_warn(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(png_header(9600, 9600))
    os.truncate(path, 60_000_000)  # a file of noise would be larger
    with pytest.raises(ImageSetError, match=r"large\.png cannot be read \((?!it has too many)"):
        open_image(path)


def test_grey_and_cmyk_files_are_read_as_rgb(tmp_path: Path) -> None:
    Image.new("L", (32, 32), 90).save(tmp_path / "grey.jpg")
    Image.new("CMYK", (32, 32), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    assert np.abs(decode(tmp_path / "grey.jpg", CIFAR).astype(int) - 90).max() <= 1
    assert np.abs(decode(tmp_path / "cmyk.jpg", CIFAR).astype(int) - [255, 0, 0]).max() <= 3


def test_sixteen_bit_file_is_scaled(tmp_path: Path) -> None:
    Image.fromarray(np.full((32, 32), 51 * 257, np.uint16)).save(tmp_path / "deep.png")
    assert np.array_equal(decode(tmp_path / "deep.png", CIFAR), np.full((32, 32, 3), 51))


def test_orientation_in_the_file_is_honoured(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(picture(5)).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(np.asarray(open_image(tmp_path / "x.png")), picture(5)[::-1, ::-1])


def test_directory_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageSetError, match=r"cannot be read .Is a directory"):
        open_image(tmp_path)


def test_four_orientations_of_one_photograph_are_one_picture(real_data: Path) -> None:
    photos = [real_data / f"zoo/photos/exif-{orientation}.jpg" for orientation in (1, 3, 6, 8)]
    upright, *turned = (decode(photo, IMAGENET).astype(int) for photo in photos)
    for pixels in turned:
        difference = np.abs(pixels - upright).max(axis=2)
        difference[75:145, 70:130] = 0  # the number of the orientation is written here
        assert difference.mean() < 6, "they were compressed anew, and nothing else"
        assert difference.max() < 80


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 32 32
%%EndComments
(touched) (w) file closefile
showpage
%%EOF
"""


@pytest.mark.parametrize("kind", ["eps", "ico", "tga", "pcx", "sgi", "jp2", "avif", "dds"])
def test_other_decoders_of_the_library_are_not_asked(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An EPS named x.png would start Ghostscript; the others are more code to attack."""
    path = tmp_path / "x.png"
    if kind == "eps":
        path.write_bytes(EPS)
    else:
        try:
            Image.fromarray(picture(0)).convert("RGB").save(path, {"jp2": "JPEG2000"}.get(kind, kind.upper()))
        except (KeyError, OSError):
            pytest.skip(f"this Pillow writes no {kind}")
    monkeypatch.setattr("subprocess.Popen", None)
    with pytest.raises(ImageSetError, match="it is not an image in a format that is read"):
        open_image(path)


def test_a_tiny_file_does_not_take_much_memory(tmp_path: Path) -> None:
    """Pixels of one colour are packed a thousand to one."""
    path = tmp_path / "flat.png"
    Image.new("RGB", (7500, 7500)).save(path)
    with pytest.raises(ImageSetError, match="too many pixels to decode for a file of its size"):
        open_image(path)
    Image.new("RGB", (7000, 7000)).save(path)
    assert open_image(path).size == (7000, 7000)
    Image.new("RGBA", (7000, 7000)).save(path)
    with pytest.raises(ImageSetError, match="too many pixels"):
        open_image(path)
