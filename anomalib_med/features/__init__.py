"""The feature-extraction core: backbones, the extractor, the cache."""

from anomalib_med.features.backbones import RANDOM_WARNING
from anomalib_med.features.cache import FeatureCache
from anomalib_med.features.extractor import FeatureExtractor

__all__ = ["RANDOM_WARNING", "FeatureCache", "FeatureExtractor"]
