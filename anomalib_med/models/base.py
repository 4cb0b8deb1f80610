"""Detector: what every method is. Numbers in, numbers out: no file, no path, no printing."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field, JsonValue, field_validator

from anomalib_med.config import Settings, parse_config
from anomalib_med.errors import ConfigError, FitError
from anomalib_med.features import FeatureCache, radlite
from anomalib_med.features.extractor import FeatureExtractor, Precision
from anomalib_med.models.pooling import MAP_RULES, pool
from anomalib_med.pooling_rules import parse_rule
from anomalib_med.preprocessing import Batch, Frames

IMAGES = 16  # in a batch of normals for a detector without a backbone


class BaseConfig(Settings):
    """Settings of every detector."""

    seed: int = 0
    """Seed of every random choice that the detector makes."""
    smoothing: float = Field(4.0, ge=0)
    """Standard deviation of the Gaussian on the map that is shown and written, in pixels of the model input. It does
    not change the score. The default is that of PatchCore's official code."""

    @property
    def multiple(self) -> int:
        """The detector's own networks need rows and columns that are multiples of this."""
        return 1


class DetectorConfig(BaseConfig):
    """Settings of a detector whose score is pooled from its map."""

    pooling: str = "power8"
    """How the map becomes the image score: max, mean, top<q>% or power<p>. top1% is the mean of the highest hundredth
    of the valid area, power8 the power mean with exponent 8. The maximum follows the one oddest patch, which normal
    chest images have too; the mean loses small findings. The default lies between the two."""

    @field_validator("pooling")
    @classmethod
    def _known_pooling(cls, pooling: str) -> str:
        try:
            parse_rule(pooling, MAP_RULES)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return pooling


class BackboneConfig(BaseConfig):
    """Settings of a frozen backbone, see :class:`anomalib_med.features.FeatureExtractor`."""

    backbone: str = radlite.NAME
    """Network whose frozen features the detector works on: radlite, which is built in, or the name of any network of
    timm. radlite is small and was made for radiographs; the papers use ResNets and vision transformers."""
    layers: tuple[str, ...] = ()
    """Layers of the backbone, by name; without any, those at strides 8 and 16, or the two at half and three quarters of
    a transformer. The default corresponds to layer2 and layer3 of a ResNet, as in PatchCore."""
    weights: str = "pretrained"
    """Weights of the backbone: a safetensors file, pretrained (for radlite those of the package, for others those of
    the local cache or the hub) or random. Random weights only show that things run."""
    precision: Precision = "float32"
    """Arithmetic of the backbone. The two half precisions are faster on a GPU and move scores by about one part in a
    thousand."""


class AveragedConfig(BackboneConfig):
    """Settings of frozen features on one grid, each of which is averaged with those around it."""

    neighbourhood: int = Field(3, ge=1)
    """Side of the average around each cell of each layer, in cells. The default is PatchCore's; 1, no average, suits a
    transformer."""


class FeatureConfig(AveragedConfig, DetectorConfig):
    """Settings of a detector on frozen features whose score is pooled from its map."""


class BankConfig(AveragedConfig):
    """Settings of a detector that compares features with those of normals, and never asks for a layer alone."""

    scales: tuple[Annotated[float, Field(gt=0, le=4)], ...] = Field((1.0,), min_length=1)
    """Factors of the input's size at which the backbone sees each image; features of all scales are joined on the grid
    of the first. A second scale of 0.5 adds a quarter of the time and doubles the numbers in a patch."""


class PooledBankConfig(BankConfig, FeatureConfig):
    """Settings of a detector that compares features with those of normals, and whose score is pooled from its map."""


class Detector(ABC):
    """One method of anomaly detection.

    A subclass gives `name`, `title` (its paper), `Config`, :meth:`fit`, which ends in :meth:`load_state`, and
    :meth:`anomaly_map`. It is known under its name once it is defined, see :mod:`.registry`. Higher is more anomalous,
    everywhere. A score depends on the fitted detector and on that image alone.

    `settings` are fields of the `Config`; an unknown one, or an impossible value, is a ConfigError.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    Config: ClassVar[type[BaseConfig]] = DetectorConfig
    input_size: ClassVar[int] = 224  # of the model input where the user says nothing
    square: ClassVar[bool] = False  # whether all inputs must be squares of one size
    uses_height: ClassVar[bool] = False  # whether slices are compared with those of their own height
    config: BaseConfig

    def __init__(self, **settings: object) -> None:
        self.config = parse_config(self.Config, settings, f"detector {self.name}")
        self.device = torch.device("cpu")
        self._learnt: dict[str, torch.Tensor] = {}
        self._extra: dict[str, JsonValue] = {}
        self._extractor: FeatureExtractor | None = None
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None  # inputs and their features

    @abstractmethod
    def fit(self, frames: Frames) -> None:
        """Learn what is normal."""

    @abstractmethod
    def anomaly_map(self, x: torch.Tensor) -> torch.Tensor:
        """Anomaly maps ``(B, h, w)`` of inputs ``(B, C, H, W)``; h and w are the detector's choice."""

    def image_score(self, x: torch.Tensor, maps: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Scores ``(B,)`` from inputs, their maps and valid areas: the map pooled as `Config.pooling` says."""
        if not isinstance(self.config, DetectorConfig):
            raise TypeError(f"detector {self.name} has no pooling: its Config must be a DetectorConfig")
        return pool(maps, valid, self.config.pooling)

    def map_at(self, x: torch.Tensor, heights: torch.Tensor) -> torch.Tensor:
        """:meth:`anomaly_map` of slices at relative heights ``(B,)``, NaN where unknown; some detectors use them."""
        return self.anomaly_map(x)

    def score_at(self, x: torch.Tensor, maps: torch.Tensor, valid: torch.Tensor, heights: torch.Tensor) -> torch.Tensor:
        """:meth:`image_score` of slices at relative heights ``(B,)``."""
        return self.image_score(x, maps, valid)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, JsonValue]]:
        """What :meth:`fit` learnt, as tensors on the CPU and as JSON; without the backbone."""
        return {name: tensor.cpu() for name, tensor in self._learnt.items()}, dict(self._extra)

    def load_state(self, tensors: Mapping[str, torch.Tensor], extra: Mapping[str, JsonValue]) -> None:
        """Take what :meth:`fit` learnt, or :meth:`state` gave, and make what scoring needs; scores are bit-equal."""
        self._learnt = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        self._extra = dict(extra)

    def learnt(self, name: str) -> torch.Tensor:
        """A tensor that :meth:`load_state` was given, on the detector's device; see :meth:`check_fitted`."""
        self.check_fitted()
        return self._learnt[name]

    @property
    def fitted(self) -> bool:
        """Whether the detector has learnt what is normal."""
        return bool(self._learnt)

    def check_fitted(self) -> None:
        """Raise a FitError where the detector is not fitted."""
        if not self.fitted:
            raise FitError(f"detector {self.name} is not fitted: call fit, or load a saved model")

    def merge(self, other: "Detector") -> None:
        """Take over what another fitted detector of the same settings and backbone learnt, as if fitted on both.

        A detector that can overrides this, for ``anomed add`` and ``anomed merge``; by default it is a ConfigError.
        """
        raise ConfigError(f"detector {self.name} cannot be merged: fit it anew on all normals")

    def normals(self, frames: Frames) -> Iterator[Batch]:
        """Batches of the normals, of as many images as the backbone takes together; a FitError where none is read."""
        batch = None
        for batch in frames.batches(self.extractor.batch_size if self.uses_features else IMAGES):
            yield batch
        if batch is None:
            raise FitError("no normal image could be read: see the failures listed, or check the folder")

    @property
    def uses_features(self) -> bool:
        """Whether the detector works on features of a frozen backbone, which is then its :attr:`extractor`."""
        return isinstance(self.config, BackboneConfig)

    @property
    def extractor(self) -> FeatureExtractor:
        """The feature extractor, built at its first use; a TypeError where :attr:`uses_features` is false."""
        return self._extractor or self.build_extractor()

    @property
    def multiple(self) -> int:
        """Rows and columns of an input must be multiples of this."""
        return math.lcm(self.config.multiple, self.extractor.multiple if self.uses_features else 1)

    def build_extractor(self, state: Mapping[str, torch.Tensor] | None = None) -> FeatureExtractor:
        """Build the extractor of a detector on frozen features, from `state` or the weights that its settings name."""
        c = self.config
        if not isinstance(c, BackboneConfig):
            raise TypeError(f"detector {self.name} has no feature extractor: its Config must be a BackboneConfig")
        neighbourhood = c.neighbourhood if isinstance(c, AveragedConfig) else 1
        scales = c.scales if isinstance(c, BankConfig) else (1.0,)
        settings = c.model_dump(include={"layers", "weights", "precision", "seed"})
        extractor = FeatureExtractor(c.backbone, neighbourhood=neighbourhood, scales=scales, state=state, **settings)
        self._extractor = extractor.to(self.device)
        return self._extractor

    def use_cache(self, folder: str | Path) -> None:
        """Keep backbone features in a folder and take them from it.

        Raises
        ------
        ConfigError
            The detector has no backbone.
        """
        if not self.uses_features:
            raise ConfigError(f"detector {self.name} has no backbone: a feature cache is of no use to it")
        self.extractor.cache = FeatureCache(folder)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Features ``(B, D, h, w)``, float16, of inputs ``(B, C, H, W)``; the last are kept for map and score alike."""
        if self._last is None or self._last[0] is not x:
            self._last = (x, self.extractor(x))
        return self._last[1]

    def to(self, device: torch.device) -> Self:
        """Move to a device, with what was learnt."""
        self.device = device
        self._last = None
        if self._extractor is not None:
            self._extractor.to(device)
        if self._learnt:
            self.load_state(self._learnt, self._extra)
        return self
