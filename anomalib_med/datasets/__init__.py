"""Where images come from: files, folders, tables and arrays to samples, and samples to images."""

from anomalib_med.datasets.folder import discover
from anomalib_med.datasets.readers import read, samples_from_array, write_volume
from anomalib_med.datasets.splits import ids_hash, split_by_patient
from anomalib_med.records import Box, Geometry, Image, Sample

__all__ = ["Box", "Geometry", "Image", "Sample"]
__all__ += ["discover", "ids_hash", "read", "samples_from_array", "split_by_patient", "write_volume"]
