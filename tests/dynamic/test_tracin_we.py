"""TracInWE against dense embedding gradients, one backward pass an instance, in float64."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from traced_runs import RATE, copied, error, in_batches, influence_by_loops, trace

from proponent.dynamic.tracin_we import TracInWE
from proponent.dynamic.tracincp import TracInCP
from proponent.exceptions import InvalidInputError, NotFittedError, RunError
from proponent.models.recorder import Recorder
from proponent.models.run import TrainingRun

EXACT = 1e-12
WORDS, LENGTH, CLASSES = 9, 5, 3


def texts(seed=0, n=13, words=WORDS, lowest=0):
    generator = np.random.default_rng(seed)
    return generator.integers(lowest, words, (n, LENGTH)), generator.integers(0, CLASSES, n)


TRAIN, TEST = texts(), texts(1, n=4)


class Bag(nn.Module):
    """Texts classified by nonlinear features of their words at each position."""

    def __init__(self, words=WORDS, **options):
        super().__init__()
        torch.manual_seed(1)
        self.words = nn.Embedding(words, 4, **options)
        self.out = nn.Linear(4 * LENGTH, CLASSES)

    def forward(self, text):
        return self.out(torch.tanh(self.words(text)).flatten(1))


class Positioned(Bag):
    def __init__(self):
        super().__init__()
        self.places = nn.Embedding(LENGTH, 4)

    def forward(self, text):
        places = torch.arange(LENGTH).expand_as(text)
        return self.out(torch.tanh(self.words(text) + self.places(places)).flatten(1))


class Tied(nn.Module):
    """A language model whose classes are words; ``tied=False`` has the same numbers apart."""

    def __init__(self, tied=True):
        super().__init__()
        torch.manual_seed(1)
        self.words = nn.Embedding(WORDS, 4)
        self.mix = nn.Linear(4, 4)
        self.out = nn.Linear(4, WORDS, bias=False)
        if tied:
            self.out.weight = self.words.weight

    def forward(self, text):
        return self.out(torch.tanh(self.mix(self.words(text))).mean(1))


def bag_run(folder, net=None, train=TRAIN, **options):
    return trace(folder, (net or Bag()).double(), train, in_batches(13, 5), **options)


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    return bag_run(tmp_path_factory.mktemp("runs") / "bag")


def dense(traced, t, data, name="words.weight"):
    """Return the whole gradients of the embedding, (n, words, width)."""
    return traced.gradients(t, data)[name].double().numpy()


def by_words(traced, test, counts=lambda word: True, top=None, name="words.weight"):
    """Return the influence word by word, (n_test, n_train, words), by dictionaries of rows."""
    total = np.zeros((len(test[1]), len(traced.train[1]), len(traced.module.words.weight)))
    for t in traced.steps:
        train_rows, test_rows = (
            _rows(dense(traced, t, data, name), data[0], counts, top)
            for data in (traced.train, test)
        )
        for j, ours in enumerate(test_rows):
            for i, theirs in enumerate(train_rows):
                for word in ours.keys() & theirs.keys():
                    rate = traced.rates[t - 1][name]
                    total[j, i, word] += rate * float(ours[word] @ theirs[word])
    return total


def _rows(gradients, words, counts, top):
    found = []
    for gradient, text in zip(gradients, words, strict=True):
        rows = {int(word): gradient[word] for word in set(text.tolist()) if counts(word)}
        longest = sorted(rows, key=lambda word: (-np.linalg.norm(rows[word]), word))
        found.append({word: rows[word] for word in longest[:top]})
    return found


def test_it_is_the_whole_product_of_the_embeddings_gradients(traced):
    method = TracInWE().fit(traced.run, TRAIN)
    influence = method.influence(TEST)
    whole = influence_by_loops(
        traced, TEST, traced.steps, names=lambda name: name == "words.weight"
    )
    assert error(influence.values, whole) < EXACT
    other = TracInCP(parameters="words.weight").fit(traced.run, TRAIN).influence(TEST)
    assert error(influence.values, other.values) < EXACT
    joint = method.influence(TEST, joint=True)
    assert error(joint.values, whole.sum(0)) < EXACT
    diagonal = influence_by_loops(
        traced, TRAIN, traced.steps, names=lambda name: name == "words.weight"
    ).diagonal()
    assert error(method.memorization().values, diagonal) < EXACT
    assert influence.diagnostics["embedding"] == "words.weight"
    assert "left_out" not in influence.diagnostics


@pytest.mark.parametrize("batch_size", [1, 2, 4, 64])
def test_neither_batches_nor_shards_change_the_numbers(traced, batch_size):
    expected = by_words(traced, TEST).sum(2)
    method = TracInWE(batch_size=batch_size, memory=1).fit(traced.run, TRAIN)
    assert error(method.influence(TEST).values, expected) < EXACT
    part = method.influence(TEST, shard=(1, 3))
    assert error(part.values, expected[:, part.train_ids]) < EXACT
    assert error(method.influence(TEST, joint=True).values, expected.sum(0)) < EXACT


def test_no_shared_word_is_no_influence(tmp_path):
    low, high = texts(n=13, words=4), texts(1, n=4, lowest=4)
    train = np.concatenate([low[0][:6], texts(2, n=7, lowest=4)[0]]), low[1]
    traced = bag_run(tmp_path, train=train)
    values = TracInWE().fit(traced.run, train).influence(high).values
    assert (values[:, :6] == 0.0).all()
    assert (values[:, 6:] != 0.0).any(axis=0).all()
    shares = TracInWE().fit(traced.run, train).explain(high, 0)
    assert [len(share.words) for share in shares] == [0] * 4


@pytest.mark.parametrize(
    ("settings", "counts", "top"),
    [
        ({"exclude": [0, 3]}, lambda word: word not in (0, 3), None),
        ({"tokens": [1, 2, 5]}, lambda word: word in (1, 2, 5), None),
        ({"tokens": range(6), "exclude": {2}}, lambda word: word < 6 and word != 2, None),
        ({"top_words": 2}, lambda word: True, 2),
        ({"top_words": 1, "exclude": [4]}, lambda word: word != 4, 1),
    ],
    ids=["exclude", "tokens", "both", "top", "top and exclude"],
)
def test_words_that_count(traced, settings, counts, top):
    method = TracInWE(**settings).fit(traced.run, TRAIN)
    expected = by_words(traced, TEST, counts, top).sum(2)
    assert error(method.influence(TEST).values, expected) < EXACT
    own = by_words(traced, TRAIN, counts, top).sum(2).diagonal()
    assert error(method.memorization().values, own) < EXACT
    assert error(expected, by_words(traced, TEST).sum(2)) > 0.01
    json.dumps(dict(method.influence(TEST).settings))


def test_the_words_that_carry_an_influence(traced):
    method = TracInWE().fit(traced.run, TRAIN)
    expected = by_words(traced, TEST)
    ids = [f"text {i}" for i in range(13)]
    named = TracInWE(batch_size=2).fit(traced.run, TRAIN, ids=ids)
    for i in (0, 7, 12):
        for j, (words, values) in enumerate(named.explain(TEST, f"text {i}")):
            assert error(values, expected[j, i][words]) < EXACT
            assert set(words.tolist()) == set(TRAIN[0][i].tolist()) & set(TEST[0][j].tolist())
            assert (np.diff(np.abs(values)) <= 0).all()
        totals = [share.values.sum() for share in method.explain(TEST, i)]
        assert error(totals, method.influence(TEST).values[:, i]) < EXACT
    with pytest.raises(InvalidInputError, match="no training instance 13"):
        method.explain(TEST, 13)
    with pytest.raises(NotFittedError):
        TracInWE().explain(TEST, 0)


def test_when_influence_happened(traced):
    parts = TracInWE().fit(traced.run, TRAIN).influence(TEST, by_checkpoint=True)
    for column, t in enumerate(traced.steps):
        alone = TracInWE(checkpoints=[t]).fit(traced.run, TRAIN).influence(TEST).values
        assert error(parts.values[:, :, column], alone) < EXACT


def test_padding_does_not_count(tmp_path):
    net = Bag(padding_idx=2).double()
    with torch.no_grad():
        net.words.weight[2] = 0.3  # it has an effect all the same
    traced = bag_run(tmp_path, net)
    assert (TRAIN[0] == 2).any() and (TEST[0] == 2).any()
    method = TracInWE().fit(traced.run, TRAIN)
    expected = by_words(traced, TEST, lambda word: word != 2).sum(2)
    assert error(method.influence(TEST).values, expected) < EXACT
    assert list(method.influence(TEST).diagnostics["words"]) == [WORDS - 1, WORDS]


def test_of_a_tied_embedding_only_the_lookups_count(tmp_path):
    train = TRAIN[0], TRAIN[0][:, 0]
    test = TEST[0], TEST[0][:, -1]
    traced = bag_run(tmp_path, Tied(), train)
    method = TracInWE().fit(traced.run, train)
    found = method.influence(test)
    expected = np.zeros((4, 13))
    for t in traced.steps:
        apart = Tied(tied=False).double()  # the same numbers, used in two places
        apart.load_state_dict(traced.states[t - 1])
        assert torch.equal(apart.words.weight, apart.out.weight)
        sides = [_input_gradients(apart, data) for data in (train, test)]
        expected += RATE * np.einsum("iwd,jwd->ji", *sides)
    assert error(found.values, expected) < EXACT
    assert "left out" in found.diagnostics["left_out"]
    whole = TracInCP(parameters="words.weight").fit(traced.run, train).influence(test)
    assert error(whole.values, expected) > 0.1


def _input_gradients(net, data):
    found = []
    for text, label in zip(*map(torch.as_tensor, data), strict=True):
        risk = functional.cross_entropy(net(text[None]), label[None])
        found.append(torch.autograd.grad(risk, net.words.weight)[0].numpy())
    return np.stack(found)


def test_one_of_several_embeddings_is_chosen(tmp_path):
    traced = bag_run(tmp_path, Positioned())
    with pytest.raises(InvalidInputError, match=r"words \(9 x 4\), places \(5 x 4\).*'words'"):
        TracInWE().fit(traced.run, TRAIN)
    expected = by_words(traced, TEST).sum(2)
    layer = traced.module.words
    for choice in ("words", "words.weight", layer):
        influence = TracInWE(embedding=choice).fit(traced.run, TRAIN).influence(TEST)
        assert error(influence.values, expected) < EXACT
    places = TracInWE(embedding="places").fit(traced.run, TRAIN).influence(TEST)
    whole = influence_by_loops(
        traced, TEST, traced.steps, names=lambda name: name == "places.weight"
    )
    assert error(places.values, whole) < EXACT
    with pytest.raises(InvalidInputError, match="no layer or parameter 'wordz'"):
        TracInWE(embedding="wordz").fit(traced.run, TRAIN)
    with pytest.raises(InvalidInputError, match="of the module under study"):
        TracInWE(embedding=nn.Embedding(9, 4)).fit(traced.run, TRAIN)


def test_the_embedding_that_a_transformer_names(tmp_path):
    net = Positioned()
    Positioned.get_input_embeddings = lambda self: self.words
    try:
        traced = bag_run(tmp_path, net)
        influence = TracInWE().fit(traced.run, TRAIN).influence(TEST)
    finally:
        del Positioned.get_input_embeddings
    assert error(influence.values, by_words(traced, TEST).sum(2)) < EXACT


class Functional(Bag):
    """Looks words up by hand, twice, once before the others."""

    def forward(self, text):
        rows = functional.embedding(text, self.words.weight)
        again = functional.embedding(text[:, :1], self.words.weight).flatten(1)
        return self.out(torch.tanh(rows).flatten(1)) + again[:, :CLASSES]


@pytest.mark.parametrize("net", [Functional, lambda: Bag(sparse=True)], ids=["by hand", "sparse"])
def test_other_ways_of_looking_up(tmp_path, net):
    traced = bag_run(tmp_path, net())
    influence = TracInWE().fit(traced.run, TRAIN).influence(TEST)
    assert error(influence.values, by_words(traced, TEST).sum(2)) < EXACT


class Bagged(Bag):
    def __init__(self):
        super().__init__()
        self.words = nn.EmbeddingBag(WORDS, 4 * LENGTH)

    def forward(self, text):
        return self.out(torch.tanh(self.words(text)))


class Scaled(Bag):
    def forward(self, text):
        rows = functional.embedding(text, self.words.weight * 2.0)
        return self.out(torch.tanh(rows).flatten(1))


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (lambda: Bag(max_norm=1.0), "words.weight has max_norm=1.0"),
        (lambda: Bag(scale_grad_by_freq=True), "words.weight has scale_grad_by_freq=True"),
        (Bagged, "cannot be told apart by word"),
        (Scaled, "cannot be told apart by word"),
    ],
    ids=["max_norm", "frequency", "bag", "scaled"],
)
def test_what_has_no_rule_is_refused_by_name(tmp_path, net, message):
    traced = bag_run(tmp_path, net())
    with pytest.raises(InvalidInputError, match=message):
        TracInWE().fit(traced.run, TRAIN)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exclude": [9]}, r"exclude: 9 is not a word.*0 \.\. 8"),
        ({"tokens": ["the"]}, "tokens: 'the' is not a word"),
        ({"tokens": []}, "no word is left"),
        ({"top_words": 0}, "top_words must be a positive integer"),
    ],
)
def test_wrong_settings_are_refused(traced, settings, message):
    with pytest.raises(InvalidInputError, match=message):
        TracInWE(**settings).fit(traced.run, TRAIN)


def test_an_embedding_that_was_not_trained_is_refused(tmp_path):
    net = Bag().double()
    optimizer = torch.optim.SGD(net.out.parameters(), lr=0.1)
    traced = trace(tmp_path, net, TRAIN, in_batches(13, 5), optimizer=optimizer)
    with pytest.raises(RunError, match=r"did not move words\.weight"):
        TracInWE().fit(traced.run, TRAIN)


def test_its_own_learning_rate_weighs(tmp_path):
    net = Bag().double()
    groups = [{"params": net.words.parameters(), "lr": 0.05}, {"params": net.out.parameters()}]
    traced = bag_run(tmp_path, net, optimizer=torch.optim.SGD(groups, lr=0.4))
    influence = TracInWE().fit(traced.run, TRAIN).influence(TEST)
    assert error(influence.values, by_words(traced, TEST).sum(2)) < EXACT


def test_a_large_vocabulary_takes_no_dense_gradient(tmp_path, monkeypatch):
    """300,000 words: every dense gradient would have 1.2 million entries."""
    from proponent.gradients.forms import Lookup

    net, train, test = Bag(300_000), texts(words=300_000), texts(1, n=4, words=300_000)
    train[0][:, 0] = test[0][:, 0] = 7
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    with Recorder(tmp_path, net, optimizer, loss="cross_entropy", train=train, every=1) as recorder:
        optimizer.zero_grad()
        words, labels = map(torch.as_tensor, train)
        functional.cross_entropy(net(words), labels).backward()
        recorder.step(np.arange(13))
        state = copied(net)
        optimizer.step()
    run = TrainingRun.load(tmp_path, net)
    method = TracInWE().fit(run, train)
    monkeypatch.setattr(Lookup, "materialise", lambda self: pytest.fail("a dense gradient"))
    found = method.influence(test).values
    method.memorization()
    net.load_state_dict(state)
    rows = [_input_gradients(net, data)[:, 7] for data in (train, test)]
    assert error(found, RATE * rows[1] @ rows[0].T) < 1e-5


def test_a_transformer_with_tied_embeddings(tmp_path):
    """GPT-2 names its own embedding; the oracle holds the same numbers in two matrices."""
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": WORDS, "n_positions": LENGTH, "n_embd": 8, "n_layer": 1, "n_head": 2}
    torch.manual_seed(1)
    net = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).double().eval()
    data = {"input_ids": torch.as_tensor(TRAIN[0]), "labels": torch.as_tensor(TRAIN[0])}

    def risk(module, batch):
        logits = module(input_ids=batch["input_ids"]).logits[:, :-1]
        return functional.cross_entropy(logits.mT, batch["labels"][:, 1:], reduction="none").mean(1)

    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    with Recorder(tmp_path, net, optimizer, train=data, every=1) as recorder:
        optimizer.zero_grad()
        risk(net, data).mean().backward()
        recorder.step(np.arange(13))
        state = copied(net)
        optimizer.step()
    found = TracInWE().fit(TrainingRun.load(tmp_path, net, risk=risk), data).influence(data)
    assert found.diagnostics["embedding"] == "transformer.wte.weight"
    assert "left out" in found.diagnostics["left_out"]
    untied = transformers.GPT2Config(**sizes, tie_word_embeddings=False)
    apart = transformers.GPT2LMHeadModel(untied).double().eval()
    apart.load_state_dict(state)
    rows = []
    for i in range(13):
        one = {name: column[i : i + 1] for name, column in data.items()}
        rows.append(torch.autograd.grad(risk(apart, one).sum(), apart.transformer.wte.weight)[0])
    flat = torch.stack(rows).flatten(1).numpy()
    assert error(found.values, RATE * flat @ flat.T) < 1e-10
