"""dictionary_learning's trainers with the engine behind `update`. The line that changes is the import:

    from dictionary_learning.trainers.top_k import TopKTrainer          # before
    from saefast.adapters.dictionary_learning import TopKTrainer        # after

Each is a subclass of the stock trainer of that name and takes its arguments. Initial weights, schedules, configuration,
logging and saving are the stock code. The memory is shared: the parameters of `ae`, Adam's moments in `optimizer` and
`num_tokens_since_fired` are views of the engine's, so that whatever reads or changes them (a log step's `loss`,
`scale_biases`, `resample_neurons`, a checkpoint) deals with the one state.

On that memory a stock step is possible at any time. The first `update` and that of step 0 are stock steps: they find b_dec,
bring decoder rows to unit norm and make the optimizer's state. So is a step that the engine cannot do in the same way
(`_stock_because`), with a warning the first time.

For dictionary_learning 0.1.0 and its repository at 60ec6bf. What differs is in docs/drop-in/dictionary_learning.md.
"""

from typing import Any

import torch
from torch import Tensor

from saefast.adapters.dictionary_learning_engine import OnEngine
from saefast.adapters.linked import Linked

from dictionary_learning.dictionary import AutoEncoder, GatedAutoEncoder, JumpReluAutoEncoder  # isort: skip
from dictionary_learning.trainers import gdm, jumprelu, standard  # isort: skip
from dictionary_learning.trainers import batch_top_k, matryoshka_batch_top_k, top_k  # isort: skip
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE  # isort: skip
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE  # isort: skip
from dictionary_learning.trainers.top_k import AutoEncoderTopK  # isort: skip

__all__ = [
    "AutoEncoder",
    "AutoEncoderTopK",
    "BatchTopKSAE",
    "BatchTopKTrainer",
    "GatedAutoEncoder",
    "GatedSAETrainer",
    "JumpReluAutoEncoder",
    "JumpReluTrainer",
    "MatryoshkaBatchTopKSAE",
    "MatryoshkaBatchTopKTrainer",
    "StandardTrainer",
    "StandardTrainerAprilUpdate",
    "TopKTrainer",
]
LINEAR = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight.T", "b_dec": "b_dec"}
RELU = LINEAR | {"b_dec": "bias"}
PARAMETERS = {"W_enc": "W_enc.T", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
JUMPRELU = PARAMETERS | {"threshold": "threshold"}
GATED = LINEAR | {"b_enc": "gate_bias", "b_dec": "decoder_bias", "r_mag": "r_mag", "b_mag": "mag_bias"}


class WithK(OnEngine):
    """What the trainers with a k share."""

    _names = LINEAR
    _activation = "topk"
    _k: tuple[Tensor | None, int, int] = (None, 0, 0)  # the buffer that was read, its version, what it said

    def _architecture(self) -> dict[str, Any]:
        return {"activation": self._activation, "k": int(self.ae.k)}

    def _recipe(self) -> dict[str, Any]:
        me: Any = self
        return {
            "auxk_alpha": me.auxk_alpha,
            "k_aux": me.top_k_aux,
            "count_before_auxk": True,
            "grad_clip": 1.0,
            "dead_feature_threshold": me.dead_feature_threshold,
            "cuda_graph": not getattr(self, "k_anneal_steps", None),  # each k would be a graph of its own
        }

    def _current(self, engine: Linked) -> Linked:
        engine = super()._current(engine)
        k: Tensor = self.ae.k
        if self._k[0] is not k or self._k[1] != k._version:  # reading it waits for a GPU
            self._k = k, k._version, int(k)
        engine.k_now = self._k[2]
        return engine

    def _finish(self, step: int, x: Tensor, engine: Linked) -> None:
        me: Any = self
        if step > me.threshold_start_step:  # as `update_threshold`, without waiting for a GPU
            threshold, smallest = self.ae.threshold, engine.state.smallest
            assert smallest is not None
            moved = me.threshold_beta * threshold + (1 - me.threshold_beta) * smallest
            moved = torch.where(threshold < 0, smallest, moved)
            self.ae.threshold = torch.where(smallest.isfinite(), moved, threshold)
        super()._finish(step, x, engine)
        if hasattr(self, "update_annealed_k"):  # 0.1.0 has none
            me.update_annealed_k(step, self.ae.activation_dim, me.k_anneal_steps)


class TopKTrainer(WithK, top_k.TopKTrainer):
    """`dictionary_learning.trainers.top_k.TopKTrainer`."""

    _stock, _dictionary = top_k.TopKTrainer, AutoEncoderTopK


class BatchTopKTrainer(WithK, batch_top_k.BatchTopKTrainer):
    """`dictionary_learning.trainers.batch_top_k.BatchTopKTrainer`."""

    _stock, _dictionary, _activation = batch_top_k.BatchTopKTrainer, BatchTopKSAE, "batch_topk"


class MatryoshkaBatchTopKTrainer(WithK, matryoshka_batch_top_k.MatryoshkaBatchTopKTrainer):
    """`dictionary_learning.trainers.matryoshka_batch_top_k.MatryoshkaBatchTopKTrainer`."""

    _stock, _dictionary = matryoshka_batch_top_k.MatryoshkaBatchTopKTrainer, MatryoshkaBatchTopKSAE
    _names, _activation = PARAMETERS, "matryoshka"

    def _architecture(self) -> dict[str, Any]:
        sizes = torch.tensor(self.group_sizes, dtype=torch.int64, device="cpu").cumsum(0).tolist()
        return super()._architecture() | {"group_sizes": tuple(sizes)}

    def _recipe(self) -> dict[str, Any]:
        weights = self.group_weights  # the loss is the mean over the groups of what they weigh
        return super()._recipe() | {"group_weights": tuple(weight / len(weights) for weight in weights)}

    def _stock_step(self, step: int, x: Tensor, ours: bool) -> float | None:
        # of 16-bit rows the median would make of b_dec a parameter of 16 bits, which it would then remain
        return super()._stock_step(step, x.float() if ours else x, ours)

    def _stock_because(self) -> str | None:
        reason = super()._stock_because()
        if reason is None and self.ae.active_groups != len(self.group_sizes):
            return f"ae.active_groups is {self.ae.active_groups}, not all {len(self.group_sizes)}"
        return reason


class JumpReluTrainer(OnEngine, jumprelu.JumpReluTrainer):
    """`dictionary_learning.trainers.jumprelu.JumpReluTrainer`.

    straight_through: "acts" is the stock gradient of L0, by way of the activations; "threshold" that of the paper, by way
    of the pre-activations (arXiv 2407.14435), with thresholds kept at 0 or above. Set it on the class or a trainer.
    """

    _stock, _dictionary = jumprelu.JumpReluTrainer, JumpReluAutoEncoder
    _names, _weight = JUMPRELU, "sparsity_coefficient"
    straight_through = "acts"

    def _architecture(self) -> dict[str, Any]:
        return {"activation": "jumprelu", "pre_bias": False}

    def _recipe(self) -> dict[str, Any]:
        return {
            "penalty": "target_l0",
            "target_l0": self.target_l0,
            "bandwidth": self.bandwidth,
            "grad_clip": 1.0,
            "straight_through": self.straight_through,
        }


class GatedSAETrainer(OnEngine, gdm.GatedSAETrainer):
    """`dictionary_learning.trainers.gdm.GatedSAETrainer`."""

    _stock, _dictionary = gdm.GatedSAETrainer, GatedAutoEncoder
    _names, _weight = GATED, "l1_penalty"

    def _architecture(self) -> dict[str, Any]:
        return {"activation": "gated"}

    def _recipe(self) -> dict[str, Any]:
        return {"penalty": "l1"}


class StandardTrainer(OnEngine, standard.StandardTrainer):
    """`dictionary_learning.trainers.standard.StandardTrainer`."""

    _stock, _dictionary = standard.StandardTrainer, AutoEncoder
    _names, _weight = RELU, "l1_penalty"

    def _architecture(self) -> dict[str, Any]:
        return {"activation": "relu"}

    def _recipe(self) -> dict[str, Any]:
        return {"penalty": "l1"}

    def _finish(self, step: int, x: Tensor, engine: Linked) -> None:
        super()._finish(step, x, engine)
        if self.resample_steps is None:
            return
        silent = engine.state.num_tokens_since_fired > 0
        self.steps_since_active[silent] += 1
        self.steps_since_active[~silent] = 0
        if step % self.resample_steps == 0:
            self.resample_neurons(self.steps_since_active > self.resample_steps / 2, x.to(self._device))
            engine.state.refresh()


class StandardTrainerAprilUpdate(OnEngine, standard.StandardTrainerAprilUpdate):
    """`dictionary_learning.trainers.standard.StandardTrainerAprilUpdate`."""

    _stock, _dictionary = standard.StandardTrainerAprilUpdate, AutoEncoder
    _names, _weight = RELU, "l1_penalty"

    def _architecture(self) -> dict[str, Any]:
        return {"activation": "relu"}

    def _recipe(self) -> dict[str, Any]:
        return {"penalty": "l1", "norm_weighted": True, "unit_norm": False, "grad_clip": 1.0}
