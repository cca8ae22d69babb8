"""A sweep: the bits of separate runs, resume after kills between checkpoints, one table, one plot."""

import json
import os
import signal
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

import saefast.train.run.run
from saefast import SAEConfig, TrainConfig
from saefast.activations.sources import TensorSource
from saefast.sweep import Member, names, pareto, sweep
from saefast.train.parallel import side_by_side, workers_for
from saefast.train.run.export import export_checkpoint
from saefast.train.run.run import Run
from tests.helpers.stopped_runs import assert_same, context, make_source, result

pytestmark = pytest.mark.usefixtures("no_curves")

STEPS = 40
SHARED = {"total_tokens": STEPS * 64, "batch_size": 64, "buffer_tokens": 256, "lr": 3e-3, "log_every": 5}


def member(d_sae=64, k=4, activation="topk", columns=None, d_in=16, name="", **options):
    config = TrainConfig(**(SHARED | {"checkpoint_every": 2, "dead_feature_threshold": 200} | options))
    return Member(SAEConfig(d_in=d_in, d_sae=d_sae, k=k, activation=activation), config, columns, name)


MEMBERS = [
    member(),
    member(d_sae=96),
    member(activation="batch_topk", seed=1),
    member(d_sae=32, k=2, ema_decay=0.9),
]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_each_has_the_bits_of_a_run_of_its_own(workers, tmp_path):
    """On as many threads as each has here, and with the seed of the stream."""
    source, threads = make_source("random access"), torch.get_num_threads()
    same_seed = [m for m in MEMBERS if m.train.seed == 0]
    assert sweep(same_seed, source, tmp_path / "sweep", workers=workers)
    assert torch.get_num_threads() == threads
    torch.set_num_threads(max(1, threads // workers))
    try:
        for label, m in zip(names(same_seed), same_seed, strict=True):
            saefast.Trainer(saefast.SAE(m.sae, m.train.seed), m.train).fit(source, tmp_path / label)
            assert_same(result(tmp_path / "sweep" / label), result(tmp_path / label))
    finally:
        torch.set_num_threads(threads)


def test_seeds_share_the_stream_and_differ_in_weights(tmp_path):
    source = make_source("random access")
    both = [member(seed=0), member(seed=1)]
    sweep(both, source, tmp_path / "a", seed=7)
    first, second = (result(tmp_path / "a" / label) for label in names(both))
    assert torch.equal(first[0]["buffer.row_of"], second[0]["buffer.row_of"])
    assert first[3] != second[3]  # sae.safetensors
    trainer = saefast.Trainer(saefast.SAE(both[1].sae, 1), both[1].train)
    with pytest.raises(saefast.InputError, match="seed = 7"):  # alone it would be given other batches
        trainer.fit(source, tmp_path / "a" / names(both)[1], resume=True)


def test_layers_side_by_side(tmp_path):
    rows = make_source("random access").tensor
    wide = TensorSource(torch.cat([rows, rows.flip(0) * 2], dim=1))
    parts = [member(columns=(0, 16)), member(columns=(16, 32)), member(d_in=32)]
    table = sweep(parts, wide, tmp_path / "wide", held_out=wide)
    for i, own in enumerate((rows, rows.flip(0) * 2, wide.tensor)):
        sae = saefast.SAE(parts[i].sae, 0)
        saefast.Trainer(sae, parts[i].train).fit(own)
        trained = saefast.SAE.from_pretrained(tmp_path / "wide" / names(parts)[i])
        for got, want in zip(trained.params, sae.params, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        want = saefast.evaluate(trained, own)
        assert table[i]["fvu"] == pytest.approx(want.fvu, rel=1e-9)
        assert (table[i]["l0"], table[i]["n_tokens"]) == (want.l0, want.n_tokens)


def train(out, kind, die_after=None):
    """die_after: end the process, with nothing put in order, after so many checkpoints."""
    torch.set_num_threads(2)
    if die_after:
        from saefast.train.run import checkpoint

        save, saved = checkpoint.save, []

        def save_and_die(*args):
            save(*args)
            saved.append(1)
            if len(saved) == die_after:
                os.kill(os.getpid(), signal.SIGKILL)

        checkpoint.save = save_and_die
    return sweep(MEMBERS[:-1], make_source(kind), out, resume=True, workers=1) is not None


def steps_of(out):
    found = sorted(out.glob("*/checkpoint.safetensors"))
    return [saefast.files.load_tensors(path)[1]["step"] for path in found]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["random access", "iterable"])
def test_killed_sweeps_resume_to_the_same_bits(tmp_path, kind):
    """Three SAEs: a kill after 2, 4 or 5 checkpoints leaves them at different steps."""
    whole, out = tmp_path / "whole", tmp_path / "killed"
    assert train(whole, kind)
    for die_after in (2, 5, 4):
        child = context.Process(target=train, args=(out, kind, die_after))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        assert len(steps_of(out)) < 3 or len(set(steps_of(out))) > 1
    assert train(out, kind)
    for label in names(MEMBERS[:-1]):
        assert_same(result(out / label), result(whole / label))


def test_a_stopped_sweep_gives_its_saes_and_may_be_longer(tmp_path, monkeypatch):
    """Each has the bits of a run that was stopped there alone; the longer one those of its two schedules."""
    source, few, steps = make_source("random access"), [member(), member(d_sae=96)], []
    after_step = Run.after_step

    def stopping(run):
        steps.append(run.trainer.state.step)
        if len(steps) == 10:
            signal.raise_signal(signal.SIGTERM)
        return after_step(run)

    monkeypatch.setattr(Run, "after_step", stopping)
    assert sweep(few, source, tmp_path / "a", workers=1) is None
    monkeypatch.undo()
    assert steps_of(tmp_path / "a") == [5, 5]
    for label in names(few):
        saved = saefast.SAE.from_pretrained(tmp_path / "a" / label)
        export_checkpoint(tmp_path / "a" / label, tmp_path / label)
        again = saefast.SAE.from_pretrained(tmp_path / label)
        for got, want in zip(saved.params, again.params, strict=True):
            assert torch.equal(got, want)
    total = few[0].train.total_tokens + 10 * few[0].train.batch_size
    longer = [replace(m, train=replace(m.train, total_tokens=total)) for m in few]
    assert len(sweep(longer, source, tmp_path / "a", resume=True, workers=1)) == 2
    assert steps_of(tmp_path / "a") == [longer[0].train.total_steps] * 2


def test_a_sweep_can_grow(tmp_path):
    """The finished ones pass, a new one starts from the first batch."""
    few = [member(), member(d_sae=96)]
    source = make_source("random access")
    sweep(few, source, tmp_path / "a")
    before = [result(tmp_path / "a" / label) for label in names(few)]
    more = [*few, member(d_sae=32)]
    assert len(sweep(more, source, tmp_path / "a", resume=True)) == 3
    sweep(more, source, tmp_path / "b")
    for label, was in zip(names(more), [*before, result(tmp_path / "b" / names(more)[2])], strict=True):
        assert_same(result(tmp_path / "a" / label), was)


def test_one_that_diverges_ends_alone(tmp_path, caplog):
    source = make_source("random access")
    three = [member(), member(lr=1e30), member(d_sae=96)]
    table = sweep(three, source, tmp_path / "a", held_out=source)
    assert "diverged" in table[1] and "fvu" in table[0] and "fvu" in table[2]
    assert "the others go on" in caplog.text
    assert "diverged" in pareto.table(table)
    sweep([member()], source, tmp_path / "b")
    alone = saefast.SAE.from_pretrained(tmp_path / "b" / names([member()])[0])
    kept = saefast.SAE.from_pretrained(tmp_path / "a" / names(three)[0])
    for got, want in zip(kept.params, alone.params, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    with pytest.raises(saefast.InputError, match="diverged|lr"):
        sweep([member(lr=1e30), member(lr=2e30)], source, tmp_path / "c")


def test_the_table_is_evaluate_and_the_plot_is_there(tmp_path):
    source = make_source("random access")
    held_out = TensorSource(source.tensor[:500] + 0.01)
    table = sweep(MEMBERS, source, tmp_path / "a", held_out=held_out)
    written = json.loads((tmp_path / "a" / "table.json").read_text())["rows"]
    assert [row["name"] for row in written] == names(MEMBERS)
    for row, label in zip(table, names(MEMBERS), strict=True):
        want = saefast.evaluate(saefast.SAE.from_pretrained(tmp_path / "a" / label), held_out)
        assert row["fvu"] == pytest.approx(want.fvu, rel=1e-6) and row["l0"] == pytest.approx(want.l0)
    assert (tmp_path / "a" / "pareto.png").read_bytes()[1:4] == b"PNG"
    text = pareto.table(table).splitlines()
    assert len(text) == 5 and text[0].split() == ["name", "l0", "fvu", "dead_frac", "cosine"]


def test_the_front():
    points = [(16.0, 0.5), (32.0, 0.3), (32.0, 0.2), (8.0, 0.6), (64.0, 0.25)]
    assert pareto.front(points) == [(8.0, 0.6), (16.0, 0.5), (32.0, 0.2)]
    assert pareto.front(points, up=True) == [(8.0, 0.6)]


@pytest.mark.parametrize(
    "others,message",
    [
        ([member(batch_size=32)], "batch_size: expected the same for all"),
        ([member(total_tokens=64)], "total_tokens: expected the same"),
        ([member(buffer_tokens=512)], "buffer_tokens: expected the same"),
        ([member(nonfinite="skip")], "nonfinite: expected the same"),
        ([member(d_in=8)], "d_in: expected 16, the columns it is given, got 8"),
        ([member(columns=(0, 17))], "columns: expected two numbers from 0 to 16"),
        ([member(columns=(0, 8))], "d_in: expected 8, the columns it is given, got 16"),
        ([member(d_sae=64)], "members: expected SAEs that differ"),
        ([member(d_sae=96, name="../a")], "name: expected the name of a folder"),
    ],
)
def test_what_cannot_share_a_stream_is_refused(others, message, tmp_path):
    with pytest.raises(saefast.InputError, match=message):
        sweep([member(), *others], make_source("random access"), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_an_existing_folder_and_contexts_without_text_are_refused(tmp_path):
    source = make_source("random access")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine").write_text("")
    with pytest.raises(saefast.InputError, match="out: expected a new folder"):
        sweep([member()], source, tmp_path / "a")
    with pytest.raises(saefast.InputError, match="contexts: expected a shard folder of `saefast cache`"):
        sweep([member()], source, tmp_path / "b", held_out=source, contexts=4)


def test_on_a_gpu_each_has_a_stream_after_what_came_before_and_before_what_comes_after(monkeypatch):
    """The calls to CUDA, in order; `test_gpu.py` runs them."""
    calls, now = [], ["main"]

    class Stream:
        def __init__(self, device=None, name=None):
            self.device, self.name = device, name or f"s{sum(c[0] == 'new' for c in calls)}"
            calls.append(("new", self.name))

        def wait_stream(self, other):
            calls.append((self.name, "waits for", other.name))

    @contextmanager
    def on(stream):
        now.append(stream.name)
        yield
        now.pop()

    main = Stream(name="main")
    calls.clear()
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr(torch.cuda, "stream", on)
    with side_by_side(2, "cuda") as together:
        calls.clear()
        found = together(lambda item: calls.append((now[-1], item)) or item * 10, [1, 2, 3])
    assert found == [10, 20, 30]
    before, work, after = calls[:2], calls[2:5], calls[5:]
    assert before == [("s0", "waits for", "main"), ("s1", "waits for", "main")]
    assert work == [("s0", 1), ("s1", 2), ("s0", 3)]
    assert after == [("main", "waits for", "s0"), ("main", "waits for", "s1")]
    assert workers_for(12, "cuda") == 4 and workers_for(2, "cuda") == 2
