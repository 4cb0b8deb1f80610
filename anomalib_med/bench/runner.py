"""The runner: data sets x methods x seeds, each cell measured once and kept, whatever happens to the others.

A finished cell is not run again; one that failed is tried again. All detectors with the same backbone, layers and
preprocessing share one pass of it through the feature cache. Nothing of a test set chooses anything.
"""

import datetime
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from anomalib_med.bench import cells
from anomalib_med.bench.baselines import MEAN_IMAGE, UNDIRECTED, baseline_results
from anomalib_med.bench.cells import Cell, Json
from anomalib_med.bench.machine import machine, package_versions, peak_memory_mb, reset_peak_memory
from anomalib_med.bench.plan import Method, Plan, example_samples, limited
from anomalib_med.datasets.benchmarks import Benchmark, open_benchmark
from anomalib_med.errors import AnomedError, InputError, OutputError
from anomalib_med.evaluation.evaluate import Evaluation, evaluate_model, evaluate_results
from anomalib_med.fitted import FittedModel
from anomalib_med.fitting import fit
from anomalib_med.models.registry import detector_class
from anomalib_med.outputs.overlay import write_overlay
from anomalib_med.records import Progress, silent
from anomalib_med.version import __version__

SELECTION_RULE = "last state of training; no test image and no label is used"

Say = Callable[[str], None]


def run_bench(plan: Plan, *, progress: Progress = silent, say: Say = lambda _: None) -> list[Cell]:
    """Run what is missing and return all cells of the plan, failed ones among them; `say` gets a line for each.

    Raises
    ------
    ConfigError
        An unknown data set, or a rate or share that makes no sense.
    InputError
        No such root.
    OutputError
        Results of other settings lie in the way, or results cannot be written.
    """
    plan.check()
    done: list[Cell] = []
    for name in plan.datasets:
        try:
            opened = _Opened(plan, limited(open_benchmark(name, plan.root), plan), progress, say)
        except AnomedError as error:
            say(f"{name}: left out: {error}")
            done += [Cell(name, m.label, 0, "", str(error), {}) for m in plan.methods]
            continue
        done += opened.baselines()
        # Seed by seed, so that a table with every method is there early.
        done += [opened.cell(method, seed) for seed in range(plan.seeds) for method in plan.methods]
    return done


@dataclass(frozen=True)
class _Opened:
    """One data set of the plan, opened."""

    plan: Plan
    benchmark: Benchmark
    progress: Progress
    say: Say

    def cell(self, method: Method, seed: int) -> Cell:
        """One cell, from its file or from a run."""
        plan = self.plan
        asked: Json = {
            "detector": method.detector,
            "settings": dict(method.settings),
            "seed": seed,
            "preprocessing": plan.preprocessing_of(method).model_dump(mode="json"),
            "calibration": plan.calibration,
            "false_alarm_rate": plan.false_alarm_rate,
        }
        where = f"{self.benchmark.name} / {method.label} / seed {seed}"
        cell = self._begun(method.label, seed, asked)
        if cell.measured:
            self.say(f"{where}: done before")
            return cell
        try:
            measured = self._measured(cell, method)
            key = cells.headline(measured.metrics)
            fit_s, rate = (measured.info[name] for name in ("fit_s", "images_per_s"))
            said = f"{key} {measured.metrics[key]}, fit {fit_s} s, {rate} images/s"
            cell = measured
        except OutputError:
            raise  # a full disk would fail every cell after it
        except Exception as error:  # whatever one method does, the others are measured
            reason = str(error) if isinstance(error, AnomedError) else f"{type(error).__name__}: {error}"
            cell, said = replace(cell, error=reason), f"failed: {reason}"
        cells.write_cell(plan.out, cell)
        self.say(f"{where}: {said}")
        return cell

    def baselines(self) -> list[Cell]:
        """A cell for each trivial baseline; those without a map only where images are judged."""
        tasks, test = self.benchmark.tasks, self.benchmark.test
        names = (*UNDIRECTED, MEAN_IMAGE) if "image" in tasks else (MEAN_IMAGE,)
        begun = [self._begun(name, 0, {}) for name in names]
        if all(cell.measured for cell in begun):
            return begun
        results = baseline_results(self.benchmark.train, test, progress=self.progress)
        made = []
        for cell in begun:
            try:
                evaluation = evaluate_results(
                    results[cell.method], test, tasks=tasks, replicates=self.plan.replicates, progress=self.progress
                )
                made.append(_filled(cell, evaluation))
            except (InputError, ValueError) as error:
                made.append(replace(cell, error=str(error)))
            cells.write_cell(self.plan.out, made[-1])
        return made

    def _begun(self, method: str, seed: int, asked: Json) -> Cell:
        """The finished cell of a file; a cell without metrics where it is to be run.

        `asked` is what was asked for beside what holds for all methods; nothing for a trivial baseline.
        """
        plan, benchmark = self.plan, self.benchmark
        all_asked: Json = {
            "protocol": benchmark.protocol,
            "split_hash": benchmark.split_hash,
            "max_train": plan.max_train,
            "max_test": plan.max_test,
            "replicates": plan.replicates,
            **asked,
        }
        fingerprint = cells.fingerprint_of(all_asked)
        path = cells.cell_path(plan.out, benchmark.name, method, seed)
        if path.exists():
            cell = cells.read_cell(path)
            if cell.fingerprint == fingerprint and not cell.error:
                return cell
            if cell.fingerprint != fingerprint and not plan.overwrite:
                raise OutputError(
                    f"{path}: measured with other settings or on another split: choose another folder, or --overwrite"
                )
        return Cell(benchmark.name, method, seed, fingerprint, "", all_asked | self._about(asked))

    def _measured(self, cell: Cell, method: Method) -> Cell:
        """The cell with what a fitted detector makes of the test images."""
        plan, benchmark = self.plan, self.benchmark
        reset_peak_memory()
        detector = detector_class(method.detector)(**{**method.settings, "seed": cell.seed})
        cache = None if not detector.uses_features else plan.cache or plan.out / "features"
        stored = _stored(cache)
        start = time.perf_counter()
        model = fit(
            detector,
            list(benchmark.train),
            calibration=plan.calibration,
            preprocessing=plan.preprocessing_of(method),
            seed=cell.seed,
            device=plan.device,
            cache=cache,
            progress=self.progress,
        )
        seconds = time.perf_counter() - start
        evaluation = evaluate_model(
            model,
            benchmark.test,
            tasks=benchmark.tasks,
            false_alarm_rate=plan.false_alarm_rate,
            replicates=plan.replicates,
            progress=self.progress,
        )
        peak, gpu = peak_memory_mb()
        cost: Json = {
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
        if cell.seed == 0:
            self._draw_examples(method, model)
        return _filled(replace(cell, info=cell.info | cost), evaluation)

    def _about(self, asked: Json) -> Json:
        """Where, how and on what a cell is measured."""
        benchmark = self.benchmark
        rate, settings = asked.get("false_alarm_rate"), cast(Json, asked.get("settings", {}))
        if "weights" in settings:  # not the path: it is nobody's business, and the hash says which they are
            settings = settings | {"weights": Path(str(settings["weights"])).name}
        return {
            "settings": settings,
            "title": benchmark.title,
            "tasks": list(benchmark.tasks),
            "notes": list(benchmark.notes),
            "train": len(benchmark.train),
            "test_normal": sum(s.label == 0 for s in benchmark.test),
            "test_abnormal": sum(s.label == 1 for s in benchmark.test),
            "test_patients": len({s.patient for s in benchmark.test}),
            "selection_rule": SELECTION_RULE,
            "threshold_rule": f"conformal, false-alarm rate {rate} on held-out normals" if rate else "",
            "seen": "normal images only",
            "anomalib_med": __version__,
            "packages": dict(package_versions()),
            "machine": dict(machine()),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "baseline": not asked,
        }

    def _draw_examples(self, method: Method, model: FittedModel) -> None:
        folder = cells.examples_folder(self.plan.out, self.benchmark.name, method.label)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for i, (result, display) in enumerate(model.score_each(example_samples(self.benchmark), display=True)):
            if result.ok and display is not None:
                write_overlay(folder / f"{i}.jpg", display, result.anomaly_map(), model.map_range)


def _filled(cell: Cell, e: Evaluation) -> Cell:
    """The cell with what was measured."""
    return replace(cell, ids=tuple(e.ids), labels=e.labels, patients=e.patients, scores=e.scores, measured=e.measured)


def _stored(cache: Path | None) -> int:
    """Number of images whose features are in the cache."""
    return 0 if cache is None or not cache.is_dir() else sum(1 for _ in cache.rglob("*.npy"))
