import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from router import digits
from router.digits import DIGITS_TRAINING, RANK, read_digits, train_digits
from router.errors import DataNotFound

DATA = Path(os.environ.get("EVENTCORE_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
needs_data = pytest.mark.skipif(
    not (DATA / digits.FILE).is_file(), reason="the shared data are not there: name their folder in EVENTCORE_DATA"
)


@pytest.fixture
def folder(tmp_path):
    """A data folder with a few easy digits in the form of the real ones: each has a bright row of its own."""
    random = np.random.default_rng(0)
    images, labels = {}, {}
    for part, count in (("train", 300), ("test", 50)):
        labels[part] = random.integers(0, 10, count)
        images[part] = 0.1 * random.uniform(size=(count, 16, 16)).astype(np.float32)
        images[part][np.arange(count), labels[part] + 3, labels[part]] = 1.0
    (tmp_path / "digits").mkdir()
    np.savez(
        tmp_path / "digits" / "usps.npz",
        train_x=images["train"].reshape(-1, 256),
        train_y=labels["train"],
        test_x=images["test"].reshape(-1, 256),
        test_y=labels["test"],
    )
    return tmp_path


@needs_data
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("rank", "parameters"), [(None, 1932), (RANK, 956)])
def test_usps_digits_are_read(rank, parameters):
    """In 40 epochs, of 100 in the command, 93 % and more are right, by sigmoid and tanh, and in integers.

    Rounding costs less than half a point. What integers cost altogether is a mean over seeds, see docs/fastgrnn.md: two
    networks of one seed differ by half a point either way.
    """
    short = replace(DIGITS_TRAINING, epochs=40)
    with threadpool_limits(1):  # a second thread of BLAS only waits with matrices as small as these
        found = train_digits(read_digits(DATA), rank=rank, training=short)
        quantised = train_digits(read_digits(DATA), rank=rank, integers=True, training=short)
    assert found.parameters == parameters
    assert found.accuracy >= 93.0
    assert quantised.integer_accuracy >= 93.0
    assert quantised.integer_accuracy > quantised.accuracy - 0.5


def test_a_digit_is_read_row_by_row(folder):
    """An image is a sequence of 16 rows of 16 pixels, and what is learned of few epochs is more than chance."""
    found = read_digits(folder)
    assert found.training.shape == (300, 16, 16)
    assert found.training[0, found.training_digits[0] + 3, found.training_digits[0]] == 1.0
    result = train_digits(found, training=replace(DIGITS_TRAINING, epochs=20, batch_size=10, input_noise=0.0))
    assert result.accuracy > 60.0
    assert result.integer_accuracy is None


def test_the_command_prints_a_row_for_each_network(folder, capsys):
    """Full and rank 5, in floats and in integers: four rows, with sizes in numbers and bytes."""
    assert digits.main(["--data", str(folder), "--seeds", "2", "--epochs", "2"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 5
    assert [row.split()[0] for row in rows] == ["network", "full,", "full,", "rank", "rank"]
    assert "1932" in rows[1]
    assert "956" in rows[3]
    assert rows[1].count("±") == 1
    assert rows[2].count("±") == 2


def test_absent_digits_are_one_clear_error(tmp_path, capsys):
    """Without the file the command says where it looked and how to name another folder."""
    with pytest.raises(DataNotFound, match="EVENTCORE_DATA"):
        read_digits(tmp_path)
    assert digits.main(["--data", str(tmp_path)]) == 1
    assert "there are no digits at" in capsys.readouterr().err
