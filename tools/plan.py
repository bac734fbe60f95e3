"""Everything at full size, unattended and resumable: a GPU of 80 GB, the hub at hand, some twenty hours."""

import argparse
from pathlib import Path

from ser.errors import UserError, tool


@tool
def main() -> int | None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("just", help="the program just; the recipe gives it")
    parser.add_argument("justfile", help="its recipes")
    parser.add_argument("--list", action="store_true", help="print the steps with hours and memory, and stop")
    parser.add_argument("--rehearse", action="store_true", help="all steps on made-up sound with tiny encoders")
    parser.add_argument("--only", default="", help="only steps whose names hold this, and what is done already")
    parser.add_argument("--gpus", type=int, default=1, help="processes that share the work of a step")
    parser.add_argument("--allow-missing", action="store_true", help="go on although official clips are not there")
    arguments = parser.parse_args()

    import os

    from ser import plan, planning, rehearsal
    from ser.files import outputs_folder

    if arguments.rehearse:
        os.environ["SER_HOME"] = str(outputs_folder() / "rehearsal")
        rehearsal.prepare(Path(os.environ["SER_HOME"]))
    steps = plan.full_plan()
    if not any(arguments.only in step.name for step in steps):
        raise UserError(f"--only {arguments.only}: no step's name holds this; see them all: just plan --list")
    if arguments.list:
        print(planning.table([step for step in steps if arguments.only in step.name]))
        return None
    just = [arguments.just, "--justfile", arguments.justfile]
    if arguments.rehearse:
        return planning.carry_out(steps, just, 1, True, rehearsal.overrides, arguments.only)
    return planning.carry_out(steps, just, arguments.gpus, arguments.allow_missing, only=arguments.only)


if __name__ == "__main__":
    main()
