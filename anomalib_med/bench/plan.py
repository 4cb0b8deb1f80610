"""Plan: the data sets, methods and seeds of a bench, and the images of each set that are used."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from pydantic import JsonValue

from anomalib_med.config import parse_config
from anomalib_med.datasets.benchmarks import Benchmark, benchmark_card
from anomalib_med.errors import InputError
from anomalib_med.evaluation.evaluate import REPLICATES
from anomalib_med.fitted import DEFAULT_RATE, check_rate
from anomalib_med.fitting import check_share
from anomalib_med.models.registry import detector_class, detectors
from anomalib_med.models.training import TrainedDetector
from anomalib_med.preprocessing import Preprocessing
from anomalib_med.records import Sample

EXAMPLES = 4  # test images whose maps are drawn for every method


@dataclass(frozen=True)
class Method:
    """A detector of the registry with settings and the side of its input, under a label that is unique in a bench."""

    label: str
    detector: str
    settings: Mapping[str, JsonValue]
    size: int | None = None


@dataclass(frozen=True)
class Plan:
    """What to run: detectors on named data sets below `root`, with the results in `out`."""

    root: Path
    out: Path
    datasets: tuple[str, ...]
    methods: tuple[Method, ...]
    seeds: int = 3
    """Number of seeds, counted from 0."""
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    """The same for all methods, but for the size of those that have their own."""
    calibration: float = 0.2
    """Share of the normals, by patient, that is held out for the threshold."""
    false_alarm_rate: float = DEFAULT_RATE
    """False-alarm rate of the threshold."""
    max_train: int | None = None
    max_test: int | None = None
    """Most test images, as `max_train` those to fit on, drawn by a hash of their id; None for all."""
    device: str = "auto"
    cache: Path | None = None
    """Folder of the backbone features, see :func:`anomalib_med.fit`; by default it lies in `out`."""
    replicates: int = REPLICATES
    """Number of draws of patients behind each interval."""
    overwrite: bool = False
    """Replace cells that were measured with other settings."""

    def check(self) -> None:
        """Refuse what would make every cell fail.

        Raises
        ------
        ConfigError
            An unknown data set, or a rate or share that makes no sense.
        InputError
            No such root.
        """
        check_rate(self.false_alarm_rate)
        check_share(self.calibration)
        for name in self.datasets:
            benchmark_card(name)
        if not self.root.is_dir():
            raise InputError(f"{self.root}: no such folder of data sets")

    def preprocessing_of(self, method: Method) -> Preprocessing:
        """The preprocessing, with the size that the method asks for."""
        return self.preprocessing.model_copy(update={"size": method.size or self.preprocessing.size})


def untrained() -> tuple[str, ...]:
    """The detectors that need no training."""
    return tuple(name for name, kind in detectors().items() if not issubclass(kind, TrainedDetector))


def methods_of(texts: Sequence[str], shared: Mapping[str, JsonValue]) -> tuple[Method, ...]:
    """Methods from text: ``"patchcore"`` or ``"patchcore pooling=max bank_size=500"``, which is its label.

    Words after the name are settings of the detector, or ``size=128``, the side of its input. `shared` are settings for
    every detector that has them, such as the backbone; those of a method win.

    Raises
    ------
    ConfigError
        An unknown detector, or an option that makes no sense.
    InputError
        A method named twice.
    """
    made: dict[str, Method] = {}
    for text in texts:
        name, *words = text.split()
        detector = detector_class(name)
        if not all("=" in word for word in words):
            raise InputError(f'method "{text}": write settings as key=value, for example "{name} pooling=max"')
        own: dict[str, JsonValue] = {key: value for key, _, value in (word.partition("=") for word in words)}
        size = parse_config(Preprocessing, {"size": own.pop("size")}, text).size if "size" in own else None
        settings = {k: v for k, v in shared.items() if k in detector.Config.model_fields} | own
        checked = detector(**settings).config.model_dump(mode="json", include=set(settings))
        label = " ".join([name, *words])
        if label in made:
            raise InputError(f'method "{label}" is named twice')
        made[label] = Method(label, name, checked, size)
    return tuple(made.values())


def limited(benchmark: Benchmark, plan: Plan) -> Benchmark:
    """The benchmark with at most so many images on either side as the plan says; its protocol then says so."""
    train, test = _drawn(benchmark.train, plan.max_train), benchmark.test
    if plan.max_test is not None and plan.max_test < len(test):
        kinds = [[s for s in test if s.label == label] for label in (0, 1)]
        test = tuple(s for kind in kinds for s in _drawn(kind, max(2, round(plan.max_test * len(kind) / len(test)))))
    if (len(train), len(test)) == (len(benchmark.train), len(benchmark.test)):
        return benchmark
    note = f"limited to {len(train)} training and {len(test)} test images: not comparable with the whole protocol"
    protocol = f"{benchmark.protocol} (limited)"
    return replace(benchmark, train=train, test=test, protocol=protocol, notes=(*benchmark.notes, note))


def example_samples(benchmark: Benchmark) -> list[Sample]:
    """The same few test images for every method, drawn by a hash of their ids: one normal, the others abnormal."""
    order = _shuffled(benchmark.test)
    abnormal = [s for s in order if s.label == 1][: EXAMPLES - 1]
    return abnormal + [s for s in order if s.label == 0][:1]


def _drawn(samples: Sequence[Sample], most: int | None) -> tuple[Sample, ...]:
    """So many samples in their order, all where there are no more."""
    kept = {s.id for s in _shuffled(samples)[:most]}
    return tuple(s for s in samples if s.id in kept)


def _shuffled(samples: Iterable[Sample]) -> list[Sample]:
    return sorted(samples, key=lambda s: sha256(s.id.encode()).hexdigest())
