"""What a DeepFM has to beat: two orders, the formula that ranks without a model, two learners."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold
from sklearn.preprocessing import OneHotEncoder, StandardScaler, TargetEncoder

from ranker_svc.features import CATEGORICAL, COLUMN, DENSE, Features
from ranker_svc.scorers import heuristic
from ranker_svc.scorers.contract import CATEGORICAL_INPUT, Contract
from training.evaluation import Scores
from training.examples import Examples
from training.model import LOGARITHMIC, OPEN
from training.split import Split

_Rank = Callable[[Features], NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Baseline:
    """A way to rank that was fitted, if it is to be fitted.

    Args:
        rank: By which it orders.
        like: The probability of a like.
    """

    rank: _Rank
    like: _Rank

    def scores(self, features: Features) -> Scores:
        """What it says of each row."""
        return Scores(self.rank(features), self.like(features))


def fitted(split: Split, contract: Contract) -> dict[str, Baseline]:
    """All of them by name; ids are hashed by the contract for the logistic regression.

    Those that give no probability get one by logistic regression on the validation days.
    """
    return {
        "chronological": _scaled(lambda f: -_dense(f, "age_hours"), split.validation),
        "popularity": _scaled(lambda f: np.log1p(_dense(f, "like_count")), split.validation),
        "heuristic": _scaled(
            lambda f: heuristic.score(f.dense).astype(np.float64), split.validation
        ),
        "logistic": _logistic(split, contract),
        "boosting": _boosting(split),
    }


def _scaled(rank: _Rank, validation: Examples) -> Baseline:
    line = LogisticRegression().fit(rank(validation.features)[:, None], validation.like)
    return Baseline(rank, lambda f: line.predict_proba(rank(f)[:, None])[:, 1])


def _logistic(split: Split, contract: Contract) -> Baseline:
    scaler = StandardScaler().fit(_spread(split.train.features))
    encoder = OneHotEncoder(handle_unknown="ignore", dtype=np.float32)
    encoder.fit(contract.inputs(split.train.features)[CATEGORICAL_INPUT])

    def columns(features: Features) -> csr_matrix:
        ids = encoder.transform(contract.inputs(features)[CATEGORICAL_INPUT])
        return hstack([csr_matrix(scaler.transform(_spread(features))), ids], format="csr")

    # The strength of the penalty is chosen as DeepFM's last epoch is: by the validation days.
    known, checked = columns(split.train.features), columns(split.validation.features)
    tried = [
        LogisticRegression(C=strength, max_iter=300).fit(known, split.train.like)
        for strength in (0.01, 0.1, 1.0)
    ]
    best = max(tried, key=lambda model: _likelihood(model.predict_proba(checked)[:, 1], split))
    return _learner(lambda f: best.predict_proba(columns(f))[:, 1])


def _boosting(split: Split) -> Baseline:
    open_ids = [CATEGORICAL.index(name) for name in OPEN]
    few_ids = [at for at in range(len(CATEGORICAL)) if at not in open_ids]
    # A tree cannot split on thousands of ids: it gets the share of likes of each, out of fold.
    folds = KFold(shuffle=True, random_state=0)
    encoder = TargetEncoder(target_type="binary", cv=folds)
    known_rates = encoder.fit_transform(split.train.features.ids[:, open_ids], split.train.like)
    few = {at: np.unique(split.train.features.ids[:, at]) for at in few_ids}

    def columns(features: Features, rates: NDArray[np.float64]) -> NDArray[np.float64]:
        codes = [_codes(features.ids[:, at], few[at]) for at in few_ids]
        return np.column_stack((features.dense, rates, *codes))

    first = len(DENSE) + len(OPEN)
    model = HistGradientBoostingClassifier(
        max_iter=500,
        learning_rate=0.05,
        categorical_features=list(range(first, first + len(few_ids))),
        early_stopping=True,
        random_state=0,
    )
    checked = split.validation.features
    model.fit(
        columns(split.train.features, known_rates),
        split.train.like,
        X_val=columns(checked, encoder.transform(checked.ids[:, open_ids])),
        y_val=split.validation.like,
    )
    return _learner(
        lambda f: model.predict_proba(columns(f, encoder.transform(f.ids[:, open_ids])))[:, 1]
    )


def _codes(ids: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.float64]:
    """Places among the known values; NaN for what is not known. Up to 254 values count."""
    place = np.searchsorted(known, ids).clip(max=min(len(known), 254) - 1)
    return np.where(known[place] == ids, place, np.nan)


def _learner(like: _Rank) -> Baseline:
    return Baseline(like, like)


def _likelihood(probability: NDArray[np.float64], split: Split) -> float:
    liked = split.validation.like > 0
    return float(np.log(np.where(liked, probability, 1 - probability)).mean())


def _dense(features: Features, name: str) -> NDArray[np.float64]:
    return features.dense[:, COLUMN[name]].astype(np.float64)


def _spread(features: Features) -> NDArray[np.float32]:
    spread = features.dense.copy()
    columns = [COLUMN[name] for name in LOGARITHMIC]
    spread[:, columns] = np.log1p(np.maximum(spread[:, columns], 0))
    return spread
