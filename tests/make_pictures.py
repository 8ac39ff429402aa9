"""Takes screenshots of TensorBoard's dashboards in a real browser.

``tests/test_board.py`` checks with them that each dashboard shows its content. The command

    python tests/make_pictures.py RUN BANDS

makes the README's pictures, in ``experiments/pictures/``. RUN is the directory of a finished run,
preferably of twelve epochs on MNIST. BANDS is ``bands/`` of a comparison of two arms. All need
``pip install -e ".[browser]"`` and Chromium (Debian's package is ``chromium``).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console

PICTURES = Path(__file__).parents[1] / "experiments" / "pictures"


@dataclasses.dataclass(frozen=True)
class Dashboard:
    """A dashboard and the content that it must show.

    Attributes:
        name: the dashboard's name in TensorBoard's address.
        content: CSS or text selectors; each must match a visible element of some frame.
        clicks: selectors of elements to click on first, one after another.
    """

    name: str
    content: tuple[str, ...]
    clicks: tuple[str, ...] = ()


DASHBOARDS = (
    Dashboard("timeseries", ("scalar-card canvas, scalar-card svg path", "text=validation")),
    Dashboard("scalars", ("tf-scalar-card svg path", "text=loss")),
    Dashboard(
        "custom_scalars",
        ("tf-custom-scalar-multi-line-chart-card svg path", "text=/Matches \\([1-9]/"),
    ),
    Dashboard("images", ("tf-image-loader img", "text=pictures/confusion")),
    Dashboard(
        "graphs",
        tuple(f"g.node:has-text('{name}')" for name in ("conv1", "dense2", "gradient_tape")),
    ),
    Dashboard("distributions", ("vz-distribution-chart svg path", "text=weights/conv1/kernel")),
    Dashboard(
        "histograms", ("vz-histogram-timeseries svg path", "text=weight_gradients/conv1/kernel")
    ),
    Dashboard("text", ("text=conv1 (Conv2D)", "text=/Finished after/")),
    Dashboard("pr_curves", ("tf-pr-curve-card svg path", "text=/is at/")),
    Dashboard("hparams", ("text=mnist_cnn", "text=validation accuracy", "text=batch_size")),
    Dashboard("projector", ("text=/Points: [1-9]/", "canvas")),
    Dashboard(
        "profile",
        ("text=tf_Compute",),
        clicks=("text=Overview Page", "mat-option:has-text('Trace Viewer')"),
    ),
)
# The bands of a comparison of two arms.
BANDS = Dashboard(
    "custom_scalars",
    (
        "tf-custom-scalar-margin-chart-card svg path.area",
        "tf-card-heading:has-text('validation loss, mean ± sd')",
        "text=Matches (2)",
    ),
)
# The Profile dashboard's viewer reports errors when it can't reach the internet, and errors of its
# own navigation. No other dashboard may report any.
VIEWER_COMPLAINS = ("gstatic", "googleapis", "ERR_NAME_NOT_RESOLVED", "XProf Error")


def why_not() -> str | None:
    """Why this machine can take no screenshots, or None if it can."""
    if importlib.util.find_spec("playwright") is None:
        return 'playwright is not installed: pip install -e ".[browser]"'
    if chromium() is None:
        return "there is no Chromium: apt-get install chromium"
    return None


def chromium() -> str | None:
    """The path of Chromium, or None if it is not installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@contextlib.contextmanager
def board(*runs: Path) -> Iterator[str]:
    """Runs ``python -m research board`` on a free port, and yields its address."""
    command = [sys.executable, "-m", "research", "board", *map(str, runs), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line.startswith("TensorBoard is at "):
                raise RuntimeError(f"TensorBoard did not start: {line}")
            yield line.split()[3].rstrip("/")
        finally:
            process.terminate()


def photograph(
    address: str,
    folder: Path,
    names: list[str] | None = None,
    dashboards: Sequence[Dashboard] = DASHBOARDS,
) -> list[str]:
    """Opens each dashboard, waits for its content, and saves a screenshot.

    Args:
        address: TensorBoard's address.
        folder: where the screenshots go, as ``<dashboard>.png``.
        names: the names of the dashboards to open; None opens all.
        dashboards: the dashboards that there are.

    Returns:
        A line for each missing element and for each error that the browser reported.
    """
    from playwright.sync_api import sync_playwright

    problems: list[str] = []
    with sync_playwright() as playwright:
        # The projector needs WebGL; these flags provide WebGL without a graphics processor.
        flags = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        browser = playwright.chromium.launch(executable_path=chromium(), args=flags)
        for dashboard in dashboards:
            if names is not None and dashboard.name not in names:
                continue
            page = browser.new_page(viewport={"width": 1240, "height": 900})
            said: list[str] = []
            page.on("console", lambda m, said=said: m.type == "error" and said.append(m.text))
            page.on("pageerror", lambda error, said=said: said.append(str(error)))
            page.on("requestfailed", lambda r, said=said: said.append(f"no answer from {r.url}"))
            page.on(
                "response",
                lambda r, said=said: r.status >= 400 and said.append(f"{r.status} from {r.url}"),
            )
            page.goto(f"{address}/?darkMode=false#{dashboard.name}")
            missing = [w for s in dashboard.clicks for w in _wait_for(page, (s,), click=True)]
            missing += _wait_for(page, dashboard.content)
            page.wait_for_timeout(1500)  # wait until animated transitions end
            page.screenshot(path=folder / f"{dashboard.name}.png")
            if dashboard.name == "profile":
                said = [text for text in said if not any(part in text for part in VIEWER_COMPLAINS)]
            problems += [f"{dashboard.name}: {text}" for text in [*missing, *said]]
            page.close()
        browser.close()
    return problems


def _wait_for(
    page: Any, selectors: tuple[str, ...], click: bool = False, seconds: float = 40
) -> list[str]:
    """Waits until each selector matches a visible element; returns a line for each that did not."""
    deadline = time.monotonic() + seconds
    missing = list(selectors)
    while missing and time.monotonic() < deadline:
        page.wait_for_timeout(300)
        for selector in list(missing):
            found = [one for frame in page.frames for one in frame.locator(selector).all()[:20]]
            visible = [one for one in found if one.is_visible()]
            if visible:
                missing.remove(selector)
                if click:
                    visible[0].click()
    return [f"{selector} did not appear" for selector in missing]


def photograph_mistakes(run: Path, path: Path) -> None:
    """Saves a picture of the worst mistakes, as ``evaluate`` prints them in a terminal."""
    from playwright.sync_api import sync_playwright

    command = [sys.executable, "-m", "research", "evaluate", str(run)]
    environment = os.environ | {"COLUMNS": "80"}
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    mistakes = printed.stdout.partition("Most confidently wrong")[2].splitlines()[1:29]
    console = Console(record=True, width=80, file=io.StringIO())
    for line in mistakes:
        console.print(line, highlight=False, markup=False)
    picture = console.export_svg(title="python -m research evaluate RUN")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 760})
        page.set_content(f"<body style='margin: 0'>{picture}</body>")
        page.locator("svg").screenshot(path=path)
        browser.close()


def shrink(path: Path, width: int = 900, colours: int = 64) -> None:
    """Makes a picture small enough for a repository."""
    image = Image.open(path).convert("RGB")
    height = round(image.height * width / image.width)
    small = image.resize((width, height), Image.Resampling.LANCZOS)
    small.quantize(colours).save(path, optimize=True)


def main() -> None:
    """Makes the README's pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="the directory of a finished run")
    parser.add_argument("bands", type=Path, help="the directory bands/ of a comparison")
    asked = parser.parse_args()
    if (reason := why_not()) is not None:
        sys.exit(f"error: {reason}")
    names = ["timeseries", "custom_scalars", "images", "graphs"]
    with board(asked.bands) as address:
        problems = photograph(address, PICTURES, dashboards=[BANDS])
    (PICTURES / "custom_scalars.png").replace(PICTURES / "bands.png")
    with board(asked.run) as address:
        problems += photograph(address, PICTURES, names)
    photograph_mistakes(asked.run, PICTURES / "mistakes.png")
    for name in [*names, "bands"]:
        shrink(PICTURES / f"{name}.png")
    shrink(PICTURES / "mistakes.png", width=640, colours=32)
    sys.exit("\n".join(problems) or None)


if __name__ == "__main__":
    main()
