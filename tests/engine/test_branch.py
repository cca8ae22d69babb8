"""`Branch`: what waits for what. The graph itself needs a GPU: tests/engine/test_gpu.py compares it with steps in one line."""

from types import SimpleNamespace

import pytest
import torch

from saefast.engine.branch import Branch

X = SimpleNamespace(device=torch.device("cuda", 0))


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """What was asked of the device, while a stream "main" is recorded."""
    said: list[str] = []

    class Stream:
        device, name = X.device, "side"

        def __init__(self, device=None):
            pass

        def wait_stream(self, other):
            said.append(f"{self.name} waits for {other.name}")

    class Within:
        def __init__(self, stream):
            self.stream = stream

        def __enter__(self):
            said.append(f"enter {self.stream.name}")

        def __exit__(self, *error):
            said.append(f"leave {self.stream.name}")

    main = Stream()
    main.name = "main"
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", Within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    return said


def test_a_branch_begins_after_the_main_line_and_is_waited_for(said) -> None:
    branch = Branch(X)
    with branch:
        said.append("inside")
    said.append("beside")
    branch.join()
    assert said == [
        "side waits for main",
        "enter side",
        "inside",
        "leave side",
        "beside",
        "main waits for side",
    ]


def test_an_error_inside_leaves_the_branch(said) -> None:
    with pytest.raises(ValueError), Branch(X):
        raise ValueError
    assert said[-1] == "leave side"


@pytest.mark.parametrize("where", ["cpu", "not recorded"])
def test_elsewhere_there_is_one_line(said, monkeypatch, where) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    branch = Branch(X if where == "not recorded" else torch.zeros(2))
    with branch:
        said.append("inside")
    branch.join()
    assert said == ["inside"]
