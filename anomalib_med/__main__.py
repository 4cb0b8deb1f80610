"""``python -m anomalib_med`` is ``anomed``."""

from anomalib_med.cli.main import run

run()
