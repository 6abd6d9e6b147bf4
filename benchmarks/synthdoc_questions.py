"""Right answers of a `synthdoc` result by sort of question, where the scores by kind of document hide which is hard.

python benchmarks/synthdoc_questions.py llava_uhd/assets/tiny/synthdoc.json
"""

import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from llava_uhd.synthetic.charts import COMPARISONS, TITLE
from llava_uhd.synthetic.tables import MONTHS, QUARTERS, YEARS

SERIES = tuple([title.lower() for title in series] for series in (QUARTERS, YEARS, [month[:3] for month in MONTHS]))


def sort_of(row: dict[str, Any]) -> str:
    """Return the sort of a question, in words."""
    kind, question = row["category"], row["prompt"]
    if kind == "chart":
        if question in COMPARISONS:
            return "chart: the highest or lowest bar"
        return "chart: the title" if question in TITLE else "chart: a bar's value"
    if kind == "table":
        column = re.sub(r"^What is the ", "", question).split(" of ")[0].lower()
        if any(column in series[1:] for series in SERIES):
            return "table: the second or a later one of several like columns"
        return "table: another column"
    return kind


def main() -> None:
    result = json.loads(Path(sys.argv[1]).read_text())
    scores: dict[str, list[float]] = defaultdict(list)
    for row in result["rows"]:
        scores[sort_of(row)].append(row["score"])
    for sort, of_sort in sorted(scores.items()):
        print(f"{sort}: {sum(of_sort):.0f} of {len(of_sort)}")


if __name__ == "__main__":
    main()
