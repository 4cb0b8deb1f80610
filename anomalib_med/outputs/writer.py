"""ResultWriter: the results of a run on disk, image after image, so that a run that stops can be taken up again.

    OUT/run.json        which run this is, and whether it is complete
    OUT/scores.csv      one row for each scored image; scores.parquet or scores.jsonl beside it on request
    OUT/failures.csv    one row for each image that could not be scored, with the reason
    OUT/maps/           one anomaly map for each image, or for each volume
    OUT/overlays/       one picture for each image
    OUT/volumes.csv, candidates.csv, patients.csv   where slices of volumes are scored, see `outputs.volumes`

A row is written after its map and its overlay, in the order in which the results come. An interrupted run that is taken
up again ends with the same bytes in scores.csv as one that was not interrupted. Files reach the system at once, not the
disk: a killed process loses nothing, a power cut may lose the last rows, and those are scored again.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np

from anomalib_med.calibration.judge import VolumeRule
from anomalib_med.errors import ConfigError
from anomalib_med.files import AppendFile, output_errors, write_atomic
from anomalib_med.outputs import resume, runfile
from anomalib_med.outputs.dicom_maps import DicomMaps, is_dicom_series
from anomalib_med.outputs.maps import VolumeMaps, png_scale, write_npy, write_png
from anomalib_med.outputs.names import safe_stem
from anomalib_med.outputs.overlay import write_overlay
from anomalib_med.outputs.tables import FAILURES, SCORES
from anomalib_med.outputs.volume_tables import Maps, VolumeOutputs
from anomalib_med.records import Result, Volume

TableKind = Literal["csv", "parquet", "jsonl"]
MapKind = Literal["npy", "png", "nifti", "dicom", "none"]


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
        "npy": float32. "png": 16 bits on the scale in maps/scale.json. "nifti": one ``.nii.gz`` for each volume that
        lies over it; slices that failed or are missing are NaN; images that are no slices, and volumes without an
        affine, get ``.npy``. "dicom": a DICOM series for each DICOM series, see
        :class:`anomalib_med.outputs.dicom_maps.DicomMaps`; all others as with "nifti". "none".
    overlays
        Whether to write image | map | overlay as JPEG.
    colour_range
        Values at the two ends of the colour scale and of the colour bar, fixed for the run.
    volumes
        The volumes among the images; their slices must come one after the other, and their rows are written together.
    rule, false_alarm_rate
        How volumes are judged, see :class:`anomalib_med.outputs.volume_tables.VolumeOutputs`.
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
        volumes: Sequence[Volume] = (),
        rule: VolumeRule | None = None,
        false_alarm_rate: float = 0.05,
        overwrite: bool = False,
    ) -> None:
        lo, hi = float(colour_range[0]), float(colour_range[1])
        if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi):
            raise ConfigError(f"colour_range {colour_range}: give two finite numbers, the lower one first")
        self.out = Path(out)
        self._table, self._maps, self._overlays, self._colours = table, maps, overlays, (lo, hi)
        self._fingerprint = dict(fingerprint)
        self._outputs = {"maps": maps, "overlays": str(overlays).lower(), "colour_range": f"{lo!r} {hi!r}"}
        kept = self._open({sample.id: volume.id for volume in volumes for sample in volume.samples}, overwrite)
        rule = rule or VolumeRule()
        self._volumes = VolumeOutputs(
            self.out, volumes, rule, false_alarm_rate, resume.MAPS, self._maps_of_volume, kept
        )

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
        The result with `map` filled in. The row of a slice of a volume is written with the volume's last one.

        Raises
        ------
        OutputError
            The disk is full or a file cannot be written; what was written before stays valid.
        """
        volume = self._volumes.of(result.id)
        if volume is not self._volumes.current:
            self._finish_volume()
            if volume is not None:
                self._volumes.begin(volume)
        if not result.ok:
            self._failures.append(FAILURES.line(result))
            self.counts["failed"] += 1
            return result
        shown = display if self._overlays else None
        stem = safe_stem(result.id)
        map = None
        if self._maps != "none" or shown is not None or (volume is not None and self._volumes.wants_maps):
            map = result.anomaly_map()
        if map is not None and not (volume is not None and self._volumes.has_map):
            result = replace(result, map=self._write_map(stem, map))
        if map is not None and shown is not None:
            write_overlay(self.out / resume.OVERLAYS / f"{stem}.jpg", shown, map, self._colours)
        if volume is not None:
            return self._volumes.add(result, map)
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
        self._volumes.write_patients()
        table = self.out / resume.SCORES_CSV
        for kind in ("parquet", "jsonl"):
            # One made by an earlier run is made again: it must not differ from scores.csv.
            if kind == self._table or table.with_suffix(f".{kind}").exists():
                SCORES.convert(table, kind)
        runfile.write_run(self.out, runfile.Run(self._fingerprint, self._outputs, True, self.counts))

    def close(self) -> None:
        """Close the files; the slices of an unfinished volume are forgotten and will be scored again."""
        self._volumes.discard()
        self._volumes.close()
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

    def _open(self, volume_of: Mapping[str, str], overwrite: bool) -> set[str]:
        """Take up what is there; returns the ids of the volumes that are complete."""
        kept = resume.Kept()
        if overwrite and (self.out / runfile.NAME).exists():
            resume.remove_results(self.out)
            runfile.write_run(self.out, runfile.Run(self._fingerprint, self._outputs, False, {}))
        elif runfile.claim(self.out, self._fingerprint, self._outputs) == "resume":
            resume.remove_temporary(self.out)
            kept = resume.kept_rows(self.out, volume_of, complete=runfile.read_run(self.out).complete)
            runfile.write_run(self.out, runfile.Run(self._fingerprint, self._outputs, False, {}))
        self._make_folders()
        self.done = kept.done
        self.counts = {
            "scored": kept.scored,
            "flagged": kept.flagged,
            "failed": len(kept.failures),
            "clipped_pixels": kept.clipped,
        }
        self._scores = AppendFile(self.out / resume.SCORES_CSV, keep=kept.scores_end)
        if not kept.scores_end:
            self._scores.append(SCORES.header)
        self._failures = AppendFile(self.out / resume.FAILURES_CSV)
        self._failures.append(FAILURES.header)
        for failure in kept.failures:
            self._failures.append(FAILURES.line(failure))
        return kept.volumes

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

    def _maps_of_volume(self, volume: Volume) -> Maps | None:
        folder, stem = self.out / resume.MAPS, safe_stem(volume.id)
        if self._maps == "dicom" and is_dicom_series(volume):
            scale = png_scale(self._colours)
            return DicomMaps(volume, folder / stem, scale, self._colours, self._fingerprint.get("model", ""))
        if self._maps in ("nifti", "dicom") and volume.affine is not None:
            return VolumeMaps(volume, folder / f"{stem}.nii.gz")
        return None

    def _write_map(self, stem: str, map: np.ndarray) -> str:
        if self._maps == "none":
            return ""
        name = f"{stem}.png" if self._maps == "png" else f"{stem}.npy"
        path = self.out / resume.MAPS / name
        if self._maps == "png":
            self.counts["clipped_pixels"] += write_png(path, map, self._png_scale)
        else:
            write_npy(path, map)
        return f"{resume.MAPS}/{name}"

    def _finish_volume(self) -> None:
        rows = self._volumes.finish()
        if rows:
            self._write_rows(rows)

    def _write_rows(self, results: list[Result]) -> None:
        self._scores.append(b"".join(SCORES.line(result) for result in results))
        self.counts["scored"] += len(results)
        self.counts["flagged"] += sum(bool(result.flagged) for result in results)
