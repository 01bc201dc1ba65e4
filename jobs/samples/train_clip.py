"""Train the catalogue CLIP on the pictures and texts of one or more catalogues, and write a checkpoint folder.

The folder has open_clip's own layout; ``basis.weights`` of a deployment can name the folder. Nothing is written before
the training and the measurement have ended. Until then, an older checkpoint of the same name stays.
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
    in_test_set,
    train_clip,
)

MAX_MEASURED = 2000
TEST_SHARE = 0.1
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
        is_test: bool [N], True for pairs that are measured and never trained on.
    """

    name: str
    digest: str
    pixels: Tensor
    tokens: Tensor
    texts: list[str]
    is_test: Tensor


def load_catalogue(path: Path, open_config: dict[str, Any], seed: int) -> Catalogue:
    """Read, decode, resize and tokenise a catalogue, and split it 90 to 10 by a hash of each item id.

    Raises:
        CatalogueError: See :mod:`jobs.landing.catalogue`. Also if the hash makes no item a test item: then nothing
            could be measured after the training.
    """
    # Each picture is resized as soon as it is decoded: a catalogue of photos does not fit into memory at full size.
    items = pictured_items(
        read_catalogue(path), picture_folder(path), lambda picture: resize_pictures([picture], open_config)[0]
    )
    is_test = in_test_set(items.item_ids, TEST_SHARE, seed)
    if not is_test.any():
        raise CatalogueError(
            f"catalogue {path}: expected at least 1 test item to measure recall on, got 0 of {len(is_test)} items with "
            f"a picture (a hash of --seed {seed} and the item id takes a share of {TEST_SHARE}): give more items or "
            "another --seed"
        )
    pixels = np.stack(items.pictures)  # [N, 3, H, W]
    tokens = open_tokenizer(open_config["model_cfg"]["text_cfg"]["context_length"])(items.texts)
    return Catalogue(
        name=path.name,
        digest=_content_digest(items, pixels),
        pixels=torch.from_numpy(pixels),
        tokens=tokens,
        texts=items.texts,
        is_test=torch.from_numpy(is_test),
    )


def _content_digest(items: PicturedItems[Any], pixels: np.ndarray[Any, Any]) -> str:
    digest = hashlib.sha256(json.dumps([items.item_ids, items.texts]).encode())
    digest.update(pixels.tobytes())
    return digest.hexdigest()


def training_pairs(catalogues: Sequence[Catalogue], table: TokenTable) -> Pairs:
    """The training pairs of all catalogues, one after the other."""
    pixels = torch.cat([cat.pixels[~cat.is_test] for cat in catalogues])
    return Pairs(pixels, table.remap(torch.cat([cat.tokens[~cat.is_test] for cat in catalogues])))


def token_table(catalogues: Sequence[Catalogue], original_size: int) -> TokenTable:
    """Keep the word pieces of the training texts. Pieces of test texts alone are unknown, as in production."""
    return TokenTable.of_tokens(torch.cat([cat.tokens[~cat.is_test] for cat in catalogues]), original_size)


def measure(model: nn.Module, catalogue: Catalogue, table: TokenTable, open_config: dict[str, Any]) -> dict[str, Any]:
    """Image-to-text recall among at most 2,000 test pairs, beside chance.

    ``recall_new_at_…`` counts only pairs whose text and whose exact picture no trained item has; None if there is no
    such pair.
    """
    rows = torch.nonzero(catalogue.is_test).flatten()[:MAX_MEASURED]
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
        "trained": int((~catalogue.is_test).sum()),
        "measured": len(rows),
        "different_texts": int(text_ids.max()) + 1,
        **{f"recall_at_{k}": round(value, 4) for k, value in recall.items()},
        **{f"chance_at_{k}": min(1.0, k / len(rows)) for k in recall},
        "measured_new": int(is_new.sum()),
        **{f"recall_new_at_{k}": round(value, 4) if is_new.any() else None for k, value in recall_new.items()},
    }


def never_trained(catalogue: Catalogue, rows: Tensor) -> Tensor:
    """Which of the ``rows`` share neither text nor pixels with a trained item: bool [len(rows)]."""
    trained = torch.nonzero(~catalogue.is_test).flatten().tolist()
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
    """Train, write the checkpoint's files into an existing folder, read the files back, and measure that model.

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
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument(
        "--model-config",
        type=Path,
        help="configuration file of open_clip; default: the configuration of the shipped model",
    )
    parser.add_argument(
        "--threads", type=int, default=2, help="threads of torch; another number may give another digest"
    )
    for setting in fields(ClipTrainConfig):
        if setting.name != "bfloat16":
            kind = type(setting.default)
            parser.add_argument(f"--{setting.name.replace('_', '-')}", type=kind, default=setting.default)
    parser.add_argument(
        "--note",
        action="append",
        default=[],
        help="line for the model card, such as the licence of the data; may be repeated",
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
    """Train, then move the finished checkpoint to ``--out``.

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
    """The model card with the measured values."""
    filled = result | {
        "rows": "\n".join(_card_row(measured) for measured in result["catalogues"]),
        "notes": "\n".join(f"- {note}" for note in result["notes"]),
    }
    return _CARD.format(**filled)


def _card_row(measured: dict[str, Any]) -> str:
    name, digest = measured["catalogue"], measured["digest"][:16]
    counts = f"{measured['items']:,} | {measured['trained']:,}"
    test = f"{measured['measured']:,} ({measured['different_texts']:,})"
    recalls = [f"{measured[f'recall_at_{k}']:.3f} ({measured[f'chance_at_{k}']:.4f})" for k in RECALL_AT]
    recalls_new = [f"{measured[f'recall_new_at_{k}']:.3f}" for k in RECALL_AT if measured["measured_new"]]
    new = f"{measured['measured_new']:,}" + ": " * bool(recalls_new) + ", ".join(recalls_new)
    return f"| {name} | {counts} | {test} | {' | '.join(recalls)} | {new} | `{digest}` |"


_CARD = """# Catalogue CLIP

A small CLIP (open_clip's own model, tokenizer, transforms and loss) trained from scratch on product pictures and texts.
{parameters:,} parameters, D = 512, {tokens:,} of the tokenizer's 49,408 tokens; weights in half precision.

| catalogue | items | trained | tested (texts) | R@1 (chance) | R@5 (chance) | R@10 (chance) | new: R@1, 5, 10 | data |
|---|---|---|---|---|---|---|---|---|
{rows}

Recall is image to text among test pairs: a picture counts if its own text is among the k nearest. Items with the same
text tie. Such a picture counts with the probability that a random order puts its own text in the first k. A hash of the
item id decides which items are test items. Another colour or size of the same product may have been trained on. A test
pair is "new" if no trained item has the same text, and no trained item has exactly the same pixels.

- Command: `{command}`
- Time: {cpu_minutes} CPU minutes on {threads} threads, including reading and measuring
- Digest (config, weights, token table): `{digest}`
- Same seed, torch version ({torch}), kind of CPU and number of threads: same digest
{notes}

Files: `open_clip_config.json` and `open_clip_model.safetensors` in open_clip's `local-dir:` layout, `token_ids.json`
(new id of each kept token: 0 padding, 1 any other token, then the kept ids in order, start and end of text).
The model knows only the products and words that it was trained on.
"""


def _put_in_place(finished: Path, target: Path) -> None:
    """Rename the finished folder to its place; an older checkpoint is deleted as a whole."""
    older = finished.with_name(f"{finished.name}.older")
    if target.exists():
        target.rename(older)
    finished.rename(target)
    shutil.rmtree(older, ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Train a catalogue CLIP; print its recall and digest."""
    args = _parser().parse_args(argv)
    args.command = shlex.join(["lte", "train-clip", *(sys.argv[1:] if argv is None else argv)])
    print(json.dumps(run(args), indent=2))


if __name__ == "__main__":
    run_job(main)
