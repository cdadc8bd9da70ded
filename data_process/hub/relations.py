"""Whether the tables of a benchmark fit each other: who is to forget, who to retain, and nobody missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import cache

from data_process.hub.on_disk import Found
from utils.reading.tables import BadCell, identity, read_rows

AGAIN = "download these tables again from one place"
SHOWN = 3  # people named per mistake


def mistakes(benchmark: str, found: list[Found], ratios: tuple[int, ...]) -> list[str]:
    """One line per mistake. Tables that are missing or cannot be read are left out."""

    @cache
    def people(name: str, training: bool = False) -> set[str]:
        """Who is in the first readable table of that name; empty without one."""
        column = "ID" if benchmark == "mllmu" else "name"
        of = (f for f in found if f.folder.name == name and f.training == training and not f.mistakes)
        table = next((f for f in of if column in f.columns), None)
        who = set()
        for _, cells in read_rows(table.folder, [column]) if table else ():
            with suppress(BadCell):  # which the reader tells, row by row
                who.add(identity(cells[column], column))
        return who

    return list((_mllmu if benchmark == "mllmu" else _clear)(people, ratios))


def _mllmu(people, ratios: tuple[int, ...]) -> Iterator[str]:
    """IDs: nobody both to forget and to retain, nobody missing or unknown, the same people for training."""
    everybody = people("Full_Set") or people("Test_Set")
    yield from _some("Full_Set and Retain_Set share", everybody & people("Retain_Set"))
    for name in ("Test_Set", "ft_Data"):
        if here := people(name):
            yield from _some(f"{name}, against Full_Set, lacks", everybody - here)
    for ratio in ratios:
        names = f"forget_{ratio}", f"retain_{100 - ratio}"
        for training in (False, True):
            leaving, staying = (people(name, training) for name in names)
            pair = " and ".join(names) + (" for training" if training else "")
            yield from _some(f"{pair} share", leaving & staying)
            if leaving and staying and everybody:
                yield from _some(f"{pair}, against Full_Set, lack", everybody - leaving - staying)
                yield from _some(f"{pair}, against Full_Set, add", (leaving | staying) - everybody)
        for name in names:
            trained, asked = people(name, training=True), people(name)
            if trained and asked:
                yield from _some(
                    f"{name} for training, against {name} for evaluation, lacks or adds", trained ^ asked
                )


def _clear(people, ratios: tuple[int, ...]) -> Iterator[str]:
    """Names: nobody both to forget and to retain; perturbed rows are of the people to forget."""
    for ratio in ratios:
        forget, retain = f"forget{ratio:02d}", f"retain{100 - ratio}"
        for other in (retain, f"{retain}_perturbed", "retain_perturbed"):
            yield from _some(f"{forget} and {other} share", people(forget) & people(other))
        if people(forget):
            strange = people(f"{forget}_perturbed") - people(forget)
            yield from _some(f"{forget}_perturbed, against {forget}, adds", strange)


def _some(what: str, who: set[str]) -> Iterator[str]:
    """One line if there is anybody."""
    if who:
        more = f" and {len(who) - SHOWN} more" if len(who) > SHOWN else ""
        yield f"{what} {', '.join(sorted(map(str, who))[:SHOWN])}{more}; {AGAIN}"
