"""Training goes on from an SAE of any format: without learning nothing changes, with it the SAE gets better, and the result
is written back."""

import pytest
import torch

from saefast import SAE, InputError, TrainConfig, Trainer, evaluate, formats
from tests.helpers.format_cases import EXACT, label, make, rows

pytestmark = pytest.mark.usefixtures("no_curves")


def config(**options):
    return TrainConfig(total_tokens=60 * 64, batch_size=64, buffer_tokens=256, **options)


@pytest.mark.parametrize("case", [("saefast", {"k": 3}), *EXACT], ids=label)
def test_training_goes_on(case, tmp_path):
    format, options = case
    formats.save(make(options), tmp_path / "theirs", format)
    sae = SAE.from_pretrained(tmp_path / "theirs")
    x = rows(512, sae.config.row_width)
    before, bits = evaluate(sae, x), {name: value.clone() for name, value in sae.tensors.items()}
    if sae.config.input_norm in ("layer_norm", "constant_norm"):
        with pytest.raises(InputError, match=r"^input_norm: expected 'none' or 'scale' to train"):
            Trainer(sae, config())
        return
    free = config(lr=0.0, unit_norm=False)
    assert Trainer(sae, free).fit(x)
    assert all(torch.equal(value, bits[name]) for name, value in sae.tensors.items())

    assert Trainer(sae, config(lr=1e-2, unit_norm=False)).fit(x)
    after = evaluate(sae, x)
    assert after.fvu < before.fvu
    formats.save(sae, tmp_path / "again", format)
    again = evaluate(SAE.from_pretrained(tmp_path / "again"), x)
    assert again.fvu == pytest.approx(after.fvu, rel=1e-4) and again.l0 == pytest.approx(after.l0, rel=1e-3)
