"""torch's fused AdamW step without the optimizer class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

BETAS = (0.9, 0.999)


class AdamW:
    """torch's AdamW step without its optimizer class, whose first use loads the whole compiler: seconds per training.

    Attributes:
        learning_rate: Of the next step; a schedule may change it between two steps.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        *,
        learning_rate: float,
        weight_decay: float,
        betas: tuple[float, float] = BETAS,
        decayed: Sequence[bool] | None = None,
    ) -> None:
        """Start at step 0.

        Args:
            parameters: To train.
            learning_rate: Of the step.
            weight_decay: Decoupled.
            betas: Decay of the running mean and of the running square of the gradient.
            decayed: For each parameter, whether weight decay applies to it; None for all of them.
        """
        self.parameters = list(parameters)
        self.learning_rate, self.betas = learning_rate, betas
        self.decays = [weight_decay if is_decayed else 0.0 for is_decayed in decayed or [True] * len(self.parameters)]
        self.steps = [torch.zeros((), device=parameter.device) for parameter in self.parameters]
        self.means = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.squares = [torch.zeros_like(parameter) for parameter in self.parameters]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move each parameter that has a gradient."""
        # The fused kernel takes one weight decay per call. Usually all parameters share one: a single call.
        for decay in sorted(set(self.decays)):
            self._step(decay)

    def _step(self, decay: float) -> None:
        chosen = [place for place, mine in enumerate(self.decays) if mine == decay]
        moved = [place for place in chosen if self.parameters[place].grad is not None]
        adamw(
            [self.parameters[place] for place in moved],
            [gradient for place in moved if (gradient := self.parameters[place].grad) is not None],
            [self.means[place] for place in moved],
            [self.squares[place] for place in moved],
            [],
            [self.steps[place] for place in moved],
            fused=True,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=self.learning_rate,
            weight_decay=decay,
            eps=1e-8,
            maximize=False,
        )

    def _groups(self) -> dict[str, list[Tensor]]:
        return {"step": self.steps, "mean": self.means, "square": self.squares}

    def state(self) -> dict[str, Tensor]:
        """All values that the next step depends on, by name."""
        return {
            f"{place}.{name}": tensor for name, group in self._groups().items() for place, tensor in enumerate(group)
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore the output of :meth:`state`."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
