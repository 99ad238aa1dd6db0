"""OlympiadBench: its 674 English competition problems in mathematics with a final answer and no picture.

Traps: `final_answer` is a list of one text, in some copies the text of such a list. The text may hold several answers,
with a `$` around each ("$69$,$84$") or around all. Some answers have a unit or a tolerance in separate columns, which
are not read. Qwen2.5-Math's copy has 675 rows.
"""

import ast

from ..sources import Row, Source, text_at
from .benchmark import Benchmark


def final_answer(value: object) -> str:
    """The answer of a row without formula delimiters.

    Raises:
        ValueError: the row has no answer or several.
    """
    if isinstance(value, str) and value.startswith("["):
        try:
            value = ast.literal_eval(value)
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"final_answer is {value!r:.60}, but a list was expected") from error
    if not isinstance(value, list) or len(value) != 1 or not isinstance(value[0], str):
        raise ValueError(f"final_answer is {value!r:.60}, but a list of one text was expected")
    return value[0].replace("$", "").strip().rstrip(".")


def read(row: Row) -> tuple[str, str]:
    context = row.get("context") or ""
    return "\n".join(filter(None, [context, text_at(row, "question")])), final_answer(row.get("final_answer"))


BENCHMARK = Benchmark(
    "olympiadbench",
    Source(
        "Hothan/OlympiadBench",
        read,
        file="OlympiadBench/OE_TO_maths_en_COMP/OE_TO_maths_en_COMP.parquet",
        revision="91184b52131e7fc9455fef848035173aea8cc01a",
        rows=674,
    ),
    id_column="id",
)
