"""The drop-in trainers for dictionary_learning: what the engine cannot do is done by the stock code."""

import pytest
import torch

from tests.peers.dictionary_learning_runs import (
    B,
    D,
    assert_same_state,
    fast,
    make,
    narrow,
    pair,
    steps,
    stock_and_ours,
    top_k,
)


@pytest.fixture(scope="module")
def rows(real_rows):
    return narrow(real_rows)


class OtherDictionary(top_k.AutoEncoderTopK):
    pass


class OtherLoss(fast.TopKTrainer):
    def loss(self, x, step=None, logging=False):
        return 2 * super().loss(x, step)


class OtherLossOnStock(top_k.TopKTrainer):
    def loss(self, x, step=None, logging=False):
        return 2 * super().loss(x, step)


def changed(name, change):
    trainers = pair(name)
    for trainer in trainers:
        change(trainer)
    return trainers


def use_sgd(trainer):
    trainer.optimizer = torch.optim.SGD(trainer.ae.parameters(), lr=0.1)


def set_weight_decay(trainer):
    trainer.optimizer.param_groups[0]["weight_decay"] = 0.1


def use_fewer_groups(trainer):
    trainer.ae.active_groups = 2


def other_dictionary():
    kinds = stock_and_ours("TopKTrainer")
    return [make(kind, "TopKTrainer", d=D, dict_class=OtherDictionary) for kind in kinds]


FALLBACKS = {  # what the reason says: makes the stock trainer and ours
    "dict_class": other_dictionary,
    "loss is not": lambda: [make(kind, "TopKTrainer", d=D) for kind in (OtherLossOnStock, OtherLoss)],
    "optimizer is not": lambda: changed("TopKTrainer", use_sgd),
    "options": lambda: changed("StandardTrainerAprilUpdate", set_weight_decay),
    "active_groups is 2": lambda: changed("MatryoshkaBatchTopKTrainer", use_fewer_groups),
    "fp32": lambda: changed("TopKTrainer", lambda trainer: trainer.ae.double()),
}


@pytest.mark.parametrize("reason", FALLBACKS)
def test_what_falls_back_to_stock_steps(reason, rows, caplog):
    stock, ours = FALLBACKS[reason]()
    for trainer in (stock, ours):
        steps(trainer, rows.to(next(trainer.ae.parameters()).dtype), last=5)
    for a, b in zip(stock.ae.state_dict().values(), ours.ae.state_dict().values()):
        assert torch.equal(a, b)
    (record,) = caplog.records
    assert record.levelname == "WARNING" and reason in record.message
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
