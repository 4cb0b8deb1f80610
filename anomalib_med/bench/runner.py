"""The bench: data sets x methods x seeds, each cell measured once and kept, whatever happens to the others.

A finished cell is not run again; one that failed is tried again. All detectors with the same backbone, layers and
preprocessing share one pass of it through the feature cache. Nothing of a test set chooses anything.
"""

import datetime
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import cast

from pydantic import JsonValue

from anomalib_med.bench import cells
from anomalib_med.bench.baselines import MEAN_IMAGE, UNDIRECTED, baseline_results
from anomalib_med.bench.cells import Cell, Json, Method
from anomalib_med.bench.machine import machine, package_versions, peak_memory_mb, reset_peak_memory
from anomalib_med.config import parse_config
from anomalib_med.datasets.benchmarks import Benchmark, benchmark_card, open_benchmark
from anomalib_med.errors import AnomedError, InputError, OutputError
from anomalib_med.evaluation.evaluate import REPLICATES, Evaluation, evaluate_model, evaluate_results
from anomalib_med.fitted import DEFAULT_RATE, FittedModel, check_rate
from anomalib_med.fitting import check_share, fit
from anomalib_med.models.registry import detector_class, detectors
from anomalib_med.models.training.trainer import TrainedDetector
from anomalib_med.outputs.overlay import write_overlay
from anomalib_med.preprocessing import Preprocessing
from anomalib_med.records import Progress, Sample, silent
from anomalib_med.version import __version__

SELECTION_RULE = "last state of training; no test image and no label is used"
EXAMPLES = 4  # test images whose maps are drawn for every method

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What to run.

    Parameters
    ----------
    root
        Folder with the data sets.
    out
        Folder for the results.
    datasets
        Names, see `anomed datasets`.
    methods
        Detectors and their settings.
    seeds
        How many, from 0.
    preprocessing
        The same for all, but for the size of methods that have one of their own.
    calibration
        Share of the normals, by patient, that is held out for the threshold.
    false_alarm_rate
        Of the threshold.
    max_train, max_test
        Most images of either side, drawn by a hash of their id; None for all.
    device, cache
        As for :func:`anomalib_med.fit`; by default the cache lies in `out` and is deleted with it.
    replicates
        Of the intervals.
    overwrite
        Replace cells that were measured with other settings.
    """

    root: Path
    out: Path
    datasets: tuple[str, ...]
    methods: tuple[Method, ...]
    seeds: int = 3
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    calibration: float = 0.2
    false_alarm_rate: float = DEFAULT_RATE
    max_train: int | None = None
    max_test: int | None = None
    device: str = "auto"
    cache: Path | None = None
    replicates: int = REPLICATES
    overwrite: bool = False


def run_bench(plan: Plan, *, progress: Progress = silent, say: Say = lambda _: None) -> list[Cell]:
    """Run what is missing and return all cells of the plan, failed ones among them.

    Parameters
    ----------
    plan
        What to run.
    progress
        Called with stage, done and total.
    say
        Called with one line a cell.

    Raises
    ------
    ConfigError
        An unknown data set, or a rate or share that makes no sense.
    InputError
        No such root.
    OutputError
        Where results of other settings lie in the way, or cannot be written.
    """
    _check(plan)
    done: list[Cell] = []
    for name in plan.datasets:
        try:
            benchmark = limited(open_benchmark(name, plan.root), plan)
        except AnomedError as error:
            say(f"{name}: left out: {error}")
            done += [cells.failed_cell(name, m.label, 0, "", str(error), {}) for m in plan.methods]
            continue
        done += _baselines(plan, benchmark, progress)
        # Seed by seed, so that a table with every method is there early.
        for seed in range(plan.seeds):
            done += [_cell(plan, benchmark, method, seed, progress, say) for method in plan.methods]
    return done


def _check(plan: Plan) -> None:
    """Refuse what would make every cell fail."""
    check_rate(plan.false_alarm_rate)
    check_share(plan.calibration)
    for name in plan.datasets:
        benchmark_card(name)
    if not plan.root.is_dir():
        raise InputError(f"{plan.root}: no such folder of data sets")


def limited(benchmark: Benchmark, plan: Plan) -> Benchmark:
    """The benchmark with at most so many images on either side; its protocol then says so."""
    train = _drawn(benchmark.train, plan.max_train)
    test = benchmark.test
    if plan.max_test is not None and plan.max_test < len(test):
        kinds = [[s for s in test if s.label == label] for label in (0, 1)]
        shares = [max(2, round(plan.max_test * len(kind) / len(test))) for kind in kinds]
        test = tuple(s for kind, share in zip(kinds, shares, strict=True) for s in _drawn(tuple(kind), share))
    if (len(train), len(test)) == (len(benchmark.train), len(benchmark.test)):
        return benchmark
    note = f"limited to {len(train)} training and {len(test)} test images: not comparable with the whole protocol"
    protocol = f"{benchmark.protocol} (limited)"
    return replace(benchmark, train=train, test=test, protocol=protocol, notes=(*benchmark.notes, note))


def _drawn(samples: tuple[Sample, ...], most: int | None) -> tuple[Sample, ...]:
    if most is None or most >= len(samples):
        return samples
    chosen = sorted(samples, key=lambda s: sha256(s.id.encode()).hexdigest())[:most]
    kept = {s.id for s in chosen}
    return tuple(s for s in samples if s.id in kept)


def _cell(plan: Plan, benchmark: Benchmark, method: Method, seed: int, progress: Progress, say: Say) -> Cell:
    """One cell, from its file or from a run."""
    asked = _asked(plan, benchmark) | {
        "detector": method.detector,
        "settings": dict(method.settings),
        "seed": seed,
        "preprocessing": _preprocessing(plan, method).model_dump(mode="json"),
        "calibration": plan.calibration,
        "false_alarm_rate": plan.false_alarm_rate,
    }
    where = f"{benchmark.name} / {method.label} / seed {seed}"
    path = cells.cell_path(plan.out, benchmark.name, method.label, seed)
    found = _found(path, cells.fingerprint_of(asked), plan)
    if found is not None:
        say(f"{where}: done before")
        return found
    info = _info(benchmark, asked)
    try:
        cell = _measured(plan, benchmark, method, seed, cells.fingerprint_of(asked), info, progress)
        name = cells.headline(cell.metrics)
        said = f"{name} {cell.metrics[name]}, fit {info['fit_s']} s, {info['images_per_s']} images/s"
    except OutputError:
        raise  # a full disk would fail every cell after it
    except Exception as error:  # whatever one method does, the others are measured
        reason = str(error) if isinstance(error, AnomedError) else f"{type(error).__name__}: {error}"
        cell = cells.failed_cell(benchmark.name, method.label, seed, cells.fingerprint_of(asked), reason, info)
        said = f"failed: {reason}"
    cells.write_cell(path, cell)
    say(f"{where}: {said}")
    return cell


def _measured(
    plan: Plan, benchmark: Benchmark, method: Method, seed: int, fingerprint: str, info: Json, progress: Progress
) -> Cell:
    reset_peak_memory()
    detector = detector_class(method.detector)(**{**method.settings, "seed": seed})
    cache = None if not detector.uses_features else plan.cache or plan.out / "features"
    stored = _stored(cache)
    start = time.perf_counter()
    model = fit(
        detector,
        list(benchmark.train),
        calibration=plan.calibration,
        preprocessing=_preprocessing(plan, method),
        seed=seed,
        device=plan.device,
        cache=cache,
        progress=progress,
    )
    seconds = time.perf_counter() - start
    evaluation = evaluate_model(
        model,
        benchmark.test,
        tasks=benchmark.tasks,
        false_alarm_rate=plan.false_alarm_rate,
        replicates=plan.replicates,
        progress=progress,
    )
    peak, gpu = peak_memory_mb()
    info |= {
        "fit_s": round(seconds, 2),
        "score_s": round(evaluation.seconds, 2),
        "images_per_s": round(len(benchmark.test) / evaluation.seconds, 2),
        "peak_mb": round(peak),
        "peak_gpu_mb": round(gpu),
        "features_extracted": _stored(cache) - stored,
        "unreadable": len(model.failures) + len(evaluation.failures),
        "backbone": model.describe()["backbone"],
        "training": model.training,
        "model_notes": list(model.notes),
    }
    if seed == 0:
        _draw_examples(plan, benchmark, method, model)
    return _kept(benchmark.name, method.label, seed, fingerprint, info, evaluation)


def _preprocessing(plan: Plan, method: Method) -> Preprocessing:
    return plan.preprocessing if method.size is None else plan.preprocessing.model_copy(update={"size": method.size})


def _kept(name: str, label: str, seed: int, fingerprint: str, info: Json, e: Evaluation) -> Cell:
    return Cell(name, label, seed, fingerprint, "", info, tuple(e.ids), e.labels, e.patients, e.scores, e.measured)


def _baselines(plan: Plan, benchmark: Benchmark, progress: Progress) -> list[Cell]:
    """The trivial baselines of a data set, a cell each; those without a map only where images are judged."""
    asked = _asked(plan, benchmark)
    names = (*UNDIRECTED, MEAN_IMAGE) if "image" in benchmark.tasks else (MEAN_IMAGE,)
    paths = {name: cells.cell_path(plan.out, benchmark.name, name, 0) for name in names}
    fingerprint = cells.fingerprint_of(asked)
    found = [_found(path, fingerprint, plan) for path in paths.values()]
    if all(cell is not None for cell in found):
        return [cell for cell in found if cell is not None]
    results = baseline_results(benchmark.train, benchmark.test, progress=progress)
    made = []
    for name, path in paths.items():
        info = _info(benchmark, asked) | {"baseline": True}
        try:
            measured = evaluate_results(
                results[name], benchmark.test, tasks=benchmark.tasks, replicates=plan.replicates, progress=progress
            )
            cell = _kept(benchmark.name, name, 0, fingerprint, info, measured)
        except (InputError, ValueError) as error:
            cell = cells.failed_cell(benchmark.name, name, 0, fingerprint, str(error), info)
        cells.write_cell(path, cell)
        made.append(cell)
    return made


def _asked(plan: Plan, benchmark: Benchmark) -> Json:
    return {
        "protocol": benchmark.protocol,
        "split_hash": benchmark.split_hash,
        "max_train": plan.max_train,
        "max_test": plan.max_test,
        "replicates": plan.replicates,
    }


def _info(benchmark: Benchmark, asked: Json) -> Json:
    test = benchmark.test
    notes: list[JsonValue] = list(benchmark.notes)
    tasks: list[JsonValue] = list(benchmark.tasks)
    rate = asked.get("false_alarm_rate")
    settings = cast(Json, asked.get("settings", {}))
    if "weights" in settings:  # not the path: it is nobody's business, and the hash says which they are
        settings = settings | {"weights": Path(str(settings["weights"])).name}
    return asked | {
        "settings": settings,
        "title": benchmark.title,
        "tasks": tasks,
        "notes": notes,
        "train": len(benchmark.train),
        "test_normal": sum(s.label == 0 for s in test),
        "test_abnormal": sum(s.label == 1 for s in test),
        "test_patients": len({s.patient for s in test}),
        "selection_rule": SELECTION_RULE,
        "threshold_rule": f"conformal, false-alarm rate {rate} on held-out normals" if rate else "",
        "seen": "normal images only",
        "anomalib_med": __version__,
        "packages": dict(package_versions()),
        "machine": dict(machine()),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "baseline": False,
    }


def _found(path: Path, fingerprint: str, plan: Plan) -> Cell | None:
    """The finished cell of a file; None where it is to be run."""
    if not path.exists():
        return None
    cell = cells.read_cell(path)
    if cell.fingerprint != fingerprint:
        if plan.overwrite:
            return None
        raise OutputError(
            f"{path}: measured with other settings or on another split: choose another folder, or --overwrite"
        )
    return None if cell.error else cell


def _stored(cache: Path | None) -> int:
    return 0 if cache is None or not cache.is_dir() else sum(1 for _ in cache.rglob("*.npy"))


def example_samples(benchmark: Benchmark) -> list[Sample]:
    """The same few test images for every method, drawn by a hash of their ids: one normal, the others abnormal."""
    order = sorted(benchmark.test, key=lambda s: sha256(s.id.encode()).hexdigest())
    abnormal = [s for s in order if s.label == 1][: EXAMPLES - 1]
    return abnormal + [s for s in order if s.label == 0][:1]


def examples_folder(out: Path, dataset: str, method: str) -> Path:
    """Where the maps of the example images lie, ``0.jpg`` and so on."""
    return cells.cell_path(out, dataset, method, 0).parent / "examples"


def _draw_examples(plan: Plan, benchmark: Benchmark, method: Method, model: FittedModel) -> None:
    folder = examples_folder(plan.out, benchmark.name, method.label)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for i, (result, display) in enumerate(model.score_each(example_samples(benchmark), display=True)):
        if result.ok and display is not None:
            write_overlay(folder / f"{i}.jpg", display, result.anomaly_map(), model.map_range)


def untrained() -> tuple[str, ...]:
    """The detectors that need no training."""
    return tuple(name for name, kind in detectors().items() if not issubclass(kind, TrainedDetector))


def methods_of(texts: Sequence[str], shared: Json) -> tuple[Method, ...]:
    """Methods from text: ``"patchcore"`` or ``"patchcore pooling=max bank_size=500"``, which is its label.

    Parameters
    ----------
    texts
        One a method; words after the name are settings of the detector, or ``size=128``, the side of its input.
    shared
        Settings for every detector that has them, such as the backbone; those of a method win.

    Raises
    ------
    ConfigError
        An unknown detector, or an option that makes no sense.
    InputError
        A method named twice.
    """
    made = []
    for text in texts:
        name, *words = text.split()
        detector = detector_class(name)
        own: Json = {}
        for word in words:
            key, equals, value = word.partition("=")
            if not equals:
                raise InputError(f'method "{text}": write settings as key=value, for example "{name} pooling=max"')
            own[key] = value
        size = parse_config(Preprocessing, {"size": own.pop("size")}, text).size if "size" in own else None
        settings = {k: v for k, v in shared.items() if k in detector.Config.model_fields} | own
        checked = detector(**settings).config.model_dump(mode="json", include=set(settings))
        made.append(Method(" ".join([name, *words]), name, checked, size))
    repeated = [m.label for i, m in enumerate(made) if m.label in {n.label for n in made[:i]}]
    if repeated:
        raise InputError(f'method "{repeated[0]}" is named twice')
    return tuple(made)
