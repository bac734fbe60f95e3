"""The emotion vocabulary and what two label sets share."""

import pytest

from ser.errors import UserError
from ser.labels import CALM_POLICIES, EMOTIONS, LABEL_SETS, label_set, shared_labels

CREMA_D, RAVDESS = label_set("crema_d"), label_set("ravdess")


@pytest.mark.parametrize("corpus", sorted(LABEL_SETS))
def test_every_label_set_is_a_subset_of_the_vocabulary_in_its_order(corpus):
    labels = label_set(corpus)
    assert labels == tuple(label for label in EMOTIONS if label in labels)
    assert len(labels) >= 2


def test_the_corpora_have_their_published_numbers_of_emotions():
    assert len(CREMA_D) == 6
    assert len(RAVDESS) == 8
    assert set(RAVDESS) - set(CREMA_D) == {"calm", "surprised"}


def test_an_unknown_corpus_is_answered_with_the_nearest_name():
    with pytest.raises(UserError, match=r"'crema-d' is unknown; did you mean 'crema_d'\?"):
        label_set("crema-d")


def test_some_classes_keep_the_order_of_all():
    assert label_set("ravdess", ["sad", "angry", "calm"]) == ("angry", "calm", "sad")
    for classes, says in (
        (["angry", "hapy"], r"'hapy', which ravdess does not have; did you mean 'happy'\?"),
        (["angry"], "two or more"),
        (["angry", "sad", "sad"], "each once"),
    ):
        with pytest.raises(UserError, match=says):
            label_set("ravdess", classes)


@pytest.mark.parametrize(("model", "corpus"), [(CREMA_D, RAVDESS), (RAVDESS, CREMA_D)])
def test_calm_counts_as_neutral_where_only_one_side_knows_it(model, corpus):
    shared, mapping = shared_labels(model, corpus, "neutral")
    assert shared == CREMA_D
    assert mapping == {label: label for label in CREMA_D} | {"calm": "neutral"}


@pytest.mark.parametrize(("model", "corpus"), [(CREMA_D, RAVDESS), (RAVDESS, CREMA_D)])
def test_calm_can_be_left_out(model, corpus):
    shared, mapping = shared_labels(model, corpus, "leave_out")
    assert shared == CREMA_D
    assert mapping == {label: label for label in CREMA_D}


@pytest.mark.parametrize("calm", CALM_POLICIES)
def test_between_equal_sets_every_label_stays_itself(calm):
    assert shared_labels(RAVDESS, RAVDESS, calm) == (EMOTIONS, {label: label for label in EMOTIONS})
    assert shared_labels(CREMA_D, CREMA_D, calm) == (CREMA_D, {label: label for label in CREMA_D})


def test_calm_stays_outside_where_neutral_is_not_shared():
    shared, mapping = shared_labels(("angry", "calm", "sad"), ("angry", "neutral", "sad"))
    assert shared == ("angry", "sad")
    assert set(mapping) == {"angry", "sad"}


def test_shared_labels_come_in_the_order_of_the_vocabulary():
    assert shared_labels(("sad", "angry", "happy"), ("happy", "sad", "angry"))[0] == ("angry", "happy", "sad")


def test_fewer_than_two_shared_labels_are_refused():
    with pytest.raises(UserError, match=r"happy.*fewer than two"):
        shared_labels(("angry", "sad"), ("sad", "happy"))


def test_an_unknown_calm_policy_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'leave_out'"):
        shared_labels(CREMA_D, RAVDESS, "leaveout")
