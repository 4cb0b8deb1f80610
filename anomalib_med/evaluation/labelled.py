"""Labelled samples to evaluate on: from two folders, a table or a named data set."""

from dataclasses import dataclass, replace
from pathlib import Path

from anomalib_med.datasets.benchmarks import open_benchmark
from anomalib_med.datasets.folder import discover
from anomalib_med.errors import InputError
from anomalib_med.evaluation.evaluate import TASKS
from anomalib_med.records import Sample


@dataclass(frozen=True)
class Labelled:
    """Images to evaluate on, labelled 0 or 1."""

    samples: list[Sample]
    tasks: tuple[str, ...] = TASKS
    """What they can be judged by, see :func:`.evaluate.evaluate_model`."""
    notes: tuple[str, ...] = ()
    """What a reader of the numbers must know."""


def folder_samples(normal: str, abnormal: str, masks: Path | None, patient_pattern: str | None) -> Labelled:
    """Samples of a folder (file, glob) of normals and one of abnormals, with masks of the same names where given.

    Raises
    ------
    InputError
        A folder without images, an image on both sides, or masks of which none belongs to an abnormal image.
    """
    samples = [
        replace(
            sample,
            id=f"{kind}/{sample.id}",
            patient=_known_patient(sample),
            label=label,
            volume=sample.volume and f"{kind}/{sample.volume}",
        )
        for kind, label, source in (("normal", 0, normal), ("abnormal", 1, abnormal))
        for sample in discover(source, patient_pattern=patient_pattern)
    ]
    sides = [{s.path.resolve() for s in samples if s.label == label and s.path is not None} for label in (0, 1)]
    if sides[0] & sides[1]:
        raise InputError(f"{min(sides[0] & sides[1])}: is among the normal and the abnormal images")
    if masks is None:
        return Labelled(samples)
    if not masks.is_dir():
        raise InputError(f"{masks}: no such folder of masks")
    by_stem = {_stem(path): path for path in sorted(masks.rglob("*")) if path.is_file()}
    located = [
        replace(s, mask=by_stem.get(_stem(s.path))) if s.label == 1 and s.path is not None else s for s in samples
    ]
    if not any(s.mask for s in located):
        example = next(str(s.path) for s in samples if s.label == 1)
        raise InputError(f"{masks}: no mask has the name of an abnormal image such as {example}, its ending aside")
    return Labelled(located)


def table_samples(table: str, patient_pattern: str | None) -> Labelled:
    """Samples of a CSV with the columns ``path`` and ``label``.

    Raises
    ------
    InputError
        Where labels are missing, with the first image that has none.
    """
    samples = discover(table, patient_pattern=patient_pattern)
    unlabelled = next((s.id for s in samples if s.label not in (0, 1)), None)
    if unlabelled is not None:
        raise InputError(f"{table}: {unlabelled} has no label: the column label says 0 for normal and 1 for abnormal")
    return Labelled(samples)


def dataset_samples(name: str, root: Path) -> Labelled:
    """The test side of a named data set.

    Raises
    ------
    AnomedError
        The data set is not known, not there or not complete.
    """
    benchmark = open_benchmark(name, root)
    notes = (f"protocol {benchmark.protocol}, split {benchmark.split_hash}", *benchmark.notes)
    return Labelled(list(benchmark.test), benchmark.tasks, notes)


def _known_patient(sample: Sample) -> str:
    """The patient; "" where only the name of the file stands for one, which may be the same in both folders."""
    return "" if sample.patient == Sample(sample.id, frame=sample.frame).patient else sample.patient


def _stem(path: Path) -> str:
    """The name without its endings, of which ``.nii.gz`` has two."""
    return path.name.removesuffix(".gz").rpartition(".")[0] or path.name
