"""What a worker says when its device is lost, on synthetic events."""

from __future__ import annotations

import io

import pytest

from autotune.bench.messages import Failed, Ready, Started, Unusable, event_decoder
from autotune.bench.worker import Channel


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ([Started((3, 5), None)], [Failed(3, "crashed", "lost"), Failed(5, "crashed", "lost")]),
        ([Started((3,), None), Ready(1), Started((4,), 0.1)], [Failed(4, "crashed", "lost")]),
        ([], [Unusable("lost")]),
        ([Started((3,), None), Started((), None)], [Unusable("lost")]),
    ],
    ids=["several", "the last", "nothing yet", "nothing any more"],
)
def test_a_lost_device_is_blamed_on_what_is_at_stake_and_if_nothing_is_it_cannot_be_used(before, said):
    stream = io.BytesIO()
    channel = Channel(stream)
    for event in before:
        channel.send(event)
    channel.give_up("lost")
    events = [event_decoder.decode(line) for line in stream.getvalue().splitlines()]
    assert events == [*before, *said]
