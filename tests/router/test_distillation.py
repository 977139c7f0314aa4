import math

import numpy as np
import pytest

from router.distillation import Distillation, mean_logits
from router.errors import ConfigError, DimensionMismatch, NonFiniteInput
from router.fastgrnn import FastGRNN, FastGRNNConfig
from router.training import Examples, TrainingConfig, binary_cross_entropy, softmax_cross_entropy, train

RANDOM = np.random.default_rng(1)
LOGITS, TEACHER = RANDOM.standard_normal((6, 3)), 2.0 * RANDOM.standard_normal((6, 3))
HARD = np.eye(3)[[0, 2, 1, 1, 0, 2]]


def _targets(distillation):
    return distillation.examples(Examples(np.zeros((6, 2, 1)), HARD), TEACHER).targets


def test_the_loss_of_claims_is_its_formula():
    """α·T²·BCE(σ(student/T), σ(teacher/T)) + (1 - α)·BCE(σ(student), outcome), worked out number by number."""
    temperature, alpha = 3.0, 0.7

    def cross_entropy(logit, target):
        p = 1.0 / (1.0 + math.exp(-logit))
        return -target * math.log(p) - (1.0 - target) * math.log(1.0 - p)

    total = 0.0
    for i, j in np.ndindex(6, 3):
        taught = 1.0 / (1.0 + math.exp(-TEACHER[i, j] / temperature))
        total += alpha * temperature**2 * cross_entropy(LOGITS[i, j] / temperature, taught)
        total += (1.0 - alpha) * cross_entropy(LOGITS[i, j], HARD[i, j])
    distillation = Distillation(temperature, alpha)
    loss, _ = distillation.loss(LOGITS, _targets(distillation))
    assert loss == pytest.approx(total / 18, rel=1e-12)


def test_the_loss_of_classes_is_its_formula():
    """With exclusive classes both parts are cross-entropies of a softmax, the soft one at temperature T, times T²."""
    temperature, alpha = 2.5, 0.4

    def softmax(row):
        powers = [math.exp(value) for value in row]
        return [power / sum(powers) for power in powers]

    total = 0.0
    for i in range(6):
        student, taught = softmax(LOGITS[i] / temperature), softmax(TEACHER[i] / temperature)
        total -= alpha * temperature**2 * sum(t * math.log(s) for t, s in zip(taught, student, strict=True))
        total -= (1.0 - alpha) * sum(h * math.log(s) for h, s in zip(HARD[i], softmax(LOGITS[i]), strict=True))
    distillation = Distillation(temperature, alpha, exclusive=True)
    loss, _ = distillation.loss(LOGITS, _targets(distillation))
    assert loss == pytest.approx(total / 6, rel=1e-12)


@pytest.mark.parametrize("exclusive", [False, True])
def test_the_gradient_is_the_derivative(exclusive):
    """The gradient agrees with finite differences of the loss."""
    distillation = Distillation(3.0, 0.6, exclusive=exclusive)
    targets = _targets(distillation)
    _, gradient = distillation.loss(LOGITS, targets)
    for index in np.ndindex(LOGITS.shape):
        high, low = LOGITS.copy(), LOGITS.copy()
        high[index] += 1e-5
        low[index] -= 1e-5
        slope = (distillation.loss(high, targets)[0] - distillation.loss(low, targets)[0]) / 2e-5
        assert gradient[index] == pytest.approx(slope, abs=1e-8)


@pytest.mark.parametrize(("exclusive", "plain"), [(False, binary_cross_entropy), (True, softmax_cross_entropy)])
def test_without_weight_the_teacher_has_no_say(exclusive, plain):
    """At α = 0 the loss is the plain one against the outcomes; at α = 1, T = 1 the plain one against the teacher."""
    none = Distillation(4.0, 0.0, exclusive=exclusive)
    loss, gradient = none.loss(LOGITS, _targets(none))
    assert loss == plain(LOGITS, HARD)[0]
    np.testing.assert_array_equal(gradient, plain(LOGITS, HARD)[1])
    alone = Distillation(1.0, 1.0, exclusive=exclusive)
    taught = alone.probabilities(TEACHER)
    assert alone.loss(LOGITS, _targets(alone))[0] == pytest.approx(plain(LOGITS, taught)[0])


def test_a_student_at_the_teacher_has_nothing_to_learn_from_it():
    """Where the student's logits are the teacher's, the soft gradient is zero, at any temperature."""
    for exclusive in (False, True):
        distillation = Distillation(5.0, 1.0, exclusive=exclusive)
        _, gradient = distillation.loss(TEACHER, _targets(distillation))
        np.testing.assert_allclose(gradient, 0.0, atol=1e-15)


def _fitted(examples, seed, loss=binary_cross_entropy):
    network = FastGRNN.initialise(FastGRNNConfig(6, 12), seed=seed)
    config = TrainingConfig(learning_rate=2e-2, epochs=60, batch_size=20, schedule="cosine", seed=seed)
    train(network, examples, None, config, loss=loss)
    return network


def _says(network, inputs):
    return 0.5 + 0.5 * np.tanh(0.5 * network.run(inputs).logits)


def test_a_taught_student_is_better_than_one_of_outcomes_alone():
    """Of few and noisy outcomes a student of three teachers comes nearer to the truth, by 2 standard errors of 16."""
    gains = []
    for draw in range(16):
        random = np.random.default_rng(draw)
        inputs = random.standard_normal((240, 2, 6)).astype(np.float32)
        truth = 1.0 / (1.0 + np.exp(-1.5 * inputs[:, 0, :1] + inputs[:, 1, 1:2]))
        outcomes = (random.uniform(size=truth.shape) < truth).astype(np.float32)
        seen, unseen = Examples(inputs[:40], outcomes[:40]), inputs[40:]
        teachers = [_fitted(seen, seed) for seed in (1, 2, 3)]
        distillation = Distillation(3.0, 1.0)
        taught = distillation.examples(seen, mean_logits([_says(teacher, seen.inputs) for teacher in teachers]))
        alone, student = _fitted(seen, 0), _fitted(taught, 0, distillation.loss)
        errors = [np.abs(_says(network, unseen) - truth[40:]).mean() for network in (alone, student)]
        gains.append(errors[0] - errors[1])
    assert np.mean(gains) > 2.0 * np.std(gains, ddof=1) / math.sqrt(16)


def test_teachers_vote_with_their_probabilities():
    """The logits of several teachers are those of their mean probability, however sure one of them is."""
    sure, unsure = np.array([[1.0, 0.5]]), np.array([[0.2, 0.5]])
    np.testing.assert_allclose(mean_logits([sure, unsure]), [[math.log(0.6 / 0.4), 0.0]], atol=1e-12)
    assert np.isfinite(mean_logits([sure])).all()


def test_what_does_not_fit_is_refused():
    """A temperature or weight out of range, and a teacher that says too little or nothing, are named."""
    with pytest.raises(ConfigError, match="temperature is 0"):
        Distillation(0.0)
    with pytest.raises(ConfigError, match=r"alpha is 1\.5"):
        Distillation(alpha=1.5)
    examples = Examples(np.zeros((6, 2, 1)), HARD)
    with pytest.raises(DimensionMismatch, match=r"logits have shape \(6, 2\)"):
        Distillation().examples(examples, TEACHER[:, :2])
    with pytest.raises(NonFiniteInput, match="train it again"):
        Distillation().examples(examples, np.full_like(TEACHER, np.nan))
