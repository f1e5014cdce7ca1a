"""Backwards a replay gives the same moments, whatever the memory and whatever was stored."""

import pytest
import torch
from replayed_runs import (
    Augmented,
    assert_is_live,
    columns,
    normalised,
    plain,
    replay_of,
    train_and_record,
)
from torch.nn import functional

from proponent.exceptions import InvalidInputError


def doubled(module, batch):
    return 2 * functional.cross_entropy(module(batch[0]), batch[1], reduction="none")


OPTIMIZERS = {
    "sgd": (lambda net: torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1), 1),
    "momentum": (lambda net: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), 2),
    "adam": (lambda net: torch.optim.Adam(net.parameters(), lr=0.02), 3),
    "amsgrad": (lambda net: torch.optim.AdamW(net.parameters(), lr=0.02, amsgrad=True), 4),
    "rmsprop": (lambda net: torch.optim.RMSprop(net.parameters(), 0.02, momentum=0.5), 3),
    "adagrad": (lambda net: torch.optim.Adagrad(net.parameters(), lr=0.1), 2),
    "nadam": (lambda net: torch.optim.NAdam(net.parameters(), lr=0.02), 3),
}


def size_of(live, tensors):
    return tensors * sum(value.nbytes for value in live.run.model.module.parameters())


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("every", [1, 7, 100])
@pytest.mark.parametrize("stored", [True, False])
def test_backward_is_forward_reversed(tmp_path, name, every, stored):
    make, tensors = OPTIMIZERS[name]
    live = train_and_record(tmp_path, plain, make, every=every, optimizer_state=stored, epochs=4)
    size = size_of(live, tensors)
    starts_anywhere = stored or name == "sgd"
    for slots, most in [(1000, 1.0), (6, 2.0), (2, 3.6)]:
        replay = replay_of(live, memory=slots * size)
        steps = []
        for moment in replay.backward():
            assert_is_live(moment, live)
            steps.append(moment.step.index)
        assert steps == list(range(20, 0, -1))
        assert replay.report["exact"]
        recomputed = replay.report["steps_recomputed"]
        if every == 1 and starts_anywhere:
            assert recomputed == 0
        elif slots == 1000:
            assert recomputed == (17 if every == 7 and starts_anywhere else 19)
        assert recomputed <= most * 20


def test_random_numbers_and_buffers_are_replayed_backwards(tmp_path):
    live = train_and_record(
        tmp_path,
        normalised,
        lambda net: torch.optim.Adam(net.parameters(), lr=0.02),
        data=Augmented(columns()),
        seed=3,
        every=8,
        epochs=4,
    )
    for memory in (2**20, 5 * size_of(live, 3)):
        replay = replay_of(live, memory=memory)
        for moment in replay.backward():
            assert_is_live(moment, live)
            t = moment.step.index
            # Where the replay starts from a stored state, its buffers have seen the batch.
            seen = t - 1 if t in (1, 9, 17) else t - 2
            for name, value in moment.buffers.items():
                assert torch.equal(value, live.states[seen][name]), (t, name)
        assert replay.report["exact"]


def test_gradients_are_not_computed_unless_asked_for(tmp_path):
    calls = []

    def count(module, args):
        calls.append(1)

    live = train_and_record(
        tmp_path, plain, lambda net: torch.optim.SGD(net.parameters(), lr=0.1), every=1, epochs=4
    )
    live.run.model.module.register_forward_pre_hook(count)
    replay = replay_of(live)
    for _ in replay.backward():
        pass
    # The last state, and one in eight, are checked at the cost of a gradient.
    assert len(calls) == 3
    assert replay.report["states_compared"] == 3
    for moment in replay.backward():
        assert moment.gradient
    assert replay.report["states_compared"] == 20
    assert len(calls) == 23


def test_the_end_of_every_long_segment_is_checked(tmp_path):
    live = train_and_record(
        tmp_path, plain, lambda net: torch.optim.SGD(net.parameters(), lr=0.1), every=10, epochs=4
    )
    replay = replay_of(live)
    for _ in replay.backward():
        pass
    assert replay.report["states_compared"] == 2 and replay.report["exact"]


def test_a_short_run_is_compared_and_none_is_called_exact_without(tmp_path):
    live = train_and_record(
        tmp_path, plain, lambda net: torch.optim.SGD(net.parameters(), lr=0.1), every=1, epochs=1
    )
    replay = replay_of(live)
    assert replay.report["exact"] is None and replay.report["states_compared"] == 0
    moments = replay.backward()
    next(moments)
    assert replay.report["exact"] is None and replay.report["states_compared"] == 0
    steps = [moment.step.index for moment in moments]
    assert steps == [4, 3, 2, 1]
    assert replay.report["exact"] is True and replay.report["states_compared"] == 1
    # Another end than the recorded one is seen, though no gradient was asked for.
    live.run = type(live.run).load(tmp_path, plain(), risk=doubled)
    replay = replay_of(live)
    assert len(list(replay.backward())) == 5
    assert replay.report["exact"] is False and replay.report["first_divergence"]["step"] == 6


def test_too_little_memory_is_refused_with_what_would_do(tmp_path):
    live = train_and_record(
        tmp_path,
        plain,
        lambda net: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9),
        every=100,
        epochs=4,
    )
    replay = replay_of(live, memory=10)
    with pytest.raises(InvalidInputError, match=r"memory: 10 bytes hold 0 states.*memory=") as info:
        next(replay.backward())
    enough = int(str(info.value).rpartition("memory=")[2].split()[0])
    assert len(list(replay_of(live, memory=enough).backward())) == 20


def test_a_run_that_was_killed_is_replayed_as_far_as_it_goes(tmp_path):
    live = train_and_record(
        tmp_path, plain, lambda net: torch.optim.SGD(net.parameters(), lr=0.1), every=3
    )
    journal = tmp_path / "steps.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:7]))
    run = type(live.run).load(tmp_path, plain())
    live.run = run
    replay = replay_of(live)
    assert len(replay) == 7 and not run.complete
    for moment in replay.backward():
        assert_is_live(moment, live)
    for moment in replay.forward():
        assert_is_live(moment, live)
    assert replay.report["exact"]
