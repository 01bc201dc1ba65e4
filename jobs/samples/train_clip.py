"""Train the catalogue CLIP on the pictures and texts of one or more catalogues, and write a checkpoint folder.

The folder is in open_clip's own layout: name it as ``basis.weights`` of a deployment. Nothing is written until the
training and the measurement have ended; an older checkpoint of that name stays until then.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jobs.config.window import ConfigError
from jobs.landing.catalogue import CatalogueError, PicturedItems, picture_folder, pictured_items, read_catalogue
from jobs.runtime.entry import run_job
from jobs.runtime.progress import say
from lte_models.clip.model import (
    TokenTable,
    build_model,
    checkpoint_digest,
    load_clip_weights,
    open_tokenizer,
    read_config,
    resize_pictures,
    write_checkpoint,
)
from lte_models.clip.train import (
    RECALL_AT,
    ClipTrainConfig,
    ClipTrainError,
    Pairs,
    encode_pairs,
    image_to_text_recall,
    is_held_out,
    train_clip,
)

MAX_MEASURED = 2000
HELD_OUT_SHARE = 0.1
MAX_THREADS = 1024


@dataclass(frozen=True)
class Catalogue:
    """A catalogue ready to train on.

    Attributes:
        name: File or folder name.
        digest: SHA-256 over item ids, texts and resized pictures.
        pixels: uint8 [N, 3, H, W].
        tokens: long [N, L], ids of open_clip's own table.
        texts: N texts.
        held_out: bool [N].
    """

    name: str
    digest: str
    pixels: Tensor
    tokens: Tensor
    texts: list[str]
    held_out: Tensor


def load_catalogue(path: Path, open_config: dict[str, Any], seed: int) -> Catalogue:
    """Read, decode, resize and tokenise a catalogue, and split it 90 to 10 by a hash of each item id.

    Raises:
        CatalogueError: See :mod:`jobs.landing.catalogue`. Also if the hash holds out no item, so that nothing could be
            measured after the training.
    """
    # Each picture is resized as soon as it is decoded: a catalogue of photos does not fit into memory at full size.
    items = pictured_items(
        read_catalogue(path), picture_folder(path), lambda picture: resize_pictures([picture], open_config)[0]
    )
    held_out = is_held_out(items.item_ids, HELD_OUT_SHARE, seed)
    if not held_out.any():
        raise CatalogueError(
            f"catalogue {path}: with --seed {seed} none of its {len(held_out)} items with a picture is held out to "
            f"measure recall (each has a chance of {HELD_OUT_SHARE}, by a hash of its id): more items or another --seed"
        )
    pixels = np.stack(items.pictures)  # [N, 3, H, W]
    tokens = open_tokenizer(open_config["model_cfg"]["text_cfg"]["context_length"])(items.texts)
    return Catalogue(
        name=path.name,
        digest=_content_digest(items, pixels),
        pixels=torch.from_numpy(pixels),
        tokens=tokens,
        texts=items.texts,
        held_out=torch.from_numpy(held_out),
    )


def _content_digest(items: PicturedItems[Any], pixels: np.ndarray[Any, Any]) -> str:
    digest = hashlib.sha256(json.dumps([items.item_ids, items.texts]).encode())
    digest.update(pixels.tobytes())
    return digest.hexdigest()


def training_pairs(catalogues: Sequence[Catalogue], table: TokenTable) -> Pairs:
    """The training pairs of all catalogues, one after the other."""
    pixels = torch.cat([cat.pixels[~cat.held_out] for cat in catalogues])
    return Pairs(pixels, table.remap(torch.cat([cat.tokens[~cat.held_out] for cat in catalogues])))


def token_table(catalogues: Sequence[Catalogue], original_size: int) -> TokenTable:
    """Keep the word pieces of the training texts; pieces of only held-out texts are unknown, as in real life."""
    return TokenTable.of_tokens(torch.cat([cat.tokens[~cat.held_out] for cat in catalogues]), original_size)


def measure(model: nn.Module, catalogue: Catalogue, table: TokenTable, open_config: dict[str, Any]) -> dict[str, Any]:
    """Image-to-text recall among at most 2,000 held-out pairs, beside chance.

    ``recall_new_at_…`` counts only pairs whose text and whose exact picture no trained item has; None if there is no
    such pair.
    """
    rows = torch.nonzero(catalogue.held_out).flatten()[:MAX_MEASURED]
    pairs = Pairs(catalogue.pixels[rows], table.remap(catalogue.tokens[rows]))
    text_ids = torch.from_numpy(np.unique([catalogue.texts[row] for row in rows], return_inverse=True)[1])
    images, texts = encode_pairs(model, pairs, open_config)
    recall = image_to_text_recall(images, texts, text_ids)
    is_new = never_trained(catalogue, rows)
    recall_new = image_to_text_recall(images, texts, text_ids, is_new)
    return {
        "catalogue": catalogue.name,
        "digest": catalogue.digest,
        "items": len(catalogue.texts),
        "trained": int((~catalogue.held_out).sum()),
        "measured": len(rows),
        "different_texts": int(text_ids.max()) + 1,
        **{f"recall_at_{k}": round(value, 4) for k, value in recall.items()},
        **{f"chance_at_{k}": min(1.0, k / len(rows)) for k in recall},
        "measured_new": int(is_new.sum()),
        **{f"recall_new_at_{k}": round(value, 4) if is_new.any() else None for k, value in recall_new.items()},
    }


def never_trained(catalogue: Catalogue, rows: Tensor) -> Tensor:
    """Which of the ``rows`` share neither text nor pixels with a trained item: bool [len(rows)]."""
    trained = torch.nonzero(~catalogue.held_out).flatten().tolist()
    texts = {catalogue.texts[row] for row in trained}
    pictures = {catalogue.pixels[row].numpy().tobytes() for row in trained}
    return torch.tensor(
        [
            catalogue.texts[row] not in texts and catalogue.pixels[row].numpy().tobytes() not in pictures
            for row in rows.tolist()
        ]
    )


def train_checkpoint(
    catalogues: Sequence[Catalogue], open_config: dict[str, Any], config: ClipTrainConfig, folder: Path
) -> dict[str, Any]:
    """Train, write the checkpoint's files into an existing folder, and measure the model as it reads back from there.

    Returns:
        Settings, data, recall and digest, as shipped in ``training.json``.
    """
    table = token_table(catalogues, open_tokenizer(8).vocab_size)
    torch.manual_seed(config.seed)
    model = build_model(open_config, table.size)
    train_clip(model, training_pairs(catalogues, table), open_config=open_config, config=config, say=_report)
    write_checkpoint(folder, model, table, open_config)
    shipped = load_clip_weights(folder)
    return {
        "settings": asdict(config),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": table.size,
        "digest": checkpoint_digest(folder),
        "catalogues": [measure(shipped, catalogue, table, open_config) for catalogue in catalogues],
    }


def _report(text: str) -> None:
    say("train-clip", f"{text}, {_cpu_minutes():.1f} CPU minutes")


def _cpu_minutes() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return (usage.ru_utime + usage.ru_stime) / 60


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="train_clip", description=__doc__)
    parser.add_argument(
        "--catalogue", type=Path, action="append", required=True, help="file or folder; may be repeated"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--model-config", type=Path, help="open_clip config file; default: ours")
    parser.add_argument("--threads", type=int, default=2, help="torch threads; another number may give another digest")
    for setting in fields(ClipTrainConfig):
        if setting.name != "bfloat16":
            kind = type(setting.default)
            parser.add_argument(f"--{setting.name.replace('_', '-')}", type=kind, default=setting.default)
    parser.add_argument(
        "--note", action="append", default=[], help="line for the model card: licence, terms of the data"
    )
    parser.add_argument("--bfloat16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", action="store_true", help="as with every command; the answer is JSON anyway")
    return parser


def _settings(args: argparse.Namespace) -> ClipTrainConfig:
    for flag, value, low, high in (("threads", args.threads, 1, MAX_THREADS), ("seed", args.seed, 0, 2**63 - 2)):
        if not low <= value <= high:
            raise ConfigError(f"--{flag} {value}: expected a number from {low:,} to {high:,}")
    try:
        return ClipTrainConfig(**{setting.name: getattr(args, setting.name) for setting in fields(ClipTrainConfig)})
    except ClipTrainError as error:
        raise ConfigError(f"train-clip: {error}") from error


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train and put the finished checkpoint in its place.

    Returns:
        What ``training.json`` holds.

    Raises:
        CatalogueError: A catalogue cannot be used.
        jobs.config.window.ConfigError: A setting is impossible.
        ClipTrainError: Fewer than two pairs, or the training diverged.
    """
    config = _settings(args)
    torch.set_num_threads(args.threads)
    open_config = read_config(args.model_config)
    catalogues = [load_catalogue(path, open_config, config.seed) for path in args.catalogue]
    unfinished = args.out.with_name(f".{args.out.name}.{os.getpid()}")
    unfinished.mkdir(parents=True)
    try:
        result = train_checkpoint(catalogues, open_config, config, unfinished)
        result |= {"command": args.command, "notes": args.note}
        result["cpu_minutes"] = round(_cpu_minutes(), 1)
        (unfinished / "training.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        (unfinished / "README.md").write_text(model_card(result), encoding="utf-8")
        _put_in_place(unfinished, args.out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return result


def model_card(result: dict[str, Any]) -> str:
    """The model card, from what was measured."""
    filled = result | {
        "rows": "\n".join(_card_row(measured) for measured in result["catalogues"]),
        "notes": "\n".join(f"- {note}" for note in result["notes"]),
    }
    return _CARD.format(**filled)


def _card_row(measured: dict[str, Any]) -> str:
    name, digest = measured["catalogue"], measured["digest"][:16]
    counts = f"{measured['items']:,} | {measured['trained']:,}"
    held_out = f"{measured['measured']:,} ({measured['different_texts']:,})"
    recalls = [f"{measured[f'recall_at_{k}']:.3f} ({measured[f'chance_at_{k}']:.4f})" for k in RECALL_AT]
    recalls_new = [f"{measured[f'recall_new_at_{k}']:.3f}" for k in RECALL_AT if measured["measured_new"]]
    new = f"{measured['measured_new']:,}" + ": " * bool(recalls_new) + ", ".join(recalls_new)
    return f"| {name} | {counts} | {held_out} | {' | '.join(recalls)} | {new} | `{digest}` |"


_CARD = """# Catalogue CLIP

A small CLIP (open_clip's own model, tokenizer, transforms and loss) trained from scratch on product pictures and texts.
{parameters:,} parameters, D = 512, {tokens:,} of the tokenizer's 49,408 tokens; weights in half precision.

| catalogue | items | trained | held out (text) | R@1 (chance) | R@5 (chance) | R@10 (chance) | new: R@1, 5, 10 | data |
|---|---|---|---|---|---|---|---|---|
{rows}

Recall is image to text among held-out pairs: a picture counts if its own text is among the k nearest. Items with the
same text tie; such a picture counts with the probability that a random order puts its own text in the first k. Items
are held out by a hash of their id; another colour or size of the same model may have been trained on. "New" are those
of them of which no trained item has the text or, to the pixel, the picture.

- Command: `{command}`
- Time: {cpu_minutes} CPU minutes on {threads} threads, reading and measuring included
- Digest (config, weights, token table): `{digest}`
- Same seed, torch version ({torch}), kind of CPU and number of threads: same digest
{notes}

Files: `open_clip_config.json` and `open_clip_model.safetensors` in open_clip's `local-dir:` layout, `token_ids.json`
(new id of each kept token: 0 padding, 1 any other token, then the kept ids in order, start and end of text).
It knows the products and words that it was trained on, and nothing else.
"""


def _put_in_place(finished: Path, target: Path) -> None:
    """Rename the finished folder into place; an older checkpoint is deleted as a whole."""
    older = finished.with_name(f"{finished.name}.older")
    if target.exists():
        target.rename(older)
    finished.rename(target)
    shutil.rmtree(older, ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Train a catalogue CLIP; prints its recall and digest."""
    args = _parser().parse_args(argv)
    args.command = shlex.join(["lte", "train-clip", *(sys.argv[1:] if argv is None else argv)])
    print(json.dumps(run(args), indent=2))


if __name__ == "__main__":
    run_job(main)
