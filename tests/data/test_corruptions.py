"""Corruptions: the same bytes everywhere, more with each severity, and each does what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from research.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt

import numpy as np
import numpy.typing as npt
import pytest
from conftest import run_python

Images = npt.NDArray[np.uint8]

DIGEST = """
import hashlib, json, sys
import numpy as np
from research.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt

images = np.load(sys.argv[1])
found = {}
for name in CORRUPTIONS:
    corrupted = np.stack([corrupt(images, name, severity, 7) for severity in SEVERITIES])
    found[name] = hashlib.sha256(corrupted.tobytes()).hexdigest()[:16]
print(json.dumps(found))
"""
EXPECTED = {
    "shot_noise": "110a5b37bdf54d7e",
    "impulse_noise": "9db038cca7cabba5",
    "glass_blur": "04dae221e73d7912",
    "motion_blur": "c69ddd4a3ff9e2f5",
    "shear": "ed7cb0a4890bcc6d",
    "scale": "bddbbd994e9f33ad",
    "rotate": "dd68ec665c16b500",
    "brightness": "87d1a799469f2da3",
    "translate": "a15a0f2b1e3f0be3",
    "stripe": "a14a053974688e71",
    "fog": "224a91bf33a3f9cb",
    "spatter": "4207f3fdd15cbef0",
    "dotted_line": "6b6dc07f23d44bdf",
    "zigzag": "dd47f8800f734e63",
    "edges": "c4473dfda010a746",
}


def rings(count: int) -> Images:
    """Images of ellipses with soft edges, made with integers alone."""
    n = np.arange(count)[:, np.newaxis, np.newaxis]
    y, x = np.indices((28, 28))
    distance = (3 + n % 3) * (x - 13 - n % 2) ** 2 + (2 + n % 4) * (y - 14 + n % 3) ** 2
    ink = np.clip(400 - 3 * np.abs(distance - 110 - 4 * (n % 5)), 0, 255)
    return ink[..., np.newaxis].astype(np.uint8)


def moved(images: Images, down: int, right: int) -> Images:
    """Images moved by whole pixels, at most 9; what comes in is 0."""
    padded = np.pad(images, ((0, 0), (9, 9), (9, 9), (0, 0)))
    return padded[:, 9 - down : 37 - down, 9 - right : 37 - right]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_it_is_a_function_of_seed_and_position_and_grows_with_severity(name: str) -> None:
    images = rings(1005)
    before = images.copy()
    corrupted = corrupt(images, name, 5)
    assert (corrupted.dtype, corrupted.shape) == (images.dtype, images.shape)
    np.testing.assert_array_equal(images, before)
    for count in (0, 1, 1001):
        np.testing.assert_array_equal(corrupt(images[:count], name, 5), corrupted[:count])
    some = images[:100].astype(int)
    changes = [np.abs(corrupt(images[:100], name, k) - some).mean() for k in SEVERITIES]
    assert 1 < changes[0] < changes[1] < changes[2] < changes[3] < changes[4]
    random = name not in {"scale", "brightness", "edges"}
    other = corrupt(images, name, 5, seed=1)
    assert np.array_equal(other, corrupted) != random
    alike = np.tile(images[:1], (50, 1, 1, 1))
    assert (len(np.unique(corrupt(alike, name, 5), axis=0)) > 1) == random


def test_the_bytes_are_the_same_on_every_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "images.npy", rings(40))
    # What NumPy makes use of on this processor, the oldest first.
    here = np.show_config(mode="dicts")["SIMD Extensions"]["found"]
    for first in range(len(here) + 1):
        monkeypatch.setenv("NPY_DISABLE_CPU_FEATURES", " ".join(here[first:]))
        if first == 0:  # the C library's exp, too, depends on the processor
            monkeypatch.setenv("GLIBC_TUNABLES", "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4")
        result = run_python("-c", DIGEST, tmp_path / "images.npy", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout) == EXPECTED, here[first:]
        monkeypatch.delenv("GLIBC_TUNABLES", raising=False)


@pytest.mark.parametrize(("name", "severity"), [("fog", 0), ("fog", 6), ("sand", 1)])
def test_what_there_is_not_is_named(name: str, severity: int) -> None:
    with pytest.raises(ValueError, match=f"'{name}' of severity {severity}; give one of shot_noi"):
        corrupt(rings(1), name, severity)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_shot_noise_has_the_mean_and_the_variance_of_photons(severity: int) -> None:
    photons = CORRUPTIONS["shot_noise"].amounts[severity - 1]
    grey = np.full((400, 28, 28, 1), 32, np.uint8)
    noisy = corrupt(grey, "shot_noise", severity).astype(float)
    assert noisy.mean() == pytest.approx(32, abs=1)
    assert noisy.var() == pytest.approx(32 * 255 / photons, rel=0.05)
    assert not corrupt(np.zeros_like(grey), "shot_noise", severity).any()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_impulse_noise_hits_its_share_of_the_pixels_white_as_often_as_black(severity: int) -> None:
    share = CORRUPTIONS["impulse_noise"].amounts[severity - 1] / 100
    noisy = corrupt(np.full((400, 28, 28, 1), 99, np.uint8), "impulse_noise", severity)
    for value in (0, 255):
        assert (noisy == value).mean() == pytest.approx(share / 2, rel=0.05)
    assert set(np.unique(noisy)) == {0, 99, 255}


def test_translation_is_in_eight_directions_by_whole_pixels() -> None:
    images = rings(200)
    for severity, distance in zip(SEVERITIES, CORRUPTIONS["translate"].amounts, strict=True):
        found = corrupt(images, "translate", severity)
        ways = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
        same = [
            (moved(images, distance * y, distance * x) == found).all((1, 2, 3)) for y, x in ways
        ]
        assert (np.sum(same, 0) == 1).all()
        assert np.any(same, 1).all()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_geometry(severity: int) -> None:
    dot: Any = np.zeros((60, 28, 28, 1), np.uint8)
    dot[:, 7:10, 9:12] = 200
    before = np.array([8 - 13.5, 10 - 13.5])
    places = {}
    for name in ("rotate", "scale", "shear"):
        ink = corrupt(dot, name, severity)[..., 0].astype(float)
        axes = [(ink * (np.indices((28, 28))[axis] - 13.5)).sum((1, 2)) for axis in (0, 1)]
        places[name] = np.stack(axes, 1) / ink.sum((1, 2))[:, np.newaxis]
    amount = {name: CORRUPTIONS[name].amounts[severity - 1] for name in places}
    np.testing.assert_allclose(places["scale"] - before * amount["scale"] / 100, 0, atol=0.25)
    angles = np.degrees(np.arctan2(*places["rotate"].T) - np.arctan2(*before))
    assert set(np.round((angles + 180) % 360 - 180)) == {-amount["rotate"], amount["rotate"]}
    np.testing.assert_allclose(np.hypot(*places["rotate"].T), np.hypot(*before), atol=0.15)
    slants = (places["shear"] - before)[:, 1] / before[0]
    np.testing.assert_allclose(np.abs(slants), amount["shear"] / 100, atol=0.02)
    assert set(np.sign(slants)) == {-1, 1}


@pytest.mark.parametrize("severity", SEVERITIES)
def test_a_stripe_is_inverted_and_nothing_else(severity: int) -> None:
    images = rings(100)
    width = CORRUPTIONS["stripe"].amounts[severity - 1]
    for image, found in zip(images, corrupt(images, "stripe", severity), strict=True):
        inverted = (found == 255 - image).all((0, 2))
        assert inverted.sum() == width
        (columns,) = inverted.nonzero()
        assert columns[-1] - columns[0] == width - 1
        np.testing.assert_array_equal(found[:, ~inverted], image[:, ~inverted])
