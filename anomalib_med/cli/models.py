"""``anomed models``: the detectors, and the card of each."""

import click


@click.command(epilog="\b\nExamples:\n  anomed models\n  anomed models patchcore")
@click.argument("name", required=False)
def command(name: str | None) -> int:
    """List the detectors; with NAME, its settings and its card: what it is, when to choose it, what was measured."""
    from anomalib_med.cards import card
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
    for key, field in detector.Config.model_fields.items():
        click.echo(f"  {key} = {field.default}")
    click.echo("\n" + card("models", name))
    return 0
