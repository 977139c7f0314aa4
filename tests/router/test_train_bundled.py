import dataclasses
from pathlib import Path

import numpy as np
import pytest

from router import train_bundled
from router.errors import DataNotFound
from router.model_file import load_model
from router.replay import ReplayConfig
from router.training import TrainingConfig

MODELS = ("good", "middling", "bad")


@pytest.fixture
def data(tmp_path):
    """A data folder with a table of three models of known quality over two tasks."""
    random = np.random.default_rng(0)
    lines = ["sample_id,task,split,prompt," + ",".join((*MODELS, *(f"{model}|total_cost" for model in MODELS)))]
    for index in range(400):
        scores = (random.uniform(size=3) < (0.95, 0.6, 0.15)).astype(float)
        task = "code" if index % 2 else "trivia"
        lines.append(f"{index},{task},train,{task} question {index}," + ",".join(map(str, [*scores, 3.0, 2.0, 1.0])))
    table = tmp_path / "data" / train_bundled.TABLE.with_suffix("")
    table.parent.mkdir(parents=True)
    table.write_text("\n".join(lines) + "\n")
    return table


def _train(table, **arguments):
    return _trained(train_bundled.read_outcomes(table), **arguments)


def _trained(outcomes, **arguments):
    return train_bundled.train_router(
        outcomes,
        training=TrainingConfig(learning_rate=1e-2, batch_size=64, epochs=8),
        replaying=ReplayConfig(episodes=3),
        **arguments,
    )


def test_a_model_is_trained_from_a_table(data):
    """The model beats the base rate, ranks well, knows how far to be trusted, and decides both ways."""
    said = []
    model, metrics = _train(data, say=said.append)
    assert metrics["log_loss"] < metrics["log_loss_base_rate"] - 0.05
    assert metrics["auc"] > 0.75
    assert metrics["uncertainty_coverage"] >= 0.8
    assert 0.0 < metrics["lightweight_share"] < 1.0
    assert metrics["lightweight_success_rate"] > 0.8
    assert model.calibration is not None
    assert model.reference.shape == (5, 33)
    assert sum(line.startswith("epoch") for line in said) >= 1


def test_the_same_table_and_seed_give_the_same_model(data):
    """Splits, replay, weights and calibration are reproducible bit for bit; another seed gives another model."""
    (first, one), (second, two), (other, _) = _train(data), _train(data), _train(data, seed=1)
    assert one == two
    features = np.random.default_rng(0).uniform(size=(50, 5)).astype(np.float32)
    assert first.score(features).tobytes() == second.score(features).tobytes()
    assert first.score(features).tobytes() != other.score(features).tobytes()


def test_the_test_prompts_teach_nothing(data):
    """Turning the outcomes of the test prompts around changes the metrics, but no score and no decision."""
    outcomes = train_bundled.read_outcomes(data)
    test = train_bundled.split_prompts(outcomes.prompts, train_bundled.SHARES, seed=0)["test"]
    (model, metrics), success = _train(data), outcomes.success.copy()
    success[test] = ~success[test]
    turned, turned_metrics = _trained(dataclasses.replace(outcomes, success=success))
    features = np.random.default_rng(0).uniform(size=(50, 5)).astype(np.float32)
    assert model.score(features).tobytes() == turned.score(features).tobytes()
    assert metrics["lightweight_share"] == turned_metrics["lightweight_share"] > 0.0
    assert metrics["auc"] == pytest.approx(1.0 - turned_metrics["auc"], abs=1e-5)


def test_the_command_writes_a_model_and_tells_what_it_is_worth(data, tmp_path, monkeypatch, capsys):
    """It shows progress and test metrics, and the file carries data hash, seed and the same metrics."""
    monkeypatch.setattr(train_bundled, "TABLE", data.relative_to(tmp_path / "data"))
    out = tmp_path / "model.safetensors"
    assert train_bundled.main(["--data", str(tmp_path / "data"), "--out", str(out), "--seed", "3"]) == 0
    shown = capsys.readouterr().out
    assert "epoch   1" in shown
    provenance = load_model(out).provenance
    assert (provenance.seed, provenance.training_data) == (3, data.name)
    assert f"{provenance.metrics['auc']:g}" in shown


def test_missing_data_end_the_command_with_a_reason(tmp_path, monkeypatch, capsys):
    """Without the folder or the table the exit code is 1, and standard error names the path and the way to give it."""
    out = tmp_path / "model.safetensors"
    assert train_bundled.main(["--data", str(tmp_path / "absent"), "--out", str(out)]) == 1
    assert "absent: name one with --data or EVENTCORE_DATA" in capsys.readouterr().err
    monkeypatch.setenv("EVENTCORE_DATA", str(tmp_path))
    assert train_bundled.main(["--out", str(out)]) == 1
    assert "no outcome table at" in capsys.readouterr().err
    assert not out.exists()


def test_the_data_folder_is_the_given_one_then_the_environments(tmp_path, monkeypatch):
    """--data goes before EVENTCORE_DATA; with neither it is ../shared/data beside the checkout."""
    given, named = tmp_path / "given", tmp_path / "named"
    given.mkdir()
    named.mkdir()
    monkeypatch.setenv("EVENTCORE_DATA", str(named))
    assert train_bundled.find_data(str(given)) == given
    assert train_bundled.find_data(None) == named
    monkeypatch.delenv("EVENTCORE_DATA")
    beside = Path(train_bundled.__file__).resolve().parents[3] / "shared" / "data"
    if beside.is_dir():
        assert train_bundled.find_data(None) == beside
    else:
        with pytest.raises(DataNotFound, match="shared"):
            train_bundled.find_data(None)
