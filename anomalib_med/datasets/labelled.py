"""Labelled samples from a folder of normal and one of abnormal images."""

from dataclasses import replace
from pathlib import Path

from anomalib_med.datasets.folder import discover
from anomalib_med.errors import InputError
from anomalib_med.records import Sample


def labelled_folders(normal: str, abnormal: str, masks: Path | None, patient_pattern: str | None) -> list[Sample]:
    """Samples of a folder (file, glob) of normals and one of abnormals, with masks of the same names where given.

    Raises
    ------
    InputError
        A folder without images, an image on both sides, or masks of which none belongs to an abnormal image.
    """
    sources = {"normal": normal, "abnormal": abnormal}
    sides = {kind: discover(source, patient_pattern=patient_pattern) for kind, source in sources.items()}
    paths = [{s.path.resolve() for s in samples if s.path is not None} for samples in sides.values()]
    if both := paths[0] & paths[1]:
        raise InputError(f"{min(both)}: is among the normal and the abnormal images")
    if masks is not None:
        sides["abnormal"] = _masked(sides["abnormal"], masks)
    return [
        replace(s, id=f"{kind}/{s.id}", patient=_patient(s), label=label, volume=s.volume and f"{kind}/{s.volume}")
        for label, (kind, samples) in enumerate(sides.items())
        for s in samples
    ]


def _masked(samples: list[Sample], masks: Path) -> list[Sample]:
    if not masks.is_dir():
        raise InputError(f"{masks}: no such folder of masks")
    by_stem = {_stem(path): path for path in sorted(masks.rglob("*")) if path.is_file()}
    located = [replace(s, mask=by_stem.get(_stem(s.path))) if s.path is not None else s for s in samples]
    if not any(s.mask for s in located):
        example = samples[0].path
        raise InputError(f"{masks}: no mask has the name of an abnormal image such as {example}, its ending aside")
    return located


def _patient(sample: Sample) -> str:
    """The patient; "" where only the name of the file stands for one, which may be the same in both folders."""
    return "" if sample.patient == Sample(sample.id, frame=sample.frame).patient else sample.patient


def _stem(path: Path) -> str:
    """The name without its endings, of which ``.nii.gz`` has two."""
    return path.name.removesuffix(".gz").rpartition(".")[0] or path.name
