"""The demo: the whole loop on one machine, against the field's baselines on equal terms."""

from miner.app.demo.arms import Pace
from miner.app.demo.run import DemoSettings, run_demo

__all__ = ["DemoSettings", "Pace", "run_demo"]
