"""Reads YAML into mappings, lists and uninterpreted text.

The setting's type decides what ``3e9``, ``yes`` or ``017`` means (`gpt3_jax.config.values`). YAML 1.1 would read them
as a string, a boolean and the number fifteen. JSON is read too.
"""

from __future__ import annotations

from typing import Any

import yaml

_NULLS = ("", "~", "null", "Null", "NULL")


class BadYaml(ValueError):
    """The text is not YAML, or uses YAML that configurations do not support. The message names the line."""


def read_yaml(text: str) -> Any:
    """Parses a text of one document into dict, list or str; None for null or an empty text.

    Raises:
        BadYaml: not YAML; a key twice in one mapping; several documents; anchors, merge keys or tags.
    """
    try:
        node = yaml.compose(text, Loader=yaml.BaseLoader)
        return None if node is None else _value(node, set())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise BadYaml(f"{where}{' '.join(filter(None, (error.context, error.problem)))}") from None
    except yaml.YAMLError as error:
        raise BadYaml(" ".join(str(error).split())) from None
    except RecursionError:
        raise BadYaml("nested too deeply") from None


def _value(node: yaml.Node, seen: set[int]) -> Any:
    line = node.start_mark.line + 1
    if id(node) in seen:
        raise BadYaml(f"line {line}: the value at this anchor is used again; write it out where it is used")
    seen.add(id(node))
    kind = "str" if isinstance(node, yaml.ScalarNode) else "map" if isinstance(node, yaml.MappingNode) else "seq"
    if node.tag != f"tag:yaml.org,2002:{kind}":
        raise BadYaml(f"line {line}: the tag {node.tag} is not supported; write the plain value")
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, seen)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, seen) for item in node.value]
    plain = getattr(node, "style", None) is None
    return None if plain and node.value in _NULLS else node.value


def _mapping(node: yaml.MappingNode, seen: set[int]) -> dict[str, Any]:
    lines: dict[str, int] = {}
    values = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise BadYaml(f"line {line}: a key is a {key_node.id}; expected a name")
        key = key_node.value
        if key == "<<":
            raise BadYaml(f"line {line}: merge keys (<<) are not supported; write the settings out")
        if key in lines:
            where = f"on lines {lines[key]} and {line}" if lines[key] != line else f"twice on line {line}"
            raise BadYaml(f"the key {key!r} appears {where}; keep one of them")
        lines[key] = line
        values[key] = _value(value_node, seen)
    return values
