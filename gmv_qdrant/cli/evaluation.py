"""Is it true? ``evaluate`` with a command for each criterion, and ``import-scores``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from gmv_qdrant.cli.options import (
    answer_options,
    function_of,
    function_options,
    json_option,
    run_options,
    selection_of,
    selection_options,
    warn_if_stale,
    with_workspace,
)
from gmv_qdrant.cli.render import note, print_json, print_rows, show

Command = Callable[..., Any]

_plot_option = click.option(
    "--plot", type=click.Path(path_type=Path, dir_okay=False), help="Also draw it: PNG, SVG or PDF."
)
_batch_option = click.option("--batch", help="Only the generated images valued under this name.")
_ids = click.Path(path_type=Path, dir_okay=False, exists=True)


def _criterion(command: Command) -> Command:
    """The options of every criterion that depends on the value function."""
    for option in (with_workspace, answer_options, _plot_option, function_options):
        command = option(command)
    return command


def _counting(command: Command) -> Command:
    """The options of a criterion that counts contributors, whatever they are worth."""
    for option in (with_workspace, answer_options, _plot_option, _batch_option):
        command = option(command)
    return command


def _ks(*default: int) -> Callable[[Command], Command]:
    return click.option(
        "-k",
        "ks",
        type=click.IntRange(min=1),
        multiple=True,
        default=default,
        show_default=True,
        help="Contributors of a generated image; give it several times.",
    )


def _required(given: dict[str, Any]) -> Any:
    selection = selection_of(given)
    if selection is None:
        raise click.UsageError("Say which training images are meant by --owner, --uri, --ids or --attribute.")
    return selection


def _answer(
    workspace: Any, name: str, given: dict[str, Any], options: dict[str, Any], tables: tuple[str, ...] = ()
) -> None:
    """Ask, draw, show. given: what the common options brought. tables: parts of the result shown below its rows."""
    form, plot = given.pop("form"), given.pop("plot")
    function = function_of(given) if "no_quality" in given else given
    warn_if_stale(workspace)
    figures = workspace.evaluate(name, options=options, **function)
    if plot:
        from gmv_qdrant.evaluation.plots import plot as draw

        note(f"wrote {draw(figures, plot)}")
    show(figures["rows"], form, title=name, document=figures)
    for part in tables if form in ("table", "md") else ():
        if found := figures.get(part):
            rows = found if isinstance(found, list) else [found]
            show(rows, form, title=part.replace("_", " "))


@click.group()
def evaluate() -> None:
    """The paper's criteria, and known parents, on the images of this workspace.

    Labels and attributes come from the metadata of training and generated images. Every figure has a standard
    error, or stands beside what chance gives.
    """


@evaluate.command("identical-class")
@_ks(30, 50, 100)
@_counting
def identical_class(workspace: Any, ks: tuple[int, ...], **given: Any) -> None:
    """C1: the share of contributors with the generated image's label (Tables 2, 7, 9)."""
    _answer(workspace, "identical-class", given, {"ks": ks}, ("by_value",))


@evaluate.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--combined", is_flag=True, help="Also every pair, and all of them at once.")
@_ks(5, 10, 15)
@_counting
def attributes(
    workspace: Any, names: tuple[str, ...], combined: bool, ks: tuple[int, ...], **given: Any
) -> None:
    """C2: the share of contributors that agree in the attributes NAMES (Tables 3, 8, 14)."""
    _answer(workspace, "attributes", given, {"names": names, "combined": combined, "ks": ks})


@evaluate.command()
@selection_options
@_criterion
def ood(workspace: Any, **given: Any) -> None:
    """C3: whether corrupted training images have the lowest values (Fig. 5).

    Say which are corrupted by --attribute, --uri, --ids or --owner.
    """
    _answer(workspace, "ood", given, {"group": _required(given)})


@evaluate.command()
@selection_options
@click.option(
    "--held-out",
    type=click.File(encoding="utf-8"),
    help="A file with the held-out ones.  [default: all others]",
)
@_criterion
def membership(workspace: Any, held_out: Any, **given: Any) -> None:
    """Whether images that a generator was trained on are worth more than images it never saw (App. D, Table 6).

    Say which it was trained on by --attribute, --uri, --ids or --owner.
    """
    nothing = {"owner": None, "uri": None, "attribute": None}
    options = {"group": _required(given), "held_out": selection_of({**nothing, "ids": held_out})}
    _answer(workspace, "membership", given, options, ("test", "credit"))


@evaluate.command()
@click.option(
    "-m",
    "sizes",
    type=click.IntRange(min=1),
    multiple=True,
    default=(1, 10, 30, 50),
    show_default=True,
    help="Generated images in a draw; give it several times.",
)
@click.option("--repeats", type=click.IntRange(min=1), default=10, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--label", help="Draw from the generated images of this label.  [default: from all]")
@_criterion
def sensitivity(
    workspace: Any, sizes: tuple[int, ...], repeats: int, seed: int, label: str | None, **given: Any
) -> None:
    """How much the identical-class ratio varies with the number of generated images (App. F, Fig. 7)."""
    options = {"sizes": sizes, "repeats": repeats, "seed": seed, "label": label}
    _answer(workspace, "sensitivity", given, options)


@evaluate.command("quality-weighting")
@selection_options
@_criterion
def quality_weighting(workspace: Any, **given: Any) -> None:
    """Scores of the first contributors with and without quality (App. I, Figs. 8, 9).

    With corrupted training images (--attribute, --uri, --ids or --owner), criterion C3 both ways.
    """
    _answer(workspace, "quality-weighting", given, {"group": selection_of(given)}, ("ood_rows",))


@evaluate.command()
@_counting
def efficiency(workspace: Any, **given: Any) -> None:
    """C4: seconds per image by phase, from the timings of all runs (Table 4)."""
    _answer(workspace, "efficiency", given, {})


@evaluate.command("known-parents")
@_criterion
def known_parents(workspace: Any, **given: Any) -> None:
    """Where credit goes when it is known what images were made from.

    The metadata of the generated images names training images in columns parent, parent2, ... and, optionally, their
    weights in weight, weight2, ... A --calibration is shown beside the paper's formula.
    """
    calibration = given.pop("calibration")
    options = {"calibrations": (calibration,) if calibration else ()}
    _answer(workspace, "known-parents", {**given, "calibration": None}, options)


@evaluate.command()
@click.argument("subsets", type=_ids)
@click.argument("losses", type=_ids)
@_criterion
def counterfactual(workspace: Any, subsets: Path, losses: Path, **given: Any) -> None:
    """Whether credit follows what models lose that you have trained again without some of the images.

    SUBSETS has the columns model and training (an image that the model was trained on), or left_out, or left_out_owner;
    LOSSES has model, generated and loss, less being better, each as often as there were seeds. Parquet or CSV.
    """
    calibration = given.pop("calibration")
    options = {"subsets": subsets, "losses": losses, "calibrations": (calibration,) if calibration else ()}
    _answer(workspace, "counterfactual", {**given, "calibration": None}, options)


@click.command("import-scores")
@click.argument("file", type=_ids)
@click.option("--into", type=click.Path(path_type=Path), required=True, help="The workspace to make.")
@click.option("--method", default="external", show_default=True, help="A name for what made the scores.")
@click.option(
    "--batch", default="default", show_default=True, help="A name for this set of generated images."
)
@click.option(
    "--score-type",
    type=click.Choice(["share", "similarity", "distance"]),
    default="share",
    show_default=True,
    help="Credit in proportion to them, a softmax of them, or of minus them.",
)
@click.option(
    "--top-k",
    type=click.IntRange(1, 10_000),
    default=1000,
    show_default=True,
    help="Best-scored training images kept for a generated one.",
)
@json_option
@with_workspace
def import_scores(workspace: Any, file: Path, into: Path, as_json: bool, **options: Any) -> None:
    """Scores of another attribution method, in a workspace of their own, to credit and evaluate beside ours.

    FILE is Parquet with the columns generated, training and score; the first two name images of this workspace.
    """
    made = workspace.import_scores(file, into, **options)
    if as_json:
        print_json(made)
        return
    note(
        f"workspace {made['workspace']}: {made['matches']:,} scores of {made['generated_images']:,} generated images"
    )
    note(f"next: gmv-qdrant -w {into} credits --by owner")


@click.command()
@click.option("--name", default="default", show_default=True, help="What --calibration will call it.")
@click.option("--probes", type=click.IntRange(min=1), default=500, show_default=True, help="How many.")
@click.option("--seed", default=0, show_default=True, help="Of the choice of probes.")
@click.option(
    "-k", type=click.IntRange(min=1), default=30, show_default=True, help="Contributors, for the figures."
)
@click.option(
    "--null",
    "null_distance",
    is_flag=True,
    help="Also fit credit for nobody, where an image resembles no training image.",
)
@run_options
@with_workspace
def calibrate(workspace: Any, as_json: bool, **options: Any) -> None:
    """Fit a value function that answers "of whom is this nearly a copy?".

    It is fitted on probes: training images, transformed, whose parents are known.
    """
    figures = workspace.calibrate(**options)
    if as_json:
        print_json(figures)
        return
    rows = [
        {"": name.replace("_", " "), "paper (T = 1)": figures["before"][name], "calibrated": value}
        for name, value in figures["after"].items()
    ]
    title = f"{figures['probes']} probes: temperature {figures['temperature']:.4g}"
    print_rows(rows, list(rows[0]), title=title)
    note(f"use it: gmv-qdrant credits --by owner --calibration {options['name']}")


@click.command()
@click.argument("paths", nargs=-1)
@click.option("--encoder", "encoders", multiple=True, help="Also try this one; several times.")
@click.option("--distance", "distances", multiple=True, help="Also try this one; several times.")
@click.option(
    "--sample", type=click.IntRange(min=40), default=1000, show_default=True, help="Images to try on."
)
@click.option("--probes", type=click.IntRange(min=10), default=300, show_default=True, help="How many.")
@click.option("--seed", default=0, show_default=True, help="Of the choice of probes.")
@answer_options
@with_workspace
def advise(workspace: Any, paths: tuple[str, ...], form: str, **options: Any) -> None:
    """Which encoder and distance fit these images, the best first; before a million of them are taken in.

    PATHS are images to try on; without any, this workspace's training images. Each pair is tried with and without a
    thumbnail, on probes: training images, transformed, whose parents are known.
    """
    relation = workspace.advise(paths, **options)
    show(relation, form, title="advice")
    if form == "table":
        encoder, distance = relation.project("encoder, distance").fetchone()
        note(f"fits best: gmv-qdrant init NEW --encoder '{encoder}' --distance '{distance}'")


COMMANDS = (calibrate, advise, evaluate, import_scores)
