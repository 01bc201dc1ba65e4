from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lte_models.training.optimizer import AdamW
from lte_models.training.trainer import (
    STATE,
    CheckpointError,
    Task,
    TrainConfig,
    Trainer,
    autocast,
    leave_a_core_free,
    warm_start,
)

CONFIG = TrainConfig(epochs=4, learning_rate=0.05, patience=4, checkpoint_every=2, seed=7)


class KilledError(Exception):
    """Stands for a kill between two steps."""


def _task(
    *, kill_at: tuple[int, int] | None = None, validate: Callable[[nn.Module], float] | None = None, name: str = "a"
) -> Task[Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))

    def batches(epoch: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(epoch)
        for step in range(5):
            if (epoch, step) == kill_at:
                raise KilledError
            yield torch.randn(6, 3, generator=generator)

    def loss(batch: Tensor, rng: torch.Generator) -> Tensor:
        noise = torch.randn(6, 1, generator=rng)  # stands for the negatives
        return (model(batch) - batch.sum(dim=1, keepdim=True) - 0.1 * noise).square().mean()

    validation = torch.randn(20, 3, generator=torch.Generator().manual_seed(99))

    def value() -> float:
        return -float((model(validation) - validation.sum(dim=1, keepdim=True)).square().mean())

    return Task(model, loss, batches, value if validate is None else lambda: validate(model), name)


def _weights(task: Task[Tensor]) -> list[Tensor]:
    return list(task.model.state_dict().values())


@pytest.mark.parametrize("kill_at", [(0, 1), (0, 3), (1, 0), (2, 4)])
def test_a_killed_training_ends_bit_for_bit_as_an_undisturbed_one(tmp_path: Path, kill_at: tuple[int, int]) -> None:
    whole = _task()
    curve = Trainer(whole, CONFIG, tmp_path / "whole").run().curve
    with pytest.raises(KilledError):
        Trainer(_task(kill_at=kill_at), CONFIG, tmp_path / "killed").run()
    torch.manual_seed(12345)  # another process has another global state
    resumed = _task()
    assert Trainer(resumed, CONFIG, tmp_path / "killed").run().curve == curve
    assert all(torch.equal(a, b) for a, b in zip(_weights(whole), _weights(resumed), strict=True))
    assert not (tmp_path / "killed" / STATE).exists()


def test_a_resumed_training_does_not_repeat_the_steps_before_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        Trainer(_task(kill_at=(2, 3)), CONFIG, tmp_path).run()
    trainer = Trainer(_task(), CONFIG, tmp_path)
    trainer._resume(tmp_path / STATE)
    assert (trainer.progress.epoch, trainer.progress.step) == (2, 2)


def test_the_seed_decides_the_result_and_the_global_generator_comes_back(tmp_path: Path) -> None:
    first, second = _task(), _task()
    Trainer(first, CONFIG, tmp_path / "1").run()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    Trainer(second, CONFIG, tmp_path / "2").run()
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(_weights(first), _weights(second), strict=True))


def test_the_steps_are_those_of_adamw() -> None:
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    unused = nn.Parameter(torch.ones(2))  # has no gradient: stays
    ours = AdamW([*models[0].parameters(), unused], learning_rate=0.05, weight_decay=0.1)
    torchs = torch.optim.AdamW(models[1].parameters(), lr=0.05, weight_decay=0.1)
    for step in range(5):
        batch = torch.randn(6, 3, generator=torch.Generator().manual_seed(step))
        optimizers: tuple[AdamW | torch.optim.AdamW, ...] = (ours, torchs)
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
        for mine, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
            torch.testing.assert_close(mine, theirs)
    assert unused.tolist() == [1.0, 1.0]


def test_a_schedule_and_parameters_without_decay_step_as_torchs_own_groups_do() -> None:
    """Two epochs of five steps; the rate of the second is half; weight decay moves the matrices alone."""
    task = _task(validate=lambda model: 0.0)
    twin = _task().model
    is_bias = [name for name, _ in task.model.named_parameters() if name.endswith("bias")]
    task = replace(task, rate=lambda progress: 1 - progress.epoch / 2, undecayed=is_bias, validate=None)
    config = replace(CONFIG, epochs=2, weight_decay=0.3, betas=(0.8, 0.9), clip_norm=float("inf"))
    progress = Trainer(task, config, None).run()
    assert [set(entry) for entry in progress.curve] == [{"loss"}, {"loss"}]
    assert (progress.total_steps, progress.best_epoch) == (10, 1)
    groups = [
        {"params": [p for name, p in twin.named_parameters() if name not in is_bias], "weight_decay": 0.3},
        {"params": [p for name, p in twin.named_parameters() if name in is_bias], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=CONFIG.learning_rate, betas=(0.8, 0.9))
    twin_task = replace(task, model=twin)
    rng = torch.Generator().manual_seed(CONFIG.seed)
    twin.train()
    with torch.random.fork_rng():
        torch.manual_seed(CONFIG.seed)  # dropout
        for epoch in range(2):
            for group in optimizer.param_groups:
                group["lr"] = CONFIG.learning_rate * (1 - epoch / 2)
            for batch in twin_task.batches(epoch):
                noise = torch.randn(6, 1, generator=rng)
                optimizer.zero_grad()
                (twin(batch) - batch.sum(dim=1, keepdim=True) - 0.1 * noise).square().mean().backward()
                optimizer.step()
    # the fused kernel and torch's loop round each of the 10 steps apart by an ulp or so: values near 1, 10 x 6e-8 x 10
    for mine, theirs in zip(task.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=6e-6)


def test_without_a_folder_no_checkpoint_is_written_and_the_result_is_the_same(tmp_path: Path) -> None:
    kept, unkept = _task(), _task()
    assert Trainer(kept, CONFIG, tmp_path).run() == Trainer(unkept, CONFIG, None).run()
    assert all(torch.equal(a, b) for a, b in zip(_weights(kept), _weights(unkept), strict=True))
    assert list(tmp_path.iterdir()) == []


def test_a_warm_start_without_a_judge_is_refused() -> None:
    task = replace(_task(), validate=None)
    with pytest.raises(ValueError, match="expected a task with validate"):
        Trainer(task, replace(CONFIG, judge_start=True), None).run()


def test_training_learns(tmp_path: Path) -> None:
    task = _task()
    assert task.validate
    with torch.no_grad():
        task.model.eval()
        before = task.validate()
    assert Trainer(task, CONFIG, tmp_path).run().best > before + 0.1


def test_early_stopping_keeps_the_best_epoch(tmp_path: Path) -> None:
    seen: list[list[Tensor]] = []
    values = iter([1.0, 3.0, 2.0, 2.5, 9.0])

    def validate(model: nn.Module) -> float:
        seen.append([tensor.clone() for tensor in model.state_dict().values()])
        return next(values)

    task = _task(validate=validate)
    config = TrainConfig(epochs=5, patience=2, seed=7)
    progress = Trainer(task, config, tmp_path).run()
    assert [entry["validation"] for entry in progress.curve] == [1.0, 3.0, 2.0, 2.5]  # two epochs without a better one
    assert progress.best_epoch == 1
    assert all(torch.equal(a, b) for a, b in zip(_weights(task), seen[1], strict=True))


def test_training_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    values = iter([0.5, 0.25])
    task = replace(_task(validate=lambda _: next(values)), say=lines.append)
    curve = Trainer(task, replace(CONFIG, epochs=2), tmp_path / "quick").run().curve
    assert lines == [
        f"epoch 1 of at most 2: 5 steps, loss {curve[0]['loss']:.4f}, validation value 0.5000, best 0.5000",
        f"epoch 2 of at most 2: 5 steps, loss {curve[1]['loss']:.4f}, validation value 0.2500, best 0.5000",
    ]
    monkeypatch.setattr("lte_models.training.trainer.SAY_SECONDS", 0.0)
    slow: list[str] = []
    Trainer(replace(_task(), say=slow.append), replace(CONFIG, epochs=1), tmp_path / "slow").run()
    assert [line.split(",")[0] for line in slow[:2]] == [
        "epoch 1 of at most 1: 1 steps",
        "epoch 1 of at most 1: 2 steps",
    ]


def test_a_start_that_no_epoch_improves_is_kept(tmp_path: Path) -> None:
    values = iter([2.0, 1.0, 1.5, 9.0])
    task = _task(validate=lambda model: next(values))
    start = [tensor.clone() for tensor in _weights(task)]
    progress = Trainer(task, TrainConfig(epochs=5, patience=2, seed=7, judge_start=True), tmp_path).run()
    assert (progress.best, progress.best_epoch) == (2.0, -1)
    assert [entry["validation"] for entry in progress.curve] == [1.0, 1.5]
    assert all(torch.equal(a, b) for a, b in zip(_weights(task), start, strict=True))


def test_checkpoints_of_another_training_or_truncated_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        Trainer(_task(kill_at=(1, 1)), CONFIG, tmp_path).run()
    with pytest.raises(CheckpointError, match="of another training"):
        Trainer(_task(name="b"), CONFIG, tmp_path).run()
    path = tmp_path / STATE
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="truncated"):
        Trainer(_task(), CONFIG, tmp_path).run()
    save_file({"x": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match="of another training"):
        Trainer(_task(), CONFIG, tmp_path).run()


def test_a_loss_or_value_that_is_not_finite_stops_with_its_place(tmp_path: Path) -> None:
    task = _task()
    broken = Task(task.model, lambda batch, rng: task.loss(batch, rng) * float("nan"), task.batches, task.validate, "a")
    with pytest.raises(FloatingPointError, match="loss is nan in epoch 0, step 0"):
        Trainer(broken, CONFIG, tmp_path).run()
    with pytest.raises(FloatingPointError, match="validation value is nan after epoch 0"):
        Trainer(_task(validate=lambda model: float("nan")), CONFIG, tmp_path / "2").run()
    judging = replace(CONFIG, judge_start=True)
    with pytest.raises(FloatingPointError, match="validation value is nan before training"):
        Trainer(_task(validate=lambda model: float("nan")), judging, tmp_path / "3").run()


def test_no_batch_is_an_error(tmp_path: Path) -> None:
    task = _task()
    empty = Task(task.model, task.loss, lambda epoch: iter(()), task.validate, "a")
    with pytest.raises(ValueError, match="holds no batch"):
        Trainer(empty, CONFIG, tmp_path).run()


def test_warm_start_follows_the_items_to_their_new_rows() -> None:
    torch.manual_seed(0)
    ids = nn.Embedding(3, 2)
    model = nn.ModuleDict({"ids": ids, "out": nn.Linear(2, 2), "grown": nn.Linear(2, 5)})
    fresh = ids.weight.detach().clone()
    earlier = {
        "ids.weight": torch.tensor([[1.0, 1], [2, 2]]),
        "out.weight": torch.eye(2),
        "grown.weight": torch.ones(4, 2),
    }
    taken = warm_start(model, earlier, {"ids.weight": {2: 0, 0: 1}})
    assert taken == ["ids.weight", "out.weight"]
    assert ids.weight[[2, 0]].tolist() == [[1, 1], [2, 2]]
    assert torch.equal(ids.weight[1], fresh[1])


def test_a_core_is_left_free_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        for cores, wanted in ((1, 1), (2, 1), (5, 4)):
            monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
            assert leave_a_core_free() == torch.get_num_threads() == wanted
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        assert leave_a_core_free() == 4  # torch has read the variable itself when it was loaded
    finally:
        torch.set_num_threads(before)


def test_mixed_precision_only_where_the_hardware_gains() -> None:
    with autocast(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize("changes", [{"epochs": 0}, {"patience": 0}, {"checkpoint_every": 0}, {"learning_rate": 0.0}])
def test_impossible_configurations_are_named(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        TrainConfig(**changes)
