"""`saefast.adapters.sae_lens` in SAELens's runners, its files, resuming."""

import contextlib
import io
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.peers.sae_lens_runs import (
    CASES,
    B,
    adapter,
    assert_near,
    assert_same_state,
    both,
    fit,
    make,
    narrow,
    sae_lens,
    steps,
)


@pytest.fixture(scope="module")
def rows(real_rows):
    return narrow(real_rows)


# Files


@pytest.mark.parametrize("name", CASES)
def test_saved_files_are_those_of_saelens(name, rows, tmp_path):
    stock, ours = both(name, rows)
    for trainer, folder in ((stock, tmp_path / "stock"), (ours, tmp_path / "ours")):
        steps(trainer, 12)
        trainer.sae.save_inference_model(folder / "inference")
        trainer.save_checkpoint("checkpoint", folder)
    loaded = [sae_lens.SAE.load_from_disk(tmp_path / which / "inference") for which in ("ours", "stock")]
    assert type(loaded[0]) is type(loaded[1]) and loaded[0].cfg.to_dict() == loaded[1].cfg.to_dict()
    engine = ours._engine.sae
    if hasattr(ours.sae, "topk_threshold"):
        engine.threshold.data.copy_(ours.sae.topk_threshold)
    with torch.no_grad():
        for x in rows[:300].split(100):
            assert_near(loaded[0](x), loaded[1](x), 1e-3, "sae_out")
            assert_near(engine(x).x_hat, loaded[0](x), 1e-5, "our SAE")
    folder = tmp_path / "ours" / "checkpoint"
    assert {f.name for f in folder.iterdir()} == {f.name for f in (tmp_path / "stock/checkpoint").iterdir()}
    trained = sae_lens.TrainingSAE.load_from_disk(folder)
    for key, tensor in ours.sae.state_dict().items():
        saved, want = trained.state_dict()[key].to(tensor.dtype), tensor.to(torch.float32).to(tensor.dtype)
        assert torch.equal(saved, want), key
    sparsity = load_file(folder / "sparsity.safetensors")["sparsity"]
    assert torch.equal(sparsity, ours.log_feature_sparsity)


@pytest.mark.parametrize("name", ["topk", "batchtopk", "jumprelu-tanh"])
@pytest.mark.parametrize("first", [adapter.Stock, adapter.SAETrainer])
@pytest.mark.parametrize("second", [adapter.Stock, adapter.SAETrainer])
def test_a_run_goes_on_from_a_checkpoint(name, first, second, rows, tmp_path):
    whole = make(adapter.Stock, name, rows)
    steps(whole, 24)
    begun = make(first, name, rows)
    steps(begun, 11)
    begun.save_checkpoint("at-11", tmp_path)
    goes_on = make(second, name, rows, seed=5, start=11)
    goes_on.load_trainer_state(tmp_path / "at-11")
    goes_on.sae.load_weights_from_checkpoint(tmp_path / "at-11")
    steps(goes_on, 13)
    assert_same_state(goes_on, whole, 1e-3)
    assert whole.n_forward_passes_since_fired.max() > 4 or name == "jumprelu-tanh"


def test_fit_gives_an_ordinary_sae_back(rows):
    trainer = make(adapter.SAETrainer, "topk", rows, total=10)
    assert fit(trainer).W_enc.is_contiguous() and not trainer.sae._state_dict_hooks
    trainer.cfg.total_training_samples *= 2
    during = []

    def stop():
        if trainer.n_training_steps == 15:
            during.append(trainer.sae.W_enc.is_contiguous())
            raise KeyboardInterrupt
        return {}

    trainer.maybe_reset_sparsity = stop
    with pytest.raises(KeyboardInterrupt):
        fit(trainer)
    assert during == [False] and trainer.sae.W_enc.is_contiguous(), "a run that was stopped, too"
    stock = make(adapter.Stock, "topk", rows, total=10)
    steps(stock, 15)
    for got, want in zip(trainer.sae.parameters(), stock.sae.parameters()):
        assert_near(got, want, 1e-3, "the second fit went on")


# Runners


@pytest.fixture(scope="module")
def language_model():
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    torch.manual_seed(0)
    layer = {"d_model": 24, "d_head": 12, "n_heads": 2, "d_mlp": 32, "act_fn": "relu"}
    return HookedTransformer(HookedTransformerConfig(n_layers=1, n_ctx=32, d_vocab=97, **layer))


@pytest.fixture(scope="module")
def dataset():
    from datasets import Dataset

    tokens = torch.randint(0, 97, (300, 32), generator=torch.Generator().manual_seed(3))
    return Dataset.from_list([{"tokens": row} for row in tokens.tolist()])


def runner_config(cls, **options):
    shared = {
        "model_name": "tiny",
        "dataset_path": "none",
        "context_size": 32,
        "streaming": False,
        "prepend_bos": False,
        "train_batch_size_tokens": B,
        "training_tokens": 25 * B,
        "n_batches_in_buffer": 4,
        "store_batch_size_prompts": 4,
        "lr": 3e-3,
        "n_batches_for_norm_estimate": 3,
        "n_checkpoints": 1,
        "dead_feature_window": 3,
        "logger": sae_lens.LoggingConfig(log_to_wandb=False),
    }
    return cls(**(shared | options))


def sae_config(kind="TopK", **options):
    return getattr(sae_lens, f"{kind}TrainingSAEConfig")(d_in=24, d_sae=203, **options)


def run(runner, config, dataset, model, place=contextlib.nullcontext):
    torch.manual_seed(1)
    with contextlib.redirect_stderr(io.StringIO()), place():
        return runner(config, override_dataset=dataset, override_model=model).run()


@pytest.mark.parametrize("normalize", ["none", "expected_average_only_in", "covariance_whitening"])
def test_the_runner(normalize, language_model, dataset, tmp_path, caplog):
    def config_of(**options):
        sae, cls = sae_config(k=5, normalize_activations=normalize), sae_lens.LanguageModelSAERunnerConfig
        return runner_config(cls, sae=sae, hook_name="blocks.0.hook_resid_post", **options)

    trained = {}
    for which, place in (("stock", contextlib.nullcontext), ("ours", adapter.patched)):
        config = config_of(
            output_path=str(tmp_path / which),
            checkpoint_path=str(tmp_path / f"{which}-checkpoints"),
            compile_sae=which == "ours",
        )
        trained[which] = run(sae_lens.LanguageModelSAETrainingRunner, config, dataset, language_model, place)
    assert "own step" not in caplog.text
    for (name, got), want in zip(trained["ours"].named_parameters(), trained["stock"].parameters()):
        assert_near(got, want, 1e-3, name)
    assert trained["ours"].cfg.metadata.l0 == pytest.approx(trained["stock"].cfg.metadata.l0, rel=1e-3)
    stock, ours = (sae_lens.SAE.load_from_disk(tmp_path / which) for which in trained)
    assert type(ours) is type(stock)
    files = [sorted(file.name for file in (tmp_path / which).iterdir()) for which in trained]
    assert files[0] == files[1]
    checkpoint = str(next(next((tmp_path / "ours-checkpoints").iterdir()).iterdir()))
    options = {"output_path": None, "checkpoint_path": None, "n_checkpoints": 0}
    resumed = config_of(resume_from_checkpoint=checkpoint, **options)
    # ours, then SAELens's own
    sae = run(sae_lens.LanguageModelSAETrainingRunner, resumed, dataset, language_model)
    assert (sae.W_dec - trained["ours"].W_dec).norm() < 0.5 * sae.W_dec.norm()


def test_the_runner_of_many(language_model, dataset, tmp_path):
    trained = []
    for place in (contextlib.nullcontext, adapter.patched):
        config = runner_config(
            sae_lens.MultiSAETrainingRunnerConfig,
            saes={"a": sae_config(k=5), "b": sae_config("JumpReLU")},
            hook_names={"a": "blocks.0.hook_resid_post", "b": "blocks.0.hook_resid_pre"},
            output_path=None,
            checkpoint_path=str(tmp_path / place.__name__),
            save_final_checkpoint=True,
        )
        trained.append(run(sae_lens.MultiSAETrainingRunner, config, dataset, language_model, place))
    for name, sae in trained[1].items():
        assert not sae.W_enc.is_contiguous(), "our engine trained it"
        for (key, got), want in zip(sae.named_parameters(), trained[0][name].parameters()):
            assert_near(got, want, 1e-3, f"{name}: {key}")


def test_patching_is_undone():
    modules = [module for name, module in sys.modules.items() if name.split(".")[0] == "sae_lens"]
    places = [module for module in modules if hasattr(module, "SAETrainer")]
    names = {module.__name__ for module in places}
    assert {"sae_lens", "sae_lens.llm_sae_training_runner", "sae_lens.training.multi_sae_trainer"} <= names
    assert all(module.SAETrainer is adapter.Stock for module in places), "the import patched nothing"
    with pytest.raises(RuntimeError), adapter.patched():
        assert all(module.SAETrainer is adapter.SAETrainer for module in places)
        raise RuntimeError
    assert all(module.SAETrainer is adapter.Stock for module in places)
    outer = adapter.patch()
    adapter.patch()
    outer()
    assert all(module.SAETrainer is adapter.Stock for module in places)
