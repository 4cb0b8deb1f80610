"""ResultWriter: the results of a run on disk, image after image, so that a run that stops can be taken up again.

    OUT/run.json        which run this is, and whether it is complete
    OUT/scores.csv      one row for each scored image; scores.parquet or scores.jsonl beside it on request
    OUT/failures.csv    one row for each image that could not be scored, with the reason
    OUT/maps/           one anomaly map for each image, or for each NIfTI volume
    OUT/overlays/       one picture for each image

A row is written after its map and its overlay, in the order in which the results come. An interrupted run that is taken
up again ends with the same bytes in scores.csv as one that was not interrupted. Files reach the system at once, not the
disk: a killed process loses nothing, a power cut may lose the last rows, and those are scored again.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np

from anomalib_med.errors import ConfigError, OutputError
from anomalib_med.outputs import resume, runfile
from anomalib_med.outputs.files import AppendFile, output_errors, write_atomic
from anomalib_med.outputs.maps import VolumeMaps, is_volume, png_scale, write_npy, write_png
from anomalib_med.outputs.names import safe_stem
from anomalib_med.outputs.overlay import write_overlay
from anomalib_med.outputs.result import Result
from anomalib_med.outputs.tables import FAILURES, SCORES, convert_scores, csv_record, failure_values, score_values

TableKind = Literal["csv", "parquet", "jsonl"]
MapKind = Literal["npy", "png", "nifti", "none"]


class ResultWriter:
    """Writes each result as it comes; memory does not grow with their number.

    Use it as a context manager: leaving the block in peace completes the run (`finish`), leaving it by an exception or
    Ctrl-C keeps what is written, to be taken up by the next writer with the same arguments.

    Parameters
    ----------
    out
        Output folder; created if absent.
    fingerprint
        All that the scores depend on, as text by name (hash of the model, hash of the list of images, options).
    table
        Form of the table beside scores.csv, made when the run completes; "csv" for none.
    maps
        "npy": float32. "png": 16 bits on the scale in maps/scale.json. "nifti": one ``.nii.gz`` for each NIfTI volume
        with its affine and orientation, whose slices must come one after the other; slices that failed are NaN;
        images that are no NIfTI volumes get ``.npy``. "none".
    overlays
        Whether to write image | map | overlay as JPEG.
    colour_range
        Values at the two ends of the colour scale and of the colour bar, fixed for the run.
    overwrite
        Remove the results of another run from `out` first. Other files stay.

    Attributes
    ----------
    done
        Ids that an earlier run with the same fingerprint has dealt with: not to be written again. Failures are not
        among them, they are tried again (except single slices of a volume whose map is written).
    counts
        Images "scored", "flagged", "failed", and "clipped_pixels" of PNG maps, over all runs into this folder.

    Raises
    ------
    OutputError
        The folder holds another run or foreign files, is not writable, or its tables were edited.
    ConfigError
        `colour_range` is not two finite, ascending numbers.
    """

    def __init__(
        self,
        out: Path,
        *,
        fingerprint: Mapping[str, str],
        colour_range: tuple[float, float],
        table: TableKind = "csv",
        maps: MapKind = "npy",
        overlays: bool = True,
        overwrite: bool = False,
    ) -> None:
        lo, hi = float(colour_range[0]), float(colour_range[1])
        if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi):
            raise ConfigError(f"colour_range {colour_range}: give two finite numbers, the lower one first")
        self.out = Path(out)
        self._table, self._maps, self._overlays, self._colours = table, maps, overlays, (lo, hi)
        self._fingerprint = dict(fingerprint)
        self._outputs = {"maps": maps, "overlays": str(overlays).lower(), "colour_range": f"{lo!r} {hi!r}"}
        self._volume: VolumeMaps | None = None
        self._volume_rows: list[Result] = []
        self._open(overwrite)

    def write(self, result: Result, display: np.ndarray | None) -> Result:
        """Write the map, the overlay and the row of one image.

        Parameters
        ----------
        result
            The image's result; a failure goes to failures.csv.
        display
            uint8 ``(H, W)`` or ``(H, W, 3)``, the original image as a person looks at it; without it there is no
            overlay.

        Returns
        -------
        The result with `map` filled in. The row of a slice of a NIfTI volume is written with the volume's last one.

        Raises
        ------
        OutputError
            The disk is full or a file cannot be written; what was written before stays valid.
        """
        if not result.ok:
            self._failures.append(csv_record(failure_values(result)))
            self.counts["failed"] += 1
            return result
        in_volume = self._maps == "nifti" and is_volume(result.path, result.frame)
        if self._volume is not None and not (in_volume and Path(result.path) == self._volume.source):
            self._finish_volume()
        shown = display if self._overlays else None
        stem = safe_stem(result.id)
        if self._maps != "none" or shown is not None:
            map = result.anomaly_map()
            result = replace(result, map=self._write_map(result, stem, map, in_volume=in_volume))
            if shown is not None:
                write_overlay(self.out / resume.OVERLAYS / f"{stem}.jpg", shown, map, self._colours)
        if in_volume:
            self._volume_rows.append(replace(result, grid=None))
        else:
            self._write_rows([result])
        return result

    def finish(self) -> None:
        """Write what is still open, make the other tables and mark the run as complete.

        Raises
        ------
        OutputError
            A file cannot be written.
        """
        self._finish_volume()
        self.close()
        table = self.out / resume.SCORES_CSV
        for kind in ("parquet", "jsonl"):
            # One made by an earlier run is made again: it must not differ from scores.csv.
            if kind == self._table or table.with_suffix(f".{kind}").exists():
                convert_scores(table, kind)
        runfile.write_run(self.out, runfile.Run(self._fingerprint, self._outputs, True, self.counts))

    def close(self) -> None:
        """Close the files; the slices of an unfinished volume are forgotten and will be scored again."""
        if self._volume is not None:
            self._volume.discard()
            self._volume, self._volume_rows = None, []
        self._scores.close()
        self._failures.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self.close()

    def _open(self, overwrite: bool) -> None:
        kept = resume.Kept()
        if overwrite and (self.out / runfile.NAME).exists():
            resume.remove_results(self.out)
            runfile.write_run(self.out, runfile.Run(self._fingerprint, self._outputs, False, {}))
        elif runfile.claim(self.out, self._fingerprint, self._outputs) == "resume":
            resume.remove_temporary(self.out)
            kept = resume.kept_rows(self.out, whole_volumes=not runfile.read_run(self.out).complete)
            runfile.write_run(self.out, runfile.Run(self._fingerprint, self._outputs, False, {}))
        self._make_folders()
        self.done, self._volumes = kept.done, kept.volumes
        self.counts = {
            "scored": kept.scored,
            "flagged": kept.flagged,
            "failed": len(kept.failures),
            "clipped_pixels": kept.clipped,
        }
        self._scores = AppendFile(self.out / resume.SCORES_CSV, keep=kept.scores_end)
        if not kept.scores_end:
            self._scores.append(csv_record(SCORES))
        self._failures = AppendFile(self.out / resume.FAILURES_CSV)
        self._failures.append(csv_record(FAILURES))
        for failure in kept.failures:
            self._failures.append(csv_record(failure_values(failure)))

    def _make_folders(self) -> None:
        with output_errors(self.out):
            if self._maps != "none":
                (self.out / resume.MAPS).mkdir(exist_ok=True)
            if self._overlays:
                (self.out / resume.OVERLAYS).mkdir(exist_ok=True)
        if self._maps == "png":
            self._png_scale = png_scale(self._colours)
            lo, step = self._png_scale
            scale = {"value": "lo + png * step", "lo": lo, "step": step}
            write_atomic(self.out / resume.MAPS / resume.SCALE, (json.dumps(scale, indent=2) + "\n").encode())

    def _write_map(self, result: Result, stem: str, map: np.ndarray, *, in_volume: bool) -> str:
        if self._maps == "none":
            return ""
        if in_volume:
            return self._add_slice(result, map)
        name = f"{stem}.png" if self._maps == "png" else f"{stem}.npy"
        path = self.out / resume.MAPS / name
        if self._maps == "png":
            self.counts["clipped_pixels"] += write_png(path, map, self._png_scale)
        else:
            write_npy(path, map)
        return f"{resume.MAPS}/{name}"

    def _add_slice(self, result: Result, map: np.ndarray) -> str:
        name = f"{safe_stem(result.id.rpartition('#')[0] or result.id)}.nii.gz"
        if self._volume is None:
            if result.path in self._volumes:
                raise OutputError(
                    f"{result.path}: its slices do not come one after the other: list them so, or use --maps npy"
                )
            self._volume = VolumeMaps(Path(result.path), self.out / resume.MAPS / name)
        assert result.frame is not None
        self._volume.add(result.frame, map)
        return f"{resume.MAPS}/{name}"

    def _finish_volume(self) -> None:
        if self._volume is None:
            return
        self._volume.write()
        self._volumes.add(str(self._volume.source))
        self._write_rows(self._volume_rows)
        self._volume, self._volume_rows = None, []

    def _write_rows(self, results: list[Result]) -> None:
        self._scores.append(b"".join(csv_record(score_values(result)) for result in results))
        self.counts["scored"] += len(results)
        self.counts["flagged"] += sum(bool(result.flagged) for result in results)
