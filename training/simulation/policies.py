"""Ways to order a feed."""

from ranker_svc.scorers import heuristic
from training.simulation.feeds import Policy

HEURISTIC = Policy(
    heuristic.HeuristicScorer.version, lambda ranked: heuristic.score(ranked.features.dense)
)
