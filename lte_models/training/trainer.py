"""One training loop for all models: deterministic, resumable after a kill, stopped early on a validation slice."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lte_models.files import replacing
from lte_models.training.optimizer import BETAS, AdamW


class CheckpointError(RuntimeError):
    """A checkpoint of an unfinished training that is damaged or belongs to another training."""


BatchT = TypeVar("BatchT")
STATE = "training.safetensors"
SAY_SECONDS = 20.0


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast to train.

    Attributes:
        epochs: At most.
        learning_rate: Of AdamW; :attr:`Task.rate` may lower it.
        weight_decay: Decoupled, of AdamW.
        betas: Of AdamW.
        patience: Epochs without a better validation value before training stops.
        clip_norm: Largest gradient norm; infinite for no limit.
        checkpoint_every: Steps between checkpoints; one is also written after each epoch but the last.
        seed: Of dropout and negatives.
        judge_start: Whether the weights that training starts from are judged, too: a warm start is kept where no epoch
            makes it better.
    """

    epochs: int = 10
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    betas: tuple[float, float] = BETAS
    patience: int = 2
    clip_norm: float = 1.0
    checkpoint_every: int = 1000
    seed: int = 0
    judge_start: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "patience", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"TrainConfig.{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"TrainConfig.learning_rate: expected a positive number, got {self.learning_rate}")


@dataclass(frozen=True)
class Task(Generic[BatchT]):
    """A model to train, with its data.

    Attributes:
        model: Parameters to train; its buffers must be set and stay as they are.
        loss: Batch and generator of negatives to a scalar.
        batches: Epoch to its batches, the same ones each time they are asked for.
        validate: Value on the validation slice; larger is better. The model is in eval mode, without gradients. None
            keeps the weights of the last epoch.
        fingerprint: Names configuration and data; a checkpoint with another fingerprint is refused.
        say: Called with the progress after each epoch, and sometimes within an epoch.
        rate: Where training stands to the share of the learning rate that the next step takes.
        undecayed: Names of the parameters that weight decay leaves alone.
    """

    model: nn.Module
    loss: Callable[[BatchT, torch.Generator], Tensor]
    batches: Callable[[int], Iterable[BatchT]]
    validate: Callable[[], float] | None
    fingerprint: str
    say: Callable[[str], None] = lambda _: None
    rate: Callable[[Progress], float] = lambda _: 1.0
    undecayed: Collection[str] = ()


@dataclass
class Progress:
    """Progress of a training; plain JSON values.

    Attributes:
        epoch: Current epoch.
        step: Batches done in it.
        total_steps: Batches done in all epochs.
        best: Best validation value.
        best_epoch: Epoch of the best value; -1 for what training started from.
        loss_sum: Sum of this epoch's losses.
        curve: One entry per epoch: ``loss``, the mean training loss, and ``validation``, the value after the epoch.
        seconds: Spent in steps, validation left out.
    """

    epoch: int = 0
    step: int = 0
    total_steps: int = 0
    best: float = -1e300
    best_epoch: int = -1
    loss_sum: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)
    seconds: float = field(default=0.0, compare=False)


@contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """Seed torch and ask for deterministic kernels; both are put back afterwards.

    Args:
        seed: Of the global generators (dropout).

    Yields:
        Nothing.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats its sums only with a fixed workspace
    before = torch.get_deterministic_debug_mode()
    switches: Any = torch.utils.deterministic  # replaces itself by an object whose attributes no stub names
    fills = switches.fill_uninitialized_memory
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.set_deterministic_debug_mode("warn")  # the same as use_deterministic_algorithms, which loads the compiler
        # Filling each new tensor finds reads of unwritten memory; results repeat without it, and it costs time.
        switches.fill_uninitialized_memory = False
        try:
            yield
        finally:
            switches.fill_uninitialized_memory = fills
            torch.set_deterministic_debug_mode(before)


def best_device() -> torch.device:
    """Return CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def leave_a_core_free() -> int:
    """Let torch use all cores but one, unless ``OMP_NUM_THREADS`` says how many.

    The threads wait for each other many times per step in busy loops. If another process runs, as many threads as cores
    are slower than one thread (measured on two cores: three times).

    Returns:
        Threads in use.
    """
    if not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(max(1, (os.cpu_count() or 1) - 1))
    return torch.get_num_threads()


def autocast(device: torch.device) -> torch.autocast:
    """Mixed precision where the hardware gains from it: bfloat16 on CUDA that has it, nothing elsewhere.

    Args:
        device: Where the model is.

    Returns:
        A context manager.
    """
    gains = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=gains)


class Trainer(Generic[BatchT]):
    """Runs a task to its end, from its last checkpoint where there is one."""

    def __init__(self, task: Task[BatchT], config: TrainConfig, folder: Path | None) -> None:
        """Prepare.

        Args:
            task: What to train.
            config: How.
            folder: Holds the checkpoint of an unfinished training; None keeps no checkpoint.
        """
        self.task, self.config = task, config
        self.path = folder / STATE if folder else None
        self.device = next(task.model.parameters()).device
        parameters = {name: each for name, each in task.model.named_parameters() if each.requires_grad}
        self.optimizer = AdamW(
            list(parameters.values()),
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            betas=config.betas,
            decayed=[name not in task.undecayed for name in parameters],
        )
        self.rng = torch.Generator().manual_seed(config.seed)
        self.progress = Progress()
        self.best = _copy(_trained(task.model))

    def run(self) -> Progress:
        """Train; afterwards the model holds its best weights, in eval mode, and the checkpoint is gone.

        Returns:
            The progress at the end, with the curve.

        Raises:
            CheckpointError: A checkpoint is truncated or belongs to another training.
            FloatingPointError: The loss or the validation value is not finite.
            ValueError: An epoch holds no batch.
        """
        with deterministic(self.config.seed):
            if self.path and self.path.exists():
                self._resume(self.path)
            elif self.config.judge_start:
                self.progress.best = self._value("before training")
            while not self._is_done():
                self._epoch()
        _load(self.task.model, self.best)
        self.task.model.eval()
        if self.path:
            self.path.unlink(missing_ok=True)
        return self.progress

    def _is_done(self) -> bool:
        return self.progress.epoch >= self.config.epochs or self._is_stale()

    def _is_stale(self) -> bool:
        return bool(self.progress.curve) and self.progress.epoch - 1 - self.progress.best_epoch >= self.config.patience

    def _epoch(self) -> None:
        progress = self.progress
        self.task.model.train()
        said = time.monotonic()
        for batch in islice(self.task.batches(progress.epoch), progress.step, None):
            started = time.monotonic()
            progress.loss_sum += self._step(batch)
            progress.step, progress.total_steps = progress.step + 1, progress.total_steps + 1
            progress.seconds += time.monotonic() - started
            if time.monotonic() - said > SAY_SECONDS:
                self._say("")
                said = time.monotonic()
            if progress.step % self.config.checkpoint_every == 0:
                self._save()
        if progress.step == 0:
            raise ValueError(f"epoch {progress.epoch} holds no batch: there is nothing to train on")
        self._say(self._judge())
        progress.epoch, progress.step, progress.loss_sum = progress.epoch + 1, 0, 0.0
        if not self._is_done():
            self._save()

    def _say(self, end: str) -> None:
        done = self.progress
        epoch = f"epoch {done.epoch + 1} of at most {self.config.epochs}"
        self.task.say(f"{epoch}: {done.step} steps, loss {done.loss_sum / done.step:.4f}{end}")

    def _step(self, batch: BatchT) -> float:
        self.optimizer.learning_rate = self.config.learning_rate * self.task.rate(self.progress)
        with autocast(self.device):
            loss = self.task.loss(batch, self.rng)
        value = float(loss.detach())
        if not -float("inf") < value < float("inf"):
            raise FloatingPointError(f"loss is {value} in epoch {self.progress.epoch}, step {self.progress.step}")
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.task.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        return value

    def _judge(self) -> str:
        """Close the epoch: keep its weights where they are the best so far; returns what the log line ends with."""
        progress, entry = self.progress, {"loss": self.progress.loss_sum / self.progress.step}
        progress.curve.append(entry)
        if self.task.validate is None:
            progress.best_epoch, self.best = progress.epoch, _copy(_trained(self.task.model))
            return ""
        entry["validation"] = value = self._value(f"after epoch {progress.epoch}")
        if value > progress.best:
            progress.best, progress.best_epoch = value, progress.epoch
            self.best = _copy(_trained(self.task.model))
        return f", validation value {value:.4f}, best {progress.best:.4f}"

    def _value(self, when: str) -> float:
        if self.task.validate is None:
            raise ValueError("judge_start: expected a task with validate, got None")
        self.task.model.eval()
        with torch.no_grad():
            value = self.task.validate()
        if not -float("inf") < value < float("inf"):
            raise FloatingPointError(f"validation value is {value} {when}")
        return value

    def _save(self) -> None:
        if self.path is None:
            return
        tensors = {f"model.{name}": tensor for name, tensor in _trained(self.task.model).items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        tensors |= {f"optimizer.{name}": tensor for name, tensor in self.optimizer.state().items()}
        tensors |= {"rng.torch": torch.get_rng_state(), "rng.negatives": self.rng.get_state()}
        if self.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state(self.device)
        # the position is in the same file: one replace makes both current
        metadata = {"fingerprint": self.task.fingerprint, "progress": json.dumps(asdict(self.progress))}
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        with replacing(self.path) as temporary:
            save_file(contiguous, temporary, metadata=metadata)  # straight to the disk: no copy of them all in memory

    def _resume(self, path: Path) -> None:
        metadata, tensors = _read_state(path)
        if metadata.get("fingerprint") != self.task.fingerprint:
            raise CheckpointError(f"{path}: of another training; delete it to start this one")
        self.progress = Progress(**json.loads(metadata["progress"]))
        _load(self.task.model, _under(tensors, "model."))
        self.best = {name: tensor.to(self.device) for name, tensor in _under(tensors, "best.").items()}
        self.optimizer.restore(_under(tensors, "optimizer."))
        torch.set_rng_state(tensors["rng.torch"])
        self.rng.set_state(tensors["rng.negatives"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["rng.cuda"], self.device)


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """The values that training changes. Buffers (for example a basis of all items) belong to the model's builder."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def shape_of(model: nn.Module) -> str:
    """Name and shape of everything that is trained: weights of another shape are another training's."""
    return " ".join(f"{name}{list(parameter.shape)}" for name, parameter in _trained(model).items())


def _load(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in _trained(model).items():
            parameter.copy_(tensors[name])


def _copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def discard_other(folder: Path, fingerprint: str) -> bool:
    """Delete the checkpoint of an unfinished training if its fingerprint differs or it is damaged.

    Args:
        folder: Folder of a :class:`Trainer`.
        fingerprint: Fingerprint of the training that is about to start.

    Returns:
        Whether a checkpoint was deleted.
    """
    if not (folder / STATE).exists():
        return False
    try:
        if _read_state(folder / STATE)[0].get("fingerprint") == fingerprint:
            return False
    except CheckpointError:
        pass  # written atomically, so damaged from outside: of no use to anybody
    (folder / STATE).unlink()
    return True


def _read_state(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: truncated or not a checkpoint: {error}; delete it to start again") from error


def warm_start(model: nn.Module, earlier: Mapping[str, Tensor], row_maps: Mapping[str, Mapping[int, int]]) -> list[str]:
    """Start from an earlier model's weights.

    Args:
        model: Receives every earlier parameter of the same name and shape; its buffers stay its own.
        earlier: Weights by name.
        row_maps: For parameters with one row per item, row of ``model`` to row of ``earlier``; other rows stay as
            they were initialised.

    Returns:
        Names of the parameters that were taken over.
    """
    taken = []
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            source = earlier.get(name)
            if source is None:
                continue
            if name in row_maps:
                rows = row_maps[name]
                own, theirs = torch.tensor(list(rows), dtype=torch.int64), torch.tensor(list(rows.values()))
                parameter[own] = source[theirs.long()].to(parameter)
            elif source.shape == parameter.shape:
                parameter.copy_(source)
            else:
                continue
            taken.append(name)
    return taken
