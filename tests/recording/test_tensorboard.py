from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from research.data.batches import Plan, indices_of_step, take_batch
from research.data.dataset import Dataset, hold_out
from research.recording import figures
from research.recording.tensorboard import TensorBoardWriter
from research.results.evaluation import (
    calibration_bins,
    evaluate_probabilities,
    predict_probabilities,
)
from research.results.export import load_h5

import numpy as np
import pytest
import tensorflow as tf
from conftest import EXPERIMENTS, RunHere, make_split
from google.protobuf import text_format
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.plugins.projector import ProjectorConfig
from tensorboard.util import tensor_util

EXPERIMENT = EXPERIMENTS / "mnist_cnn.py"


def read(folder: Path) -> EventAccumulator:
    """The events of a folder, read by TensorBoard's own reader."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return events


def values(events: EventAccumulator, tag: str) -> dict[int, Any]:
    """The value of a tag at each step."""
    found = [(e.step, tensor_util.make_ndarray(e.tensor_proto)) for e in events.Tensors(tag)]
    assert len(dict(found)) == len(found)
    return dict(found)


def plugin(events: EventAccumulator, tag: str) -> str:
    """The dashboard of a tag."""
    return str(events.SummaryMetadata(tag).plugin_data.plugin_name)


def pixels(value: Any) -> Any:
    """The picture in an image summary, whose first two strings are its width and height."""
    width, height, png = value
    image = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    assert image.shape == (int(height), int(width), 3)
    return image


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def session(run: Path) -> tuple[dict[str, Any], str | None]:
    """The options in the HParams dashboard, and how the run ended."""
    events = read(run)

    def data(tag: str) -> Any:
        content = events.SummaryMetadata(tag).plugin_data.content
        return plugin_data_pb2.HParamsPluginData.FromString(content)

    started = data("_hparams_/session_start_info").session_start_info.hparams
    options = {name: getattr(v, str(v.WhichOneof("kind"))) for name, v in started.items()}
    end = "_hparams_/session_end_info"
    if end not in events.Tags()["tensors"]:
        return options, None
    return options, {0: "unknown", 1: "success", 2: "failure"}[data(end).session_end_info.status]


def text_of(run: Path, subject: str) -> str:
    """The last text on a subject in the Text dashboard."""
    return str(list(values(read(run), f"about/{subject}").values())[-1].item().decode())


def test_scalars_are_what_metrics_jsonl_and_evaluation_json_say(finished_run: Path) -> None:
    written = lines(finished_run)
    evaluation = json.loads((finished_run / "evaluation.json").read_text())
    figures = {k: evaluation["test"][k] for k in ("loss", "accuracy")}
    figures["quality/calibration_error"] = evaluation["test"]["calibration_error"]
    written.append({"split": "test", "step": evaluation["steps"], "seconds": 0, **figures})
    for split in ("train", "validation", "test"):
        events = read(finished_run / split)
        tags = {tag for tag in events.Tags()["tensors"] if plugin(events, tag) == "scalars"}
        rows = [line for line in written if line["split"] == split]
        measured = set(rows[0]) - {"split", "step", "seconds"}
        assert {tag for tag in tags if not tag.startswith("rescaled/")} == measured
        loss = {row["step"]: np.log10(row["loss"]) for row in rows}
        assert values(events, "rescaled/log10_loss") == pytest.approx(loss, rel=1e-5)
        assert ("rescaled/validation_loss" in tags) == (split == "validation")
        for tag in measured:
            expected = {row["step"]: row[tag] for row in rows}
            assert values(events, tag) == pytest.approx(expected, rel=1e-6)


def test_the_wall_time_is_split_without_rest(finished_run: Path) -> None:
    rows = [line for line in lines(finished_run) if line["split"] == "train"]
    for row in rows:
        shares = {name: share for name, share in row.items() if name.startswith("time/")}
        names = ("input", "training", "validation", "logging", "checkpointing")
        assert set(shares) == {f"time/{name}" for name in names}
        assert sum(shares.values()) == pytest.approx(1)
        assert min(shares.values()) >= 0
    assert max(row["time/validation"] for row in rows) > 0.01
    assert max(row["time/input"] for row in rows) > 0


def test_the_generalization_gap_is_that_between_two_evaluations(
    finished_run: Path, dataset: Dataset
) -> None:
    training, validation = hold_out(dataset.train, 50, 0)
    model = load_h5(finished_run / "mnist.h5")
    losses = [
        evaluate_probabilities(predict_probabilities(model, split.images), split.labels).loss
        for split in (training, validation)
    ]
    last = [line for line in lines(finished_run) if line["split"] == "validation"][-1]
    gap = pytest.approx(losses[1] - losses[0], rel=1e-3, abs=1e-6)
    assert last["quality/generalization_gap"] == gap


def test_histograms_count_every_weight_and_gradient(finished_run: Path) -> None:
    events = read(finished_run / "train")
    tags = [tag for tag in events.Tags()["tensors"] if plugin(events, tag) == "histograms"]
    variables = ("kernel", "bias")
    layers = {"conv1": (288, 32), "conv2": (18432, 64), "dense1": (147456, 16), "dense2": (160, 10)}
    assert set(tags) == {
        f"{kind}/{layer}/{variable}"
        for kind in ("weights", "weight_gradients")
        for layer in layers
        for variable in variables
    }
    for tag in tags:
        _, layer, variable = tag.split("/")
        found = values(events, tag)
        assert list(found) == [4, 8, 16, 24]  # the first report, and the end of each epoch
        for buckets in found.values():
            assert buckets[:, 2].sum() == layers[layer][variables.index(variable)]
            assert (buckets[:, 0] <= buckets[:, 1]).all()
    weights = {
        f"weights/{layer.name}/{v.name}": v.numpy()
        for layer in load_h5(finished_run / "mnist.h5").layers
        for v in layer.weights
    }
    for tag, weight in weights.items():
        buckets = values(events, tag)[24]
        assert buckets[0, 0] == pytest.approx(weight.min(), rel=1e-6)
        assert buckets[-1, 1] == pytest.approx(weight.max(), rel=1e-6)


def test_the_batch_is_shown_as_the_network_sees_it(finished_run: Path, dataset: Dataset) -> None:
    training, _ = hold_out(dataset.train, 50, 0)
    shown = pixels(values(read(finished_run / "train"), "pictures/batch")[16])
    indices = indices_of_step(0, 15, Plan(250, 32, 3))
    images, labels = take_batch(training.images, training.labels, indices)
    captions = [str(label) for label in np.argmax(labels, 1)]
    expected = Image.open(io.BytesIO(figures.gallery(images.numpy(), captions))).convert("RGB")
    np.testing.assert_array_equal(shown, expected)
    first = shown[:56, :56, 0].reshape(28, 2, 28, 2).mean((1, 3)) / 255
    np.testing.assert_allclose(first, images.numpy()[0, ..., 0], atol=0.01)


def test_validation_and_test_are_drawn(finished_run: Path) -> None:
    for split, steps in (("validation", [8, 16, 24]), ("test", [24])):
        events = read(finished_run / split)
        for name in ("confusion", "reliability", "mistakes"):
            found = values(events, f"pictures/{name}")
            assert list(found) == steps
            assert pixels(found[24]).std() > 0 or name == "mistakes"
    confusion = json.loads((finished_run / "evaluation.json").read_text())["test"]["confusion"]
    shown = values(read(finished_run / "test"), "pictures/confusion")[24]
    assert shown[2] == figures.confusion(confusion)


def test_there_is_a_precision_recall_curve_for_each_class(
    finished_run: Path, dataset: Dataset
) -> None:
    events = read(finished_run / "test")
    model = load_h5(finished_run / "mnist.h5")
    probabilities = predict_probabilities(model, dataset.test.images)
    for digit in range(10):
        tag = f"digits/{digit}/pr_curves"
        assert plugin(events, tag) == "pr_curves"
        tp, fp, _, fn, precision, recall = values(events, tag)[24]
        half = 50  # of 101 thresholds
        chosen, right = probabilities[:, digit] >= 0.5, dataset.test.labels == digit
        assert (tp[half], fp[half]) == ((chosen & right).sum(), (chosen & ~right).sum())
        assert recall[half] == pytest.approx(tp[half] / (tp[half] + fn[half]))
        assert precision[half] == pytest.approx(tp[half] / max(1e-7, tp[half] + fp[half]))


def test_the_run_is_described(finished_run: Path) -> None:
    events = read(finished_run)
    texts = {
        tag.removeprefix("about/"): next(iter(values(events, tag).values())).item().decode()
        for tag in events.Tags()["tensors"]
        if plugin(events, tag) == "text"
    }
    assert set(texts) == {"run", "result"}
    for words in (
        "## mnist_cnn\n\nThe reference experiment",
        "| batch_size | `32` |",
        "--batch-size 32",
        "| packages tensorflow | `2.21",
        "conv1 (Conv2D)",
        str(finished_run),
    ):
        assert words in texts["run"], words
    assert re.search(r"commit `[0-9a-f]{40}`", texts["run"])
    assert "| learning_rate |" not in texts["run"]  # it has its default
    accuracy = json.loads((finished_run / "evaluation.json").read_text())["test"]["accuracy"]
    assert texts["result"].startswith("Finished after 24 steps.")
    assert f"{accuracy:.5}" in texts["result"]
    options, status = session(finished_run)
    assert status == "success"
    assert (options["experiment"], options["batch_size"]) == ("mnist_cnn", 32)
    assert options["dropout"] == "0.25 0.5"
    assert "clip_norm" not in options
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    # Without the seed: HParams shows the seeds of one configuration as one row.
    special = "data=made-up.npz batch_size=32 holdout=50 dense_width=16"
    assert re.fullmatch(rf"{special} mnist_cnn epochs=3 [0-9a-f]{{6}}", start.group_name)
    assert events.Tags()["graph"] or events.Tags()["meta_graph"]
    assert {node.name.split("/")[0] for node in events.Graph().node} > {"conv1", "dense2", "update"}


def test_the_custom_scalars_refer_to_tags_that_exist(finished_run: Path) -> None:
    from tensorboard.plugins.custom_scalar import layout_pb2

    layout = layout_pb2.Layout.FromString(
        values(read(finished_run), "custom_scalars__config__")[0].item()
    )
    there = {
        tag
        for split in ("train", "validation")
        for tag in read(finished_run / split).Tags()["tensors"]
    }
    charts = [chart for category in layout.category for chart in category.chart]
    assert layout.category[0].title == "Training and validation"
    for chart in charts:
        for pattern in chart.multiline.tag:
            assert any(re.match(pattern, tag) for tag in there), pattern


def test_the_projector_has_what_the_last_layer_sees(finished_run: Path, dataset: Dataset) -> None:
    folder = finished_run / "test"
    config = text_format.Parse((folder / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (told,) = config.embeddings
    vectors = np.fromfile(folder / told.tensor_path, "<f4").reshape(told.tensor_shape)
    assert vectors.shape == (100, 16)
    kernel, bias = load_h5(finished_run / "mnist.h5").layers[-1].get_weights()
    predicted = (vectors @ kernel + bias).argmax(1)
    rows = [row.split("\t") for row in (folder / told.metadata_path).read_text().splitlines()]
    assert rows[0] == ["label", "predicted", "correct", "confidence"]
    assert [int(row[0]) for row in rows[1:]] == dataset.test.labels.tolist()
    assert [int(row[1]) for row in rows[1:]] == predicted.tolist()
    right = predicted == dataset.test.labels
    assert [row[2] for row in rows[1:]] == ["yes" if one else "no" for one in right]
    logits = vectors @ kernel + bias
    confidence = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).max(1)
    np.testing.assert_allclose([float(row[3]) for row in rows[1:]], confidence, atol=1e-4)
    sprite = np.asarray(Image.open(folder / told.sprite.image_path))
    assert sprite.shape == (280, 280)
    np.testing.assert_array_equal(sprite[28:56, 56:84], dataset.test.images[12, ..., 0])


def test_one_writer_a_directory_and_little_room(finished_run: Path) -> None:
    files = list(finished_run.rglob("*tfevents*"))
    assert sorted(path.parent.name for path in files) == sorted(
        [finished_run.name, "train", "validation", "test"]
    )
    # The tensors in it grow with the number of reports and of epochs, not with the network.
    assert sum(path.stat().st_size for path in files) < 2_000_000


def test_what_a_step_returns_shows_up(data_file: Path, tmp_path: Path, run_here: RunHere) -> None:
    changed = EXPERIMENT.read_text().replace(
        '    return {"loss": loss,',
        "    confidence = tf.reduce_max(tf.nn.softmax(logits), 1)\n"
        '    extra = {"least": tf.reduce_min(confidence), "confidence": confidence}\n'
        '    extra["inverted"] = extra["pictures/batch"] = 1.0 - images\n'
        '    return {**extra, "loss": loss,',
    )
    (tmp_path / "changed.py").write_text(changed)
    options = ("--data", data_file, "--epochs", "1", "--dense-width", "16", "--batch-size", "32")
    command = (tmp_path / "changed.py", *options, "--run-dir", "run")
    assert run_here(*command, pictures=True).status == 0
    events = read(tmp_path / "run" / "train")
    assert plugin(events, "least") == "scalars"
    assert plugin(events, "confidence") == "histograms"
    assert plugin(events, "inverted") == "images"
    confidences = values(events, "confidence")[10]
    assert confidences[:, 2].sum() == 300 % 32
    assert 0.09 < confidences[0, 0] <= confidences[-1, 1] <= 1
    # The border of the made-up digits is dark.
    assert pixels(values(events, "inverted")[10])[:2, :2].mean() > 190
    assert pixels(values(events, "pictures/batch")[10])[:2, :2].mean() > 190


def test_under_mixed_precision_the_figures_of_the_file_have_their_own_curves(
    data_file: Path, tmp_path: Path, run_here: RunHere
) -> None:
    options = ("--data", data_file, "--epochs", "1", "--dense-width", "16", "--batch-size", "32")
    mixed = ("--precision", "mixed_bfloat16", "--run-dir", "run")
    assert run_here(EXPERIMENT, *options, *mixed).status == 0
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())["test"]
    for name in ("loss", "accuracy"):
        shown = values(read(tmp_path / "run" / "test"), name)
        assert shown == {10: pytest.approx(found[name], rel=1e-6)}


def test_a_stopped_a_failed_and_a_resumed_run_say_so(
    data_file: Path, tmp_path: Path, run_here: RunHere
) -> None:
    whole, broken = tmp_path / "whole" / "x.py", tmp_path / "broken" / "x.py"
    for path, factor in ((whole, "1.0"), (broken, "float('nan')")):
        path.parent.mkdir()
        line = "loss = tf.reduce_mean(state.loss(labels, logits))"
        spoiled = f"{line} * tf.where(state.step == 12, {factor}, 1.0)"
        path.write_text(EXPERIMENT.read_text().replace(line, spoiled))
    options = ("--data", data_file, "--epochs", "2", "--dense-width", "16", "--batch-size", "32")
    assert run_here(broken, *options, "--run-dir", "run").status == 1
    assert session(tmp_path / "run")[1] == "failure"
    assert "loss became nan at step 13" in text_of(tmp_path / "run", "result")
    outcome = [values(read(tmp_path / "run"), f"run/{name}")[10] for name in ("failed", "steps")]
    assert outcome == [1, 10]
    assert run_here(whole, "--resume", "run").status == 0
    assert session(tmp_path / "run")[1] == "success"
    assert run_here(whole, "--resume", "run", "--epochs", "3").status == 0
    assert list(values(read(tmp_path / "run" / "validation"), "loss")) == [10, 20, 30]
    assert not (tmp_path / "run" / "test").exists()  # validation shows the test set already
    assert run_here(whole, "--fork", "run", "--at-step", "20", "--run-dir", "fork").status == 0
    assert re.search(r"Forked from `.*run`, step 20\.", text_of(tmp_path / "fork", "run"))
    assert run_here(whole, "--resume", "fork", "--epochs", "4").status == 0
    assert re.search(r"Forked from `.*run`, step 20\.", text_of(tmp_path / "fork", "run"))
    for tag in ("pictures/batch", "weights/conv1/kernel", "loss"):
        once = values(read(tmp_path / "fork" / "train"), tag)
        assert list(once) == sorted(once)


@pytest.mark.parametrize(
    "picture",
    [
        lambda: figures.gallery(np.zeros([0, 28, 28, 1])),
        lambda: figures.gallery(np.full([3, 5, 4, 3], np.nan)),
        lambda: figures.gallery(np.full([100, 300, 300, 4], 1e9, np.float32)[:2]),
        lambda: figures.gallery(np.zeros([9, 1, 1, 1], np.uint8), "abcdefghi"),
        lambda: figures.gallery(np.zeros([1, 1000, 4, 1])),
        lambda: figures.gallery(np.zeros([2, 3, 2000, 3], np.uint8)),
        lambda: figures.mistakes([], make_split(3).images),
        lambda: figures.filters(np.zeros([3, 3, 2, 5])),
        lambda: figures.confusion(np.zeros([10, 10], int).tolist()),
        lambda: figures.reliability(calibration_bins(np.ones(1), np.ones(1, bool)), 0.0),
    ],
)
def test_a_figure_can_be_drawn_of_anything(picture: Callable[[], bytes]) -> None:
    assert Image.open(io.BytesIO(picture())).width > 0


@pytest.mark.parametrize(
    "vector",
    [
        np.array([1.0, 1.0 - 6e-8], np.float32),
        np.array([1e9, 1e9 + 64], np.float32),
        np.array([0.0, 1e-45], np.float32),
        np.array([-3e38, 3e38], np.float32),
        np.array([np.nan, 2.0, 2.0, np.inf], np.float32),
        np.array([], np.float32),
        np.arange(256).astype(np.uint8),
    ],
)
def test_a_histogram_can_be_made_of_any_vector(vector: Any, tmp_path: Path) -> None:
    board = TensorBoardWriter(tmp_path)
    batch = make_split(4).images / 255, tf.one_hot([0, 1, 2, 3], 10)
    board.training(1, {}, {"odd": tf.constant(vector)}, lambda: batch)
    board.sync()
    counts = values(read(tmp_path / "train"), "odd")[1][:, 2]
    assert counts.sum() == np.isfinite(vector).sum()
    board.close()


def test_what_goes_wrong_while_drawing_is_not_lost(tmp_path: Path) -> None:
    board = TensorBoardWriter(tmp_path)
    board.training(1, {}, {}, lambda: (_ for _ in ()).throw(RuntimeError("no batch")))
    with pytest.raises(RuntimeError, match="no batch"):
        board.sync()
    board.scalars("train", 1, {"loss": 1.0})
    board.close()
    assert values(read(tmp_path / "train"), "loss") == {1: 1.0}


def test_drawing_does_not_wait(tmp_path: Path) -> None:
    import threading

    board, go_on = TensorBoardWriter(tmp_path), threading.Event()

    def batch() -> Any:
        assert go_on.wait(60)
        return make_split(4).images / 255, tf.one_hot([0, 1, 2, 3], 10)

    board.training(1, {}, {}, batch)
    board.scalars("train", 2, {"loss": 1.0})
    go_on.set()
    board.sync()
    assert set(values(read(tmp_path / "train"), "pictures/batch")) == {1}
    board.close()
