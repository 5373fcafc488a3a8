"""Selection: which anchors, positives and negatives make a round's groups. Pure NumPy."""

from miner.core.anchors import choose_anchors
from miner.core.config import CurriculumConfig, QuarantineConfig, SelectionConfig
from miner.core.ledger import Selection
from miner.core.mine import History, Search, mine_round
from miner.core.permutation import group_order
from miner.core.report import SelectionReport
from miner.core.select import random_groups, select_groups

__all__ = [
    "CurriculumConfig",
    "History",
    "QuarantineConfig",
    "Search",
    "Selection",
    "SelectionConfig",
    "SelectionReport",
    "choose_anchors",
    "group_order",
    "mine_round",
    "random_groups",
    "select_groups",
]
