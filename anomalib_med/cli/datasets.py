"""``anomed datasets``: the named data sets, the card of each, and whether a folder holds one of them."""

from pathlib import Path

import click

from anomalib_med.cli.options import FOLDER
from anomalib_med.cli.outcome import aligned
from anomalib_med.errors import InputError

LISTED = 5  # of each kind of fault; the number of all stands beside them
EPILOG = """\b
Examples:
  anomed datasets
  anomed datasets show chestxray14
  anomed datasets check chestxray14 --root /data/ChestX-ray14
"""


@click.group(invoke_without_command=True, epilog=EPILOG)
@click.pass_context
def command(context: click.Context) -> None:
    """List the named data sets; show the card of one; check that a folder holds it."""
    from anomalib_med.datasets.benchmarks import benchmark_card, benchmark_names

    if context.invoked_subcommand is None:
        cards = map(benchmark_card, benchmark_names())
        lines = {card.name: f"{card.modality or '-':<4} {' '.join(card.tasks):<16} {card.title}" for card in cards}
        click.echo(aligned(lines, indent=""))


@command.command(epilog="\b\nExample:\n  anomed datasets show rsna_pneumonia")
@click.argument("name")
def show(name: str) -> None:
    """Show what a data set is, how to get it, its layout, its split and its traps."""
    from anomalib_med.cards import card
    from anomalib_med.datasets.benchmarks import benchmark_card
    from anomalib_med.datasets.layout.card import card_paths

    described = benchmark_card(name)
    facts: dict[str, object] = {
        "protocol": described.protocol,
        "modality": described.modality or "any",
        "judged by": ", ".join(described.tasks),
        "licence": described.licence,
        "source": described.source,
        "folder": " or ".join(described.folder) or "the root",
    }
    facts |= {what.replace("_", " "): number for what, number in described.counts.items()}
    traps = "".join(f"\n  - {note}" for note in described.notes)
    click.echo(f"{name}: {described.title}\n\n{aligned(facts)}\n\ntraps:{traps}\n")
    click.echo(card("datasets", card_paths()[name].parent.name))


@command.command(
    epilog="\b\nExamples:\n  anomed datasets check zhanglab --root /data/chest_xray\n"
    "  anomed datasets check luna16 --root /data --read all"
)
@click.argument("name")
@click.option("--root", required=True, type=FOLDER, help="Top folder of the data set, or the folder that holds it.")
@click.option("--read", "images", default="60", metavar="N", help="Number of images read, or all.")
def check(name: str, root: Path, images: str) -> None:
    """Compare a folder with the card: counts, missing files, patients on both sides, masks, unreadable images."""
    from anomalib_med.datasets.benchmarks import check_benchmark

    if images != "all" and not images.isdigit():
        raise click.BadParameter(f"{images} is neither a number nor all", param_hint="--read")
    checked = check_benchmark(name, root, images=None if images == "all" else int(images))
    counts = {
        what: f"{number:>7}{'' if expected in (0, number) else f'  but {expected} in the card'}"
        for what, (number, expected) in checked.counts.items()
    }
    click.echo(f"{name} in {checked.root}\n{aligned(counts | {'images read': f'{checked.read:>7}'})}")
    for what, items in (
        ("missing", checked.missing),
        ("patients on both sides", checked.shared_patients),
        ("abnormal without mask or box", checked.unlocated),
        ("unreadable", checked.unreadable),
    ):
        if items:
            click.echo("\n  - ".join([f"{what}: {len(items)}", *items[:LISTED]]))
        if len(items) > LISTED:
            click.echo(f"  ... and {len(items) - LISTED} more")
    if not checked.ok:
        raise InputError(
            f"{name}: {root} is not as the card says, see above: anomed datasets show {name} has the layout"
        )
    click.echo("complete, as the card says")
