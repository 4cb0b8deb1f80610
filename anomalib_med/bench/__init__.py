"""The bench: data sets x detectors x seeds, and the tables and pages that come of it."""
