"""Data sets of a public layout, made up for tests."""

from reticent.data import ArrayPair, Dataset


def made_up(name: str, train: ArrayPair, test: ArrayPair, *, class_names: tuple[str, ...] = ()) -> Dataset:
    """A data set of ten classes under the name of a public one, with nothing to cite."""
    return Dataset(
        name=name,
        train=train,
        test=test,
        num_classes=10,
        class_names=class_names,
        feature_names=(),
        licence="",
        package_licence="",
        citation="",
        source="made up",
        sha256="0",
    )
