"""How a sweep runs, as opposed to what it computes, and the exit codes of how it ended."""

from dataclasses import dataclass

COMPLETE, SOME_FAILED, BAD_INPUT, ALREADY_RUNNING = 0, 1, 2, 3


@dataclass(frozen=True)
class Options:
    """How a sweep runs, as opposed to what it computes."""

    command: str
    address: str | None = None
    retry_failed: bool = False
    only: tuple[str, ...] | None = None
    train: bool = True
    per_gpu: int = 1
    per_node: int | None = None

    @property
    def packed(self) -> int:
        """How many trials share a GPU or a node."""
        return max(self.per_gpu, self.per_node or 1)
