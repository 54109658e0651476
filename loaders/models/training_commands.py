"""`pgearth train encoder` and `pgearth train hash`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pgearth.loaders.archive.options import filter_options, parse_filters
from pgearth.loaders.models import train_encoder, train_hash
from pgearth.loaders.models.train_hash import METHODS, RESULTS
from pgearth.loaders.models.versions import version_name
from pgearth.loaders.option_types import LEVEL, Names, Number
from pgearth.pyfuncs.models import spectral


@click.command("encoder")
@click.argument("name")
@click.option(
    "--architecture",
    type=click.Choice(["resnet18", "resnet50"]),
    default="resnet18",
    show_default=True,
    help="Kind of network.",
)
@click.option(
    "--width",
    type=click.IntRange(1, 128),
    default=64,
    show_default=True,
    help="Channels of the first stage; vectors have 8 times as many dimensions, of resnet50 32 times.",
)
@click.option(
    "--bands",
    type=Names(),
    default=",".join(spectral.BANDS),
    show_default=True,
    help="Bands, comma-separated, in this order.",
)
@click.option("--scheme", default="ben19", show_default=True, help="Nomenclature of the labels that are learned.")
@click.option("--level", type=LEVEL, help="Level of the nomenclature; default: its deepest.")
@click.option(
    "--validation-fraction",
    type=Number(0, 1, min_open=True, max_open=True),
    help="Validate on this share of the places, at random, instead of on the split validation.",
)
@click.option("--epochs", type=click.IntRange(min=1), default=30, show_default=True, help="Epochs at most.")
@click.option(
    "--patience",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="End after so many epochs that have not raised the validation mAP.",
)
@click.option("--batch-size", type=click.IntRange(min=2), default=64, show_default=True, help="Patches per step.")
@click.option(
    "--learning-rate",
    type=Number(0, min_open=True),
    default=1e-3,
    show_default=True,
    help="Greatest learning rate.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of all that is random.")
@click.option("--workers", type=click.IntRange(min=0), default=1, show_default=True, help="Processes that read.")
@click.option(
    "--checkpoint",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of a state from which the same command goes on after an interruption; without it, it begins anew.",
)
@filter_options
def encoder(
    name: str,
    architecture: str,
    width: int,
    bands: list[str],
    scheme: str,
    level: int | None,
    validation_fraction: float | None,
    epochs: int,
    patience: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    workers: int,
    checkpoint: Path | None,
    **filters: Any,
) -> None:
    """Train a network on labelled patches and store it as the next version of the encoder NAME.

    It learns from the patches of the split train that pass the filters, and is kept as it was when it did best on those
    of the split validation. It is stored when it is done, or not at all; then: pgearth encode --encoder NAME
    """
    from pgearth.pyfuncs.training.classifier import Settings

    order = train_encoder.Order(
        Settings(architecture, width, epochs, batch_size, learning_rate, patience, seed),
        bands,
        scheme,
        level,
        parse_filters(filters),
        validation_fraction,
    )
    stored = train_encoder.train_encoder(name, order, workers, checkpoint)
    click.echo(
        f"Encoder {stored.name}:{stored.version}: {stored.architecture}, {len(stored.bands)} bands,"
        f" {stored.dimension} dimensions. To use it: pgearth encode --encoder {stored.name}:{stored.version}"
    )


@click.command(name="hash")
@click.argument("name")
@click.option("--method", type=click.Choice(list(METHODS)), default="milan", show_default=True)
@click.option("--encoder", help="Encoder, NAME or NAME:VERSION, whose vectors it hashes; default: the current one.")
@click.option(
    "--bits", type=click.IntRange(min=8, max=512), help="Length of the codes; default: 128, sign: a bit per feature."
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**31 - 1),
    default=0,
    show_default=True,
    help="The same seed and data give the same codes.",
)
@click.option("--scheme", default="ben19", show_default=True, help="Nomenclature whose labels say what is alike.")
@click.option("--level", type=LEVEL, help="Level of the nomenclature; default: its deepest.")
@click.option(
    "--validation-fraction",
    type=Number(0, 1, min_open=True, max_open=True),
    help="Validate on this share of the places instead of on the split validation.",
)
@click.option("--steps", type=click.IntRange(min=1), help="milan: batches to train with at most; default: 10,000.")
@click.option("--patience", type=click.IntRange(min=1), help="milan: end after so many evaluations without a rise.")
@click.option("--learning-rate", type=Number(min=0, min_open=True), help="milan: default 0.0001.")
@click.option(
    "--balance",
    type=click.Choice(["bit", "sample"]),
    help="milan: balance each bit over the batch, or each sample over its bits.",
)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path, file_okay=False),
    help="milan: folder for the state of the training: run again, it goes on from there.",
)
@filter_options
def hash_function(
    name: str,
    method: str,
    encoder: str | None,
    bits: int | None,
    seed: int,
    scheme: str,
    level: int | None,
    validation_fraction: float | None,
    checkpoint: Path | None,
    **options: Any,
) -> None:
    """Train a hash function on an encoder's vectors; it becomes the next version of NAME.

    It learns from the patches of the split train that pass the filters, and is measured on those of the split
    validation. milan and kslsh learn from labels, too: patches are alike that share one.
    """
    milan_options = {option: options.pop(option) for option in ("steps", "patience", "learning_rate", "balance")}
    given = {option: value for option, value in milan_options.items() if value is not None}
    if method != "milan" and (given or checkpoint):
        raise click.UsageError(
            "--steps, --patience, --learning-rate, --balance and --checkpoint are of --method milan."
        )
    order = train_hash.Order(
        method, encoder, bits, seed, scheme, level, parse_filters(options), validation_fraction, given
    )
    hashing, record = train_hash.train_hash(name, order, checkpoint)
    data, metrics = record["data"], record["metrics"]
    stored = version_name(hashing)
    left_out = [
        f"{data[f'without_{what}']:,} without {what}" for what in ("vectors", "labels") if data[f"without_{what}"]
    ]
    click.echo(
        f"{stored}, {hashing.bits} bits of {record['encoder']}, was trained on {data['training']:,} patches. On"
        f" {data['validation']:,} others: {metrics['distinct_codes']:,} distinct codes"
        + (f", mAP@{RESULTS} {metrics['map']:.3f}, nDCG@{RESULTS} {metrics['ndcg']:.3f}" if "map" in metrics else "")
        + (f". Left out: {', '.join(left_out)}" if left_out else "")
        + f".\nTo encode the archive with it: pgearth encode --encoder {stored}"
    )
