"""Phases 3-5: train an experiment of gin/exp/, resume a run, show a configuration, or try 50 steps."""

from ser.arguments import Parser
from ser.errors import UserError, tool


@tool
def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "experiment", nargs="?", help="name of a file in gin/exp/, path of a .gin file, or a run to resume"
    )
    parser.add_argument("overrides", nargs="*", default=[], help="gin bindings such as 'train/epochs = 5'")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--show", action="store_true", help="print resolved, defaulted and unused values; alone, list the experiments"
    )
    mode.add_argument("--name", action="store_true", help="print the name that the run has, and stop")
    mode.add_argument("--dry-run", action="store_true", help="make 50 steps, print losses and shapes, keep nothing")
    mode.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    arguments = parser.parse_args()

    import warnings

    from ser import config
    from ser.gin_files import experiments_table

    warnings.filterwarnings("ignore", module="speechbrain|torchaudio")
    if arguments.experiment is None:
        if not arguments.show:
            parser.error("an experiment is missing; just show lists them")
        print(experiments_table())
        return
    if arguments.show:
        print(config.show(config.load(arguments.experiment, arguments.overrides)), end="")
        return
    if arguments.dry_run:
        from ser.training import dry_run

        dry_run(config.build(config.load(arguments.experiment, arguments.overrides)))
        return

    from ser import dist, runs

    if arguments.name:
        print(runs.create(config.load(arguments.experiment, arguments.overrides))[1].folder.name)
        return
    if arguments.resume and arguments.overrides:
        raise UserError("a resumed run keeps its settings; start another to change them: just train EXP ...")
    with dist.process_group():
        if arguments.resume:
            experiment, run = runs.reopen(arguments.experiment)
        else:
            experiment, run = runs.create(config.load(arguments.experiment, arguments.overrides))
        runs.train(experiment, run)


if __name__ == "__main__":
    main()
