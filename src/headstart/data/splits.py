"""Which pictures are kept for val when no folder says so. What is in them is not looked at."""

from collections.abc import Sequence

import torch

from headstart.randomness import SPLIT, derive, generator


def stratified(labels: Sequence[int], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Split pictures into train and val, class by class.

    Each class is drawn from on its own: what happens to one never moves a picture of another.

    Args:
        labels: the class number of each picture.
        fraction: share of each class that goes to val, in (0, 1), rounded to whole pictures; a class of two or more
            gives at least one to either side, a class of one gives it to train.
        seed: another seed takes other pictures.

    Returns:
        The places in `labels` of the train and of the val pictures, both ascending.

    Example:
        >>> train, val = stratified([0, 0, 0, 0, 1, 1, 1, 1], fraction=0.25, seed=0)
        >>> len(train), len(val), sorted(train + val)
        (6, 2, [0, 1, 2, 3, 4, 5, 6, 7])
    """
    places: dict[int, list[int]] = {}
    for place, label in enumerate(labels):
        places.setdefault(label, []).append(place)
    val: set[int] = set()
    for label, those in places.items():
        count = min(max(round(fraction * len(those)), 1), len(those) - 1)
        shuffled = torch.randperm(len(those), generator=generator(derive(SPLIT, seed, label))).tolist()
        val.update(those[number] for number in shuffled[:count])
    return [place for place in range(len(labels)) if place not in val], sorted(val)
