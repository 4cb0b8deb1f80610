"""What is written of volumes is read back as the same records."""

from pathlib import Path

import pytest

from anomalib_med.errors import OutputError
from anomalib_med.outputs.volume_tables import CANDIDATES, VOLUMES, read_volumes
from anomalib_med.records import Candidate, VolumeResult

CANDIDATE = Candidate("a", "=p", 1, (1.25, -2.5, 3.0), 0.125, 1 / 3, 0.2, ("a#1", 3, 4), 2)
VOLUMES_FOUND = [
    VolumeResult("a", "=p", "s", 3, 2, 0.1 + 0.2, 0.25, False, (CANDIDATE,), "lung 2", "maps/a.nii.gz", 'no "map"'),
    VolumeResult("b", "q", "", 1, 0, 0.0, None, None, ()),
]


def write(out: Path, volumes: list[VolumeResult]) -> None:
    candidates = [CANDIDATES.line(c) for volume in volumes for c in volume.candidates]
    (out / "volumes.csv").write_bytes(b"".join([VOLUMES.header, *map(VOLUMES.line, volumes)]))
    (out / "candidates.csv").write_bytes(b"".join([CANDIDATES.header, *candidates]))


def test_records_come_back(tmp_path: Path) -> None:
    write(tmp_path, VOLUMES_FOUND)
    assert read_volumes(tmp_path) == VOLUMES_FOUND


def test_an_edited_table_is_named(tmp_path: Path) -> None:
    write(tmp_path, VOLUMES_FOUND)
    table = tmp_path / "volumes.csv"
    table.write_bytes(table.read_bytes().replace(b"false", b"no"))
    with pytest.raises(OutputError, match=r"volumes\.csv, row 2: not as it was written"):
        read_volumes(tmp_path)
    table.unlink()
    with pytest.raises(OutputError, match=r"volumes\.csv"):
        read_volumes(tmp_path)
