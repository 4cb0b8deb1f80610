"""``anomed models``: the detectors, and the card of each."""

import textwrap

import click


@click.command(epilog="\b\nExamples:\n  anomed models\n  anomed models patchcore")
@click.argument("name", required=False)
def command(name: str | None) -> int:
    """List the detectors; with NAME, its settings and its card: what it is, when to choose it, what was measured."""
    from anomalib_med.cards import card
    from anomalib_med.config import settings_of
    from anomalib_med.models.registry import detector_class, detectors

    if name is None:
        known = detectors()
        width = max(map(len, known))
        families: dict[str, list[str]] = {}
        for key, detector in known.items():
            home = detector.__module__.split(".")
            family = home[-2].replace("_", " ") if home[0] == "anomalib_med" else "other"
            families.setdefault(family, []).append(f"  {key:<{width}}  {detector.title}")
        for family, lines in sorted(families.items()):
            click.echo("\n".join([f"{family}:", *lines]))
        return 0
    detector = detector_class(name)
    click.echo(f"{name}: {detector.title}\n\nsettings (-s key=value):")
    for setting in settings_of(detector.Config):
        click.echo(f"  {setting.name} = {_written(setting.default)}  ({setting.takes})")
        click.echo(textwrap.indent(textwrap.fill(setting.text, 108), "      "))
    click.echo("\n" + card("models", name))
    return 0


def _written(default: object) -> str:
    """A default as it is written on the command line."""
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
