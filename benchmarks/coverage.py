"""How often a 95 % interval holds the truth, in simulations where the truth is known. Writes docs/coverage.png.

    python benchmarks/coverage.py [--simulations 1000] [--replicates 300] [-o docs/coverage.png]

Every interval comes from the code of `anomed evaluate`. Scores of images are normal with a shift for the abnormal
(AUROC .85). "Patients": so many normal and abnormal ones with five images each, which share half of their variance.
Maps are smoothed noise that is brighter in lesions of random size and contrast, 40 normal and 40 abnormal. The truth
comes from a million images (twenty thousand maps). "difference": two equally good methods that share half of their
variance, so the truth is 0. Prints a line a number; one run takes some minutes.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import log, sqrt
from pathlib import Path
from statistics import NormalDist

import cv2
import numpy as np
from scipy.special import expit
from shared import command_line

from anomalib_med.evaluation import curves
from anomalib_med.evaluation.case_statistics import Cases, image_statistics
from anomalib_med.evaluation.curves import curve_of
from anomalib_med.evaluation.delong import delong_contrast, delong_covariance
from anomalib_med.evaluation.evaluate import evaluate_results
from anomalib_med.evaluation.intervals import Interval, difference_of, draws, replicated
from anomalib_med.records import Geometry, Result, Sample

SHIFT = sqrt(2) * NormalDist().inv_cdf(0.85)
THRESHOLD = 1.0  # of the decisions: a false-alarm rate of 16 %
SIDE = 32
IMAGES = 5  # of a patient
MANY = 500_000

Intervals = dict[str, Interval]


@dataclass(frozen=True)
class Setting:
    """One simulated world: how to draw intervals from it, and what they should hold."""

    name: str
    simulate: Callable[[np.random.Generator], Intervals]
    truth: Mapping[str, float]


def images(rng: np.random.Generator, patients: int, each: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, scores and patients; images of one patient share half of their variance."""
    whose = np.repeat(np.arange(2 * patients), each)
    labels = (whose >= patients).astype(int)
    noise = rng.normal(size=len(whose))
    if each > 1:
        noise = (rng.normal(size=2 * patients)[whose] + noise) / sqrt(2)
    return labels, SHIFT * labels + noise, whose


def measured(labels: np.ndarray, scores: np.ndarray, whose: np.ndarray, replicates: int) -> Intervals:
    """As `anomed evaluate` does it."""
    statistics = image_statistics(Cases(labels, scores, scores > THRESHOLD, whose, np.arange(len(labels))), "max")
    return {name: m.interval for name, m in replicated(labels, whose, statistics, replicates).items()}


def pixels(rng: np.random.Generator, each: int) -> Iterator[tuple[Sample, Result]]:
    """Maps of normal and abnormal images; a lesion is a box, so that no mask has to be written."""
    whole = Geometry((SIDE, SIDE), (SIDE, SIDE), (0, 0, SIDE, SIDE))
    for i in range(2 * each):
        noise = cv2.GaussianBlur(rng.normal(size=(SIDE, SIDE)).astype(np.float32), (0, 0), 1.5)
        grid = 4 * noise + 0.5 * np.float32(rng.normal())
        boxes: list[tuple[float, float, float, float]] = []
        for _ in range(rng.integers(1, 3) if i >= each else 0):
            width, height = (int(n) for n in rng.integers(1, 9, 2))
            x, y = (int(n) for n in rng.integers(0, SIDE - 9, 2))
            grid[y : y + height, x : x + width] += np.float32(rng.uniform(0.5, 3.0))
            boxes.append((x, y, width, height))
        result = Result(str(i), "", None, "", 0.0, grid=grid, geometry=whole)
        yield Sample(str(i), label=int(i >= each), boxes=tuple(boxes)), result


def measured_maps(rng: np.random.Generator, each: int, replicates: int) -> Intervals:
    samples, results = zip(*pixels(rng, each), strict=True)
    tasks = ("pixel", "box")
    return evaluate_results(results, samples, tasks=tasks, map_threshold=2.0, replicates=replicates).metrics


def differences(rng: np.random.Generator, replicates: int) -> Intervals:
    labels = np.repeat([0, 1], 100)
    shared = rng.normal(size=200)
    a, b = (SHIFT * labels + (shared + rng.normal(size=200)) / sqrt(2) for _ in range(2))
    found = {"difference of AUROCs, DeLong": delong_contrast(labels, np.stack([a, b]), np.array([1.0, -1.0]))[0]}
    rows = np.concatenate(list(draws(labels, None, replicates=replicates, seed=0)))
    for name, metric in (("AUROCs", curves.auroc), ("APs", curves.average_precision)):
        observed = float(metric(curve_of(labels, a)) - metric(curve_of(labels, b)))
        drawn = metric(curve_of(labels, a, rows)) - metric(curve_of(labels, b, rows))
        found[f"difference of {name}, bootstrap"] = difference_of(observed, drawn, 100)[0]
    return found


def other_ways(rng: np.random.Generator, replicates: int) -> Intervals:
    labels, scores, whose = images(rng, 50, IMAGES)
    wrong = measured(labels, scores, np.arange(len(labels)), replicates)["auroc"]
    return {"AUROC, DeLong by patient": by_delong(labels, scores, whose), "wrong: AUROC, by image": wrong}


def by_delong(labels: np.ndarray, scores: np.ndarray, whose: np.ndarray) -> Interval:
    """Interval of an AUROC on the logit scale, which keeps it inside (0, 1)."""
    areas, covariance = delong_covariance(labels, scores, whose)
    area, sd = float(areas[0]), sqrt(covariance[0, 0])
    half, logit = NormalDist().inv_cdf(0.975) * sd / (area * (1 - area)), log(area / (1 - area))
    return Interval(area, float(expit(logit - half)), float(expit(logit + half)))


def settings(replicates: int) -> list[Setting]:
    rng = np.random.default_rng(1)
    of_images = {name: i.value for name, i in measured(*images(rng, MANY, 1), 1).items()}
    clustered = measured(*images(rng, MANY // IMAGES, IMAGES), 1)
    of_patients = of_images | {name: i.value for name, i in clustered.items() if name.startswith(("patient_", "ptp_"))}
    of_maps = {name: i.value for name, i in measured_maps(rng, 10_000, 1).items()}

    def of(patients: int, each: int) -> Callable[[np.random.Generator], Intervals]:
        return lambda rng: measured(*images(rng, patients, each), replicates)

    zero = dict.fromkeys(differences(rng, 2), 0.0)
    known = dict.fromkeys(other_ways(rng, 2), of_images["auroc"])
    return [
        Setting("50 + 50 images", of(50, 1), of_images),
        Setting("200 + 200 images", of(200, 1), of_images),
        Setting("8 + 8 patients", of(8, IMAGES), of_patients),
        Setting("50 + 50 patients", of(50, IMAGES), of_patients),
        Setting("40 + 40 maps", lambda rng: measured_maps(rng, 40, replicates), of_maps),
        Setting("100 + 100, paired", lambda rng: differences(rng, replicates), zero),
        Setting("50 + 50 patients, other ways", lambda rng: other_ways(rng, replicates), known),
    ]


def draw(path: Path, coverage: Mapping[tuple[str, str], float], simulations: int) -> None:
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for _, name in coverage))[::-1]
    figure = Figure(figsize=(7.6, 0.21 * len(names) + 1), layout="constrained")
    axes = figure.add_subplot()
    axes.axvspan(0.93, 0.97, color="tab:green", alpha=0.12)
    axes.axvline(0.95, color="0.6", linewidth=1)
    for setting in dict.fromkeys(setting for setting, _ in coverage):
        shown = [(names.index(name), value) for (s, name), value in coverage.items() if s == setting]
        rows, values = np.array(shown).T
        error = 1.96 * np.sqrt(values * (1 - values) / simulations)
        axes.errorbar(values, rows, xerr=error, fmt="o", markersize=4, linewidth=0.8, label=setting)
    axes.set(yticks=range(len(names)), yticklabels=names, xlabel="Share of 95 % intervals that hold the truth")
    axes.set(xlim=(0.6, 1.0), ylim=(-0.7, len(names) - 0.3))
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7, loc="lower left")
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--replicates", type=int, default=300)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/coverage.png"))
    options = parser.parse_args()
    coverage: dict[tuple[str, str], float] = {}
    for setting in settings(options.replicates):
        rng = np.random.default_rng(0)
        found = [setting.simulate(rng) for _ in range(options.simulations)]
        for name, truth in setting.truth.items():
            # A small test set may have no lesion of a size.
            intervals = [f[name] for f in found if name in f]
            if not intervals:
                continue
            held = float(np.mean([i.low - 1e-9 <= truth <= i.high + 1e-9 for i in intervals]))
            width = float(np.mean([i.high - i.low for i in intervals]))
            excess = float(np.mean([i.value - truth for i in intervals]))
            print(f"{setting.name:<28} {name:<42} {held:.3f}   width {width:.3f}   excess {excess:+.3f}", flush=True)
            coverage[setting.name, name] = held
    draw(options.output, coverage, options.simulations)
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()
