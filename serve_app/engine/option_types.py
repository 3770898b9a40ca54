"""Types, limits and choices of vLLM's options, read from source because importing vLLM takes seconds.

The type is the annotation in vLLM's option class. Limits are those of the field its default comes from, or of the field
of that name in vLLM's configuration (`max_num_seqs: int = Field(default=…, ge=1)`). What the source does not tell may
be anything; vLLM still checks it.
"""

from __future__ import annotations

import ast
import importlib.util
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, reduce
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, create_model

_BUILT_IN = {"int": int, "float": float, "bool": bool, "str": str, "dict": dict, "list": list, "set": list, "Any": Any}
_LIMITS = ("ge", "gt", "le", "lt")
# Union members that no config file can hold.
_UNWRITABLE = ("type", "Callable", "torch.dtype")
_OPAQUE = object()


@dataclass(frozen=True)
class Module:
    name: str

    @property
    def path(self) -> Path:
        folder = vllm_folder().joinpath(*self.name.split(".")[1:])
        return folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")

    def find(self, name: str) -> tuple[ast.AST, Module] | None:
        """The class or value of this name and its module, following vLLM's imports."""
        node = _definitions(self).get(name)
        if isinstance(node, ast.ImportFrom):
            if node.level or not str(node.module).startswith("vllm"):
                return None
            original = next(alias.name for alias in node.names if name in (alias.asname, alias.name))
            return Module(str(node.module)).find(original)
        return None if node is None else (node, self)


@cache
def vllm_folder() -> Path:
    """Raises ModuleNotFoundError where vLLM is not installed."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("vllm")
    return Path(spec.origin).parent


@cache
def _definitions(module: Module) -> dict[str, ast.AST]:
    found: dict[str, ast.AST] = {}
    if not module.path.is_file():
        return found
    # Imports for type checkers say more than their run-time substitutes.
    body = ast.parse(module.path.read_text()).body
    guarded = [node for one in body if isinstance(one, ast.If) for node in one.body]
    for node in (*body, *guarded):
        if isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: node for alias in node.names}
        elif isinstance(node, ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            found[node.target.id] = node.value
    return found


def dict_keys(module: str, name: str) -> list[str]:
    """Keys of a dict in a vLLM module's source; [] if absent."""
    found = Module(module).find(name)
    if found is None or not isinstance(found[0], ast.Dict):
        return []
    return [key.value for key in found[0].keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]


def config_model(module: str, name: str) -> type[BaseModel] | None:
    """A vLLM configuration class as a model, else None."""
    found: Any = _config(name, Module(module))
    return None if found is _OPAQUE else found


def option_fields(module: str, classes: tuple[str, ...]) -> dict[str, tuple[ast.AnnAssign, Module]]:
    """Annotated fields of vLLM's classes by name; later classes win."""
    here = Module(module)
    found = [here.find(name) for name in classes]
    return {
        name: (field, one[1])
        for one in found
        if one is not None and isinstance(one[0], ast.ClassDef)
        for name, field in _annotated(one[0])
    }


def option_type(field: ast.AnnAssign, module: Module) -> tuple[Any, Any]:
    kind = _type(field.annotation, module)
    default, limits = _default(field, module)
    if kind is _OPAQUE:
        return Any, None
    if isinstance(default, ast.Constant) and default.value is None:
        kind = kind | None
    plain = {member for member in get_args(kind) or (kind,) if member is not type(None)} <= {int, float}
    return kind, Field(None, **(limits if plain else {}))


def _annotated(node: ast.ClassDef) -> Iterator[tuple[str, ast.AnnAssign]]:
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and not item.target.id.startswith("_"):
            yield item.target.id, item


def _default(field: ast.AnnAssign, module: Module) -> tuple[ast.AST | None, dict[str, Any]]:
    """The default's source and limits, from `OtherConfig.field` and `get_field(OtherConfig, "field")`."""
    value = field.value
    match value:
        case ast.Attribute(value=ast.Name() as owner, attr=name):
            pass
        case ast.Call(func=ast.Name(id="get_field"), args=[ast.Name() as owner, ast.Constant(value=str(name))]):
            pass
        case ast.Call(func=ast.Name(id="Field" | "field"), keywords=keywords):
            given = {word.arg: word.value for word in keywords if word.arg}
            return given.get("default"), {word: _number(given[word]) for word in _LIMITS if word in given}
        case _:
            assert isinstance(field.target, ast.Name)
            return value, _limits_of(field.target.id) if isinstance(value, ast.Constant) else {}
    found = module.find(owner.id)
    if found is None or not isinstance(found[0], ast.ClassDef):
        return None, {}
    inner = dict(_annotated(found[0])).get(name)
    return (None, {}) if inner is None else _default(inner, found[1])


@cache
def _limits_of(name: str) -> dict[str, Any]:
    """Limits of this field in vLLM's configuration; {} unless exactly one has limits."""
    found = []
    for path in sorted((vllm_folder() / "config").glob("*.py")):
        module = Module(f"vllm.config.{path.stem}")
        for node in _definitions(module).values():
            if isinstance(node, ast.ClassDef) and (field := dict(_annotated(node)).get(name)) is not None:
                match field.value:
                    case ast.Call(func=ast.Name(id="Field")):
                        found.append(_default(field, module)[1])
    return found[0] if len(found) == 1 else {}


def _number(node: ast.AST) -> Any:
    return ast.literal_eval(ast.unparse(node))


def _type(node: ast.AST | None, module: Module) -> Any:
    """A type pydantic can check, else _OPAQUE."""
    match node:
        case ast.Constant(value=None):
            return type(None)
        case ast.Constant(value=str(text)):
            return _type(ast.parse(text, mode="eval").body, module)
        case ast.Name(id=name) if name in _BUILT_IN:
            return _BUILT_IN[name]
        case ast.Name(id=name):
            found = module.find(name)
            return _OPAQUE if found is None else _named(*found)
        case ast.BinOp(op=ast.BitOr()):
            return _union([_type(one, module) for one in _members(node)])
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            return _literal(inner, module)
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            return _union([_type(inner, module), type(None)])
        case ast.Subscript(value=ast.Name(id="Union"), slice=ast.Tuple(elts=parts)):
            return _union([_type(one, module) for one in parts])
        case ast.Subscript(value=ast.Name(id="SkipValidation" | "Annotated"), slice=inner):
            return _type(inner.elts[0] if isinstance(inner, ast.Tuple) else inner, module)
        case ast.Subscript(value=ast.Name(id="list" | "set"), slice=inner):
            item = _type(inner, module)
            return list[Any] if item is _OPAQUE else list[item]  # type: ignore[valid-type]
        case ast.Subscript(value=ast.Name(id="dict")):
            return dict[str, Any]
    return _OPAQUE


def _named(node: ast.AST, module: Module) -> Any:
    if not isinstance(node, ast.ClassDef):
        return _type(node, module)
    bases = {ast.unparse(base) for base in node.bases}
    if any(base.endswith("Enum") for base in bases):
        return _enum(node)
    return _config(node.name, module)


def _members(node: ast.AST) -> list[ast.AST]:
    if isinstance(node, ast.BinOp):
        return [*_members(node.left), *_members(node.right)]
    head = ast.unparse(node.value if isinstance(node, ast.Subscript) else node)
    return [] if head in _UNWRITABLE else [node]


def _union(kinds: list[Any]) -> Any:
    """`Literal[…] | str` names vLLM's choices without plugins, and counts as those alone."""
    if _OPAQUE in kinds:
        return _OPAQUE
    if any(get_origin(kind) is Literal for kind in kinds) and str in kinds and not _plugins():
        kinds = [kind for kind in kinds if kind is not str]
    return reduce(operator.or_, kinds) if kinds else _OPAQUE


@cache
def _plugins() -> bool:
    """Whether vLLM loads foreign plugins, which may add choices."""
    return any(not one.value.startswith(("vllm.", "serve_app.")) for one in entry_points(group="vllm.general_plugins"))


def _literal(inner: ast.AST, module: Module) -> Any:
    values: list[Any] = []
    for part in inner.elts if isinstance(inner, ast.Tuple) else [inner]:
        if isinstance(part, ast.Constant):
            values.append(part.value)
        else:
            values += get_args(_type(part, module))
    return Literal[tuple(values)] if values else _OPAQUE


def _enum(node: ast.ClassDef) -> Any:
    """Members' names and values. vLLM also takes lower-case names."""
    values: list[Any] = []
    for item in node.body:
        match item:
            case ast.Assign(targets=[ast.Name(id=name)]):
                values += [name, name.lower()]
                if isinstance(item.value, ast.Constant):
                    values.append(item.value.value)
    return Literal[tuple(dict.fromkeys(values))] if values else _OPAQUE


@cache
def _config(name: str, module: Module) -> Any:
    """A vLLM configuration class as a model, with types where no validator converts the field."""
    found = module.find(name)
    if found is None or not isinstance(found[0], ast.ClassDef):
        return _OPAQUE
    node, module = found[0], found[1]
    if node.bases or not any(ast.unparse(one) in ("config", "dataclass") for one in node.decorator_list):
        return _OPAQUE
    converted = _converted(node)
    fields: dict[str, Any] = {}
    for field_name, field in _annotated(node):
        loose = converted is None or field_name in converted
        fields[field_name] = (Any, None) if loose else option_type(field, module)
    config = ConfigDict(extra="forbid", protected_namespaces=())
    return create_model(name, __config__=config, **fields)


def _converted(node: ast.ClassDef) -> set[str] | None:
    """Fields that a vLLM validator may change before the type check; None for all."""
    found: set[str] = set()
    for item in node.body:
        for call in getattr(item, "decorator_list", ()):
            if not isinstance(call, ast.Call) or not any(
                word.arg == "mode" and ast.literal_eval(word.value) in ("before", "wrap", "plain")
                for word in call.keywords
            ):
                continue
            if "model_validator" in ast.unparse(call.func):
                return None
            found |= {str(arg.value) for arg in call.args if isinstance(arg, ast.Constant)}
    return found
