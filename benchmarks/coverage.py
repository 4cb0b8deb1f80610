"""How often a 95 % interval holds the truth, in simulations where the truth is known. Writes docs/coverage.png.

    python benchmarks/coverage.py [--simulations 1000] [--replicates 1000] [-o docs/coverage.png]

Scores are normal with a shift for the abnormal, so the AUROC is known; what has no formula is taken from two million
cases. "clustered": five images a patient that share half of their variance. "difference": two equally good methods
that share half of their variance, the truth is 0. Prints a line a setting; one run takes some minutes.
"""

import argparse
from collections.abc import Callable
from math import sqrt
from pathlib import Path
from statistics import NormalDist

import numpy as np

from anomalib_med.evaluation import curves
from anomalib_med.evaluation.curves import curve_of
from anomalib_med.evaluation.delong import delong_interval, delong_test
from anomalib_med.evaluation.intervals import Interval, bootstrap, paired_bootstrap

AUROC = 0.85
SHIFT = sqrt(2) * NormalDist().inv_cdf(AUROC)

METRICS = {
    "auroc": curves.auroc,
    "ap": curves.average_precision,
    "partial": curves.partial_auroc,
    "f1_max": curves.f1_max,
}


def independent(rng: np.random.Generator, normal: int, abnormal: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.repeat([0, 1], [normal, abnormal])
    return labels, SHIFT * labels + rng.normal(size=len(labels))


def clustered(rng: np.random.Generator, patients: int, images: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    whose = np.repeat(np.arange(2 * patients), images)
    labels = (whose >= patients).astype(int)
    noise = rng.normal(size=2 * patients)[whose] + rng.normal(size=len(whose))
    return labels, SHIFT * labels + noise / sqrt(2), whose


def paired(rng: np.random.Generator, each: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels = np.repeat([0, 1], each)
    shared = rng.normal(size=2 * each)
    a, b = (SHIFT * labels + (shared + rng.normal(size=2 * each)) / sqrt(2) for _ in range(2))
    return labels, a, b


def truths() -> dict[str, float]:
    labels, scores = independent(np.random.default_rng(1), 1_000_000, 1_000_000)
    curve = curve_of(labels, scores)
    return {name: float(metric(curve)) for name, metric in METRICS.items()} | {"auroc": AUROC}


def settings(replicates: int) -> dict[str, tuple[str, Callable[[np.random.Generator], Interval]]]:
    """Name to the metric whose truth counts and one simulation."""

    def resampled(name: str, rng: np.random.Generator, *data: np.ndarray) -> Interval:
        labels, scores, *whose = data
        seed = int(rng.integers(1e9))
        patients = whose[0] if whose else None
        metrics = {name: METRICS[name]}
        return bootstrap(labels, scores, metrics, patients=patients, replicates=replicates, seed=seed)[name]

    def plain(name: str, n: int) -> Callable[[np.random.Generator], Interval]:
        return lambda rng: resampled(name, rng, *independent(rng, n, n))

    def by_patient(rng: np.random.Generator) -> Interval:
        return resampled("auroc", rng, *clustered(rng, 50))

    def by_image(rng: np.random.Generator) -> Interval:
        return resampled("auroc", rng, *clustered(rng, 50)[:2])

    def difference(rng: np.random.Generator) -> Interval:
        labels, a, b = paired(rng, 100)
        return paired_bootstrap(labels, a, b, curves.auroc, replicates=replicates, seed=int(rng.integers(1e9)))[0]

    def delong_clustered(rng: np.random.Generator) -> Interval:
        labels, scores, whose = clustered(rng, 50)
        return delong_interval(labels, scores, whose)

    return {
        "AUROC, 50 + 50": ("auroc", plain("auroc", 50)),
        "AUROC, 200 + 200": ("auroc", plain("auroc", 200)),
        "AP, 100 + 100": ("ap", plain("ap", 100)),
        "partial AUROC, 200 + 200": ("partial", plain("partial", 200)),
        "F1-max (oracle), 200 + 200": ("f1_max", plain("f1_max", 200)),
        "AUROC, clustered, by patient": ("auroc", by_patient),
        "difference of AUROCs": ("zero", difference),
        "AUROC, DeLong, 50 + 50": ("auroc", lambda rng: delong_interval(*independent(rng, 50, 50))),
        "AUROC, clustered, DeLong by patient": ("auroc", delong_clustered),
        "difference, DeLong": ("zero", lambda rng: delong_test(*paired(rng, 100))[0]),
        "wrong: clustered, by image": ("auroc", by_image),
    }


def draw(path: Path, results: dict[str, float], simulations: int) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    names = list(results)[::-1]
    values = np.array([results[name] for name in names])
    error = 1.96 * np.sqrt(values * (1 - values) / simulations)
    axes.axvspan(0.93, 0.97, color="tab:green", alpha=0.12)
    axes.axvline(0.95, color="0.6", linewidth=1)
    axes.errorbar(values, range(len(names)), xerr=error, fmt="o", capsize=3, markersize=5)
    axes.set(yticks=range(len(names)), yticklabels=names, xlabel="Share of 95 % intervals that hold the truth")
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--replicates", type=int, default=1000)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/coverage.png"))
    options = parser.parse_args()
    known = truths() | {"zero": 0.0}
    results = {}
    for name, (truth, simulate) in settings(options.replicates).items():
        rng = np.random.default_rng(0)
        intervals = [simulate(rng) for _ in range(options.simulations)]
        results[name] = float(np.mean([i.low <= known[truth] <= i.high for i in intervals]))
        width = float(np.mean([i.high - i.low for i in intervals]))
        print(f"{name:<38} coverage {results[name]:.3f}   mean width {width:.3f}", flush=True)
    draw(options.output, results, options.simulations)
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()
