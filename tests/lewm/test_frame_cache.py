import numpy as np
import pytest

from lewm.envs import ENVS, make_env
from lewm.envs.frame_cache import FrameCache, _Frames

SOFTWARE_DRAWN = ("cube", "reacher")


@pytest.mark.parametrize(
    "name", [pytest.param(e, marks=[pytest.mark.ci] * (e in SOFTWARE_DRAWN)) for e in sorted(ENVS)]
)
def test_a_frame_is_decided_by_its_state_and_options_and_drawn_once(name, monkeypatch):
    world, elsewhere = make_env(name, image_size=40), make_env(name, image_size=40)
    state, _ = world.reset(seed=0)
    elsewhere.reset(seed=1)
    for _ in range(3):
        elsewhere.step(elsewhere.action_space.sample())
    looks = {
        event: change(state, np.random.default_rng(0))
        for event, (kind, change) in world.violations().items()
        if kind == "visual"
    }
    wanted = [(state, {}), *looks.values()]
    drawn = [FrameCache(elsewhere).draw(place, **options) for place, options in wanted]
    assert len({frame.tobytes() for frame in drawn}) == len(wanted)
    for frame, (place, options) in zip(drawn, wanted, strict=True):
        np.testing.assert_array_equal(frame, world.render_state(place, **options))
    monkeypatch.setattr(type(world), "render_state", None)
    again = [FrameCache(world).draw(place, **options) for place, options in wanted]
    assert all(a is b for a, b in zip(again, drawn, strict=True))
    with pytest.raises(ValueError, match="read-only"):
        again[0][0] = 0
    world.close(), elsewhere.close()


def test_the_frames_used_longest_ago_make_room():
    frames, frame = _Frames(limit=3 * 12), np.zeros((2, 2, 3), np.uint8)
    for key in "abc":
        frames.put((key,), frame)
    assert frames.get(("a",)) is frame
    frames.put(("d",), frame)
    assert [frames.get((key,)) is frame for key in "abcd"] == [True, False, True, True]
