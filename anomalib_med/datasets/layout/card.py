"""The schema of ``datasets/<name>/dataset.toml``: a data set described well enough to need no reader of its own.

Text in braces is filled in from the row of an image: ``{Patient ID}`` is a column of the table, ``{file.stem}``,
``{file.name}``, ``{file.folder}`` and ``{file.path}`` belong to the file itself, and the named groups of
`Group.pattern` and `Group.where` are there by their names.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from anomalib_med.cards import cards_folder, read_toml
from anomalib_med.errors import ConfigError

Share = tuple[float, float]


Names = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]
"""One text or several."""


class _Strict(BaseModel):
    """An unknown key is a typing error in the card, never a silent nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class _OfTable(_Strict):
    table: Names
    """The table, as `Group.table`."""
    where: dict[str, str] = {}
    """Only these rows count, as `Group.where`."""


class Join(_OfTable):
    """Look each row of a group up in another table: keep the rows with a partner, and give them its columns."""

    key: str
    """Text made from a row of the group, equal to that of its partner."""
    partner: str = ""
    """Text made from a row of the other table; `key`, where both tables name their columns alike."""
    keep: bool = True
    """False keeps the rows that have no partner instead."""


class Slices(_Strict):
    """Every image is a volume with a mask volume, and its axial slices are the samples."""

    min_lesion: int = 1
    """Mask voxels that make a slice abnormal. A normal slice has none; a slice between the two is left out."""
    content: Share = (0.0, 0.0)
    """Values between which enough of a slice must lie."""
    min_content: float = 0.0
    """How much of a slice that is, as a share; a slice with less is left out."""
    every: int = 1
    """Keep every n-th slice of each kind in a volume."""


class Group(_Strict):
    """Images of one label on one side of the split."""

    split: Literal["train", "test"]
    label: Literal[0, 1]
    files: Names = ()
    """Globs below the root. Either these are given, or `table` and `path`."""
    table: Names = ()
    """A CSV, TSV, text or JSON file with one row an image or more; alternatives are tried in turn.

    ``lists.json#train.0`` is the list under these keys. A line of a text file and a plain text in a list is ``item``.
    """
    path: Names = ()
    """Where the file of a row lies; alternatives are tried in turn. The folder may be a glob."""
    join: tuple[Join, ...] = ()
    """Further tables, in turn."""
    where: dict[str, str] = {}
    """A regular expression for each column, or text with columns in braces, which must match as a whole.

    Named groups become columns. One matching row of an image is enough.
    """
    pattern: str | None = None
    """A regular expression with named groups, searched in the path below the root."""
    patient: str | None = None
    """Whose image it is; by default the column or named group ``patient``, or else the file. Likewise ``study``."""
    meta: dict[str, str] = {}
    """What else is known, by name."""
    part: Share = (0.0, 1.0)
    """Keep the patients whose hash lies in this part of [0, 1]: a split of our own that needs no list."""
    order: Share = (0.0, 1.0)
    """Keep this part of the files in the order of their names."""
    mask: Names = ()
    """Path of the lesion mask; alternatives are tried in turn. With "" among them an image may have no mask."""
    slices: Slices | None = None
    """The images are NIfTI volumes with a mask volume each."""


class Marks(_OfTable):
    """Where the lesions of abnormal images are, from a table: boxes, run lengths or outlines."""

    key: str
    """Text made from a row of this table."""
    image: str
    """Text made from the row of an image: equal to `key` where the mark is of that image."""
    columns: Names
    """Four columns, with one box a row; or one column with what `kind` says."""
    kind: Literal["boxes", "corners", "rle", "rle_relative", "polygons"] = "boxes"
    """What the columns hold.

    ``boxes``: left, top, width, height, in four columns or as JSON, one box or a list of them. ``corners``: left, top,
    right, bottom, likewise. ``rle``: pairs of start (from 1) and length, down the columns of the image.
    ``rle_relative``: pairs of the gap since the last run and a length (SIIM-ACR). ``polygons``: JSON,
    ``[[[x, y], ...], ...]``.
    """
    scale: float = 1.0
    """Pixels of the image for one unit of a box."""
    finding: str | None = None
    """What the mark shows, for ``meta["finding"]``."""


class Published(_OfTable):
    """A number that the publication states of a table, to be compared with the table at hand."""

    what: str
    """Name of the number."""
    number: int
    distinct: str | None = None
    """Count the different texts of this kind instead of rows."""


class Card(_Strict):
    """One data set in one protocol."""

    name: str
    protocol: str
    title: str
    modality: str = ""
    tasks: tuple[Literal["image", "pixel", "box"], ...]
    licence: str
    source: str
    """Where the set comes from."""
    folder: Names = ()
    """Usual names of its top folder, which may be given as the root or lie in it."""
    notes: tuple[str, ...] = ()
    """Known traps, shown beside every result."""
    shared_patients: bool = False
    """The published split has patients on both sides, which would otherwise be an error."""
    group: tuple[Group, ...] = ()
    """The images. Either groups are given, or a `manifest`."""
    manifest: str = ""
    """A function of the card's own script that lists the images, ``manifest.py#<function>``, see `layout.manifest`."""
    marks: tuple[Marks, ...] = ()
    """Where the lesions are, where no mask file says it."""
    counts: dict[Literal["train", "test_normal", "test_abnormal"], int] = {}
    """How many images there should be, where it is known."""
    published: tuple[Published, ...] = ()
    """How many rows the tables should have."""


def card_paths() -> dict[str, Path]:
    """The files ``datasets/<name>/dataset.toml``, and ``datasets/<family>/<member>.toml`` as ``<family>_<member>``."""
    paths = cards_folder("datasets").glob("*/*.toml")
    named = {path.parent.name + f"_{path.stem}".removesuffix("_dataset"): path for path in paths}
    return dict(sorted(named.items()))


def read_card(path: Path) -> Card:
    """Read one description; raises ConfigError where it cannot be read, is not TOML, or has an unknown key."""
    try:
        return Card.model_validate(read_toml(path, "card"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: {where}: {first['msg']}") from error
