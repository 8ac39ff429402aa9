from __future__ import annotations

import json
from pathlib import Path

from research.errors import InputError
from research.files import sha256
from research.network.mnist_cnn import MnistCNN
from research.results import export
from research.results.evaluation import evaluate
from research.results.export import export_h5, load_h5

import numpy as np
import pytest
from conftest import make_split, run_python

# Runs in a process of its own and in isolated mode, without this project.
ELSEWHERE = """
import json, sys
import numpy as np, tensorflow as tf
h5, arrays, out = sys.argv[1:]
data = np.load(arrays)
model = tf.keras.models.load_model(h5)
np.save(out, model.predict(data["x"], batch_size=64, verbose=0))
loss, accuracy = model.evaluate(data["x"], data["y"], batch_size=64, verbose=0)
history = model.fit(data["x"], data["y"], epochs=3, batch_size=16, verbose=0).history["loss"]
print(json.dumps({
    "loss": loss, "accuracy": accuracy, "history": history,
    "optimizer": [model.optimizer.name, float(model.optimizer.learning_rate)],
    "layers": [type(layer).__name__ for layer in model.layers],
    "project": "research" in sys.modules,
}))
"""


@pytest.fixture
def exported(tmp_path: Path) -> tuple[MnistCNN, Path]:
    model, path = MnistCNN(8, seed=3), tmp_path / "mnist.h5"
    export_h5(model, path, make_split(20).images, learning_rate=0.5)
    return model, path


def test_a_fresh_process_without_this_project_predicts_the_same_bits_and_can_fit_on(
    exported: tuple[MnistCNN, Path], tmp_path: Path
) -> None:
    model, path = exported
    split = make_split(100)
    images = split.images.astype(np.float32) / np.float32(255)
    labels = np.eye(10, dtype=np.float32)[split.labels]
    np.savez(tmp_path / "arrays.npz", x=images, y=labels)
    script = tmp_path / "elsewhere.py"
    script.write_text(ELSEWHERE)
    out = tmp_path / "out.npy"
    result = run_python(script, path, tmp_path / "arrays.npz", out, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert not found["project"]
    assert found["layers"] == [
        *("Conv2D", "Conv2D", "MaxPooling2D", "Dropout", "Flatten", "Dense", "Dropout", "Dense")
    ]
    np.testing.assert_array_equal(np.load(out), model.predict(images, batch_size=64, verbose=0))
    ours = evaluate(model, split)
    assert (found["loss"], found["accuracy"]) == pytest.approx((ours.loss, ours.accuracy), rel=1e-5)
    assert found["optimizer"] == ["adadelta", 0.5]
    assert found["history"][-1] < found["history"][0]


def test_it_stands_beside_its_digest(exported: tuple[MnistCNN, Path]) -> None:
    _, path = exported
    digest, name = (path.parent / "mnist.h5.sha256").read_text().split()
    assert (digest, name) == (sha256(path), "mnist.h5")
    assert sorted(p.name for p in path.parent.iterdir()) == ["mnist.h5", "mnist.h5.sha256"]


def test_a_failed_export_leaves_the_old_file_alone(
    exported: tuple[MnistCNN, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, path = exported
    before = path.read_bytes()
    monkeypatch.setattr(export, "predict_probabilities", lambda model, images: np.random.rand(2))
    with pytest.raises(RuntimeError, match="other probabilities"):
        export_h5(MnistCNN(8, seed=4), path, make_split(20).images, 1.0)
    assert path.read_bytes() == before
    assert len(list(path.parent.iterdir())) == 2


def test_a_file_that_differs_from_the_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = MnistCNN(8, seed=5).stock_twin()
    monkeypatch.setattr(MnistCNN, "stock_twin", lambda self: other)
    with pytest.raises(RuntimeError, match="other weights"):
        export_h5(MnistCNN(8, seed=3), tmp_path / "mnist.h5", make_split(20).images, 1.0)
    assert list(tmp_path.iterdir()) == []


def test_a_changed_file_is_refused(exported: tuple[MnistCNN, Path]) -> None:
    _, path = exported
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="has changed since"):
        load_h5(path)
