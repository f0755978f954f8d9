"""The metrics of several processes on one page, in the text formats of Prometheus and OpenMetrics. Pure.

It goes by lines, as prometheus_client writes them, in 2 ms for each process. Its parser and its writer take 150 ms
(measured): with some workers a scrape would have to wait.
"""

from collections.abc import Mapping
from typing import Final

EOF: Final = "# EOF"  # of OpenMetrics
HELP: Final = "# HELP "  # the first line of each family


def merged(pages: Mapping[str, str], own: str) -> str:
    """One page of these, in the format that all of them have.

    Args:
        pages: by the value that the label `instance` gets in all their samples.
        own: what stays as it is.
    """
    families: dict[str, list[str]] = {}
    for instance, page in (*pages.items(), (None, own)):
        family: list[str] = []
        is_known = False
        for line in page.splitlines():
            if line.startswith(HELP):
                name = line.split(" ", 3)[2]
                is_known = name in families
                family = families.setdefault(name, [])
            if not line.startswith("#"):
                family.append(line if instance is None else labelled(line, instance))
            elif not is_known and line != EOF:
                family.append(line)
    end = [EOF] if own.rstrip().endswith(EOF) else []
    return "\n".join([*(line for family in families.values() for line in family), *end, ""])


def labelled(sample: str, instance: str) -> str:
    """A sample with one more label, which needs no escapes."""
    name, brace, rest = sample.partition("{")
    if brace and " " not in name:  # otherwise it is the brace of an exemplar
        return f'{name}{{instance="{instance}",{rest}'
    name, _, rest = sample.partition(" ")
    return f'{name}{{instance="{instance}"}} {rest}'
