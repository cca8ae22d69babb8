"""Options that do not go together are refused, with the name of one of them."""

import pytest

import saefast
from saefast.config.train import TrainConfig


@pytest.mark.parametrize(
    "sae,train,message",
    [
        ({}, {"penalty": "l1"}, "penalty: expected one of"),
        ({"activation": "relu"}, {"penalty": "l0"}, "penalty: expected one of"),
        ({"activation": "relu"}, {"multi_topk": 4}, "multi_topk: expected 0 with activation 'relu'"),
        ({"activation": "gated"}, {"preact": "all"}, "preact: expected 'none'"),
        (
            {"activation": "relu"},
            {"auxk_detached": False, "auxk_scale": "loss"},
            "auxk_detached: expected True",
        ),
        ({}, {"auxk_detached": False}, "auxk_detached: expected True"),
        ({"activation": "matryoshka"}, {"group_weights": (1.0,)}, "group_weights: expected 5 numbers"),
        ({"activation": "relu"}, {"k_start": 8}, "k_start: expected None"),
        ({}, {"optimizer": "adamw", "state_dtype": "int8"}, "state_dtype: expected 'fp32'"),
        ({}, {"weight_decay": 0.1}, "weight_decay: expected 0.0 with optimizer 'adam'"),
        ({"d_out": 8, "pre_bias": False}, {"resample_steps": (5,)}, "resample_steps"),
        ({"d_out": 8}, {}, "pre_bias: expected False for a transcoder"),
        ({"activation": "relu", "k": 3}, {}, "k: expected None with activation 'relu'"),
        ({"activation": "group_max", "k": 3}, {}, "k: expected a divisor of d_sae"),
        ({"activation": "matryoshka", "group_sizes": (8, 4, 64)}, {}, "group_sizes: expected rising sizes"),
        ({"layers": 3}, {}, "layers: expected a divisor of d_in"),
        ({}, {"penalty": "target_l0"}, "target_l0: expected with penalty 'target_l0' only"),
        ({}, {"p_end": 0.5}, "p_end: expected 1 with penalty 'none'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(sae, train, message):
    with pytest.raises(saefast.InputError, match=message):
        config = saefast.SAEConfig(**({"d_in": 16, "d_sae": 64} | sae))
        saefast.Trainer(saefast.SAE(config), TrainConfig(total_tokens=100, **train))
