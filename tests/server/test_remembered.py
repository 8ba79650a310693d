"""Plans that are kept, and no more of them than memory allows."""

from __future__ import annotations

from typing import NamedTuple

from convolver.server.remembered import LONGEST, MOST_LAYERS, Remembered


class Planned(NamedTuple):
    layers: int
    name: str = ""


def test_what_was_kept_is_found_under_its_header_alone() -> None:
    kept = Remembered[Planned]()
    kept.put(b"a", Planned(1, "a"))
    assert kept.get(b"a") == Planned(1, "a")
    assert kept.get(b"b") is None


def test_the_least_recently_asked_for_goes_first() -> None:
    kept = Remembered[Planned]()
    for name in (b"a", b"b", b"c"):
        kept.put(name, Planned(MOST_LAYERS // 3))
    assert kept.get(b"a") is not None
    kept.put(b"d", Planned(MOST_LAYERS // 3))
    assert [kept.get(name) is not None for name in (b"a", b"b", b"c", b"d")] == [True, False, True, True]


def test_layers_are_counted_and_not_headers() -> None:
    kept = Remembered[Planned]()
    for i in range(MOST_LAYERS + 10):
        kept.put(b"%d" % i, Planned(1))
    assert kept.get(b"9") is None
    assert kept.get(b"10") is not None
    kept.put(b"large", Planned(MOST_LAYERS))
    assert kept.get(b"%d" % (MOST_LAYERS + 9)) is None
    assert kept.get(b"large") is not None


def test_long_headers_are_not_kept_and_keeping_twice_counts_once() -> None:
    kept = Remembered[Planned]()
    kept.put(bytes(LONGEST + 1), Planned(1))
    assert kept.get(bytes(LONGEST + 1)) is None
    for _ in range(3):
        kept.put(b"a", Planned(MOST_LAYERS // 2))
    kept.put(b"b", Planned(MOST_LAYERS // 2))
    assert kept.get(b"a") is not None
