"""``anomed models``: the detectors, and the card of each."""

import textwrap

import click

from anomalib_med.cli.outcome import aligned


@click.command(epilog="\b\nExamples:\n  anomed models\n  anomed models patchcore")
@click.argument("name", required=False)
def command(name: str | None) -> None:
    """List the detectors; with NAME, its settings and its card: what it is, when to choose it, what was measured."""
    from anomalib_med.cards import card
    from anomalib_med.config import settings_of
    from anomalib_med.models.registry import detector_class, detectors

    if name is None:
        lines = aligned({key: detector.title for key, detector in detectors().items()}).splitlines()
        families: dict[str, list[str]] = {}
        for detector, line in zip(detectors().values(), lines, strict=True):
            home = detector.__module__.split(".")
            families.setdefault(home[-2].replace("_", " ") if home[0] == "anomalib_med" else "other", []).append(line)
        for family, members in sorted(families.items()):
            click.echo("\n".join([f"{family}:", *members]))
        return
    detector = detector_class(name)
    click.echo(f"{name}: {detector.title}\n\nsettings (-s key=value):")
    for setting in settings_of(detector.Config):
        default = ",".join(map(str, setting.default)) if isinstance(setting.default, tuple) else setting.default
        click.echo(f"  {setting.name} = {default}  ({setting.takes})")
        click.echo(textwrap.indent(textwrap.fill(setting.text, 108), "      "))
    click.echo("\n" + card("models", name))
