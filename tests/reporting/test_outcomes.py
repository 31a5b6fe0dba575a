"""Confusion matrices and what each attack broke, against counts by hand."""

import numpy as np
from evaluations import arrays, evaluation

from ard_jax.reporting import outcomes
from ard_jax.reporting.record import Evaluation


def small(*attacks, **nets):
    values = {"nets": nets, "attacks": {n: {"label": n.upper()} for n in attacks}}
    return Evaluation.from_json(values | {"dataset": {"num_classes": 2, "class_names": ["a", "b"]}})


def test_confusion_counts_rows_by_class():
    labels, predicted = (
        np.array([0, 0, 1, 1, 1, 0]),
        np.array([0, 1, 1, -1, 0]),
    )  # of the first five
    np.testing.assert_array_equal(outcomes.confusion(labels, predicted, 2), [[1, 1], [1, 1]])


def test_shares_that_each_attack_broke():
    flags = {
        "clean": [1, 1, 1, 0, 1],
        "a": [0, 0, 1, 0, 1],  # breaks the first two
        "b": [1, 0, 1, 1],  # the second; the fourth was wrong before; the fifth was not attacked
    }
    found = {f"net/{n}/correct": np.array(v, bool) for n, v in flags.items()}
    found["labels"] = np.zeros(5, int)
    table = outcomes.broken_table(small("a", "b", "transfer_a_x", net={}), found)
    assert table.titles == ["net", "wrong before", "A", "B", "right under all"]
    (row,) = table.cells()
    assert [cell.text for cell in row] == ["net, first 4", "25.00", "50.00", "25.00", "25.00"]
    assert [cell.small for cell in row] == ["", "", "alone 25.0", "alone 0.0", ""]


def test_every_network_has_its_matrices_and_mistakes():
    values = evaluation()
    record = Evaluation.from_json(values)
    found = outcomes.confusions(record, arrays(values))
    assert [one.title for one in found] == list(values["nets"])
    assert [one.shown for one in found] == [True, False, False, False]
    assert [name for name, _ in found[0].matrices] == ["clean", "PGD_sat"]
    assert "two" not in found[0].matrices[0][1] and ">one<" in found[0].matrices[0][1]
    assert found[0].table.titles == ["class", "taken for", "clean", "PGD_sat"]
    assert len(found[0].table.rows) <= 10


def test_the_most_frequent_mistake_comes_first():
    found = {"labels": np.array([0, 0, 0, 1]), "net/clean/predicted": np.array([1, 1, 0, 1])}
    (one,) = outcomes.confusions(small(net={}), found)
    assert [[c.text for c in row] for row in one.table.cells()] == [["a", "b", "66.67"]]


def test_records_without_arrays_have_neither():
    record = Evaluation.from_json(evaluation())
    assert outcomes.confusions(record, {}) == [] and outcomes.broken_table(record, {}) is None


def test_many_classes_are_a_picture_without_numbers():
    values = evaluation()
    values["dataset"] |= {"num_classes": 30, "class_names": []}
    (_, svg), *_ = outcomes.confusions(Evaluation.from_json(values), arrays(values, 90))[0].matrices
    assert "<image" in svg and ">100<" not in svg
