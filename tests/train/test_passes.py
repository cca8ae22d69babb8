"""What a run trains on, counted row by row: passes, the last batch, rows that are dropped, fewer rows than a batch."""

import json

import pytest
import torch

import saefast
from saefast.activations.sources import IterableSource, TensorSource
from saefast.errors import InputError
from tests.helpers.batches import write

pytestmark = pytest.mark.usefixtures("no_curves")
D_IN = 8


def marked(n):
    """Row i is told apart by its first number, i."""
    rows = torch.randn(n, D_IN, generator=torch.Generator().manual_seed(n))
    rows[:, 0] = torch.arange(n)
    return rows


def fit(source, out, batch_size, total_tokens, stop=None, resume=False, **options):
    """-> the rows of each batch, the lines of metrics.jsonl, the trainer. stop: the step at which it fails."""
    config = saefast.TrainConfig(
        total_tokens=total_tokens,
        batch_size=batch_size,
        buffer_tokens=40,
        log_every=1,
        checkpoint_every=1,
        **options,
    )
    trainer = saefast.Trainer(saefast.SAE(saefast.SAEConfig(d_in=D_IN, d_sae=32, k=4), 0), config)
    step, batches = trainer.step, []

    def recording(x, **checked):
        if trainer.state.step == stop:
            raise InputError("x: stop here")
        batches.append(x[:, 0].long().tolist())
        return step(x, **checked)

    trainer.step = recording
    if stop is None:
        trainer.fit(source, out, resume)
    else:
        with pytest.raises(InputError, match="stop here"):
            trainer.fit(source, out, resume)
    return batches, [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()], trainer


@pytest.mark.parametrize("kind", ["memory", "shards", "iterable"])
@pytest.mark.parametrize(
    "n,batch_size,total_tokens",
    [(33, 16, 200), (100, 16, 320), (32, 16, 96), (16, 16, 40), (9, 16, 100), (1, 4, 10)],
)
@pytest.mark.parametrize("dropped", [False, True])
def test_a_run_takes_every_row_as_often_as_every_other(tmp_path, kind, n, batch_size, total_tokens, dropped):
    """Also when it was stopped at each third step and went on."""
    rows = marked(n)
    bad = list(range(2, n, 7)) if dropped else []
    rows[bad, 1] = torch.inf
    good = [i for i in range(n) if i not in bad]
    steps = -(-total_tokens // batch_size)

    def source():
        if kind == "shards":
            return saefast.open_source(tmp_path / "acts")
        return TensorSource(rows) if kind == "memory" else IterableSource(list(rows.split(5)), D_IN)

    write(tmp_path / "acts", rows)
    sizes = {"batch_size": batch_size, "total_tokens": total_tokens, "nonfinite": "skip"}
    batches, lines, trainer = fit(source(), tmp_path / "whole", **sizes)
    assert len(batches) == steps == trainer.state.step and all(len(batch) == batch_size for batch in batches)
    left = dict.fromkeys(good, 0)
    for i, batch in enumerate(batches, 1):
        for row in batch:
            left[row] += 1
        whole, rest = divmod(i * batch_size, len(good))
        assert set(left.values()) <= {whole, whole + (rest > 0)}
    # a token is a row that was trained on: total_tokens, rounded up to a whole batch
    assert [line["tokens"] for line in lines] == [batch_size * i for i in range(1, steps + 1)]
    # what was dropped is counted each time it comes by, in the passes read so far: the buffer is ahead of the steps
    for line in lines:
        assert len(bad) * (line["tokens"] // len(good)) <= line["rows_skipped"]
        assert line["rows_skipped"] <= len(bad) * ((line["tokens"] + 40) // len(good) + 1)

    again = []
    for stop in [*range(3, steps, 3), None]:
        some, lines_again, _ = fit(source(), tmp_path / "parts", stop=stop, resume=True, **sizes)
        again += some
    assert again == batches
    for a, b in zip(lines_again, lines, strict=True):
        del a["tokens_per_second"], b["tokens_per_second"]
        assert a == b


def test_of_rows_that_come_once_the_last_batch_is_left_out_and_the_steps_are_said(tmp_path, caplog):
    chunks = iter(marked(70).split(9))
    batches, lines, trainer = fit(chunks, tmp_path / "run", 16, 200)
    assert len(batches) == trainer.state.step == 4 and len({row for batch in batches for row in batch}) == 64
    assert lines[-1]["tokens"] == 64
    assert "ended after 4 of 13 steps" in caplog.text
