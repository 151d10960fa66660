"""What is read from a wire, a socket or a file is data and never code: nothing here loads a pickle as such."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("engine", "kernels", "server", "demo", "clients")
BANNED_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "marshal",
    "shelve",
    "joblib",
    "jsonpickle",
}
BANNED_CALLS = {"recv_pyobj", "send_pyobj", "recv_serialized"}
BANNED_BUILTINS = {"eval", "exec"}
# Pickled checkpoints are read by torch.load with weights_only, and nanoGPT's meta.pkl by an unpickler that refuses
# every class: these files name the module's error, and the latter that unpickler's base.
ALLOWED_IMPORTS = {
    "engine/checkpoint/read.py": {"pickle"},
    "engine/checkpoint/tokenizer_files.py": {"pickle", "pickletools"},
}
HARMLESS_NAMES = {"UnpicklingError"}
# numpy.load reads pickles where it is told to.
BANNED_KEYWORDS = {"allow_pickle"}


def hostile_18_faults(source: str, name: str) -> Iterator[str]:
    """What in `source` could run code that somebody sent."""
    tree = ast.parse(source)
    bases = [base for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for base in node.bases]
    for node in ast.walk(tree):
        place = f"{name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names]
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            allowed = ALLOWED_IMPORTS.get(name, set()) if isinstance(node, ast.Import) else set()
            yield from (f"{place}: {m}" for m in modules if m.partition(".")[0] in BANNED_MODULES - allowed)
        elif isinstance(node, ast.ClassDef):
            methods = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
            if any(_names_pickle(base) for base in node.bases) and "find_class" not in methods:
                yield f"{place}: an unpickler that takes any class"
        elif _names_pickle(node) and node not in bases and getattr(node, "attr", "") not in HARMLESS_NAMES:
            yield f"{place}: pickle.{getattr(node, 'attr', '')}"
        elif isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            keywords = {keyword.arg: keyword.value for keyword in node.keywords}
            if called in BANNED_CALLS or (isinstance(node.func, ast.Name) and called in BANNED_BUILTINS):
                yield f"{place}: {called}"
            if keywords.keys() & BANNED_KEYWORDS:
                yield f"{place}: {called} with pickles"
            if called == "load" and getattr(getattr(node.func, "value", None), "id", "") == "torch":
                only = keywords.get("weights_only")
                if not (isinstance(only, ast.Constant) and only.value is True):
                    yield f"{place}: torch.load without weights_only=True"


def _names_pickle(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pickle"


def test_hostile_18_no_pickle_in_the_tree() -> None:
    files = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")]
    assert len(files) > 80
    faults = [
        fault for file in files for fault in hostile_18_faults(file.read_text(), str(file.relative_to(ROOT)))
    ]
    assert faults == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import cloudpickle as c",
        "socket.recv_pyobj()",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "numpy.load(path, allow_pickle=True)",
        "eval(text)",
        "pickle.loads(frame)",
        "class Mine(pickle.Unpickler):\n    pass",
    ],
)
def test_hostile_18_the_search_finds(source: str) -> None:
    assert list(hostile_18_faults(source, "x"))


@pytest.mark.parametrize(
    "source", ["torch.load(path, weights_only=True)", "model.eval()", "import picklejar", "pickle.UnpicklingError"]
)
def test_hostile_18_the_search_leaves(source: str) -> None:
    assert not list(hostile_18_faults(source, "x"))
