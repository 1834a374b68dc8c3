"""What /metrics says, as values."""

from collections import defaultdict
from collections.abc import Mapping

from prometheus_client.openmetrics.parser import text_string_to_metric_families

Series = tuple[str, frozenset[tuple[str, str]]]


class Exposition:
    """One reading of OpenMetrics text."""

    def __init__(self, text: str) -> None:
        self.values: dict[Series, float] = {}
        # Trace ids, by the name of the metric as it is declared: without _total and _bucket.
        self.exemplars: dict[str, set[str]] = defaultdict(set)
        self.types: dict[str, str] = {}
        for family in text_string_to_metric_families(text):  # type: ignore[no-untyped-call]
            self.types[family.name] = family.type
            for sample in family.samples:
                self.values[sample.name, frozenset(sample.labels.items())] = sample.value
                if sample.exemplar is not None:
                    self.exemplars[family.name].add(sample.exemplar.labels["trace_id"])

    def value(self, name: str, labels: Mapping[str, str] | None = None) -> float:
        """The sum of all series of that name that have these labels."""
        wanted = (labels or {}).items()
        return sum(
            value
            for (series, has), value in self.values.items()
            if series == name and wanted <= has
        )

    def grown(self, before: "Exposition") -> set[str]:
        """The histograms that got an observation since."""
        return {
            name
            for name, kind in self.types.items()
            if kind == "histogram"
            if self.value(f"{name}_count") > before.value(f"{name}_count")
        }
