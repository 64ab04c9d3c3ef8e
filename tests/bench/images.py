"""A turn that draws: its processor time beside the least it could be, and by what its conversation already holds."""

import asyncio
import statistics
from collections.abc import Generator

from tests.architecture.test_paths import TRIPS
from tests.bench.client import Target
from tests.bench.curve import Curve, draw
from tests.bench.lab import Easel, Lab, target_of
from tests.bench.machine import cpu, cpu_of_children, wait_until_idle
from tests.bench.report import Row

REPEATS = 5
LARGE, SMALL = "[bench image size=3MB]", "[bench image size=400KB]"
# Its PNG is like those that the provider makes; that of LARGE is noise.
LIKELY = "[bench image size=1.6MB]"
LATER_TURNS = (8, 21)
# On 2026-11-24, before it got faster.
LINES_BEFORE = 2_647


def rows(lab: Lab) -> Generator[Row]:
    """3 previews of 1.5 MB and a final image of 3 MB, to the terminal event."""
    floor, openai, agents = (1000 * lab.turns(name, LARGE)["cpu"] for name in ("floor", "openai", "agents"))
    with lab.easel() as easel:
        target = target_of(easel.sign_up(), "designer")
        turn, of_noise = _turns(easel, target, LARGE)
        _, of_likely = _turns(easel, target, LIKELY)
    what = "image turn (3 previews of 1.5 MB, final 3 MB), CPU to the terminal event"
    yield Row(what, turn, "ms", floor, "floor", ratio_most=2)
    yield Row(what, turn, "ms", openai, "plain openai", ratio_most=0.5)
    yield Row(what, turn, "ms", agents, "plain Agents SDK")
    what = "its thumbnails, CPU an image of 1024x1024"
    yield Row(f"{what} (noise)", of_noise, "ms", most=60)
    yield Row(f"{what} (like the provider's, PNG of 1.6 MB)", of_likely, "ms", most=60)
    reading, least = (1000 * lab.turns(name, LARGE)["cpu"] for name in ("reading", "floor-reading"))
    yield Row("its reading alone: stream, decode, hash", reading, "ms", least, "floor's reading", ratio_most=1.3)
    yield Row("lines on an image's way, wire to reader", TRIPS[0].lines, "", LINES_BEFORE, "before", ratio_most=1)


def _turns(easel: Easel, target: Target, text: str) -> tuple[float, float]:
    """Milliseconds to the terminal event, and after it."""
    for _ in range(2):
        cost_of_turn(easel, target, text)
    began = cpu(easel.pid) + cpu_of_children(easel.pid)
    costs = [cost_of_turn(easel, target, text)[0] for _ in range(REPEATS)]
    total = cpu(easel.pid) + cpu_of_children(easel.pid) - began
    return 1000 * statistics.median(costs), 1000 * (total - sum(costs)) / REPEATS


def growth_rows(lab: Lab) -> Generator[Row]:
    """Turns with one image of 0.4 MB each, in conversations that get longer."""
    by_turn: list[list[float]] = [[] for _ in range(max(LATER_TURNS))]
    with lab.easel() as easel:
        target = target_of(easel.sign_up(), "designer")
        cost_of_turn(easel, target, SMALL)
        for _ in range(REPEATS):
            conversation: dict[str, object] = {}
            for costs in by_turn:
                cost, conversation_id = cost_of_turn(easel, target, SMALL, **conversation)
                conversation["conversation_id"] = conversation.get("conversation_id", conversation_id)
                costs.append(1000 * cost)
    medians = [statistics.median(costs) for costs in by_turn]
    for number in LATER_TURNS:
        what = f"turn {number} of an image conversation, CPU"
        yield Row(f"{what} (0.4 MB each)", medians[number - 1], "ms", medians[0], "turn 1", ratio_most=1.1)
    curve = Curve("Easel", list(enumerate(medians)))
    top = max(10.0, 20 * -(-max(medians) * 1.3 // 20))
    title = "Processor time of a turn that draws, median of five"
    lab.keep_picture("bench-images.svg", draw(title, "images already in the conversation", "ms", [curve], top=top))


def cost_of_turn(easel: Easel, target: Target, text: str, **fields: object) -> tuple[float, str]:
    """Seconds to the terminal event, and the conversation; returns when the thumbnails are made, too."""
    began = cpu(easel.pid)
    reader = asyncio.run(target.turn(text, **fields))
    cost = cpu(easel.pid) - began
    wait_until_idle(easel.pid)
    return cost, reader.conversation_id
