"""Joint training: all tasks at once for as many steps as the tasks have together, the upper bound."""

from continual.finetune import FineTune


class Joint(FineTune):
    """A learner as any other; what differs is that its stream is one task (`streams.merge_tasks`)."""
