"""The soak in short: it calls in every way, and judges."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from benchmarks.soak import MIB, Sample, judged, main

if TYPE_CHECKING:
    from pathlib import Path


def samples(rss: float = 0, threads: float = 0, descriptors: float = 0) -> list[Sample]:
    """Of 300 seconds, in each of which there is so much more."""
    return [
        Sample(i, 300 * MIB + int(rss * i), 10 + int(threads * i), 20 + int(descriptors * i), 100 * i)
        for i in range(300)
    ]


@pytest.mark.parametrize(
    ("taken", "wrong"),
    [
        (samples(), ()),
        (samples(rss=MIB), ("RSS grew from 450 to 550 MiB",)),
        (samples(threads=0.1), ("threads grew from 24.5 to 34.5",)),
        (samples(descriptors=0.1), ("descriptors grew from 34.5 to 44.5",)),
    ],
    ids=["nothing", "rss", "threads", "descriptors"],
)
def test_what_stays_is_well_and_what_grows_is_not(taken: list[Sample], wrong: tuple[str, ...]) -> None:
    assert judged(taken, Counter()).wrong == wrong


def test_what_fails_is_said() -> None:
    assert judged(samples(), Counter({"map: Error: x": 2})).wrong == ("2 times map: Error: x",)


def test_no_call_fails_for_ten_seconds(tmp_path: Path) -> None:
    """What a server holds has not settled by then, so that this alone is looked at."""
    with suppress(SystemExit):
        main(["--seconds=10", "--every=5", "--shapes=200", "--backend=reference", f"--out={tmp_path}"])
    found = json.loads((tmp_path / "soak.json").read_text())
    assert not found["failed"]
    assert len(found["done"]) == 11
    assert found["distinct_shapes"] > 50
