"""What every environment of the benchmark promises, on top of `gymnasium.Env`."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import gymnasium
import numpy as np
import numpy.typing as npt

from lewm.spelling import nearest

if TYPE_CHECKING:
    from lewm.protocol import Protocol as EvaluationProtocol

SMALLEST_PX, LARGEST_PX = 8, 224
"""Sides of a frame; the largest is the published one."""

Array = npt.NDArray[Any]
State = npt.NDArray[np.float64]
ViolationKind = Literal["physical", "visual"]
Violation = Callable[[State, np.random.Generator], tuple[State, dict[str, Any]]]
"""(state, rng) -> (state after the event, options for `render_state` from then on)."""


class Behaviour(Protocol):
    """A policy that produces data."""

    def reset(self, env: "Env") -> None:
        """Forgets the last episode; called after `env.reset`."""
        ...

    def act(self, env: "Env") -> npt.NDArray[np.float32]:
        """The next action (A,) within the action space."""
        ...


class Env(gymnasium.Env[State, Array]):
    """A world with exact states: the observation is the state vector, frames come only from `render`.

    An episode never terminates by itself (evaluation decides by `success`), so batches step through
    `gymnasium.vector` without resets in between.
    """

    name: ClassVar[str]
    """Its key in `lewm.envs.ENVS`."""
    action_dim: ClassVar[int]
    """Width of the environment's own action, not of a block."""
    behaviours: ClassVar[Mapping[str, Callable[[np.random.Generator], Behaviour]]]
    """Data policies by name; `+` between names is a mixture, see `make_behaviour`."""
    proprio: ClassVar[Mapping[str, int]] = MappingProxyType({})
    """What the body feels of itself: columns `proprio*` of `state_columns` with their widths, if any."""
    image_size: int
    """Pixels per side of a frame."""
    success_rule: ClassVar[Mapping[str, float | bool]]
    """Parameters of `success` and `admits` with their defaults: the keys of `Protocol.success`."""

    render_qualities: ClassVar[tuple[str, ...]] = ("exact",)
    """What `render_quality` may be."""

    def __init__(self, image_size: int, render_quality: str, render_mode: str | None) -> None:
        """Keeps what every world is told of its pictures.

        Raises:
            ValueError: a size or quality that the world does not draw.
        """
        if not SMALLEST_PX <= image_size <= LARGEST_PX:
            raise ValueError(
                f"{self.name}: image_size must be within {SMALLEST_PX}..{LARGEST_PX}, got {image_size}"
            )
        if render_quality not in self.render_qualities:
            raise ValueError(
                f"{self.name}: render_quality must be {' or '.join(self.render_qualities)}, "
                f"got {render_quality!r}"
            )
        self.image_size = image_size
        self.render_quality = render_quality
        self.render_mode = render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[State, dict[str, Any]]:
        """Draws a start and a goal (`draw_task`); options `state` and `goal` set them instead."""
        super().reset(seed=seed)
        self.draw_task()
        if options and "state" in options:
            self.set_state(options["state"])
        if options and "goal" in options:
            self.set_goal(options["goal"])
        return self.get_state(), {}

    @abstractmethod
    def draw_task(self) -> None:
        """A random start and a random goal, both from `np_random`."""

    @abstractmethod
    def get_state(self) -> State:
        """A copy of the state; `set_state` with it restores the world bit for bit."""

    @abstractmethod
    def set_state(self, state: Array) -> None:
        """Puts the world into a state without stepping it."""

    @abstractmethod
    def set_goal(self, goal_state: Array) -> None:
        """Makes a state the goal of the episode."""

    @abstractmethod
    def render(self) -> npt.NDArray[np.uint8]:
        """The frame (H, W, 3) of the current state."""

    @abstractmethod
    def render_state(self, state: Array, **options: Any) -> npt.NDArray[np.uint8]:
        """The frame (H, W, 3) of any state, drawn with the options of a violation."""

    @abstractmethod
    def success(self, protocol: "EvaluationProtocol") -> bool:
        """Whether the state now satisfies the protocol's rule; holding it is the caller's count."""

    @abstractmethod
    def goal_distance(self) -> float:
        """Distance of the state from the goal in the unit of the success rule."""

    @abstractmethod
    def admits(self, protocol: "EvaluationProtocol", start: Array, goal: Array) -> bool:
        """Whether a protocol takes this start and goal state as a pair (its own rules aside)."""

    @abstractmethod
    def reached(self) -> bool:
        """Whether the published success rule holds."""

    def episode_over(self) -> bool:
        """Whether an episode of training data ends here, before its longest length."""
        return False

    @staticmethod
    @abstractmethod
    def physical_state(columns: Mapping[str, Array]) -> dict[str, Array]:
        """Physical quantities (N, k) of N stored rows, by name: the targets of probing."""

    @abstractmethod
    def violations(self) -> dict[str, tuple[ViolationKind, Violation]]:
        """Events that break physics or only the looks, by name."""

    def make_behaviour(self, name: str, rng: np.random.Generator) -> Behaviour:
        """A data policy by name, for one episode.

        Args:
            name: a key of `behaviours`, or several joined by `+`: the episode then follows one of
                them, each with equal probability (`a+a+b` gives a two thirds).

        Raises:
            ValueError: an unknown name (lists the known ones).
        """
        parts = name.split("+")
        for part in parts:
            if part not in self.behaviours:
                raise ValueError(
                    f"{self.name}: unknown policy {part!r}{nearest(part, self.behaviours)}; "
                    f"known: {', '.join(self.behaviours)}, and mixtures such as "
                    f"{'+'.join(list(self.behaviours)[:2])}"
                )
        chosen = parts[0] if len(parts) == 1 else parts[int(rng.integers(len(parts)))]
        return self.behaviours[chosen](rng)

    @abstractmethod
    def state_columns(self, state: Array) -> dict[str, Array]:
        """What is stored of a state in one row of a data file, under the published names."""

    @staticmethod
    @abstractmethod
    def state_from_columns(columns: Mapping[str, Array], row: int) -> State:
        """The state stored in a row of our files or of published ones."""

    @staticmethod
    @abstractmethod
    def coverage(columns: Mapping[str, Array], ep_len: Array) -> dict[str, float]:
        """Figures of a data file that tell whether the world was explored; for its datasheet."""


class Random:
    """Uniform actions in the whole box, a fresh draw for every step; every world has it."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def reset(self, env: Env) -> None:
        """Nothing to forget."""

    def act(self, env: Env) -> npt.NDArray[np.float32]:
        """Uniform numbers (A,) in [-1, 1]."""
        return self._rng.uniform(-1.0, 1.0, env.action_dim).astype(np.float32)
