"""``anomed evaluate``: a fitted model on labelled images, every number with its interval."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from anomalib_med.cli.options import EXISTING_OR_GLOB, FOLDER, data_root, shared
from anomalib_med.cli.outcome import aligned, say_failed
from anomalib_med.cli.progress import with_progress
from anomalib_med.errors import ConfigError, InputError

if TYPE_CHECKING:
    from anomalib_med.evaluation.evaluate import Evaluation

EPILOG = """\b
Examples:
  anomed evaluate model/ --normal test/normal --abnormal test/abnormal --masks test/masks
  anomed evaluate model/ --table test.csv -o out/
  anomed evaluate model/ -d nih_rsna --root /data -o out/
"""
AGGREGATION = "How images that are no slices make the score of a patient: max, mean, top<q>% or noisy-or."


@click.command(epilog=EPILOG)
@click.argument("model_dir", type=FOLDER)
@click.option("--normal", type=EXISTING_OR_GLOB, metavar="DIR", help="Normal images.")
@click.option("--abnormal", type=EXISTING_OR_GLOB, metavar="DIR", help="Abnormal images.")
@click.option("--masks", type=FOLDER, help="Masks of the abnormal images, under the same names.")
@click.option(
    "--table", type=EXISTING_OR_GLOB, metavar="CSV", help="Instead: columns path, label; mask and patient if known."
)
@click.option("-d", "--dataset", metavar="NAME", help="Instead: the test side of a named data set.")
@click.option("--root", type=FOLDER, help="Folder with the data sets.  [default: ANOMED_TEST_DATA]")
@click.option("-o", "--output", type=FOLDER, help="Folder for metrics.csv, metrics.json and scores.csv.")
@shared(false_alarm_rate="Rate of the decisions.")
@click.option("--aggregation", default="max", help=AGGREGATION)
@click.option("--replicates", type=click.IntRange(100), default=1000, help="Draws for the intervals.")
@shared("patient_pattern", "device")
def command(
    model_dir: Path,
    normal: str | None,
    abnormal: str | None,
    masks: Path | None,
    table: str | None,
    dataset: str | None,
    root: Path | None,
    output: Path | None,
    patient_pattern: str | None,
    device: str,
    **options: object,
) -> int:
    """Measure the model of `anomed fit` on labelled images that it has not seen.

    Intervals are at 95 %, resampled by patient. Metrics of maps need masks, FROC masks or boxes. Of scans the slices,
    the volumes and the patients are measured, these two as `anomed score` decides on them.
    """
    from anomalib_med.datasets.benchmarks import open_benchmark
    from anomalib_med.datasets.folder import discover
    from anomalib_med.datasets.labelled import labelled_folders
    from anomalib_med.evaluation.evaluate import TASKS, evaluate_model
    from anomalib_med.evaluation.evaluation_tables import write_evaluation
    from anomalib_med.fitted import load

    ways = [normal is not None or abnormal is not None, table is not None, dataset is not None]
    if sum(ways) != 1:
        raise ConfigError("name the images in one way: --normal and --abnormal, --table, or -d")
    if masks is not None and not ways[0]:
        raise ConfigError("--masks goes with --normal and --abnormal: a table has a column mask, a data set its own")
    tasks: Sequence[str] = TASKS
    notes: list[str] = []
    if dataset is not None:
        if patient_pattern is not None:
            raise ConfigError("--patient-pattern is of no use with -d: the data set knows its patients")
        benchmark = open_benchmark(dataset, data_root(root))
        samples, tasks = list(benchmark.test), benchmark.tasks
        notes = [f"protocol {benchmark.protocol}, split {benchmark.split_hash}", *benchmark.notes]
    elif table is not None:
        samples = discover(table, patient_pattern=patient_pattern)
        if unlabelled := [s.id for s in samples if s.label not in (0, 1)]:
            raise InputError(f"{table}: {unlabelled[0]} has no label: the column label says 0 (normal) or 1 (abnormal)")
    elif normal is not None and abnormal is not None:
        samples = labelled_folders(normal, abnormal, masks, patient_pattern)
    else:
        raise ConfigError("--normal and --abnormal: both are needed")
    model = load(model_dir, device=device)
    evaluation = with_progress(evaluate_model, model, samples, tasks=tasks, **options)
    _print(evaluation, (*model.notes, *notes))
    if output is not None:
        for path in write_evaluation(output, evaluation, model, samples):
            click.echo(f"written: {path}")
    left_out = [f"{name}: {reason}" for name, reason in evaluation.failures.items()]
    return say_failed(*[f"{len(left_out)} images left out, first {text}" for text in left_out[:1]])


def _print(evaluation: "Evaluation", notes: Sequence[str]) -> None:
    labels = evaluation.labels
    click.echo(
        f"{(labels == 0).sum()} normal and {(labels == 1).sum()} abnormal images of "
        f"{len(set(evaluation.patients.tolist()))} patients; 95 % intervals by patient"
    )
    if evaluation.volumes:
        count = len(evaluation.volumes)
        click.echo(f"{count} volumes of {len(evaluation.volume_patients)} patients, judged as anomed score does")
    click.echo(aligned(evaluation.metrics))
    for note in notes:
        click.echo(f"note: {note}")
