"""A simulated flight, rendered by ourselves: what a demo and the tests fly when there is no aircraft at hand."""

from onboard.sim.source import SimSource

__all__ = ["SimSource"]
