"""The classes that the libraries' weights were trained for, by all the names they go by."""

from typing import Any

from timm.data import ImageNetInfo, infer_imagenet_subset

from headstart.model.reuse import Source


def imagenet_classes(count: int) -> Source | None:
    """Give the classes of the ImageNet with so many of them, as timm's weights order them; None where there is none.

    Each goes by its description (`"hotdog, hot dog, red hot"`), by the synonyms in it, and by its WordNet id.

    Example:
        >>> imagenet_classes(1000).names[934]
        ('hotdog, hot dog, red hot', 'hotdog', 'hot dog', 'red hot', 'n07697537')
    """
    subset = infer_imagenet_subset({"num_classes": count})
    if subset is None:
        return None
    info = ImageNetInfo(subset)
    described = Source.of_descriptions(info.label_descriptions(), f"{subset} with {count} classes")
    pairs = zip(described.names, info.label_names(), strict=True)
    return described._replace(names=tuple((*names, synset) for names, synset in pairs))


def torchvision_classes(weights: Any) -> Source:
    """Give the classes of torchvision's weights: its own names first, then those that timm has for the same place."""
    categories = weights.meta["categories"]
    others = imagenet_classes(len(categories))
    more = [()] * len(categories) if others is None else others.names
    names = tuple(tuple(dict.fromkeys((name, *synonyms))) for name, synonyms in zip(categories, more, strict=True))
    return Source(names, f"torchvision's {weights.name} with {len(categories)} classes")
