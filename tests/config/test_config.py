"""`SAEConfig` and `TrainConfig`: what they refuse."""

import ast
import dataclasses
import inspect
import itertools

import pytest

from saefast import InputError, SAEConfig, TrainConfig


def sae_config(**fields):
    return SAEConfig(**({"d_in": 16, "d_sae": 64, "k": 4} | fields))


def train_config(**fields):
    return TrainConfig(**({"total_tokens": 1000, "batch_size": 10} | fields))


@pytest.mark.parametrize("value", [0, -1, True, 2.0, 1.5, "8"], ids=repr)
@pytest.mark.parametrize("name", ["d_in", "d_sae", "k", "d_out", "layers"])
def test_sae_sizes_are_positive_integers(name, value):
    with pytest.raises(InputError, match=rf"^{name}: expected a positive integer, got {value!r}$"):
        sae_config(**{name: value})


SIZES = [
    "total_tokens",
    "batch_size",
    "dead_feature_threshold",
    "buffer_tokens",
    "log_every",
    "checkpoint_every",
]


@pytest.mark.parametrize("value", [0, -5, False, 3.0, "10"], ids=repr)
@pytest.mark.parametrize("name", [*SIZES, "k_aux"])
def test_train_sizes_are_positive_integers(name, value):
    with pytest.raises(InputError, match=rf"^{name}: expected a positive integer, got {value!r}$"):
        train_config(**{name: value})


def test_k_is_at_most_d_sae():
    assert sae_config(k=64).k == 64
    with pytest.raises(InputError, match="^k: expected at most d_sae = 64, got 65$"):
        sae_config(k=65)


def test_unknown_activation_is_refused():
    with pytest.raises(InputError, match=r"^activation: expected one of \['topk', .*\], got 'tanh'$"):
        sae_config(activation="tanh")


NAN, INF = float("nan"), float("inf")
BAD_NUMBERS = [
    *[("lr", value) for value in (-1e-3, NAN, INF)],
    *[("grad_clip", value) for value in (0, -1.0, NAN, INF)],
    *[(name, value) for name in ("warmup_fraction", "decay_fraction") for value in (-0.1, 1.1, NAN)],
    *[("betas", value) for value in ((0.9,), (0.9, 1.0), (-0.1, 0.9), (NAN, 0.9), (0.9, 0.99, 0.999))],
    *[("eps", value) for value in (0.0, -1e-8, NAN, INF)],
    *[("auxk_alpha", value) for value in (-1e-3, NAN, INF)],
    *[("seed", value) for value in (-1, 1.5, True, 2**64)],
]


@pytest.mark.parametrize("name,value", BAD_NUMBERS, ids=[f"{name}={value}" for name, value in BAD_NUMBERS])
def test_numbers_out_of_range_are_refused(name, value):
    with pytest.raises(InputError) as error:
        train_config(**{name: value})
    assert str(error.value).startswith(f"{name}: expected ") and str(error.value).endswith(f", got {value!r}")


@pytest.mark.parametrize("name", ["init_b_dec", "nonfinite", "backend"])
def test_unknown_choices_are_refused_and_the_known_ones_listed(name):
    with pytest.raises(InputError, match=rf"^{name}: expected one of \['.*'\], got 'other'$") as error:
        train_config(**{name: "other"})
    known = ast.literal_eval(str(error.value).split("one of ")[1].split(", got")[0])
    assert [getattr(train_config(**{name: choice}), name) for choice in known] == known


def test_unknown_logger_is_refused():
    assert train_config(loggers=("wandb", "trackio")).loggers == ("wandb", "trackio")
    with pytest.raises(InputError, match="^loggers: expected any of .*, got 'printer'$"):
        train_config(loggers=("wandb", "printer"))


def test_the_buffer_holds_at_least_a_batch():
    assert train_config(buffer_tokens=10).buffer_tokens == 10
    with pytest.raises(InputError, match="^buffer_tokens: expected at least batch_size = 10, got 9$"):
        train_config(buffer_tokens=9)


@pytest.mark.parametrize("made", [sae_config(), train_config()], ids=["sae", "train"])
def test_configs_are_frozen(made):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, dataclasses.fields(made)[0].name, 7)


@pytest.mark.parametrize("made", [SAEConfig, TrainConfig])
def test_every_field_is_documented(made):
    body = ast.parse(inspect.getsource(inspect.getmodule(made))).body
    statements = next(
        node.body for node in body if isinstance(node, ast.ClassDef) and node.name == made.__name__
    )
    documented = {
        field.target.id
        for field, doc in itertools.pairwise(statements)
        if isinstance(field, ast.AnnAssign)
        and isinstance(doc, ast.Expr)
        and isinstance(doc.value, ast.Constant)
    }
    assert documented == {field.name for field in dataclasses.fields(made)}


@pytest.mark.parametrize(
    "tokens,batch_size,want", [(1000, 10, 100), (1001, 10, 101), (1, 10, 1), (10, 10, 1)]
)
def test_total_steps_covers_all_tokens(tokens, batch_size, want):
    assert train_config(total_tokens=tokens, batch_size=batch_size).total_steps == want
