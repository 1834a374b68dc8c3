"""Ways to order a feed."""

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np

from ranker_svc.features import COLUMN
from ranker_svc.scorers import heuristic
from ranker_svc.scorers.onnx import OnnxScorer
from training.simulation.feeds import Mesh, Policy, Ranked, Scores
from training.simulation.readers import inclination
from training.simulation.state import State
from training.simulation.world import World

WITHOUT_DISCOVERY = replace(Mesh(), discovery_limit=0)
WITHOUT_EXPLORATION = replace(Mesh(), exploration_share=0.0, epsilon=0.0)


def _newest(ranked: Ranked) -> Scores:
    return np.float32(1) / (1 + ranked.features.dense[:, COLUMN["age_hours"]])


def _drawn(ranked: Ranked) -> Scores:
    return np.array([ranked.chance.random() for _ in ranked.posts], np.float32)


def _by_formula(ranked: Ranked) -> Scores:
    return heuristic.score(ranked.features.dense)


CHRONOLOGICAL = Policy("chronological", _newest)
RANDOM = Policy("random", _drawn)
HEURISTIC = Policy(heuristic.VERSION, _by_formula)


def by_model(file: Path) -> Policy:
    """By a model in ONNX; raises ValueError when it does not load."""
    scorer = OnnxScorer(file)
    loop = asyncio.Runner()

    def score(ranked: Ranked) -> Scores:
        return np.clip(loop.run(scorer.score(ranked.features)), 0, 1)

    return Policy(scorer.version, score)


def oracle(world: World, state: State) -> Policy:
    """By the readers' own tastes, which nobody else knows: an upper bound."""

    def score(ranked: Ranked) -> Scores:
        likely = inclination(world, state, ranked.reader, ranked.posts, ranked.now_ms)
        return likely.astype(np.float32)

    return Policy("oracle", score)
