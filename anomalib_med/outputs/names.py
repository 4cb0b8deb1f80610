"""File names made from image ids."""

import hashlib
import re

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_HASHED = re.compile(r"-[0-9a-f]{16}$")
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)")  # names that Windows keeps for itself
_LONGEST = 100


def safe_stem(id: str) -> str:
    """Stem of the files that belong to an image: 1 to 117 ASCII characters, safe on every file system for any id.

    Characters outside ``[A-Za-z0-9._-]`` become ``_``, so nothing leaves the output folder. Where anything had to be
    changed, ``-`` and 16 hex digits of the SHA-256 of the id keep distinct ids apart. An id with capitals gets them
    too, because ``A.png`` and ``a.png`` are one file on some systems, and so does one that already ends like a hash.
    """
    stem = _UNSAFE.sub("_", id)[:_LONGEST]
    if stem.startswith(".") or _DEVICE.match(stem.lower()):
        stem = "_" + stem[: _LONGEST - 1]
    if stem and stem == id.lower() and not _HASHED.search(stem):
        return stem
    digest = hashlib.sha256(id.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{stem}-{digest[:16]}"
