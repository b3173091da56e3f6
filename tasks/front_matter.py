"""Front matter: the YAML block at the head of a Markdown file."""

from __future__ import annotations

from typing import Any

import frontmatter
import yaml
from frontmatter.default_handlers import YAMLHandler

from tasks.excerpts import MOST_NODES, plain
from tasks.roots import Location, contents

LARGEST_FILE = 1024 * 1024
LARGEST_BLOCK = 64 * 1024  # characters, of which the loader reads some ten thousand a second


class BrokenFrontMatter(ValueError):
    """The block at the head of this file cannot be read; the message says why."""


class _Loader(yaml.SafeLoader):
    """Counts what merge keys copy: merges of merges let a few lines stand for billions of pairs."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._copied = 0

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                for merged in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    self._count(merged)
        super().flatten_mapping(node)

    def _count(self, merged: yaml.Node) -> None:
        if isinstance(merged, yaml.MappingNode):
            self.flatten_mapping(merged)
            self._copied += len(merged.value)
        if self._copied > MOST_NODES:
            raise ValueError(f"its merge keys copy more than {MOST_NODES:,} values")


class _Yaml(YAMLHandler):
    """YAML by the loader in Python. The one in C overflows its stack on deep nesting and kills us."""

    def load(self, fm: str, **kwargs: object) -> Any:
        return yaml.load(fm, Loader=_Loader)  # noqa: S506 - a SafeLoader


def front_matter(location: Location) -> dict[str, Any]:
    """The metadata at the head of a Markdown file, as JSON values; empty if the file has no block.

    Raises BrokenFrontMatter, and what ``contents`` raises.
    """
    return parsed(contents(location, limit=LARGEST_FILE))


def parsed(data: bytes) -> dict[str, Any]:
    """The metadata at the head of these contents. Raises BrokenFrontMatter."""
    try:
        text = data.decode("utf-8-sig")
        _check_block(text)
        metadata, _ = frontmatter.parse(text, handler=_Yaml())
        return dict(plain(metadata))
    except RecursionError:
        raise BrokenFrontMatter("the front matter is nested too deeply") from None
    except (yaml.YAMLError, ValueError, TypeError, ArithmeticError) as error:
        raise BrokenFrontMatter(" ".join(str(error).split())) from None
    except (LookupError, AttributeError):  # how the loader fails at such as "!!int ''" and "!!bool maybe"
        raise BrokenFrontMatter(
            "the front matter has a value that is not of the type it is tagged with"
        ) from None


def _check_block(text: str) -> None:
    boundary = _Yaml.FM_BOUNDARY
    if boundary is None or not boundary.match(text):
        return
    pieces = boundary.split(text, 2)
    # The library takes such a file for one without front matter, which would hide the fault.
    if len(pieces) < 3:
        raise ValueError("the front matter is not closed by a line of three hyphens")
    if len(pieces[1]) > LARGEST_BLOCK:
        raise ValueError(f"the front matter is longer than {LARGEST_BLOCK:,} characters")
