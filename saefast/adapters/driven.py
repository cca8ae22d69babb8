"""The engine under somebody else's schedule: what every adapter is built on."""

from torch import Tensor

from saefast.config.train import TrainConfig
from saefast.engine.plan import Hyper, Plan
from saefast.sae import SAE
from saefast.storage import Matrix
from saefast.train.trainer import Trainer


class Driven(Trainer):
    """A `Trainer` that is told the learning rate, the weight of the penalty and k before each step.

    The other library's schedulers decide; the config's own schedule is not used. The input is taken as it comes
    (`normalize_input` must be False).

    Args:
        sae: its parameters are trained in place; make views of them the other library's parameters.
        config: `total_tokens` has no meaning here.
    """

    def __init__(self, sae: SAE, config: TrainConfig) -> None:
        super().__init__(sae, config)
        self.lr_now = 0.0
        self.sparsity_now = 0.0
        self.k_now: int | None = None  # None: that of the SAE
        self.input_scale = self.output_scale = 1.0

    def lr(self, step: int) -> float:
        return self.lr_now

    def _hyper(self, step: int) -> Hyper:
        return super()._hyper(step)._replace(lr=self.lr_now, sparsity=self.sparsity_now)

    def _plan(self, batch_size: int) -> Plan:
        plan = super()._plan(batch_size)
        return plan if self.k_now is None else plan._replace(k=self.k_now)

    def moments(self) -> dict[str, tuple[Tensor, Tensor]]:
        """exp_avg and exp_avg_sq of every trained parameter, by name, sharing memory: [d_sae, d_in] of W_enc."""
        enc, dec, b_enc, b_dec = self.state.weights
        kept: dict[str, Matrix | object] = {"W_enc": enc, "W_dec": dec, "b_enc": b_enc, "b_dec": b_dec}
        return {n: (v.exp_avg, v.exp_avg_sq) for n, v in (kept | self.state.extra).items()}  # type: ignore[attr-defined]
