"""What tells a run into a folder from others, and a description of its model as a table."""

import hashlib
from collections.abc import Mapping, Sequence

from anomalib_med.records import RunInfo, Sample


def fingerprint(run: RunInfo, samples: Sequence[Sample]) -> dict[str, str]:
    """What tells a run from others, for its :class:`.writer.ResultWriter`."""
    images, rate = _images_hash(samples), repr(run.false_alarm_rate)
    return {"model": run.fingerprint, "images": images, "false_alarm_rate": rate}


def flat_table(description: Mapping[str, object]) -> dict[str, str]:
    """A nested description as one table of text, keys joined by dots."""
    table: dict[str, str] = {}
    for key, value in description.items():
        if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            value = {str(i): item for i, item in enumerate(value, 1)}
        if isinstance(value, Mapping):
            table |= {f"{key}.{inner}": text for inner, text in flat_table(value).items()}
        else:
            table[key] = ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
    return table


def _images_hash(samples: Sequence[Sample]) -> str:
    """SHA-256 of the paths, sizes and times of files and the pixels of arrays: other images may have the same ids."""
    digest = hashlib.sha256()
    for sample in samples:
        file = sample.path.stat() if sample.path is not None and sample.path.exists() else None
        state = (str(sample.path), file.st_size if file else 0, file.st_mtime_ns if file else 0)
        digest.update(repr((sample.id, sample.frame, state)).encode("utf-8", "surrogatepass"))
        if sample.array is not None:
            digest.update(repr((sample.array.shape, sample.array.dtype.str)).encode() + sample.array.tobytes())
    return digest.hexdigest()
