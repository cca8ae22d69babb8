import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from saefast.errors import InputError
from saefast.interp.explain.models import CannotAnswer, Turn
from saefast.interp.explain.models.cache import FILE, Cached


class Toy:
    """A model that says what it was asked, and remembers it."""

    name = "toy"
    gives_choices = True
    reads_prompts = False

    def __init__(self, at_once=1, fails=()):
        self.at_once, self.fails, self.asked = at_once, set(fails), []
        self.batch = 16 if at_once == 1 else 1

    def _seen(self, items):
        self.asked.append(list(items))
        for item in items:
            if item in self.fails:
                raise InputError(f"no answer to {item}")

    def write(self, prompts, *, max_tokens, temperature=0.0, n=1, seed=0):
        self._seen([prompt[-1].text for prompt in prompts])
        return [[f"{prompt[-1].text} {max_tokens} {temperature} {seed}"] * n for prompt in prompts]

    def choices(self, prompts, choices):
        self._seen([prompt[-1].text for prompt in prompts])
        return np.array([[1 / 3, 2 / 3] if choices[0] == "a" else [0.1, 0.9] for _ in prompts])

    def choices_inside(self, segments, choices):
        self._seen([segment[0] for segment in segments])
        return [np.full((len(segment) - 1, len(choices)), 1 / len(choices)) for segment in segments]

    def losses(self, texts):
        self._seen([text for _, text in texts])
        return [np.arange(len(text)) / 3 for _, text in texts]

    def all_asked(self):
        return [item for items in self.asked for item in items]


def prompts(*texts):
    return [(Turn("user", text),) for text in texts]


def test_only_what_is_missing_is_asked_whatever_the_batch(tmp_path):
    model = Toy()
    first = Cached(model, tmp_path).write(prompts("a", "b", "a"), max_tokens=5)
    assert first == [["a 5 0.0 0"], ["b 5 0.0 0"], ["a 5 0.0 0"]] and model.all_asked() == ["a", "b"]
    again = Cached(model, tmp_path).write(prompts("c", "b", "d", "a"), max_tokens=5)
    assert [row[0][0] for row in again] == ["c", "b", "d", "a"] and model.asked[1:] == [["c", "d"]]


def test_everything_that_an_answer_depends_on_counts(tmp_path):
    model = Toy()
    cached = Cached(model, tmp_path)
    conversation = [(Turn("system", "a"), Turn("user", "b"))]
    ways = [
        lambda: cached.write(prompts("b"), max_tokens=5),
        lambda: cached.write(prompts("b"), max_tokens=6),
        lambda: cached.write(prompts("b"), max_tokens=5, temperature=1.0),
        lambda: cached.write(prompts("b"), max_tokens=5, n=2),
        lambda: cached.write(prompts("b"), max_tokens=5, seed=1),
        lambda: cached.write([(Turn("assistant", "b"),)], max_tokens=5),
        lambda: cached.write(conversation, max_tokens=5),
        lambda: cached.choices(prompts("b"), ["a", "b"]),
        lambda: cached.choices(prompts("b"), ["b", "a"]),
        lambda: cached.choices_inside([["b", ""]], ["b", "a"]),
        lambda: cached.choices_inside([["b", "", ""]], ["b", "a"]),
        lambda: cached.losses([("a", "b")]),
        lambda: cached.losses([("ab", "b")]),
    ]
    found = [way() for way in ways]
    assert len(model.asked) == len(ways)
    for way, before in zip(ways, found):
        np.testing.assert_equal(way(), before)
    assert len(model.asked) == len(ways)
    other = Toy()
    other.name = "another"
    Cached(other, tmp_path).write(prompts("b"), max_tokens=5)
    other.identity = ["http://elsewhere/v1", "another"]
    Cached(other, tmp_path).write(prompts("b"), max_tokens=5)
    assert len(other.asked) == 2


def test_arrays_come_back_bit_by_bit(tmp_path):
    model = Toy()
    for _ in range(2):
        cached = Cached(model, tmp_path)
        found = cached.choices(prompts("x", "y"), ["a", "b"])
        assert found.dtype == np.float64 and found.tolist() == [[1 / 3, 2 / 3]] * 2
        one, none = cached.losses([("a", "bcd"), ("a", "")])
        assert one.tolist() == [0, 1 / 3, 2 / 3] and none.shape == (0,) and one.dtype == np.float64
        inside = cached.choices_inside([["a", "b"], ["alone"]], ["1", "2", "3"])
        assert [rows.shape for rows in inside] == [(1, 3), (0, 3)]
        assert cached.choices([], ["a", "b"]).shape == (0, 2)
    assert len(model.asked) == 3


def test_what_was_answered_before_a_failure_is_kept(tmp_path):
    model = Toy(at_once=4, fails=["9"])
    texts = [str(i) for i in range(40)]
    with pytest.raises(InputError, match="no answer to 9"):
        Cached(model, tmp_path).write(prompts(*texts), max_tokens=5)
    answered = [text for text in model.all_asked() if text != "9"]
    assert {str(i) for i in range(9)} <= set(answered) and len(answered) < 40  # it stopped
    healed = Toy(at_once=4)
    assert len(Cached(healed, tmp_path).write(prompts(*texts), max_tokens=5)) == 40
    assert sorted(healed.all_asked()) == sorted(set(texts) - set(answered))


def test_many_threads_and_connections(tmp_path):
    models = [Toy(at_once=3) for _ in range(4)]
    caches = [Cached(model, tmp_path) for model in models]
    with ThreadPoolExecutor(8) as pool:
        jobs = [
            pool.submit(caches[i % 4].write, prompts(*map(str, range(i, i + 20))), max_tokens=5)
            for i in range(24)
        ]
        for i, job in enumerate(jobs):
            assert [row[0].split()[0] for row in job.result()] == list(map(str, range(i, i + 20)))
    last = Toy()
    Cached(last, tmp_path).write(prompts(*map(str, range(43))), max_tokens=5)
    assert last.asked == []


def test_what_a_model_can_is_kept_and_what_it_cannot_is_looked_at_again(tmp_path):
    model = Toy()
    cached = Cached(model, tmp_path)
    assert (cached.name, cached.at_once, cached.gives_choices, cached.reads_prompts) == (
        "toy",
        1,
        True,
        False,
    )
    model.gives_choices, model.reads_prompts = False, True
    again = Cached(model, tmp_path)
    assert again.gives_choices and again.reads_prompts


def test_a_refusal_is_not_kept(tmp_path):
    model = Toy()
    model.choices = lambda *_: (_ for _ in ()).throw(CannotAnswer("no"))
    with pytest.raises(CannotAnswer):
        Cached(model, tmp_path).choices(prompts("a"), ["a", "b"])
    assert len(Cached(Toy(), tmp_path).choices(prompts("a"), ["a", "b"])) == 1


@pytest.mark.parametrize("wait", [0.05, 0.2])
def test_a_kill_at_any_moment_loses_nothing_that_was_kept(tmp_path, wait):
    code = f"""
import time
from saefast.interp.explain.models import Turn
from saefast.interp.explain.models.cache import Cached

class Slow:
    name, at_once = "slow", 4
    def write(self, prompts, **settings):
        time.sleep(0.001)
        answers = [[prompt[0].text + " answered"] for prompt in prompts]
        return answers

class Told(Cached):
    def _keep(self, key, answer):
        text = super()._keep(key, answer)
        print(answer[0], flush=True)
        return text

Told(Slow(), {str(tmp_path)!r}).write([(Turn("user", str(i)),) for i in range(20000)], max_tokens=5)
"""
    process = subprocess.Popen([sys.executable, "-P", "-c", code], stdout=subprocess.PIPE, text=True)
    first = process.stdout.readline()
    time.sleep(wait)
    os.kill(process.pid, signal.SIGKILL)
    told = (first + process.stdout.read()).splitlines()
    process.wait()
    told = [line for line in told if line.endswith(" answered")]  # the last one may be cut
    assert 0 < len(told) < 20000

    class Slow(Toy):
        name = "slow"

    model = Slow()
    found = Cached(model, tmp_path).write(prompts(*[line.split()[0] for line in told]), max_tokens=5)
    assert [row[0] for row in found] == told and model.asked == []


def test_a_damaged_file_is_named(tmp_path):
    Cached(Toy(), tmp_path).write(prompts(*map(str, range(200))), max_tokens=5)
    path = tmp_path / FILE
    sqlite3.connect(path).execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    whole = path.read_bytes()

    def read():
        Cached(Toy(), tmp_path).write(prompts(*map(str, range(200))), max_tokens=5)

    read()
    path.write_bytes(b"not a database, but some text that is longer than its header" * 20)
    with pytest.raises(InputError, match=f"{path}: damaged.*not a database"):
        read()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=f"{path}: damaged"):
        read()
    changed = whole.replace(b'["17 5 0.0 0"]', b'["18 5 0.0 0"]')
    assert changed != whole
    path.write_bytes(changed)
    with pytest.raises(InputError, match=f"{path}: damaged.*an answer has changed"):
        read()
    path.write_bytes(whole)
    read()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        Cached(Toy(), tmp_path / "file")


def test_text_of_any_kind_is_kept(tmp_path):
    model = Toy()
    odd = ["", "\u0000", "\ud800", "\U0001f600", "a" * 10_000, "'; DROP TABLE answers"]
    found = Cached(model, tmp_path).write(prompts(*odd), max_tokens=5)
    assert Cached(model, tmp_path).write(prompts(*odd), max_tokens=5) == found
    assert [len(batch) for batch in model.asked] == [6] and json.dumps(found)
