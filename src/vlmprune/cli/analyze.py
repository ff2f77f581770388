"""`vlmprune analyze`: studies of where an encoder and a language model look."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from vlmprune.analyze import ALL, STUDIES, get_study
from vlmprune.cli.shell import typer
from vlmprune.cli.words import DEVICE, FORCE, INTERRUPTED, quiet
from vlmprune.core.extras import check_packages


def analyze(
    study: Annotated[str, typer.Argument(help=f"{', '.join(STUDIES)}, or {ALL}.")],
    model: Annotated[
        str,
        typer.Argument(
            help="A vision-language model (an embedded model's name, a local folder, or a hub id), or a vision encoder "
            "alone: CLIP, SigLIP, DINO, DeiT, ViT and their kin."
        ),
    ],
    images: Annotated[Path | None, typer.Option(help="Folder of pictures. Default: generated scenes.")] = None,
    photos: Annotated[bool, typer.Option("--photos", help="The photographs that come with vlmprune.")] = False,
    coco: Annotated[
        Path | None,
        typer.Option(help="COCO's annotations of the pictures in --images, such as instances_val2017.json."),
    ] = None,
    limit: Annotated[int, typer.Option(help="Pictures at most, and questions (ablations: of each task).")] = 16,
    out: Annotated[
        Path, typer.Option(help="Folder for the results; each model gets a folder in it. Finished parts are reused.")
    ] = Path("analysis"),
    device: Annotated[str | None, typer.Option(help=DEVICE)] = None,
    seed: Annotated[int, typer.Option(help="Seed of what is drawn at random.")] = 0,
    force: Annotated[bool, typer.Option("--force", help=FORCE)] = False,
) -> None:
    """Study where a vision encoder looks, layer by layer, and what that says about pruning.

    Each study writes figures (PNG, SVG), tables (CSV) and a paragraph of what it shows; all writes one page, too.
    """
    check_packages("analyze")
    if study != ALL:
        get_study(study)
    from rich.console import Console

    from vlmprune.analyze.console import progress
    from vlmprune.analyze.pictures import choose
    from vlmprune.analyze.run import analyze as run

    quiet()
    console = Console(stderr=True)
    try:
        with progress(console) as tell:
            studies = run(
                study, model, lambda: choose(images, photos, coco, limit), out, limit,
                device=device, force=force, tell=tell, seed=seed,
            )  # fmt: skip
            found = list(studies)
    except KeyboardInterrupt:
        typer.echo("Interrupted: the same command continues with what is finished.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    for done, written in found:
        if done.refused:
            typer.echo(f"{done.name} is left out: {done.refused}", err=True)
        for paragraph in done.finding.text if done.finding is not None else ():
            typer.echo(paragraph)
        for path in written:
            typer.echo(str(path))
