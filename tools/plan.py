"""Everything at full size, unattended and resumable: a GPU of 40 GB, the hub at hand, some twenty hours."""

import os

from ser.arguments import Parser
from ser.errors import UserError, tool


@tool
def main() -> int | None:
    parser = Parser(description=__doc__)
    parser.add_argument("just", help="the program just; the recipe gives it")
    parser.add_argument("justfile", help="its recipes")
    parser.add_argument("--list", action="store_true", help="print the steps with hours and memory, and stop")
    parser.add_argument("--rehearse", action="store_true", help="all steps on made-up sound with tiny encoders")
    parser.add_argument("--only", default="", help="steps whose names begin so, such as ravdess-")
    parser.add_argument("--gpus", type=int, default=1, help="processes that share the work of a step")
    parser.add_argument("--jobs", type=int, default=1, help="folds that train at the same time")
    parser.add_argument("--allow-missing", action="store_true", help="go on although official clips are not there")
    parser.add_argument("--cpu", action="store_true", help="go on without a GPU; it may take weeks")
    arguments = parser.parse_args()
    if os.environ.get("raw"):  # noqa: SIM112 - as the Justfile calls it
        raise UserError("raw is the folder of one corpus; first: just raw=PATH prepare ravdess, and so for crema_d")

    from ser import plan, plan_runner, rehearsal
    from ser.files import outputs_folder

    options = plan_runner.Options(arguments.gpus, arguments.jobs, arguments.allow_missing)
    if arguments.rehearse:
        home = outputs_folder() / "rehearsal"
        os.environ["SER_HOME"] = str(home)
        options = plan_runner.Options(allow_missing=True, extra=rehearsal.overrides)
    steps = plan.full_plan()
    if not any(step.name.startswith(arguments.only) for step in steps):
        raise UserError(f"--only {arguments.only}: no step's name begins so; see them all: just plan --list")
    if arguments.list:
        print(plan_runner.table(steps, options, arguments.only))
        return None
    if not arguments.rehearse and not arguments.cpu:
        import torch

        if not torch.cuda.is_available():
            raise UserError("no GPU that torch can use; see: just doctor, or go on all the same: just plan --cpu")
    just = [arguments.just, "--justfile", arguments.justfile]
    if not arguments.rehearse:
        return plan_runner.carry_out(steps, just, options, arguments.only)
    rehearsal.prepare(home)
    status = plan_runner.carry_out(plan.full_plan(), just, options, arguments.only)
    if not status and not arguments.only:  # some steps alone can be followed by others
        rehearsal.close(home)
    return status


if __name__ == "__main__":
    main()
