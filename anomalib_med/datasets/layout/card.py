"""The schema of ``datasets/<name>/dataset.toml``: a data set described well enough to need no code of its own.

Text in braces is filled in from the row of an image: ``{Patient ID}`` is a column of the table, ``{subject_id[:2]}``
its first two characters, ``{file.stem}``, ``{file.name}``, ``{file.folder}`` and ``{file.path}`` belong to the file
itself, and the named groups of `Group.pattern` are there by their names.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from anomalib_med.cards import cards_folder
from anomalib_med.errors import ConfigError

Share = tuple[float, float]


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]


class _Strict(BaseModel):
    """An unknown key is a typing error in the card, never a silent nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Join(_Strict):
    """More columns for each row, from another table.

    Parameters
    ----------
    table
        File, as `Group.table`.
    on
        Columns that both tables have and that name one row of the other.
    """

    table: Names
    on: Names


class Listed(_Strict):
    """Keep the images that a text file names, one a line (or, with ``keep = false``, those it does not name)."""

    file: Names
    key: str
    keep: bool = True


class Slices(_Strict):
    """Every image is a volume, and its axial slices are the samples.

    Parameters
    ----------
    min_lesion
        Mask voxels that make a slice abnormal. A normal slice has none; a slice between the two is left out.
    content, min_content
        Part of the slice that must have values from the first to the second number, or the slice is left out.
    every
        Keep every n-th slice of each kind in a volume.
    """

    min_lesion: int = 1
    content: tuple[float, float] = (0.0, 0.0)
    min_content: float = 0.0
    every: int = 1


class Group(_Strict):
    """Images of one label on one side of the split.

    Parameters
    ----------
    files
        Globs below the root. Either these, or a table and `path`.
    table
        CSV, TSV, text or JSON file with one row an image or more; alternatives are tried in turn.
        ``lists.json#train.0`` is the list under these keys. An item of a list that is plain text is the column
        ``item``.
    path
        Where the file of a row lies; alternatives are tried in turn. Its folder may be a glob.
    join, listed
        Further tables; text files of names.
    cells
        A regular expression with named groups for a column, which the whole cell must match: the groups become columns.
    where
        A regular expression for each column, which the whole cell must match.
    where_any
        As `where`, but one match is enough.
    rows
        Whether ``any`` or ``all`` rows of an image must match `where` and `where_any`.
    pattern
        Regular expression with named groups, searched in the path below the root.
    patient, study, meta
        Whose image it is, and what else is known.
    part
        Keep the patients whose hash lies in this part of [0, 1]: a split of our own that needs no list.
    order
        Keep this part of the files in the order of their names.
    mask
        Path of the lesion mask, alternatives are tried in turn; `mask_values` are the values that mean lesion (all but
        zero without them).
    mask_optional
        An image without a mask file has no lesion mask; otherwise it is reported as missing.
    slices
        The images are NIfTI volumes with a mask volume each.
    """

    split: Literal["train", "test"]
    label: Literal[0, 1]
    files: Names = ()
    table: Names = ()
    path: Names = ()
    join: tuple[Join, ...] = ()
    listed: tuple[Listed, ...] = ()
    cells: dict[str, str] = {}
    where: dict[str, str] = {}
    where_any: dict[str, str] = {}
    rows: Literal["any", "all"] = "any"
    pattern: str | None = None
    patient: str | None = None
    study: str | None = None
    meta: dict[str, str] = {}
    part: Share = (0.0, 1.0)
    order: Share = (0.0, 1.0)
    mask: Names = ()
    mask_values: tuple[int, ...] = ()
    mask_optional: bool = False
    slices: Slices | None = None


class Nodules(_Strict):
    """Volumes with a table of nodules and one of candidates, both in world coordinates (LUNA16).

    Parameters
    ----------
    volumes
        Glob of the volumes. The folder name ends in the number of the fold, the file's stem is the series.
    annotations
        Table ``seriesuid, coordX, coordY, coordZ, diameter_mm``: the nodules.
    candidates
        Table ``seriesuid, coordX, coordY, coordZ, class``: 0 for places without a nodule.
    train_folds, test_folds
        Numbers of the folds on each side.
    clearance
        Millimetres between a normal place and the surface of the next nodule.
    gap
        Millimetres between two normal slices of a volume; slices only.
    share
        Part of the normal candidates that is kept, by their hash.
    crop
        Side of a square around each candidate in pixels; 0 takes whole slices.
    """

    volumes: str
    annotations: Names
    candidates: Names
    train_folds: tuple[int, ...]
    test_folds: tuple[int, ...]
    clearance: float = 15.0
    gap: float = 10.0
    share: float = 1.0
    crop: int = 0


class Spaced(_Strict):
    """Which slices of a scan become samples.

    Parameters
    ----------
    clearance
        Millimetres along the patient's axis between a normal slice and the next finding.
    gap
        Millimetres between two normal slices of a scan.
    content, min_content
        Part of a normal slice that must have values from the first to the second number.
    """

    clearance: float = 15.0
    gap: float = 10.0
    content: tuple[float, float] = (0.0, 0.0)
    min_content: float = 0.0


class Readings(Spaced):
    """CT series with the readings of several radiologists beside them (LIDC-IDRI).

    Parameters
    ----------
    readings
        Globs of the XML files; the first folder of the path is the patient.
    agree
        Readers who must have a pixel inside an outline.
    min_lesion
        Such pixels that make a slice abnormal. With marks but fewer of them it is left out. Abnormal slices of a scan
        are `gap` apart as well.
    train_share
        Part of the patients on the training side, by their hash.
    """

    readings: Names
    agree: int = 2
    min_lesion: int = 1
    train_share: float = 0.7


class Cubes(Spaced):
    """NIfTI volumes and a table of nodules as boxes in world coordinates, mm in LPS (DLCS).

    Parameters
    ----------
    table
        As `Group.table`, one row a nodule.
    volume, patient
        Where the volume of a row lies, alternatives are tried in turn; whose it is.
    centre, size
        Three columns each, along x, y and z.
    train, test
        As `Group.where`: the rows on each side.
    """

    table: Names
    volume: Names
    patient: str
    centre: tuple[str, str, str]
    size: tuple[str, str, str]
    train: dict[str, str]
    test: dict[str, str]


class Boxes(_Strict):
    """Lesion boxes from a table.

    Parameters
    ----------
    table
        As `Group.table`.
    key, image
        Text from a row of the box table, and from the row of an image, that are equal where the box is of the image.
    columns
        Four columns, one box a row; or one, that holds a JSON list of one box or of boxes.
    corners
        The four numbers are left, top, right, bottom instead of left, top, width, height.
    scale
        Pixels of the image for one unit of the table.
    where
        As `Group.where`.
    finding
        What the box shows, for ``meta["finding"]``.
    """

    table: Names
    key: str
    image: str
    columns: tuple[str, ...]
    corners: bool = False
    scale: float = 1.0
    where: dict[str, str] = {}
    finding: str | None = None


class Outlines(_Strict):
    """Lesion masks as text in a table: run lengths or polygons.

    Parameters
    ----------
    kind
        ``rle``: pairs of start (from 1) and length, down the columns. ``rle_relative``: pairs of the gap since the last
        run and a length, down the columns (SIIM-ACR). ``polygons``: JSON, ``[[[x, y], ...], ...]``.
    column
        The column that holds it.
    """

    table: Names
    key: str
    image: str
    column: str
    kind: Literal["rle", "rle_relative", "polygons"]
    where: dict[str, str] = {}


class Counts(_Strict):
    """Images on each side; 0 where it is not known."""

    train: int = 0
    test_normal: int = 0
    test_abnormal: int = 0


class Published(_Strict):
    """A number that the publication states of a table, to be compared with the table at hand.

    Parameters
    ----------
    what
        Name of the number.
    number
        How many.
    table, where
        As `Group`.
    distinct
        Count different texts of this kind instead of rows.
    """

    what: str
    number: int
    table: Names
    where: dict[str, str] = {}
    distinct: str | None = None


class Card(_Strict):
    """One data set in one protocol.

    Parameters
    ----------
    name, protocol, title, modality, tasks, licence, source
        Said of the set; `source` is where it comes from.
    folder
        Usual names of its top folder, which may be given as the root or lie in it.
    notes
        Known traps, shown beside every result.
    shared_patients
        The published split has patients on both sides, which would otherwise be an error.
    group, nodules, readings, cubes
        The images, in one of four ways.
    boxes, outlines
        Where the lesions are, where no mask file says it.
    counts, published
        What to compare with: samples, and rows of tables.
    """

    name: str
    protocol: str
    title: str
    modality: str = ""
    tasks: tuple[Literal["image", "pixel", "box"], ...]
    licence: str
    source: str
    folder: Names = ()
    notes: tuple[str, ...] = ()
    shared_patients: bool = False
    group: tuple[Group, ...] = ()
    nodules: Nodules | None = None
    readings: Readings | None = None
    cubes: Cubes | None = None
    boxes: Boxes | None = None
    outlines: Outlines | None = None
    counts: Counts = Field(default_factory=Counts)
    published: tuple[Published, ...] = ()


def card_paths() -> dict[str, Path]:
    """The files ``datasets/<name>/dataset.toml``, and ``datasets/<family>/<member>.toml`` as ``<family>_<member>``."""
    found = {}
    for path in sorted(cards_folder("datasets").glob("*/*.toml")):
        family = path.parent.name
        found[family if path.stem == "dataset" else f"{family}_{path.stem}"] = path
    return dict(sorted(found.items()))


def read_card(path: Path) -> Card:
    """Read and check one description.

    Raises
    ------
    ConfigError
        It cannot be read, is not TOML, or has an unknown key.
    """
    try:
        return Card.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML ({error})") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: {where}: {first['msg']}") from error
