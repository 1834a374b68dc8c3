"""From the log of feeds to a model that serves: data set, DeepFM, evaluation, export."""
