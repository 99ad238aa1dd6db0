"""HTML pages from the package's templates. Every value is escaped unless its template marks it `safe`."""

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("entropy_grpo.analysis", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def source(name: str) -> str:
    """Return the text of a file among the templates, such as a style sheet."""
    environment = _environment()
    return environment.loader.get_source(environment, name)[0]


def render(name: str, **values: Any) -> str:
    """Render the template `name`. A missing value is an error."""
    return _environment().get_template(name).render(values)
