"""Study files: presets by name and YAML files by path, turned into the flags that say the same.

A value is the text that stands in the file, read as the command line reads it: `yes`, `on` and `1:30` are words, `010` is ten, `4M` is four
million, as in YAML 1.2 (yaml.org/spec/1.2.2, chapter 10) and unlike PyYAML's own reading.

    study_flags("quick")   # ["--sweeps", "depth:n_layer=1,2,4", ..., "--model.n_embd=64", ...]
"""

import difflib
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from models.home import expanded
from study.files import is_file_name
from study.options import Options
from study.spec import Study
from study.sweeps import format_sweep

PRESETS = Path(__file__).parent / "presets"
GROUPS = {"model": "n_layer: 4", "train": "lr: 1e-3", "data": "name: stories"}
"""The groups of a study file, each with an example."""
NOTHING = ("", "~", "null", "Null", "NULL")


def preset_names() -> list[str]:
    """Names of the studies that come with the program."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def presets() -> Iterator[str]:
    """Name, cost and question of each preset; the cost was measured and stands as a comment above the question."""
    for name in preset_names():
        text = (PRESETS / f"{name}.yaml").read_text(encoding="utf-8")
        found = re.search(r"^# Costs: (.+)\nquestion: (.+)$", text, re.M)
        assert found
        yield f"{name:18} {found[1]:36} {found[2]}"


def find_study(name: str) -> Path:
    """The YAML file of a preset's name or of a path; ValueError, which names the nearest preset, where neither exists."""
    if is_file_name(name):
        path = expanded(name, "STUDY")
        if not path.is_file():
            raise ValueError(f"there is no study file {name}; give a YAML file or one of the presets {', '.join(preset_names())}")
        return path
    if name not in preset_names():
        near = difflib.get_close_matches(name, preset_names(), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"there is no study {name!r}; {hint}presets are {', '.join(preset_names())}, or give a path to a YAML file")
    return PRESETS / f"{name}.yaml"


def load_yaml(path: Path) -> dict[str, Any]:
    """A study file as a mapping of texts, lists and mappings; what is left empty is left out.

    Raises:
        ValueError: not readable, not YAML, with a key twice, or with keys that a study does not have.
    """
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        body = _content(root) if root else None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None
    if not isinstance(body, dict):
        raise ValueError(f"{path} holds no study: it should be a mapping with keys such as question, seeds, model, train, data, sweeps")
    allowed = [f.name for f in fields(Study)]
    for key in body:
        if key not in allowed:
            where = " (where to run belongs on the command line)" if key in {f.name for f in fields(Options)} else ""
            raise ValueError(f"{path} has an unknown key {key!r}{where}; a study has {', '.join(allowed)}")
    return body


def _content(node: yaml.Node, depth: int = 0) -> Any:
    """A YAML node as a dict, a list, the text of a scalar, or None where nothing stands."""
    line = node.start_mark.line + 1
    if depth > 5 or not node.tag.startswith("tag:yaml.org,2002:") or "python" in node.tag:
        raise ValueError(f"holds in line {line} what no study holds; a study has plain values, lists and mappings")
    if isinstance(node, yaml.ScalarNode):
        return None if node.style is None and node.value in NOTHING else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_content(item, depth + 1) for item in node.value]
    lines, body = dict[str, int](), dict[str, Any]()
    for key, value in node.value:
        name, here = str(key.value), key.start_mark.line + 1
        if name in lines:
            raise ValueError(f"has the key {name!r} twice, in lines {lines[name]} and {here}; keep one of them")
        lines[name], body[name] = here, _content(value, depth + 1)
    return body


def study_flags(name: str) -> list[str]:
    """A study file as command-line flags. A relative data.path or model.module is taken from the file's own folder."""
    path = find_study(name)
    body = load_yaml(path)
    flags: list[str] = []
    lists_first = sorted(body.items(), key=lambda item: item[0] not in ("sweeps", "seeds"))
    for key, value in lists_first:  # a list swallows the words after it, so that no list may come last
        if value is None:
            continue
        if key == "sweeps":
            flags += ["--sweeps", *_sweep_lines(path, value)]
        elif key == "seeds":
            flags += ["--seeds", *(value if isinstance(value, list) else [value])]
        elif key not in GROUPS:
            flags.append(f"--{key}={value}")
        elif isinstance(value, dict):
            extra = value.pop("extra", None) or {}
            value |= {f"extra.{inner}": item for inner, item in extra.items()} if isinstance(extra, dict) else {"extra": extra}
            flags += [f"--{key}.{inner}={_text(path, key, inner, item)}" for inner, item in value.items() if item is not None]
        else:
            raise ValueError(f"{path}: {key} should be a mapping of fields to values, for example {key}: {{{GROUPS[key]}}}")
    return flags


def _sweep_lines(path: Path, value: Any) -> list[str]:
    if isinstance(value, dict) and all(isinstance(body, dict) for body in value.values()):
        lines = [format_sweep(name, body) for name, body in value.items()]
    elif isinstance(value, list) and all(isinstance(line, str) for line in value):
        lines = value
    else:
        raise ValueError(f"{path}: sweeps should map each name to its fields, for example depth: {{n_layer: [1, 2, 4]}}")
    if dashed := next((line for line in lines if line.startswith("-")), None):
        raise ValueError(f"{path}: the sweep {dashed.partition(':')[0]!r} begins with a dash, as flags do; give it another name")
    return lines


def _text(path: Path, group: str, name: str, value: Any) -> str:
    if (group, name) in (("data", "path"), ("model", "module")) and value:
        return str(path.parent / expanded(str(value), f"{group}.{name}"))
    return str(value)
