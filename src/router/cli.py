"""The command line of the router: models of candidates and of prompts."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated

import typer
from rich.table import Table

from router.cli_eval import calibrate, evaluate_pairs, train
from router.cli_output import errors, stdout
from router.cli_quantize import quantize
from router.cli_route import route
from router.model_file import BUNDLED_MODEL, load_any_model
from router.prompt_model import PromptModel

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Models of the router.")


@app.callback()
def _main() -> None:
    """Models of the router."""


@app.command()
def inspect(
    model: Annotated[
        Path, typer.Argument(help="A model file; the bundled one of candidates by default.")
    ] = BUNDLED_MODEL,
) -> None:
    """Say what a model file holds and where it comes from; an unusable file is refused with its reason."""
    with errors():
        loaded = load_any_model(model)
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(overflow="fold")  # a digest that is cut is none
    table.add_row("network", repr(loaded.network))
    table.add_row("parameters", str(loaded.network.config.parameter_count))
    table.add_row("bytes", str(model.stat().st_size))
    if isinstance(loaded, PromptModel):
        source = loaded.rounded_from
        if source is not None:
            made = f"made from {source.name} ({source.size_bytes} bytes, SHA-256 {source.sha256})"
            table.add_row("weights", f"INT8, {made}")
        known = loaded.calibration
        table.add_row("heads", ", ".join(loaded.heads))
        table.add_row("embedder", f"{loaded.embedder}, {loaded.chunk_count} chunks of {loaded.dimension} dimensions")
        table.add_row("calibration", "none" if known is None else f"{len(known.need)} prompts held out")
    else:
        table.add_row("calibration", repr(loaded.calibration))
        known_features = "none" if loaded.reference is None else f"{loaded.reference.shape[1]} quantiles of each"
        table.add_row("training features", known_features)
    if loaded.provenance is not None:
        origin = loaded.provenance
        table.add_row("trained on", f"{origin.training_data} (SHA-256 {origin.training_data_sha256})")
        table.add_row("seed", str(origin.seed))
        table.add_row("with", f"eventcore {origin.library_version}, numpy {origin.numpy_version}")
        for name, value in origin.metrics.items():
            table.add_row(name, f"{value:.4g}")
    stdout.print(table)


app.command()(train)
app.command()(calibrate)
app.command("eval")(evaluate_pairs)
app.command()(route)
app.command()(quantize)
