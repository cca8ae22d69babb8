"""`saefast blind`: deal, status, unseal."""

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from saefast.interp.blind import planted
from tests.helpers.blind_deals import rated
from tests.helpers.tiny_world import run

FLAGS = "--units 4 --n-intervals 5 --per-interval 2 --rated 2 --before 3 --after 2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blind")
    words = planted(folder, 4).vocabulary.raw
    vocabulary = {word.decode().strip(): i for i, word in enumerate(words)}
    model = models.WordLevel(vocabulary, unk_token=next(iter(vocabulary)))
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model)).save_pretrained(folder / "model")
    return folder


def refused(capsys, command, message):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(command)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and message in err and "Traceback" not in err


def test_from_records_to_results(folder, capsys):
    both, out = f"{folder}/one-kind/records {folder}/mixtures/records", folder / "deal"
    named = f"blind deal {both} --names features neurons --model {folder}/model"
    refused(
        capsys, f"blind deal {both} --model {folder}/model --out {out}", "names: expected 2 different names"
    )
    refused(capsys, f"{named} --out {out} {FLAGS} --rated 6", "rated: expected at most")
    run(f"{named} --out {out} {FLAGS}")
    said = capsys.readouterr().out
    assert "features: 4 units of 4 tried, 0 of them dead, 0 with too few examples" in said
    commitment = said.split()[-1]
    refused(capsys, f"{named} --out {out} {FLAGS}", "out: expected a new folder")
    file = rated(out)
    run(f"blind status {out} {file}")
    assert capsys.readouterr().out == f"8 cards, committed to {commitment}\nAB: 8 rated, 0 missing\n"
    refused(capsys, f"blind unseal {out} {folder}/model/tokenizer.json", "expected a file of ratings")
    run(f"blind unseal {out} {file}")
    said = capsys.readouterr().out
    assert "4 units of neurons: median 5 (95 %: 5 to 5)" in said and "permutation p = 1," in said
    assert (out / "results.png").exists() and (out / "results.json").exists()
