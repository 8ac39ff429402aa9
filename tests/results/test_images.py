from __future__ import annotations

import os
from pathlib import Path

from research.errors import InputError
from research.results import images
from research.results.images import read_digit

import numpy as np
import numpy.typing as npt
import pytest
from conftest import make_split
from PIL import Image, ImageDraw, ImageFilter


def drawing(size: tuple[int, int], ink: int = 255, paper: int = 0) -> Image.Image:
    """A thick 7, left of and above the middle."""
    image = Image.new("L", size, paper)
    width, height = size
    line = [(0.2, 0.15), (0.6, 0.15), (0.35, 0.7)]
    points = [(x * width, y * height) for x, y in line]
    ImageDraw.Draw(image).line(points, fill=ink, width=max(2, width // 12), joint="curve")
    return image


def centre(pixels: npt.NDArray[np.uint8]) -> tuple[float, float]:
    ink = pixels[..., 0].astype(float)
    y, x = (float(np.average(np.indices(ink.shape)[axis], weights=ink)) for axis in (0, 1))
    return y, x


def test_a_28x28_image_is_taken_as_it_is(tmp_path: Path) -> None:
    pixels = make_split(1).images[0]
    Image.fromarray(pixels[..., 0]).save(tmp_path / "digit.png")
    digit = read_digit(tmp_path / "digit.png")
    np.testing.assert_array_equal(digit.pixels, pixels)
    assert not digit.inverted


@pytest.mark.parametrize("size", [(12, 12), (100, 100), (640, 480), (300, 900), (28, 29)])
def test_any_size_is_scaled_to_20x20_and_centred_by_mass(
    size: tuple[int, int], tmp_path: Path
) -> None:
    drawing(size).save(tmp_path / "digit.png")
    pixels = read_digit(tmp_path / "digit.png").pixels
    assert pixels.shape == (28, 28, 1)
    assert pixels.max() == 255
    rows, columns = np.nonzero(pixels[..., 0])
    assert max(np.ptp(rows), np.ptp(columns)) + 1 in (19, 20)
    assert centre(pixels) == pytest.approx((13.5, 13.5), abs=1.0)


MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dark_on_light", [False, True])
def test_every_mode_shows_the_same_digit(mode: str, dark_on_light: bool, tmp_path: Path) -> None:
    image = drawing((120, 120), *((0, 255) if dark_on_light else (255, 0)))
    expected = read_digit_of(image, tmp_path / "expected.png").pixels
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    elif mode == "I":
        image = Image.fromarray(np.asarray(image).astype(np.int32) * 257)
    else:
        image = image.convert(mode)
    digit = read_digit_of(image, tmp_path / "image.tiff")
    assert digit.inverted == dark_on_light
    np.testing.assert_allclose(digit.pixels.astype(int), expected.astype(int), atol=3)


@pytest.mark.parametrize("ink", [0, 255])
def test_ink_on_a_transparent_ground_is_seen(ink: int, tmp_path: Path) -> None:
    shape = drawing((120, 120))
    image = Image.new("RGBA", shape.size, (ink, ink, ink, 0))
    image.putalpha(shape)
    expected = read_digit_of(shape, tmp_path / "expected.png").pixels
    np.testing.assert_allclose(
        read_digit_of(image, tmp_path / "image.png").pixels.astype(int),
        expected.astype(int),
        atol=3,
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "not an image"),
        (b"not an image at all", "not an image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "not an image"),
        # Pillow reads these formats; for the first it would start Ghostscript.
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 28 28\n%%EndComments\n",
            "one of the format",
        ),
        (b"P7\nWIDTH 1\nHEIGHT 1\n", "one of the formats PNG, JPEG, GIF, BMP, TIFF, WEBP, PPM"),
        (b"SIMPLE  =                    T", "one of the formats"),
    ],
)
def test_what_is_no_image_is_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "digit.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"digit\.png: .*{message}") as error:
        read_digit(path)
    assert "\n" not in str(error.value)


def test_values_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    pixels = np.zeros((40, 40), np.float32)
    pixels[10:20, 10:20] = np.nan
    with pytest.raises(InputError, match="NaN"):
        read_digit_of(Image.fromarray(pixels), tmp_path / "nan.tiff")


@pytest.mark.parametrize("mode", MODES)
def test_a_large_image_is_reduced_before_it_becomes_floating_point(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = drawing((2400, 1800))
    expected = read_digit_of(image.reduce(2), tmp_path / "expected.png").pixels
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    else:
        image = image.convert(mode, dither=Image.Dither.NONE)
    image.save(tmp_path / "image.tiff")
    largest = 0
    centre_by_mass = images._centred

    def centred(grey: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        nonlocal largest
        largest = grey.size
        return centre_by_mass(grey)

    monkeypatch.setattr(images, "_centred", centred)
    pixels = read_digit(tmp_path / "image.tiff").pixels
    assert largest <= 4 * images.LONGEST_SIDE**2
    np.testing.assert_allclose(pixels.astype(int), expected.astype(int), atol=8)


@pytest.mark.parametrize("pixels", [images.MOST_PIXELS + 1, 100_000_000, 1_000_000_000])
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(
    pixels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "huge.pgm").write_bytes(b"P5 %d 1 255\n" % pixels)
    monkeypatch.setattr(Image.Image, "load", None)
    with pytest.raises(InputError, match=r"huge\.pgm: .* more than 50000000 pixels; scale it down"):
        read_digit(tmp_path / "huge.pgm")


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    with pytest.raises(InputError, match=r"fifo\.png: .*it is a FIFO"):
        read_digit(tmp_path / "fifo.png")


def photograph_of(shape: Image.Image, dark: bool, rng: np.random.Generator) -> Image.Image:
    """The shape as ink on paper that is lit from one side and darker in a corner, with noise."""
    ink = np.zeros((300, 400))
    top, left = (int(rng.integers(0, room)) for room in (300 - shape.height, 400 - shape.width))
    ink[top : top + shape.height, left : left + shape.width] = np.asarray(shape) / 255
    y, x = np.mgrid[0:300, 0:400] / 400
    paper = 200 + 60 * (x - y) - 120 * ((y - rng.random()) ** 2 + (x - rng.random()) ** 2)
    image = paper * (1 - 0.6 * ink) if dark else paper / 2 + (250 - paper / 2) * 0.6 * ink
    blurred = Image.fromarray(image.astype(np.uint8)).filter(ImageFilter.GaussianBlur(1))
    noisy = np.asarray(blurred) + rng.normal(0, 6, image.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("dark", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_a_photograph_on_an_unevenly_lit_background_shows_the_digit(
    seed: int, dark: bool, tmp_path: Path
) -> None:
    rng = np.random.default_rng(seed)
    shape = drawing((int(rng.integers(120, 240)),) * 2)
    expected = read_digit_of(shape, tmp_path / "expected.png").pixels
    digit = read_digit_of(photograph_of(shape, dark, rng), tmp_path / "photograph.jpg")
    assert digit.inverted == dark
    assert centre(digit.pixels) == pytest.approx((13.5, 13.5), abs=1.0)
    assert np.corrcoef(digit.pixels.ravel(), expected.ravel())[0, 1] > 0.75
    assert (digit.pixels[expected == 0] == 0).mean() > 0.9


def test_specks_beside_the_digit_are_left_out(tmp_path: Path) -> None:
    image = drawing((200, 200))
    expected = read_digit_of(image, tmp_path / "expected.png").pixels
    ImageDraw.Draw(image).ellipse((185, 185, 190, 190), fill=255)
    with_speck = read_digit_of(image, tmp_path / "speck.png").pixels
    np.testing.assert_allclose(with_speck.astype(int), expected.astype(int), atol=3)


def test_a_blank_image_is_refused(tmp_path: Path) -> None:
    Image.new("L", (50, 50), 250).save(tmp_path / "blank.png")
    with pytest.raises(InputError, match="blank"):
        read_digit(tmp_path / "blank.png")


def read_digit_of(image: Image.Image, path: Path):  # type: ignore[no-untyped-def]
    image.save(path)
    return read_digit(path)
