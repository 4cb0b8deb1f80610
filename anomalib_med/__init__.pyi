"""The public names, for type checkers and for ``__init__.py``, which imports each from here when it is first used.

Detectors are not listed: every detector of the package is a public name.
"""

from anomalib_med.errors import AnomedError as AnomedError
from anomalib_med.fitted import FittedModel as FittedModel
from anomalib_med.fitted import load as load
from anomalib_med.fitting import fit as fit
from anomalib_med.merging import add_normals as add_normals
from anomalib_med.merging import merge_models as merge_models
from anomalib_med.models.base import Detector as Detector
from anomalib_med.models.base import DetectorConfig as DetectorConfig
from anomalib_med.models.base import FeatureConfig as FeatureConfig
from anomalib_med.models.registry import detectors as detectors
from anomalib_med.outputs.scores import Scores as Scores
from anomalib_med.preprocessing import Preprocessing as Preprocessing
from anomalib_med.records import Image as Image
from anomalib_med.records import Result as Result
from anomalib_med.records import Sample as Sample
from anomalib_med.scoring import Summary as Summary
from anomalib_med.scoring import score_to_folder as score_to_folder
from anomalib_med.version import __version__ as __version__

def __getattr__(name: str) -> type[Detector]: ...
