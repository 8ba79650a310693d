"""Start a real server, filter a real picture through it, and show what it took.

    python examples/demo.py [--out FOLDER]

Needs `pip install 'convolver[pictures,server]'`. The pictures, and all of them on one sheet, go to FOLDER (out).
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, cast

from PIL import Image, ImageDraw, ImageFont
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from convolver.client import Client
from convolver.client.pictures import Filter, Recorder, filter_picture, parse_kernel, read_source, write_source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from convolver.client.pictures import Picture

PICTURE = Path(__file__).with_name("astronaut.png")
KERNELS = ("sobel", "gaussian:sigma=3", "sharpen", "emboss", "log:sigma=2")
REPEATS = 5
COLUMNS, LABEL_HEIGHT = 3, 40


@contextmanager
def running_server() -> Iterator[str]:
    """A server in a process of its own, on a port that the system chooses: its address. It must stop cleanly."""
    command = [sys.executable, "-m", "convolver.server", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            yield listening_address(server)
        finally:
            server.send_signal(signal.SIGTERM)
            status = server.wait(30)
    if status:
        sys.exit(f"the server ended with status {status}")


def listening_address(server: subprocess.Popen[str]) -> str:
    """The address in the line that the server prints once it listens; later lines are passed on."""
    said = []
    for line in server.stderr or ():
        said.append(line)
        if found := re.search(r"listening on (\S+);", line):
            print(line, end="")
            threading.Thread(target=sys.stderr.writelines, args=[server.stderr], daemon=True).start()
            return found[1]
    sys.exit(f"the server did not start:\n{''.join(said)}")


def contact_sheet(tiles: dict[str, Path]) -> Image.Image:
    """All pictures of one size, side by side, their names below."""
    width, height = Image.open(next(iter(tiles.values()))).size
    rows = -(-len(tiles) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * width, rows * (height + LABEL_HEIGHT)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=22)
    for index, (label, path) in enumerate(tiles.items()):
        left, top = index % COLUMNS * width, index // COLUMNS * (height + LABEL_HEIGHT)
        with Image.open(path) as tile:
            sheet.paste(tile, (left, top))
        middle = (left + width // 2, top + height + LABEL_HEIGHT // 2)
        draw.text(middle, label, "black", font, anchor="mm")
    return sheet


def filter_all(client: Client, out: Path) -> tuple[Table, dict[str, Path]]:
    """Filter the picture with every kernel, several times to measure it: the table, and where the results are."""
    picture = cast("Picture", read_source(PICTURE))  # only a .npy file would give an array
    title = f"{PICTURE.name}: {picture}; milliseconds from call to answer, the first and the median of {REPEATS} more"
    table = Table(
        "kernel", "taps", "output", "ran", title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    for column in ("MMACs", "first", "median"):
        table.add_column(column, justify="right")
    tiles = {"original": PICTURE}
    for name in KERNELS:
        kernel, recorder = parse_kernel(name), Recorder(client)
        results = [filter_picture(recorder, picture, Filter(kernel)) for _ in range(1 + REPEATS)]
        tiles[name] = out / f"{name.partition(':')[0]}.png"
        write_source(tiles[name], results[0])
        table.add_row(name, "x".join(map(str, kernel.taps.shape)), *measured(recorder))
    return table, tiles


def measured(recorder: Recorder) -> Iterator[str]:
    """What a kernel's calls took, as cells of the table."""
    plan, times = recorder.plans[0], recorder.seconds
    yield "x".join(map(str, plan.output_shape))
    yield f"{plan.backend} {plan.algorithm}"
    yield f"{plan.macs / 1e6:.1f}"
    yield from (f"{1e3 * seconds:.1f}" for seconds in (times[0], median(times[1:])))


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out"), help="the folder for the pictures (out)")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    with running_server() as address, Client(address) as client:
        table, tiles = filter_all(client, out)
    contact_sheet(tiles).save(out / "contact-sheet.png")
    Console().print(table)
    print(f"The pictures are in {out}, all of them on {out / 'contact-sheet.png'}.")


if __name__ == "__main__":
    main()
