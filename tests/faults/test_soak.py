"""The soak in short: it calls in every way, and judges."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

from benchmarks.soak import MIB, Sample, judged, main

if TYPE_CHECKING:
    from pathlib import Path


def samples(rss: int, growth: float) -> list[Sample]:
    return [Sample(i, rss + int(growth * i), 10, 20, 100 * i) for i in range(300)]


def test_what_stays_is_well_and_what_grows_is_not() -> None:
    assert judged(samples(300 * MIB, 0), Counter()).wrong == ()
    assert judged(samples(300 * MIB, MIB), Counter()).wrong == ("RSS grew from 450 to 550 MiB",)


def test_what_fails_is_said() -> None:
    assert judged(samples(300 * MIB, 0), Counter({"map: Error: x": 2})).wrong == ("2 times map: Error: x",)


def test_no_call_fails_for_ten_seconds(tmp_path: Path) -> None:
    """What a server holds has not settled by then, so that this alone is looked at."""
    with suppress(SystemExit):
        main(["--seconds=10", "--every=5", "--shapes=200", "--backend=reference", f"--out={tmp_path}"])
    found = json.loads((tmp_path / "soak.json").read_text())
    assert not {name: times for name, times in found["failed"].items() if times}
    assert len(found["done"]) == 11
    assert found["distinct_shapes"] > 50
