"""Prompt templates by name. Their text around a question makes a base model answer in a form that rewards can read."""

# The name describes the answer: the reward `accuracy` reads `boxed`, `dapo_accuracy` reads `answer_line`.
# `code` is `boxed` without its instruction, for benchmarks whose answers are programs.
TEMPLATES = {
    # arXiv 2506.01939, section 5.2.
    "boxed": (
        "User:\n{question}\nPlease reason step by step, and put your final answer within \\boxed{}.\n\nAssistant:\n"
    ),
    "code": "User:\n{question}\n\nAssistant:\n",
    # The wrapper in DAPO's data (arXiv 2503.14476, BytedTsinghua-SIA/DAPO-Math-17k).
    "answer_line": (
        "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
        "$Answer (without quotes) where $Answer is the answer to the problem.\n\n{question}\n\nRemember to put your "
        'answer on its own line after "Answer:".'
    ),
}


def render(template: str | None, question: str) -> str:
    """The prompt for a question. Without a template it is the question itself."""
    if template is None:
        return question
    # `str.format` would fail, because questions and templates contain braces.
    before, after = TEMPLATES[template].split("{question}")
    return before + question + after
