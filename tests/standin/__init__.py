"""The stand-in: GitHub on the loopback, for the tests and the demo."""

from standin.faults import Fault
from standin.server import StandIn
from standin.settings import Lag


__all__ = ["Fault", "Lag", "StandIn"]
