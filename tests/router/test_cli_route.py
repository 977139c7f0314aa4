import json

import numpy as np
import pytest
from typer.testing import CliRunner

from router.cli import app
from router.model_file import load_prompt_model
from router.prompts import SURFACE_NAMES
from router.uncertainty import wilson_interval
from tests.support.pairs import rows_by_length, write_pairs

runner = CliRunner()

POLICIES = {"alpha": 0.2, "threshold": 0.5, "share": 0.3, "budget": 4.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return the file of a model trained on made-up pairs: the weak model fails on long prompts, and in one domain."""
    table = write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.csv", rows_by_length(480))
    path = table.parent / "model.safetensors"
    done = runner.invoke(app, ["train", str(table), "--out", str(path), "--embedder", "hashing:64"])
    assert done.exit_code == 0, done.output
    return path


def routed(model, prompt, *options):
    """Return what is said of a prompt."""
    done = runner.invoke(app, ["route", prompt, "--model", str(model), *options, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


def test_a_request_is_routed_and_explained(model):
    """The decision follows from need and threshold, which are shown; a request of the easy domain needs less."""
    found = [routed(model, prompt, "--alpha", "0.2") for prompt in ("a1 a2 a3 a4 a5", "b1 b2 b3 " * 12)]
    for shown in found:
        assert shown["need"] == pytest.approx(shown["quality"]["strong"] - shown["quality"]["weak"], abs=2e-4)
        assert shown["decision"] == ("weak" if shown["need"] < float(shown["threshold"]) else "strong")
    assert found[0]["need"] < found[1]["need"]


def test_the_explanation_has_features_score_interval_and_decision(model):
    """Each of them, in a table for readers; a prompt may come on standard input."""
    shown = runner.invoke(app, ["route", "-", "--model", str(model)], input="a1 a2")
    assert shown.exit_code == 0, shown.output
    for word in (*SURFACE_NAMES, "score", "need", "interval", "policy", "decision", "in calibration"):
        assert word in shown.output
    decision = routed(model, "a1 a2")["decision"]
    assert f"Sent to the {decision} model: its need for the strong one is" in " ".join(shown.output.split())


def test_features_are_held_against_the_training_prompts(model):
    """Values are those that the model reads, with their distance from the training mean in standard deviations."""
    loaded = load_prompt_model(model)
    features = routed(model, "a1 " * 30)["features"]
    assert tuple(features) == SURFACE_NAMES
    assert features["log_digits"]["value"] == pytest.approx(np.log1p(30), abs=1e-3)
    away = (np.log1p(30) - loaded.surface_mean[3]) / loaded.surface_std[3]
    assert features["log_digits"]["deviations"] == pytest.approx(away, abs=0.01)


def test_the_interval_is_of_the_held_out_prompts_nearest_in_need(model):
    """How many of them the weak model harmed, with Wilson's interval."""
    shown, known = routed(model, "b1 b2 b3"), load_prompt_model(model).calibration
    like = shown["harm_of_like_prompts"]
    assert like["prompts"] == min(100, len(known.need))
    assert like["low"] <= like["rate"] <= like["high"]
    low, high = wilson_interval(like["rate"] * like["prompts"], like["prompts"])
    assert (like["low"], like["high"]) == pytest.approx((low, high), abs=1e-3)


@pytest.mark.parametrize("policy", POLICIES)
def test_each_policy_decides_and_is_explained(model, policy):
    """The need decides by the policy's threshold; what it does to the held-out prompts keeps its promise."""
    needs = load_prompt_model(model).calibration.need
    options = (f"--{policy}", str(POLICIES[policy]), "--prices", "1", "10")
    for prompt in ("a1 a2", "b1 b2 b3 " * 12):
        shown = routed(model, prompt, *options)
        assert (shown["policy"], shown[policy]) == (policy, POLICIES[policy])
        assert (shown["need"] < shown["threshold"]) == (shown["decision"] == "weak")
        seen = shown["in_calibration"]
        kept = {
            "alpha": seen["harmed"] <= 0.2,
            "threshold": seen["to_weak"] == pytest.approx((needs <= 0.5).mean(), abs=1e-4),
            "share": 1.0 - seen["to_weak"] <= 0.3,
            "budget": seen["mean_price"] <= 4.0,
        }
        assert kept[policy]
        said = runner.invoke(app, ["route", prompt, "--model", str(model), *options])
        assert f"{policy} {POLICIES[policy]:g}: weak where the need is below {shown['threshold']}" in said.output


@pytest.mark.parametrize(("prompt", "given"), [("", None), (" ", None), ("-", "\n")])
def test_an_empty_prompt_is_a_mistake(model, prompt, given):
    """Nothing can be seen of it."""
    done = runner.invoke(app, ["route", prompt, "--model", str(model)], input=given)
    assert done.exit_code == 2
    assert "the prompt is empty: give the request's text" in " ".join(done.output.split())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--share", "0.3", "--alpha", "0.1"], "--alpha and --share are two policies: give one of"),
        (["--budget", "0.5"], "a budget of 0.5 per request is below the cheapest price, 1"),
        (["--prices", "3", "1"], "the prices are 3 and 1"),
        (["--share", "1.5"], "the share is 1.5"),
        (["--threshold", "-1"], "the tolerance is -1.0"),
        (["--alpha", "0.001"], "calibration requests are too few to promise a risk of 0.001: collect at least 999"),
        (["--alpha", "2"], "alpha is 2.0"),
    ],
)
def test_policies_that_make_no_sense_are_one_clear_error(model, options, reason):
    """Named, with the remedy, and exit code 2."""
    done = runner.invoke(app, ["route", "x", "--model", str(model), *options])
    assert done.exit_code == 2
    assert reason in " ".join(done.output.split())
    assert "Traceback" not in done.output


def test_a_prompt_is_routed_without_naming_a_model():
    """The bundled model needs no encoder; where more harm is accepted, at least as much goes to the weak model."""
    arguments = (["route", "What is 2 + 2?", "--alpha", str(alpha), "--json"] for alpha in (0.001, 0.3))
    assert [json.loads(runner.invoke(app, each).output)["decision"] for each in arguments] == ["strong", "weak"]
