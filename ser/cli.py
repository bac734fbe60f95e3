"""The ``ser`` command of the installed package."""

import platform

from ser import __version__
from ser.arguments import Parser
from ser.errors import tool
from ser.predict_command import add_commands


@tool
def main() -> int | None:
    """Parse ``ser COMMAND`` and run it."""
    parser = Parser(prog="ser", description="Audio-only speech emotion recognition.")
    parser.add_argument("--version", action="version", version=f"ser {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    checkup = commands.add_parser("doctor", help="versions, devices, corpora found, and what to do next")
    checkup.set_defaults(run=lambda _: print(doctor()))
    add_commands(commands)
    arguments = parser.parse_args()
    return arguments.run(arguments)


def doctor() -> str:
    """Return versions, devices, which corpora were found, and what to do next."""
    import torch

    from ser.environment import PACKAGES, installed
    from ser.files import PROJECT, home

    repository = (PROJECT / "Justfile").is_file()  # an installed wheel brings neither recipes nor corpora
    absent = "not installed; run: just setup" if repository else "not installed"
    lines = [f"ser {__version__}, Python {platform.python_version()}, {platform.platform()}"]
    lines += [f"  {name:<14}{installed(name) or absent}" for name in PACKAGES[1:]]
    lines.append("devices")
    lines.append(f"  CPU: {torch.get_num_threads()} threads")
    seen = torch.cuda.device_count()
    if seen and not torch.cuda.is_available():
        why = f"most often, its CUDA {torch.version.cuda} needs a newer driver"
        lines.append(f"  {seen} GPU that torch cannot use: {why}; see: python -c 'import torch; torch.cuda.init()'")
        seen = 0
    for index in range(seen):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        lines.append(f"  GPU {index}: {torch.cuda.get_device_name(index)}, {memory:.0f} GiB")
    if not repository:
        return "\n".join([*lines, "next", "  ser predict EXPORT speech.wav", "  (training needs the repository)"])
    lines.append(f"corpora, in {home() / 'data'}")
    states = corpora_found()
    lines += [f"  {name:<9}{text}" for name, (text, _) in states.items()]
    lines.append("next")
    lines += [f"  {command}" for _, command in states.values() if command] or ["  just train ravdess_ecapa"]
    return "\n".join(lines)


def corpora_found() -> dict[str, tuple[str, str]]:
    """Return corpus -> (what is there, the next command or nothing)."""
    from ser.corpora import CORPORA
    from ser.errors import UserError
    from ser.files import corpus_folder
    from ser.metadata import prepare_command, read_table

    states = {}
    for name, entry in CORPORA.items():
        if not (corpus_folder(name) / "metadata.csv").is_file():
            command = "just demo" if name == "demo" else prepare_command(name)
            states[name] = (f"{entry.title}: not prepared", command)
            continue
        try:
            table = read_table(name)
        except UserError as error:
            states[name] = (f"{entry.title}: {error}", prepare_command(name))
            continue
        stores = sorted(path.parent.name for path in (corpus_folder(name) / "feats").glob("*/index.json"))
        speakers = len({clip.speaker for clip in table.clips})
        text = (
            f"{entry.title}: {len(table.clips)} clips of {speakers} speakers, {table.missing} missing, in {table.raw}"
        )
        text += f"; features: {', '.join(stores) or 'none'}"
        states[name] = (text, next_step(name, stores))
    return states


def next_step(corpus: str, stores: list[str]) -> str:
    """Return the command that goes on with a prepared corpus from the features that it has."""
    encoder = f"whisper_tiny{'_en' if corpus in ('crema_d', 'ravdess') else ''}"  # as in gin/exp/
    if corpus != "demo" and f"{encoder}-statistics" in stores:
        return f"just train {corpus}_stats_probe"
    if "logmel80" in stores:
        return f"just train {corpus}_ecapa"
    return f"just extract {corpus} {'logmel80' if corpus == 'demo' else encoder}"
