"""``anomed datasets``: the named data sets, the card of each, and whether a folder holds one of them."""

from pathlib import Path

import click

from anomalib_med.cli.options import FOLDER
from anomalib_med.errors import InputError

LISTED = 5  # of each kind of fault; the number of all stands beside them


@click.group(
    invoke_without_command=True,
    epilog="\b\nExamples:\n  anomed datasets\n  anomed datasets show chestxray14\n"
    "  anomed datasets check chestxray14 --root /data/ChestX-ray14",
)
@click.pass_context
def command(context: click.Context) -> int:
    """List the named data sets; show the card of one; check that a folder holds it."""
    from anomalib_med.datasets.benchmarks import benchmark_card, benchmark_names

    if context.invoked_subcommand is None:
        cards = [benchmark_card(name) for name in benchmark_names()]
        width = max(len(card.name) for card in cards)
        for card in cards:
            click.echo(f"{card.name:<{width}}  {card.modality or '-':<4} {' '.join(card.tasks):<16} {card.title}")
    return 0


@command.command(epilog="\b\nExample:\n  anomed datasets show rsna_pneumonia")
@click.argument("name")
def show(name: str) -> int:
    """Show what a data set is, how to get it, its layout, its split and its traps."""
    from anomalib_med.cards import card
    from anomalib_med.datasets.benchmarks import benchmark_card
    from anomalib_med.datasets.layout.card import card_paths

    described = benchmark_card(name)
    click.echo(f"{name}: {described.title}\n")
    for what, text in (
        ("protocol", described.protocol),
        ("modality", described.modality or "any"),
        ("judged by", ", ".join(described.tasks)),
        ("licence", described.licence),
        ("source", described.source),
        ("folder", " or ".join(described.folder) or "the root"),
    ):
        click.echo(f"  {what:<10} {text}")
    for what, number in described.counts.items():
        click.echo(f"  {what.replace('_', ' '):<14} {number}")
    click.echo("\ntraps:")
    for note in described.notes:
        click.echo(f"  - {note}")
    click.echo("\n" + card("datasets", card_paths()[name].parent.name))
    return 0


@command.command(
    epilog="\b\nExamples:\n  anomed datasets check zhanglab --root /data/chest_xray\n"
    "  anomed datasets check luna16 --root /data --read all"
)
@click.argument("name")
@click.option("--root", required=True, type=FOLDER, help="Top folder of the data set, or the folder that holds it.")
@click.option("--read", "images", default="60", show_default=True, metavar="N", help="Number of images read, or all.")
def check(name: str, root: Path, images: str) -> int:
    """Compare a folder with the card: counts, missing files, patients on both sides, masks, unreadable images."""
    from anomalib_med.datasets.benchmarks import check_benchmark

    if images != "all" and not images.isdigit():
        raise click.BadParameter(f"{images} is neither a number nor all", param_hint="--read")
    found = check_benchmark(name, root, images=None if images == "all" else int(images))
    click.echo(f"{name} in {found.root}")
    width = max(map(len, found.counts))
    for what, (number, expected) in found.counts.items():
        verdict = "" if expected in (0, number) else f"  but {expected} in the card"
        click.echo(f"  {what:<{width}} {number:>8}{verdict}")
    click.echo(f"  {'images read':<{width}} {found.read:>8}")
    for what, items in (
        ("missing", found.missing),
        ("patients on both sides", found.shared_patients),
        ("abnormal without mask or box", found.unlocated),
        ("unreadable", found.unreadable),
    ):
        if items:
            click.echo("\n  - ".join([f"{what}: {len(items)}", *items[:LISTED]]))
        if len(items) > LISTED:
            click.echo(f"  ... and {len(items) - LISTED} more")
    if not found.ok:
        raise InputError(
            f"{name}: {root} is not as the card says, see above: anomed datasets show {name} has the layout"
        )
    click.echo("complete, as the card says")
    return 0
