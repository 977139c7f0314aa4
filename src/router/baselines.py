"""What a router has to beat: rankings of prompts that need no FastGRNN, some of them no training at all.

scikit-learn (extra ``eval``) is imported when a method that needs it is made. Settings are the library's defaults or
were fixed once on the public tables; none is tuned on the prompts at hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from router.errors import RouterError
from router.prompts import surface_features

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from router.pairs import Pairs

    Array = NDArray[np.floating[Any]]
    Places = NDArray[np.intp]
    Method = Callable[[Pairs, Places, Places, int], Array]

__all__ = ["embedding_baselines", "mean_gain_of_domain", "prompt_length", "random_order", "text_baselines"]

NEIGHBOURS = 40


def random_order(pairs: Pairs, training: Places, test: Places, seed: int) -> Array:
    """Rank by a coin."""
    del pairs, training
    return np.random.default_rng(seed).uniform(size=len(test))


def prompt_length(pairs: Pairs, training: Places, test: Places, seed: int) -> Array:
    """Rank by the number of characters; nothing is learned. Stronger than many a published router."""
    del training, seed
    return np.array([len(pairs.prompts[place]) for place in test], dtype=np.float64)


def mean_gain_of_domain(pairs: Pairs, training: Places, test: Places, seed: int) -> Array:
    """Rank by what the strong model gained in the prompt's domain; it is told the domain, which no prompt says."""
    del seed
    gain = pairs.gain
    known = {d: gain[training][pairs.domains[training] == d].mean() for d in np.unique(pairs.domains[training])}
    return np.array([known.get(domain, gain[training].mean()) for domain in pairs.domains[test]])


def text_baselines() -> dict[str, Method]:
    """Return the baselines that read the text: TF-IDF of words and pairs of words, logistic regression on need."""
    _need_scikit_learn()
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    def tf_idf(pairs: Pairs, training: Places, test: Places, seed: int) -> Array:
        vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2, ngram_range=(1, 2))
        try:
            known = vectorizer.fit_transform([pairs.prompts[place] for place in training])
        except ValueError:  # no word occurs twice: there is nothing to rank by
            return np.zeros(len(test))
        new = vectorizer.transform([pairs.prompts[place] for place in test])
        model = LogisticRegression(max_iter=1000, random_state=seed).fit(known, pairs.harm[training])
        found: Array = model.predict_proba(new)[:, 1]
        return found

    return {"TF-IDF, logistic regression": tf_idf}


def embedding_baselines(pairs: Pairs, embeddings: Array) -> dict[str, Method]:
    """Return the baselines on ``embeddings`` of whole prompts, shape (n, dimension).

    Ridge regression on the gain, logistic regression on need with the surface beside the embedding, the mean gain of
    the nearest neighbours, and a multilayer perceptron for each of the two heads.
    """
    _need_scikit_learn()
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.neighbors import NearestNeighbors
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    surface = surface_features(pairs.prompts)

    def ridge(pairs: Pairs, training: Places, test: Places, seed: int) -> Array:
        del seed
        found: Array = Ridge(1.0).fit(embeddings[training], pairs.gain[training]).predict(embeddings[test])
        return found

    def with_surface(pairs: Pairs, training: Places, test: Places, seed: int) -> Array:
        joined = np.concatenate([embeddings * np.sqrt(embeddings.shape[1]), surface], axis=1)
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000, random_state=seed))
        found: Array = model.fit(joined[training], pairs.harm[training]).predict_proba(joined[test])[:, 1]
        return found

    def neighbours(pairs: Pairs, training: Places, test: Places, seed: int) -> Array:
        del seed
        index = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(training))).fit(embeddings[training])
        found: Array = pairs.gain[training][index.kneighbors(embeddings[test], return_distance=False)].mean(axis=1)
        return found

    def two_heads(pairs: Pairs, training: Places, test: Places, seed: int) -> Array:
        settings: dict[str, Any] = {"hidden_layer_sizes": (64,), "alpha": 1.0, "early_stopping": True}

        def chance(right: Array) -> Array:
            # Early stopping holds out a part with both outcomes in it, which a single exception cannot be.
            if min(right.sum(), len(right) - right.sum()) < 2:
                return np.full(len(test), right.mean())
            model = MLPClassifier(**settings, random_state=seed).fit(embeddings[training], right)
            found: Array = model.predict_proba(embeddings[test])[:, 1]
            return found

        weak, strong = (chance(pairs.outcomes[training, head]) for head in (0, 1))
        return strong - weak

    return {
        "embedding, ridge on gain": ridge,
        "embedding + surface, logistic regression": with_surface,
        "embedding, 40 nearest neighbours": neighbours,
        "embedding, two-head MLP": two_heads,
    }


def _need_scikit_learn() -> None:
    try:
        import sklearn  # noqa: F401 - asked whether it is there
    except ImportError as error:
        raise RouterError("the baselines need scikit-learn: pip install 'eventcore[eval]'") from error
