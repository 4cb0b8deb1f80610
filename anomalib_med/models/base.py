"""Detector: what every method is. Numbers in, numbers out: no file, no path, no printing."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field, JsonValue, field_validator

from anomalib_med.config import Settings, parse_config
from anomalib_med.errors import ConfigError
from anomalib_med.features import radlite
from anomalib_med.features.extractor import FeatureExtractor, Precision
from anomalib_med.models.pooling import parse_pooling, pool
from anomalib_med.preprocessing import Frames
from anomalib_med.records import Progress, silent


class DetectorConfig(Settings):
    """Settings that every detector has.

    Parameters
    ----------
    seed
        Of every random choice the detector makes.
    pooling
        From map to image score: "max", "mean", "top<q>%" or "power<p>", see :func:`anomalib_med.models.pooling.pool`.
    smoothing
        Standard deviation of the Gaussian on the map that is shown and written, in pixels of the model input. It does
        not change the score.
    """

    seed: int = 0
    pooling: str = "power8"
    smoothing: float = Field(4.0, ge=0)

    @property
    def multiple(self) -> int:
        """The detector's own networks need rows and columns that are multiples of this."""
        return 1

    @field_validator("pooling")
    @classmethod
    def _known_pooling(cls, pooling: str) -> str:
        try:
            parse_pooling(pooling)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return pooling


class FeatureConfig(DetectorConfig):
    """Settings of a detector on frozen features, see :class:`anomalib_med.features.FeatureExtractor`."""

    backbone: str = radlite.NAME
    layers: tuple[str, ...] = ()
    weights: str = "pretrained"
    precision: Precision = "float32"
    neighbourhood: int = Field(3, ge=1)

    @field_validator("layers", mode="before")
    @classmethod
    def _split_layers(cls, layers: object) -> object:
        return tuple(part.strip() for part in layers.split(",") if part.strip()) if isinstance(layers, str) else layers


class BankConfig(FeatureConfig):
    """Settings of a detector that compares features with those of normals, and never asks for a layer alone.

    Parameters
    ----------
    scales
        Factors of the input's size at which the backbone sees each image, see
        :class:`anomalib_med.features.FeatureExtractor`; maps have the grid of the first.
    """

    scales: tuple[Annotated[float, Field(gt=0, le=4)], ...] = Field((1.0,), min_length=1)


class Detector(ABC):
    """One method of anomaly detection.

    A subclass gives `name`, `title` (its paper), `Config`, :meth:`fit`, :meth:`anomaly_map`, :meth:`state` and
    :meth:`load_state`. It is known under its name once it is defined, see :mod:`.registry`. Higher is more anomalous,
    everywhere. A score depends on the fitted detector and on that image alone.

    Parameters
    ----------
    settings
        Fields of the detector's `Config`.

    Raises
    ------
    ConfigError
        An unknown field or an impossible value.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    Config: ClassVar[type[DetectorConfig]] = DetectorConfig
    input_size: ClassVar[int] = 224  # of the model input where the user says nothing
    square: ClassVar[bool] = False  # whether all inputs must be squares of one size
    uses_height: ClassVar[bool] = False  # whether slices are compared with those of their own height
    config: DetectorConfig

    def __init__(self, **settings: object) -> None:
        self.config = parse_config(self.Config, settings, f"detector {self.name}")
        self.device = torch.device("cpu")
        self.progress: Progress = silent
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
        return pool(maps, valid, self.config.pooling)

    def map_at(self, x: torch.Tensor, heights: torch.Tensor) -> torch.Tensor:
        """:meth:`anomaly_map` of slices whose relative heights ``(B,)`` are known (NaN: not known).

        A detector that uses them overrides this and :meth:`score_at`.
        """
        return self.anomaly_map(x)

    def score_at(self, x: torch.Tensor, maps: torch.Tensor, valid: torch.Tensor, heights: torch.Tensor) -> torch.Tensor:
        """:meth:`image_score` of slices whose relative heights ``(B,)`` are known."""
        return self.image_score(x, maps, valid)

    @abstractmethod
    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, JsonValue]]:
        """What :meth:`fit` learnt, as tensors and as JSON; without the backbone."""

    @abstractmethod
    def load_state(self, tensors: Mapping[str, torch.Tensor], extra: Mapping[str, JsonValue]) -> None:
        """Take back what :meth:`state` gave; scores are bit-equal afterwards."""

    def merge(self, other: "Detector") -> None:
        """Take over what another fitted detector of the same settings and backbone learnt.

        Afterwards it is as near as can be to one fitted on the normals of both. A detector that can do this overrides
        it; nothing else is needed for ``anomed add`` and ``anomed merge``.

        Raises
        ------
        ConfigError
            Where the method cannot: its normals must be seen together.
        """
        raise ConfigError(f"detector {self.name} cannot be merged: fit it anew on all normals")

    @property
    def uses_features(self) -> bool:
        """Whether the detector works on features of a frozen backbone, which is then its :attr:`extractor`."""
        return isinstance(self.config, FeatureConfig)

    @property
    def extractor(self) -> FeatureExtractor:
        """The feature extractor, built at its first use.

        Raises
        ------
        TypeError
            The detector does not work on frozen features, see :attr:`uses_features`.
        """
        if self._extractor is None:
            self.build_extractor()
        if self._extractor is None:
            raise TypeError(f"detector {self.name} has no feature extractor: its Config must be a FeatureConfig")
        return self._extractor

    @property
    def multiple(self) -> int:
        """Rows and columns of an input must be multiples of this."""
        return math.lcm(self.config.multiple, self.extractor.multiple if self.uses_features else 1)

    def build_extractor(self, state: Mapping[str, torch.Tensor] | None = None) -> None:
        """Build the extractor of a detector on frozen features, from `state` or the weights that its settings name."""
        c = self.config
        if self.uses_features and isinstance(c, FeatureConfig):
            self._extractor = FeatureExtractor(
                c.backbone,
                layers=c.layers,
                weights=c.weights,
                neighbourhood=c.neighbourhood,
                scales=c.scales if isinstance(c, BankConfig) else (1.0,),
                precision=c.precision,
                seed=c.seed,
                state=state,
            ).to(self.device)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Features ``(B, D, h, w)``, float16, of inputs ``(B, C, H, W)``.

        Those of the last inputs are kept: a map and a score of one batch cost one pass of the backbone.
        """
        if self._last is not None and self._last[0] is x:
            return self._last[1]
        self._last = (x, self.extractor(x))
        return self._last[1]

    def to(self, device: torch.device) -> "Detector":
        """Move to a device. Subclasses move what they hold."""
        self.device = device
        self._last = None
        if self._extractor is not None:
            self._extractor.to(device)
        return self
