"""Where the instances stand: not first, several times in a row, or on an axis of equal length."""

import pytest
import torch
from gradient_checks import N, Written, check_gradients, labels, parameter, tokens
from torch import nn

LENGTH = 5


def time_major(*parts, **options):
    def forward(self, x):
        return self.last(self.parts(x.transpose(0, 1))).mean(0)

    return Written(forward, parts=nn.Sequential(*parts), last=nn.Linear(6, 4), **options)


@pytest.mark.parametrize("length", [2, 3, 5, 7])
def test_time_major_sequences(length):
    # Length three is that of the probe, the others are batch sizes.
    module = time_major(nn.Linear(3, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 6))
    data = torch.randn(N, length, 3), labels()
    check_gradients(module, data, sizes=(7, 5, 3, 2, 1))


@pytest.mark.parametrize("length", [3, 5, 7])
def test_time_major_tokens(length):
    module = time_major(nn.Embedding(11, 6, padding_idx=0), nn.Linear(6, 6), nn.RMSNorm(6))
    check_gradients(module, (tokens(length), labels()), sizes=(7, 5, 3))


@pytest.mark.parametrize("shape", [(6,), (1, 6), (LENGTH, 1, 6), (LENGTH, 1, 1)])
def test_parameters_met_in_time_major_layout(shape):
    def forward(self, x):
        x = torch.tanh(self.first(x.transpose(0, 1)) * self.scale + self.shift)
        return self.last(x).mean(0)

    module = Written(
        forward,
        first=nn.Linear(3, 6),
        scale=parameter(*shape),
        shift=parameter(*shape),
        last=nn.Linear(6, 4),
    )
    data = torch.randn(N, LENGTH, 3), labels()
    check_gradients(module, data, differentiated=None, sizes=(7, 5, 3))


def test_positions_flattened_with_the_instances():
    def forward(self, x):
        n, length, _ = x.shape
        x = self.norm(torch.tanh(self.first(x.flatten(0, 1)))) + self.shift
        return self.last(x).view(n, length, 4).mean(1)

    module = Written(
        forward,
        first=nn.Linear(3, 6),
        norm=nn.LayerNorm(6),
        shift=parameter(6),
        last=nn.Linear(6, 4),
    )
    data = torch.randn(N, LENGTH, 3), labels()
    check_gradients(module, data, sizes=(7, 5, 3))


def test_positions_flattened_before_the_instances():
    # Time-major, then flattened: an instance's rows stand apart, not in a row.
    def forward(self, x):
        n, length, _ = x.shape
        x = torch.tanh(self.first(x.transpose(0, 1).flatten(0, 1)))
        return self.last(x).view(length, n, 4).mean(0)

    module = Written(forward, first=nn.Linear(3, 6), last=nn.Linear(6, 4))
    data = torch.randn(N, LENGTH, 3), labels()
    check_gradients(module, data, differentiated=None, sizes=(7, 5, 3))


def test_instances_repeated_as_a_whole():
    # torch.cat([x, x]) puts copy one of all instances before copy two.
    def forward(self, x):
        both = torch.tanh(self.first(torch.cat([x, x.flip(1)])))
        one, two = both.chunk(2)
        return self.last(one * two)

    module = Written(forward, first=nn.Linear(3, 6), last=nn.Linear(6, 4))
    data = torch.randn(N, 3), labels()
    check_gradients(module, data, differentiated=None, sizes=(7, 5, 3))


def test_instances_repeated_one_by_one():
    def forward(self, x):
        views = torch.stack([x, x.flip(1)], 1).flatten(0, 1)
        return self.last(torch.tanh(self.first(views)).view(len(x), 2, 6).prod(1))

    module = Written(forward, first=nn.Linear(3, 6), last=nn.Linear(6, 4))
    check_gradients(module, (torch.randn(N, 3), labels()), sizes=(7, 5, 3))


def test_frames_as_images():
    def forward(self, video):
        n, frames = video.shape[:2]
        maps = torch.relu(self.norm(self.first(video.flatten(0, 1))))
        return self.last(maps.view(n, frames, -1)).mean(1)

    norm = nn.BatchNorm2d(4)
    norm.running_mean.normal_()
    module = Written(forward, first=nn.Conv2d(2, 4, 2), norm=norm, last=nn.Linear(16, 4))
    data = torch.randn(N, LENGTH, 2, 3, 3), labels()
    check_gradients(module, data, differentiated=None, sizes=(7, 5, 3))


def test_features_before_instances():
    def forward(self, x):
        return self.last(torch.tanh((self.weight @ x.T).T))

    module = Written(forward, weight=parameter(6, 3), last=nn.Linear(6, 4))
    data = torch.randn(N, 3), labels()
    check_gradients(module, data, differentiated=None, sizes=(7, 5, 3))


def test_channels_last():
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 2), nn.Flatten(),
        nn.Linear(16, 4),
    ).to(memory_format=torch.channels_last)  # fmt: skip
    images = torch.randn(N, 3, 5, 5).to(memory_format=torch.channels_last)
    check_gradients(module, (images, labels()))


def test_strided_views_of_the_data():
    data = torch.randn(2 * N, 6, 2)[::2, :, 0], labels(n=3 * N)[::3]
    module = nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 4))
    check_gradients(module, data)


@pytest.mark.parametrize("n", [1, 2])
def test_fewer_instances_than_the_probe(n):
    module = nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 4))
    check_gradients(module, (torch.randn(n, 6), labels(n=n)), sizes=(2, 1))


def test_one_output_an_instance():
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1), nn.Flatten(0))
    data = torch.randn(N, 6), (torch.rand(N) > 0.5).double()
    check_gradients(module, data, loss="bce_with_logits")


def test_relu_in_place_on_sequences():
    # The layer's output is a view, which an operation in place gives a new history.
    module = nn.Sequential(
        nn.Linear(3, 6), nn.ReLU(inplace=True), nn.Linear(6, 6), nn.ReLU(inplace=True),
        nn.Flatten(), nn.Linear(30, 4),
    )  # fmt: skip
    check_gradients(module, (torch.randn(N, LENGTH, 3), labels()))


def test_data_changed_in_place_by_the_module():
    """A loader hands out copies, so a module may normalise its inputs in place."""

    def forward(self, x):
        return self.last(torch.tanh(self.first(x.sub_(0.5).mul_(2.0))))

    module = Written(forward, first=nn.Linear(3, 6), last=nn.Linear(6, 4))
    x, y = torch.randn(N, 3), labels()
    before = x.clone()
    check_gradients(module, (x, y))
    assert torch.equal(x, before)
