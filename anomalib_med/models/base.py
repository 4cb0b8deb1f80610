"""Detector: what every method is. Numbers in, numbers out: no file, no path, no printing."""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Protocol, TypeVar, get_origin

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from anomalib_med.errors import ConfigError
from anomalib_med.features import radlite
from anomalib_med.features.extractor import FeatureExtractor, Precision
from anomalib_med.models import registry
from anomalib_med.models.pooling import parse_pooling, pool
from anomalib_med.records import Progress, silent

C = TypeVar("C", bound=BaseModel)


class TrainingBatch(Protocol):
    """Inputs of one shape: ``x`` float32 ``(B, C, H, W)`` in [0, 1], ``valid`` bool ``(B, H, W)``, and `patients`.

    `heights` float32 ``(B,)`` are relative heights of slices in their volume, NaN where not known.
    """

    @property
    def x(self) -> torch.Tensor: ...  # noqa: D102

    @property
    def valid(self) -> torch.Tensor: ...  # noqa: D102

    @property
    def patients(self) -> list[str]: ...  # noqa: D102

    @property
    def heights(self) -> torch.Tensor: ...  # noqa: D102


class TrainingFrames(Protocol):
    """The normals to learn from; see :class:`anomalib_med.preprocessing.Frames`."""

    def __len__(self) -> int: ...

    def batches(self, size: int) -> Iterator[TrainingBatch]: ...  # noqa: D102


class DetectorConfig(BaseModel):
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

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = 0
    pooling: str = "power8"
    smoothing: float = Field(4.0, ge=0)

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

    A subclass gives `title` (its paper), `Config`, :meth:`fit`, :meth:`anomaly_map`, :meth:`state` and
    :meth:`load_state`; defining it registers it under its `name`. Higher is more anomalous, everywhere. A score
    depends on the fitted detector and on that image alone.

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

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        registry.register(cls)

    def __init__(self, **settings: object) -> None:
        self.config = parse_config(self.Config, settings, f"detector {self.name}")
        self.device = torch.device("cpu")
        self.progress: Progress = silent
        self._extractor: FeatureExtractor | None = None
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None  # inputs and their features

    @abstractmethod
    def fit(self, frames: TrainingFrames) -> None:
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
    def extractor(self) -> FeatureExtractor | None:
        """The feature extractor of a detector on frozen features, built at its first use; None for the others."""
        if self._extractor is None and isinstance(self.config, FeatureConfig):
            self.build_extractor()
        return self._extractor

    @property
    def multiple(self) -> int:
        """Rows and columns of an input must be multiples of this."""
        return 1 if self.extractor is None else self.extractor.multiple

    def build_extractor(self, state: Mapping[str, torch.Tensor] | None = None) -> None:
        """Build the extractor of a detector on frozen features, from `state` or the weights that its settings name."""
        c = self.config
        if isinstance(c, FeatureConfig):
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
        extractor = self.extractor
        if extractor is None:
            raise TypeError(f"detector {self.name} has no feature extractor: its Config must be a FeatureConfig")
        self._last = (x, extractor(x))
        return self._last[1]

    def to(self, device: torch.device) -> "Detector":
        """Move to a device. Subclasses move what they hold."""
        self.device = device
        self._last = None
        if self._extractor is not None:
            self._extractor.to(device)
        return self


def parse_config(config: type[C], settings: Mapping[str, object], owner: str) -> C:
    """Validate settings; text is accepted for numbers and, with commas, for lists, as on the command line.

    Raises
    ------
    ConfigError
        Naming the first field at fault, and the nearest known one.
    """
    for key in settings:
        if key not in config.model_fields:
            close = difflib.get_close_matches(key, config.model_fields, 1)
            hint = f'did you mean "{close[0]}"?' if close else f"it has {', '.join(config.model_fields)}"
            raise ConfigError(f'{owner} has no option "{key}": {hint}')
    try:
        return config(**{key: _listed(config, key, value) for key, value in settings.items()})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f'{owner}, option "{where}": {first["msg"]} (got {first["input"]!r})') from None


def _listed(config: type[BaseModel], key: str, value: object) -> object:
    is_list = get_origin(config.model_fields[key].annotation) is tuple
    return [part.strip() for part in value.split(",") if part.strip()] if is_list and isinstance(value, str) else value
