"""Named data sets: ``datasets/<name>/dataset.toml`` and a folder of images to training normals and test images."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from anomalib_med.config import nearest
from anomalib_med.datasets.layout.card import Card, Published, card_paths, read_card
from anomalib_med.datasets.layout.rows import Condition, fill
from anomalib_med.datasets.layout.samples import card_samples
from anomalib_med.datasets.layout.tree import Tree
from anomalib_med.datasets.masks import has_mask
from anomalib_med.datasets.readers import read
from anomalib_med.errors import ConfigError, InputError, ReadError
from anomalib_med.records import Sample


@dataclass(frozen=True)
class Benchmark:
    """A data set in one protocol, opened."""

    name: str
    protocol: str
    title: str
    modality: str
    tasks: tuple[str, ...]
    """``image``, ``pixel``, ``box``: on what it can be judged."""
    train: tuple[Sample, ...]
    """Normals to fit on."""
    test: tuple[Sample, ...]
    """Normals and abnormals, label 0 and 1, with mask or boxes where they are known."""
    split_hash: str
    """SHA-256 of which image is on which side with which label: equal hashes, equal split."""
    notes: tuple[str, ...]
    """Known traps, to be shown beside every result."""


@dataclass(frozen=True)
class BenchmarkCheck:
    """What was found of a data set against what its card says."""

    name: str
    root: Path
    counts: dict[str, tuple[int, int]]
    """Found and expected number by name; an expected 0 is not known."""
    missing: tuple[str, ...]
    """Files and tables that were expected, and where."""
    shared_patients: tuple[str, ...]
    """Patients on both sides of the split."""
    unlocated: tuple[str, ...]
    """Ids of abnormal test images without mask or box, in a set that has them."""
    unreadable: tuple[str, ...]
    """What reading said of the images that could not be read."""
    read: int
    """Number of images that were read."""

    @property
    def ok(self) -> bool:
        """Complete, readable, without leakage, and of the size the card says."""
        sizes = all(expected in (0, found) for found, expected in self.counts.values())
        return sizes and not (self.missing or self.shared_patients or self.unreadable)


def benchmark_names() -> list[str]:
    """Names of all data sets, in alphabetical order."""
    return list(card_paths())


def benchmark_card(name: str) -> Card:
    """The description of one data set; raises ConfigError where there is none of this name, or it is wrong."""
    paths = card_paths()
    if name not in paths:
        raise ConfigError(f'data set "{name}" is not known: {nearest(name, paths)}')
    return read_card(paths[name])


def open_benchmark(name: str, root: Path | str) -> Benchmark:
    """List the images of the data set `name` in `root`, its top folder or one that holds it; no pixel is read.

    Raises
    ------
    ConfigError
        No such data set.
    InputError
        Files, tables or columns are missing: which, and where they were expected. A patient on both sides of the split.
    """
    card = benchmark_card(name)
    tree, train, test = _collected(card, Path(root))
    if tree.missing:
        more = f" (and {len(tree.missing) - 1} more)" if len(tree.missing) > 1 else ""
        remedy = f"see anomed datasets show {name} for the layout, and anomed datasets check {name} --root {root}"
        raise InputError(f"{name}: {tree.missing[0]}{more}: {remedy} for all that is missing")
    shared = _shared_patients(train, test)
    if shared and not card.shared_patients:
        leak = f"{len(shared)} patients are on both sides of the split, the first is {shared[0]}"
        raise InputError(f"{name}: {leak}: remove their images from one side below {tree.root}")
    notes = list(card.notes)
    if shared:
        notes.append(f"{len(shared)} patients have images in both train and test: the published split is like this")
    for what, (found, expected) in _counts(card, train, test).items():
        if expected not in (0, found):
            notes.append(f"{what}: {found} images, {expected} in the protocol: not comparable with published numbers")
    described = (name, card.protocol, card.title, card.modality, card.tasks)
    return Benchmark(*described, tuple(train), tuple(test), split_hash(train, test), tuple(notes))


def check_benchmark(name: str, root: Path, *, images: int | None = 60) -> BenchmarkCheck:
    """Compare the data set in a folder with its card; arguments and errors are as for `open_benchmark`.

    So many `images` are read, spread evenly over the set; None for all. What is missing is no error here.
    """
    card = benchmark_card(name)
    tree, train, test = _collected(card, root)
    located = {"pixel", "box"} & set(card.tasks)
    everything = [*train, *test]
    number = len(everything) if images is None else min(images, len(everything))
    messages = [_unreadable(everything[i * len(everything) // number]) for i in range(number)]
    counts = _counts(card, train, test) | {item.what: (_found(item, tree), item.number) for item in card.published}
    shared = () if card.shared_patients else tuple(_shared_patients(train, test))
    unlocated = tuple(s.id for s in test if s.label == 1 and not has_mask(s)) if located else ()
    unreadable = tuple(filter(None, messages))
    return BenchmarkCheck(name, tree.root, counts, tuple(tree.missing), shared, unlocated, unreadable, number)


def split_hash(train: Iterable[Sample], test: Iterable[Sample]) -> str:
    """SHA-256 of side, label and id of every image, in hexadecimal; the order and the root do not matter."""
    lines = sorted(f"{side}\t{s.label}\t{s.id}" for side, group in (("train", train), ("test", test)) for s in group)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _collected(card: Card, root: Path) -> tuple[Tree, list[Sample], list[Sample]]:
    if not root.is_dir():
        raise InputError(f"{card.name}: no folder {root}: give the folder of the data set, or the one that holds it")
    tree = Tree(next((root / name for name in card.folder if (root / name).is_dir()), root))
    return tree, *card_samples(card, tree)


def _shared_patients(train: Iterable[Sample], test: Iterable[Sample]) -> list[str]:
    return sorted({s.patient for s in train} & {s.patient for s in test})


def _counts(card: Card, train: list[Sample], test: list[Sample]) -> dict[str, tuple[int, int]]:
    abnormal = sum(s.label == 1 for s in test)
    return {
        "train": (len(train), card.counts.get("train", 0)),
        "test normal": (len(test) - abnormal, card.counts.get("test_normal", 0)),
        "test abnormal": (abnormal, card.counts.get("test_abnormal", 0)),
    }


def _found(item: Published, tree: Tree) -> int:
    """Rows of a table, or different texts in them, to be compared with what was published."""
    rows = Condition(item.where).matched(tree.table(item.table)[0])
    return len({fill(item.distinct, row) for row in rows}) if item.distinct else len(rows)


def _unreadable(sample: Sample) -> str:
    """Why an image cannot be read, or ""."""
    try:
        read(sample)
    except ReadError as error:
        return str(error)
    return ""
