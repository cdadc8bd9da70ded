"""Whether the tables of a benchmark fit each other: who is to forget, who to retain, and nobody missing."""

from __future__ import annotations

from collections import Counter

from data_process.hub.on_disk import SHOWN, Found
from utils.data import read_rows

AUTHOR = 20  # text questions per author in TOFU


class Relations:
    """Whether tables fit each other. `mistakes` and `notes` are lines; what cannot be read is left out."""

    def __init__(self, found: list[Found], nano: bool):
        self.found, self.nano = found, nano
        self.mistakes: list[str] = []
        self.notes: list[str] = []

    def table(self, name: str, column: str, training: bool = False) -> Found | None:
        """The first readable table of that name with the column."""
        of = (f for f in self.found if f.folder.name == name and f.training == training and f.has(column))
        return next(of, None)

    def values(self, name: str, column: str, training: bool = False) -> list[str] | None:
        found = self.table(name, column, training)
        return None if found is None else [row[column] for row in read_rows(found.folder, [column])]

    def same(self, what: str, one: set[str], other: set[str], fix: str) -> None:
        """A mistake unless the sets are equal; names who is where."""
        for missing, text in ((other - one, "lacks"), (one - other, "has in addition")):
            if missing:
                self.mistakes.append(f"{what} {text} {_some(missing)}; {fix}")

    # ------------------------------------------------------------ MLLMU-Bench
    def mllmu(self, ratios: tuple[int, ...]) -> None:
        """IDs: forget and retain apart and together everybody; Test_Set and ft_Data complete; training splits
        about the same people."""
        again = "download these tables again from one place"
        everybody = self.values("Full_Set", "ID") or self.values("Test_Set", "ID")
        known = self.values("Retain_Set", "ID")
        celebrities = set(known or [])
        for name in ("Full_Set", "Retain_Set", "Test_Set", *(n for r in ratios for n in _pair(r))):
            twice = [person for person, n in Counter(self.values(name, "ID") or []).items() if n > 1]
            if twice:
                self.mistakes.append(f"{name} has more than one row of {_some(twice)}; {again}")
        if everybody is None:
            return
        people = set(everybody)
        if people & celebrities:
            self.mistakes.append(f"Retain_Set and Full_Set share {_some(people & celebrities)}; {again}")
        if (test := self.values("Test_Set", "ID")) is not None:
            self.same("Test_Set, against Full_Set,", set(test), people, again)
        if (ft_data := self.values("ft_Data", "ID")) is not None:
            trained = set(ft_data) - celebrities  # the nano one has the celebrities as well
            if self.nano and known is None:
                trained &= people
            self.same("ft_Data, against Full_Set,", trained, people - celebrities, again)
        for ratio in ratios:
            forget, retain = _pair(ratio)
            for training in (False, True):
                self._apart(forget, retain, people, training)
            for name in (forget, retain):
                trained, asked = self.values(name, "ID", training=True), self.values(name, "ID")
                if trained is not None and asked is not None:
                    self.same(
                        f"{name} for training, against {name} for evaluation,", set(trained), set(asked),
                        "take both from one release, or delete the training one: ft_Data is used then",
                    )  # fmt: skip
            found = self.table(forget, "metadata", training=True)
            if found and not found.has("ID"):
                self.notes.append(
                    f"{found.name} has no ID: the scripts take these people's questions from ft_Data"
                )

    def _apart(self, forget: str, retain: str, people: set[str], training: bool) -> None:
        leaving, staying = self.values(forget, "ID", training), self.values(retain, "ID", training)
        if leaving is None or staying is None:
            return
        of = f"{forget} and {retain}" + (" for training" if training else "")
        both = set(leaving) & set(staying)
        if both:
            self.mistakes.append(f"{of} share {_some(both)}; download both again")
        self.same(
            f"{of} together, against Full_Set,", set(leaving) | set(staying), people, "download both again"
        )

    # ------------------------------------------------------------ CLEAR
    def clear(self, ratios: tuple[int, ...]) -> None:
        """Names: forget and retain apart and the same people at every ratio; +tofu = captions and text;
        perturbed rows among the captions."""
        everybody: dict[int, set[str]] = {}
        for ratio in ratios:
            forget, retain = f"forget{ratio:02d}", f"retain{100 - ratio}"
            leaving, staying = self.values(forget, "name"), self.values(retain, "name")
            if leaving is not None and staying is not None:
                both = set(leaving) & set(staying)
                if both:
                    self.mistakes.append(f"{forget} and {retain} share {_some(both)}; download both again")
                everybody[ratio] = set(leaving) | set(staying)
            for name in (forget, retain):
                self._tofu(name)
            self._perturbed(f"{forget}_perturbed", forget)
            others = self.values("retain_perturbed", "name")
            if others is not None and leaving is not None and set(others) & set(leaving):
                shared = _some(set(others) & set(leaving))
                self.mistakes.append(f"retain_perturbed and {forget} share {shared}; download both again")
        self._tofu("full")
        for ratio in list(everybody)[1:]:
            first = next(iter(everybody))
            pair = "forget{:02d} and retain{}".format
            self.same(
                f"{pair(ratio, 100 - ratio)} together, against {pair(first, 100 - first)},", everybody[ratio],
                everybody[first], "download these tables again",
            )  # fmt: skip

    def _tofu(self, name: str) -> None:
        """X+tofu holds the caption rows of X and 20 text questions for each of its authors."""
        both = self.table(f"{name}+tofu", "question")
        if both is None:
            return
        rows = read_rows(both.folder, ["caption", "question", "answer"])
        text = [row for row in rows if row["question"] or row["answer"]]
        captions = len(rows) - len(text)
        if len(text) % AUTHOR:
            self._odd(f"{name}+tofu has {len(text)} text questions, no multiple of {AUTHOR} an author", both)
        alone = self.table(name, "name")
        if alone is None:
            return
        authors = len({row["name"] for row in read_rows(alone.folder, ["name"])})
        if len(text) != AUTHOR * authors:
            self._odd(
                f"{name}+tofu has {len(text)} text questions for the {authors} authors of {name}", both, alone
            )
        # the nano tables of those who stay also hold what the real model knows from elsewhere
        if captions < alone.rows if self.nano else captions != alone.rows:
            self._odd(f"{name}+tofu has {captions} captions, {name} has {alone.rows}", both, alone)

    def _perturbed(self, name: str, base: str) -> None:
        """Names and captions of the perturbed table are among those of its base."""
        perturbed, whole = self.table(name, "caption"), self.table(base, "caption")
        if perturbed is None or whole is None:
            return
        known = {(row["name"], row["caption"]) for row in read_rows(whole.folder, ["name", "caption"])}
        here = {(row["name"], row["caption"]) for row in read_rows(perturbed.folder, ["name", "caption"])}
        strange = {person for person, _ in here} - {person for person, _ in known}
        if strange:
            self.mistakes.append(f"{name} has {_some(strange)}, who are not in {base}; download both again")
        elif here - known:
            self._odd(f"{name} has {len(here - known)} captions that are not in {base}", perturbed, whole)

    def _odd(self, line: str, *tables: Found) -> None:
        """A mistake, or a note where the tables have their published numbers of rows: then they came so."""
        if all(table.as_published for table in tables):
            self.notes.append(f"{line} (numbers of rows as published, so the published tables are so)")
        else:
            self.mistakes.append(f"{line}; download {' and '.join(t.folder.name for t in tables)} again")


def _pair(ratio: int) -> tuple[str, str]:
    return f"forget_{ratio}", f"retain_{100 - ratio}"


def _some(people) -> str:
    people = sorted(map(str, people))
    more = f" and {len(people) - SHOWN} more" if len(people) > SHOWN else ""
    return ", ".join(people[:SHOWN]) + more
