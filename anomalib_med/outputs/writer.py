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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Self

import numpy as np

from anomalib_med.errors import ConfigError, OutputError
from anomalib_med.files import AppendFile, output_errors, write_atomic
from anomalib_med.outputs import resume, runfile
from anomalib_med.outputs.dicom_maps import DicomMaps
from anomalib_med.outputs.maps import VolumeMaps, png_scale, write_npy, write_png
from anomalib_med.outputs.names import safe_stem
from anomalib_med.outputs.overlay import write_overlay
from anomalib_med.outputs.tables import FAILURES, SCORES, R, Table
from anomalib_med.outputs.volume_tables import CANDIDATES, CANDIDATES_CSV, PATIENTS, PATIENTS_CSV, VOLUMES, VOLUMES_CSV
from anomalib_med.records import PatientResult, Result, Volume, VolumeResult

TableKind = Literal["csv", "parquet", "jsonl"]
MapKind = Literal["npy", "png", "nifti", "dicom", "none"]


@dataclass
class _Begun:
    """The volume whose slices are coming, with their map and their rows."""

    volume: Volume
    maps: VolumeMaps | DicomMaps | None
    rows: list[Result] = field(default_factory=list)


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
    colour_range
        Values at the two ends of the colour scale and of the colour bar, fixed for the run.
    volumes
        The volumes among the images; their slices must come one after the other, and their rows are written together.
    table
        Form of the table beside scores.csv, made when the run completes; "csv" for none.
    maps
        "npy": float32. "png": 16 bits on the scale in maps/scale.json. "nifti": one ``.nii.gz`` over each volume, with
        NaN in slices that failed or are missing; ``.npy`` for other images and volumes without an affine. "dicom": a
        DICOM series for each DICOM series, see :class:`.dicom_maps.DicomMaps`; all others as with "nifti". "none".
    overlays
        Whether to write image | map | overlay as JPEG.
    overwrite
        Remove the results of another run from `out` first. Other files stay.

    Attributes
    ----------
    done, volumes
        Ids that an earlier run with the same fingerprint has dealt with, not to be written again, and the volumes that
        it completed. Failures are tried again (except single slices of a volume whose map is written).
    counts
        Images "scored", "flagged", "failed", and "clipped_pixels" of PNG maps, over all runs into this folder.

    Raises
    ------
    OutputError
        The folder holds another run or foreign files, is not writable, or its tables were edited. Every method: the
        disk is full or a file cannot be written; what was written before stays valid.
    ConfigError
        `colour_range` is not two finite, ascending numbers.
    """

    def __init__(
        self,
        out: Path,
        fingerprint: Mapping[str, str],
        colour_range: tuple[float, float],
        volumes: Sequence[Volume] = (),
        *,
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
        outputs = {"maps": maps, "overlays": str(overlays).lower(), "colour_range": f"{lo!r} {hi!r}"}
        self._run = runfile.Run(fingerprint=fingerprint, outputs=outputs)
        self._volume_of = {sample.id: volume for volume in volumes for sample in volume.samples}
        self._begun: _Begun | None = None
        self._open(overwrite)
        self._finished = {volume.id for volume in self.volumes}

    def write(self, result: Result, display: np.ndarray | None, map: np.ndarray | None = None) -> Result:
        """Write the map, the overlay and the row of one image; the row of a slice comes with :meth:`write_volume`.

        Parameters
        ----------
        result
            The image's result; a failure goes to failures.csv.
        display
            uint8 ``(H, W)`` or ``(H, W, 3)``, the original image as a person looks at it; None for no overlay.
        map
            The anomaly map of the result where it was made already.

        Returns
        -------
        The result with `map` filled in. Raises OutputError where slices of a volume do not come one after the other.
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
        if self._begun is None:
            self._write_rows([result])
        else:
            self._begun.rows.append(replace(result, grid=None))
        return result

    def write_volume(self, volume: VolumeResult) -> VolumeResult:
        """Write the map, the candidates and the rows of the volume whose last slice was written.

        Returns it with `map` filled in, and with a note where pixels lie beyond the scale of the map.
        """
        begun, self._begun = self._begun, None
        assert begun is not None and begun.volume.id == volume.id
        if begun.maps is not None:
            begun.maps.write()
            clipped = begun.maps.clipped
            beyond = f"{clipped} pixels of the map lie beyond its scale" if clipped else ""
            written = f"{resume.MAPS}/{begun.maps.out.name}" if begun.rows else ""
            volume = replace(volume, map=written, note="; ".join(filter(None, [volume.note, beyond])))
        self._tables[CANDIDATES_CSV].append(b"".join(map(CANDIDATES.line, volume.candidates)))
        self._tables[VOLUMES_CSV].append(VOLUMES.line(volume))
        self._finished.add(volume.id)
        self._write_rows(begun.rows)
        return volume

    def write_patients(self, patients: Sequence[PatientResult]) -> None:
        """Write patients.csv where there are volumes."""
        if self._tables:
            write_atomic(self.out / PATIENTS_CSV, PATIENTS.header, *map(PATIENTS.line, patients))

    def finish(self) -> None:
        """Make the other tables and mark the run as complete."""
        assert self._begun is None, "the last volume was not written"
        self.close()
        table = self.out / resume.SCORES_CSV
        for kind in ("parquet", "jsonl"):
            # One made by an earlier run is made again: it must not differ from scores.csv.
            if kind == self._table or table.with_suffix(f".{kind}").exists():
                SCORES.convert(table, kind)
        runfile.write_run(self.out, self._run.model_copy(update={"complete": True, "counts": self.counts}))

    def close(self) -> None:
        """Close the files; the slices of an unfinished volume are forgotten and will be scored again."""
        if self._begun is not None and self._begun.maps is not None:
            self._begun.maps.discard()
        self._begun = None
        for table in (*self._tables.values(), self._scores, self._failures):
            table.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self.close()

    def _open(self, overwrite: bool) -> None:
        """Make the folders, and open the tables behind what they keep of an earlier part of the run."""
        kept = resume.Kept()
        if overwrite and (self.out / runfile.NAME).exists():
            resume.remove_results(self.out)
        elif earlier := runfile.claim(self.out, self._run):
            resume.remove_temporary(self.out)
            volume_of = {id: volume.id for id, volume in self._volume_of.items()}
            kept = resume.kept_rows(self.out, volume_of, complete=earlier.complete)
        runfile.write_run(self.out, self._run)
        with output_errors(self.out):
            for name, wanted in ((resume.MAPS, self._maps != "none"), (resume.OVERLAYS, self._overlays)):
                if wanted:
                    (self.out / name).mkdir(exist_ok=True)
        self._scale = png_scale(self._colours)
        if self._maps == "png":
            lo, step = self._scale
            scale = {"value": "lo + png * step", "lo": lo, "step": step}
            write_atomic(self.out / resume.MAPS / resume.SCALE, (json.dumps(scale, indent=2) + "\n").encode())
        self.done, self.counts, self.volumes = kept.done, kept.counts, kept.volumes
        self._scores = AppendFile(self.out / resume.SCORES_CSV, keep=kept.scores_end)
        if not kept.scores_end:
            self._scores.append(SCORES.header)
        self._failures = self._table_of(resume.FAILURES_CSV, FAILURES, kept.failures)
        self._tables: dict[str, AppendFile] = {}
        if self._volume_of:
            candidates = [candidate for volume in kept.volumes for candidate in volume.candidates]
            self._tables[CANDIDATES_CSV] = self._table_of(CANDIDATES_CSV, CANDIDATES, candidates)
            self._tables[VOLUMES_CSV] = self._table_of(VOLUMES_CSV, VOLUMES, kept.volumes)

    def _table_of(self, name: str, table: Table[R], records: Sequence[R]) -> AppendFile:
        """A table that holds these records and grows."""
        file = AppendFile(self.out / name)
        file.append(b"".join([table.header, *map(table.line, records)]))
        return file

    def _go_to(self, volume: Volume | None) -> None:
        """Begin the volume of the next image where it is another one."""
        current = self._begun and self._begun.volume
        if volume is current:
            return
        wanted = current or volume
        assert wanted is not None
        if current is not None or wanted.id in self._finished:
            raise OutputError(f"{wanted.id}: its slices do not come one after the other: list them so")
        maps: VolumeMaps | DicomMaps | None = None  # where each slice has its own
        folder, stem = self.out / resume.MAPS, safe_stem(wanted.id)
        if self._maps == "dicom" and all(s.frame is None and s.place is not None for s in wanted.samples):
            run = self._run.fingerprint.get("model", "")
            maps = DicomMaps(wanted, folder / stem, self._scale, self._colours, run)
        elif self._maps in ("nifti", "dicom") and wanted.affine is not None:
            maps = VolumeMaps(wanted, folder / f"{stem}.nii.gz")
        self._begun = _Begun(wanted, maps)

    def _write_map(self, id: str, map: np.ndarray) -> str:
        """Write a map, and return where it is."""
        if self._maps == "none":
            return ""
        if self._begun is not None and self._begun.maps is not None:
            return f"{resume.MAPS}/{self._begun.maps.add(id, map)}"
        name = f"{resume.MAPS}/{safe_stem(id)}.{'png' if self._maps == 'png' else 'npy'}"
        if self._maps == "png":
            self.counts["clipped_pixels"] += write_png(self.out / name, map, self._scale)
        else:
            write_npy(self.out / name, map)
        return name

    def _write_rows(self, results: list[Result]) -> None:
        self._scores.append(b"".join(SCORES.line(result) for result in results))
        self.counts["scored"] += len(results)
        self.counts["flagged"] += sum(bool(result.flagged) for result in results)
