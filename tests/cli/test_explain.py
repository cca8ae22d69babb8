"""`saefast explain`: from a run and its records to explanations, scores, pages and files."""

import json

import pytest

from saefast import cli
from saefast.interp.explanations import read_explanations
from saefast.interp.lines import read_lines
from tests.helpers.llm_server import FakeServer
from tests.helpers.tiny_world import run

pytestmark = pytest.mark.usefixtures("no_curves")
FEW = "--n-top 3 --n-intervals 0 --n-quantiles 0"


@pytest.fixture(scope="module")
def looked(world, tmp_path_factory):
    """Records of latents and neurons of the world's run, in contexts of 64 tokens, and a cache for them."""
    folder = tmp_path_factory.mktemp("explain")
    cache = "--hook model.layers.1 --context-length 64 --contexts-per-batch 4"
    run(f"cache {world}/model {world}/text {cache} --out {folder}/cache --tokens 1200")
    run(f"look {world}/run {folder}/cache --no-map {FEW} --records {folder}/records --out {folder}/look")
    run(
        f"look {world}/run {folder}/cache --no-map {FEW} --neurons --records {folder}/neurons --out {folder}/look-n"
    )
    return folder


def command(world, looked, out, more=""):
    kinds = f"--records {looked}/records --neurons {looked}/neurons"
    return f"explain {world}/run {kinds} --out {out} --draws 20 {more}"


def rows_of(out):
    return list(read_lines(out / "results.jsonl"))


def test_every_latent_and_neuron_then_the_table_the_report_and_the_pages(world, looked, tmp_path, capsys):
    out = tmp_path / "lookup"
    run(command(world, looked, out))
    said = capsys.readouterr().out
    head, *rows = rows_of(out)
    kinds = [row["kind"] for row in rows]
    assert kinds.count("neurons") == 32 and kinds.count("features") > 20
    assert head["explained by"] == "lookup" and head["judged by"] == "the program itself"
    assert (
        f"{kinds.count('features')} features" in said and "units with a correlation of at least 0.8" in said
    )
    assert said.rstrip().endswith(f"open {out}/report.html") and "100%" in (out / "report.md").read_text()
    scored = [row for row in rows if row["scores"]]
    assert scored and set(scored[0]["scores"]) == {"simulation", "detection", "fuzz"}
    told = {one["latent"]: one for one in read_explanations(looked / "records") if one["method"] == "lookup"}
    row = next(row for row in scored if row["kind"] == "features")
    one = told[row["latent"]]
    assert one["explanation"] == row["explanation"]
    assert one["scores"]["simulation"] == row["scores"]["simulation"]["ev_correlation_score"]
    assert one["scores"]["detection"] == row["scores"]["detection"]["balanced_accuracy"]
    for kind in ("features", "neurons"):
        assert "explanations" in (out / kind / "data" / "explanations.js").read_text()[:200]
    before = (out / "results.jsonl").read_bytes()
    run(command(world, looked, out))
    assert (out / "results.jsonl").read_bytes() == before
    run(f"export {world}/run --records {looked}/records --to openai --out {tmp_path}/openai")
    (exported,) = (tmp_path / "openai" / "explanations").glob(f"*/{row['latent']}.jsonl")
    (first, *_) = json.loads(exported.read_text())["scored_explanations"]
    simulated = first["scored_simulation"]
    assert 5 <= len(simulated["scored_sequence_simulations"]) <= 10
    value = row["scores"]["simulation"]["ev_correlation_score"]
    assert simulated["ev_correlation_score"] == pytest.approx(value, abs=1e-4)  # from rounded numbers


@pytest.mark.parametrize(
    "more", ["--with rules --revise", "--with ngrams --score simulation embedding examples intruder saebench"]
)
def test_other_programs_and_scores(world, looked, tmp_path, more, capsys):
    out = tmp_path / "out"
    run(command(world, looked, out, f"{more} --units 4 --controls 2 --no-pages"))
    assert len(rows_of(out)) == 5 and not (out / "features").exists()


def test_what_a_local_model_will_be_asked_is_said_before(world, looked, tmp_path, capsys):
    asked = f"--with {world}/model --units 2 --controls 0 --no-pages --score detection --latents 1 2 3"
    with pytest.raises(SystemExit):
        run(command(world, looked, tmp_path / "a", f"{asked} --dry-run --budget 1"))
    assert "budget: dollars need price_in" in capsys.readouterr().err
    run(command(world, looked, tmp_path / "a", f"{asked} --dry-run"))
    assert "questions" in (said := capsys.readouterr().out) and "tokens for 2 units" in said
    assert not (tmp_path / "a" / "results.jsonl").exists()


@pytest.mark.slow  # the bank is 1,500 requests
def test_a_server_explains_and_judges_and_what_it_said_is_kept(world, looked, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SAEFAST_API_KEY", "sk-secret-of-the-test")
    with FakeServer() as server:
        asked = f"--with {server.url}#tiny --units 2 --controls 0 --no-pages --score detection --untrusted"
        run(command(world, looked, tmp_path / "out", f"{asked} --price 1 2"))
        n_asked = len(server.requests)
        report = (tmp_path / "out" / "report.md").read_text()
        assert "NOT TO BE TRUSTED: detection" in report and "Spent on servers" in report
        (tmp_path / "out" / "results.jsonl").unlink()
        run(command(world, looked, tmp_path / "out", f"{asked} --price 1 2"))
        assert len(server.requests) <= n_asked + 2  # what it can do is tried again
        with pytest.raises(SystemExit):
            run(command(world, looked, tmp_path / "other", asked.replace("--untrusted", "")))
        assert "--untrusted has it score all the same" in capsys.readouterr().err
    told = [one for one in read_explanations(looked / "records") if one["model"] == "tiny"]
    assert all(one["scores"] == {} for one in told)  # of a judge that may not speak
    for path in (tmp_path / "out").rglob("*"):
        assert not path.is_file() or b"sk-secret-of-the-test" not in path.read_bytes()


def test_bad_input(world, looked, tmp_path, capsys):
    for more, message in (
        ("--latents 99999", "latents: expected numbers from 0 to 63 of features"),
        ("--units=0", "units: expected at least 1, got 0"),
        ("--draws=-1", "draws: expected 0 or more, got -1"),
        ("--with given", "judge: expected a language model that judges the given explanations"),
        ("--score surprisal", "score: surprisal needs a language model that judges"),
        ("--checked none.json", "checked: expected a sheet that --sheet wrote"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run(command(world, looked, tmp_path / "bad", f"{more} --no-pages"))
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["explain", str(tmp_path)])
    assert "records: expected records or records-neurons" in capsys.readouterr().err


def test_results_of_other_records_are_not_gone_on_with(world, looked, tmp_path, capsys):
    """The neurons of one width are the same dictionary on any text: the text counts, too."""
    run(
        f"explain {world}/run --neurons {looked}/neurons --out {tmp_path}/out --draws 0 --controls 0 --no-pages"
    )
    run(
        f"look {world}/run {looked}/cache --no-map {FEW} --tokens 1000 --neurons --records {tmp_path}/n --out {tmp_path}/l"
    )
    before = (tmp_path / "out" / "results.jsonl").read_bytes()
    with pytest.raises(SystemExit):
        run(
            f"explain {world}/run --neurons {tmp_path}/n --out {tmp_path}/out --draws 0 --controls 0 --no-pages"
        )
    assert "expected results of the same settings, it has those of units" in capsys.readouterr().err
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == before
