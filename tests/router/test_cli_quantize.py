import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from router import Candidate, Router, RoutingRequest
from router.cli import app
from router.embedding import HashingEmbedder
from router.errors import ModelFormatError
from router.model_file import (
    BUNDLED_MODEL,
    BUNDLED_PROMPT_MODEL,
    PROMPT_INT8_FORMAT,
    load_prompt_model,
    save_prompt_model,
)
from router.model_store import read_model, write_model
from router.prompts import embed_chunks
from tests.support.pairs import rows_by_chance, write_pairs

runner = CliRunner()

PROMPTS = ["What is 12 times 7?", "Name the capital of France.", "Write a sort in Python:\n\ndef sort(xs):"]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Return a table of 200 short prompts on which both models are right now and then."""
    rows = rows_by_chance(200, weak=0.7, domains=1)
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.csv", rows)


@pytest.fixture(scope="module")
def small(tmp_path_factory, table):
    """Return the file of the bundled model in eight bits, calibrated on the table."""
    path = tmp_path_factory.mktemp("int8") / "small.safetensors"
    done = runner.invoke(app, ["quantize", str(BUNDLED_PROMPT_MODEL), str(path), str(table)])
    assert done.exit_code == 0, done.output
    assert "calibrated on 200 prompts" in done.output
    return path


def _quality(path):
    model = load_prompt_model(path)
    return model.quality(PROMPTS, embed_chunks(PROMPTS, HashingEmbedder(), model.chunk_count))


def test_the_file_is_a_quarter_and_says_nearly_the_same(tmp_path, small):
    """Like with like, without a calibration, it has at most a quarter of the bytes; probabilities differ by little."""
    bare, out = tmp_path / "bare.safetensors", tmp_path / "int8.safetensors"
    save_prompt_model(replace(load_prompt_model(BUNDLED_PROMPT_MODEL), calibration=None), bare)
    done = runner.invoke(app, ["quantize", str(bare), str(out)])
    assert done.exit_code == 0, done.output
    assert out.stat().st_size <= bare.stat().st_size / 4
    assert f"{out.stat().st_size} bytes" in done.output
    difference = np.abs(_quality(out) - _quality(BUNDLED_PROMPT_MODEL))
    assert 0.0 < difference.max() < 0.02
    np.testing.assert_array_equal(_quality(out), _quality(small))


@pytest.mark.parametrize("name", ["hashing", "minilm"])
def test_with_a_calibration_of_its_size_it_is_a_quarter_too(tmp_path, name):
    """The bundled models with their 1,896 calibrated prompts take at most a quarter in eight bits."""
    source = BUNDLED_PROMPT_MODEL.with_name(f"prompt_{name}.safetensors")
    out = tmp_path / "int8.safetensors"
    assert runner.invoke(app, ["quantize", str(source), str(out)]).exit_code == 0
    calibration = load_prompt_model(source).calibration
    save_prompt_model(replace(load_prompt_model(out), calibration=calibration), out)
    assert len(load_prompt_model(out).calibration.need) == 1896
    assert out.stat().st_size <= source.stat().st_size / 4


def test_inspect_says_what_it_is_and_of_what_it_was_made(small):
    """It names INT8, the float32 file with its size and digest, the training data, and the calibration."""
    digest = hashlib.sha256(BUNDLED_PROMPT_MODEL.read_bytes()).hexdigest()
    shown = "".join(runner.invoke(app, ["inspect", str(small)]).output.split())
    assert f"INT8,madefrom{BUNDLED_PROMPT_MODEL.name}({BUNDLED_PROMPT_MODEL.stat().st_size}bytes" in shown
    assert f"SHA-256{digest}" in shown
    assert "trainedonmmlu.csv.gz,gsm8k.csv.gz" in shown
    assert "200promptsheldout" in shown
    assert "INT8" not in runner.invoke(app, ["inspect", str(BUNDLED_PROMPT_MODEL)]).output


def test_a_request_is_routed_with_it(small):
    """``router route`` explains the decision of the INT8 file as of any other."""
    done = runner.invoke(app, ["route", PROMPTS[0], "--model", str(small), "--alpha", "0.2", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert found["calibration_size"] == 200
    assert found["decision"] == ("weak" if found["need"] < float(found["threshold"]) else "strong")


def test_it_serves_and_is_reloaded(small):
    """A router takes it as its prompt model, and swaps it for the float32 one and back while it serves."""
    random = np.random.default_rng(0)
    candidates = [Candidate(id=name, embedding=random.normal(size=384)) for name in ("weak", "strong")]
    request = RoutingRequest(random.normal(size=384), candidates, prompt=PROMPTS[0])
    router = Router(prompt_model=load_prompt_model(small))
    rounded = router.route(request).quality
    router.reload_prompt_model(BUNDLED_PROMPT_MODEL)
    exact = router.route(request).quality
    router.reload_prompt_model(small)
    np.testing.assert_array_equal(router.route(request).quality, rounded)
    assert 0.0 < np.abs(rounded - exact).max() < 0.02


@pytest.mark.slow
def test_an_evaluation_ranks_it(small, table):
    """``router eval --model`` takes the INT8 file, and keeps the promises with its scores."""
    pytest.importorskip("sklearn", reason="needs the extra eval")
    arguments = ["eval", str(table), "--model", str(small), "--embedder", "hashing:64", "--splits", "1", "--json"]
    done = runner.invoke(app, arguments)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["ours"] == "the given model"
    assert 0.0 < found["comparisons"]["equal prompts on one side"]["the given model"]["apgr"][0] < 1.0
    assert [promise["alpha"] for promise in found["promises"]] == [0.02, 0.05, 0.1]


def test_a_calibration_is_not_carried_over_and_can_be_made_later(tmp_path, table, small):
    """Without DATA there is none, and the command to make one is named; what it makes is what DATA would have made."""
    path = tmp_path / "int8.safetensors"
    done = runner.invoke(app, ["quantize", str(BUNDLED_PROMPT_MODEL), str(path)])
    assert f"router calibrate DATA… --model {path} --out {path}" in done.output
    refused = runner.invoke(app, ["route", "x", "--model", str(path)])
    assert refused.exit_code == 2
    assert "carries no calibration" in refused.output
    done = runner.invoke(app, ["calibrate", str(table), "--model", str(path), "--alpha", "0.2", "--out", str(path)])
    assert done.exit_code == 0, done.output
    assert load_prompt_model(path).rounded_from == load_prompt_model(small).rounded_from
    assert path.read_bytes() == small.read_bytes()


def test_a_loaded_file_is_saved_as_it_was(tmp_path, small):
    """Loading and saving an INT8 file gives the same bytes: rounding again changes nothing."""
    save_prompt_model(load_prompt_model(small), tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == small.read_bytes()


def test_what_cannot_be_quantised_is_one_clear_error(tmp_path, small):
    """A model of candidates, one in eight bits, no model, the model itself as OUT: exit code 2, a reason, no file."""
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(BUNDLED_PROMPT_MODEL.read_bytes())
    out = tmp_path / "out.safetensors"
    for arguments, reason in (
        ([BUNDLED_MODEL, out], "is a model of candidates"),
        ([small, out], "in eight bits already, made from prompt_hashing.safetensors"),
        ([tmp_path / "absent", out], "there is no model file"),
        ([tmp_path, out], "it is a directory"),
        ([mine, mine], "is the model itself"),
        ([mine, tmp_path], "it is a directory; choose a writable path"),
        ([mine, tmp_path / "absent" / "out"], "choose a writable path"),
        ([mine, out, tmp_path / "absent.csv"], "there is no table"),
    ):
        done = runner.invoke(app, ["quantize", *map(str, arguments)])
        assert done.exit_code == 2, arguments
        assert reason in done.output
        assert len(done.output.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine.safetensors"]
    assert mine.read_bytes() == BUNDLED_PROMPT_MODEL.read_bytes()


def test_a_file_that_is_not_whole_is_refused(tmp_path, small):
    """Cut at any of 40 places, or with one byte of its arrays changed, it is refused with a reason."""
    whole, path = small.read_bytes(), tmp_path / "broken"
    for length in np.linspace(0, len(whole) - 1, 40, dtype=int):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelFormatError, match="is refused"):
            load_prompt_model(path)
    for place in np.linspace(len(whole) - 14000, len(whole) - 1, 20, dtype=int):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ModelFormatError, match="it has been altered"):
            load_prompt_model(path)


def test_a_sound_file_of_another_shape_is_refused(tmp_path, small):
    """Arrays that do not make the network of the header, a calibration of another count: refused, with the reason."""
    header, tensors = read_model(
        small, {PROMPT_INT8_FORMAT: lambda header, tensors: (dict(header), tensors)}, remedy=""
    )
    weights = np.zeros(100, np.int8)
    for other_header, other_tensors, reason in (
        ({}, {"weights": weights}, "make no projection"),
        ({}, {"weights": weights.astype(np.float32)}, "expected weights in int8"),
        ({}, {"foreign": weights}, "expected weights in int8"),
        ({"calibration_prompts": 7}, {}, "a calibration of 7 prompts"),
        ({"rounded_from": {"name": "x"}}, {}, "its header is incomplete"),
        ({"surface_crc32": 0}, {}, "other surface features"),
    ):
        write_model(tmp_path / "other", header | other_header, tensors | other_tensors)
        with pytest.raises(ModelFormatError, match=reason):
            load_prompt_model(tmp_path / "other")
