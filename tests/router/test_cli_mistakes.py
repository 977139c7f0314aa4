import json

import pytest
from typer.testing import CliRunner

from router.cli import app
from router.model_file import BUNDLED_MODEL, BUNDLED_PROMPT_MODEL
from tests.support.pairs import COLUMNS, rows_by_chance, write_pairs

runner = CliRunner()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with one good table and many that are not."""
    folder = tmp_path_factory.mktemp("tables")
    rows = rows_by_chance(80)
    write_pairs(folder / "good.csv", rows)
    write_pairs(folder / "three.csv", rows[:3])
    write_pairs(folder / "header.csv", [])
    write_pairs(folder / "columns.csv", [row[:3] for row in rows], COLUMNS[:3])
    write_pairs(folder / "nan.csv", [[*row[:3], "NaN"] for row in rows])
    write_pairs(folder / "always.csv", [[*row[:2], True, True] for row in rows])
    write_pairs(folder / "needed.csv", [[*row[:2], False, True] for row in rows])
    write_pairs(folder / "equal.csv", [["a", "the same", *row[2:]] for row in rows])
    (folder / "empty.csv").touch()
    (folder / "picture.csv").write_bytes(b"\x89PNG\r\n" + bytes(range(256)))
    (folder / "sub").mkdir()
    return folder


TABLES = [
    ("empty.csv", "lacks the column 'domain'"),
    ("header.csv", "no rows"),
    ("columns.csv", "lacks the column 'strong_correct'"),
    ("nan.csv", "line 2: strong_correct is 'NaN', expected True or False"),
    ("picture.csv", "is not UTF-8 text"),
    ("sub", "is a directory: name the tables in it"),
    ("absent.csv", "there is no table at"),
]
UNFIT = [
    ("three.csv", "too few|20 are the least"),
    ("equal.csv", "1 different prompts are too few|20 are the least"),
    ("always.csv", "right on none of these|no gap to recover"),
    ("needed.csv", "right on all of these|nothing to learn to tell apart"),
]
OTHERS = [
    (["calibrate", "three.csv", "--model", "MODEL"], "3 calibration requests are too few"),
    (["calibrate", "three.csv", "--model", "MODEL", "--alpha", "0.3", "--delta", "0.1"], "collect at least 9"),
    (["calibrate", "good.csv", "--model", "MODEL", "--alpha", "2"], "alpha is 2.0: use a number between 0 and 1"),
    (["calibrate", "good.csv", "--model", "MODEL", "--alpha", "nan"], "alpha is nan"),
    (["calibrate", "good.csv", "--model", "MODEL", "--out", "sub"], "it is a directory; choose a writable path"),
    (["calibrate", "good.csv", "--model", "OTHER"], "expected 'eventcore-router-prompt-v1'"),
    (["calibrate", "good.csv", "--model", "sub"], "it is a directory"),
    (["route", "x", "--model", "MODEL", "--alpha", "2"], "alpha is 2.0"),
    (["route", "x", "--model", "OTHER"], "expected 'eventcore-router-prompt-v1'"),
    (["route", "x", "--model", "good.csv"], "truncated or no safetensors file"),
    (["inspect", "sub"], "it is a directory"),
    (["inspect", "good.csv"], "truncated or no safetensors file"),
    (["inspect", "absent"], "there is no model file at"),
    (["train", "good.csv", "--out", "sub"], "it is a directory; choose a writable path"),
    (["train", "good.csv", "--out", "absent/model"], "choose a writable path"),
    (["train", "good.csv", "--out", "/proc/model"], "choose a writable path"),
    (["train", "good.csv", "--out", "/dev/null"], "it is no regular file; choose a writable path"),
    (["train", "good.csv", "--out", "model", "--embedder", "nothing"], "there is no embedder 'nothing'"),
    (["train", "good.csv", "--out", "model", "--embedder", "hashing:1"], "embedding dimension 1 is too small"),
    (["eval", "good.csv", "--model", "OTHER"], "expected 'eventcore-router-prompt-v1'"),
    (["eval", "good.csv", "--embedder", "hashing:x"], "the dimension has to be a whole number"),
    (["eval", "good.csv", "--embedder", "hashing:64", "--plots", "good.csv"], "name a folder"),
]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (arguments, reason)
        for table, reason in [*TABLES, *UNFIT]
        for arguments in (
            ["train", table, "--out", "model", "--embedder", "hashing:64"],
            ["eval", table, "--embedder", "hashing:64"],
        )
    ]
    + [(["calibrate", table, "--model", "MODEL"], reason) for table, reason in TABLES]
    + [(["quantize", "MODEL", "model", table], reason) for table, reason in TABLES]
    + OTHERS,
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(folder, monkeypatch, arguments, reason):
    """What is wrong with a table, a setting, a model or a place: exit code 2, one line that says so, and no file."""
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    known = {"MODEL": str(BUNDLED_PROMPT_MODEL), "OTHER": str(BUNDLED_MODEL)}
    done = runner.invoke(app, [known.get(argument, argument) for argument in arguments])
    assert done.exit_code == 2, done.output
    assert len(done.output.splitlines()) == 1
    assert any(part in done.output for part in reason.split("|")), done.output
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("policy", ["--threshold", "--budget"])
def test_a_setting_without_limit_is_shown_as_one(policy):
    """An infinite tolerance or budget is a setting like any other, in words and in JSON, which knows no infinity."""
    shown = runner.invoke(app, ["route", "x", policy, "inf"])
    assert shown.exit_code == 0, shown.output
    assert f"{policy[2:]} inf" in " ".join(shown.output.split())
    assert json.loads(runner.invoke(app, ["route", "x", policy, "inf", "--json"]).output)["policy"] == policy[2:]


def test_bytes_that_are_no_text_are_routed(folder):
    """What cannot be read of standard input is replaced: a request is answered, whatever it holds."""
    done = runner.invoke(app, ["route", "-", "--json"], input=b"\xff\xfe what is 2 + 2?")
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["prompt_characters"] == 17


@pytest.mark.slow
def test_what_a_small_table_does_not_allow_is_left_out(folder):
    """With 80 prompts a promise of 2 % is not shown, the others are; a domain without a gap is no way to split."""
    pytest.importorskip("sklearn", reason="needs the extra eval")
    rows = [[*row[:2], True, True] if row[0] == "b" else row for row in rows_by_chance(160, weak=0.5)]
    write_pairs(folder / "half.csv", rows)
    arguments = ["eval", str(folder / "half.csv"), "--embedder", "hashing:64", "--splits", "1"]
    found = json.loads(runner.invoke(app, [*arguments, "--json"]).stdout)
    assert list(found["comparisons"]) == ["equal prompts on one side"]
    assert [promise["alpha"] for promise in found["promises"]] == [0.05, 0.1]
    assert "domains unseen in training" in found["left_out"]
    shown = runner.invoke(app, arguments)
    assert shown.exit_code == 0
    assert f"left out, {found['left_out']['domains unseen in training']}" in " ".join(shown.output.split())
