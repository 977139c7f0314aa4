import json

import numpy as np
import pytest
from typer.testing import CliRunner

from router.cli import app
from router.model_file import BUNDLED_PROMPT_MODEL, load_prompt_model, save_prompt_model
from tests.support.pairs import rows_by_length, write_pairs

pytest.importorskip("sklearn", reason="needs the extra eval")

runner = CliRunner()


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Return a table of made-up pairs: two domains, the weak model fails on long prompts and in one domain."""
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.csv", rows_by_length(240))


@pytest.fixture(scope="module")
def model(table):
    """Return the file of a model trained on it."""
    path = table.parent / "model.safetensors"
    done = runner.invoke(app, ["train", str(table), "--out", str(path), "--embedder", "hashing:64"])
    assert done.exit_code == 0, done.output
    assert str(path.stat().st_size) in done.output
    assert "192 different prompts to learn from are few: what is learned counts 29%" in done.output
    return path


def test_a_trained_model_says_where_it_comes_from(model):
    """The file names data, digest, seed and sizes, and carries the calibration that was held out; it stays small."""
    loaded = load_prompt_model(model)
    assert loaded.provenance.training_data == "pairs.csv"
    assert loaded.provenance.metrics == {"prompts": 192.0, "calibration_prompts": 48.0}
    assert len(loaded.calibration.need) == 48
    assert model.stat().st_size < 100_000


def test_what_can_be_promised_is_said_in_words(table, model):
    """Calibrating shows the threshold, the share and the promise, in expectation or with a probability."""
    plain = runner.invoke(app, ["calibrate", str(table), "--model", str(model), "--alpha", "0.1"])
    assert "of all requests at most 10.0%" in plain.output
    assert "it was trained on prompts of this table" in plain.output
    sure = runner.invoke(app, ["calibrate", str(table), "--model", str(model), "--alpha", "0.3", "--delta", "0.1"])
    assert "with probability 90%" in sure.output
    few = runner.invoke(app, ["route", "x", "--model", str(model), "--alpha", "0.001"])
    assert few.exit_code == 2
    assert "48 calibration requests are too few" in few.output
    assert "999" in few.output


@pytest.mark.slow
def test_an_evaluation_shows_everything_beside_each_other(table, model, tmp_path):
    """One command: baselines and models on the same splits, promises, reliability, plots that are pictures."""
    arguments = ["eval", str(table), "--model", str(model), "--embedder", "hashing:64", "--splits", "2"]
    done = runner.invoke(app, [*arguments, "--plots", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.output[done.output.index("{") : done.output.rindex("}") + 1])
    assert set(found["comparisons"]) == {"equal prompts on one side", "domains unseen in training"}
    scores = found["comparisons"]["equal prompts on one side"]
    assert {"random", "prompt length, untrained", "mean gain of the domain", "the given model"} <= set(scores)
    assert "FastGRNN, two heads, hashing:64" in scores
    assert len(scores["random"]["apgr"]) == 2
    assert np.mean(scores["the given model"]["apgr"]) > 0.6, "it was trained on these prompts"
    assert [promise["alpha"] for promise in found["promises"]] == [0.02, 0.05, 0.1]
    for name in ("quality-cost-equal.png", "quality-cost-domains.png", "reliability.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    shown = runner.invoke(app, [*arguments, "--splits", "1"])
    assert shown.exit_code == 0, shown.output
    assert "Risk control" in shown.output


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["eval", "absent.csv"], "there is no table at absent.csv"),
        (["route", "x", "--model", "absent"], "there is no model file at absent"),
        (["train", "{table}", "--out", "/proc/model", "--embedder", "hashing:64"], "cannot be written"),
        (["train", "{table}", "--out", "m", "--embedder", "nothing"], "there is no embedder 'nothing'"),
    ],
)
def test_mistakes_are_one_clear_error(table, tmp_path, monkeypatch, arguments, reason):
    """An absent table or model, a place that cannot be written, an unknown embedder: exit code 2 and one line."""
    monkeypatch.chdir(tmp_path)
    done = runner.invoke(app, [argument.replace("{table}", str(table)) for argument in arguments])
    assert done.exit_code == 2
    assert reason in " ".join(done.output.split())


def test_a_model_without_calibration_promises_nothing(model, tmp_path):
    """It says so, and which command calibrates it."""
    from dataclasses import replace

    save_prompt_model(replace(load_prompt_model(model), calibration=None), tmp_path / "m")
    done = runner.invoke(app, ["route", "x", "--model", str(tmp_path / "m")])
    assert done.exit_code == 2
    assert "router calibrate" in done.output


def test_inspect_knows_both_kinds(model, tmp_path):
    """A prompt model shows heads, embedder and calibration, a candidate model its own; anything else is refused."""
    shown = runner.invoke(app, ["inspect", str(model)])
    assert shown.exit_code == 0, shown.output
    assert "hashing:64, 8 chunks of 64 dimensions" in shown.output
    assert "48 prompts held out" in shown.output
    of_candidates = runner.invoke(app, ["inspect"]).output
    assert "Calibration(" in of_candidates
    assert "33 quantiles of each" in of_candidates
    (tmp_path / "junk").write_bytes(b"\xff" * 40)
    refused = runner.invoke(app, ["inspect", str(tmp_path / "junk")])
    assert refused.exit_code == 2
    assert "is refused" in refused.output


@pytest.mark.parametrize("name", ["hashing", "minilm"])
def test_the_bundled_models_are_sound_and_small(name):
    """Both say what they were trained on, carry 1,896 held-out prompts, and take less than 100 kB."""
    path = BUNDLED_PROMPT_MODEL.with_name(f"prompt_{name}.safetensors")
    loaded = load_prompt_model(path)
    assert path.stat().st_size < 100_000
    assert (loaded.embedder, loaded.heads) == (name, ("weak", "strong"))
    assert len(loaded.calibration.need) == 1896
    assert loaded.provenance.training_data == "mmlu.csv.gz, gsm8k.csv.gz"
