"""Checkpoints: what a failed save leaves, what is corrupt, and what another run is not resumed from."""

import pytest
import torch

import saefast
from saefast.activations.sources import IterableSource, TensorSource
from saefast.train.run import checkpoint
from tests.helpers.stopped_runs import assert_same, result, train, trainer_of

pytestmark = pytest.mark.usefixtures("no_curves")


def test_a_corrupt_checkpoint_is_named(tmp_path):
    train(tmp_path / "run", "random access")
    path = tmp_path / "run" / "checkpoint.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(saefast.InputError, match="checkpoint.safetensors: corrupt"):
        train(tmp_path / "run", "random access")


def test_a_failed_save_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    def full_disk(tensors, path, metadata):
        path.write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    saves = iter(range(100))
    from saefast import files

    save_file = files.save_file
    monkeypatch.setattr(
        files, "save_file", lambda *args, **kw: (full_disk if next(saves) == 5 else save_file)(*args, **kw)
    )
    with pytest.raises(OSError, match="No space left on device.*previous one is intact"):
        train(tmp_path / "run", "random access")
    monkeypatch.undo()
    train(tmp_path / "whole", "random access")
    train(tmp_path / "run", "random access")
    assert_same(result(tmp_path / "run"), result(tmp_path / "whole"))


def test_a_run_stopped_before_its_first_checkpoint_starts_again_with_resume(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / ".run.json.tmp").write_text('{"half')  # killed while writing run.json
    train(out, "random access")
    assert (out / "sae.safetensors").exists()


@pytest.mark.parametrize("change", ["k", "seed", "source"])
def test_resume_with_something_else_names_what_differs(tmp_path, change):
    train(tmp_path / "run", "random access")
    k, seed, rows = 4, 0, 900
    if change == "k":
        k = 5
    elif change == "seed":
        seed = 1
    else:
        rows = 800
    trainer = trainer_of(k, seed=seed)
    with pytest.raises(saefast.InputError, match=f"{change}: the run in .* was started with"):
        trainer.fit(TensorSource(torch.randn(rows, 16)), tmp_path / "run", resume=True)


@pytest.mark.parametrize("kind", ["random access", "one by one"])
@pytest.mark.parametrize(
    "options",
    [{}, {"ema_decay": 0.9}, {"optimizer": "signum"}, {"state_dtype": "int8"}],
    ids=["plain", "average", "signum", "int8"],
)
def test_the_disk_that_a_run_asks_for_is_what_it_writes(tmp_path, kind, options, monkeypatch):
    """Two checkpoints at once, the SAE, and a megabyte for everything else."""
    asked, count = [], checkpoint.bytes_needed
    monkeypatch.setattr(checkpoint, "bytes_needed", lambda *given: asked.append(count(*given)) or asked[-1])
    rows = torch.randn(20_000, 64)
    source = TensorSource(rows) if kind == "random access" else IterableSource(list(rows.split(1000)), 64)
    config = saefast.TrainConfig(total_tokens=64, batch_size=64, buffer_tokens=16_384, **options)
    saefast.Trainer(saefast.SAE(saefast.SAEConfig(d_in=64, d_sae=2048, k=4)), config).fit(source, tmp_path)
    saved, exported = ((tmp_path / f"{name}.safetensors").stat().st_size for name in ("checkpoint", "sae"))
    assert 2**20 - 2**14 < asked[0] - 2 * saved - exported <= 2**20
