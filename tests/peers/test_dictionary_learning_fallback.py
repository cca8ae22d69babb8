"""The drop-in trainers for dictionary_learning: what the engine cannot do is done by the stock code."""

import pytest
import torch

from tests.peers.dictionary_learning_runs import (  # fmt: skip
    B,
    D,
    assert_same_state,
    fast,
    make,
    pair,
    steps,
    stock_and_ours,
    top_k,
)


@pytest.fixture(scope="module")
def rows(real_rows):
    few = real_rows[:, :D]
    return 2 * few / few.square().sum(dim=1).mean().sqrt()


class OtherDictionary(top_k.AutoEncoderTopK):
    pass


class OtherLoss(fast.TopKTrainer):
    def loss(self, x, step=None, logging=False):
        return 2 * super().loss(x, step)


class OtherLossOnStock(top_k.TopKTrainer):
    def loss(self, x, step=None, logging=False):
        return 2 * super().loss(x, step)


def other_dictionary():
    return [
        make(kind, "TopKTrainer", d=D, dict_class=OtherDictionary) for kind in stock_and_ours("TopKTrainer")
    ]


def other_loss():
    return [make(kind, "TopKTrainer", d=D) for kind in (OtherLossOnStock, OtherLoss)]


def other_optimizer():
    trainers = pair("TopKTrainer")
    for trainer in trainers:
        trainer.optimizer = torch.optim.SGD(trainer.ae.parameters(), lr=0.1)
    return trainers


def weight_decay():
    trainers = pair("StandardTrainerAprilUpdate")
    for trainer in trainers:
        trainer.optimizer.param_groups[0]["weight_decay"] = 0.1
    return trainers


def fewer_groups():
    trainers = pair("MatryoshkaBatchTopKTrainer")
    for trainer in trainers:
        trainer.ae.active_groups = 2
    return trainers


def fp64():
    trainers = pair("TopKTrainer")
    for trainer in trainers:
        trainer.ae.double()
    return trainers


FALLBACKS = {
    other_dictionary: "dict_class", other_loss: "loss is not", other_optimizer: "optimizer is not",
    weight_decay: "options", fewer_groups: "active_groups is 2", fp64: "fp32",
}  # fmt: skip


@pytest.mark.parametrize("make_pair", FALLBACKS, ids=lambda function: function.__name__)
def test_what_falls_back_to_stock_steps(make_pair, rows, caplog):
    stock, ours = make_pair()
    rows = rows.double() if make_pair is fp64 else rows
    for trainer in (stock, ours):
        steps(trainer, rows, last=5)
    for a, b in zip(stock.ae.state_dict().values(), ours.ae.state_dict().values()):
        assert torch.equal(a, b)
    (record,) = caplog.records
    assert record.levelname == "WARNING" and FALLBACKS[make_pair] in record.message
    assert ours._engine is None


def test_back_on_the_engine_after_stock_steps(rows, caplog):
    trainers = stock, ours = pair("MatryoshkaBatchTopKTrainer")
    for n_groups, (first, last) in ((3, (0, 4)), (2, (4, 7)), (3, (7, 12))):
        for trainer in trainers:
            trainer.ae.active_groups = n_groups
            steps(trainer, rows, first, last)
    assert len(caplog.records) == 1
    assert ours._engine.state.step == 12
    assert_same_state(ours, stock)


def test_step_0_in_the_middle_finds_b_dec_again(rows):
    trainers = stock, ours = pair("BatchTopKTrainer")
    for trainer in trainers:
        steps(trainer, rows, last=5)
        trainer.update(0, 2 * rows[:B] + 1)
        steps(trainer, rows, first=5)
    assert_same_state(ours, stock)
