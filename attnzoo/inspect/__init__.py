"""What needs a model in memory: its cost."""

from attnzoo.inspect.cost import Cost, count_macs, measure

__all__ = ["Cost", "count_macs", "measure"]
