"""YAML 1.2, read and written by ruamel.yaml: `1e-6` is a number, `no` is text, and a repeated key is an error.

All YAML of the package is read and written here: recipes, recipes in run folders, words of a command line.
"""

import io
import re
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.resolver import VersionedResolver

STR = "tag:yaml.org,2002:str"
WIDTH = 100
# Text that only double quotes keep: three quotation marks would end the Python text of a recipe file, and elsewhere a
# reader takes these line breaks for spaces.
ESCAPED = re.compile('"""|[\x85\u2028\u2029]')
OLDER = VersionedResolver(version=(1, 1))


class NotYAML(ValueError):
    """Error for text that is not YAML. The reason has no full stop; `line` counts from 1, None if unknown."""

    def __init__(self, reason: str, line: int | None) -> None:
        super().__init__(reason)
        self.line = line


class RepeatedKey(NotYAML):
    """Error for a key that a mapping has twice."""


class _Constructor(SafeConstructor):
    def check_mapping_key(self, node: MappingNode, key_node: ScalarNode, mapping: Any, key: Any, value: Any) -> bool:
        if key in mapping:
            raise RepeatedKey(f"{key} is given twice", key_node.start_mark.line + 1)
        return True


# The core schema of YAML 1.2 knows no dates: `run_name: 2026-01-01` is a name.
_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


class _Representer(SafeRepresenter):
    """Representer whose text and numbers are the same to readers of YAML 1.1, such as PyYAML."""

    def represent_str(self, data: str) -> ScalarNode:
        changes = str(OLDER.resolve(ScalarNode, data, (True, False))) != STR
        style = '"' if ESCAPED.search(data) else "'" if changes else None
        return self.represent_scalar(STR, data, style=style)

    def represent_float(self, data: float) -> ScalarNode:
        node = super().represent_float(data)
        if "e" in node.value and "." not in node.value:
            node.value = node.value.replace("e", ".0e")
        return node


_Representer.add_representer(str, _Representer.represent_str)
_Representer.add_representer(float, _Representer.represent_float)


def _yaml() -> YAML:
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.Constructor, yaml.Representer = _Constructor, _Representer
    yaml.default_flow_style, yaml.width, yaml.sort_base_mapping_type_on_output = False, WIDTH, False
    return yaml


def _reason(error: YAMLError) -> NotYAML:
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        return NotYAML(" ".join(str(error.problem).split()), error.problem_mark.line + 1)
    return NotYAML(" ".join(str(error).split()), None)


def parse(text: str) -> Any:
    """The value of one document, of plain Python types.

    Raises:
        NotYAML: the text is no YAML, holds several documents, a repeated key or a tag that makes objects.
    """
    try:
        return _yaml().load(text)
    except YAMLError as error:
        raise _reason(error) from error


def key_lines(text: str) -> dict[str, int]:
    """The line, from 1, of every key of the outermost mapping; empty if the document is no mapping."""
    node = _yaml().compose(text)
    return {key.value: key.start_mark.line + 1 for key, _ in node.value} if isinstance(node, MappingNode) else {}


def dump(values: dict[str, Any]) -> str:
    """Values as block YAML in their order. Readers of YAML 1.1 and of YAML 1.2 read the same values."""
    text = io.StringIO()
    _yaml().dump(values, text)
    return text.getvalue()
