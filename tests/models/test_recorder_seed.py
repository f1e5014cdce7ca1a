"""A recorder with a seed fixes the randomness of each step, by its number alone."""

import random
import warnings

import numpy as np
import pytest
import torch
from recorded_runs import N, make_loader, make_net, make_set, plain_net, sgd, train
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from proponent.exceptions import InvalidInputError, RunError
from proponent.models import step_seeds
from proponent.models.recorder import Recorder, indexed
from proponent.models.run import TrainingRun
from proponent.models.step_seeds import seed_of_forward, seed_of_step


class Watched(Dataset):
    """Items that keep what the three generators gave them."""

    def __init__(self):
        self.data = make_set()
        self.drawn = []

    def __len__(self):
        return N

    def __getitem__(self, position):
        drawn = (float(torch.rand(())), random.random(), float(np.random.rand()))
        self.drawn.append(drawn)
        return torch.as_tensor(self.data[0][position]), int(self.data[1][position])


def drawn_after(seed, n=1):
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()
    torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)
    drawn = [(float(torch.rand(())), random.random(), float(np.random.rand())) for _ in range(n)]
    torch.set_rng_state(state[0]), random.setstate(state[1]), np.random.set_state(state[2])
    return drawn


def test_every_batch_is_fetched_after_the_seed_of_its_step(tmp_path):
    data = Watched()
    net = plain_net()
    with Recorder(tmp_path, net, sgd(net), loss="mse", seed=5) as recorder:
        # A loader without a generator of its own draws from the global ones at each epoch.
        train(recorder, net, recorder._optimizer, DataLoader(indexed(data), 5, shuffle=True))
    sizes = [5, 5, 5, 5, 3] * 2
    expected = [
        drawn for step, n in enumerate(sizes, 1) for drawn in drawn_after(seed_of_step(5, step), n)
    ]
    assert data.drawn == expected
    run = TrainingRun.load(tmp_path, plain_net())
    assert run.seed == 5
    assert [step.seed for step in run.steps] == [seed_of_step(5, t) for t in range(1, 11)]


def test_every_first_forward_pass_in_training_mode_is_seeded(tmp_path):
    seen = []
    net = plain_net()
    net.register_forward_hook(lambda *_: seen.append(float(torch.rand(()))))
    optimizer = sgd(net)
    x, y = map(torch.as_tensor, make_set())
    with Recorder(tmp_path, net, optimizer, seed=9) as recorder:
        for _ in range(3):
            torch.rand(7)  # whatever is drawn before
            net.eval()
            net(x)
            net.train()
            with torch.no_grad():
                net(x)
            functional.cross_entropy(net(x), y).backward()
            net(x)
            recorder.step(range(N))
            optimizer.step()
            optimizer.zero_grad()
    expected = []
    for step in (1, 2, 3):
        (first, _, _), (second, _, _) = drawn_after(seed_of_forward(seed_of_step(9, step)), 2)
        expected += [first, second]
    assert [value for t in range(3) for value in seen[4 * t + 2 : 4 * t + 4]] == expected


def test_what_is_drawn_after_a_step_follows_the_seed_of_the_next(tmp_path):
    net = plain_net()
    optimizer = sgd(net)
    x, y = map(torch.as_tensor, make_set())
    found = []
    with Recorder(tmp_path, net, optimizer, seed=1) as recorder:
        for _ in range(3):
            found.append((float(torch.rand(())), random.random(), float(np.random.rand())))
            functional.cross_entropy(net(x), y).backward()
            recorder.step(range(N))
            optimizer.step()
    assert found == [drawn_after(seed_of_step(1, t))[0] for t in (1, 2, 3)]


def test_a_step_that_is_skipped_is_tried_again_with_its_own_seed(tmp_path):
    data = Watched()
    net = plain_net()
    optimizer = sgd(net)
    with Recorder(tmp_path, net, optimizer, loss="mse", seed=2) as recorder:
        for batch, (indices, x, y) in enumerate(DataLoader(indexed(data), 5)):
            optimizer.zero_grad()
            functional.cross_entropy(net(x), y).backward()
            recorder.step(indices)
            if batch != 1:
                optimizer.step()
    steps = [1, 2, 2, 3, 4]  # the second batch was not stepped
    sizes = [5, 5, 5, 5, 3]
    assert data.drawn == [
        drawn
        for step, n in zip(steps, sizes, strict=True)
        for drawn in drawn_after(seed_of_step(2, step), n)
    ]
    assert len(TrainingRun.load(tmp_path, plain_net()).steps) == 4


def test_the_same_seed_gives_the_same_training_whatever_came_before(tmp_path):
    results = []
    for attempt in range(2):
        torch.manual_seed(attempt + 40)
        net = make_net(dropout=0.5)
        torch.rand(attempt), np.random.rand(attempt)
        with Recorder(tmp_path, net, sgd(net), seed=3, overwrite=True) as recorder:
            train(recorder, net, recorder._optimizer, make_loader(make_set()))
        results.append(net[0].weight.detach().clone())
    assert torch.equal(*results)


def test_without_a_seed_nothing_is_hooked(tmp_path):
    net = plain_net()
    with Recorder(tmp_path, net, sgd(net)):
        assert not net._forward_pre_hooks and not step_seeds._listeners
    with Recorder(tmp_path, net, sgd(net), seed=0, overwrite=True):
        assert len(net._forward_pre_hooks) == len(step_seeds._listeners) == 1
    assert not net._forward_pre_hooks and not step_seeds._listeners


def test_workers_of_a_loader_keep_their_own_randomness(tmp_path):
    data = Watched()
    net = plain_net()

    class Telling(Dataset):
        def __len__(self):
            return N

        def __getitem__(self, position):
            return torch.rand(()), 0

    seen = []
    with Recorder(tmp_path, net, sgd(net), loss="mse", seed=4), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _, drawn, _ in DataLoader(indexed(Telling()), 12, num_workers=2):
            seen.extend(drawn.tolist())
    assert len(set(seen)) == N == len(data)


@pytest.mark.parametrize("seed", [-1, 1.5, "a", True])
def test_seeds_that_are_none_are_refused(tmp_path, seed):
    net = plain_net()
    with pytest.raises(InvalidInputError, match="seed: expected an integer"):
        Recorder(tmp_path, net, sgd(net), seed=seed)


def test_seeds_of_steps_are_stable_and_differ():
    # Runs that were recorded must stay replayable.
    assert (seed_of_step(0, 1), seed_of_step(7, 1000)) == (656268352, 817147062)
    assert seed_of_forward(12345) == 2368519806
    seeds = [seed_of_step(run, t) for run in range(20) for t in range(1, 100)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert len({seed_of_forward(seed) for seed in seeds} | set(seeds)) == 2 * len(seeds)


def test_modes_and_missing_gradients_are_logged_when_they_change(tmp_path):
    net = make_net(0.2)
    optimizer = sgd(net)
    x, y = map(torch.as_tensor, make_set())
    with Recorder(tmp_path, net, optimizer, loss="mse") as recorder:
        for step in range(1, 6):
            net[1].train(step < 3)
            net[4].bias.requires_grad_(step != 4)
            optimizer.zero_grad()
            functional.cross_entropy(net(x), y).backward()
            recorder.step(range(N))
            optimizer.step()
    lines = (tmp_path / "steps.jsonl").read_text().splitlines()
    assert ['"modes"' in line for line in lines] == [True, False, True, False, False, False]
    assert ['"without_gradient"' in line for line in lines] == [
        True,
        False,
        False,
        True,
        True,
        False,
    ]
    run = TrainingRun.load(tmp_path, make_net())
    assert [step.modes["1"] for step in run.steps] == [True, True, False, False, False]
    assert set(run.steps[0].modes) == {"", "0", "1", "2", "3", "4"} and run.steps[4].modes["3"]
    passed_over = [step.without_gradient for step in run.steps]
    assert passed_over == [(), (), (), ("4.bias",), ()]
    with pytest.raises(TypeError):
        run.steps[0].modes["1"] = False


def test_two_recorders_do_not_seed_over_each_other(tmp_path):
    nets = nn.Linear(2, 1), nn.Linear(2, 1)
    first = Recorder(tmp_path / "first", nets[0], sgd(nets[0]), seed=1)
    second = Recorder(tmp_path / "second", nets[1], sgd(nets[1]), seed=2)
    with first:
        state = torch.get_rng_state()
        with pytest.raises(RunError, match=r"another Recorder with a seed is open"):
            second.open()
        assert not (tmp_path / "second").exists()
        assert torch.equal(torch.get_rng_state(), state)
        # Without a seed it touches no generator.
        with Recorder(tmp_path / "third", nets[1], sgd(nets[1])):
            pass
    with second:  # once the first one is closed
        assert not torch.equal(torch.get_rng_state(), state)
