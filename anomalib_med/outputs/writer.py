"""ResultWriter: the results of a run on disk, image after image, so that a run that stops can be resumed.

    OUT/run.json        which run this is, and whether it is complete
    OUT/scores.csv      one row for each scored image; scores.parquet or scores.jsonl beside it on request
    OUT/failures.csv    one row for each image that could not be scored, with the reason
    OUT/maps/           one anomaly map for each image, or for each volume
    OUT/overlays/       one picture for each image
    OUT/volumes.csv, candidates.csv, patients.csv   where slices of volumes are scored, see `outputs.volume_tables`

A row is written after its map and its overlay, in the order in which the results come. An interrupted run that is
resumed ends with the same bytes in scores.csv as one that was not interrupted. Files reach the system at once, not the
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

from anomalib_med.errors import ConfigError, OutputError
from anomalib_med.files import AppendFile, output_errors, write_atomic
from anomalib_med.outputs import resume, runfile
from anomalib_med.outputs.dicom_maps import DicomMaps, is_dicom_series
from anomalib_med.outputs.maps import VolumeMaps, png_scale, write_npy, write_png
from anomalib_med.outputs.names import safe_stem
from anomalib_med.outputs.overlay import write_overlay
from anomalib_med.outputs.tables import FAILURES, SCORES
from anomalib_med.outputs.volume_tables import (
    CANDIDATES,
    CANDIDATES_CSV,
    PATIENTS,
    PATIENTS_CSV,
    VOLUMES,
    VOLUMES_CSV,
    read_volumes,
)
from anomalib_med.records import PatientResult, Result, Volume, VolumeResult

TableKind = Literal["csv", "parquet", "jsonl"]
MapKind = Literal["npy", "png", "nifti", "dicom", "none"]


class ResultWriter:
    """Writes each result as it comes; memory does not grow with their number.

    Use it as a context manager: leaving the block in peace completes the run (`finish`), leaving it by an exception or
    Ctrl-C keeps what is written, and the next writer with the same arguments resumes it.

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
    overwrite
        Remove the results of another run from `out` first. Other files stay.

    Attributes
    ----------
    done
        Ids that an earlier run with the same fingerprint has dealt with: not to be written again. Failures are not
        among them, they are tried again (except single slices of a volume whose map is written).
    volumes
        The volumes that it has completed.
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
        overwrite: bool = False,
    ) -> None:
        lo, hi = float(colour_range[0]), float(colour_range[1])
        if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi):
            raise ConfigError(f"colour_range {colour_range}: give two finite numbers, the lower one first")
        self.out = Path(out)
        self._table, self._maps, self._overlays, self._colours = table, maps, overlays, (lo, hi)
        self._fingerprint = dict(fingerprint)
        self._outputs = {"maps": maps, "overlays": str(overlays).lower(), "colour_range": f"{lo!r} {hi!r}"}
        self._volume_of = {sample.id: volume for volume in volumes for sample in volume.samples}
        self._volume: Volume | None = None  # whose slices are coming, with their map and their rows
        self._volume_map: VolumeMaps | DicomMaps | None = None
        self._rows: list[Result] = []
        self._open(overwrite)
        self._finished = {volume.id for volume in self.volumes}

    def write(self, result: Result, display: np.ndarray | None, map: np.ndarray | None = None) -> Result:
        """Write the map, the overlay and the row of one image.

        Parameters
        ----------
        result
            The image's result; a failure goes to failures.csv.
        display
            uint8 ``(H, W)`` or ``(H, W, 3)``, the original image as a person looks at it; without it there is no
            overlay.
        map
            The anomaly map of the result where it was made already.

        Returns
        -------
        The result with `map` filled in. The row of a slice of a volume is written with :meth:`write_volume`.

        Raises
        ------
        OutputError
            The slices of a volume do not come one after the other; the disk is full or a file cannot be written; what
            was written before stays valid.
        """
        self._go_to(self._volume_of.get(result.id))
        if not result.ok:
            self._failures.append(FAILURES.line(result))
            self.counts["failed"] += 1
            return result
        shown = display if self._overlays else None
        if self._maps != "none" or shown is not None:
            map = result.anomaly_map() if map is None else map
            result = replace(result, map=self._write_map(result.id, map))
            if shown is not None:
                write_overlay(self.out / resume.OVERLAYS / f"{safe_stem(result.id)}.jpg", shown, map, self._colours)
        if self._volume is None:
            self._write_rows([result])
        else:
            self._rows.append(replace(result, grid=None))
        return result

    def write_volume(self, volume: VolumeResult) -> VolumeResult:
        """Write the map, the candidates and the rows of the volume whose last slice was written.

        Returns
        -------
        The volume with `map` filled in, and with a note where pixels lie beyond the scale of the map.

        Raises
        ------
        OutputError
            A file cannot be written.
        """
        assert self._volume is not None and self._volume.id == volume.id
        rows, maps = self._rows, self._volume_map
        if maps is not None:
            maps.write()
            clipped = [f"{maps.clipped} pixels of the map lie beyond its scale"] * bool(maps.clipped)
            written = f"{resume.MAPS}/{maps.out.name}" if rows else ""
            volume = replace(volume, map=written, note="; ".join([volume.note] * bool(volume.note) + clipped))
        self._append_volume(volume)
        self._finished.add(volume.id)
        self._volume, self._volume_map, self._rows = None, None, []
        self._write_rows(rows)
        return volume

    def write_patients(self, patients: Sequence[PatientResult]) -> None:
        """Write patients.csv where there are volumes.

        Raises
        ------
        OutputError
            The file cannot be written.
        """
        if self._tables:
            write_atomic(self.out / PATIENTS_CSV, PATIENTS.header, *map(PATIENTS.line, patients))

    def finish(self) -> None:
        """Make the other tables and mark the run as complete.

        Raises
        ------
        OutputError
            A file cannot be written.
        """
        assert self._volume is None, "the last volume was not written"
        self.close()
        table = self.out / resume.SCORES_CSV
        for kind in ("parquet", "jsonl"):
            # One made by an earlier run is made again: it must not differ from scores.csv.
            if kind == self._table or table.with_suffix(f".{kind}").exists():
                SCORES.convert(table, kind)
        self._write_run(complete=True)

    def close(self) -> None:
        """Close the files; the slices of an unfinished volume are forgotten and will be scored again."""
        if self._volume_map is not None:
            self._volume_map.discard()
        self._volume, self._volume_map, self._rows = None, None, []
        for table in (*self._tables.values(), self._scores, self._failures):
            table.close()

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
        """Resume what is there."""
        kept = resume.Kept()
        self.counts: dict[str, int] = {}
        if overwrite and (self.out / runfile.NAME).exists():
            resume.remove_results(self.out)
            self._write_run(complete=False)
        elif runfile.claim(self.out, self._fingerprint, self._outputs) == "resume":
            resume.remove_temporary(self.out)
            volume_of = {id: volume.id for id, volume in self._volume_of.items()}
            kept = resume.kept_rows(self.out, volume_of, complete=runfile.read_run(self.out).complete)
            self._write_run(complete=False)
        self._make_folders()
        self.done, failed = kept.done, len(kept.failures)
        self.counts |= {"scored": kept.scored, "flagged": kept.flagged, "failed": failed}
        self.counts["clipped_pixels"] = kept.clipped
        self._scores = AppendFile(self.out / resume.SCORES_CSV, keep=kept.scores_end)
        if not kept.scores_end:
            self._scores.append(SCORES.header)
        self._failures = AppendFile(self.out / resume.FAILURES_CSV)
        self._failures.append(b"".join([FAILURES.header, *map(FAILURES.line, kept.failures)]))
        tables = {VOLUMES_CSV: VOLUMES.header, CANDIDATES_CSV: CANDIDATES.header} if self._volume_of else {}
        there = kept.volumes and all((self.out / name).exists() for name in tables)
        self.volumes = [v for v in read_volumes(self.out) if v.id in kept.volumes] if there else []
        self._tables = {name: AppendFile(self.out / name) for name in tables}
        for name, header in tables.items():
            self._tables[name].append(header)
        for volume in self.volumes:
            self._append_volume(volume)

    def _write_run(self, *, complete: bool) -> None:
        counts = self.counts if complete else {}
        run = runfile.Run(complete=complete, counts=counts, fingerprint=self._fingerprint, outputs=self._outputs)
        runfile.write_run(self.out, run)

    def _make_folders(self) -> None:
        with output_errors(self.out):
            if self._maps != "none":
                (self.out / resume.MAPS).mkdir(exist_ok=True)
            if self._overlays:
                (self.out / resume.OVERLAYS).mkdir(exist_ok=True)
        self._scale = png_scale(self._colours)
        if self._maps == "png":
            lo, step = self._scale
            scale = {"value": "lo + png * step", "lo": lo, "step": step}
            write_atomic(self.out / resume.MAPS / resume.SCALE, (json.dumps(scale, indent=2) + "\n").encode())

    def _go_to(self, volume: Volume | None) -> None:
        """Begin the volume of the next image where it is another one."""
        if volume is self._volume:
            return
        broken = self._volume or volume
        assert broken is not None
        if self._volume is not None or broken.id in self._finished:
            raise OutputError(f"{broken.id}: its slices do not come one after the other: list them so")
        folder, stem = self.out / resume.MAPS, safe_stem(broken.id)
        self._volume = broken
        if self._maps == "dicom" and is_dicom_series(broken):
            run = self._fingerprint.get("model", "")
            self._volume_map = DicomMaps(broken, folder / stem, self._scale, self._colours, run)
        elif self._maps in ("nifti", "dicom") and broken.affine is not None:
            self._volume_map = VolumeMaps(broken, folder / f"{stem}.nii.gz")

    def _write_map(self, id: str, map: np.ndarray) -> str:
        """Write a map, and return where it is."""
        if self._maps == "none":
            return ""
        if self._volume_map is not None:
            self._volume_map.add(id, map)
            return f"{resume.MAPS}/{self._volume_map.name(id)}"
        name = f"{safe_stem(id)}.{'png' if self._maps == 'png' else 'npy'}"
        path = self.out / resume.MAPS / name
        if self._maps == "png":
            self.counts["clipped_pixels"] += write_png(path, map, self._scale)
        else:
            write_npy(path, map)
        return f"{resume.MAPS}/{name}"

    def _append_volume(self, volume: VolumeResult) -> None:
        self._tables[CANDIDATES_CSV].append(b"".join(map(CANDIDATES.line, volume.candidates)))
        self._tables[VOLUMES_CSV].append(VOLUMES.line(volume))

    def _write_rows(self, results: list[Result]) -> None:
        self._scores.append(b"".join(SCORES.line(result) for result in results))
        self.counts["scored"] += len(results)
        self.counts["flagged"] += sum(bool(result.flagged) for result in results)
