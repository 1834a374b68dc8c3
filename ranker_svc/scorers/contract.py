"""What a model says of itself, so that it never reads one feature as another."""

from ranker_svc.features import FEATURES

# Entries of an ONNX file's metadata, and parameters of a model's configuration in Triton: the
# columns of the input, separated by commas, and which model it is.
FEATURES_KEY = "features"
VERSION_KEY = "version"


def mismatch(listed: str) -> str | None:
    """What is wrong with a model that lists these features; None when nothing is."""
    if listed == ",".join(FEATURES):
        return None
    return (
        f"does not take the features of this ranker; its '{FEATURES_KEY}' is "
        f"{listed or 'missing'}, and must be {','.join(FEATURES)}"
    )
