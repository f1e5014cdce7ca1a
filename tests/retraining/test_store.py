"""Stores of submodels: what was done is there, under its own key, and nothing else."""

import errno
import json
import os
import shutil
import threading
from itertools import pairwise

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from retraining.toy_learners import MeanLearner, StackedLearner, trainings

from proponent.exceptions import InvalidInputError, ProponentError, RunError
from proponent.retraining import array_files, journal
from proponent.retraining.submodels import Submodels, TrainingReport

N = 6
LABELS = np.array([1.0, 5.0, -2.0, 0.5, 3.0, 8.0])
TRAIN = (np.arange(float(N)), LABELS)
TEST = (np.zeros(3), np.array([0.0, 1.0, 2.5]))
LEARNERS = [MeanLearner, StackedLearner]

rng = np.random.default_rng(1)
MASKS = rng.random((17, N)) < 0.6
MASKS[MASKS.sum(axis=1) == 0, 0] = True
SEEDS = np.arange(17)


class Study:
    """Submodels that come back to the same directory, and count their trainings."""

    def __init__(self, tmp_path, kind):
        self.path, self.log, self.kind = tmp_path / "store", tmp_path / "trainings", kind

    def open(self, train=TRAIN, noise=1.0, fails=(), **settings):
        learner = self.kind(noise=noise, log=self.log, fails=fails)
        return Submodels(learner, train, path=self.path, **settings)

    @property
    def trained(self):
        return len(trainings(self.log))


@pytest.fixture(params=LEARNERS)
def study(request, tmp_path):
    return Study(tmp_path, request.param)


def fresh(kind, **settings):
    return Submodels(kind(noise=1.0), TRAIN, **settings)


def test_another_version_of_the_training_code_is_refused(study, monkeypatch):
    study.open().fit(MASKS[:3], SEEDS[:3])
    monkeypatch.setattr(study.kind, "training_version", 2)
    with pytest.raises(InvalidInputError, match="version of the learner's training code differs"):
        study.open()


def test_what_was_measured_is_there_after_the_process(study):
    expected = fresh(study.kind).utilities(MASKS, SEEDS, TEST)
    assert_array_equal(study.open().utilities(MASKS, SEEDS, TEST), expected)
    assert study.trained == 17
    later = study.open()
    assert_array_equal(later.utilities(MASKS, SEEDS, TEST), expected)
    assert study.trained == 17
    assert later.report() == {"trained": 0, "reused": 17, "failed": 0, "deferred": 0}


def test_only_what_is_missing_is_trained(study):
    study.open().utilities(MASKS[:9], SEEDS[:9], TEST)
    later = study.open()
    expected = fresh(study.kind).utilities(MASKS, SEEDS, TEST)
    assert_array_equal(later.utilities(MASKS, SEEDS, TEST), expected)
    assert study.trained == 17
    assert later.report()["trained"] == 8 and later.report()["reused"] == 9


def test_submodels_with_a_safe_form_are_there_after_the_process(tmp_path):
    study = Study(tmp_path, StackedLearner)
    assert study.open().fit(MASKS, SEEDS) == TrainingReport(17, 0, 0, 0)
    later = study.open()
    assert later.fit(MASKS, SEEDS) == TrainingReport(0, 17, 0, 0)
    expected = fresh(StackedLearner).utilities(MASKS, SEEDS, TEST)
    assert_array_equal(later.utilities(MASKS, SEEDS, TEST), expected)
    assert study.trained == 17


def test_submodels_beyond_the_memory_are_read_from_the_store(tmp_path):
    study = Study(tmp_path, StackedLearner)
    submodels = study.open(memory=40)
    assert submodels.fit(MASKS, SEEDS) == TrainingReport(17, 0, 0, 0)
    expected = fresh(StackedLearner).utilities(MASKS, SEEDS, TEST)
    assert_array_equal(submodels.utilities(MASKS, SEEDS, TEST), expected)
    assert_array_equal(submodels.utilities(MASKS[3:5], SEEDS[3:5], TEST), expected[3:5])
    assert study.trained == 17


def test_without_a_safe_form_each_result_is_stored_as_it_comes(tmp_path):
    study = Study(tmp_path, MeanLearner)
    submodels = study.open()
    assert submodels.fit(MASKS, SEEDS) == TrainingReport(0, 0, 0, 17)
    assert study.trained == 0
    submodels.utilities(MASKS, SEEDS, TEST)
    other = (np.zeros(2), np.array([7.0, -7.0]))
    expected = fresh(MeanLearner).utilities(MASKS, SEEDS, other)
    assert_array_equal(submodels.utilities(MASKS, SEEDS, other), expected)
    assert study.trained == 17  # they were kept as well
    assert submodels.report() == {"trained": 17, "reused": 0, "failed": 0, "deferred": 0}
    assert not (study.path / "submodels").exists()


def test_nothing_is_pickled(study):
    submodels = study.open()
    submodels.fit(MASKS, SEEDS)
    submodels.utilities(MASKS, SEEDS, TEST)
    files = [file for file in study.path.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} <= {".json", ".journal", ".npz"}
    for file in files:
        if file.suffix == ".npz":
            assert len(np.load(file, allow_pickle=False)["model.means"]) <= 4


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"train": (TRAIN[0], LABELS + 1e-9)}, "the training set differs"),
        ({"train": (TRAIN[0][:5], LABELS[:5])}, "number of training instances differ"),
        ({"noise": 2.0}, r"recipe.*stored: \w+\(noise=1.0\); given: \w+\(noise=2.0\)"),
    ],
)
def test_another_study_is_refused_by_what_differs(study, change, named):
    study.open().utilities(MASKS, SEEDS, TEST)
    with pytest.raises(InvalidInputError, match=f"{named}.*Choose another directory"):
        study.open(**change)
    study.open()


def test_another_format_is_refused(study):
    study.open()
    manifest = study.path / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "version": 99}))
    with pytest.raises(InvalidInputError, match="version 99"):
        study.open()
    manifest.write_text("{")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        study.open()


def test_a_directory_of_something_else_is_refused(study):
    study.path.mkdir()
    (study.path / "thesis.tex").write_text("")
    with pytest.raises(InvalidInputError, match="no store of submodels"):
        study.open()
    shutil.rmtree(study.path)
    study.path.write_text("")
    with pytest.raises(InvalidInputError, match="no store of submodels"):
        study.open()


def test_another_test_set_utility_seed_or_mask_is_another_result(study):
    submodels = study.open()
    first = submodels.utilities(MASKS, SEEDS, TEST)
    for masks, seeds, test, utility in [
        (MASKS, SEEDS, (TEST[0], TEST[1] + 1e-9), "risk"),
        (MASKS, SEEDS, (TEST[0][:2], TEST[1][:2]), "risk"),
        (MASKS, SEEDS, TEST, lambda outputs, labels: outputs),
        (MASKS, SEEDS, TEST, lambda outputs, labels: -outputs),
        (MASKS, SEEDS + 1, TEST, "risk"),
        (MASKS[::-1], SEEDS, TEST, "risk"),
    ]:
        found = study.open().utilities(masks, seeds, test, utility)
        assert_array_equal(found, fresh(study.kind).utilities(masks, seeds, test, utility))
        assert found.shape != first.shape or (found != first).any()


def test_a_function_without_known_content_is_refused_with_a_store(study):
    lock = threading.Lock()

    def locked(outputs, labels):
        with lock:
            return outputs

    with pytest.raises(InvalidInputError, match="known by its address"):
        study.open().utilities(MASKS, SEEDS, TEST, locked)
    assert fresh(study.kind).utilities(MASKS, SEEDS, TEST, locked).shape == (17, 3)


def test_failures_are_stored_with_their_reason(study):
    first = study.open(fails=(2,))
    first.fit(MASKS, SEEDS)
    expected = first.utilities(MASKS, SEEDS, TEST)
    assert_array_equal(np.isnan(expected).all(axis=1), MASKS[:, 2])
    trained = study.trained
    later = study.open()
    later.fit(MASKS, SEEDS)
    assert_array_equal(later.utilities(MASKS, SEEDS, TEST), expected)
    assert study.trained == trained
    assert later.report()["failed"] == first.report()["failed"] == MASKS[:, 2].sum()
    assert later.report()["failures"] == first.report()["failures"]


def test_a_worker_that_died_is_no_failure_for_ever(tmp_path):
    kill = ~np.eye(N, dtype=bool)[2]
    masks, seeds = np.stack([kill, ~kill]), np.array([0, 0])
    log = tmp_path / "trainings"

    def opened(**settings):
        return Submodels(MeanLearner(log=log, **settings), TRAIN, path=tmp_path / "store", n_jobs=2)

    found = opened(kills=(2,)).utilities(masks, seeds, TEST)
    assert_array_equal(np.isnan(found).all(axis=1), [False, True])
    done = len(trainings(log))
    again = opened().utilities(masks, seeds, TEST)
    assert_array_equal(again[0], found[0])
    assert np.isfinite(again).all()
    assert len(trainings(log)) == done + 1


def test_a_torn_end_is_what_was_before_it(study):
    for start in (0, 4, 8, 12):
        rows = slice(start, start + 4)
        study.open().utilities(MASKS[:16][rows], SEEDS[:16][rows], TEST)
    parts = sorted((study.path / "results").glob("*.journal"))
    assert len(parts) == 4  # each process has its own file
    expected = fresh(study.kind).utilities(MASKS[:16], SEEDS[:16], TEST)
    whole = parts[0].read_bytes()
    ends = [record.start + record.length for record in journal.read_journal(parts[0])[0]]
    for cut in (0, 1, 20, ends[0] - 1, *ends, len(whole) - 1):
        parts[0].write_bytes(whole[:cut])
        known = sum(end <= cut for end in ends)
        before = study.trained
        submodels = study.open()
        unread = cut - max([end for end in ends if end <= cut], default=0)
        assert submodels.report().get("unread_bytes", 0) == unread
        copy = study.path.with_name("copy")
        shutil.copytree(study.path, copy)
        submodels = Submodels(submodels.learner, TRAIN, path=copy)
        assert_array_equal(submodels.utilities(MASKS[:16], SEEDS[:16], TEST), expected)
        lost = study.trained - before
        assert (lost == 0) == (known == len(ends)) and lost <= 4
        shutil.rmtree(copy)


def test_a_damaged_file_is_named(study):
    submodels = study.open()
    submodels.fit(MASKS, SEEDS)
    submodels.utilities(MASKS, SEEDS, TEST)
    file = next((study.path / "results").glob("*.journal"))
    content = bytearray(file.read_bytes())
    record = journal.read_journal(file)[0][0]
    content[record.start + record.length - 1] ^= 1
    file.write_bytes(content)
    with pytest.raises(RunError, match=f"{file.name} is damaged.*Delete this file"):
        study.open().utilities(MASKS, SEEDS, TEST)
    file.unlink()
    expected = fresh(study.kind).utilities(MASKS, SEEDS, TEST)
    assert_array_equal(study.open().utilities(MASKS, SEEDS, TEST), expected)


def test_a_damaged_file_of_submodels_is_named(tmp_path):
    study = Study(tmp_path, StackedLearner)
    study.open().fit(MASKS[:4], SEEDS[:4])
    (file,) = (study.path / "submodels").glob("*.npz")
    content = file.read_bytes()
    means = np.load(file)["model.means"].tobytes()
    flipped = bytes([means[0] ^ 1]) + means[1:]
    file.write_bytes(content.replace(means, flipped))
    with pytest.raises(RunError, match=f"{file.name} is damaged.*Delete this file"):
        study.open().utilities(MASKS[:4], SEEDS[:4], TEST)
    file.write_bytes(content[:100])
    with pytest.raises(RunError, match=f"{file.name} is damaged"):
        study.open()


def test_two_that_write_beside_each_other(study):
    one, other = study.open(), study.open()
    for rows in (slice(0, 6), slice(6, 12)):
        one.utilities(MASKS[rows], SEEDS[rows], TEST)
        one.fit(MASKS[rows], SEEDS[rows])
        other.utilities(MASKS[rows][::-1], SEEDS[rows][::-1], TEST)
    other.utilities(MASKS[12:], SEEDS[12:], TEST)
    before = study.trained
    expected = fresh(study.kind).utilities(MASKS, SEEDS, TEST)
    assert_array_equal(study.open().utilities(MASKS, SEEDS, TEST), expected)
    assert study.trained == before


def test_two_that_open_a_new_store_at_once(tmp_path):
    """Of two studies that differ, one gets the directory and the other is told."""
    outcomes = []

    def opened(noise):
        try:
            Submodels(MeanLearner(noise=noise), TRAIN, path=tmp_path / "store")
            outcomes.append(noise)
        except InvalidInputError as error:
            assert "recipe" in str(error)

    threads = [threading.Thread(target=opened, args=(noise,)) for noise in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (kept,) = outcomes
    recipe = json.loads((tmp_path / "store" / "manifest.json").read_text())["recipe"]
    assert recipe == f"MeanLearner(noise={kept})"
    assert not list((tmp_path / "store").glob("*.tmp"))


@pytest.mark.parametrize("torn", [0, 30])
def test_a_full_disk_loses_nothing_that_was_done(study, monkeypatch, torn):
    submodels = study.open()
    submodels.utilities(MASKS[:5], SEEDS[:5], TEST)
    file = next((study.path / "results").glob("*.journal"))
    before = file.read_bytes()

    def full(file, content):
        file.write(content[:torn])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(journal, "write_all", full)
        with pytest.raises(ProponentError, match=r"No space left on device.*make room"):
            submodels.utilities(MASKS, SEEDS, TEST)
        with pytest.raises(ProponentError, match="No space left"):
            study.open().utilities(MASKS, SEEDS, TEST)  # its file does not exist yet
    assert file.read_bytes() == before
    assert len(list((study.path / "results").glob("*"))) == 1
    expected = fresh(study.kind).utilities(MASKS, SEEDS, TEST)
    assert_array_equal(submodels.utilities(MASKS, SEEDS, TEST), expected)  # with room again
    trained = study.trained
    assert_array_equal(study.open().utilities(MASKS[:5], SEEDS[:5], TEST), expected[:5])
    assert study.trained == trained


def test_a_full_disk_leaves_no_half_file_of_submodels(tmp_path, monkeypatch):
    study = Study(tmp_path, StackedLearner)
    submodels = study.open()
    submodels.fit(MASKS[:4], SEEDS[:4])
    written = array_files.np.lib.format.write_array

    def full(file, array, **settings):
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(array_files.np.lib.format, "write_array", full)
        with pytest.raises(ProponentError, match=r"No space left on device.*make room"):
            submodels.fit(MASKS, SEEDS)
    assert array_files.np.lib.format.write_array is written
    assert len(list((study.path / "submodels").iterdir())) == 1
    later = study.open()
    assert later.fit(MASKS, SEEDS) == TrainingReport(13, 4, 0, 0)
    expected = fresh(StackedLearner).utilities(MASKS, SEEDS, TEST)
    assert_array_equal(later.utilities(MASKS, SEEDS, TEST), expected)


def test_a_directory_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ProponentError, match="cannot be written to"):
        Submodels(MeanLearner(), TRAIN, path=tmp_path / "file" / "store")


def test_groups_and_instances_share_a_store(study):
    groups = np.array([0, 0, 1, 1, 2, 2])
    players = np.array([[1, 0, 1], [0, 1, 1]], bool)
    by_group = study.open(groups=groups).utilities(players, [3, 4], TEST)
    by_instance = study.open().utilities(players[:, groups], [3, 4], TEST)
    assert_array_equal(by_group, by_instance)
    assert study.trained == 2


def test_records_are_read_in_the_order_in_which_they_were_written(tmp_path):
    writer = journal.JournalWriter(tmp_path / "a.journal")
    payloads = [bytes([number]) * number for number in range(5)]
    for number, payload in enumerate(payloads):
        writer.append({"number": number, "text": "é\n"}, payload)
    found, unread = journal.read_journal(writer.path)
    assert unread == 0
    assert [record.header["number"] for record in found] == list(range(5))
    assert [record.payload() for record in found] == payloads
    assert all(one.start < other.start for one, other in pairwise(found))
    with pytest.raises(ProponentError, match="exists"):
        journal.JournalWriter(tmp_path / "a.journal").append({}, b"")
