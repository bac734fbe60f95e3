"""The gin boundary: register public names, parse, check, seed, build, snapshot.

The only module that imports gin. gin only collects constructed objects into one ``Experiment``; everything
that can be wrong with a configuration is said before anything starts, in one line.
"""

import inspect
import tokenize
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import gin

from ser.annotations import fits, type_name
from ser.errors import UserError, closest, first_line, nearest, some
from ser.files import PROJECT
from ser.gin_files import experiments, find_experiment, find_include
from ser.labels import label_set

if not hasattr(gin, "register"):
    raise ImportError("the folder gin/ hides the missing package gin-config; install it: just setup")

from gin import config as gin_config
from gin import config_parser

__all__ = [
    "Config",
    "build",
    "build_protocol",
    "compose",
    "load",
    "load_features",
    "load_protocol",
    "settings",
    "show",
    "snapshot",
]

# What gin may bind, each as `module.Name`.
BINDABLE = {
    "labels": ("label_set",), "losses": ("Loss",), "protocol": ("Protocol",), "mel": ("LogMel", "Sound", "WhisperMel"),
    "augment": ("Augmentation",), "augment_sound": ("Clipping", "Gain", "Pitch", "Polarity", "Shift", "Speed"),
    "augment_surroundings": ("BackgroundNoise", "Band", "LowPass", "Noise", "RecordedRooms", "Reverb"),
    "augment_features": ("Mixup", "SoundMixup", "SpecAugment"),
    "encoders": ("EncoderFeatures", "Pretrained", "front_end", "kept_layers"), "features": ("Features",),
    "adapting": ("Adapted",), "hubert_attn": ("HubertAttn",), "whisper_prompt": ("WhisperPrompt",),
    "ecapa_tdnn": ("EcapaTdnn",), "stats_probe": ("StatsProbe",), "optim": ("AdamW", "WarmupCosine"),
    "tracking": ("Tracking",), "experiment": ("Experiment", "Training"),
}  # fmt: skip
ROOT = "experiment.Experiment"
LINE = 10_000  # characters; snapshots keep one binding a line
RULE = 80  # characters of a ruled line
HEADER = "# ser experiment: "
registered: dict[str, Callable] = {}  # what gin knows of ours


def register_modules() -> None:
    """Register all of ``BINDABLE`` once."""
    for module, names in BINDABLE.items():
        for name in names:
            if f"{module}.{name}" not in registered:
                registered[f"{module}.{name}"] = component = getattr(import_module(f"ser.{module}"), name)
                gin.register(component, module=module)


@dataclass(frozen=True)
class Binding:
    """One statement of a gin file: ``scope/selector.parameter = value``, or a macro without parameter."""

    scope: str
    selector: str
    parameter: str
    value: Any
    where: str

    @property
    def key(self) -> str:
        """The left side as it is written."""
        name = f"{self.selector}.{self.parameter}" if self.parameter else self.selector
        return f"{self.scope}/{name}" if self.scope else name


@dataclass(frozen=True)
class Config:
    """A checked configuration.

    Attributes:
        name: of the experiment.
        bindings: in the order they apply, later ones over earlier ones.
    """

    name: str
    bindings: tuple[Binding, ...] = field(repr=False)

    def macro(self, name: str) -> Any:
        """Return the value of a macro, the last that is bound."""
        values = [binding.value for binding in self.bindings if not binding.parameter and binding.key == name]
        return values[-1] if values else None


def load(experiment: str, overrides: Sequence[str] = ()) -> Config:
    """Read an experiment by its name in ``gin/exp/`` or by the path of a gin file, and check it.

    Args:
        experiment: such as ``ravdess_ecapa`` or ``outputs/<run>/run.gin``.
        overrides: such as ``train/epochs = 5``; later ones win.

    Raises:
        UserError: a mistyped name or file, a wrong type, a missing value: one line with the nearest right name.
    """
    path = find_experiment(experiment)
    name = path.stem
    first = path.read_text(encoding="utf-8-sig", errors="replace").partition("\n")[0]
    if first.startswith(HEADER):
        name = first.removeprefix(HEADER).strip()
    return checked(name, list(file_bindings(path)), overrides)


def compose(name: str, parts: Sequence[str], overrides: Sequence[str] = ()) -> Config:
    """Put an experiment together from ``gin/base.gin`` and other files of ``gin/``, and check it.

    Args:
        name: of the experiment.
        parts: such as ``data/ravdess``; later ones win.
        overrides: as of ``load``.

    Raises:
        UserError: as ``load``.
    """
    register_modules()
    includes = "".join(f"include 'gin/{part}.gin'\n" for part in ("base", *parts))
    return checked(name, list(text_bindings(includes, name, PROJECT)), overrides)


def load_features(name: str, overrides: Sequence[str] = ()):
    """Build the features of ``gin/features/<name>.gin``, or those that an experiment reads.

    Args:
        name: of the file, or an experiment as of ``load``.
        overrides: such as ``encoder/keep = 'frames'``.

    Raises:
        UserError: no such file, or it is wrong.
    """
    path = PROJECT / "gin/features" / f"{name}.gin"
    if not path.is_file() and name not in experiments() and not name.endswith(".gin"):
        raise UserError(
            f"features '{name}' are unknown{nearest(name, [file.stem for file in path.parent.glob('*.gin')])}"
        )
    config = checked(name, list(file_bindings(path)), overrides) if path.is_file() else load(name, overrides)
    return construct(config, "features.Features")


def load_protocol(corpus: str, overrides: Sequence[str] = ()):
    """Build the protocol that a corpus's experiments begin with.

    Args:
        corpus: its name.
        overrides: such as ``split/fold = 2``.

    Raises:
        UserError: no such corpus, or a wrong override.
    """
    label_set(corpus)
    parts = (
        f"data/{corpus}",
        "features/logmel80",
        "augment/none",
        "model/ecapa",
    )  # any model: an experiment is only read whole
    return build_protocol(compose(corpus, parts, overrides))


def build_protocol(config: Config):
    """Build the protocol of a configuration, and nothing else of it."""
    return construct(config, "protocol.Protocol")


def file_bindings(path: Path) -> Iterator[Binding]:
    """Yield the bindings of a gin file, those of its includes first."""
    register_modules()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text; expected a gin file") from error
    yield from text_bindings(text, str(path), path)


def text_bindings(text: str, name: str, path: Path | None) -> Iterator[Binding]:
    """Yield the bindings of gin text; ``path`` is None where no include is allowed."""
    parser = statements(text, name)
    bound = False
    for statement in parser:
        if isinstance(statement, config_parser.BindingStatement):
            bound = True
            scope, selector, parameter, value, location = statement
            yield Binding(scope, selector, parameter or "", value, f"{name}: line {location.line_num}")
        elif isinstance(statement, config_parser.IncludeStatement):
            where = f"{name}: line {statement.location.line_num}"
            if path is None:
                raise UserError(f"{where}: an include cannot stand here; write a gin file of your own that has it")
            if bound:
                raise UserError(f"{where}: an include after a binding would overwrite it; move includes to the top")
            yield from file_bindings(find_include(statement.filename, where))
        elif isinstance(statement, config_parser.ImportStatement):
            raise UserError(f"{name}: line {statement.location.line_num}: gin files import nothing; remove the line")


def statements(text: str, name: str) -> Iterator[Any]:
    """Parse gin text; a syntax error or an unknown reference becomes a UserError."""
    try:
        parser = config_parser.ConfigParser(text, gin_config.ParserDelegate())
        yield from parser
    except tokenize.TokenError as error:
        raise UserError(f"{name}: a bracket or quote is never closed; values are Python literals") from error
    except SyntaxError as error:
        reason = str(error.msg).strip().partition("\n")[0]
        unread = any(words in reason for words in ("malformed node", "Expected newline"))
        reason = "not a Python literal" if unread else reason
        line = f" line {error.lineno}:" if error.lineno else ""
        shown = (error.text or text).strip().partition("\n")[0]
        raise UserError(
            f"{name}:{line} {reason} in `{shown}`; values are Python literals, text in quotes: 'name = \"text\"'"
        ) from error
    except ValueError as error:  # a reference to an unknown or ambiguous name
        reason = first_line(error)
        raise UserError(f"{name}: {reason}{nearest_configurable(reason)}") from error


def nearest_configurable(reason: str) -> str:
    """Suggest a registered name for the quoted one in gin's message."""
    quoted = reason.split("'")
    if len(quoted) < 3:
        return ""
    name = quoted[1].rpartition(".")[2]
    own = "" if closest(name, short_names()) else "; a component of your own must be named in config.BINDABLE"
    return nearest(name, short_names()) + own


def short_names() -> list[str]:
    """Return the registered names without their modules."""
    return [name.partition(".")[2] for name in registered]


def checked(name: str, bindings: list[Binding], overrides: Sequence[str]) -> Config:
    """Check every binding, then the overrides on top of them."""
    macros = {binding.key for binding in bindings if not binding.parameter}
    added = []
    for override in overrides:
        if "=" in overrides:
            shown = " ".join(overrides)
            raise UserError(f"override `{shown}`: expected each binding in quotes as a whole: 'train/epochs = 5'")
        found = list(text_bindings(override, f"override `{override}`", None))
        if len(found) != 1:
            first = override.partition("\n")[0]
            raise UserError(f"override `{first}`: expected one binding such as 'train/epochs = 5'")
        binding = found[0]
        # gin takes any macro; one that no file defines is a typing error that would change nothing.
        if not binding.parameter and binding.key not in macros:
            raise UserError(f"override `{override}`: no file defines '{binding.key}'{nearest(binding.key, macros)}")
        added.append(binding)
    every = [*bindings, *added]
    final = {canonical(binding): binding for binding in every}
    given = {binding.key: binding for binding in final.values() if not binding.parameter}
    for binding in final.values():
        check_value(binding, given)
    return Config(name, tuple(every))


def canonical(binding: Binding) -> str:
    """Return a key that is the same for every spelling of a selector; an unknown one is a UserError."""
    if not binding.parameter:
        return binding.key
    matches = [full for full in registered if full == binding.selector or full.endswith(f".{binding.selector}")]
    if not matches:
        short = binding.selector.rpartition(".")[2]
        hint = nearest(short, short_names()) if short not in short_names() else nearest(binding.selector, registered)
        raise UserError(f"{binding.where}: no component '{binding.selector}'{hint}")
    parameters = inspect.signature(registered[matches[0]]).parameters
    if binding.parameter not in parameters:
        raise UserError(
            f"{binding.where}: {binding.selector} has no parameter '{binding.parameter}'"
            f"{nearest(binding.parameter, parameters)}"
        )
    return f"{binding.scope}/{matches[0]}.{binding.parameter}"


def check_value(binding: Binding, macros: Mapping[str, Binding]) -> None:
    """Raise a UserError for a required value that is missing, an unknown macro, or a literal of the wrong type."""
    for item in binding.value if isinstance(binding.value, list | tuple) else ():
        check_value(replace(binding, parameter="", value=item), macros)
    value, where = binding.value, binding.where
    seen = set()
    while is_macro(value):
        macro = macro_name(value)
        if macro not in macros or macro in seen:
            raise UserError(f"{binding.where}: no macro '%{macro}' is defined{nearest(macro, macros)}")
        seen.add(macro)
        value, where = macros[macro].value, macros[macro].where
    if is_required(value):
        shown = macro_name(binding.value) if is_macro(binding.value) else binding.key
        raise UserError(f"'{shown}' must be set; nothing in the files sets it: add '{shown} = ...'")
    if not binding.parameter:
        return
    wanted = parameter_type(binding)
    if not fits(value, wanted, gin_config.ConfigurableReference):  # constructors see to references
        name = macro_name(binding.value) if is_macro(binding.value) else binding.key
        raise UserError(f"{where}: {name} is {value!r}, of type {type(value).__name__}; expected {type_name(wanted)}")


def is_macro(value: Any) -> bool:
    """Say whether a bound value is a reference to a macro."""
    return isinstance(value, gin_config.ConfigurableReference) and value.selector == "gin.macro"


def macro_name(value: Any) -> str:
    """Return the name of the macro that a bound value refers to."""
    return value.scoped_selector.removesuffix("/gin.macro")


def is_required(value: Any) -> bool:
    """Say whether a bound value is ``%gin.REQUIRED``, which somebody must replace."""
    return isinstance(value, gin_config.ConfigurableReference) and value.scoped_selector == "gin.REQUIRED/gin.constant"


def parameter_type(binding: Binding) -> Any:
    """Return the annotation of a bound parameter."""
    full = canonical(binding).rpartition("/")[2].rpartition(".")[0]
    target = registered[full]
    return typing.get_type_hints(target.__init__ if inspect.isclass(target) else target).get(binding.parameter, Any)


def bind(config: Config) -> None:
    """Hand the bindings to gin, which has forgotten all earlier ones."""
    gin.clear_config()
    for binding in config.bindings:
        macro = f"{binding.scope}/{binding.selector}" if binding.scope else binding.selector
        key = (
            (binding.scope, binding.selector, binding.parameter) if binding.parameter else (macro, "gin.macro", "value")
        )
        gin.bind_parameter(key, binding.value)


def construct(config: Config, selector: str) -> Any:
    """Seed, then build what ``selector`` names; gin's own errors become one line."""
    from ser.dist import seed_everything

    bind(config)
    seed = config.macro("seed")
    if not isinstance(seed, int | None) or isinstance(seed, bool) or (seed is not None and not 0 <= seed < 2**63):
        raise UserError(f"{config.name}: seed is {seed!r}; expected a whole number from 0")
    if seed is not None:
        seed_everything(seed)
    try:
        return gin.get_configurable(selector)()
    except UserError as error:  # gin appends the stack of configurables to the message
        raise UserError(str(error).partition("\n")[0]) from error
    except Exception as error:  # whatever a constructor raises: gin marks it as it passes
        marked = str(error).partition("In call to configurable")
        if not marked[1] and "Required bindings" not in str(error):
            raise
        component = marked[2].split("'")[1] if marked[2].count("'") > 1 else config.name
        reason = marked[0].strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"{config.name}: {component} cannot be built from these values: {reason}") from error


def build(config: Config) -> Any:
    """Build the ``Experiment``.

    Raises:
        UserError: a constructor's refusal, or a binding that nothing uses.
    """
    experiment = construct(config, ROOT)
    if unused := unused_keys():
        hint = nearest(unused[0], [key for key in operative_keys() if key not in unused])
        hint = hint if "did you mean" in hint else ""
        raise UserError(f"{config.name}: bound but used by nothing: {some(unused)}; remove it{hint}")
    return experiment


def snapshot_lines(text: str) -> dict[str, Any]:
    """Return key -> value of the statements of gin's own output."""
    return {binding.key: binding.value for binding in text_bindings(text, "snapshot", None)}


def unused_keys() -> list[str]:
    """Return what is bound but was used by no constructor; call after building."""
    bound = snapshot_lines(gin.config_str(max_line_length=LINE))
    return sorted(bound.keys() - operative_keys())


def operative_keys() -> set[str]:
    """Return the keys that the constructors of the last build used, with and without the macro they stood in."""
    used = set(snapshot_lines(gin.operative_config_str(max_line_length=LINE)))
    return used | {key.rpartition("/")[2] for key in used if "." in key}


def snapshot(config: Config) -> str:
    """Return the resolved bindings of the experiment just built, defaults included: the text of ``run.gin``."""
    lines = gin.operative_config_str(max_line_length=LINE).splitlines()
    short = (line[:RULE] if line.startswith("# ==") else line for line in lines)  # gin rules as wide as LINE
    return "\n".join([f"{HEADER}{config.name}", *short]) + "\n"


def settings(text: str) -> dict[str, Any]:
    """Return a snapshot's bindings as typed values for a dashboard; references stay text."""
    return {key: plain(value) for key, value in snapshot_lines(text).items()}


def plain(value: Any) -> Any:
    """Turn gin's references into text, inside lists too."""
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, gin_config.ConfigurableReference) else value


def show(config: Config) -> str:
    """Return the settings, the wiring, the defaulted and the unused values of a configuration, each a line."""
    construct(config, ROOT)
    bound = snapshot_lines(gin.config_str(max_line_length=LINE))
    used = snapshot_lines(gin.operative_config_str(max_line_length=LINE))
    unused = set(unused_keys())
    defaulted = {key for key in used if not bound.keys() & {key, key.rpartition("/")[2]}}
    wiring = {key for key, value in bound.items() if isinstance(value, gin_config.ConfigurableReference)} - unused

    def lines(keys: set[str], values: dict[str, Any]) -> str:
        order = sorted(keys, key=lambda key: ("." in key, key))  # macros, which are what is changed, come first
        return "".join(f"  {key} = {gin_config._format_value(values[key])}\n" for key in order) or "  none\n"

    return (
        f"{config.name}\n"
        f"\nsettings: set in gin files or on the command line\n{lines(bound.keys() - unused - wiring, bound)}"
        f"\ndefaulted: not set, taken from the code\n{lines(defaulted, used)}"
        f"\nwiring: which setting or component goes where\n{lines(wiring, bound)}"
        f"\nunused: set, but nothing uses it (training would stop here)\n{lines(unused, bound)}"
    )
