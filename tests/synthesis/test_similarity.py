"""Similarity: the measure, and an index that finds what comparing with every text finds."""

from __future__ import annotations

import random

import pytest

from mmedge.synthesis.similarity import SimilarTexts, similarity


@pytest.mark.parametrize(
    ("left", "right", "least", "most"),
    [
        ("Play some jazz!", "play some JAZZ", 1.0, 1.0),  # case and punctuation do not matter
        ("Wake me at seven", "Skip this song", 0.0, 0.05),
        ("add this track to my Hands Up playlist", "add this track to my party playlist", 0.55, 0.7),  # below the default
        ("I want to book a restaurant for ten people.", "I want to book a churrascaria restaurant for ten people.", 0.7, 0.9),
        ("…", "…", 1.0, 1.0),  # a text without words is itself
        ("地图在哪里", "地图在哪里?", 1.0, 1.0),
    ],
)
def test_similar_texts_are_known_by_the_trigrams_of_their_words(left: str, right: str, least: float, most: float) -> None:
    assert least <= similarity(left, right) == similarity(right, left) <= most


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.7, 1.0])
def test_the_index_finds_what_comparing_with_every_text_finds(threshold: float) -> None:
    draw = random.Random(7)
    words = ["play", "jazz", "a", "the", "timer", "for", "ten", "minutes", "light", "lamp", "hall", "on", "off"]
    texts = [" ".join(draw.choices(words, k=draw.randint(1, 8))) for _ in range(120)]
    index = SimilarTexts(threshold, texts[:50])
    for number, text in enumerate(texts[:100]):
        index.add(text, str(number))
    for text in texts[80:]:
        found = index.nearest(text)
        best = max(similarity(text, other) for other in texts[:100])
        assert (found is not None) == (best >= threshold)
        assert found is None or found[0] == best == similarity(text, texts[int(found[1])])
